//! The worker of the vsock device.

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::Vsock;
use crate::virtio::{ActiveQueue, DeviceInterrupt, GuestRam, VirtioDevice, Worker};

/// The device while it runs.
#[derive(Debug)]
pub(super) struct VsockWorker {
    device: Vsock,
}

impl VsockWorker {
    pub(super) fn new(
        device: Vsock,
        _memory: GuestRam,
        _queues: [ActiveQueue; 3],
        _interrupt: DeviceInterrupt,
    ) -> Self {
        Self { device }
    }
}

impl MutEventSubscriber for VsockWorker {
    fn init(&mut self, _ops: &mut EventOps) {}

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

impl Worker for VsockWorker {
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        Box::new(self.device)
    }
}
