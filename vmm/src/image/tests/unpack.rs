//! Images unpacked to a directory again.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Fixture;
use super::maker::{Image, Tar};
use crate::image::UnpackError;

#[test]
fn an_unpacked_image_has_what_its_layers_left() {
    let fixture = Fixture::new();
    let lower = Tar::new()
        .directory("d")
        .file("d/gone", "old")
        .file("d/kept", vec![7; 10_000])
        .symlink("outside", "/etc");
    let upper = Tar::new().file("d/.wh.gone", "").file("outside/new", "x");
    let image = fixture
        .import(Image::of(lower).layer(upper).named("app").archive())
        .unwrap();
    let into = fixture.directory.path().join("unpacked");
    fs::create_dir(&into).unwrap();

    fixture.store.unpack(&image, &into, &|| true).unwrap();

    assert_eq!(fs::read(into.join("d/kept")).unwrap(), vec![7; 10_000]);
    assert!(!into.join("d/gone").exists());
    assert_eq!(fs::read(into.join("etc/new")).unwrap(), b"x");
    let link = fs::symlink_metadata(into.join("outside")).unwrap();
    assert!(link.is_symlink());
}

#[test]
fn hard_links_stay_links_of_one_file() {
    let fixture = Fixture::new();
    let layer = Tar::new().file("a", "a").hard_link("b", "a");
    let image = fixture.import(Image::of(layer).archive()).unwrap();
    let into = fixture.directory.path().join("unpacked");
    fs::create_dir(&into).unwrap();

    fixture.store.unpack(&image, &into, &|| true).unwrap();

    assert_eq!(fs::metadata(into.join("b")).unwrap().nlink(), 2);
}

#[test]
fn unpacking_ends_when_it_is_told_to() {
    let fixture = Fixture::new();
    let image = Image::of(Tar::new().file("a", "a")).archive();
    let image = fixture.import(image).unwrap();
    let into = fixture.directory.path().join("unpacked");
    fs::create_dir(&into).unwrap();

    let unpacked = fixture.store.unpack(&image, &into, &|| false);

    assert!(matches!(unpacked, Err(UnpackError::Interrupted)));
}
