//! The disk of a kept machine.
//!
//! When its machine starts for the first time, it is filled: with a copy of the guest image's empty file system, which the guest makes
//! as large as the disk, or with what the disk of a template holds. Whoever opens it locks it; the VM process inherits the lock, so that a monitor that was killed does not free the disk before its VM process is gone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use thiserror::Error;

use super::StorageSize;
use super::sparse::data_extents;
use crate::report::Help;

/// The disk's file in a machine's directory.
const DISK: &str = "disk";
/// A block of the file system: what is a hole or is none.
const BLOCK_BYTES: usize = 4096;
static ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
/// What is copied at once.
const PIECE_BYTES: usize = 256 << 10;
/// The disk while it is made.
const NEXT_DISK: &str = "disk.next";
/// How long a VM process that was killed may take to let go of its disk.
const RELEASE_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before looking again whether it has.
const PAUSE: Duration = Duration::from_millis(10);

/// A disk that cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// It cannot be made.
    #[error("cannot make the machine's disk {}", path.display())]
    Make {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open the machine's disk {}", path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else has its name.
    #[error("the machine's disk {} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// It is not as long as it was made.
    #[error(
        "the machine's disk {} is {found_bytes} bytes long, not {expected_bytes}",
        path.display()
    )]
    OtherLength {
        /// Where.
        path: PathBuf,
        /// How long it is.
        found_bytes: u64,
        /// How long it was made.
        expected_bytes: u64,
    },
    /// Another process has it.
    #[error("the machine's disk {} is in use", .0.display())]
    InUse(PathBuf),
}

impl Help for DiskError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Make { .. } => {
                "the file system of the machines' directory needs room, and must know files of that size"
            }
            Self::Open { .. } | Self::NotAFile(_) | Self::OtherLength { .. } => {
                "what the machine had written is lost: remove it with `vmm rm`, or put the disk back"
            }
            Self::InUse(_) => "end the process that has it open",
        };
        Some(help.to_owned())
    }
}

/// Makes the disk of the machine in `directory`, with nothing on it yet, and opens it.
///
/// # Errors
///
/// If it cannot be made; nothing of it stays behind.
pub fn make(directory: &Path, size: StorageSize) -> Result<File, DiskError> {
    make_filled(directory, size.bytes(), |_| Ok(()))
}

/// Fills a disk with what `from` holds, in place of whatever it held. One that was not filled to the end is blank.
///
/// # Errors
///
/// [`io::ErrorKind::InvalidData`] if there is nothing in `from`, or the file systems' own.
pub fn fill(disk: &File, from: &File) -> io::Result<()> {
    let beginning = beginning(from)?;
    if is_zero(&beginning) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "nothing is on the disk that it is to be a copy of",
        ));
    }
    let length_bytes = disk.metadata()?.len();
    empty(disk, length_bytes)?;
    // A file system that can share the data copies none of it: FICLONE in ioctl_ficlonerange(2).
    if rustix::fs::ioctl_ficlone(disk, from).is_ok() {
        disk.set_len(length_bytes)?;
        return disk.sync_all();
    }
    copy_data(from, disk)?;
    disk.sync_all()?;
    // Last: a disk that has its beginning has all.
    disk.write_all_at(&beginning, 0)
}

/// Lets go of what a disk holds. It is as long as before at any moment, where the file system knows holes.
fn empty(disk: &File, length_bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if rustix::fs::fallocate(disk, flags, 0, length_bytes).is_ok() {
        return Ok(());
    }
    disk.set_len(0)?;
    disk.set_len(length_bytes)
}

/// Tells whether nothing is on a disk yet: where a file system begins there are zeros.
///
/// # Errors
///
/// The file system's.
pub fn is_blank(disk: &File) -> io::Result<bool> {
    Ok(is_zero(&beginning(disk)?))
}

fn beginning(disk: &File) -> io::Result<[u8; BLOCK_BYTES]> {
    let mut block = [0; BLOCK_BYTES];
    disk.read_exact_at(&mut block, 0)?;
    Ok(block)
}

fn is_zero(block: &[u8]) -> bool {
    block == ZEROS.get(..block.len()).unwrap_or_default()
}

/// Makes the disk of the machine in `directory`, which `fill` fills, and opens it.
///
/// # Errors
///
/// If it cannot be written; nothing of it stays behind.
pub fn make_filled(
    directory: &Path,
    length_bytes: u64,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> Result<File, DiskError> {
    let path = directory.join(DISK);
    let next = directory.join(NEXT_DISK);
    let write = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&next)?;
        file.lock()?;
        file.set_len(length_bytes)?;
        fill(&file)?;
        file.sync_all()?;
        fs::rename(&next, &path)?;
        Ok(file)
    };
    write().map_err(|source| {
        // What cannot be removed is removed with the machine.
        let _ = fs::remove_file(&next);
        DiskError::Make {
            path: path.clone(),
            source,
        }
    })
}

/// Copies what is in a file to an empty one of the same length, but for its first block and for blocks of zeros: they are holes there, also where whoever
/// installed the file, or the file system that it is on, has none.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    let mut space = vec![0; PIECE_BYTES];
    for extent in data_extents(from)? {
        let end_bytes = extent.offset_bytes.saturating_add(extent.length_bytes);
        let mut at_bytes = extent.offset_bytes;
        while at_bytes < end_bytes {
            let left_bytes = usize::try_from(end_bytes - at_bytes).unwrap_or(usize::MAX);
            let piece = space
                .get_mut(..left_bytes.min(PIECE_BYTES))
                .unwrap_or_default();
            from.read_exact_at(piece, at_bytes)?;
            if at_bytes == 0 {
                piece
                    .iter_mut()
                    .take(BLOCK_BYTES)
                    .for_each(|byte| *byte = 0);
            }
            let blocks: Vec<&[u8]> = piece.chunks(BLOCK_BYTES).collect();
            for run in blocks.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                let bytes = run.concat();
                if !is_zero(bytes.get(..BLOCK_BYTES).unwrap_or(&bytes)) {
                    to.write_all_at(&bytes, at_bytes)?;
                }
                at_bytes = at_bytes.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            }
        }
    }
    Ok(())
}

