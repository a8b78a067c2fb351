//! The virtio-mmio transport (VirtIO 1.2 section 4.2), the modern interface (version 2) only.
//!
//! A transport stands on the bus and owns its device while the driver configures it. When the
//! driver says `DRIVER_OK`, device and queues move onto the event loop as a worker; a reset brings
//! them back. Which of the two it is is the one state of the transport; what the driver wrote
//! meanwhile is checked when it is written and ignored where the specification gives it no meaning.
//!
//! A slot without a device is an [`EmptySlot`]: it shows DeviceID 0, and the driver leaves it alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{
    ActivateError, Activation, ActiveQueue, DeviceInterrupt, DeviceMemory, DeviceType, InExit,
    SavedQueue, VirtioDevice, Worker,
};
use crate::bus::BusDevice;
use crate::event_loop::{EventLoop, EventLoopError, Handle, WorkerId};
use crate::interrupt::Interrupt;

/// Length of a slot: registers from 0, configuration space from 0x100.
pub const SLOT_SIZE_BYTES: u64 = 0x1000;

/// The register that the guest writes a queue's index to in order to notify it, 32 bits wide
/// (VirtIO 1.2 section 4.2.2). The machine binds the notifiers here, with the index as data match.
pub const QUEUE_NOTIFY_OFFSET: u64 = register::QUEUE_NOTIFY;

/// Offsets of the registers (VirtIO 1.2 section 4.2.2, "MMIO Device Register Layout").
pub(in crate::virtio) mod register {
    pub(in crate::virtio) const MAGIC_VALUE: u64 = 0x000;
    pub(in crate::virtio) const VERSION: u64 = 0x004;
    pub(in crate::virtio) const DEVICE_ID: u64 = 0x008;
    pub(in crate::virtio) const VENDOR_ID: u64 = 0x00c;
    pub(in crate::virtio) const DEVICE_FEATURES: u64 = 0x010;
    pub(in crate::virtio) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(in crate::virtio) const DRIVER_FEATURES: u64 = 0x020;
    pub(in crate::virtio) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(in crate::virtio) const QUEUE_SEL: u64 = 0x030;
    pub(in crate::virtio) const QUEUE_NUM_MAX: u64 = 0x034;
    pub(in crate::virtio) const QUEUE_NUM: u64 = 0x038;
    pub(in crate::virtio) const QUEUE_READY: u64 = 0x044;
    pub(in crate::virtio) const QUEUE_NOTIFY: u64 = 0x050;
    pub(in crate::virtio) const INTERRUPT_STATUS: u64 = 0x060;
    pub(in crate::virtio) const INTERRUPT_ACK: u64 = 0x064;
    pub(in crate::virtio) const STATUS: u64 = 0x070;
    pub(in crate::virtio) const QUEUE_DESC_LOW: u64 = 0x080;
    pub(in crate::virtio) const QUEUE_DESC_HIGH: u64 = 0x084;
    pub(in crate::virtio) const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub(in crate::virtio) const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub(in crate::virtio) const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub(in crate::virtio) const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub(in crate::virtio) const SHM_LEN_LOW: u64 = 0x0b0;
    pub(in crate::virtio) const SHM_LEN_HIGH: u64 = 0x0b4;
    pub(in crate::virtio) const SHM_BASE_LOW: u64 = 0x0b8;
    pub(in crate::virtio) const SHM_BASE_HIGH: u64 = 0x0bc;
    pub(in crate::virtio) const CONFIG_GENERATION: u64 = 0x0fc;
    pub(in crate::virtio) const CONFIG: u64 = 0x100;
}

/// "virt" as a little-endian number (VirtIO 1.2 section 4.2.2, MagicValue).
const MAGIC: u32 = 0x7472_6976;
/// The version of a device that is not legacy (VirtIO 1.2 section 4.2.2, Version).
const VERSION: u32 = 2;
/// "vmm" as a little-endian number; the specification leaves VendorID to us.
const VENDOR: u32 = 0x006d_6d76;

