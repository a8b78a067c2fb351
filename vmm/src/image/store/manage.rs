//! Lists, names and removes what is in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;

use oci_spec::image::ImageConfiguration;

use super::super::digest::Digest;
use super::super::reference::Reference;
use super::access::{CONFIG, ImageRecord};
use super::disk::{Hold, digests_in, disk_bytes, is_leased, read};
use super::names::Names;
use super::{FindError, Store, StoreError};

/// One image, as a list shows it.
#[derive(Debug, Clone)]
pub struct ImageSummary {
    /// The digest of its configuration.
    pub id: Digest,
    /// Its names; may be none.
    pub names: Vec<Reference>,
    /// When it was built, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// Bytes on disk, layers that other images share included.
    pub size_bytes: u64,
    /// Number of its layers.
    pub layers: usize,
    /// Whether something holds it.
    pub in_use: bool,
}

/// One step in the making of an image.
#[derive(Debug, Clone)]
pub struct HistoryEntry {
    /// When (RFC 3339).
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// What was said about it.
    pub comment: Option<String>,
    /// Bytes on disk of the layer that it made; `None` if it made none.
    pub layer_bytes: Option<u64>,
}

/// What [`Store::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Names that mean nothing any more.
    pub untagged: Vec<Reference>,
    /// The image, if it is gone.
    pub deleted: Option<Digest>,
}

/// What [`Store::prune`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pruned {
    /// The images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes that are free again.
    pub reclaimed_bytes: u64,
}

/// Which images [`Store::prune`] removes, among those that nothing uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneScope {
    /// Those without a name.
    Unnamed,
    /// All.
    All,
}

/// What the store takes on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Number of images.
    pub images: usize,
    /// Number of images that something holds.
    pub images_in_use: usize,
    /// Number of layers.
    pub layers: usize,
    /// Bytes on disk of everything.
    pub total_bytes: u64,
    /// Bytes that would be free if every image that nothing uses were removed.
    pub reclaimable_bytes: u64,
}

/// Images that are needed by what does not run, each with the name of one that needs it.
pub type Needed = BTreeMap<Digest, String>;

/// An image could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// It is not there.
    #[error(transparent)]
    Find(#[from] FindError),
    /// Something runs it or imports it.
    #[error("the image `{0}` is in use")]
    InUse(String),
    /// Something that does not run needs it.
    #[error("the image `{image}` is needed by machine '{machine}'")]
    Needed {
        /// What was typed.
        image: String,
        /// Who needs it.
        machine: String,
    },
    /// It was meant by its identifier, but has several names.
    #[error("the image {} has several names: {}", id.short(), names.join(", "))]
    SeveralNames {
        /// The image.
        id: Digest,
        /// Its names.
        names: Vec<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl RemoveError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Needed { .. } => Some("remove that machine first with `vmm rm`"),
            Self::Find(error) => error.help(),
            Self::InUse(_) => Some("end the machines that run it first: see `vmm ps`"),
            Self::SeveralNames { .. } => Some("remove it by name, or all its names with --force"),
            Self::Store(error) => error.help(),
        }
    }
}

