//! The data file of a layer: contents of regular files on page boundaries.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::erofs::{BLOCK_BYTES, HUGE_PAGE_BYTES};

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;
/// Zeros of this length are left as a hole.
const HOLE_BYTES: usize = 64 << 10;
/// Blocks of a huge page.
const HUGE_BLOCKS: u32 = 512;
/// Gaps before huge pages that are remembered to be filled with small files.
const GAPS_MAX: usize = 16;

const _: () = assert!(HUGE_BLOCKS as u64 * BLOCK_BYTES == HUGE_PAGE_BYTES);

/// Writes the data file of one layer.
pub(super) struct DataFile {
    file: File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    start: u64,
    /// First block behind everything that was allocated.
    end_block: u32,
    /// Free runs below it: first block, blocks.
    gaps: Vec<(u32, u32)>,
}

impl DataFile {
    pub(super) fn new(file: File) -> Self {
        Self {
            file,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            start: 0,
            end_block: 0,
            gaps: Vec::new(),
        }
    }

    /// Finds room for `blocks` blocks, on a huge page if they fill one; `None` above 16 TiB.
    pub(super) fn allocate(&mut self, blocks: u32) -> Option<u32> {
        if blocks >= HUGE_BLOCKS {
            let start = self.end_block.checked_next_multiple_of(HUGE_BLOCKS)?;
            self.remember_gap(self.end_block, start - self.end_block);
            self.end_block = start.checked_add(blocks)?;
            return Some(start);
        }
        if let Some(gap) = self.gaps.iter_mut().find(|(_, free)| *free >= blocks) {
            let start = gap.0;
            *gap = (gap.0 + blocks, gap.1 - blocks);
            return Some(start);
        }
        let start = self.end_block;
        self.end_block = start.checked_add(blocks)?;
        Some(start)
    }

    fn remember_gap(&mut self, start: u32, blocks: u32) {
        self.gaps.retain(|(_, free)| *free > 0);
        if blocks > 0 {
            self.gaps.push((start, blocks));
        }
        if self.gaps.len() > GAPS_MAX
            && let Some(smallest) = (0..self.gaps.len()).min_by_key(|index| self.gaps[*index].1)
        {
            self.gaps.remove(smallest);
        }
    }

    /// Writes contents; every byte of an allocation that is never written is zero.
    pub(super) fn write_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = self.start + self.buffer.len() as u64;
        let gap = offset
            .checked_sub(end)
            .filter(|gap| *gap < BLOCK_BYTES)
            .and_then(|gap| usize::try_from(gap).ok());
        match gap {
            Some(gap) if self.buffer.len() + gap + bytes.len() <= BUFFER_BYTES => {
                self.buffer.resize(self.buffer.len() + gap, 0);
            }
            _ => {
                self.flush()?;
                self.start = offset;
            }
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut offset = self.start;
        for piece in self.buffer.chunks(HOLE_BYTES) {
            if piece.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(piece, offset)?;
            }
            offset += piece.len() as u64;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left and gives the file its length, whole blocks, which is returned.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        let length = u64::from(self.end_block) * BLOCK_BYTES;
        self.file.set_len(length)?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_file() -> DataFile {
        DataFile::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn large_files_start_on_huge_pages() {
        let mut data = data_file();
        assert_eq!(data.allocate(1), Some(0));
        assert_eq!(data.allocate(600), Some(512));
        assert_eq!(data.allocate(512), Some(1536));
    }

    #[test]
    fn small_files_fill_the_gaps_before_huge_pages() {
        let mut data = data_file();
        data.allocate(1).unwrap();
        data.allocate(512).unwrap();
        assert_eq!(data.allocate(500), Some(1));
        assert_eq!(data.allocate(11), Some(501));
        assert_eq!(data.allocate(1), Some(1024));
    }

    #[test]
    fn a_layer_above_16_tib_has_no_room() {
        let mut data = data_file();
        assert!(data.allocate(u32::MAX - 1000).is_some());
        assert_eq!(data.allocate(2000), None);
    }

    #[test]
    fn bytes_that_were_never_written_are_zero() {
        let mut data = data_file();
        data.allocate(4).unwrap();
        data.write_at(b"one", 0).unwrap();
        data.write_at(b"two", 8192).unwrap();
        let file = data.file.try_clone().unwrap();
        let length = data.finish().unwrap();
        let mut all = vec![1; 16384];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(length, 16384);
        assert_eq!((&all[..3], &all[8192..8195]), (&b"one"[..], &b"two"[..]));
        assert_eq!(all.iter().filter(|byte| **byte != 0).count(), 6);
    }
}
