//! What the guest is told about packets that cannot be carried, and answers to who asks whether the gateway is there.

use std::net::IpAddr;

use rustix::io::Errno;
use smoltcp::wire::{
    ArpOperation, ArpRepr, EthernetAddress, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet,
    Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, IpRepr,
    Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress,
};

use super::addresses::{GATEWAY_MAC, gateway_like, guest_like, is_gateway, is_resolver};
use super::frame::{self, Packet};
use super::link::{HOP_LIMIT, Link};

/// What of a packet is sent back with a complaint: its header and a little more (RFC 792; RFC 4443 allows more than it asks for).
const QUOTED_BYTES: usize = 64;
/// What neighbours send, so that nobody beyond them can (RFC 4861, section 7.1).
const NEIGHBOUR_HOP_LIMIT: u8 = 255;

/// Why something does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// Nobody listens.
    Port,
    /// There is no way there.
    Host,
    /// There is no way to the whole network.
    Network,
    /// It is forbidden.
    Prohibited,
}

impl Unreachable {
    /// Says what an error of the host's means; that nobody listens is `None`.
    pub(super) fn of(error: Errno) -> Option<Self> {
        match error {
            Errno::NETUNREACH | Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL => Some(Self::Network),
            Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN => Some(Self::Host),
            Errno::ACCESS | Errno::PERM => Some(Self::Prohibited),
            _ => None,
        }
    }

    fn of_ipv4(self) -> Icmpv4DstUnreachable {
        match self {
            Self::Port => Icmpv4DstUnreachable::PortUnreachable,
            Self::Host => Icmpv4DstUnreachable::HostUnreachable,
            Self::Network => Icmpv4DstUnreachable::NetUnreachable,
            Self::Prohibited => Icmpv4DstUnreachable::CommProhibited,
        }
    }

    fn of_ipv6(self) -> Icmpv6DstUnreachable {
        match self {
            Self::Port => Icmpv6DstUnreachable::PortUnreachable,
            Self::Host => Icmpv6DstUnreachable::AddrUnreachable,
            Self::Network => Icmpv6DstUnreachable::NoRoute,
            Self::Prohibited => Icmpv6DstUnreachable::AdminProhibit,
        }
    }
}

/// Tells the guest that its packet does not arrive.
pub(super) fn complain(link: &mut Link, packet: &[u8], why: Unreachable) {
    match packet.first().map(|first| first >> 4) {
        Some(4) => complain_ipv4(link, packet, why),
        Some(6) => complain_ipv6(link, packet, why),
        _ => {}
    }
}

fn complain_ipv4(link: &mut Link, packet: &[u8], why: Unreachable) {
    let Ok(quoted) = Ipv4Packet::new_checked(packet) else {
        return;
    };
    let data = quoted.payload();
    let complaint = Icmpv4Repr::DstUnreachable {
        reason: why.of_ipv4(),
        header: Ipv4Repr {
            src_addr: quoted.src_addr(),
            dst_addr: quoted.dst_addr(),
            next_header: quoted.next_header(),
            payload_len: data.len(),
            hop_limit: quoted.hop_limit(),
        },
        data: data.get(..QUOTED_BYTES).unwrap_or(data),
    };
    send_icmpv4(link, gateway_like(quoted.src_addr().into()), &complaint);
}

fn complain_ipv6(link: &mut Link, packet: &[u8], why: Unreachable) {
    let Ok(quoted) = Ipv6Packet::new_checked(packet) else {
        return;
    };
    let data = quoted.payload();
    let complaint = Icmpv6Repr::DstUnreachable {
        reason: why.of_ipv6(),
        header: Ipv6Repr {
            src_addr: quoted.src_addr(),
            dst_addr: quoted.dst_addr(),
            next_header: quoted.next_header(),
            payload_len: data.len(),
            hop_limit: quoted.hop_limit(),
        },
        data: data.get(..QUOTED_BYTES).unwrap_or(data),
    };
    let source = gateway_like(quoted.src_addr().into());
    send_icmpv6(link, source, guest_like(source), HOP_LIMIT, &complaint);
}

fn send_icmpv4(link: &mut Link, source: IpAddr, message: &Icmpv4Repr<'_>) {
    let header = IpRepr::new(
        source.into(),
        guest_like(source).into(),
        IpProtocol::Icmp,
        message.buffer_len(),
        HOP_LIMIT,
    );
    link.send_ip(header.buffer_len(), |bytes| {
        header.emit(&mut *bytes, &frame::checksums());
        let room = bytes.get_mut(header.header_len()..).unwrap_or_default();
        message.emit(&mut Icmpv4Packet::new_unchecked(room), &frame::checksums());
    });
}

