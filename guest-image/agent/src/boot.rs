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

/// Lets an idle machine sleep: what the kernel looks after every second or half-second is of no use where nobody else is
/// (Documentation/admin-guide/sysctl/vm.rst). A host with a thousand idle machines feels each of these wake-ups.
pub(crate) fn quieten_kernel() {
    let settings = [
        // Memory is still compacted when a large page is asked for; no longer ahead of that.
        ("/proc/sys/vm/compaction_proactiveness", "0"),
        // Seconds between two updates of counters that nobody compares.
        ("/proc/sys/vm/stat_interval", "120"),
    ];
    for (path, value) in settings {
        // A kernel without it has nothing to be quietened.
        let _ = std::fs::write(path, value);
    }
}
