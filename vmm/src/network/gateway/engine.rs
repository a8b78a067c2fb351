//! The loop of the gateway: one thread that waits for the guest, the host's sockets, and moments.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::time::Instant;
use smoltcp::wire::IpProtocol;

use super::addresses::{is_gateway, is_resolver};
use super::datagrams::Flows;
use super::dns::Resolver;
use super::frame::{self, Incoming, MOST_BYTES, Packet};
use super::icmp::{self, Echo, Unreachable};
use super::link::{Heard, Link};
use super::policy::{DNS_PORT, Policy, Target, Transport};
use super::statistics::{Dropped, Statistics};
use super::tcp::Connections;
use super::{Configuration, Published};

/// How many frames of the guest's are looked at before everything else has its turn.
const FRAMES: usize = 64;
/// How many who come to a published port.
const COMERS: usize = 64;
/// How many events are taken at once.
const EVENTS: usize = 64;

/// What an event is about: the high byte of its token, before a number.
mod token {
    pub(super) const SHIFT: u32 = 56;
    pub(super) const LINK: u64 = 0;
    pub(super) const CONTROL: u64 = 1 << SHIFT;
    pub(super) const LISTENER: u64 = 2 << SHIFT;
    pub(super) const PUBLISHED: u64 = 3 << SHIFT;
    pub(super) const CONNECTION: u64 = 4 << SHIFT;
    pub(super) const FLOW: u64 = 5 << SHIFT;
    pub(super) const QUESTION: u64 = 6 << SHIFT;
    pub(super) const NUMBER: u64 = (1 << SHIFT) - 1;
}

/// The gateway.
#[derive(Debug)]
pub(super) struct Engine {
    link: Link,
    control: OwnedFd,
    policy: Policy,
    listeners: Vec<(u16, OwnedFd)>,
    published: Vec<(u16, OwnedFd)>,
    connections: Connections,
    flows: Flows,
    pub(super) resolver: Resolver,
    incoming: Box<[u8]>,
    start: std::time::Instant,
    has_frames: bool,
    /// Listeners and published ports at which somebody may wait.
    called: Vec<u64>,
}

impl Engine {
    /// Makes a gateway of a configuration and its sockets, in the order of the ports in it.
    pub(super) fn new(
        configuration: &Configuration,
        link: OwnedFd,
        control: OwnedFd,
        sockets: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let poller = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let link = Link::new(link, configuration.guest_mac, poller);
        link.watch_self(token::LINK)?;
        link.watch(&control, token::CONTROL)?;
        let mut engine = Self {
            link,
            control,
            policy: configuration.policy.clone(),
            listeners: Vec::new(),
            published: Vec::new(),
            connections: Connections::default(),
            flows: Flows::default(),
            resolver: Resolver::new(DNS_PORT),
            incoming: vec![0; MOST_BYTES].into_boxed_slice(),
            start: std::time::Instant::now(),
            has_frames: true,
            called: Vec::new(),
        };
        for (port, socket) in configuration.published.iter().zip(sockets) {
            engine.publish(*port, socket)?;
        }
        Ok(engine)
    }

