//! The doorbell: one page of the machine that the VMM answers itself. How the agent says that it is ready, and that the
//! machine may end, at a moment when no connection need exist.

#![allow(
    unsafe_code,
    reason = "a device register is reached through a mapping; each block says why it is sound"
)]

use std::io;
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Size of the doorbell's page.
const PAGE_BYTES: usize = 4096;

/// A mapping of the doorbell's page.
#[derive(Debug)]
pub(crate) struct Doorbell {
    register: NonNull<u32>,
}

impl Doorbell {
    /// Maps the doorbell's page through `/dev/mem`. The mapping stays for as long as the agent runs.
    ///
    /// # Errors
    ///
    /// If `/dev/mem` cannot be opened or mapped.
    pub(crate) fn map() -> io::Result<Self> {
        // O_SYNC makes the kernel map the page uncached (drivers/char/mem.c, uncached_access).
        let memory = rustix::fs::open(
            "/dev/mem",
            OFlags::RDWR | OFlags::SYNC | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // SAFETY: a new shared mapping at an address of the kernel's choice replaces no other. The page is a device's: no
        // Rust object lives in it.
        let page = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                memory,
                protocol::DOORBELL_ADDRESS,
            )
        }?;
        let register = NonNull::new(page.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { register })
    }

    /// Writes a code to the doorbell.
    pub(crate) fn ring(&self, code: u32) {
        // SAFETY: the register is the start of a page that `map` mapped writable and nobody unmaps; it is aligned.
        unsafe { self.register.write_volatile(code.to_le()) };
    }
}
