//! The disk of a machine that was written down: a copy of what is on it, behind the memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::storage::{DataExtent, copy_extent, data_extents};

/// Where in a snapshot's file the disk is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCopy {
    /// Where it begins.
    offset_bytes: u64,
    /// How long it is, holes included.
    pub length_bytes: u64,
    extents: Vec<DataExtent>,
    /// CRC-32 of what is in the extents.
    checksum: u32,
}

impl DiskCopy {
    /// Copies a disk, to which nobody writes meanwhile, to the end of a file.
    pub(super) fn append(disk: &File, file: &File) -> io::Result<Self> {
        let offset_bytes = file.metadata()?.len();
        let length_bytes = disk.metadata()?.len();
        file.set_len(offset_bytes.saturating_add(length_bytes))?;
        let extents = data_extents(disk)?;
        let mut checksum = crc32fast::Hasher::new();
        for extent in &extents {
            copy_extent((disk, 0), (file, offset_bytes), *extent, &mut checksum)?;
        }
        Ok(Self {
            offset_bytes,
            length_bytes,
            extents,
            checksum: checksum.finalize(),
        })
    }

    /// Copies it out of a snapshot's file to a disk of its length.
    pub(super) fn copy_to(&self, disk: &File, file: &File) -> io::Result<()> {
        let mut checksum = crc32fast::Hasher::new();
        for extent in &self.extents {
            copy_extent((file, self.offset_bytes), (disk, 0), *extent, &mut checksum)?;
        }
        match checksum.finalize() == self.checksum {
            true => Ok(()),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Tells whether nothing of it was altered.
    pub(super) fn is_whole(&self, file: &File) -> io::Result<bool> {
        const PIECE_BYTES: u64 = 1 << 20;
        let mut checksum = crc32fast::Hasher::new();
        let mut piece = Vec::new();
        for extent in &self.extents {
            let mut done_bytes = 0;
            while done_bytes < extent.length_bytes {
                let count = (extent.length_bytes - done_bytes).min(PIECE_BYTES);
                piece.resize(usize::try_from(count).unwrap_or(usize::MAX), 0);
                let offset_bytes = self
                    .offset_bytes
                    .saturating_add(extent.offset_bytes)
                    .saturating_add(done_bytes);
                file.read_exact_at(&mut piece, offset_bytes)?;
                checksum.update(&piece);
                done_bytes += count;
            }
        }
        Ok(checksum.finalize() == self.checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(parts: &[(&[u8], u64)], length_bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length_bytes).unwrap();
        parts
            .iter()
            .for_each(|(bytes, at)| file.write_all_at(bytes, *at).unwrap());
        file
    }

    #[test]
    fn a_disk_that_was_appended_is_copied_out_again() {
        let disk = file_of(&[(b"begin", 0), (b"end", 5 << 20)], 16 << 20);
        let snapshot = file_of(&[(b"memory", 0)], 8192);
        let copy = DiskCopy::append(&disk, &snapshot).unwrap();
        let other = file_of(&[], 16 << 20);

        copy.copy_to(&other, &snapshot).unwrap();

        let mut bytes = [0; 3];
        other.read_exact_at(&mut bytes, 5 << 20).unwrap();
        assert_eq!(&bytes, b"end");
        assert_eq!(snapshot.metadata().unwrap().len(), 8192 + (16 << 20));
    }

    #[test]
    fn an_altered_disk_is_told() {
        let disk = file_of(&[(b"begin", 0)], 1 << 20);
        let snapshot = file_of(&[], 4096);
        let copy = DiskCopy::append(&disk, &snapshot).unwrap();
        let before = copy.is_whole(&snapshot).unwrap();
        snapshot.write_all_at(b"B", 4096).unwrap();

        assert!(before);
        assert!(!copy.is_whole(&snapshot).unwrap());
        assert!(copy.copy_to(&disk, &snapshot).is_err());
    }
}
