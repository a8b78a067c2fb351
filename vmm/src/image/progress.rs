//! How an import tells how far it is.

/// A step of an import, in the order in which they come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The archive is copied to a file, as it came from a stream or was compressed.
    Spool,
    /// A layer is verified and converted.
    Layer {
        /// Its number, from 1.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// What was written is brought to the disk.
    Store,
}

/// Is told how far an import is; called on the importing thread, so it must not block.
pub trait Progress {
    /// A step begins; `total_bytes` is `None` where the end cannot be known.
    fn begin(&self, step: &Step, total_bytes: Option<u64>);
    /// So many more bytes of the step are done.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &Step, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
}
