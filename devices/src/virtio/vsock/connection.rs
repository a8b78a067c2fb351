//! One connection: a stream of the host, a port of the guest, and the credit between them.
//!
//! ```text
//!  dialled ─► Requested ──RESPONSE──► Established ──RST, or SHUTDOWN of both──► Draining ─► gone
//!                 │                        │                 (what the guest sent is delivered)
//!                RST                 host has closed
//!                 ▼                        ▼
//!               gone                SHUTDOWN sent ─► gone (the table remembers the ports)
//! ```
//!
//! Flow control (VirtIO 1.2 section 5.10.6.3) runs both ways. Towards the guest, nothing is read
//! from the stream that the guest has no room for. Towards the host, what the stream does not take
//! is kept here, at most [`BUFFER_BYTES`]: the guest learns of freed room only when the stream has
//! taken the bytes, so a slow reader stops the guest and not the device.

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use crate::virtio::{DeviceSlice, MarkingSlice};
use rustix::net::SendFlags;
use virtio_vsock::packet::VsockPacket;

use super::packet::{Header, Ports, op, shutdown};
use crate::guest_io;

/// Room for what the guest sends on one connection and the host has not taken: `buf_alloc`.
///
/// Linux offers the same (`VIRTIO_VSOCK_DEFAULT_BUF_SIZE` in older kernels,
/// `VSOCK_DEFAULT_BUFFER_SIZE` in `net/vmw_vsock/af_vsock.c`).
pub(super) const BUFFER_BYTES: u32 = 256 * 1024;

/// How many freed bytes are worth a packet of their own that tells the guest so. The guest never
/// waits for less, since it still sees half of the buffer as free; and each packet costs it an
/// interrupt.
const CREDIT_UPDATE_BYTES: u32 = BUFFER_BYTES / 2;

/// Longest payload in one packet to the guest (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE` in Linux'
/// `include/linux/virtio_vsock.h`); the guest's buffers are usually smaller.
pub(super) const MAX_PAYLOAD_BYTES: u32 = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest was asked (or is to be asked) whether it takes the connection.
    Requested { sent: bool },
    /// Data flows.
    Established,
    /// The guest is through with the connection; the host still takes what came before.
    Draining,
}

/// What becomes of a connection after a packet or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Lives,
    /// It is over, and the guest knows.
    Over,
    /// It is over, and the guest is to be told with an RST.
    Reset,
    /// It goes on without the guest, which is to be told with an RST that its end is closed.
    Released,
}

/// What a connection put into a receive buffer of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Produced {
    /// Nothing: there is nothing to say now.
    Nothing,
    /// A packet with this header; its payload is in place.
    Packet(Header),
    /// A packet that ends the connection: the host has closed and everything was said.
    Last(Header),
}

/// A connection and its host stream.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    stream: UnixStream,
    phase: Phase,

    /// The stream may have bytes (or its end) for us.
    readable: bool,
    /// The stream has said that no more comes.
    host_done_sending: bool,
    /// The stream does not take any more.
    host_done_receiving: bool,
    /// The stream is closed at its other end, both ways.
    host_hung_up: bool,

    /// SHUTDOWN flags that the guest sent.
    guest_shutdown: u32,
    /// SHUTDOWN flags that were sent to the guest.
    sent_shutdown: u32,

    /// Bytes of the guest that the stream did not take yet.
    buffer: VecDeque<u8>,
    /// Free-running count of payload bytes that the stream took (or will never take).
    fwd_cnt: Wrapping<u32>,
    /// The count that the guest was told last.
    told_fwd_cnt: Wrapping<u32>,
    /// The guest asked for our counts.
    credit_wanted: bool,

    /// What the guest says of its own receive buffer.
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    /// Free-running count of payload bytes sent to the guest.
    tx_cnt: Wrapping<u32>,
    /// The guest was asked for its counts since it last had room; it tells when it has.
    credit_asked: bool,

    /// What the event loop waits for besides input; kept by the worker.
    pub(super) waits_for_room: bool,
    /// The connection stands in the table's ready list.
    pub(super) is_queued: bool,
}

