//! The worker of the vsock device: waits for notifications of the guest, for dials and for the
//! streams of the connections, and runs the queues.
//!
//! Streams are waited for edge-triggered: what was seen is remembered in the connection until it
//! is used up, so a stream that the guest has no room for costs nothing. Room in a stream is waited
//! for only while something is buffered.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Vsock;
use super::queue::Connections;
use crate::virtio::{
    ActivateError, ActiveQueue, DeviceInterrupt, GuestRam, Turn, VirtioDevice, Worker,
};

/// What an event is about; host ports of connections start above.
mod token {
    pub(super) const RECEIVE: u32 = 0;
    pub(super) const TRANSMIT: u32 = 1;
    pub(super) const DIAL: u32 = 2;
    pub(super) const UNFINISHED: u32 = 3;
}

/// The device while it runs.
#[derive(Debug)]
pub(super) struct VsockWorker {
    device: Vsock,
    memory: GuestRam,
    receive: ActiveQueue,
    transmit: ActiveQueue,
    /// The driver's buffers for events stay in there: no event is ever sent.
    _events: ActiveQueue,
    interrupt: DeviceInterrupt,
    connections: Connections,
    /// Brings the worker back after others had their turn.
    unfinished: EventFd,
}

impl VsockWorker {
    /// Makes the worker, or gives the device back if the host has no descriptor.
    pub(super) fn new(
        device: Vsock,
        memory: GuestRam,
        queues: [ActiveQueue; 3],
        interrupt: DeviceInterrupt,
    ) -> Result<Self, (Box<Vsock>, ActivateError)> {
        let unfinished = match EventFd::new(EFD_NONBLOCK) {
            Ok(event) => event,
            Err(error) => return Err((Box::new(device), ActivateError::Descriptor(error))),
        };
        let [receive, transmit, events] = queues;
        let connections = Connections::new(device.cid);
        Ok(Self {
            device,
            memory,
            receive,
            transmit,
            _events: events,
            interrupt,
            connections,
            unfinished,
        })
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

    /// Runs both queues and brings the loop's idea of the streams up to date.
    fn run_queues(&mut self, ops: &mut EventOps) {
        let transmit = self
            .connections
            .process_transmit(&mut self.transmit.queue, &self.memory);
        let receive = self
            .connections
            .process_receive(&mut self.receive.queue, &self.memory);
        let mut turn = Turn::default();
        for result in [transmit, receive] {
            match result {
                Ok(one) => {
                    turn.interrupt |= one.interrupt;
                    turn.unfinished |= one.unfinished;
                    turn.stalled |= one.stalled;
                }
                Err(error) => tracing::debug!(%error, "a vsock queue is broken"),
            }
        }
        if turn.interrupt {
            self.interrupt.signal_used_buffer();
        }
        if turn.unfinished || turn.stalled && self.connections.has_room_for_replies() {
            // The only failure is a counter at its limit: the event is pending already.
            let _already_pending = self.unfinished.write(1);
        }
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
            (&self.unfinished, token::UNFINISHED),
        ];
        for (source, token) in sources {
            if let Err(error) = ops.add(Events::with_data(source, token, EventSet::IN)) {
                tracing::error!(%error, "the vsock device cannot wait for its events");
            }
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
            token::UNFINISHED => drop(self.unfinished.read()),
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
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice> {
        Box::new(self.device)
    }
}
