//! A mount namespace of the bench's own, so that nothing an engine mounts outlives it.
//!
//! It also cures hosts with the hybrid layout of cgroups (a version 2 hierarchy beside those of version 1): crun takes the
//! presence of `/sys/fs/cgroup/unified` for controllers that are not there, so the bench does without that mount.
//! The namespace is entered by executing this program once more, so that it costs the measured starts nothing.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{UnmountFlags, unmount};

/// Says to the second execution that it is the second.
const MARKER: &str = "VMM_BENCH_MOUNTS";
const ENTER: [&str; 3] = ["--mount", "--propagation", "private"];
const HIDE_HYBRID: &str = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";

/// Executes this program again in mounts of its own; returns if that has been done, or cannot be.
pub(super) fn enter_own() {
    if std::env::var_os(MARKER).is_some() || !rustix::process::geteuid().is_root() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    // What cannot be entered is found out by a child: there is no way back from an execution.
    let tried = Command::new("unshare")
        .args(ENTER)
        .arg("true")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        tracing::warn!("unshare(1) does not work: what the engines mount may stay");
        return;
    }
    let error = Command::new("unshare")
        .args(ENTER)
        .args(["sh", "-c", HIDE_HYBRID, "sh"])
        .arg(program)
        .args(std::env::args_os().skip(1))
        .env(MARKER, "own")
        .exec();
    tracing::warn!(%error, "unshare(1) cannot be executed");
}

/// Prepares a command to be started without knowing of this.
pub(super) fn forget(command: &mut Command) {
    command.env_remove(MARKER);
}

/// Unmounts everything below a directory, the last mounted first.
pub(super) fn clear(directory: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in points_below(&table, directory).into_iter().rev() {
        if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
            tracing::warn!(%error, path = %point.display(), "a mount stays");
        }
    }
}

/// The fifth field of proc_pid_mountinfo(5), where it lies below a directory of ours. Such paths hold no blanks or
/// backslashes unless an image brings them, and then the directory stays.
fn points_below(table: &str, directory: &Path) -> Vec<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .filter(|point| point.starts_with(directory))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_elsewhere_are_left_alone() {
        let table = "20 1 0:5 / / rw - ext4 /dev/sda rw\n\
                     21 20 0:6 / /tmp/b/overlay rw - tmpfs none rw\n\
                     22 20 0:6 / /tmp/bc rw - tmpfs none rw\n";
        assert_eq!(
            points_below(table, Path::new("/tmp/b")),
            [PathBuf::from("/tmp/b/overlay")]
        );
    }
}
