//! Where the writes to a container's root go: a file system that is mounted for the upper layer, in memory or on a disk of the
//! machine's own that outlives it.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use protocol::{StartFailure, Upper};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::step::Step as _;
use crate::sys;

/// The unit in which the disk's file system counts.
const BLOCK_BYTES: u64 = 4096;

/// What the file system on a disk is mounted with (Documentation/admin-guide/ext4.rst): one that is damaged is not written to any
/// further; what is deleted is given back to the host; no thread clears inode tables in the background, for a sparse disk reads as
/// zeros.
const DISK_OPTIONS: &CStr = c"errors=remount-ro,discard,noinit_itable";

/// Mounts the upper layer's file system at `place`.
///
/// # Errors
///
/// If it cannot be mounted, or cannot be made as large as its disk.
pub(super) fn mount(upper: &Upper, place: &str) -> Result<(), StartFailure> {
    match upper {
        Upper::Tmpfs { size_bytes } => mount_tmpfs(*size_bytes, place),
        Upper::Disk { source } => mount_disk(source, place),
    }
}

fn mount_tmpfs(size_bytes: u64, place: &str) -> Result<(), StartFailure> {
    // nr_inodes=0 leaves the size as the only limit.
    let data = format!("mode=755,nr_inodes=0,size={size_bytes}");
    let data = CString::new(data).step(|| "limiting the writable layer".to_owned())?;
    rustix::mount::mount(
        "tmpfs",
        place,
        "tmpfs",
        MountFlags::empty(),
        data.as_c_str(),
    )
    .step(|| "mounting the writable layer".to_owned())
}

fn mount_disk(source: &str, place: &str) -> Result<(), StartFailure> {
    rustix::mount::mount(source, place, "ext4", MountFlags::empty(), DISK_OPTIONS)
        .step(|| format!("mounting the writable layer from {source}"))?;
    grow(source, place).step(|| format!("growing the writable layer on {source}"))
}

/// Makes the file system as large as its disk. One that is damaged is left as it is.
fn grow(source: &str, place: &str) -> rustix::io::Result<()> {
    let open = |path: &str| -> rustix::io::Result<OwnedFd> {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
    };
    let disk_bytes = rustix::fs::seek(open(source)?, SeekFrom::End(0))?;
    match sys::resize_file_system(&open(place)?, disk_bytes / BLOCK_BYTES) {
        // ext4_resize_begin in fs/ext4/resize.c: it has errors, or was remounted read-only for them.
        Err(Errno::PERM | Errno::ROFS) => Ok(()),
        result => result,
    }
}
