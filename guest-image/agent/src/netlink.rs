//! What is asked of the kernel about networks: rtnetlink(7), several requests in one message.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Length of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// What everything in a message begins at a multiple of.
const ALIGNMENT: usize = 4;

/// Kinds of requests (`include/uapi/linux/rtnetlink.h`).
pub(crate) mod kind {
    pub(crate) const SET_LINK: u16 = 19;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const NEW_NEIGHBOUR: u16 = 28;
}

/// Flags of requests (`include/uapi/linux/netlink.h`): a request, and for something new that it is made or takes another's place.
const REQUEST: u16 = 0x1;
const REPLACE: u16 = 0x100;
const CREATE: u16 = 0x400;

/// The families of addresses, as they stand in requests.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Requests that go to the kernel together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
}

impl Batch {
    /// Adds a request of this kind with a fixed part, and what `attributes` adds to it.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        fixed: &[u8],
        attributes: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        let flags = match kind {
            kind::NEW_ADDRESS | kind::NEW_ROUTE | kind::NEW_NEIGHBOUR => REQUEST | CREATE | REPLACE,
            _ => REQUEST,
        };
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
    pub(crate) fn carry_out(&self) -> rustix::io::Result<()> {
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
pub(crate) fn socket(protocol: Option<Protocol>) -> rustix::io::Result<OwnedFd> {
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
pub(crate) fn error(message: &[u8]) -> rustix::io::Result<()> {
    let error = message.first_chunk().ok_or(Errno::PROTO)?;
    match i32::from_ne_bytes(*error) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}

/// The attributes of a request.
#[derive(Debug)]
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds one: its length, its kind, its value.
    pub(crate) fn add(&mut self, kind: u16, value: &[u8]) {
        self.nest(kind, |inner| inner.0.extend(value));
    }

    /// Adds one that has attributes in it.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
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
    pub(crate) fn add_address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.add(kind, &address.octets()),
            IpAddr::V6(address) => self.add(kind, &address.octets()),
        }
    }
}

/// The family of an address.
pub(crate) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => INET,
        IpAddr::V6(_) => INET6,
    }
}

/// The number of IPv6's settings of a link (`IFLA_AF_SPEC`).
pub(crate) const AF_INET6: u16 = INET6 as u16;

/// `struct ifinfomsg`: a link, and which of its flags to change to what.
pub(crate) fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut fixed = vec![0; 4]; // family, padding, type
    fixed.extend(index.to_ne_bytes());
    fixed.extend(flags.to_ne_bytes());
    fixed.extend(change.to_ne_bytes());
    fixed
}
