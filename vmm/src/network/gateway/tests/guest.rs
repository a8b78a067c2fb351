//! A guest and its gateway, in threads of the test.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};

use super::super::addresses::{
    GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4, GUEST_IPV6, MTU, PREFIX_IPV4_BITS, PREFIX_IPV6_BITS,
};
use super::super::engine::Engine;
use super::super::frame::{ETHERNET_BYTES, MOST_BYTES, VIRTIO_BYTES};
use super::super::policy::Policy;
use super::super::statistics::Statistics;
use super::super::{Configuration, wire};

pub(super) const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x15];
/// Longer than anything takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(40);

/// A configuration with which the host's loopback is reached.
pub(super) fn with_loopback() -> Configuration {
    Configuration {
        guest_mac: GUEST_MAC,
        policy: Policy {
            host_loopback: true,
            ..Policy::default()
        },
        published: Vec::new(),
    }
}

/// The gateway's address, with this port.
pub(super) fn at_gateway(is_ipv6: bool, port: u16) -> SocketAddr {
    match is_ipv6 {
        true => (GATEWAY_IPV6, port).into(),
        false => (GATEWAY_IPV4, port).into(),
    }
}

/// A gateway in a thread. It ends when the guest's end of the wire is closed.
pub(super) struct Running {
    control: OwnedFd,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    pub(super) fn start(
        configuration: &Configuration,
        sockets: Vec<OwnedFd>,
        name_servers: Vec<SocketAddr>,
    ) -> (OwnedFd, Self) {
        let (guest, gateway) = wire().unwrap();
        let flags = SocketFlags::CLOEXEC;
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut engine = Engine::new(configuration, gateway, theirs, sockets).unwrap();
        engine.resolver.ask_only(name_servers);
        let thread = Some(std::thread::spawn(move || engine.run()));
        (guest, Self { control, thread })
    }

    pub(super) fn statistics(&self) -> Statistics {
        rustix::net::send(&self.control, &[0], SendFlags::NOSIGNAL).unwrap();
        let mut bytes = [0; 4096];
        let (count, _) = rustix::net::recv(&self.control, &mut bytes, RecvFlags::empty()).unwrap();
        postcard::from_bytes(&bytes[..count]).unwrap()
    }

    /// Waits until all that was open is closed.
    pub(super) fn await_no_connection(&self, guest: &mut Guest) {
        guest.until("the end of all connections", |_| {
            self.statistics().tcp_connections_open == 0
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        self.control = one.into();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

/// The guest's end of the wire.
pub(super) struct Wire {
    pub(super) socket: OwnedFd,
    frame: Vec<u8>,
}

impl Wire {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            frame: vec![0; MOST_BYTES],
        }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        loop {
            match rustix::net::send(&self.socket, frame, SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::AGAIN) => self.wait(PollFlags::OUT, Duration::from_secs(1)),
                sent => {
                    assert_eq!(sent.unwrap(), frame.len());
                    return;
                }
            }
        }
    }

    /// The next frame, if one comes in time.
    pub(super) fn receive(&mut self, patience: Duration) -> Option<Vec<u8>> {
        self.wait(PollFlags::IN, patience);
        let received = rustix::net::recv(&self.socket, &mut *self.frame, RecvFlags::DONTWAIT);
        let (count, _) = received.ok().filter(|(count, _)| *count > 0)?;
        Some(self.frame[..count].to_vec())
    }

    fn wait(&self, flags: PollFlags, patience: Duration) {
        let timeout = Timespec::try_from(patience).unwrap();
        poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)).unwrap();
    }
}

impl phy::Device for Wire {
    type RxToken<'a> = Frame;
    type TxToken<'a> = &'a Wire;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Frame, &Wire)> {
        let frame = Wire::receive(self, Duration::ZERO)?;
        Some((Frame(frame), self))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<&Wire> {
        Some(self)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + ETHERNET_BYTES;
        // What comes in has a checksum that is still to be computed.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.udp = Checksum::Tx;
        capabilities
    }
}

pub(super) struct Frame(Vec<u8>);

impl phy::RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0[VIRTIO_BYTES..])
    }
}

impl phy::TxToken for &Wire {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, fill: F) -> R {
        let mut frame = vec![0; VIRTIO_BYTES + bytes];
        let result = fill(&mut frame[VIRTIO_BYTES..]);
        self.send(&frame);
        result
    }
}

