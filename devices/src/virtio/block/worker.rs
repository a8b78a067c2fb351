//! The worker of the block device: waits for the guest's notification and runs the queue.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::requests::Requests;
use super::{Block, DiskThreads};
use crate::virtio::{InExit, SavedQueue, VirtioDevice, Worker};

/// Where notifications come in: open while a disk with threads runs.
#[derive(Debug, Default)]
pub(super) struct Door(Mutex<Option<(Arc<Requests>, DiskThreads)>>);

impl Door {
    fn open(&self, requests: &Arc<Requests>, threads: &DiskThreads) {
        *self.inside() = Some((Arc::clone(requests), threads.clone()));
    }

    fn close(&self) {
        *self.inside() = None;
    }

    /// Nothing panics while it holds the lock.
    fn inside(&self) -> MutexGuard<'_, Option<(Arc<Requests>, DiskThreads)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InExit for Door {
    /// What is read from the host's page cache is there when the guest goes on.
    fn notified(&self, _queue: u32) -> bool {
        // Held meanwhile, so that nobody is inside when it is closed.
        match &*self.inside() {
            Some((requests, threads)) if requests.is_looked_for() => {
                requests.hand_out(threads);
                true
            }
            _ => false,
        }
    }
}

/// The device while it runs.
#[derive(Debug)]
pub(super) struct BlockWorker {
    device: Block,
    requests: Arc<Requests>,
}

impl BlockWorker {
    pub(super) fn new(device: Block, requests: Requests) -> Self {
        let requests = Arc::new(requests);
        if let Some(threads) = &device.threads {
            device.door.open(&requests, threads);
        }
        Self { device, requests }
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
        self.device.door.close();
        self.requests.when_idle(|_| ());
        Box::new(self.device)
    }

    /// What has been taken from the queue is answered before.
    fn save(&self) -> Vec<SavedQueue> {
        vec![self.requests.when_idle(|queue| SavedQueue::from(queue))]
    }
}
