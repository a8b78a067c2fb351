//! The device between a driver in memory and a server of the test's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use virtio_bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::channel::{Channel, Reply, Request, SLOT_BYTES, SLOTS, Slots};
use super::{FailureReport, Fs, Server, Tag};
use crate::virtio::mmio::register;
use crate::virtio::testing::{
    DriverQueue, Machine, PATIENCE, Part, ram, readable, wait_for, writable,
};

const HIPRIO: u32 = 0;
const REQUESTS: u32 = 1;
/// Where the queues and the buffers are.
const HIPRIO_QUEUE: u64 = 0x1_0000;
const REQUEST_QUEUE: u64 = 0x2_0000;
const ASKED: u64 = 0x10_0000;
const ROOM: u64 = 0x20_0000;

/// A machine with the device, its driver, and the server's end.
struct Rig {
    machine: Machine,
    requests: DriverQueue,
    hiprio: DriverQueue,
    server: Option<Channel>,
    slots: Slots,
    failures: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        Self::with_wait(Duration::ZERO)
    }

    /// One whose driver looks for answers as soon as it has asked, and whose vCPUs stand so long for them.
    fn that_looks(longest: Duration) -> Self {
        let rig = Self::with_wait(longest);
        rig.requests.want_no_interrupt();
        rig
    }

    fn with_wait(longest: Duration) -> Self {
        let (device, server) = Channel::pair().unwrap();
        let failures = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&failures);
        let slots = server.map().unwrap();
        let on_failure = FailureReport::new(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let server_process = Server::Process {
            channel: device,
            on_failure,
        };
        let device = Fs::with_wait(Tag::new("tree"), server_process, longest);
        Self::with(device, Some(server), slots, failures)
    }

    fn with(device: Fs, server: Option<Channel>, slots: Slots, failures: Arc<AtomicUsize>) -> Self {
        let machine = Machine::restored(Box::new(device), ram(8 << 20), None).unwrap();
        machine.negotiate();
        let hiprio = machine.set_up_queue(HIPRIO, HIPRIO_QUEUE);
        let requests = machine.set_up_queue(REQUESTS, REQUEST_QUEUE);
        machine.driver_ok();
        Self {
            machine,
            requests,
            hiprio,
            server,
            slots,
            failures,
        }
    }

    fn unserved() -> Self {
        let (_, server) = Channel::pair().unwrap();
        let slots = server.map().unwrap();
        let device = Fs::new(Tag::new("tree"), Server::Nobody);
        Self::with(device, None, slots, Arc::default())
    }

    fn notify(&self, queue: u32) {
        self.machine.write(register::QUEUE_NOTIFY, queue);
    }

    /// Asks with bytes at one place and room at another.
    fn ask(&mut self, bytes: &[u8], room_bytes: u32) -> u16 {
        let memory = &self.machine.memory;
        memory.write_slice(bytes, GuestAddress(ASKED)).unwrap();
        let length = u32::try_from(bytes.len()).unwrap();
        self.ask_parts(&[readable(ASKED, length), writable(ROOM, room_bytes)])
    }

    fn ask_parts(&mut self, parts: &[Part]) -> u16 {
        let head = self.requests.add(parts);
        self.notify(REQUESTS);
        head
    }

    fn heard(&self) -> Vec<Request> {
        let mut requests = Vec::new();
        let server = self.server.as_ref().unwrap();
        server.await_requests(&mut requests).unwrap();
        requests
    }

    fn reply(&self, request: &Request, bytes: &[u8]) {
        self.slots.room(request).unwrap().copy_from(bytes);
        let written_bytes = u32::try_from(bytes.len()).unwrap();
        self.reply_raw(request.slot, written_bytes);
    }

    fn reply_raw(&self, slot: u32, written_bytes: u32) {
        let reply = Reply {
            slot,
            written_bytes,
        };
        self.server
            .as_ref()
            .unwrap()
            .send_replies(&[reply])
            .unwrap();
    }

    fn used(&mut self) -> (u16, u32) {
        wait_for(|| self.requests.take_used())
    }

    fn room(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let memory = &self.machine.memory;
        memory.read_slice(&mut bytes, GuestAddress(ROOM)).unwrap();
        bytes
    }

    /// What a request gets that fails: `struct fuse_out_header` with EIO.
    #[track_caller]
    fn is_refused(&mut self, head: u16, unique: u64) {
        assert_eq!(self.used(), (head, 16));
        let header = self.room(16);
        assert_eq!(header[..4], 16_u32.to_le_bytes());
        assert_eq!(header[4..8], (-libc::EIO).to_le_bytes());
        assert_eq!(header[8..], unique.to_le_bytes());
    }
}

