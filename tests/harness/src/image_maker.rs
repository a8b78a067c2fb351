//! Makes images from declared layers: good ones of every shape that real tools write, and hostile ones.
//!
//! A [`Layer`] becomes a tar stream; an [`ImageMaker`] joins layers and a configuration into a [`Layout`], which is nothing but
//! blobs and an index in memory. A hostile image is a good layout with one thing changed, so that a test says exactly
//! what is wrong with it.
//!
//! Formats: OCI image-spec 1.1 (layout, index, manifest, configuration) and the files of `docker save`.

mod layer;
mod tar;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::snapshot::sha256;

pub use layer::{Compression, Layer};
pub use tar::{Kind, TarWriter};

/// Media type of an image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// Declares an image.
#[derive(Clone, Debug)]
pub struct ImageMaker {
    layers: Vec<Layer>,
    config: Value,
    names: Vec<String>,
    architecture: String,
    system: String,
}

impl Default for ImageMaker {
    fn default() -> Self {
        Self::empty()
    }
}

impl ImageMaker {
    /// An image without layers, command or name.
    pub fn empty() -> Self {
        Self {
            layers: Vec::new(),
            config: json!({}),
            names: Vec::new(),
            architecture: "amd64".into(),
            system: "linux".into(),
        }
    }

    /// An image of Debian's static busybox that runs `echo hello`.
    pub fn busybox() -> Self {
        Self::empty()
            .layer(Layer::busybox())
            .config("Cmd", json!(["echo", "hello"]))
            .config("Env", json!(["PATH=/bin"]))
    }

    /// Adds a layer on top.
    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets one field of the configuration's `config` object, such as `Cmd` or `User`.
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// Adds a name such as `demo:1`.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.into());
        self
    }

    /// Declares another platform than linux/amd64.
    #[must_use]
    pub fn platform(mut self, system: &str, architecture: &str) -> Self {
        self.system = system.into();
        self.architecture = architecture.into();
        self
    }

    /// Makes the layout.
    pub fn layout(&self) -> Layout {
        let mut layout = Layout::empty();
        let manifest = self.add_to(&mut layout);
        let descriptor = layout.add_json(MANIFEST, &manifest);
        layout.index = index(&self.named(&descriptor));
        layout
    }

    /// Adds blobs of layers and configuration to `layout` and returns the manifest.
    pub fn add_to(&self, layout: &mut Layout) -> Value {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| layout.add(layer.media_type(), &layer.blob()))
            .collect();
        let config = layout.add_json(CONFIG, &self.configuration());
        json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers })
    }

    /// Returns the image configuration.
    pub fn configuration(&self) -> Value {
        let diff_ids: Vec<String> = self
            .layers
            .iter()
            .map(|layer| digest(&layer.tar()))
            .collect();
        let history: Vec<Value> = (1..=self.layers.len())
            .map(|number| json!({ "created": "2026-01-02T03:04:05Z", "created_by": format!("layer {number}") }))
            .collect();
        json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": self.architecture,
            "os": self.system,
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        })
    }

    /// Repeats a descriptor once for each name, as tools write an index.
    fn named(&self, descriptor: &Value) -> Vec<Value> {
        if self.names.is_empty() {
            return vec![descriptor.clone()];
        }
        self.names
            .iter()
            .map(|name| with_name(descriptor, name))
            .collect()
    }

    /// Makes an archive as `docker save` wrote it before version 25: a directory for each layer and `manifest.json`.
    pub fn old_docker_archive(&self) -> Vec<u8> {
        let mut archive = TarWriter::default();
        let mut paths = Vec::new();
        for layer in &self.layers {
            let tar = layer.tar();
            let directory = sha256(&tar);
            let path = format!("{directory}/layer.tar");
            archive.plain_file(&format!("{directory}/VERSION"), b"1.0");
            archive.plain_file(&path, &tar);
            paths.push(path);
        }
        self.finish_docker_archive(archive, &paths)
    }

    /// Makes an archive as `skopeo` writes docker archives: layers in `HASH.tar`, and beside them, for old readers,
    /// directories whose `layer.tar` is a symlink to one of those.
    pub fn skopeo_docker_archive(&self) -> Vec<u8> {
        self.docker_archive_with_links(|file, _| file.into())
    }

    /// Makes the same archive, but with a manifest that names the symlinks: `docker save` did so where two images
    /// had a layer in common.
    pub fn linked_docker_archive(&self) -> Vec<u8> {
        self.docker_archive_with_links(|_, link| link.into())
    }

    fn docker_archive_with_links(&self, named: impl Fn(&str, &str) -> String) -> Vec<u8> {
        let mut archive = TarWriter::default();
        let mut paths = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let tar = layer.tar();
            let file = format!("{}.tar", sha256(&tar));
            let link = format!("legacy{number}/layer.tar");
            archive.plain_file(&file, &tar);
            archive.plain_symlink(&link, &format!("../{file}"));
            paths.push(named(&file, &link));
        }
        self.finish_docker_archive(archive, &paths)
    }

    /// Makes an archive as `docker save` writes it since version 25: an OCI layout with a `manifest.json` beside it.
    pub fn docker_archive(&self) -> Vec<u8> {
        let layout = self.layout();
        let mut archive = TarWriter::default();
        layout.write_into(&mut archive, "");
        let config = serde_json::to_vec(&self.configuration()).expect("JSON can be written");
        let paths: Vec<String> = self
            .layers
            .iter()
            .map(|layer| format!("blobs/sha256/{}", sha256(&layer.blob())))
            .collect();
        let manifest = json!([{
            "Config": format!("blobs/sha256/{}", sha256(&config)), "RepoTags": self.names, "Layers": paths,
        }]);
        archive.plain_file("manifest.json", manifest.to_string().as_bytes());
        archive.finish()
    }

    fn finish_docker_archive(&self, mut archive: TarWriter, paths: &[String]) -> Vec<u8> {
        let config = serde_json::to_vec(&self.configuration()).expect("JSON can be written");
        let config_path = format!("{}.json", sha256(&config));
        archive.plain_file(&config_path, &config);
        let manifest = json!([{ "Config": config_path, "RepoTags": self.names, "Layers": paths }]);
        archive.plain_file("manifest.json", manifest.to_string().as_bytes());
        archive.finish()
    }
}

