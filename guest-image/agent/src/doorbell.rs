//! The doorbell: one page of the machine that the VMM answers itself. How the agent says that it is ready, and that the
//! machine may end, at a moment when no connection need exist. And the mailbox beside it, in which a machine finds what it is to do
//! before it is frozen, and a clone what is its own.

#![allow(
    unsafe_code,
    reason = "a device register is reached through a mapping; each block says why it is sound"
)]

use std::io;
use std::ptr::{self, NonNull};

use protocol::{FrameBuffer, FrameError};
use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};
use serde::de::DeserializeOwned;

/// Size of the doorbell's page.
const PAGE_BYTES: usize = 4096;

/// Maps a piece of the machine's device memory, for as long as the agent runs.
fn map_device(address: u64, length_bytes: usize) -> io::Result<NonNull<u8>> {
    // O_SYNC makes the kernel map the page uncached (drivers/char/mem.c, uncached_access).
    let memory = rustix::fs::open(
        "/dev/mem",
        OFlags::RDWR | OFlags::SYNC | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: a new shared mapping at an address of the kernel's choice replaces no other. The memory is a device's: no
    // Rust object lives in it.
    let start = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            length_bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            memory,
            address,
        )
    }?;
    Ok(NonNull::new(start.cast()).ok_or(io::ErrorKind::InvalidData)?)
}

/// Both ways to speak with the VMM itself.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) doorbell: Doorbell,
    pub(crate) mailbox: Mailbox,
}

/// A mapping of the doorbell's page.
#[derive(Debug)]
pub(crate) struct Doorbell {
    register: NonNull<u32>,
}

impl Doorbell {
    /// Maps the doorbell's page through `/dev/mem`.
    ///
    /// # Errors
    ///
    /// If `/dev/mem` cannot be opened or mapped.
    pub(crate) fn map() -> io::Result<Self> {
        let register = map_device(protocol::DOORBELL_ADDRESS, PAGE_BYTES)?.cast();
        Ok(Self { register })
    }

    /// Writes a code to the doorbell.
    pub(crate) fn ring(&self, code: u32) {
        // SAFETY: the register is the start of a page that `map` mapped writable and nobody unmaps; it is aligned.
        unsafe { self.register.write_volatile(code.to_le()) };
    }
}

/// A mapping of the mailbox.
#[derive(Debug)]
pub(crate) struct Mailbox {
    start: NonNull<u8>,
}

impl Mailbox {
    /// Maps the mailbox through `/dev/mem`.
    ///
    /// # Errors
    ///
    /// If `/dev/mem` cannot be opened or mapped.
    pub(crate) fn map() -> io::Result<Self> {
        let start = map_device(protocol::MAILBOX_ADDRESS, protocol::MAILBOX_BYTES)?;
        Ok(Self { start })
    }

    /// Takes out what lies in there, and leaves nothing of it.
    ///
    /// # Errors
    ///
    /// If it is something else.
    pub(crate) fn take<M: DeserializeOwned>(&self) -> Result<Option<M>, FrameError> {
        let mut frame = FrameBuffer::new(protocol::MAILBOX_BYTES);
        let head = self.take_bytes(0, size_of::<u32>());
        let length = head
            .first_chunk()
            .map_or(0, |length| u32::from_le_bytes(*length));
        if length == 0 {
            return Ok(None);
        }
        frame.push(&head);
        frame.push(&self.take_bytes(head.len(), usize::try_from(length).unwrap_or(usize::MAX)));
        frame.take()
    }

    /// Moves bytes out, as far as there is a mailbox.
    fn take_bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let end = offset.saturating_add(length).min(protocol::MAILBOX_BYTES);
        (offset..end)
            .map(|place| {
                // SAFETY: the place lies within the memory that `map` mapped and nobody unmaps.
                let place = unsafe { self.start.add(place) };
                // SAFETY: the same; a byte is always aligned.
                let byte = unsafe { place.read_volatile() };
                // SAFETY: the same; the mapping is writable.
                unsafe { place.write_volatile(0) };
                byte
            })
            .collect()
    }
}
