//! The file in which a template's state is kept.
//!
//! ```text
//! magic "vmm-tmpl" | format, u32 | length of the body, u32 | CRC-32 of the body | body
//! ```
//!
//! All numbers are little endian. The body is postcard: recipe, identity of the files of memory and disk, the machine. What is not exactly
//! this is no template. The checksum is against accidents: whoever may write here may do all that this account may.

use std::io;
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Recipe;
use crate::machine::SavedMachine;

const MAGIC: &[u8; 8] = b"vmm-tmpl";
/// Goes up with every change of what is written, the states of devices included.
pub(super) const FORMAT: u32 = 4;
const HEADER_BYTES: usize = MAGIC.len() + 4 + 4 + 4;
/// A state is some ten KiB for each vCPU.
pub(super) const MAX_STATE_BYTES: u64 = 4 << 20;

/// A template but for its memory.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Of what it was made.
    pub(super) recipe: Recipe,
    /// The file of its memory, as it was when the template was made.
    pub(super) memory: FileIdentity,
    /// The file of what its own disk held, if it has one.
    pub(super) disk: Option<FileIdentity>,
    /// The frozen machine.
    pub(super) machine: SavedMachine,
}

/// By what a file is known that is not ours to guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl From<&std::fs::Metadata> for FileStamp {
    fn from(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

/// By what a file is known that nobody may have touched: whoever changes it, or puts its times back, changes the last of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileIdentity {
    stamp: FileStamp,
    changed: (i64, i64),
}

impl From<&std::fs::Metadata> for FileIdentity {
    fn from(metadata: &std::fs::Metadata) -> Self {
        Self {
            stamp: FileStamp::from(metadata),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Bytes that are no template of this program.
#[derive(Debug, Error)]
pub(super) enum FormatError {
    /// Something else.
    #[error("it is not a template")]
    NoTemplate,
    /// Of another version.
    #[error("its format is {found}, this program's is {FORMAT}")]
    Version {
        /// The one that it has.
        found: u32,
    },
    /// Shorter or longer than it says.
    #[error("it is cut short")]
    Truncated,
    /// Changed since it was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It cannot be read or written.
    #[error("it does not make sense")]
    Body(#[source] postcard::Error),
    /// The file failed.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
}

/// Writes a state down.
pub(super) fn encode(state: &State) -> Result<Vec<u8>, FormatError> {
    let body = postcard::to_stdvec(state).map_err(FormatError::Body)?;
    let length = u32::try_from(body.len()).map_err(|_| FormatError::NoTemplate)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads what [`encode`] wrote.
pub(super) fn decode(bytes: &[u8]) -> Result<State, FormatError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(FormatError::NoTemplate)?;
    if magic != MAGIC {
        return Err(FormatError::NoTemplate);
    }
    let (format, rest) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
    let found = u32::from_le_bytes(*format);
    if found != FORMAT {
        return Err(FormatError::Version { found });
    }
    let (length, rest) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
    let (checksum, body) = rest.split_first_chunk().ok_or(FormatError::Truncated)?;
    if usize::try_from(u32::from_le_bytes(*length)) != Ok(body.len()) {
        return Err(FormatError::Truncated);
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*checksum) {
        return Err(FormatError::Checksum);
    }
    postcard::from_bytes(body).map_err(FormatError::Body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written() -> Vec<u8> {
        let file = tempfile::tempfile().unwrap();
        let state = State {
            recipe: Recipe::for_tests(),
            memory: FileIdentity::from(&file.metadata().unwrap()),
            disk: None,
            machine: SavedMachine::for_tests(),
        };
        encode(&state).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let state = decode(&written()).unwrap();
        assert_eq!(state.recipe, Recipe::for_tests());
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = written();
        bytes[8..12].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        let error = decode(&bytes).unwrap_err();
        assert!(matches!(error, FormatError::Version { found } if found == FORMAT + 1));
    }

    #[test]
    fn something_else_is_no_template() {
        for bytes in [&b""[..], b"vmm-tmp", b"PK\x03\x04 and more of it"] {
            assert!(matches!(decode(bytes), Err(FormatError::NoTemplate)));
        }
    }

    proptest! {
        #[test]
        fn no_altered_byte_is_taken(place in any::<prop::sample::Index>(), change in 1_u8..) {
            let mut bytes = written();
            let place = place.index(bytes.len());
            bytes[place] ^= change;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn no_other_length_is_taken(length in any::<prop::sample::Index>(), more in 1..100_usize) {
            let bytes = written();
            prop_assert!(decode(&bytes[..length.index(bytes.len())]).is_err());
            let longer = [bytes, vec![0; more]].concat();
            prop_assert!(decode(&longer).is_err());
        }

        #[test]
        fn no_bytes_harm_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
