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
    /// Which queues stand until the server lets go of a slot.
    stalled: [bool; 2],
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
            stalled: [false; 2],
        }
    }

    fn run_queue(&mut self, which: Which) {
        let [hiprio_stalled, requests_stalled] = &mut self.stalled;
        let (active, stalled) = match which {
            Which::Hiprio => (&mut self.hiprio, hiprio_stalled),
            Which::Requests => (&mut self.requests, requests_stalled),
        };
        let exchange = &mut self.device.exchange;
        let turn = exchange.take_requests(which, &mut active.queue, &self.memory);
        *stalled = turn.as_ref().is_ok_and(|turn| turn.stalled);
        active.finish_turn(turn, &self.interrupt);
    }

    /// Goes on with the queues for which there were no slots.
    fn run_stalled_queues(&mut self) {
        let [hiprio, requests] = self.stalled;
        if hiprio {
            self.run_queue(Which::Hiprio);
        }
        if requests {
            self.run_queue(Which::Requests);
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
        // Each notification is an event, so they need not be read.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let notified = [
            Events::with_data(&self.hiprio.notifier, token::HIPRIO, edge),
            Events::with_data(&self.requests.notifier, token::REQUESTS, edge),
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
        self.run_queue(Which::Hiprio);
        self.run_queue(Which::Requests);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::HIPRIO => self.run_queue(Which::Hiprio),
            token::REQUESTS => self.run_queue(Which::Requests),
            _ => {
                self.take_replies(ops);
                self.run_stalled_queues();
            }
        }
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
