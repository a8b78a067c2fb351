//! The request queue of the block device (VirtIO 1.2 section 5.2.6, "Device Operation").
//!
//! The driver may cut a request into descriptors as it likes (VirtIO 1.2 section 2.7.4), so a
//! request is taken as two runs of bytes: what the device reads, and what it writes. The header is
//! the start of the first, the status the last byte of the second; data is what is left of either.
//! A request without a place for its status cannot be answered and is used with length 0.

use std::io;
use std::ops::Deref;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestMemory, Permissions};

use super::rate::Direction;
use super::{Access, Disk, DiskRange, Durability, SECTOR_BYTES, limit};
use crate::virtio::{DeviceMemory, DeviceSlice, QueueError, Turn, next_chain, wants_interrupt};

/// How many requests are carried out before others get their turn.
pub(super) const REQUESTS_A_TURN: usize = 32;
/// The longest read that is answered while the guest's processor stands.
const AT_ONCE_BYTES: u64 = 64 << 10;
/// Length of `type`, `reserved` and `sector` (VirtIO 1.2 section 5.2.6).
const HEADER_BYTES: usize = 16;
/// Length of `struct virtio_blk_discard_write_zeroes` (VirtIO 1.2 section 5.2.6).
const RANGE_BYTES: usize = 16;
/// The flag of a range that lets its storage be given back (VirtIO 1.2 section 5.2.6).
const FLAG_UNMAP: u32 = 1 << 0;
/// How much data moves where some is given back.
const NOTHING_MOVED: u64 = 0;
/// Most descriptors of a request: data, and a header and a status cut in pieces.
const MAX_DESCRIPTORS: usize = 256;

/// How a request ended (VirtIO 1.2 section 5.2.6, `status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        let code = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        // The three codes are 0, 1 and 2.
        u8::try_from(code).unwrap_or(1)
    }
}

impl From<io::Result<()>> for Status {
    fn from(result: io::Result<()>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Self::Unsupported,
            Err(error) => {
                tracing::debug!(%error, "a disk request failed");
                Self::IoError
            }
        }
    }
}

/// Carries out the requests in the queue.
///
/// # Errors
///
/// Returns [`QueueError`] if the ring cannot be used.
pub(super) fn process(
    disk: &Disk,
    queue: &mut Queue,
    memory: &DeviceMemory,
) -> Result<Turn, QueueError> {
    let mut turn = Turn::default();
    let mut done = 0;
    queue.disable_notification(memory)?;
    while let Some(chain) = next_chain(queue, memory)? {
        let head = chain.head_index();
        let written = answer(disk, chain, memory).unwrap_or(0);
        queue.add_used(memory, head, written)?;
        done += 1;
        if done == REQUESTS_A_TURN {
            turn.unfinished = true;
            break;
        }
    }
    turn.interrupt = done > 0 && wants_interrupt(queue, memory)?;
    Ok(turn)
}

/// Answers one request if that is a small read of what the storage has at hand; none if it has to be [carried out](answer).
pub(super) fn answer_at_once<M>(
    disk: &Disk,
    chain: DescriptorChain<M>,
    memory: &DeviceMemory,
) -> Option<u32>
where
    M: Deref<Target = DeviceMemory>,
{
    let request = Request::parse(chain, memory)?;
    let (header, _) = split_header(&request.input).filter(|_| request.is_sound)?;
    let length = length_of(&request.output);
    if header.request_type != VIRTIO_BLK_T_IN || length > AT_ONCE_BYTES || disk.throttle.is_some() {
        return None;
    }
    let range = data_range(disk, header.sector, &request.output)?;
    if !disk
        .backend
        .read_cached(&request.output, range.offset_bytes)
    {
        return None;
    }
    request.status.copy_from(&[Status::Ok.byte()]);
    u32::try_from(length).ok()?.checked_add(1)
}

/// Carries out one request and returns how many bytes were written from the start of its writable
/// part; `None` if there is no place for the status.
pub(super) fn answer<M>(
    disk: &Disk,
    chain: DescriptorChain<M>,
    memory: &DeviceMemory,
) -> Option<u32>
where
    M: Deref<Target = DeviceMemory>,
{
    let request = Request::parse(chain, memory)?;
    let status = request.carry_out(disk);
    request.status.copy_from(&[status.byte()]);
    let data_bytes = u32::try_from(length_of(&request.output)).ok()?;
    match status {
        Status::Ok => data_bytes.checked_add(1),
        // The status stands behind data that was not written (VirtIO 1.2 section 2.7.8).
        _ if data_bytes > 0 => Some(0),
        _ => Some(1),
    }
}

