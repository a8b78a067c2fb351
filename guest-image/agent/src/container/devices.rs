//! Device nodes and links of `/dev`: runtime-spec `config-linux.md`, "Devices", "Default Devices" and
//! `runtime-linux.md`, "Dev symbolic links".

use std::os::fd::OwnedFd;

use protocol::{FailureKind, StartFailure};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, makedev, mknodat, symlink};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::id_mappings::IdMappings;
use super::mounts::{make_directories, make_file};
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

/// A node that was made outside of the container, by one who may.
#[derive(Debug)]
pub(super) struct ReadyDevice<'plan> {
    path: &'plan str,
    is_default: bool,
    /// What is made in place, or the detached mount of the node.
    node: Result<OwnedFd, &'plan DeviceNode>,
}

/// Where nodes are made ahead: in the root's upper file system, beside the root.
const AHEAD: &str = "/mnt/devices";

/// Makes the nodes that every container has and those of the config, to be bound where they belong: no user namespace lets its root
/// make devices. The umask must be 0.
///
/// # Errors
///
/// The kernel's, see mknod(2).
pub(super) fn make_ahead<'plan>(
    devices: &'plan [DeviceNode],
    mappings: Option<&IdMappings>,
) -> Result<Vec<ReadyDevice<'plan>>, StartFailure> {
    rustix::fs::mkdir(AHEAD, Mode::from_raw_mode(0o755)).step(|| format!("making {AHEAD}"))?;
    let defaults = DEFAULT_NODES
        .iter()
        .filter(|(path, ..)| !devices.iter().any(|device| device.path == *path))
        .enumerate()
        .map(|(number, &(path, major, minor))| {
            let owner = mappings.map_or((0, 0), |mappings| mappings.outside(0, 0));
            let character = FileType::CharacterDevice;
            let node = make_detached(number, path, character, (major, minor), 0o666, owner)?;
            Ok(ReadyDevice {
                path,
                is_default: true,
                node: Ok(node),
            })
        });
    let configured = devices.iter().enumerate().map(|(index, device)| {
        let number = DEFAULT_NODES.len() + index;
        let owner = mappings.map_or((device.uid, device.gid), |mappings| {
            mappings.outside(device.uid, device.gid)
        });
        let numbers = (device.major, device.minor);
        let node = match device.kind {
            // These anybody may make.
            FileType::Fifo => Err(device),
            kind => Ok(make_detached(
                number,
                &device.path,
                kind,
                numbers,
                device.mode,
                owner,
            )?),
        };
        Ok(ReadyDevice {
            path: &device.path,
            is_default: false,
            node,
        })
    });
    defaults.chain(configured).collect()
}

fn make_detached(
    number: usize,
    name: &str,
    kind: FileType,
    (major, minor): (u32, u32),
    mode: u32,
    (uid, gid): (u32, u32),
) -> Result<OwnedFd, StartFailure> {
    let step = || format!("making device {name}");
    // A name of its own, which stays: what has none cannot be mounted.
    let path = format!("{AHEAD}/{number}");
    mknodat(
        CWD,
        &path,
        kind,
        Mode::from_raw_mode(mode),
        makedev(major, minor),
    )
    .step(step)?;
    rustix::fs::chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).step(step)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let node = rustix::mount::open_tree(CWD, &path, flags).step(step)?;
    Ok(node)
}

impl ReadyDevice<'_> {
    /// Whether the config does not name it.
    pub(super) fn is_default(&self) -> bool {
        self.is_default
    }

    /// Puts it in its place.
    ///
    /// # Errors
    ///
    /// The kernel's, see move_mount(2).
    pub(super) fn place(&self) -> Result<(), StartFailure> {
        let step = || format!("placing device {}", self.path);
        match &self.node {
            Err(device) => device.make(),
            Ok(node) => {
                make_file(self.path).step(step)?;
                let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
                rustix::mount::move_mount(node, "", CWD, self.path, flags).step(step)
            }
        }
    }
}

/// Makes the nodes that every container has. The umask must be 0.
///
/// # Errors
///
/// The kernel's, see mknod(2).
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
    Ok(())
}

/// Makes the links that every container has.
///
/// # Errors
///
/// The kernel's, see symlink(2).
pub(crate) fn make_links() -> Result<(), StartFailure> {
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
