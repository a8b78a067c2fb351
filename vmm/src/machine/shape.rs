//! The shape of a machine: how many vCPUs, how much RAM, which window class.
//!
//! Shapes are few on purpose. A template (a machine frozen after boot) serves only machines of its own shape, so every
//! free number here would be one more template to make and to keep.

use thiserror::Error;

/// Bytes in one MiB.
pub const MIB_BYTES: u64 = 1 << 20;

/// Bytes in a guest page.
pub const PAGE_BYTES: u64 = 4096;

/// A huge page of x86-64, which one entry of a page directory maps.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes of guest RAM that the guest kernel spends on each page of a window (`sizeof(struct page)`).
const STRUCT_PAGE_BYTES: u64 = 64;

/// A request for a machine that cannot be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ShapeError {
    /// The number of vCPUs is outside 1 to 32.
    #[error("a machine has 1 to {max} vCPUs, not {asked}", max = VcpuCount::MAX)]
    VcpuCount {
        /// What was asked for.
        asked: u32,
    },
    /// More RAM than the largest bucket.
    #[error("{asked_mib} MiB of memory are more than a machine's largest size of {max} MiB", max = RamSize::LARGEST_MIB)]
    TooMuchRam {
        /// What was asked for.
        asked_mib: u64,
    },
}

/// How many vCPUs a machine has: 1 to 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// As many as the guest kernel is configured for (`CONFIG_NR_CPUS`).
    pub const MAX: u8 = 32;

    /// Checks a number of vCPUs.
    ///
    /// # Errors
    /// When it is 0 or above [`VcpuCount::MAX`].
    pub fn new(asked: u32) -> Result<Self, ShapeError> {
        u8::try_from(asked)
            .ok()
            .filter(|count| (1..=Self::MAX).contains(count))
            .map(Self)
            .ok_or(ShapeError::VcpuCount { asked })
    }

    /// The number itself.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The RAM of a machine: one of a few buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RamSize {
    mib: u64,
}

impl RamSize {
    const SMALLEST_MIB: u64 = 128;
    const LARGEST_MIB: u64 = 64 << 10;

    /// What the guest keeps for itself beside the workload: kernel text and data, page tables, slab, the agent.
    const GUEST_RESERVE_BYTES: u64 = 32 * MIB_BYTES;

    /// The smallest bucket that holds a workload of `workload_bytes` beside a window of `window_bytes`.
    ///
    /// # Errors
    /// When no bucket is large enough.
    pub fn holding(workload_bytes: u64, window_bytes: u64) -> Result<Self, ShapeError> {
        let window_cost_bytes = Self::window_cost_bytes(window_bytes);
        let needed_mib = workload_bytes
            .saturating_add(window_cost_bytes)
            .saturating_add(Self::GUEST_RESERVE_BYTES)
            .div_ceil(MIB_BYTES);
        if needed_mib > Self::LARGEST_MIB {
            return Err(ShapeError::TooMuchRam {
                asked_mib: needed_mib,
            });
        }
        Ok(Self {
            mib: needed_mib.next_power_of_two().max(Self::SMALLEST_MIB),
        })
    }

    fn window_cost_bytes(window_bytes: u64) -> u64 {
        window_bytes / PAGE_BYTES * STRUCT_PAGE_BYTES
    }

    /// The largest workload that it holds beside a window of `window_bytes`.
    #[must_use]
    pub fn room_bytes(self, window_bytes: u64) -> u64 {
        self.bytes()
            .saturating_sub(Self::window_cost_bytes(window_bytes))
            .saturating_sub(Self::GUEST_RESERVE_BYTES)
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.mib * MIB_BYTES
    }

    /// The size in MiB.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.mib
    }
}

/// The size of the window through which the guest sees a read-only image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WindowClass {
    bytes: u64,
}

impl WindowClass {
    /// All classes, smallest first, in MiB.
    const CLASSES_MIB: [u64; 4] = [64, 256, 1024, 4096];

    /// The smallest class that holds `bytes`, or `None` where the image needs a disk instead.
    #[must_use]
    pub fn holding(bytes: u64) -> Option<Self> {
        Self::CLASSES_MIB
            .iter()
            .map(|mib| mib * MIB_BYTES)
            .find(|class| *class >= bytes)
            .map(|bytes| Self { bytes })
    }

    /// A window of its own size for what is not an image of the user's: the agent's. Rounded up to 2 MiB.
    #[must_use]
    pub fn exact(bytes: u64) -> Self {
        Self {
            bytes: bytes.next_multiple_of(2 * MIB_BYTES).max(2 * MIB_BYTES),
        }
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_are_bounded() {
        assert_eq!(VcpuCount::new(0), Err(ShapeError::VcpuCount { asked: 0 }));
        assert_eq!(VcpuCount::new(33), Err(ShapeError::VcpuCount { asked: 33 }));
        assert_eq!(VcpuCount::new(32).map(VcpuCount::get), Ok(32));
    }

    #[test]
    fn a_small_workload_gets_the_smallest_bucket() {
        let size = RamSize::holding(64 * MIB_BYTES, 64 * MIB_BYTES).unwrap();
        assert_eq!(size.mib(), 128);
    }

    #[test]
    fn the_window_counts_towards_the_bucket() {
        let without = RamSize::holding(220 * MIB_BYTES, 0).unwrap();
        let with = RamSize::holding(220 * MIB_BYTES, 1024 * MIB_BYTES).unwrap();
        assert_eq!((without.mib(), with.mib()), (256, 512));
    }

    #[test]
    fn the_room_of_a_bucket_is_the_largest_workload_that_it_holds() {
        let window = 1024 * MIB_BYTES;
        let size = RamSize::holding(220 * MIB_BYTES, window).unwrap();

        let room = size.room_bytes(window);

        assert_eq!(RamSize::holding(room, window), Ok(size));
        assert_ne!(RamSize::holding(room + 1, window), Ok(size));
    }

    #[test]
    fn an_absurd_size_is_refused_without_overflow() {
        assert!(matches!(
            RamSize::holding(u64::MAX, u64::MAX),
            Err(ShapeError::TooMuchRam { .. })
        ));
    }

    #[test]
    fn an_image_above_the_largest_class_has_no_window() {
        assert_eq!(
            WindowClass::holding(1).map(WindowClass::bytes),
            Some(64 * MIB_BYTES)
        );
        assert_eq!(WindowClass::holding(4096 * MIB_BYTES + 1), None);
    }
}
