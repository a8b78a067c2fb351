//! The i8042 keyboard controller, as far as it can reset the machine.
//!
//! A guest that reboots with `reboot=k` writes the command 0xfe to port 0x64. Everything else about
//! the controller is absent, and reads as zero: no status bit is set, so nobody waits for it.

use std::fmt;

use vm_superio::{I8042Device, Trigger};

use std::sync::{Mutex, PoisonError};

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
