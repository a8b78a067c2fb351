//! The image store: opens, verifies and converts OCI images.
//!
//! The way of an image, each station a module that knows those above it only:
//!
//! 1. `source` opens what was given (archive, layout, `docker save`), chooses the image for the
//!    platform and verifies index, manifest and configuration;
//! 2. `layer` converts a layer's tar stream, read by `tar`, to a data file that can be mapped
//!    and an index of its entries, within `limits`;
//! 3. `merge` stacks the indexes to one tree, as an unpacking runtime would;
//! 4. [`erofs`] writes the tree, whose files point into the layers' data;
//! 5. `store` keeps all of it by digest, for every run of the account at once, and hands out a
//!    [`StoredImage`]: files that are mapped behind each other, leased while they are used.
//!
//! Knows no KVM and no command line. Everything that came out of an archive is hostile here.
#![forbid(unsafe_code)]

pub mod erofs;

mod change;
mod compression;
mod digest;
mod layer;
mod limits;
mod media_type;
mod merge;
mod platform;
mod progress;
mod reference;
mod source;
mod stamp;
mod store;
mod tar;
#[cfg(test)]
mod tests;

pub use change::{Change, ParseChangeError};
pub use digest::{Digest, ParseDigestError};
pub use layer::LayerError;
pub use limits::{LimitError, Limits};
pub use media_type::MediaType;
pub use merge::MergeError;
pub use platform::{ParsePlatformError, Platform};
pub use progress::{Progress, Silent, Step};
pub use reference::{ParseReferenceError, Reference};
pub use source::{ImageSource, SourceError};
pub use store::{
    CommitError, Commitment, Draft, FindError, HistoryEntry, ImageHealth, ImageSummary,
    ImportError, ImportOptions, Needed, PruneScope, Pruned, RemoveError, Removed, RootPart,
    RootTree, SaveError, Store, StoreError, StoredImage, UnpackError, Usage,
};
pub use tar::TarError;
pub(crate) use tar::{
    Input as TarInput, Kind as TarKind, Member as TarMember, Reader as TarReader,
};
