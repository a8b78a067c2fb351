//! Every form of image that must be understood.

use serde_json::json;
use tests::Fixture;
use tests::host::{bytes_on_disk, bytes_read_so_far, sparse_file};
use tests::image_maker::{
    Compression, INDEX, ImageMaker, Kind, Layer, MANIFEST, compress, index, with_name,
    with_platform,
};
use tests::process::LARGE_IMPORT_LIMIT;

use super::{ids, small};

fn maker() -> ImageMaker {
    small("the same content in every form").name("demo:1")
}

/// Imports the file and asserts that the image is there under its id.
fn understood(content: &[u8]) {
    let fixture = Fixture::new();
    let file = fixture.file("image", content);
    fixture.load(&file).run().succeeded();
    assert_eq!(
        ids(&fixture),
        [format!("sha256:{}", maker().layout().image_id())]
    );
}

#[test]
fn an_oci_archive_is_understood() {
    understood(&maker().layout().archive());
}

#[test]
fn an_oci_archive_with_blobs_first_is_understood() {
    understood(&maker().layout().archive_blobs_first());
}

#[test]
fn an_oci_archive_with_dotted_member_names_is_understood() {
    understood(&maker().layout().archive_with_prefix("./"));
}

#[test]
fn a_gzip_compressed_archive_is_understood() {
    understood(&compress(Compression::Gzip, &maker().layout().archive()));
}

#[test]
fn a_zstd_compressed_archive_is_understood() {
    understood(&compress(Compression::Zstd, &maker().layout().archive()));
}

#[test]
fn an_old_docker_archive_is_understood() {
    understood(&maker().old_docker_archive());
}

#[test]
fn a_docker_archive_with_linked_layers_is_understood() {
    understood(&maker().linked_docker_archive());
}

#[test]
fn a_docker_archive_of_skopeo_is_understood() {
    understood(&maker().skopeo_docker_archive());
}

#[test]
fn a_docker_archive_with_a_layout_is_understood() {
    understood(&maker().docker_archive());
}

#[test]
fn a_compressed_docker_archive_is_understood() {
    understood(&compress(Compression::Gzip, &maker().old_docker_archive()));
}

#[test]
fn a_layout_directory_is_understood() {
    let fixture = Fixture::new();
    let directory = fixture.path("layout");
    maker().layout().write_directory(&directory);
    fixture.load(&directory).run().succeeded();
    assert_eq!(
        ids(&fixture),
        [format!("sha256:{}", maker().layout().image_id())]
    );
}

#[test]
fn an_archive_on_standard_input_is_understood() {
    let fixture = Fixture::new();
    fixture
        .vmm(["load"])
        .input(maker().layout().archive())
        .run()
        .succeeded();
    fixture
        .vmm(["load", "-i", "-"])
        .input(maker().docker_archive())
        .run()
        .succeeded();
    assert_eq!(ids(&fixture).len(), 1);
}

#[test]
fn the_file_name_says_nothing_about_the_content() {
    let fixture = Fixture::new();
    let file = fixture.file("holiday.jpg", maker().layout().archive());
    fixture.load(&file).run().succeeded();
}

#[test]
fn nested_indexes_lead_to_the_hosts_platform() {
    let mut layout = maker().layout();
    let native = layout.index["manifests"][0].clone();
    let foreign = small("foreign")
        .platform("linux", "arm64")
        .add_to(&mut layout);
    let foreign = layout.add_json(MANIFEST, &foreign);
    let inner = index(&[
        with_platform(&foreign, "linux", "arm64"),
        with_platform(&native, "linux", "amd64"),
        with_platform(&foreign, "windows", "amd64"),
    ]);
    let inner = layout.add_json(INDEX, &inner);
    let middle = layout.add_json(INDEX, &index(&[inner]));
    layout.index = index(&[with_name(&middle, "nested:1")]);
    understood(&layout.archive());
}

#[test]
fn blobs_that_no_manifest_names_do_no_harm() {
    let mut layout = maker().layout();
    layout.add("text/plain", b"an attachment");
    understood(&layout.archive());
}

#[test]
fn an_image_without_layers_can_be_imported() {
    let fixture = Fixture::new();
    let image = ImageMaker::empty()
        .config("Cmd", json!(["/x"]))
        .name("empty:1");
    let file = fixture.file("image", image.layout().archive());
    fixture.load(&file).run().succeeded();
    assert_eq!(ids(&fixture).len(), 1);
}

#[test]
fn duplicate_entries_mean_the_last_one() {
    let layer = Layer::new()
        .directory("a")
        .file("a/b", "first")
        .file("a/b", "second")
        .directory("a");
    let fixture = Fixture::new();
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("double:1")
            .layout()
            .archive(),
    );
    fixture.load(&file).run().succeeded();
}

#[test]
fn names_that_are_not_utf8_can_be_imported() {
    let layer = Layer::new()
        .directory(b"caf\xe9")
        .file(b"caf\xe9/\xff\xfe", "x")
        .symlink("link", b"caf\xe9");
    let fixture = Fixture::new();
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("latin:1")
            .layout()
            .archive(),
    );
    fixture.load(&file).run().succeeded();
}

#[test]
fn a_parent_directory_may_be_missing_or_come_later() {
    let layer = Layer::new()
        .file("a/b/c", "x")
        .directory("a")
        .with_mode(0o700);
    let fixture = Fixture::new();
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("order:1")
            .layout()
            .archive(),
    );
    fixture.load(&file).run().succeeded();
}

