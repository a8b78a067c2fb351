//! Sparse files: what is in them, and copies that have the same holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What is copied at once.
const PIECE_BYTES: u64 = 1 << 20;

/// The shortest hole that is one. What lies on both sides of a shorter one is one extent: a guest decides where its disk has holes,
/// and must not decide how many extents there are.
const MIN_HOLE_BYTES: u64 = 1 << 20;

/// A part of a file that is no hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataExtent {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// Where a file has data, lseek(2), holes that are too short to matter included.
///
/// # Errors
///
/// The file system's.
pub fn data_extents(file: &File) -> io::Result<Vec<DataExtent>> {
    let mut extents: Vec<DataExtent> = Vec::new();
    let mut end_bytes = 0;
    loop {
        let offset_bytes = match rustix::fs::seek(file, SeekFrom::Data(end_bytes)) {
            Ok(offset_bytes) => offset_bytes,
            Err(Errno::NXIO) => return Ok(extents),
            Err(error) => return Err(error.into()),
        };
        let hole_bytes = offset_bytes.saturating_sub(end_bytes);
        end_bytes = rustix::fs::seek(file, SeekFrom::Hole(offset_bytes))?;
        match extents.last_mut() {
            Some(last) if hole_bytes < MIN_HOLE_BYTES => {
                last.length_bytes = end_bytes.saturating_sub(last.offset_bytes);
            }
            _ => extents.push(DataExtent {
                offset_bytes,
                length_bytes: end_bytes.saturating_sub(offset_bytes),
            }),
        }
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

/// Makes an empty file a copy of another: one that shares its blocks where the file system can (ioctl_ficlone(2)), or one without its
/// holes.
///
/// # Errors
///
/// The file systems'.
pub fn copy_whole(from: &File, to: &File) -> io::Result<()> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    to.set_len(from.metadata()?.len())?;
    let mut checksum = crc32fast::Hasher::new();
    for extent in data_extents(from)? {
        copy_extent((from, 0), (to, 0), extent, &mut checksum)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_as_long_and_has_the_same_data_and_holes() {
        use std::os::unix::fs::MetadataExt;

        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"middle", 32 << 20).unwrap();

        copy_whole(&from, &to).unwrap();

        let mut bytes = [0; 6];
        to.read_exact_at(&mut bytes, 32 << 20).unwrap();
        assert_eq!(&bytes, b"middle");
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(to.metadata().unwrap().blocks() * 512 < 4 << 20);
    }

    #[test]
    fn a_file_full_of_short_holes_has_few_extents_and_the_same_data() {
        const LENGTH_BYTES: u64 = 16 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH_BYTES).unwrap();
        // Every second block of the first half, and one far behind.
        for offset in (0..LENGTH_BYTES / 2).step_by(16 << 10) {
            file.write_all_at(&[7; 4096], offset).unwrap();
        }
        file.write_all_at(b"far", LENGTH_BYTES - 4096).unwrap();
        file.sync_all().unwrap();

        let extents = data_extents(&file).unwrap();
        assert!(extents.len() <= 2, "{extents:?}");

        let copy = tempfile::tempfile().unwrap();
        copy.set_len(LENGTH_BYTES).unwrap();
        let mut checksum = crc32fast::Hasher::new();
        for extent in extents {
            copy_extent((&file, 0), (&copy, 0), extent, &mut checksum).unwrap();
        }
        let all = |file: &File| {
            let mut bytes = vec![0; usize::try_from(LENGTH_BYTES).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(all(&file) == all(&copy));
    }
}