/// A guest with a stack.
pub(super) struct Guest {
    pub(super) wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    next_port: u16,
}

impl Guest {
    pub(super) fn new(socket: OwnedFd) -> Self {
        let mut wire = Wire::new(socket);
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(GUEST_MAC)));
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            let ipv4 = IpCidr::new(GUEST_IPV4.into(), PREFIX_IPV4_BITS);
            let ipv6 = IpCidr::new(GUEST_IPV6.into(), PREFIX_IPV6_BITS);
            addresses.extend([ipv4, ipv6]);
        });
        let routes = interface.routes_mut();
        routes.add_default_ipv4_route(GATEWAY_IPV4).unwrap();
        routes.add_default_ipv6_route(GATEWAY_IPV6).unwrap();
        Self {
            wire,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: Instant::now(),
            next_port: 40_000,
        }
    }

    /// A guest whose gateway lets it reach the host's loopback.
    pub(super) fn with_loopback() -> (Self, Running) {
        let (socket, running) = Running::start(&with_loopback(), Vec::new(), Vec::new());
        (Self::new(socket), running)
    }

    /// Lets the stack do what it can do now.
    pub(super) fn turn(&mut self) -> bool {
        let now = smoltcp::time::Instant::from_micros(
            i64::try_from(self.start.elapsed().as_micros()).unwrap() + 1000,
        );
        let before = self.interface.poll(now, &mut self.wire, &mut self.sockets);
        before != smoltcp::iface::PollResult::None
    }

    /// Goes on until `is_so`.
    pub(super) fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let has_moved = self.turn();
            if is_so(self) {
                self.turn();
                return;
            }
            assert!(Instant::now() < deadline, "{what} did not come in time");
            if !has_moved {
                self.wire.wait(PollFlags::IN, Duration::from_millis(5));
            }
        }
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub(super) fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn add_tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    /// Begins to connect.
    pub(super) fn begin(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.add_tcp();
        self.next_port = self.next_port.wrapping_add(1).max(10_000);
        let port = self.next_port;
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(context, IpEndpoint::from(to), port).unwrap();
        handle
    }

    pub(super) fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.begin(to);
        self.until("a connection", |guest| guest.tcp(handle).may_send());
        handle
    }

    pub(super) fn listen(&mut self, address: Option<IpAddr>, port: u16) -> SocketHandle {
        let handle = self.add_tcp();
        let endpoint = smoltcp::wire::IpListenEndpoint {
            addr: address.map(Into::into),
            port,
        };
        self.tcp(handle).listen(endpoint).unwrap();
        handle
    }

    pub(super) fn forget(&mut self, handle: SocketHandle) {
        self.sockets.remove(handle);
    }

    /// Sends all of it.
    pub(super) fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.until("room to send", |guest| {
            let sent = guest.tcp(handle).send_slice(bytes).unwrap();
            bytes = &bytes[sent..];
            bytes.is_empty()
        });
    }

    /// Takes what has come; `None` when the other side has nothing more to say.
    pub(super) fn take(&mut self, handle: SocketHandle) -> Option<Vec<u8>> {
        let socket = self.tcp(handle);
        match socket.can_recv() {
            true => socket
                .recv(|bytes| (bytes.len(), Some(bytes.to_vec())))
                .unwrap(),
            false => socket.may_recv().then(Vec::new),
        }
    }

    /// Takes all up to the end.
    pub(super) fn read_to_end(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut all = Vec::new();
        self.until("the end", |guest| match guest.take(handle) {
            Some(bytes) => {
                all.extend(bytes);
                false
            }
            None => true,
        });
        all
    }

    pub(super) fn bind_udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 256 << 10]);
        let handle = self.sockets.add(udp::Socket::new(buffer(), buffer()));
        self.udp(handle).bind(port).unwrap();
        handle
    }

    pub(super) fn send_udp(&mut self, handle: SocketHandle, bytes: &[u8], to: SocketAddr) {
        self.udp(handle)
            .send_slice(bytes, IpEndpoint::from(to))
            .unwrap();
        self.turn();
    }

    pub(super) fn receive_udp(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        let mut received = None;
        self.until("a datagram", |guest| {
            let socket = guest.udp(handle);
            received = socket.recv().ok().map(|(bytes, from)| {
                let from = SocketAddr::new(from.endpoint.addr.into(), from.endpoint.port);
                (bytes.to_vec(), from)
            });
            received.is_some()
        });
        received.unwrap()
    }
}
