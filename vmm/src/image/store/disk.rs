//! Files and directories of the store: private, locked, whole.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::super::digest::Digest;
use super::{Store, StoreError};

/// Makes a directory and its parents, for its owner only.
pub(super) fn make_directory(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::at("create", path))
}

/// Writes a new file.
pub(super) fn write_new(path: &Path, contents: &[u8]) -> Result<(), StoreError> {
    create_new(path, contents)
        .map(drop)
        .map_err(StoreError::at("write", path))
}

fn create_new(path: &Path, contents: &[u8]) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(contents)?;
    Ok(file)
}

/// Replaces a file's contents in one step; `scratch` is a directory on the same file system.
pub(super) fn replace(path: &Path, contents: &[u8], scratch: &Path) -> Result<(), StoreError> {
    let new = unique(scratch);
    let synced = create_new(&new, contents).and_then(|file| file.sync_all());
    synced.map_err(|error| {
        let _ = fs::remove_file(&new);
        StoreError::at("write", path)(error)
    })?;
    fs::rename(&new, path).map_err(|error| {
        let _ = fs::remove_file(&new);
        StoreError::at("replace", path)(error)
    })?;
    sync_directory(path.parent().unwrap_or(path))
}

/// Reads a file; `None` if it does not exist.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    match fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::at("read", path)(error)),
    }
}

/// Brings the names of a directory to the disk.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::at("sync", path))
}

/// A name in `directory` that nothing has.
pub(super) fn unique(directory: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut random = [0; 8];
    // Without randomness the process id and the counter still tell names apart.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    directory.join(format!(
        "{}-{number}-{:016x}",
        std::process::id(),
        u64::from_le_bytes(random)
    ))
}

/// Bytes on disk of a file or of everything in a directory.
pub(super) fn disk_bytes(path: &Path) -> io::Result<u64> {
    let metadata = fs::symlink_metadata(path)?;
    let mut total = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            match disk_bytes(&entry?.path()) {
                Ok(bytes) => total += bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(total)
}

/// The digests that name the objects in a directory.
pub(super) fn digests_in(path: &Path) -> Result<Vec<Digest>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(StoreError::at("list", path))? {
        let entry = entry.map_err(StoreError::at("list", path))?;
        found.extend(entry.file_name().to_str().and_then(Digest::from_hex));
    }
    found.sort_unstable();
    Ok(found)
}

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Exclusive,
}

/// Waits for a lock on an open file.
pub(super) fn lock(file: &File, hold: Hold) -> io::Result<()> {
    let operation = match hold {
        Hold::Shared => FlockOperation::LockShared,
        Hold::Exclusive => FlockOperation::LockExclusive,
    };
    loop {
        match flock(file, operation) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// Takes an exclusive lock if nobody else holds any.
pub(super) fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether somebody holds a lease on an object.
pub(super) fn is_leased(object: &Path) -> Result<bool, StoreError> {
    let held = || {
        let directory = File::open(object)?;
        Ok(!try_lock(&directory)?)
    };
    held().map_err(StoreError::at("lock", object))
}

/// The lock of the whole store; held while the value lives.
#[derive(Debug)]
pub(super) struct StoreLock {
    _file: File,
}

impl Store {
    /// Waits for the lock of the whole store; only short work may be done under it.
    pub(super) fn lock(&self, hold: Hold) -> Result<StoreLock, StoreError> {
        let path = self.root.join("lock");
        let file = open_lock_file(&path)?;
        lock(&file, hold).map_err(StoreError::at("lock", &path))?;
        Ok(StoreLock { _file: file })
    }

    /// Directory for what is being made.
    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("tmp")
    }
}

pub(super) fn open_lock_file(path: &Path) -> Result<File, StoreError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(StoreError::at("open", path))
}

/// A directory in `tmp` that one import works in; removed when the value is dropped.
#[derive(Debug)]
pub(super) struct WorkDirectory {
    path: PathBuf,
    _lock: File,
}

impl WorkDirectory {
    pub(super) fn new(store: &Store) -> Result<Self, StoreError> {
        // The store's lock keeps cleaners away between the two steps.
        let _guard = store.lock(Hold::Shared)?;
        let path = unique(&store.scratch());
        make_directory(&path)?;
        let open = || {
            let directory = File::open(&path)?;
            lock(&directory, Hold::Exclusive)?;
            Ok(directory)
        };
        let lock = open().map_err(StoreError::at("lock", &path))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // What cannot be removed now is what a crash would have left.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes everything in `tmp` that nobody works on; the caller holds the store's lock exclusively.
pub(super) fn remove_abandoned(scratch: &Path) -> io::Result<bool> {
    let mut any = false;
    for entry in fs::read_dir(scratch)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if !try_lock(&file)? {
            continue;
        }
        any = true;
        let removed = if file.metadata()?.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        gone_is_fine(removed)?;
    }
    Ok(any)
}

/// Whoever worked on it may have removed it between our look and our lock.
pub(super) fn gone_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
