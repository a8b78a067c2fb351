//! `tmpcopyup`: a new file system begins with what it hides (runtime-spec `config.md`, "Linux mount options"). So does a volume that is
//! bound with this option and has nothing in it.
//!
//! What is copied comes from an image, so nothing of it is trusted: no link is followed, and the depth takes no stack.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags, makedev,
};
use rustix::io::Errno;

/// The most that is copied at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The most bytes that the kernel lets the names of extended attributes have, or one's value: xattr(7).
const MAX_XATTR_BYTES: usize = 64 << 10;

/// Opens a directory, to copy from it or to it.
pub(super) fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Stands at a directory while it is filled.
const BEING_FILLED: &CStr = c"trusted.vmm.filling";

/// Makes a directory with nothing in it what another one is: entries, owner, permissions. One that cannot be written to stays empty, one
/// that was not filled to the end is filled anew. The umask must be 0.
///
/// # Errors
///
/// The kernel's, for example when the target is full.
pub(super) fn fill_if_empty(from: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    let to = open(path)?;
    let is_begun = rustix::fs::fgetxattr(&to, BEING_FILLED, &mut [0; 1]).is_ok();
    if is_begun {
        clear(path)?;
    } else if !is_empty(&to)? {
        return Ok(());
    }
    let is_marked = match rustix::fs::fsetxattr(&to, BEING_FILLED, b"", XattrFlags::empty()) {
        Ok(()) => true,
        Err(Errno::ROFS) => return Ok(()),
        // Not a container's with users of its own.
        Err(Errno::PERM | Errno::OPNOTSUPP) => false,
        Err(error) => return Err(error),
    };
    copy(from, &to)?;
    take_over(from.as_fd(), to.as_fd(), &rustix::fs::fstat(from)?)?;
    rustix::fs::syncfs(&to)?;
    if !is_marked {
        return Ok(());
    }
    rustix::fs::fremovexattr(&to, BEING_FILLED)?;
    // What the workload writes from now on must not be taken for what was copied.
    rustix::fs::fsync(&to)
}

fn is_empty(directory: &OwnedFd) -> rustix::io::Result<bool> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes all that is in a directory.
fn clear(path: &str) -> rustix::io::Result<()> {
    let remove = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    };
    remove().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Copies all that is in one directory into another one. The umask must be 0.
///
/// # Errors
///
/// The kernel's, for example when the target is full.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    // Paths below both, of directories whose entries are still to be copied.
    let mut left = vec![c".".to_owned()];
    while let Some(path) = left.pop() {
        let source = below(from.as_fd(), &path)?;
        let target = below(to.as_fd(), &path)?;
        for entry in Dir::read_from(&source)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if copy_entry(source.as_fd(), target.as_fd(), name)? {
                let path = [path.as_bytes(), b"/", name.to_bytes()].concat();
                left.push(CString::new(path).map_err(|_| Errno::INVAL)?);
            }
        }
    }
    Ok(())
}

/// Opens a directory by a path that nothing may lead away from.
fn below(root: BorrowedFd<'_>, path: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

/// Copies one entry, and says whether it is a directory, of which the entries are still to be copied.
fn copy_entry(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    name: &CStr,
) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    match kind {
        FileType::Directory => {
            rustix::fs::mkdirat(target, name, mode)?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
            let to = rustix::fs::openat(target, name, flags, Mode::empty())?;
            take_over(from.as_fd(), to.as_fd(), &stat)?;
        }
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let from = rustix::fs::openat(source, name, flags, Mode::empty())?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let to = rustix::fs::openat(target, name, flags, mode)?;
            let mut chunk = vec![0; CHUNK_BYTES];
            loop {
                let count = rustix::io::read(&from, &mut chunk)?;
                let mut rest = chunk.get(..count).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
                while !rest.is_empty() {
                    let written = rustix::io::write(&to, rest)?;
                    rest = rest.get(written..).unwrap_or_default();
                }
            }
            take_over(from.as_fd(), to.as_fd(), &stat)?;
        }
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(source, name, Vec::new())?;
            rustix::fs::symlinkat(link, target, name)?;
            own(target, name, &stat)?;
        }
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
            let (major, minor) = (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            );
            rustix::fs::mknodat(target, name, kind, mode, makedev(major, minor))?;
            own(target, name, &stat)?;
        }
        // A socket means nothing without whom it belonged to.
        _ => (),
    }
    Ok(kind == FileType::Directory)
}

fn own(directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)
}

/// Gives an open file owner, permissions, extended attributes and times of another.
fn take_over(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    // After the owner, whose change takes set-user-ID away.
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    copy_xattrs(from, to)?;
    let time = |seconds: i64, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    rustix::fs::futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        Ok(length) => length,
        Err(error) => return Err(error),
    };
    let names = names.get(..length).unwrap_or_default();
    let mut value = vec![0; MAX_XATTR_BYTES];
    for name in names.split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        let value = value.get(..length).unwrap_or_default();
        match rustix::fs::fsetxattr(to, name, value, XattrFlags::empty()) {
            // What the target has no room for in its format is left out, as cp(1) does.
            Ok(()) | Err(Errno::OPNOTSUPP) => (),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
