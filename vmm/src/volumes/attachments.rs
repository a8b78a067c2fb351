//! What a machine is given beside its root, for one start.

use std::path::Path;

use protocol::{Volume, volume_path};
use serde_json::{Value, json};
use thiserror::Error;

use super::{Bind, NewTmpfs, ShareSourceError, TypedMount, TypedSource, shares};
use crate::report::Help;
use crate::share::{self, Share};

/// What the mounts of a workload come to: everything opened.
#[derive(Debug, Default)]
pub struct Attachments {
    /// What the agent mounts before it builds the container, in the order of the places that the mounts below name.
    pub volumes: Vec<Volume>,
    /// What the container's configuration mounts: runtime-spec `config.md`, "Mounts".
    pub mounts: Vec<Value>,
    /// What is shown of the host, in the order of their names in the tree that is served.
    pub shares: Vec<Share>,
}

/// A mount that cannot be had.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Nobody knows how.
    #[error("a machine cannot have {0} yet")]
    NotYet(&'static str),
    /// Something of the host cannot be shown.
    #[error(transparent)]
    Share(#[from] ShareSourceError),
}

impl Help for AttachError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Share(error) => error.help(),
            Self::NotYet(_) => None,
        }
    }
}

impl Attachments {
    /// Opens what these mounts name. They are in order: see [`in_order`](super::in_order). Nothing is shown of the directories `own`.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn open(mounts: &[TypedMount], own: &[&Path]) -> Result<Self, AttachError> {
        let mut attachments = Self {
            shares: shares::open(mounts, own)?,
            ..Self::default()
        };
        let tree = volume_path(attachments.volumes.len());
        if !attachments.shares.is_empty() {
            let tag = share::TAG.to_owned();
            attachments.volumes.push(Volume::Share { tag });
        }
        let mut next_share = 0..attachments.shares.len();
        for mount in mounts {
            let value = match &mount.source {
                TypedSource::Tmpfs(tmpfs) => of_tmpfs(tmpfs, mount),
                TypedSource::Bind(bind) => {
                    let name = next_share.next().unwrap_or_default();
                    of_share(&format!("{tree}/{name}"), bind, mount)
                }
                TypedSource::Volume(_) => return Err(AttachError::NotYet("volumes")),
            };
            attachments.mounts.push(value);
        }
        Ok(attachments)
    }

    /// Refuses what of the host cannot be shown, as [`open`](Self::open) does.
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn check_shares(mounts: &[TypedMount], own: &[&Path]) -> Result<(), AttachError> {
        shares::open(mounts, own)?;
        Ok(())
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }
}

/// A part of the tree of shares, with docker's options.
fn of_share(source: &str, bind: &Bind, mount: &TypedMount) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    let propagation = bind.propagation.as_deref().unwrap_or("rprivate");
    let options = ["rbind", access, propagation];
    json!({ "destination": mount.destination, "type": "bind", "source": source, "options": options })
}

/// Docker's options of a file system in memory, and what was asked for.
fn of_tmpfs(tmpfs: &NewTmpfs, mount: &TypedMount) -> Value {
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec"].map(str::to_owned).into();
    options.extend(tmpfs.options.iter().cloned());
    options.extend(tmpfs.size_bytes.map(|bytes| format!("size={bytes}")));
    options.extend(tmpfs.mode.map(|mode| format!("mode={mode:o}")));
    options.extend(mount.read_only.then(|| "ro".to_owned()));
    json!({ "destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options })
}
