//! The virtio-pmem device (VirtIO 1.2 section 5.19): a window of guest physical memory.
//!
//! The machine maps the window as a memory slot; the device only says where it is. The windows here
//! are read-only, so there is never anything to flush, and a flush is answered at once.

mod queue;
mod worker;

use vm_memory::GuestAddress;

use super::{ActivateError, Activation, DeviceType, VirtioDevice, Worker};

/// Entries of the one queue. The driver has a flush for each waiting writer in it, and a read-only
/// window has no writers.
const QUEUE_SIZES: [u16; 1] = [16];

/// Where the window lies in the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmemWindow {
    /// First address.
    pub start: GuestAddress,
    /// Length in bytes.
    pub size_bytes: u64,
}

/// The device while it is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pmem {
    window: PmemWindow,
}

impl Pmem {
    /// Makes a device that shows the guest `window`, which the machine has mapped read-only.
    #[must_use]
    pub fn new(window: PmemWindow) -> Self {
        Self { window }
    }
}

impl VirtioDevice for Pmem {
    fn device_type(&self) -> DeviceType {
        DeviceType::Pmem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `le64 start; le64 size` (VirtIO 1.2 section 5.19.4).
    fn config_space(&self) -> Vec<u8> {
        let start = self.window.start.0.to_le_bytes();
        let size = self.window.size_bytes.to_le_bytes();
        [start, size].concat()
    }

    fn activate(
        self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)> {
        match <[_; 1]>::try_from(activation.queues) {
            Ok([queue]) => Ok(Box::new(worker::PmemWorker::new(
                *self,
                activation.memory,
                queue,
                activation.interrupt,
            ))),
            Err(queues) => Err((
                self,
                ActivateError::WrongQueueCount {
                    got: queues.len(),
                    needed: QUEUE_SIZES.len(),
                },
            )),
        }
    }
}
