//! The vsock queues and connections against a driver in guest memory and socket pairs of the host.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use virtio_queue::Queue;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::GuestCid;
use super::connection::{BUFFER_BYTES, MAX_PAYLOAD_BYTES};
use super::packet::{op, shutdown};
use super::queue::{Connections, FIRST_HOST_PORT};
use crate::virtio::DeviceMemory;
use crate::virtio::testing::{DriverQueue, ram, readable, writable};

const RX_RING: u64 = 0x1_0000;
const TX_RING: u64 = 0x2_0000;
const RX_BUFFERS: u64 = 0x10_0000;
const TX_BUFFER: u64 = 0x8_0000;
const RX_BUFFER_BYTES: u32 = 4096;
const QUEUE_SIZE: u16 = 64;
const PORT: u32 = 1024;
const NOTHING: [u16; 0] = [];

/// A packet as the guest sees or makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Packet {
    src_cid: u64,
    dst_cid: u64,
    src_port: u32,
    dst_port: u32,
    socket_type: u16,
    op: u16,
    flags: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    payload: Vec<u8>,
}

impl Packet {
    /// A packet of the guest on the connection of `host_port`.
    fn from_guest(host_port: u32, op: u16) -> Self {
        Self {
            src_cid: 3,
            dst_cid: 2,
            src_port: PORT,
            dst_port: host_port,
            socket_type: 1,
            op,
            buf_alloc: 64 * 1024,
            ..Self::default()
        }
    }

    fn header_bytes(&self, length: u32) -> Vec<u8> {
        [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &length.to_le_bytes(),
            &self.socket_type.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ]
        .concat()
    }

    fn parse(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap());
        let length = usize::try_from(word(24)).unwrap();
        assert_eq!(bytes.len(), 44 + length, "the used length is the packet's");
        Self {
            src_cid: long(0),
            dst_cid: long(8),
            src_port: word(16),
            dst_port: word(20),
            socket_type: half(28),
            op: half(30),
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
            payload: bytes[44..].to_vec(),
        }
    }
}

/// A guest's driver and the device's connections, without an event loop between them.
struct Bench {
    memory: DeviceMemory,
    connections: Connections,
    rx: DriverQueue,
    tx: DriverQueue,
    device_rx: Queue,
    device_tx: Queue,
    rx_addresses: HashMap<u16, u64>,
}

impl Bench {
    fn new() -> Self {
        let mut bench = Self::without_receive_buffers();
        bench.refill();
        bench
    }

    fn without_receive_buffers() -> Self {
        let memory = ram(4 << 20);
        let rx = DriverQueue::new(&memory, RX_RING, QUEUE_SIZE);
        let tx = DriverQueue::new(&memory, TX_RING, QUEUE_SIZE);
        Self {
            device_rx: rx.device_queue(),
            device_tx: tx.device_queue(),
            memory,
            connections: Connections::new(GuestCid::FIRST, FIRST_HOST_PORT),
            rx,
            tx,
            rx_addresses: HashMap::new(),
        }
    }

    fn refill(&mut self) {
        while self.rx.free_descriptors() > 0 {
            let used: Vec<u64> = self.rx_addresses.values().copied().collect();
            let address = (0..)
                .map(|i| RX_BUFFERS + i * u64::from(RX_BUFFER_BYTES))
                .find(|address| !used.contains(address))
                .unwrap();
            let head = self.rx.add(&[writable(address, RX_BUFFER_BYTES)]);
            self.rx_addresses.insert(head, address);
        }
    }

    /// Gives the device one packet and lets it work.
    fn send(&mut self, packet: &Packet) {
        let length = u32::try_from(packet.payload.len()).unwrap();
        let bytes = [packet.header_bytes(length), packet.payload.clone()].concat();
        self.memory
            .write_slice(&bytes, GuestAddress(TX_BUFFER))
            .unwrap();
        self.tx
            .add(&[readable(TX_BUFFER, u32::try_from(bytes.len()).unwrap())]);
        self.run();
    }

    fn run(&mut self) {
        self.connections
            .process_transmit(&mut self.device_tx, &self.memory)
            .unwrap();
        while self.tx.take_used().is_some() {}
        self.connections
            .process_receive(&mut self.device_rx, &self.memory)
            .unwrap();
    }

