//! The queues of the file system device (VirtIO 1.2 section 5.11.6, "Device Operation").
//!
//! A request is taken as two runs of bytes, what the device reads and what it writes, however the driver cuts it into descriptors.
//! The first is copied to a slot, the second is filled from there when the server has replied. Where the reply goes is kept as
//! addresses, and looked up anew.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use super::channel::{
    Channel, ChannelError, REQUESTS_A_MESSAGE, Reply, Request, SLOT_BYTES, SLOTS, Slots,
};
use super::{FailureReport, QUEUE_SIZES, Server};
use crate::virtio::{DeviceMemory, QueueError, Turn, next_chain, wants_interrupt};

/// Most descriptors of a request: as many as the queue has.
const MAX_DESCRIPTORS: usize = 1024;
/// Length of `struct virtq_desc` (VirtIO 1.2 section 2.7.5).
const DESCRIPTOR_BYTES: usize = 16;
/// Length of `struct fuse_in_header` up to `unique`, and to its end (include/uapi/linux/fuse.h).
const UNIQUE_OFFSET: usize = 8;
const UNIQUE_END: usize = 16;
/// Length of `struct fuse_out_header` (include/uapi/linux/fuse.h).
const OUT_HEADER_BYTES: u32 = 16;

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Of requests that come first.
    Hiprio,
    /// Of all others.
    Requests,
}

/// The requests that the server has, and the way to it.
#[derive(Debug)]
pub(super) struct Exchange {
    server: Option<Connected>,
    /// The way to a server that failed, for whoever waits for it to let go of.
    lost: Option<Channel>,
}

#[derive(Debug)]
struct Connected {
    channel: Channel,
    slots: Arc<Slots>,
    on_failure: FailureReport,
    /// The one that was used last is used next.
    free: Vec<u32>,
    /// What each slot is used for, if it is.
    uses: Vec<Option<Use>>,
    replies: Vec<Reply>,
}

/// What a slot is used for.
#[derive(Debug)]
enum Use {
    /// A request that the guest waits for.
    Pending(Pending),
    /// A request of a driver that is gone.
    Abandoned,
}

#[derive(Debug)]
struct Pending {
    which: Which,
    head: u16,
    request: Request,
    unique: [u8; 8],
    output: Vec<Range>,
}

/// Requests whose replies are looked for where they were asked.
#[derive(Debug)]
pub(super) struct Awaited {
    slots: Arc<Slots>,
    /// Their slots, in order.
    asked: Vec<u32>,
}

impl Awaited {
    /// Sleeps until the last one is answered, at most so long: the driver waits for that one.
    pub(super) fn wait(&self, longest: Duration) {
        if let Some(last) = self.asked.last() {
            self.slots.wait(*last, longest);
        }
    }
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug)]
struct Range {
    address: GuestAddress,
    length_bytes: u32,
}

/// A request as it lies in guest memory.
#[derive(Debug, Default)]
struct Parts {
    input: Vec<Range>,
    output: Vec<Range>,
}

impl Exchange {
    pub(super) fn new(server: Server) -> Self {
        let server = match server {
            Server::Nobody => None,
            Server::Process {
                channel,
                on_failure,
            } => Connected::new(channel, on_failure),
        };
        Self { server, lost: None }
    }

