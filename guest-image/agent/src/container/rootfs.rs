//! The container's root: the image's read-only tree below, a layer of the container's own above (`upper.rs`), joined by overlayfs
//! (`Documentation/filesystems/overlayfs.rst`).

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use protocol::{Filesystem, RootSource, StartFailure};
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::channel::Layers;
use super::upper;
use crate::step::{Step as _, invalid};
use crate::sys::{self, MountAttributes};

/// Where the upper layer's filesystem is mounted in the child's mount namespace, an empty directory of the agent's image.
/// Nobody else sees it, so one name does for all containers.
const UPPER: &str = "/mnt";
const IMAGE: &str = "/mnt/image";
const ROOT: &str = "/mnt/root";

/// Permissions of the root directory when the image says nothing else.
const ROOT_MODE: u32 = 0o755;

/// Mounts the root in the child's mount namespace and goes there, without making it the root yet. With a user namespace, the image's
/// ids are those of its users. Says what it is made of.
///
/// # Errors
///
/// If something cannot be mounted.
pub(crate) fn mount(
    source: &RootSource,
    users: Option<BorrowedFd<'_>>,
) -> Result<Layers, StartFailure> {
    upper::mount(&source.upper, UPPER)?;
    for directory in ["/mnt/work", ROOT] {
        make_directory(directory)?;
    }
    let mut lower = mount_image(source)?;
    if let Some(users) = users {
        map_ids(lower, users)?;
        lower = IMAGE;
    }
    // What the workload made of it before stays.
    if make_directory("/mnt/upper")? {
        take_over_root_directory(lower)?;
    }
    let data = format!("lowerdir={lower},upperdir=/mnt/upper,workdir=/mnt/work");
    let data = CString::new(data).step(|| "naming the layers".to_owned())?;
    rustix::mount::mount(
        "overlay",
        ROOT,
        "overlay",
        MountFlags::empty(),
        data.as_c_str(),
    )
    .step(|| "mounting the root".to_owned())?;
    rustix::process::chdir(ROOT).step(|| "going to the root".to_owned())?;
    open_layers(lower).step(|| "opening the layers".to_owned())
}

fn open_layers(lower: &str) -> rustix::io::Result<Layers> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(Layers {
        upper: open("/mnt/upper")?,
        lower: open(lower)?,
        root: rustix::mount::open_tree(CWD, ROOT, flags)?,
    })
}

/// Makes a directory beside the layers, and says whether it was not there before.
fn make_directory(path: &str) -> Result<bool, StartFailure> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(ROOT_MODE)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(error).step(|| format!("making {path}")),
    }
}

/// Mounts the image and says where it is.
fn mount_image(source: &RootSource) -> Result<&str, StartFailure> {
    let data = match source.filesystem {
        Filesystem::Directory => {
            // These would end the path in the overlay's list of options.
            let is_plain =
                source.source.starts_with('/') && !source.source.contains([',', ':', '\\']);
            return if is_plain {
                Ok(&source.source)
            } else {
                Err(invalid("root", "not a plain absolute path"))
            };
        }
        Filesystem::ErofsDax => c"dax=always",
        Filesystem::Erofs => c"",
    };
    make_directory(IMAGE)?;
    rustix::mount::mount(
        source.source.as_str(),
        IMAGE,
        "erofs",
        MountFlags::RDONLY,
        data,
    )
    .step(|| format!("mounting the image from {}", source.source))?;
    Ok(IMAGE)
}

/// Mounts a directory once more at the image's place, with other ids.
fn map_ids(directory: &str, users: BorrowedFd<'_>) -> Result<(), StartFailure> {
    let step = || "mapping the image's ids".to_owned();
    make_directory(IMAGE)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, directory, flags).step(step)?;
    let unchanged = MountAttributes::default();
    sys::set_mount_attributes(tree.as_fd(), c"", false, unchanged, Some(users)).step(step)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", CWD, IMAGE, flags).step(step)
}

/// Makes the root, which another user namespace has locked in place, one that can be entered.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(crate) fn unlock() -> Result<(), StartFailure> {
    let step = || "taking over the root".to_owned();
    rustix::mount::mount_bind(ROOT, ROOT).step(step)?;
    rustix::process::chdir(ROOT).step(step)
}

/// Gives the upper layer's root directory, which is the one that shows, the image's permissions and owner.
fn take_over_root_directory(lower: &str) -> Result<(), StartFailure> {
    let step = || "taking over the image's root directory".to_owned();
    let stat = rustix::fs::stat(lower).step(step)?;
    if (stat.st_uid, stat.st_gid) != (0, 0) {
        let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chown("/mnt/upper", Some(owner.0), Some(owner.1)).step(step)?;
    }
    if stat.st_mode & 0o7777 != ROOT_MODE {
        rustix::fs::chmod("/mnt/upper", Mode::from_raw_mode(stat.st_mode & 0o7777)).step(step)?;
    }
    Ok(())
}

/// The agent's tree, while the container's root is only looked into.
#[derive(Debug)]
pub(super) struct MachinesTree(OwnedFd);

/// Makes the current directory the root for the time being, in which things can be done and come back from.
///
/// # Errors
///
/// The kernel's, see chroot(2).
pub(super) fn look_inside() -> Result<MachinesTree, StartFailure> {
    let step = || "going into the root".to_owned();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = rustix::fs::open("/", flags, Mode::empty()).step(step)?;
    rustix::process::chroot(".").step(step)?;
    Ok(MachinesTree(tree))
}

impl MachinesTree {
    /// Comes back, with the container's root for the current directory.
    ///
    /// # Errors
    ///
    /// The kernel's, see chroot(2).
    pub(super) fn come_back(&self) -> Result<(), StartFailure> {
        let step = || "coming back from the root".to_owned();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).step(step)?;
        rustix::process::fchdir(&self.0).step(step)?;
        rustix::process::chroot(".").step(step)?;
        rustix::process::fchdir(root).step(step)
    }
}

/// Makes the current directory the root. The agent's tree stays mounted on top of it, where `..` leads to: nothing of the container's
/// may be looked up before [`leave_machine`].
///
/// # Errors
///
/// The kernel's, see pivot_root(2).
pub(crate) fn enter() -> Result<(), StartFailure> {
    let step = || "entering the root".to_owned();
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one.
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::process::chdir("/").step(step)
}

/// Takes the agent's tree off.
///
/// # Errors
///
/// The kernel's, see umount(2).
pub(crate) fn leave_machine() -> Result<(), StartFailure> {
    // umount(2) takes what is mounted last at a path.
    rustix::mount::unmount("/", UnmountFlags::DETACH)
        .step(|| "leaving the machine's tree".to_owned())
}