/// A request that is known by this number.
fn known_by(unique: u64) -> Vec<u8> {
    let mut bytes = vec![0; 40];
    bytes[8..16].copy_from_slice(&unique.to_le_bytes());
    bytes
}

#[test]
fn the_configuration_has_the_tag_and_one_request_queue() {
    let rig = Rig::unserved();
    let word = |offset| rig.machine.read(register::CONFIG + offset);
    assert_eq!(word(0), u32::from_le_bytes(*b"tree"));
    assert_eq!(word(4), 0);
    assert_eq!(word(36), 1);
}

#[test]
fn a_request_goes_to_the_server_and_its_reply_to_the_guest() {
    let mut rig = Rig::new();
    let head = rig.ask(b"what is asked", 100);
    let [request] = rig.heard()[..] else {
        unreachable!("one request was made")
    };
    let mut asked = [0; 13];
    rig.slots.asked(&request).unwrap().copy_to(&mut asked[..]);
    assert_eq!(&asked, b"what is asked");
    assert_eq!(request.room_bytes, 100);

    rig.reply(&request, b"the answer");
    assert_eq!(rig.used(), (head, 10));
    assert_eq!(rig.room(12), b"the answer\0\0");
    assert!(rig.machine.line.count() > 0);
}

#[test]
fn a_request_in_pieces_is_one_and_so_is_its_reply() {
    let mut rig = Rig::new();
    let memory = rig.machine.memory.clone();
    memory.write_slice(b"abcdef", GuestAddress(ASKED)).unwrap();
    let parts = [
        readable(ASKED, 2),
        readable(ASKED + 2, 4),
        writable(ROOM, 3),
        writable(ROOM + 8, 1),
        writable(ROOM + 9, 9),
    ];
    let head = rig.ask_parts(&parts);
    let request = rig.heard()[0];
    assert_eq!((request.asked_bytes, request.room_bytes), (6, 13));
    rig.reply(&request, b"12345");
    assert_eq!(rig.used(), (head, 5));
    assert_eq!(rig.room(10), b"123\0\0\0\0\x0045");
}

#[test]
fn a_request_that_wants_no_reply_gets_none() {
    let mut rig = Rig::new();
    let head = rig.hiprio.add(&[readable(ASKED, 48)]);
    rig.notify(HIPRIO);
    let request = rig.heard()[0];
    assert_eq!(request.room_bytes, 0);
    rig.reply_raw(request.slot, 0);
    assert_eq!(wait_for(|| rig.hiprio.take_used()), (head, 0));
}

#[test]
fn more_requests_than_slots_wait_for_slots() {
    let mut rig = Rig::new();
    let count = usize::try_from(SLOTS).unwrap() + 20;
    for _ in 0..count {
        rig.requests.add(&[readable(ASKED, 40), writable(ROOM, 16)]);
    }
    rig.notify(REQUESTS);
    let mut answered = 0;
    while answered < count {
        for request in rig.heard() {
            rig.reply_raw(request.slot, 16);
            answered += 1;
        }
    }
    for _ in 0..count {
        rig.used();
    }
    assert_eq!(rig.requests.take_used(), None);
}

#[test]
fn a_request_that_fits_no_slot_is_refused() {
    let mut rig = Rig::new();
    let bytes = known_by(77);
    rig.machine
        .memory
        .write_slice(&bytes, GuestAddress(ASKED))
        .unwrap();
    let head = rig.ask_parts(&[readable(ASKED, SLOT_BYTES + 1), writable(ROOM, 100)]);
    rig.is_refused(head, 77);
    let outside = rig.ask_parts(&[readable(0xffff_0000_0000, 40), writable(ROOM, 100)]);
    rig.is_refused(outside, 0);
    let wrong_order = rig.ask_parts(&[writable(ROOM, 100), readable(ASKED, 40)]);
    assert_eq!(rig.used(), (wrong_order, 0));
}