    /// Takes the packets that the device has sent; the buffers go back to it.
    fn received(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((head, length)) = self.rx.take_used() {
            let address = self.rx_addresses.remove(&head).unwrap();
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            self.memory
                .read_slice(&mut bytes, GuestAddress(address))
                .unwrap();
            packets.push(Packet::parse(&bytes));
        }
        self.refill();
        packets
    }

    fn ops(&mut self) -> Vec<u16> {
        self.received().iter().map(|packet| packet.op).collect()
    }

    /// Dials and returns the host's end and the host port.
    fn dial(&mut self) -> (UnixStream, u32) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let port = self.connections.dial(PORT, theirs).unwrap().ports().host;
        self.run();
        (ours, port)
    }

    /// Dials, and the guest accepts with `credit` bytes of room.
    fn connect(&mut self, credit: u32) -> (UnixStream, u32) {
        let (stream, port) = self.dial();
        assert_eq!(self.ops(), [op::REQUEST]);
        self.send(&Packet {
            buf_alloc: credit,
            ..Packet::from_guest(port, op::RESPONSE)
        });
        (stream, port)
    }

    fn input(&mut self, port: u32) {
        self.connections.stream_event(port, true, false, false);
        self.run();
    }

    fn output(&mut self, port: u32) {
        self.connections.stream_event(port, false, true, false);
        self.run();
    }

    fn hang_up(&mut self, port: u32) {
        self.connections.stream_event(port, true, true, true);
        self.run();
    }
}

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn a_dial_becomes_a_request_with_our_credit() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.dial();
    let expected = Packet {
        src_cid: 2,
        dst_cid: 3,
        src_port: port,
        dst_port: PORT,
        socket_type: 1,
        op: op::REQUEST,
        buf_alloc: BUFFER_BYTES,
        ..Packet::default()
    };
    assert_eq!(bench.received(), [expected]);
}

#[test]
fn a_refused_dial_closes_the_stream() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.dial();
    bench.send(&Packet::from_guest(port, op::RST));
    assert_eq!(bench.connections.take_over().len(), 1);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(bench.ops(), [op::REQUEST]);
}

#[test]
fn what_the_host_wrote_before_the_response_arrives_after_it() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.dial();
    stream.write_all(b"early").unwrap();
    bench.input(port);
    assert_eq!(bench.ops(), [op::REQUEST]);
    bench.send(&Packet::from_guest(port, op::RESPONSE));
    let packets = bench.received();
    assert_eq!(packets[0].op, op::RW);
    assert_eq!(packets[0].payload, b"early");
}

#[test]
fn data_of_the_guest_reaches_the_stream() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    bench.send(&Packet {
        payload: b"hello".to_vec(),
        ..Packet::from_guest(port, op::RW)
    });
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(10_000);
    stream.write_all(&pattern(50_000)).unwrap();
    bench.input(port);
    let packets = bench.received();
    let sent: usize = packets.iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(sent, 10_000);
    assert_eq!(packets.last().unwrap().op, op::CREDIT_REQUEST);
}

#[test]
fn a_stalled_guest_is_asked_for_credit_once() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(1_000);
    stream.write_all(&pattern(5_000)).unwrap();
    bench.input(port);
    bench.received();
    bench.send(&Packet {
        buf_alloc: 1_000,
        fwd_cnt: 0,
        ..Packet::from_guest(port, op::CREDIT_UPDATE)
    });
    bench.input(port);
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn credit_of_the_guest_lets_the_stream_go_on() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(1_000);
    stream.write_all(&pattern(1_500)).unwrap();
    bench.input(port);
    bench.received();
    bench.send(&Packet {
        buf_alloc: 1_000,
        fwd_cnt: 700,
        ..Packet::from_guest(port, op::CREDIT_UPDATE)
    });
    assert_eq!(bench.received()[0].payload, pattern(1_500)[1_000..]);
}

#[test]
fn impossible_counts_of_the_guest_are_no_credit() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(1_000);
    bench.send(&Packet {
        buf_alloc: 1_000,
        fwd_cnt: 0x8000_0000,
        ..Packet::from_guest(port, op::CREDIT_UPDATE)
    });
    stream.write_all(b"data").unwrap();
    bench.input(port);
    assert_eq!(bench.ops(), [op::CREDIT_REQUEST]);
}

