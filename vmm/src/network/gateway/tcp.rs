//! TCP connections: one end is the guest's, by way of the library's stack, the other a socket of the host.
//!
//! Each connection has a stack of its own, an interface with one socket. The library goes through all sockets of an interface for each
//! packet and each timer; here a packet goes to its connection by a table, and nobody else is looked at.
//!
//! ```text
//!   guest SYN ──► connect on the host ── succeeds ──► stack listens, gets the SYN ──► open
//!                                     └─ fails ─────► reset, or ICMP
//!   accept on the host ──► stack connects to the guest ──► open, or a reset for who has come
//! ```
//!
//! Nothing is kept but what is in the stack's buffers: a side that does not read fills its buffer, and the other is not read from until
//! there is room.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{self, State};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    HardwareAddress, IpCidr, IpEndpoint, IpListenEndpoint, IpProtocol, IpRepr, TcpControl,
    TcpPacket, TcpRepr,
};

use super::addresses::{gateway_like, guest_like};
use super::frame::{self, Packet};
use super::icmp::{self, Unreachable};
use super::link::{HOP_LIMIT, Link, Port};
use super::statistics::Dropped;
use super::timers::Timers;

/// How many connections there may be.
pub(super) const MOST_CONNECTIONS: usize = 4096;
/// What all buffers together take, but for the least that each connection has.
const BUFFERS_BYTES: usize = 64 << 20;
/// The buffers of one connection, one for each direction.
const BUFFER_BYTES: std::ops::RangeInclusive<usize> = 8 << 10..=256 << 10;
/// A connection takes this part of what is left.
const SHARE_OF_BUFFERS: usize = 128;
/// How long a program in the guest is waited for that somebody outside wants to speak to.
const GUEST_ANSWERS: Duration = Duration::from_secs(30);
/// A connection that is over is kept until its last segment is sent, which this is longer than.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// How often a connection moves data before another one has its turn.
const TURNS: usize = 8;
/// The first of the ports from which the gateway speaks to the guest (RFC 6335, section 6).
const FIRST_DYNAMIC_PORT: u16 = 49_152;

/// A connection as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    guest_port: u16,
    remote: SocketAddr,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: HashMap<u64, Connection>,
    by_ends: HashMap<Ends, u64>,
    next: u64,
    taken_bytes: usize,
    timers: Timers,
    /// Those that may have something to do.
    ready: VecDeque<u64>,
    /// Those that wait until the guest takes what it has got.
    starved: Vec<u64>,
}

