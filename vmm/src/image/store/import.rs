//! Imports images.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::compression::Compression;
use super::super::digest::Digest;
use super::super::erofs::{BLOCK_BYTES, Layout, Tree, WindowMap, WriteError, write_tree};
use super::super::layer::{self, Converted, INDEX, LayerError, read_index};
use super::super::limits::Budget;
use super::super::merge::{MergeError, Merger};
use super::super::progress::{Progress, Step};
use super::super::reference::Reference;
use super::super::source::{
    self, FilePart, ImageSource, Layer, OpenedImage, Selection, SourceError,
};
use super::super::tar::Input;
use super::access::{CONFIG, ImageRecord, LAYER_RECORD, LayerRecord, RECORD, TREE};
use super::disk::{
    Hold, WorkDirectory, disk_bytes, lock, make_directory, open_lock_file, write_new,
};
use super::publish::Publication;
use super::read_ahead::{Stream, read_ahead};
use super::sources::Known;
use super::{ImportError, ImportOptions, Store, StoreError, StoredImage};
use crate::boot;

/// Bytes read from a blob at a time.
const READ_BYTES: usize = 256 * 1024;

impl Store {
    /// Imports an image and leases it.
    ///
    /// A file that was imported before and has not changed is not read again. On an error the
    /// store is as it was.
    ///
    /// # Errors
    /// If the source is no image, is damaged or too large, or the store cannot be written.
    pub fn import(
        &self,
        source: ImageSource,
        options: &ImportOptions,
        progress: &dyn Progress,
    ) -> Result<StoredImage, ImportError> {
        let name = source.name();
        let path = match &source {
            ImageSource::Path(path) => Some(path.clone()),
            ImageSource::Stream { .. } => None,
        };
        let record = path
            .as_deref()
            .and_then(|path| self.source_record(path, options));
        let known = || match (&path, &record) {
            (Some(path), Some(record)) => self.import_known(path, record, options),
            _ => Ok(None),
        };
        if let Some(image) = known()? {
            return Ok(image);
        }
        let work = WorkDirectory::new(self)?;
        let selection = Selection {
            platform: &options.platform,
            name: options.select.as_deref(),
            limits: &options.limits,
        };
        let spool = work.path().join("spool");
        let opened = source::open(source, &selection, progress, || create_nameless(&spool))
            .map_err(|source| ImportError::Source {
                name: name.clone(),
                source,
            })?;
        let _turn = self.wait_for_turn(opened.id)?;
        // Whoever was before may have imported the same file.
        if let Some(image) = known()? {
            return Ok(image);
        }
        let import = Import {
            store: self,
            name: &name,
            options,
            progress,
            work: work.path(),
            opened: &opened,
            has_layers_below: false,
        };
        let image = import.run()?;
        if let (Some(record), Some(known)) = (
            &record,
            Known::new(opened.id, import.source_names(), opened.stamps()),
        ) {
            // Only the next run's time depends on it.
            if let Err(error) = self.remember_source(record, &known) {
                tracing::debug!(%error, "source not remembered");
            }
        }
        Ok(image)
    }

    /// Opens what a source that has not changed was imported as; `None` if it was removed since.
    fn import_known(
        &self,
        source: &Path,
        record: &Path,
        options: &ImportOptions,
    ) -> Result<Option<StoredImage>, ImportError> {
        let Some(known) = self.known_source(source, record) else {
            return Ok(None);
        };
        let names = match &options.name {
            Some(name) => vec![name.clone()],
            None => known.names.clone(),
        };
        let guard = self.lock(Hold::Shared)?;
        if !self.has_image(known.id) {
            return Ok(None);
        }
        let image = self.open_image(known.id)?;
        let current = self.names()?;
        drop(guard);
        self.settle(image.id);
        if names
            .iter()
            .any(|name| current.names.get(name) != Some(&known.id))
        {
            let _guard = self.lock(Hold::Exclusive)?;
            self.add_names(known.id, &names)?;
        }
        Ok(Some(image))
    }

