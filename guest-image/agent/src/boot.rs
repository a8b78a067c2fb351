//! What PID 1 does before it can serve.

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use thiserror::Error;

use crate::container::CGROUP_MOUNT_POINT;

/// Why the guest could not be made ready.
#[derive(Debug, Error)]
#[error("mounting {path}")]
pub(crate) struct MountError {
    path: &'static str,
    #[source]
    source: Errno,
}

/// Mounts what the agent itself uses. `/dev` is there: the kernel mounts it (`CONFIG_DEVTMPFS_MOUNT`).
///
/// # Errors
///
/// If the kernel refuses a mount.
pub(crate) fn mount_filesystems() -> Result<(), MountError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let table = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("cgroup2", CGROUP_MOUNT_POINT),
    ];
    for (kind, path) in table {
        mount(kind, path, kind, flags, None).map_err(|source| MountError { path, source })?;
    }
    Ok(())
}
