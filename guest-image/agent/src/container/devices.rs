//! Device nodes and links of `/dev`: runtime-spec `config-linux.md`, "Devices", "Default Devices" and
//! `runtime-linux.md`, "Dev symbolic links".

use protocol::{FailureKind, StartFailure};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, makedev, mknodat, symlink};
use rustix::io::Errno;

use super::mounts::make_directories;
use crate::spec;
use crate::step::{Step as _, failure, invalid, unsupported};

/// Path, major and minor number: `Documentation/admin-guide/devices.txt`.
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const DEFAULT_LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A device that the config asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct DeviceNode {
    path: String,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl DeviceNode {
    /// Reads a device of the config.
    ///
    /// # Errors
    ///
    /// If its type is unknown or its path not absolute.
    pub(crate) fn new(device: &spec::Device) -> Result<Self, StartFailure> {
        let kind = match device.kind.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            other => {
                return Err(unsupported(
                    "linux.devices.type",
                    format!("type {other:?} is not supported"),
                ));
            }
        };
        if !device.path.starts_with('/') {
            return Err(invalid(
                "linux.devices.path",
                format!("{:?} is not an absolute path", device.path),
            ));
        }
        let spec::Device {
            major,
            minor,
            file_mode,
            uid,
            gid,
            ..
        } = *device;
        Ok(Self {
            path: device.path.clone(),
            kind,
            major,
            minor,
            mode: file_mode.unwrap_or(0o666) & 0o7777,
            uid,
            gid,
        })
    }

    /// Makes the node. One that is there already, such as a default, takes the permissions and the owner.
    ///
    /// # Errors
    ///
    /// The kernel's, see mknod(2), or if another file is in the way.
    pub(crate) fn make(&self) -> Result<(), StartFailure> {
        let step = || format!("making device {}", self.path);
        let Self {
            path,
            kind,
            major,
            minor,
            mode,
            uid,
            gid,
        } = self;
        let make = || {
            mknodat(
                CWD,
                path,
                *kind,
                Mode::from_raw_mode(*mode),
                makedev(*major, *minor),
            )
        };
        match make() {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::lstat(path).step(step)?;
                let is_device = *kind != FileType::Fifo;
                if FileType::from_raw_mode(stat.st_mode) != *kind
                    || (is_device && stat.st_rdev != makedev(*major, *minor))
                {
                    return Err(failure(
                        FailureKind::Failed,
                        step(),
                        "there is another file of that name",
                    ));
                }
                rustix::fs::chmod(path, Mode::from_raw_mode(*mode)).step(step)?;
                rustix::fs::chown(path, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))
                    .step(step)?;
            }
            Err(Errno::NOENT) => {
                make_directories(path.rsplit_once('/').map_or("/", |(above, _)| above))
                    .step(step)?;
                make().step(step)?;
            }
            result => result.step(step)?,
        }
        if (*uid, *gid) != (0, 0) {
            rustix::fs::chown(path, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)))
                .step(step)?;
        }
        Ok(())
    }
}

/// Makes the nodes and links that every container has. The umask must be 0.
///
/// # Errors
///
/// The kernel's, see mknod(2) and symlink(2).
pub(crate) fn make_defaults() -> Result<(), StartFailure> {
    let mode = Mode::from_raw_mode(0o666);
    for (path, major, minor) in DEFAULT_NODES {
        unless_there(mknodat(
            CWD,
            path,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        ))
        .step(|| format!("making device {path}"))?;
    }
    for (target, path) in DEFAULT_LINKS {
        unless_there(symlink(target, path)).step(|| format!("making link {path}"))?;
    }
    Ok(())
}

fn unless_there(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}
