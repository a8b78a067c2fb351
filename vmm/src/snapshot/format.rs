//! The file of a snapshot.
//!
//! ```text
//! one page    magic "vmm-snap" | format, u32 | length of the body, u32 | its offset, u64 | CRC-32, u32 | … | resumed, u8
//! RAM         sparse, as long as the machine's
//! disk        sparse, as long as the machine's, if it has one
//! body        postcard: see Snapshot
//! ```
//!
//! All numbers are little endian. The checksum is of format, length, offset and body; the memory has one of its own, in the body.
//! The last byte of the first page is 1 once the snapshot was resumed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use thiserror::Error;

use super::Snapshot;

const MAGIC: &[u8; 8] = b"vmm-snap";
/// Goes up with every change of what is written, the states of devices included.
const FORMAT: u32 = 4;
/// A body is some ten KiB for each vCPU, and some KiB for memory in many pieces.
const MAX_BODY_BYTES: u32 = 64 << 20;
const RESUMED_AT: u64 = Header::BYTES - 1;

/// Bytes that are no snapshot of this program.
#[derive(Debug, Error)]
pub enum FormatError {
    /// Something else.
    #[error("it is not a snapshot")]
    NoSnapshot,
    /// Of another version.
    #[error("its format is {found}, this program's is {FORMAT}")]
    Version {
        /// The one that it has.
        found: u32,
    },
    /// Shorter than it says.
    #[error("it is cut short")]
    Truncated,
    /// Changed since it was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// Changed since it was written.
    #[error("its memory was changed")]
    Memory,
    /// Changed since it was written.
    #[error("its disk was changed")]
    Disk,
    /// It cannot be read or written.
    #[error("it does not make sense")]
    Body(#[source] postcard::Error),
    /// Too large to be one.
    #[error("it is too large")]
    TooLarge,
    /// The file failed.
    #[error("it cannot be read or written")]
    Io(#[source] io::Error),
}

/// What the first page says of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    length_bytes: u32,
    offset_bytes: u64,
}

impl Header {
    /// How long the first page is.
    pub(super) const BYTES: u64 = 4096;
    const LENGTH: usize = 28;

    fn fields(self) -> [u8; 16] {
        let mut fields = [0; 16];
        fields[..4].copy_from_slice(&FORMAT.to_le_bytes());
        fields[4..8].copy_from_slice(&self.length_bytes.to_le_bytes());
        fields[8..].copy_from_slice(&self.offset_bytes.to_le_bytes());
        fields
    }

    fn checksum(self, body: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.fields());
        hasher.update(body);
        hasher.finalize()
    }

    /// The header, and the checksum that it names.
    fn parse(bytes: &[u8; Self::LENGTH]) -> Result<(Self, u32), FormatError> {
        let (magic, rest) = bytes.split_first_chunk().ok_or(FormatError::NoSnapshot)?;
        if magic != MAGIC {
            return Err(FormatError::NoSnapshot);
        }
        let (format, rest) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
        let found = u32::from_le_bytes(*format);
        if found != FORMAT {
            return Err(FormatError::Version { found });
        }
        let (length, rest) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
        let (offset, rest) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
        let checksum = rest.first_chunk().ok_or(FormatError::Truncated)?;
        let header = Self {
            length_bytes: u32::from_le_bytes(*length),
            offset_bytes: u64::from_le_bytes(*offset),
        };
        Ok((header, u32::from_le_bytes(*checksum)))
    }
}

/// Writes a snapshot's body behind its memory, and its header last.
pub(super) fn write(file: &File, snapshot: &Snapshot) -> Result<(), FormatError> {
    let body = postcard::to_stdvec(snapshot).map_err(FormatError::Body)?;
    let length_bytes = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_BODY_BYTES)
        .ok_or(FormatError::TooLarge)?;
    let header = Header {
        length_bytes,
        offset_bytes: file.metadata().map_err(FormatError::Io)?.len(),
    };
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&header.fields());
    bytes.extend_from_slice(&header.checksum(&body).to_le_bytes());
    file.write_all_at(&body, header.offset_bytes)
        .and_then(|()| file.write_all_at(&bytes, 0))
        .map_err(FormatError::Io)
}

