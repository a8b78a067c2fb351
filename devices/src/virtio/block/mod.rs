//! The virtio-blk device (VirtIO 1.2 section 5.2): a disk on a [`Backend`].
//!
//! Requests are carried out straight between guest memory and the backend's file: one after the
//! other on the event loop's thread, or several at once on [`DiskThreads`], in any order. Where
//! there are threads, small reads of what the host has at hand are answered in the exit by which
//! the guest notifies.

mod backend;
mod queue;
mod rate;
mod requests;
mod threads;
mod worker;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod threads_tests;

use std::fmt;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{ActivateError, Activation, DeviceType, InExit, VirtioDevice, Worker};

pub use backend::{Access, Backend, DiskRange, Extent, Extents, ExtentsError, RawFile};
use rate::{Direction, Throttle};
pub use rate::{Rate, RateLimits};
use requests::Requests;
pub use threads::DiskThreads;

/// Entries of the one queue.
const QUEUE_SIZES: [u16; 1] = [128];

/// The unit of addresses and lengths, whatever the backend's block size (VirtIO 1.2 section
/// 5.2.4).
pub const SECTOR_BYTES: u64 = 512;

/// Where the capacity in sectors is in the configuration space, eight bytes (VirtIO 1.2 section
/// 5.2.4).
pub const CAPACITY_OFFSET: usize = 0;

/// Length of the identification (VirtIO 1.2 section 5.2.6).
const ID_BYTES: usize = 20;

/// The limits that the driver is told, and held to (VirtIO 1.2 section 5.2.4).
mod limit {
    /// Longest data segment of a request.
    pub(super) const SEGMENT_BYTES: u32 = 64 * 1024;
    /// Most data segments of a request: with header and status they fill the queue.
    pub(super) const SEGMENTS: u32 = 126;
    /// Most ranges of a discard or write-zeroes request.
    pub(super) const RANGES: usize = 16;
    /// Longest range of a discard or write-zeroes request: 1 GiB.
    pub(super) const RANGE_SECTORS: u32 = 1 << 21;
    /// Discards smaller than a page of the host give nothing back.
    pub(super) const DISCARD_ALIGNMENT_SECTORS: u32 = 8;
}

/// What a guest reads as the identification of a disk: up to 20 bytes of ASCII.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DiskId([u8; ID_BYTES]);

impl DiskId {
    /// Makes an identification of the first 20 bytes of `text`; what is not printable ASCII
    /// becomes `_`.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut id = [0; ID_BYTES];
        for (byte, value) in id.iter_mut().zip(text.bytes()) {
            *byte = if value.is_ascii_graphic() {
                value
            } else {
                b'_'
            };
        }
        Self(id)
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DiskId({})", self.0.escape_ascii())
    }
}

/// What the device is backed by and called.
#[derive(Clone, Debug)]
struct Disk {
    backend: Arc<dyn Backend>,
    id: DiskId,
    durability: Durability,
    throttle: Option<Arc<Throttle>>,
}

impl Disk {
    /// Waits until the disk's rate lets a request be carried out.
    fn pass(&self, direction: Direction, bytes: u64) {
        if let Some(throttle) = &self.throttle {
            throttle.pass(direction, bytes);
        }
    }
}

/// When a write has to be durable (VirtIO 1.2 section 5.2.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Durability {
    /// When a flush after it is done.
    AtFlush,
    /// When it is done: the driver does not know how to flush.
    AtOnce,
}

impl Durability {
    fn negotiated(features: u64) -> Self {
        if features & (1 << VIRTIO_BLK_F_FLUSH) == 0 {
            Self::AtOnce
        } else {
            Self::AtFlush
        }
    }
}

/// The device while it is configured.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    /// What the driver is told that it may do with the disk.
    offered: Access,
    /// None where requests are carried out on the event loop.
    threads: Option<DiskThreads>,
    door: Arc<worker::Door>,
}

impl Block {
    /// Makes a disk on `backend`; a rest of its size that fills no sector is not shown.
    #[must_use]
    pub fn new(backend: Arc<dyn Backend>, id: DiskId) -> Self {
        Self {
            offered: backend.access(),
            disk: Disk {
                backend,
                id,
                durability: Durability::AtOnce,
                throttle: None,
            },
            threads: None,
            door: Arc::default(),
        }
    }

    /// Offers what a writable disk does, whatever the backend is: for a driver that asked before it was known which that will be. What
    /// is written to a backend that is only read fails with an I/O error.
    #[must_use]
    pub fn offered_as_writable(mut self) -> Self {
        self.offered = Access::ReadWrite;
        self
    }

    /// Has requests carried out on threads. A disk with limits keeps one of them waiting, so it needs one of its own.
    #[must_use]
    pub fn on_threads(mut self, threads: DiskThreads, limits: RateLimits) -> Self {
        self.threads = Some(threads);
        self.disk.throttle = limits.is_any().then(|| Arc::new(Throttle::new(limits)));
        self
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let always =
            1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        match self.offered {
            Access::ReadOnly => always | 1 << VIRTIO_BLK_F_RO,
            Access::ReadWrite => {
                always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `struct virtio_blk_config` (VirtIO 1.2 section 5.2.4).
    fn config_space(&self) -> Vec<u8> {
        let capacity = self.disk.backend.size_bytes() / SECTOR_BYTES;
        let ranges = u32::try_from(limit::RANGES).unwrap_or(1).to_le_bytes();
        let fields: [&[u8]; 10] = [
            &capacity.to_le_bytes(),
            &limit::SEGMENT_BYTES.to_le_bytes(),
            &limit::SEGMENTS.to_le_bytes(),
            // Geometry, block size, topology, writeback and queue count belong to features that
            // are not offered.
            &[0; 20],
            &limit::RANGE_SECTORS.to_le_bytes(),
            &ranges,
            &limit::DISCARD_ALIGNMENT_SECTORS.to_le_bytes(),
            &limit::RANGE_SECTORS.to_le_bytes(),
            &ranges,
            // write_zeroes_may_unmap, padding.
            &[1, 0, 0, 0],
        ];
        fields.concat()
    }

    fn in_exit(&self) -> Option<Arc<dyn InExit>> {
        Some(Arc::clone(&self.door) as Arc<dyn InExit>)
    }

    fn activate(
        mut self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)> {
        self.disk.durability = Durability::negotiated(activation.features);
        match <[_; 1]>::try_from(activation.queues) {
            Ok([queue]) => {
                let disk = self.disk.clone();
                let requests = Requests::new(disk, activation.memory, queue, activation.interrupt);
                Ok(Box::new(worker::BlockWorker::new(*self, requests)))
            }
            Err(queues) => Err((
                self,
                ActivateError::WrongQueueCount {
                    got: queues.len(),
                    needed: QUEUE_SIZES.len(),
                },
            )),
        }
    }
}
