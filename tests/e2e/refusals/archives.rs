//! Files that are no image, or only part of one.

use tests::image_maker::{Compression, TarWriter, compress};

use super::{good, refused, with_something_in_the_store};

#[test]
fn a_text_file_is_no_image() {
    refused(b"#!/bin/sh\necho no image\n", &["spoiled.oci"]);
}

#[test]
fn an_empty_file_is_no_image() {
    refused(b"", &["spoiled.oci"]);
}

#[test]
fn a_megabyte_of_zeros_is_no_image() {
    refused(&vec![0; 1 << 20], &["spoiled.oci"]);
}

#[test]
fn a_tar_of_something_else_is_no_image() {
    let mut archive = TarWriter::default();
    archive.plain_file("README", b"nothing here");
    refused(&archive.finish(), &["spoiled.oci"]);
}

#[test]
fn gzip_of_something_else_is_no_image() {
    refused(
        &compress(Compression::Gzip, b"nothing here"),
        &["spoiled.oci"],
    );
}

#[test]
fn a_file_that_does_not_exist_is_named() {
    let fixture = with_something_in_the_store();
    let before = fixture.store_listing();
    fixture
        .vmm(["run", "--image", "/no/such/file.oci"])
        .run()
        .refused(&["/no/such/file.oci"]);
    fixture
        .vmm(["load", "-i", "/no/such/file.oci"])
        .run()
        .failed(&["/no/such/file.oci"]);
    tests::snapshot::assert_unchanged(&before, &fixture.store_listing());
}

#[test]
fn a_directory_without_a_layout_is_no_image() {
    let fixture = with_something_in_the_store();
    let directory = fixture.path("nothing-here");
    std::fs::create_dir(&directory).unwrap();
    fixture.load(&directory).run().failed(&["nothing-here"]);
}

#[test]
fn nothing_on_standard_input_is_no_image() {
    let fixture = with_something_in_the_store();
    fixture.vmm(["load"]).run().failed(&["standard input"]);
    fixture
        .vmm(["run", "--image", "-"])
        .run()
        .refused(&["standard input"]);
}

/// Asserts that the archive is refused when cut at each multiple of 4 KiB before its last member's end.
fn refused_wherever_it_is_cut(archive: &[u8]) {
    const STEP_BYTES: usize = 4096;
    /// The two blocks that end a tar file and the padding before them: a cut there loses nothing.
    const TAIL_BYTES: usize = 1536;
    let fixture = with_something_in_the_store();
    let before = fixture.store_listing();
    let cuts = (STEP_BYTES..archive.len() - TAIL_BYTES).step_by(STEP_BYTES);
    assert!(cuts.clone().count() >= 5, "the archive is worth cutting");
    for cut in cuts {
        let file = fixture.file("spoiled.oci", &archive[..cut]);
        fixture.load(&file).run().failed(&["spoiled.oci"]);
        tests::snapshot::assert_unchanged(&before, &fixture.store_listing());
    }
}

#[test]
fn an_archive_cut_at_any_4_kib_is_refused() {
    refused_wherever_it_is_cut(&good().layout().archive());
}

#[test]
fn an_archive_with_blobs_first_cut_at_any_4_kib_is_refused() {
    refused_wherever_it_is_cut(&good().layout().archive_blobs_first());
}

#[test]
fn a_docker_archive_cut_at_any_4_kib_is_refused() {
    refused_wherever_it_is_cut(&good().old_docker_archive());
}

#[test]
fn a_compressed_archive_cut_in_the_middle_is_refused() {
    let whole = compress(Compression::Zstd, &good().layout().archive());
    refused(&whole[..whole.len() / 2], &["spoiled.oci"]);
    let whole = compress(Compression::Gzip, &good().layout().archive());
    refused(&whole[..whole.len() / 2], &["spoiled.oci"]);
}

#[test]
fn a_member_whose_size_is_beyond_the_archive_is_refused() {
    let mut archive = good().layout().archive();
    // The size field of the first member's header (POSIX ustar: offset 124, 12 bytes), its checksum made good.
    archive[124..136].copy_from_slice(b"77777777777\0");
    archive[148..156].fill(b' ');
    let sum: u32 = archive[..512].iter().map(|byte| u32::from(*byte)).sum();
    archive[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    refused(&archive, &["spoiled.oci"]);
}
