//! Sources: what an image can be read from, recognised by content and verified.
//!
//! An opened source is a manifest, a configuration and a list of layers whose digests are known.
//! Manifests and configurations have been checked when this module returns them; a layer is
//! checked by whoever reads it to its end, against [`Layer`]'s digest, size and diff id.

mod docker;
mod files;
mod layout;
mod spool;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use super::digest::{Digest, ParseDigestError};
use super::limits::{LimitError, Limits};
use super::platform::Platform;
use super::progress::Progress;
use super::stamp::Stamp;
use super::tar::TarError;
pub(super) use files::FilePart;
use files::Files;

/// Longest index, manifest or configuration.
pub(super) const DOCUMENT_MAX_BYTES: u64 = 4 << 20;
/// Layers that an image may have.
const LAYERS_MAX: usize = 1000;

/// Where an image comes from.
pub enum ImageSource {
    /// An archive (OCI or `docker save`; plain, gzip or zstd) or an OCI layout directory.
    Path(PathBuf),
    /// A stream with an archive.
    Stream {
        /// How messages call it.
        name: String,
        /// The stream.
        input: Box<dyn Read + Send>,
    },
}

impl ImageSource {
    /// What a command line's FILE means: `-` is standard input.
    #[must_use]
    pub fn from_argument(argument: PathBuf) -> Self {
        if argument.as_os_str() == "-" {
            Self::Stream {
                name: "standard input".to_owned(),
                input: Box::new(io::stdin()),
            }
        } else {
            Self::Path(argument)
        }
    }

    /// How messages call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Stream { name, .. } => name.clone(),
        }
    }
}

impl fmt::Debug for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("ImageSource")
            .field(&self.name())
            .finish()
    }
}

