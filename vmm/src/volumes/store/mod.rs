//! Named volumes: file systems on disks of their own, which outlive every machine that mounts them.
//!
//! ```text
//! volumes/
//!   .lock             held while something is made or taken away
//!   .new-…, .gone-…   what is being made, or taken away
//!   <name>/
//!     volume.json     what it was made with
//!     disk            ext4, sparse; zeros until the first machine has it
//!     lock            held by one machine that writes, or by several that read
//! ```
//!
//! A volume appears and goes as a whole. Its lock is inherited by the VM process, so that a monitor that was killed does not free
//! a disk that is still written to.

mod error;
mod ext4;
mod record;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

pub use self::error::{VolumeError, VolumeFault};
pub use self::ext4::holds_file_system;
pub use self::record::{ANONYMOUS_LABEL, VolumeRecord};
use super::VolumeName;
use crate::dirs::create_private;
use crate::storage::{self, StorageSize};

/// The disk of a volume.
const DISK: &str = "disk";
/// Another disk for it, while it is made.
const NEXT_DISK: &str = "disk.next";
/// The lock of a volume.
const LOCK: &str = "lock";
/// The lock of all.
const STORE_LOCK: &str = ".lock";
/// How the name of a volume begins that is being made.
const NEW: &str = ".new-";
/// How the name of a volume begins that is being taken away.
const GONE: &str = ".gone-";
/// Unit of `st_blocks`, `stat(2)`.
const STAT_BLOCK_BYTES: u64 = 512;

/// All volumes of an account.
#[derive(Clone, Debug)]
pub struct Volumes {
    directory: PathBuf,
}

/// A volume in a list: what of it can be read.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: VolumeName,
    /// What it was made with, or why that is not known.
    pub record: Result<VolumeRecord, VolumeFault>,
    /// Its directory.
    pub directory: PathBuf,
    /// What it takes on the host's disk.
    pub used_bytes: u64,
}

impl Listed {
    /// Where its disk is.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.directory.join(DISK)
    }

    /// Whether it was made for one machine.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.record.as_ref().is_ok_and(VolumeRecord::is_anonymous)
    }
}

/// What somebody wants of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To write to it, alone.
    Write,
    /// To read it, beside others that do.
    Read,
}

/// A volume that is locked for as long as this, or a copy of its lock, is open.
#[derive(Debug)]
pub struct HeldVolume {
    /// What it was made with.
    pub record: VolumeRecord,
    /// Its disk.
    pub disk: File,
    /// Its lock.
    pub lock: File,
    /// Whether the disk can be written to: also where reading was asked for, and something has to be put in order first.
    pub is_writable: bool,
    directory: PathBuf,
    store: Volumes,
}

impl Volumes {
    /// The volumes in this directory, which is made with the first of them.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Makes a volume. One of this name that is there is left as it is; says whether there was none.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or the one that is there cannot be used.
    pub fn create(&self, record: &VolumeRecord) -> Result<bool, VolumeError> {
        if self.contains(&record.name) {
            self.read(&record.name)?;
            return Ok(false);
        }
        self.make(record, |disk| disk.set_len(record.size_bytes))
    }

    /// Makes a volume that holds what `from` holds, in its size.
    ///
    /// # Errors
    ///
    /// If there is one of this name already, or it cannot be made.
    pub fn create_copy(&self, record: &VolumeRecord, from: &File) -> Result<(), VolumeError> {
        let exists = || VolumeError::Exists(record.name.clone());
        if self.contains(&record.name) {
            return Err(exists());
        }
        match self.make(record, |disk| storage::copy_whole(from, disk))? {
            true => Ok(()),
            false => Err(exists()),
        }
    }

    fn contains(&self, name: &VolumeName) -> bool {
        fs::symlink_metadata(self.place(name)).is_ok()
    }

