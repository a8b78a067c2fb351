//! What a disk is made of: a file, or parts of files put together.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::virtio::DeviceSlice;
use rustix::fs::{FallocateFlags, SeekFrom};
use thiserror::Error;

use crate::guest_io;

/// What a disk may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It is only read.
    ReadOnly,
    /// It is read and written.
    ReadWrite,
}

/// A range of bytes of a disk; it ends within `u64`, and within the disk once it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRange {
    /// Offset of the first byte.
    pub offset_bytes: u64,
    /// Length in bytes.
    pub length_bytes: u64,
}

impl DiskRange {
    /// Returns the offset after the last byte.
    #[must_use]
    pub fn end_bytes(self) -> u64 {
        self.offset_bytes.saturating_add(self.length_bytes)
    }
}

/// The storage of a disk.
///
/// Called by the device's worker, on the event loop's thread or on several [`DiskThreads`](super::DiskThreads) at once, with ranges
/// that lie within [`size_bytes`](Self::size_bytes); the four that change something only if the disk is writable.
/// A call on the event loop's thread blocks that until it is done. An error becomes an I/O error in the guest.
pub trait Backend: Send + Sync {
    /// Returns the size; it only grows.
    fn size_bytes(&self) -> u64;

    /// Returns what the disk may be used for; it does not change.
    fn access(&self) -> Access;

    /// Fills all of `memory` with what is at `offset_bytes`.
    ///
    /// # Errors
    ///
    /// Returns the error of the storage; the memory may be filled in part then.
    fn read(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()>;

    /// The same without waiting for the storage; returns `false` if it has to be waited for, and the memory may be filled in part
    /// then.
    fn read_cached(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> bool {
        let (_, _) = (memory, offset_bytes);
        false
    }

    /// Writes all of `memory` to `offset_bytes`.
    ///
    /// # Errors
    ///
    /// Returns the error of the storage; a part may be written then.
    fn write(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()>;

    /// Makes everything that was written durable.
    ///
    /// # Errors
    ///
    /// Returns the error of the storage; what was written since the last success may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Gives back the storage of a range, whose contents do not matter any more.
    ///
    /// # Errors
    ///
    /// Returns the error of the storage.
    fn discard(&self, range: DiskRange) -> io::Result<()>;

    /// Makes a range read as zeros; its storage may be given back if `may_unmap`.
    ///
    /// # Errors
    ///
    /// Returns the error of the storage, `Unsupported` if it has no cheap way to do it.
    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> io::Result<()>;
}

impl fmt::Debug for dyn Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "Backend({:?}, {} bytes)",
            self.access(),
            self.size_bytes()
        )
    }
}

fn read_only() -> io::Error {
    io::ErrorKind::ReadOnlyFilesystem.into()
}

/// Moves all of `memory` by `transfer`, which moves some of it to or from an offset at a time.
fn transfer_all(
    memory: &[DeviceSlice<'_>],
    mut offset_bytes: u64,
    mut transfer: impl FnMut(&[DeviceSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut rest: Vec<DeviceSlice<'_>> = memory.to_vec();
    rest.retain(|part| !part.is_empty());
    while !rest.is_empty() {
        let moved = match transfer(&rest, offset_bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => moved,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        offset_bytes = offset_bytes.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        rest = skip(&rest, moved);
    }
    Ok(())
}

/// Returns `memory` without its first `count` bytes.
fn skip<'a>(memory: &[DeviceSlice<'a>], mut count: usize) -> Vec<DeviceSlice<'a>> {
    let mut rest = Vec::with_capacity(memory.len());
    for part in memory {
        let skipped = count.min(part.len());
        count -= skipped;
        if let Ok(part) = part.offset(skipped)
            && !part.is_empty()
        {
            rest.push(part);
        }
    }
    rest
}

/// Returns the first `count` bytes of `memory`.
fn take<'a>(memory: &[DeviceSlice<'a>], mut count: usize) -> Vec<DeviceSlice<'a>> {
    let mut taken = Vec::with_capacity(memory.len());
    for part in memory {
        let length = count.min(part.len());
        count -= length;
        if let Ok(part) = part.subslice(0, length)
            && !part.is_empty()
        {
            taken.push(part);
        }
    }
    taken
}

