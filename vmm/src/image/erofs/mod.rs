//! A writer of EROFS trees whose file contents lie elsewhere.
//!
//! The tree (superblock, inodes, directories, symbolic links) is one metadata file; the contents
//! of regular files are addressed as blocks of *parts* which whoever mounts the tree maps behind
//! it, in one window. Regular files are never packed inline and no two of them share a block,
//! which is what the guest's DAX asks for. The output depends on the input alone: no clock, no
//! random UUID.
//!
//! Stands apart from the image store so that other images (the agent's own) can be written too:
//! see [`Builder`].

mod builder;
mod format;
mod layout;
#[cfg(test)]
pub(in crate::image) mod reader;
mod tree;
mod writer;

pub use builder::{BuildError, Builder};
pub use format::{BLOCK_BYTES, NAME_MAX_BYTES};
pub use layout::{Layout, LayoutError};
pub(in crate::image) use tree::chunk_bits_for;
pub use tree::{
    Contents, DeviceNumber, Directory, Extent, FileData, Metadata, Node, NodeId, Timestamp, Tree,
    Xattr, XattrName,
};
pub use writer::{WindowMap, WriteError, write_tree};

/// Bytes of the boundary on which large files and data parts start: a huge page on x86-64.
pub const HUGE_PAGE_BYTES: u64 = 2 * 1024 * 1024;
