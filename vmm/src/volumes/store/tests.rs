//! Volumes in directories of the tests' own.

use std::os::unix::fs::FileExt;

use super::*;
use crate::report::{Help, chain};

/// Volumes, and one of them.
struct Fixture {
    directory: TempDir,
    volumes: Volumes,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(&directory.path().join("volumes"));
        Self { directory, volumes }
    }

    fn with(name: &str) -> Self {
        let fixture = Self::new();
        fixture.create(name);
        fixture
    }

    fn create(&self, name: &str) -> bool {
        self.volumes.create(&record(name)).unwrap()
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.directory.path().join("volumes").join(rest)
    }

    fn names(&self) -> Vec<String> {
        let listed = self.volumes.list().unwrap();
        listed.iter().map(|it| it.name.to_string()).collect()
    }

    fn hold(&self, name: &str, wanted: Use) -> Result<HeldVolume, VolumeError> {
        self.volumes.hold(&self::name(name), wanted)
    }

    fn remove(&self, name: &str, users: &[&str]) -> Result<u64, VolumeError> {
        let users = users.iter().map(|&user| user.to_owned()).collect();
        self.volumes.remove(&self::name(name), || Ok(users))
    }
}

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn record(text: &str) -> VolumeRecord {
    VolumeRecord::new(name(text), Some("64m".parse().unwrap()))
}

/// A superblock of a file system as large as the disk of [`record`], which is in order.
fn put_in_order(held: &HeldVolume) {
    let mut block = [0_u8; 1024];
    block[0x4..0x8].copy_from_slice(&16384_u32.to_le_bytes());
    block[0x18] = 2;
    held.disk.write_all_at(&block, 1024).unwrap();
}

#[test]
fn a_new_volume_is_blank_sparse_and_as_large_as_it_was_asked_for() {
    let fixture = Fixture::new();

    assert!(fixture.create("data"));

    let held = fixture.hold("data", Use::Write).unwrap();
    assert!(held.is_blank().unwrap());
    assert_eq!(held.disk.metadata().unwrap().len(), 64 << 20);
    assert!(fixture.volumes.look(&name("data")).used_bytes < 1 << 20);
    assert_eq!(fixture.volumes.find("data").unwrap().options["size"], "64m");
}

#[test]
fn a_volume_that_is_there_is_not_made_again() {
    let fixture = Fixture::with("data");
    let held = fixture.hold("data", Use::Write).unwrap();
    held.disk.write_all_at(b"mine", 0).unwrap();
    drop(held);

    assert!(!fixture.create("data"));

    assert!(
        !fixture
            .hold("data", Use::Write)
            .unwrap()
            .is_blank()
            .unwrap()
    );
}

#[test]
fn a_volume_has_one_writer() {
    let fixture = Fixture::with("data");
    let _held = fixture.hold("data", Use::Write).unwrap();

    for wanted in [Use::Write, Use::Read] {
        let refused = fixture.hold("data", wanted).unwrap_err();
        assert_eq!(refused.to_string(), "volume 'data' is in use");
    }
}

#[test]
fn a_volume_has_many_readers_once_it_is_in_order() {
    let fixture = Fixture::with("data");
    put_in_order(&fixture.hold("data", Use::Write).unwrap());

    let first = fixture.hold("data", Use::Read).unwrap();
    let second = fixture.hold("data", Use::Read).unwrap();

    assert!(!first.is_writable && !second.is_writable);
    assert!(matches!(
        fixture.hold("data", Use::Write),
        Err(VolumeError::InUse { .. })
    ));
}

#[test]
fn a_reader_of_a_volume_that_is_not_in_order_has_it_alone_and_may_put_it_in_order() {
    let fixture = Fixture::with("data");
    let held = fixture.hold("data", Use::Write).unwrap();
    put_in_order(&held);
    // The journal is to be replayed.
    held.disk.write_all_at(&[4], 1024 + 0x60).unwrap();
    drop(held);

    let held = fixture.hold("data", Use::Read).unwrap();

    assert!(held.is_writable);
    assert!(fixture.hold("data", Use::Read).is_err());
}

#[test]
fn a_volume_that_a_machine_needs_is_not_removed_and_its_name_is_said() {
    let fixture = Fixture::with("data");

    let refused = fixture.remove("data", &["web"]).unwrap_err();

    assert_eq!(
        refused.to_string(),
        "volume 'data' is in use by machine 'web'"
    );
    assert!(refused.help().unwrap().contains("vmm rm -f web"));
    assert_eq!(fixture.names(), ["data"]);
}

#[test]
fn a_locked_volume_is_not_removed() {
    let fixture = Fixture::with("data");
    let _held = fixture.hold("data", Use::Write).unwrap();

    assert!(matches!(
        fixture.remove("data", &[]),
        Err(VolumeError::InUse { .. })
    ));
}

