//! What a machine is given beside its root, for one start.

use std::io;
use std::path::PathBuf;

use protocol::{Volume, volume_path};
use serde_json::{Value, json};
use thiserror::Error;

use super::disks::{self, DiskSources};
use super::store::VolumeError;
use super::{Bind, NewTmpfs, ShareSourceError, TypedMount, TypedSource, shares};
use crate::dirs::Own;
use crate::guest::GuestError;
use crate::machine::{Access, MAX_DISKS, MachineDisk};
use crate::report::Help;
use crate::share::{self, Share};

/// The directory of a volume that its mounts show.
const DATA: &str = "data";

/// What the mounts of a workload come to: everything opened.
#[derive(Debug, Default)]
pub struct Attachments {
    /// What the agent mounts before it builds the container, in the order of the places that the mounts below name.
    pub volumes: Vec<Volume>,
    /// What the container's configuration mounts: runtime-spec `config.md`, "Mounts".
    pub mounts: Vec<Value>,
    /// What the container may do with devices: runtime-spec `config-linux.md`, "Allowed Device list".
    pub device_rules: Vec<Value>,
    /// The machine's disks, in the order of their names.
    pub disks: Vec<MachineDisk>,
    /// What is shown of the host, in the order of their names in the tree that is served.
    pub shares: Vec<Share>,
}

/// A mount that cannot be had.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Nobody knows how.
    #[error("a machine cannot have {0} yet")]
    NotYet(&'static str),
    /// A volume cannot be used.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume of the machine's own was not made.
    #[error("the volume for {0} has not been made")]
    NotMade(String),
    /// The machine has no more places.
    #[error("a machine has room for {MAX_DISKS} volumes and disks, and is to have {0}")]
    TooManyDisks(usize),
    /// A disk of the host cannot be opened.
    #[error("cannot open the disk {}", path.display())]
    OpenDisk {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} is neither a file nor a block device", .0.display())]
    NotADisk(PathBuf),
    /// Nothing fits on it.
    #[error("the disk {} is empty", .0.display())]
    EmptyDisk(PathBuf),
    /// Another process has it.
    #[error("the disk {} is in use by another machine", .0.display())]
    DiskInUse(PathBuf),
    /// The empty file system cannot be had.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The guest image is an old one.
    #[error("the guest image has no empty file system, as a volume begins with")]
    NoBlank,
    /// Something of the host cannot be shown.
    #[error(transparent)]
    Share(#[from] ShareSourceError),
}

impl Help for AttachError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Volume(error) => return error.help(),
            Self::Share(error) => return error.help(),
            Self::Guest(error) => return error.help(),
            Self::NoBlank => "install a newer guest image",
            Self::EmptyDisk(_) => {
                "give it a size and a file system first, as with truncate(1) and mkfs.ext4(8)"
            }
            Self::DiskInUse(_) => "end that machine, or let both only read it, with :ro",
            Self::OpenDisk { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "add :ro if it is only to be read, or become a member of the group that owns it"
            }
            _ => return None,
        };
        Some(help.to_owned())
    }
}

