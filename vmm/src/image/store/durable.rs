//! What is on the disk for certain, and what a power failure may still take.
//!
//! An import does not wait for the disk: that would take several times as long as the work. So an
//! object says in its record in which boot of the host it was made, and is whole in that boot, in
//! which the kernel's memory holds what the disk may not. Once it was synced it gets a mark, and
//! is whole for good. An object of an earlier boot without the mark is taken for what a power
//! failure left: it does not exist, and the next import replaces it.
//!
//! The kernel writes everything out within half a minute (`vm.dirty_expire_centisecs`); whoever
//! opens an image later than that syncs it, which costs next to nothing by then.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::super::digest::Digest;
use super::access::{ImageRecord, RECORD};
use super::disk::{Hold, sync_directory};
use super::{FindError, Store, StoreError};

/// Name of the mark in an object's directory.
const MARK: &str = "synced";
/// Age at which the kernel has written an object by itself.
const WRITTEN_AFTER: Duration = Duration::from_secs(45);

/// Whether an object that was made in `boot` is whole. Where no boot has a name, nothing is before it is synced.
pub(super) fn is_whole(object: &Path, boot: &str) -> bool {
    (!boot.is_empty() && boot == crate::boot::id()) || object.join(MARK).exists()
}

/// Brings an object to the disk and marks it.
fn make_durable(object: &Path) -> Result<(), StoreError> {
    let mark = object.join(MARK);
    if mark.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(object).map_err(StoreError::at("list", object))? {
        let path = entry.map_err(StoreError::at("list", object))?.path();
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(StoreError::at("sync", &path))?;
    }
    sync_directory(object)?;
    sync_directory(object.parent().unwrap_or(object))?;
    File::create(&mark).map_err(StoreError::at("create", &mark))?;
    sync_directory(object)
}

impl Store {
    /// Syncs an image that the kernel has written by now; the caller holds a lease on it.
    pub(super) fn settle(&self, id: Digest) {
        let directory = self.image_directory(id);
        if directory.join(MARK).exists() {
            return;
        }
        let made = fs::metadata(directory.join(RECORD)).and_then(|metadata| metadata.modified());
        let age = made
            .ok()
            .and_then(|made| SystemTime::now().duration_since(made).ok());
        if age.is_some_and(|age| age > WRITTEN_AFTER)
            && let Err(error) = self
                .image_record(id)
                .and_then(|record| Ok(self.sync_image(id, &record)?))
        {
            // Until it succeeds the image is as good as on the day of its import.
            tracing::debug!(%error, "image not synced");
        }
    }

    /// Brings an image to the disk at once, so that it survives a power failure.
    ///
    /// # Errors
    /// If there is no such image, or the disk fails.
    pub fn sync(&self, id: Digest) -> Result<(), FindError> {
        let guard = self.lock(Hold::Shared)?;
        let image = self.open_image(id)?;
        drop(guard);
        Ok(self.sync_image(image.id, &self.image_record(id)?)?)
    }

    /// Syncs an image and its layers.
    fn sync_image(&self, id: Digest, record: &ImageRecord) -> Result<(), StoreError> {
        for layer in &record.layers {
            make_durable(&self.layer_directory(layer.diff_id))?;
        }
        make_durable(&self.image_directory(id))
    }
}