impl Connections {
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }

    /// Tells whether something can be done at once.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Takes a segment of the guest's. `target` says where a new connection goes, or why not.
    pub(super) fn receive(
        &mut self,
        link: &mut Link,
        packet: &Packet<'_>,
        token: u64,
        target: impl FnOnce(SocketAddr) -> Result<SocketAddr, Unreachable>,
    ) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else {
            return link.statistics.drop(Dropped::Malformed);
        };
        if segment.src_port() == 0 || segment.dst_port() == 0 {
            return link.statistics.drop(Dropped::Malformed);
        }
        // A first segment is kept until the host has connected. What a guest sends with it (RFC 7413) it sends again.
        if segment.syn() && !segment.payload().is_empty() {
            return link.statistics.drop(Dropped::TooLong);
        }
        let ends = Ends {
            guest_port: segment.src_port(),
            remote: SocketAddr::new(packet.destination, segment.dst_port()),
        };
        if let Some(id) = self.by_ends.get(&ends).copied() {
            let known = self.open.get_mut(&id);
            match known.map(|connection| connection.receive(link, packet, &segment)) {
                Some(true) => self.wake(id),
                _ => self.remove(id, true),
            }
        } else if segment.syn() && !segment.ack() && !segment.rst() && !segment.fin() {
            match target(ends.remote) {
                Ok(address) => self.open(link, ends, address, packet, token),
                Err(why) => {
                    link.statistics.drop(Dropped::Refused);
                    icmp::complain(link, packet.bytes, why);
                }
            }
        } else if !segment.rst() {
            reset(link, packet, &segment);
        }
    }

    /// Begins a connection of the guest's by one on the host.
    fn open(
        &mut self,
        link: &mut Link,
        ends: Ends,
        address: SocketAddr,
        packet: &Packet<'_>,
        token: u64,
    ) {
        let is_room = self.open.len() < MOST_CONNECTIONS;
        let connected = match is_room {
            true => connect(address),
            false => Err(Errno::MFILE),
        };
        let id = self.next;
        let watched = connected.and_then(|host| {
            link.watch(&host, token | id).map_err(|_| Errno::MFILE)?;
            Ok(host)
        });
        match watched {
            Ok(host) => {
                let syn = packet.bytes.to_vec();
                self.insert(link, Connection::new(ends, host, Phase::Connecting { syn }));
            }
            Err(error) => {
                if matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOBUFS) {
                    link.statistics.drop(Dropped::Full);
                }
                refuse(link, packet.bytes, error);
            }
        }
    }

    /// Accepts who has come to a published port and connects to the guest's. Tells whether more may have come.
    pub(super) fn accept(
        &mut self,
        link: &mut Link,
        listener: &OwnedFd,
        guest_port: u16,
        token: u64,
    ) -> bool {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (host, peer) = match rustix::net::acceptfrom_with(listener, flags) {
            Ok(accepted) => accepted,
            Err(Errno::INTR | Errno::CONNABORTED) => return true,
            // The host has no descriptor left: who waits goes on waiting until somebody else comes.
            Err(_) => return false,
        };
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let family = peer.map_or(IpAddr::from([0; 4]), |peer| peer.ip().to_canonical());
        let id = self.next;
        let prepared = match self.open.len() < MOST_CONNECTIONS {
            true => prepare(&host).and_then(|()| link.watch(&host, token | id)),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        let stack = self.connect_to_guest(link, gateway_like(family), guest_port);
        match (prepared, stack) {
            (Ok(()), Some((ends, stack))) => {
                let mut connection = Connection::new(ends, host, Phase::Open(stack));
                connection.is_published = true;
                connection.flags = EventFlags::IN | EventFlags::OUT;
                self.insert(link, connection);
                self.wake(id);
            }
            _ => {
                link.statistics.drop(Dropped::Full);
                abandon(&host);
            }
        }
        true
    }

    fn connect_to_guest(
        &mut self,
        link: &mut Link,
        gateway: IpAddr,
        guest_port: u16,
    ) -> Option<(Ends, Box<Stack>)> {
        /// Of so many ports in a row one is free, or the guest has a great many connections.
        const TRIES: usize = 64;
        let free = (0..TRIES).find_map(|_| {
            let port = u16::try_from(random() & 0xffff).unwrap_or_default() | FIRST_DYNAMIC_PORT;
            let ends = Ends {
                guest_port,
                remote: SocketAddr::new(gateway, port),
            };
            (!self.by_ends.contains_key(&ends)).then_some(ends)
        })?;
        let mut stack = Box::new(Stack::new(link, gateway, self.buffer_bytes()));
        stack.connect(free.remote, guest_port)?;
        Some((free, stack))
    }

    fn insert(&mut self, link: &mut Link, connection: Connection) {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.taken_bytes = self.taken_bytes.saturating_add(connection.buffers_bytes());
        self.by_ends.insert(connection.ends, id);
        self.open.insert(id, connection);
        link.statistics.tcp_connections = link.statistics.tcp_connections.saturating_add(1);
    }

    fn buffer_bytes(&self) -> usize {
        let left = BUFFERS_BYTES.saturating_sub(self.taken_bytes);
        (left / SHARE_OF_BUFFERS).clamp(*BUFFER_BYTES.start(), *BUFFER_BYTES.end())
    }

    /// Notes what has happened to a socket of the host.
    pub(super) fn note(&mut self, id: u64, flags: EventFlags) {
        if let Some(connection) = self.open.get_mut(&id) {
            connection.flags |= flags;
            self.wake(id);
        }
    }

    fn wake(&mut self, id: u64) {
        if let Some(connection) = self.open.get_mut(&id)
            && !std::mem::replace(&mut connection.is_ready, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Lets those go on that had to wait for the guest. The first of them is the one for which the wire was free the last time.
    pub(super) fn feed(&mut self) {
        let mut starved = std::mem::take(&mut self.starved);
        let turn = usize::from(!starved.is_empty());
        starved.rotate_left(turn);
        for id in starved {
            if let Some(connection) = self.open.get_mut(&id) {
                connection.is_starved = false;
            }
            self.wake(id);
        }
    }

    /// Gives each connection that may have something to do its turn.
    pub(super) fn work(&mut self, link: &mut Link) {
        while let Some(id) = self.timers.due(link.now) {
            if let Some(connection) = self.open.get_mut(&id) {
                connection.armed = None;
                self.wake(id);
            }
        }
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else {
                return;
            };
            let buffer_bytes = self.buffer_bytes();
            let Some(connection) = self.open.get_mut(&id) else {
                continue;
            };
            connection.is_ready = false;
            let before = connection.buffers_bytes();
            let after = connection.work(link, buffer_bytes);
            let now = connection.buffers_bytes();
            self.taken_bytes = self.taken_bytes.saturating_sub(before).saturating_add(now);
            match after {
                After::Waits(at) => self.arm(id, at),
                After::Again => self.wake(id),
                After::Starved => self.starve(id),
                After::Over { is_reset } => self.remove(id, is_reset),
                After::Refused => self.try_the_other_family(link, id),
            }
        }
    }

    fn starve(&mut self, id: u64) {
        if let Some(connection) = self.open.get_mut(&id)
            && !std::mem::replace(&mut connection.is_starved, true)
        {
            self.starved.push(id);
        }
    }

    fn arm(&mut self, id: u64, at: Option<Instant>) {
        let (Some(at), Some(connection)) = (at, self.open.get_mut(&id)) else {
            return;
        };
        if connection.armed.is_none_or(|armed| at < armed) {
            let earlier = connection.armed.replace(at);
            self.timers.forget(earlier, id);
            self.timers.add(at, id);
        }
    }

    /// A program in the guest may listen for IPv4 alone.
    fn try_the_other_family(&mut self, link: &mut Link, id: u64) {
        let (ends, is_published) = match self.open.get(&id) {
            Some(connection) => (connection.ends, connection.is_published),
            None => return,
        };
        let ipv4 = gateway_like(IpAddr::from([0; 4]));
        let again = match is_published && ends.remote.is_ipv6() {
            true => self.connect_to_guest(link, ipv4, ends.guest_port),
            false => None,
        };
        let (Some((new_ends, stack)), Some(connection)) = (again, self.open.get_mut(&id)) else {
            return self.remove(id, true);
        };
        self.by_ends.remove(&ends);
        self.by_ends.insert(new_ends, id);
        connection.ends = new_ends;
        connection.phase = Phase::Open(stack);
        self.wake(id);
    }

    fn remove(&mut self, id: u64, is_reset: bool) {
        let Some(connection) = self.open.remove(&id) else {
            return;
        };
        self.taken_bytes = self.taken_bytes.saturating_sub(connection.buffers_bytes());
        self.timers.forget(connection.armed, id);
        self.by_ends.remove(&connection.ends);
        if is_reset {
            abandon(&connection.host);
        }
        if self.open.is_empty() {
            // What a flood has left.
            self.open.shrink_to(0);
            self.by_ends.shrink_to(0);
        }
    }
}

/// What is to be done with a connection after its turn.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// Nothing until something happens, or this moment comes.
    Waits(Option<Instant>),
    /// It can go on at once.
    Again,
    /// It waits until the guest takes what it has got.
    Starved,
    /// It is over; by a reset, which the host's peer is to see.
    Over { is_reset: bool },
    /// Nobody listens in the guest.
    Refused,
}