impl Attachments {
    /// Opens what these mounts name. They are in order: see [`in_order`](super::in_order). `disk_name` says what the guest calls the
    /// disk with this number. Nothing is shown of the directories `own`.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn open(
        mounts: &[TypedMount],
        sources: &DiskSources<'_>,
        disk_name: impl Fn(usize) -> String,
        own: &Own<'_>,
    ) -> Result<Self, AttachError> {
        let mut attachments = Self {
            shares: shares::open(mounts, own)?,
            ..Self::default()
        };
        let (disks, places) = disks::open(mounts, sources)?;
        let mut volume_of_disk = vec![None; disks.len()];
        for (mount, place) in mounts.iter().zip(&places) {
            let volume = place.and_then(|place| volume_of_disk.get_mut(place));
            let disk = place.and_then(|place| disks.get(place));
            let (Some(index), Some(volume @ None), Some(disk)) = (place, volume, disk) else {
                continue;
            };
            if mount.is_device() {
                continue;
            }
            *volume = Some(attachments.volumes.len());
            let is_volume = matches!(mount.source, TypedSource::Volume(_));
            attachments.volumes.push(Volume::Disk {
                device: disk_name(*index),
                read_only: disk.access == Access::ReadOnly,
                directory: is_volume.then(|| DATA.to_owned()),
            });
        }
        attachments.disks = disks;
        let tree = volume_path(attachments.volumes.len());
        if !attachments.shares.is_empty() {
            let tag = share::TAG.to_owned();
            attachments.volumes.push(Volume::Share { tag });
        }
        let mut next_share = 0..attachments.shares.len();
        for (mount, disk) in mounts.iter().zip(places) {
            let place = disk.and_then(|disk| volume_of_disk.get(disk).copied().flatten());
            let value = match &mount.source {
                TypedSource::Tmpfs(tmpfs) => of_tmpfs(tmpfs, mount),
                TypedSource::Bind(bind) => {
                    let name = next_share.next().unwrap_or_default();
                    of_share(&format!("{tree}/{name}"), bind, mount)
                }
                TypedSource::Volume(volume) => {
                    let place =
                        place.ok_or_else(|| AttachError::NotMade(mount.destination.clone()))?;
                    if volume.changes_owner {
                        return Err(AttachError::NotYet("volumes with other owners (U)"));
                    }
                    let below = volume.subpath.as_ref().map(|path| format!("/{path}"));
                    let source =
                        format!("{}/{DATA}{}", volume_path(place), below.unwrap_or_default());
                    let copies = volume.copies && volume.subpath.is_none();
                    bind(&source, mount, copies.then_some("tmpcopyup"))
                }
                TypedSource::Disk(_) if mount.is_device() => {
                    let disk = disk.unwrap_or_default();
                    attachments
                        .device_rules
                        .push(device_rule(&disk_name(disk), mount));
                    bind(&disk_name(disk), mount, None)
                }
                TypedSource::Disk(_) => bind(&volume_path(place.unwrap_or_default()), mount, None),
            };
            attachments.mounts.push(value);
        }
        Ok(attachments)
    }

    /// Refuses what of the host cannot be shown, as [`open`](Self::open) does.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn check_shares(mounts: &[TypedMount], own: &Own<'_>) -> Result<(), AttachError> {
        shares::open(mounts, own)?;
        Ok(())
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }
}

/// A part of the machine's own tree.
fn bind(source: &str, mount: &TypedMount, option: Option<&str>) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    let options: Vec<&str> = ["rbind", access].into_iter().chain(option).collect();
    json!({ "destination": mount.destination, "type": "bind", "source": source, "options": options })
}

/// Lets a container use a disk. Which major number the guest's kernel gives disks is its own business; no other device that can do harm has
/// the minor of one of them.
fn device_rule(name: &str, mount: &TypedMount) -> Value {
    /// `PART_BITS` in drivers/block/virtio_blk.c: minor numbers of a disk and its partitions.
    const MINORS: u32 = 1 << 4;
    let letter = name.bytes().last().unwrap_or(b'a');
    let minor = u32::from(letter.saturating_sub(b'a')) * MINORS;
    let access = if mount.read_only { "r" } else { "rw" };
    json!({ "allow": true, "type": "b", "minor": minor, "access": access })
}

/// A part of the tree of shares, with docker's options.
fn of_share(source: &str, bind: &Bind, mount: &TypedMount) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    let propagation = bind.propagation.as_deref().unwrap_or("rprivate");
    let options = ["rbind", access, propagation];
    json!({ "destination": mount.destination, "type": "bind", "source": source, "options": options })
}

