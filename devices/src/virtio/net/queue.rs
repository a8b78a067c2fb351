//! The receive and transmit queues of the network device (VirtIO 1.2 sections 5.1.6.2 and 5.1.6.4).
//!
//! The driver may cut a frame into descriptors as it likes (VirtIO 1.2 section 2.7.4), and a frame may fill several buffers where
//! that was negotiated. A frame is read from the link straight into the guest's buffers, as many as the one before took, and what it
//! has beyond them into memory of ours, from where it is copied. If the guest has not got the room, that waits, and nothing more
//! is read.

use std::collections::VecDeque;
use std::io;
use std::ops::Deref;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::header::{self, Allowed};
use super::link::is_gone;
use super::used::Publisher;
use super::{HEADER_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Port};
use crate::virtio::{DeviceMemory, DeviceSlice, QueueError, SavedQueue, Turn, next_chain};

/// How many frames are moved in one direction before others get their turn.
const FRAMES_A_TURN: usize = 64;
/// Most descriptors of a chain that are looked at: a driver makes no more than its queue has entries.
const MAX_DESCRIPTORS: usize = 256;

/// A range of guest memory that a descriptor names.
#[derive(Clone, Copy, Debug)]
struct Range {
    address: GuestAddress,
    length_bytes: usize,
}

/// Adds the memory of `ranges` to `slices`; `None` if it is not all there.
fn resolve<'a>(
    ranges: &[Range],
    memory: &'a DeviceMemory,
    access: Permissions,
    slices: &mut Vec<DeviceSlice<'a>>,
) -> Option<()> {
    for range in ranges {
        for slice in memory
            .get_slices(range.address, range.length_bytes, access)
            .ok()?
        {
            slices.push(slice.ok()?);
        }
    }
    Some(())
}

fn length_of(slices: &[DeviceSlice<'_>]) -> usize {
    slices.iter().map(DeviceSlice::len).sum()
}

/// Returns what is behind the first `count` bytes.
fn behind<'a>(slices: &[DeviceSlice<'a>], mut count: usize) -> Vec<DeviceSlice<'a>> {
    let mut rest = Vec::with_capacity(slices.len());
    for slice in slices {
        let skipped = count.min(slice.len());
        count -= skipped;
        if let Ok(left) = slice.offset(skipped)
            && !left.is_empty()
        {
            rest.push(left);
        }
    }
    rest
}

/// Copies `bytes` to the start of `slices`, as much as fits.
fn fill(slices: &[DeviceSlice<'_>], mut bytes: &[u8]) {
    for slice in slices {
        let (now, later) = bytes.split_at(bytes.len().min(slice.len()));
        slice.copy_from(now);
        bytes = later;
    }
}

/// Takes the descriptors of a chain, all of one kind; `None` if one is of the other kind or there are too many.
fn ranges_of<M>(chain: DescriptorChain<M>, are_written: bool) -> Option<Vec<Range>>
where
    M: Deref<Target = DeviceMemory>,
{
    let mut ranges = Vec::new();
    for descriptor in chain {
        if ranges.len() == MAX_DESCRIPTORS || descriptor.is_write_only() != are_written {
            return None;
        }
        let length_bytes = usize::try_from(descriptor.len()).ok()?;
        if length_bytes > 0 {
            ranges.push(Range {
                address: descriptor.addr(),
                length_bytes,
            });
        }
    }
    Some(ranges)
}

/// Sends the frames of the transmit queue. The turn is stalled if the link takes no more for now.
pub(super) fn transmit(
    port: &mut Port,
    queue: &mut Queue,
    memory: &DeviceMemory,
    allowed: Allowed,
) -> Result<Turn, QueueError> {
    let mut turn = Turn::default();
    let mut done = 0;
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        match send(port, chain, memory, allowed) {
            Sent::Done => queue.add_used(memory, head, 0)?,
            Sent::Waits { for_room } => {
                // It is looked at again when the link is writable, or the timer goes off.
                queue.go_to_previous_position();
                turn.stalled = for_room;
                break;
            }
        }
        done += 1;
        if done == FRAMES_A_TURN {
            turn.unfinished = true;
            break;
        }
    }
    turn.interrupt = done > 0 && queue.needs_notification(memory)?;
    Ok(turn)
}

/// What became of a frame.
enum Sent {
    /// It is gone, or counted as dropped.
    Done,
    /// It is sent later.
    Waits {
        /// Because the link is full; else because the rate does not let it.
        for_room: bool,
    },
}