    fn publish(&mut self, port: Published, socket: OwnedFd) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let (ports, kind) = match port.transport {
            Transport::Tcp => (&mut self.listeners, token::LISTENER),
            Transport::Udp => (&mut self.published, token::PUBLISHED),
        };
        let number = u64::try_from(ports.len()).unwrap_or(token::NUMBER);
        self.link.watch(&socket, kind | number)?;
        ports.push((port.guest_port, socket));
        Ok(())
    }

    /// Carries what there is to carry until the machine or the monitor is gone.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        while self.turn(&mut events)? {}
        Ok(())
    }

    /// Waits for something to happen and does what follows from it. Tells whether there is reason to go on.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> io::Result<bool> {
        self.tick();
        events.clear();
        let timeout = self.timeout();
        let waited = epoll::wait(self.link.poller(), spare_capacity(events), timeout.as_ref());
        match waited {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.tick();
        for event in events {
            if !self.dispatch(event.data.u64(), event.flags) {
                return Ok(false);
            }
        }
        let goes_on = self.read_frames()?;
        self.answer_calls();
        self.connections.work(&mut self.link);
        self.flows.work(&mut self.link);
        self.resolver.work(&mut self.link, token::QUESTION);
        Ok(goes_on)
    }

    fn tick(&mut self) {
        let elapsed = self.start.elapsed().as_micros();
        // One millisecond more, so that no moment is zero, which the library takes for now.
        let micros = i64::try_from(elapsed)
            .unwrap_or(i64::MAX)
            .saturating_add(1000);
        self.link.now = Instant::from_micros(micros);
    }

    /// How long nothing will happen by itself; in whole milliseconds, later rather than earlier.
    fn timeout(&self) -> Option<Timespec> {
        let is_free = !self.link.is_full();
        let has_work = self.has_frames
            || self.connections.has_work()
            || is_free && (self.flows.has_work() || self.resolver.has_work())
            || is_free && !self.called.is_empty();
        if has_work {
            return Some(Timespec::default());
        }
        let timers = [
            self.connections.next_timer(),
            self.flows.next_timer(),
            self.resolver.next_timer(),
        ];
        let next = timers.into_iter().flatten().min()?;
        let wait = next
            .total_micros()
            .saturating_sub(self.link.now.total_micros());
        let millis = wait.max(0).saturating_add(999) / 1000;
        Some(Timespec {
            tv_sec: millis / 1000,
            tv_nsec: (millis % 1000) * 1_000_000,
        })
    }

    /// Notes an event, and tells whether there is reason to go on.
    fn dispatch(&mut self, event: u64, flags: epoll::EventFlags) -> bool {
        let number = event & token::NUMBER;
        match event & !token::NUMBER {
            token::LINK => {
                self.has_frames = true;
                if flags.contains(epoll::EventFlags::OUT)
                    && self.link.is_full()
                    && self.link.flush()
                {
                    self.connections.feed();
                }
                true
            }
            token::CONTROL => self.answer_monitor(),
            token::LISTENER | token::PUBLISHED => {
                if !self.called.contains(&event) {
                    self.called.push(event);
                }
                true
            }
            token::CONNECTION => {
                self.connections.note(number, flags);
                true
            }
            token::FLOW => {
                self.flows.note(number);
                true
            }
            _ => {
                self.resolver.note(number);
                true
            }
        }
    }

    /// Tells the monitor what was counted, if it asks, and whether it is still there.
    fn answer_monitor(&mut self) -> bool {
        let mut asked = [0; 1];
        loop {
            match rustix::net::recv(&self.control, &mut asked, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return false,
                Ok(_) => {
                    let bytes = postcard::to_stdvec(&self.statistics()).unwrap_or_default();
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    // One that does not listen has not asked.
                    let _heard = rustix::net::send(&self.control, &bytes, flags);
                }
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        let number = |count| u64::try_from(count).unwrap_or(u64::MAX);
        Statistics {
            tcp_connections_open: number(self.connections.count()),
            flows_open: number(self.flows.count()),
            ..self.link.statistics.clone()
        }
    }

    /// Reads what the guest has sent, and tells whether there still is a guest.
    fn read_frames(&mut self) -> io::Result<bool> {
        if !self.has_frames {
            return Ok(true);
        }
        let mut incoming = std::mem::take(&mut self.incoming);
        for _ in 0..FRAMES {
            match self.link.receive(&mut incoming)? {
                Heard::Frame(bytes) => {
                    let frame = incoming.get(..bytes).unwrap_or_default();
                    if let Err(why) = self.receive(frame) {
                        self.link.statistics.drop(why);
                    }
                }
                Heard::Nothing => {
                    self.has_frames = false;
                    break;
                }
                Heard::End => return Ok(false),
            }
        }
        self.incoming = incoming;
        Ok(true)
    }

    /// Carries a frame of the guest's.
    fn receive(&mut self, frame: &[u8]) -> Result<(), Dropped> {
        match frame::parse(frame)? {
            Incoming::Arp(question) => icmp::answer_arp(&mut self.link, &question),
            Incoming::Ip(packet) => match packet.protocol {
                IpProtocol::Icmpv6 if icmp::answer_neighbour(&mut self.link, &packet) => {}
                _ => {
                    if !frame::is_to_gateway(frame) {
                        return Err(Dropped::ForAnother);
                    }
                    self.receive_packet(&packet)?;
                }
            },
        }
        Ok(())
    }

    fn receive_packet(&mut self, packet: &Packet<'_>) -> Result<(), Dropped> {
        if packet.source != super::addresses::guest_like(packet.source) {
            return Err(Dropped::ForeignSource);
        }
        let link = &mut self.link;
        match packet.protocol {
            IpProtocol::Tcp => {
                let (policy, resolver) = (&self.policy, &mut self.resolver);
                let now = link.now;
                let target = |remote: SocketAddr| match transport(policy, remote, Transport::Tcp) {
                    Target::Host(address) => Ok(SocketAddr::new(address, remote.port())),
                    Target::Resolver => resolver.first_server(now).ok_or(Unreachable::Host),
                    Target::Nowhere => Err(Unreachable::Prohibited),
                };
                self.connections
                    .receive(link, packet, token::CONNECTION, target);
            }
            IpProtocol::Udp => {
                let is_question = is_resolver(packet.destination)
                    && packet.payload.get(2..4) == Some(&DNS_PORT.to_be_bytes());
                if is_question {
                    self.resolver.receive(link, packet, token::QUESTION);
                    return Ok(());
                }
                let policy = &self.policy;
                let target = |remote: SocketAddr| match transport(policy, remote, Transport::Udp) {
                    Target::Host(address) => Ok(SocketAddr::new(address, remote.port())),
                    Target::Resolver | Target::Nowhere => Err(Unreachable::Prohibited),
                };
                self.flows
                    .receive(link, packet, token::FLOW, &self.published, target);
            }
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.receive_icmp(packet)?,
            _ => return Err(Dropped::Protocol),
        }
        Ok(())
    }

    fn receive_icmp(&mut self, packet: &Packet<'_>) -> Result<(), Dropped> {
        let is_mixed = packet.source.is_ipv4() != (packet.protocol == IpProtocol::Icmp);
        let echo = Echo::of(packet)
            .filter(|_| !is_mixed)
            .ok_or(Dropped::Protocol)?;
        let destination = packet.destination;
        if is_gateway(destination) || is_resolver(destination) {
            echo.reply(&mut self.link, destination);
            return Ok(());
        }
        match self.policy.target(destination, None) {
            Target::Host(target) => {
                self.flows
                    .ping(&mut self.link, packet, &echo, token::FLOW, target);
            }
            Target::Resolver | Target::Nowhere => {
                self.link.statistics.drop(Dropped::Refused);
                icmp::complain(&mut self.link, packet.bytes, Unreachable::Prohibited);
            }
        }
        Ok(())
    }

    /// Takes who has come to published ports.
    fn answer_calls(&mut self) {
        for call in std::mem::take(&mut self.called) {
            let index = usize::try_from(call & token::NUMBER).unwrap_or(usize::MAX);
            let is_more = match call & !token::NUMBER {
                token::LISTENER => self.accept(index),
                _ => self.take_published(index),
            };
            if is_more {
                self.called.push(call);
            }
        }
    }

    fn accept(&mut self, index: usize) -> bool {
        let Some((port, listener)) = self.listeners.get(index) else {
            return false;
        };
        (0..COMERS).all(|_| {
            self.connections
                .accept(&mut self.link, listener, *port, token::CONNECTION)
        })
    }

    fn take_published(&mut self, index: usize) -> bool {
        let Some((port, socket)) = self.published.get(index) else {
            return false;
        };
        (0..COMERS).all(|_| {
            self.link.is_full()
                || self
                    .flows
                    .take_published(&mut self.link, index, *port, socket)
        })
    }
}

fn transport(policy: &Policy, remote: SocketAddr, transport: Transport) -> Target {
    policy.target(remote.ip(), Some((transport, remote.port())))
}
