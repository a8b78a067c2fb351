//! The network device's queues against a driver in guest memory and the other end of a link.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicUsize;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use proptest::prelude::*;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::header::Allowed;
use super::queue::{Receiver, transmit};
use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::testing::{DriverQueue, Machine, Part, ram, readable, wait_for, writable};
use crate::virtio::{DeviceMemory, Turn, mmio::register, mmio::status};

const RING: u64 = 0x1_0000;
const DATA: u64 = 0x10_0000;
const RAM_BYTES: usize = 4 << 20;
const MAC: MacAddress = MacAddress::new([2, 0, 0, 0, 0, 7]);
const MERGED: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_TCP4: u8 = 1;
const GSO_UDP: u8 = 3;
const GSO_CONGESTION: u8 = 0x80;

fn interface() -> Interface {
    Interface {
        mac: MAC,
        mtu: 1500,
        offloads: Offloads::ALL,
    }
}

/// Both ends of a link: ours, and the world's.
fn pair() -> (FrameSocket, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    (FrameSocket::new(ours).unwrap(), theirs)
}

fn port(link: Option<FrameSocket>) -> Port {
    let mut net = Net::new(interface());
    net.port.link = link.map(|link| Box::new(link) as Box<dyn Link>);
    net.port
}

/// What arrives at the world's end.
fn arrived(world: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 100];
    let (length, _) = recv(world, &mut bytes, RecvFlags::DONTWAIT).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn header(flags: u8, gso_type: u8, rest: [u16; 4]) -> Vec<u8> {
    let mut bytes = vec![flags, gso_type];
    bytes.extend(rest.into_iter().flat_map(u16::to_le_bytes));
    bytes.extend([0; 2]);
    bytes
}

fn plain() -> Vec<u8> {
    header(0, 0, [0; 4])
}

fn message(length: usize) -> Vec<u8> {
    let frame = (0..length).map(|index| u8::try_from(index % 251).unwrap());
    plain().into_iter().chain(frame).collect()
}

/// The sending side of a guest.
struct Sender {
    port: Port,
    world: OwnedFd,
    memory: DeviceMemory,
    driver: DriverQueue,
    queue: virtio_queue::Queue,
}

impl Sender {
    fn new() -> Self {
        let (link, world) = pair();
        let memory = ram(RAM_BYTES);
        let driver = DriverQueue::new(&memory, RING, 128);
        Self {
            port: port(Some(link)),
            world,
            queue: driver.device_queue(),
            memory,
            driver,
        }
    }

    /// Queues a frame with its header, in one descriptor.
    fn add(&mut self, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.driver.add(&[readable(DATA, length)]);
    }

    fn run(&mut self, features: u64) -> Turn {
        let allowed = Allowed::from_guest(features);
        transmit(&mut self.port, &mut self.queue, &self.memory, allowed).unwrap()
    }

    /// What becomes of one frame, with everything negotiated.
    fn send(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.add(bytes);
        self.run(u64::MAX);
        assert!(self.driver.take_used().is_some());
        arrived(&self.world)
    }

    fn dropped(&self) -> u64 {
        self.port.counters.transmit.dropped()
    }
}

#[test]
fn a_frame_goes_out_as_it_is() {
    let mut sender = Sender::new();

    assert_eq!(sender.send(&message(60)), Some(message(60)));

    let counter = &sender.port.counters.transmit;
    assert_eq!((counter.packets(), counter.bytes()), (1, 60));
}

#[test]
fn a_frame_may_be_cut_anywhere() {
    let mut sender = Sender::new();
    let bytes = message(70);
    sender
        .memory
        .write_slice(&bytes, GuestAddress(DATA))
        .unwrap();
    sender.driver.add(&[
        readable(DATA, 5),
        readable(DATA + 5, 0),
        readable(DATA + 5, 20),
        readable(DATA + 25, 57),
    ]);

    sender.run(0);

    assert_eq!(arrived(&sender.world), Some(bytes));
}

#[test]
fn one_turn_sends_many_frames_and_interrupts_once() {
    let mut sender = Sender::new();
    for _ in 0..20 {
        sender.add(&message(60));
    }

    let turn = sender.run(0);

    assert!(turn.interrupt && !turn.unfinished);
    let frames = std::iter::from_fn(|| arrived(&sender.world));
    assert_eq!(frames.count(), 20);
}

