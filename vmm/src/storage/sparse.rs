//! Sparse files: what is in them, and copies that have the same holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What is copied at once.
const PIECE_BYTES: u64 = 1 << 20;

/// A part of a file that is no hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataExtent {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// Where a file has data, lseek(2).
///
/// # Errors
///
/// The file system's.
pub fn data_extents(file: &File) -> io::Result<Vec<DataExtent>> {
    let mut extents = Vec::new();
    let mut end_bytes = 0;
    loop {
        let offset_bytes = match rustix::fs::seek(file, SeekFrom::Data(end_bytes)) {
            Ok(offset_bytes) => offset_bytes,
            Err(Errno::NXIO) => return Ok(extents),
            Err(error) => return Err(error.into()),
        };
        end_bytes = rustix::fs::seek(file, SeekFrom::Hole(offset_bytes))?;
        extents.push(DataExtent {
            offset_bytes,
            length_bytes: end_bytes.saturating_sub(offset_bytes),
        });
    }
}

/// Copies a part of a file, which begins at `from_bytes` there, to where it begins in another at `to_bytes`, and adds it to a checksum.
///
/// # Errors
///
/// The file systems', and when a file is shorter than that.
pub fn copy_extent(
    (from, from_bytes): (&File, u64),
    (to, to_bytes): (&File, u64),
    extent: DataExtent,
    checksum: &mut crc32fast::Hasher,
) -> io::Result<()> {
    let overflow = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut piece = Vec::new();
    let mut done_bytes = 0;
    while done_bytes < extent.length_bytes {
        let count = (extent.length_bytes - done_bytes).min(PIECE_BYTES);
        piece.resize(usize::try_from(count).unwrap_or(usize::MAX), 0);
        let at = |base: u64| {
            let offset = extent.offset_bytes.checked_add(done_bytes)?;
            base.checked_add(offset)
        };
        from.read_exact_at(&mut piece, at(from_bytes).ok_or_else(overflow)?)?;
        checksum.update(&piece);
        to.write_all_at(&piece, at(to_bytes).ok_or_else(overflow)?)?;
        done_bytes += count;
    }
    Ok(())
}
