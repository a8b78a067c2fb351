//! The worker of the block device: waits for the guest's notification and runs the queue.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Block;
use super::requests::Requests;
use crate::virtio::{SavedQueue, VirtioDevice, Worker};

/// The device while it runs.
#[derive(Debug)]
pub(super) struct BlockWorker {
    device: Block,
    requests: Arc<Requests>,
}

impl BlockWorker {
    pub(super) fn new(device: Block, requests: Requests) -> Self {
        Self {
            device,
            requests: Arc::new(requests),
        }
    }

    fn run_queue(&mut self) {
        match &self.device.threads {
            None => self.requests.carry_out(),
            Some(threads) => self.requests.hand_out(threads),
        }
    }
}

impl MutEventSubscriber for BlockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        let notified = Events::new(self.requests.notifier(), EventSet::IN);
        if let Err(error) = ops.add(notified) {
            tracing::error!(%error, "the block device cannot wait for its queue");
        }
        self.run_queue();
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        // Drained first: a notification that comes while the queue is processed is seen again.
        let _drained = self.requests.notifier().read();
        self.run_queue();
    }
}

impl Worker for BlockWorker {
    /// The memory is the driver's again, so nothing may be under way.
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        self.requests.when_idle(|_| ());
        Box::new(self.device)
    }

    /// What has been taken from the queue is answered before.
    fn save(&self) -> Vec<SavedQueue> {
        vec![self.requests.when_idle(|queue| SavedQueue::from(queue))]
    }
}
