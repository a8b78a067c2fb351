//! The worker of the vsock device: waits for notifications of the guest, for dials and for the
//! streams of the connections, and runs the queues.
//!
//! Streams are waited for edge-triggered: what was seen is remembered in the connection until it
//! is used up, so a stream that the guest has no room for costs nothing. Room in a stream is waited
//! for only while something is buffered.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::Vsock;
use super::packet::EVENT_TRANSPORT_RESET;
use super::queue::{Connections, send_event};
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceMemory, SavedQueue, VirtioDevice, Worker};

/// What an event is about; host ports of connections start above.
mod token {
    pub(super) const RECEIVE: u32 = 0;
    pub(super) const TRANSMIT: u32 = 1;
    pub(super) const DIAL: u32 = 2;
}

/// The device while it runs.
#[derive(Debug)]
pub(super) struct VsockWorker {
    device: Vsock,
    memory: DeviceMemory,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    events: ActiveQueue,
    interrupt: DeviceInterrupt,
    connections: Connections,
}

impl VsockWorker {
    pub(super) fn new(
        device: Vsock,
        memory: DeviceMemory,
        queues: [ActiveQueue; 3],
        interrupt: DeviceInterrupt,
    ) -> Self {
        let [receive, transmit, events] = queues;
        let connections = Connections::new(device.cid, device.first_host_port);
        Self {
            device,
            memory,
            receive,
            transmit,
            events,
            interrupt,
            connections,
        }
    }

    fn take_dials(&mut self, ops: &mut EventOps) {
        let _drained = self.device.inbox.event.read();
        while let Ok(dial) = self.device.inbox.dials.try_recv() {
            let Some(connection) = self.connections.dial(dial.port, dial.stream) else {
                continue;
            };
            let host_port = connection.ports().host;
            let added = ops.add(Events::with_data(
                connection.stream(),
                host_port,
                EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED,
            ));
            if let Err(error) = added {
                tracing::debug!(%error, "a dialled stream cannot be waited for");
                self.connections.abandon(host_port);
            }
        }
    }

    /// Tells the guest that none of its connections is there any more (VirtIO 1.2 section 5.10.6.7).
    fn announce_reset(&mut self) {
        let turn = send_event(&mut self.events.queue, &self.memory, EVENT_TRANSPORT_RESET);
        self.events.finish_turn(turn, &self.interrupt);
    }

    /// Runs both queues and brings the loop's idea of the streams up to date.
    fn run_queues(&mut self, ops: &mut EventOps) {
        let mut transmit = self
            .connections
            .process_transmit(&mut self.transmit.queue, &self.memory);
        let receive = self
            .connections
            .process_receive(&mut self.receive.queue, &self.memory);
        if matches!(&transmit, Ok(turn) if turn.stalled) && self.connections.has_room_for_replies()
        {
            // The only failure is a counter at its limit: the notifier is readable already.
            let _already_notified = self.transmit.notifier.write(1);
        }
        if let (Ok(transmit), Ok(receive)) = (&mut transmit, &receive) {
            // One interrupt tells of both.
            transmit.interrupt &= !receive.interrupt;
        }
        self.transmit.finish_turn(transmit, &self.interrupt);
        self.receive.finish_turn(receive, &self.interrupt);
        self.update_waits(ops);
    }

    fn update_waits(&mut self, ops: &mut EventOps) {
        while let Some(connection) = self.connections.take_touched() {
            connection.waits_for_room = connection.has_buffered();
            let mut events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
            if connection.waits_for_room {
                events |= EventSet::OUT;
            }
            let host_port = connection.ports().host;
            let modified = ops.modify(Events::with_data(connection.stream(), host_port, events));
            if let Err(error) = modified {
                tracing::debug!(%error, "a stream cannot be waited for");
                self.connections.abandon(host_port);
            }
        }
        for stream in self.connections.take_over() {
            // A stream that could not be added is not known to the loop; that is no matter.
            let _ = ops.remove(Events::empty(&stream));
        }
    }
}

impl MutEventSubscriber for VsockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            (&self.receive.notifier, token::RECEIVE),
            (&self.transmit.notifier, token::TRANSMIT),
            (self.device.inbox.event.as_ref(), token::DIAL),
        ];
        for (source, token) in sources {
            if let Err(error) = ops.add(Events::with_data(source, token, EventSet::IN)) {
                tracing::error!(%error, "the vsock device cannot wait for its events");
            }
        }
        if self.device.lost_connections {
            self.announce_reset();
        }
        // What was dialled before the driver was there.
        self.take_dials(ops);
        self.run_queues(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        // Drained before the work: what comes meanwhile is seen again.
        match events.data() {
            token::RECEIVE => drop(self.receive.notifier.read()),
            token::TRANSMIT => drop(self.transmit.notifier.read()),
            token::DIAL => self.take_dials(ops),
            host_port => {
                let seen = events.event_set();
                let hung_up = seen.intersects(EventSet::HANG_UP | EventSet::ERROR);
                let input = seen.intersects(EventSet::IN | EventSet::READ_HANG_UP);
                let output = seen.contains(EventSet::OUT);
                self.connections
                    .stream_event(host_port, input, output, hung_up);
            }
        }
        self.run_queues(ops);
    }
}

impl Worker for VsockWorker {
    /// All connections end here; the host's ends see them closed.
    fn stop(mut self: Box<Self>) -> Box<dyn VirtioDevice> {
        // A driver that starts anew has no connections.
        self.device.lost_connections = false;
        Box::new(self.device)
    }

    fn save(&self) -> Vec<SavedQueue> {
        [&self.receive, &self.transmit, &self.events]
            .map(|active| SavedQueue::from(&active.queue))
            .to_vec()
    }
}
