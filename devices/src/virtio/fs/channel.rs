//! What the device and the server of a file system share: memory in slots, and a socket that says which slot holds what.
//!
//! ```text
//!   device ── request {slot, asked, room} ──► server      the request's bytes are at the slot's start,
//!          ◄── reply {slot, written} ────────             the reply's bytes go behind them, at `reply_offset`
//! ```
//!
//! A message carries as many requests, or replies, as there are at that moment. A slot belongs to the server from the request to the
//! reply. The socket keeps the bounds of messages (`SOCK_SEQPACKET`), and its hang-up says that the other side is gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use thiserror::Error;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, VolatileMemory, VolatileSlice};

/// How many requests the server may have at once.
pub const SLOTS: u32 = 64;
/// The largest request and its reply together: a mebibyte of data, or what else FUSE knows, and the headers.
pub const SLOT_BYTES: u32 = (1 << 20) + (64 << 10);
/// Requests of one message. More are several messages, so that several threads of the server may take them.
pub const REQUESTS_A_MESSAGE: usize = 8;
/// Replies of one message: all that there can be.
pub const REPLIES_A_MESSAGE: usize = 64;

/// A reply begins on such a boundary.
const REPLY_ALIGNMENT: u32 = 64;

/// What the device says: this slot holds a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub slot: u32,
    /// Length of the request in bytes.
    pub asked_bytes: u32,
    /// How long the reply may be.
    pub room_bytes: u32,
}

impl Request {
    const WIRE_BYTES: usize = 12;

    /// Where in the slot the reply is to begin.
    #[must_use]
    pub fn reply_offset(&self) -> u32 {
        self.asked_bytes.next_multiple_of(REPLY_ALIGNMENT)
    }

    /// Whether there is such a slot, and both fit.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.slot < SLOTS
            && self.asked_bytes <= SLOT_BYTES
            && self
                .reply_offset()
                .checked_add(self.room_bytes)
                .is_some_and(|end| end <= SLOT_BYTES)
    }

    fn encode(self, message: &mut Vec<u8>) {
        for word in [self.slot, self.asked_bytes, self.room_bytes] {
            message.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else {
            return None;
        };
        let [slot, asked_bytes, room_bytes] = *words else {
            return None;
        };
        Some(Self {
            slot: u32::from_le_bytes(slot),
            asked_bytes: u32::from_le_bytes(asked_bytes),
            room_bytes: u32::from_le_bytes(room_bytes),
        })
    }
}

/// What the server says: this slot holds the reply, and is the device's again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Which.
    pub slot: u32,
    /// Length of the reply in bytes; 0 where none is due.
    pub written_bytes: u32,
}

impl Reply {
    const WIRE_BYTES: usize = 8;

    fn encode(self, message: &mut Vec<u8>) {
        for word in [self.slot, self.written_bytes] {
            message.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else {
            return None;
        };
        let [slot, written_bytes] = *words else {
            return None;
        };
        Some(Self {
            slot: u32::from_le_bytes(slot),
            written_bytes: u32::from_le_bytes(written_bytes),
        })
    }
}

/// Why nothing more comes from the other side.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// It is gone.
    #[error("the process that serves the shared directories is gone")]
    Gone,
    /// What it said makes no sense.
    #[error("the process that serves the shared directories says what makes no sense")]
    Nonsense,
    /// The socket failed.
    #[error("the process that serves the shared directories cannot be reached")]
    Socket(#[source] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Gone,
            error => Self::Socket(error.into()),
        }
    }
}

/// One end: the device's or the server's.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    memory: File,
}

