//! New images of old ones: another layer, and another configuration.
//!
//! The layer is spooled as it comes, since nobody knows what it is called before its end. Then it is imported as from a layout that
//! lacks the layers below, which the store has.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::super::change::Change;
use super::super::digest::Digest;
use super::super::progress::Silent;
use super::super::reference::Reference;
use super::super::source::{self, ImageSource, Selection};
use super::access::{CONFIG, ImageRecord};
use super::disk::{Hold, WorkDirectory, lock, make_directory, read, write_new};
use super::import::{Import, create};
use super::save::{CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, blob_path};
use super::{FindError, ImportError, ImportOptions, Store, StoreError, StoredImage};

/// What is said of a new image.
#[derive(Clone, Debug, Default)]
pub struct Commitment {
    /// What to call it.
    pub name: Option<Reference>,
    /// When it was made, RFC 3339.
    pub created: String,
    /// By what.
    pub created_by: String,
    /// By whom.
    pub author: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// What the machine was run with, in place of what the configuration says.
    pub as_run: Vec<Change>,
    /// What is to be another in the configuration that comes of that.
    pub changes: Vec<Change>,
}

/// A new image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The image that it is made of is not there.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The layer could not be kept.
    #[error("cannot keep the new layer in the store")]
    Spool(#[source] io::Error),
    /// The layer is too large.
    #[error("the new layer has more than {0} bytes")]
    TooLarge(u64),
    /// The old image's configuration is none.
    #[error("the configuration of the image {0} cannot be changed")]
    Configuration(Digest),
    /// The layer or the configuration is none that an image can have.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl CommitError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Find(error) => error.help(),
            Self::Store(error) => error.help(),
            Self::Import(error) => error.help(),
            _ => None,
        }
    }
}

/// A new image whose layer is being written. Dropped, nothing of it is left.
#[derive(Debug)]
pub struct Draft<'a> {
    store: &'a Store,
    base: Digest,
    record: ImageRecord,
    config: Vec<u8>,
    /// Keeps the old image.
    _lease: File,
    work: WorkDirectory,
    output: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
    limit_bytes: u64,
    failure: Option<CommitError>,
}

impl Store {
    /// Begins a new image on top of another one.
    ///
    /// # Errors
    /// If there is no such image, or the store cannot be written.
    pub fn draft(&self, base: &str) -> Result<Draft<'_>, CommitError> {
        let guard = self.lock(Hold::Shared)?;
        let base = self.resolve(base)?;
        let directory = self.image_directory(base);
        let lease = File::open(&directory).map_err(StoreError::at("open", &directory))?;
        lock(&lease, Hold::Shared).map_err(StoreError::at("lease", &directory))?;
        let record = self.image_record(base)?;
        let config =
            read(&directory.join(CONFIG))?.ok_or_else(|| FindError::NotFound(base.to_string()))?;
        drop(guard);
        let work = WorkDirectory::new(self)?;
        let blobs = work.path().join("layout/blobs/sha256");
        make_directory(&blobs)?;
        let layer = create(&blobs.join("layer")).map_err(CommitError::Spool)?;
        Ok(Draft {
            store: self,
            base,
            record,
            config,
            _lease: lease,
            work,
            output: BufWriter::with_capacity(1 << 20, layer),
            hasher: Sha256::new(),
            bytes: 0,
            limit_bytes: ImportOptions::default().limits.unpacked_bytes,
            failure: None,
        })
    }
}

