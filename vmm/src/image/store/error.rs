//! What the store's operations fail with.

use std::io;
use std::path::{Path, PathBuf};

use super::super::digest::Digest;
use super::super::erofs::{LayoutError, WriteError};
use super::super::layer::LayerError;
use super::super::merge::MergeError;
use super::super::reference::ParseReferenceError;
use super::super::source::SourceError;

/// The store's own files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}` in the image store", path.display())]
pub struct StoreError {
    /// What was tried.
    action: &'static str,
    /// On which file.
    path: PathBuf,
    /// Why it failed.
    #[source]
    source: io::Error,
}

impl StoreError {
    /// For `map_err` on a file operation.
    pub(super) fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        help_with(&self.source)
    }
}

fn help_with(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(
            "free disk space, for example by `vmm prune`, or choose another directory with --root",
        ),
        io::ErrorKind::PermissionDenied => {
            Some("the store belongs to one account: choose another with --root")
        }
        _ => None,
    }
}

/// An image could not be imported; the store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source is no image, or a damaged one.
    #[error("cannot import {name}")]
    Source {
        /// The source.
        name: String,
        /// What is wrong with it.
        #[source]
        source: SourceError,
    },
    /// A layer cannot be converted.
    #[error("cannot import {name}: the layer {layer} cannot be converted")]
    Layer {
        /// The source.
        name: String,
        /// The layer.
        layer: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// A layer's tar stream is not what the configuration says.
    #[error("cannot import {name}: the layer {layer} has the diff id {actual}, not {expected}")]
    WrongDiffId {
        /// The source.
        name: String,
        /// The layer.
        layer: String,
        /// The diff id in the configuration.
        expected: Digest,
        /// The diff id it has.
        actual: Digest,
    },
    /// The layers do not fit on each other.
    #[error("cannot import {name}: the layer {layer} cannot be applied")]
    Merge {
        /// The source.
        name: String,
        /// The layer.
        layer: String,
        /// What is wrong.
        #[source]
        source: MergeError,
    },
    /// The tree cannot be represented.
    #[error("cannot import {name}")]
    Layout {
        /// The source.
        name: String,
        /// What is wrong.
        #[source]
        source: LayoutError,
    },
    /// The tree cannot be written.
    #[error("cannot import {name}")]
    Tree {
        /// The source.
        name: String,
        /// What is wrong.
        #[source]
        source: WriteError,
    },
    /// The store would grow above its limit.
    #[error(
        "cannot import {name}: the image store would take {needed_bytes} bytes; its limit is {limit_bytes}"
    )]
    StoreLimit {
        /// The source.
        name: String,
        /// What the store would take.
        needed_bytes: u64,
        /// What it may take.
        limit_bytes: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image was removed while it was being opened.
    #[error(transparent)]
    Find(#[from] FindError),
}

impl ImportError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Source { source, .. } => source.help(),
            Self::Layer { source, .. } => match source {
                LayerError::Write(error) => help_with(error),
                LayerError::Limit(_) => Some("raise the limits if you trust the image"),
                _ => None,
            },
            Self::Tree {
                source: WriteError::Output(error),
                ..
            } => help_with(error),
            Self::StoreLimit { .. } => {
                Some("remove images by `vmm rmi` or `vmm prune`, or raise the limit")
            }
            Self::Store(error) => error.help(),
            Self::Find(error) => error.help(),
            _ => None,
        }
    }
}

impl SourceError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::Spool(error) => help_with(error),
            Self::NotAnArchive(_) | Self::NotALayout => Some(
                "an image is an OCI archive, an OCI layout directory or an archive of `docker save`",
            ),
            Self::Ambiguous(_) | Self::NotNamed { .. } => Some("choose one of them by its name"),
            Self::SpoolLimit(_) | Self::SpoolRatio(_) => {
                Some("raise the limits if you trust the image")
            }
            Self::MissingBlob(_)
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. }
            | Self::Archive(_) => {
                Some("the archive is incomplete or damaged: make or copy it again")
            }
            _ => None,
        }
    }
}

/// An image could not be found in the store.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Nothing has this name or identifier.
    #[error("there is no image `{0}` in the store")]
    NotFound(String),
    /// Several identifiers begin like this.
    #[error("several images have an identifier that begins with `{0}`")]
    Ambiguous(String),
    /// It is neither a name nor an identifier.
    #[error(transparent)]
    Name(#[from] ParseReferenceError),
    /// An image's record is unusable.
    #[error("the record of the image {id} in the store is damaged")]
    Damaged {
        /// The image.
        id: Digest,
        /// What the parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl FindError {
    /// What could be done about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NotFound(_) => Some("see `vmm images`, or give an archive with --image FILE"),
            Self::Ambiguous(_) => Some("give more digits"),
            Self::Damaged { .. } => Some("remove the image by `vmm rmi` and import it again"),
            Self::Store(error) => error.help(),
            Self::Name(_) => None,
        }
    }
}
