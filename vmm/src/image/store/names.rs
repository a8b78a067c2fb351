//! The names of images.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::reference::Reference;
use super::disk::{read, replace};
use super::{Store, StoreError};

/// All names and the images they mean.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Names {
    pub(super) names: BTreeMap<Reference, Digest>,
}

impl Names {
    /// The names of one image.
    pub(super) fn of(&self, id: Digest) -> Vec<Reference> {
        self.names
            .iter()
            .filter(|(_, named)| **named == id)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

impl Store {
    /// Reads the names; the caller holds the store's lock.
    pub(super) fn names(&self) -> Result<Names, StoreError> {
        let path = self.root.join("names.json");
        let Some(bytes) = read(&path)? else {
            return Ok(Names::default());
        };
        serde_json::from_slice(&bytes).map_err(|error| StoreError::at("parse", &path)(error.into()))
    }

    /// Writes the names; the caller holds the store's lock exclusively.
    pub(super) fn set_names(&self, names: &Names) -> Result<(), StoreError> {
        let path = self.root.join("names.json");
        let bytes = serde_json::to_vec_pretty(names)
            .map_err(|error| StoreError::at("write", &path)(error.into()))?;
        replace(&path, &bytes, &self.scratch())
    }

    /// Gives an image names; the caller holds the store's lock exclusively.
    pub(super) fn add_names(&self, id: Digest, new: &[Reference]) -> Result<(), StoreError> {
        let old = self.names()?;
        let mut names = old.clone();
        names
            .names
            .extend(new.iter().map(|name| (name.clone(), id)));
        if names == old {
            Ok(())
        } else {
            self.set_names(&names)
        }
    }
}
