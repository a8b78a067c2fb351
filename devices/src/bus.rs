//! The bus: which device answers at which address.
//!
//! One [`Bus`] serves memory-mapped devices ([`MmioBus`]) and one serves ports ([`PioBus`]). The
//! machine fills both while it is built and then shares them, unchanging, with its vCPU threads;
//! a look-up takes no lock. What no device claims reads as all ones, as on a PC where nobody
//! drives the lines, and swallows writes; both are counted, not logged, because the guest chooses
//! how often it happens.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// A guest physical address on the memory-mapped bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MmioAddress(pub u64);

/// A port on the port bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PioAddress(pub u16);

/// An address of one of the two buses.
pub trait BusAddress: Copy + fmt::Debug {
    /// The first address that the bus does not have; ranges end there at the latest.
    const LIMIT: u64;

    /// Returns the address as a number.
    fn value(self) -> u64;
}

impl BusAddress for MmioAddress {
    /// Physical addresses have at most 52 bits (Intel SDM volume 3A, section 4.1.4, MAXPHYADDR).
    const LIMIT: u64 = 1 << 52;

    fn value(self) -> u64 {
        self.0
    }
}

impl BusAddress for PioAddress {
    /// The I/O space has 64 Ki ports (Intel SDM volume 1, section 19.3).
    const LIMIT: u64 = 1 << 16;

    fn value(self) -> u64 {
        u64::from(self.0)
    }
}

/// A device that answers accesses on a bus.
///
/// Called by vCPU threads, several at a time; the device guards its own state. An access lies
/// inside the device's range from its first to its last byte, and has 1 to 8 bytes. It must return
/// quickly: the vCPU stands still meanwhile. Offsets and data come from the guest and are hostile.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what the guest reads at `offset` from the start of the range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset` from the start of the range.
    fn write(&self, offset: u64, data: &[u8]);
}

impl fmt::Debug for dyn BusDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BusDevice")
    }
}

/// Why a device could not be put on a bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InsertError {
    /// The range has no bytes.
    #[error("the bus range at {start:#x} is empty")]
    Empty {
        /// First address of the range.
        start: u64,
    },
    /// The range ends behind the end of the address space.
    #[error("the bus range at {start:#x} of {length:#x} bytes ends outside of the address space")]
    OutOfSpace {
        /// First address of the range.
        start: u64,
        /// Length of the range in bytes.
        length: u64,
    },
    /// The range shares an address with a device that is already there.
    #[error(
        "the bus range at {start:#x} of {length:#x} bytes overlaps the device at {other_start:#x}"
    )]
    Overlap {
        /// First address of the range.
        start: u64,
        /// Length of the range in bytes.
        length: u64,
        /// First address of the device that is already there.
        other_start: u64,
    },
}

#[derive(Debug)]
struct Entry {
    start: u64,
    /// Exclusive; at most [`BusAddress::LIMIT`], so it never wraps.
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// The devices of one address space, found by address.
#[derive(Debug)]
pub struct Bus<A> {
    /// Sorted by start, without overlaps.
    entries: Vec<Entry>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
    address: std::marker::PhantomData<A>,
}

/// The bus of memory-mapped devices.
pub type MmioBus = Bus<MmioAddress>;

/// The bus of ports.
pub type PioBus = Bus<PioAddress>;

impl<A> Default for Bus<A> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            unclaimed_reads: AtomicU64::new(0),
            unclaimed_writes: AtomicU64::new(0),
            address: std::marker::PhantomData,
        }
    }
}

impl<A: BusAddress> Bus<A> {
    /// Makes a bus without devices.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `length_bytes` addresses from `start` on.
    ///
    /// # Errors
    ///
    /// Returns [`InsertError`] if the range is empty, leaves the address space, or overlaps another.
    pub fn insert(
        &mut self,
        start: A,
        length_bytes: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), InsertError> {
        let start = start.value();
        if length_bytes == 0 {
            return Err(InsertError::Empty { start });
        }
        let end = start
            .checked_add(length_bytes)
            .filter(|end| *end <= A::LIMIT)
            .ok_or(InsertError::OutOfSpace {
                start,
                length: length_bytes,
            })?;
        let position = self.entries.partition_point(|entry| entry.start < start);
        let before = position.checked_sub(1).and_then(|i| self.entries.get(i));
        let after = self.entries.get(position);
        let clash = before
            .filter(|entry| entry.end > start)
            .or(after.filter(|entry| entry.start < end));
        if let Some(other) = clash {
            return Err(InsertError::Overlap {
                start,
                length: length_bytes,
                other_start: other.start,
            });
        }
        self.entries.insert(position, Entry { start, end, device });
        Ok(())
    }

    /// Answers a read of the guest; `true` if a device answered it.
    pub fn read(&self, address: A, data: &mut [u8]) -> bool {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
            true
        } else {
            data.fill(0xff);
            self.unclaimed_reads.fetch_add(1, Ordering::Relaxed);
            false
        }
    }

    /// Delivers a write of the guest; `true` if a device took it.
    pub fn write(&self, address: A, data: &[u8]) -> bool {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
            true
        } else {
            self.unclaimed_writes.fetch_add(1, Ordering::Relaxed);
            false
        }
    }

    /// How many reads no device answered.
    #[must_use]
    pub fn unclaimed_reads(&self) -> u64 {
        self.unclaimed_reads.load(Ordering::Relaxed)
    }

    /// How many writes no device took.
    #[must_use]
    pub fn unclaimed_writes(&self) -> u64 {
        self.unclaimed_writes.load(Ordering::Relaxed)
    }

    /// Finds the device that holds the whole access, and the offset in its range.
    fn find(&self, address: A, length: usize) -> Option<(&dyn BusDevice, u64)> {
        let address = address.value();
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let index = self
            .entries
            .partition_point(|entry| entry.start <= address)
            .checked_sub(1)?;
        let entry = self.entries.get(index)?;
        (last < entry.end).then(|| (entry.device.as_ref(), address - entry.start))
    }
}
