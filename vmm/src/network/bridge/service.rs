//! What the monitor of a machine on a network does for it: answers questions for names, and carries what comes to published ports from
//! the host itself, which no rule of nftables can hand on from its loopback. One thread, and one for each connection.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::record::Lease;
use super::resolver::{Counted, Resolver};
use crate::network::PublishedPort;
use crate::network::gateway::policy::Transport;

/// How many connections from the host are carried at a time.
const MOST_CONNECTIONS: usize = 256;
/// How many of the host's may wait for datagrams from the machine; the one that has said nothing for longest goes first.
const MOST_FLOWS: usize = 256;
/// For how long one may say nothing.
const FLOW_PATIENCE: Duration = Duration::from_secs(60);
/// How long a machine has to take a connection.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long to leave who comes when nobody can be taken.
const PAUSE: Duration = Duration::from_millis(10);
/// How many datagrams are moved before others get their turn.
const MOST_AT_ONCE: usize = 64;
/// The longest datagram.
const MOST_DATAGRAM_BYTES: usize = 65_535;

/// A port of the host's, and whom it leads to.
#[derive(Debug)]
enum Port {
    Tcp(TcpListener, SocketAddr),
    Udp(UdpSocket, SocketAddr),
}

/// The two ends of a connection that is carried.
type Ends = (TcpStream, TcpStream);

/// Connections that are carried.
#[derive(Debug, Default)]
struct Carried {
    count: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<Weak<Ends>>>>,
}

/// Datagrams of one program on the host.
#[derive(Debug)]
struct Flow {
    /// From there to the machine.
    socket: UdpSocket,
    used: Instant,
}

/// All that is open for a machine on a network.
#[derive(Debug)]
pub(super) struct Service {
    resolver: Resolver,
    ports: Vec<Port>,
    /// By the number of their port and where they come from.
    flows: HashMap<(usize, SocketAddr), Flow>,
    carried: Carried,
}

/// A service that works, until this is dropped.
#[derive(Debug)]
pub(super) struct RunningService {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// `sockets` are those of each published port.
    pub(super) fn new(
        resolver: Resolver,
        lease: &Lease,
        sockets: Vec<(PublishedPort, OwnedFd)>,
    ) -> io::Result<Self> {
        let mut ports = Vec::new();
        for (port, socket) in sockets {
            ports.push(match port.transport {
                Transport::Tcp => {
                    let listener = TcpListener::from(socket);
                    let at = listener.local_addr()?;
                    Port::Tcp(listener, target(lease, at, port.port)?)
                }
                Transport::Udp => {
                    let socket = UdpSocket::from(socket);
                    let at = socket.local_addr()?;
                    Port::Udp(socket, target(lease, at, port.port)?)
                }
            });
        }
        Ok(Self {
            resolver,
            ports,
            flows: HashMap::new(),
            carried: Carried::default(),
        })
    }

    /// Begins to work. Call it when the monitor has forked for the last time before the machine's end.
    pub(super) fn start(self) -> io::Result<RunningService> {
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || self.run(&stopped))?;
        Ok(RunningService {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    fn run(mut self, stopped: &UnixStream) {
        while self.wait(stopped) {
            self.resolver.work();
            self.take_connections();
            self.take_datagrams();
            self.return_datagrams();
        }
        self.carried.end();
    }

    /// Waits until there is something to do; says whether it goes on.
    fn wait(&self, stopped: &UnixStream) -> bool {
        let flows = self.flows.values().map(|flow| flow.used + FLOW_PATIENCE);
        let due = flows.chain(self.resolver.due()).min();
        let left = due.map(|due| due.saturating_duration_since(Instant::now()));
        // What is due in less than a millisecond is not waited for in a circle.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let ports = self.ports.iter().map(Port::as_fd);
        let flows = self.flows.values().map(|flow| flow.socket.as_fd());
        let watched = self.resolver.watched().chain(ports).chain(flows);
        let mut descriptors: Vec<PollFd<'_>> = [stopped.as_fd()]
            .into_iter()
            .chain(watched)
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
        descriptors
            .first()
            .is_some_and(|stopped| stopped.revents().is_empty())
    }

    fn take_connections(&mut self) {
        for port in &self.ports {
            let Port::Tcp(listener, target) = port else {
                continue;
            };
            for _ in 0..MOST_AT_ONCE {
                match listener.accept() {
                    Ok((client, _)) => self.carried.begin(client, *target),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Without descriptors, who has come waits for some.
                    Err(_) => {
                        std::thread::sleep(PAUSE);
                        break;
                    }
                }
            }
        }
    }

    /// Hands the machine what programs of the host send.
    fn take_datagrams(&mut self) {
        let mut room = vec![0; MOST_DATAGRAM_BYTES];
        for (number, port) in self.ports.iter().enumerate() {
            let Port::Udp(socket, target) = port else {
                continue;
            };
            for _ in 0..MOST_AT_ONCE {
                let (length, from) = match socket.recv_from(&mut room) {
                    Ok(received) => received,
                    Err(error) if is_passing(&error) => continue,
                    Err(_) => break,
                };
                let datagram = room.get(..length).unwrap_or_default();
                if let Err(error) = send(&mut self.flows, (number, from), *target, datagram) {
                    tracing::debug!(%error, "a datagram for the machine was lost");
                }
            }
        }
    }

    /// Hands them what the machine answers.
    fn return_datagrams(&mut self) {
        let mut room = vec![0; MOST_DATAGRAM_BYTES];
        let now = Instant::now();
        for ((number, to), flow) in &mut self.flows {
            let Some(Port::Udp(socket, _)) = self.ports.get(*number) else {
                continue;
            };
            for _ in 0..MOST_AT_ONCE {
                let length = match flow.socket.recv(&mut room) {
                    Ok(length) => length,
                    Err(error) if is_passing(&error) => continue,
                    Err(_) => break,
                };
                flow.used = now;
                if let Err(error) = socket.send_to(room.get(..length).unwrap_or_default(), to) {
                    tracing::debug!(%error, "a datagram of the machine was lost");
                }
            }
        }
        self.flows.retain(|_, flow| flow.used + FLOW_PATIENCE > now);
    }
}

impl Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener, _) => listener.as_fd(),
            Self::Udp(socket, _) => socket.as_fd(),
        }
    }
}

