//! Flows of datagrams: UDP and ping. Each has a socket of the host's that is connected to where the guest sends, and is forgotten when
//! nothing has gone by for a while.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{UDP_HEADER_LEN, UdpPacket};

use super::addresses::gateway_like;
use super::frame::Packet;
use super::icmp::{self, Echo, Unreachable};
use super::link::Link;
use super::statistics::Dropped;

/// How many flows there may be; of those without an answer, or else of all, the one that was used longest ago makes room.
pub(super) const MOST_FLOWS: usize = 1024;
/// How long a flow is kept that nobody has answered (as `nf_conntrack_udp_timeout` in Linux).
const UNANSWERED: Duration = Duration::from_secs(30);
/// How long one is kept that goes both ways (as `nf_conntrack_udp_timeout_stream`).
const ANSWERED: Duration = Duration::from_secs(120);
/// How often flows are looked through, while there are any.
const SWEEP: Duration = Duration::from_secs(10);
/// How many datagrams a socket gives before another one has its turn.
const TURNS: usize = 32;
/// The first of the ports from which the gateway speaks to the guest (RFC 6335, section 6).
const FIRST_DYNAMIC_PORT: u16 = 49_152;
/// Type, code, checksum, identifier and sequence number (RFC 792; RFC 4443, section 4.1).
const ECHO_BYTES: usize = 8;

/// A flow as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Ends {
    Udp { guest_port: u16, remote: SocketAddr },
    Ping { identifier: u16, remote: IpAddr },
}

/// One flow.
#[derive(Debug)]
struct Flow {
    ends: Ends,
    way: Way,
    used: Instant,
    is_answered: bool,
    is_ready: bool,
}

/// Where a flow's datagrams go.
#[derive(Debug)]
enum Way {
    /// Through a socket of its own.
    Own(OwnedFd),
    /// Through a published port, to who has spoken to it.
    Published { index: usize, peer: SocketAddr },
}

/// All flows.
#[derive(Debug, Default)]
pub(super) struct Flows {
    open: HashMap<u64, Flow>,
    by_ends: HashMap<Ends, u64>,
    /// Who has spoken to which published port.
    by_peer: HashMap<(usize, SocketAddr), u64>,
    next: u64,
    ready: VecDeque<u64>,
    sweep: Option<Instant>,
    next_port: u16,
}

