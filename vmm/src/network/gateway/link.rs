//! The wire to the guest: a socket that carries one frame a message, and what all parts of the gateway need to use it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetProtocol, IpProtocol, IpRepr, UDP_HEADER_LEN, UdpPacket};

use super::addresses::{MTU, guest_like};
use super::frame::{
    self, BEFORE_IP, ETHERNET_BYTES, IPV4_BYTES, IPV6_BYTES, MOST_BYTES, VIRTIO_BYTES,
};
use super::statistics::{Dropped, Statistics};

/// What a packet to the guest starts with as its hop limit.
pub(super) const HOP_LIMIT: u8 = 64;

/// What is heard on the wire.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A frame of so many bytes.
    Frame(usize),
    /// Nothing for now.
    Nothing,
    /// The machine has ended.
    End,
}

/// The wire.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    guest_mac: [u8; 6],
    /// The frame that is put together.
    frame: Box<[u8]>,
    /// How much of it the socket did not take.
    held_bytes: usize,
    /// What was carried.
    pub(super) statistics: Statistics,
    poller: OwnedFd,
    /// The time of this turn of the loop.
    pub(super) now: Instant,
}

impl Link {
    pub(super) fn new(socket: OwnedFd, guest_mac: [u8; 6], poller: OwnedFd) -> Self {
        Self {
            socket,
            guest_mac,
            frame: vec![0; MOST_BYTES].into_boxed_slice(),
            held_bytes: 0,
            statistics: Statistics::default(),
            poller,
            now: Instant::ZERO,
        }
    }

    pub(super) fn poller(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }

    /// Has the loop tell of what happens to a socket, once for each time that it happens.
    pub(super) fn watch(&self, socket: impl AsFd, token: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        epoll::add(
            &self.poller,
            socket,
            epoll::EventData::new_u64(token),
            flags,
        )?;
        Ok(())
    }

    pub(super) fn watch_self(&self, token: u64) -> io::Result<()> {
        self.watch(&self.socket, token)
    }

    /// Takes the next frame off the wire.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Heard> {
        loop {
            return match rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::TRUNC) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => Ok(Heard::End),
                Ok((taken, whole)) if whole > taken => {
                    self.statistics.drop(Dropped::TooLong);
                    continue;
                }
                Ok((taken, _)) => {
                    let bytes = taken.saturating_sub(VIRTIO_BYTES);
                    count(&mut self.statistics.received_frames, 1);
                    count(&mut self.statistics.received_bytes, bytes);
                    Ok(Heard::Frame(taken))
                }
                Err(Errno::AGAIN) => Ok(Heard::Nothing),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Tells whether the guest has not taken what it got: nothing more can be sent until it does.
    pub(super) fn is_full(&self) -> bool {
        self.held_bytes > 0
    }

    /// Sends what was held back, and tells whether the wire is free.
    pub(super) fn flush(&mut self) -> bool {
        if self.is_full() {
            let bytes = std::mem::take(&mut self.held_bytes);
            self.send(bytes);
        }
        !self.is_full()
    }

    /// Puts an IP packet of so many bytes together and sends it.
    pub(super) fn send_ip<R>(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let end = BEFORE_IP.saturating_add(bytes);
        if self.is_full() || end > self.frame.len() {
            self.statistics.drop(match self.is_full() {
                true => Dropped::NotTaken,
                false => Dropped::TooLong,
            });
            return fill(&mut vec![0; bytes]);
        }
        let result = fill(self.frame.get_mut(BEFORE_IP..end).unwrap_or_default());
        frame::complete(
            self.frame.get_mut(..end).unwrap_or_default(),
            self.guest_mac,
        );
        self.send(end);
        result
    }

    /// Sends an answer to a question about an address.
    pub(super) fn send_arp(&mut self, bytes: usize, fill: impl FnOnce(&mut [u8])) {
        let end = BEFORE_IP.saturating_add(bytes);
        if self.is_full() || end > self.frame.len() {
            return self.statistics.drop(Dropped::NotTaken);
        }
        fill(self.frame.get_mut(BEFORE_IP..end).unwrap_or_default());
        let (virtio, rest) = self.frame.split_at_mut(VIRTIO_BYTES);
        virtio.fill(0);
        let header = rest.get_mut(..ETHERNET_BYTES).unwrap_or_default();
        frame::write_ethernet(header, self.guest_mac, EthernetProtocol::Arp);
        self.send(end);
    }