#[test]
fn frames_of_impossible_length_are_dropped_and_counted() {
    let mut sender = Sender::new();

    for length in [0, 1, 11, 12, 25, HEADER_BYTES + MAX_FRAME_BYTES + 1] {
        assert_eq!(sender.send(&vec![0; length.max(1)]), None, "{length}");
    }
    assert_eq!(sender.send(&message(14)), Some(message(14)));
    let longest = message(MAX_FRAME_BYTES);
    assert_eq!(sender.send(&longest), Some(longest));

    assert_eq!(sender.dropped(), 6);
}

#[test]
fn offloads_that_do_not_fit_the_frame_are_dropped_and_counted() {
    let hostile = [
        // header length, segment length, where the checksum begins, and where it is from there.
        (NEEDS_CHECKSUM, 0, [0, 0, 0, 0]),
        (NEEDS_CHECKSUM, 0, [0, 0, 60, 0]),
        (NEEDS_CHECKSUM, 0, [0, 0, 34, 25]),
        (NEEDS_CHECKSUM, 0, [0, 0, u16::MAX, u16::MAX]),
        (NEEDS_CHECKSUM, GSO_TCP4, [54, 0, 34, 16]),
        (NEEDS_CHECKSUM, GSO_TCP4, [61, 1000, 34, 16]),
        (0, GSO_TCP4, [54, 1000, 34, 16]),
        (NEEDS_CHECKSUM, GSO_UDP, [42, 1000, 34, 6]),
        (NEEDS_CHECKSUM, GSO_CONGESTION, [54, 1000, 34, 16]),
        (NEEDS_CHECKSUM, 0x7f, [54, 1000, 34, 16]),
    ];
    let mut sender = Sender::new();

    for (flags, gso_type, rest) in hostile {
        let mut bytes = header(flags, gso_type, rest);
        bytes.resize(HEADER_BYTES + 60, 0);
        assert_eq!(sender.send(&bytes), None, "{gso_type:#x} {rest:?}");
    }

    assert_eq!(sender.dropped(), 10);
}

#[test]
fn offloads_that_were_not_negotiated_are_dropped() {
    let mut sender = Sender::new();
    let mut bytes = header(NEEDS_CHECKSUM, GSO_TCP4, [54, 1000, 34, 16]);
    bytes.resize(HEADER_BYTES + 3000, 0);
    assert_eq!(sender.send(&bytes), Some(bytes.clone()));

    sender.add(&bytes);
    sender.run(Offloads::CHECKSUM);

    assert_eq!((arrived(&sender.world), sender.dropped()), (None, 1));
}

#[test]
fn what_means_nothing_in_a_header_does_not_go_out() {
    let mut sender = Sender::new();
    let mut bytes = header(0xfe, 0, [1, 2, 3, 4]);
    bytes.resize(HEADER_BYTES + 60, 0);

    let sent = sender.send(&bytes).unwrap();

    assert_eq!(sent[..HEADER_BYTES], [0; HEADER_BYTES]);
}

#[test]
fn a_full_link_keeps_the_frame_until_there_is_room() {
    let mut sender = Sender::new();
    rustix::net::sockopt::set_socket_send_buffer_size(
        sender.port.link.as_ref().unwrap().descriptor(),
        8192,
    )
    .unwrap();
    for _ in 0..60 {
        sender.add(&message(1500));
    }

    let turn = sender.run(0);

    assert!(turn.stalled);
    let mut received = 0;
    while received < 60 {
        let frames = std::iter::from_fn(|| arrived(&sender.world)).count();
        assert_ne!(frames, 0);
        received += frames;
        sender.run(0);
    }
    let counter = &sender.port.counters.transmit;
    assert_eq!(
        (received, counter.packets(), counter.dropped()),
        (60, 60, 0)
    );
}

#[test]
fn a_link_that_is_gone_is_noticed_once() {
    let mut sender = Sender::new();
    let (theirs, _) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::empty(),
        None,
    )
    .unwrap();
    drop(std::mem::replace(&mut sender.world, theirs));
    let losses = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&losses);
    sender.port.on_loss = Some(LossReport::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));

    for _ in 0..3 {
        sender.add(&message(60));
    }
    sender.run(0);

    assert_eq!(losses.load(Ordering::SeqCst), 1);
    let counter = &sender.port.counters.transmit;
    assert_eq!((counter.errors(), counter.dropped()), (1, 2));
    assert_eq!(std::iter::from_fn(|| sender.driver.take_used()).count(), 3);
}

