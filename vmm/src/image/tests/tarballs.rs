//! Sparse files in all their encodings.

use super::maker::{Header, Image, Tar, octal, with_checksum};
use super::{Fixture, walk};

const GIB: u64 = 1 << 30;

/// A file of `size` bytes with `data` at `offset`, as GNU tar wrote it before PAX.
fn old_gnu(size: u64, offset: u64, data: &[u8]) -> Tar {
    let mut block = Header {
        size: data.len() as u64,
        ..Header::new(b'S', "sparse")
    }
    .to_block();
    octal(&mut block[386..398], offset);
    octal(&mut block[398..410], data.len() as u64);
    octal(&mut block[410..422], size);
    octal(&mut block[422..434], 0);
    octal(&mut block[483..495], size);
    Tar::new().raw(&with_checksum(block)).raw(data).raw(&vec![
        0;
        data.len().next_multiple_of(512)
            - data.len()
    ])
}

/// The same in PAX form 1.0.
fn pax_1_0(size: u64, offset: u64, data: &[u8]) -> Tar {
    let mut body = format!("2\n{offset}\n{}\n{size}\n0\n", data.len()).into_bytes();
    body.resize(512, 0);
    body.extend_from_slice(data);
    let size = size.to_string();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    Tar::new()
        .pax(&records)
        .file("GNUSparseFile.0/sparse", body)
}

/// The same in PAX form 0.1.
fn pax_0_1(size: u64, offset: u64, data: &[u8]) -> Tar {
    let map = format!("{offset},{},{size},0", data.len());
    let size = size.to_string();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.map", map.as_bytes()),
    ];
    Tar::new()
        .pax(&records)
        .file("GNUSparseFile.0/sparse", data)
}

/// The same in PAX form 0.0.
fn pax_0_0(size: u64, offset: u64, data: &[u8]) -> Tar {
    let (offset, length, size) = (offset.to_string(), data.len().to_string(), size.to_string());
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.offset", offset.as_bytes()),
        ("GNU.sparse.numbytes", length.as_bytes()),
    ];
    Tar::new().pax(&records).file("sparse", data)
}

/// Checks that a megabyte with a hole on both sides is read back.
fn assert_small_one_is_read_back(make: fn(u64, u64, &[u8]) -> Tar) {
    let fixture = Fixture::new();
    let image = fixture
        .import(Image::of(make(1 << 20, 300_001, b"data")).archive())
        .unwrap();
    let contents = walk(&image)[&b"/sparse"[..]].contents.clone();
    assert_eq!(contents.len(), 1 << 20);
    assert_eq!(&contents[300_001..300_005], b"data");
    assert_eq!(contents.iter().filter(|byte| **byte != 0).count(), 4);
    // Block 73 alone is stored.
    assert_eq!(image.root.parts[1].length_bytes, 4096);
}

#[test]
fn an_old_gnu_sparse_file_is_read_back() {
    assert_small_one_is_read_back(old_gnu);
}

#[test]
fn a_pax_1_0_sparse_file_is_read_back() {
    assert_small_one_is_read_back(pax_1_0);
}

#[test]
fn a_pax_0_1_sparse_file_is_read_back() {
    assert_small_one_is_read_back(pax_0_1);
}

#[test]
fn a_pax_0_0_sparse_file_is_read_back() {
    assert_small_one_is_read_back(pax_0_0);
}

#[test]
fn ten_gib_of_hole_cost_nearly_nothing() {
    let fixture = Fixture::new();
    let gnu = fixture
        .import(Image::of(old_gnu(8 * GIB - 1, 4 * GIB, b"x")).archive())
        .unwrap();
    let pax = fixture
        .import(Image::of(pax_1_0(10 * GIB, 5 * GIB, b"x")).archive())
        .unwrap();
    assert!(gnu.root.size_bytes < 16 << 20, "{}", gnu.root.size_bytes);
    assert!(pax.root.size_bytes < 16 << 20, "{}", pax.root.size_bytes);
    assert!(fixture.store.usage().unwrap().total_bytes < 4 << 20);
}

#[test]
fn a_sparse_file_above_the_limit_is_refused() {
    let fixture = Fixture::new();
    let mut options = crate::image::ImportOptions::default();
    options.limits.apparent_bytes = GIB;
    let refusal = fixture.refusal_with(Image::of(pax_1_0(10 * GIB, 0, b"x")).archive(), &options);
    assert!(
        refusal.contains("1073741824 bytes together, holes included"),
        "{refusal}"
    );
}

#[test]
fn a_file_of_nothing_but_a_hole_stores_nothing() {
    let fixture = Fixture::new();
    let image = fixture
        .import(Image::of(pax_1_0(1 << 20, 0, b"")).archive())
        .unwrap();
    assert_eq!(image.root.parts.len(), 1);
    assert_eq!(walk(&image)[&b"/sparse"[..]].contents, vec![0; 1 << 20]);
}

#[test]
fn a_map_that_leaves_the_file_is_refused() {
    let fixture = Fixture::new();
    let refusal = fixture.refusal(Image::of(pax_1_0(100, 99, b"xx")).archive());
    assert!(
        refusal.contains("the sparse map of `sparse` is malformed"),
        "{refusal}"
    );
}
