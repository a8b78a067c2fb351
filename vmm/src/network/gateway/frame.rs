//! Frames as the guest sends and gets them: a virtio header (VirtIO 1.2, section 5.1.6), an Ethernet header, and ARP or IP.

use std::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv6Packet,
};

use super::addresses::{GATEWAY_MAC, MTU};
use super::statistics::Dropped;

/// `struct virtio_net_hdr_v1`.
pub(super) const VIRTIO_BYTES: usize = 12;
/// Two addresses and a type (IEEE 802.3).
pub(super) const ETHERNET_BYTES: usize = 14;
/// What stands before an IP packet.
pub(super) const BEFORE_IP: usize = VIRTIO_BYTES + ETHERNET_BYTES;
/// The longest frame.
pub(super) const MOST_BYTES: usize = BEFORE_IP + MTU as usize;
/// An IPv4 header without options (RFC 791, section 3.1).
pub(super) const IPV4_BYTES: usize = 20;
/// An IPv6 header (RFC 8200, section 3).
pub(super) const IPV6_BYTES: usize = 40;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is still to be computed, so nothing can have gone wrong with it yet.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;

/// What a frame brings.
#[derive(Debug)]
pub(super) enum Incoming<'a> {
    /// A question about an IPv4 address.
    Arp(ArpRepr),
    /// A packet, for whomever.
    Ip(Packet<'a>),
}

/// An IP packet of the guest's whose headers make sense.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: IpProtocol,
    /// Header and payload.
    pub(super) bytes: &'a [u8],
    /// What follows the header.
    pub(super) payload: &'a [u8],
}

/// Reads a frame of the guest's.
pub(super) fn parse(frame: &[u8]) -> Result<Incoming<'_>, Dropped> {
    let (virtio, ethernet) = frame
        .split_at_checked(VIRTIO_BYTES)
        .ok_or(Dropped::Malformed)?;
    let flags = virtio.first().copied().unwrap_or_default();
    let ethernet = EthernetFrame::new_checked(ethernet).map_err(|_| Dropped::Malformed)?;
    let is_ours = is_ours(ethernet.dst_addr(), ethernet.src_addr());
    let payload = ethernet.payload();
    match ethernet.ethertype() {
        EthernetProtocol::Arp => parse_arp(payload).map(Incoming::Arp),
        EthernetProtocol::Ipv4 if is_ours => parse_ipv4(payload, flags).map(Incoming::Ip),
        // Who asks for a neighbour asks a group (RFC 4861, section 4.3).
        EthernetProtocol::Ipv6 if is_ours || ethernet.dst_addr().is_multicast() => {
            parse_ipv6(payload, flags).map(Incoming::Ip)
        }
        EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => Err(Dropped::ForAnother),
        EthernetProtocol::Unknown(_) => Err(Dropped::Protocol),
    }
}

/// Tells whether a frame is for the gateway itself.
pub(super) fn is_to_gateway(frame: &[u8]) -> bool {
    let ethernet = frame.get(VIRTIO_BYTES..).unwrap_or_default();
    EthernetFrame::new_checked(ethernet)
        .is_ok_and(|ethernet| is_ours(ethernet.dst_addr(), ethernet.src_addr()))
}

/// Nobody but the gateway is at the other end of the wire. A guest whose interface asks for no neighbours sends to its own address
/// (`arp_constructor` in net/ipv4/arp.c of Linux).
fn is_ours(destination: EthernetAddress, source: EthernetAddress) -> bool {
    destination == EthernetAddress(GATEWAY_MAC) || destination == source
}

/// Reads a packet of the guest's that was found good before.
pub(super) fn read_again(packet: &[u8]) -> Result<Packet<'_>, Dropped> {
    match packet.first().map(|first| first >> 4) {
        Some(4) => parse_ipv4(packet, DATA_VALID),
        _ => parse_ipv6(packet, DATA_VALID),
    }
}

fn parse_arp(bytes: &[u8]) -> Result<ArpRepr, Dropped> {
    let packet = ArpPacket::new_checked(bytes).map_err(|_| Dropped::Malformed)?;
    let question = ArpRepr::parse(&packet).map_err(|_| Dropped::Malformed)?;
    match question {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            ..
        } => Ok(question),
        _ => Err(Dropped::Protocol),
    }
}

fn parse_ipv4(bytes: &[u8], flags: u8) -> Result<Packet<'_>, Dropped> {
    let header = Ipv4Packet::new_checked(bytes).map_err(|_| Dropped::Malformed)?;
    let header_bytes = usize::from(header.header_len());
    if header.version() != 4 || header_bytes < IPV4_BYTES {
        return Err(Dropped::Malformed);
    }
    if !header.verify_checksum() {
        return Err(Dropped::Checksum);
    }
    if header.more_frags() || header.frag_offset() != 0 {
        return Err(Dropped::Fragment);
    }
    let total = usize::from(header.total_len());
    let packet = Packet {
        source: header.src_addr().into(),
        destination: header.dst_addr().into(),
        protocol: header.next_header(),
        bytes: bytes.get(..total).ok_or(Dropped::Malformed)?,
        payload: bytes.get(header_bytes..total).ok_or(Dropped::Malformed)?,
    };
    checked(packet, flags)
}

fn parse_ipv6(bytes: &[u8], flags: u8) -> Result<Packet<'_>, Dropped> {
    let header = Ipv6Packet::new_checked(bytes).map_err(|_| Dropped::Malformed)?;
    if header.version() != 6 {
        return Err(Dropped::Malformed);
    }
    let total = IPV6_BYTES + usize::from(header.payload_len());
    let protocol = match header.next_header() {
        IpProtocol::Ipv6Frag => return Err(Dropped::Fragment),
        protocol => protocol,
    };
    let packet = Packet {
        source: header.src_addr().into(),
        destination: header.dst_addr().into(),
        protocol,
        bytes: bytes.get(..total).ok_or(Dropped::Malformed)?,
        payload: bytes.get(IPV6_BYTES..total).ok_or(Dropped::Malformed)?,
    };
    checked(packet, flags)
}

