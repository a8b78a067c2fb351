//! Layers: a tar stream becomes a data file that can be mapped and an index of its entries.
//!
//! A converted layer is a directory of three files: `data` (contents of the regular files, page
//! aligned), `index` (what the layer says of each path) and `frame` (all other bytes of the tar
//! stream, so that the stream can be written again bit for bit).

mod convert;
mod data_file;
mod entry;
mod frame;
mod path;

pub use convert::LayerError;
pub(super) use convert::{Converted, convert};
pub(super) use entry::{Entry, EntryKind, read_index};
pub(super) use frame::replay;
pub(super) use path::LayerPath;

/// Name of the file with the contents, in a layer's directory.
pub(super) const DATA: &str = "data";
/// Name of the file with the entries.
pub(super) const INDEX: &str = "index";
/// Name of the file with the rest of the tar stream.
pub(super) const FRAME: &str = "frame";
