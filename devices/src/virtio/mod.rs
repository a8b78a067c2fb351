//! Virtio devices and their transport (VirtIO 1.2).
//!
//! Each device is one folder with the same three files: the device (`mod.rs`: configuration space,
//! wiring), its worker on the event loop (`worker.rs`), and the processing of its queues
//! (`queue.rs`), which knows neither threads nor events and is tested with a driver in memory; what
//! else a device needs stands beside them. The list of devices stands here, once.

pub mod block;
pub mod fs;
pub mod mmio;
pub mod net;
pub mod pmem;
pub mod vsock;

#[cfg(test)]
pub(crate) mod testing;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use event_manager::MutEventSubscriber;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::Interrupt;

/// The guest's memory as the devices see it.
///
/// Every region is mapped readable *and writable* in this process, because a device copies to
/// wherever the guest says. A window that is read-only to the guest may be part of it, since a
/// driver may send straight out of a file that is mapped there; it must then be a private mapping.
///
/// What devices write to is marked: the pages that KVM's log of the guest's own writes does not have.
pub type DeviceMemory = GuestMemoryMmap<AtomicBitmap>;

/// A piece of that memory.
pub type DeviceSlice<'a> = VolatileSlice<'a, MarkingSlice<'a>>;

/// Marks what is written to a piece of memory.
pub(crate) type MarkingSlice<'a> = BS<'a, AtomicBitmap>;

/// The device types that exist here (VirtIO 1.2 section 5, "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceType {
    /// A network interface (section 5.1).
    Net,
    /// A disk (section 5.2).
    Block,
    /// A socket to the host (section 5.10).
    Vsock,
    /// A file system of the host (section 5.11).
    Fs,
    /// A window of persistent memory (section 5.19).
    Pmem,
}

impl DeviceType {
    /// Returns the device's number (VirtIO 1.2 section 5).
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Vsock => 19,
            Self::Fs => 26,
            Self::Pmem => 27,
        }
    }
}

/// A virtio device while the driver configures it; the transport owns it.
///
/// ```text
///                  activate (DRIVER_OK)                 on the event loop
///   Box<dyn VirtioDevice> ───────────────► Box<dyn Worker> ─────────────► events
///            ▲                                   │
///            └───────────────────────────────────┘
///                      stop (status := 0)
/// ```
///
/// A device is one thing in two states, and its ownership moves with the state. *Configuring*: it
/// is a `VirtioDevice`, owned by its transport; methods are called on vCPU threads, one at a time,
/// under the transport's lock. *Running*: it is a [`Worker`] with the queues inside, owned by the
/// event loop's thread. A reset takes the worker off the loop and makes it a `VirtioDevice` again
/// before the guest's write of the status register returns, so a driver that has reset a device
/// owns its memory again.
///
/// What the driver can read at any time (type, features, configuration space) is asked for once,
/// when the transport is made. Type and features must not change; a configuration space that does
/// is changed by [`MmioTransport::change_config`](mmio::MmioTransport::change_config).
pub trait VirtioDevice: Send {
    /// Returns which device this is.
    fn device_type(&self) -> DeviceType;

    /// Returns the device's own feature bits (0 to 23 and 50 up, VirtIO 1.2 section 2.2); the
    /// transport adds those of the ring and of the transport.
    fn features(&self) -> u64;

    /// Returns the largest size of each queue, in order; each is a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// Returns the device configuration space, little endian (VirtIO 1.2 section 2.5).
    fn config_space(&self) -> Vec<u8>;

    /// Returns what takes the guest's notifications first, if the device has that: the same over resets.
    fn in_exit(&self) -> Option<Arc<dyn InExit>> {
        None
    }

    /// Makes the device its worker: called when the driver has set `DRIVER_OK`.
    ///
    /// All queues are ready and their rings lie in guest memory; `activation.features` is a subset
    /// of what was offered.
    ///
    /// # Errors
    ///
    /// Returns the device with the reason if it cannot run; the transport then sets
    /// `DEVICE_NEEDS_RESET`.
    fn activate(
        self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)>;
}

/// What a device does in the very exit by which the guest notifies a queue.
///
/// A driver that has asked for no interrupt (VirtIO 1.2 section 2.7.7) and notifies looks for the answer when the notification is
/// done. If it is there by then, nobody is woken and nobody is interrupted. A device that has this is offered without
/// `VIRTIO_F_EVENT_IDX`, so that the driver's wish is a flag, and its notifications leave the guest instead of being an eventfd's.
pub trait InExit: Send + Sync + fmt::Debug {
    /// Called on the thread of the vCPU that notifies, whether the device runs or not. Returns `false` for what the event loop is to
    /// do. The guest's processor stands meanwhile: so this takes no longer than an exit may.
    fn notified(&self, queue: u32) -> bool;
}

