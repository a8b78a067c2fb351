//! The mounts of a container: runtime-spec `config.md`, "Mounts", and `config-linux.md`, "Rootfs Mount Propagation".

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use protocol::StartFailure;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};

use super::id_mappings::IdMappings;
use super::mount_options::{self, IdMap, MountOptions, Propagation};
use super::namespaces::NamespacesPlan;
use super::{copy_up, paths};
use crate::spec;
use crate::step::{Step as _, invalid, unsupported};
use crate::sys::{self, MountAttributes};

/// Permissions of a mount point that had to be made.
const MOUNT_POINT_MODE: u32 = 0o755;

/// One mount, options decided.
#[derive(Debug, PartialEq)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    kind: Kind,
    options: MountOptions,
    /// Which ids the mount shows; the container's where this is none and ids are to be mapped.
    mappings: Option<IdMappings>,
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// A new instance of a filesystem, or with the option `remount` the one that is there.
    Filesystem {
        kind: String,
        source: String,
        data: Option<CString>,
    },
    /// A part of the agent's own tree.
    Bind { source: String },
}

/// A mount whose source was opened while the agent's tree was still in reach.
#[derive(Debug)]
pub(crate) struct ReadyMount<'plan> {
    mount: &'plan Mount,
    /// The detached copy of a bind mount's source, and whether it is a directory.
    bind: Option<(OwnedFd, bool)>,
}

impl Mount {
    /// Decides type, flags and data of a mount.
    ///
    /// # Errors
    ///
    /// If an option does not go with the type, or a bind mount has no source in the machine.
    pub(crate) fn new(
        mount: &spec::Mount,
        namespaces: &NamespacesPlan,
    ) -> Result<Self, StartFailure> {
        // A relative path is one below the root: runtime-spec `config.md`, "Mounts".
        let destination = match mount.destination.strip_prefix('/') {
            Some(_) => mount.destination.clone(),
            None => format!("/{}", mount.destination),
        };
        let mut options = MountOptions::new(&mount.options);
        let kind = mount.kind.as_deref().unwrap_or("none");
        let option_error = |option: &str, message: &str| {
            let message = format!("option {option} of {destination}: {message}");
            Err(unsupported("mounts.options", message))
        };
        let field = format!("mounts[{destination}]");
        let mappings = IdMappings::new(&field, &mount.uid_mappings, &mount.gid_mappings)?;
        if mappings.is_some() && options.id_map.is_none() {
            options.id_map = Some(IdMap::This);
        }
        let is_bind = !options.remount && (options.bind || kind == "bind");
        if options.copy_up && !is_bind && kind != "tmpfs" {
            return option_error("tmpcopyup", "only a tmpfs or a volume takes a copy");
        }
        if options.id_map.is_some() {
            if !is_bind {
                return option_error("idmap", "only a bind mount can have other ids");
            }
            if mappings.is_none() && !namespaces.has_user() {
                return option_error(
                    "idmap",
                    "there are neither mappings nor a user namespace to take them from",
                );
            }
        }
        let source = mount.source.clone();
        let kind = if is_bind {
            let source = source
                .ok_or_else(|| invalid("mounts.source", format!("{destination} has no source")))?;
            if !source.starts_with('/') {
                return Err(invalid(
                    "mounts.source",
                    format!("{source:?} is not an absolute path, and the machine has no bundle"),
                ));
            }
            Kind::Bind { source }
        } else {
            // There is one cgroup hierarchy, whatever version the config was written for.
            let kind = if kind == "cgroup" { "cgroup2" } else { kind }.to_owned();
            let data = match options.data.as_slice() {
                [] => None,
                data => Some(CString::new(data.join(",")))
                    .transpose()
                    .step(|| format!("reading the options of {destination}"))?,
            };
            Kind::Filesystem {
                source: source.unwrap_or_else(|| kind.clone()),
                kind,
                data,
            }
        };
        Ok(Self {
            destination,
            kind,
            options,
            mappings,
        })
    }

    /// Makes the user namespace of the mount's own mappings, if it has some.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a mapping.
    pub(crate) fn open_mappings(&self) -> Result<Option<OwnedFd>, StartFailure> {
        self.mappings
            .as_ref()
            .map(IdMappings::namespace)
            .transpose()
    }