/// An OCI image layout in memory: any part of it may be changed before it is written.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Blobs by the hexadecimal SHA-256 that they are filed under.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// The content of `index.json`.
    pub index: Value,
    /// The content of `oci-layout`.
    pub marker: Value,
}

impl Layout {
    /// A layout without blobs.
    pub fn empty() -> Self {
        Self {
            blobs: BTreeMap::new(),
            index: index(&[]),
            marker: json!({ "imageLayoutVersion": "1.0.0" }),
        }
    }

    /// Adds a blob and returns its descriptor.
    pub fn add(&mut self, media_type: &str, blob: &[u8]) -> Value {
        self.blobs.insert(sha256(blob), blob.to_vec());
        json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() })
    }

    /// Adds a JSON document as a blob and returns its descriptor.
    pub fn add_json(&mut self, media_type: &str, document: &Value) -> Value {
        self.add(
            media_type,
            &serde_json::to_vec(document).expect("JSON can be written"),
        )
    }

    /// Returns the manifest that the index's first entry points to.
    pub fn manifest(&self) -> Value {
        let blob = &self.blobs[&self.manifest_key()];
        serde_json::from_slice(blob).expect("the maker's manifest is JSON")
    }

    /// Changes the manifest and files it under its new digest, so that only the change itself is wrong.
    #[must_use]
    pub fn with_manifest(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest = self.manifest();
        let key = self.manifest_key();
        self.blobs.remove(&key);
        change(&mut manifest);
        let descriptor = self.add_json(MANIFEST, &manifest);
        for entry in self.index["manifests"]
            .as_array_mut()
            .expect("an index lists manifests")
        {
            entry["digest"] = descriptor["digest"].clone();
            entry["size"] = descriptor["size"].clone();
        }
        self
    }

    /// Changes the configuration and files it and the manifest under their new digests.
    #[must_use]
    pub fn with_configuration(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let key = key_of(&self.manifest()["config"]);
        let blob = self
            .blobs
            .remove(&key)
            .expect("the maker's configuration is filed");
        let mut configuration =
            serde_json::from_slice(&blob).expect("the maker's configuration is JSON");
        change(&mut configuration);
        let descriptor = self.add_json(CONFIG, &configuration);
        self.with_manifest(|manifest| manifest["config"] = descriptor)
    }

    /// Changes the index.
    #[must_use]
    pub fn with_index(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.index);
        self
    }

    /// Replaces the content of the blob of layer `number`, but not the digest that it is filed under.
    #[must_use]
    pub fn with_layer_content(mut self, number: usize, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let key = self.layer_key(number);
        change(
            self.blobs
                .get_mut(&key)
                .expect("the maker's layers are filed"),
        );
        self
    }

    /// Leaves out the blob of layer `number`.
    #[must_use]
    pub fn without_layer_content(mut self, number: usize) -> Self {
        let key = self.layer_key(number);
        self.blobs.remove(&key);
        self
    }

    /// Returns the hexadecimal digest of layer `number`'s blob.
    pub fn layer_key(&self, number: usize) -> String {
        key_of(&self.manifest()["layers"][number])
    }

    /// Returns the hexadecimal digest of the configuration: the image's id.
    pub fn image_id(&self) -> String {
        key_of(&self.manifest()["config"])
    }

    /// Returns the hexadecimal digest of the manifest.
    pub fn manifest_key(&self) -> String {
        key_of(&self.index["manifests"][0])
    }

    /// Makes an OCI archive: a tar of the layout.
    pub fn archive(&self) -> Vec<u8> {
        self.archive_with_prefix("")
    }

    /// Makes an OCI archive whose member names all start with `prefix`, such as `./`.
    pub fn archive_with_prefix(&self, prefix: &str) -> Vec<u8> {
        let mut archive = TarWriter::default();
        self.write_into(&mut archive, prefix);
        archive.finish()
    }

    /// Makes an OCI archive with the blobs before the index.
    pub fn archive_blobs_first(&self) -> Vec<u8> {
        let mut archive = TarWriter::default();
        self.write_blobs(&mut archive, "");
        self.write_documents(&mut archive, "");
        archive.finish()
    }

    /// Writes the layout as a directory.
    pub fn write_directory(&self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        let written = fs::create_dir_all(&blobs)
            .and_then(|()| fs::write(directory.join("oci-layout"), self.marker.to_string()))
            .and_then(|()| fs::write(directory.join("index.json"), self.index.to_string()))
            .and_then(|()| {
                self.blobs
                    .iter()
                    .try_for_each(|(key, blob)| fs::write(blobs.join(key), blob))
            });
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", directory.display()));
    }

    fn write_into(&self, archive: &mut TarWriter, prefix: &str) {
        self.write_documents(archive, prefix);
        self.write_blobs(archive, prefix);
    }

    fn write_documents(&self, archive: &mut TarWriter, prefix: &str) {
        archive.plain_file(
            &format!("{prefix}oci-layout"),
            self.marker.to_string().as_bytes(),
        );
        archive.plain_file(
            &format!("{prefix}index.json"),
            self.index.to_string().as_bytes(),
        );
    }

    fn write_blobs(&self, archive: &mut TarWriter, prefix: &str) {
        for (key, blob) in &self.blobs {
            archive.plain_file(&format!("{prefix}blobs/sha256/{key}"), blob);
        }
    }
}

