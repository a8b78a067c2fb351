//! The store under several users, crashes and limits.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use super::maker::{Image, Tar};
use super::{Fixture, paths, walk};
use crate::image::stamp::Stamp;
use crate::image::{ImageSource, ImportOptions, Needed, PruneScope, RemoveError, Silent, Store};

fn image() -> Image {
    Image::of(Tar::new().directory("d").file("d/a", "a"))
        .layer(Tar::new().file("d/b", vec![9; 100_000]))
        .named("app")
}

/// Waits until no file here changed in this very tick of the clock: such a file is not trusted to be what it was.
fn await_trust(path: &Path) {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries.for_each(|entry| await_trust(&entry.unwrap().path()));
    }
    while !Stamp::of(&fs::metadata(path).unwrap()).is_settled() {
        thread::yield_now();
    }
}

#[test]
fn a_file_that_did_not_change_is_not_read_again() {
    let fixture = Fixture::new();
    let path = fixture.file("app.oci", &image().archive());
    await_trust(&path);
    let first = fixture.import_path(&path).unwrap();
    // Whoever opens the file now fails.
    let renamed = fixture.directory.path().join("moved");
    let before = fixture.listing();
    let second = fixture.import_path(&path).unwrap();
    assert_eq!((first.id, fixture.listing()), (second.id, before));
    fs::rename(&path, renamed).unwrap();
    assert!(fixture.import_path(&path).is_err());
}

#[test]
fn a_file_that_changed_is_read_again() {
    let fixture = Fixture::new();
    let path = fixture.file("app.oci", &image().archive());
    await_trust(&path);
    fixture.import_path(&path).unwrap();
    fs::write(&path, Image::of(Tar::new().file("other", "")).archive()).unwrap();
    assert_eq!(paths(&fixture.import_path(&path).unwrap()), ["/other"]);
}

#[test]
fn a_changed_blob_of_a_layout_directory_is_noticed() {
    let fixture = Fixture::new();
    let directory = fixture.directory.path().join("layout");
    let image = image();
    let layout = image.layout();
    layout.write_to(&directory);
    await_trust(&directory);
    fixture.import_path(&directory).unwrap();
    let blob = directory.join(layout.name_of(&image.layers[1].0));
    fs::write(&blob, vec![0; image.layers[1].0.len()]).unwrap();
    assert!(
        super::message(&fixture.import_path(&directory).unwrap_err()).contains("has the digest")
    );
}

