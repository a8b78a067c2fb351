//! The image store: opens, verifies and converts OCI images.

pub mod erofs;

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
    FindError, HistoryEntry, ImageSummary, ImportError, ImportOptions, PruneScope, Pruned,
    RemoveError, Removed, RootPart, RootTree, SaveError, Store, StoreError, StoredImage, Usage,
};
pub use tar::TarError;
