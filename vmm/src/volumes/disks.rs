//! The disks that the mounts of one start need: each opened and locked once, however many mounts show parts of it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::attachments::AttachError;
use super::store::{HeldVolume, Use, VolumeError, Volumes};
use super::{DiskLimits, TypedMount, TypedSource, VolumeName};
use crate::machine::{Access, DiskId, MAX_DISKS, MachineDisk, RateLimits};

/// How long a VM process that was killed may take to let go of its volumes.
const RELEASE_PATIENCE: Duration = Duration::from_secs(75);
/// How long to wait before looking again whether it has.
const PAUSE: Duration = Duration::from_millis(10);
/// The smallest disk that can be one.
const SECTOR_BYTES: u64 = 512;

/// What there is on the host to open disks with.
#[expect(missing_debug_implementations, reason = "functions have none")]
pub struct DiskSources<'a> {
    /// The volumes.
    pub volumes: &'a Volumes,
    /// Which machines have a volume now, by their names.
    pub users: &'a dyn Fn(&VolumeName) -> Vec<String>,
    /// Opens the empty file system that a new volume begins with.
    pub blank: &'a dyn Fn() -> Result<File, AttachError>,
}

/// What a disk is made of.
#[derive(Debug, PartialEq, Eq)]
enum Source<'a> {
    Volume(&'a VolumeName),
    File(&'a Path),
}

impl<'a> Source<'a> {
    /// That of a mount, if it has one.
    fn of(mount: &'a TypedMount) -> Option<Self> {
        match &mount.source {
            TypedSource::Volume(volume) => volume.name.as_ref().map(Source::Volume),
            TypedSource::Disk(disk) => Some(Source::File(&disk.source)),
            TypedSource::Bind(_) | TypedSource::Tmpfs(_) => None,
        }
    }
}

/// Opens the disks of these mounts, in the order in which they are first named; and says for each mount which one is its.
pub(super) fn open(
    mounts: &[TypedMount],
    sources: &DiskSources<'_>,
) -> Result<(Vec<MachineDisk>, Vec<Option<usize>>), AttachError> {
    let mut wanted: Vec<(Source<'_>, Use, DiskLimits)> = Vec::new();
    let mut places = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let Some(source) = Source::of(mount) else {
            places.push(None);
            continue;
        };
        let use_of = match mount.read_only {
            true => Use::Read,
            false => Use::Write,
        };
        let place = match wanted.iter_mut().position(|(other, ..)| *other == source) {
            Some(place) => place,
            None => {
                wanted.push((source, use_of, limits_of(mount)));
                wanted.len() - 1
            }
        };
        if let Some((_, known, _)) = wanted.get_mut(place)
            && use_of == Use::Write
        {
            *known = Use::Write;
        }
        places.push(Some(place));
    }
    if wanted.len() > MAX_DISKS {
        return Err(AttachError::TooManyDisks(wanted.len()));
    }
    let disks = wanted
        .into_iter()
        .map(|(source, wanted, limits)| {
            let disk = match source {
                Source::Volume(name) => open_volume(name, wanted, sources)?,
                Source::File(path) => open_file(path, wanted)?,
            };
            Ok(MachineDisk {
                limits: limits.into(),
                ..disk
            })
        })
        .collect::<Result<_, AttachError>>()?;
    Ok((disks, places))
}

fn limits_of(mount: &TypedMount) -> DiskLimits {
    match &mount.source {
        TypedSource::Volume(volume) => volume.limits,
        TypedSource::Disk(disk) => disk.limits,
        TypedSource::Bind(_) | TypedSource::Tmpfs(_) => DiskLimits::default(),
    }
}

fn open_volume(
    name: &VolumeName,
    wanted: Use,
    sources: &DiskSources<'_>,
) -> Result<MachineDisk, AttachError> {
    let held = hold(name, wanted, sources)?;
    if held.is_blank()? {
        held.fill(&(sources.blank)()?)?;
    }
    Ok(MachineDisk {
        access: match held.is_writable {
            true => Access::ReadWrite,
            false => Access::ReadOnly,
        },
        id: DiskId::new(name.as_str()),
        limits: RateLimits::default(),
        file: held.disk,
        lock: Some(held.lock),
    })
}

/// Locks a volume. One that no machine on record has is about to be let go of by a VM process that was killed.
fn hold(
    name: &VolumeName,
    wanted: Use,
    sources: &DiskSources<'_>,
) -> Result<HeldVolume, VolumeError> {
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        match sources.volumes.hold(name, wanted) {
            Err(VolumeError::InUse { name, .. }) => {
                let users = (sources.users)(&name);
                if !users.is_empty() || Instant::now() >= deadline {
                    return Err(VolumeError::InUse { name, users });
                }
            }
            result => return result,
        }
        sleep(PAUSE);
    }
}

/// Opens a file or a block device of the host, and locks it.
fn open_file(path: &Path, wanted: Use) -> Result<MachineDisk, AttachError> {
    let failed = |source| AttachError::OpenDisk {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(wanted == Use::Write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(AttachError::NotADisk(path.to_owned()));
    }
    let locked = match wanted {
        Use::Write => file.try_lock(),
        Use::Read => file.try_lock_shared(),
    };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => AttachError::DiskInUse(path.to_owned()),
        TryLockError::Error(error) => failed(error),
    })?;
    let length_bytes = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
        .map_err(|error| failed(io::Error::from(error)))?;
    if length_bytes < SECTOR_BYTES {
        return Err(AttachError::EmptyDisk(path.to_owned()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(MachineDisk {
        access: match wanted {
            Use::Write => Access::ReadWrite,
            Use::Read => Access::ReadOnly,
        },
        id: DiskId::new(&name),
        limits: RateLimits::default(),
        file,
        lock: None,
    })
}