impl Drop for RunningService {
    fn drop(&mut self) {
        self.stop.take();
        let thread = self.thread.take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the thread that serves the machine's network has failed");
        }
    }
}

/// Where a machine is reached from an address of the host's: in the same family, if it has that.
fn target(lease: &Lease, at: SocketAddr, port: u16) -> io::Result<SocketAddr> {
    let address = lease
        .address(at.is_ipv4())
        .or_else(|| lease.address(!at.is_ipv4()));
    let address: IpAddr = address.ok_or(io::ErrorKind::AddrNotAvailable)?.address;
    Ok(SocketAddr::new(address, port))
}

/// What says something of an earlier datagram only.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionRefused
    )
}

fn send(
    flows: &mut HashMap<(usize, SocketAddr), Flow>,
    key: (usize, SocketAddr),
    target: SocketAddr,
    datagram: &[u8],
) -> io::Result<()> {
    if !flows.contains_key(&key) {
        if flows.len() >= MOST_FLOWS {
            let oldest = flows.iter().min_by_key(|(_, flow)| flow.used);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                flows.remove(&oldest);
            }
        }
        let any: IpAddr = match target.is_ipv4() {
            true => std::net::Ipv4Addr::UNSPECIFIED.into(),
            false => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(target)?;
        let used = Instant::now();
        flows.insert(key, Flow { socket, used });
    }
    let Some(flow) = flows.get_mut(&key) else {
        return Ok(());
    };
    flow.used = Instant::now();
    match flow.socket.send(datagram) {
        // What an earlier one has met says nothing of this one.
        Err(error) if is_passing(&error) => flow.socket.send(datagram).map(drop),
        sent => sent.map(drop),
    }
}

impl Carried {
    /// Carries a connection in a thread of its own. One too many is reset.
    fn begin(&self, client: TcpStream, target: SocketAddr) {
        let counted = Counted::new(&self.count);
        if counted.others >= MOST_CONNECTIONS {
            return;
        }
        let open = Arc::clone(&self.open);
        let started = std::thread::Builder::new()
            .name("port".to_owned())
            .spawn(move || {
                let _counted = counted;
                if let Err(error) = carry(client, target, &open) {
                    tracing::debug!(%error, "a connection to a published port has ended");
                }
            });
        if let Err(error) = started {
            tracing::debug!(%error, "a connection to a published port is not carried");
        }
    }

    /// Ends all of them: their machine is gone.
    fn end(&self) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for ends in open.iter().filter_map(Weak::upgrade) {
            // One that has ended is ended.
            let _ = ends.0.shutdown(Shutdown::Both);
            let _ = ends.1.shutdown(Shutdown::Both);
        }
    }
}

/// Carries a connection to its end, each direction by itself.
fn carry(client: TcpStream, target: SocketAddr, open: &Mutex<Vec<Weak<Ends>>>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let machine = TcpStream::connect_timeout(&target, CONNECT_PATIENCE)?;
    client.set_nodelay(true)?;
    machine.set_nodelay(true)?;
    let ends = Arc::new((client, machine));
    {
        let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|ends| ends.strong_count() > 0);
        open.push(Arc::downgrade(&ends));
    }
    let (client, machine) = (&ends.0, &ends.1);
    std::thread::scope(|scope| {
        let back = std::thread::Builder::new()
            .name("port".to_owned())
            .spawn_scoped(scope, || pass_on(machine, client))?;
        pass_on(client, machine);
        // It has nothing that could fail.
        let _ = back.join();
        Ok(())
    })
}

/// Passes on what one end says, and that it has said all. Once that fails, nobody speaks any more.
fn pass_on(mut from: &TcpStream, mut to: &TcpStream) {
    let end = match io::copy(&mut from, &mut to) {
        Ok(_) => to.shutdown(Shutdown::Write),
        Err(_) => from
            .shutdown(Shutdown::Both)
            .and(to.shutdown(Shutdown::Both)),
    };
    if let Err(error) = end {
        tracing::debug!(%error, "an end of a connection was gone");
    }
}