    fn make(
        &self,
        record: &VolumeRecord,
        fill: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<bool, VolumeError> {
        let failed = |source| VolumeError::Make {
            name: record.name.clone(),
            source,
        };
        create_private(&self.directory)?;
        // Held until the volume has its name: nobody else takes it for a leftover.
        let (new, _lock) = self.begin(NEW).map_err(failed)?;
        let make = || {
            let disk = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(new.path().join(DISK))?;
            fill(&disk)?;
            disk.sync_all()?;
            record.write(new.path())?;
            File::open(new.path())?.sync_all()
        };
        make().map_err(failed)?;
        match fs::rename(new.path(), self.place(&record.name)) {
            Ok(()) => {
                // It has another name now.
                let _ = new.keep();
                self.sync().map_err(failed)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Makes a directory with a lock in it, which is held, and takes away what others have left unfinished.
    fn begin(&self, prefix: &str) -> io::Result<(TempDir, File)> {
        let _store = self.lock_store()?;
        self.clean()?;
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&self.directory)?;
        let lock = open_lock(directory.path(), true)?;
        lock.lock()?;
        Ok((directory, lock))
    }

    fn lock_store(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.directory.join(STORE_LOCK))?;
        file.lock()?;
        Ok(file)
    }

    /// Takes away what nobody finishes any more: the store is locked.
    fn clean(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if !name.starts_with(NEW) && !name.starts_with(GONE) {
                continue;
            }
            let is_free = match open_lock(&entry.path(), false) {
                Ok(lock) => lock.try_lock().is_ok(),
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
            if is_free {
                // Tried again by the next one.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn place(&self, name: &VolumeName) -> PathBuf {
        self.directory.join(name.as_str())
    }

    /// What a volume was made with.
    ///
    /// # Errors
    ///
    /// [`VolumeError::None`], or what is wrong with it.
    pub fn read(&self, name: &VolumeName) -> Result<VolumeRecord, VolumeError> {
        VolumeRecord::read(&self.place(name), name).map_err(|fault| match fault {
            VolumeFault::None if !self.contains(name) => VolumeError::None(name.to_string()),
            fault => VolumeError::Damaged {
                name: name.clone(),
                source: fault,
            },
        })
    }

    /// Finds a volume by what was typed.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn find(&self, typed: &str) -> Result<VolumeRecord, VolumeError> {
        let name = typed
            .parse()
            .map_err(|_| VolumeError::None(typed.to_owned()))?;
        self.read(&name)
    }

    /// One volume as it is listed.
    #[must_use]
    pub fn look(&self, name: &VolumeName) -> Listed {
        let directory = self.place(name);
        let used = |file| fs::metadata(directory.join(file)).map_or(0, |it| it.blocks());
        Listed {
            record: VolumeRecord::read(&directory, name),
            used_bytes: [DISK, NEXT_DISK].map(used).iter().sum::<u64>() * STAT_BLOCK_BYTES,
            name: name.clone(),
            directory,
        }
    }

    /// Lists all volumes by their names, damaged ones, too.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, VolumeError> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(VolumeError::List(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(VolumeError::List)?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.parse::<VolumeName>().ok()),
            );
        }
        names.sort();
        Ok(names.iter().map(|name| self.look(name)).collect())
    }

    /// Locks a volume.
    ///
    /// # Errors
    ///
    /// [`VolumeError::InUse`] if somebody has it, [`VolumeError::None`] if there is none, and what is wrong with one that is damaged.
    pub fn hold(&self, name: &VolumeName, wanted: Use) -> Result<HeldVolume, VolumeError> {
        let record = self.read(name)?;
        let directory = self.place(name);
        let lock = self.lock(name, wanted)?;
        let disk = open_disk(&directory, &record)?;
        let needs_order = || ext4::needs_writing(&disk, record.size_bytes);
        if wanted == Use::Read && needs_order().map_err(|error| disk_failed(&record, error))? {
            drop(disk);
            drop(lock);
            return self.hold(name, Use::Write);
        }
        Ok(HeldVolume {
            record,
            disk,
            lock,
            is_writable: wanted == Use::Write,
            directory,
            store: self.clone(),
        })
    }

    /// Makes the disk of a volume larger that a machine has. The machine is to be told.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Shrink`], or the file system's.
    pub fn grow_in_use(&self, name: &VolumeName, size: StorageSize) -> Result<(), VolumeError> {
        let _store = self.lock_length(name)?;
        let record = self.read(name)?;
        let directory = self.place(name);
        let disk = open_disk(&directory, &record)?;
        grow(&disk, &record, &directory, size).map(drop)
    }

    /// Held while disk and record of a volume become longer together, also by somebody who does not hold the volume.
    fn lock_length(&self, name: &VolumeName) -> Result<File, VolumeError> {
        self.lock_store().map_err(|source| VolumeError::Lock {
            name: name.clone(),
            source,
        })
    }