    /// Whether the mount shows a part of the agent's tree.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind { .. })
    }

    /// Opens what lies outside of the container. `users` is the user namespace whose ids the mount shows if it maps them.
    ///
    /// # Errors
    ///
    /// If a bind mount's source cannot be opened, or its file system knows no other ids.
    pub(crate) fn ready(
        &self,
        namespaces: &NamespacesPlan,
        users: Option<BorrowedFd<'_>>,
    ) -> Result<ReadyMount<'_>, StartFailure> {
        let bind = match &self.kind {
            // Only the owner of a network may mount its sysfs: the machine's is what the container then sees, as with crun.
            Kind::Filesystem { kind, .. }
                if kind == "sysfs" && namespaces.has_user() && namespaces.shares_network() =>
            {
                // Without what the agent has mounted in it.
                Some(open_tree("/sys", false)?)
            }
            Kind::Filesystem { .. } => None,
            Kind::Bind { source } => Some(open_tree(source, self.options.recursive_bind)?),
        };
        if let (Some(id_map), Some((tree, _)), Some(users)) = (self.options.id_map, &bind, users) {
            let recursive = id_map == IdMap::Recursive;
            let unchanged = MountAttributes::default();
            sys::set_mount_attributes(tree.as_fd(), c"", recursive, unchanged, Some(users))
                .step(|| format!("mapping the ids of {}", self.destination))?;
        }
        Ok(ReadyMount { mount: self, bind })
    }

    /// The options of a tmpfs that says nothing of its permissions: it takes those of the directory that it hides, if there is one,
    /// as runc and crun have it.
    fn inherited_mode(&self) -> Result<Option<CString>, std::ffi::NulError> {
        let Kind::Filesystem { kind, .. } = &self.kind else {
            return Ok(None);
        };
        let data = &self.options.data;
        if kind != "tmpfs" || data.iter().any(|option| option.starts_with("mode=")) {
            return Ok(None);
        }
        let Ok(stat) = rustix::fs::stat(&self.destination) else {
            return Ok(None);
        };
        let mode = format!("mode={:o}", stat.st_mode & 0o7777);
        CString::new([data.as_slice(), &[mode]].concat().join(",")).map(Some)
    }

    /// A bind mount takes its flags only from a second call: mount(2), `MS_REMOUNT | MS_BIND`.
    fn restrict_bind(&self) -> rustix::io::Result<()> {
        let flags = self.options.flags.0;
        if flags.is_empty() {
            return Ok(());
        }
        let remount =
            |flags| rustix::mount::mount_remount(&self.destination, MountFlags::BIND | flags, c"");
        match remount(flags) {
            // Flags that another user namespace has set are locked: they stay.
            Err(Errno::PERM) => remount(flags | paths::present_flags(&self.destination)?),
            result => result,
        }
    }
}

fn open_tree(source: &str, recursive: bool) -> Result<(OwnedFd, bool), StartFailure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let step = || format!("opening {source} to bind it");
    let tree = match in_volume(source).step(step)? {
        Some(place) => {
            let flags = flags | OpenTreeFlags::AT_EMPTY_PATH;
            rustix::mount::open_tree(&place, "", flags)
        }
        None => rustix::mount::open_tree(CWD, source, flags),
    }
    .step(step)?;
    let stat = rustix::fs::statat(&tree, "", AtFlags::EMPTY_PATH)
        .step(|| format!("looking at {source}"))?;
    Ok((
        tree,
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    ))
}