impl Flows {
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.sweep
    }

    /// Carries a datagram of the guest's. `target` says where it goes, or why not.
    pub(super) fn receive(
        &mut self,
        link: &mut Link,
        packet: &Packet<'_>,
        token: u64,
        published: &[(u16, OwnedFd)],
        target: impl FnOnce(SocketAddr) -> Result<SocketAddr, Unreachable>,
    ) {
        let datagram = match UdpPacket::new_checked(packet.payload) {
            Ok(datagram) if datagram.src_port() != 0 && datagram.dst_port() != 0 => datagram,
            _ => return link.statistics.drop(Dropped::Malformed),
        };
        let length = usize::from(datagram.len());
        let remote = SocketAddr::new(packet.destination, datagram.dst_port());
        let ends = Ends::Udp {
            guest_port: datagram.src_port(),
            remote,
        };
        let payload = packet
            .payload
            .get(UDP_HEADER_LEN..length)
            .unwrap_or_default();
        let id = match self.by_ends.get(&ends) {
            Some(id) => *id,
            None => {
                let opened = target(remote).and_then(|to| {
                    let socket = open(to, SocketType::DGRAM, None);
                    let socket = socket.map_err(|error| {
                        link.statistics.drop(Dropped::Full);
                        Unreachable::of(error).unwrap_or(Unreachable::Network)
                    })?;
                    self.watched(link, ends, socket, token)
                });
                match opened {
                    Ok(id) => id,
                    Err(why) => {
                        link.statistics.drop(Dropped::Refused);
                        return icmp::complain(link, packet.bytes, why);
                    }
                }
            }
        };
        let Some(flow) = self.open.get_mut(&id) else {
            return;
        };
        flow.used = link.now;
        flow.is_answered |= matches!(flow.way, Way::Published { .. });
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let send = || match &flow.way {
            Way::Own(socket) => rustix::net::send(socket, payload, flags),
            Way::Published { index, peer } => match published.get(*index) {
                Some((_, socket)) => rustix::net::sendto(socket, payload, flags, peer),
                None => Err(Errno::NOTCONN),
            },
        };
        // An error of an earlier datagram is told once, and this one goes out then.
        let told = send();
        let is_earlier = matches!(told, Err(Errno::CONNREFUSED | Errno::HOSTUNREACH));
        let sent = if is_earlier { send() } else { told };
        if is_earlier {
            let why = told.err().and_then(Unreachable::of);
            icmp::complain(link, packet.bytes, why.unwrap_or(Unreachable::Port));
        }
        if let Err(error) = sent {
            link.statistics.drop(Dropped::Unsent);
            if let Some(why) = Unreachable::of(error).filter(|_| !is_earlier) {
                icmp::complain(link, packet.bytes, why);
            }
        }
    }

    /// Carries an echo request of the guest's to another station than the gateway.
    pub(super) fn ping(
        &mut self,
        link: &mut Link,
        packet: &Packet<'_>,
        echo: &Echo<'_>,
        token: u64,
        target: IpAddr,
    ) {
        let ends = Ends::Ping {
            identifier: echo.identifier,
            remote: packet.destination,
        };
        let id = match self.by_ends.get(&ends) {
            Some(id) => *id,
            None => {
                let protocol = match target {
                    IpAddr::V4(_) => ipproto::ICMP,
                    IpAddr::V6(_) => ipproto::ICMPV6,
                };
                let to = SocketAddr::new(target, 0);
                let opened = open(to, SocketType::DGRAM, Some(protocol));
                let watched = match opened {
                    Ok(socket) => self.watched(link, ends, socket, token),
                    Err(Errno::ACCESS | Errno::PERM) => {
                        return link.statistics.drop(Dropped::NoPing);
                    }
                    Err(error) => Err(Unreachable::of(error).unwrap_or(Unreachable::Host)),
                };
                match watched {
                    Ok(id) => id,
                    Err(why) => return icmp::complain(link, packet.bytes, why),
                }
            }
        };
        let Some(flow) = self.open.get_mut(&id) else {
            return;
        };
        flow.used = link.now;
        let Way::Own(socket) = &flow.way else {
            return;
        };
        // The kernel writes checksum and identifier itself (net/ipv4/ping.c).
        let mut request = packet.payload.to_vec();
        if let Some(checksum) = request.get_mut(2..4) {
            checksum.fill(0);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = rustix::net::send(socket, &request, flags) {
            link.statistics.drop(Dropped::Unsent);
            if let Some(why) = Unreachable::of(error) {
                icmp::complain(link, packet.bytes, why);
            }
        }
    }

    /// Takes a datagram for a published port, and tells whether there may be more.
    pub(super) fn take_published(
        &mut self,
        link: &mut Link,
        index: usize,
        guest_port: u16,
        socket: &OwnedFd,
    ) -> bool {
        // The guest's server may listen for IPv4 alone, and there is no way to ask it.
        let source = gateway_like(IpAddr::from([0; 4]));
        let room = link.datagram_room(source);
        let room_bytes = room.len();
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (bytes, peer) = match rustix::net::recvfrom(socket, room, flags) {
            Ok((_, whole, _)) if whole > room_bytes => {
                link.statistics.drop(Dropped::TooLong);
                return true;
            }
            Ok((bytes, _, peer)) => (bytes, peer),
            Err(Errno::INTR) => return true,
            Err(_) => return false,
        };
        let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else {
            return true;
        };
        let now = link.now;
        let id = match self.by_peer.get(&(index, peer)) {
            Some(id) => *id,
            None => {
                let Some(ends) = self.free_ends(source, guest_port) else {
                    link.statistics.drop(Dropped::Full);
                    return true;
                };
                self.insert(now, ends, Way::Published { index, peer })
            }
        };
        if let Some(flow) = self.open.get_mut(&id)
            && let Ends::Udp { remote, .. } = flow.ends
        {
            flow.used = now;
            link.send_datagram(remote, guest_port, bytes);
        }
        true
    }

    fn free_ends(&mut self, source: IpAddr, guest_port: u16) -> Option<Ends> {
        (0..=MOST_FLOWS).find_map(|_| {
            self.next_port = self.next_port.wrapping_add(1) | FIRST_DYNAMIC_PORT;
            let ends = Ends::Udp {
                guest_port,
                remote: SocketAddr::new(source, self.next_port),
            };
            (!self.by_ends.contains_key(&ends)).then_some(ends)
        })
    }

    /// A flow with a socket that the loop looks at.
    fn watched(
        &mut self,
        link: &mut Link,
        ends: Ends,
        socket: OwnedFd,
        token: u64,
    ) -> Result<u64, Unreachable> {
        if link.watch(&socket, token | self.next).is_err() {
            link.statistics.drop(Dropped::Full);
            return Err(Unreachable::Network);
        }
        Ok(self.insert(link.now, ends, Way::Own(socket)))
    }

    fn insert(&mut self, now: Instant, ends: Ends, way: Way) -> u64 {
        if self.open.len() >= MOST_FLOWS {
            // Strangers at a published port push out one another before anybody who is spoken to.
            let least = |(_, flow): &(&u64, &Flow)| (flow.is_answered, flow.used);
            let oldest = self.open.iter().min_by_key(least);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.remove(oldest);
            }
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        if let Way::Published { index, peer } = way {
            self.by_peer.insert((index, peer), id);
        }
        self.by_ends.insert(ends, id);
        let flow = Flow {
            ends,
            way,
            used: now,
            is_answered: false,
            is_ready: false,
        };
        self.open.insert(id, flow);
        self.sweep.get_or_insert(now + SWEEP);
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.open.remove(&id) else {
            return;
        };
        self.by_ends.remove(&flow.ends);
        if let Way::Published { index, peer } = flow.way {
            self.by_peer.remove(&(index, peer));
        }
    }

    /// Notes that something has happened to a flow's socket.
    pub(super) fn note(&mut self, id: u64) {
        if let Some(flow) = self.open.get_mut(&id)
            && !std::mem::replace(&mut flow.is_ready, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Gives the guest what has come for it, while it takes it, and forgets flows that are over.
    pub(super) fn work(&mut self, link: &mut Link) {
        if self.sweep.is_some_and(|at| at <= link.now) {
            self.forget_old(link.now);
        }
        for _ in 0..self.ready.len() {
            if link.is_full() {
                return;
            }
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let Some(flow) = self.open.get_mut(&id) else {
                continue;
            };
            flow.is_ready = false;
            if flow.give(link) {
                self.note(id);
            }
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |flow: &Flow| match flow.is_answered {
            true => flow.used + ANSWERED <= now,
            false => flow.used + UNANSWERED <= now,
        };
        let old = self.open.iter().filter(|(_, flow)| is_old(flow));
        for id in old.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.remove(id);
        }
        self.sweep = (!self.open.is_empty()).then_some(now + SWEEP);
    }
}

impl Flow {
    /// Gives the guest what has come, and tells whether there may be more.
    fn give(&mut self, link: &mut Link) -> bool {
        let Way::Own(socket) = &self.way else {
            return false;
        };
        for _ in 0..TURNS {
            if link.is_full() {
                return true;
            }
            let source = match self.ends {
                Ends::Udp { remote, .. } => remote.ip(),
                Ends::Ping { remote, .. } => remote,
            };
            let room = link.datagram_room(source);
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            let room_bytes = room.len();
            let bytes = match rustix::net::recv(socket, &mut *room, flags) {
                Ok((_, whole)) if whole > room_bytes => {
                    link.statistics.drop(Dropped::TooLong);
                    continue;
                }
                Ok((bytes, _)) => bytes,
                Err(Errno::AGAIN) => return false,
                // Told with the next datagram.
                Err(_) => continue,
            };
            match self.ends {
                Ends::Udp { guest_port, remote } => link.send_datagram(remote, guest_port, bytes),
                Ends::Ping { identifier, remote } => {
                    let reply = room.get(..bytes).unwrap_or_default().to_vec();
                    give_echo(link, identifier, remote, &reply);
                }
            }
            self.used = link.now;
            self.is_answered = true;
        }
        true
    }
}

/// Gives the guest an answer to its ping, with the identifier that it knows.
fn give_echo(link: &mut Link, identifier: u16, remote: IpAddr, reply: &[u8]) {
    /// ICMP's and ICMPv6's types of echo replies.
    const REPLIES: [u8; 2] = [0, 129];
    let Some((header, data)) = reply.split_at_checked(ECHO_BYTES) else {
        return;
    };
    if let [kind, 0, _, _, _, _, sequence_0, sequence_1] = header
        && REPLIES.contains(kind)
    {
        let echo = Echo {
            identifier,
            sequence: u16::from_be_bytes([*sequence_0, *sequence_1]),
            data,
        };
        echo.reply(link, remote);
    }
}

/// A socket that is connected there.
fn open(
    to: SocketAddr,
    kind: SocketType,
    protocol: Option<rustix::net::Protocol>,
) -> Result<OwnedFd, Errno> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, kind, flags, protocol)?;
    rustix::net::connect(&socket, &to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_do_not_push_out_a_flow_that_is_answered() {
        let mut flows = Flows::default();
        let resolver = "192.0.2.1:5353".parse().unwrap();
        let guests = Ends::Udp {
            guest_port: 5000,
            remote: resolver,
        };
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let id = flows.insert(Instant::ZERO, guests, Way::Own(socket.into()));
        flows.open.get_mut(&id).unwrap().is_answered = true;
        for number in 0..2 * MOST_FLOWS {
            let port = u16::try_from(number).unwrap() + 1;
            let peer = SocketAddr::new(IpAddr::from([198, 51, 100, 1]), port);
            let ends = flows.free_ends(gateway_like(peer.ip()), 53).unwrap();
            let now = Instant::from_secs(i64::from(port));
            flows.insert(now, ends, Way::Published { index: 0, peer });
        }
        assert_eq!(flows.count(), MOST_FLOWS);
        assert!(flows.by_ends.contains_key(&guests));
    }
}