#[test]
fn a_slow_reader_stops_the_guest_within_the_buffer() {
    let mut bench = Bench::new();
    let (stream, port) = bench.connect(65536);
    let mut sent = 0_u32;
    let mut told = 0_u32;
    // A guest that keeps to its credit.
    while BUFFER_BYTES - (sent - told) >= 32 * 1024 {
        bench.send(&Packet {
            payload: pattern(32 * 1024),
            ..Packet::from_guest(port, op::RW)
        });
        sent += 32 * 1024;
        told = bench
            .received()
            .last()
            .map_or(told, |packet| packet.fwd_cnt);
        assert!(sent < 4 << 20, "the guest was never stopped");
    }
    assert_eq!(bench.connections.take_over().len(), 0);
    drop(stream);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.connect(65536);
    let data = Packet {
        payload: pattern(64 * 1024),
        ..Packet::from_guest(port, op::RW)
    };
    for _ in 0..100 {
        bench.send(&data);
    }
    assert!(bench.ops().contains(&op::RST));
    assert_eq!(bench.connections.take_over().len(), 1);
}

#[test]
fn several_megabytes_from_the_guest_arrive_as_they_were() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    stream.set_nonblocking(true).unwrap();
    let data = pattern(5 << 20);
    let mut arrived = Vec::new();
    let mut sent = 0_usize;
    let mut told = 0_usize;
    let mut bytes = vec![0; 50_000];
    while arrived.len() < data.len() {
        let room = usize::try_from(BUFFER_BYTES).unwrap() - (sent - told);
        let length = room.min(data.len() - sent).min(60_001);
        if length > 0 {
            bench.send(&Packet {
                payload: data[sent..sent + length].to_vec(),
                ..Packet::from_guest(port, op::RW)
            });
            sent += length;
        }
        match stream.read(&mut bytes) {
            Ok(count) => arrived.extend_from_slice(&bytes[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        bench.output(port);
        for packet in bench.received() {
            told = usize::try_from(packet.fwd_cnt).unwrap();
        }
    }
    assert!(arrived == data);
}

#[test]
fn several_megabytes_from_the_host_arrive_as_they_were() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(100_000);
    let data = pattern(5 << 20);
    let writer = std::thread::spawn({
        let data = data.clone();
        move || stream.write_all(&data).map(|()| stream)
    });
    let mut arrived = Vec::new();
    while arrived.len() < data.len() {
        for packet in bench.received() {
            arrived.extend(packet.payload);
        }
        bench.send(&Packet {
            buf_alloc: 100_000,
            fwd_cnt: u32::try_from(arrived.len()).unwrap(),
            ..Packet::from_guest(port, op::CREDIT_UPDATE)
        });
        bench.input(port);
    }
    writer.join().unwrap().unwrap();
    assert!(arrived == data);
}

#[test]
fn the_end_of_the_hosts_data_is_a_shutdown_after_it() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    bench.input(port);
    let packets = bench.received();
    assert_eq!(packets[0].payload, b"last words");
    assert_eq!(
        (packets[1].op, packets[1].flags),
        (op::SHUTDOWN, shutdown::SEND)
    );
    assert_eq!(packets.len(), 2);
}

#[test]
fn after_the_hosts_end_the_guest_still_sends() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    stream.shutdown(Shutdown::Write).unwrap();
    bench.input(port);
    bench.send(&Packet {
        payload: b"answer".to_vec(),
        ..Packet::from_guest(port, op::RW)
    });
    bench.send(&Packet {
        flags: shutdown::SEND,
        ..Packet::from_guest(port, op::SHUTDOWN)
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"answer");
}

#[test]
fn a_closed_stream_is_a_shutdown_both_ways_after_its_data() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    stream.write_all(b"last words").unwrap();
    drop(stream);
    bench.hang_up(port);
    let packets = bench.received();
    assert_eq!(packets[0].payload, b"last words");
    assert_eq!(
        (packets[1].op, packets[1].flags),
        (op::SHUTDOWN, shutdown::BOTH)
    );
    assert_eq!(bench.connections.take_over().len(), 1);
}