#[test]
fn a_rate_holds_frames_back_and_drops_none() {
    let mut sender = Sender::new();
    let rate = Rate {
        bytes_a_second: 1 << 16,
    };
    sender.port.transmit_pacer = Some(Pacer::new(rate).unwrap());
    let begin = std::time::Instant::now();
    for _ in 0..4 {
        sender.add(&message(1 << 12));
    }

    let mut received = 0;
    while received < 4 {
        sender.run(0);
        received += std::iter::from_fn(|| arrived(&sender.world)).count();
    }

    // The last frame waits for the three before it.
    assert!(begin.elapsed().as_millis() >= 180);
}

/// The receiving side of a guest.
struct Receiving {
    port: Port,
    world: OwnedFd,
    memory: DeviceMemory,
    driver: DriverQueue,
    queue: virtio_queue::Queue,
    receiver: Receiver,
    features: u64,
}

impl Receiving {
    fn new(features: u64) -> Self {
        let (link, world) = pair();
        let memory = ram(RAM_BYTES);
        let driver = DriverQueue::new(&memory, RING, 128);
        Self {
            port: port(Some(link)),
            world,
            queue: driver.device_queue(),
            memory,
            driver,
            receiver: Receiver::new(features),
            features,
        }
    }

    fn send(&self, bytes: &[u8]) {
        send(&self.world, bytes, SendFlags::empty()).unwrap();
    }

    fn run(&mut self) -> Turn {
        self.receiver
            .receive(&mut self.port, &mut self.queue, &self.memory)
            .unwrap()
    }

    /// Leaves buffers of this length, one behind the other.
    fn leave(&mut self, from: usize, count: usize, length: u32) {
        for index in from..from + count {
            let address = DATA + u64::try_from(index).unwrap() * u64::from(length);
            self.driver.add(&[writable(address, length)]);
        }
    }

    /// The buffers that were given back, as the lengths that were written.
    fn used(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.driver.take_used())
            .map(|(_, length)| length)
            .collect()
    }

    fn bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(DATA))
            .unwrap();
        bytes
    }

    fn dropped(&self) -> u64 {
        self.port.counters.receive.dropped()
    }
}

/// A message as the guest gets it, in so many buffers.
fn merged(mut bytes: Vec<u8>, buffers: u8) -> Vec<u8> {
    bytes[10] = buffers;
    bytes
}

#[test]
fn a_frame_arrives_in_one_buffer() {
    let mut guest = Receiving::new(0);
    guest.leave(0, 2, 2000);
    guest.send(&message(60));

    let turn = guest.run();

    assert!(turn.interrupt && !turn.stalled);
    assert_eq!(guest.used(), [72]);
    assert_eq!(guest.bytes(72), merged(message(60), 1));
}

#[test]
fn a_long_frame_fills_as_many_buffers_as_it_needs() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 100, 1536);

    // The first is read without knowing how long it will be, the second is expected to be as long.
    for _ in 0..2 {
        guest.send(&message(60_000));
        guest.run();
    }

    let used = guest.used();
    assert_eq!(used.len(), 80);
    assert_eq!(used[..40].iter().sum::<u32>(), 60_012);
    assert_eq!(guest.bytes(60_012), merged(message(60_000), 40));
    let counter = &guest.port.counters.receive;
    assert_eq!((counter.packets(), counter.bytes()), (2, 120_000));
}

#[test]
fn a_frame_waits_for_a_guest_without_buffers() {
    let mut guest = Receiving::new(MERGED);
    guest.send(&message(60));
    assert!(guest.run().stalled);
    guest.leave(0, 1, 1536);

    let turn = guest.run();

    assert!(turn.interrupt);
    assert_eq!(guest.used(), [72]);
    assert_eq!(guest.dropped(), 0);
}

#[test]
fn a_frame_waits_for_the_rest_of_its_buffers() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 2, 1536);
    guest.send(&message(4000));
    guest.send(&message(60));
    assert!(guest.run().stalled);
    assert_eq!(guest.used(), [0; 0]);

    guest.leave(2, 2, 1536);
    guest.run();

    assert_eq!(guest.used(), [1536, 1536, 940, 72]);
    assert_eq!(guest.bytes(4012), merged(message(4000), 3));
}

