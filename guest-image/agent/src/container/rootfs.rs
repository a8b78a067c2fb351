//! The container's root: the image's read-only tree below, a layer of the container's own above, joined by overlayfs
//! (`Documentation/filesystems/overlayfs.rst`).

use std::ffi::CString;

use protocol::{Filesystem, RootSource, StartFailure, Upper};
use rustix::fs::{Gid, Mode, Uid};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::step::{Step as _, invalid};

/// Where the upper layer's filesystem is mounted in the child's mount namespace, an empty directory of the agent's image.
/// Nobody else sees it, so one name does for all containers.
const UPPER: &str = "/mnt";
const IMAGE: &str = "/mnt/image";
const ROOT: &str = "/mnt/root";

/// Permissions of the root directory when the image says nothing else.
const ROOT_MODE: u32 = 0o755;

/// Mounts the root in the child's mount namespace and goes there, without making it the root yet.
///
/// # Errors
///
/// If something cannot be mounted.
pub(crate) fn mount(source: &RootSource) -> Result<(), StartFailure> {
    let Upper::Tmpfs { size_bytes } = source.upper;
    // nr_inodes=0 leaves the size as the only limit.
    let data = format!("mode=755,nr_inodes=0,size={size_bytes}");
    let data = CString::new(data).step(|| "limiting the writable layer".to_owned())?;
    rustix::mount::mount(
        "tmpfs",
        UPPER,
        "tmpfs",
        MountFlags::empty(),
        data.as_c_str(),
    )
    .step(|| "mounting the writable layer".to_owned())?;
    for directory in ["/mnt/upper", "/mnt/work", ROOT] {
        rustix::fs::mkdir(directory, Mode::from_raw_mode(ROOT_MODE))
            .step(|| format!("making {directory}"))?;
    }
    let lower = mount_image(source)?;
    take_over_root_directory(lower)?;
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
    rustix::process::chdir(ROOT).step(|| "going to the root".to_owned())
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
    rustix::fs::mkdir(IMAGE, Mode::from_raw_mode(ROOT_MODE)).step(|| format!("making {IMAGE}"))?;
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

/// Makes the current directory the root, and lets go of the agent's tree.
///
/// # Errors
///
/// The kernel's, see pivot_root(2).
pub(crate) fn enter() -> Result<(), StartFailure> {
    let step = || "entering the root".to_owned();
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up on top of the new one, and is taken off at once.
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(step)?;
    rustix::process::chdir("/").step(step)
}
