//! The whole vsock device: transport, event loop and worker, with a guest that echoes.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{Bytes, GuestAddress};

use super::Dialer;
use super::packet::{op, shutdown};
use crate::virtio::mmio::register;
use crate::virtio::testing::{DriverQueue, Machine, PATIENCE, readable, wait_for, writable};

const PORT: u32 = 1024;
const RX_BASE: u64 = 0x10_0000;
const TX_BASE: u64 = 0x20_0000;
const BUFFER_BYTES: u32 = 4096;

fn buffer(base: u64, head: u16) -> u64 {
    base + u64::from(head) * u64::from(BUFFER_BYTES)
}

/// A guest that accepts every connection and sends back what it gets, to the end; it notifies the
/// device only when the device asked for it.
struct EchoGuest<'a> {
    machine: &'a Machine,
    rx: DriverQueue,
    tx: DriverQueue,
    event_idx: bool,
    /// By host port: how much was sent back.
    echoed: HashMap<u32, u32>,
    /// Host ports of connections that were reset by the device, in order.
    credit: HashMap<u32, Credit>,
    held: VecDeque<(Vec<u8>, u32, u16)>,
    resets: Vec<u32>,
}

/// What the host has said of its room, and what was sent into it.
#[derive(Default)]
struct Credit {
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
}

impl<'a> EchoGuest<'a> {
    fn start(machine: &'a Machine, features: u32) -> Self {
        machine.negotiate_with(features);
        let rx = machine.set_up_queue(0, 0x1_0000);
        let tx = machine.set_up_queue(1, 0x2_0000);
        machine.set_up_queue(2, 0x3_0000);
        machine.driver_ok();
        let mut guest = Self {
            machine,
            rx,
            tx,
            event_idx: features != 0,
            echoed: HashMap::new(),
            credit: HashMap::new(),
            held: VecDeque::new(),
            resets: Vec::new(),
        };
        for _ in 0..guest.rx.free_descriptors() {
            guest.post(guest.rx.next_head());
        }
        guest
    }

    fn post(&mut self, head: u16) {
        let posted = self
            .rx
            .add(&[writable(buffer(RX_BASE, head), BUFFER_BYTES)]);
        assert_eq!(posted, head);
        if self.rx.should_notify(self.event_idx) {
            self.machine.write(register::QUEUE_NOTIFY, 0);
        }
    }

    /// Receives one packet and answers it as soon as the host has room; `false` if there is none.
    fn step(&mut self) -> bool {
        self.answer_held();
        let Some((head, length)) = self.rx.take_used() else {
            return false;
        };
        let mut packet = vec![0; usize::try_from(length).unwrap()];
        self.machine
            .memory
            .read_slice(&mut packet, GuestAddress(buffer(RX_BASE, head)))
            .unwrap();
        self.post(head);
        let host_port = u32::from_le_bytes(packet[16..20].try_into().unwrap());
        let packet_op = u16::from_le_bytes(packet[30..32].try_into().unwrap());
        let flags = u32::from_le_bytes(packet[32..36].try_into().unwrap());
        *self.echoed.entry(host_port).or_default() += length - 44;
        let credit = self.credit.entry(host_port).or_default();
        credit.buf_alloc = u32::from_le_bytes(packet[36..40].try_into().unwrap());
        credit.fwd_cnt = u32::from_le_bytes(packet[40..44].try_into().unwrap());
        match packet_op {
            op::REQUEST => self.held.push_back((packet, host_port, op::RESPONSE)),
            op::RW => self.held.push_back((packet, host_port, op::RW)),
            op::SHUTDOWN if flags == shutdown::BOTH => {
                self.held.push_back((packet, host_port, op::RST))
            }
            op::SHUTDOWN => self.held.push_back((packet, host_port, op::SHUTDOWN)),
            op::CREDIT_REQUEST => self.held.push_back((packet, host_port, op::CREDIT_UPDATE)),
            op::RST => self.resets.push(host_port),
            _ => {}
        }
        self.answer_held();
        true
    }

    /// Answers in order, and never sends more than the host has room for (VirtIO 1.2 section 5.10.6.3).
    fn answer_held(&mut self) {
        while let Some((packet, host_port, _)) = self.held.front() {
            let length = u32::try_from(packet.len()).unwrap() - 44;
            let credit = self.credit.entry(*host_port).or_default();
            let in_flight = credit.sent.wrapping_sub(credit.fwd_cnt);
            if length > 0 && in_flight + length > credit.buf_alloc {
                return;
            }
            credit.sent = credit.sent.wrapping_add(length);
            if let Some((packet, host_port, answer)) = self.held.pop_front() {
                self.answer(packet, host_port, answer);
            }
        }
    }