fn send<M>(
    port: &mut Port,
    chain: DescriptorChain<M>,
    memory: &DeviceMemory,
    allowed: Allowed,
) -> Sent
where
    M: Deref<Target = DeviceMemory>,
{
    let counter = &port.counters.transmit;
    let Some((header, frame)) = parse(chain, memory, allowed) else {
        counter.count_dropped();
        return Sent::Done;
    };
    let Some(link) = &port.link else {
        counter.count_dropped();
        return Sent::Done;
    };
    if let Some(pacer) = &mut port.transmit_pacer
        && !pacer.allows()
    {
        return Sent::Waits { for_room: false };
    }
    let frame_bytes = length_of(&frame);
    match link.send(&header, &frame) {
        Ok(()) => {
            counter.count(frame_bytes);
            if let Some(pacer) = &mut port.transmit_pacer {
                pacer.charge(frame_bytes);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Sent::Waits { for_room: true };
        }
        Err(error) => {
            counter.count_error();
            if is_gone(&error) {
                port.lose();
            }
        }
    }
    Sent::Done
}

/// Takes a frame as it lies in guest memory, with its header as it goes on. The header is read once.
fn parse<'a, M>(
    chain: DescriptorChain<M>,
    memory: &'a DeviceMemory,
    allowed: Allowed,
) -> Option<(header::Bytes, Vec<DeviceSlice<'a>>)>
where
    M: Deref<Target = DeviceMemory>,
{
    let ranges = ranges_of(chain, false)?;
    let mut slices = Vec::with_capacity(ranges.len());
    resolve(&ranges, memory, Permissions::Read, &mut slices)?;
    let mut bytes = [0; HEADER_BYTES];
    let mut filled = 0;
    for slice in &slices {
        filled += slice.copy_to(bytes.get_mut(filled..)?);
    }
    let frame = behind(&slices, HEADER_BYTES);
    let frame_bytes = length_of(&frame);
    let has_length = (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes);
    if filled != HEADER_BYTES || !has_length {
        return None;
    }
    Some((header::from_guest(bytes, frame_bytes, allowed)?, frame))
}

/// Buffers that the guest has left for frames.
#[derive(Debug)]
struct Buffers {
    head: u16,
    ranges: Vec<Range>,
    room_bytes: usize,
}

/// A frame that has been read, and that the guest's buffers do not hold.
#[derive(Debug)]
struct Waiting {
    header: header::Bytes,
    frame_bytes: usize,
    /// How many of its bytes lie in the buffers already, with room for a header in front; the others are in [`Receiver::rest`].
    placed_bytes: usize,
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Receiver {
    allowed: Allowed,
    merges: bool,
    /// Taken from the queue and not given back, the oldest first. All that was taken after the oldest of them is among them.
    buffers: VecDeque<Buffers>,
    room_bytes: usize,
    /// How long the last frame was, with its header: the next one is taken for as long.
    expected_bytes: usize,
    rest: Box<[u8]>,
    waiting: Option<Waiting>,
    publisher: Publisher,
}

impl Receiver {
    pub(super) fn new(features: u64) -> Self {
        Self {
            allowed: Allowed::to_guest(features),
            merges: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            buffers: VecDeque::new(),
            room_bytes: 0,
            expected_bytes: 0,
            rest: vec![0; MAX_FRAME_BYTES].into_boxed_slice(),
            waiting: None,
            publisher: Publisher::default(),
        }
    }

    pub(super) fn allowed(&self) -> Allowed {
        self.allowed
    }

    /// The queue as if nothing had been taken that was not given back. A frame that waits stays with this machine.
    pub(super) fn save(&self, queue: &Queue) -> SavedQueue {
        let mut saved = SavedQueue::from(queue);
        let taken = u16::try_from(self.buffers.len()).unwrap_or(u16::MAX);
        saved.next_available = saved.next_available.wrapping_sub(taken);
        saved
    }

    /// Moves frames from the link to the guest. The turn is stalled if the guest has no room, or the rate lets nothing more
    /// through: then the link is not to be waited for.
    pub(super) fn receive(
        &mut self,
        port: &mut Port,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Turn, QueueError> {
        let mut turn = Turn::default();
        for _ in 0..FRAMES_A_TURN {
            match self.receive_one(port, queue, memory)? {
                Received::Frame => {}
                Received::Nothing => break,
                Received::NoRoom => {
                    turn.stalled = true;
                    break;
                }
            }
        }
        turn.interrupt = self.publisher.wants_interrupt(queue, memory)?;
        Ok(turn)
    }

    fn receive_one(
        &mut self,
        port: &mut Port,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Received, QueueError> {
        if let Some(waiting) = self.waiting.take() {
            return self.deliver(waiting, port, queue, memory);
        }
        let Some(link) = &port.link else {
            return Ok(Received::Nothing);
        };
        self.take_buffers(self.expected_bytes, queue, memory)?;
        if self.buffers.is_empty() {
            return Ok(Received::NoRoom);
        }
        if let Some(pacer) = &mut port.receive_pacer
            && !pacer.allows()
        {
            return Ok(Received::NoRoom);
        }
        let mut header = [0; HEADER_BYTES];
        let room = self.room_for(self.expected_bytes, memory);
        let direct = behind(&room, HEADER_BYTES);
        let length = match link.receive(&mut header, &direct, &mut self.rest) {
            Ok(0) => {
                port.lose();
                return Ok(Received::Nothing);
            }
            Ok(length) => length,
            Err(error) => {
                return Ok(match error.kind() {
                    io::ErrorKind::WouldBlock => Received::Nothing,
                    io::ErrorKind::Interrupted => Received::Frame,
                    _ => {
                        port.counters.receive.count_error();
                        port.lose();
                        Received::Nothing
                    }
                });
            }
        };
        let frame_bytes = length.saturating_sub(HEADER_BYTES);
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
            port.counters.receive.count_dropped();
            return Ok(Received::Frame);
        }
        if let Some(pacer) = &mut port.receive_pacer {
            pacer.charge(frame_bytes);
        }
        let waiting = Waiting {
            header,
            frame_bytes,
            placed_bytes: frame_bytes.min(length_of(&direct)),
        };
        self.deliver(waiting, port, queue, memory)
    }

    /// Takes buffers of the guest until there is room for so many bytes, or for a frame of one buffer where those are not merged.
    fn take_buffers(
        &mut self,
        bytes: usize,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<(), QueueError> {
        while self.buffers.is_empty() || self.merges && self.room_bytes < bytes {
            let Some(chain) = next_chain(queue, memory)? else {
                break;
            };
            let head = chain.head_index();
            let ranges = ranges_of(chain, true).filter(|ranges| {
                let mut slices = Vec::with_capacity(ranges.len());
                resolve(ranges, memory, Permissions::Write, &mut slices).is_some()
            });
            let room_bytes = ranges.as_ref().map_or(0, |ranges| {
                ranges
                    .iter()
                    .fold(0_usize, |sum, it| sum.saturating_add(it.length_bytes))
            });
            match ranges {
                // A buffer holds a header at least (VirtIO 1.2 section 5.1.6.3.1).
                Some(ranges) if room_bytes > HEADER_BYTES => {
                    self.room_bytes = self.room_bytes.saturating_add(room_bytes);
                    self.buffers.push_back(Buffers {
                        head,
                        ranges,
                        room_bytes,
                    });
                }
                // Given back as it is; the order of those that are kept is not touched by that.
                _ if self.buffers.is_empty() => {
                    self.publisher
                        .publish(queue, memory, std::iter::once((head, 0)))?;
                }
                _ => self.buffers.push_back(Buffers {
                    head,
                    ranges: Vec::new(),
                    room_bytes: 0,
                }),
            }
        }
        Ok(())
    }

    /// The memory of the first buffers, as many as hold so many bytes, or of the first one where they are not merged.
    fn room_for<'a>(&self, bytes: usize, memory: &'a DeviceMemory) -> Vec<DeviceSlice<'a>> {
        let mut slices = Vec::new();
        let mut room = 0_usize;
        for buffers in &self.buffers {
            if !slices.is_empty() && (!self.merges || room >= bytes) {
                break;
            }
            room = room.saturating_add(buffers.room_bytes);
            // That it is all there was seen when it was taken.
            let _there = resolve(&buffers.ranges, memory, Permissions::Write, &mut slices);
        }
        slices
    }

    /// Gives a frame to the guest, or keeps it until there is room.
    fn deliver(
        &mut self,
        waiting: Waiting,
        port: &mut Port,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Received, QueueError> {
        let counter = &port.counters.receive;
        let Waiting {
            header,
            frame_bytes,
            placed_bytes,
        } = waiting;
        let whole_bytes = HEADER_BYTES + frame_bytes;
        self.take_buffers(whole_bytes, queue, memory)?;
        let slices = self.room_for(whole_bytes, memory);
        if length_of(&slices) < whole_bytes {
            // A driver that has left all the buffers that there can be has no more; nor has one for a frame of one buffer.
            let has_all = self.buffers.len() >= usize::from(queue.size());
            if has_all || !self.merges {
                counter.count_dropped();
                return Ok(Received::Frame);
            }
            self.waiting = Some(waiting);
            return Ok(Received::NoRoom);
        }
        self.expected_bytes = whole_bytes;
        let mut left = whole_bytes;
        let mut used = Vec::new();
        for buffers in &self.buffers {
            if left == 0 {
                break;
            }
            let written = left.min(buffers.room_bytes);
            left -= written;
            used.push((buffers.head, u32::try_from(written).unwrap_or(u32::MAX)));
        }
        let count = u16::try_from(used.len()).unwrap_or(u16::MAX);
        let Some(header) = header::to_guest(header, frame_bytes, self.allowed, count) else {
            counter.count_dropped();
            return Ok(Received::Frame);
        };
        fill(&slices, &header);
        let rest_bytes = frame_bytes - placed_bytes;
        if let Some(rest) = self.rest.get(..rest_bytes)
            && rest_bytes > 0
        {
            fill(&behind(&slices, HEADER_BYTES + placed_bytes), rest);
        }
        for buffers in self.buffers.drain(..used.len()) {
            self.room_bytes = self.room_bytes.saturating_sub(buffers.room_bytes);
        }
        self.publisher.publish(queue, memory, used.into_iter())?;
        counter.count(frame_bytes);
        Ok(Received::Frame)
    }
}

/// What a look at the link led to.
enum Received {
    /// A frame was moved or dropped, and there may be another one.
    Frame,
    /// There is none.
    Nothing,
    /// There is no room for one, or not yet time.
    NoRoom,
}
