//! The system calls of the server that no library of ours wraps.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use vm_memory::VolatileSlice;

/// Fills all of `memory` from `offset` of a file; returns how much there was.
pub(super) fn read_at(
    file: impl AsFd,
    memory: &VolatileSlice<'_>,
    offset: u64,
) -> Result<usize, Errno> {
    transfer(memory.len(), offset, |done, offset| {
        let rest = memory.offset(done).map_err(|_| Errno::INVAL)?;
        let guard = rest.ptr_guard_mut();
        let file = file.as_fd().as_raw_fd();
        // SAFETY: the guard keeps `rest.len()` bytes mapped, which belong to nobody who takes them for anything but bytes.
        let count = unsafe { libc::pread64(file, guard.as_ptr().cast(), rest.len(), offset) };
        returned(count)
    })
}

/// Writes all of `memory` to `offset` of a file; returns how much was written.
pub(super) fn write_at(
    file: impl AsFd,
    memory: &VolatileSlice<'_>,
    offset: u64,
) -> Result<usize, Errno> {
    transfer(memory.len(), offset, |done, offset| {
        let rest = memory.offset(done).map_err(|_| Errno::INVAL)?;
        let guard = rest.ptr_guard();
        let file = file.as_fd().as_raw_fd();
        // SAFETY: the guard keeps `rest.len()` bytes mapped.
        let count = unsafe { libc::pwrite64(file, guard.as_ptr().cast(), rest.len(), offset) };
        returned(count)
    })
}

/// Writes all of `memory` to where a file ends at that moment; returns how much was written.
pub(super) fn append(file: impl AsFd, memory: &VolatileSlice<'_>) -> Result<usize, Errno> {
    transfer(memory.len(), 0, |done, offset| {
        let rest = memory.offset(done).map_err(|_| Errno::INVAL)?;
        let guard = rest.ptr_guard();
        let file = file.as_fd().as_raw_fd();
        let piece = libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: the guard keeps `rest.len()` bytes mapped, which are read.
        let count = unsafe { libc::pwritev2(file, &raw const piece, 1, offset, libc::RWF_APPEND) };
        returned(count)
    })
}

/// Moves `length` bytes by `step`, which moves some from a place on; an error counts if nothing was moved before.
fn transfer(
    length: usize,
    offset: u64,
    mut step: impl FnMut(usize, i64) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < length {
        let place = u64::try_from(done)
            .ok()
            .and_then(|done| offset.checked_add(done))
            .and_then(|place| i64::try_from(place).ok())
            .ok_or(Errno::INVAL)?;
        match step(done, place) {
            Ok(0) => break,
            Ok(count) => done = done.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn returned(count: isize) -> Result<usize, Errno> {
    usize::try_from(count).map_err(|_| last_error())
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Reads entries of a directory as getdents64(2) has them; returns how many bytes.
pub(super) fn read_entries(directory: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let directory = directory.as_fd().as_raw_fd();
    // SAFETY: the kernel writes at most `buffer.len()` bytes to the buffer.
    let count = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(count).map_err(|_| last_error())
}

/// What a lock of fcntl(2) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockCommand {
    /// Sets it, if nobody is in the way.
    Set,
    /// Says who is in the way.
    Test,
}

/// A lock of fcntl(2) on a range: `F_RDLCK`, `F_WRLCK` or `F_UNLCK`; `length` 0 means to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RangeLock {
    pub(super) kind: i16,
    pub(super) start: i64,
    pub(super) length: i64,
}

/// Sets or tests a lock that belongs to the open file description (fcntl(2), "Open file description locks").
pub(super) fn lock_range(
    file: impl AsFd,
    command: LockCommand,
    lock: RangeLock,
) -> Result<RangeLock, Errno> {
    let mut range = libc::flock {
        l_type: lock.kind,
        l_whence: 0,
        l_start: lock.start,
        l_len: lock.length,
        l_pid: 0,
    };
    let command = match command {
        LockCommand::Set => libc::F_OFD_SETLK,
        LockCommand::Test => libc::F_OFD_GETLK,
    };
    let file = file.as_fd().as_raw_fd();
    // SAFETY: the kernel reads the structure, and writes to it, during the call.
    match unsafe { libc::fcntl(file, command, &raw mut range) } {
        0 => Ok(RangeLock {
            kind: range.l_type,
            start: range.l_start,
            length: range.l_len,
        }),
        _ => Err(last_error()),
    }
}

/// What this thread makes in file systems belongs to somebody else until this is dropped (setfsuid(2)).
#[derive(Debug)]
pub(super) struct Acting {
    own_uid: u32,
    own_gid: u32,
}

impl Acting {
    /// Begins it.
    ///
    /// # Errors
    ///
    /// `EPERM` where the thread may not, or the host has no such user or group here.
    pub(super) fn begin(uid: u32, gid: u32) -> Result<Self, Errno> {
        let acting = Self {
            own_gid: set_filesystem_gid(gid),
            own_uid: set_filesystem_uid(uid),
        };
        // No number of anybody: nothing is set, and what was set is said.
        const NOBODY_AT_ALL: u32 = u32::MAX;
        let is_set =
            set_filesystem_uid(NOBODY_AT_ALL) == uid && set_filesystem_gid(NOBODY_AT_ALL) == gid;
        if is_set { Ok(acting) } else { Err(Errno::PERM) }
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        set_filesystem_uid(self.own_uid);
        set_filesystem_gid(self.own_gid);
    }
}

/// Returns the one before.
fn set_filesystem_uid(uid: u32) -> u32 {
    // SAFETY: a number of this thread alone is set.
    unsafe { libc::setfsuid(uid) }.cast_unsigned()
}

/// Returns the one before.
fn set_filesystem_gid(gid: u32) -> u32 {
    // SAFETY: a number of this thread alone is set.
    unsafe { libc::setfsgid(gid) }.cast_unsigned()
}

/// Gives this thread a working directory, a root and a umask of its own.
///
/// # Errors
///
/// As unshare(2) says.
pub(super) fn own_filesystem_context() -> io::Result<()> {
    // SAFETY: nothing but the context of paths is taken apart, and no descriptor.
    match unsafe { libc::unshare(libc::CLONE_FS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this process a mount namespace of its own.
///
/// # Errors
///
/// As unshare(2) says.
pub(super) fn own_mounts() -> io::Result<()> {
    // SAFETY: mounts are shared with nobody from here on; no memory and no descriptor is touched.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