/// The device status bits (VirtIO 1.2 section 2.1).
pub(in crate::virtio) mod status {
    pub(in crate::virtio) const ACKNOWLEDGE: u32 = super::VIRTIO_CONFIG_S_ACKNOWLEDGE;
    pub(in crate::virtio) const DRIVER: u32 = super::VIRTIO_CONFIG_S_DRIVER;
    pub(in crate::virtio) const DRIVER_OK: u32 = super::VIRTIO_CONFIG_S_DRIVER_OK;
    pub(in crate::virtio) const FEATURES_OK: u32 = super::VIRTIO_CONFIG_S_FEATURES_OK;
    pub(in crate::virtio) const NEEDS_RESET: u32 = super::VIRTIO_CONFIG_S_NEEDS_RESET;
    pub(in crate::virtio) const FAILED: u32 = super::VIRTIO_CONFIG_S_FAILED;
}

/// The features of the ring and the transport, offered for every device (VirtIO 1.2 section 6).
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The same for those whose notifications are the event loop's.
const EVENT_FEATURES: u64 = TRANSPORT_FEATURES | 1 << VIRTIO_RING_F_EVENT_IDX;

/// Why a transport could not be made.
#[derive(Debug, Error)]
pub enum TransportError {
    /// A queue's notifier could not be made.
    #[error("cannot create the notifier of queue {queue} of the {device:?} device")]
    Notifier {
        /// The device.
        device: DeviceType,
        /// The queue's index.
        queue: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The device names a queue size that is no power of two up to 32768.
    #[error("queue {queue} of the {device:?} device cannot have {size} entries")]
    QueueSize {
        /// The device.
        device: DeviceType,
        /// The queue's index.
        queue: usize,
        /// The size that the device named.
        size: u16,
    },
}

/// Why a device does not run after `DRIVER_OK`; the driver sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, Error)]
enum StartError {
    /// The driver has not made the queue ready, or its rings do not lie in guest memory.
    #[error("queue {queue} is not ready or lies outside of memory")]
    Queue { queue: usize },
    /// The host gives no descriptor.
    #[error("queue {queue} gets no notifier")]
    Notifier {
        queue: usize,
        #[source]
        source: std::io::Error,
    },
    /// The device refuses.
    #[error("the device cannot run")]
    Device(#[source] ActivateError),
    /// The event loop takes no worker.
    #[error("the worker of the device cannot run")]
    Worker(#[source] EventLoopError),
    /// The device is with the event loop, or lost.
    #[error("the device is not here")]
    Absent,
}

/// A transport as it is written down, its device included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedTransport {
    device_id: u32,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    pending_interrupt: u32,
    needs_reset: bool,
    queues: Vec<SavedQueue>,
}

/// Why a transport cannot be written down.
#[derive(Debug, Error)]
pub enum SaveError {
    /// The event loop does not have the worker.
    #[error(transparent)]
    Worker(#[from] EventLoopError),
    /// The device is gone.
    #[error("a device is lost")]
    Lost,
}

/// Why a saved transport cannot go on here.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// Another device, other features or other queues.
    #[error("what was saved is another device's")]
    OtherDevice,
    /// A queue has an impossible size or address.
    #[error("a saved queue is impossible")]
    Queue(#[source] virtio_queue::Error),
    /// The device does not run.
    #[error("a restored device does not run")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A slot of the bank with a device in it.
///
/// Stands on the bus for [`SLOT_SIZE_BYTES`]. One lock guards what the driver configures; the data
/// path does not take it: queues are notified through [`queue_notifiers`], or [in the exit].
///
/// [`queue_notifiers`]: Self::queue_notifiers
/// [in the exit]: InExit
#[derive(Debug)]
pub struct MmioTransport {
    facts: Facts,
    notifiers: Vec<EventFd>,
    in_exit: Option<Arc<dyn InExit>>,
    interrupt: DeviceInterrupt,
    memory: DeviceMemory,
    workers: Handle,
    config: Mutex<ConfigSpace>,
    registers: Mutex<Registers>,
}

/// What never changes about a device.
#[derive(Debug)]
struct Facts {
    device_type: DeviceType,
    features: u64,
}

/// The device configuration space (VirtIO 1.2 section 2.5).
#[derive(Debug)]
struct ConfigSpace {
    bytes: Vec<u8>,
    /// Another one whenever something in it has changed.
    generation: u32,
}

/// What the driver changes.
#[derive(Debug)]
struct Registers {
    /// The bits that the driver set; [`MmioTransport::status`] is what it reads.
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    /// The queues while they are configured, and what they were configured as while they run.
    queues: Vec<Queue>,
    stage: Stage,
}

/// Who owns the device.
#[derive(Debug)]
enum Stage {
    /// The transport; the driver configures it.
    Configuring(Box<dyn VirtioDevice>),
    /// The event loop.
    Running(WorkerId),
    /// Nobody: the event loop is gone. No way leads back.
    Lost,
}

impl MmioTransport {
    /// Makes the transport of `device`, which works in `memory`, interrupts through `line` and runs
    /// on the event loop behind `workers`.
    ///
    /// # Errors
    ///
    /// Returns [`TransportError`] if the kernel gives no eventfd or the device names an impossible
    /// queue size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: DeviceMemory,
        line: Arc<dyn Interrupt>,
        workers: Handle,
    ) -> Result<Self, TransportError> {
        let device_type = device.device_type();
        let mut queues = Vec::new();
        let mut notifiers = Vec::new();
        for (queue, &size) in device.queue_sizes().iter().enumerate() {
            queues.push(Queue::new(size).map_err(|_| TransportError::QueueSize {
                device: device_type,
                queue,
                size,
            })?);
            notifiers.push(EventFd::new(EFD_NONBLOCK).map_err(|source| {
                TransportError::Notifier {
                    device: device_type,
                    queue,
                    source,
                }
            })?);
        }
        let in_exit = device.in_exit();
        let ring_features = match in_exit {
            Some(_) => TRANSPORT_FEATURES,
            None => EVENT_FEATURES,
        };
        Ok(Self {
            facts: Facts {
                device_type,
                features: device.features() | ring_features,
            },
            in_exit,
            config: Mutex::new(ConfigSpace {
                bytes: device.config_space(),
                generation: 0,
            }),
            notifiers,
            interrupt: DeviceInterrupt::new(line),
            memory,
            workers,
            registers: Mutex::new(Registers {
                status: 0,
                device_features_select: 0,
                driver_features_select: 0,
                driver_features: 0,
                queue_select: 0,
                queues,
                stage: Stage::Configuring(device),
            }),
        })
    }

    /// Returns the descriptors by which the guest notifies the queues, by queue index.
    ///
    /// The machine binds each to a 32-bit write of its index at [`QUEUE_NOTIFY_OFFSET`]
    /// (`KVM_IOEVENTFD`), unless they are [taken in the exit](Self::is_notified_in_exit); they stay
    /// the same over resets. A write that traps all the same is forwarded to them.
    #[must_use]
    pub fn queue_notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// Returns whether notifications have to leave the guest.
    #[must_use]
    pub fn is_notified_in_exit(&self) -> bool {
        self.in_exit.is_some()
    }

    /// Returns which device is in the slot.
    #[must_use]
    pub fn device_type(&self) -> DeviceType {
        self.facts.device_type
    }

    /// Nothing panics while it holds the lock; were it otherwise, the registers are still whole.
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> u32 {
        if offset == register::INTERRUPT_STATUS {
            // Read on every interrupt, without the lock.
            return self.interrupt.pending();
        }
        let registers = self.registers();
        match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => self.facts.device_type.id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => {
                half(self.facts.features, registers.device_features_select)
            }
            register::QUEUE_NUM_MAX => registers
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.max_size())),
            register::QUEUE_READY => registers
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.ready())),
            register::STATUS => self.status(&registers),
            // No device here has shared memory: all ones say so (VirtIO 1.2 section 4.2.2).
            register::SHM_LEN_LOW
            | register::SHM_LEN_HIGH
            | register::SHM_BASE_LOW
            | register::SHM_BASE_HIGH => u32::MAX,
            register::CONFIG_GENERATION => self.config().generation,
            _ => 0,
        }
    }

    /// What the driver sees: the bits that it set, and whether it has to reset the device.
    fn status(&self, registers: &Registers) -> u32 {
        let is_lost = matches!(registers.stage, Stage::Lost);
        if is_lost || self.interrupt.needs_reset() {
            registers.status | status::NEEDS_RESET
        } else {
            registers.status
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        // The two that a running driver uses take no lock.
        match offset {
            register::QUEUE_NOTIFY => return self.notify(value),
            register::INTERRUPT_ACK => return self.interrupt.acknowledge(value),
            _ => {}
        }
        let mut registers = self.registers();
        match offset {
            register::DEVICE_FEATURES_SEL => registers.device_features_select = value,
            register::DRIVER_FEATURES_SEL => registers.driver_features_select = value,
            register::DRIVER_FEATURES => registers.set_driver_features(value),
            register::QUEUE_SEL => registers.queue_select = value,
            register::STATUS => self.write_status(&mut registers, value),
            register::QUEUE_READY => registers.set_queue_ready(value),
            _ => registers.set_up_queue(offset, value),
        }
    }

    /// Takes a notification here, or forwards it.
    fn notify(&self, queue: u32) {
        if let Some(in_exit) = &self.in_exit
            && in_exit.notified(queue)
        {
            return;
        }
        let notifier = usize::try_from(queue)
            .ok()
            .and_then(|index| self.notifiers.get(index));
        if let Some(notifier) = notifier {
            // The only failure is a counter at its limit: the worker is notified already.
            let _already_notified = notifier.write(1);
        }
    }

    /// Takes a write of the status register (VirtIO 1.2 sections 2.1 and 3.1.1).
    ///
    /// Zero resets. Else bits are added in the order of the initialisation sequence, each only
    /// after the one before it; a bit that may not be set stays clear, which the driver sees when
    /// it reads the register. No bit is cleared.
    fn write_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset(registers);
        }
        let now = self.status(registers);
        let added = value & !now;
        if added & status::FAILED != 0 {
            registers.status |= status::FAILED;
        }
        if (now | added) & (status::FAILED | status::NEEDS_RESET) != 0 {
            return;
        }
        if added & status::ACKNOWLEDGE != 0 {
            registers.status |= status::ACKNOWLEDGE;
        }
        if added & status::DRIVER != 0 && registers.has(status::ACKNOWLEDGE) {
            registers.status |= status::DRIVER;
        }
        if added & status::FEATURES_OK != 0
            && registers.has(status::DRIVER)
            && self.accepts(registers.driver_features)
        {
            registers.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && registers.has(status::FEATURES_OK) {
            registers.status |= status::DRIVER_OK;
            self.activate(registers);
        }
    }

    /// The driver may take what was offered, and must take `VIRTIO_F_VERSION_1` (VirtIO 1.2
    /// section 6.2: a device may refuse to work without it).
    fn accepts(&self, driver_features: u64) -> bool {
        driver_features & !self.facts.features == 0
            && driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&self, registers: &mut Registers) {
        if let Err(error) = self.try_activate(registers) {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(device = ?self.facts.device_type, error, "a device does not start");
            self.interrupt.signal_needs_reset();
        }
    }

    fn try_activate(&self, registers: &mut Registers) -> Result<(), StartError> {
        let worker = self.make_worker(registers)?;
        let id = self.workers.start(worker).map_err(StartError::Worker)?;
        registers.stage = Stage::Running(id);
        Ok(())
    }

    /// Makes the device its worker; it is the caller's to put on the loop.
    fn make_worker(&self, registers: &mut Registers) -> Result<Box<dyn Worker>, StartError> {
        let features = registers.driver_features;
        let queues = self.activate_queues(&mut registers.queues, features)?;
        let activation = Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features,
        };
        match std::mem::replace(&mut registers.stage, Stage::Lost) {
            Stage::Configuring(device) => match device.activate(activation) {
                Ok(worker) => Ok(worker),
                Err((device, error)) => {
                    registers.stage = Stage::Configuring(device);
                    Err(StartError::Device(error))
                }
            },
            other => {
                registers.stage = other;
                Err(StartError::Absent)
            }
        }
    }

    /// Copies the queues for the worker; what stays is what the driver reads back.
    fn activate_queues(
        &self,
        queues: &mut [Queue],
        features: u64,
    ) -> Result<Vec<ActiveQueue>, StartError> {
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut active = Vec::with_capacity(queues.len());
        for (index, (queue, notifier)) in queues.iter_mut().zip(&self.notifiers).enumerate() {
            queue.set_event_idx(event_idx);
            let copy = Queue::try_from(queue.state())
                .ok()
                .filter(|queue| queue.is_valid(&self.memory))
                .ok_or(StartError::Queue { queue: index })?;
            let notifier = notifier
                .try_clone()
                .map_err(|source| StartError::Notifier {
                    queue: index,
                    source,
                })?;
            active.push(ActiveQueue {
                queue: copy,
                notifier,
            });
        }
        Ok(active)
    }

    /// Writes down where device and driver stand. Called on the loop's thread while no vCPU runs, so that nobody waits for the
    /// loop meanwhile.
    ///
    /// # Errors
    ///
    /// Returns [`SaveError`] if the device is busy or lost.
    pub fn save(&self, event_loop: &mut EventLoop) -> Result<SavedTransport, SaveError> {
        let registers = self.registers();
        let queues = match registers.stage {
            Stage::Configuring(_) => registers.queues.iter().map(SavedQueue::from).collect(),
            Stage::Running(id) => event_loop.worker(id)?.save(),
            Stage::Lost => return Err(SaveError::Lost),
        };
        Ok(SavedTransport {
            device_id: self.facts.device_type.id(),
            status: registers.status,
            device_features_select: registers.device_features_select,
            driver_features_select: registers.driver_features_select,
            driver_features: registers.driver_features,
            queue_select: registers.queue_select,
            pending_interrupt: self.interrupt.pending(),
            needs_reset: self.interrupt.needs_reset(),
            queues,
        })
    }

    /// Goes on where a saved machine stood, on a transport that no driver has touched yet. A device that ran runs again: its
    /// worker first looks into every queue, since a notification may have been on its way. Called on the loop's thread.
    ///
    /// # Errors
    ///
    /// Returns [`RestoreError`] if what was saved is another device's, or impossible.
    pub fn restore(
        &self,
        saved: &SavedTransport,
        event_loop: &mut EventLoop,
    ) -> Result<(), RestoreError> {
        let mut registers = self.registers();
        let fits = saved.device_id == self.facts.device_type.id()
            && saved.driver_features & !self.facts.features == 0
            && saved.queues.len() == registers.queues.len();
        if !fits {
            return Err(RestoreError::OtherDevice);
        }
        for (queue, saved) in registers.queues.iter_mut().zip(&saved.queues) {
            if saved.max_size != queue.max_size() {
                return Err(RestoreError::OtherDevice);
            }
            *queue = Queue::try_from(saved).map_err(RestoreError::Queue)?;
        }
        registers.status = saved.status;
        registers.device_features_select = saved.device_features_select;
        registers.driver_features_select = saved.driver_features_select;
        registers.driver_features = saved.driver_features;
        registers.queue_select = saved.queue_select;
        self.interrupt
            .restore(saved.pending_interrupt, saved.needs_reset);
        if registers.has(status::DRIVER_OK) {
            let worker = self
                .make_worker(&mut registers)
                .map_err(|error| RestoreError::Start(Box::new(error)))?;
            registers.stage = Stage::Running(event_loop.start(worker));
        }
        Ok(())
    }

    /// Makes the device as after power-on (VirtIO 1.2 section 2.4), worker stopped and taken back.
    fn reset(&self, registers: &mut Registers) {
        registers.stage = match std::mem::replace(&mut registers.stage, Stage::Lost) {
            Stage::Running(id) => match self.workers.stop(id) {
                Ok(worker) => Stage::Configuring(Worker::stop(worker)),
                Err(error) => {
                    tracing::debug!(%error, "a device is lost");
                    Stage::Lost
                }
            },
            other => other,
        };
        registers.device_features_select = 0;
        registers.driver_features_select = 0;
        registers.driver_features = 0;
        registers.queue_select = 0;
        for queue in &mut registers.queues {
            queue.reset();
        }
        for notifier in &self.notifiers {
            // A notification from before the reset means nothing after it.
            let _drained = notifier.read();
        }
        self.interrupt.clear();
        registers.status = 0;
    }

    /// Changes a part of the device configuration space and tells the driver. What would lie outside of it is left out.
    pub fn change_config(&self, offset: usize, new: &[u8]) {
        let mut config = self.config();
        let rest = config.bytes.get_mut(offset..).unwrap_or_default();
        for (byte, value) in rest.iter_mut().zip(new) {
            *byte = *value;
        }
        config.generation = config.generation.wrapping_add(1);
        drop(config);
        self.interrupt.signal_configuration_change();
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = self.config();
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| config.bytes.get(offset..))
            .unwrap_or_default();
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }
}

