//! What must be refused, and how.

use std::fs;

use serde_json::json;

use super::Fixture;
use super::maker::{CONFIG, Header, INDEX, Image, Layout, MANIFEST, Tar, gzip};
use crate::image::{Digest, ImportOptions};

fn refusal_of(tar: Tar) -> String {
    Fixture::new().refusal(Image::of(tar).archive())
}

fn small() -> Image {
    Image::of(Tar::new().file("a", vec![7; 9000]))
}

#[test]
fn something_else_is_not_an_archive() {
    let fixture = Fixture::new();
    let text = fixture.refusal(b"just a text\n".repeat(100));
    assert_eq!(
        text,
        "cannot import test.oci: it is not an image archive (it does not begin with a tar header)"
    );
    let zip = fixture.refusal(b"PK\x03\x04 and so on".to_vec());
    assert!(zip.ends_with("(it is a zip archive)"), "{zip}");
    let nothing = fixture.refusal(Vec::new());
    assert!(nothing.ends_with("(it is empty)"), "{nothing}");
    let other = fixture.refusal(Tar::new().file("README", "hello").finish());
    assert!(
        other.contains("neither index.json nor manifest.json"),
        "{other}"
    );
}

#[test]
fn an_archive_cut_off_anywhere_is_refused() {
    let fixture = Fixture::new();
    let archive = small().archive();
    // The last kilobyte is the mark of the end.
    let cuts = (0..archive.len() - 1024)
        .step_by(4096)
        .chain([archive.len() - 1536]);
    let refusals: Vec<String> = cuts
        .map(|cut| fixture.refusal(archive[..cut].to_vec()))
        .collect();
    assert!(refusals.len() > 3);
    assert!(
        refusals
            .iter()
            .all(|refusal| refusal.starts_with("cannot import test.oci: ")),
        "{refusals:?}"
    );
}

#[test]
fn a_changed_layer_is_named_by_its_digest() {
    let fixture = Fixture::new();
    let image = small();
    let mut layout = image.layout();
    let blob = layout.name_of(&image.layers[0].0);
    layout.files.get_mut(&blob).unwrap()[600] ^= 1;
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains(&format!(
            "the blob {} has the digest sha256:",
            image.layers[0].2
        )),
        "{refusal}"
    );
}

#[test]
fn a_changed_compressed_layer_is_named_by_its_digest() {
    let fixture = Fixture::new();
    let image = Image::new().compressed(Tar::new().file("a", vec![7; 9000]), "+gzip", gzip);
    let mut layout = image.layout();
    let blob = layout.name_of(&image.layers[0].0);
    layout.files.get_mut(&blob).unwrap()[40] ^= 1;
    let refusal = fixture.refusal(layout.archive());
    let digest = Digest::of(&image.layers[0].0);
    assert!(
        refusal.contains(&format!("the blob {digest} has the digest sha256:")),
        "{refusal}"
    );
}

#[test]
fn a_changed_layer_is_refused_even_if_the_store_has_it() {
    let fixture = Fixture::new();
    let image = small();
    fixture.import(image.archive()).unwrap();
    let mut layout = image.layout();
    let blob = layout.name_of(&image.layers[0].0);
    layout.files.get_mut(&blob).unwrap()[600] ^= 1;
    let refusal = fixture.refusal(layout.archive());
    assert!(refusal.contains("has the digest"), "{refusal}");
}

#[test]
fn a_changed_configuration_is_refused() {
    let fixture = Fixture::new();
    let image = small();
    let mut layout = image.layout();
    let blob = layout.name_of(&image.config_bytes());
    let config = layout.files.get_mut(&blob).unwrap();
    let last = config.len() - 1;
    config[last] = b' ';
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains(&format!(
            "the blob {} has the digest",
            Digest::of(&image.config_bytes())
        )),
        "{refusal}"
    );
}

