//! Trees of files as tar streams: packed on one side of a machine's boundary, unpacked on the other.
//!
//! Apart from both sides, because the host and the guest's agent do the same with opposite trust: what the host unpacks was written by
//! a guest. So nothing here believes a stream: names are taken apart, every directory is opened below the one that the caller
//! named ([`open_beneath`]), and what is held in memory does not grow with the files.
//!
//! The streams are POSIX.1-2017 "pax Interchange Format": a ustar header each, and an extended one before it for what does not fit.

#![forbid(unsafe_code)]

mod beneath;
mod member;
mod pack;
mod place;
mod reader;
mod unpack;
mod writer;

pub use beneath::{Follow, MAX_PATH_BYTES, open_beneath};
pub use member::{BadName, Kind, Member, components};
pub use pack::{Flavour, PackError, Packer};
pub use place::{Destination, Place, PlaceError, Source, Typed};
pub use reader::{ReadError, each_member};
pub use unpack::{Made, Owners, UnpackError, Unpacker};
pub use writer::Writer;