    fn answer(&mut self, mut packet: Vec<u8>, host_port: u32, answer: u16) {
        let guest_port = packet[20..24].to_vec();
        packet[0..8].copy_from_slice(&3_u64.to_le_bytes());
        packet[8..16].copy_from_slice(&2_u64.to_le_bytes());
        packet[16..20].copy_from_slice(&guest_port);
        packet[20..24].copy_from_slice(&host_port.to_le_bytes());
        packet[30..32].copy_from_slice(&answer.to_le_bytes());
        packet[36..40].copy_from_slice(&65536_u32.to_le_bytes());
        packet[40..44].copy_from_slice(&self.echoed[&host_port].to_le_bytes());
        wait_for(|| {
            while self.tx.take_used().is_some() {}
            (self.tx.free_descriptors() > 0).then_some(())
        });
        let address = buffer(TX_BASE, self.tx.next_head());
        self.machine
            .memory
            .write_slice(&packet, GuestAddress(address))
            .unwrap();
        let length = u32::try_from(packet.len()).unwrap();
        self.tx.add(&[readable(address, length)]);
        if self.tx.should_notify(self.event_idx) {
            self.machine.write(register::QUEUE_NOTIFY, 1);
        }
    }

    /// Echoes until `done`.
    fn run_until(&mut self, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            if !self.step() {
                std::thread::yield_now();
            }
            assert!(start.elapsed() < 3 * PATIENCE, "the echo does not end");
        }
    }
}

fn pattern(seed: u32, length: u32) -> Vec<u8> {
    (0..length)
        .map(|i| (i ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

fn dial(dialer: &Dialer) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    dialer.connect(PORT, theirs).unwrap();
    ours
}

/// Writes `data`, ends it, reads everything that comes, and compares.
fn echo_through(stream: UnixStream, data: &[u8]) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            writer.write_all(data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut echo = Vec::new();
        reader.read_to_end(&mut echo).unwrap();
        writing.join().unwrap();
        assert!(echo == data, "the echo differs");
    });
}

fn echo_on_connections(connections: u32, bytes_each: u32, features: u32) {
    let (machine, dialer) = Machine::vsock();
    // Dialled before the driver is there.
    let streams: Vec<UnixStream> = (0..connections).map(|_| dial(&dialer)).collect();
    let mut guest = EchoGuest::start(&machine, features);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hosts = scope.spawn(|| {
            std::thread::scope(|scope| {
                for (seed, stream) in (0..).zip(streams) {
                    scope.spawn(move || echo_through(stream, &pattern(seed, bytes_each)));
                }
            });
            done.store(true, Ordering::SeqCst);
        });
        guest.run_until(|| done.load(Ordering::SeqCst) || hosts.is_finished());
    });
    assert!(done.load(Ordering::SeqCst));
}

#[test]
fn megabytes_are_echoed_and_ended_on_one_connection() {
    echo_on_connections(1, 3_000_000, 0);
}

#[test]
fn many_connections_echo_at_once() {
    echo_on_connections(12, 200_000, 0);
}

#[test]
fn many_connections_echo_at_once_with_event_indices() {
    echo_on_connections(12, 200_000, 1 << VIRTIO_RING_F_EVENT_IDX);
}

#[test]
fn a_reset_of_the_device_closes_its_connections() {
    let (machine, dialer) = Machine::vsock();
    let mut ours = dial(&dialer);
    let mut guest = EchoGuest::start(&machine, 0);
    ours.write_all(b"x").unwrap();
    guest.run_until(|| guest_has_echoed(&ours));
    machine.write(register::STATUS, 0);
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"x");
}

/// Whether there is something to read, without reading it.
fn guest_has_echoed(stream: &UnixStream) -> bool {
    let mut byte = [0; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut byte, flags), Ok((1, _)))
}

#[test]
fn a_dial_after_a_reset_reaches_the_next_driver() {
    let (machine, dialer) = Machine::vsock();
    drop(EchoGuest::start(&machine, 0));
    machine.write(register::STATUS, 0);
    let mut ours = dial(&dialer);
    let mut guest = EchoGuest::start(&machine, 0);
    ours.write_all(b"x").unwrap();
    guest.run_until(|| guest_has_echoed(&ours));
}

#[test]
fn a_guest_that_takes_nothing_does_not_make_the_loop_spin() {
    let (machine, dialer) = Machine::vsock();
    let mut ours = dial(&dialer);
    let mut guest = EchoGuest::start(&machine, 0);
    ours.write_all(b"x").unwrap();
    guest.run_until(|| guest_has_echoed(&ours));
    // From here on the guest does nothing, and the host writes as much as it can, and goes.
    ours.set_nonblocking(true).unwrap();
    while ours.write(&[0; 4096]).is_ok() {}
    drop(ours);
    std::thread::sleep(Duration::from_millis(100));
    let before = machine.wakeups();
    std::thread::sleep(Duration::from_millis(100));
    assert!(machine.wakeups() - before < 5);
}

#[test]
fn a_closed_stream_ends_with_the_guests_reset() {
    let (machine, dialer) = Machine::vsock();
    let mut ours = dial(&dialer);
    let mut guest = EchoGuest::start(&machine, 0);
    ours.write_all(b"x").unwrap();
    guest.run_until(|| guest_has_echoed(&ours));
    drop(ours);
    // A second one shows that the device goes on.
    let mut second = dial(&dialer);
    second.write_all(b"y").unwrap();
    guest.run_until(|| guest_has_echoed(&second));
    assert!(guest.resets.is_empty());
}