    /// Waits until no other import of this image is at work.
    pub(super) fn wait_for_turn(&self, id: Digest) -> Result<Turn, StoreError> {
        let path = self.root.join("imports").join(id.hex());
        loop {
            let file = open_lock_file(&path)?;
            lock(&file, Hold::Exclusive).map_err(StoreError::at("lock", &path))?;
            // Whoever was before may have removed the file.
            let same = fs::metadata(&path)
                .is_ok_and(|named| file.metadata().is_ok_and(|open| open.ino() == named.ino()));
            if same {
                return Ok(Turn { path, _lock: file });
            }
        }
    }
}

/// The right to import one image; the lock's file goes with it.
pub(super) struct Turn {
    path: PathBuf,
    _lock: File,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // Waiters notice that the file is another one. A leftover is removed by `prune`.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| StoreError::at("write", path)(error.into()))?;
    write_new(path, &bytes)
}

/// Makes a file that is gone when it is closed, whatever becomes of this process.
fn create_nameless(path: &Path) -> io::Result<File> {
    let file = create(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// One import at work.
pub(super) struct Import<'a> {
    pub(super) store: &'a Store,
    pub(super) name: &'a str,
    pub(super) options: &'a ImportOptions,
    pub(super) progress: &'a dyn Progress,
    pub(super) work: &'a Path,
    pub(super) opened: &'a OpenedImage,
    /// Whether a layer that the store has is taken from there, and need not be in the source.
    pub(super) has_layers_below: bool,
}

/// A layer that is ready to be used, in the store or in the work directory.
struct Ready {
    directory: PathBuf,
    record: LayerRecord,
    /// Keeps a layer of the store from being removed.
    lease: Option<File>,
}

impl Import<'_> {
    pub(super) fn run(&self) -> Result<StoredImage, ImportError> {
        let mut ready: HashMap<Digest, Ready> = HashMap::new();
        let mut budget = Budget::new(self.options.limits.clone());
        let of = self.opened.layers.len();
        for (index, layer) in self.opened.layers.iter().enumerate() {
            if self.has_layers_below
                && let Some(known) = self.lease_layer(layer.diff_id)?
            {
                ready.entry(layer.diff_id).or_insert(known);
                continue;
            }
            let blob = self
                .opened
                .layer_blob(layer)
                .map_err(|source| self.source_error(source))?;
            self.progress.begin(
                &Step::Layer {
                    number: index + 1,
                    of,
                },
                Some(blob.len()),
            );
            if !ready.contains_key(&layer.diff_id)
                && let Some(known) = self.lease_layer(layer.diff_id)?
            {
                ready.insert(layer.diff_id, known);
            }
            if let Entry::Vacant(place) = ready.entry(layer.diff_id) {
                let directory = self.work.join(format!("layer-{index}"));
                make_directory(&directory)?;
                let record = self.convert(layer, blob, &directory, &mut budget)?;
                place.insert(Ready {
                    directory,
                    record,
                    lease: None,
                });
            } else {
                self.verify_only(layer, blob)?;
            }
        }
        self.progress.begin(&Step::Store, None);
        let made = self.make_image(&ready)?;
        self.publish(&ready, &made)
    }

    /// The names that the source gives the image, those that are none left out.
    fn source_names(&self) -> Vec<Reference> {
        // A bare `latest` is a tag without a name.
        self.opened
            .names
            .iter()
            .filter(|name| *name != "latest")
            .filter_map(|name| name.parse().ok())
            .collect()
    }

    fn source_error(&self, source: SourceError) -> ImportError {
        ImportError::Source {
            name: self.name.to_owned(),
            source,
        }
    }

    fn layer_error(&self, layer: &Layer, source: LayerError) -> ImportError {
        ImportError::Layer {
            name: self.name.to_owned(),
            layer: layer.name(),
            source,
        }
    }

    /// A layer that the store has already.
    fn lease_layer(&self, diff_id: Digest) -> Result<Option<Ready>, StoreError> {
        let _guard = self.store.lock(Hold::Shared)?;
        let Some(record) = self.store.layer_record(diff_id) else {
            return Ok(None);
        };
        let directory = self.store.layer_directory(diff_id);
        let lease = File::open(&directory).map_err(StoreError::at("open", &directory))?;
        lock(&lease, Hold::Shared).map_err(StoreError::at("lease", &directory))?;
        Ok(Some(Ready {
            directory,
            record,
            lease: Some(lease),
        }))
    }

    /// Checks the blob of a layer whose contents are there already.
    fn verify_only(&self, layer: &Layer, blob: FilePart) -> Result<(), ImportError> {
        let compression = match layer.blob {
            Some(_) => Compression::None,
            None => self.compression_of(layer, &blob)?,
        };
        let drain = |mut stream: Stream<'_>| io::copy(&mut stream, &mut io::sink());
        let digests = read_ahead(blob, compression, self.progress, drain)
            .and_then(|(drained, digests)| drained.and(digests))
            .map_err(|source| self.read_error(layer, source))?;
        match layer.blob {
            Some(_) => self.check_blob(layer, digests.blob),
            None => self.check_diff_id(layer, digests.stream),
        }
    }

    fn compression_of(&self, layer: &Layer, blob: &FilePart) -> Result<Compression, ImportError> {
        let mut start = [0; 4];
        let start = blob
            .peek(&mut start)
            .map_err(|source| self.read_error(layer, source))?;
        Ok(Compression::of(start))
    }

    fn read_error(&self, layer: &Layer, source: io::Error) -> ImportError {
        self.source_error(SourceError::Read {
            name: layer.name(),
            source,
        })
    }

    fn check_blob(&self, layer: &Layer, actual: Digest) -> Result<(), ImportError> {
        match layer.blob {
            Some((expected, _)) if expected != actual => {
                Err(self.source_error(SourceError::WrongDigest { expected, actual }))
            }
            _ => Ok(()),
        }
    }

    fn check_diff_id(&self, layer: &Layer, actual: Digest) -> Result<(), ImportError> {
        if actual == layer.diff_id {
            return Ok(());
        }
        Err(ImportError::WrongDiffId {
            name: self.name.to_owned(),
            layer: layer.name(),
            expected: layer.diff_id,
            actual,
        })
    }

    /// Converts a layer and verifies it.
    fn convert(
        &self,
        layer: &Layer,
        blob: FilePart,
        directory: &Path,
        budget: &mut Budget,
    ) -> Result<LayerRecord, ImportError> {
        let compression = self.compression_of(layer, &blob)?;
        let convert = |stream: Stream<'_>| {
            let input = LayerInput {
                stream,
                bytes: 0,
                budget: budget.clone(),
            };
            let Converted { input, data_bytes } = layer::convert(input, directory, budget)?;
            budget.take_unpacked_from(&input.budget);
            Ok(data_bytes)
        };
        let (converted, digests) = read_ahead(blob, compression, self.progress, convert)
            .map_err(|source| self.read_error(layer, source))?;
        let data_bytes = match converted {
            Ok(data_bytes) => data_bytes,
            Err(error) => {
                // Damage is better named by the digest than by where it was stumbled over.
                if layer.blob.is_some()
                    && let Ok(blob) = self.opened.layer_blob(layer)
                {
                    self.verify_only(layer, blob)?;
                }
                return Err(self.layer_error(layer, error));
            }
        };
        let digests = digests.map_err(|source| self.read_error(layer, source))?;
        self.check_blob(layer, digests.blob)?;
        self.check_diff_id(layer, digests.stream)?;
        let record = LayerRecord {
            diff_id: layer.diff_id,
            boot: boot::id().to_owned(),
            data_bytes,
            stream_bytes: digests.stream_bytes,
        };
        write_json(&directory.join(LAYER_RECORD), &record)?;
        Ok(record)
    }

    /// Writes the image's own directory; returns it.
    fn make_image(&self, ready: &HashMap<Digest, Ready>) -> Result<PathBuf, ImportError> {
        let name = || self.name.to_owned();
        let tree = self.merge(ready)?;
        let layout = Layout::new(&tree).map_err(|source| ImportError::Layout {
            name: name(),
            source,
        })?;
        let layers = self
            .opened
            .layers
            .iter()
            .filter_map(|layer| ready.get(&layer.diff_id))
            .map(|ready| ready.record.clone())
            .collect();
        let record = ImageRecord {
            format: ImageRecord::FORMAT,
            boot: boot::id().to_owned(),
            tree_bytes: layout.metadata_bytes(),
            layers,
        };
        let (offsets, size_bytes) = record.window();
        let tree_error = |source| ImportError::Tree {
            name: name(),
            source,
        };
        let blocks = |bytes: u64| {
            u32::try_from(bytes / BLOCK_BYTES).map_err(|_| tree_error(WriteError::WindowTooLarge))
        };
        let map = WindowMap {
            part_blocks: offsets
                .iter()
                .map(|offset| blocks(*offset))
                .collect::<Result<_, _>>()?,
            total_blocks: blocks(size_bytes)?,
        };
        let directory = self.work.join("image");
        make_directory(&directory)?;
        let file =
            create(&directory.join(TREE)).map_err(|error| tree_error(WriteError::Output(error)))?;
        let mut output = BufWriter::with_capacity(1 << 20, file);
        write_tree(&tree, &layout, &map, &mut output).map_err(tree_error)?;
        output
            .into_inner()
            .map_err(|error| tree_error(WriteError::Output(error.into_error())))?;
        write_new(&directory.join(CONFIG), &self.opened.config_bytes)?;
        write_json(&directory.join(RECORD), &record)?;
        Ok(directory)
    }

    fn directory_of(&self, ready: &HashMap<Digest, Ready>, layer: &Layer) -> PathBuf {
        ready.get(&layer.diff_id).map_or_else(
            || self.store.layer_directory(layer.diff_id),
            |ready| ready.directory.clone(),
        )
    }

    fn merge(&self, ready: &HashMap<Digest, Ready>) -> Result<Tree, ImportError> {
        let mut merger = Merger::new();
        for (layer, number) in self.opened.layers.iter().zip(1..) {
            merger.begin_layer(number);
            let path = self.directory_of(ready, layer).join(INDEX);
            let file = File::open(&path).map_err(StoreError::at("open", &path))?;
            read_index(BufReader::with_capacity(READ_BYTES, file), |entry| {
                merger.apply(entry).map_err(ApplyError::Merge)
            })
            .map_err(|error| match error {
                ApplyError::Merge(source) => ImportError::Merge {
                    name: self.name.to_owned(),
                    layer: layer.name(),
                    source,
                },
                ApplyError::Read(source) => StoreError::at("read", &path)(source).into(),
            })?;
        }
        Ok(merger.into_tree())
    }

    /// Moves everything to its place, names it and opens it.
    fn publish(
        &self,
        ready: &HashMap<Digest, Ready>,
        made: &Path,
    ) -> Result<StoredImage, ImportError> {
        let store = self.store;
        let _guard = store.lock(Hold::Exclusive)?;
        if let Some(limit_bytes) = self.options.store_limit_bytes {
            let needed_bytes =
                disk_bytes(&store.root).map_err(StoreError::at("measure", &store.root))?;
            if needed_bytes > limit_bytes {
                return Err(ImportError::StoreLimit {
                    name: self.name.to_owned(),
                    needed_bytes,
                    limit_bytes,
                });
            }
        }
        let mut publication = Publication::default();
        for (diff_id, layer) in ready.iter().filter(|(_, layer)| layer.lease.is_none()) {
            // Another image's import may have been faster.
            if store.layer_record(*diff_id).is_none() {
                let place = store.layer_directory(*diff_id);
                store.clear_place(&place)?;
                publication.publish(&layer.directory, &place)?;
            }
        }
        if !store.has_image(self.opened.id) {
            let place = store.image_directory(self.opened.id);
            store.clear_place(&place)?;
            publication.publish(made, &place)?;
        }
        let image = store.open_image(self.opened.id)?;
        let names = match &self.options.name {
            Some(name) => vec![name.clone()],
            None => self.source_names(),
        };
        store.add_names(self.opened.id, &names)?;
        publication.keep();
        Ok(image)
    }
}

enum ApplyError {
    Merge(MergeError),
    Read(io::Error),
}

impl From<io::Error> for ApplyError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// A layer's tar stream, watched against the limits.
struct LayerInput<'a> {
    stream: Stream<'a>,
    bytes: u64,
    budget: Budget,
}

impl Read for LayerInput<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.bytes += count as u64;
        let compressed = self.stream.compressed_bytes();
        self.budget
            .unpacked(count as u64, self.bytes, compressed)
            .map_err(io::Error::other)?;
        Ok(count)
    }
}

impl Input for LayerInput<'_> {}