/// Docker's options of a file system in memory, and what was asked for.
fn of_tmpfs(tmpfs: &NewTmpfs, mount: &TypedMount) -> Value {
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).into();
    options.extend(tmpfs.options.iter().cloned());
    options.extend(tmpfs.size_bytes.map(|bytes| format!("size={bytes}")));
    options.extend(tmpfs.mode.map(|mode| format!("mode={mode:o}")));
    options.extend(mount.read_only.then(|| "ro".to_owned()));
    json!({ "destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;

    use super::*;
    use crate::volumes::store::{VolumeRecord, Volumes};

    /// What these flags come to, with volumes that are made for them.
    fn open(directory: &Path, flags: &[&str]) -> Result<Attachments, AttachError> {
        let volumes = Volumes::new(&directory.join("volumes"));
        let mounts: Vec<TypedMount> = flags
            .iter()
            .map(|flag| match flag.strip_prefix("disk=") {
                Some(disk) => TypedMount::of_disk_flag(disk, directory).unwrap(),
                None => TypedMount::of_volume_flag(flag, directory).unwrap(),
            })
            .collect();
        for name in mounts.iter().filter_map(TypedMount::volume) {
            volumes
                .create(&VolumeRecord::new(name.clone(), None))
                .unwrap();
        }
        let sources = DiskSources {
            volumes: &volumes,
            users: &|_| vec!["other".to_owned()],
            blank: &|| {
                let blank = tempfile::tempfile().unwrap();
                blank.set_len(1 << 20).unwrap();
                blank.write_all_at(b"blank", 0).unwrap();
                Ok(blank)
            },
        };
        let name = |index| format!("/dev/vd{}", ["b", "c", "d"][index]);
        Attachments::open(&mounts, &sources, name, &Own::default())
    }

    fn disk_image(directory: &Path, name: &str) {
        let file = File::create(directory.join(name)).unwrap();
        file.set_len(4096).unwrap();
    }

    #[test]
    fn a_volume_that_is_mounted_twice_is_one_disk() {
        let directory = tempfile::tempdir().unwrap();

        let attachments = open(directory.path(), &["data:/a:ro", "data:/b", "more:/c"]).unwrap();

        assert_eq!(attachments.disks.len(), 2);
        assert_eq!(attachments.disks[0].access, Access::ReadWrite);
        let disk = |device: &str| Volume::Disk {
            device: device.to_owned(),
            read_only: false,
            directory: Some("data".to_owned()),
        };
        assert_eq!(attachments.volumes, [disk("/dev/vdb"), disk("/dev/vdc")]);
        let sources: Vec<_> = attachments.mounts.iter().map(|it| &it["source"]).collect();
        let place = |index| format!("{}/data", volume_path(index));
        assert_eq!(sources, [&place(0), &place(0), &place(1)]);
        assert_eq!(
            attachments.mounts[0]["options"],
            json!(["rbind", "ro", "tmpcopyup"])
        );
    }

    #[test]
    fn a_disk_that_is_a_device_is_not_mounted_and_may_be_used() {
        let directory = tempfile::tempdir().unwrap();
        disk_image(directory.path(), "raw");
        disk_image(directory.path(), "image");

        let flags = ["disk=raw:/dev/data:ro", "disk=image:/srv"];
        let attachments = open(directory.path(), &flags).unwrap();

        assert_eq!(attachments.disks.len(), 2);
        assert_eq!(attachments.volumes.len(), 1);
        assert_eq!(attachments.mounts[0]["source"], "/dev/vdb");
        assert_eq!(attachments.mounts[1]["source"], volume_path(0));
        assert_eq!(
            attachments.device_rules,
            [json!({ "allow": true, "type": "b", "minor": 16, "access": "r" })]
        );
    }

    #[test]
    fn who_has_a_volume_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let _first = open(directory.path(), &["data:/a"]).unwrap();

        let refused = open(directory.path(), &["data:/a"]).unwrap_err();

        assert_eq!(
            refused.to_string(),
            "volume 'data' is in use by machine 'other'"
        );
    }

    #[test]
    fn more_disks_than_a_machine_has_room_for_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let flags: Vec<String> = (10..21).map(|n| format!("v{n}:/v/{n}")).collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();

        let refused = open(directory.path(), &flags).unwrap_err();

        assert_eq!(
            refused.to_string(),
            "a machine has room for 10 volumes and disks, and is to have 11"
        );
    }
}