#[test]
fn a_read_of_four_gibibytes_is_refused() {
    let mut rig = Rig::new();
    let head = rig.ask(&known_by(78), u32::MAX - 40);
    rig.is_refused(head, 78);
}

#[test]
fn a_chain_that_runs_in_circles_is_refused_and_the_next_request_is_not() {
    let mut rig = Rig::new();
    let flags = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    let circle = Descriptor::new(ASKED, SLOT_BYTES / 512, flags, 0);
    rig.requests.write_descriptor(0, circle);
    rig.requests.publish(0);
    rig.notify(REQUESTS);
    assert_eq!(rig.used(), (0, 0));
    let head = rig.ask(&known_by(1), 100);
    let request = rig.heard()[0];
    rig.reply(&request, b"the answer");
    assert_eq!(rig.used(), (head, 10));
}

/// A descriptor that some driver might write, of the first sixteen; it does not lead to the rings, which are the guest's to spoil.
fn any_descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![ASKED..8 << 20, (8_u64 << 20)..];
    let length = prop_oneof![0_u32..4096, 0..=SLOT_BYTES, any::<u32>()];
    (address, length, 0_u16..8, 0_u16..16)
        .prop_map(|(address, length, flags, next)| Descriptor::new(address, length, flags, next))
}

#[test]
fn a_reply_to_a_place_that_is_not_there_does_no_harm() {
    let mut rig = Rig::new();
    let head = rig.ask_parts(&[readable(ASKED, 40), writable(0xffff_0000_0000, 100)]);
    let request = rig.heard()[0];
    rig.reply(&request, b"lost");
    assert_eq!(rig.used().0, head);
}

#[test]
fn without_a_server_every_request_is_refused() {
    let mut rig = Rig::unserved();
    let head = rig.ask(&known_by(5), 100);
    rig.is_refused(head, 5);
}

#[test]
fn a_server_that_goes_is_reported_once_and_all_requests_fail() {
    let mut rig = Rig::new();
    let pending = rig.ask(&known_by(3), 100);
    rig.heard();
    rig.server = None;
    rig.is_refused(pending, 3);
    let later = rig.ask(&known_by(4), 100);
    rig.is_refused(later, 4);
    assert_eq!(rig.failures.load(Ordering::SeqCst), 1);
}

/// What the server says of a request: a slot, seen from the request's, and how much it wrote there.
#[track_caller]
fn is_not_believed(slot: impl Fn(u32) -> u32, written_bytes: u32) {
    let mut rig = Rig::new();
    let head = rig.ask(&known_by(9), 100);
    let request = rig.heard()[0];
    rig.reply_raw(slot(request.slot), written_bytes);
    rig.is_refused(head, 9);
    let later = rig.ask(&known_by(10), 100);
    rig.is_refused(later, 10);
    assert_eq!(rig.failures.load(Ordering::SeqCst), 1);
}

#[test]
fn a_server_that_speaks_of_slots_that_it_does_not_have_is_not_believed() {
    is_not_believed(|_| SLOTS, 0);
    is_not_believed(|_| u32::MAX, 0);
    is_not_believed(|slot| slot + 1, 0);
}

#[test]
fn a_server_that_wrote_more_than_there_was_room_for_is_not_believed() {
    is_not_believed(|slot| slot, 101);
    is_not_believed(|slot| slot, u32::MAX);
}

#[test]
fn the_memory_cannot_be_pulled_away() {
    let (device, server) = Channel::pair().unwrap();
    let [_, memory] = server.descriptors();
    assert!(rustix::fs::ftruncate(memory, 0).is_err());
    drop(device);
}

#[test]
fn who_looks_has_the_answer_when_the_notification_is_done() {
    let mut rig = Rig::that_looks(PATIENCE);
    let slots = rig.server.as_ref().unwrap().map().unwrap();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        slots.await_letter(&mut requests).unwrap();
        slots.empty_box();
        slots.room(&requests[0]).unwrap().copy_from(b"an answer");
        let reply = Reply {
            slot: requests[0].slot,
            written_bytes: 9,
        };
        assert!(slots.give_reply(reply));
    });
    let head = rig.ask(b"a request", 64);
    assert_eq!(rig.requests.take_used(), Some((head, 9)));
    assert_eq!(rig.room(9), b"an answer");
    assert_eq!(rig.machine.line.count(), 0);
    server.join().unwrap();
}