/// How far a connection is.
#[derive(Debug)]
enum Phase {
    /// The host connects. The guest's segment is kept for when it has.
    Connecting { syn: Vec<u8> },
    /// The stack has it.
    Open(Box<Stack>),
}

/// One connection.
#[derive(Debug)]
struct Connection {
    ends: Ends,
    host: OwnedFd,
    phase: Phase,
    /// What is known of the host's socket.
    flags: EventFlags,
    /// The host's peer has said that it is done.
    is_host_done: bool,
    /// The guest has said so.
    has_guest_ended: bool,
    /// The host's peer was told that.
    is_guest_done: bool,
    /// The host's socket has failed.
    is_broken: bool,
    /// Somebody outside has begun it.
    is_published: bool,
    is_ready: bool,
    is_starved: bool,
    armed: Option<Instant>,
}

impl Connection {
    fn new(ends: Ends, host: OwnedFd, phase: Phase) -> Self {
        Self {
            ends,
            host,
            phase,
            flags: EventFlags::empty(),
            is_host_done: false,
            has_guest_ended: false,
            is_guest_done: false,
            is_broken: false,
            is_published: false,
            is_ready: false,
            is_starved: false,
            armed: None,
        }
    }

    fn buffers_bytes(&self) -> usize {
        match &self.phase {
            Phase::Connecting { .. } => 0,
            Phase::Open(stack) => stack.buffers_bytes,
        }
    }

