//! The worker of the file system device: waits for the guest's notifications and for the server's replies.

use std::os::fd::AsFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Fs;
use super::queue::Which;
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceMemory, SavedQueue, VirtioDevice, Worker};

/// What an event is about.
mod token {
    pub(super) const HIPRIO: u32 = 0;
    pub(super) const REQUESTS: u32 = 1;
    pub(super) const REPLIES: u32 = 2;
}

/// The device while it runs.
#[derive(Debug)]
pub(super) struct FsWorker {
    device: Fs,
    memory: DeviceMemory,
    hiprio: ActiveQueue,
    requests: ActiveQueue,
    interrupt: DeviceInterrupt,
}

impl FsWorker {
    pub(super) fn new(
        device: Fs,
        memory: DeviceMemory,
        queues: [ActiveQueue; 2],
        interrupt: DeviceInterrupt,
    ) -> Self {
        let [hiprio, requests] = queues;
        Self {
            device,
            memory,
            hiprio,
            requests,
            interrupt,
        }
    }

    /// A queue that stands because the server has all slots goes on with the next reply.
    fn run_queues(&mut self) {
        for (which, active) in [
            (Which::Hiprio, &mut self.hiprio),
            (Which::Requests, &mut self.requests),
        ] {
            let exchange = &mut self.device.exchange;
            let turn = exchange.take_requests(which, &mut active.queue, &self.memory);
            active.finish_turn(turn, &self.interrupt);
        }
    }

    fn take_replies(&mut self, ops: &mut EventOps) {
        let queues = [&mut self.hiprio.queue, &mut self.requests.queue];
        match self.device.exchange.take_replies(queues, &self.memory) {
            Ok([hiprio, requests]) => {
                self.hiprio.finish_turn(Ok(hiprio), &self.interrupt);
                self.requests.finish_turn(Ok(requests), &self.interrupt);
            }
            Err(error) => self.requests.finish_turn(Err(error), &self.interrupt),
        }
        if let Some(lost) = self.device.exchange.take_lost() {
            let _not_waited_for = ops.remove(Events::empty(&lost.as_fd()));
        }
    }
}

impl MutEventSubscriber for FsWorker {
    fn init(&mut self, ops: &mut EventOps) {
        let notified = [
            Events::with_data(&self.hiprio.notifier, token::HIPRIO, EventSet::IN),
            Events::with_data(&self.requests.notifier, token::REQUESTS, EventSet::IN),
        ];
        let replies = self
            .device
            .exchange
            .replies()
            .map(|replies| Events::with_data(&replies, token::REPLIES, EventSet::IN));
        for events in notified.into_iter().chain(replies) {
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, "the file system device cannot wait for its events");
            }
        }
        self.run_queues();
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Drained first: a notification that comes while the queue is processed is seen again.
        match events.data() {
            token::HIPRIO => drop(self.hiprio.notifier.read()),
            token::REQUESTS => drop(self.requests.notifier.read()),
            _ => self.take_replies(ops),
        }
        self.run_queues();
    }
}

impl Worker for FsWorker {
    fn stop(mut self: Box<Self>) -> Box<dyn VirtioDevice> {
        self.device.exchange.abandon();
        Box::new(self.device)
    }

    /// A machine with a server is not written down, so no request is under way.
    fn save(&self) -> Vec<SavedQueue> {
        [&self.hiprio, &self.requests]
            .map(|active| SavedQueue::from(&active.queue))
            .to_vec()
    }
}