#[test]
fn a_layer_of_another_size_is_refused() {
    let fixture = Fixture::new();
    let image = small();
    let mut layout = image.layout();
    let blob = layout.name_of(&image.layers[0].0);
    layout.files.get_mut(&blob).unwrap().push(0);
    let refusal = fixture.refusal(layout.archive());
    let size = image.layers[0].0.len();
    assert!(
        refusal.contains(&format!("has {} bytes, not {size}", size + 1)),
        "{refusal}"
    );
}

#[test]
fn a_wrong_diff_id_is_refused() {
    let fixture = Fixture::new();
    let mut image = small();
    image.layers[0].2 = Digest::of(b"something else");
    let refusal = fixture.refusal(image.archive());
    let expected = format!(
        "has the diff id {}, not {}",
        Digest::of(&image.layers[0].0),
        image.layers[0].2
    );
    assert!(refusal.contains(&expected), "{refusal}");
}

#[test]
fn a_missing_blob_is_named() {
    let fixture = Fixture::new();
    let image = small();
    let mut layout = image.layout();
    layout.files.remove(&layout.name_of(&image.layers[0].0));
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.ends_with(&format!("the blob {} is missing", image.layers[0].2)),
        "{refusal}"
    );
}

#[test]
fn unknown_media_types_are_named() {
    let fixture = Fixture::new();
    let mut image = small();
    image.layers[0].1 = "application/vnd.example.layer".to_owned();
    let refusal = fixture.refusal(image.archive());
    assert!(
        refusal.contains("has the unknown media type `application/vnd.example.layer`"),
        "{refusal}"
    );
    let mut layout = Layout::default();
    let chart = layout.blob("application/vnd.example.chart", b"{}".to_vec());
    layout.index(&[chart]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains("has the unknown media type `application/vnd.example.chart`"),
        "{refusal}"
    );
}

#[test]
fn a_foreign_architecture_is_named() {
    let fixture = Fixture::new();
    let refusal = fixture.refusal(
        Image {
            architecture: "s390x",
            ..small()
        }
        .archive(),
    );
    assert_eq!(
        refusal,
        "cannot import test.oci: there is no image for linux/amd64; it has linux/s390x"
    );
}

#[test]
fn a_digest_of_another_algorithm_is_named() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    layout.index(&[json!({"mediaType": MANIFEST, "digest": "sha512:00", "size": 2})]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains("`sha512:00` uses a digest algorithm that is not supported"),
        "{refusal}"
    );
}

#[test]
fn an_index_a_thousand_deep_is_refused() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    let innermost = small().add_to(&mut layout);
    let outermost = (0..1000).fold(innermost, |inner, _| {
        layout.blob(
            INDEX,
            json!({"schemaVersion": 2, "manifests": [inner]})
                .to_string()
                .into_bytes(),
        )
    });
    layout.index(&[outermost]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.ends_with("indexes are nested deeper than 8"),
        "{refusal}"
    );
}

#[test]
fn an_index_that_names_itself_is_refused() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    // No document can hold its own digest, so the blob is not what its name says.
    let digest = Digest::of(b"the cycle");
    let entry = json!({"mediaType": INDEX, "digest": digest, "size": 300});
    let mut nested = json!({"schemaVersion": 2, "manifests": [entry]})
        .to_string()
        .into_bytes();
    nested.resize(300, b' ');
    layout
        .files
        .insert(format!("blobs/sha256/{}", digest.hex()), nested);
    layout.index(&[entry]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains(&format!("the blob {digest} has the digest")),
        "{refusal}"
    );
}

#[test]
fn a_manifest_of_ten_megabytes_is_refused() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    let manifest = layout.blob(MANIFEST, vec![b' '; 10 << 20]);
    layout.index(&[manifest]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.ends_with("has 10485760 bytes; 4194304 are allowed"),
        "{refusal}"
    );
}

#[test]
fn a_manifest_that_is_no_json_is_refused() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    let manifest = layout.blob(MANIFEST, b"{".to_vec());
    layout.index(&[manifest]);
    let refusal = fixture.refusal(layout.archive());
    assert!(refusal.contains("is malformed: EOF"), "{refusal}");
}

