//! FUSE as it is said: numbers and layouts of include/uapi/linux/fuse.h, version 7.38.
//!
//! Everything that is read was written by a guest. A [`Cursor`] goes over a copy of it and never past its end.

use std::time::Duration;

use rustix::io::Errno;

use super::tree::{Attributes, Entry};

/// The version that is spoken.
pub(super) const MAJOR: u32 = 7;
/// The minor version; the guest's kernel takes the lower of both.
pub(super) const MINOR: u32 = 38;
/// The lowest minor version that is understood: the first in which INIT has flags for large requests.
pub(super) const LOWEST_MINOR: u32 = 31;

/// Length of `struct fuse_in_header`.
pub(super) const IN_HEADER_BYTES: usize = 40;
/// Length of `struct fuse_out_header`.
pub(super) const OUT_HEADER_BYTES: usize = 16;
/// Length of `struct fuse_write_in`.
pub(super) const WRITE_IN_BYTES: usize = 40;
/// Length of `struct fuse_entry_out`.
pub(super) const ENTRY_OUT_BYTES: usize = 128;
/// Length of `struct fuse_dirent` before the name.
const DIRENT_BYTES: usize = 24;
/// Length of `struct fuse_open_out`.
pub(super) const OPEN_OUT_BYTES: usize = 16;
/// A mebibyte: the most data of one request.
pub(super) const MAX_DATA_BYTES: u32 = 1 << 20;
/// The longest name of a directory entry (limits.h, `NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

/// `enum fuse_opcode`.
pub(super) mod opcode {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const FORGET: u32 = 2;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const SETATTR: u32 = 4;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const SYMLINK: u32 = 6;
    pub(in super::super) const MKNOD: u32 = 8;
    pub(in super::super) const MKDIR: u32 = 9;
    pub(in super::super) const UNLINK: u32 = 10;
    pub(in super::super) const RMDIR: u32 = 11;
    pub(in super::super) const RENAME: u32 = 12;
    pub(in super::super) const LINK: u32 = 13;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const WRITE: u32 = 16;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const FSYNC: u32 = 20;
    pub(in super::super) const SETXATTR: u32 = 21;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const REMOVEXATTR: u32 = 24;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const INIT: u32 = 26;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const RELEASEDIR: u32 = 29;
    pub(in super::super) const FSYNCDIR: u32 = 30;
    pub(in super::super) const GETLK: u32 = 31;
    pub(in super::super) const SETLK: u32 = 32;
    pub(in super::super) const SETLKW: u32 = 33;
    pub(in super::super) const CREATE: u32 = 35;
    pub(in super::super) const INTERRUPT: u32 = 36;
    pub(in super::super) const DESTROY: u32 = 38;
    pub(in super::super) const BATCH_FORGET: u32 = 42;
    pub(in super::super) const FALLOCATE: u32 = 43;
    pub(in super::super) const READDIRPLUS: u32 = 44;
    pub(in super::super) const RENAME2: u32 = 45;
    pub(in super::super) const LSEEK: u32 = 46;
    pub(in super::super) const COPY_FILE_RANGE: u32 = 47;
    pub(in super::super) const SYNCFS: u32 = 50;
    pub(in super::super) const TMPFILE: u32 = 51;
}