#[test]
fn all_buffers_of_a_frame_appear_at_once() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 3, 1536);
    guest.send(&message(4000));
    let index = |guest: &Receiving| -> u16 {
        let place = GuestAddress(guest.driver.used() + 2);
        guest.memory.read_obj(place).unwrap()
    };
    assert_eq!(index(&guest), 0);

    guest.run();

    assert_eq!(index(&guest), 3);
}

#[test]
fn a_guest_that_never_refills_its_queue_loses_nothing_that_was_sent_before_its_link_was_full() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 4, 1536);
    let mut sent = 0;
    while send(&guest.world, &message(60), SendFlags::DONTWAIT).is_ok() {
        sent += 1;
        guest.run();
    }
    assert_eq!(guest.used().len(), 4);

    let mut received = 4;
    while received < sent {
        guest.leave(0, 100, 1536);
        guest.run();
        guest.run();
        received += guest.used().len();
    }

    assert_eq!((received, guest.dropped()), (sent, 0));
}

#[test]
fn a_frame_that_no_buffers_hold_is_dropped() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 128, 16);
    guest.send(&message(4000));
    guest.send(&message(14));

    guest.run();

    assert_eq!(guest.dropped(), 1);
    assert_eq!(guest.used(), [16, 10]);
}

#[test]
fn a_frame_that_is_longer_than_the_one_buffer_is_dropped() {
    let mut guest = Receiving::new(0);
    guest.leave(0, 2, 1526);
    guest.send(&message(4000));
    guest.send(&message(60));

    guest.run();

    assert_eq!(guest.dropped(), 1);
    assert_eq!(guest.used(), [72]);
    assert_eq!(guest.bytes(72), merged(message(60), 1));
}

#[test]
fn buffers_that_are_none_come_back_empty() {
    let mut guest = Receiving::new(MERGED);
    guest.driver.add(&[readable(DATA, 2000)]);
    guest.driver.add(&[writable(u64::MAX - 8, 2000)]);
    guest.driver.add(&[writable(DATA, 12)]);
    guest.leave(0, 1, 2000);
    guest.send(&message(60));

    guest.run();

    assert_eq!(guest.used(), [0, 0, 0, 72]);
}

#[test]
fn what_a_link_says_without_sense_does_not_reach_the_guest() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 10, 1536);
    guest.send(&[0; 5]);
    guest.send(&[0; 25]);
    let mut segment = header(NEEDS_CHECKSUM, GSO_TCP4, [54, 1000, 34, 16]);
    segment.resize(HEADER_BYTES + 60, 0);
    guest.send(&segment);
    guest.send(&message(60));

    guest.run();

    assert_eq!(guest.dropped(), 3);
    assert_eq!(guest.used(), [72]);
}

#[test]
fn the_end_of_a_link_is_noticed() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 1, 1536);
    rustix::net::shutdown(&guest.world, rustix::net::Shutdown::Both).unwrap();

    guest.run();

    assert!(guest.port.link.is_none() && guest.port.lost.is_some());
}

#[test]
fn a_saved_queue_has_the_buffers_that_were_not_given_back() {
    let mut guest = Receiving::new(MERGED);
    guest.leave(0, 20, 1536);
    guest.send(&message(20_000));
    guest.run();
    guest.send(&message(60));
    guest.run();
    assert_eq!(guest.used().len(), 15);

    let saved = guest.receiver.save(&guest.queue);
    guest.queue = (&saved).try_into().unwrap();
    guest.receiver = Receiver::new(guest.features);
    for _ in 0..5 {
        guest.send(&message(60));
    }
    guest.run();

    assert_eq!(guest.used(), [72; 5]);
}

#[test]
fn the_driver_is_told_what_the_interface_is() {
    let net = Net::new(interface());

    assert_eq!(net.device_type().id(), 1);
    assert_eq!(net.config_space(), [2, 0, 0, 0, 0, 7, 1, 0, 1, 0, 0xdc, 5]);
    let plain = Net::new(Interface {
        offloads: Offloads::default(),
        ..interface()
    });
    assert_eq!(plain.features() & Offloads::ALL.features(), 0);
    assert_ne!(net.features() & MERGED, 0);
}

