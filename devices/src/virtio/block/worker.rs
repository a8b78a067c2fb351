//! The worker of the block device: waits for the guest's notification and runs the queue.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{Block, queue};
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceMemory, SavedQueue, VirtioDevice, Worker};

/// The device while it runs.
#[derive(Debug)]
pub(super) struct BlockWorker {
    device: Block,
    memory: DeviceMemory,
    requests: ActiveQueue,
    interrupt: DeviceInterrupt,
}

impl BlockWorker {
    pub(super) fn new(
        device: Block,
        memory: DeviceMemory,
        requests: ActiveQueue,
        interrupt: DeviceInterrupt,
    ) -> Self {
        Self {
            device,
            memory,
            requests,
            interrupt,
        }
    }

    fn run_queue(&mut self) {
        let turn = queue::process(&self.device.disk, &mut self.requests.queue, &self.memory);
        self.requests.finish_turn(turn, &self.interrupt);
    }
}

impl MutEventSubscriber for BlockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        let notified = Events::new(&self.requests.notifier, EventSet::IN);
        if let Err(error) = ops.add(notified) {
            tracing::error!(%error, "the block device cannot wait for its queue");
        }
        self.run_queue();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Drained first: a notification that comes while the queue is processed is seen again.
        let _drained = self.requests.notifier.read();
        self.run_queue();
    }
}

impl Worker for BlockWorker {
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        Box::new(self.device)
    }

    /// A request is answered in the turn that takes it, so none is ever under way.
    fn save(&self) -> Vec<SavedQueue> {
        vec![SavedQueue::from(&self.requests.queue)]
    }
}
