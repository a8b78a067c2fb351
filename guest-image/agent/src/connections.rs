//! Connections of a machine that was written down: in a copy of it, nobody is at their other ends.
//!
//! They are found and ended by sock_diag(7) (`include/uapi/linux/inet_diag.h`), so that whoever waits for one learns of it at once.
//! What listens stays, and so do connections whose other end is in the machine, too. A socket of UDP has no connection that could end:
//! what it sends next goes out as ever.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{RecvFlags, SendFlags};

/// Kinds of messages (`include/uapi/linux/sock_diag.h`, `netlink.h`).
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flags of requests: a request, and for all that there are.
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;

const INET: u8 = 2;
const INET6: u8 = 10;
const TCP: u8 = 6;
/// States of TCP (`include/net/tcp_states.h`).
const TIME_WAIT: u8 = 6;
const CLOSED: u8 = 7;
const LISTEN: u8 = 10;
/// All in which there is somebody at the other end.
const CONNECTED: u32 = !(1 << CLOSED | 1 << LISTEN);

/// Length of `struct nlmsghdr`, and of the parts of `struct inet_diag_msg`.
const HEADER_BYTES: usize = 16;
const BEFORE_ID_BYTES: usize = 4;
/// `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;
/// How many connections are ended by one message.
const BATCH: usize = 64;
/// What the kernel says in one answer at most (`NLMSG_GOODSIZE`, and twice that for a reader that has the room).
const ANSWER_BYTES: usize = 32 << 10;

/// A connection, as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Connection {
    family: u8,
    state: u8,
    id: [u8; ID_BYTES],
}

impl Connection {
    /// Reads `struct inet_diag_msg`: family, state, two more bytes, and the name.
    fn read(message: &[u8]) -> Option<Self> {
        let (&[family, state, _, _], rest) = message.split_first_chunk::<BEFORE_ID_BYTES>()?;
        let id = *rest.first_chunk()?;
        Some(Self { family, state, id })
    }

    /// Its end here and the other one: two ports, then two addresses of 16 bytes, all as on the wire.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (own_port, rest) = self.id.split_first_chunk()?;
        let (other_port, rest) = rest.split_first_chunk()?;
        let (own, rest) = rest.split_first_chunk()?;
        let end = |address: &[u8; 16], port: &[u8; 2]| {
            SocketAddr::new(self.address(address), u16::from_be_bytes(*port))
        };
        Some((end(own, own_port), end(rest.first_chunk()?, other_port)))
    }

    fn address(&self, bytes: &[u8; 16]) -> IpAddr {
        let [b0, b1, b2, b3, ..] = *bytes;
        match self.family {
            INET => Ipv4Addr::new(b0, b1, b2, b3).into(),
            _ => Ipv6Addr::from(*bytes).to_canonical(),
        }
    }

    /// `struct inet_diag_req_v2`: family, protocol, extensions, padding, states, the name.
    fn request(&self, kind: u16, flags: u16, states: u32) -> Vec<u8> {
        const REQUEST_BYTES: usize = HEADER_BYTES + 8 + ID_BYTES;
        let length = u32::try_from(REQUEST_BYTES).unwrap_or_default();
        let mut message = Vec::with_capacity(REQUEST_BYTES);
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]); // sequence number and port
        message.extend([self.family, TCP, 0, 0]);
        message.extend(states.to_ne_bytes());
        message.extend(self.id);
        message
    }
}

/// Ends all connections that lead out of the machine. One that ends by itself meanwhile is none.
///
/// # Errors
///
/// If the kernel does not list them.
pub(crate) fn reset() -> rustix::io::Result<()> {
    let socket = netlink::socket(Some(SOCK_DIAG))?;
    let mut all = list(socket.as_fd(), INET)?;
    all.extend(list(socket.as_fd(), INET6)?);
    let leading_out = leading_out(&all);
    for some in leading_out.chunks(BATCH) {
        let requests = some.iter().map(|it| it.request(DESTROY, 0, CONNECTED));
        let message: Vec<u8> = requests.flatten().collect();
        // It is done when this returns; what could not be done was over.
        rustix::net::send(&socket, &message, SendFlags::empty())?;
    }
    Ok(())
}

/// Those whose other end is not in the machine.
fn leading_out(all: &[Connection]) -> Vec<&Connection> {
    let here: HashSet<_> = all.iter().filter_map(Connection::ends).collect();
    let leads_out = |it: &&Connection| {
        it.state != TIME_WAIT
            && it.ends().is_some_and(|(own, other)| {
                !other.ip().is_loopback() && !here.contains(&(other, own))
            })
    };
    all.iter().filter(leads_out).collect()
}

