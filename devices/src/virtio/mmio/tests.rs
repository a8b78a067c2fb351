//! The transport as a driver sees it: through the bus, with real workers on a real event loop.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::block::{self, Block, CAPACITY_OFFSET, DiskId, RawFile, SECTOR_BYTES};
use crate::virtio::testing::{DriverQueue, Machine, ram, readable, wait_for, writable};
use crate::virtio::vsock::{GuestCid, Vsock};

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
fn a_driver_that_breaks_its_ring_must_reset() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    queue.publish(5000);
    machine.write(register::QUEUE_NOTIFY, 0);
    wait_for(|| (machine.read(register::STATUS) & status::NEEDS_RESET != 0).then_some(()));
    wait_for(|| (machine.read(register::INTERRUPT_STATUS) == 2).then_some(()));
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x3_0000);
    machine.driver_ok();
    assert_eq!(flush(&machine, &mut queue), 0);
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
    machine.end_loop();
    machine.write(register::STATUS, 0);
    assert_eq!(machine.read(register::STATUS), status::NEEDS_RESET);
    machine.write(register::STATUS, 0);
    assert_eq!(machine.read(register::STATUS), status::NEEDS_RESET);
}

#[test]
fn a_restored_device_goes_on_where_it_stood() {
    let machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    flush(&machine, &mut queue);
    wait_for(|| (machine.read(register::INTERRUPT_STATUS) == 1).then_some(()));
    let memory = machine.memory.clone();
    let saved = machine.freeze().unwrap();

    let clone = Machine::restored(Machine::pmem_device(), memory, Some(&saved)).unwrap();
    assert_eq!(clone.read(register::STATUS), 0xf);
    assert_eq!(clone.read(register::INTERRUPT_STATUS), 1);
    assert_eq!(clone.read(register::QUEUE_READY), 1);
    assert_eq!(flush(&clone, &mut queue), 0);
}

#[test]
fn a_request_whose_notification_was_on_its_way_is_answered_after_a_restore() {
    let mut machine = Machine::pmem();
    machine.negotiate();
    let mut queue = machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    let memory = machine.memory.clone();
    memory.write_obj(0_u32, GuestAddress(0x8_0000)).unwrap();
    let events = machine.hold_loop();
    queue.add(&[readable(0x8_0000, 4), writable(0x8_1000, 4)]);
    machine.write(register::QUEUE_NOTIFY, 0);
    let saved = machine.freeze_on(events).unwrap();

    let _clone = Machine::restored(Machine::pmem_device(), memory, Some(&saved)).unwrap();
    wait_for(|| queue.take_used());
}

#[test]
fn a_device_that_no_driver_has_found_yet_is_restored_as_that() {
    let machine = Machine::pmem();
    let memory = machine.memory.clone();
    let saved = machine.freeze().unwrap();
    let clone = Machine::restored(Machine::pmem_device(), memory, Some(&saved)).unwrap();
    clone.negotiate();
    let mut queue = clone.set_up_queue(0, 0x1_0000);
    clone.driver_ok();
    assert_eq!(flush(&clone, &mut queue), 0);
}

#[test]
fn the_state_of_another_device_is_refused() {
    let saved = Machine::pmem().freeze().unwrap();
    let (device, _dialer) = Vsock::new(GuestCid::FIRST).unwrap();
    let refused = Machine::restored(Box::new(device), ram(4 << 20), Some(&saved));
    assert!(matches!(refused, Err(RestoreError::OtherDevice)));
}

/// A disk of so many sectors.
fn disk(sectors: u64, access: block::Access) -> Block {
    let file = tempfile::tempfile().unwrap();
    file.set_len(sectors * SECTOR_BYTES).unwrap();
    let backend = RawFile::new(file, access).unwrap();
    Block::new(Arc::new(backend), DiskId::new("disk"))
}

/// A machine whose driver has found an empty disk that may be written to.
fn with_empty_disk() -> Machine {
    const DISCARD_AND_WRITE_ZEROES: u32 = 1 << 13 | 1 << 14;
    let machine = Machine::with(Box::new(disk(0, block::Access::ReadWrite)));
    machine.negotiate_with(DISCARD_AND_WRITE_ZEROES);
    machine.set_up_queue(0, 0x1_0000);
    machine.driver_ok();
    machine
}

