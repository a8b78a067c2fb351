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
    /// Physical addresses have at most 52 bits (Intel SDM volume 3A, "Paging", MAXPHYADDR).
    const LIMIT: u64 = 1 << 52;

    fn value(self) -> u64 {
        self.0
    }
}

impl BusAddress for PioAddress {
    /// The I/O space has 64 Ki ports (Intel SDM volume 1, "Input/Output").
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Reads as its offsets, and remembers what is written.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus_with(ranges: &[(u64, u64)]) -> (MmioBus, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let mut bus = MmioBus::new();
        for (start, length) in ranges {
            bus.insert(
                MmioAddress(*start),
                *length,
                Arc::<Recorder>::clone(&recorder) as _,
            )
            .unwrap();
        }
        (bus, recorder)
    }

    #[test]
    fn an_access_reaches_its_device_at_its_offset() {
        let (bus, recorder) = bus_with(&[(0x1000, 0x100), (0x2000, 0x100)]);
        assert!(bus.write(MmioAddress(0x2010), &[1, 2]));
        assert_eq!(*recorder.0.lock().unwrap(), [(0x10, vec![1, 2])]);
        let mut data = [0; 4];
        assert!(bus.read(MmioAddress(0x10fc), &mut data));
        assert_eq!(data, [0xfc; 4]);
    }

    #[test]
    fn an_unclaimed_read_is_all_ones_and_counted() {
        let (bus, _) = bus_with(&[(0x1000, 0x100)]);
        let mut data = [0; 4];
        assert!(!bus.read(MmioAddress(0x1100), &mut data));
        assert_eq!(data, [0xff; 4]);
        assert_eq!((bus.unclaimed_reads(), bus.unclaimed_writes()), (1, 0));
    }

    #[test]
    fn an_unclaimed_write_is_ignored_and_counted() {
        let (bus, recorder) = bus_with(&[(0x1000, 0x100)]);
        assert!(!bus.write(MmioAddress(0xfff), &[1]));
        assert!(recorder.0.lock().unwrap().is_empty());
        assert_eq!((bus.unclaimed_reads(), bus.unclaimed_writes()), (0, 1));
    }

    #[test]
    fn an_access_over_the_end_of_a_device_is_unclaimed() {
        let (bus, _) = bus_with(&[(0x1000, 0x100), (0x1100, 0x100)]);
        assert!(!bus.read(MmioAddress(0x10fe), &mut [0; 4]));
        assert!(!bus.write(MmioAddress(0x10fe), &[0; 4]));
    }

    #[test]
    fn an_access_at_the_end_of_all_addresses_is_unclaimed() {
        let (bus, _) = bus_with(&[(0x1000, 0x100)]);
        assert!(!bus.read(MmioAddress(u64::MAX), &mut [0; 8]));
        assert!(!bus.write(MmioAddress(u64::MAX), &[]));
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let (mut bus, recorder) = bus_with(&[(0x1000, 0x100)]);
        let refused = |start, length| InsertError::Overlap {
            start,
            length,
            other_start: 0x1000,
        };
        let mut insert = |start, length| {
            bus.insert(
                MmioAddress(start),
                length,
                Arc::<Recorder>::clone(&recorder) as _,
            )
        };
        assert_eq!(insert(0x10ff, 1), Err(refused(0x10ff, 1)));
        assert_eq!(insert(0xfff, 2), Err(refused(0xfff, 2)));
        assert_eq!(insert(0x800, 0x1000), Err(refused(0x800, 0x1000)));
        assert_eq!(insert(0xfff, 1), Ok(()));
        assert_eq!(insert(0x1100, 1), Ok(()));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let mut bus = PioBus::new();
        let device = Arc::new(Recorder::default());
        let empty = bus.insert(PioAddress(5), 0, Arc::<Recorder>::clone(&device) as _);
        assert_eq!(empty, Err(InsertError::Empty { start: 5 }));
        let beyond = bus.insert(PioAddress(0xffff), 2, Arc::<Recorder>::clone(&device) as _);
        let expected = InsertError::OutOfSpace {
            start: 0xffff,
            length: 2,
        };
        assert_eq!(beyond, Err(expected));
        assert_eq!(bus.insert(PioAddress(0xffff), 1, device), Ok(()));
    }
}
