//! The index of a layer: what it says of each path, in the order of the archive.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use super::super::erofs::{DeviceNumber, Extent, Metadata};
use super::path::LayerPath;

/// First bytes of an index; the digit is the version of its format.
const MAGIC: &[u8; 8] = b"vmm-idx1";

/// What a layer says of one path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::image) struct Entry {
    pub(in crate::image) path: LayerPath,
    pub(in crate::image) metadata: Metadata,
    pub(in crate::image) kind: EntryKind,
}

/// What an entry makes of its path.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::image) enum EntryKind {
    Directory,
    /// Contents in the data file of the same layer.
    File {
        size_bytes: u64,
        chunk_bits: Option<u8>,
        extents: Box<[Extent]>,
    },
    Symlink(Box<[u8]>),
    HardLink(LayerPath),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    /// Nothing of the layers below is at the path.
    Whiteout,
    /// Nothing of the layers below is in the directory.
    Opaque,
}

/// Writes an index: each entry behind its length, a length of zero at the end.
pub(super) struct IndexWriter<W> {
    output: W,
}

impl<W: Write> IndexWriter<W> {
    pub(super) fn new(mut output: W) -> io::Result<Self> {
        output.write_all(MAGIC)?;
        Ok(Self { output })
    }

    /// Adds an entry; returns the bytes that it takes.
    pub(super) fn add(&mut self, entry: &Entry) -> io::Result<u64> {
        let record = postcard::to_stdvec(entry).map_err(io::Error::other)?;
        let length = u32::try_from(record.len()).map_err(io::Error::other)?;
        self.output.write_all(&length.to_le_bytes())?;
        self.output.write_all(&record)?;
        Ok(u64::from(length) + 4)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.output.write_all(&0_u32.to_le_bytes())?;
        self.output.flush()?;
        Ok(self.output)
    }
}

/// Calls `each` for every entry of an index.
pub(in crate::image) fn read_index<E: From<io::Error>>(
    mut input: impl Read,
    mut each: impl FnMut(Entry) -> Result<(), E>,
) -> Result<(), E> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a layer index of this version",
        )
        .into());
    }
    let mut record = Vec::new();
    loop {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if length == 0 {
            return Ok(());
        }
        record.clear();
        let read = input
            .by_ref()
            .take(u64::from(length))
            .read_to_end(&mut record)?;
        if read as u64 != u64::from(length) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let entry = postcard::from_bytes(&record)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        each(entry)?;
    }
}