impl Channel {
    /// Makes both ends: the device's, which never waits, and the server's. The memory takes what is used of it.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it gives no socket or no memory.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = File::from(rustix::fs::memfd_create("shares", flags)?);
        memory.set_len(u64::from(SLOTS) * u64::from(SLOT_BYTES))?;
        // Neither side can pull the memory away under the other.
        rustix::fs::fcntl_add_seals(
            &memory,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
        )?;
        let (device, server) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let device = Self {
            socket: device,
            memory: memory.try_clone()?,
        };
        let server = Self {
            socket: server,
            memory,
        };
        Ok((device, server))
    }

    /// Duplicates this end.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it gives no descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            socket: self.socket.try_clone()?,
            memory: self.memory.try_clone()?,
        })
    }

    /// The descriptors of this end.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.socket.as_fd(), self.memory.as_fd()]
    }

    /// Maps the memory.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it cannot be mapped.
    pub fn map(&self) -> io::Result<Slots> {
        let file = FileOffset::new(self.memory.try_clone()?, 0);
        let length = usize::try_from(u64::from(SLOTS) * u64::from(SLOT_BYTES));
        let length = length.map_err(io::Error::other)?;
        let region = MmapRegion::from_file(file, length).map_err(io::Error::other)?;
        Ok(Slots { region })
    }

    /// Says that these slots hold requests; at most [`REQUESTS_A_MESSAGE`]. Does not wait.
    ///
    /// # Errors
    ///
    /// Returns [`ChannelError`] if the server is gone, or has left more unread than there are slots.
    pub fn send_requests(&self, requests: &[Request]) -> Result<(), ChannelError> {
        let mut message = Vec::with_capacity(REQUESTS_A_MESSAGE * Request::WIRE_BYTES);
        for request in requests {
            request.encode(&mut message);
        }
        self.send(&message, SendFlags::DONTWAIT)
    }

    /// Says that these slots hold replies; at most [`REPLIES_A_MESSAGE`].
    ///
    /// # Errors
    ///
    /// Returns [`ChannelError`] if the device is gone.
    pub fn send_replies(&self, replies: &[Reply]) -> Result<(), ChannelError> {
        let mut message = Vec::with_capacity(replies.len().saturating_mul(Reply::WIRE_BYTES));
        for reply in replies {
            reply.encode(&mut message);
        }
        self.send(&message, SendFlags::empty())
    }

    fn send(&self, message: &[u8], flags: SendFlags) -> Result<(), ChannelError> {
        loop {
            return match rustix::net::send(&self.socket, message, flags | SendFlags::NOSIGNAL) {
                Ok(_) => Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits for the next requests.
    ///
    /// # Errors
    ///
    /// Returns [`ChannelError`] if the device is gone, or says what makes no sense.
    pub fn await_requests(&self, requests: &mut Vec<Request>) -> Result<(), ChannelError> {
        let mut message = [0; REQUESTS_A_MESSAGE * Request::WIRE_BYTES];
        let length = self.receive(&mut message, RecvFlags::empty())?;
        let message = message.get(..length).unwrap_or_default();
        requests.clear();
        for bytes in message.chunks(Request::WIRE_BYTES) {
            let request = Request::decode(bytes).filter(Request::is_sound);
            requests.push(request.ok_or(ChannelError::Nonsense)?);
        }
        Ok(())
    }

    /// Takes the next replies, if there are any: then `true`.
    ///
    /// # Errors
    ///
    /// Returns [`ChannelError`] if the server is gone, or says what makes no sense.
    pub fn take_replies(&self, replies: &mut Vec<Reply>) -> Result<bool, ChannelError> {
        let mut message = [0; REPLIES_A_MESSAGE * Reply::WIRE_BYTES];
        replies.clear();
        let length = match self.receive(&mut message, RecvFlags::DONTWAIT) {
            Err(ChannelError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(false);
            }
            received => received?,
        };
        for bytes in message
            .get(..length)
            .unwrap_or_default()
            .chunks(Reply::WIRE_BYTES)
        {
            replies.push(Reply::decode(bytes).ok_or(ChannelError::Nonsense)?);
        }
        Ok(true)
    }

    /// A message that is longer than `message` makes no sense, and an empty one is never sent: it is the end.
    fn receive(&self, message: &mut [u8], flags: RecvFlags) -> Result<usize, ChannelError> {
        loop {
            let received = rustix::net::recv(&self.socket, &mut *message, flags | RecvFlags::TRUNC);
            return match received {
                Ok((_, 0)) => Err(ChannelError::Gone),
                Ok((_, length)) if length > message.len() => Err(ChannelError::Nonsense),
                Ok((_, length)) => Ok(length),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The shared memory. The other side may change what is in it at any time.
#[derive(Debug)]
pub struct Slots {
    region: MmapRegion<()>,
}

impl Slots {
    /// Where a request is; none if it is not [sound](Request::is_sound).
    #[must_use]
    pub fn asked(&self, request: &Request) -> Option<VolatileSlice<'_>> {
        self.part(request.slot, 0, request.asked_bytes)
    }

    /// Where its reply goes; none if it is not [sound](Request::is_sound).
    #[must_use]
    pub fn room(&self, request: &Request) -> Option<VolatileSlice<'_>> {
        self.part(request.slot, request.reply_offset(), request.room_bytes)
    }

    fn part(&self, slot: u32, offset: u32, length: u32) -> Option<VolatileSlice<'_>> {
        let end = offset.checked_add(length)?;
        if slot >= SLOTS || end > SLOT_BYTES {
            return None;
        }
        let start = u64::from(slot) * u64::from(SLOT_BYTES) + u64::from(offset);
        let start = usize::try_from(start).ok()?;
        let length = usize::try_from(length).ok()?;
        self.region.get_slice(start, length).ok()
    }
}