#[test]
fn the_driver_of_an_empty_disk_learns_of_the_one_in_its_place() {
    let machine = with_empty_disk();
    let memory = machine.memory.clone();
    let saved = machine.freeze().unwrap();
    let device = disk(16, block::Access::ReadOnly).offered_as_writable();

    let clone = Machine::restored(Box::new(device), memory, Some(&saved)).unwrap();
    let before = clone.read(register::CONFIG_GENERATION);
    clone
        .slot
        .change_config(CAPACITY_OFFSET, &16_u64.to_le_bytes());

    assert_eq!(clone.read(register::STATUS), 0xf);
    assert_eq!(clone.read(register::INTERRUPT_STATUS), 2);
    assert_eq!(clone.line.count(), 1);
    assert_ne!(clone.read(register::CONFIG_GENERATION), before);
    assert_eq!(clone.read(register::CONFIG), 16);
}

#[test]
fn a_disk_that_offers_less_than_its_driver_was_offered_is_refused() {
    let machine = with_empty_disk();
    let memory = machine.memory.clone();
    let saved = machine.freeze().unwrap();
    let device = disk(16, block::Access::ReadOnly);

    let refused = Machine::restored(Box::new(device), memory, Some(&saved));

    assert!(matches!(refused, Err(RestoreError::OtherDevice)));
}

#[test]
fn a_guest_that_goes_on_without_its_connections_is_told_so() {
    const EVENT_BUFFER: u64 = 0x8_0000;
    let (machine, dialer) = Machine::vsock();
    let memory = machine.memory.clone();
    machine.negotiate();
    machine.set_up_queue(0, 0x1_0000);
    machine.set_up_queue(1, 0x2_0000);
    let mut events = machine.set_up_queue(2, 0x3_0000);
    machine.driver_ok();
    memory
        .write_obj(u32::MAX, GuestAddress(EVENT_BUFFER))
        .unwrap();
    events.add(&[writable(EVENT_BUFFER, 4)]);
    let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let before = machine.wakeups();
    dialer.connect(1024, theirs).unwrap();
    wait_for(|| (machine.wakeups() > before).then_some(()));
    let saved = machine.freeze().unwrap();

    let (device, _dialer) = Vsock::new(GuestCid::FIRST).unwrap();
    let device = device.without_its_connections(70_000);
    let clone = Machine::restored(Box::new(device), memory.clone(), Some(&saved)).unwrap();
    let (_, length) = wait_for(|| events.take_used());
    assert_eq!(length, 4);
    // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
    let event: u32 = memory.read_obj(GuestAddress(EVENT_BUFFER)).unwrap();
    assert_eq!(event, 0);
    wait_for(|| (clone.line.count() > 0).then_some(()));
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

fn access(machine: &Machine, access: &Access) {
    match access {
        Access::Read(offset, width) => machine.slot.read(*offset, &mut vec![0; *width]),
        Access::Write(offset, value) => machine.write(*offset, *value),
        Access::WriteWide(offset, data) => machine.slot.write(*offset, data),
    }
}

fn status_order_holds(machine: &Machine) -> bool {
    let now = machine.read(register::STATUS);
    let order = [
        (status::DRIVER_OK, status::FEATURES_OK),
        (status::FEATURES_OK, status::DRIVER),
        (status::DRIVER, status::ACKNOWLEDGE),
    ];
    let in_order = order
        .iter()
        .all(|(later, earlier)| now & later == 0 || now & earlier != 0);
    let running = matches!(machine.slot.registers().stage, Stage::Running(_));
    let must_run = now & status::DRIVER_OK != 0 && now & status::NEEDS_RESET == 0;
    let may_run = now & status::DRIVER_OK != 0;
    in_order && (running || !must_run) && (!running || may_run)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_accesses_breaks_the_status_order(
        accesses in proptest::collection::vec(any_access(), 1..200)
    ) {
        let machine = Machine::pmem();
        for one in &accesses {
            access(&machine, one);
            prop_assert!(status_order_holds(&machine));
        }
        machine.write(register::STATUS, 0);
        prop_assert_eq!(machine.read(register::STATUS), 0);
        prop_assert_eq!(machine.read(register::MAGIC_VALUE), MAGIC);
    }

    #[test]
    fn no_sequence_of_accesses_harms_a_running_device(
        accesses in proptest::collection::vec(any_access(), 1..50)
    ) {
        let (machine, _dialer) = Machine::vsock();
        machine.negotiate();
        machine.set_up_queue(0, 0x1_0000);
        machine.set_up_queue(1, 0x2_0000);
        machine.set_up_queue(2, 0x3_0000);
        machine.driver_ok();
        for one in &accesses {
            access(&machine, one);
            prop_assert!(status_order_holds(&machine));
        }
        machine.negotiate();
        machine.set_up_queue(0, 0x1_0000);
        machine.set_up_queue(1, 0x2_0000);
        machine.set_up_queue(2, 0x3_0000);
        machine.driver_ok();
    }
}
