//! Ports of a machine that are published on the host: as they are typed, decided, and opened for one start.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::str::FromStr;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, sockopt};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::gateway::MOST_PUBLISHED;
use super::gateway::policy::Transport;

/// How many who have come may wait to be taken (`SOMAXCONN` in Linux).
const BACKLOG: i32 = 4096;

/// Ports of one range: `PORT[-PORT][/tcp|udp]`, as with `--expose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypedPorts {
    first: u16,
    last: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What `--publish` has: `[[IP:][HOSTPORT[-HOSTPORT]]:]PORT[-PORT][/tcp|udp]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypedPublish {
    host: Option<IpAddr>,
    /// The first port of the host's, if it is not for the host to choose.
    host_first: Option<u16>,
    ports: TypedPorts,
}

/// A port that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Through which address of the host's; none for all of them.
    pub host: Option<IpAddr>,
    /// The port of the host's.
    pub host_port: u16,
    /// The machine's.
    pub port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// What was typed and names no ports.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TypedPortsError {
    /// Not a port.
    #[error("'{0}' is no port from 1 to 65535 and no range of them")]
    Port(String),
    /// Another protocol.
    #[error("'{0}' is neither tcp nor udp")]
    Transport(String),
    /// Not an address.
    #[error("'{0}' is no address of the host's, such as 127.0.0.1 or [::1]")]
    Address(String),
    /// Ranges that do not fit.
    #[error("'{0}' has ranges of different lengths")]
    Lengths(String),
}

/// A port that cannot be published.
#[derive(Debug, Error)]
pub enum PortError {
    /// Somebody else has it.
    #[error("Bind for {0} failed: port is already allocated")]
    Taken(SocketAddr),
    /// It takes more rights.
    #[error(
        "cannot publish {0}: a port below that of /proc/sys/net/ipv4/ip_unprivileged_port_start is root's"
    )]
    NoRight(SocketAddr),
    /// No interface of the host's has the address.
    #[error("cannot publish {0}: the host has no such address")]
    NotHere(SocketAddr),
    /// The host refuses.
    #[error("cannot publish {address}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More than there may be.
    #[error(
        "{0} ports are published, and {MOST_PUBLISHED} may be, an address of IPv4 and one of IPv6 each"
    )]
    TooMany(usize),
}

impl FromStr for TypedPorts {
    type Err = TypedPortsError;

    fn from_str(text: &str) -> Result<Self, TypedPortsError> {
        let (range, transport) = match text.split_once('/') {
            None => (text, Transport::Tcp),
            Some((range, transport)) => (
                range,
                match transport.to_ascii_lowercase().as_str() {
                    "tcp" => Transport::Tcp,
                    "udp" => Transport::Udp,
                    _ => return Err(TypedPortsError::Transport(transport.to_owned())),
                },
            ),
        };
        let (first, last) = parse_range(range)?;
        Ok(Self {
            first,
            last,
            transport,
        })
    }
}

impl TypedPorts {
    /// Whether a port that is published is one of these.
    #[must_use]
    pub fn includes(&self, port: &PublishedPort) -> bool {
        (self.first..=self.last).contains(&port.port) && port.transport == self.transport
    }
}

impl fmt::Display for TypedPorts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(formatter, "{}/{}", self.first, self.transport),
            false => write!(formatter, "{}-{}/{}", self.first, self.last, self.transport),
        }
    }
}

fn parse_range(text: &str) -> Result<(u16, u16), TypedPortsError> {
    let wrong = || TypedPortsError::Port(text.to_owned());
    let port = |text: &str| match text.parse() {
        Ok(port) if port > 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(port),
        _ => Err(wrong()),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match first <= last {
        true => Ok((first, last)),
        false => Err(wrong()),
    }
}

impl FromStr for TypedPublish {
    type Err = TypedPortsError;

    fn from_str(text: &str) -> Result<Self, TypedPortsError> {
        let (before, ports) = match text.rsplit_once(':') {
            Some((before, ports)) => (Some(before), ports),
            None => (None, text),
        };
        let ports: TypedPorts = ports.parse()?;
        let (host, host_ports) = match before {
            None => (None, None),
            Some(before) => match before.rsplit_once(':') {
                Some((host, range)) => (Some(parse_host(host)?), Some(range)),
                None => (None, Some(before)),
            },
        };
        let host_ports = host_ports.filter(|range| !range.is_empty());
        let host_first = match host_ports.map(parse_range).transpose()? {
            None => None,
            Some((first, last)) if last - first == ports.last - ports.first => Some(first),
            Some(_) => return Err(TypedPortsError::Lengths(text.to_owned())),
        };
        Ok(Self {
            host,
            host_first,
            ports,
        })
    }
}

fn parse_host(text: &str) -> Result<IpAddr, TypedPortsError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse()
        .map_err(|_| TypedPortsError::Address(text.to_owned()))
}

impl TypedPublish {
    /// How many ports that are.
    #[must_use]
    pub fn count(&self) -> usize {
        (self.ports.first..=self.ports.last).len()
    }

    /// Whether it publishes all of these ports.
    #[must_use]
    pub fn includes(&self, ports: &TypedPorts) -> bool {
        let own = self.ports.first..=self.ports.last;
        own.contains(&ports.first)
            && own.contains(&ports.last)
            && self.ports.transport == ports.transport
    }

    /// What publishes these ports wherever the host likes.
    #[must_use]
    pub fn anywhere(ports: TypedPorts) -> Self {
        Self {
            host: None,
            host_first: None,
            ports,
        }
    }

    /// Decides which ports of the host's those are. One that the host chooses stays the machine's at its other starts.
    ///
    /// # Errors
    ///
    /// If the host has none.
    pub(super) fn decide(self) -> Result<Vec<PublishedPort>, PortError> {
        let ports = self.ports.first..=self.ports.last;
        let decided = ports.zip(0..).map(|(port, offset): (u16, u16)| {
            let transport = self.ports.transport;
            let mut published = PublishedPort {
                host: self.host,
                host_port: 0,
                port,
                transport,
            };
            published.host_port = match self.host_first {
                Some(first) => first.saturating_add(offset),
                None => published.free_port()?,
            };
            Ok(published)
        });
        decided.collect()
    }
}

impl PublishedPort {
    /// Where that is on the host: without an address, everywhere.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let hosts = self.host.map_or(all.to_vec(), |host| vec![host]);
        let port = self.host_port;
        hosts.into_iter().map(|host| (host, port).into()).collect()
    }

    /// A port that nobody has.
    fn free_port(&self) -> Result<u16, PortError> {
        let host = self.host.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let address = SocketAddr::new(host, 0);
        let socket = open(address, self.transport).map_err(|error| failed(address, error))?;
        let bound = getsockname(&socket).map_err(|error| failed(address, error))?;
        let bound = SocketAddr::try_from(bound).map_err(|error| failed(address, error))?;
        Ok(bound.port())
    }

    /// Opens it: a socket for each address. A host without IPv6 has none of it.
    pub(super) fn open(&self) -> Result<Vec<OwnedFd>, PortError> {
        let mut sockets = Vec::new();
        for address in self.addresses() {
            match open(address, self.transport) {
                Ok(socket) => sockets.push(socket),
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                    if self.host.is_none() && address.is_ipv6() => {}
                Err(error) => return Err(failed(address, error)),
            }
        }
        Ok(sockets)
    }
}

impl fmt::Display for PublishedPort {
    /// As `docker port` has it: the machine's port and its protocol.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.port, self.transport)
    }
}

fn open(address: SocketAddr, transport: Transport) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if transport == Transport::Tcp {
        // Connections of an earlier machine that have just ended are not in the way.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &address)?;
    if transport == Transport::Tcp {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn failed(address: SocketAddr, error: Errno) -> PortError {
    match error {
        Errno::ADDRINUSE => PortError::Taken(address),
        Errno::ACCESS | Errno::PERM => PortError::NoRight(address),
        Errno::ADDRNOTAVAIL => PortError::NotHere(address),
        error => PortError::Refused {
            address,
            source: error.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(text: &str) -> Vec<(Option<IpAddr>, u16, u16, Transport)> {
        let ports = text.parse::<TypedPublish>().unwrap().decide().unwrap();
        let parts = |port: PublishedPort| (port.host, port.host_port, port.port, port.transport);
        ports.into_iter().map(parts).collect()
    }

    #[test]
    fn ports_are_published_as_with_docker() {
        let localhost = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(decided("8080:80"), [(None, 8080, 80, Transport::Tcp)]);
        assert_eq!(decided("53:53/udp"), [(None, 53, 53, Transport::Udp)]);
        let one = (localhost, 8080, 80, Transport::Tcp);
        assert_eq!(decided("127.0.0.1:8080:80/tcp"), [one]);
        let six = Some(IpAddr::from(Ipv6Addr::LOCALHOST));
        assert_eq!(decided("[::1]:8080:80"), [(six, 8080, 80, Transport::Tcp)]);
        let two = [
            (None, 8000, 80, Transport::Tcp),
            (None, 8001, 81, Transport::Tcp),
        ];
        assert_eq!(decided("8000-8001:80-81"), two);
    }

    #[test]
    fn a_port_that_is_not_named_is_the_hosts_to_choose() {
        for text in ["80", ":80", "127.0.0.1::80"] {
            let [(_, host_port, 80, Transport::Tcp)] = decided(text)[..] else {
                panic!("{text}");
            };
            assert!(host_port > 0);
        }
    }

    #[test]
    fn what_is_no_port_is_named() {
        for (text, sentence) in [
            ("70000:80", "'70000' is no port"),
            ("0:80", "'0' is no port"),
            ("80:90-80", "'90-80' is no port"),
            ("8000-8002:80-81", "different lengths"),
            ("80:80/sctp", "'sctp' is neither tcp nor udp"),
            ("localhost:80:80", "'localhost' is no address"),
            ("", "'' is no port"),
        ] {
            let error = text.parse::<TypedPublish>().unwrap_err().to_string();
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }

    #[test]
    fn a_taken_port_is_said_to_be_allocated() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = other.local_addr().unwrap();
        let text = format!("{at}:80");
        let [port] = text.parse::<TypedPublish>().unwrap().decide().unwrap()[..] else {
            panic!("one port");
        };
        let error = port.open().unwrap_err().to_string();
        assert_eq!(
            error,
            format!("Bind for {at} failed: port is already allocated")
        );
    }

    #[test]
    fn an_address_that_the_host_has_not_is_said_to_be_missing() {
        let [port] = "192.0.2.1:8080:80"
            .parse::<TypedPublish>()
            .unwrap()
            .decide()
            .unwrap()[..]
        else {
            panic!("one port");
        };
        let error = port.open().unwrap_err().to_string();
        assert_eq!(
            error,
            "cannot publish 192.0.2.1:8080: the host has no such address"
        );
    }

    #[test]
    fn a_port_of_all_addresses_is_one_of_both_families() {
        let [port] = "80".parse::<TypedPublish>().unwrap().decide().unwrap()[..] else {
            panic!("one port");
        };
        let sockets = port.open().unwrap();
        assert!(!sockets.is_empty());
        for address in port.addresses().iter().take(sockets.len()) {
            let host: IpAddr = match address.is_ipv4() {
                true => Ipv4Addr::LOCALHOST.into(),
                false => Ipv6Addr::LOCALHOST.into(),
            };
            std::net::TcpStream::connect((host, address.port())).unwrap();
        }
    }
}