/// Opens a path in a volume, if it is one. What is in a volume is a workload's, whose links lead nowhere but into it.
fn in_volume(path: &str) -> rustix::io::Result<Option<OwnedFd>> {
    let Some(below) = path
        .strip_prefix(protocol::VOLUMES)
        .and_then(|rest| rest.strip_prefix('/'))
    else {
        return Ok(None);
    };
    let (index, rest) = below.split_once('/').unwrap_or((below, "."));
    let volume = format!("{}/{index}", protocol::VOLUMES);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let volume = rustix::fs::open(volume, flags, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(volume, rest, flags, Mode::empty(), resolve).map(Some)
}

impl ReadyMount<'_> {
    /// Mounts it. The caller's root is the container's, so no link in the image leads out of it.
    ///
    /// # Errors
    ///
    /// If the mount point cannot be made or the kernel refuses the mount.
    pub(crate) fn mount(self) -> Result<(), StartFailure> {
        let Mount {
            destination,
            kind,
            options,
            ..
        } = self.mount;
        let step = || format!("mounting {destination}");
        match (kind, self.bind) {
            (Kind::Filesystem { data, .. }, _) if options.remount => {
                let data = data.as_deref().unwrap_or_default();
                let mut flags = options.flags.0;
                flags.set(MountFlags::BIND, options.bind);
                rustix::mount::mount_remount(destination, flags, data).step(step)?;
            }
            (Kind::Filesystem { kind, source, data }, None) => {
                let hidden = match options.copy_up {
                    true => copy_up::open(destination).ok(),
                    false => None,
                };
                let mut flags = options.flags.0;
                // It must take the copy first.
                flags.set(
                    MountFlags::RDONLY,
                    flags.contains(MountFlags::RDONLY) && hidden.is_none(),
                );
                let inherited = self.mount.inherited_mode().step(step)?;
                let data = inherited.as_ref().or(data.as_ref()).map(CString::as_c_str);
                let mount = || rustix::mount::mount(source, destination, kind, flags, data);
                match mount() {
                    Err(Errno::NOENT) => {
                        make_directories(destination).step(step)?;
                        mount().step(step)?;
                    }
                    result => result.step(step)?,
                }
                if let Some(hidden) = hidden {
                    let step = || format!("copying {destination} into its mount");
                    let mounted = copy_up::open(destination).step(step)?;
                    copy_up::copy(&hidden, &mounted).step(step)?;
                    drop(mounted);
                    if flags != options.flags.0 {
                        rustix::mount::mount_remount(destination, options.flags.0, c"")
                            .step(step)?;
                    }
                }
            }
            (_, Some((tree, is_directory))) => {
                let hidden = match options.copy_up {
                    true => copy_up::open(destination).ok(),
                    false => None,
                };
                if is_directory {
                    make_directories(destination)
                } else {
                    make_file(destination)
                }
                .step(step)?;
                let flags =
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
                rustix::mount::move_mount(&tree, "", CWD, destination, flags).step(step)?;
                if let Some(hidden) = hidden {
                    let step = || format!("filling the volume at {destination}");
                    copy_up::fill_if_empty(&hidden, destination).step(step)?;
                }
                self.mount.restrict_bind().step(step)?;
            }
            (Kind::Bind { .. }, None) => (),
        }
        if options.recursive != MountAttributes::default() {
            let step = || format!("changing {destination} and all below it");
            let path = CString::new(destination.as_str()).step(step)?;
            sys::set_mount_attributes(CWD, &path, true, options.recursive, None).step(step)?;
        }
        for propagation in &options.propagation {
            rustix::mount::mount_change(destination, *propagation)
                .step(|| format!("changing the propagation of {destination}"))?;
        }
        Ok(())
    }
}

/// Reads `linux.rootfsPropagation`.
///
/// # Errors
///
/// If it is none.
pub(crate) fn root_propagation(
    propagation: Option<&str>,
) -> Result<Option<Propagation>, StartFailure> {
    match propagation {
        // All mounts of the machine are private, so a container's are from the beginning.
        None | Some("" | "private" | "rprivate") => Ok(None),
        Some(name) => mount_options::propagation(name)
            .map(Some)
            .ok_or_else(|| unsupported("linux.rootfsPropagation", format!("{name} is unknown"))),
    }
}

/// Changes how mounts of the container's root propagate.
///
/// # Errors
///
/// The kernel's, see mount(2).
pub(crate) fn propagate_root(propagation: Propagation) -> Result<(), StartFailure> {
    rustix::mount::mount_change("/", propagation)
        .step(|| "changing the propagation of the root".to_owned())
}

/// Makes a directory and those above it. One that is there already is fine.
///
/// # Errors
///
/// The kernel's, see mkdir(2).
pub(crate) fn make_directories(path: &str) -> rustix::io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(MOUNT_POINT_MODE)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(Errno::NOENT) => {
            let above = Path::new(path)
                .parent()
                .and_then(Path::to_str)
                .filter(|above| !above.is_empty());
            make_directories(above.ok_or(Errno::NOENT)?)?;
            match rustix::fs::mkdir(path, Mode::from_raw_mode(MOUNT_POINT_MODE)) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

/// Makes an empty file to mount on, and the directories above it. One that is there already is fine.
///
/// # Errors
///
/// The kernel's, see open(2).
pub(crate) fn make_file(path: &str) -> rustix::io::Result<()> {
    if let Some(above) = Path::new(path).parent().and_then(Path::to_str) {
        make_directories(above)?;
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
