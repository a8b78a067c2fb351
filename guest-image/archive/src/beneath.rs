//! Opening what is below a directory and nothing else: openat2(2).

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest path that Linux takes: `PATH_MAX` without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;

/// How often a kernel may give up on a path that others change meanwhile.
const TRIES: u32 = 16;

/// Whether symbolic links on the way are followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Follow {
    /// They are not, and the path does not leave the directory.
    Nothing,
    /// They are, wherever they lead within the caller's root. Those of `/proc` that lead out of it are not.
    WithinRoot,
}

/// Opens what is at `path` below `directory`; an empty path is the directory itself.
///
/// # Errors
///
/// The kernel's, see openat2(2): `ELOOP` for a symbolic link that is not followed, `EXDEV` for a path that leads out.
pub fn open_beneath(
    directory: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    follow: Follow,
) -> rustix::io::Result<OwnedFd> {
    let resolve = match follow {
        Follow::Nothing => {
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
        }
        Follow::WithinRoot => ResolveFlags::NO_MAGICLINKS,
    };
    let path = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let open = || rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve);
    (1..TRIES)
        .map(|_| open())
        .find(|opened| !matches!(opened, Err(Errno::AGAIN | Errno::INTR)))
        .unwrap_or_else(open)
}
