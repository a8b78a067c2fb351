//! Files and directories of the host that a machine shows: opened, and what is refused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use thiserror::Error;

use super::{Bind, TypedMount, TypedSource};
use crate::report::Help;
use crate::share::Share;

/// Permissions of a directory that is made where there was nothing, as docker makes it.
const NEW_DIRECTORY_MODE: u32 = 0o755;

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
pub(super) fn open(mounts: &[TypedMount], own: &[&Path]) -> Result<Vec<Share>, ShareSourceError> {
    let binds = mounts.iter().filter_map(|mount| match &mount.source {
        TypedSource::Bind(bind) => Some((mount, bind)),
        _ => None,
    });
    binds
        .map(|(mount, bind)| {
            if bind.changes_owner {
                return Err(ShareSourceError::Option("another owner (U)"));
            }
            Ok(Share {
                root: open_source(bind, own)?,
                read_only: mount.read_only,
                cache: bind.cache,
                is_recursive: bind.is_recursive,
            })
        })
        .collect()
}

fn open_source(bind: &Bind, own: &[&Path]) -> Result<std::os::fd::OwnedFd, ShareSourceError> {
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
    let real = fs::canonicalize(path).map_err(failed)?;
    if own
        .iter()
        .filter_map(|own| fs::canonicalize(own).ok())
        .any(|own| real.starts_with(own))
    {
        return Err(ShareSourceError::Own(path.clone()));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(&real, flags, Mode::empty());
    let root = root.map_err(|error| failed(error.into()))?;
    let stat = rustix::fs::fstat(&root).map_err(|error| failed(error.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok(root),
        _ => Err(ShareSourceError::Special(path.clone())),
    }
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
