//! What a machine is given beside its root, for one start.

use protocol::Volume;
use serde_json::{Value, json};
use thiserror::Error;

use super::{NewTmpfs, TypedMount, TypedSource};
use crate::report::Help;

/// What the mounts of a workload come to: everything opened.
#[derive(Debug, Default)]
pub struct Attachments {
    /// What the agent mounts before it builds the container, in the order of the places that the mounts below name.
    pub volumes: Vec<Volume>,
    /// What the container's configuration mounts: runtime-spec `config.md`, "Mounts".
    pub mounts: Vec<Value>,
}

/// A mount that cannot be had.
#[derive(Debug, Error)]
pub enum AttachError {
    /// Nobody knows how.
    #[error("a machine cannot have {0} yet")]
    NotYet(&'static str),
}

impl Help for AttachError {
    fn help(&self) -> Option<String> {
        None
    }
}

impl Attachments {
    /// Opens what these mounts name. They are in order: see [`in_order`](super::in_order).
    ///
    /// # Errors
    ///
    /// [`AttachError`].
    pub fn open(mounts: &[TypedMount]) -> Result<Self, AttachError> {
        let mut attachments = Self::default();
        for mount in mounts {
            let value = match &mount.source {
                TypedSource::Tmpfs(tmpfs) => of_tmpfs(tmpfs, mount),
                TypedSource::Bind(_) => return Err(AttachError::NotYet("directories of the host")),
                TypedSource::Volume(_) => return Err(AttachError::NotYet("volumes")),
            };
            attachments.mounts.push(value);
        }
        Ok(attachments)
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }
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
