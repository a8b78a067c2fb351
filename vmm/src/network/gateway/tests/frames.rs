//! Single frames, written by hand: what is answered, what is dropped, and under which name it is counted.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4Packet, Icmpv4Repr, IpProtocol, IpRepr, Ipv4Packet, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber,
};

use super::super::Configuration;
use super::super::addresses::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4, RESOLVER_IPV4};
use super::super::frame::{BEFORE_IP, VIRTIO_BYTES};
use super::super::policy::{Policy, Verdict};
use super::super::statistics::Dropped;
use super::guest::{GUEST_MAC, Running, Wire, with_loopback};

const PATIENCE: Duration = Duration::from_secs(20);
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A frame to the gateway.
pub(super) fn frame(ethertype: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; BEFORE_IP];
    let mut header = EthernetFrame::new_unchecked(&mut frame[VIRTIO_BYTES..]);
    header.set_dst_addr(EthernetAddress(GATEWAY_MAC));
    header.set_src_addr(EthernetAddress(GUEST_MAC));
    header.set_ethertype(ethertype);
    frame.extend(payload);
    frame
}

/// An IPv4 packet with this payload.
fn ipv4(protocol: IpProtocol, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (GUEST_IPV4.into(), destination.into());
    let header = IpRepr::new(source, destination, protocol, payload.len(), 64);
    let mut packet = vec![0; header.header_len()];
    header.emit(&mut packet, &ChecksumCapabilities::default());
    packet.extend(payload);
    packet
}

/// A frame with a SYN.
pub(super) fn syn(destination: Ipv4Addr, from: u16, port: u16) -> Vec<u8> {
    let segment = TcpRepr {
        src_port: from,
        dst_port: port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 65_535,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let mut bytes = vec![0; segment.buffer_len()];
    segment.emit(
        &mut TcpPacket::new_unchecked(&mut bytes),
        &GUEST_IPV4.into(),
        &destination.into(),
        &ChecksumCapabilities::default(),
    );
    frame(
        EthernetProtocol::Ipv4,
        &ipv4(IpProtocol::Tcp, destination, &bytes),
    )
}

fn arp(target: Ipv4Addr) -> Vec<u8> {
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(GUEST_MAC),
        source_protocol_addr: GUEST_IPV4,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let mut bytes = vec![0; question.buffer_len()];
    question.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    frame(EthernetProtocol::Arp, &bytes)
}

pub(super) fn echo(destination: Ipv4Addr) -> Vec<u8> {
    let request = Icmpv4Repr::EchoRequest {
        ident: 7,
        seq_no: 9,
        data: b"data",
    };
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(
        &mut Icmpv4Packet::new_unchecked(&mut bytes),
        &ChecksumCapabilities::default(),
    );
    frame(
        EthernetProtocol::Ipv4,
        &ipv4(IpProtocol::Icmp, destination, &bytes),
    )
}

fn start(configuration: &Configuration) -> (Wire, Running) {
    let (socket, running) = Running::start(configuration, Vec::new(), Vec::new());
    (Wire::new(socket), running)
}

/// The answer to a frame: source, protocol, and payload of its IPv4 packet.
pub(super) fn answer(wire: &mut Wire, frame: &[u8]) -> (IpAddr, IpProtocol, Vec<u8>) {
    wire.send(frame);
    let answer = wire.receive(PATIENCE).expect("an answer");
    let packet = Ipv4Packet::new_checked(&answer[BEFORE_IP..]).unwrap();
    assert!(packet.verify_checksum());
    assert_eq!(packet.dst_addr(), GUEST_IPV4);
    let payload = packet.payload().to_vec();
    (packet.src_addr().into(), packet.next_header(), payload)
}

/// Sends a frame that is dropped, and one that is answered, and tells why the first was.
fn is_dropped(frame: &[u8], why: Dropped) {
    let (mut wire, running) = start(&Configuration::default());
    wire.send(frame);
    let (from, ..) = answer(&mut wire, &echo(GATEWAY_IPV4));
    assert_eq!(
        from,
        IpAddr::from(GATEWAY_IPV4),
        "the first frame was answered"
    );
    let dropped = running.statistics().dropped;
    assert_eq!(dropped.into_iter().collect::<Vec<_>>(), [(why, 1)]);
}

#[test]
fn the_gateway_and_the_resolver_say_where_they_are_and_nobody_else_is_there() {
    let (mut wire, _running) = start(&Configuration::default());
    wire.send(&arp(Ipv4Addr::new(10, 0, 2, 77)));
    for target in [GATEWAY_IPV4, RESOLVER_IPV4] {
        wire.send(&arp(target));
        let frame = wire.receive(PATIENCE).unwrap();
        let answer = ArpRepr::parse(&ArpPacket::new_checked(&frame[BEFORE_IP..]).unwrap()).unwrap();
        let expected = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(GATEWAY_MAC),
            source_protocol_addr: target,
            target_hardware_addr: EthernetAddress(GUEST_MAC),
            target_protocol_addr: GUEST_IPV4,
        };
        assert_eq!(answer, expected);
    }
}

