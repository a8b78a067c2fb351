//! The mounts of a container: runtime-spec `config.md`, "Mounts", and `config-linux.md`, "Masked Paths", "Readonly Paths".

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use protocol::StartFailure;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};

use crate::spec;
use crate::step::{Step as _, invalid, unsupported};

/// Permissions of a mount point that had to be made.
const MOUNT_POINT_MODE: u32 = 0o755;

/// One mount, options decided.
#[derive(Debug, PartialEq)]
pub(crate) struct Mount {
    pub(crate) destination: String,
    kind: Kind,
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
}

#[derive(Debug, PartialEq)]
enum Kind {
    /// A new instance of a filesystem.
    Filesystem {
        kind: String,
        source: String,
        data: Option<CString>,
    },
    /// A part of the agent's own tree.
    Bind { source: String, recursive: bool },
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
    /// If an option is not supported or the destination is not absolute.
    pub(crate) fn new(mount: &spec::Mount) -> Result<Self, StartFailure> {
        let destination = mount.destination.clone();
        if !destination.starts_with('/') {
            return Err(invalid(
                "mounts.destination",
                format!("{destination:?} is not an absolute path"),
            ));
        }
        let mut options = Options::default();
        for option in &mount.options {
            options.add(option, &destination)?;
        }
        let kind = mount.kind.as_deref().unwrap_or("none");
        let source = mount.source.clone();
        let kind = if options.bind || kind == "bind" {
            let source = source
                .ok_or_else(|| invalid("mounts.source", format!("{destination} has no source")))?;
            if !source.starts_with('/') {
                return Err(invalid(
                    "mounts.source",
                    format!("{source:?} is not an absolute path"),
                ));
            }
            Kind::Bind {
                source,
                recursive: options.recursive,
            }
        } else {
            // There is one cgroup hierarchy, whatever version the config was written for.
            let kind = if kind == "cgroup" { "cgroup2" } else { kind }.to_owned();
            let data = if options.data.is_empty() {
                None
            } else {
                Some(options.data.join(","))
            };
            let data = data
                .map(CString::new)
                .transpose()
                .step(|| format!("reading the options of {destination}"))?;
            Kind::Filesystem {
                source: source.unwrap_or_else(|| kind.clone()),
                kind,
                data,
            }
        };
        Ok(Self {
            destination,
            kind,
            flags: options.flags,
            propagation: options.propagation,
        })
    }

    /// Whether the mount shows a part of the agent's tree.
    pub(crate) fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind { .. })
    }

    /// Opens what lies outside of the container.
    ///
    /// # Errors
    ///
    /// If a bind mount's source cannot be opened.
    pub(crate) fn ready(&self) -> Result<ReadyMount<'_>, StartFailure> {
        let bind = match &self.kind {
            Kind::Filesystem { .. } => None,
            Kind::Bind { source, recursive } => Some(open_tree(source, *recursive)?),
        };
        Ok(ReadyMount { mount: self, bind })
    }
}

fn open_tree(source: &str, recursive: bool) -> Result<(OwnedFd, bool), StartFailure> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = rustix::mount::open_tree(CWD, source, flags)
        .step(|| format!("opening {source} to bind it"))?;
    let stat = rustix::fs::statat(&tree, "", AtFlags::EMPTY_PATH)
        .step(|| format!("looking at {source}"))?;
    Ok((
        tree,
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
    ))
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
            flags,
            propagation,
        } = self.mount;
        let step = || format!("mounting {destination}");
        match (kind, self.bind) {
            (Kind::Filesystem { kind, source, data }, _) => {
                let mount =
                    || rustix::mount::mount(source, destination, kind, *flags, data.as_deref());
                match mount() {
                    Err(Errno::NOENT) => {
                        make_directories(destination).step(step)?;
                        mount().step(step)?;
                    }
                    result => result.step(step)?,
                }
            }
            (Kind::Bind { .. }, Some((tree, is_directory))) => {
                if is_directory {
                    make_directories(destination)
                } else {
                    make_file(destination)
                }
                .step(step)?;
                let flags =
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
                rustix::mount::move_mount(&tree, "", CWD, destination, flags).step(step)?;
                self.mount.restrict_bind().step(step)?;
            }
            (Kind::Bind { .. }, None) => (),
        }
        if let Some(propagation) = propagation {
            rustix::mount::mount_change(destination, *propagation).step(step)?;
        }
        Ok(())
    }
}

