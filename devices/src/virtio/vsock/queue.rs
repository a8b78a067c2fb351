//! The connections of a guest and the processing of its receive and transmit queues.
//!
//! Everything in bounds: at most [`MAX_CONNECTIONS`] connections, each with a bounded buffer; at
//! most [`MAX_RESETS`] replies that belong to no connection, and while those stand, nothing more
//! is taken from the transmit queue (VirtIO 1.2 section 5.10.6.1); at most [`PACKETS_A_TURN`]
//! packets each way before the event loop serves others. Connections that have something to say
//! take turns, a packet each.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::unix::net::UnixStream;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use super::GuestCid;
use super::connection::{Connection, Fate, MAX_PAYLOAD_BYTES, Produced};
use super::packet::{HOST_CID, Header, Ports, TYPE_STREAM, op, shutdown};
use crate::virtio::{DeviceMemory, MarkingSlice, QueueError, Turn, next_chain};

/// How many connections there may be at once.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// How many RST replies may wait for room in the receive queue.
const MAX_RESETS: usize = 256;
/// How many connections that the host has closed may wait for the guest to let go.
const MAX_CLOSING: usize = 256;
/// How many packets are moved in one direction before others get their turn.
const PACKETS_A_TURN: usize = 256;
/// Host ports start here; the lower ones look like those of well-known services.
pub(super) const FIRST_HOST_PORT: u32 = 1024;
/// Length of the header as it counts in the used ring.
const HEADER_BYTES: u32 = 44;
const _: () = assert!(PKT_HEADER_SIZE == 44, "the header has 44 bytes");

/// Sends an event to the guest, if it has left a buffer for one: four bytes, its number (VirtIO 1.2 section 5.10.6).
pub(super) fn send_event(
    queue: &mut Queue,
    memory: &DeviceMemory,
    event: u32,
) -> Result<Turn, QueueError> {
    let Some(chain) = next_chain(queue, memory)? else {
        return Ok(Turn::default());
    };
    let head = chain.head_index();
    let bytes = event.to_le_bytes();
    let written = chain
        .writer(memory)
        .map(|mut buffer| buffer.write(&bytes).unwrap_or_default())
        .ok()
        .and_then(|count| u32::try_from(count).ok())
        .unwrap_or_default();
    queue.add_used(memory, head, written)?;
    Ok(Turn {
        interrupt: queue.needs_notification(memory)?,
        ..Turn::default()
    })
}

/// The connections of one guest.
#[derive(Debug)]
pub(super) struct Connections {
    cid: GuestCid,
    /// By host port.
    table: HashMap<u32, Connection>,
    /// Host ports of connections that may have something to say.
    ready: VecDeque<u32>,
    /// Replies that belong to no connection.
    resets: VecDeque<Ports>,
    /// The host has closed, the guest was told and has not answered.
    closing: VecDeque<Ports>,
    /// Streams of connections that are over: the worker stops to wait for them and closes them.
    over: Vec<UnixStream>,
    /// Host ports of connections whose stream takes or does not take more than before.
    touched: Vec<u32>,
    next_host_port: u32,
}

impl Connections {
    /// The first connection gets `first_host_port`, the next ones those that follow.
    pub(super) fn new(cid: GuestCid, first_host_port: u32) -> Self {
        Self {
            cid,
            table: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            closing: VecDeque::new(),
            over: Vec::new(),
            touched: Vec::new(),
            next_host_port: first_host_port.max(FIRST_HOST_PORT),
        }
    }

    /// Makes a connection to `guest_port`; `None`, and the stream is closed, if there are too many.
    pub(super) fn dial(&mut self, guest_port: u32, stream: UnixStream) -> Option<&Connection> {
        if self.table.len() >= MAX_CONNECTIONS {
            tracing::debug!(guest_port, "a dial was refused: too many connections");
            return None;
        }
        let host = self.free_host_port();
        let ports = Ports {
            host,
            guest: guest_port,
        };
        self.table.insert(host, Connection::dialled(ports, stream));
        self.make_ready(host);
        self.table.get(&host)
    }