/// A virtio device while it runs on the event loop.
///
/// `init` and `process` (of [`MutEventSubscriber`]) are called on the loop's thread. `init`
/// registers the notifiers of the queues and handles what was queued before. What a guest gets
/// wrong in a queue is answered inside the device's protocol or ignored and counted; it never ends
/// the worker.
pub trait Worker: MutEventSubscriber + Send {
    /// Ends the work and becomes the device again, as after power-on: called on a vCPU thread
    /// after the worker was taken off the loop, so no descriptor is registered any more.
    fn stop(self: Box<Self>) -> Box<dyn VirtioDevice>;

    /// Returns how far each queue is, in order: together with what the driver configured, all of a
    /// device that is written down. What it holds of the host is not: connections stay with this
    /// machine. Called while no vCPU runs.
    fn save(&self) -> Vec<SavedQueue>;
}

/// A queue as it is written down: what the driver configured, and how far the device is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    max_size: u16,
    size: u16,
    next_available: u16,
    next_used: u16,
    has_event_index: bool,
    is_ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
}

impl From<&Queue> for SavedQueue {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            next_available: state.next_avail,
            next_used: state.next_used,
            has_event_index: state.event_idx_enabled,
            is_ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
        }
    }
}

impl TryFrom<&SavedQueue> for Queue {
    type Error = virtio_queue::Error;

    fn try_from(saved: &SavedQueue) -> Result<Self, Self::Error> {
        Self::try_from(QueueState {
            max_size: saved.max_size,
            size: saved.size,
            next_avail: saved.next_available,
            next_used: saved.next_used,
            event_idx_enabled: saved.has_event_index,
            ready: saved.is_ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        })
    }
}

/// Everything that a device is handed to run.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: DeviceMemory,
    /// The queues, in order, with the descriptor that the guest's notifications arrive on.
    pub queues: Vec<ActiveQueue>,
    /// The way to interrupt the guest.
    pub interrupt: DeviceInterrupt,
    /// The feature bits that the driver accepted.
    pub features: u64,
}

/// A queue that the driver has made ready.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue; valid, and owned by the worker from now on.
    pub queue: Queue,
    /// Becomes readable when the guest notifies the queue.
    pub notifier: EventFd,
}

impl ActiveQueue {
    /// Does what [`finish_turn`] does after a turn on this queue.
    fn finish_turn(&self, turn: Result<Turn, QueueError>, interrupt: &DeviceInterrupt) {
        finish_turn(turn, &self.notifier, interrupt);
    }
}

/// Interrupts the guest if it wants that, and comes back to the queue behind `notifier` if there is more in it.
///
/// A ring that cannot be used needs a reset; until then each notification fails the same way.
fn finish_turn(turn: Result<Turn, QueueError>, notifier: &EventFd, interrupt: &DeviceInterrupt) {
    let turn = match turn {
        Ok(turn) => turn,
        Err(error) => {
            tracing::debug!(%error, "a queue of the guest is broken");
            return interrupt.signal_needs_reset();
        }
    };
    if turn.interrupt {
        interrupt.signal_used_buffer();
    }
    if turn.unfinished {
        // The only failure is a counter at its limit: the notifier is readable already.
        let _already_notified = notifier.write(1);
    }
}

/// A ring that the guest has made unusable.
#[derive(Debug, Error)]
pub(crate) enum QueueError {
    /// An index or an address in the ring is impossible.
    #[error("the ring cannot be used")]
    Ring(#[from] virtio_queue::Error),
    /// The ring says that there is a buffer, and there is none.
    #[error("the ring has no entry where it says that there is one")]
    NoEntry,
    /// The ring is not in memory.
    #[error("the ring is not in the guest's memory")]
    NoRing,
}

/// What a turn on a queue led to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    /// The guest wants an interrupt.
    interrupt: bool,
    /// There is more to do right now; others of the event loop come first.
    unfinished: bool,
    /// There is more to do as soon as something else has moved.
    stalled: bool,
}