/// All connections of a family.
fn list(socket: BorrowedFd<'_>, family: u8) -> rustix::io::Result<Vec<Connection>> {
    let any = Connection {
        family,
        state: 0,
        id: [0; ID_BYTES],
    };
    let request = any.request(BY_FAMILY, DUMP, CONNECTED);
    rustix::net::send(socket, &request, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    loop {
        let (received, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
        if take(answer.get(..received).unwrap_or_default(), &mut found)? {
            return Ok(found);
        }
    }
}

/// Takes what the kernel tells of connections, and says whether that was all.
fn take(mut answer: &[u8], found: &mut Vec<Connection>) -> rustix::io::Result<bool> {
    while let Some((length, kind)) = header(answer) {
        let message = answer.get(HEADER_BYTES..length).ok_or(Errno::PROTO)?;
        match kind {
            DONE => return Ok(true),
            ERROR => netlink::error(message)?,
            _ => found.extend(Connection::read(message)),
        }
        answer = answer
            .get(length.next_multiple_of(size_of::<u32>())..)
            .unwrap_or_default();
    }
    match answer.is_empty() {
        true => Ok(false),
        false => Err(Errno::PROTO),
    }
}

/// The length and the kind of a message, whose header is in its length.
fn header(answer: &[u8]) -> Option<(usize, u16)> {
    let (length, rest) = answer.split_first_chunk::<4>()?;
    let kind = rest.first_chunk::<2>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    (length >= HEADER_BYTES).then_some((length, u16::from_ne_bytes(*kind)))
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const ESTABLISHED: u8 = 1;

    fn connection(own: &str, other: &str) -> Connection {
        let (own, other): (SocketAddr, SocketAddr) = (own.parse().unwrap(), other.parse().unwrap());
        let mut id = [0; ID_BYTES];
        id[..2].copy_from_slice(&own.port().to_be_bytes());
        id[2..4].copy_from_slice(&other.port().to_be_bytes());
        for (place, address) in [(4, own.ip()), (20, other.ip())] {
            match address {
                IpAddr::V4(address) => id[place..place + 4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => id[place..place + 16].copy_from_slice(&address.octets()),
            }
        }
        Connection {
            family: if own.is_ipv4() { INET } else { INET6 },
            state: ESTABLISHED,
            id,
        }
    }

    #[test]
    fn connections_within_the_machine_stay() {
        let out = connection("10.0.2.15:40000", "192.0.2.1:80");
        let all = [
            connection("127.0.0.1:1", "127.0.0.1:2"),
            out.clone(),
            connection("10.0.2.15:3", "10.0.2.15:4"),
            connection("[::ffff:10.0.2.15]:4", "[::ffff:10.0.2.15]:3"),
            connection("[::1]:5", "[::1]:6"),
        ];
        assert_eq!(leading_out(&all), [&out]);
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error_and_its_end_is_seen() {
        let message = connection("10.0.2.15:1", "192.0.2.1:80").request(BY_FAMILY, 0, 0);
        let mut found = Vec::new();
        assert_eq!(take(&message, &mut found), Ok(false));
        assert_eq!(found.len(), 1);
        assert!(take(&message[..20], &mut found).is_err());
        assert!(take(&[1, 2, 3], &mut found).is_err());
        let mut done = vec![20, 0, 0, 0, 3, 0];
        done.resize(20, 0);
        assert_eq!(take(&done, &mut found), Ok(true));
    }

    /// Both ends of connections of the host's loopback are listed by its kernel.
    #[test]
    fn the_kernels_list_has_both_ends_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (mut server, from) = listener.accept().unwrap();

        let socket = netlink::socket(Some(SOCK_DIAG)).unwrap();
        let all = list(socket.as_fd(), INET).unwrap();

        let ends: Vec<_> = all.iter().filter_map(Connection::ends).collect();
        assert!(ends.contains(&(from, at)) && ends.contains(&(at, from)));
        assert!(
            !ends
                .iter()
                .any(|(own, other)| own == &at && other.port() == 0)
        );
        client.write_all(b"x").unwrap();
        server.set_nonblocking(true).unwrap();
        let mut byte = [0];
        assert!(
            !matches!(server.read(&mut byte), Err(error) if error.kind() == ErrorKind::ConnectionAborted)
        );
    }
}
