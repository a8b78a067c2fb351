//! The interrupt line of a device.
//!
//! A device knows that it wants attention, not how the machine delivers it: the VMM hands in an
//! implementation (an eventfd bound to an interrupt controller's pin), tests hand in a counter.

use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// An edge-triggered interrupt line into the guest.
///
/// Called by any thread that serves a device: a vCPU thread inside a trapped access, or the event
/// loop. `trigger` does not block. Raising a line that is already pending is one interrupt, so a
/// device records *why* it interrupts before it triggers.
pub trait Interrupt: Send + Sync {
    /// Raises the line once.
    ///
    /// # Errors
    ///
    /// Returns the error of the mechanism behind the line; the interrupt is then lost.
    fn trigger(&self) -> io::Result<()>;
}

impl fmt::Debug for dyn Interrupt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Interrupt")
    }
}

/// An eventfd that the machine has bound to a pin (`KVM_IRQFD`) is a line.
impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

impl<T: Interrupt + ?Sized> Interrupt for Arc<T> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }
}
