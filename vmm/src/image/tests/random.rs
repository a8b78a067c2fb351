//! Archives and layers that chance made.

use proptest::prelude::*;

use super::maker::{Header, Image, Tar};
use super::{Fixture, walk};
use crate::image::Digest;

/// A layer with something of every kind.
fn mixed() -> Vec<u8> {
    Tar::new()
        .directory("d")
        .pax(&[("SCHILY.xattr.user.a", b"b"), ("mtime", b"1.5")])
        .file("d/a", vec![5; 700])
        .hard_link("d/b", "d/a")
        .symlink("l", "d")
        .file("l/through", "x")
        .device("null", b'3', 1, 3)
        .file("d/.wh.b", "")
        .finish()
}

/// An image of a layer whose digests are right whatever its bytes are.
fn image_of(layer: Vec<u8>) -> Vec<u8> {
    let diff_id = Digest::of(&layer);
    let mut image = Image::new();
    image
        .layers
        .push((layer, super::maker::LAYER.to_owned(), diff_id));
    image.archive()
}

/// Imports; whatever the outcome, the store is whole afterwards.
fn import_any(archive: Vec<u8>) {
    let fixture = Fixture::new();
    let before = fixture.listing();
    match fixture.import(archive) {
        Ok(image) => assert!(!walk(&image).is_empty()),
        Err(_) => assert_eq!(fixture.listing(), before),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_layer_with_changed_bytes_never_breaks_the_store(
        changes in proptest::collection::vec((0..5000_usize, any::<u8>()), 1..4),
        fixes in any::<bool>(),
    ) {
        let mut layer = mixed();
        for (at, byte) in changes {
            let at = at % layer.len();
            layer[at] = byte;
            let start = at / 512 * 512;
            if fixes && start + 512 <= layer.len() {
                let block: [u8; 512] = layer[start..start + 512].try_into().unwrap();
                layer[start..start + 512].copy_from_slice(&super::maker::with_checksum(block));
            }
        }
        import_any(image_of(layer));
    }

    #[test]
    fn an_archive_with_a_changed_byte_never_breaks_the_store(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut archive = image_of(mixed());
        let at = at.index(archive.len());
        archive[at] = byte;
        import_any(archive);
    }

    #[test]
    fn any_sparse_map_is_read_back(runs in proptest::collection::vec((0..20_000_u64, 1..9000_u64), 0..6), tail in 0..9000_u64) {
        let mut at = 0;
        let mut map = Vec::new();
        let mut data = Vec::new();
        let mut expected = Vec::new();
        for (number, (gap, length)) in runs.into_iter().enumerate() {
            at += gap;
            map.push(format!("{at},{length}"));
            let bytes = vec![u8::try_from(number).unwrap() + 1; usize::try_from(length).unwrap()];
            expected.resize(usize::try_from(at).unwrap(), 0);
            expected.extend_from_slice(&bytes);
            data.extend_from_slice(&bytes);
            at += length;
        }
        expected.resize(usize::try_from(at + tail).unwrap(), 0);
        let size = expected.len().to_string();
        let map = map.join(",");
        let tar = Tar::new()
            .pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())])
            .member(&Header { size: data.len() as u64, ..Header::new(b'0', "s") }, &data);
        let image = Fixture::new();
        let stored = image.import(Image::of(tar).archive()).unwrap();
        prop_assert_eq!(&walk(&stored)[&b"/s"[..]].contents, &expected);
        let mut saved = Vec::new();
        image.store.save(&stored.id.to_string(), &mut saved).unwrap();
    }
}