    /// Takes a segment of the guest's, and tells whether there is still a connection.
    fn receive(
        &mut self,
        link: &mut Link,
        packet: &Packet<'_>,
        segment: &TcpPacket<&[u8]>,
    ) -> bool {
        match &mut self.phase {
            Phase::Connecting { .. } if segment.rst() => false,
            Phase::Connecting { syn } => {
                if segment.syn() && !segment.ack() {
                    *syn = packet.bytes.to_vec();
                }
                true
            }
            Phase::Open(stack) => {
                stack.receive(link, packet.bytes);
                true
            }
        }
    }

    fn work(&mut self, link: &mut Link, buffer_bytes: usize) -> After {
        if let Phase::Connecting { syn } = &self.phase {
            let done = EventFlags::OUT | EventFlags::ERR | EventFlags::HUP;
            if !self.flags.intersects(done) {
                return After::Waits(None);
            }
            let connected = sockopt::socket_error(&self.host).and_then(|result| result);
            if let Err(error) = connected {
                refuse(link, syn, error);
                return After::Over { is_reset: false };
            }
            let mut stack = Box::new(Stack::new(link, self.ends.remote.ip(), buffer_bytes));
            stack.listen(self.ends.remote);
            stack.receive(link, syn);
            self.phase = Phase::Open(stack);
        }
        self.carry(link)
    }

    /// Moves what can be moved, a few times.
    fn carry(&mut self, link: &mut Link) -> After {
        for _ in 0..TURNS {
            let has_moved = self.fill_host() | self.fill_guest();
            self.pass_on_ends();
            let Phase::Open(stack) = &mut self.phase else {
                return After::Waits(None);
            };
            let has_sent = stack.send(link);
            if let Some(over) = self.is_over(link) {
                return over;
            }
            if link.is_full() {
                return After::Starved;
            }
            if !has_moved && !has_sent {
                return After::Waits(self.next_timer(link));
            }
        }
        After::Again
    }

    /// Moves what the guest has sent to the host's socket, and tells whether there was something.
    fn fill_host(&mut self) -> bool {
        let Phase::Open(stack) = &mut self.phase else {
            return false;
        };
        let mut has_moved = false;
        while self.flags.contains(EventFlags::OUT) && stack.socket().can_recv() {
            let host = self.host.as_fd();
            let written = stack.socket().recv(|bytes| {
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                match rustix::net::send(host, bytes, flags) {
                    Ok(written) => (written, Ok(written < bytes.len())),
                    Err(error) => (0, Err(error)),
                }
            });
            match written {
                Ok(Ok(is_full)) => {
                    has_moved = true;
                    self.flags.set(EventFlags::OUT, !is_full);
                }
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.flags.remove(EventFlags::OUT),
                Ok(Err(_)) => {
                    self.is_broken = true;
                    stack.socket().abort();
                    return true;
                }
                Err(_) => return has_moved,
            }
        }
        has_moved
    }

    /// Moves what has come to the host's socket into the stack, and tells whether there was something.
    fn fill_guest(&mut self) -> bool {
        let Phase::Open(stack) = &mut self.phase else {
            return false;
        };
        let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
        let readable = EventFlags::IN | hung_up;
        let mut has_moved = false;
        while self.flags.intersects(readable) && !self.is_host_done && stack.socket().can_send() {
            let host = self.host.as_fd();
            let read = stack.socket().send(|room| {
                let length = room.len();
                match rustix::net::recv(host, room, RecvFlags::DONTWAIT) {
                    Ok((read, _)) => (read, Ok((read, read < length))),
                    Err(error) => (0, Err(error)),
                }
            });
            match read {
                Ok(Ok((0, _))) => self.is_host_done = true,
                Ok(Ok((_, is_empty))) => {
                    has_moved = true;
                    let is_at_end = self.flags.intersects(hung_up);
                    self.flags.set(EventFlags::IN, is_at_end || !is_empty);
                }
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.flags.remove(readable),
                Ok(Err(_)) => {
                    self.is_broken = true;
                    stack.socket().abort();
                    return true;
                }
                Err(_) => return has_moved,
            }
        }
        has_moved
    }

