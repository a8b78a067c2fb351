//! The used ring, where several buffers are given back at once.
//!
//! A driver that finds the first buffer of a frame takes the others with it, so all of them appear together (VirtIO 1.2 section
//! 5.1.6.4). `virtio_queue` shows each at once, and counts for itself which of them the driver was told of.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::virtio::DeviceMemory;

/// Length of `flags` and `idx` in front of a ring (VirtIO 1.2 section 2.7.8).
const RING_HEADER_BYTES: u64 = 4;
/// Where `idx` is in it.
const INDEX_OFFSET: u64 = 2;
/// Length of an entry of the used ring, and of the available ring.
const USED_BYTES: u64 = 8;
const AVAILABLE_BYTES: u64 = 2;

/// Gives buffers back.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    /// How many the driver was not asked about: whether it wants an interrupt for them.
    unannounced: Wrapping<u16>,
}

impl Publisher {
    /// Gives back chains, each by its head with the number of bytes that were written to it, all at once.
    pub(super) fn publish(
        &mut self,
        queue: &mut Queue,
        memory: &DeviceMemory,
        chains: impl Iterator<Item = (u16, u32)>,
    ) -> Result<(), Error> {
        let mut next = Wrapping(queue.next_used());
        for (head, written) in chains {
            let slot = u64::from(next.0.checked_rem(queue.size()).unwrap_or_default());
            let offset = RING_HEADER_BYTES + slot * USED_BYTES;
            // `le32 id`, `le32 len`.
            let element = u64::from(head) | u64::from(written) << 32;
            memory
                .write_obj(element.to_le(), at(queue.used_ring(), offset)?)
                .map_err(Error::GuestMemory)?;
            next += Wrapping(1);
            self.unannounced += Wrapping(1);
        }
        queue.set_next_used(next.0);
        memory
            .store(
                next.0.to_le(),
                at(queue.used_ring(), INDEX_OFFSET)?,
                Ordering::Release,
            )
            .map_err(Error::GuestMemory)
    }

    /// Whether the driver wants an interrupt for what it was given back since the last call (VirtIO 1.2 section 2.7.7.2).
    pub(super) fn wants_interrupt(
        &mut self,
        queue: &Queue,
        memory: &DeviceMemory,
    ) -> Result<bool, Error> {
        let count = std::mem::take(&mut self.unannounced);
        if count.0 == 0 {
            return Ok(false);
        }
        if !queue.event_idx_enabled() {
            return Ok(true);
        }
        // What was given back is there before the driver's wish is read.
        fence(Ordering::SeqCst);
        let offset = RING_HEADER_BYTES + u64::from(queue.size()) * AVAILABLE_BYTES;
        let event: Result<u16, GuestMemoryError> =
            memory.load(at(queue.avail_ring(), offset)?, Ordering::Relaxed);
        let event = Wrapping(u16::from_le(event.map_err(Error::GuestMemory)?));
        Ok(Wrapping(queue.next_used()) - event - Wrapping(1) < count)
    }
}

fn at(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    ring.checked_add(offset)
        .map(GuestAddress)
        .ok_or(Error::AddressOverflow)
}