#[test]
fn ten_racing_imports_all_succeed() {
    let fixture = Fixture::new();
    let archive = image().archive();
    let barrier = Barrier::new(10);
    let race = || {
        barrier.wait();
        fixture.import(archive.clone()).unwrap().id
    };
    let ids: Vec<_> = thread::scope(|scope| {
        let racers: Vec<_> = (0..10).map(|_| scope.spawn(race)).collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(fixture.store.images().unwrap().len(), 1);
    assert_eq!(
        fs::read_dir(fixture.store.root().join("tmp"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        fs::read_dir(fixture.store.root().join("imports"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn layers_are_shared_by_images() {
    let fixture = Fixture::new();
    let base = Tar::new().file("base", "base");
    fixture.import(Image::of(base.clone()).archive()).unwrap();
    fixture
        .import(Image::of(base).layer(Tar::new().file("more", "")).archive())
        .unwrap();
    let usage = fixture.store.usage().unwrap();
    assert_eq!((usage.images, usage.layers), (2, 2));
}

#[test]
fn what_a_crash_left_is_removed_by_the_next_user() {
    let fixture = Fixture::new();
    let leftover = fixture.store.root().join("tmp/4711-0-abc");
    fs::create_dir_all(leftover.join("layer-0")).unwrap();
    fs::create_dir_all(
        fixture
            .store
            .root()
            .join(format!("layers/{}", "0".repeat(64))),
    )
    .unwrap();
    Store::open(fixture.store.root()).unwrap();
    assert!(!leftover.exists());
    assert_eq!(
        fs::read_dir(fixture.store.root().join("layers"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn what_is_being_made_is_left_alone() {
    let fixture = Fixture::new();
    let work = fixture.store.root().join("tmp/4711-0-abc");
    fs::create_dir_all(&work).unwrap();
    let owner = fs::File::open(&work).unwrap();
    rustix::fs::flock(&owner, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Store::open(fixture.store.root()).unwrap();
    assert!(work.exists());
}

#[test]
fn an_image_that_a_power_failure_may_have_broken_is_imported_again() {
    let fixture = Fixture::new();
    let id = fixture.import(image().archive()).unwrap().id;
    let root = fixture.store.root();
    let layers = fs::read_dir(root.join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().path().join("layer.json"));
    let records: Vec<_> = layers
        .chain([root.join("images").join(id.hex()).join("image.json")])
        .collect();
    let this_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    records.iter().for_each(|record| {
        let text = fs::read_to_string(record)
            .unwrap()
            .replace(this_boot.trim(), "another boot");
        fs::write(record, text).unwrap();
    });
    assert!(fixture.store.find("app").is_err());
    fs::write(root.join("images").join(id.hex()).join("tree"), b"").unwrap();
    fixture.import(image().archive()).unwrap();
    assert_eq!(
        paths(&fixture.store.find("app").unwrap()),
        ["/d", "/d/a", "/d/b"]
    );
}

#[test]
fn an_image_that_was_synced_survives_the_boot() {
    let fixture = Fixture::new();
    let id = fixture.import(image().archive()).unwrap().id;
    fixture.store.sync(id).unwrap();
    let record = fixture
        .store
        .root()
        .join("images")
        .join(id.hex())
        .join("image.json");
    let this_boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&record)
        .unwrap()
        .replace(this_boot.trim(), "another boot");
    fs::write(&record, text).unwrap();
    assert_eq!(fixture.store.find("app").unwrap().id, id);
}

/// Who needs images where no machine is on record.
fn nobody() -> io::Result<Needed> {
    Ok(Needed::new())
}

#[test]
fn an_image_that_is_needed_is_not_removed() {
    let fixture = Fixture::new();
    let id = fixture.import(image().archive()).unwrap().id;
    let needed = || Ok(Needed::from([(id, "web".to_owned())]));

    let refused = fixture.store.remove("app", false, needed).unwrap_err();
    let pruned = fixture.store.prune(PruneScope::All, needed).unwrap();

    assert_eq!(
        refused.to_string(),
        "the image `app` is needed by machine 'web'"
    );
    assert_eq!(pruned.deleted, []);
    assert_eq!(fixture.store.find("app").unwrap().id, id);
}

#[test]
fn an_image_in_use_cannot_be_removed() {
    let fixture = Fixture::new();
    let held = fixture.import(image().archive()).unwrap();
    assert!(matches!(
        fixture.store.remove("app", false, nobody),
        Err(RemoveError::InUse(_))
    ));
    assert!(fixture.store.images().unwrap()[0].in_use);
    assert_eq!(
        fixture
            .store
            .prune(PruneScope::All, nobody)
            .unwrap()
            .deleted,
        []
    );
    drop(held);
    assert_eq!(
        fixture
            .store
            .remove("app", false, nobody)
            .unwrap()
            .untagged
            .len(),
        1
    );
    assert!(fixture.store.images().unwrap().is_empty());
    assert_eq!(
        fs::read_dir(fixture.store.root().join("layers"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn removing_one_of_two_names_keeps_the_image() {
    let fixture = Fixture::new();
    let id = fixture.import(image().archive()).unwrap().id;
    fixture
        .store
        .tag("app", &"other:2".parse().unwrap())
        .unwrap();
    assert!(matches!(
        fixture.store.remove(&id.short(), false, nobody),
        Err(RemoveError::SeveralNames { .. })
    ));
    let removed = fixture.store.remove("app", false, nobody).unwrap();
    assert_eq!((removed.untagged.len(), removed.deleted), (1, None));
    assert_eq!(fixture.store.find("other:2").unwrap().id, id);
    assert_eq!(
        fixture
            .store
            .remove(&id.short(), false, nobody)
            .unwrap()
            .deleted,
        Some(id)
    );
}

#[test]
fn prune_removes_what_has_no_name() {
    let fixture = Fixture::new();
    fixture.import(image().archive()).unwrap();
    let nameless = fixture
        .import(Image::of(Tar::new().file("x", vec![1; 50_000])).archive())
        .unwrap()
        .id;
    let pruned = fixture.store.prune(PruneScope::Unnamed, nobody).unwrap();
    assert_eq!(pruned.deleted, [nameless]);
    assert!(pruned.reclaimed_bytes >= 50_000);
    assert!(fixture.store.find("app").is_ok());
}

#[test]
fn a_saved_image_is_the_same_image() {
    let fixture = Fixture::new();
    let first = fixture.import(image().archive()).unwrap();
    let mut archive = Vec::new();
    fixture.store.save("app", &mut archive).unwrap();
    let other = Fixture::new();
    let second = other.import(archive).unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(walk(&first).len(), walk(&second).len());
    assert_eq!(other.store.find("app").unwrap().id, first.id);
}

#[test]
fn a_damaged_layer_is_not_saved() {
    let fixture = Fixture::new();
    let image = image();
    fixture.import(image.archive()).unwrap();
    let data = fixture
        .store
        .root()
        .join("layers")
        .join(image.layers[1].2.hex())
        .join("data");
    let mut bytes = fs::read(&data).unwrap();
    bytes[5] ^= 1;
    fs::write(&data, bytes).unwrap();
    let error = fixture.store.save("app", &mut Vec::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("the layer {} in the store is damaged", image.layers[1].2)
    );
}

#[test]
fn history_tells_the_layers_apart() {
    let fixture = Fixture::new();
    fixture.import(image().archive()).unwrap();
    let history = fixture.store.history("app").unwrap();
    assert_eq!(history.len(), 2);
    assert!(history[0].layer_bytes > history[1].layer_bytes);
}

#[test]
fn the_store_keeps_its_limit() {
    let fixture = Fixture::new();
    let options = ImportOptions {
        store_limit_bytes: Some(50_000),
        ..ImportOptions::default()
    };
    let refusal = fixture.refusal_with(image().archive(), &options);
    assert!(refusal.ends_with("its limit is 50000"), "{refusal}");
}

#[test]
fn everything_in_the_store_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    fixture.import(image().archive()).unwrap();
    let modes = fixture
        .listing()
        .into_keys()
        .map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o077);
    assert!(modes.into_iter().all(|mode| mode == 0));
}

#[test]
fn data_parts_start_on_huge_pages() {
    let fixture = Fixture::new();
    let image = fixture.import(image().archive()).unwrap();
    assert_eq!(image.root.parts.len(), 3);
    assert!(
        image
            .root
            .parts
            .iter()
            .all(|part| part.window_offset_bytes % (2 << 20) == 0)
    );
    assert!(
        image
            .root
            .parts
            .iter()
            .all(|part| part.length_bytes % 4096 == 0)
    );
    assert_eq!(image.root.size_bytes % (2 << 20), 0);
}

#[test]
fn large_files_start_on_huge_pages_of_the_window() {
    let fixture = Fixture::new();
    let image = Image::of(
        Tar::new()
            .file("small", "1")
            .file("large", vec![1; 2 << 20])
            .file("other", "2"),
    );
    let files = walk(&fixture.import(image.archive()).unwrap());
    assert_eq!(files[&b"/large"[..]].first_block % 512, 0);
    // The gap before it is not lost.
    assert!(files[&b"/other"[..]].first_block < files[&b"/large"[..]].first_block);
}

#[test]
fn a_stream_source_is_given_its_name_in_messages() {
    let source = ImageSource::from_argument("-".into());
    assert_eq!(source.name(), "standard input");
    let fixture = Fixture::new();
    let missing = ImageSource::Path("/nonexistent/app.oci".into());
    let error = fixture
        .store
        .import(missing, &ImportOptions::default(), &Silent)
        .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/app.oci"));
}