/// `TMPFS_MAGIC` and `RAMFS_MAGIC` (include/uapi/linux/magic.h).
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// A disk that is a file, byte for byte.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size_bytes: AtomicU64,
    access: Access,
    /// The file system has nothing to wait for; it does not know how to read without waiting, either.
    is_in_memory: bool,
}

impl RawFile {
    /// Makes a disk of the whole of `file`, as large as it is now.
    ///
    /// `file` is open for what `access` says. Who else writes it meanwhile, or shortens it, gives
    /// the guest wrong data or I/O errors; locking it is the caller's business.
    ///
    /// # Errors
    ///
    /// Returns the error of asking for the file's size.
    pub fn new(file: File, access: Access) -> io::Result<Self> {
        let size_bytes = AtomicU64::new(size_of(&file)?);
        // What tells of no file system is read on a thread.
        let is_in_memory =
            rustix::fs::fstatfs(&file).is_ok_and(|about| IN_MEMORY.contains(&about.f_type));
        Ok(Self {
            file,
            size_bytes,
            access,
            is_in_memory,
        })
    }

    /// Makes the disk as large as its file is by now, and returns that. It never becomes smaller.
    ///
    /// # Errors
    ///
    /// Returns the error of asking for the file's size.
    pub fn grow(&self) -> io::Result<u64> {
        let now = size_of(&self.file)?;
        let before = self.size_bytes.fetch_max(now, Ordering::SeqCst);
        Ok(before.max(now))
    }

    fn writable(&self) -> io::Result<&File> {
        match self.access {
            Access::ReadWrite => Ok(&self.file),
            Access::ReadOnly => Err(read_only()),
        }
    }

    fn fallocate(&self, mode: FallocateFlags, range: DiskRange) -> io::Result<()> {
        let file = self.writable()?;
        if range.length_bytes == 0 {
            return Ok(());
        }
        rustix::fs::fallocate(
            file,
            mode | FallocateFlags::KEEP_SIZE,
            range.offset_bytes,
            range.length_bytes,
        )?;
        Ok(())
    }
}

/// The size of a file or of a block device.
fn size_of(file: &File) -> io::Result<u64> {
    // Of a block device, stat(2) says nothing. Nobody uses the file's own offset.
    Ok(rustix::fs::seek(file, SeekFrom::End(0))?)
}

impl Backend for RawFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    fn access(&self) -> Access {
        self.access
    }

    fn read(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        transfer_all(memory, offset_bytes, |memory, offset| {
            guest_io::read_at(self.file.as_fd(), memory, offset)
        })
    }

    fn read_cached(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> bool {
        let length: usize = memory.iter().map(|part| part.len()).sum();
        let read = match self.is_in_memory {
            true => guest_io::read_at(&self.file, memory, offset_bytes),
            false => guest_io::read_cached_at(&self.file, memory, offset_bytes),
        };
        read.is_ok_and(|read| read == length)
    }

    fn write(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        let file = self.writable()?;
        transfer_all(memory, offset_bytes, |memory, offset| {
            guest_io::write_at(file.as_fd(), memory, offset)
        })
    }

    fn flush(&self) -> io::Result<()> {
        match self.access {
            Access::ReadWrite => self.file.sync_data(),
            Access::ReadOnly => Ok(()),
        }
    }

    /// A file system that cannot punch holes keeps the storage; the guest need not know.
    fn discard(&self, range: DiskRange) -> io::Result<()> {
        match self.fallocate(FallocateFlags::PUNCH_HOLE, range) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, range: DiskRange, may_unmap: bool) -> io::Result<()> {
        let (first, second) = if may_unmap {
            (FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE)
        } else {
            (FallocateFlags::ZERO_RANGE, FallocateFlags::PUNCH_HOLE)
        };
        match self.fallocate(first, range) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.fallocate(second, range)
            }
            result => result,
        }
    }
}