/// Lets a packet pass whose checksum is good or still to be computed.
fn checked(packet: Packet<'_>, flags: u8) -> Result<Packet<'_>, Dropped> {
    if flags & (NEEDS_CHECKSUM | DATA_VALID) == 0 && !is_sum_good(&packet) {
        return Err(Dropped::Checksum);
    }
    Ok(packet)
}

/// Tells whether the checksum of what the packet carries is right, or there is none.
fn is_sum_good(packet: &Packet<'_>) -> bool {
    let payload = packet.payload;
    let length = payload.len();
    let pseudo = match packet.protocol {
        IpProtocol::Icmp => 0,
        // A datagram over IPv4 may have none (RFC 768).
        IpProtocol::Udp if packet.source.is_ipv4() && payload.get(6..8) == Some(&[0, 0]) => {
            return true;
        }
        IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmpv6 => {
            pseudo_sum(packet.source, packet.destination, packet.protocol, length)
        }
        _ => return true,
    };
    fold(pseudo + sum(payload)) == u16::MAX
}

/// The sum over the pseudo header (RFC 9293, section 3.1; RFC 8200, section 8.1), not folded.
fn pseudo_sum(source: IpAddr, destination: IpAddr, protocol: IpProtocol, length: usize) -> u64 {
    let address = |address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    let length = u64::try_from(length).unwrap_or_default();
    address(source) + address(destination) + u64::from(u8::from(protocol)) + length
}

/// The ones' complement sum of 16-bit words (RFC 1071), not folded. No frame overflows it.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let total: u64 = words
        .iter()
        .map(|word| u64::from(u32::from_be_bytes(*word)))
        .sum();
    let mut last = [0; 4];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    total + u64::from(u32::from_be_bytes(last))
}

/// Folds a sum into one word.
fn fold(mut sum: u64) -> u16 {
    loop {
        match u16::try_from(sum) {
            Ok(folded) => return folded,
            Err(_) => sum = (sum & 0xffff) + (sum >> 16),
        }
    }
}

/// Puts the headers before an IP packet that stands at [`BEFORE_IP`] in `frame`, and leaves the checksum of TCP and UDP to whoever
/// needs it: the guest's kernel knows that nothing can have gone wrong on the way.
pub(super) fn complete(frame: &mut [u8], guest_mac: [u8; 6]) {
    let Some((before, packet)) = frame.split_at_mut_checked(BEFORE_IP) else {
        return;
    };
    let is_ipv6 = packet.first().is_some_and(|first| first >> 4 == 6);
    let ethertype = match is_ipv6 {
        true => EthernetProtocol::Ipv6,
        false => EthernetProtocol::Ipv4,
    };
    before.fill(0);
    let (virtio, ethernet) = before.split_at_mut(VIRTIO_BYTES);
    write_ethernet(ethernet, guest_mac, ethertype);
    let header_bytes = match is_ipv6 {
        true => IPV6_BYTES,
        false => IPV4_BYTES,
    };
    let Some(offset) = leave_checksum(packet, header_bytes, is_ipv6) else {
        return;
    };
    let start = u16::try_from(ETHERNET_BYTES + header_bytes).unwrap_or_default();
    // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    if let [
        flags,
        _,
        _,
        _,
        _,
        _,
        start_0,
        start_1,
        offset_0,
        offset_1,
        ..,
    ] = virtio
    {
        *flags = NEEDS_CHECKSUM;
        [*start_0, *start_1] = start.to_le_bytes();
        [*offset_0, *offset_1] = offset.to_le_bytes();
    }
}

/// Writes an Ethernet header to the guest.
pub(super) fn write_ethernet(header: &mut [u8], guest_mac: [u8; 6], ethertype: EthernetProtocol) {
    let mut ethernet = EthernetFrame::new_unchecked(header);
    ethernet.set_dst_addr(EthernetAddress(guest_mac));
    ethernet.set_src_addr(EthernetAddress(GATEWAY_MAC));
    ethernet.set_ethertype(ethertype);
}

/// Writes the pseudo header's sum where TCP or UDP have their checksum, and returns where that is in their header.
fn leave_checksum(packet: &mut [u8], header_bytes: usize, is_ipv6: bool) -> Option<u16> {
    let (header, payload) = packet.split_at_mut_checked(header_bytes)?;
    let (source, destination, protocol) = match is_ipv6 {
        true => {
            let header = Ipv6Packet::new_unchecked(header);
            let addresses = (header.src_addr().into(), header.dst_addr().into());
            (addresses.0, addresses.1, header.next_header())
        }
        false => {
            let header = Ipv4Packet::new_unchecked(header);
            let addresses = (header.src_addr().into(), header.dst_addr().into());
            (addresses.0, addresses.1, header.next_header())
        }
    };
    let offset: u16 = match protocol {
        IpProtocol::Tcp => 16,
        IpProtocol::Udp => 6,
        _ => return None,
    };
    let pseudo = fold(pseudo_sum(source, destination, protocol, payload.len()));
    let at = usize::from(offset);
    payload
        .get_mut(at..at + 2)?
        .copy_from_slice(&pseudo.to_be_bytes());
    Some(offset)
}

/// What the library computes and checks itself: checksums of IPv4 and ICMP.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut checksums = ChecksumCapabilities::default();
    checksums.tcp = smoltcp::phy::Checksum::None;
    checksums.udp = smoltcp::phy::Checksum::None;
    checksums
}
