//! Writes an image as an archive again.
//!
//! An OCI archive whose layers are uncompressed, with the `manifest.json` of `docker save`
//! beside the index, so that both kinds of reader take it. The store keeps no compressed blobs:
//! a layer's tar stream is put together from its data and frame, and its digest checked once
//! more on the way out. Configuration and image identifier are those of the import.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::super::digest::Digest;
use super::super::layer::{DATA, FRAME, replay};
use super::super::reference::Reference;
use super::access::{CONFIG, LayerRecord};
use super::disk::{Hold, lock, read};
use super::{FindError, Store, StoreError, StoredImage};

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It is not there.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The archive could not be written.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    /// A layer in the store is not what it was.
    #[error("the layer {0} in the store is damaged")]
    Damaged(Digest),
}

impl SaveError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Find(error) => error.help(),
            Self::Store(error) => error.help(),
            Self::Damaged(_) => Some("remove the image by `vmm rmi` and import it again"),
            Self::Output(_) => None,
        }
    }
}

impl Store {
    /// Writes one image, with the names it is given here or all its own, to `output`.
    ///
    /// # Errors
    /// If there is no such image, or it cannot be read or written.
    pub fn save(&self, reference: &str, output: &mut dyn Write) -> Result<(), SaveError> {
        let guard = self.lock(Hold::Shared)?;
        let id = self.resolve(reference)?;
        let directory = self.image_directory(id);
        let lease = File::open(&directory).map_err(StoreError::at("open", &directory))?;
        lock(&lease, Hold::Shared).map_err(StoreError::at("lease", &directory))?;
        let all = self.names()?.of(id);
        let record = self.image_record(id)?;
        drop(guard);
        let meant = reference
            .parse::<Reference>()
            .ok()
            .filter(|name| all.contains(name));
        let names = meant.map_or(all, |name| vec![name]);
        let config =
            read(&directory.join(CONFIG))?.ok_or_else(|| FindError::NotFound(id.to_string()))?;
        let mut archive = Archive {
            output: BufWriter::with_capacity(1 << 20, output),
        };
        self.write_archive(&mut archive, id, &config, &record.layers, &names)
    }

    /// Writes an image to `output` under one name that need not be its own.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn save_as(
        &self,
        image: &StoredImage,
        name: &Reference,
        output: &mut dyn Write,
    ) -> Result<(), SaveError> {
        let record = self.image_record(image.id)?;
        let config = read(&self.image_directory(image.id).join(CONFIG))?
            .ok_or_else(|| FindError::NotFound(image.id.to_string()))?;
        let mut archive = Archive {
            output: BufWriter::with_capacity(1 << 20, output),
        };
        let names = std::slice::from_ref(name);
        self.write_archive(&mut archive, image.id, &config, &record.layers, names)
    }

    fn write_archive(
        &self,
        archive: &mut Archive<'_>,
        id: Digest,
        config: &[u8],
        layers: &[LayerRecord],
        names: &[Reference],
    ) -> Result<(), SaveError> {
        let layer_descriptors: Vec<_> = layers
            .iter()
            .map(|layer| json!({"mediaType": LAYER_TYPE, "digest": layer.diff_id, "size": layer.stream_bytes}))
            .collect();
        let manifest = to_bytes(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": id, "size": config.len()},
            "layers": layer_descriptors,
        }))?;
        let digest = Digest::of(&manifest);
        let plain = json!({"mediaType": MANIFEST_TYPE, "digest": digest, "size": manifest.len()});
        let named = names.iter().map(|name| {
            let mut descriptor = plain.clone();
            descriptor["annotations"] = json!({
                "io.containerd.image.name": name.canonical(),
                "org.opencontainers.image.ref.name": name.tag(),
            });
            descriptor
        });
        let manifests: Vec<_> = if names.is_empty() {
            vec![plain.clone()]
        } else {
            named.collect()
        };
        let docker = json!([{
            "Config": blob_path(id),
            "RepoTags": names.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "Layers": layers.iter().map(|layer| blob_path(layer.diff_id)).collect::<Vec<_>>(),
        }]);
        archive.file(
            "oci-layout",
            &to_bytes(&json!({"imageLayoutVersion": "1.0.0"}))?,
        )?;
        archive.file(
            "index.json",
            &to_bytes(&json!({"schemaVersion": 2, "manifests": manifests}))?,
        )?;
        archive.file("manifest.json", &to_bytes(&docker)?)?;
        archive.file(&blob_path(digest), &manifest)?;
        archive.file(&blob_path(id), config)?;
        let mut written = Vec::new();
        for layer in layers {
            if !written.contains(&layer.diff_id) {
                self.write_layer(archive, layer)?;
                written.push(layer.diff_id);
            }
        }
        archive.finish().map_err(SaveError::Output)
    }

    fn write_layer(&self, archive: &mut Archive<'_>, layer: &LayerRecord) -> Result<(), SaveError> {
        archive
            .header(&blob_path(layer.diff_id), layer.stream_bytes)
            .map_err(SaveError::Output)?;
        let directory = self.layer_directory(layer.diff_id);
        let open = |name| {
            let path = directory.join(name);
            File::open(&path).map_err(StoreError::at("open", &path))
        };
        let frame = BufReader::new(open(FRAME)?);
        let data = open(DATA)?;
        let mut stream = Stream {
            archive,
            hasher: Sha256::new(),
            bytes: 0,
            failed: false,
        };
        if let Err(error) = replay(frame, &data, &mut stream) {
            return Err(if stream.failed {
                SaveError::Output(error)
            } else {
                StoreError::at("read", &directory)(error).into()
            });
        }
        let (digest, bytes) = (stream.hasher.finalize(), stream.bytes);
        if bytes != layer.stream_bytes || layer.diff_id != Digest::from_array(digest.into()) {
            return Err(SaveError::Damaged(layer.diff_id));
        }
        archive.pad(bytes).map_err(SaveError::Output)
    }
}

pub(super) fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn to_bytes(value: &serde_json::Value) -> Result<Vec<u8>, SaveError> {
    serde_json::to_vec(value).map_err(|error| SaveError::Output(error.into()))
}

/// A tar archive that is being written.
struct Archive<'a> {
    output: BufWriter<&'a mut dyn Write>,
}

impl Archive<'_> {
    fn header(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let padding = bytes.next_multiple_of(512) - bytes;
        io::copy(
            &mut io::Read::take(io::repeat(0), padding),
            &mut self.output,
        )
        .map(drop)
    }

    fn file(&mut self, name: &str, contents: &[u8]) -> Result<(), SaveError> {
        let mut write = || {
            self.header(name, contents.len() as u64)?;
            self.output.write_all(contents)?;
            self.pad(contents.len() as u64)
        };
        write().map_err(SaveError::Output)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.output.write_all(&[0; 1024])?;
        self.output.flush()
    }
}

/// A layer on its way into an archive.
struct Stream<'a, 'b> {
    archive: &'a mut Archive<'b>,
    hasher: Sha256,
    bytes: u64,
    /// Whether it was the archive that failed, not the store.
    failed: bool,
}

impl Write for Stream<'_, '_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self
            .archive
            .output
            .write(buffer)
            .inspect_err(|_| self.failed = true)?;
        self.hasher.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
