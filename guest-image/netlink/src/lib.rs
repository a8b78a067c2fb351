//! What is asked of the kernel about networks: rtnetlink(7), several requests in one message, and lists of what there is.
//!
//! The agent sets up a machine's interface with it, and the host a network's bridge.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// As much as the kernel says at a time (`NLMSG_GOODSIZE` is less).
const MOST_ANSWER_BYTES: usize = 64 << 10;
/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// What everything in a message begins at a multiple of.
const ALIGNMENT: usize = 4;

/// Kinds of requests (`include/uapi/linux/rtnetlink.h`).
pub mod kind {
    /// `RTM_NEWLINK`: a new link, which must not be there.
    pub const NEW_LINK: u16 = 16;
    /// `RTM_DELLINK`.
    pub const DELETE_LINK: u16 = 17;
    /// `RTM_GETLINK`.
    pub const GET_LINK: u16 = 18;
    /// `RTM_SETLINK`.
    pub const SET_LINK: u16 = 19;
    /// `RTM_NEWADDR`.
    pub const NEW_ADDRESS: u16 = 20;
    /// `RTM_NEWROUTE`.
    pub const NEW_ROUTE: u16 = 24;
    /// `RTM_GETROUTE`.
    pub const GET_ROUTE: u16 = 26;
    /// `RTM_NEWNEIGH`.
    pub const NEW_NEIGHBOUR: u16 = 28;
}

/// Attributes of a link (`include/uapi/linux/if_link.h`).
pub mod link_attribute {
    /// `IFLA_ADDRESS`.
    pub const ADDRESS: u16 = 1;
    /// `IFLA_IFNAME`, which ends with a zero.
    pub const NAME: u16 = 3;
    /// `IFLA_MTU`.
    pub const MTU: u16 = 4;
    /// `IFLA_MASTER`: the number of the bridge that it is on.
    pub const MASTER: u16 = 10;
    /// `IFLA_LINKINFO`, in which `IFLA_INFO_KIND` is 1.
    pub const INFO: u16 = 18;
    /// `IFLA_IFALIAS`: what somebody wrote on it.
    pub const ALIAS: u16 = 20;
    /// `IFLA_AF_SPEC`.
    pub const OF_FAMILIES: u16 = 26;
}

/// Flags of requests (`include/uapi/linux/netlink.h`): a request, and for something new that it is made or takes another's place.
const REQUEST: u16 = 0x1;
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
/// Of a question: about all that there are.
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;

/// The families of addresses, as they stand in requests.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Requests that go to the kernel together.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    /// Adds a request of this kind with a fixed part, and what `attributes` adds to it.
    pub fn request(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let flags = match kind {
            kind::NEW_LINK => REQUEST | CREATE | EXCLUSIVE,
            kind::NEW_ADDRESS | kind::NEW_ROUTE | kind::NEW_NEIGHBOUR => REQUEST | CREATE | REPLACE,
            _ => REQUEST,
        };
        self.add(kind, flags, fixed, attributes);
    }

    fn add(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend([0; 8]); // sequence number and port
        self.bytes.extend(fixed);
        attributes(&mut Attributes(&mut self.bytes));
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(start..start + size_of::<u32>()) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
    }

    /// Has the kernel carry all of it out, in its order. It goes on behind a request that fails.
    ///
    /// # Errors
    ///
    /// That of the first request that failed.
    pub fn carry_out(&self) -> rustix::io::Result<()> {
        let socket = socket(None)?;
        // An unconnected netlink socket sends to the kernel, which has answered when the call returns: only what went wrong, as
        // nothing is to be acknowledged.
        rustix::net::send(&socket, &self.bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        match rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT) {
            Ok((received, _)) => failed(answer.get(..received).unwrap_or_default()),
            Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A socket to the kernel; without a protocol, `NETLINK_ROUTE`.
///
/// # Errors
///
/// The kernel's, see socket(2).
pub fn socket(protocol: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        protocol,
    )
}

fn failed(answer: &[u8]) -> rustix::io::Result<()> {
    error(answer.get(HEADER_BYTES..).unwrap_or_default())
}

/// Reads what `NLMSG_ERROR` has behind its header; its error is 0 for success.
///
/// # Errors
///
/// What it says.
pub fn error(message: &[u8]) -> rustix::io::Result<()> {
    let error = message.first_chunk().ok_or(Errno::PROTO)?;
    match i32::from_ne_bytes(*error) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}

/// Asks for all that there are of a kind, and returns what the kernel says of each, its header left out.
///
/// # Errors
///
/// That of the kernel.
pub fn list(kind: u16, fixed: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut question = Batch::default();
    question.add(kind, REQUEST | DUMP, fixed, |_| ());
    let socket = socket(None)?;
    rustix::net::send(&socket, &question.bytes, SendFlags::empty())?;
    let mut found = Vec::new();
    let mut room = vec![0; MOST_ANSWER_BYTES];
    loop {
        let received = match rustix::net::recv(&socket, &mut *room, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?.0,
        };
        let mut rest = room.get(..received).unwrap_or_default();
        while let Some((length, kind)) = header(rest) {
            let message = rest.get(..length).ok_or(Errno::PROTO)?;
            match kind {
                DONE => return Ok(found),
                ERROR => return failed(message).map(|()| found),
                _ => found.push(message.get(HEADER_BYTES..).unwrap_or_default().to_vec()),
            }
            let next = length.next_multiple_of(ALIGNMENT);
            rest = rest.get(next..).unwrap_or_default();
        }
    }
}

/// The length of a message, at least that of its header, and its kind.
fn header(message: &[u8]) -> Option<(usize, u16)> {
    let length = usize::try_from(u32::from_ne_bytes(*message.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    (length >= HEADER_BYTES).then_some((length, kind))
}

/// The attributes in what the kernel says, each with its kind; without the bits that say how it is written.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    const BEGINNING_BYTES: usize = 4;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?);
        let value = bytes.get(BEGINNING_BYTES..length)?;
        let next = length.next_multiple_of(ALIGNMENT);
        bytes = bytes.get(next..).unwrap_or_default();
        Some((kind & KIND, value))
    })
}

/// The attributes of a request.
#[derive(Debug)]
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds one: its length, its kind, its value.
    pub fn add(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |inner| inner.0.extend(value));
    }

    /// Adds one that has attributes in it.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(&mut Attributes(self.0));
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = self.0.get_mut(start..start + size_of::<u16>()) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
    }

    /// Adds an address.
    pub fn add_address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add(kind, &address.octets()),
            IpAddr::V6(address) => self.add(kind, &address.octets()),
        }
    }
}

/// The family of an address, as it stands in requests.
#[must_use]
pub fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => INET,
        IpAddr::V6(_) => INET6,
    }
}

/// The number of IPv6's settings of a link (`IFLA_AF_SPEC`).
pub const AF_INET6: u16 = INET6 as u16;

/// `struct ifinfomsg`: a link, and which of its flags to change to what.
#[must_use]
pub fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4]; // family, padding, type
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(change.to_ne_bytes());
    fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_the_loopback() {
        let links = list(kind::GET_LINK, &link(0, 0, 0)).unwrap();
        let is_loopback = |body: &Vec<u8>| {
            let mut found = attributes(&body[16..]);
            found.any(|(kind, value)| kind == link_attribute::NAME && value == b"lo\0")
        };
        assert!(links.iter().any(is_loopback));
    }

    #[test]
    fn attributes_that_are_cut_off_are_none() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).add(3, b"name");
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [(3, &b"name"[..])]);
        for length in 0..bytes.len() {
            assert_eq!(attributes(&bytes[..length]).count(), 0);
        }
    }
}