/// What INIT agrees on: `FUSE_…` flags.
pub(super) mod feature {
    pub(in super::super) const ASYNC_READ: u32 = 1 << 0;
    pub(in super::super) const POSIX_LOCKS: u32 = 1 << 1;
    pub(in super::super) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(in super::super) const BIG_WRITES: u32 = 1 << 5;
    pub(in super::super) const DONT_MASK: u32 = 1 << 6;
    pub(in super::super) const FLOCK_LOCKS: u32 = 1 << 10;
    pub(in super::super) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(in super::super) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(in super::super) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(in super::super) const ASYNC_DIO: u32 = 1 << 15;
    pub(in super::super) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(in super::super) const POSIX_ACL: u32 = 1 << 20;
    pub(in super::super) const MAX_PAGES: u32 = 1 << 22;
    pub(in super::super) const CACHE_SYMLINKS: u32 = 1 << 23;
    pub(in super::super) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Which attributes SETATTR changes: `FATTR_…`.
pub(super) mod valid {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const HANDLE: u32 = 1 << 6;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
    pub(in super::super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_GETATTR_FH`: the attributes of an open file.
pub(super) const GETATTR_HANDLE: u32 = 1 << 0;
/// `FUSE_WRITE_CACHE`: what is written are pages of the guest's cache, to their own places, through whichever handle there is.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: the write takes the set-id bits away.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`: opening for truncation does.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_RELEASE_FLOCK_UNLOCK`: the last user of a file with a flock(2) is gone.
pub(super) const RELEASE_FLOCK_UNLOCK: u32 = 1 << 1;
/// `FUSE_LK_FLOCK`: the lock is one of flock(2).
pub(super) const LK_FLOCK: u32 = 1 << 0;
/// `FUSE_FSYNC_FDATASYNC`.
pub(super) const FSYNC_DATA: u32 = 1 << 0;

/// Goes over the bytes of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn skip(&mut self, count: usize) -> Result<(), Errno> {
        self.bytes(count).map(drop)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Takes a text that a NUL ends.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|byte| *byte == 0);
        let text = self.bytes(end.ok_or(Errno::INVAL)?)?;
        self.skip(1)?;
        Ok(text)
    }

    /// Takes the name of a directory's entry: one that leads to the entry and nowhere else.
    pub(super) fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.text()?;
        match name {
            b"" | b"." | b".." => Err(Errno::INVAL),
            name if name.len() > MAX_NAME_BYTES => Err(Errno::NAMETOOLONG),
            name if name.contains(&b'/') => Err(Errno::INVAL),
            name => Ok(name),
        }
    }
}

/// `struct fuse_in_header`: what every request begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Header {
    /// Reads it from the start of a request of `length` bytes.
    pub(super) fn read(bytes: &mut Cursor<'_>, length: u32) -> Result<Self, Errno> {
        let said = bytes.u32()?;
        let header = Self {
            opcode: bytes.u32()?,
            unique: bytes.u64()?,
            node: bytes.u64()?,
            uid: bytes.u32()?,
            gid: bytes.u32()?,
        };
        let _pid = bytes.u32()?;
        let _extensions = bytes.u32()?;
        match said == length {
            true => Ok(header),
            false => Err(Errno::INVAL),
        }
    }

    /// Whether no reply is due, not even that it failed.
    pub(super) fn is_silent(&self) -> bool {
        matches!(
            self.opcode,
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT
        )
    }
}

/// Reads what a request is known by, and whether it wants an answer, of one that cannot be read otherwise.
pub(super) fn unique_of(bytes: &[u8]) -> u64 {
    let mut cursor = Cursor::new(bytes);
    match (cursor.skip(8), cursor.u64()) {
        (Ok(()), Ok(unique)) => unique,
        _ => 0,
    }
}

/// Puts a reply together.
#[derive(Debug, Default)]
pub(super) struct Reply {
    bytes: Vec<u8>,
}

impl Reply {
    /// Starts anew, with the header's place.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(OUT_HEADER_BYTES, 0);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len().saturating_add(count), 0);
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// How long it is, without its header.
    pub(super) fn body_bytes(&self) -> usize {
        self.bytes.len().saturating_sub(OUT_HEADER_BYTES)
    }

    /// All of it, as a reply to `unique` whose body has `extra` bytes more than are here.
    pub(super) fn finish(&mut self, unique: u64, error: Option<Errno>, extra: usize) -> &[u8] {
        if error.is_some() {
            self.bytes.truncate(OUT_HEADER_BYTES);
        }
        let length = u32::try_from(self.bytes.len().saturating_add(extra)).unwrap_or(u32::MAX);
        let code = error.map_or(0, |error| error.raw_os_error().wrapping_neg());
        let header = [
            &length.to_le_bytes()[..],
            &code.to_le_bytes()[..],
            &unique.to_le_bytes()[..],
        ]
        .concat();
        for (place, byte) in self.bytes.iter_mut().zip(header) {
            *place = byte;
        }
        &self.bytes
    }

    /// `struct fuse_attr`.
    fn attributes(&mut self, attributes: &Attributes) {
        for word in [
            attributes.inode,
            attributes.size_bytes,
            attributes.blocks,
            attributes.accessed.0,
            attributes.modified.0,
            attributes.changed.0,
        ] {
            self.u64(word);
        }
        for word in [
            attributes.accessed.1,
            attributes.modified.1,
            attributes.changed.1,
            attributes.mode,
            attributes.links,
            attributes.uid,
            attributes.gid,
            attributes.device,
            attributes.block_bytes,
            0,
        ] {
            self.u32(word);
        }
    }

    /// `struct fuse_attr_out`.
    pub(super) fn attr_out(&mut self, attributes: &Attributes, lasts: Duration) {
        self.u64(lasts.as_secs());
        self.u32(lasts.subsec_nanos());
        self.u32(0);
        self.attributes(attributes);
    }

    /// `struct fuse_entry_out`.
    pub(super) fn entry_out(&mut self, entry: &Entry) {
        self.u64(entry.node);
        self.u64(0);
        self.u64(entry.lasts.as_secs());
        self.u64(entry.lasts.as_secs());
        self.u32(entry.lasts.subsec_nanos());
        self.u32(entry.lasts.subsec_nanos());
        self.attributes(&entry.attributes);
    }

    /// `struct fuse_open_out`.
    pub(super) fn open_out(&mut self, handle: u64, flags: u32) {
        self.u64(handle);
        self.u32(flags);
        self.u32(0);
    }

    /// `struct fuse_write_out`.
    pub(super) fn write_out(&mut self, written: u32) {
        self.u32(written);
        self.u32(0);
    }

    /// `struct fuse_dirent`, behind a `struct fuse_entry_out` if there is one.
    pub(super) fn dirent(&mut self, dirent: &Dirent<'_>) {
        self.u64(dirent.inode);
        self.u64(dirent.next_offset);
        self.u32(u32::try_from(dirent.name.len()).unwrap_or(u32::MAX));
        self.u32(dirent.kind);
        self.raw(dirent.name);
        self.zeros(self.bytes.len().next_multiple_of(8) - self.bytes.len());
    }
}

/// One entry of a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) inode: u64,
    /// Where the next one is.
    pub(super) next_offset: u64,
    /// `DT_…` (dirent.h).
    pub(super) kind: u32,
    pub(super) name: &'a [u8],
}

impl Dirent<'_> {
    /// How long it is as a `struct fuse_dirent`.
    pub(super) fn wire_bytes(&self) -> usize {
        DIRENT_BYTES
            .saturating_add(self.name.len())
            .next_multiple_of(8)
    }
}
