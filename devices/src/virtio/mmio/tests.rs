//! The transport as a driver sees it: through the bus, with real workers on a real event loop.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::event_loop::EventLoop;
use crate::virtio::pmem::{Pmem, PmemWindow};
use crate::virtio::testing::{CountingLine, DriverQueue, ram, readable, writable};
use crate::virtio::vsock::{Dialer, GuestCid, Vsock};

const PATIENCE: Duration = Duration::from_secs(10);

/// A slot with a device in it, and the event loop behind it on its own thread.
struct Machine {
    slot: MmioTransport,
    line: Arc<CountingLine>,
    memory: GuestRam,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Machine {
    fn with(device: Box<dyn VirtioDevice>) -> Self {
        let mut events = EventLoop::new().unwrap();
        let handle = events.handle();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                events.run_once(5).unwrap();
            }
        });
        let memory = ram(4 << 20);
        let line = Arc::new(CountingLine::default());
        let interrupt: Arc<dyn Interrupt> = Arc::<CountingLine>::clone(&line);
        let slot = MmioTransport::new(device, memory.clone(), interrupt, handle).unwrap();
        Self {
            slot,
            line,
            memory,
            stop,
            thread: Some(thread),
        }
    }

    fn pmem() -> Self {
        Self::with(Box::new(Pmem::new(PmemWindow {
            start: GuestAddress(0x1_4000_0000),
            size_bytes: 0x20_0000,
        })))
    }

    fn vsock() -> (Self, Dialer) {
        let (device, dialer) = Vsock::new(GuestCid::FIRST).unwrap();
        (Self::with(Box::new(device)), dialer)
    }

    fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.slot.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn write(&self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    fn add_status(&self, bit: u32) -> u32 {
        self.write(register::STATUS, self.read(register::STATUS) | bit);
        self.read(register::STATUS)
    }

    /// Goes through the initialisation sequence up to `FEATURES_OK`.
    fn negotiate(&self) {
        self.write(register::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, 1);
        assert_ne!(
            self.add_status(status::FEATURES_OK) & status::FEATURES_OK,
            0
        );
    }

    fn set_up_queue(&self, index: u32, base: u64) -> DriverQueue {
        self.write(register::QUEUE_SEL, index);
        let size = u16::try_from(self.read(register::QUEUE_NUM_MAX)).unwrap();
        let queue = DriverQueue::new(&self.memory, base, size);
        self.write(register::QUEUE_NUM, u32::from(size));
        let addresses = [
            (register::QUEUE_DESC_LOW, queue.descriptors()),
            (register::QUEUE_DRIVER_LOW, queue.avail()),
            (register::QUEUE_DEVICE_LOW, queue.used()),
        ];
        for (offset, address) in addresses {
            self.write(offset, u32::try_from(address & 0xffff_ffff).unwrap());
            self.write(offset + 4, u32::try_from(address >> 32).unwrap());
        }
        self.write(register::QUEUE_READY, 1);
        assert_eq!(self.read(register::QUEUE_READY), 1);
        queue
    }

    fn driver_ok(&self) {
        let now = self.add_status(status::DRIVER_OK);
        assert_eq!(now & status::NEEDS_RESET, 0);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Waits until `ready` returns something.
fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::yield_now();
    }
}

fn flush(machine: &Machine, queue: &mut DriverQueue) -> u32 {
    let memory = &machine.memory;
    memory.write_obj(0_u32, GuestAddress(0x8_0000)).unwrap();
    memory.write_obj(7_u32, GuestAddress(0x8_1000)).unwrap();
    queue.add(&[readable(0x8_0000, 4), writable(0x8_1000, 4)]);
    machine.write(register::QUEUE_NOTIFY, 0);
    wait_for(|| queue.take_used());
    memory.read_obj(GuestAddress(0x8_1000)).unwrap()
}