/// A request as it lies in guest memory.
struct Request<'a> {
    /// What the device reads, the header in front.
    input: Vec<DeviceSlice<'a>>,
    /// What the device writes, but for the status.
    output: Vec<DeviceSlice<'a>>,
    /// One byte.
    status: DeviceSlice<'a>,
    /// Everything about the descriptors is in order.
    is_sound: bool,
}

/// The header, read once.
struct Header {
    request_type: u32,
    sector: u64,
}

impl<'a> Request<'a> {
    /// Collects the parts of a request; `None` if there is no place for the status.
    fn parse<M>(chain: DescriptorChain<M>, memory: &'a DeviceMemory) -> Option<Self>
    where
        M: Deref<Target = DeviceMemory>,
    {
        let mut input = Vec::new();
        let mut output: Vec<DeviceSlice<'a>> = Vec::new();
        let mut is_sound = true;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return None;
            }
            let (parts, access) = if descriptor.is_write_only() {
                (&mut output, Permissions::Write)
            } else {
                // What is written stands behind what is read (VirtIO 1.2 section 2.7.4.2).
                is_sound &= output.is_empty();
                (&mut input, Permissions::Read)
            };
            let length = usize::try_from(descriptor.len()).ok()?;
            if !collect(memory, descriptor.addr(), length, access, parts) {
                is_sound = false;
                // If this is where the status would be, then it has no place.
                parts.clear();
            }
        }
        let last = output.pop()?;
        let data_length = last.len().checked_sub(1)?;
        let status = last.offset(data_length).ok()?;
        output.push(last.subslice(0, data_length).ok()?);
        Some(Self {
            input,
            output,
            status,
            is_sound,
        })
    }

    fn carry_out(&self, disk: &Disk) -> Status {
        let longest = u64::from(limit::SEGMENT_BYTES) * u64::from(limit::SEGMENTS);
        let (header, input) = match split_header(&self.input) {
            Some(parts) if self.is_sound => parts,
            _ => return Status::IoError,
        };
        if length_of(&input) > longest || length_of(&self.output) > longest {
            return Status::IoError;
        }
        match header.request_type {
            VIRTIO_BLK_T_IN => match data_range(disk, header.sector, &self.output) {
                Some(range) => {
                    disk.pass(Direction::Read, range.length_bytes);
                    disk.backend.read(&self.output, range.offset_bytes).into()
                }
                None => Status::IoError,
            },
            VIRTIO_BLK_T_OUT => match data_range(disk, header.sector, &input) {
                Some(range) if disk.backend.access() == Access::ReadWrite => {
                    disk.pass(Direction::Write, range.length_bytes);
                    let written = disk.backend.write(&input, range.offset_bytes);
                    written.and_then(|()| settle(disk)).into()
                }
                _ => Status::IoError,
            },
            VIRTIO_BLK_T_FLUSH => disk.backend.flush().into(),
            VIRTIO_BLK_T_GET_ID => self.write_id(disk),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                erase(disk, header.request_type, &input)
            }
            _ => Status::Unsupported,
        }
    }

    fn write_id(&self, disk: &Disk) -> Status {
        let mut rest: &[u8] = &disk.id.0;
        if length_of(&self.output) < u64::try_from(rest.len()).unwrap_or(u64::MAX) {
            return Status::IoError;
        }
        for part in &self.output {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part.copy_from(now);
            rest = later;
        }
        Status::Ok
    }
}

/// Adds the memory behind a descriptor to `parts`; `false` if it is not all there.
fn collect<'a>(
    memory: &'a DeviceMemory,
    address: vm_memory::GuestAddress,
    length: usize,
    access: Permissions,
    parts: &mut Vec<DeviceSlice<'a>>,
) -> bool {
    if length == 0 {
        return true;
    }
    let Ok(slices) = memory.get_slices(address, length, access) else {
        return false;
    };
    for slice in slices {
        match slice {
            Ok(slice) => parts.push(slice),
            Err(_) => return false,
        }
    }
    true
}

