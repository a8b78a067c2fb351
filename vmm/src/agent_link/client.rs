//! Writing to a descriptor of the client's without ever waiting for it, and without changing it for others.
//!
//! `O_NONBLOCK` belongs to the open file, which the client's shell shares, so it is never set. Instead each kind of file
//! gets its own way.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

/// What a pipe that polls as writable surely takes: `PIPE_BUF`, pipe(7).
const ATOMIC_BYTES: usize = 4096;

/// Where output goes.
#[derive(Debug)]
pub(super) enum ClientSink<'fd> {
    /// A pipe or terminal, opened anew so that its flags are our own.
    Reopened(OwnedFd),
    /// A socket, which has a flag for each call.
    Socket(BorrowedFd<'fd>),
    /// A pipe or terminal that cannot be opened anew: short writes, each after a poll.
    Shared(BorrowedFd<'fd>),
    /// A file, which never makes anybody wait for long.
    File(BorrowedFd<'fd>),
}

impl<'fd> ClientSink<'fd> {
    pub(super) fn new(fd: BorrowedFd<'fd>) -> Self {
        match rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Socket) => Self::Socket(fd),
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                reopen(fd).map_or(Self::Shared(fd), Self::Reopened)
            }
            _ => Self::File(fd),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Reopened(fd) => fd.as_fd(),
            Self::Socket(fd) | Self::Shared(fd) | Self::File(fd) => *fd,
        }
    }

    /// Writes some of the bytes. After [`Errno::AGAIN`] the descriptor is to be polled first.
    pub(super) fn write(&self, bytes: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Reopened(fd) => rustix::io::write(fd, bytes),
            Self::Socket(fd) => {
                rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
            }
            Self::Shared(fd) => rustix::io::write(fd, bytes.get(..ATOMIC_BYTES).unwrap_or(bytes)),
            Self::File(fd) => rustix::io::write(fd, bytes),
        }
    }

    /// Whether one write after a poll is all that is safe.
    pub(super) fn needs_poll_before_each_write(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}

fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd as _;
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(
        format!("/proc/self/fd/{}", fd.as_raw_fd()),
        flags,
        Mode::empty(),
    )
}
