//! Files and directories of the host that a machine shows: opened, and what is refused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use rustix::fs::{FileType, Mode, OFlags};
use thiserror::Error;

use super::{Bind, TypedMount, TypedSource};
use crate::dirs::Own;
use crate::report::Help;
use crate::share::Share;

/// Permissions of a directory that is made where there was nothing, as docker makes it.
const NEW_DIRECTORY_MODE: u32 = 0o755;

/// `PROC_SUPER_MAGIC` and `SYSFS_MAGIC` (include/uapi/linux/magic.h).
const PROC: u64 = 0x9fa0;
const SYSFS: u64 = 0x6265_6572;

/// Something of the host that cannot be shown.
#[derive(Debug, Error)]
pub enum ShareSourceError {
    /// Nothing is there.
    #[error("there is no {}", .0.display())]
    Missing(PathBuf),
    /// It cannot be made.
    #[error("cannot make the directory {}", path.display())]
    Make {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is neither a file nor a directory.
    #[error("{} is neither a file nor a directory", .0.display())]
    Special(PathBuf),
    /// It shows the processes of the host.
    #[error("{} shows the processes of the host, the one that would serve it among them", .0.display())]
    Processes(PathBuf),
    /// It holds what vmm runs by.
    #[error("{} belongs to vmm itself", .0.display())]
    Own(PathBuf),
    /// There is no such thing.
    #[error("a directory of the host cannot be mounted with {0}")]
    Option(&'static str),
}

impl Help for ShareSourceError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Missing(path) => {
                let path = path.display();
                return Some(format!(
                    "make it first: mkdir -p {path}; or use -v, which makes a directory"
                ));
            }
            Self::Open { source, .. } | Self::Make { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                "it is opened with the rights of whoever types this: see ls -ld of it and of what is above"
            }
            Self::Own(_) => {
                "a workload that could write there could do anything with your machines; share another directory"
            }
            Self::Processes(_) => {
                "leave it out: a machine has a /proc of its own, with its own processes"
            }
            Self::Special(_) => "share the directory that it is in",
            Self::Option(_) => "leave the option out, and change the owner here with chown(1)",
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotADirectory => {
                "something on the way there is a file"
            }
            Self::Open { .. } | Self::Make { .. } => return None,
        };
        Some(help.to_owned())
    }
}

/// Opens what these mounts show of the host, in their order. Nothing of `own`, or of what is in there, is shown by itself.
///
/// # Errors
///
/// [`ShareSourceError`].
pub(super) fn open(mounts: &[TypedMount], own: &Own<'_>) -> Result<Vec<Share>, ShareSourceError> {
    let binds = mounts.iter().filter_map(|mount| match &mount.source {
        TypedSource::Bind(bind) => Some((mount, bind)),
        _ => None,
    });
    binds
        .map(|(mount, bind)| {
            if bind.changes_owner {
                return Err(ShareSourceError::Option("another owner (U)"));
            }
            let (root, is_kernels) = open_source(bind, own)?;
            Ok(Share {
                root,
                read_only: mount.read_only || is_kernels,
                cache: bind.cache,
                is_recursive: bind.is_recursive,
            })
        })
        .collect()
}

/// Opens what is shown; and whether it is the kernel's own, which is read and not written.
fn open_source(bind: &Bind, own: &Own<'_>) -> Result<(OwnedFd, bool), ShareSourceError> {
    let path = &bind.source;
    if bind.creates_source && fs::symlink_metadata(path).is_err_and(|error| is_missing(&error)) {
        DirBuilder::new()
            .recursive(true)
            .mode(NEW_DIRECTORY_MODE)
            .create(path)
            .map_err(|source| ShareSourceError::Make {
                path: path.clone(),
                source,
            })?;
    }
    let failed = |source: io::Error| match is_missing(&source) {
        true => ShareSourceError::Missing(path.clone()),
        false => ShareSourceError::Open {
            path: path.clone(),
            source,
        },
    };
    // A symbolic link leads to what is shown, as with docker; from here on the name does not matter.
    let root = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let root = root.map_err(|error| failed(error.into()))?;
    let opened = format!("/proc/self/fd/{}", root.as_raw_fd());
    if own.has(&fs::read_link(opened).map_err(failed)?) {
        return Err(ShareSourceError::Own(path.clone()));
    }
    let statistics = rustix::fs::fstatfs(&root).map_err(|error| failed(error.into()))?;
    let magic = u64::try_from(statistics.f_type).unwrap_or_default();
    if magic == PROC {
        return Err(ShareSourceError::Processes(path.clone()));
    }
    let stat = rustix::fs::fstat(&root).map_err(|error| failed(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok((root, magic == SYSFS)),
        _ => Err(ShareSourceError::Special(path.clone())),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::dirs::{Directories, Environment};
    use crate::volumes::CacheMode;

    fn bind(source: &Path) -> Bind {
        Bind {
            source: source.to_owned(),
            cache: CacheMode::Auto,
            creates_source: false,
            propagation: None,
            is_recursive: true,
            changes_owner: false,
        }
    }

    #[test]
    fn the_host_s_processes_are_not_shown_and_its_devices_are_not_changed() {
        for path in ["/proc", "/proc/self/", "/proc/sys/kernel"] {
            let error = open_source(&bind(Path::new(path)), &Own::default()).unwrap_err();
            assert!(matches!(error, ShareSourceError::Processes(_)), "{path}");
            assert!(error.help().is_some());
        }
        let (_, is_kernels) = open_source(&bind(Path::new("/sys")), &Own::default()).unwrap();
        assert!(is_kernels);
        let (_, is_kernels) = open_source(&bind(Path::new("/")), &Own::default()).unwrap();
        assert!(!is_kernels);
    }

    #[test]
    fn what_holds_vmm_s_own_is_refused_by_whatever_name_and_what_is_beside_it_is_not() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("vmm");
        for name in ["vmm/store/layers", "vmm/machines", "vmm/other"] {
            fs::create_dir_all(home.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("vmm/store", home.path().join("link")).unwrap();
        let directories = Directories::find(&Environment {
            root: Some(root),
            ..Environment::default()
        });
        let directories = directories.unwrap();
        for (name, is_refused) in [
            ("vmm", true),
            ("vmm/store/layers", true),
            ("link", true),
            ("link/..", true),
            ("vmm/other", false),
            (".", false),
        ] {
            let opened = open_source(&bind(&home.path().join(name)), &directories.own());
            let refused = matches!(opened, Err(ShareSourceError::Own(_)));
            assert_eq!(refused, is_refused, "{name}");
        }
    }
}