#[test]
fn a_removed_volume_leaves_nothing() {
    let fixture = Fixture::with("data");

    fixture.remove("data", &[]).unwrap();

    let left: Vec<_> = fs::read_dir(fixture.path("")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(matches!(
        fixture.remove("data", &[]),
        Err(VolumeError::None(_))
    ));
}

#[test]
fn what_was_left_unfinished_is_no_volume_and_goes_with_the_next_change() {
    let fixture = Fixture::with("data");
    for leftover in [".new-a", ".gone-b"] {
        fs::create_dir(fixture.path(leftover)).unwrap();
        fs::write(fixture.path(leftover).join(LOCK), "").unwrap();
    }
    assert_eq!(fixture.names(), ["data"]);

    fixture.create("more");

    assert!(!fixture.path(".new-a").exists());
    assert!(!fixture.path(".gone-b").exists());
}

#[test]
fn what_somebody_still_makes_stays() {
    let fixture = Fixture::with("data");
    let (new, _lock) = fixture.volumes.begin(NEW).unwrap();

    fixture.create("more");

    assert!(new.path().exists());
}

#[test]
fn a_volume_of_a_newer_format_is_listed_as_such_and_refused() {
    let fixture = Fixture::with("data");
    fs::write(fixture.path("data/volume.json"), r#"{"format":2}"#).unwrap();

    let refused = fixture.hold("data", Use::Write).unwrap_err();

    assert_eq!(
        chain(&refused),
        "volume 'data' cannot be used: it has format 2, and this vmm knows 1"
    );
    let listed = fixture.volumes.list().unwrap();
    assert!(matches!(
        listed[0].record,
        Err(VolumeFault::Format { found: 2 })
    ));
}

#[test]
fn a_damaged_volume_can_be_removed() {
    let fixture = Fixture::with("data");
    fs::write(fixture.path("data/volume.json"), "{").unwrap();
    fs::remove_file(fixture.path("data/lock")).unwrap();

    fixture.remove("data", &[]).unwrap();

    assert!(fixture.names().is_empty());
}

#[test]
fn a_disk_that_was_cut_off_is_refused() {
    let fixture = Fixture::with("data");
    let disk = File::options()
        .write(true)
        .open(fixture.path("data/disk"))
        .unwrap();
    disk.set_len(5000).unwrap();

    let refused = fixture.hold("data", Use::Write).unwrap_err();

    assert_eq!(
        chain(&refused),
        "volume 'data' cannot be used: its disk is 5000 bytes long, not 67108864"
    );
}

#[test]
fn a_disk_that_is_a_link_is_not_followed() {
    let fixture = Fixture::with("data");
    fs::remove_file(fixture.path("data/disk")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", fixture.path("data/disk")).unwrap();

    let refused = fixture.hold("data", Use::Write).unwrap_err();

    assert!(matches!(refused, VolumeError::Damaged { .. }));
}

#[test]
fn a_volume_grows_and_does_not_shrink() {
    let fixture = Fixture::with("data");
    let mut held = fixture.hold("data", Use::Write).unwrap();

    held.resize("128m".parse().unwrap()).unwrap();
    let refused = held.resize("64m".parse().unwrap()).unwrap_err();

    assert_eq!(
        refused.to_string(),
        "volume 'data' has 128m: a volume only grows"
    );
    drop(held);
    let held = fixture.hold("data", Use::Write).unwrap();
    assert_eq!(held.record.size_bytes, 128 << 20);
    assert_eq!(held.disk.metadata().unwrap().len(), 128 << 20);
}

#[test]
fn a_copy_holds_what_the_volume_held_and_can_be_put_back() {
    let fixture = Fixture::with("data");
    let mut held = fixture.hold("data", Use::Write).unwrap();
    held.disk.write_all_at(b"before", 4096).unwrap();
    fixture
        .volumes
        .create_copy(&record("copy"), &held.disk)
        .unwrap();
    held.disk.write_all_at(b"after!", 4096).unwrap();

    let copy = fixture.hold("copy", Use::Write).unwrap();
    held.replace(&copy.disk).unwrap();

    let mut bytes = [0; 6];
    drop(held);
    let held = fixture.hold("data", Use::Write).unwrap();
    held.disk.read_exact_at(&mut bytes, 4096).unwrap();
    assert_eq!(&bytes, b"before");
    assert!(matches!(
        fixture.volumes.create_copy(&record("copy"), &held.disk),
        Err(VolumeError::Exists(_))
    ));
}

#[test]
fn a_volume_that_grows_while_a_copy_is_put_back_stays_as_long_as_it_became() {
    let fixture = Fixture::with("data");
    let copy = tempfile::tempfile().unwrap();
    copy.set_len(record("data").size_bytes).unwrap();
    let mut held = fixture.hold("data", Use::Write).unwrap();
    let larger = "2g".parse().unwrap();

    fixture.volumes.grow_in_use(&name("data"), larger).unwrap();
    held.replace(&copy).unwrap();
    drop(held);

    let held = fixture.hold("data", Use::Write).unwrap();
    assert_eq!(held.record.size_bytes, 2 << 30);
    assert_eq!(held.disk.metadata().unwrap().len(), 2 << 30);
}

#[test]
fn a_volume_for_one_machine_says_so() {
    let fixture = Fixture::new();
    let record = VolumeRecord::anonymous(None).unwrap();

    fixture.volumes.create(&record).unwrap();

    let listed = &fixture.volumes.list().unwrap()[0];
    assert!(listed.is_anonymous());
    assert_eq!(listed.name.as_str().len(), 64);
    assert_eq!(record.size_bytes, 10 << 30);
}
