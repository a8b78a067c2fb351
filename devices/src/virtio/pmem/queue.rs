//! The request queue of the pmem device (VirtIO 1.2 section 5.19.6, "Driver Operations").

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Bytes, GuestMemory};

use crate::virtio::{GuestRam, QueueError, Turn, next_chain};

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
pub(super) fn process(queue: &mut Queue, memory: &GuestRam) -> Result<Turn, QueueError> {
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
fn answer<M>(mut chain: DescriptorChain<M>, memory: &GuestRam) -> Option<u32>
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
