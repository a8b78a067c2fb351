//! Makes archives and images, good and bad, in memory.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::image::Digest;

/// A tar archive in the making; every member is as plain as the test leaves it.
#[derive(Debug, Clone, Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

/// The fields of one member.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) path: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: u64,
    pub(super) link: Vec<u8>,
    pub(super) device: (u64, u64),
}

impl Header {
    pub(super) fn new(kind: u8, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref().to_vec();
        Self {
            path,
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1000,
            link: Vec::new(),
            device: (0, 0),
        }
    }

    pub(super) fn to_block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        block[..self.path.len()].copy_from_slice(&self.path);
        octal(&mut block[100..108], u64::from(self.mode));
        octal(&mut block[108..116], self.uid);
        octal(&mut block[116..124], self.gid);
        octal(&mut block[124..136], self.size);
        octal(&mut block[136..148], self.mtime);
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(&self.link);
        block[257..265].copy_from_slice(b"ustar  \0");
        octal(&mut block[329..337], self.device.0);
        octal(&mut block[337..345], self.device.1);
        with_checksum(block)
    }
}

/// Fills in a header's checksum.
pub(super) fn with_checksum(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub(super) fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}\0");
    field.copy_from_slice(text.as_bytes());
}

impl Tar {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(super) fn member(mut self, header: &Header, contents: &[u8]) -> Self {
        self.bytes.extend_from_slice(&header.to_block());
        self.bytes.extend_from_slice(contents);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(super) fn file(self, path: impl AsRef<[u8]>, contents: impl AsRef<[u8]>) -> Self {
        let contents = contents.as_ref();
        self.member(
            &Header {
                size: contents.len() as u64,
                ..Header::new(b'0', path)
            },
            contents,
        )
    }

    pub(super) fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.member(
            &Header {
                mode: 0o755,
                ..Header::new(b'5', path)
            },
            b"",
        )
    }

    pub(super) fn symlink(self, path: impl AsRef<[u8]>, target: &str) -> Self {
        self.member(
            &Header {
                link: target.into(),
                ..Header::new(b'2', path)
            },
            b"",
        )
    }

    pub(super) fn hard_link(self, path: impl AsRef<[u8]>, target: &str) -> Self {
        self.member(
            &Header {
                link: target.into(),
                ..Header::new(b'1', path)
            },
            b"",
        )
    }

    pub(super) fn device(self, path: &str, kind: u8, major: u64, minor: u64) -> Self {
        self.member(
            &Header {
                device: (major, minor),
                ..Header::new(kind, path)
            },
            b"",
        )
    }

    /// A PAX header for the member behind it.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (1..)
                .find(|length| rest + length.to_string().len() == *length)
                .unwrap();
            body.extend(format!("{length} {key}=").as_bytes());
            body.extend(*value);
            body.push(b'\n');
        }
        self.member(
            &Header {
                size: body.len() as u64,
                ..Header::new(b'x', "pax")
            },
            &body,
        )
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(super) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An OCI layout in memory: files by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Layout {
    pub(super) files: BTreeMap<String, Vec<u8>>,
}

/// An image in the making; each field can be made wrong before it is laid out.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// Blobs with their media type and the digest of their tar stream.
    pub(super) layers: Vec<(Vec<u8>, String, Digest)>,
    pub(super) architecture: &'static str,
    pub(super) config: Value,
    pub(super) name: Option<&'static str>,
}

impl Image {
    pub(super) fn new() -> Self {
        Self {
            layers: Vec::new(),
            architecture: "amd64",
            config: json!({"Cmd": ["/bin/sh"]}),
            name: None,
        }
    }

    pub(super) fn of(tar: Tar) -> Self {
        Self::new().layer(tar)
    }

    pub(super) fn layer(mut self, tar: Tar) -> Self {
        let bytes = tar.finish();
        let digest = Digest::of(&bytes);
        self.layers.push((bytes, LAYER.to_owned(), digest));
        self
    }

    pub(super) fn compressed(
        mut self,
        tar: Tar,
        suffix: &str,
        compress: fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let bytes = tar.finish();
        self.layers.push((
            compress(&bytes),
            format!("{LAYER}{suffix}"),
            Digest::of(&bytes),
        ));
        self
    }

    pub(super) fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    pub(super) fn config_bytes(&self) -> Vec<u8> {
        let diff_ids: Vec<_> = self
            .layers
            .iter()
            .map(|(_, _, diff_id)| diff_id.to_string())
            .collect();
        serde_json::to_vec(&json!({
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }))
        .unwrap()
    }

    /// Adds blobs and manifest to a layout; returns the manifest's descriptor.
    pub(super) fn add_to(&self, layout: &mut Layout) -> Value {
        let config = layout.blob(CONFIG, self.config_bytes());
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(blob, kind, _)| layout.blob(kind, blob.clone()))
            .collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let mut descriptor = layout.blob(MANIFEST, serde_json::to_vec(&manifest).unwrap());
        if let Some(name) = self.name {
            descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        descriptor
    }

    pub(super) fn layout(&self) -> Layout {
        let mut layout = Layout::default();
        let descriptor = self.add_to(&mut layout);
        layout.index(&[descriptor]);
        layout
    }

    pub(super) fn archive(&self) -> Vec<u8> {
        self.layout().archive()
    }
}

impl Layout {
    /// Adds a blob; returns its descriptor.
    pub(super) fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        self.files
            .insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    }

    pub(super) fn index(&mut self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        self.files
            .insert("index.json".to_owned(), serde_json::to_vec(&index).unwrap());
        self.files.insert(
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        );
    }

    pub(super) fn archive(&self) -> Vec<u8> {
        // Blob names fit into a header's name field.
        self.files
            .iter()
            .fold(Tar::new(), |tar, (name, bytes)| tar.file(name, bytes))
            .finish()
    }

    pub(super) fn write_to(&self, directory: &Path) {
        for (name, bytes) in &self.files {
            let path = directory.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    /// The name of the blob with these contents.
    pub(super) fn name_of(&self, contents: &[u8]) -> String {
        format!("blobs/sha256/{}", Digest::of(contents).hex())
    }
}
