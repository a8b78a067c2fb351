//! Files that were imported before: their stamps say whether they have to be read again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::reference::Reference;
use super::super::stamp::Stamp;
use super::disk::{Hold, read, replace};
use super::{ImportOptions, Store, StoreError};

/// What was imported from a source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) id: Digest,
    pub(super) names: Vec<Reference>,
    /// The files that were read, by their name below the source.
    stamps: BTreeMap<String, Stamp>,
}

impl Known {
    pub(super) fn new(
        id: Digest,
        names: Vec<Reference>,
        stamps: BTreeMap<String, Stamp>,
    ) -> Option<Self> {
        let settled = !stamps.is_empty() && stamps.values().all(Stamp::is_settled);
        settled.then_some(Self { id, names, stamps })
    }

    fn is_current(&self, source: &Path) -> bool {
        self.stamps.iter().all(|(name, stamp)| {
            let file = if name.is_empty() {
                source.to_owned()
            } else {
                source.join(name)
            };
            fs::metadata(file).is_ok_and(|metadata| stamp.is(&metadata))
        })
    }
}

/// The image that a record speaks of; `None` if it is damaged.
pub(super) fn image_of(record: &Path) -> Option<Digest> {
    let known: Known = serde_json::from_slice(&read(record).ok()??).ok()?;
    Some(known.id)
}

impl Store {
    /// Where it is remembered what a source held; `None` if it does not exist.
    pub(super) fn source_record(&self, source: &Path, options: &ImportOptions) -> Option<PathBuf> {
        let metadata = fs::metadata(source).ok()?;
        let choice = format!("{} {:?}", options.platform, options.select);
        let choice = Digest::of(choice.as_bytes()).short();
        Some(self.root.join("sources").join(format!(
            "{:x}-{:x}-{choice}",
            metadata.dev(),
            metadata.ino()
        )))
    }

    /// What was imported from a source, if it has not changed since.
    pub(super) fn known_source(&self, source: &Path, record: &Path) -> Option<Known> {
        // A record that cannot be read only means that the source is read again.
        let known: Known = serde_json::from_slice(&read(record).ok()??).ok()?;
        known.is_current(source).then_some(known)
    }

    /// Remembers what was imported from a source.
    pub(super) fn remember_source(&self, record: &Path, known: &Known) -> Result<(), StoreError> {
        // Cleaners would take what is being written for a leftover.
        let _guard = self.lock(Hold::Shared)?;
        let bytes = serde_json::to_vec(known)
            .map_err(|error| StoreError::at("write", record)(error.into()))?;
        replace(record, &bytes, &self.scratch())
    }
}