#[test]
fn more_layers_than_diff_ids_are_refused() {
    let fixture = Fixture::new();
    let mut layout = Layout::default();
    let config = layout.blob(CONFIG, Image::new().config_bytes());
    let layer = layout.blob(super::maker::LAYER, Tar::new().finish());
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    let manifest = layout.blob(MANIFEST, manifest.to_string().into_bytes());
    layout.index(&[manifest]);
    let refusal = fixture.refusal(layout.archive());
    assert!(
        refusal.contains("lists 0 diff ids for 1 layers"),
        "{refusal}"
    );
}

#[test]
fn a_path_that_leaves_the_root_is_refused() {
    let refusal = refusal_of(Tar::new().file("a/../../etc/passwd", ""));
    assert!(
        refusal.ends_with("the path `a/../../etc/passwd` leads out of the image's root"),
        "{refusal}"
    );
}

#[test]
fn a_hard_link_to_nothing_is_refused() {
    let refusal = refusal_of(Tar::new().hard_link("a", "b"));
    assert!(
        refusal.ends_with("`/a` is a hard link to `/b`, which does not exist"),
        "{refusal}"
    );
}

#[test]
fn a_hard_link_to_a_directory_or_out_of_the_root_is_refused() {
    let refusal = refusal_of(Tar::new().directory("d").hard_link("a", "d"));
    assert!(
        refusal.ends_with("`/a` is a hard link to `/d`, which is a directory"),
        "{refusal}"
    );
    let refusal = refusal_of(Tar::new().hard_link("a", "../../etc/passwd"));
    assert!(
        refusal.contains("leads out of the image's root"),
        "{refusal}"
    );
}

#[test]
fn a_file_below_a_file_is_refused() {
    let refusal = refusal_of(Tar::new().file("a", "").file("a/b", ""));
    assert!(
        refusal.ends_with("`/a/b` lies below `a`, which is not a directory"),
        "{refusal}"
    );
}

#[test]
fn symbolic_links_in_a_circle_are_refused() {
    let refusal = refusal_of(
        Tar::new()
            .symlink("a", "b")
            .symlink("b", "a")
            .file("a/x", ""),
    );
    assert!(
        refusal.ends_with("`/a/x` leads through too many symbolic links or directories"),
        "{refusal}"
    );
}

#[test]
fn an_overlay_whiteout_device_is_refused() {
    let refusal = refusal_of(Tar::new().device("hide", b'3', 0, 0));
    assert!(
        refusal.contains("the entry `/hide` is the character device 0:0"),
        "{refusal}"
    );
}

#[test]
fn a_device_that_linux_does_not_have_is_refused() {
    let refusal = refusal_of(Tar::new().device("dev", b'4', 5000, 1));
    assert!(refusal.contains("the device 5000:1"), "{refusal}");
}

#[test]
fn an_entry_of_unknown_kind_is_refused() {
    let refusal = refusal_of(Tar::new().member(&Header::new(b'Z', "odd"), b""));
    assert!(
        refusal.contains("the entry `/odd` is of an unknown kind (tar type 0x5a)"),
        "{refusal}"
    );
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    assert!(refusal_of(Tar::new().file("d/.wh.", "")).contains("is a whiteout of nothing"));
    assert!(refusal_of(Tar::new().file("d/.wh...", "")).contains("is a whiteout of nothing"));
}

#[test]
fn a_root_that_is_no_directory_is_refused() {
    let refusal = refusal_of(Tar::new().symlink("./", "/tmp"));
    assert!(
        refusal.ends_with("the root of the image is not a directory"),
        "{refusal}"
    );
}

#[test]
fn a_name_of_256_bytes_is_refused() {
    let name = "n".repeat(256);
    let refusal = refusal_of(Tar::new().pax(&[("path", name.as_bytes())]).file("x", ""));
    assert!(
        refusal.ends_with("is longer than Linux allows"),
        "{refusal}"
    );
}

