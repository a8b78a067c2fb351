//! Writes the metadata of a laid-out tree, front to back.

use std::io::{self, Write};

use zerocopy::IntoBytes;
use zerocopy::byteorder::little_endian::{U16, U32, U64};

use super::format::{
    BLOCK_BITS, BLOCK_BYTES, COMPAT_MTIME, DIRENT_BYTES, DirectoryEntry, FORMAT_EXTENDED,
    FORMAT_LAYOUT_SHIFT, HOLE, INCOMPAT_CHUNKED_FILE, INODE_BYTES, Inode, LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, MAGIC, SUPER_OFFSET_BYTES, SuperBlock, XattrEntry,
    XattrHeader,
};
use super::layout::{
    DirectoryBlock, Layout, LayoutError, Place, directory_blocks, directory_bytes, xattr_bytes,
};
use super::tree::{Contents, FileData, Metadata, Node, NodeId, Tree};

/// Kinds of file in a directory entry (`FT_*`, `include/linux/fs_types.h`).
mod file_type {
    pub(super) const REGULAR: u8 = 1;
    pub(super) const DIRECTORY: u8 = 2;
    pub(super) const CHARACTER_DEVICE: u8 = 3;
    pub(super) const BLOCK_DEVICE: u8 = 4;
    pub(super) const FIFO: u8 = 5;
    pub(super) const SYMLINK: u8 = 7;
}

/// Kinds of file in a mode (`S_IF*`).
mod mode_type {
    pub(super) const FIFO: u16 = 0o010_000;
    pub(super) const CHARACTER_DEVICE: u16 = 0o020_000;
    pub(super) const DIRECTORY: u16 = 0o040_000;
    pub(super) const BLOCK_DEVICE: u16 = 0o060_000;
    pub(super) const REGULAR: u16 = 0o100_000;
    pub(super) const SYMLINK: u16 = 0o120_000;
}

/// Where the parts are in the window, in blocks.
#[derive(Debug, Clone)]
pub struct WindowMap {
    /// First block of each part that files refer to.
    pub part_blocks: Vec<u32>,
    /// Blocks of the whole window.
    pub total_blocks: u32,
}

/// What keeps a laid-out tree from being written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A directory refers to an inode that the layout does not know, or a file to an unknown part.
    #[error("the tree changed after it was laid out")]
    Stale,
    /// A block address above 32 bits.
    #[error("the window is larger than 16 TiB")]
    WindowTooLarge,
    /// What does not fit into the format.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The output failed.
    #[error("cannot write the file system tree")]
    Output(#[from] io::Error),
}

/// Writes superblock, inodes and directories of `tree` to `output`:
/// exactly [`Layout::metadata_bytes`] bytes.
///
/// # Errors
/// If the output fails, or `layout` is of another tree.
pub fn write_tree(
    tree: &Tree,
    layout: &Layout,
    map: &WindowMap,
    output: impl Write,
) -> Result<(), WriteError> {
    let mut writer = Writer {
        tree,
        layout,
        map,
        output,
        position: 0,
    };
    writer.pad_to(SUPER_OFFSET_BYTES)?;
    writer.superblock()?;
    for id in &layout.order {
        writer.inode(*id)?;
    }
    for id in &layout.order {
        writer.blocks(*id)?;
    }
    writer.pad_to(layout.metadata_bytes)
}

struct Writer<'a, W> {
    tree: &'a Tree,
    layout: &'a Layout,
    map: &'a WindowMap,
    output: W,
    position: u64,
}