/// A whole device on an event loop.
struct Whole {
    machine: Machine,
    world: OwnedFd,
    receive: DriverQueue,
    transmit: DriverQueue,
    losses: Arc<AtomicUsize>,
}

impl Whole {
    fn new() -> Self {
        let (link, world) = pair();
        let losses = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&losses);
        let report = LossReport::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let device = Net::new(interface()).connected_to(Box::new(link), report);
        let machine = Machine::with(Box::new(device));
        machine.negotiate_with(1 << VIRTIO_NET_F_MRG_RXBUF);
        let receive = machine.set_up_queue(0, RING);
        let transmit = machine.set_up_queue(1, 2 * RING);
        machine.driver_ok();
        Self {
            machine,
            world,
            receive,
            transmit,
            losses,
        }
    }

    fn leave_one(&mut self) {
        self.receive.add(&[writable(DATA, 1536)]);
        self.machine.write(register::QUEUE_NOTIFY, 0);
    }

    fn send(&mut self, bytes: &[u8]) {
        let place = DATA + 0x1_0000;
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(place)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.transmit.add(&[readable(place, length)]);
        self.machine.write(register::QUEUE_NOTIFY, 1);
    }
}

#[test]
fn frames_go_both_ways_over_the_event_loop() {
    let mut whole = Whole::new();
    whole.leave_one();
    send(&whole.world, &message(60), SendFlags::empty()).unwrap();
    assert_eq!(wait_for(|| whole.receive.take_used()).1, 72);

    whole.send(&message(70));

    assert_eq!(wait_for(|| arrived(&whole.world)), message(70));
    wait_for(|| whole.transmit.take_used());
}

#[test]
fn a_frame_that_waits_for_a_buffer_comes_with_the_next_one() {
    let mut whole = Whole::new();
    send(&whole.world, &message(60), SendFlags::empty()).unwrap();

    whole.leave_one();

    assert_eq!(wait_for(|| whole.receive.take_used()).1, 72);
}

#[test]
fn a_guest_without_buffers_does_not_keep_the_loop_busy() {
    let whole = Whole::new();
    for _ in 0..10 {
        send(&whole.world, &message(60), SendFlags::empty()).unwrap();
    }
    let before = wait_for(|| {
        let before = whole.machine.wakeups();
        std::thread::sleep(std::time::Duration::from_millis(50));
        (whole.machine.wakeups() == before).then_some(before)
    });

    send(&whole.world, &message(60), SendFlags::empty()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));

    assert_eq!(whole.machine.wakeups(), before);
}

#[test]
fn a_link_that_ends_while_nobody_reads_it_is_noticed() {
    let whole = Whole::new();
    let losses = Arc::clone(&whole.losses);

    drop(whole.world);

    wait_for(|| (losses.load(Ordering::SeqCst) == 1).then_some(()));
}

#[test]
fn a_device_works_again_after_a_reset() {
    let mut whole = Whole::new();
    whole.leave_one();
    whole.machine.write(register::STATUS, 0);
    assert_eq!(whole.machine.read(register::STATUS) & status::DRIVER_OK, 0);
    whole.machine.negotiate_with(1 << VIRTIO_NET_F_MRG_RXBUF);
    whole.receive = whole.machine.set_up_queue(0, RING);
    whole.transmit = whole.machine.set_up_queue(1, 2 * RING);
    for ring in [RING, 2 * RING] {
        whole
            .machine
            .memory
            .write_slice(&[0; 0x2000], GuestAddress(ring))
            .unwrap();
    }
    whole.machine.driver_ok();

    whole.send(&message(70));

    assert_eq!(wait_for(|| arrived(&whole.world)), message(70));
}

#[test]
fn a_restored_device_takes_the_buffers_that_its_guest_had_left() {
    let mut whole = Whole::new();
    whole.leave_one();
    send(&whole.world, &message(60), SendFlags::empty()).unwrap();
    wait_for(|| whole.receive.take_used());
    whole.leave_one();
    let memory = whole.machine.memory.clone();
    let saved = whole.machine.freeze().unwrap();

    let (link, world) = pair();
    let report = LossReport::new(|| ());
    let device = Net::new(interface()).connected_to(Box::new(link), report);
    let _machine = Machine::restored(Box::new(device), memory, Some(&saved)).unwrap();
    send(&world, &message(61), SendFlags::empty()).unwrap();

    assert_eq!(wait_for(|| whole.receive.take_used()).1, 73);
}