impl Draft<'_> {
    /// Tells a failure of writing the layer from one of reading it, which is given back.
    ///
    /// # Errors
    /// If it was not the writing that failed.
    pub fn failure(&mut self, error: io::Error) -> Result<CommitError, io::Error> {
        self.failure.take().ok_or(error)
    }

    /// Makes the image of the layer that was written, and names and leases it.
    ///
    /// # Errors
    /// If the layer is none, or the store cannot be written. The store is then as it was.
    pub fn commit(mut self, commitment: &Commitment) -> Result<StoredImage, CommitError> {
        self.output.flush().map_err(CommitError::Spool)?;
        let hasher = std::mem::take(&mut self.hasher);
        let layer = Digest::from_array(hasher.finalize().into());
        let layout = self.work.path().join("layout");
        let spooled = layout.join("blobs/sha256/layer");
        let place = layout.join(blob_path(layer));
        fs::rename(&spooled, &place).map_err(StoreError::at("create", &place))?;
        let config = self
            .configuration(layer, commitment)
            .ok_or(CommitError::Configuration(self.base))?;
        let below = self
            .record
            .layers
            .iter()
            .map(|layer| (layer.diff_id, layer.stream_bytes));
        let layers: Vec<Value> = below
            .chain([(layer, self.bytes)])
            .map(|(digest, size)| json!({"mediaType": LAYER_TYPE, "digest": digest, "size": size}))
            .collect();
        let id = Digest::of(&config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": id, "size": config.len()},
            "layers": layers,
        })
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        let descriptor =
            json!({"mediaType": MANIFEST_TYPE, "digest": digest, "size": manifest.len()});
        let index = json!({"schemaVersion": 2, "manifests": [descriptor]}).to_string();
        write_new(&layout.join(blob_path(id)), &config)?;
        write_new(&layout.join(blob_path(digest)), manifest.as_bytes())?;
        write_new(&layout.join("index.json"), index.as_bytes())?;
        self.import(commitment.name.clone())
    }

    fn import(&self, name: Option<Reference>) -> Result<StoredImage, CommitError> {
        let options = ImportOptions {
            name,
            ..ImportOptions::default()
        };
        let selection = Selection {
            platform: &options.platform,
            name: None,
            limits: &options.limits,
        };
        let source = ImageSource::Path(self.work.path().join("layout"));
        let named = "the new image";
        let no_spool = || Err(io::ErrorKind::Unsupported.into());
        let opened = source::open(source, &selection, &Silent, no_spool).map_err(|source| {
            ImportError::Source {
                name: named.to_owned(),
                source,
            }
        })?;
        let _turn = self.store.wait_for_turn(opened.id)?;
        let import = Import {
            store: self.store,
            name: named,
            options: &options,
            progress: &Silent,
            work: self.work.path(),
            opened: &opened,
            has_layers_below: true,
        };
        Ok(import.run()?)
    }

    /// The new image's configuration: the old one's, with another layer.
    fn configuration(&self, layer: Digest, commitment: &Commitment) -> Option<Vec<u8>> {
        let Value::Object(mut document) = serde_json::from_slice(&self.config).ok()? else {
            return None;
        };
        let diff_ids = document.get_mut("rootfs")?.get_mut("diff_ids")?;
        let diff_ids = diff_ids.as_array_mut()?;
        let layers_below = diff_ids.len();
        diff_ids.push(json!(layer));
        let mut step = Map::new();
        let mut say = |name: &str, text: Option<&String>| {
            step.extend(text.map(|text| (name.to_owned(), json!(text))));
        };
        say("created", Some(&commitment.created));
        say("created_by", Some(&commitment.created_by));
        say("author", commitment.author.as_ref());
        say("comment", commitment.comment.as_ref());
        let mut steps = match document.remove("history") {
            Some(Value::Array(steps)) => steps,
            _ => Vec::new(),
        };
        let is_of_layer =
            |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
        let told = steps.iter().filter(is_of_layer).count();
        // A step for each layer that the old image tells nothing of.
        steps.extend((told..layers_below).map(|_| json!({"created_by": ""})));
        steps.push(Value::Object(step));
        document.insert("history".to_owned(), Value::Array(steps));
        document.insert("created".to_owned(), json!(commitment.created));
        match &commitment.author {
            Some(author) => document.insert("author".to_owned(), json!(author)),
            None => document.remove("author"),
        };
        // What docker says of the container that the old image was made of.
        document.remove("container");
        document.remove("container_config");
        let config = document.entry("config").or_insert_with(|| json!({}));
        if config.is_null() {
            *config = json!({});
        }
        let config = config.as_object_mut()?;
        Change::apply_all(&commitment.as_run, config);
        Change::apply_all(&commitment.changes, config);
        serde_json::to_vec(&document).ok()
    }
}

impl Write for Draft<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let more = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        if self.bytes.saturating_add(more) > self.limit_bytes {
            self.failure = Some(CommitError::TooLarge(self.limit_bytes));
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = self.output.write(buffer).map_err(|error| {
            let kind = error.kind();
            self.failure = Some(CommitError::Spool(error));
            io::Error::from(kind)
        })?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
