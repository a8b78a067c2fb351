//! The store: converted images of one account, shared by every run.
//!
//! ```text
//! lock              held exclusively while names or objects appear or disappear
//! names.json        image names and what they mean
//! images/HEX/       one image by the digest of its configuration:
//!   image.json        its layers and parts; config.json; tree (EROFS metadata)
//! layers/HEX/       one layer by its diff id: layer.json, data, index, frame
//! sources/          files that were imported before, by identity
//! imports/HEX       lock of the import of one image: racers wait and find it done
//! tmp/              one directory for each import at work, locked by it
//! ```
//!
//! An object is made in `tmp` and renamed to its place whole; its name is its digest, so it never
//! changes. Locks say who is alive: a directory in `tmp` that nobody has locked is what
//! a crash left, and the next user removes it. A lease is a shared lock on an image's directory.

mod access;
mod commit;
mod disk;
mod durable;
mod error;
mod import;
mod manage;
mod names;
mod publish;
mod read_ahead;
mod save;
mod sources;
mod unpack;

use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use super::digest::Digest;
use super::limits::Limits;
use super::platform::Platform;
use super::reference::Reference;
use crate::policy::HealthConfig;
pub use commit::{CommitError, Commitment, Draft};
pub use error::{FindError, ImportError, StoreError};
pub use manage::{
    HistoryEntry, ImageSummary, Needed, PruneScope, Pruned, RemoveError, Removed, Usage,
};
pub use save::SaveError;
pub use unpack::UnpackError;

/// A directory with converted images.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// A name to give the image, in place of those that the source gives.
    pub name: Option<Reference>,
    /// Which image to take of a source that holds several.
    pub select: Option<String>,
    /// The platform to take of an image for several.
    pub platform: Platform,
    /// What the image may cost.
    pub limits: Limits,
    /// Bytes on disk that the whole store may take.
    pub store_limit_bytes: Option<u64>,
}

impl Default for ImportOptions {
    fn default() -> Self {
        Self {
            name: None,
            select: None,
            platform: Platform::host(),
            limits: Limits::default(),
            store_limit_bytes: None,
        }
    }
}

/// The part of a configuration that only docker's images have: how a workload is asked how it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealth {
    /// The check, if there is one.
    pub healthcheck: Option<HealthConfig>,
    /// The shell that texts are for, if one is named.
    pub shell: Option<Vec<String>>,
}

impl ImageHealth {
    /// Takes it out of a configuration. One without a word of it is not read, and what makes no sense is not heeded.
    fn read(config: &[u8]) -> Self {
        const WORDS: [&[u8]; 2] = [b"\"Healthcheck\"", b"\"Shell\""];
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Configuration {
            config: Option<ImageHealth>,
        }
        let has = |word: &&[u8]| config.windows(word.len()).any(|bytes| bytes == *word);
        if !WORDS.iter().any(has) {
            return Self::default();
        }
        match serde_json::from_slice::<Configuration>(config) {
            Ok(read) => read.config.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "the image's health check is left out");
                Self::default()
            }
        }
    }
}

/// An image in the store, which keeps it from being removed while the value lives.
#[derive(Debug)]
pub struct StoredImage {
    /// The digest of the configuration.
    pub id: Digest,
    /// The configuration.
    pub config: ImageConfiguration,
    /// What docker has added to that.
    pub health: ImageHealth,
    /// The files of its root file system.
    pub root: RootTree,
    /// The directory, under a shared lock.
    lease: File,
}

impl StoredImage {
    /// The open directory whose shared lock is the lease; a process that inherits it keeps it.
    #[must_use]
    pub fn lease(&self) -> &File {
        &self.lease
    }
}

/// The files that make a root file system when they are mapped into one window.
#[derive(Debug)]
pub struct RootTree {
    /// The parts, in the order of their offsets; the first holds the superblock.
    pub parts: Vec<RootPart>,
    /// Length of the window: whole huge pages.
    pub size_bytes: u64,
}

/// One file of a root file system.
#[derive(Debug)]
pub struct RootPart {
    /// The file.
    pub file: File,
    /// Where its first byte belongs in the window: on a huge page.
    pub window_offset_bytes: u64,
    /// Its length: whole pages.
    pub length_bytes: u64,
}

impl Store {
    /// Opens a store; makes its directories if they are missing.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
        };
        for directory in ["images", "layers", "sources", "imports", "tmp"] {
            disk::make_directory(&store.root.join(directory))?;
        }
        store.clean_up_after_crashes()?;
        Ok(store)
    }

    /// The directory of the store.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn image_directory(&self, id: Digest) -> PathBuf {
        self.root.join("images").join(id.hex())
    }

    fn layer_directory(&self, diff_id: Digest) -> PathBuf {
        self.root.join("layers").join(diff_id.hex())
    }
}
