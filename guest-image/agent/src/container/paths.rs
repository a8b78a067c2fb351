//! Paths that are hidden or cannot be written: runtime-spec `config-linux.md`, "Masked Paths" and "Readonly Paths", and
//! `config.md`, "Root", `readonly`.

use protocol::StartFailure;
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::step::Step as _;

/// Makes the container's root read-only.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(crate) fn make_root_read_only() -> Result<(), StartFailure> {
    rustix::mount::mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, c"")
        .step(|| "making the root read-only".to_owned())
}

/// Hides a path, if it is there: a file behind `/dev/null`, a directory behind an empty read-only one.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(crate) fn mask(path: &str) -> Result<(), StartFailure> {
    match rustix::mount::mount_bind("/dev/null", path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR) => rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            MountFlags::RDONLY,
            c"size=0,nr_inodes=1,mode=755",
        )
        .step(|| format!("masking {path}")),
        Err(error) => Err(error).step(|| format!("masking {path}")),
    }
}

/// Makes a path read-only, if it is there.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(crate) fn make_read_only(path: &str) -> Result<(), StartFailure> {
    let step = || format!("making {path} read-only");
    match rustix::mount::mount_bind_recursive(path, path) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        result => result.step(step)?,
    }
    let flags = MountFlags::BIND | MountFlags::RDONLY | present_flags(path).step(step)?;
    rustix::mount::mount_remount(path, flags, c"").step(step)
}

/// The flags that a remount, which sets all of them anew, must not take away from a mount.
pub(super) fn present_flags(path: &str) -> rustix::io::Result<MountFlags> {
    let all = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Nothing below /proc could make use of their absence, and asking costs a system call.
    if path.starts_with("/proc/") {
        return Ok(all);
    }
    let present = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::empty();
    flags.set(
        MountFlags::NOSUID,
        present.contains(StatVfsMountFlags::NOSUID),
    );
    flags.set(
        MountFlags::NODEV,
        present.contains(StatVfsMountFlags::NODEV),
    );
    flags.set(
        MountFlags::NOEXEC,
        present.contains(StatVfsMountFlags::NOEXEC),
    );
    Ok(flags)
}
