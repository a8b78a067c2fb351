//! A streaming reader of tar archives that keeps what a layer needs.
//!
//! Own, because a layer asks for what general readers hide: every byte that is not file content
//! (so that the archive can be written again from the store), sparse maps instead of expanded
//! zeros, names as bytes, and a limit on everything an archive can make a reader allocate.
//!
//! Understands V7, ustar, GNU (long names, base-256 numbers, sparse) and PAX (with GNU's sparse
//! forms 0.0, 0.1 and 1.0). Sources: POSIX.1-2017, utility `pax`, "ustar Interchange Format" and
//! "pax Interchange Format"; GNU tar manual, appendix "Tar Internals".

mod header;
mod pax;
mod reader;
mod sparse;

pub(in crate::image) use header::{BLOCK, Header};
pub use reader::TarError;
pub(crate) use reader::{Input, Kind, Member, RawSink, Reader};
pub(crate) use sparse::SparseRun;
