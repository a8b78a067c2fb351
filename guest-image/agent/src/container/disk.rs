//! ext4 file systems on disks of the host's files.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::{Errno, Result};
use rustix::mount::MountFlags;

use crate::sys;

/// The unit in which the disk's file system counts.
const BLOCK_BYTES: u64 = 4096;

/// What a file system on a disk is mounted with (Documentation/admin-guide/ext4.rst): one that is damaged is not written to any
/// further; what is deleted is given back to the host; no thread clears inode tables in the background, for a sparse disk reads as
/// zeros.
const OPTIONS: &CStr = c"errors=remount-ro,discard,noinit_itable";

/// Mounts the file system on a disk.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(super) fn mount(device: &str, place: &str) -> Result<()> {
    mount_ext4(device, place, MountFlags::empty(), OPTIONS)
}

/// Mounts the file system on a disk that is only read, which may also be one that can only be read. Others may read it, too.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(super) fn mount_read_only(device: &str, place: &str) -> Result<()> {
    match mount_ext4(device, place, MountFlags::RDONLY, c"") {
        Err(Errno::INVAL) => rustix::mount::mount(device, place, "erofs", MountFlags::RDONLY, c""),
        result => result,
    }
}

/// Where the machine died while the file system grew, the first mount only takes the new size out of the journal (our patch of
/// fs/ext4/super.c), and the second one is right.
fn mount_ext4(device: &str, place: &str, flags: MountFlags, options: &CStr) -> Result<()> {
    let mount = || rustix::mount::mount(device, place, "ext4", flags, options);
    match mount() {
        Err(Errno::AGAIN) => mount(),
        result => result,
    }
}

/// Makes a mounted file system as large as its disk, and says how large that is. One that is damaged is left as it is.
///
/// # Errors
///
/// The kernel's.
pub(super) fn grow(device: &str, place: &str) -> Result<u64> {
    let open = |path: &str| -> Result<OwnedFd> {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    };
    let disk_bytes = rustix::fs::seek(open(device)?, SeekFrom::End(0))?;
    match sys::resize_file_system(&open(place)?, disk_bytes / BLOCK_BYTES) {
        // ext4_resize_begin in fs/ext4/resize.c: it has errors, or was remounted read-only for them.
        Err(Errno::PERM | Errno::ROFS) => Ok(disk_bytes),
        result => result.map(|()| disk_bytes),
    }
}