    /// Tells each side that the other has nothing more to say, when all of it has been passed on.
    fn pass_on_ends(&mut self) {
        let Phase::Open(stack) = &mut self.phase else {
            return;
        };
        let socket = stack.socket();
        if self.is_host_done && socket.may_send() {
            socket.close();
        }
        self.has_guest_ended |= matches!(
            socket.state(),
            State::CloseWait | State::LastAck | State::Closing | State::TimeWait
        );
        if self.has_guest_ended && !socket.may_recv() && !self.is_guest_done {
            self.is_guest_done = true;
            // A peer that is gone is noticed when it is read from.
            let _gone = rustix::net::shutdown(&self.host, Shutdown::Write);
        }
        if socket.state() == State::Established {
            // It may stand still as long as both like.
            socket.set_timeout(None);
        }
    }

    fn is_over(&mut self, link: &mut Link) -> Option<After> {
        let Phase::Open(stack) = &mut self.phase else {
            return None;
        };
        let is_told = stack.socket().remote_endpoint().is_none();
        // Both sides have said all, and the host's peer has not heard it all yet.
        let is_heard = self.has_guest_ended && self.is_host_done && !self.is_broken;
        match stack.socket().state() {
            State::Closed if is_heard && stack.socket().can_recv() => None,
            State::Closed if is_told && self.is_published && !stack.was_open => {
                Some(After::Refused)
            }
            State::Closed if is_told => Some(After::Over {
                is_reset: !(self.is_host_done && self.is_guest_done),
            }),
            // The guest's reset while the connection was being made.
            State::Listen => Some(After::Over { is_reset: true }),
            State::TimeWait => {
                let soon = link.now + ACK_DELAY;
                let is_acknowledged = stack.next_timer(link).is_none_or(|at| at > soon);
                (is_acknowledged && self.is_guest_done && self.is_host_done)
                    .then_some(After::Over { is_reset: false })
            }
            _ => None,
        }
    }

    fn next_timer(&mut self, link: &mut Link) -> Option<Instant> {
        /// A timer that is due and came to nothing is looked at again then.
        const LATER: Duration = Duration::from_millis(1);
        let Phase::Open(stack) = &mut self.phase else {
            return None;
        };
        let at = stack.next_timer(link)?;
        Some(at.max(link.now + LATER))
    }
}

/// The library's stack for one connection: an interface that has the address to which the guest speaks, and one socket.
struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    buffers_bytes: usize,
    was_open: bool,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Stack")
            .field("buffers_bytes", &self.buffers_bytes)
            .finish_non_exhaustive()
    }
}