    /// The tables are far smaller than the range of ports, so the search ends.
    fn free_host_port(&mut self) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = match port.checked_add(1) {
                Some(next) if next != u32::MAX => next,
                _ => FIRST_HOST_PORT,
            };
            let is_closing = self.closing.iter().any(|ports| ports.host == port);
            if !self.table.contains_key(&port) && !is_closing {
                return port;
            }
        }
    }

    /// Drops a connection that cannot be waited for.
    pub(super) fn abandon(&mut self, host_port: u32) {
        if self.table.contains_key(&host_port) {
            self.settle(host_port, Fate::Reset);
        }
    }

    /// Takes what the event loop saw on a connection's stream.
    pub(super) fn stream_event(&mut self, host_port: u32, input: bool, output: bool, hup: bool) {
        if let Some(connection) = self.table.get_mut(&host_port) {
            let fate = connection.stream_event(input, output, hup);
            self.settle(host_port, fate);
        }
    }

    /// Returns the streams that are over since the last call.
    pub(super) fn take_over(&mut self) -> Vec<UnixStream> {
        std::mem::take(&mut self.over)
    }

    /// Returns the next connection whose stream has to be waited for differently.
    pub(super) fn take_touched(&mut self) -> Option<&mut Connection> {
        while let Some(port) = self.touched.pop() {
            if self.table.contains_key(&port) {
                return self.table.get_mut(&port);
            }
        }
        None
    }

    /// Takes packets of the guest from the transmit queue.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if the ring cannot be used.
    pub(super) fn process_transmit(
        &mut self,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Turn, QueueError> {
        let mut turn = Turn::default();
        let mut budget = PACKETS_A_TURN;
        let mut used = false;
        queue.disable_notification(memory)?;
        loop {
            if budget == 0 {
                turn.unfinished = true;
                break;
            }
            if !self.has_room_for_replies() {
                turn.stalled = true;
                break;
            }
            let Some(mut chain) = next_chain(queue, memory)? else {
                break;
            };
            budget -= 1;
            let head = chain.head_index();
            match VsockPacket::from_tx_virtq_chain(memory, &mut chain, MAX_PAYLOAD_BYTES) {
                Ok(packet) => self.receive(&packet),
                Err(error) => tracing::debug!(%error, "a vsock packet of the guest is malformed"),
            }
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        turn.interrupt = used && queue.needs_notification(memory)?;
        Ok(turn)
    }

    /// Whether a packet of the guest can be taken, which may need a reply.
    pub(super) fn has_room_for_replies(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Takes one packet of the guest; at most one reply is queued for it.
    fn receive(&mut self, packet: &VsockPacket<'_, MarkingSlice<'_>>) {
        if packet.src_cid() != self.cid.value() || packet.dst_cid() != HOST_CID {
            // A packet to or from somebody else: there is no way to answer, and none is due.
            return;
        }
        let ports = Ports {
            host: packet.dst_port(),
            guest: packet.src_port(),
        };
        if packet.type_() != TYPE_STREAM {
            return self.reset_unless(packet.op() == op::RST, ports);
        }
        let known = self
            .table
            .get_mut(&ports.host)
            .filter(|connection| connection.ports() == ports);
        if let Some(connection) = known {
            let fate = connection.receive(packet);
            self.settle(ports.host, fate);
        } else if let Some(index) = self.closing.iter().position(|closing| *closing == ports) {
            self.receive_closing(index, packet.op(), packet.flags());
        } else {
            self.reset_unless(packet.op() == op::RST, ports);
        }
    }

    /// A connection that the host has closed ends with the guest's RST, or ours to its SHUTDOWN;
    /// what the guest sent before it heard is ignored.
    fn receive_closing(&mut self, index: usize, packet_op: u16, flags: u32) {
        let is_reset = packet_op == op::RST;
        let is_shutdown = packet_op == op::SHUTDOWN && flags & shutdown::BOTH == shutdown::BOTH;
        if (is_reset || is_shutdown)
            && let Some(ports) = self.closing.remove(index)
        {
            self.reset_unless(is_reset, ports);
        }
    }

    /// An RST is never answered with an RST.
    fn reset_unless(&mut self, is_reset: bool, ports: Ports) {
        if !is_reset {
            self.resets.push_back(ports);
        }
    }

    fn settle(&mut self, host_port: u32, fate: Fate) {
        let Some(connection) = self.table.get(&host_port) else {
            return;
        };
        let ports = connection.ports();
        match fate {
            Fate::Lives => self.make_ready(host_port),
            Fate::Over => self.remove(host_port),
            Fate::Reset => {
                self.resets.push_back(ports);
                self.remove(host_port);
            }
            Fate::Released => {
                self.resets.push_back(ports);
                self.make_ready(host_port);
            }
        }
    }

    fn remove(&mut self, host_port: u32) {
        if let Some(connection) = self.table.remove(&host_port) {
            self.over.push(connection.into_stream());
        }
    }

    fn make_ready(&mut self, host_port: u32) {
        if let Some(connection) = self.table.get_mut(&host_port) {
            if connection.has_buffered() != connection.waits_for_room {
                self.touched.push(host_port);
            }
            if connection.wants_to_produce() && !connection.is_queued {
                connection.is_queued = true;
                self.ready.push_back(host_port);
            }
        }
    }

    /// Whether there may be something to put into the receive queue.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts packets into the guest's receive buffers.
    ///
    /// # Errors
    ///
    /// Returns [`QueueError`] if the ring cannot be used.
    pub(super) fn process_receive(
        &mut self,
        queue: &mut Queue,
        memory: &DeviceMemory,
    ) -> Result<Turn, QueueError> {
        let mut turn = Turn::default();
        let mut budget = PACKETS_A_TURN;
        let mut used = false;
        queue.disable_notification(memory)?;
        while self.wants_to_send() {
            if budget == 0 {
                turn.unfinished = true;
                break;
            }
            let Some(mut chain) = next_chain(queue, memory)? else {
                break;
            };
            budget -= 1;
            let head = chain.head_index();
            let written =
                match VsockPacket::from_rx_virtq_chain(memory, &mut chain, MAX_PAYLOAD_BYTES) {
                    Ok(mut packet) => match self.next_packet(&packet) {
                        Some(header) => {
                            let bytes = header.to_bytes(self.cid);
                            packet
                                .set_header_from_raw(&bytes)
                                .map_or(0, |()| HEADER_BYTES.saturating_add(header.length))
                        }
                        None => {
                            // Nobody had anything to say after all: the buffer stays available.
                            queue.go_to_previous_position();
                            break;
                        }
                    },
                    Err(error) => {
                        tracing::debug!(%error, "a vsock buffer of the guest is malformed");
                        0
                    }
                };
            queue.add_used(memory, head, written)?;
            used = true;
        }
        turn.interrupt = used && queue.needs_notification(memory)?;
        Ok(turn)
    }

    /// Lets replies, then the connections in turn, fill `packet`.
    fn next_packet(&mut self, packet: &VsockPacket<'_, MarkingSlice<'_>>) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(Header::reset(ports));
        }
        while let Some(host_port) = self.ready.pop_front() {
            let Some(connection) = self.table.get_mut(&host_port) else {
                continue;
            };
            connection.is_queued = false;
            match connection.produce(packet.data_slice()) {
                Produced::Nothing => {}
                Produced::Packet(header) => {
                    self.make_ready(host_port);
                    return Some(header);
                }
                Produced::Last(header) => {
                    self.remember_closing(header.ports);
                    self.remove(host_port);
                    return Some(header);
                }
            }
        }
        None
    }

    /// A guest that never lets go cannot make the list grow: the oldest is reset instead.
    fn remember_closing(&mut self, ports: Ports) {
        if self.closing.len() >= MAX_CLOSING
            && let Some(oldest) = self.closing.pop_front()
        {
            self.resets.push_back(oldest);
        }
        self.closing.push_back(ports);
    }

    /// Whether everything that a guest could make grow is as small as it must be.
    #[cfg(test)]
    pub(super) fn is_within_bounds(&self) -> bool {
        self.table.len() <= MAX_CONNECTIONS
            && self.ready.len() <= self.table.len() + MAX_CLOSING
            && self.resets.len() <= 2 * MAX_RESETS + MAX_CONNECTIONS
            && self.closing.len() <= MAX_CLOSING
            && self
                .table
                .values()
                .all(super::connection::Connection::is_within_bounds)
    }
}