#[test]
fn the_gateway_answers_pings() {
    let (mut wire, _running) = start(&Configuration::default());
    let (from, protocol, payload) = answer(&mut wire, &echo(GATEWAY_IPV4));
    assert_eq!((from, protocol), (GATEWAY_IPV4.into(), IpProtocol::Icmp));
    let reply = Icmpv4Packet::new_checked(&payload[..]).unwrap();
    assert!(reply.verify_checksum());
    assert_eq!((reply.echo_ident(), reply.echo_seq_no()), (7, 9));
    assert_eq!(reply.data(), b"data");
}

#[test]
fn what_is_denied_is_said_to_be_prohibited() {
    let configuration = Configuration {
        policy: Policy {
            default: Verdict::Deny,
            ..Policy::default()
        },
        ..with_loopback()
    };
    let (mut wire, running) = start(&configuration);
    let (from, protocol, payload) = answer(&mut wire, &syn(SOMEWHERE, 1234, 80));
    assert_eq!((from, protocol), (GATEWAY_IPV4.into(), IpProtocol::Icmp));
    assert_eq!(payload[..2], [3, 13]);
    assert_eq!(running.statistics().dropped[&Dropped::Refused], 1);
}

#[test]
fn the_hosts_loopback_is_not_reached() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (mut wire, running) = start(&Configuration::default());
    for (count, address) in [
        (1, GATEWAY_IPV4),
        (2, Ipv4Addr::LOCALHOST),
        (3, RESOLVER_IPV4),
    ] {
        let (_, protocol, payload) = answer(&mut wire, &syn(address, 1234, port));
        assert_eq!(protocol, IpProtocol::Icmp);
        assert_eq!(payload[..2], [3, 13]);
        assert_eq!(running.statistics().dropped[&Dropped::Refused], count);
    }
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut segment = syn(SOMEWHERE, 1234, 80);
    let flags = BEFORE_IP + 20 + 13;
    // ACK; the checksum is said to be computed later.
    segment[flags] = 0x10;
    segment[0] = 1;
    let (mut wire, _running) = start(&Configuration::default());
    let (from, _, payload) = answer(&mut wire, &segment);
    assert_eq!(from, IpAddr::from(SOMEWHERE));
    assert!(TcpPacket::new_checked(&payload[..]).unwrap().rst());
}

#[test]
fn a_wrong_checksum_is_dropped() {
    let mut segment = syn(GATEWAY_IPV4, 1234, 80);
    *segment.last_mut().unwrap() ^= 1;
    is_dropped(&segment, Dropped::Checksum);
    let mut header = syn(GATEWAY_IPV4, 1234, 80);
    header[BEFORE_IP + 8] ^= 1;
    is_dropped(&header, Dropped::Checksum);
}

#[test]
fn a_part_of_a_packet_is_dropped() {
    let mut packet = ipv4(IpProtocol::Udp, SOMEWHERE, &[0; 64]);
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_more_frags(true);
    header.fill_checksum();
    is_dropped(&frame(EthernetProtocol::Ipv4, &packet), Dropped::Fragment);
}

#[test]
fn another_source_than_the_guest_is_dropped() {
    let mut packet = ipv4(IpProtocol::Udp, SOMEWHERE, &[0; 64]);
    let mut header = Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_src_addr(Ipv4Addr::new(10, 0, 2, 16));
    header.fill_checksum();
    is_dropped(
        &frame(EthernetProtocol::Ipv4, &packet),
        Dropped::ForeignSource,
    );
}

#[test]
fn what_is_for_all_is_dropped() {
    let mut question = echo(GATEWAY_IPV4);
    question[VIRTIO_BYTES..VIRTIO_BYTES + 6].fill(0xff);
    is_dropped(&question, Dropped::ForAnother);
}

#[test]
fn a_protocol_that_is_not_carried_is_dropped() {
    let packet = ipv4(IpProtocol::Igmp, SOMEWHERE, &[0; 8]);
    is_dropped(&frame(EthernetProtocol::Ipv4, &packet), Dropped::Protocol);
    is_dropped(
        &frame(EthernetProtocol::Unknown(0x88cc), &[0; 46]),
        Dropped::Protocol,
    );
}

#[test]
fn a_frame_that_is_cut_is_dropped_wherever() {
    let whole = syn(SOMEWHERE, 1234, 80);
    for length in (1..whole.len()).step_by(7) {
        is_dropped(&whole[..length], Dropped::Malformed);
    }
}

#[test]
fn a_frame_longer_than_any_is_dropped() {
    is_dropped(
        &frame(EthernetProtocol::Ipv4, &[0x45; 70_000]),
        Dropped::TooLong,
    );
}