#[test]
fn the_slot_introduces_its_device() {
    let machine = Machine::pmem();
    assert_eq!(machine.read(register::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(machine.read(register::VERSION), 2);
    assert_eq!(machine.read(register::DEVICE_ID), 27);
}

#[test]
fn an_empty_slot_shows_device_id_zero() {
    let mut word = [0xaa; 4];
    EmptySlot.read(register::MAGIC_VALUE, &mut word);
    assert_eq!(&word, b"virt");
    EmptySlot.read(register::DEVICE_ID, &mut word);
    assert_eq!(word, [0; 4]);
}

#[test]
fn the_configuration_space_is_read_in_any_width() {
    let machine = Machine::pmem();
    let mut long = [0; 8];
    machine.slot.read(register::CONFIG, &mut long);
    assert_eq!(u64::from_le_bytes(long), 0x1_4000_0000);
    let mut half = [0; 2];
    machine.slot.read(register::CONFIG + 10, &mut half);
    assert_eq!(u16::from_le_bytes(half), 0x20);
    let mut beyond = [0xaa; 8];
    machine.slot.read(register::CONFIG + 12, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn a_feature_that_was_not_offered_is_refused() {
    let machine = Machine::pmem();
    machine.add_status(status::ACKNOWLEDGE);
    machine.add_status(status::DRIVER);
    machine.write(register::DRIVER_FEATURES_SEL, 1);
    machine.write(register::DRIVER_FEATURES, 1);
    machine.write(register::DRIVER_FEATURES_SEL, 0);
    machine.write(register::DRIVER_FEATURES, 1 << 5);
    assert_eq!(
        machine.add_status(status::FEATURES_OK) & status::FEATURES_OK,
        0
    );
}

#[test]
fn a_legacy_driver_is_refused() {
    let machine = Machine::pmem();
    machine.add_status(status::ACKNOWLEDGE);
    machine.add_status(status::DRIVER);
    assert_eq!(
        machine.add_status(status::FEATURES_OK) & status::FEATURES_OK,
        0
    );
}

#[test]
fn steps_of_the_initialisation_cannot_be_skipped() {
    let machine = Machine::pmem();
    assert_eq!(machine.add_status(status::DRIVER), 0);
    assert_eq!(machine.add_status(status::FEATURES_OK), 0);
    assert_eq!(machine.add_status(status::DRIVER_OK), 0);
}

#[test]
fn a_driver_that_starts_without_its_queue_must_reset() {
    let machine = Machine::pmem();
    machine.negotiate();
    let now = machine.add_status(status::DRIVER_OK);
    assert_ne!(now & status::NEEDS_RESET, 0);
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 2);
    assert_eq!(machine.line.count(), 1);
    machine.write(register::STATUS, 0);
    assert_eq!(machine.read(register::STATUS), 0);
}

#[test]
fn a_queue_outside_of_memory_is_refused() {
    let machine = Machine::pmem();
    machine.negotiate();
    machine.set_up_queue(0, 0x1_0000);
    machine.write(register::QUEUE_READY, 0);
    machine.write(register::QUEUE_DESC_HIGH, 0xffff_ffff);
    machine.write(register::QUEUE_READY, 1);
    let now = machine.add_status(status::DRIVER_OK);
    assert_ne!(now & status::NEEDS_RESET, 0);
}

#[test]
fn a_ready_queue_cannot_be_moved() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.write(register::QUEUE_DESC_LOW, 0x9_0000);
    machine.driver_ok();
    assert_eq!(flush(&machine, &mut queue), 0);
}

#[test]
fn a_flush_of_the_window_is_answered() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    assert_eq!(flush(&machine, &mut queue), 0);
    wait_for(|| (machine.read(register::INTERRUPT_STATUS) == 1).then_some(()));
    machine.write(register::INTERRUPT_ACK, 1);
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 0);
    assert_eq!(machine.line.count(), 1);
}

#[test]
fn the_notifier_is_as_good_as_the_register() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    queue.add(&[readable(0x8_0000, 4), writable(0x8_1000, 4)]);
    machine.slot.queue_notifiers()[0].write(1).unwrap();
    wait_for(|| queue.take_used());
}