impl Stack {
    /// `address` is one that no group has.
    fn new(link: &mut Link, address: IpAddr, buffer_bytes: usize) -> Self {
        /// The whole Internet is next to it.
        const EVERYBODY: u8 = 0;
        let now = link.now;
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random();
        let mut port = Port {
            incoming: None,
            link,
        };
        let mut interface = Interface::new(config, &mut port, now);
        interface.update_ip_addrs(|addresses| {
            let fits = addresses.push(IpCidr::new(address.into(), EVERYBODY));
            debug_assert!(fits.is_ok());
        });
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // The guest's kernel has waited already, if it was to.
        socket.set_nagle_enabled(false);
        // It has no other end that could answer meanwhile, and a window that is full would wait for it.
        socket.set_ack_delay(None);
        socket.set_hop_limit(Some(HOP_LIMIT));
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Self {
            interface,
            sockets,
            handle,
            buffers_bytes: buffer_bytes.saturating_mul(2),
            was_open: false,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn listen(&mut self, at: SocketAddr) {
        let listening = self.socket().listen(IpListenEndpoint::from(at));
        debug_assert!(listening.is_ok());
    }

    fn connect(&mut self, from: SocketAddr, guest_port: u16) -> Option<()> {
        let to = IpEndpoint::new(guest_like(from.ip()).into(), guest_port);
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.set_timeout(Some(GUEST_ANSWERS));
        let context = self.interface.context();
        socket
            .connect(context, to, IpListenEndpoint::from(from))
            .ok()
    }

    fn receive(&mut self, link: &mut Link, packet: &[u8]) {
        let now = link.now;
        let mut port = Port {
            incoming: Some(packet),
            link,
        };
        self.interface
            .poll_ingress_single(now, &mut port, &mut self.sockets);
        self.was_open |= self.socket().state() == State::Established;
    }

    /// Sends all that can be sent, and tells whether there was something.
    fn send(&mut self, link: &mut Link) -> bool {
        let now = link.now;
        let mut port = Port {
            incoming: None,
            link,
        };
        let mut has_sent = false;
        while self
            .interface
            .poll_egress(now, &mut port, &mut self.sockets)
            != PollResult::None
        {
            has_sent = true;
        }
        has_sent
    }

    fn next_timer(&mut self, link: &Link) -> Option<Instant> {
        self.interface.poll_at(link.now, &self.sockets)
    }
}

/// Begins to connect.
fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    prepare(&socket).map_err(|_| Errno::NOBUFS)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Nothing waits for more to be sent with it, and a peer that has vanished is noticed some day.
fn prepare(socket: &OwnedFd) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    Ok(())
}

/// Has the socket's peer see a reset when it is closed.
fn abandon(socket: &OwnedFd) {
    // Without it the peer sees an end.
    let _plain = sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// Answers the guest's first segment with what became of the host's.
fn refuse(link: &mut Link, packet: &[u8], error: Errno) {
    if let Some(why) = Unreachable::of(error) {
        return icmp::complain(link, packet, why);
    }
    if let Ok(packet) = frame::read_again(packet)
        && let Ok(segment) = TcpPacket::new_checked(packet.payload)
    {
        reset(link, &packet, &segment);
    }
}

/// Answers a segment with a reset (RFC 9293, section 3.10.7.1).
fn reset(link: &mut Link, packet: &Packet<'_>, segment: &TcpPacket<&[u8]>) {
    let length = segment
        .payload()
        .len()
        .saturating_add(usize::from(segment.syn()))
        .saturating_add(usize::from(segment.fin()));
    let (seq_number, ack_number) = match segment.ack() {
        true => (segment.ack_number(), None),
        false => Default::default(),
    };
    let ack_number = match segment.ack() {
        true => ack_number,
        false => Some(segment.seq_number() + length),
    };
    let answer = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, destination) = (packet.destination.into(), packet.source.into());
    let header = IpRepr::new(
        source,
        destination,
        IpProtocol::Tcp,
        answer.buffer_len(),
        HOP_LIMIT,
    );
    link.send_ip(header.buffer_len(), |bytes| {
        header.emit(&mut *bytes, &frame::checksums());
        let room = bytes.get_mut(header.header_len()..).unwrap_or_default();
        let mut room = TcpPacket::new_unchecked(room);
        answer.emit(&mut room, &source, &destination, &frame::checksums());
    });
}

/// A number that the guest cannot guess.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // The kernel's generator is there since its start; what is not filled is guessable, no more.
    let _filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rustix::event::epoll;

    use super::*;

    /// A wire of which the guest takes nothing, and so many connections of somebody outside.
    fn connections(count: usize) -> (Connections, Link, OwnedFd) {
        let (guest, wire) = super::super::wire().unwrap();
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let mut link = Link::new(wire, [2, 0, 0, 0, 0, 1], poller);
        link.now = Instant::from_secs(1);
        let mut connections = Connections::default();
        for _ in 0..count {
            let host = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            let gateway = gateway_like(Ipv4Addr::UNSPECIFIED.into());
            let (ends, stack) = connections
                .connect_to_guest(&mut link, gateway, 80)
                .unwrap();
            let connection = Connection::new(ends, host.into(), Phase::Open(stack));
            connections.insert(&mut link, connection);
        }
        (connections, link, guest)
    }

    fn fill(link: &mut Link) {
        while !link.is_full() {
            link.send_ip(60_000, |_| ());
        }
    }

    #[test]
    fn a_connection_has_one_timer_however_often_it_changes() {
        let (mut connections, mut link, _guest) = connections(1);
        for _ in 0..100 {
            let now = link.now;
            connections.arm(0, Some(now + Duration::from_secs(60)));
            connections.arm(0, Some(now + Duration::from_millis(10)));
            link.now = now + Duration::from_millis(10);
            connections.work(&mut link);
        }
        assert_eq!(connections.timers.count(), 1);
        connections.remove(0, false);
        assert_eq!(connections.timers.count(), 0);
    }

    #[test]
    fn a_connection_waits_once_for_a_guest_that_takes_nothing() {
        let (mut connections, mut link, _guest) = connections(2);
        fill(&mut link);
        for _ in 0..100 {
            for id in 0..2 {
                connections.wake(id);
            }
            connections.work(&mut link);
        }
        assert_eq!(connections.starved.len(), 2);
    }

    #[test]
    fn whoever_has_filled_the_wire_is_the_last_to_go_on() {
        let (mut connections, mut link, _guest) = connections(3);
        fill(&mut link);
        for id in 0..3 {
            connections.wake(id);
        }
        connections.work(&mut link);
        connections.feed();
        assert_eq!(connections.ready, [1, 2, 0]);
    }
}