#[test]
fn the_guests_answer_to_a_closed_stream_is_not_answered() {
    let mut bench = Bench::new();
    let (stream, port) = bench.connect(65536);
    drop(stream);
    bench.hang_up(port);
    assert_eq!(bench.ops(), [op::SHUTDOWN]);
    bench.send(&Packet {
        payload: b"too late".to_vec(),
        ..Packet::from_guest(port, op::RW)
    });
    bench.send(&Packet::from_guest(port, op::RST));
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn a_guest_that_closes_is_reset_and_its_data_is_delivered() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    let data = pattern(3 * 64 * 1024);
    for chunk in data.chunks(64 * 1024) {
        bench.send(&Packet {
            payload: chunk.to_vec(),
            ..Packet::from_guest(port, op::RW)
        });
    }
    bench.received();
    bench.send(&Packet {
        flags: shutdown::BOTH,
        ..Packet::from_guest(port, op::SHUTDOWN)
    });
    assert_eq!(bench.ops(), [op::RST]);
    stream.set_nonblocking(true).unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < data.len() {
        let mut bytes = vec![0; 32 * 1024];
        let count = stream.read(&mut bytes).unwrap();
        arrived.extend_from_slice(&bytes[..count]);
        bench.output(port);
    }
    assert!(arrived == data);
    assert_eq!(bench.connections.take_over().len(), 1);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_guest_that_does_not_receive_any_more_closes_the_hosts_way_in() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    bench.send(&Packet {
        flags: shutdown::RECEIVE,
        ..Packet::from_guest(port, op::SHUTDOWN)
    });
    let error = stream.write(b"anybody?").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[test]
fn a_stream_closed_after_the_guest_stopped_receiving_is_shut_down() {
    let mut bench = Bench::new();
    let (stream, port) = bench.connect(65536);
    bench.send(&Packet {
        flags: shutdown::RECEIVE,
        ..Packet::from_guest(port, op::SHUTDOWN)
    });
    drop(stream);
    bench.hang_up(port);
    let packets = bench.received();
    assert_eq!(packets.last().unwrap().flags, shutdown::BOTH);
    assert_eq!(bench.connections.take_over().len(), 1);
}

#[test]
fn a_reset_of_the_guest_closes_the_stream() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    bench.send(&Packet::from_guest(port, op::RST));
    assert_eq!(bench.connections.take_over().len(), 1);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn a_connection_that_the_guest_starts_is_refused() {
    let mut bench = Bench::new();
    bench.send(&Packet::from_guest(7, op::REQUEST));
    let packets = bench.received();
    assert_eq!(packets.len(), 1);
    assert_eq!((packets[0].op, packets[0].src_port), (op::RST, 7));
}

#[test]
fn a_packet_of_an_unknown_type_is_reset() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.connect(65536);
    bench.send(&Packet {
        socket_type: 9,
        ..Packet::from_guest(port, op::RW)
    });
    assert_eq!(bench.ops(), [op::RST]);
}

#[test]
fn a_packet_from_another_context_is_ignored() {
    let mut bench = Bench::new();
    bench.send(&Packet {
        src_cid: 4,
        ..Packet::from_guest(7, op::REQUEST)
    });
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn an_rst_without_a_connection_is_not_answered() {
    let mut bench = Bench::new();
    bench.send(&Packet::from_guest(7, op::RST));
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn a_response_to_an_established_connection_is_reset() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.connect(65536);
    bench.send(&Packet::from_guest(port, op::RESPONSE));
    assert_eq!(bench.ops(), [op::RST]);
    assert_eq!(bench.connections.take_over().len(), 1);
}

#[test]
fn a_credit_request_is_answered() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.connect(65536);
    bench.send(&Packet {
        payload: b"12345".to_vec(),
        ..Packet::from_guest(port, op::RW)
    });
    bench.send(&Packet::from_guest(port, op::CREDIT_REQUEST));
    let packets = bench.received();
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].op, op::CREDIT_UPDATE);
    assert_eq!(
        (packets[0].buf_alloc, packets[0].fwd_cnt),
        (BUFFER_BYTES, 5)
    );
}

#[test]
fn replies_are_bounded_while_the_guest_gives_no_buffers() {
    let mut bench = Bench::without_receive_buffers();
    let refused = Packet::from_guest(7, op::REQUEST);
    for _ in 0..400 {
        if bench.tx.free_descriptors() == 0 {
            break;
        }
        bench.send(&refused);
    }
    assert_eq!(
        bench.tx.free_descriptors(),
        0,
        "the transmit queue backs up"
    );
    bench.refill();
    bench.run();
    assert!(bench.ops().iter().all(|&packet_op| packet_op == op::RST));
    assert!(bench.tx.free_descriptors() == 0);
    bench.run();
    assert!(bench.tx.free_descriptors() > 0, "it moves again");
}