#[test]
fn a_device_runs_again_after_a_reset() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    flush(&machine, &mut queue);
    machine.negotiate();
    assert_eq!(machine.read(register::QUEUE_READY), 0);
    let mut queue = machine.set_up_queue(0, 0x3_0000);
    machine.driver_ok();
    assert_eq!(flush(&machine, &mut queue), 0);
}

#[test]
fn a_device_whose_loop_is_gone_needs_a_reset_for_ever() {
    let mut machine = Machine::pmem();
    machine.negotiate();
    machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    machine.stop.store(true, Ordering::SeqCst);
    machine.thread.take().unwrap().join().unwrap();
    machine.write(register::STATUS, 0);
    assert_eq!(machine.read(register::STATUS), status::NEEDS_RESET);
    machine.write(register::STATUS, 0);
    assert_eq!(machine.read(register::STATUS), status::NEEDS_RESET);
}

/// A guest with one vsock connection that sends back what it gets.
struct EchoGuest<'a> {
    machine: &'a Machine,
    rx: DriverQueue,
    tx: DriverQueue,
    echoed: u32,
}

impl EchoGuest<'_> {
    const RX_BASE: u64 = 0x10_0000;
    const TX_BASE: u64 = 0x20_0000;
    const BUFFER_BYTES: u64 = 4096;

    /// Receives one packet and answers it; `false` if there is none.
    fn step(&mut self) -> bool {
        let Some((head, length)) = self.rx.take_used() else {
            return false;
        };
        let memory = &self.machine.memory;
        let from = Self::RX_BASE + u64::from(head) * Self::BUFFER_BYTES;
        let mut packet = vec![0; usize::try_from(length).unwrap()];
        memory.read_slice(&mut packet, GuestAddress(from)).unwrap();
        self.post(head);
        let op = u16::from_le_bytes([packet[30], packet[31]]);
        let answer: u16 = match op {
            1 => 2,
            5 => 5,
            4 => 3,
            _ => return true,
        };
        self.echoed += length - 44;
        let (source, destination) = (packet[16..20].to_vec(), packet[20..24].to_vec());
        packet[0..8].copy_from_slice(&3_u64.to_le_bytes());
        packet[8..16].copy_from_slice(&2_u64.to_le_bytes());
        packet[16..20].copy_from_slice(&destination);
        packet[20..24].copy_from_slice(&source);
        packet[30..32].copy_from_slice(&answer.to_le_bytes());
        packet[36..40].copy_from_slice(&65536_u32.to_le_bytes());
        packet[40..44].copy_from_slice(&self.echoed.to_le_bytes());
        wait_for(|| {
            while self.tx.take_used().is_some() {}
            (self.tx.free_descriptors() > 0).then_some(())
        });
        // The chain's head is the buffer's number.
        let head = self.tx.next_head();
        let to = Self::TX_BASE + u64::from(head) * Self::BUFFER_BYTES;
        memory.write_slice(&packet, GuestAddress(to)).unwrap();
        self.tx.add(&[readable(to, length)]);
        self.machine.write(register::QUEUE_NOTIFY, 1);
        true
    }

    fn post(&mut self, head: u16) {
        let address = Self::RX_BASE + u64::from(head) * Self::BUFFER_BYTES;
        let posted = self.rx.add(&[writable(address, 4096)]);
        assert_eq!(posted, head);
        self.machine.write(register::QUEUE_NOTIFY, 0);
    }
}