/// Reads what [`write`] wrote. A file that was cut short ends before the body.
pub(super) fn read(file: &File) -> Result<Snapshot, FormatError> {
    let mut head = [0; Header::LENGTH];
    read_exact(file, &mut head, 0).map_err(|error| match error {
        FormatError::Truncated => FormatError::NoSnapshot,
        error => error,
    })?;
    let (header, checksum) = Header::parse(&head)?;
    if header.length_bytes > MAX_BODY_BYTES {
        return Err(FormatError::TooLarge);
    }
    let end = header
        .offset_bytes
        .checked_add(u64::from(header.length_bytes));
    if end != Some(file.metadata().map_err(FormatError::Io)?.len()) {
        return Err(FormatError::Truncated);
    }
    let length = usize::try_from(header.length_bytes).map_err(|_| FormatError::TooLarge)?;
    let mut body = vec![0; length];
    read_exact(file, &mut body, header.offset_bytes)?;
    if header.checksum(&body) != checksum {
        return Err(FormatError::Checksum);
    }
    postcard::from_bytes(&body).map_err(FormatError::Body)
}

fn read_exact(file: &File, bytes: &mut [u8], offset_bytes: u64) -> Result<(), FormatError> {
    file.read_exact_at(bytes, offset_bytes)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => FormatError::Truncated,
            _ => FormatError::Io(error),
        })
}

/// Whether the snapshot was resumed.
pub(super) fn is_resumed(file: &File) -> io::Result<bool> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, RESUMED_AT)?;
    Ok(byte != [0])
}

/// Writes down, and to the disk, that the snapshot is resumed.
pub(super) fn mark_resumed(file: &File) -> io::Result<()> {
    file.write_all_at(&[1], RESUMED_AT)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A snapshot of a machine without memory.
    fn written() -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(Header::BYTES).unwrap();
        write(&file, &Snapshot::for_tests()).unwrap();
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn read_bytes(bytes: &[u8]) -> Result<Snapshot, FormatError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        read(&file)
    }

    /// What the checksum covers: not the page between the header and its last byte, nor that byte.
    fn is_covered(place: usize) -> bool {
        place < Header::LENGTH || place as u64 >= Header::BYTES
    }

    #[test]
    fn what_was_written_is_read() {
        let snapshot = read_bytes(&written()).unwrap();
        assert_eq!(snapshot.origin, Snapshot::for_tests().origin);
        assert_eq!(snapshot.subject, Snapshot::for_tests().subject);
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = written();
        bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        let error = read_bytes(&bytes).unwrap_err();
        assert!(matches!(error, FormatError::Version { found } if found == FORMAT + 1));
    }

    #[test]
    fn a_body_that_is_said_to_be_anywhere_is_not_read() {
        for (length, offset) in [
            (u32::MAX, 4096),
            (100, u64::MAX),
            (100, u64::MAX - 50),
            (MAX_BODY_BYTES, 4096),
            (0, 0),
        ] {
            let mut bytes = written();
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            bytes[16..24].copy_from_slice(&offset.to_le_bytes());
            assert!(read_bytes(&bytes).is_err());
        }
    }

    #[test]
    fn a_snapshot_is_resumed_once_it_was_marked() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&written(), 0).unwrap();
        assert!(!is_resumed(&file).unwrap());
        mark_resumed(&file).unwrap();
        assert!(is_resumed(&file).unwrap());
        assert!(read(&file).is_ok(), "the mark is no damage");
    }

    proptest! {
        #[test]
        fn no_altered_byte_is_taken(place in any::<prop::sample::Index>(), change in 1_u8..) {
            let mut bytes = written();
            let place = place.index(bytes.len());
            bytes[place] ^= change;
            prop_assert_eq!(read_bytes(&bytes).is_err(), is_covered(place));
        }

        #[test]
        fn no_other_length_is_taken(length in any::<prop::sample::Index>(), more in 1..100_usize) {
            let bytes = written();
            prop_assert!(read_bytes(&bytes[..length.index(bytes.len())]).is_err());
            let longer = [bytes, vec![0; more]].concat();
            prop_assert!(read_bytes(&longer).is_err());
        }

        #[test]
        fn no_bytes_harm_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(read_bytes(&bytes).is_err());
            // Behind a header that is right.
            let mut behind = written();
            behind.truncate(4096);
            behind.extend(bytes);
            prop_assert!(read_bytes(&behind).is_err());
        }
    }
}
