//! Guests that mean harm: nothing they send makes the gateway fail or grow without end.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::process::{Resource, getrlimit, setrlimit};
use smoltcp::wire::EthernetProtocol;

use super::super::addresses::{GATEWAY_IPV4, RESOLVER_IPV4};
use super::super::frame::BEFORE_IP;
use super::super::statistics::Dropped;
use super::super::tcp::MOST_CONNECTIONS;
use super::frames::{frame, syn};
use super::guest::{PATIENCE, Running, Wire, with_loopback};

/// Sends frames, takes what comes, and sees the gateway answer at the end.
fn survives(frames: &[Vec<u8>]) {
    let (socket, running) = Running::start(&with_loopback(), Vec::new(), Vec::new());
    let mut wire = Wire::new(socket);
    for frame in frames.iter().filter(|frame| !frame.is_empty()) {
        wire.send(frame);
        while wire.receive(Duration::ZERO).is_some() {}
    }
    assert!(running.statistics().received_frames <= u64::try_from(frames.len()).unwrap());
}

/// A segment or datagram to a port at which nobody listens.
fn good_frame() -> Vec<u8> {
    syn(GATEWAY_IPV4, 40_000, 1)
}

fn ipv4_packet(protocol: u8, to_resolver: bool, payload: &[u8]) -> Vec<u8> {
    let destination = match to_resolver {
        true => RESOLVER_IPV4,
        false => GATEWAY_IPV4,
    };
    let mut packet = good_frame()[BEFORE_IP..BEFORE_IP + 20].to_vec();
    packet.extend(payload);
    let mut header = smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet[..]);
    header.set_next_header(protocol.into());
    header.set_dst_addr(destination);
    header.set_total_len(u16::try_from(20 + payload.len()).unwrap());
    header.fill_checksum();
    let mut frame = frame(EthernetProtocol::Ipv4, &packet);
    // Its other checksum is still to be computed, so that it gets further.
    frame[0] = 1;
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_of_any_content_harm_nothing(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..50),
    ) {
        survives(&frames);
    }

    #[test]
    fn frames_with_changed_bytes_harm_nothing(
        changes in prop::collection::vec((0..80_usize, any::<u8>()), 1..100),
    ) {
        let changed = |(at, byte): (usize, u8)| {
            let mut frame = good_frame();
            frame[0] = 1;
            let at = at % frame.len();
            frame[at] = byte;
            frame
        };
        survives(&changes.into_iter().map(changed).collect::<Vec<_>>());
    }

    #[test]
    fn packets_of_any_content_harm_nothing(
        packets in prop::collection::vec(
            (
                prop::sample::select(vec![1_u8, 6, 17, 58, 44]),
                any::<bool>(),
                prop::collection::vec(any::<u8>(), 0..100),
            ),
            1..100,
        ),
    ) {
        let frame = |(protocol, to_resolver, payload): (u8, bool, Vec<u8>)| {
            ipv4_packet(protocol, to_resolver, &payload)
        };
        survives(&packets.into_iter().map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn segments_of_any_kind_in_a_connection_harm_nothing(
        segments in prop::collection::vec((0_u8..64, any::<u32>(), any::<u32>(), any::<u16>()), 1..100),
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut frames = vec![syn(GATEWAY_IPV4, 40_000, port)];
        for (flags, sequence, acknowledged, window) in segments {
            let mut segment = syn(GATEWAY_IPV4, 40_000, port);
            segment[0] = 1;
            let tcp = &mut segment[BEFORE_IP + 20..];
            tcp[4..8].copy_from_slice(&(sequence % 70_000).to_be_bytes());
            tcp[8..12].copy_from_slice(&acknowledged.to_be_bytes());
            tcp[13] = flags;
            tcp[14..16].copy_from_slice(&window.to_be_bytes());
            frames.push(segment);
        }
        survives(&frames);
    }
}

#[test]
fn a_flood_of_connections_ends_at_the_bound() {
    let hard = getrlimit(Resource::Nofile).maximum;
    let limits = rustix::process::Rlimit {
        current: hard,
        maximum: hard,
    };
    setrlimit(Resource::Nofile, limits).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (socket, running) = Running::start(&with_loopback(), Vec::new(), Vec::new());
    let mut wire = Wire::new(socket);
    for from in 1..=6000 {
        wire.send(&syn(GATEWAY_IPV4, from, port));
        while wire.receive(Duration::ZERO).is_some() {}
    }
    let statistics = running.statistics();
    let open = usize::try_from(statistics.tcp_connections_open).unwrap();
    assert!(open <= MOST_CONNECTIONS, "{open} are open");
    assert!(statistics.dropped[&Dropped::Full] > 0);
    drop(listener);
}

#[test]
fn a_guest_that_takes_nothing_stops_nobody() {
    let (socket, running) = Running::start(&with_loopback(), Vec::new(), Vec::new());
    let wire = Wire::new(socket);
    for from in 1..=20_000 {
        wire.send(&syn(Ipv4Addr::LOCALHOST, from, 80));
    }
    let statistics = running.statistics();
    assert!(statistics.dropped[&Dropped::NotTaken] > 0);
    assert_eq!(statistics.tcp_connections_open, 0);
}

#[test]
fn a_first_segment_with_data_is_not_kept() {
    let (socket, running) = Running::start(&with_loopback(), Vec::new(), Vec::new());
    let wire = Wire::new(socket);
    let mut segment = syn(Ipv4Addr::new(192, 0, 2, 1), 40_000, 80);
    segment[0] = 1;
    segment.extend([0; 60_000]);
    let length = u16::try_from(segment.len() - BEFORE_IP).unwrap();
    let mut header = smoltcp::wire::Ipv4Packet::new_unchecked(&mut segment[BEFORE_IP..]);
    header.set_total_len(length);
    header.fill_checksum();
    wire.send(&segment);
    let deadline = Instant::now() + PATIENCE;
    let statistics = loop {
        let statistics = running.statistics();
        if statistics.received_frames > 0 {
            break statistics;
        }
        assert!(Instant::now() < deadline, "the segment was not read");
    };
    assert_eq!(statistics.dropped.get(&Dropped::TooLong), Some(&1));
    assert_eq!(statistics.tcp_connections, 0);
}
