//! The on-disk structures of EROFS, as the kernel defines them.
//!
//! Only what this writer produces: uncompressed inodes, extended form, one device.
//! No checksum of the superblock: what the store holds was verified on import, and the guest
//! would pay for every byte of it at each mount.
//! Source: Linux 6.1, `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block: the page size, without which there is no DAX.
pub const BLOCK_BYTES: u64 = 4096;

/// log2 of [`BLOCK_BYTES`].
pub(super) const BLOCK_BITS: u8 = 12;

/// `EROFS_SUPER_MAGIC_V1` (`include/uapi/linux/magic.h`).
pub(super) const MAGIC: u32 = 0xE0F5_E1E2;

/// Where the superblock stands in the first block (`EROFS_SUPER_OFFSET`).
pub(super) const SUPER_OFFSET_BYTES: u64 = 1024;

/// `EROFS_FEATURE_COMPAT_MTIME`: the inodes' times are modification times.
pub(super) const COMPAT_MTIME: u32 = 0x2;

/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`: chunk-based inodes are present.
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

/// `EROFS_INODE_FLAT_PLAIN`: contents in consecutive blocks.
pub(super) const LAYOUT_FLAT_PLAIN: u16 = 0;

/// `EROFS_INODE_FLAT_INLINE`: as plain, but the last partial block follows the inode.
pub(super) const LAYOUT_FLAT_INLINE: u16 = 2;

/// `EROFS_INODE_CHUNK_BASED`: an array of block addresses follows the inode.
pub(super) const LAYOUT_CHUNK_BASED: u16 = 4;

/// `i_format` of an extended (64-byte) inode, without its data layout.
pub(super) const FORMAT_EXTENDED: u16 = 1;

/// `EROFS_I_DATALAYOUT_BIT`: where the data layout stands in `i_format`.
pub(super) const FORMAT_LAYOUT_SHIFT: u16 = 1;

/// `EROFS_NULL_ADDR`: the chunk is a hole.
pub(super) const HOLE: u32 = u32::MAX;

/// The unit of inode numbers (`EROFS_ISLOTBITS`): nid = offset / 32.
pub(super) const SLOT_BYTES: u64 = 32;

/// `EROFS_NAME_LEN`: the longest file name.
pub const NAME_MAX_BYTES: usize = 255;

/// `EROFS_CHUNK_FORMAT_BLKBITS_MASK`: the largest chunk is 2^31 blocks.
pub(super) const CHUNK_BITS_MAX: u8 = 31;

/// `struct erofs_super_block`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct SuperBlock {
    pub(super) magic: U32,
    pub(super) checksum: U32,
    pub(super) feature_compat: U32,
    pub(super) block_bits: u8,
    pub(super) extension_slots: u8,
    pub(super) root_nid: U16,
    pub(super) inodes: U64,
    pub(super) build_time: U64,
    pub(super) build_time_nsec: U32,
    pub(super) blocks: U32,
    pub(super) meta_block: U32,
    pub(super) xattr_block: U32,
    pub(super) uuid: [u8; 16],
    pub(super) volume_name: [u8; 16],
    pub(super) feature_incompat: U32,
    pub(super) compression: U16,
    pub(super) extra_devices: U16,
    pub(super) device_table_slot: U16,
    pub(super) directory_block_bits: u8,
    pub(super) reserved: [u8; 5],
    pub(super) packed_nid: U64,
    pub(super) reserved2: [u8; 24],
}

/// `struct erofs_inode_extended`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Inode {
    pub(super) format: U16,
    pub(super) xattr_count: U16,
    pub(super) mode: U16,
    pub(super) reserved: U16,
    pub(super) size: U64,
    /// First block, device number or chunk format, by the kind of inode.
    pub(super) union: U32,
    pub(super) ino: U32,
    pub(super) uid: U32,
    pub(super) gid: U32,
    pub(super) mtime: U64,
    pub(super) mtime_nsec: U32,
    pub(super) links: U32,
    pub(super) reserved2: [u8; 16],
}

/// `struct erofs_dirent`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DirectoryEntry {
    pub(super) nid: U64,
    pub(super) name_offset: U16,
    pub(super) file_type: u8,
    pub(super) reserved: u8,
}

/// `struct erofs_xattr_ibody_header`.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct XattrHeader {
    pub(super) reserved: U32,
    pub(super) shared_count: u8,
    pub(super) reserved2: [u8; 7],
}

/// `struct erofs_xattr_entry`; name and value follow.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct XattrEntry {
    pub(super) name_bytes: u8,
    pub(super) name_index: u8,
    pub(super) value_bytes: U16,
}

/// Bytes of a superblock on disk.
pub(super) const SUPER_BYTES: u64 = 128;
/// Bytes of an inode on disk.
pub(super) const INODE_BYTES: u64 = 64;
/// Bytes of a directory entry on disk.
pub(super) const DIRENT_BYTES: usize = 12;

const _: () = assert!(size_of::<SuperBlock>() as u64 == SUPER_BYTES);
const _: () = assert!(size_of::<Inode>() as u64 == INODE_BYTES);
const _: () = assert!(size_of::<DirectoryEntry>() == DIRENT_BYTES);
const _: () = assert!(size_of::<XattrHeader>() == 12);
const _: () = assert!(size_of::<XattrEntry>() == 4);
