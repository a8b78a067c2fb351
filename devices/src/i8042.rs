//! The i8042 keyboard controller, as far as it can reset the machine.
//!
//! A guest that reboots with `reboot=k` writes the command 0xfe to port 0x64. Everything else about
//! the controller is absent, and reads as zero: no status bit is set, so nobody waits for it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use vm_superio::{I8042Device, Trigger};

use crate::bus::{BusDevice, PioAddress};

/// The first of the controller's ports (0x60 data, 0x64 status and command).
pub const BASE: PioAddress = PioAddress(0x60);

/// Length of the controller's range; the ports between data and command are unused.
pub const SIZE_BYTES: u64 = 5;

/// The controller on the port bus, from [`BASE`] on.
pub struct I8042 {
    /// The lock is never contended: resets are rare.
    device: Mutex<I8042Device<OnReset>>,
}

struct OnReset(Box<dyn Fn() + Send + Sync>);

impl Trigger for OnReset {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        (self.0)();
        Ok(())
    }
}

impl I8042 {
    /// Makes a controller that calls `on_reset`, on the vCPU thread, when the guest resets the
    /// machine.
    pub fn new(on_reset: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            device: Mutex::new(I8042Device::new(OnReset(Box::new(on_reset)))),
        }
    }
}

impl fmt::Debug for I8042 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("I8042")
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            *byte = device.read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
            // The trigger cannot fail.
            let _ = device.write(offset, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn controller() -> (I8042, Arc<AtomicUsize>) {
        let resets = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&resets);
        let controller = I8042::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        (controller, resets)
    }

    #[test]
    fn the_reset_command_resets() {
        let (controller, resets) = controller();
        controller.write(4, &[0xfe]);
        assert_eq!(resets.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn nothing_else_resets() {
        let (controller, resets) = controller();
        controller.write(0, &[0xfe]);
        controller.write(4, &[0xfd]);
        controller.write(4, &[0xfe, 0xfe]);
        controller.write(u64::MAX, &[0xfe]);
        assert_eq!(resets.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn nobody_waits_for_the_controller() {
        let (controller, _) = controller();
        let mut status = [0xff];
        controller.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