/// Opens the disk of the machine in `directory`, which was made with this size, and locks it for as long as it is open.
///
/// # Errors
///
/// If it is not what it was, or somebody else has it.
pub fn open(directory: &Path, size: StorageSize) -> Result<File, DiskError> {
    let path = directory.join(DISK);
    let failed = |source| DiskError::Open {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&path)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ELOOP | libc::EISDIR | libc::ENXIO) => DiskError::NotAFile(path.clone()),
            _ => failed(source),
        })?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(DiskError::NotAFile(path));
    }
    if metadata.len() != size.bytes() {
        return Err(DiskError::OtherLength {
            path,
            found_bytes: metadata.len(),
            expected_bytes: size.bytes(),
        });
    }
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(TryLockError::WouldBlock) => return Err(DiskError::InUse(path)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    /// An empty file system, as far as this room knows: some bytes between holes.
    fn blank() -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"first", 0).unwrap();
        file.write_all_at(b"second", 8 << 20).unwrap();
        file.set_len(32 << 20).unwrap();
        file
    }

    fn made() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = make(directory.path(), StorageSize::default()).unwrap();
        fill(&file, &blank()).unwrap();
        let disk = directory.path().join(DISK);
        (directory, disk)
    }

    fn refusal(directory: &tempfile::TempDir) -> DiskError {
        open(directory.path(), StorageSize::default()).unwrap_err()
    }

    #[test]
    fn a_disk_has_what_the_blank_has_and_takes_no_more_room() {
        let (directory, disk) = made();

        let opened = open(directory.path(), StorageSize::default()).unwrap();

        let mut bytes = [0; 6];
        opened.read_exact_at(&mut bytes, 8 << 20).unwrap();
        let metadata = fs::metadata(disk).unwrap();
        assert_eq!(&bytes, b"second");
        assert_eq!(metadata.len(), 10 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20);
        assert_eq!(metadata.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_zeros_in_the_blank_takes_no_room_in_a_disk() {
        let directory = tempfile::tempdir().unwrap();
        let without_holes = tempfile::tempfile().unwrap();
        without_holes.write_all_at(&vec![0; 32 << 20], 0).unwrap();
        without_holes.write_all_at(b"first", 0).unwrap();
        without_holes.write_all_at(b"last", (32 << 20) - 4).unwrap();

        let disk = make(directory.path(), StorageSize::default()).unwrap();
        fill(&disk, &without_holes).unwrap();

        let mut bytes = [0; 4];
        disk.read_exact_at(&mut bytes, (32 << 20) - 4).unwrap();
        assert_eq!(&bytes, b"last");
        assert!(disk.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn what_a_disk_held_is_gone_when_it_is_filled_again() {
        let (directory, _disk) = made();
        let disk = open(directory.path(), StorageSize::default()).unwrap();
        disk.write_all_at(b"written", 9 << 30).unwrap();

        fill(&disk, &blank()).unwrap();

        let mut bytes = [1; 7];
        disk.read_exact_at(&mut bytes, 9 << 30).unwrap();
        assert_eq!(bytes, [0; 7]);
    }

    #[test]
    fn a_disk_that_was_not_filled_to_the_end_is_blank() {
        let directory = tempfile::tempdir().unwrap();
        let disk = make(directory.path(), StorageSize::default()).unwrap();
        assert!(is_blank(&disk).unwrap());

        let nothing = tempfile::tempfile().unwrap();
        nothing.set_len(32 << 20).unwrap();
        nothing.write_all_at(b"second", 8 << 20).unwrap();
        let refused = fill(&disk, &nothing).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        copy_data(&blank(), &disk).unwrap();
        assert!(is_blank(&disk).unwrap());

        fill(&disk, &blank()).unwrap();
        assert!(!is_blank(&disk).unwrap());
    }

    #[test]
    fn a_disk_that_could_not_be_made_leaves_nothing() {
        let (directory, disk) = made();
        fs::remove_file(&disk).unwrap();
        fs::create_dir(&disk).unwrap();

        let error = make(directory.path(), StorageSize::default()).unwrap_err();

        assert!(matches!(error, DiskError::Make { .. }));
        assert!(!directory.path().join(NEXT_DISK).exists());
    }

    #[test]
    fn a_disk_of_another_length_is_not_used() {
        let (directory, disk) = made();
        let file = OpenOptions::new().write(true).open(disk).unwrap();
        file.set_len(1 << 20).unwrap();

        assert!(matches!(
            refusal(&directory),
            DiskError::OtherLength {
                found_bytes: 1_048_576,
                ..
            }
        ));
    }

    #[test]
    fn a_disk_that_is_gone_is_missed() {
        let (directory, disk) = made();
        fs::remove_file(disk).unwrap();

        assert!(matches!(refusal(&directory), DiskError::Open { .. }));
    }

    #[test]
    fn a_link_or_a_directory_is_no_disk() {
        let (directory, disk) = made();
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&disk, &elsewhere).unwrap();
        symlink(&elsewhere, &disk).unwrap();
        let link = refusal(&directory);
        fs::remove_file(&disk).unwrap();
        fs::create_dir(&disk).unwrap();
        let other = refusal(&directory);

        assert!(matches!(link, DiskError::NotAFile(_)));
        assert!(matches!(other, DiskError::NotAFile(_)));
    }
}