fn length_of(parts: &[DeviceSlice<'_>]) -> u64 {
    parts
        .iter()
        .filter_map(|part| u64::try_from(part.len()).ok())
        .sum()
}

/// Copies up to `N` bytes from the start of `parts`, and returns them with what is behind; `None`
/// if there are fewer.
fn split_bytes<'a, const N: usize>(
    parts: &[DeviceSlice<'a>],
) -> Option<([u8; N], Vec<DeviceSlice<'a>>)> {
    let mut bytes = [0; N];
    let mut filled = 0;
    let mut rest = Vec::with_capacity(parts.len());
    for part in parts {
        let length = part.copy_to(bytes.get_mut(filled..)?);
        filled += length;
        let behind = part.offset(length).ok()?;
        if !behind.is_empty() {
            rest.push(behind);
        }
    }
    (filled == N).then_some((bytes, rest))
}

fn split_header<'a>(input: &[DeviceSlice<'a>]) -> Option<(Header, Vec<DeviceSlice<'a>>)> {
    let (bytes, rest) = split_bytes::<HEADER_BYTES>(input)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = bytes;
    let header = Header {
        request_type: u32::from_le_bytes([t0, t1, t2, t3]),
        sector: u64::from_le_bytes(sector),
    };
    Some((header, rest))
}

/// Returns the range of the disk that `parts` are to be moved to or from, if there is such.
fn data_range(disk: &Disk, sector: u64, parts: &[DeviceSlice<'_>]) -> Option<DiskRange> {
    let length = length_of(parts);
    if !length.is_multiple_of(SECTOR_BYTES) {
        return None;
    }
    disk_range(disk, sector, length / SECTOR_BYTES)
}

/// Returns the range of `count` sectors from `sector` on, if the disk has them.
fn disk_range(disk: &Disk, sector: u64, count: u64) -> Option<DiskRange> {
    let capacity = disk.backend.size_bytes() / SECTOR_BYTES;
    let end = sector.checked_add(count)?;
    if end > capacity {
        return None;
    }
    // The capacity in bytes is a `u64`, so neither product wraps.
    Some(DiskRange {
        offset_bytes: sector.checked_mul(SECTOR_BYTES)?,
        length_bytes: count.checked_mul(SECTOR_BYTES)?,
    })
}

/// Discards ranges or makes them zero. All ranges are checked before the first is touched. Each counts as a write: of no bytes where
/// the host only lets go of some.
fn erase(disk: &Disk, request_type: u32, input: &[DeviceSlice<'_>]) -> Status {
    if disk.backend.access() == Access::ReadOnly {
        // Not offered; an I/O error is also what a write gets (VirtIO 1.2 section 5.2.6.2).
        return Status::IoError;
    }
    let mut ranges = Vec::new();
    let mut rest = input.to_vec();
    while length_of(&rest) > 0 {
        let Some((bytes, behind)) = split_bytes::<RANGE_BYTES>(&rest) else {
            return Status::IoError;
        };
        rest = behind;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        let may_unmap = flags & FLAG_UNMAP != 0;
        if flags & !FLAG_UNMAP != 0 || request_type == VIRTIO_BLK_T_DISCARD && may_unmap {
            return Status::Unsupported;
        }
        let Some(range) = disk_range(disk, sector, u64::from(count)) else {
            return Status::IoError;
        };
        if count > limit::RANGE_SECTORS || ranges.len() >= limit::RANGES {
            return Status::IoError;
        }
        ranges.push((range, may_unmap));
    }
    ranges
        .into_iter()
        .try_for_each(|(range, may_unmap)| match request_type {
            VIRTIO_BLK_T_DISCARD => {
                disk.pass(Direction::Write, NOTHING_MOVED);
                disk.backend.discard(range)
            }
            _ => {
                let moved = if may_unmap {
                    NOTHING_MOVED
                } else {
                    range.length_bytes
                };
                disk.pass(Direction::Write, moved);
                disk.backend.write_zeroes(range, may_unmap)
            }
        })
        .and_then(|()| settle(disk))
        .into()
}

/// Makes what was just written durable, if that is when it has to be.
fn settle(disk: &Disk) -> io::Result<()> {
    match disk.durability {
        Durability::AtFlush => Ok(()),
        Durability::AtOnce => disk.backend.flush(),
    }
}
