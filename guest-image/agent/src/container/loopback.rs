//! Brings the loopback interface up: rtnetlink(7).

use protocol::StartFailure;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::step::Step as _;

/// The loopback interface has this index in every network namespace (`LOOPBACK_IFINDEX`, `include/net/flow.h`).
const LOOPBACK_INDEX: i32 = 1;

/// Sets the loopback interface of the caller's network namespace up; it gets its addresses with that.
///
/// # Errors
///
/// If the kernel refuses it.
pub(crate) fn set_up() -> Result<(), StartFailure> {
    request().step(|| "setting up the loopback interface".to_owned())
}

fn request() -> rustix::io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // An unconnected netlink socket sends to the kernel, which has answered when the call returns.
    rustix::net::send(&socket, &set_link_up(LOOPBACK_INDEX), SendFlags::empty())?;
    let mut answer = [0; 256];
    let (received, _) = rustix::net::recv(&socket, &mut answer, RecvFlags::DONTWAIT)?;
    acknowledged(answer.get(..received).unwrap_or_default())
}

/// `RTM_NEWLINK` with `IFF_UP`, to be acknowledged: `struct nlmsghdr` and `struct ifinfomsg`.
fn set_link_up(index: i32) -> Vec<u8> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const IFF_UP: u32 = 1;
    let mut message = Vec::new();
    message.extend(LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port
    message.extend([0; 4]); // family, padding, type
    message.extend(index.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes()); // the flags
    message.extend(IFF_UP.to_ne_bytes()); // which of them to change
    message
}

/// Reads `NLMSG_ERROR`, whose error is 0 for success.
fn acknowledged(answer: &[u8]) -> rustix::io::Result<()> {
    const HEADER_BYTES: usize = 16;
    let error = answer
        .get(HEADER_BYTES..)
        .and_then(|body| body.first_chunk())
        .ok_or(Errno::PROTO)?;
    match i32::from_ne_bytes(*error) {
        0 => Ok(()),
        error => Err(Errno::from_raw_os_error(error.saturating_neg())),
    }
}
