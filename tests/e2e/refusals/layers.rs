//! Layers whose entries must not be believed.

use tests::image_maker::{Compression, ImageMaker, Kind, Layer};

use super::refused;

fn image_of(layer: Layer) -> Vec<u8> {
    ImageMaker::empty()
        .layer(layer)
        .name("hostile:1")
        .layout()
        .archive()
}

#[test]
fn a_path_with_dot_dot_is_named() {
    refused(
        &image_of(Layer::new().file("etc/../../escaped", "x")),
        &["etc/../../escaped"],
    );
}

#[test]
fn an_absolute_path_is_named() {
    refused(
        &image_of(Layer::new().file("/etc/escaped", "x")),
        &["/etc/escaped"],
    );
}

#[test]
fn a_hard_link_to_an_absolute_path_out_of_the_layer_is_named() {
    refused(
        &image_of(Layer::new().hard_link("link", "/etc/passwd")),
        &["/etc/passwd"],
    );
}

#[test]
fn a_path_that_is_dot_dot_is_named() {
    refused(&image_of(Layer::new().directory("..")), &[".."]);
}

#[test]
fn a_path_through_a_symlink_out_of_the_root_is_named() {
    let layer = Layer::new()
        .symlink("way", "../../..")
        .file("way/escaped", "x");
    refused(&image_of(layer), &["way/escaped"]);
}

#[test]
fn a_path_through_a_symlink_of_a_lower_layer_is_named() {
    let image = ImageMaker::empty()
        .layer(Layer::new().symlink("way", "../../.."))
        .layer(Layer::new().file("way/escaped", "x"));
    refused(&image.layout().archive(), &["way/escaped"]);
}

#[test]
fn a_path_below_a_regular_file_is_named() {
    refused(
        &image_of(Layer::new().file("file", "x").file("file/below", "x")),
        &["file/below"],
    );
}

#[test]
fn a_hard_link_to_nothing_is_named() {
    refused(
        &image_of(Layer::new().hard_link("link", "no/target")),
        &["no/target"],
    );
}

#[test]
fn a_hard_link_to_itself_is_named() {
    refused(&image_of(Layer::new().hard_link("link", "link")), &["link"]);
}

#[test]
fn a_hard_link_out_of_the_root_is_named() {
    refused(
        &image_of(Layer::new().hard_link("link", "../../etc/passwd")),
        &["../../etc/passwd"],
    );
}

#[test]
fn a_hard_link_to_a_directory_is_named() {
    refused(
        &image_of(Layer::new().directory("dir").hard_link("link", "dir")),
        &["link"],
    );
}

#[test]
fn an_empty_path_is_refused() {
    refused(&image_of(Layer::new().file("", "x")), &["spoiled.oci"]);
}

#[test]
fn a_path_component_of_a_thousand_bytes_is_refused() {
    // NAME_MAX is 255: no Linux filesystem could show it.
    refused(
        &image_of(Layer::new().file("n".repeat(1000), "x")),
        &["nnnnnnnn"],
    );
}

#[test]
fn a_whiteout_of_dot_dot_is_refused() {
    refused(
        &image_of(Layer::new().directory("a").whiteout("a", "..")),
        &["a/.wh..."],
    );
}

#[test]
fn an_entry_longer_than_its_layer_is_refused() {
    let layer = Layer::new().entry(
        "short",
        0o644,
        Kind::LyingFile {
            size_bytes: 1 << 40,
            data: vec![1; 512],
        },
    );
    refused(&image_of(layer), &["spoiled.oci"]);
}

#[test]
fn a_layer_that_is_no_tar_is_refused() {
    let layout = super::good().layout();
    let noise = vec![0x55; 2048];
    let key = layout.layer_key(0);
    let mut layout = layout.without_layer_content(0);
    let mut descriptor = layout.add("application/vnd.oci.image.layer.v1.tar", &noise);
    let diff_id = descriptor["digest"].take();
    let spoiled = layout
        .with_configuration(|configuration| {
            configuration["rootfs"]["diff_ids"][0] = diff_id.clone()
        })
        .with_manifest(|manifest| {
            manifest["layers"][0]["digest"] = diff_id;
            manifest["layers"][0]["size"] = 2048.into();
        });
    assert_ne!(spoiled.layer_key(0), key);
    refused(&spoiled.archive(), &[&spoiled.layer_key(0)[..12]]);
}

#[test]
fn a_gzip_layer_that_is_none_is_refused() {
    let layer = Layer::new()
        .file("x", "x")
        .declared_as("application/vnd.oci.image.layer.v1.tar+gzip");
    let image = image_of(layer);
    // Content, not the media type, may also decide: then the image is good. What it may not do is crash.
    let fixture = super::with_something_in_the_store();
    let file = fixture.file("spoiled.oci", image);
    let done = fixture.load(&file).run();
    assert!(matches!(done.code(), Some(0 | 125)), "{done:?}");
}

#[test]
fn a_gzip_layer_cut_short_under_a_true_digest_is_refused() {
    let whole = Layer::new()
        .file("x", vec![3; 100_000])
        .compressed(Compression::Gzip);
    let cut = whole.blob()[..60].to_vec();
    let mut layout = ImageMaker::empty()
        .layer(whole)
        .layout()
        .without_layer_content(0);
    let descriptor = layout.add("application/vnd.oci.image.layer.v1.tar+gzip", &cut);
    let spoiled = layout.with_manifest(|manifest| manifest["layers"][0] = descriptor);
    refused(&spoiled.archive(), &[&spoiled.layer_key(0)[..12]]);
}

#[test]
fn a_negative_or_absurd_sparse_map_is_refused() {
    let mut tar = Layer::new()
        .entry(
            "sparse",
            0o644,
            Kind::PaxSparse {
                size_bytes: 4096,
                data: vec![1; 1024],
            },
        )
        .tar();
    // The map's first line says two pieces: claim more than anything could hold.
    let at = tar
        .windows(4)
        .position(|window| window == b"2\n0\n")
        .unwrap();
    tar[at] = b'9';
    let mut layout = super::good().layout().without_layer_content(0);
    let descriptor = layout.add("application/vnd.oci.image.layer.v1.tar", &tar);
    let diff_id = descriptor["digest"].clone();
    let spoiled = layout
        .with_configuration(|configuration| configuration["rootfs"]["diff_ids"][0] = diff_id)
        .with_manifest(|manifest| manifest["layers"][0] = descriptor);
    refused(&spoiled.archive(), &["sparse"]);
}