impl Mount {
    /// A bind mount takes its flags only from a second call: mount(2), `MS_REMOUNT | MS_BIND`.
    fn restrict_bind(&self) -> rustix::io::Result<()> {
        if self.flags.is_empty() {
            return Ok(());
        }
        rustix::mount::mount_remount(&self.destination, MountFlags::BIND | self.flags, c"")
    }
}

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
fn present_flags(path: &str) -> rustix::io::Result<MountFlags> {
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

/// What the options of a mount come to.
#[derive(Debug)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    bind: bool,
    recursive: bool,
    data: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            propagation: None,
            bind: false,
            recursive: false,
            data: Vec::new(),
        }
    }
}

impl Options {
    /// Takes one option: runtime-spec `config.md`, "Linux mount options".
    fn add(&mut self, option: &str, destination: &str) -> Result<(), StartFailure> {
        let set = |flag| (flag, true);
        let clear = |flag| (flag, false);
        let (flag, value) = match option {
            "defaults" | "async" | "rw" | "suid" | "dev" | "exec" | "atime" | "diratime"
            | "norelatime" | "nostrictatime" | "symfollow" | "nomand" | "loud" => match option {
                "async" => clear(MountFlags::SYNCHRONOUS),
                "rw" => clear(MountFlags::RDONLY),
                "suid" => clear(MountFlags::NOSUID),
                "dev" => clear(MountFlags::NODEV),
                "exec" => clear(MountFlags::NOEXEC),
                "atime" => clear(MountFlags::NOATIME),
                "diratime" => clear(MountFlags::NODIRATIME),
                "norelatime" => clear(MountFlags::RELATIME),
                "nostrictatime" => clear(MountFlags::STRICTATIME),
                "symfollow" => clear(MountFlags::NOSYMFOLLOW),
                _ => return Ok(()),
            },
            "ro" => set(MountFlags::RDONLY),
            "nosuid" => set(MountFlags::NOSUID),
            "nodev" => set(MountFlags::NODEV),
            "noexec" => set(MountFlags::NOEXEC),
            "sync" => set(MountFlags::SYNCHRONOUS),
            "dirsync" => set(MountFlags::DIRSYNC),
            "noatime" => set(MountFlags::NOATIME),
            "nodiratime" => set(MountFlags::NODIRATIME),
            "relatime" => set(MountFlags::RELATIME),
            "strictatime" => set(MountFlags::STRICTATIME),
            "lazytime" => set(MountFlags::LAZYTIME),
            "nosymfollow" => set(MountFlags::NOSYMFOLLOW),
            "silent" => set(MountFlags::SILENT),
            "bind" | "rbind" => {
                self.bind = true;
                self.recursive |= option == "rbind";
                return Ok(());
            }
            "private" => return self.propagate(MountPropagationFlags::PRIVATE, false),
            "rprivate" => return self.propagate(MountPropagationFlags::PRIVATE, true),
            "slave" => return self.propagate(MountPropagationFlags::DOWNSTREAM, false),
            "rslave" => return self.propagate(MountPropagationFlags::DOWNSTREAM, true),
            "shared" => return self.propagate(MountPropagationFlags::SHARED, false),
            "rshared" => return self.propagate(MountPropagationFlags::SHARED, true),
            "unbindable" => return self.propagate(MountPropagationFlags::UNBINDABLE, false),
            "runbindable" => return self.propagate(MountPropagationFlags::UNBINDABLE, true),
            "mand" | "remount" | "iversion" | "noiversion" | "tmpcopyup" | "idmap" | "ridmap"
            | "rro" | "rrw" | "rnosuid" | "rsuid" | "rnodev" | "rdev" | "rnoexec" | "rexec"
            | "rnodiratime" | "rdiratime" | "rrelatime" | "rnorelatime" | "rnoatime" | "ratime"
            | "rstrictatime" | "rnostrictatime" | "rnosymfollow" | "rsymfollow" => {
                return Err(unsupported(
                    "mounts.options",
                    format!("option {option} of {destination} is not supported"),
                ));
            }
            data => {
                self.data.push(data.to_owned());
                return Ok(());
            }
        };
        self.flags.set(flag, value);
        Ok(())
    }

    fn propagate(
        &mut self,
        flag: MountPropagationFlags,
        recursive: bool,
    ) -> Result<(), StartFailure> {
        let recursive = if recursive {
            MountPropagationFlags::REC
        } else {
            MountPropagationFlags::empty()
        };
        self.propagation = Some(flag | recursive);
        Ok(())
    }
}