/// Takes the next available buffer; `None` if there is none, and then the guest notifies the next.
fn next_chain<M>(queue: &mut Queue, memory: M) -> Result<Option<DescriptorChain<M>>, QueueError>
where
    M: Deref<Target = DeviceMemory> + Clone,
{
    if let Some(chain) = queue.iter(memory.clone())?.next() {
        return Ok(Some(chain));
    }
    if !queue.enable_notification(&*memory)? {
        return Ok(None);
    }
    // One came between the look and the request to be notified.
    queue.disable_notification(&*memory)?;
    let chain = queue.iter(memory)?.next();
    chain.map(Some).ok_or(QueueError::NoEntry)
}

/// Whether the driver wants to be interrupted for what was used.
fn wants_interrupt(queue: &mut Queue, memory: &DeviceMemory) -> Result<bool, QueueError> {
    let wants_by_index = queue.needs_notification(memory)?;
    if queue.event_idx_enabled() {
        return Ok(wants_by_index);
    }
    // `flags` is the first field (VirtIO 1.2 section 2.7.6).
    let flags: u16 = memory
        .load(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
        .map_err(|_| QueueError::NoRing)?;
    Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
}

/// Why a device could not start to run.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The transport handed over another number of queues than the device has.
    #[error("the device got {got} queues and needs {needed}")]
    WrongQueueCount {
        /// How many came.
        got: usize,
        /// How many the device has.
        needed: usize,
    },
}

/// The interrupt of a virtio device: the line and the registers that say why it was raised.
///
/// Clones name the same interrupt.
#[derive(Clone)]
pub struct DeviceInterrupt {
    reasons: Arc<Reasons>,
    line: Arc<dyn Interrupt>,
}

#[derive(Default)]
struct Reasons {
    pending: AtomicU32,
    needs_reset: AtomicBool,
}

impl DeviceInterrupt {
    /// Bit 0 of InterruptStatus: the device has used a buffer (VirtIO 1.2 section 4.2.2).
    pub const USED_BUFFER: u32 = 1 << 0;
    /// Bit 1 of InterruptStatus: the configuration has changed (VirtIO 1.2 section 4.2.2).
    pub const CONFIGURATION_CHANGE: u32 = 1 << 1;

    /// Makes the interrupt of a device on `line`.
    #[must_use]
    pub fn new(line: Arc<dyn Interrupt>) -> Self {
        Self {
            reasons: Arc::default(),
            line,
        }
    }

    /// Tells the driver that buffers were used.
    pub fn signal_used_buffer(&self) {
        self.signal(Self::USED_BUFFER);
    }

    /// Tells the driver that the configuration or the status has changed.
    pub fn signal_configuration_change(&self) {
        self.signal(Self::CONFIGURATION_CHANGE);
    }

    /// Tells the driver, once, that the device cannot go on (VirtIO 1.2 section 2.1.2,
    /// `DEVICE_NEEDS_RESET`).
    pub fn signal_needs_reset(&self) {
        if !self.reasons.needs_reset.swap(true, Ordering::SeqCst) {
            self.signal_configuration_change();
        }
    }

    /// Returns the reasons that the driver has not acknowledged yet.
    #[must_use]
    pub fn pending(&self) -> u32 {
        self.reasons.pending.load(Ordering::SeqCst)
    }

    /// Returns whether the device has said that it cannot go on.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.reasons.needs_reset.load(Ordering::SeqCst)
    }

    /// Takes back the reasons that the driver acknowledges.
    pub fn acknowledge(&self, reasons: u32) {
        self.reasons.pending.fetch_and(!reasons, Ordering::SeqCst);
    }

    /// Goes on with the reasons of a saved machine. An interrupt that the driver has not seen is raised again, since the host's kernel
    /// may not have brought it to the interrupt controllers yet; one too many does no harm.
    fn restore(&self, pending: u32, needs_reset: bool) {
        self.reasons.pending.store(pending, Ordering::SeqCst);
        self.reasons
            .needs_reset
            .store(needs_reset, Ordering::SeqCst);
        if pending != 0 {
            self.signal(pending);
        }
    }

    /// Takes back everything; the device was reset.
    fn clear(&self) {
        self.reasons.needs_reset.store(false, Ordering::SeqCst);
        self.acknowledge(u32::MAX);
    }

    /// The reason is recorded before the line is raised: a driver that sees the interrupt sees why.
    fn signal(&self, reason: u32) {
        self.reasons.pending.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.trigger() {
            tracing::debug!(%error, "a device interrupt was lost");
        }
    }
}

impl fmt::Debug for DeviceInterrupt {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeviceInterrupt")
            .field("pending", &self.pending())
            .field("needs_reset", &self.needs_reset())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for dyn VirtioDevice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VirtioDevice({:?})", self.device_type())
    }
}

impl fmt::Debug for dyn Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Worker")
    }
}
