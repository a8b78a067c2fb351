//! Decides where each inode and directory of a tree goes, before a byte is written.

use super::format::{
    BLOCK_BYTES, DIRENT_BYTES, INODE_BYTES, SLOT_BYTES, SUPER_BYTES, SUPER_OFFSET_BYTES,
};
use super::tree::{Contents, Directory, FileData, Metadata, NodeId, Tree};

/// Longest target of a symbolic link: `PATH_MAX` without its NUL.
const SYMLINK_MAX_BYTES: usize = 4095;

/// What keeps a tree from being written.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The extended attributes of one inode are too many.
    #[error("the extended attributes of one file take {bytes} bytes; 262136 can be stored")]
    XattrsTooLarge {
        /// Their encoded length.
        bytes: u64,
    },
    /// A symbolic link's target is too long.
    #[error(
        "the target of a symbolic link has {bytes} bytes; Linux allows 1 to {SYMLINK_MAX_BYTES}"
    )]
    SymlinkLength {
        /// Its length.
        bytes: usize,
    },
    /// More blocks than 32 bits can address.
    #[error("the tree needs more than 16 TiB")]
    TooLarge,
}

/// The place of every inode of one tree.
#[derive(Debug)]
pub struct Layout {
    /// Reachable inodes in the order in which they are stored.
    pub(super) order: Vec<NodeId>,
    /// By inode: where it is, `None` where no directory names it.
    pub(super) places: Vec<Option<Place>>,
    /// Length of the metadata: whole blocks.
    pub(super) metadata_bytes: u64,
    /// Whether any inode is chunk-based.
    pub(super) chunked: bool,
}

/// The place of one inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Offset of the inode in the metadata.
    pub(super) offset_bytes: u64,
    /// First of the blocks that hold directory entries or a long symbolic link.
    pub(super) first_block: u32,
    /// Whole blocks there.
    pub(super) whole_blocks: u32,
    /// Bytes that follow the inode: tail of a directory, short symbolic link.
    pub(super) inline_bytes: u32,
    /// Names that lead here.
    pub(super) links: u32,
    /// The directory that holds the first name of this inode (of a directory: `..`).
    pub(super) parent: NodeId,
}

impl Place {
    /// The number of the inode.
    pub(super) fn nid(&self) -> u64 {
        self.offset_bytes / SLOT_BYTES
    }
}

impl Layout {
    /// Places the inodes of `tree`.
    ///
    /// # Errors
    /// Where EROFS or Linux has no room for what the tree holds.
    pub fn new(tree: &Tree) -> Result<Self, LayoutError> {
        let mut layout = Self {
            order: Vec::new(),
            places: vec![None; tree.len()],
            metadata_bytes: 0,
            chunked: false,
        };
        layout.visit(tree);
        layout.place_inodes(tree)?;
        layout.place_blocks()?;
        Ok(layout)
    }

    /// Length of the metadata: whole blocks.
    #[must_use]
    pub fn metadata_bytes(&self) -> u64 {
        self.metadata_bytes
    }

    /// Walks the tree: the inodes of one directory next to each other, directories depth first.
    fn visit(&mut self, tree: &Tree) {
        let root = tree.root();
        self.meet(root, root);
        let mut open = vec![root];
        while let Some(parent) = open.pop() {
            let Some(entries) = tree.directory(parent) else {
                continue;
            };
            let mut inner = Vec::new();
            for child in entries.values() {
                if self.meet(*child, parent) && tree.directory(*child).is_some() {
                    inner.push(*child);
                }
            }
            // A directory counts its own `.`, its name in the parent, and each child's `..`.
            let children = u32::try_from(inner.len()).unwrap_or(u32::MAX);
            if let Some(place) = &mut self.places[parent.index()] {
                place.links = children.saturating_add(2);
            }
            open.extend(inner.into_iter().rev());
        }
    }

    /// Counts one more name of an inode; whether it was the first.
    fn meet(&mut self, node: NodeId, parent: NodeId) -> bool {
        if let Some(place) = &mut self.places[node.index()] {
            place.links = place.links.saturating_add(1);
            return false;
        }
        self.order.push(node);
        self.places[node.index()] = Some(Place {
            offset_bytes: 0,
            first_block: 0,
            whole_blocks: 0,
            inline_bytes: 0,
            links: 1,
            parent,
        });
        true
    }