/// A part of a file that is a part of a disk.
#[derive(Debug)]
pub struct Extent {
    /// The file; open for reading.
    pub file: File,
    /// Where in the file the part begins.
    pub file_offset_bytes: u64,
    /// Where on the disk it is seen.
    pub disk_offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// Why extents make no disk.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ExtentsError {
    /// An extent has no bytes, or ends outside of the disk or of all numbers.
    #[error(
        "the extent at {disk_offset_bytes:#x} of {length_bytes:#x} bytes does not fit the disk"
    )]
    OutOfDisk {
        /// Where on the disk it would begin.
        disk_offset_bytes: u64,
        /// Its length.
        length_bytes: u64,
    },
    /// Two extents share bytes of the disk.
    #[error("two extents of the disk overlap at {disk_offset_bytes:#x}")]
    Overlap {
        /// Where the second begins.
        disk_offset_bytes: u64,
    },
}

/// A read-only disk put together from parts of files; what is between them reads as zeros.
#[derive(Debug)]
pub struct Extents {
    /// Sorted by their place on the disk, without overlaps.
    extents: Vec<Extent>,
    size_bytes: u64,
}

impl Extents {
    /// Makes a disk of `size_bytes` with `extents` on it.
    ///
    /// # Errors
    ///
    /// Returns [`ExtentsError`] if an extent does not lie on the disk or two share bytes of it.
    pub fn new(mut extents: Vec<Extent>, size_bytes: u64) -> Result<Self, ExtentsError> {
        extents.sort_by_key(|extent| extent.disk_offset_bytes);
        let mut end_bytes = 0;
        for extent in &extents {
            let out_of_disk = ExtentsError::OutOfDisk {
                disk_offset_bytes: extent.disk_offset_bytes,
                length_bytes: extent.length_bytes,
            };
            let file_end = extent.file_offset_bytes.checked_add(extent.length_bytes);
            let disk_end = extent
                .disk_offset_bytes
                .checked_add(extent.length_bytes)
                .filter(|end| *end <= size_bytes && extent.length_bytes > 0 && file_end.is_some())
                .ok_or(out_of_disk)?;
            if extent.disk_offset_bytes < end_bytes {
                return Err(ExtentsError::Overlap {
                    disk_offset_bytes: extent.disk_offset_bytes,
                });
            }
            end_bytes = disk_end;
        }
        Ok(Self {
            extents,
            size_bytes,
        })
    }

    /// Reads some of `memory` from where `offset_bytes` is: an extent or a gap.
    fn read_some(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<usize> {
        let next = self.extents.partition_point(|extent| {
            extent.disk_offset_bytes.saturating_add(extent.length_bytes) <= offset_bytes
        });
        let Some(extent) = self.extents.get(next) else {
            return Ok(fill_with_zeros(memory, usize::MAX));
        };
        match offset_bytes.checked_sub(extent.disk_offset_bytes) {
            Some(inside) => {
                let left = usize::try_from(extent.length_bytes - inside).unwrap_or(usize::MAX);
                let file_offset = extent.file_offset_bytes.saturating_add(inside);
                guest_io::read_at(extent.file.as_fd(), &take(memory, left), file_offset)
            }
            None => {
                let gap = extent.disk_offset_bytes - offset_bytes;
                Ok(fill_with_zeros(
                    memory,
                    usize::try_from(gap).unwrap_or(usize::MAX),
                ))
            }
        }
    }
}

/// Fills up to `limit` bytes of `memory` with zeros and returns how many it were.
fn fill_with_zeros(memory: &[DeviceSlice<'_>], limit: usize) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut filled = 0;
    for part in take(memory, limit) {
        let mut rest = part;
        while !rest.is_empty() {
            let length = rest.len().min(ZEROS.len());
            rest.copy_from(&ZEROS[..length]);
            filled += length;
            let Ok(next) = rest.offset(length) else {
                break;
            };
            rest = next;
        }
    }
    filled
}

impl Backend for Extents {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn read(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        transfer_all(memory, offset_bytes, |memory, offset| {
            self.read_some(memory, offset)
        })
    }

    fn write(&self, _memory: &[DeviceSlice<'_>], _offset_bytes: u64) -> io::Result<()> {
        Err(read_only())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _range: DiskRange) -> io::Result<()> {
        Err(read_only())
    }

    fn write_zeroes(&self, _range: DiskRange, _may_unmap: bool) -> io::Result<()> {
        Err(read_only())
    }
}