#[test]
fn connections_take_turns() {
    let mut bench = Bench::new();
    let (mut first, first_port) = bench.connect(1 << 20);
    let (mut second, second_port) = bench.connect(1 << 20);
    first.write_all(&pattern(100_000)).unwrap();
    second.write_all(&pattern(100_000)).unwrap();
    bench
        .connections
        .stream_event(first_port, true, false, false);
    bench
        .connections
        .stream_event(second_port, true, false, false);
    bench.run();
    let ports: Vec<u32> = bench
        .received()
        .iter()
        .map(|packet| packet.src_port)
        .take(4)
        .collect();
    assert_eq!(ports, [first_port, second_port, first_port, second_port]);
}

#[test]
fn connections_are_limited() {
    let mut bench = Bench::new();
    let mut streams = Vec::new();
    for _ in 0..super::queue::MAX_CONNECTIONS {
        streams.push(bench.dial());
        bench.received();
    }
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(bench.connections.dial(PORT, theirs).is_none());
}

#[test]
fn a_guest_that_never_lets_go_is_reset_when_too_many_wait() {
    let mut bench = Bench::new();
    let mut resets = 0;
    for _ in 0..300 {
        let (stream, port) = bench.connect(65536);
        drop(stream);
        bench.hang_up(port);
        resets += bench.ops().iter().filter(|&&kind| kind == op::RST).count();
    }
    assert_eq!(resets, 300 - 256);
}