impl Registers {
    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// Features are negotiated between `DRIVER` and `FEATURES_OK` (VirtIO 1.2 section 3.1.1).
    fn set_driver_features(&mut self, value: u32) {
        if !self.has(status::DRIVER) || self.has(status::FEATURES_OK) {
            return;
        }
        let value = u64::from(value);
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // There are no more than 64 features; a driver may write zeros there.
            _ => {}
        }
    }

    /// Queues are set up between `FEATURES_OK` and `DRIVER_OK` (VirtIO 1.2 section 3.1.1).
    fn queue_in_setup(&mut self) -> Option<&mut Queue> {
        let in_setup =
            self.has(status::FEATURES_OK) && !self.has(status::DRIVER_OK | status::FAILED);
        let index = usize::try_from(self.queue_select).ok()?;
        self.queues.get_mut(index).filter(|_| in_setup)
    }

    fn set_queue_ready(&mut self, value: u32) {
        if let Some(queue) = self.queue_in_setup() {
            queue.set_ready(value == 1);
        }
    }

    /// Takes the size and the addresses of a queue, which must not be ready yet (VirtIO 1.2
    /// section 4.2.2.2). `Queue` itself ignores a size or an alignment that cannot be.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queue_in_setup().filter(|queue| !queue.ready()) else {
            return;
        };
        match offset {
            register::QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    /// Registers are read as aligned 32-bit words (VirtIO 1.2 section 4.2.2.2); anything else
    /// reads zero. The configuration space is read in any width.
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            return self.read_config(offset, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) if offset.is_multiple_of(4) => {
                *word = self.read_register(offset).to_le_bytes();
            }
            _ => data.fill(0),
        }
    }

    /// Registers are written as aligned 32-bit words; anything else is ignored, and so is the
    /// configuration space, in which no device here has a field for the driver to write.
    fn write(&self, offset: u64, data: &[u8]) {
        if let Ok(word) = <[u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
            && offset < register::CONFIG
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}

/// Returns the 32 bits of `features` that `select` names; there are two such halves.
fn half(features: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shifted & 0xffff_ffff).unwrap_or(0)
}

/// A slot of the bank without a device: its driver finds DeviceID 0 and leaves it alone (VirtIO
/// 1.2 section 4.2.2).
#[derive(Clone, Copy, Debug, Default)]
pub struct EmptySlot;

impl BusDevice for EmptySlot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => VERSION,
            register::VENDOR_ID => VENDOR,
            _ => 0,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests;
