//! The tree of inodes that becomes an EROFS image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::{BLOCK_BITS, CHUNK_BITS_MAX};

/// Names an inode of a [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    pub(in crate::image) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Inodes, held in an arena; the first is the root directory.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Makes a tree of an empty root directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        let contents = Contents::Directory(Directory::new());
        Self {
            nodes: vec![Node {
                metadata: root,
                contents,
            }],
        }
    }

    /// Names the root directory.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// Adds an inode that no directory names yet; `None` when 2^32 inodes exist.
    #[must_use]
    pub fn add(&mut self, node: Node) -> Option<NodeId> {
        let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
        self.nodes.push(node);
        Some(id)
    }

    /// The inode of that name.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// The inode of that name, to change.
    #[must_use]
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// The entries of a directory, or `None` for any other kind of inode.
    #[must_use]
    pub fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).contents {
            Contents::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// The entries of a directory, to change, or `None` for any other kind of inode.
    #[must_use]
    pub fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.node_mut(id).contents {
            Contents::Directory(entries) => Some(entries),
            _ => None,
        }
    }

    /// Number of inodes ever added, those that no directory names any more included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the tree has no inode: never, as the root always exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Names of a directory in byte order, as EROFS wants them; without `.` and `..`.
pub type Directory = BTreeMap<Box<[u8]>, NodeId>;

/// One inode.
#[derive(Debug, Clone)]
pub struct Node {
    /// What every kind of inode has.
    pub metadata: Metadata,
    /// The kind and what belongs to it.
    pub contents: Contents,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contents {
    /// A directory and its names.
    Directory(Directory),
    /// A regular file.
    File(FileData),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
}

/// Where the contents of a regular file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// Length of the file.
    pub size_bytes: u64,
    /// Which part of the window `extents` are in.
    pub part: u16,
    /// log2 of a chunk in blocks: extents start and end on chunks, the last one excepted.
    /// `None` for a file without holes, which is one extent (or none, if empty).
    pub chunk_bits: Option<u8>,
    /// Runs of contents, in file order; what none covers is a hole.
    pub extents: Box<[Extent]>,
}

/// A run of blocks of a file and where they are in its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First block of the file.
    pub file_block: u32,
    /// Number of blocks.
    pub blocks: u32,
    /// First block in the part.
    pub part_block: u32,
}

/// Entries of a chunk map beyond which a larger chunk is chosen (64 KiB of metadata).
const CHUNKS_GOAL: u64 = 16 * 1024;

/// Chooses the chunk of a sparse file: log2 of its blocks.
#[must_use]
pub(in crate::image) fn chunk_bits_for(size_bytes: u64) -> u8 {
    (0..CHUNK_BITS_MAX)
        .find(|bits| size_bytes.div_ceil(1 << (bits + BLOCK_BITS)) <= CHUNKS_GOAL)
        .unwrap_or(CHUNK_BITS_MAX)
}

/// What every inode has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Permissions with set-user-id, set-group-id and sticky: twelve bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Timestamp,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

impl Metadata {
    /// Metadata of root's own with these permissions and nothing else.
    #[must_use]
    pub fn of_root(mode: u16) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }
}

/// A time since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// Nanoseconds above them, below 10^9.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Its name.
    pub name: XattrName,
    /// Its value, at most 65,535 bytes.
    pub value: Box<[u8]>,
}

/// The name of an extended attribute, its namespace replaced by EROFS's number for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct XattrName {
    namespace: u8,
    rest: Box<[u8]>,
}

/// Namespaces and their numbers (`EROFS_XATTR_INDEX_*`).
const NAMESPACES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
/// Whole names with a number of their own (`EROFS_XATTR_INDEX_POSIX_ACL_*`).
const WHOLE_NAMES: [(&[u8], u8); 2] = [
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
];

impl XattrName {
    /// Parses a full name (`user.note`); `None` for a namespace that EROFS cannot store, an empty
    /// rest, or a name above 255 bytes.
    #[must_use]
    pub fn parse(name: &[u8]) -> Option<Self> {
        let whole = WHOLE_NAMES
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| (*number, &[][..]));
        let prefixed = NAMESPACES.iter().find_map(|(prefix, number)| {
            Some((
                *number,
                name.strip_prefix(*prefix).filter(|rest| !rest.is_empty())?,
            ))
        });
        let (namespace, rest) = whole.or(prefixed)?;
        (name.len() <= 255).then(|| Self {
            namespace,
            rest: rest.into(),
        })
    }

    /// The full name, as [`XattrName::parse`] takes it.
    #[must_use]
    pub fn spelled(&self) -> Vec<u8> {
        let known = NAMESPACES.iter().chain(&WHOLE_NAMES);
        let prefix = known
            .filter(|(_, number)| *number == self.namespace)
            .map(|(prefix, _)| *prefix)
            .next()
            .unwrap_or_default();
        [prefix, &self.rest].concat()
    }

    /// The number of the namespace in EROFS.
    pub(super) fn namespace(&self) -> u8 {
        self.namespace
    }

    /// The name without its namespace.
    pub(super) fn rest(&self) -> &[u8] {
        &self.rest
    }
}

/// The number of a device: 12 bits of major, 20 bits of minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNumber {
    major: u16,
    minor: u32,
}

impl DeviceNumber {
    /// Makes a device number; `None` if Linux has no such number.
    #[must_use]
    pub fn new(major: u64, minor: u64) -> Option<Self> {
        let major = u16::try_from(major).ok().filter(|major| *major < 1 << 12)?;
        let minor = u32::try_from(minor).ok().filter(|minor| *minor < 1 << 20)?;
        Some(Self { major, minor })
    }

    /// The number of the driver.
    #[must_use]
    pub fn major(self) -> u32 {
        self.major.into()
    }

    /// The number within the driver.
    #[must_use]
    pub fn minor(self) -> u32 {
        self.minor
    }

    /// Whether it is 0:0, which overlayfs takes for a whiteout.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.major == 0 && self.minor == 0
    }

    /// The number as the kernel's `new_encode_dev()` writes it (`include/linux/kdev_t.h`).
    pub(super) fn encode(self) -> u32 {
        (self.minor & 0xff) | (u32::from(self.major) << 8) | ((self.minor & !0xff) << 12)
    }
}
