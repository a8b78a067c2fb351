//! The worker of the file system device: waits for the guest's notifications and for the server's replies.

use std::os::fd::AsFd;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Fs;
use super::queue::Which;
use super::running::{Running, State};
use crate::virtio::{SavedQueue, VirtioDevice, Worker};

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
}

impl FsWorker {
    pub(super) fn new(device: Fs, running: Running) -> Self {
        device.shared.state().running = Some(running);
        Self { device }
    }

    fn take_replies(&mut self, ops: &mut EventOps) {
        let mut state = self.device.shared.state();
        state.take_replies();
        if let Some(lost) = state.exchange.take_lost() {
            let _not_waited_for = ops.remove(Events::empty(&lost.as_fd()));
        }
        state.run_stalled_queues();
    }
}

impl MutEventSubscriber for FsWorker {
    fn init(&mut self, ops: &mut EventOps) {
        // Each notification is an event, so they need not be read.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let mut state = self.device.shared.state();
        let State {
            exchange, running, ..
        } = &*state;
        let notified = running.iter().flat_map(|running| {
            [
                Events::with_data(&running.hiprio.notifier, token::HIPRIO, edge),
                Events::with_data(&running.requests.notifier, token::REQUESTS, edge),
            ]
        });
        let replies = exchange
            .replies()
            .map(|replies| Events::with_data(&replies, token::REPLIES, EventSet::IN));
        for events in notified.chain(replies) {
            if let Err(error) = ops.add(events) {
                tracing::error!(%error, "the file system device cannot wait for its events");
            }
        }
        state.run_queue(Which::Hiprio);
        state.run_queue(Which::Requests);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            token::HIPRIO => self.device.shared.state().run_queue(Which::Hiprio),
            token::REQUESTS => self.device.shared.state().run_queue(Which::Requests),
            _ => self.take_replies(ops),
        }
    }
}

impl Worker for FsWorker {
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        let mut state = self.device.shared.state();
        state.running = None;
        state.exchange.abandon();
        drop(state);
        Box::new(self.device)
    }

    /// A machine with a server is not written down, so no request is under way.
    fn save(&self) -> Vec<SavedQueue> {
        let state = self.device.shared.state();
        let queues = state
            .running
            .iter()
            .flat_map(|running| [&running.hiprio, &running.requests]);
        queues
            .map(|active| SavedQueue::from(&active.queue))
            .collect()
    }
}
