//! Makes what an import built visible, and clears away what crashes left.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{Hold, digests_in, remove_abandoned, try_lock, unique};
use super::{Store, StoreError};

/// Moves directories to their places; takes back what it moved unless it is kept.
///
/// The caller holds the store's lock exclusively while the value lives.
#[derive(Debug, Default)]
pub(super) struct Publication {
    moved: Vec<PathBuf>,
}

impl Publication {
    /// Moves a directory to its place, where nothing is.
    pub(super) fn publish(&mut self, made: &Path, place: &Path) -> Result<(), StoreError> {
        fs::rename(made, place).map_err(StoreError::at("create", place))?;
        self.moved.push(place.to_owned());
        Ok(())
    }

    /// Keeps what was moved.
    pub(super) fn keep(mut self) {
        self.moved.clear();
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        // The image before its layers, so that it is never there without them.
        for place in self.moved.iter().rev() {
            let _ = fs::remove_dir_all(place);
        }
    }
}

impl Store {
    /// Removes what an import that died left; quick when there is nothing.
    pub(super) fn clean_up_after_crashes(&self) -> Result<(), StoreError> {
        let scratch = self.scratch();
        let list = StoreError::at("list", &scratch);
        if fs::read_dir(&scratch).map_err(list)?.next().is_none() {
            return Ok(());
        }
        let _guard = self.lock(Hold::Exclusive)?;
        if remove_abandoned(&scratch).map_err(StoreError::at("clean", &scratch))? {
            self.remove_orphans()?;
        }
        Ok(())
    }

    /// Removes images that a power failure broke, and layers that no image has and nobody uses.
    ///
    /// The caller holds the store's lock exclusively.
    pub(super) fn remove_orphans(&self) -> Result<(), StoreError> {
        let mut used = HashSet::new();
        for id in digests_in(&self.root.join("images"))? {
            match self.image_record(id) {
                Ok(record) if self.has_image(id) => {
                    used.extend(record.layers.iter().map(|layer| layer.diff_id));
                }
                _ => {
                    self.remove_if_unused(&self.image_directory(id))?;
                }
            }
        }
        for diff_id in digests_in(&self.root.join("layers"))? {
            if !used.contains(&diff_id) {
                self.remove_if_unused(&self.layer_directory(diff_id))?;
            }
        }
        Ok(())
    }

    /// Removes an object unless it is leased; whether it is gone.
    ///
    /// It disappears in one step. The caller holds the store's lock exclusively.
    pub(super) fn remove_if_unused(&self, object: &Path) -> Result<bool, StoreError> {
        let directory = match File::open(object) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(StoreError::at("open", object)(error)),
        };
        if !try_lock(&directory).map_err(StoreError::at("lock", object))? {
            return Ok(false);
        }
        let grave = unique(&self.scratch());
        fs::rename(object, &grave).map_err(StoreError::at("remove", object))?;
        fs::remove_dir_all(&grave).map_err(StoreError::at("remove", object))?;
        Ok(true)
    }

    /// Clears the place of an object that is not whole.
    ///
    /// The caller holds the store's lock exclusively.
    pub(super) fn clear_place(&self, place: &Path) -> Result<(), StoreError> {
        if place.exists() {
            let grave = unique(&self.scratch());
            fs::rename(place, &grave).map_err(StoreError::at("remove", place))?;
            fs::remove_dir_all(&grave).map_err(StoreError::at("remove", place))?;
        }
        Ok(())
    }
}
