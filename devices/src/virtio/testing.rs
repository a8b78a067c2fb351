//! A driver for tests: rings and buffers in guest memory, as a guest's kernel would keep them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::mmio::{MmioTransport, RestoreError, SaveError, SavedTransport, register, status};
use super::pmem::{Pmem, PmemWindow};
use super::vsock::{Dialer, GuestCid, Vsock};
use super::{DeviceMemory, VirtioDevice};
use crate::bus::BusDevice;
use crate::event_loop::EventLoop;
use crate::interrupt::Interrupt;

/// Makes `size_bytes` of RAM from address 0.
pub(crate) fn ram(size_bytes: usize) -> DeviceMemory {
    DeviceMemory::from_ranges(&[(GuestAddress(0), size_bytes)]).unwrap()
}

/// A line that counts.
#[derive(Debug, Default)]
pub(crate) struct CountingLine(AtomicUsize);

impl CountingLine {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) writable: bool,
}

/// A part that the device reads.
pub(crate) fn readable(address: u64, length: u32) -> Part {
    Part {
        address,
        length,
        writable: false,
    }
}

/// A part that the device writes.
pub(crate) fn writable(address: u64, length: u32) -> Part {
    Part {
        address,
        length,
        writable: true,
    }
}

/// The driver's end of a queue. Chains are at most `size` parts in flight together.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    memory: DeviceMemory,
    base: u64,
    size: u16,
    free: Vec<u16>,
    chains: std::collections::HashMap<u16, Vec<u16>>,
    next_avail: u16,
    next_used: u16,
    notified_at: u16,
}

impl DriverQueue {
    /// Lays a queue of `size` entries at `base`; it takes less than 64 KiB.
    pub(crate) fn new(memory: &DeviceMemory, base: u64, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            base,
            size,
            free: (0..size).rev().collect(),
            chains: std::collections::HashMap::new(),
            next_avail: 0,
            next_used: 0,
            notified_at: 0,
        }
    }

    pub(crate) fn descriptors(&self) -> u64 {
        self.base
    }

    pub(crate) fn avail(&self) -> u64 {
        self.base + u64::from(self.size) * 16
    }

    pub(crate) fn used(&self) -> u64 {
        (self.avail() + 6 + u64::from(self.size) * 2).next_multiple_of(4)
    }

    /// Returns the device's end.
    pub(crate) fn device_queue(&self) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(self.descriptors()))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail()))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(self.used()))
            .unwrap();
        queue.set_ready(true);
        assert!(queue.is_valid(&self.memory));
        queue
    }

    pub(crate) fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Whether the device wants to hear of what was added since the last call (VirtIO 1.2 section
    /// 2.7.10, "Available Buffer Notification Suppression").
    pub(crate) fn should_notify(&mut self, event_idx: bool) -> bool {
        fence(Ordering::SeqCst);
        let read = |address| -> u16 { self.memory.read_obj(GuestAddress(address)).unwrap() };
        let added = self.next_avail.wrapping_sub(self.notified_at);
        self.notified_at = self.next_avail;
        if event_idx {
            let event = read(self.used() + 4 + u64::from(self.size) * 8);
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < added
        } else {
            read(self.used()) & 1 == 0
        }
    }

    /// Asks for no interrupts (VirtIO 1.2 section 2.7.7, `VIRTQ_AVAIL_F_NO_INTERRUPT`).
    pub(crate) fn want_no_interrupt(&self) {
        let flags = GuestAddress(self.avail());
        self.memory.write_obj(1_u16, flags).unwrap();
    }

    /// Returns the head that the next chain will have.
    pub(crate) fn next_head(&self) -> u16 {
        *self.free.last().unwrap()
    }

    /// Writes one descriptor as it is, for chains that no driver makes.
    pub(crate) fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let address = GuestAddress(self.descriptors() + u64::from(index) * 16);
        self.memory
            .write_obj(RawDescriptor::from(descriptor), address)
            .unwrap();
    }

    /// Makes the chain at `head` available, whatever is there.
    pub(crate) fn publish(&mut self, head: u16) {
        let slot = self.avail() + 4 + u64::from(self.next_avail % self.size) * 2;
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.next_avail = self.next_avail.wrapping_add(1);
        self.memory
            .write_obj(self.next_avail, GuestAddress(self.avail() + 2))
            .unwrap();
    }

    /// Makes a chain of `parts` available and returns its head.
    pub(crate) fn add(&mut self, parts: &[Part]) -> u16 {
        let indices: Vec<u16> = parts.iter().map(|_| self.free.pop().unwrap()).collect();
        for (position, part) in parts.iter().enumerate() {
            let next = indices.get(position + 1).copied();
            let mut flags = 0;
            if part.writable {
                flags |= u16::try_from(VRING_DESC_F_WRITE).unwrap();
            }
            if next.is_some() {
                flags |= u16::try_from(VRING_DESC_F_NEXT).unwrap();
            }
            let descriptor =
                Descriptor::new(part.address, part.length, flags, next.unwrap_or_default());
            self.write_descriptor(indices[position], descriptor);
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.publish(head);
        head
    }

    /// Takes a chain that the device has used: its head and how many bytes were written.
    pub(crate) fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.memory.read_obj(GuestAddress(self.used() + 2)).unwrap();
        if index == self.next_used {
            return None;
        }
        let slot = self.used() + 4 + u64::from(self.next_used % self.size) * 8;
        let element: VirtqUsedElem = self.memory.read_obj(GuestAddress(slot)).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        let head = u16::try_from(element.id()).unwrap();
        if let Some(indices) = self.chains.remove(&head) {
            self.free.extend(indices);
        }
        Some((head, element.len()))
    }
}

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A slot with a device in it, and the event loop behind it on its own thread.
pub(crate) struct Machine {
    pub(crate) slot: MmioTransport,
    pub(crate) line: Arc<CountingLine>,
    pub(crate) memory: DeviceMemory,
    wakeups: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<EventLoop>>,
}

