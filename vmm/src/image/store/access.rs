//! Opens images that are in the store.

use std::fs::File;
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::super::digest::Digest;
use super::super::erofs::HUGE_PAGE_BYTES;
use super::super::layer::DATA;
use super::super::reference::Reference;
use super::disk::{Hold, digests_in, lock, read};
use super::durable::is_whole;
use super::{FindError, ImageHealth, RootPart, RootTree, Store, StoreError, StoredImage};

/// Name of an image's record in its directory.
pub(super) const RECORD: &str = "image.json";
/// Name of a layer's record in its directory.
pub(super) const LAYER_RECORD: &str = "layer.json";
/// Name of the configuration.
pub(super) const CONFIG: &str = "config.json";
/// Name of the EROFS metadata.
pub(super) const TREE: &str = "tree";

/// What an image is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Version of this format.
    pub(super) format: u32,
    /// The boot of the host in which the image was imported.
    pub(super) boot: String,
    /// Length of the tree.
    pub(super) tree_bytes: u64,
    /// The layers, lowest first.
    pub(super) layers: Vec<LayerRecord>,
}

/// A layer, in its own record and in that of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) diff_id: Digest,
    /// The boot of the host in which the layer was converted.
    pub(super) boot: String,
    /// Length of its data.
    pub(super) data_bytes: u64,
    /// Length of its tar stream.
    pub(super) stream_bytes: u64,
}

impl ImageRecord {
    /// The version that this program writes.
    pub(super) const FORMAT: u32 = 1;

    /// Where each layer's data is in the window, and the length of the window.
    pub(super) fn window(&self) -> (Vec<u64>, u64) {
        let mut end = self.tree_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let mut offsets = Vec::with_capacity(self.layers.len());
        for layer in &self.layers {
            offsets.push(end);
            end = end
                .saturating_add(layer.data_bytes)
                .next_multiple_of(HUGE_PAGE_BYTES);
        }
        (offsets, end)
    }
}

impl Store {
    /// Finds an image by name, by identifier or by the beginning of one.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn find(&self, reference: &str) -> Result<StoredImage, FindError> {
        let guard = self.lock(Hold::Shared)?;
        let id = self.resolve(reference)?;
        let image = self.open_image(id)?;
        drop(guard);
        self.settle(image.id);
        Ok(image)
    }

    /// Resolves a reference; the caller holds the store's lock.
    pub(super) fn resolve(&self, reference: &str) -> Result<Digest, FindError> {
        let not_found = || FindError::NotFound(reference.to_owned());
        let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
        if let Some(id) = Digest::from_hex(digits) {
            return self.has_image(id).then_some(id).ok_or_else(not_found);
        }
        let name = reference.parse::<Reference>();
        if let Ok(name) = &name
            && let Some(id) = self.names()?.names.get(name)
            && self.has_image(*id)
        {
            return Ok(*id);
        }
        let is_prefix = !digits.is_empty()
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_prefix {
            name?;
            return Err(not_found());
        }
        let mut fitting = self
            .image_ids()?
            .into_iter()
            .filter(|id| id.hex().starts_with(digits));
        match (fitting.next(), fitting.next()) {
            (Some(id), None) => Ok(id),
            (Some(_), Some(_)) => Err(FindError::Ambiguous(reference.to_owned())),
            (None, _) => Err(not_found()),
        }
    }

    /// Opens an image and leases it; the caller holds the store's lock.
    pub(super) fn open_image(&self, id: Digest) -> Result<StoredImage, FindError> {
        let directory = self.image_directory(id);
        let open = |path: &Path| File::open(path).map_err(StoreError::at("open", path));
        let lease = open(&directory)?;
        lock(&lease, Hold::Shared).map_err(StoreError::at("lease", &directory))?;
        let record = self.image_record(id)?;
        let config_path = directory.join(CONFIG);
        let config = read(&config_path)?.ok_or_else(|| FindError::NotFound(id.to_string()))?;
        let health = ImageHealth::read(&config);
        let config: ImageConfiguration =
            serde_json::from_slice(&config).map_err(|source| FindError::Damaged { id, source })?;
        let (offsets, size_bytes) = record.window();
        let tree = open(&directory.join(TREE))?;
        let mut parts = vec![RootPart {
            file: tree,
            window_offset_bytes: 0,
            length_bytes: record.tree_bytes,
        }];
        for (layer, window_offset_bytes) in record.layers.iter().zip(offsets) {
            // A layer of directories and links alone has nothing to map.
            if layer.data_bytes > 0 {
                let file = open(&self.layer_directory(layer.diff_id).join(DATA))?;
                parts.push(RootPart {
                    file,
                    window_offset_bytes,
                    length_bytes: layer.data_bytes,
                });
            }
        }
        Ok(StoredImage {
            id,
            config,
            health,
            root: RootTree { parts, size_bytes },
            lease,
        })
    }

    /// Whether an image is in the store and whole; the caller holds the store's lock.
    pub(super) fn has_image(&self, id: Digest) -> bool {
        let directory = self.image_directory(id);
        self.image_record(id).is_ok_and(|record| {
            let is_layer_whole =
                |layer: &LayerRecord| is_whole(&self.layer_directory(layer.diff_id), &layer.boot);
            is_whole(&directory, &record.boot) && record.layers.iter().all(is_layer_whole)
        })
    }

    /// The images that are whole; the caller holds the store's lock.
    pub(super) fn image_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let mut ids = digests_in(&self.root.join("images"))?;
        ids.retain(|id| self.has_image(*id));
        Ok(ids)
    }

    /// The record of a layer that is in the store and whole; the caller holds the store's lock.
    pub(super) fn layer_record(&self, diff_id: Digest) -> Option<LayerRecord> {
        let directory = self.layer_directory(diff_id);
        let bytes = read(&directory.join(LAYER_RECORD)).ok()??;
        let record: LayerRecord = serde_json::from_slice(&bytes).ok()?;
        is_whole(&directory, &record.boot).then_some(record)
    }

    /// What an image is made of; the caller holds the store's lock.
    pub(super) fn image_record(&self, id: Digest) -> Result<ImageRecord, FindError> {
        let path = self.image_directory(id).join(RECORD);
        let bytes = read(&path)?.ok_or_else(|| FindError::NotFound(id.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|source| FindError::Damaged { id, source })
    }
}