#[test]
fn a_packet_whose_length_is_a_lie_is_ignored() {
    let mut bench = Bench::new();
    let (mut stream, port) = bench.connect(65536);
    let header = Packet::from_guest(port, op::RW).header_bytes(5000);
    bench
        .memory
        .write_slice(&header, GuestAddress(TX_BUFFER))
        .unwrap();
    bench.tx.add(&[readable(TX_BUFFER, 44 + 100)]);
    bench.run();
    bench
        .tx
        .add(&[readable(TX_BUFFER, 44), readable(TX_BUFFER + 44, 4999)]);
    bench.run();
    stream.set_nonblocking(true).unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn a_packet_longer_than_any_is_ignored() {
    let mut bench = Bench::new();
    let (_stream, port) = bench.connect(65536);
    let length = MAX_PAYLOAD_BYTES + 1;
    let header = Packet::from_guest(port, op::RW).header_bytes(length);
    bench
        .memory
        .write_slice(&header, GuestAddress(TX_BUFFER))
        .unwrap();
    bench.tx.add(&[readable(TX_BUFFER, 44 + length)]);
    bench.run();
    assert_eq!(bench.ops(), NOTHING);
}

#[test]
fn a_receive_buffer_that_is_no_buffer_is_used_with_nothing_in_it() {
    let mut bench = Bench::without_receive_buffers();
    bench.rx.add(&[readable(RX_BUFFERS, 4096)]);
    bench.rx.add(&[writable(RX_BUFFERS, 43)]);
    bench.rx.add(&[writable(u64::MAX - 100, 4096)]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    bench.connections.dial(PORT, theirs).unwrap();
    bench.run();
    let lengths: Vec<u32> = std::iter::from_fn(|| bench.rx.take_used())
        .map(|(_, length)| length)
        .collect();
    assert_eq!(lengths, [0, 0, 0]);
    bench.refill();
    bench.run();
    assert_eq!(bench.ops(), [op::REQUEST]);
}

#[test]
fn a_receive_buffer_without_room_for_data_still_carries_control() {
    let mut bench = Bench::without_receive_buffers();
    let address = RX_BUFFERS;
    let head = bench
        .rx
        .add(&[writable(address, 44), writable(address + 44, 0)]);
    bench.rx_addresses.insert(head, address);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    bench.connections.dial(PORT, theirs).unwrap();
    bench.run();
    assert_eq!(bench.ops(), [op::REQUEST]);
}

/// What a hostile guest and a careless host do.
#[derive(Clone, Debug)]
enum Move {
    /// A packet on a connection (by number) or beside all.
    Send {
        connection: Option<usize>,
        op: u16,
        flags: u32,
        socket_type: u16,
        length: usize,
        buf_alloc: u32,
        fwd_cnt: u32,
    },
    /// A chain that is no packet.
    Garbage {
        address: u64,
        length: u32,
        flags: u16,
    },
    /// The guest takes what it got and gives new buffers.
    Refill,
    Dial,
    HostWrites {
        connection: usize,
        length: usize,
    },
    HostReads {
        connection: usize,
    },
    HostEnds {
        connection: usize,
    },
    HostCloses {
        connection: usize,
    },
}

fn any_move() -> impl Strategy<Value = Move> {
    let which = 0..4_usize;
    let length = prop_oneof![Just(0_usize), 0..100_usize, 0..60_000_usize];
    let credit = prop_oneof![Just(0_u32), Just(65536), Just(u32::MAX), any::<u32>()];
    let count = prop_oneof![Just(0_u32), 0..100_000_u32, any::<u32>()];
    let packet = (
        proptest::option::weighted(0.9, which.clone()),
        0..9_u16,
        0..8_u32,
        prop_oneof![9 => Just(1_u16), 1 => any::<u16>()],
        length.clone(),
        credit,
        count,
    );
    prop_oneof![
        8 => packet.prop_map(
            |(connection, op, flags, socket_type, length, buf_alloc, fwd_cnt)| Move::Send {
                connection,
                op,
                flags,
                socket_type,
                length,
                buf_alloc,
                fwd_cnt,
            }
        ),
        1 => (0..0x50_0000_u64, any::<u32>(), 0..8_u16).prop_map(|(address, length, flags)| {
            Move::Garbage { address, length, flags }
        }),
        2 => Just(Move::Refill),
        1 => Just(Move::Dial),
        3 => (which.clone(), length).prop_map(|(connection, length)| Move::HostWrites {
            connection,
            length
        }),
        2 => which.clone().prop_map(|connection| Move::HostReads { connection }),
        1 => which.clone().prop_map(|connection| Move::HostEnds { connection }),
        1 => which.prop_map(|connection| Move::HostCloses { connection }),
    ]
}

/// The host's ends of connections, and what the guest has said of its room on each.
#[derive(Default)]
struct Game {
    streams: Vec<(Option<UnixStream>, u32)>,
}

impl Game {
    fn stream(&self, connection: usize) -> Option<(&UnixStream, u32)> {
        let (stream, port) = self.streams.get(connection)?;
        Some((stream.as_ref()?, *port))
    }

    fn dial(&mut self, bench: &mut Bench) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        if let Some(connection) = bench.connections.dial(PORT, theirs) {
            self.streams
                .insert(0, (Some(ours), connection.ports().host));
        }
        bench.run();
    }

    fn play(&mut self, bench: &mut Bench, one: &Move) {
        match *one {
            Move::Send {
                connection,
                op,
                flags,
                socket_type,
                length,
                buf_alloc,
                fwd_cnt,
            } => {
                let port = connection.and_then(|index| self.streams.get(index));
                if bench.tx.free_descriptors() > 0 {
                    bench.send(&Packet {
                        flags,
                        socket_type,
                        buf_alloc,
                        fwd_cnt,
                        payload: vec![0x5a; length],
                        ..Packet::from_guest(port.map_or(7, |(_, port)| *port), op)
                    });
                }
            }
            Move::Garbage {
                address,
                length,
                flags,
            } => {
                if bench.tx.free_descriptors() > 0 {
                    let head = bench.tx.add(&[readable(address, length)]);
                    let descriptor = Descriptor::new(address, length, flags, head);
                    bench.tx.write_descriptor(head, descriptor);
                    bench.run();
                }
            }
            Move::Refill => {
                bench.received();
                bench.run();
            }
            Move::Dial => self.dial(bench),
            Move::HostWrites { connection, length } => {
                if let Some((mut stream, port)) = self.stream(connection) {
                    let _ = stream.write(&vec![1; length]);
                    bench.input(port);
                }
            }
            Move::HostReads { connection } => {
                if let Some((mut stream, port)) = self.stream(connection) {
                    let _ = stream.read(&mut vec![0; 100_000]);
                    bench.output(port);
                }
            }
            Move::HostEnds { connection } => {
                if let Some((stream, port)) = self.stream(connection) {
                    let _ = stream.shutdown(Shutdown::Write);
                    bench.input(port);
                }
            }
            Move::HostCloses { connection } => {
                if let Some((stream, port)) = self.streams.get_mut(connection) {
                    *stream = None;
                    let port = *port;
                    bench.hang_up(port);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_game_of_guest_and_host_breaks_the_bounds(
        moves in proptest::collection::vec(any_move(), 1..120)
    ) {
        let mut bench = Bench::new();
        let mut game = Game::default();
        game.dial(&mut bench);
        for one in &moves {
            game.play(&mut bench, one);
            prop_assert!(bench.connections.is_within_bounds());
            drop(bench.connections.take_over());
            while let Some(connection) = bench.connections.take_touched() {
                connection.waits_for_room = connection.has_buffered();
            }
        }
    }
}