/// Imports a layer whose one file is 10 GiB long and all but empty, and asserts that it takes little space.
fn stays_sparse(kind: Kind) {
    let fixture = Fixture::new();
    let layer = Layer::new().entry("giant", 0o644, kind);
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("giant:1")
            .layout()
            .archive(),
    );
    fixture
        .load(&file)
        .limit(LARGE_IMPORT_LIMIT)
        .run()
        .succeeded();
    let taken = bytes_on_disk(&fixture.store());
    assert!(taken < 64 << 20, "the store takes {taken} bytes");
}

const GIANT_BYTES: u64 = 10 << 30;

/// The old format's header holds 11 octal digits: just under 8 GiB.
const LARGEST_OCTAL_BYTES: u64 = (8 << 30) - 512;

#[test]
fn a_giant_gnu_sparse_file_stays_sparse() {
    stays_sparse(Kind::GnuSparse {
        size_bytes: LARGEST_OCTAL_BYTES,
        data: vec![1; 4096],
    });
}

#[test]
fn a_giant_pax_sparse_file_stays_sparse() {
    stays_sparse(Kind::PaxSparse {
        size_bytes: GIANT_BYTES,
        data: vec![1; 4096],
    });
}

#[test]
fn a_layer_that_inflates_a_thousandfold_is_imported_in_bounded_memory() {
    let fixture = Fixture::new();
    let layer = Layer::new()
        .file("zeros", vec![0; 256 << 20])
        .compressed(Compression::Gzip);
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("zeros:1")
            .layout()
            .archive(),
    );
    assert!(file.metadata().unwrap().len() < 4 << 20);
    let script = "ulimit -d 131072; exec \"$VMM_BINARY\" load -i \"$1\"";
    let done = fixture
        .in_private_mounts(script)
        .arg("sh")
        .arg(&file)
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    done.succeeded();
}

#[test]
fn a_file_that_was_imported_is_recognised_without_being_read() {
    let fixture = Fixture::new();
    let layer = Layer::new().file("data", vec![7; 24 << 20]);
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("data:1")
            .layout()
            .archive(),
    );
    // A file is remembered only if it lay still for a while before it was read: its times could not show a change otherwise.
    // What is waited for here is the clock.
    std::thread::sleep(std::time::Duration::from_secs(3));
    fixture.load(&file).run().succeeded();
    let listing = fixture.store_listing();
    let before = bytes_read_so_far();
    let again = fixture.load(&file).run();
    let read = bytes_read_so_far() - before;
    again.succeeded();
    assert!(read < 2 << 20, "the second import read {read} bytes");
    tests::snapshot::assert_unchanged(&listing, &fixture.store_listing());
}

#[test]
fn a_layer_that_two_images_share_is_kept_once() {
    let fixture = Fixture::new();
    let base = Layer::new().file(
        "data",
        (0..16_u32 << 20)
            .map(|n| (n / 4093).to_le_bytes()[0])
            .collect::<Vec<_>>(),
    );
    let first = ImageMaker::empty().layer(base.clone()).name("first:1");
    let second = first
        .clone()
        .layer(Layer::new().file("more", "x"))
        .name("second:1");
    fixture
        .load(&fixture.file("first", first.layout().archive()))
        .run()
        .succeeded();
    let one = bytes_on_disk(&fixture.store());
    fixture
        .load(&fixture.file("second", second.layout().archive()))
        .run()
        .succeeded();
    let both = bytes_on_disk(&fixture.store());
    assert!(
        both - one < 2 << 20,
        "the second image added {} bytes",
        both - one
    );
}

#[test]
fn a_limit_on_the_stores_size_refuses_what_does_not_fit() {
    let fixture = Fixture::new();
    let small_one = fixture.file("small", small("fits").name("small:1").layout().archive());
    fixture
        .load(&small_one)
        .args(["--store-limit", "8m"])
        .run()
        .succeeded();
    let listing = fixture.store_listing();
    let random: Vec<u8> = (0..12_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let large = ImageMaker::empty()
        .layer(Layer::new().file("data", random))
        .name("large:1");
    let large = fixture.file("large", large.layout().archive());
    fixture
        .load(&large)
        .args(["--store-limit", "8m"])
        .run()
        .failed(&["limit"]);
    tests::snapshot::assert_unchanged(&listing, &fixture.store_listing());
}

#[test]
fn a_sparse_archive_of_nothing_is_refused_at_once() {
    let fixture = Fixture::new();
    let path = fixture.path("holes");
    sparse_file(&path, 64 << 30);
    fixture.load(&path).run().failed(&["holes"]);
}

#[test]
fn progress_is_shown_on_a_terminal_and_nowhere_else() {
    let fixture = Fixture::new();
    let layer = Layer::new()
        .file("data", vec![9; 64 << 20])
        .compressed(Compression::Gzip);
    let file = fixture.file(
        "image",
        ImageMaker::empty()
            .layer(layer)
            .name("slow:1")
            .layout()
            .archive(),
    );
    fixture.load(&file).run().succeeded().stderr_is("");
    let other = Fixture::new();
    let shown = other
        .on_terminal(["load", "-i", file.to_str().unwrap()])
        .finish();
    let quiet = other
        .on_terminal(["load", "-i", file.to_str().unwrap()])
        .finish();
    shown.succeeded();
    quiet.succeeded();
    assert!(
        shown.stdout.len() > quiet.stdout.len(),
        "{shown:?}\n{quiet:?}"
    );
}