    fn lock(&self, name: &VolumeName, wanted: Use) -> Result<File, VolumeError> {
        let directory = self.place(name);
        let failed = |source| VolumeError::Lock {
            name: name.clone(),
            source,
        };
        loop {
            let lock = open_lock(&directory, false).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => VolumeError::None(name.to_string()),
                _ => failed(error),
            })?;
            let locked = match wanted {
                Use::Write => lock.try_lock(),
                Use::Read => lock.try_lock_shared(),
            };
            match locked {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(VolumeError::InUse {
                        name: name.clone(),
                        users: Vec::new(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // One that was removed meanwhile is another file than the one that has its name now.
            let own = lock.metadata().map_err(failed)?;
            match fs::metadata(directory.join(LOCK)) {
                Ok(named) if (named.dev(), named.ino()) == (own.dev(), own.ino()) => {
                    return Ok(lock);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Err(VolumeError::None(name.to_string()));
                }
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Removes a volume, damaged or not. `users` is asked which machines need it, once nobody can begin to.
    ///
    /// # Errors
    ///
    /// [`VolumeError::InUse`] if one does, or it is locked; the file system's.
    pub fn remove(
        &self,
        name: &VolumeName,
        users: impl FnOnce() -> Result<Vec<String>, VolumeError>,
    ) -> Result<u64, VolumeError> {
        let failed = |source| VolumeError::Remove {
            name: name.clone(),
            source,
        };
        if !self.contains(name) {
            return Err(VolumeError::None(name.to_string()));
        }
        let _lock = match self.lock(name, Use::Write) {
            Ok(lock) => Some(lock),
            // Of a damaged one, only its name may be left.
            Err(VolumeError::None(_)) if self.contains(name) => None,
            Err(VolumeError::InUse { name, .. }) => {
                return Err(VolumeError::InUse {
                    name,
                    users: users()?,
                });
            }
            Err(error) => return Err(error),
        };
        let users = users()?;
        if !users.is_empty() {
            return Err(VolumeError::InUse {
                name: name.clone(),
                users,
            });
        }
        let freed = self.look(name).used_bytes;
        let (gone, _own_lock) = self.begin(GONE).map_err(failed)?;
        fs::rename(self.place(name), gone.path().join("volume")).map_err(failed)?;
        self.sync().map_err(failed)?;
        gone.close().map_err(failed)?;
        Ok(freed)
    }
}

impl HeldVolume {
    /// Whether nothing is on the disk yet, and it can be written to.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn is_blank(&self) -> Result<bool, VolumeError> {
        let is_blank = storage::is_blank(&self.disk);
        Ok(self.is_writable && is_blank.map_err(|error| disk_failed(&self.record, error))?)
    }

    /// Puts an empty file system on a disk that nothing is on yet.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn fill(&self, blank: &File) -> Result<(), VolumeError> {
        storage::fill(&self.disk, blank).map_err(|error| disk_failed(&self.record, error))
    }

    /// Makes the disk larger. Its file system is by whoever mounts it next.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Shrink`], or the file system's.
    pub fn resize(&mut self, size: StorageSize) -> Result<(), VolumeError> {
        let _length = self.store.lock_length(&self.record.name)?;
        self.record = grow(&self.disk, &self.record, &self.directory, size)?;
        Ok(())
    }

    /// Puts what `from` holds in place of what the volume holds.
    ///
    /// # Errors
    ///
    /// The file system's; the volume is as it was then.
    pub fn replace(&mut self, from: &File) -> Result<(), VolumeError> {
        let next = self.directory.join(NEXT_DISK);
        let replaced = self.replace_by(&next, from);
        if replaced.is_err() {
            // What cannot be removed is written over by the next one.
            let _ = fs::remove_file(&next);
        }
        replaced
    }

    fn replace_by(&mut self, next: &Path, from: &File) -> Result<(), VolumeError> {
        let name = &self.record.name;
        let failed = |source| disk_failed(&self.record, source);
        let copy = || {
            let disk = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(next)?;
            storage::copy_whole(from, &disk)?;
            Ok(disk)
        };
        let disk = copy().map_err(failed)?;
        let _length = self.store.lock_length(name)?;
        // It may have become larger since it is held.
        let known = self.store.read(name)?;
        let put_in_place = || {
            let size_bytes = disk.metadata()?.len().max(known.size_bytes);
            disk.set_len(size_bytes)?;
            disk.sync_all()?;
            let record = VolumeRecord {
                size_bytes,
                ..known
            };
            // A disk that is longer than its record says is one that has grown.
            fs::rename(next, self.directory.join(DISK))?;
            record.write(&self.directory)?;
            File::open(&self.directory)?.sync_all()?;
            Ok(record)
        };
        let record = put_in_place().map_err(failed)?;
        (self.disk, self.record) = (disk, record);
        Ok(())
    }
}

/// Makes a disk as large as that, and writes down that it is.
fn grow(
    disk: &File,
    record: &VolumeRecord,
    directory: &Path,
    size: StorageSize,
) -> Result<VolumeRecord, VolumeError> {
    let failed = |error| disk_failed(record, error);
    let length_bytes = disk.metadata().map_err(failed)?.len();
    if size.bytes() < length_bytes {
        return Err(VolumeError::Shrink {
            name: record.name.clone(),
            size: StorageSize::of_bytes(length_bytes).to_string(),
        });
    }
    disk.set_len(size.bytes()).map_err(failed)?;
    disk.sync_all().map_err(failed)?;
    let grown = VolumeRecord {
        size_bytes: size.bytes(),
        ..record.clone()
    };
    grown.write(directory).map_err(failed)?;
    Ok(grown)
}

fn disk_failed(record: &VolumeRecord, source: io::Error) -> VolumeError {
    VolumeError::Disk {
        name: record.name.clone(),
        source,
    }
}

fn open_lock(directory: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(directory.join(LOCK))
}

/// Opens a volume's disk, which is as long as its record says, or longer where it was about to grow.
fn open_disk(directory: &Path, record: &VolumeRecord) -> Result<File, VolumeError> {
    let damaged = |source| VolumeError::Damaged {
        name: record.name.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(directory.join(DISK))
        .map_err(|error| damaged(VolumeFault::Disk(error)))?;
    let metadata = file
        .metadata()
        .map_err(|error| damaged(VolumeFault::Disk(error)))?;
    if !metadata.is_file() {
        return Err(damaged(VolumeFault::NotAFile));
    }
    if metadata.len() < record.size_bytes {
        return Err(damaged(VolumeFault::TooShort {
            found_bytes: metadata.len(),
            expected_bytes: record.size_bytes,
        }));
    }
    Ok(file)
}

#[cfg(test)]
mod tests;