fn send_icmpv6(
    link: &mut Link,
    source: IpAddr,
    destination: IpAddr,
    hop_limit: u8,
    message: &Icmpv6Repr<'_>,
) {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (source, destination) else {
        return;
    };
    let header = IpRepr::new(
        source.into(),
        destination.into(),
        IpProtocol::Icmpv6,
        message.buffer_len(),
        hop_limit,
    );
    link.send_ip(header.buffer_len(), |bytes| {
        header.emit(&mut *bytes, &frame::checksums());
        let room = bytes.get_mut(header.header_len()..).unwrap_or_default();
        let mut room = Icmpv6Packet::new_unchecked(room);
        message.emit(&from, &to, &mut room, &frame::checksums());
    });
}

/// An echo request of the guest's (RFC 792, RFC 4443).
#[derive(Debug, Clone, Copy)]
pub(super) struct Echo<'a> {
    pub(super) identifier: u16,
    pub(super) sequence: u16,
    pub(super) data: &'a [u8],
}

impl<'a> Echo<'a> {
    pub(super) fn of(packet: &Packet<'a>) -> Option<Self> {
        let bytes = packet.payload;
        let is_echo = match packet.protocol {
            IpProtocol::Icmp => {
                let message = Icmpv4Packet::new_checked(bytes).ok()?;
                (message.msg_type(), message.msg_code()) == (Icmpv4Message::EchoRequest, 0)
            }
            _ => {
                let message = Icmpv6Packet::new_checked(bytes).ok()?;
                (message.msg_type(), message.msg_code()) == (Icmpv6Message::EchoRequest, 0)
            }
        };
        match bytes {
            [_, _, _, _, id_0, id_1, sequence_0, sequence_1, data @ ..] if is_echo => Some(Self {
                identifier: u16::from_be_bytes([*id_0, *id_1]),
                sequence: u16::from_be_bytes([*sequence_0, *sequence_1]),
                data,
            }),
            _ => None,
        }
    }

    /// Gives this to the guest as an answer from `source`.
    pub(super) fn reply(&self, link: &mut Link, source: IpAddr) {
        let (ident, seq_no, data) = (self.identifier, self.sequence, self.data);
        match source {
            IpAddr::V4(_) => {
                let reply = Icmpv4Repr::EchoReply {
                    ident,
                    seq_no,
                    data,
                };
                send_icmpv4(link, source, &reply);
            }
            IpAddr::V6(_) => {
                let reply = Icmpv6Repr::EchoReply {
                    ident,
                    seq_no,
                    data,
                };
                send_icmpv6(link, source, guest_like(source), HOP_LIMIT, &reply);
            }
        }
    }
}

/// Answers who asks for the Ethernet address of the gateway or the resolver by IPv4 (RFC 826).
pub(super) fn answer_arp(link: &mut Link, question: &ArpRepr) {
    let ArpRepr::EthernetIpv4 {
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = *question
    else {
        return;
    };
    let target = IpAddr::from(target_protocol_addr);
    if !is_gateway(target) && !is_resolver(target) {
        return;
    }
    let answer = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    link.send_arp(answer.buffer_len(), |bytes| {
        answer.emit(&mut smoltcp::wire::ArpPacket::new_unchecked(bytes));
    });
}

/// Answers who asks for it by IPv6 (RFC 4861, section 7.2.4). Tells whether this was such a question.
pub(super) fn answer_neighbour(link: &mut Link, packet: &Packet<'_>) -> bool {
    let (IpAddr::V6(from), IpAddr::V6(to)) = (packet.source, packet.destination) else {
        return false;
    };
    let Ok(message) = Icmpv6Packet::new_checked(packet.payload) else {
        return false;
    };
    let Ok(Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })) = Icmpv6Repr::parse(
        &from,
        &to,
        &message,
        &smoltcp::phy::ChecksumCapabilities::ignored(),
    ) else {
        return false;
    };
    let target = IpAddr::V6(target_addr);
    // Who has no address yet asks whether the one that it wants is free; it is.
    let is_known = is_gateway(target) || is_resolver(target);
    if is_known && !from.is_unspecified() && !from.is_multicast() {
        let answer = Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::SOLICITED
                | NdiscNeighborFlags::OVERRIDE
                | NdiscNeighborFlags::ROUTER,
            target_addr,
            lladdr: Some(RawHardwareAddress::from(EthernetAddress(GATEWAY_MAC))),
        });
        send_icmpv6(link, target, from.into(), NEIGHBOUR_HOP_LIMIT, &answer);
    }
    true
}