proptest! {
    /// Whatever a guest queues, the device answers each chain once and ends in order.
    #[test]
    fn no_chain_of_a_guest_breaks_the_device(
        chains in prop::collection::vec(
            prop::collection::vec((0_u64..RAM_BYTES as u64 * 2, 0_u32..70_000, any::<bool>()), 1..5),
            1..16,
        ),
        features in any::<u64>(),
        contents in prop::collection::vec(any::<u8>(), 0..4096),
    ) {
        let mut sender = Sender::new();
        sender.memory.write_slice(&contents, GuestAddress(DATA)).unwrap();
        let parts = |chain: &[(u64, u32, bool)]| -> Vec<Part> {
            chain
                .iter()
                .map(|&(address, length, is_written)| match is_written {
                    true => writable(address.max(DATA), length),
                    false => readable(address.max(DATA), length),
                })
                .collect()
        };
        for chain in &chains {
            sender.driver.add(&parts(chain));
        }
        while sender.run(features).stalled {
            while arrived(&sender.world).is_some() {}
        }
        let used = std::iter::from_fn(|| sender.driver.take_used()).count();
        prop_assert_eq!(used, chains.len());

        let mut guest = Receiving::new(features);
        for chain in &chains {
            guest.driver.add(&parts(chain));
        }
        for length in [60, 1500, 9000, 65_549] {
            guest.send(&message(length));
            guest.run();
        }
        let used = guest.used().len();
        prop_assert!(used <= chains.len());
    }

    /// A header goes on only if it fits the frame, whatever stands in it.
    #[test]
    fn no_header_of_a_guest_points_out_of_its_frame(
        bytes in any::<[u8; HEADER_BYTES]>(),
        length in MIN_FRAME_BYTES..=MAX_FRAME_BYTES,
    ) {
        let allowed = Allowed::from_guest(u64::MAX);
        if let Some(sent) = header::from_guest(bytes, length, allowed)
            && sent[0] & NEEDS_CHECKSUM != 0
        {
            let start = usize::from(u16::from_le_bytes([sent[6], sent[7]]));
            let offset = usize::from(u16::from_le_bytes([sent[8], sent[9]]));
            prop_assert!(start + offset + 2 <= length);
        }
    }
}

#[test]
fn a_chain_in_a_circle_has_an_end() {
    let mut sender = Sender::new();
    let next = u16::try_from(virtio_bindings::virtio_ring::VRING_DESC_F_NEXT).unwrap();
    sender
        .driver
        .write_descriptor(0, Descriptor::new(DATA, 1000, next, 0));
    sender.driver.publish(0);

    sender.run(0);

    // As many descriptors as the queue has are more than a frame.
    assert!(arrived(&sender.world).is_none());
    assert_eq!(sender.dropped(), 1);
    assert!(sender.driver.take_used().is_some());
}

#[test]
fn a_tap_that_is_not_there_is_none() {
    assert!(matches!(
        Tap::open("vmm-not-there"),
        Err(TapError::NoInterface(_))
    ));
    assert!(matches!(Tap::open("a/b"), Err(TapError::BadName(_))));
    assert!(matches!(Tap::open(""), Err(TapError::BadName(_))));
    assert!(matches!(
        Tap::open("a-name-that-is-too-long"),
        Err(TapError::BadName(_))
    ));
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    let error = Tap::open("lo").unwrap_err();
    assert!(
        matches!(
            error,
            TapError::NotATap(_) | TapError::NoTun | TapError::Open(_) | TapError::NoRight(_)
        ),
        "{error}"
    );
}

#[test]
fn the_end_of_a_pacers_wait_is_its_timers() {
    let rate = Rate {
        bytes_a_second: 1 << 20,
    };
    let mut pacer = Pacer::new(rate).unwrap();
    pacer.charge(1 << 15);

    assert!(!pacer.allows());

    let mut events = EventLoop::new().unwrap();
    events.add(Box::new(Watch(pacer.as_raw_fd())));
    assert_eq!(events.run_once(5000).unwrap(), 1);
    assert!(pacer.allows());
}

/// Waits for a descriptor.
struct Watch(RawFd);

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::with_data_raw(self.0, 0, EventSet::IN);
        ops.add(events).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {}
}