/// What is wrong with a source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Something could not be read.
    #[error("cannot read {name}")]
    Read {
        /// What was to be read.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Neither a directory nor a file.
    #[error("it is neither a file nor a directory")]
    NotAFile,
    /// Nothing that could be an image.
    #[error("it is not an image archive ({0})")]
    NotAnArchive(&'static str),
    /// A directory without a layout.
    #[error("the directory is not an OCI image layout: it has no index.json")]
    NotALayout,
    /// A layout of another version.
    #[error("it is an image layout of version `{0}`, which is not known")]
    LayoutVersion(String),
    /// The archive is damaged.
    #[error("the archive is damaged")]
    Archive(#[source] TarError),
    /// The archive, as it has to be copied, is too long.
    #[error("it is longer than {0} bytes")]
    SpoolLimit(u64),
    /// The archive, as it is compressed, unpacks to absurdly much.
    #[error("it {0}")]
    SpoolRatio(LimitError),
    /// The copy of a stream could not be written.
    #[error("cannot copy it into the store")]
    Spool(#[source] io::Error),
    /// A document is too long.
    #[error("{name} has {bytes} bytes; {max_bytes} are allowed")]
    TooLong {
        /// The document.
        name: String,
        /// Its length.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// A document is malformed.
    #[error("{name} is malformed")]
    Json {
        /// The document.
        name: String,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// A document lacks or contradicts something.
    #[error("{name} {problem}")]
    Document {
        /// The document.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// A digest that cannot be checked.
    #[error("{name} names a blob by a digest that cannot be checked")]
    Digest {
        /// The document.
        name: String,
        /// What is wrong with the digest.
        #[source]
        source: ParseDigestError,
    },
    /// A blob is not there.
    #[error("the blob {0} is missing")]
    MissingBlob(Digest),
    /// A file that the archive's manifest names is not there.
    #[error("the file `{0}` is missing")]
    MissingFile(String),
    /// A blob is not what its digest says.
    #[error("the blob {expected} has the digest {actual}")]
    WrongDigest {
        /// The digest it is named by.
        expected: Digest,
        /// The digest it has.
        actual: Digest,
    },
    /// A blob has not the length it should have.
    #[error("the blob {digest} has {actual} bytes, not {expected}")]
    WrongSize {
        /// The blob.
        digest: Digest,
        /// The size in its descriptor.
        expected: u64,
        /// The size it has.
        actual: u64,
    },
    /// A media type that means nothing here.
    #[error("{name} has the unknown media type `{media_type}`")]
    UnknownMediaType {
        /// What has it.
        name: String,
        /// The media type.
        media_type: String,
    },
    /// Indexes within indexes.
    #[error("indexes are nested deeper than {0}")]
    TooDeep(usize),
    /// Too many manifests.
    #[error("the indexes name more than {0} manifests")]
    TooManyManifests(usize),
    /// No image for this platform.
    #[error("there is no image for {wanted}; it has {}", found.join(", "))]
    NoPlatform {
        /// The platform that was asked for.
        wanted: Platform,
        /// The platforms that are there.
        found: Vec<String>,
    },
    /// No image at all.
    #[error("it holds no image")]
    Empty,
    /// Several images and no choice.
    #[error("it holds several images: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The chosen image is not there.
    #[error("it holds no image named `{wanted}`; it has {}", found.join(", "))]
    NotNamed {
        /// The name that was asked for.
        wanted: String,
        /// The names that are there.
        found: Vec<String>,
    },
}

impl SourceError {
    pub(super) fn read(name: impl fmt::Display, source: io::Error) -> Self {
        Self::Read {
            name: name.to_string(),
            source,
        }
    }
}

/// An opened image: everything but its layers is verified.
#[derive(Debug)]
pub(super) struct OpenedImage {
    /// The image's identity: the digest of its configuration.
    pub(super) id: Digest,
    /// The configuration, byte for byte.
    pub(super) config_bytes: Vec<u8>,

    /// The layers, lowest first.
    pub(super) layers: Vec<Layer>,
    /// Names that the source gives the image.
    pub(super) names: Vec<String>,
    /// What an archive file was when it was opened, under an empty name; nothing for a stream.
    stamps: BTreeMap<String, Stamp>,
    files: Files,
}

/// A layer that still has to be read and checked.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Name of its file in the source.
    file: String,
    /// Digest and size of the stored blob, where the source says.
    pub(super) blob: Option<(Digest, u64)>,
    /// Digest of the tar stream in it.
    pub(super) diff_id: Digest,
}

impl Layer {
    /// How messages call it.
    pub(super) fn name(&self) -> String {
        self.blob.map_or_else(
            || format!("`{}`", self.file),
            |(digest, _)| digest.to_string(),
        )
    }
}

impl OpenedImage {
    /// What each file that was read was when it was opened, by its name in a directory (empty
    /// for an archive file); nothing for a stream.
    pub(super) fn stamps(&self) -> BTreeMap<String, Stamp> {
        match &self.files {
            Files::Directory { opened, .. } => opened.borrow().clone(),
            Files::Archive { .. } => self.stamps.clone(),
        }
    }

    /// Opens the blob of a layer.
    pub(super) fn layer_blob(&self, layer: &Layer) -> Result<FilePart, SourceError> {
        let missing = || match layer.blob {
            Some((digest, _)) => SourceError::MissingBlob(digest),
            None => SourceError::MissingFile(layer.file.clone()),
        };
        let part = self.files.open(&layer.file)?.ok_or_else(missing)?;
        match layer.blob {
            Some((digest, expected)) if part.len() != expected => Err(SourceError::WrongSize {
                digest,
                expected,
                actual: part.len(),
            }),
            _ => Ok(part),
        }
    }
}

/// What to take from a source.
#[derive(Debug, Clone)]
pub(super) struct Selection<'a> {
    pub(super) platform: &'a Platform,
    pub(super) name: Option<&'a str>,
    pub(super) limits: &'a Limits,
}

/// Opens a source. `spool` makes the file that a stream is copied to.
pub(super) fn open(
    source: ImageSource,
    selection: &Selection<'_>,
    progress: &dyn Progress,
    spool: impl FnOnce() -> io::Result<File>,
) -> Result<OpenedImage, SourceError> {
    let mut stamps = BTreeMap::new();
    let files = match source {
        ImageSource::Stream { name, input } => {
            spool::from_stream(input, &name, selection.limits, progress, spool)?
        }
        ImageSource::Path(path) => {
            let metadata =
                std::fs::metadata(&path).map_err(|source| SourceError::read("it", source))?;
            if metadata.is_dir() {
                Files::directory(path)
            } else if metadata.is_file() {
                let file = File::open(&path).map_err(|source| SourceError::read("it", source))?;
                let metadata = file
                    .metadata()
                    .map_err(|source| SourceError::read("it", source))?;
                stamps.insert(String::new(), Stamp::of(&metadata));
                spool::from_file(file, selection.limits, progress, spool)?
            } else {
                // A pipe (`<(command)`) is read like standard input.
                let file = File::open(&path).map_err(|source| SourceError::read("it", source))?;
                spool::from_stream(Box::new(file), "it", selection.limits, progress, spool)?
            }
        }
    };
    let opened = if files.has("index.json")? {
        layout::open(files, selection)
    } else if matches!(files, Files::Directory { .. }) {
        // The names in a `manifest.json` could lead to any file of the host.
        Err(SourceError::NotALayout)
    } else if files.has("manifest.json")? {
        docker::open(files, selection)
    } else {
        Err(SourceError::NotAnArchive(
            "the tar archive has neither index.json nor manifest.json",
        ))
    };
    opened.map(|opened| OpenedImage { stamps, ..opened })
}

/// Checks a configuration and joins it with its layers.
fn opened(
    files: Files,
    id: Digest,
    config_bytes: Vec<u8>,
    layers: Vec<(String, Option<(Digest, u64)>)>,
    names: Vec<String>,
    platform: &Platform,
) -> Result<OpenedImage, SourceError> {
    let name = format!("the configuration {id}");
    let json = |source| SourceError::Json {
        name: name.clone(),
        source,
    };
    let config: ImageConfiguration = serde_json::from_slice(&config_bytes).map_err(json)?;
    let built_for = Platform {
        os: config.os().to_string(),
        architecture: config.architecture().to_string(),
        variant: config
            .variant()
            .clone()
            .filter(|variant| !variant.is_empty()),
    };
    if !platform.runs(&built_for) {
        return Err(SourceError::NoPlatform {
            wanted: platform.clone(),
            found: vec![built_for.to_string()],
        });
    }
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() != layers.len() || layers.len() > LAYERS_MAX {
        let problem = format!(
            "lists {} diff ids for {} layers (at most {LAYERS_MAX})",
            diff_ids.len(),
            layers.len()
        );
        return Err(SourceError::Document { name, problem });
    }
    let layers = layers
        .into_iter()
        .zip(diff_ids)
        .map(|((file, blob), diff_id)| {
            let diff_id = diff_id.parse().map_err(|source| SourceError::Digest {
                name: name.clone(),
                source,
            })?;
            Ok(Layer {
                file,
                blob,
                diff_id,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(OpenedImage {
        id,
        config_bytes,
        layers,
        names,
        stamps: BTreeMap::new(),
        files,
    })
}
