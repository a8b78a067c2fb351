//! What the device and the server of a file system share: memory in slots, and a socket that says which slot holds what.
//!
//! ```text
//!   device ── request {slot, asked, room} ──► server      the request's bytes are at the slot's start,
//!          ◄── reply {slot, written} ────────             the reply's bytes go behind them, at `reply_offset`
//! ```
//!
//! A message carries as many requests, or replies, as there are at that moment. A slot belongs to the server from the request to the
//! reply. The socket keeps the bounds of messages (`SOCK_SEQPACKET`), and its hang-up says that the other side is gone.
//!
//! Who [awaits](Request::is_awaited) a reply looks for it in the slot's word, which stands behind all slots, and sleeps on it
//! (futex(2)). What comes after that wait has ended comes by the socket, as what nobody awaits:
//!
//! ```text
//!   device: WATCHED or ASLEEP ── the server is done ──► ANSWERED + bytes      (and who is ASLEEP is woken)
//!                    └──── it took too long ───► LATE ── the server is done ──► a reply on the socket
//! ```
//!
//! Such requests go to the [letter box](Slots::post) behind the words if it is empty, which is cheaper for both than a socket. One thread
//! of the server does nothing but empty it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::futex;
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
/// Where the words of the slots begin, and how long each is.
const WORDS_OFFSET_BYTES: u64 = SLOTS as u64 * SLOT_BYTES as u64;
const WORD_BYTES: u64 = 4;
/// Where the letter box is: a word, how many requests there are, and those.
const BOX_OFFSET_BYTES: u64 = WORDS_OFFSET_BYTES + SLOTS as u64 * WORD_BYTES;
const LETTER_OFFSET_BYTES: u64 = BOX_OFFSET_BYTES + WORD_BYTES;
const LETTER_BYTES: usize = size_of::<u32>() + REQUESTS_A_MESSAGE * Request::WIRE_BYTES;
/// All of the memory.
const MEMORY_BYTES: u64 = LETTER_OFFSET_BYTES + LETTER_BYTES as u64;

/// What the letter box's word says.
mod letter_box {
    pub(super) const EMPTY: u32 = 0;
    pub(super) const FULL: u32 = 1;
}

/// What a slot's word says.
mod word {
    /// Somebody will look.
    pub(super) const WATCHED: u32 = 0;
    /// Somebody sleeps until it says something else.
    pub(super) const ASLEEP: u32 = 1;
    /// Nobody will.
    pub(super) const LATE: u32 = 2;
    /// The reply is there; its length is added to this.
    pub(super) const ANSWERED: u32 = 3;
}

/// What the device says: this slot holds a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub slot: u32,
    /// Length of the request in bytes.
    pub asked_bytes: u32,
    /// How long the reply may be.
    pub room_bytes: u32,
    /// Somebody looks for the reply in the slot's word.
    pub is_awaited: bool,
}