impl Machine {
    pub(crate) fn with(device: Box<dyn VirtioDevice>) -> Self {
        Self::restored(device, ram(4 << 20), None).unwrap()
    }

    /// A machine with this memory that goes on where a saved one stood.
    pub(crate) fn restored(
        device: Box<dyn VirtioDevice>,
        memory: DeviceMemory,
        saved: Option<&SavedTransport>,
    ) -> Result<Self, RestoreError> {
        let mut events = EventLoop::new().unwrap();
        let line = Arc::new(CountingLine::default());
        let interrupt: Arc<dyn Interrupt> = Arc::<CountingLine>::clone(&line);
        let slot = MmioTransport::new(device, memory.clone(), interrupt, events.handle()).unwrap();
        if let Some(saved) = saved {
            slot.restore(saved, &mut events)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let wakeups = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakeups);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                let count = events.run_once(5).unwrap();
                counter.fetch_add(count, Ordering::SeqCst);
            }
            events
        });
        Ok(Self {
            slot,
            line,
            memory,
            wakeups,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn pmem() -> Self {
        Self::with(Self::pmem_device())
    }

    pub(crate) fn pmem_device() -> Box<dyn VirtioDevice> {
        Box::new(Pmem::new(PmemWindow {
            start: GuestAddress(0x1_4000_0000),
            size_bytes: 0x20_0000,
        }))
    }

    pub(crate) fn vsock() -> (Self, Dialer) {
        let (device, dialer) = Vsock::new(GuestCid::FIRST).unwrap();
        (Self::with(Box::new(device)), dialer)
    }

    /// Ends the event loop's thread, and with it the loop.
    pub(crate) fn end_loop(&mut self) {
        self.take_loop();
    }

    /// Ends the event loop's thread and takes over the loop.
    fn take_loop(&mut self) -> Option<EventLoop> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().map(|thread| thread.join().unwrap())
    }

    /// Ends the event loop's thread: what comes from now on is not handled.
    pub(crate) fn hold_loop(&mut self) -> EventLoop {
        self.take_loop().unwrap()
    }

    /// Stops the machine and writes its device down.
    pub(crate) fn freeze(mut self) -> Result<SavedTransport, SaveError> {
        let events = self.hold_loop();
        self.freeze_on(events)
    }

    /// The same, with the loop that was held.
    pub(crate) fn freeze_on(self, mut events: EventLoop) -> Result<SavedTransport, SaveError> {
        self.slot.save(&mut events)
    }

    /// How many events the loop has handled.
    pub(crate) fn wakeups(&self) -> usize {
        self.wakeups.load(Ordering::SeqCst)
    }

    pub(crate) fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.slot.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn write(&self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn add_status(&self, bit: u32) -> u32 {
        self.write(register::STATUS, self.read(register::STATUS) | bit);
        self.read(register::STATUS)
    }

    /// Goes through the initialisation sequence up to `FEATURES_OK`.
    pub(crate) fn negotiate(&self) {
        self.negotiate_with(0);
    }

    /// The same, with the lower 32 feature bits given.
    pub(crate) fn negotiate_with(&self, features: u32) {
        self.write(register::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, features);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, 1);
        assert_ne!(
            self.add_status(status::FEATURES_OK) & status::FEATURES_OK,
            0
        );
    }

    pub(crate) fn set_up_queue(&self, index: u32, base: u64) -> DriverQueue {
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

    pub(crate) fn driver_ok(&self) {
        let now = self.add_status(status::DRIVER_OK);
        assert_eq!(now & status::NEEDS_RESET, 0);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end_loop();
    }
}

/// Waits until `ready` returns something.
pub(crate) fn wait_for<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain");
        std::thread::yield_now();
    }
}