    /// Becomes readable when there are replies; none without a server.
    pub(super) fn replies(&self) -> Option<BorrowedFd<'_>> {
        self.server.as_ref().map(|server| server.channel.as_fd())
    }

    /// Hands over what is not to be waited for any longer, once.
    pub(super) fn take_lost(&mut self) -> Option<Channel> {
        self.lost.take()
    }

    /// Hands requests of a queue to the server, as many as it takes.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if the ring cannot be used.
    pub(super) fn take_requests(
        &mut self,
        which: Which,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Turn, QueueError> {
        let (turn, batch) = self.collect(which, queue, memory)?;
        self.send(&batch);
        Ok(turn)
    }

    /// The same for requests whose replies the caller looks for itself, with [`Self::take_awaited`]; none without a server.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if the ring cannot be used.
    pub(super) fn take_awaited_requests(
        &mut self,
        which: Which,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<(Turn, Option<Awaited>), QueueError> {
        let (turn, mut batch) = self.collect(which, queue, memory)?;
        let Some(server) = &self.server else {
            return Ok((turn, None));
        };
        for request in &mut batch {
            request.is_awaited = true;
            server.slots.await_reply(request.slot);
        }
        if !server.slots.post(&batch) {
            self.send(&batch);
        }
        let awaited = Awaited {
            slots: Arc::clone(&server.slots),
            asked: batch.iter().map(|request| request.slot).collect(),
        };
        Ok((turn, Some(awaited)))
    }

    /// Copies requests of a queue to slots, as many as there are.
    fn collect(
        &mut self,
        which: Which,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<(Turn, Vec<Request>), QueueError> {
        let mut turn = Turn::default();
        let mut batch = Vec::new();
        let mut answered = 0_usize;
        let table = GuestAddress(queue.desc_table());
        queue.disable_notification(memory)?;
        loop {
            if self
                .server
                .as_ref()
                .is_some_and(|server| server.free.is_empty())
            {
                turn.stalled = true;
                break;
            }
            let Some(chain) = next_chain(queue, memory)? else {
                break;
            };
            let head = chain.head_index();
            let parts = Parts::of(chain, table);
            let given = match (&mut self.server, &parts) {
                (Some(server), Some(parts)) => server.put(which, head, parts, memory),
                _ => None,
            };
            match given {
                Some(request) => batch.push(request),
                None => {
                    let written = parts.map_or(0, |parts| parts.refuse(memory));
                    queue.add_used(memory, head, written)?;
                    answered += 1;
                }
            }
            // A ring of chains that are answered at once could go on for ever.
            if answered >= usize::from(QUEUE_SIZES[1]) {
                turn.unfinished = true;
                break;
            }
        }
        turn.interrupt = answered > 0 && wants_interrupt(queue, memory)?;
        Ok((turn, batch))
    }

    /// A failure shows when replies are waited for.
    fn send(&self, batch: &[Request]) {
        let Some(server) = &self.server else {
            return;
        };
        for requests in batch.chunks(REQUESTS_A_MESSAGE) {
            if let Err(error) = server.channel.send_requests(requests) {
                tracing::debug!(%error, "requests of a file system were not sent");
                return server.hang_up();
            }
        }
    }

    /// Brings the replies to awaited requests to the guest; returns whether the last of them had come. A server whose reply makes no sense is given up by the event loop, which refuses that request, too.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if the ring cannot be used.
    pub(super) fn take_awaited(
        &mut self,
        awaited: &Awaited,
        requests: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<(Turn, bool), QueueError> {
        let mut turn = Turn::default();
        let Some(server) = &mut self.server else {
            return Ok((turn, true));
        };
        let mut has_come = true;
        let mut used = false;
        for slot in &awaited.asked {
            let reply = awaited.slots.take_reply(*slot);
            has_come = reply.is_some();
            let Some(reply) = reply else {
                continue;
            };
            match server.finish(reply, memory) {
                Some(Use::Pending(pending)) => {
                    requests.add_used(memory, pending.head, reply.written_bytes)?;
                    used = true;
                }
                Some(Use::Abandoned) => {}
                None => server.hang_up(),
            }
        }
        turn.interrupt = used && wants_interrupt(requests, memory)?;
        Ok((turn, has_come))
    }

    /// Gives the slots of awaited requests back: the driver is gone.
    pub(super) fn forget_awaited(&mut self, awaited: &Awaited) {
        let Some(server) = &mut self.server else {
            return;
        };
        for reply in awaited
            .asked
            .iter()
            .filter_map(|slot| awaited.slots.take_reply(*slot))
        {
            server.forget(reply.slot);
        }
    }

    /// Brings the replies that have come to the guest. The server is given up when it fails, and what it still has is refused.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if a ring cannot be used.
    pub(super) fn take_replies(
        &mut self,
        queues: [&mut Queue; 2],
        memory: &DeviceMemory,
    ) -> Result<[Turn; 2], QueueError> {
        let [hiprio, requests] = queues;
        let mut used = [false; 2];
        let mut complete = |pending: &Pending, written: u32| {
            let (queue, used) = match pending.which {
                Which::Hiprio => (&mut *hiprio, &mut used[0]),
                Which::Requests => (&mut *requests, &mut used[1]),
            };
            *used = true;
            queue.add_used(memory, pending.head, written)
        };
        if let Some(server) = &mut self.server {
            let failure = loop {
                let mut replies = std::mem::take(&mut server.replies);
                match server.channel.take_replies(&mut replies) {
                    Ok(false) => break None,
                    Err(error) => break Some(error),
                    Ok(true) => {}
                }
                let mut is_sound = true;
                for reply in &replies {
                    match server.finish(*reply, memory) {
                        Some(Use::Pending(pending)) => complete(&pending, reply.written_bytes)?,
                        Some(Use::Abandoned) => {}
                        None => is_sound = false,
                    }
                }
                server.replies = replies;
                if !is_sound {
                    break Some(ChannelError::Nonsense);
                }
                // What else comes now is no reply, and has an event of its own.
                if !server.is_asked() {
                    break None;
                }
            };
            if let Some(error) = failure {
                tracing::warn!(%error, "shared directories fail from now on");
                (server.on_failure.0)(&error);
                for pending in server.give_up() {
                    let written = refuse(&pending.output, pending.unique, memory);
                    complete(&pending, written)?;
                }
                self.lost = self.server.take().map(|server| server.channel);
            }
        }
        let mut turns = [Turn::default(); 2];
        for ((turn, queue), used) in turns.iter_mut().zip([hiprio, requests]).zip(used) {
            turn.interrupt = used && wants_interrupt(queue, memory)?;
        }
        Ok(turns)
    }

    /// Forgets what the driver waits for: it has reset the device. The server still has the slots.
    pub(super) fn abandon(&mut self) {
        for used in self.server.iter_mut().flat_map(|server| &mut server.uses) {
            if used.is_some() {
                *used = Some(Use::Abandoned);
            }
        }
    }
}

impl Connected {
    fn new(channel: Channel, mut on_failure: FailureReport) -> Option<Self> {
        let slots = match channel.map() {
            Ok(slots) => Arc::new(slots),
            Err(error) => {
                (on_failure.0)(&ChannelError::Socket(error));
                return None;
            }
        };
        Some(Self {
            channel,
            slots,
            on_failure,
            free: (0..SLOTS).rev().collect(),
            uses: (0..SLOTS).map(|_| None).collect(),
            replies: Vec::new(),
        })
    }

    /// Copies a request to a slot; none if it does not fit one, or is not all there.
    fn put(
        &mut self,
        which: Which,
        head: u16,
        parts: &Parts,
        memory: &DeviceMemory,
    ) -> Option<Request> {
        let slot = *self.free.last()?;
        let request = Request {
            slot,
            asked_bytes: length_of(&parts.input)?,
            room_bytes: length_of(&parts.output)?.min(SLOT_BYTES),
            is_awaited: false,
        };
        if !request.is_sound() {
            return None;
        }
        let mut rest = self.slots.asked(&request)?;
        for range in &parts.input {
            let length = usize::try_from(range.length_bytes).ok()?;
            for slice in memory
                .get_slices(range.address, length, Permissions::Read)
                .ok()?
            {
                let slice = slice.ok()?;
                slice.copy_to_volatile_slice(rest);
                rest = rest.offset(slice.len()).ok()?;
            }
        }
        self.free.pop();
        let pending = Pending {
            which,
            head,
            request,
            unique: unique_of(self.slots.asked(&request)?),
            output: parts.output.clone(),
        };
        *self.uses.get_mut(usize::try_from(slot).ok()?)? = Some(Use::Pending(pending));
        Some(request)
    }

    /// Takes a slot back and copies its reply to the guest; none if the server does not have the slot, or says that it wrote more
    /// than there was room for.
    fn finish(&mut self, reply: Reply, memory: &DeviceMemory) -> Option<Use> {
        let place = self.uses.get_mut(usize::try_from(reply.slot).ok()?)?;
        if let Some(Use::Pending(pending)) = place
            && reply.written_bytes > pending.request.room_bytes
        {
            // It stays pending, to be refused with the others.
            return None;
        }
        let used = place.take()?;
        self.free.push(reply.slot);
        if let Use::Pending(pending) = &used {
            let room = self.slots.room(&pending.request)?;
            let written = room
                .subslice(0, usize::try_from(reply.written_bytes).ok()?)
                .ok()?;
            if fill(&pending.output, written, memory).is_none() {
                tracing::debug!("the place for a reply is not in the guest's memory");
            }
        }
        Some(used)
    }

    /// Takes a slot back of which nobody waits for the reply.
    fn forget(&mut self, slot: u32) {
        let place = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.uses.get_mut(slot));
        if place.and_then(Option::take).is_some() {
            self.free.push(slot);
        }
    }

    /// Both ends see it, and the event loop gives the server up.
    fn hang_up(&self) {
        let _ = rustix::net::shutdown(&self.channel, rustix::net::Shutdown::Both);
    }

    /// Whether the server has a request.
    fn is_asked(&self) -> bool {
        self.uses.len() > self.free.len()
    }

    fn give_up(&mut self) -> Vec<Pending> {
        let uses = std::mem::take(&mut self.uses).into_iter().flatten();
        uses.filter_map(|used| match used {
            Use::Pending(pending) => Some(pending),
            Use::Abandoned => None,
        })
        .collect()
    }
}

impl Parts {
    /// Collects the parts of a request, whose first descriptor is in `table`; none if it is none.
    fn of(chain: DescriptorChain<&DeviceMemory>, table: GuestAddress) -> Option<Self> {
        let mut parts = Self::default();
        match indirect(&chain, table) {
            None => {
                for (count, descriptor) in chain.enumerate() {
                    if count == MAX_DESCRIPTORS {
                        return None;
                    }
                    let is_written = descriptor.is_write_only();
                    parts.add(descriptor.addr(), descriptor.len(), is_written)?;
                }
            }
            Some(descriptors) => {
                let mut index = 0_usize;
                for _ in 0..descriptors.len() {
                    let [
                        a0,
                        a1,
                        a2,
                        a3,
                        a4,
                        a5,
                        a6,
                        a7,
                        l0,
                        l1,
                        l2,
                        l3,
                        f0,
                        f1,
                        n0,
                        n1,
                    ] = *descriptors.get(index)?;
                    let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
                    let length_bytes = u32::from_le_bytes([l0, l1, l2, l3]);
                    let flags = u32::from(u16::from_le_bytes([f0, f1]));
                    if flags & VRING_DESC_F_INDIRECT != 0 {
                        return None;
                    }
                    let is_written = flags & VRING_DESC_F_WRITE != 0;
                    parts.add(GuestAddress(address), length_bytes, is_written)?;
                    if flags & VRING_DESC_F_NEXT == 0 {
                        break;
                    }
                    index = usize::from(u16::from_le_bytes([n0, n1]));
                }
            }
        }
        Some(parts)
    }

    /// What is written stands behind what is read (VirtIO 1.2 section 2.7.4.2); none if it does not.
    fn add(&mut self, address: GuestAddress, length_bytes: u32, is_written: bool) -> Option<()> {
        let range = Range {
            address,
            length_bytes,
        };
        match (is_written, self.output.is_empty()) {
            (true, _) => append(&mut self.output, range),
            (false, true) => append(&mut self.input, range),
            (false, false) => return None,
        }
        Some(())
    }

    /// What the driver knows the request by, if it is one of FUSE.
    fn unique(&self, memory: &DeviceMemory) -> [u8; 8] {
        let mut header = [0; UNIQUE_END];
        let mut filled = 0;
        for range in &self.input {
            let Some(rest) = header.get_mut(filled..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let length = usize::try_from(range.length_bytes).unwrap_or(usize::MAX);
            let Ok(slices) =
                memory.get_slices(range.address, length.min(rest.len()), Permissions::Read)
            else {
                break;
            };
            for slice in slices.flatten() {
                let rest = header.get_mut(filled..).unwrap_or_default();
                filled += slice.copy_to(rest);
            }
        }
        let unique = header.get(UNIQUE_OFFSET..).unwrap_or_default();
        unique.try_into().unwrap_or_default()
    }

    /// Says to the guest that the request fails; returns how much that is.
    fn refuse(&self, memory: &DeviceMemory) -> u32 {
        refuse(&self.output, self.unique(memory), memory)
    }
}

/// Copies the table of descriptors that a chain is in, if it is a sound one of its own (VirtIO 1.2 section 2.7.5.3). A large request has
/// hundreds of them, which are looked up one by one otherwise.
fn indirect(
    chain: &DescriptorChain<&DeviceMemory>,
    table: GuestAddress,
) -> Option<Vec<[u8; DESCRIPTOR_BYTES]>> {
    let memory = chain.memory();
    let offset = u64::from(chain.head_index()) * DESCRIPTOR_BYTES as u64;
    let head: Descriptor = memory.read_obj(table.checked_add(offset)?).ok()?;
    let length = usize::try_from(head.len()).ok()?;
    let count = length / DESCRIPTOR_BYTES;
    let is_sound = length.is_multiple_of(DESCRIPTOR_BYTES) && count <= MAX_DESCRIPTORS;
    if !head.refers_to_indirect_table() || !is_sound {
        return None;
    }
    let mut descriptors = vec![[0; DESCRIPTOR_BYTES]; count];
    let bytes = descriptors.as_flattened_mut();
    memory.read_slice(bytes, head.addr()).ok()?;
    Some(descriptors)
}

/// Adds a piece to a run of them. Pages of a file often lie one behind the other: they are one piece.
fn append(ranges: &mut Vec<Range>, next: Range) {
    if let Some(last) = ranges.last_mut()
        && last.address.checked_add(last.length_bytes.into()) == Some(next.address)
        && let Some(length_bytes) = last.length_bytes.checked_add(next.length_bytes)
    {
        last.length_bytes = length_bytes;
        return;
    }
    ranges.push(next);
}

/// What the driver knows the request by that this copy is of, if it is one of FUSE.
fn unique_of(request: VolatileSlice<'_>) -> [u8; 8] {
    let mut header = [0; UNIQUE_END];
    request.copy_to(&mut header);
    let [.., u0, u1, u2, u3, u4, u5, u6, u7] = header;
    [u0, u1, u2, u3, u4, u5, u6, u7]
}

/// Writes that a request failed, where a reply is due: `struct fuse_out_header` (include/uapi/linux/fuse.h). The driver takes no
/// other word for it.
fn refuse(output: &[Range], unique: [u8; 8], memory: &DeviceMemory) -> u32 {
    if length_of(output).is_none_or(|room| room < OUT_HEADER_BYTES) {
        return 0;
    }
    let error = io::Error::from(rustix::io::Errno::IO);
    let error = error.raw_os_error().unwrap_or_default().wrapping_neg();
    let [l0, l1, l2, l3] = OUT_HEADER_BYTES.to_le_bytes();
    let [e0, e1, e2, e3] = error.to_le_bytes();
    let [u0, u1, u2, u3, u4, u5, u6, u7] = unique;
    let mut header = [
        l0, l1, l2, l3, e0, e1, e2, e3, u0, u1, u2, u3, u4, u5, u6, u7,
    ];
    let header = VolatileSlice::from(&mut header[..]);
    fill(output, header, memory).map_or(0, |()| OUT_HEADER_BYTES)
}

/// Copies `from` to the start of `output`; none if that is not all in the guest's memory.
fn fill(output: &[Range], mut from: VolatileSlice<'_>, memory: &DeviceMemory) -> Option<()> {
    for range in output {
        let length = usize::try_from(range.length_bytes).ok()?.min(from.len());
        if length == 0 {
            break;
        }
        for slice in memory
            .get_slices(range.address, length, Permissions::Write)
            .ok()?
        {
            let slice = slice.ok()?;
            from.subslice(0, slice.len())
                .ok()?
                .copy_to_volatile_slice(slice);
            from = from.offset(slice.len()).ok()?;
        }
    }
    Some(())
}

fn length_of(ranges: &[Range]) -> Option<u32> {
    ranges
        .iter()
        .try_fold(0_u32, |sum, range| sum.checked_add(range.length_bytes))
}