impl Connection {
    /// Makes a connection that is to be requested of the guest.
    pub(super) fn dialled(ports: Ports, stream: UnixStream) -> Self {
        Self {
            ports,
            stream,
            phase: Phase::Requested { sent: false },
            readable: true,
            host_done_sending: false,
            host_done_receiving: false,
            host_hung_up: false,
            guest_shutdown: 0,
            sent_shutdown: 0,
            buffer: VecDeque::new(),
            fwd_cnt: Wrapping(0),
            told_fwd_cnt: Wrapping(0),
            credit_wanted: false,
            peer_buf_alloc: 0,
            peer_fwd_cnt: Wrapping(0),
            tx_cnt: Wrapping(0),
            credit_asked: false,
            waits_for_room: false,
            is_queued: false,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// The stream has bytes that it did not take; the worker waits for room then.
    pub(super) fn has_buffered(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Takes a packet of the guest.
    pub(super) fn receive(&mut self, packet: &VsockPacket<'_, MarkingSlice<'_>>) -> Fate {
        if self.phase == Phase::Draining {
            // The guest was told that its end is closed, and may have sent before it heard.
            return Fate::Lives;
        }
        self.peer_buf_alloc = packet.buf_alloc();
        self.peer_fwd_cnt = Wrapping(packet.fwd_cnt());
        self.credit_asked &= self.peer_free() == 0;
        match (packet.op(), self.phase) {
            (op::RST, Phase::Requested { .. }) => Fate::Over,
            (op::RST, _) => self.release(Fate::Lives),
            (op::RESPONSE, Phase::Requested { sent: true }) => {
                self.phase = Phase::Established;
                Fate::Lives
            }
            (op::RW, Phase::Established) => self.receive_payload(packet),
            (op::SHUTDOWN, Phase::Established) => self.receive_shutdown(packet.flags()),
            (op::CREDIT_UPDATE, Phase::Established) => Fate::Lives,
            (op::CREDIT_REQUEST, Phase::Established) => {
                self.credit_wanted = true;
                Fate::Lives
            }
            _ => Fate::Reset,
        }
    }

    fn receive_payload(&mut self, packet: &VsockPacket<'_, MarkingSlice<'_>>) -> Fate {
        let Some(payload) = packet.data_slice() else {
            return Fate::Lives;
        };
        let room = usize::try_from(BUFFER_BYTES)
            .unwrap_or(usize::MAX)
            .saturating_sub(self.buffer.len());
        // The guest may see less room than there is, never more.
        if payload.len() > room || self.guest_shutdown & shutdown::SEND != 0 {
            return Fate::Reset;
        }
        let taken = if self.buffer.is_empty() {
            self.forward(payload)
        } else {
            0
        };
        if let Ok(rest) = payload.offset(taken)
            && !rest.is_empty()
        {
            let mut bytes = vec![0; rest.len()];
            rest.copy_to(&mut bytes);
            self.buffer.extend(bytes);
        }
        Fate::Lives
    }

    /// Writes guest memory straight to the stream; returns how much of it is dealt with.
    fn forward(&mut self, payload: &DeviceSlice<'_>) -> usize {
        let mut taken = 0;
        while !self.host_done_receiving && taken < payload.len() {
            let Ok(rest) = payload.offset(taken) else {
                break;
            };
            match guest_io::send(&self.stream, &rest) {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break,
                    _ => self.host_done_receiving = true,
                },
            }
        }
        if self.host_done_receiving {
            // Nobody will ever take it.
            taken = payload.len();
        }
        self.count_forwarded(taken);
        taken
    }

    /// Writes what is buffered to the stream, as far as it takes it.
    fn flush(&mut self) {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        while !self.host_done_receiving && !self.buffer.is_empty() {
            let (first, _) = self.buffer.as_slices();
            match rustix::net::send(&self.stream, first, flags) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.count_forwarded(count);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => self.host_done_receiving = true,
            }
        }
        let lost = self.buffer.len();
        self.count_forwarded(lost);
        // The room is given back: an idle connection holds no buffer.
        self.buffer = VecDeque::new();
        self.finish_writing();
    }

    /// Tells the stream that no more comes, once all that the guest sent is through.
    fn finish_writing(&self) {
        let guest_is_done =
            self.guest_shutdown & shutdown::SEND != 0 || self.phase == Phase::Draining;
        if guest_is_done && self.buffer.is_empty() {
            // Fails only if the other end is closed already.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn count_forwarded(&mut self, bytes: usize) {
        // At most `BUFFER_BYTES` are ever counted at once.
        self.fwd_cnt += Wrapping(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    fn receive_shutdown(&mut self, flags: u32) -> Fate {
        self.guest_shutdown |= flags & shutdown::BOTH;
        if self.guest_shutdown & shutdown::RECEIVE != 0 {
            // Fails only if the other end is closed already.
            let _ = self.stream.shutdown(Shutdown::Read);
        }
        if self.guest_shutdown == shutdown::BOTH {
            return self.release(Fate::Released);
        }
        self.finish_writing();
        Fate::Lives
    }

    /// Goes on without the guest for as long as the host has something to take.
    fn release(&mut self, if_draining: Fate) -> Fate {
        self.phase = Phase::Draining;
        self.finish_writing();
        match (self.is_drained(), if_draining) {
            (false, fate) => fate,
            (true, Fate::Released) => Fate::Reset,
            (true, _) => Fate::Over,
        }
    }

    fn is_drained(&self) -> bool {
        self.buffer.is_empty() || self.host_done_receiving
    }

    /// Takes what the event loop saw on the stream.
    pub(super) fn stream_event(&mut self, input: bool, output: bool, hung_up: bool) -> Fate {
        self.readable |= input || hung_up;
        self.host_hung_up |= hung_up;
        if output || hung_up {
            self.flush();
        }
        match self.phase {
            Phase::Draining if hung_up || self.is_drained() => Fate::Over,
            Phase::Requested { sent: false } if hung_up => Fate::Over,
            Phase::Requested { sent: true } if hung_up => Fate::Reset,
            _ => Fate::Lives,
        }
    }

    /// Free room in the guest's receive buffer (VirtIO 1.2 section 5.10.6.3); what the guest says
    /// about it may be anything.
    fn peer_free(&self) -> u32 {
        let in_flight = (self.tx_cnt - self.peer_fwd_cnt).0;
        self.peer_buf_alloc.saturating_sub(in_flight)
    }

    fn may_read(&self) -> bool {
        self.readable && !self.host_done_sending && self.guest_shutdown & shutdown::RECEIVE == 0
    }

    /// The SHUTDOWN flags that the guest should know by now and does not.
    fn unsaid_shutdown(&self) -> u32 {
        let nothing_left = self.host_done_sending || self.guest_shutdown & shutdown::RECEIVE != 0;
        let closed = self.host_hung_up && nothing_left;
        let mut flags = 0;
        if self.host_done_sending || closed {
            flags |= shutdown::SEND;
        }
        if self.host_done_receiving || closed {
            flags |= shutdown::RECEIVE;
        }
        flags & !self.sent_shutdown
    }

    fn owes_credit(&self) -> bool {
        self.credit_wanted || (self.fwd_cnt - self.told_fwd_cnt).0 >= CREDIT_UPDATE_BYTES
    }

    fn is_starved(&self) -> bool {
        self.may_read() && self.peer_free() == 0 && !self.credit_asked
    }

    /// Whether [`produce`](Self::produce) might have something to say.
    pub(super) fn wants_to_produce(&self) -> bool {
        match self.phase {
            Phase::Requested { sent } => !sent,
            Phase::Established => {
                self.may_read() && self.peer_free() > 0
                    || self.unsaid_shutdown() != 0
                    || self.owes_credit()
                    || self.is_starved()
            }
            Phase::Draining => false,
        }
    }

    /// Says the next thing to the guest, reading the stream straight into `room` if that is data.
    pub(super) fn produce(&mut self, room: Option<&DeviceSlice<'_>>) -> Produced {
        match self.phase {
            Phase::Requested { sent: false } => {
                self.phase = Phase::Requested { sent: true };
                Produced::Packet(self.header(op::REQUEST, 0, 0))
            }
            Phase::Established => self.produce_established(room),
            Phase::Requested { sent: true } | Phase::Draining => Produced::Nothing,
        }
    }

    fn produce_established(&mut self, room: Option<&DeviceSlice<'_>>) -> Produced {
        if let Some(length) = room.and_then(|room| self.read_into(room)) {
            self.tx_cnt += Wrapping(length);
            return Produced::Packet(self.header(op::RW, 0, length));
        }
        let unsaid = self.unsaid_shutdown();
        if unsaid != 0 {
            self.sent_shutdown |= unsaid;
            let header = self.header(op::SHUTDOWN, self.sent_shutdown, 0);
            return if self.sent_shutdown == shutdown::BOTH {
                Produced::Last(header)
            } else {
                Produced::Packet(header)
            };
        }
        if self.owes_credit() {
            return Produced::Packet(self.header(op::CREDIT_UPDATE, 0, 0));
        }
        if self.is_starved() {
            self.credit_asked = true;
            return Produced::Packet(self.header(op::CREDIT_REQUEST, 0, 0));
        }
        Produced::Nothing
    }

    /// Reads from the stream as much as there is, the guest has credit for and fits; `None` if
    /// that is nothing.
    fn read_into(&mut self, room: &DeviceSlice<'_>) -> Option<u32> {
        let limit = self.peer_free().min(MAX_PAYLOAD_BYTES);
        let limit = room.len().min(usize::try_from(limit).unwrap_or(0));
        let room = room
            .subslice(0, limit)
            .ok()
            .filter(|room| !room.is_empty())?;
        while self.may_read() {
            match guest_io::receive(&self.stream, &room) {
                Ok(0) => self.host_done_sending = true,
                Ok(count) => return u32::try_from(count).ok(),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => self.readable = false,
                    _ => {
                        self.host_done_sending = true;
                        self.host_done_receiving = true;
                    }
                },
            }
        }
        None
    }

    /// Makes a header; every one carries our counts (VirtIO 1.2 section 5.10.6.3.2).
    fn header(&mut self, op: u16, flags: u32, length: u32) -> Header {
        self.told_fwd_cnt = self.fwd_cnt;
        self.credit_wanted = false;
        Header {
            ports: self.ports,
            op,
            flags,
            length,
            buf_alloc: BUFFER_BYTES,
            fwd_cnt: self.fwd_cnt.0,
        }
    }

    #[cfg(test)]
    pub(super) fn is_within_bounds(&self) -> bool {
        u32::try_from(self.buffer.len()).is_ok_and(|length| length <= BUFFER_BYTES)
    }
}