#[test]
fn a_layer_that_ends_early_is_refused() {
    let refusal = refusal_of(
        Tar::new().raw(
            &Header {
                size: 100_000,
                ..Header::new(b'0', "a")
            }
            .to_block(),
        ),
    );
    assert!(
        refusal.contains("the archive ends in the middle"),
        "{refusal}"
    );
}

#[test]
fn a_layer_that_inflates_a_thousandfold_is_refused() {
    let fixture = Fixture::new();
    let bomb = Image::new().compressed(Tar::new().file("zeros", vec![0; 3 << 20]), "+gzip", gzip);
    let mut options = ImportOptions::default();
    options.limits.ratio_floor_bytes = 1 << 20;
    let refusal = fixture.refusal_with(bomb.archive(), &options);
    assert!(
        refusal.ends_with("the layer unpacks to more than 200 times its size"),
        "{refusal}"
    );
}

#[test]
fn an_archive_that_inflates_a_thousandfold_is_refused() {
    let fixture = Fixture::new();
    let bomb = gzip(&Image::of(Tar::new().file("zeros", vec![0; 3 << 20])).archive());
    let mut options = ImportOptions::default();
    options.limits.ratio_floor_bytes = 1 << 20;
    let refusal = fixture.refusal_with(bomb, &options);
    assert!(
        refusal.ends_with("it unpacks to more than 200 times its size"),
        "{refusal}"
    );
}

#[test]
fn sizes_at_the_end_of_the_numbers_are_refused() {
    let refusal_of_size =
        |size: &str| refusal_of(Tar::new().pax(&[("size", size.as_bytes())]).file("a", "b"));

    let refusal = refusal_of_size("18446744073709551615");
    assert!(refusal.contains("PAX header"), "{refusal}");
    let refusal = refusal_of_size("9223372036854775807");
    assert!(refusal.contains("is longer than 16 TiB"), "{refusal}");
}

#[test]
fn limits_can_be_set() {
    let fixture = Fixture::new();
    let mut options = ImportOptions::default();
    options.limits.entries = 2;
    let image = Image::of(Tar::new().file("a", "").file("b", "").file("c", ""));
    let refusal = fixture.refusal_with(image.archive(), &options);
    assert!(
        refusal.ends_with("the layer has more than 2 entries"),
        "{refusal}"
    );
    let mut options = ImportOptions::default();
    options.limits.unpacked_bytes = 10_000;
    let refusal = fixture.refusal_with(small().archive(), &options);
    assert!(
        refusal.ends_with("the layer unpacks to more than 10000 bytes"),
        "{refusal}"
    );
    let mut options = ImportOptions::default();
    options.limits.spool_bytes = 5000;
    let refusal = fixture.refusal_with(small().archive(), &options);
    assert!(
        refusal.ends_with("it is longer than 5000 bytes"),
        "{refusal}"
    );
}

#[test]
fn an_attribute_above_what_can_be_stored_is_refused() {
    let refusal = refusal_of(
        Tar::new()
            .pax(&[("SCHILY.xattr.user.big", &[b'x'; 65_536])])
            .file("a", ""),
    );
    assert!(
        refusal.contains("has an extended attribute `user.big` above 65535 bytes"),
        "{refusal}"
    );
}

#[test]
fn an_extended_header_of_two_megabytes_is_refused() {
    let refusal = refusal_of(
        Tar::new()
            .pax(&[("comment", &vec![b'x'; 2 << 20])])
            .file("a", ""),
    );
    assert!(refusal.contains("1048576 are allowed"), "{refusal}");
}

#[test]
fn a_directory_without_a_layout_is_refused() {
    let fixture = Fixture::new();
    let directory = fixture.directory.path().join("empty");
    fs::create_dir(&directory).unwrap();
    let error = fixture.import_path(&directory).unwrap_err();
    assert!(super::message(&error).ends_with("is not an OCI image layout: it has no index.json"));
    assert!(error.help().is_some());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let fixture = Fixture::new();
    let error = fixture
        .import_path(&fixture.directory.path().join("nothing.oci"))
        .unwrap_err();
    assert!(
        super::message(&error).contains("nothing.oci: cannot read it: No such file or directory")
    );
}