impl Request {
    const WIRE_BYTES: usize = 16;

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
        let is_awaited = u32::from(self.is_awaited);
        for word in [self.slot, self.asked_bytes, self.room_bytes, is_awaited] {
            message.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<4>() else {
            return None;
        };
        let [slot, asked_bytes, room_bytes, is_awaited] = *words else {
            return None;
        };
        Some(Self {
            slot: u32::from_le_bytes(slot),
            asked_bytes: u32::from_le_bytes(asked_bytes),
            room_bytes: u32::from_le_bytes(room_bytes),
            is_awaited: u32::from_le_bytes(is_awaited) != 0,
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
        memory.set_len(MEMORY_BYTES)?;
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
        let length = usize::try_from(MEMORY_BYTES).map_err(io::Error::other)?;
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

    /// Leaves requests for the server without waiting, if there is room for them: then `true`.
    pub fn post(&self, requests: &[Request]) -> bool {
        let Some(full) = self.atomic(BOX_OFFSET_BYTES) else {
            return false;
        };
        let fits = (1..=REQUESTS_A_MESSAGE).contains(&requests.len());
        if !fits || full.load(Ordering::Acquire) != letter_box::EMPTY {
            return false;
        }
        let mut letter = Vec::with_capacity(LETTER_BYTES);
        letter.extend_from_slice(&u32::try_from(requests.len()).unwrap_or(0).to_le_bytes());
        for request in requests {
            request.encode(&mut letter);
        }
        let Some(place) = self.letter() else {
            return false;
        };
        place.copy_from(&letter);
        full.store(letter_box::FULL, Ordering::Release);
        // A server that is not there shows by its socket.
        let _woken = futex::wake(full, futex::Flags::empty(), 1);
        true
    }

    /// Waits for requests in the letter box.
    ///
    /// # Errors
    ///
    /// Returns [`ChannelError`] if they make no sense, or cannot be waited for.
    pub fn await_letter(&self, requests: &mut Vec<Request>) -> Result<(), ChannelError> {
        let (Some(full), Some(place)) = (self.atomic(BOX_OFFSET_BYTES), self.letter()) else {
            return Err(ChannelError::Nonsense);
        };
        while full.load(Ordering::Acquire) != letter_box::FULL {
            match futex::wait(full, futex::Flags::empty(), letter_box::EMPTY, None) {
                Ok(()) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(ChannelError::Socket(error.into())),
            }
        }
        let mut letter = [0; LETTER_BYTES];
        place.copy_to(&mut letter);
        let (count, rest) = letter.split_at(size_of::<u32>());
        let count = count.try_into().map_or(0, u32::from_le_bytes);
        let count = usize::try_from(count).map_err(|_| ChannelError::Nonsense)?;
        requests.clear();
        for bytes in rest.chunks(Request::WIRE_BYTES).take(count) {
            let request = Request::decode(bytes).filter(Request::is_sound);
            requests.push(request.ok_or(ChannelError::Nonsense)?);
        }
        Ok(())
    }

    /// Says that there is room for requests again.
    pub fn empty_box(&self) {
        if let Some(full) = self.atomic(BOX_OFFSET_BYTES) {
            full.store(letter_box::EMPTY, Ordering::Release);
        }
    }

    fn letter(&self) -> Option<VolatileSlice<'_>> {
        let start = usize::try_from(LETTER_OFFSET_BYTES).ok()?;
        self.region.get_slice(start, LETTER_BYTES).ok()
    }

    /// Makes the word of an [awaited](Request::is_awaited) request ready, before it is sent.
    pub fn await_reply(&self, slot: u32) {
        if let Some(word) = self.word(slot) {
            word.store(word::WATCHED, Ordering::Release);
        }
    }

    /// Sleeps until there is the reply to an awaited request, at most so long.
    pub fn wait(&self, slot: u32, longest: Duration) {
        let Some(word) = self.word(slot) else {
            return;
        };
        let (relaxed, acquire) = (Ordering::Relaxed, Ordering::Acquire);
        if word
            .compare_exchange(word::WATCHED, word::ASLEEP, relaxed, acquire)
            .is_err()
        {
            return;
        }
        let end = Instant::now() + longest;
        while word.load(Ordering::Acquire) == word::ASLEEP {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(left) = left.try_into() else {
                return;
            };
            match futex::wait(word, futex::Flags::empty(), word::ASLEEP, Some(&left)) {
                Ok(()) | Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes the reply to an awaited request; none if it comes later, by the socket.
    #[must_use]
    pub fn take_reply(&self, slot: u32) -> Option<Reply> {
        let said = self.word(slot)?.swap(word::LATE, Ordering::AcqRel);
        let written_bytes = said.checked_sub(word::ANSWERED)?;
        Some(Reply {
            slot,
            written_bytes,
        })
    }

    /// Gives the reply to an awaited request; returns `false` if it has to be sent, since nobody looks any more.
    #[must_use]
    pub fn give_reply(&self, reply: Reply) -> bool {
        let Some(word) = self.word(reply.slot) else {
            return false;
        };
        let answered = word::ANSWERED.saturating_add(reply.written_bytes);
        match word.swap(answered, Ordering::AcqRel) {
            word::ASLEEP => {
                // Whoever is not woken looks when the wait has taken too long.
                let _woken = futex::wake(word, futex::Flags::empty(), 1);
                true
            }
            word::WATCHED => true,
            _ => false,
        }
    }

    fn word(&self, slot: u32) -> Option<&AtomicU32> {
        if slot >= SLOTS {
            return None;
        }
        self.atomic(WORDS_OFFSET_BYTES + u64::from(slot) * WORD_BYTES)
    }

    fn atomic(&self, offset: u64) -> Option<&AtomicU32> {
        self.region
            .get_atomic_ref(usize::try_from(offset).ok()?)
            .ok()
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