    /// Gives the place for a datagram's payload in the frame that is to be sent next.
    pub(super) fn datagram_room(&mut self, source: IpAddr) -> &mut [u8] {
        let start = match self.is_full() {
            // What stands there is still to be sent.
            true => self.frame.len(),
            false => BEFORE_IP + before_payload(source),
        };
        self.frame.get_mut(start..).unwrap_or_default()
    }

    /// Sends the datagram whose payload stands in [its place](Self::datagram_room).
    pub(super) fn send_datagram(&mut self, source: SocketAddr, guest_port: u16, bytes: usize) {
        let destination = guest_like(source.ip());
        let length = UDP_HEADER_LEN.saturating_add(bytes);
        let header = IpRepr::new(
            source.ip().into(),
            destination.into(),
            IpProtocol::Udp,
            length,
            HOP_LIMIT,
        );
        let Ok(udp_bytes) = u16::try_from(length) else {
            return self.statistics.drop(Dropped::TooLong);
        };
        self.send_ip(header.buffer_len(), |packet| {
            header.emit(&mut *packet, &frame::checksums());
            let at = header.header_len();
            let mut udp = UdpPacket::new_unchecked(packet.get_mut(at..).unwrap_or_default());
            udp.set_src_port(source.port());
            udp.set_dst_port(guest_port);
            udp.set_len(udp_bytes);
        });
    }

    /// Sends the first bytes of the frame, or holds it back.
    fn send(&mut self, bytes: usize) {
        let frame = self.frame.get(..bytes).unwrap_or_default();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = loop {
            match rustix::net::send(&self.socket, frame, flags) {
                Err(Errno::INTR) => {}
                sent => break sent,
            }
        };
        match sent {
            Ok(_) => {
                count(&mut self.statistics.sent_frames, 1);
                let bytes = bytes.saturating_sub(VIRTIO_BYTES);
                count(&mut self.statistics.sent_bytes, bytes);
            }
            Err(Errno::AGAIN) => self.held_bytes = bytes,
            // The end of the machine is heard, too; the host may also be short of memory.
            Err(_) => self.statistics.drop(Dropped::NotTaken),
        }
    }
}

fn count(counter: &mut u64, more: usize) {
    *counter = counter.saturating_add(u64::try_from(more).unwrap_or_default());
}

/// The headers before a datagram's payload.
fn before_payload(source: IpAddr) -> usize {
    UDP_HEADER_LEN
        + match source {
            IpAddr::V4(_) => IPV4_BYTES,
            IpAddr::V6(_) => IPV6_BYTES,
        }
}

/// The wire as the TCP stack sees it: one packet that has come in, and whatever is to go out.
#[derive(Debug)]
pub(super) struct Port<'a> {
    pub(super) incoming: Option<&'a [u8]>,
    pub(super) link: &'a mut Link,
}

/// A packet from the guest.
#[derive(Debug)]
pub(super) struct FromGuest<'a>(&'a [u8]);

/// Room for a packet to the guest.
#[derive(Debug)]
pub(super) struct ToGuest<'a>(&'a mut Link);

impl phy::RxToken for FromGuest<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl phy::TxToken for ToGuest<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, fill: F) -> R {
        self.0.send_ip(bytes, fill)
    }
}

impl phy::Device for Port<'_> {
    type RxToken<'b>
        = FromGuest<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = ToGuest<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(FromGuest<'_>, ToGuest<'_>)> {
        let packet = self.incoming.take()?;
        Some((FromGuest(packet), ToGuest(self.link)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToGuest<'_>> {
        (!self.link.is_full()).then_some(ToGuest(self.link))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        capabilities.checksum = frame::checksums();
        capabilities
    }
}