impl<W: Write> Writer<'_, W> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.output.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), WriteError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.position < offset {
            let step = (offset - self.position).min(ZEROS.len() as u64);
            let step = usize::try_from(step).map_err(|_| WriteError::Stale)?;
            self.put(&ZEROS[..step])?;
        }
        if self.position == offset {
            Ok(())
        } else {
            Err(WriteError::Stale)
        }
    }

    fn place(&self, id: NodeId) -> Result<Place, WriteError> {
        self.layout
            .places
            .get(id.index())
            .copied()
            .flatten()
            .ok_or(WriteError::Stale)
    }

    fn superblock(&mut self) -> Result<(), WriteError> {
        let root = self.place(self.tree.root())?.nid();
        let block = SuperBlock {
            magic: U32::new(MAGIC),
            checksum: U32::ZERO,
            feature_compat: U32::new(COMPAT_MTIME),
            block_bits: BLOCK_BITS,
            extension_slots: 0,
            root_nid: U16::new(u16::try_from(root).map_err(|_| WriteError::Stale)?),
            inodes: U64::new(self.layout.order.len() as u64),
            build_time: U64::ZERO,
            build_time_nsec: U32::ZERO,
            blocks: U32::new(self.map.total_blocks),
            meta_block: U32::ZERO,
            xattr_block: U32::ZERO,
            uuid: [0; 16],
            volume_name: [0; 16],
            feature_incompat: U32::new(if self.layout.chunked {
                INCOMPAT_CHUNKED_FILE
            } else {
                0
            }),
            compression: U16::ZERO,
            extra_devices: U16::ZERO,
            device_table_slot: U16::ZERO,
            directory_block_bits: 0,
            reserved: [0; 5],
            packed_nid: U64::ZERO,
            reserved2: [0; 24],
        };
        self.put(block.as_bytes())
    }

    /// Writes one inode with all that follows it: attributes, then chunk map or inline tail.
    fn inode(&mut self, id: NodeId) -> Result<(), WriteError> {
        let tree = self.tree;
        let node = tree.node(id);
        let place = self.place(id)?;
        self.pad_to(place.offset_bytes)?;
        let xattrs = xattr_bytes(&node.metadata)?;
        // The header counts as one unit, each four bytes behind it as another.
        let xattr_count = if xattrs == 0 {
            0
        } else {
            (xattrs - 12) / 4 + 1
        };
        let form = self.form(node, &place)?;
        let inode = Inode {
            format: U16::new(FORMAT_EXTENDED | (form.layout << FORMAT_LAYOUT_SHIFT)),
            xattr_count: U16::new(u16::try_from(xattr_count).map_err(|_| WriteError::Stale)?),
            mode: U16::new(form.mode_type | (node.metadata.mode & 0o7777)),
            reserved: U16::ZERO,
            size: U64::new(form.size_bytes),
            union: U32::new(form.union),
            ino: U32::new(u32::try_from(id.index()).unwrap_or(u32::MAX)),
            uid: U32::new(node.metadata.uid),
            gid: U32::new(node.metadata.gid),
            mtime: U64::new(node.metadata.mtime.seconds.cast_unsigned()),
            mtime_nsec: U32::new(node.metadata.mtime.nanoseconds),
            links: U32::new(place.links),
            reserved2: [0; 16],
        };
        self.put(inode.as_bytes())?;
        self.xattrs(&node.metadata)?;
        debug_assert!(
            self.position == place.offset_bytes + INODE_BYTES + xattrs,
            "the layout knows the header's size"
        );
        match &node.contents {
            Contents::File(data) => self.chunk_map(data),
            Contents::Symlink(target) if place.inline_bytes > 0 => self.put(target),
            Contents::Directory(entries) if place.inline_bytes > 0 => {
                let blocks = directory_blocks(entries, id, place.parent);
                blocks
                    .last()
                    .map_or(Ok(()), |block| self.directory_block(block))
            }
            _ => Ok(()),
        }
    }

    /// The fields of an inode that depend on its kind.
    fn form(&self, node: &Node, place: &Place) -> Result<Form, WriteError> {
        let stored = if place.inline_bytes > 0 {
            LAYOUT_FLAT_INLINE
        } else {
            LAYOUT_FLAT_PLAIN
        };
        let special = |mode_type, union| Form {
            mode_type,
            layout: LAYOUT_FLAT_PLAIN,
            size_bytes: 0,
            union,
        };
        Ok(match &node.contents {
            Contents::Directory(entries) => Form {
                mode_type: mode_type::DIRECTORY,
                layout: stored,
                size_bytes: directory_bytes(entries, place.parent),
                union: place.first_block,
            },
            Contents::Symlink(target) => Form {
                mode_type: mode_type::SYMLINK,
                layout: stored,
                size_bytes: target.len() as u64,
                union: place.first_block,
            },
            Contents::File(data) => {
                let (layout, union) = match (data.chunk_bits, data.extents.first()) {
                    (Some(bits), _) => (LAYOUT_CHUNK_BASED, u32::from(bits)),
                    (None, Some(extent)) => (
                        LAYOUT_FLAT_PLAIN,
                        self.window_block(data.part, extent.part_block)?,
                    ),
                    (None, None) => (LAYOUT_FLAT_PLAIN, 0),
                };
                Form {
                    mode_type: mode_type::REGULAR,
                    layout,
                    size_bytes: data.size_bytes,
                    union,
                }
            }
            Contents::CharacterDevice(number) => {
                special(mode_type::CHARACTER_DEVICE, number.encode())
            }
            Contents::BlockDevice(number) => special(mode_type::BLOCK_DEVICE, number.encode()),
            Contents::Fifo => special(mode_type::FIFO, 0),
        })
    }

    fn window_block(&self, part: u16, block: u32) -> Result<u32, WriteError> {
        let base = self
            .map
            .part_blocks
            .get(usize::from(part))
            .ok_or(WriteError::Stale)?;
        base.checked_add(block)
            .filter(|block| *block < self.map.total_blocks)
            .ok_or(WriteError::WindowTooLarge)
    }

    fn xattrs(&mut self, metadata: &Metadata) -> Result<(), WriteError> {
        if metadata.xattrs.is_empty() {
            return Ok(());
        }
        let header = XattrHeader {
            reserved: U32::ZERO,
            shared_count: 0,
            reserved2: [0; 7],
        };
        self.put(header.as_bytes())?;
        for xattr in &metadata.xattrs {
            let entry = XattrEntry {
                name_bytes: u8::try_from(xattr.name.rest().len()).map_err(|_| WriteError::Stale)?,
                name_index: xattr.name.namespace(),
                value_bytes: U16::new(
                    u16::try_from(xattr.value.len()).map_err(|_| WriteError::Stale)?,
                ),
            };
            self.put(entry.as_bytes())?;
            self.put(xattr.name.rest())?;
            self.put(&xattr.value)?;
            self.pad_to(self.position.next_multiple_of(4))?;
        }
        Ok(())
    }

    fn chunk_map(&mut self, data: &FileData) -> Result<(), WriteError> {
        let Some(bits) = data.chunk_bits else {
            return Ok(());
        };
        let chunks = data.size_bytes.div_ceil(BLOCK_BYTES << bits);
        let mut extents = data.extents.iter().peekable();
        for chunk in 0..chunks {
            let first = chunk << bits;
            while extents
                .next_if(|extent| u64::from(extent.file_block) + u64::from(extent.blocks) <= first)
                .is_some()
            {}
            let address = match extents.peek() {
                Some(extent) if u64::from(extent.file_block) <= first => {
                    let within = u32::try_from(first - u64::from(extent.file_block))
                        .map_err(|_| WriteError::Stale)?;
                    let block = extent
                        .part_block
                        .checked_add(within)
                        .ok_or(WriteError::WindowTooLarge)?;
                    self.window_block(data.part, block)?
                }
                _ => HOLE,
            };
            self.put(&address.to_le_bytes())?;
        }
        Ok(())
    }

    /// Writes the blocks of a directory or a long symbolic link that are not inline.
    fn blocks(&mut self, id: NodeId) -> Result<(), WriteError> {
        let tree = self.tree;
        let place = self.place(id)?;
        if place.whole_blocks == 0 {
            return Ok(());
        }
        let start = u64::from(place.first_block) * BLOCK_BYTES;
        self.pad_to(start)?;
        match &tree.node(id).contents {
            Contents::Directory(entries) => {
                let blocks = directory_blocks(entries, id, place.parent);
                for block in blocks.iter().take(place.whole_blocks as usize) {
                    self.directory_block(block)?;
                    self.pad_to(self.position.next_multiple_of(BLOCK_BYTES))?;
                }
            }
            Contents::Symlink(target) => self.put(target)?,
            _ => return Err(WriteError::Stale),
        }
        self.pad_to(start + u64::from(place.whole_blocks) * BLOCK_BYTES)
    }

    fn directory_block(&mut self, block: &DirectoryBlock<'_>) -> Result<(), WriteError> {
        let mut name_offset = block.len() * DIRENT_BYTES;
        for (name, id) in block {
            let entry = DirectoryEntry {
                nid: U64::new(self.place(*id)?.nid()),
                name_offset: U16::new(u16::try_from(name_offset).map_err(|_| WriteError::Stale)?),
                file_type: file_type(&self.tree.node(*id).contents),
                reserved: 0,
            };
            self.put(entry.as_bytes())?;
            name_offset += name.len();
        }
        block.iter().try_for_each(|(name, _)| self.put(name))
    }
}

/// Fields of an inode that depend on its kind.
struct Form {
    mode_type: u16,
    layout: u16,
    size_bytes: u64,
    union: u32,
}

fn file_type(contents: &Contents) -> u8 {
    match contents {
        Contents::Directory(_) => file_type::DIRECTORY,
        Contents::File(_) => file_type::REGULAR,
        Contents::Symlink(_) => file_type::SYMLINK,
        Contents::CharacterDevice(_) => file_type::CHARACTER_DEVICE,
        Contents::BlockDevice(_) => file_type::BLOCK_DEVICE,
        Contents::Fifo => file_type::FIFO,
    }
}