#[test]
fn an_answer_that_takes_too_long_comes_by_the_socket() {
    let mut rig = Rig::that_looks(Duration::ZERO);
    let head = rig.ask(b"a request", 64);
    assert_eq!(rig.requests.take_used(), None);
    let mut requests = Vec::new();
    rig.slots.await_letter(&mut requests).unwrap();
    assert!(requests[0].is_awaited);
    let reply = Reply {
        slot: requests[0].slot,
        written_bytes: 0,
    };
    assert!(!rig.slots.give_reply(reply));
    rig.reply(&requests[0], b"late");
    assert_eq!(rig.used(), (head, 4));
}

#[test]
fn nobody_stands_for_a_while_after_an_answer_took_too_long() {
    let mut rig = Rig::that_looks(Duration::ZERO);
    rig.ask(b"slow", 64);
    let head = rig.ask(b"another", 64);
    let requests = rig.heard();
    assert!(!requests[0].is_awaited);
    rig.reply(&requests[0], b"fast");
    assert_eq!(rig.used(), (head, 4));
}

#[test]
fn an_answer_that_was_written_nowhere_ends_the_server() {
    let mut rig = Rig::that_looks(PATIENCE);
    let slots = rig.server.as_ref().unwrap().map().unwrap();
    let server = std::thread::spawn(move || {
        let mut requests = Vec::new();
        slots.await_letter(&mut requests).unwrap();
        let reply = Reply {
            slot: requests[0].slot,
            written_bytes: 65,
        };
        assert!(slots.give_reply(reply));
    });
    let head = rig.ask(&[0; 40], 64);
    rig.is_refused(head, 0);
    assert_eq!(rig.failures.load(Ordering::SeqCst), 1);
    server.join().unwrap();
}

#[test]
fn what_finds_the_letter_box_full_goes_by_the_socket() {
    let mut rig = Rig::that_looks(Duration::ZERO);
    let letter = Request {
        slot: 0,
        asked_bytes: 0,
        room_bytes: 0,
        is_awaited: true,
    };
    assert!(rig.slots.post(&[letter]));
    assert!(!rig.slots.post(&[letter]));
    rig.ask(b"a request", 64);
    assert_eq!(rig.heard().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_descriptors_there_are_the_server_hears_what_fits_and_each_is_used_once(
        descriptors in prop::collection::vec(any_descriptor(), 16),
        heads in prop::collection::vec(0_u16..16, 1..40),
    ) {
        let mut rig = Rig::new();
        for (index, descriptor) in (0..).zip(descriptors) {
            rig.requests.write_descriptor(index, descriptor);
        }
        let server = rig.server.take().unwrap();
        let answers = std::thread::spawn(move || {
            let mut requests = Vec::new();
            // What does not fit a slot makes no sense to it, and ends it.
            while server.await_requests(&mut requests).is_ok() {
                for Request { slot, room_bytes, .. } in &requests {
                    let reply = Reply { slot: *slot, written_bytes: *room_bytes };
                    server.send_replies(&[reply]).unwrap();
                }
            }
        });
        heads.iter().for_each(|head| rig.requests.publish(*head));
        rig.notify(REQUESTS);
        let mut used: Vec<_> = heads.iter().map(|_| rig.used().0).collect();
        let mut published = heads.clone();
        used.sort();
        published.sort();
        prop_assert_eq!(used, published);
        prop_assert_eq!(rig.requests.take_used(), None);
        prop_assert_eq!(rig.failures.load(Ordering::SeqCst), 0);
        drop(rig);
        answers.join().unwrap();
    }
}

proptest! {
    #[test]
    fn a_slot_ends_where_the_next_begins(slot in any::<u32>(), asked in any::<u32>(), room in any::<u32>()) {
        let request = Request { slot, asked_bytes: asked % (2 * SLOT_BYTES), room_bytes: room % (2 * SLOT_BYTES), is_awaited: false };
        let (_, server) = Channel::pair().unwrap();
        let slots = server.map().unwrap();
        let both = slots.asked(&request).is_some() && slots.room(&request).is_some();
        prop_assert_eq!(request.is_sound(), both);
    }
}
