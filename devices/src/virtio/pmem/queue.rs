//! The request queue of the pmem device (VirtIO 1.2 section 5.19.6, "Driver Operations").

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestMemory};

use crate::virtio::{DeviceMemory, QueueError, Turn, next_chain};

/// The only request type: flush (VirtIO 1.2 section 5.19.6).
const REQUEST_TYPE_FLUSH: u32 = 0;
/// The answer that says that the host failed (VirtIO 1.2 section 5.19.7).
const RESULT_FAILED: u32 = u32::MAX;
/// Length of `struct virtio_pmem_req` and of `struct virtio_pmem_resp`.
const FIELD_BYTES: u32 = 4;

/// How many requests are answered before others get their turn.
const REQUESTS_A_TURN: usize = 16;

/// Answers the requests in the queue.
///
/// # Errors
///
/// Returns [`QueueError`] if the ring cannot be used.
pub(super) fn process(queue: &mut Queue, memory: &DeviceMemory) -> Result<Turn, QueueError> {
    let mut turn = Turn::default();
    let mut answered = 0;
    queue.disable_notification(memory)?;
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        let written = answer(chain, memory).unwrap_or(0);
        queue.add_used(memory, head, written)?;
        answered += 1;
        if answered == REQUESTS_A_TURN {
            turn.unfinished = true;
            break;
        }
    }
    turn.interrupt = answered > 0 && queue.needs_notification(memory)?;
    Ok(turn)
}

/// Answers one request and returns how many bytes it wrote; `None` if there is nowhere to answer.
fn answer<M>(mut chain: DescriptorChain<M>, memory: &DeviceMemory) -> Option<u32>
where
    M: std::ops::Deref,
    M::Target: GuestMemory,
{
    let request = chain
        .next()
        .filter(|request| !request.is_write_only() && request.len() >= FIELD_BYTES)?;
    let response = chain
        .next()
        .filter(|response| response.is_write_only() && response.len() >= FIELD_BYTES)?;
    let request_type = u32::from_le(memory.read_obj(request.addr()).ok()?);
    let result = match request_type {
        REQUEST_TYPE_FLUSH => 0,
        _ => RESULT_FAILED,
    };
    memory.write_obj(u32::to_le(result), response.addr()).ok()?;
    Some(FIELD_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::split::Descriptor;
    use vm_memory::GuestAddress;

    use super::*;
    use crate::virtio::testing::{DriverQueue, Part, ram, readable, writable};

    const RING: u64 = 0x1_0000;
    const REQUEST: u64 = 0x2_0000;
    const RESPONSE: u64 = 0x2_1000;
    const UNTOUCHED: u32 = 0x7777_7777;

    /// Submits one request and returns the response and the used length.
    fn submit(request_type: u32, parts: &[Part]) -> (u32, u32) {
        let memory = ram(1 << 20);
        let mut driver = DriverQueue::new(&memory, RING, 16);
        let mut queue = driver.device_queue();
        memory
            .write_obj(request_type, GuestAddress(REQUEST))
            .unwrap();
        memory.write_obj(UNTOUCHED, GuestAddress(RESPONSE)).unwrap();
        driver.add(parts);
        let turn = process(&mut queue, &memory).unwrap();
        assert!(turn.interrupt);
        let (_, written) = driver.take_used().unwrap();
        (memory.read_obj(GuestAddress(RESPONSE)).unwrap(), written)
    }

    #[test]
    fn a_flush_succeeds() {
        let parts = [readable(REQUEST, 4), writable(RESPONSE, 4)];
        assert_eq!(submit(REQUEST_TYPE_FLUSH, &parts), (0, 4));
    }

    #[test]
    fn another_request_fails() {
        let parts = [readable(REQUEST, 4), writable(RESPONSE, 4)];
        assert_eq!(submit(1, &parts), (RESULT_FAILED, 4));
    }

    #[test]
    fn a_request_without_a_response_is_used() {
        let parts = [readable(REQUEST, 4)];
        assert_eq!(submit(REQUEST_TYPE_FLUSH, &parts), (UNTOUCHED, 0));
    }

    #[test]
    fn a_response_that_is_not_writable_is_left_alone() {
        let parts = [readable(REQUEST, 4), readable(RESPONSE, 4)];
        assert_eq!(submit(REQUEST_TYPE_FLUSH, &parts), (UNTOUCHED, 0));
    }

    #[test]
    fn a_response_that_is_too_short_is_left_alone() {
        let parts = [readable(REQUEST, 4), writable(RESPONSE, 3)];
        assert_eq!(submit(REQUEST_TYPE_FLUSH, &parts), (UNTOUCHED, 0));
    }

    #[test]
    fn a_response_outside_of_memory_is_used() {
        let parts = [readable(REQUEST, 4), writable(u64::MAX - 2, 4)];
        assert_eq!(submit(REQUEST_TYPE_FLUSH, &parts), (UNTOUCHED, 0));
    }

    proptest! {
        #[test]
        fn no_table_of_descriptors_harms_the_device(
            descriptors in proptest::collection::vec(
                (any::<u64>(), any::<u32>(), 0..8_u16, 0..16_u16), 16),
            heads in proptest::collection::vec(any::<u16>(), 1..16),
        ) {
            let memory = ram(1 << 20);
            let mut driver = DriverQueue::new(&memory, RING, 16);
            let mut queue = driver.device_queue();
            for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
                let address = address % (2 << 20);
                driver.write_descriptor(index, Descriptor::new(address, length, flags, next));
            }
            for head in heads {
                driver.publish(head % 20);
            }
            let _ = process(&mut queue, &memory);
        }
    }
}
