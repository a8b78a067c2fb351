//! What stays of a machine that has ended: the disk that holds what its workload wrote to its root, and what it takes to start the
//! machine again.
//!
//! ```text
//! machines/<64 digits>/
//!   disk              the writable layer: ext4, sparse, as long as --storage says; locked while a VM process has it
//!   blueprint.json    what the machine was created with
//! ```
//!
//! A machine that is not kept has neither.

mod blueprint;
mod disk;
mod sparse;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::limits::{ByteSize, LimitError};

pub use self::blueprint::{Blueprint, BlueprintError};
pub use self::disk::{DiskError, fill, is_blank, make, make_filled, open};
pub use self::sparse::{DataExtent, copy_extent, copy_whole, data_extents};

/// How much a workload may write to its root: the length of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StorageSize {
    bytes: u64,
}

/// A size that no disk has.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StorageSizeError {
    /// It is no size.
    #[error(transparent)]
    NotASize(#[from] LimitError),
    /// It does not hold the empty file system.
    #[error("{0} is too little storage: the smallest size is {min}", min = StorageSize::MIN)]
    TooSmall(String),
    /// The file system does not grow so far.
    #[error("{0} is too much storage: the largest size is {max}", max = StorageSize::MAX)]
    TooLarge(String),
}

impl StorageSize {
    /// The smallest size: twice the empty file system (`guest-image/blank.sh`), a third of which is its own.
    pub const MIN: Self = Self { bytes: 64 << 20 };
    /// The largest size: as far as the empty file system has room for group descriptors.
    pub const MAX: Self = Self { bytes: 1 << 40 };
    /// The unit of sizes, a block of the file system.
    const GRAIN_BYTES: u64 = 4096;

    /// The size of a disk that there is.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// Returns the size in bytes, a whole number of the file system's blocks.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

impl Default for StorageSize {
    /// 10 GiB, as docker's storage drivers have it.
    fn default() -> Self {
        Self { bytes: 10 << 30 }
    }
}

impl fmt::Display for StorageSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, char); 3] = [(1 << 30, 'g'), (1 << 20, 'm'), (1 << 10, 'k')];
        let fitting = UNITS
            .iter()
            .find(|(factor, _)| self.bytes.is_multiple_of(*factor));
        let (factor, suffix) = fitting.unwrap_or(&(1, 'b'));
        write!(formatter, "{}{suffix}", self.bytes / factor)
    }
}

impl FromStr for StorageSize {
    type Err = StorageSizeError;

    fn from_str(text: &str) -> Result<Self, StorageSizeError> {
        let asked = ByteSize::from_str(text)?.bytes();
        if asked < Self::MIN.bytes {
            return Err(StorageSizeError::TooSmall(text.to_owned()));
        }
        if asked > Self::MAX.bytes {
            return Err(StorageSizeError::TooLarge(text.to_owned()));
        }
        Ok(Self {
            bytes: asked.next_multiple_of(Self::GRAIN_BYTES),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Result<u64, StorageSizeError> {
        text.parse().map(StorageSize::bytes)
    }

    #[test]
    fn a_size_is_a_whole_number_of_blocks_and_prints_as_it_would_be_typed() {
        assert_eq!(size("1g"), Ok(1 << 30));
        assert_eq!(size("67108865"), Ok((64 << 20) + 4096));
        assert_eq!(StorageSize::default().to_string(), "10g");
        assert_eq!("1.5g".parse::<StorageSize>().unwrap().to_string(), "1536m");
    }

    #[test]
    fn a_size_that_no_disk_has_is_refused() {
        let text = |text: &str| size(text).unwrap_err().to_string();

        assert_eq!(
            text("1m"),
            "1m is too little storage: the smallest size is 64m"
        );
        assert_eq!(
            text("2000g"),
            "2000g is too much storage: the largest size is 1024g"
        );
        assert_eq!(text("much"), "'much' is not a size in bytes");
        assert_eq!(
            text("99999999999999999999g"),
            "99999999999999999999g is too much memory: the largest limit is 1024g"
        );
    }
}
