//! The worker of the network device: waits for the guest's notifications and for the link, and runs the queues.
//!
//! The link is waited for as long as it has something to give that the guest has room for, or has no room for what the guest has.

use std::os::fd::{AsFd, AsRawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Net;
use super::header::Allowed;
use super::link::Agreed;
use super::queue::{self, Receiver};
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceMemory, SavedQueue, VirtioDevice, Worker};

/// What an event is about.
mod token {
    pub(super) const RECEIVE: u32 = 0;
    pub(super) const TRANSMIT: u32 = 1;
    pub(super) const LINK: u32 = 2;
    pub(super) const RECEIVE_PACER: u32 = 3;
    pub(super) const TRANSMIT_PACER: u32 = 4;
}

/// The device while it runs.
#[derive(Debug)]
pub(super) struct NetWorker {
    device: Net,
    memory: DeviceMemory,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    interrupt: DeviceInterrupt,
    receiver: Receiver,
    from_guest: Allowed,
    /// What the link is waited for.
    awaited: EventSet,
}

impl NetWorker {
    pub(super) fn new(
        device: Net,
        memory: DeviceMemory,
        queues: [ActiveQueue; 2],
        interrupt: DeviceInterrupt,
        features: u64,
    ) -> Self {
        let [receive, transmit] = queues;
        Self {
            device,
            memory,
            receive,
            transmit,
            interrupt,
            receiver: Receiver::new(features),
            from_guest: Allowed::from_guest(features),
            awaited: EventSet::IN,
        }
    }

    fn run_queues(&mut self, ops: &mut EventOps) {
        let port = &mut self.device.port;
        let mut transmit = queue::transmit(
            port,
            &mut self.transmit.queue,
            &self.memory,
            self.from_guest,
        );
        let receive = self
            .receiver
            .receive(port, &mut self.receive.queue, &self.memory);
        let mut awaited = EventSet::IN;
        if let (Ok(transmit), Ok(receive)) = (&mut transmit, &receive) {
            awaited.set(EventSet::IN, !receive.stalled);
            awaited.set(EventSet::OUT, transmit.stalled);
            // One interrupt tells of both.
            transmit.interrupt &= !receive.interrupt;
        } else {
            // A ring that cannot be used takes nothing until it is reset.
            awaited = EventSet::empty();
        }
        self.transmit.finish_turn(transmit, &self.interrupt);
        self.receive.finish_turn(receive, &self.interrupt);
        self.wait_for_link(awaited, ops);
    }

    fn wait_for_link(&mut self, awaited: EventSet, ops: &mut EventOps) {
        if let Some(lost) = self.device.port.lost.take() {
            let _not_waited_for = ops.remove(Events::empty(&lost.descriptor()));
        }
        if awaited == self.awaited {
            return;
        }
        self.awaited = awaited;
        if let Some(link) = &self.device.port.link {
            let events = Events::with_data(&link.descriptor(), token::LINK, awaited);
            if let Err(error) = ops.modify(events) {
                tracing::error!(%error, "the network device cannot wait for its link");
            }
        }
    }

    /// Whether the link has ended and will not say so in the read that is due: there is none.
    fn has_ended(&self, seen: EventSet) -> bool {
        seen.intersects(EventSet::HANG_UP | EventSet::ERROR) && !self.awaited.contains(EventSet::IN)
    }
}

impl MutEventSubscriber for NetWorker {
    fn init(&mut self, ops: &mut EventOps) {
        let port = &self.device.port;
        if let Some(link) = &port.link
            && let Err(error) = link.negotiated(Agreed(self.receiver.allowed()))
        {
            tracing::warn!(%error, "the link of the network device does not do what was agreed");
        }
        let link = port
            .link
            .as_ref()
            .map(|link| link.descriptor().as_fd().as_raw_fd());
        let sources = [
            (Some(self.receive.notifier.as_raw_fd()), token::RECEIVE),
            (Some(self.transmit.notifier.as_raw_fd()), token::TRANSMIT),
            (link, token::LINK),
            (
                port.receive_pacer.as_ref().map(AsRawFd::as_raw_fd),
                token::RECEIVE_PACER,
            ),
            (
                port.transmit_pacer.as_ref().map(AsRawFd::as_raw_fd),
                token::TRANSMIT_PACER,
            ),
        ];
        for (source, token) in sources {
            let Some(source) = source else { continue };
            if let Err(error) = ops.add(Events::with_data_raw(source, token, EventSet::IN)) {
                tracing::error!(%error, "the network device cannot wait for its events");
            }
        }
        self.run_queues(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let port = &mut self.device.port;
        // Drained before the work: what comes meanwhile is seen again.
        match events.data() {
            token::RECEIVE => drop(self.receive.notifier.read()),
            token::TRANSMIT => drop(self.transmit.notifier.read()),
            token::RECEIVE_PACER => port.receive_pacer.iter().for_each(super::Pacer::hear),
            token::TRANSMIT_PACER => port.transmit_pacer.iter().for_each(super::Pacer::hear),
            _ if self.has_ended(events.event_set()) => self.device.port.lose(),
            _ => {}
        }
        self.run_queues(ops);
    }
}

impl Worker for NetWorker {
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        Box::new(self.device)
    }

    fn save(&self) -> Vec<SavedQueue> {
        vec![
            self.receiver.save(&self.receive.queue),
            SavedQueue::from(&self.transmit.queue),
        ]
    }
}