#[test]
fn a_dial_before_the_driver_is_there_echoes_megabytes_once_it_is() {
    let (machine, dialer) = Machine::vsock();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    dialer.connect(1024, theirs).unwrap();
    machine.negotiate();
    let rx = machine.set_up_queue(0, 0x1_0000);
    let tx = machine.set_up_queue(1, 0x2_0000);
    machine.set_up_queue(2, 0x3_0000);
    machine.driver_ok();
    let data: Vec<u8> = (0..3_000_000_u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let mut guest = EchoGuest {
        machine: &machine,
        rx,
        tx,
        echoed: 0,
    };
    for _ in 0..guest.rx.free_descriptors() {
        let head = guest.rx.next_head();
        guest.post(head);
    }
    let mut writer = ours.try_clone().unwrap();
    let sent = data.clone();
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let expected = data.len();
    let reading = std::thread::spawn(move || {
        let mut echo = vec![0; expected];
        ours.read_exact(&mut echo).map(|()| echo)
    });
    let start = Instant::now();
    while !reading.is_finished() {
        if !guest.step() {
            std::thread::yield_now();
        }
        assert!(start.elapsed() < 3 * PATIENCE, "the echo does not end");
    }
    writing.join().unwrap().unwrap();
    assert!(reading.join().unwrap().unwrap() == data);
}

#[test]
fn a_reset_closes_the_connections() {
    let (machine, dialer) = Machine::vsock();
    machine.negotiate();
    machine.set_up_queue(0, 0x1_0000);
    machine.set_up_queue(1, 0x2_0000);
    machine.set_up_queue(2, 0x3_0000);
    machine.driver_ok();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    dialer.connect(1024, theirs).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    machine.write(register::STATUS, 0);
    ours.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    // Either the worker had taken it, then it is closed; or it still waits for the next driver.
    let closed = matches!(ours.read(&mut [0; 1]), Ok(0));
    assert!(closed);
}

/// An access of a driver that knows no rules.
#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, u32),
    WriteWide(u64, Vec<u8>),
}

fn any_access() -> impl Strategy<Value = Access> {
    let known = prop_oneof![
        Just(register::STATUS),
        Just(register::QUEUE_SEL),
        Just(register::QUEUE_NUM),
        Just(register::QUEUE_READY),
        Just(register::QUEUE_NOTIFY),
        Just(register::DRIVER_FEATURES),
        Just(register::DRIVER_FEATURES_SEL),
        Just(register::QUEUE_DESC_LOW),
        Just(register::QUEUE_DRIVER_LOW),
        Just(register::QUEUE_DEVICE_LOW),
        Just(register::INTERRUPT_ACK),
        0..SLOT_SIZE_BYTES,
    ];
    let value = prop_oneof![
        Just(0_u32),
        Just(1),
        Just(3),
        Just(11),
        Just(15),
        Just(16),
        Just(0x1000),
        Just(0x2000),
        any::<u32>()
    ];
    prop_oneof![
        (0..SLOT_SIZE_BYTES, 1_usize..=8).prop_map(|(offset, width)| Access::Read(offset, width)),
        (known, value).prop_map(|(offset, value)| Access::Write(offset, value)),
        (
            0..SLOT_SIZE_BYTES,
            proptest::collection::vec(any::<u8>(), 1..=8)
        )
            .prop_map(|(offset, data)| Access::WriteWide(offset, data)),
    ]
}

impl Machine {
    fn access(&self, access: &Access) {
        match access {
            Access::Read(offset, width) => self.slot.read(*offset, &mut vec![0; *width]),
            Access::Write(offset, value) => self.write(*offset, *value),
            Access::WriteWide(offset, data) => self.slot.write(*offset, data),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_accesses_breaks_the_status_order(
        accesses in proptest::collection::vec(any_access(), 1..200)
    ) {
        let machine = Machine::pmem();
        for access in &accesses {
            machine.access(access);
            let now = machine.read(register::STATUS);
            let order = [
                (status::DRIVER_OK, status::FEATURES_OK),
                (status::FEATURES_OK, status::DRIVER),
                (status::DRIVER, status::ACKNOWLEDGE),
            ];
            for (later, earlier) in order {
                prop_assert!(now & later == 0 || now & earlier != 0);
            }
            let running = matches!(machine.slot.registers().stage, Stage::Running(_));
            let may_run = now & status::DRIVER_OK != 0 && now & status::NEEDS_RESET == 0;
            prop_assert_eq!(running, may_run);
        }
        machine.write(register::STATUS, 0);
        prop_assert_eq!(machine.read(register::STATUS), 0);
        prop_assert_eq!(machine.read(register::MAGIC_VALUE), MAGIC);
    }
}
