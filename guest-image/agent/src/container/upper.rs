//! Where the writes to a container's root go: a file system that is mounted for the upper layer, in memory or on a disk of the
//! machine's own that outlives it.

use std::ffi::CString;

use protocol::{StartFailure, Upper};
use rustix::mount::MountFlags;

use super::disk;
use crate::step::Step as _;

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
    disk::mount(source, place).step(|| format!("mounting the writable layer from {source}"))?;
    disk::grow(source, place)
        .map(drop)
        .step(|| format!("growing the writable layer on {source}"))
}
