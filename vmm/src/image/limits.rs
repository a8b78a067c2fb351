//! What an image may cost at most.

/// Limits of one import; each can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an archive that has to be spooled (standard input, compressed archives).
    pub spool_bytes: u64,
    /// Bytes of all layers' tar streams together, unpacked.
    pub unpacked_bytes: u64,
    /// Length of all files together, holes included.
    pub apparent_bytes: u64,
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all paths, attributes and sparse maps together.
    pub index_bytes: u64,
    /// How many times its compressed size a layer or an archive may unpack to ...
    pub ratio: u64,
    /// ... once it is larger than this.
    pub ratio_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        const GIB: u64 = 1 << 30;
        Self {
            spool_bytes: 64 * GIB,
            unpacked_bytes: 64 * GIB,
            apparent_bytes: 256 * GIB,
            entries: 4_000_000,
            index_bytes: GIB,
            ratio: 200,
            ratio_floor_bytes: 64 << 20,
        }
    }
}

impl Limits {
    /// Compares what was unpacked so far with what it was unpacked from.
    pub(super) fn ratio(&self, unpacked: u64, compressed: u64) -> Result<(), LimitError> {
        if unpacked > self.ratio_floor_bytes && unpacked / self.ratio.max(1) > compressed {
            return Err(LimitError::Ratio(self.ratio));
        }
        Ok(())
    }
}

/// What one import has left of its limits.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    limits: Limits,
    unpacked_bytes: u64,
    apparent_bytes: u64,
    entries: u64,
    index_bytes: u64,
}

/// A limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Too many bytes unpacked.
    #[error("unpacks to more than {0} bytes")]
    Unpacked(u64),
    /// Files too long, holes included.
    #[error("holds files of more than {0} bytes together, holes included")]
    Apparent(u64),
    /// Too many entries.
    #[error("has more than {0} entries")]
    Entries(u64),
    /// Too much to say of the entries.
    #[error("needs more than {0} bytes for names, attributes and sparse maps")]
    Index(u64),
    /// A suspicious compression.
    #[error("unpacks to more than {0} times its size")]
    Ratio(u64),
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            unpacked_bytes: 0,
            apparent_bytes: 0,
            entries: 0,
            index_bytes: 0,
        }
    }

    /// Accounts for one entry and the length of its file.
    pub(super) fn entry(
        &mut self,
        apparent_bytes: u64,
        index_bytes: u64,
    ) -> Result<(), LimitError> {
        self.entries += 1;
        self.apparent_bytes = self.apparent_bytes.saturating_add(apparent_bytes);
        self.index_bytes = self.index_bytes.saturating_add(index_bytes);
        let limits = &self.limits;
        if self.entries > limits.entries {
            Err(LimitError::Entries(limits.entries))
        } else if self.apparent_bytes > limits.apparent_bytes {
            Err(LimitError::Apparent(limits.apparent_bytes))
        } else if self.index_bytes > limits.index_bytes {
            Err(LimitError::Index(limits.index_bytes))
        } else {
            Ok(())
        }
    }

    /// Accounts for unpacked bytes of a layer: `total` so far from `compressed` read so far.
    pub(super) fn unpacked(
        &mut self,
        step: u64,
        total: u64,
        compressed: u64,
    ) -> Result<(), LimitError> {
        self.unpacked_bytes = self.unpacked_bytes.saturating_add(step);
        if self.unpacked_bytes > self.limits.unpacked_bytes {
            return Err(LimitError::Unpacked(self.limits.unpacked_bytes));
        }
        self.limits.ratio(total, compressed)
    }

    /// Takes over what a copy of this budget counted as unpacked.
    pub(super) fn take_unpacked_from(&mut self, other: &Self) {
        self.unpacked_bytes = other.unpacked_bytes;
    }
}
