//! A block device whose requests are carried out on threads, behind its transport.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::tests::any_descriptor;
use super::*;
use crate::bus::BusDevice;
use crate::interrupt::Interrupt;
use crate::virtio::mmio::register;
use crate::virtio::testing::{
    CountingLine, DriverQueue, Machine, PATIENCE, ram, readable, wait_for, writable,
};
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceSlice};

const RING: u64 = 0x1_0000;
const HEADERS: u64 = 0x2_0000;
const STATUSES: u64 = 0x3_0000;
const DATA: u64 = 0x4_0000;
const READ: u32 = 0;

/// A disk of many sectors, of which the first is read only once it is let go.
#[derive(Default)]
struct SlowBeginning {
    has_begun: AtomicBool,
    may_end: AtomicBool,
    has_ended: AtomicBool,
}

impl Backend for SlowBeginning {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn read(&self, memory: &[DeviceSlice<'_>], offset_bytes: u64) -> io::Result<()> {
        if offset_bytes == 0 {
            self.has_begun.store(true, Ordering::SeqCst);
            wait_for(|| self.may_end.load(Ordering::SeqCst).then_some(()));
            self.has_ended.store(true, Ordering::SeqCst);
        }
        memory.iter().for_each(|part| part.copy_from(&[7_u8; 512]));
        Ok(())
    }

    fn write(&self, _memory: &[DeviceSlice<'_>], _offset_bytes: u64) -> io::Result<()> {
        unreachable!("nobody writes")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _range: DiskRange) -> io::Result<()> {
        unreachable!("nobody discards")
    }

    fn write_zeroes(&self, _range: DiskRange, _may_unmap: bool) -> io::Result<()> {
        unreachable!("nobody writes")
    }
}

/// Threads that nobody waits for.
fn threads(count: usize) -> DiskThreads {
    let threads = DiskThreads::new();
    for _ in 0..count {
        let own = threads.clone();
        std::thread::spawn(move || own.work());
    }
    threads
}

fn machine(backend: Arc<dyn Backend>, limits: RateLimits) -> (Machine, DriverQueue) {
    let device = Block::new(backend, DiskId::new("data")).on_threads(threads(2), limits);
    let machine = Machine::with(Box::new(device));
    machine.negotiate();
    let queue = machine.set_up_queue(0, RING);
    machine.driver_ok();
    (machine, queue)
}

/// Puts a read of a sector into the queue, as the request with this number.
fn submit(machine: &Machine, queue: &mut DriverQueue, number: u32, sector: u64) -> u16 {
    let header = HEADERS + u64::from(number) * 16;
    machine
        .memory
        .write_obj(READ, GuestAddress(header))
        .unwrap();
    machine
        .memory
        .write_obj(sector, GuestAddress(header + 8))
        .unwrap();
    let head = queue.add(&[
        readable(header, 16),
        writable(DATA + u64::from(number) * 512, 512),
        writable(STATUSES + u64::from(number), 1),
    ]);
    machine.write(register::QUEUE_NOTIFY, 0);
    head
}

#[test]
fn a_slow_request_does_not_hold_up_another() {
    let disk = Arc::new(SlowBeginning::default());
    let (machine, mut queue) = machine(disk.clone(), RateLimits::default());

    let slow = submit(&machine, &mut queue, 0, 0);
    wait_for(|| disk.has_begun.load(Ordering::SeqCst).then_some(()));
    let fast = submit(&machine, &mut queue, 1, 1);

    assert_eq!(wait_for(|| queue.take_used()), (fast, 513));
    disk.may_end.store(true, Ordering::SeqCst);
    assert_eq!(wait_for(|| queue.take_used()), (slow, 513));
}

#[test]
fn who_looks_has_a_small_read_when_the_notification_is_done() {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("disk", flags).unwrap());
    file.set_len(1 << 20).unwrap();
    let disk = RawFile::new(file, Access::ReadOnly).unwrap();
    let (machine, mut queue) = machine(Arc::new(disk), RateLimits::default());
    queue.want_no_interrupt();

    let head = submit(&machine, &mut queue, 0, 0);

    assert_eq!(queue.take_used(), Some((head, 513)));
    assert_eq!(machine.line.count(), 0);
}

#[test]
fn a_reset_waits_for_what_is_under_way() {
    let disk = Arc::new(SlowBeginning::default());
    let (machine, mut queue) = machine(disk.clone(), RateLimits::default());
    submit(&machine, &mut queue, 0, 0);
    wait_for(|| disk.has_begun.load(Ordering::SeqCst).then_some(()));

    let had_ended = std::thread::scope(|scope| {
        let reset = scope.spawn(|| {
            machine.write(register::STATUS, 0);
            disk.has_ended.load(Ordering::SeqCst)
        });
        disk.may_end.store(true, Ordering::SeqCst);
        reset.join().unwrap()
    });

    assert!(had_ended);
}

#[test]
fn what_is_under_way_is_answered_before_the_machine_is_written_down() {
    let disk = Arc::new(SlowBeginning::default());
    let (machine, mut queue) = machine(disk.clone(), RateLimits::default());
    submit(&machine, &mut queue, 0, 0);
    wait_for(|| disk.has_begun.load(Ordering::SeqCst).then_some(()));
    disk.may_end.store(true, Ordering::SeqCst);

    machine.freeze().unwrap();

    assert!(queue.take_used().is_some());
}

#[test]
fn a_driver_with_more_requests_than_may_be_under_way_gets_them_all() {
    let disk = Arc::new(SlowBeginning::default());
    disk.may_end.store(true, Ordering::SeqCst);
    let (machine, mut queue) = machine(disk, RateLimits::default());

    let mut answered = 0;
    for round in 0..100 {
        for number in 0..40 {
            submit(
                &machine,
                &mut queue,
                number,
                (round + u64::from(number)) % 2048,
            );
        }
        for _ in 0..40 {
            assert_eq!(wait_for(|| queue.take_used()).1, 513);
            answered += 1;
        }
    }

    assert_eq!(answered, 4000);
}

#[test]
fn a_limited_disk_takes_its_time_and_a_reset_does_not_wait_for_it() {
    let disk = Arc::new(SlowBeginning::default());
    disk.may_end.store(true, Ordering::SeqCst);
    let limits = RateLimits {
        read: Rate {
            bytes: None,
            requests: Some(10),
        },
        ..RateLimits::default()
    };
    let (machine, mut queue) = machine(disk, limits);
    let begin = Instant::now();
    for number in 0..5 {
        submit(&machine, &mut queue, number, 1);
    }
    for _ in 0..5 {
        wait_for(|| queue.take_used());
    }
    // The first is free, and one more has been saved up.
    assert!(begin.elapsed().as_millis() >= 300);

    for number in 0..40 {
        submit(&machine, &mut queue, number % 40, 1);
    }
    let begin = Instant::now();
    machine.write(register::STATUS, 0);
    assert!(begin.elapsed() < PATIENCE / 4);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_table_of_descriptors_harms_the_threads(
        descriptors in proptest::collection::vec(any_descriptor(), 16),
        heads in proptest::collection::vec(0..16_u16, 1..200),
    ) {
        let memory = ram(1 << 20);
        let mut driver = DriverQueue::new(&memory, RING, 128);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let backend = RawFile::new(file.try_clone().unwrap(), Access::ReadWrite).unwrap();
        let disk = Block::new(Arc::new(backend), DiskId::new("data")).disk;
        let active = ActiveQueue {
            queue: driver.device_queue(),
            notifier: EventFd::new(EFD_NONBLOCK).unwrap(),
        };
        let line: Arc<dyn Interrupt> = Arc::new(CountingLine::default());
        let interrupt = DeviceInterrupt::new(line);
        let requests = Arc::new(Requests::new(disk, memory, active, interrupt));
        let threads = threads(2);
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            driver.write_descriptor(index, Descriptor::new(address, length, flags, next));
        }
        for head in heads {
            driver.publish(head);
            requests.hand_out(&threads);
        }
        requests.when_idle(|_| ());
        prop_assert_eq!(file.metadata().unwrap().len(), 4096);
    }
}

#[test]
fn a_disk_that_has_grown_tells_its_driver() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let disk = Arc::new(RawFile::new(file.try_clone().unwrap(), Access::ReadWrite).unwrap());
    let backend: Arc<dyn Backend> = Arc::<RawFile>::clone(&disk);
    let (machine, mut queue) = machine(backend, RateLimits::default());
    let generation = machine.read(register::CONFIG_GENERATION);
    let interrupts = machine.line.count();

    file.set_len(2 << 20).unwrap();
    let sectors = disk.grow().unwrap() / SECTOR_BYTES;
    machine
        .slot
        .change_config(CAPACITY_OFFSET, &sectors.to_le_bytes());

    let mut capacity = [0; 8];
    machine.slot.read(register::CONFIG, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 4096);
    assert_ne!(machine.read(register::CONFIG_GENERATION), generation);
    assert_eq!(machine.read(register::INTERRUPT_STATUS), 2);
    assert_eq!(machine.line.count(), interrupts + 1);
    submit(&machine, &mut queue, 0, 4095);
    assert_eq!(wait_for(|| queue.take_used()).1, 513);
}