/// Makes an index document of these descriptors.
pub fn index(descriptors: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors })
}

/// Adds a name to a descriptor.
pub fn with_name(descriptor: &Value, name: &str) -> Value {
    let mut named = descriptor.clone();
    named["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
    named
}

/// Adds a platform to a descriptor.
pub fn with_platform(descriptor: &Value, system: &str, architecture: &str) -> Value {
    let mut placed = descriptor.clone();
    placed["platform"] = json!({ "os": system, "architecture": architecture });
    placed
}

/// Returns the digest of bytes as images write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// Compresses bytes.
pub fn compress(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder
                .write_all(bytes)
                .and_then(|()| encoder.finish())
                .expect("gzip into memory")
        }
        Compression::Zstd => zstd::encode_all(bytes, 1).expect("zstd into memory"),
    }
}

fn key_of(descriptor: &Value) -> String {
    let digest = descriptor["digest"]
        .as_str()
        .expect("the maker's descriptors have digests");
    digest
        .strip_prefix("sha256:")
        .expect("the maker's digests are SHA-256")
        .into()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn maker() -> ImageMaker {
        let layers = [Compression::None, Compression::Gzip];
        layers
            .into_iter()
            .fold(ImageMaker::empty(), |maker, compression| {
                maker.layer(
                    Layer::new()
                        .file("etc/motd", format!("{compression:?}"))
                        .compressed(compression),
                )
            })
            .name("demo:1")
    }

    /// Lets skopeo, a reader that is not ours, copy the image and verify every digest on the way.
    fn copied_by_skopeo(transport: &str, archive: &[u8], reference: &str) {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("image");
        fs::write(&file, archive).unwrap();
        let done = Command::new("skopeo")
            .args(["copy", "--insecure-policy"])
            .arg(format!("{transport}:{}{reference}", file.display()))
            .arg(format!("dir:{}", scratch.path().join("copy").display()))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
    }

    #[test]
    fn skopeo_reads_our_oci_archives() {
        copied_by_skopeo("oci-archive", &maker().layout().archive(), ":demo:1");
        copied_by_skopeo("oci-archive", &maker().layout().archive_blobs_first(), "");
        copied_by_skopeo(
            "oci-archive",
            &maker().layout().archive_with_prefix("./"),
            "",
        );
    }

    #[test]
    fn skopeo_reads_our_docker_archives() {
        copied_by_skopeo("docker-archive", &maker().old_docker_archive(), "");
        copied_by_skopeo("docker-archive", &maker().skopeo_docker_archive(), "");
        copied_by_skopeo("docker-archive", &maker().docker_archive(), "");
    }

    #[test]
    fn skopeo_finds_a_changed_layer() {
        let spoiled = maker()
            .layout()
            .with_layer_content(0, |content| content[700] ^= 1);
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("image");
        fs::write(&file, spoiled.archive()).unwrap();
        let source = format!("oci-archive:{}", file.display());
        let copy = format!("dir:{}", scratch.path().join("copy").display());
        let done = Command::new("skopeo")
            .args(["copy", "--insecure-policy", &source, &copy])
            .output()
            .unwrap();
        assert!(!done.status.success());
    }
}