impl Store {
    /// Lists the images, those with names first, by name.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn images(&self) -> Result<Vec<ImageSummary>, FindError> {
        let _guard = self.lock(Hold::Exclusive)?;
        let names = self.names()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            let record = self.image_record(id)?;
            images.push(ImageSummary {
                id,
                names: names.of(id),
                created: self.configuration(id)?.created().clone(),
                size_bytes: self.image_bytes(id, &record)?,
                layers: record.layers.len(),
                in_use: is_leased(&self.image_directory(id))?,
            });
        }
        images.sort_by_key(|image| {
            (
                image.names.is_empty(),
                image.names.first().cloned(),
                image.id,
            )
        });
        Ok(images)
    }

    /// Gives an image one more name; a name that meant another image means this one from now on.
    ///
    /// # Errors
    /// If there is no such image, or the store cannot be written.
    pub fn tag(&self, reference: &str, name: &Reference) -> Result<Digest, FindError> {
        let _guard = self.lock(Hold::Exclusive)?;
        let id = self.resolve(reference)?;
        self.add_names(id, std::slice::from_ref(name))?;
        Ok(id)
    }

    /// Takes a name away, and the image with its last name.
    ///
    /// By identifier, the image and its name; if it has several, only with `force`. `needed` is asked while nobody gets another image.
    ///
    /// # Errors
    /// If there is no such image, it is in use or needed, or the store cannot be written.
    pub fn remove(
        &self,
        reference: &str,
        force: bool,
        needed: impl FnOnce() -> io::Result<Needed>,
    ) -> Result<Removed, RemoveError> {
        let _guard = self.lock(Hold::Exclusive)?;
        let id = self.resolve(reference)?;
        let mut names = self.names()?;
        let own = names.of(id);
        let meant = reference
            .parse::<Reference>()
            .ok()
            .filter(|name| names.names.get(name) == Some(&id));
        if let Some(name) = &meant
            && own.len() > 1
        {
            names.names.remove(name);
            self.set_names(&names)?;
            return Ok(Removed {
                untagged: vec![name.clone()],
                deleted: None,
            });
        }
        if own.len() > 1 && !force {
            return Err(RemoveError::SeveralNames {
                id,
                names: own.iter().map(ToString::to_string).collect(),
            });
        }
        if is_leased(&self.image_directory(id))? {
            return Err(RemoveError::InUse(reference.to_owned()));
        }
        if let Some(machine) = self.ask(needed)?.remove(&id) {
            return Err(RemoveError::Needed {
                image: reference.to_owned(),
                machine,
            });
        }
        self.forget(&mut names, id)?;
        self.remove_if_unused(&self.image_directory(id))?;
        self.remove_orphans()?;
        Ok(Removed {
            untagged: own,
            deleted: Some(id),
        })
    }

    /// Who needs images; the caller holds the store's lock.
    fn ask(&self, needed: impl FnOnce() -> io::Result<Needed>) -> Result<Needed, StoreError> {
        needed().map_err(StoreError::at("find out who needs images of", &self.root))
    }

    /// Removes images that nothing uses or needs, and everything that no image needs. `needed` is asked while nobody gets another
    /// image.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn prune(
        &self,
        scope: PruneScope,
        needed: impl FnOnce() -> io::Result<Needed>,
    ) -> Result<Pruned, FindError> {
        let _guard = self.lock(Hold::Exclusive)?;
        let needed = self.ask(needed)?;
        let measure = || disk_bytes(&self.root).map_err(StoreError::at("measure", &self.root));
        let before = measure()?;
        let mut names = self.names()?;
        let mut deleted = Vec::new();
        for id in self.image_ids()? {
            let wanted = scope == PruneScope::Unnamed && !names.of(id).is_empty();
            let directory = self.image_directory(id);
            if wanted || needed.contains_key(&id) || is_leased(&directory)? {
                continue;
            }
            self.forget(&mut names, id)?;
            if self.remove_if_unused(&directory)? {
                deleted.push(id);
            }
        }
        let scratch = self.scratch();
        super::disk::remove_abandoned(&scratch).map_err(StoreError::at("clean", &scratch))?;
        self.remove_orphans()?;
        self.forget_sources()?;
        let reclaimed_bytes = before.saturating_sub(measure()?);
        Ok(Pruned {
            deleted,
            reclaimed_bytes,
        })
    }

    /// How an image was made, the last step first.
    ///
    /// # Errors
    /// If there is no such image or the store cannot be read.
    pub fn history(&self, reference: &str) -> Result<Vec<HistoryEntry>, FindError> {
        let _guard = self.lock(Hold::Shared)?;
        let id = self.resolve(reference)?;
        let record = self.image_record(id)?;
        let mut layers = Vec::new();
        for layer in &record.layers {
            let directory = self.layer_directory(layer.diff_id);
            layers.push(disk_bytes(&directory).map_err(StoreError::at("measure", &directory))?);
        }
        let mut layers = layers.into_iter();
        let config = self.configuration(id)?;
        let mut entries: Vec<HistoryEntry> = config
            .history()
            .iter()
            .flatten()
            .map(|step| HistoryEntry {
                created: step.created().clone(),
                created_by: step.created_by().clone(),
                comment: step.comment().clone(),
                layer_bytes: if step.empty_layer() == Some(true) {
                    None
                } else {
                    layers.next()
                },
            })
            .collect();
        // Layers of which the configuration tells nothing.
        entries.extend(layers.map(|bytes| HistoryEntry {
            created: None,
            created_by: None,
            comment: None,
            layer_bytes: Some(bytes),
        }));
        entries.reverse();
        Ok(entries)
    }

    /// What the store takes on the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn usage(&self) -> Result<Usage, FindError> {
        let _guard = self.lock(Hold::Exclusive)?;
        let mut usage = Usage::default();
        let mut layers: BTreeMap<Digest, u64> = BTreeMap::new();
        for diff_id in digests_in(&self.root.join("layers"))? {
            let directory = self.layer_directory(diff_id);
            let bytes = disk_bytes(&directory).map_err(StoreError::at("measure", &directory))?;
            layers.insert(diff_id, bytes);
        }
        let mut needed = BTreeSet::new();
        for id in self.image_ids()? {
            usage.images += 1;
            let directory = self.image_directory(id);
            if is_leased(&directory)? {
                usage.images_in_use += 1;
                needed.extend(
                    self.image_record(id)?
                        .layers
                        .iter()
                        .map(|layer| layer.diff_id),
                );
            } else {
                usage.reclaimable_bytes +=
                    disk_bytes(&directory).map_err(StoreError::at("measure", &directory))?;
            }
        }
        usage.layers = layers.len();
        usage.total_bytes =
            disk_bytes(&self.root).map_err(StoreError::at("measure", &self.root))?;
        usage.reclaimable_bytes += layers
            .iter()
            .filter(|(id, _)| !needed.contains(id))
            .map(|(_, bytes)| bytes)
            .sum::<u64>();
        Ok(usage)
    }

    /// The configuration of an image; the caller holds the store's lock.
    pub(super) fn configuration(&self, id: Digest) -> Result<ImageConfiguration, FindError> {
        let bytes = read(&self.image_directory(id).join(CONFIG))?
            .ok_or_else(|| FindError::NotFound(id.to_string()))?;
        serde_json::from_slice(&bytes).map_err(|source| FindError::Damaged { id, source })
    }

    fn image_bytes(&self, id: Digest, record: &ImageRecord) -> Result<u64, StoreError> {
        let layers: BTreeSet<Digest> = record.layers.iter().map(|layer| layer.diff_id).collect();
        let own = self.image_directory(id);
        layers
            .into_iter()
            .map(|diff_id| self.layer_directory(diff_id))
            .chain([own])
            .map(|directory| disk_bytes(&directory).map_err(StoreError::at("measure", &directory)))
            .sum()
    }

    /// Takes all names of an image away.
    fn forget(&self, names: &mut Names, id: Digest) -> Result<(), StoreError> {
        let before = names.names.len();
        names.names.retain(|_, named| *named != id);
        if names.names.len() == before {
            Ok(())
        } else {
            self.set_names(names)
        }
    }

    /// Removes what was remembered of sources whose image is gone, and locks of past imports.
    fn forget_sources(&self) -> Result<(), StoreError> {
        let sources = self.root.join("sources");
        for entry in fs::read_dir(&sources).map_err(StoreError::at("list", &sources))? {
            let path = entry.map_err(StoreError::at("list", &sources))?.path();
            let known = super::sources::image_of(&path);
            if known.is_none_or(|id| !self.has_image(id)) {
                fs::remove_file(&path).map_err(StoreError::at("remove", &path))?;
            }
        }
        let imports = self.root.join("imports");
        for entry in fs::read_dir(&imports).map_err(StoreError::at("list", &imports))? {
            let path = entry.map_err(StoreError::at("list", &imports))?.path();
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if super::disk::try_lock(&file).map_err(StoreError::at("lock", &path))? {
                super::disk::gone_is_fine(fs::remove_file(&path))
                    .map_err(StoreError::at("remove", &path))?;
            }
        }
        Ok(())
    }
}