    /// Gives each inode its offset and decides what follows it.
    fn place_inodes(&mut self, tree: &Tree) -> Result<(), LayoutError> {
        let mut end = SUPER_OFFSET_BYTES + SUPER_BYTES;
        for id in &self.order {
            let node = tree.node(*id);
            let header = INODE_BYTES + xattr_bytes(&node.metadata)?;
            let stored = match &node.contents {
                Contents::Directory(entries) => directory_bytes(entries, tree.root()),
                Contents::Symlink(target) => symlink_bytes(target)?,
                _ => 0,
            };
            let map = match &node.contents {
                Contents::File(data) => chunk_map_bytes(data),
                _ => 0,
            };
            self.chunked |= map > 0;
            let tail = stored % BLOCK_BYTES;
            let inline = if header % BLOCK_BYTES + tail <= BLOCK_BYTES {
                tail
            } else {
                0
            };
            let start = inode_start(end, header, inline);
            end = start + header + map + inline;
            if let Some(place) = &mut self.places[id.index()] {
                place.offset_bytes = start;
                place.inline_bytes = u32::try_from(inline).map_err(|_| LayoutError::TooLarge)?;
                let whole = (stored - inline).div_ceil(BLOCK_BYTES);
                place.whole_blocks = u32::try_from(whole).map_err(|_| LayoutError::TooLarge)?;
            }
        }
        self.metadata_bytes = end.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    /// Gives directories and long links their blocks, behind the inodes.
    fn place_blocks(&mut self) -> Result<(), LayoutError> {
        let mut block = self.metadata_bytes / BLOCK_BYTES;
        for id in &self.order {
            if let Some(place) = self.places[id.index()]
                .as_mut()
                .filter(|place| place.whole_blocks > 0)
            {
                place.first_block = u32::try_from(block).map_err(|_| LayoutError::TooLarge)?;
                block += u64::from(place.whole_blocks);
            }
        }
        u32::try_from(block).map_err(|_| LayoutError::TooLarge)?;
        self.metadata_bytes = block * BLOCK_BYTES;
        Ok(())
    }
}

/// The next offset where an inode may start: on a slot, not across blocks, and so that what is
/// inline ends in the block where it starts.
fn inode_start(end: u64, header: u64, inline: u64) -> u64 {
    let start = end.next_multiple_of(SLOT_BYTES);
    let room = BLOCK_BYTES - start % BLOCK_BYTES;
    let crosses = room < INODE_BYTES;
    let breaks = inline > 0 && (start + header) % BLOCK_BYTES + inline > BLOCK_BYTES;
    if crosses || breaks {
        start.next_multiple_of(BLOCK_BYTES)
    } else {
        start
    }
}

/// Encoded length of an inode's extended attributes, header included.
pub(super) fn xattr_bytes(metadata: &Metadata) -> Result<u64, LayoutError> {
    if metadata.xattrs.is_empty() {
        return Ok(0);
    }
    let entries: usize = metadata
        .xattrs
        .iter()
        .map(|xattr| (4 + xattr.name.rest().len() + xattr.value.len()).next_multiple_of(4))
        .sum();
    let bytes = entries as u64;
    let fits =
        bytes / 4 < u64::from(u16::MAX) && metadata.xattrs.iter().all(|x| x.value.len() <= 0xffff);
    if fits {
        Ok(12 + bytes)
    } else {
        Err(LayoutError::XattrsTooLarge { bytes })
    }
}

fn symlink_bytes(target: &[u8]) -> Result<u64, LayoutError> {
    if target.is_empty() || target.len() > SYMLINK_MAX_BYTES {
        return Err(LayoutError::SymlinkLength {
            bytes: target.len(),
        });
    }
    Ok(target.len() as u64)
}

/// Length of the block map that follows a chunk-based inode.
fn chunk_map_bytes(data: &FileData) -> u64 {
    data.chunk_bits
        .map_or(0, |bits| data.size_bytes.div_ceil(BLOCK_BYTES << bits) * 4)
}

/// One block of a directory: names with their inodes.
pub(super) type DirectoryBlock<'a> = Vec<(&'a [u8], NodeId)>;

/// Splits a directory into blocks, `.` and `..` sorted among the names.
///
/// Both are given as `this` and `parent`; the split does not depend on them.
pub(super) fn directory_blocks(
    entries: &Directory,
    this: NodeId,
    parent: NodeId,
) -> Vec<DirectoryBlock<'_>> {
    let dots: [(&[u8], NodeId); 2] = [(b".", this), (b"..", parent)];
    let mut names: Vec<(&[u8], NodeId)> = entries
        .iter()
        .map(|(name, id)| (&**name, *id))
        .chain(dots)
        .collect();
    names.sort_unstable_by_key(|(name, _)| *name);
    let mut blocks: Vec<DirectoryBlock<'_>> = vec![Vec::new()];
    let mut used = 0;
    for (name, id) in names {
        let needed = DIRENT_BYTES + name.len();
        if (used + needed) as u64 > BLOCK_BYTES {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push((name, id));
        }
    }
    blocks
}

/// Bytes that the entries of one block take.
pub(super) fn block_used_bytes(block: &DirectoryBlock<'_>) -> u64 {
    block
        .iter()
        .map(|(name, _)| (DIRENT_BYTES + name.len()) as u64)
        .sum()
}

/// Size of a directory: whole blocks but for the last.
pub(super) fn directory_bytes(entries: &Directory, any: NodeId) -> u64 {
    let blocks = directory_blocks(entries, any, any);
    let whole = blocks.len().saturating_sub(1) as u64 * BLOCK_BYTES;
    whole + blocks.last().map_or(0, block_used_bytes)
}
