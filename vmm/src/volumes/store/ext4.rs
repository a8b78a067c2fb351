//! What the host looks up in a volume's file system: the superblock of ext4 (Documentation/filesystems/ext4/super.rst), of which
//! nothing is believed but that a guest gets the disk one way or the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where it begins, and how much of it is looked at.
const SUPERBLOCK_OFFSET_BYTES: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
/// `s_blocks_count_lo`, `s_blocks_count_hi`, `s_log_block_size`, `s_feature_incompat`.
const BLOCKS_LOW: usize = 0x4;
const BLOCKS_HIGH: usize = 0x150;
const LOG_BLOCK_SIZE: usize = 0x18;
const INCOMPATIBLE_FEATURES: usize = 0x60;
/// `s_magic`, and where it is in the file.
const MAGIC: [u8; 2] = 0xef53_u16.to_le_bytes();
const MAGIC_OFFSET_BYTES: u64 = SUPERBLOCK_OFFSET_BYTES + 0x38;
/// `INCOMPAT_RECOVER`: the journal has to be replayed.
const NEEDS_RECOVERY: u32 = 0x4;
/// The smallest block has 1 KiB; none has more than 64.
const MIN_BLOCK_SHIFT: u32 = 10;
const MAX_LOG_BLOCK_SIZE: u32 = 6;

/// Whether a file looks like a file system that a volume can have.
///
/// # Errors
///
/// The file system's.
pub fn holds_file_system(file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, MAGIC_OFFSET_BYTES) {
        Ok(()) => Ok(magic == MAGIC),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether something has to be written to a disk before it can be read: there is no file system yet, it is smaller than its disk, or
/// it was not put in order when its last machine ended.
pub(super) fn needs_writing(disk: &File, disk_bytes: u64) -> io::Result<bool> {
    let mut superblock = [0; SUPERBLOCK_BYTES];
    disk.read_exact_at(&mut superblock, SUPERBLOCK_OFFSET_BYTES)?;
    let word = |offset: usize| {
        let bytes = superblock.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u32::from_le_bytes)
    };
    if word(INCOMPATIBLE_FEATURES) & NEEDS_RECOVERY != 0 {
        return Ok(true);
    }
    let blocks = u64::from(word(BLOCKS_HIGH)) << 32 | u64::from(word(BLOCKS_LOW));
    let shift = MIN_BLOCK_SHIFT + word(LOG_BLOCK_SIZE).min(MAX_LOG_BLOCK_SIZE);
    Ok(blocks.saturating_mul(1 << shift) < disk_bytes)
}
