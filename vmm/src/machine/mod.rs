//! The machine: memory, vCPUs, buses, devices and the event loop, on KVM.
//!
//! [`Machine::build`] is the boot, one step a line; [`Machine::run`] enters the guest and returns how it ended. Nothing here knows
//! images, containers or the command line.

mod arch;
mod command_line;
mod crew;
pub mod host;
mod kernel;
mod memory;
mod notice;
mod running;
mod saved;
mod shape;
mod vcpu;
mod xsave;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;

use devices::bus::{Bus, BusDevice, InsertError, MmioAddress};
use devices::doorbell::{self, Doorbell, Ring};
use devices::event_loop::{EventLoop, EventLoopError};
use devices::i8042::{self, I8042};
use devices::interrupt::Interrupt;
use devices::serial::{self, BadSerial, KernelLog, KernelLogLimits, Serial};
pub use devices::virtio::block::{Access, DiskId, Rate, RateLimits};
use devices::virtio::block::{
    Backend as _, Block, CAPACITY_OFFSET, DiskThreads, Extent, Extents, ExtentsError, RawFile,
    SECTOR_BYTES,
};
use devices::virtio::fs::channel::Channel;
use devices::virtio::fs::{self, FailureReport, Fs, Tag};
use devices::virtio::mmio::{
    EmptySlot, MmioTransport, QUEUE_NOTIFY_OFFSET, RestoreError, SaveError, TransportError,
};
use devices::virtio::net::{
    FrameSocket, Interface, LINK_DOWN, Link, LossReport, MacAddress, Net, Offloads, STATUS_OFFSET,
    Tap,
};
use devices::virtio::pmem::{Pmem, PmemWindow};
use devices::virtio::vsock::{Dialer, GuestCid, Vsock};
use devices::virtio::{DeviceType, VirtioDevice};
use event_manager::MutEventSubscriber;
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use protocol::{Create, DiskHandover, FrameError, Handover};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::arch::layout::{
    AGENT_WINDOW_ADDRESS, DOORBELL_ADDRESS, KVM_TSS_ADDRESS, MAILBOX_ADDRESS, ROOT_WINDOW_ADDRESS,
    SERIAL_GSI, VIRTIO_GSIS, virtio_slot_address,
};
use self::arch::{boot, cpuid, mptable, registers};
pub use self::command_line::CommandLineError;
use self::host::Quirks;
pub use self::kernel::KernelError;
use self::memory::MachineMemory;
pub use self::memory::{MemoryError, Part, Window};
use self::notice::{Notice, Notices, Notifier};
use self::running::Running;
pub use self::running::{Answer, Order, SaveFiles};
pub use self::saved::{RamLayer, SavedMachine, WrittenPages};
use self::saved::{SavedVcpu, SavedVm};
pub use self::shape::{
    HUGE_PAGE_BYTES, MIB_BYTES, PAGE_BYTES, RamSize, ShapeError, VcpuCount, WindowClass,
};
use self::vcpu::{Buses, Gate, Vcpu};

/// As much as the guest's kernel takes in at its boot, and half of what a clone gets.
const RANDOM_BYTES: usize = 32;

/// Everything that a machine is made of, opened and decided.
#[derive(Debug)]
pub struct MachineConfig {
    /// How many vCPUs.
    pub vcpus: VcpuCount,
    /// How much RAM.
    pub ram: RamSize,
    /// The uncompressed ELF kernel.
    pub kernel: File,
    /// The agent's file system, the guest's `/dev/pmem0`.
    pub agent: Window,
    /// The image's file system.
    pub root: Root,
    /// A disk that the guest may write to and that outlives the machine.
    pub storage: Option<File>,
    /// Directories of the host, if it has a device for them.
    pub shares: Option<Shares>,
    /// Its network interface, if it has one.
    pub network: Option<MachineNetwork>,
    /// Further disks, in the order of their names in the guest, after the two above.
    pub disks: Vec<MachineDisk>,
    /// Where the guest kernel's log goes.
    pub kernel_log: Option<File>,
    /// Whether the guest's kernel says more than what is wrong.
    pub verbose_kernel: bool,
    /// What the host cannot do.
    pub quirks: Quirks,
    /// Whether the kernel is another one than the guest image's.
    pub has_own_kernel: bool,
}

impl MachineConfig {
    /// What the kernel is told.
    ///
    /// # Errors
    /// When it is too long.
    pub fn command_line(&self) -> Result<Vec<u8>, CommandLineError> {
        command_line::build(self.verbose_kernel, &self.quirks, self.device_count())
    }

    /// How many virtio devices it has: see [`virtio_devices`].
    fn device_count(&self) -> usize {
        USUAL_DEVICES
            + usize::from(self.storage.is_some())
            + usize::from(self.network.is_some())
            + usize::from(self.shares.is_some())
            + self.disks.len()
    }

    /// Which of its disks, in the order of their names, is the first beside the root and its own.
    fn first_disk(&self) -> usize {
        usize::from(matches!(self.root, Root::Disk { .. })) + usize::from(self.storage.is_some())
    }

    /// Whether something that its guest writes outlives it.
    #[must_use]
    pub fn keeps_something(&self) -> bool {
        let is_writable = |disk: &MachineDisk| disk.access == Access::ReadWrite;
        self.storage.is_some() || self.disks.iter().any(is_writable)
    }

    /// The files that the guest sees through windows.
    pub fn mapped_files(&self) -> Vec<&File> {
        let root = match &self.root {
            Root::Window(window) => window.parts.as_slice(),
            Root::Disk { .. } => &[],
        };
        let parts = self.agent.parts.iter().chain(root);
        parts.map(|part| &part.file).collect()
    }
}

/// How many virtio devices every machine has: see [`virtio_devices`].
const USUAL_DEVICES: usize = 3;
/// How many further disks a machine may have: the bank has room for them beside all other devices.
pub const MAX_DISKS: usize = VIRTIO_GSIS.len() - USUAL_DEVICES - 3;

/// The network interface of a machine.
#[derive(Debug)]
pub struct MachineNetwork {
    /// What its guest is told of it.
    pub interface: Interface,
    /// What it is connected to.
    pub link: MachineLink,
    /// How fast it may be.
    pub limits: devices::virtio::net::RateLimits,
}

/// What a network interface is connected to.
#[derive(Debug)]
pub enum MachineLink {
    /// Nothing: the device is there for those that will be connected.
    Unconnected,
    /// A tap of the host's.
    Tap(Tap),
    /// A socket with one frame in each message.
    Socket(OwnedFd),
}

impl MachineLink {
    /// The descriptor, if there is one.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Unconnected => None,
            Self::Tap(tap) => Some(tap.as_fd()),
            Self::Socket(socket) => Some(socket.as_fd()),
        }
    }

    /// A handle of the device's own.
    fn open(&self) -> io::Result<Option<Box<dyn Link>>> {
        Ok(match self {
            Self::Unconnected => None,
            Self::Tap(tap) => Some(Box::new(tap.try_clone()?)),
            Self::Socket(socket) => Some(Box::new(FrameSocket::new(socket.try_clone()?)?)),
        })
    }
}

/// What of an interface its driver asks before anybody says whose it is: the same for all machines that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceShape {
    /// The longest packet.
    pub mtu: u16,
    /// What the link does.
    pub offloads: Offloads,
}

/// A text that names no shape of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("it is an MTU, and then :checksum or :segmentation")]
pub struct InterfaceShapeError;

impl fmt::Display for InterfaceShape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let offloads = match self.offloads {
            Offloads {
                checksum: false, ..
            } => "",
            Offloads {
                segmentation: false,
                ..
            } => ":checksum",
            _ => ":segmentation",
        };
        write!(formatter, "{}{offloads}", self.mtu)
    }
}

impl FromStr for InterfaceShape {
    type Err = InterfaceShapeError;

    fn from_str(text: &str) -> Result<Self, InterfaceShapeError> {
        let (mtu, offloads) = match text.split_once(':') {
            None => (text, Offloads::default()),
            Some((mtu, "checksum")) => (
                mtu,
                Offloads {
                    checksum: true,
                    segmentation: false,
                },
            ),
            Some((mtu, "segmentation")) => (mtu, Offloads::ALL),
            Some(_) => return Err(InterfaceShapeError),
        };
        let mtu = mtu.parse().map_err(|_| InterfaceShapeError)?;
        Ok(Self { mtu, offloads })
    }
}

impl InterfaceShape {
    /// An interface of this shape that is nobody's, for a machine of which others will be clones.
    #[must_use]
    pub fn unconnected(self) -> MachineNetwork {
        let Self { mtu, offloads } = self;
        MachineNetwork {
            interface: Interface {
                mac: MacAddress::local([0; 6]),
                mtu,
                offloads,
            },
            link: MachineLink::Unconnected,
            limits: devices::virtio::net::RateLimits::default(),
        }
    }
}

impl MachineNetwork {
    /// What it has in common with others.
    #[must_use]
    pub fn shape(&self) -> InterfaceShape {
        InterfaceShape {
            mtu: self.interface.mtu,
            offloads: self.interface.offloads,
        }
    }
}

/// What the guest calls a disk: there are fewer than letters.
#[must_use]
pub fn disk_name(index: usize) -> String {
    let letter = (b'a'..=b'z').nth(index).unwrap_or(b'z');
    format!("/dev/vd{}", char::from(letter))
}

/// A disk of the machine's.
#[derive(Debug)]
pub struct MachineDisk {
    /// What is on it: a file, or a block device.
    pub file: File,
    /// What the guest may do with it.
    pub access: Access,
    /// What the guest reads as its identification.
    pub id: DiskId,
    /// How fast it may be.
    pub limits: RateLimits,
    /// Held for as long as the machine has the disk.
    pub lock: Option<File>,
}

/// What is known of the disks beside the root and the machine's own.
#[derive(Debug, Default)]
struct Disks {
    /// What carries out their requests: one entry for each thread.
    threads: Vec<DiskThreads>,
    /// What they are made of, in the order of their names, each with its slot.
    growing: Vec<(usize, Arc<RawFile>)>,
    /// Whether their drivers asked the empty ones of a template, which may be written to, what they may do.
    are_of_a_clone: bool,
}

impl Disks {
    /// What the agent of a clone is told of them; the first has the name with this index.
    fn handover(&self, first: usize) -> Vec<DiskHandover> {
        let disks = self.growing.iter().enumerate();
        disks
            .map(|(index, (_, disk))| DiskHandover {
                device: disk_name(first.saturating_add(index)),
                size_bytes: disk.size_bytes() / SECTOR_BYTES * SECTOR_BYTES,
                read_only: disk.access() == Access::ReadOnly,
            })
            .collect()
    }
}

/// How many threads carry out the requests of disks without limits; one with limits has another one of its own.
const DISK_THREADS: usize = 8;

/// Who serves the directories of the host.
#[derive(Debug)]
pub enum Shares {
    /// Nobody: the device is there for those that will be served.
    Unserved,
    /// The process at the other end.
    Served {
        /// The way to it.
        channel: Channel,
        /// What becomes of the machine when it fails.
        on_failure: ShareFailure,
    },
}

/// What becomes of a machine whose directories of the host are not served any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareFailure {
    /// It ends.
    #[default]
    End,
    /// It goes on, and what it does there fails.
    Continue,
}

/// How the guest gets the image.
#[derive(Debug)]
pub enum Root {
    /// A read-only window, the guest's `/dev/pmem1`.
    Window(Window),
    /// A read-only disk, the guest's `/dev/vda`, for what is larger than the largest window.
    Disk {
        /// Its size.
        size_bytes: u64,
        /// What is on it; zero between them.
        parts: Vec<Part>,
    },
}

impl Root {
    /// The size of its window; 0 of a disk.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        match self {
            Self::Window(window) => window.class.bytes(),
            Self::Disk { .. } => 0,
        }
    }

    /// Takes the image away: a machine of this shape that has not seen one.
    pub fn empty(&mut self) {
        match self {
            Self::Window(Window { parts, .. }) | Self::Disk { parts, .. } => parts.clear(),
        }
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEnd {
    /// The agent ended it.
    PoweredOff,
    /// The guest's kernel reset it, as it does after a panic.
    Reset,
    /// The guest cannot go on; why.
    Fault(String),
    /// A subscriber of the event loop asked for it.
    Stopped,
}

/// A machine that could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM refused a step.
    #[error("KVM refuses {step}")]
    Kvm {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host gives no descriptor.
    #[error("the host gives no descriptor for {0}")]
    Descriptor(&'static str, #[source] io::Error),
    /// The memory cannot be put together.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line is too long.
    #[error(transparent)]
    CommandLine(#[from] CommandLineError),
    /// The boot parameters do not fit the RAM.
    #[error("cannot write the boot parameters")]
    BootParameters(#[source] vm_memory::GuestMemoryError),
    /// There are more devices than places for them.
    #[error("a machine has room for {max} virtio devices, and is to have {0}", max = VIRTIO_GSIS.len())]
    TooManyDevices(usize),
    /// Two devices claim one place.
    #[error("cannot place a device on its bus")]
    Bus(#[from] InsertError),
    /// A virtio transport cannot be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The size of a disk cannot be found out.
    #[error("cannot look at a disk of the machine")]
    Storage(#[source] io::Error),
    /// The root disk's parts do not fit together.
    #[error("cannot put the root disk together")]
    Disk(#[from] ExtentsError),
    /// The event loop cannot be made.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// A frozen machine is not one of this host, or not of this shape.
    #[error("the frozen machine does not fit here: it differs in {0}")]
    Mismatch(&'static str),
    /// A virtio device of a frozen machine cannot go on.
    #[error(transparent)]
    RestoreDevice(#[from] RestoreError),
    /// A virtio device cannot be written down.
    #[error(transparent)]
    SaveDevice(#[from] SaveError),
    /// The serial port of a frozen machine cannot go on.
    #[error(transparent)]
    Serial(#[from] BadSerial),
    /// What the agent is to find does not fit its mailbox.
    #[error("cannot write to the agent's mailbox")]
    Mailbox(#[source] FrameError),
}

impl BuildError {
    /// Whether the host has not got what any machine of this shape takes, whatever it begins with.
    #[must_use]
    pub fn is_want(&self) -> bool {
        matches!(
            self,
            Self::Descriptor(..) | Self::Memory(MemoryError::Map { .. })
        )
    }
}

fn kvm_refuses(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { step, source }
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<Vcpu>,
    /// What the first vCPU was told of its features.
    cpuid: CpuId,
    board: Board,
}

/// What the vCPUs stand on: memory, buses, devices and the event loop.
#[derive(Debug)]
struct Board {
    // Dropped in this order: who uses memory before the memory.
    event_loop: EventLoop,
    notices: Notices,
    notifier: Notifier,
    gate: Gate,
    dialer: Dialer,
    kernel_log: KernelLog,
    serial: Arc<Serial>,
    /// In the order of the slots.
    transports: Vec<Arc<MmioTransport>>,
    /// That of the network interface.
    network_slot: Option<usize>,
    /// The disks beside the root and the machine's own.
    disks: Disks,
    buses: Buses,
    vm: VmFd,
    memory: MachineMemory,
}

/// A frozen machine of which this one is to be a clone.
#[derive(Debug)]
pub struct FrozenMachine {
    /// All but the memory.
    pub state: SavedMachine,
    /// The memory.
    pub memory: File,
    /// What was in the memory before, where it holds only what has changed since; the oldest first.
    pub below: Vec<RamLayer>,
    /// What clones write to, as far as that is known: a hint.
    pub written: Vec<WrittenPages>,
    /// Which copy this is, for the guest to know.
    pub generation: u32,
    /// Whether the guest had connections to the host.
    pub had_connections: bool,
}

impl Machine {
    /// Builds a machine up to its first instruction: memory is mapped, devices are in their places, the boot processor stands at the
    /// kernel's entry point and the others wait for its call.
    ///
    /// # Errors
    /// When a file does not fit or KVM refuses a step; nothing stays behind.
    pub fn build(kvm: &Kvm, config: &MachineConfig) -> Result<Self, BuildError> {
        let board = Board::assemble(kvm, config, None)?;
        let entry = kernel::map(&config.kernel, &board.memory)?;
        let command_line = config.command_line()?;
        let memory = &board.memory.all;
        registers::write_tables(memory).map_err(BuildError::BootParameters)?;
        boot::write_parameters(
            memory,
            config.ram,
            &command_line,
            &mptable::mp_table(config.vcpus),
            random()?,
        )
        .map_err(BuildError::BootParameters)?;
        let (vcpus, cpuid) = board.create_vcpus(kvm, config.vcpus)?;
        for vcpu in &vcpus {
            prepare_for_boot(&vcpu.fd, &cpuid)?;
        }
        if let Some(boot_processor) = vcpus.first() {
            enter_at(&boot_processor.fd, entry)?;
        }
        Ok(Self {
            vcpus,
            cpuid,
            board,
        })
    }

    /// Builds a machine that goes on where a frozen one of the same shape stood, inside its agent's doorbell write. Its mailbox holds
    /// what is its own.
    ///
    /// # Errors
    /// When this host is not the frozen machine's, a file does not fit, or KVM refuses a step; nothing stays behind.
    pub fn restore(
        kvm: &Kvm,
        config: &MachineConfig,
        frozen: &FrozenMachine,
    ) -> Result<Self, BuildError> {
        let FrozenMachine {
            state,
            memory,
            below,
            written,
            ..
        } = frozen;
        let mut board = Board::assemble(kvm, config, Some(frozen))?;
        match below.split_first() {
            None => board.memory.restore(memory, &state.ram)?,
            Some((whole, changes)) => {
                board.memory.restore(&whole.file, &whole.runs)?;
                for layer in changes {
                    board.memory.overlay(&layer.file, &layer.runs)?;
                }
                board.memory.overlay(memory, &state.ram)?;
            }
        }
        board.memory.copy_ahead(&state.ram, written);
        let (vcpus, cpuid) = board.create_vcpus(kvm, config.vcpus)?;
        if vcpus.len() != state.vcpus.len() || board.transports.len() != state.transports.len() {
            return Err(BuildError::Mismatch("the machine's shape"));
        }
        if cpuid.as_slice() != state.cpuid {
            return Err(BuildError::Mismatch("the processor's features"));
        }
        for (vcpu, saved) in vcpus.iter().zip(&state.vcpus) {
            saved.restore(&vcpu.fd)?;
        }
        state.vm.restore(&board.vm)?;
        for (transport, saved) in board.transports.iter().zip(&state.transports) {
            transport.restore(saved, &mut board.event_loop)?;
        }
        board.announce_disks();
        board.hand_over(frozen.generation, config.first_disk())?;
        Ok(Self {
            vcpus,
            cpuid,
            board,
        })
    }

    /// Puts into the mailbox of a machine that is to be frozen the container that its agent builds before.
    ///
    /// # Errors
    /// When it is too large.
    pub fn stage(&self, container: &Create) -> Result<(), BuildError> {
        self.board.put_into_mailbox(container)
    }

    /// The way to dial ports of the guest.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        self.board.dialer.clone()
    }

    /// What the guest's kernel printed last.
    #[must_use]
    pub fn kernel_log(&self) -> KernelLog {
        self.board.kernel_log.clone()
    }

    /// Puts something on the machine's event loop: a control channel.
    pub fn add_subscriber(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.board.event_loop.add(subscriber);
    }

    /// Enters the guest and serves its devices until it ends. `jail` runs first on every thread; `on_ring` is called for each ring of
    /// the doorbell; `next_order` is asked after every event until it has none.
    ///
    /// The vCPU threads are left as they are when this returns: the process is expected to end.
    ///
    /// # Errors
    /// When the host gives no thread, or the event loop fails.
    pub fn run<J>(
        self,
        kvm: &Kvm,
        jail: J,
        mut on_ring: impl FnMut(Ring) -> Heard,
        mut next_order: impl FnMut() -> Option<Order>,
    ) -> Result<MachineEnd, RunError>
    where
        J: Fn(ThreadRole) -> io::Result<()> + Clone + Send + 'static,
    {
        let mut running = Running::start(self, &jail)?;
        loop {
            running.board.event_loop.run_once(-1)?;
            while let Some(notice) = running.board.notices.next() {
                match notice {
                    Notice::Ring(ring) => match on_ring(ring) {
                        Heard::GoOn => running.hear(ring)?,
                        Heard::End => return Ok(MachineEnd::PoweredOff),
                    },
                    Notice::Reset => return Ok(MachineEnd::Reset),
                    Notice::GuestFault(reason) => return Ok(MachineEnd::Fault(reason)),
                    Notice::LinkLost => running.board.tell_link_lost(),
                }
            }
            while let Some(order) = next_order() {
                match order {
                    Order::Stop => return Ok(MachineEnd::Stopped),
                    Order::Pause(answer) => running.pause(answer)?,
                    Order::Resume(answer) => running.resume(answer),
                    Order::Save { files, answer } => running.await_freeze(*files, answer),
                    Order::GiveUp => running.give_up(),
                    Order::Grow(answer) => answer.tell(running.board.grow_disks()),
                }
            }
            running.advance(kvm)?;
        }
    }

    /// Enters the guest until its agent says that the machine may be frozen, stops every vCPU there, and writes the machine down.
    ///
    /// # Errors
    /// When the guest ends first, or KVM or a file refuses a step.
    pub fn freeze<J>(self, kvm: &Kvm, jail: J, files: &SaveFiles) -> Result<(), FreezeError>
    where
        J: Fn(ThreadRole) -> io::Result<()> + Clone + Send + 'static,
    {
        let mut running = Running::start(self, &jail)?;
        running.board.gate.arm(true);
        while !running.crew.all_stand() {
            running
                .board
                .event_loop
                .run_once(-1)
                .map_err(RunError::EventLoop)?;
            while let Some(notice) = running.board.notices.next() {
                match notice {
                    // The one that rang stops by itself; the others may be inside the guest.
                    Notice::Ring(Ring::MayFreeze) => running.crew.stop()?,
                    Notice::Ring(Ring::MachineEnd) => return Err(FreezeError::Ended),
                    Notice::Ring(_) | Notice::LinkLost => {}
                    Notice::Reset => return Err(FreezeError::Ended),
                    Notice::GuestFault(reason) => return Err(FreezeError::Fault(reason)),
                }
            }
        }
        running.write_down(kvm, files).map_err(FreezeError::Save)
    }
}

/// What a ring of the doorbell means to whoever runs the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The machine goes on.
    GoOn,
    /// The machine has ended.
    End,
}

impl Board {
    /// Puts everything in its place, on a new VM. Devices are new, or a frozen machine's.
    fn assemble(
        kvm: &Kvm,
        config: &MachineConfig,
        frozen: Option<&FrozenMachine>,
    ) -> Result<Self, BuildError> {
        let vm = kvm.create_vm().map_err(kvm_refuses("to create a VM"))?;
        prepare_interrupts(&vm)?;
        report_failed_instructions(&vm)?;

        let memory = MachineMemory::map(config.ram, &windows(config))?;
        memory.register(&vm)?;

        let (notifier, notices) =
            Notices::new().map_err(|error| BuildError::Descriptor("notices", error))?;
        let mut event_loop = EventLoop::new()?;
        event_loop.add(Box::new(notices.waker()));

        let log_writer = config.kernel_log.as_ref().map(File::try_clone).transpose();
        let log_writer =
            log_writer.map_err(|error| BuildError::Descriptor("the kernel's log", error))?;
        let kernel_log = KernelLog::new(
            KernelLogLimits::default(),
            log_writer.map(|file| Box::new(file) as _),
        );
        let (vsock, dialer) =
            Vsock::new(GuestCid::FIRST).map_err(|error| BuildError::Descriptor("vsock", error))?;
        let vsock = match frozen {
            Some(frozen) if frozen.had_connections => {
                let [a, b, ..] = random()?;
                // Far above what a machine counts up to.
                vsock.without_its_connections(u32::from_le_bytes([0, 0, a | 1, b]))
            }
            _ => vsock,
        };
        let gate = Gate::default();

        let mut mmio = Bus::new();
        mmio.insert(
            MmioAddress(DOORBELL_ADDRESS),
            doorbell::SIZE_BYTES,
            Arc::new(doorbell(&notifier, &gate)),
        )?;
        let mut disks = Disks {
            are_of_a_clone: frozen.is_some(),
            ..Disks::default()
        };
        let devices = virtio_devices(config, vsock, &notifier, &mut disks)?;
        let network_slot = devices
            .iter()
            .position(|device| device.device_type() == DeviceType::Net);
        let transports = place_virtio(&vm, &mut mmio, &memory, &event_loop, devices)?;
        let mut pio = Bus::new();
        pio.insert(
            i8042::BASE,
            i8042::SIZE_BYTES,
            Arc::new(reset_line(&notifier)),
        )?;
        let line = interrupt_line(&vm, SERIAL_GSI)?;
        let serial = Arc::new(match frozen {
            None => Serial::new(line, kernel_log.clone()),
            Some(frozen) => Serial::restore(&frozen.state.serial, line, kernel_log.clone())?,
        });
        pio.insert(
            serial::BASE,
            serial::SIZE_BYTES,
            Arc::clone(&serial) as Arc<dyn BusDevice>,
        )?;
        Ok(Self {
            event_loop,
            notices,
            notifier,
            gate,
            dialer,
            kernel_log,
            serial,
            transports,
            network_slot,
            disks,
            buses: Buses {
                pio: Arc::new(pio),
                mmio: Arc::new(mmio),
            },
            vm,
            memory,
        })
    }

    /// New vCPUs, which know their features and nothing else, and the features of the first.
    fn create_vcpus(&self, kvm: &Kvm, count: VcpuCount) -> Result<(Vec<Vcpu>, CpuId), BuildError> {
        let features = features(kvm, count)?;
        let vcpus: Result<_, BuildError> = (0..count.get())
            .map(|apic_id| {
                let fd = self
                    .vm
                    .create_vcpu(u64::from(apic_id))
                    .map_err(kvm_refuses("to create a vCPU"))?;
                fd.set_cpuid2(&features(apic_id))
                    .map_err(kvm_refuses("the vCPU's features"))?;
                Ok(Vcpu {
                    index: usize::from(apic_id),
                    fd,
                    buses: self.buses.clone(),
                    memory: self.memory.all.clone(),
                    notifier: self.notifier.clone(),
                    gate: self.gate.clone(),
                })
            })
            .collect();
        Ok((vcpus?, features(0)))
    }

    /// Writes the machine down while every vCPU stands.
    fn save(
        &mut self,
        vcpus: &[Vcpu],
        cpuid: &CpuId,
        msr_indices: &[u32],
        files: &SaveFiles,
    ) -> Result<SavedMachine, BuildError> {
        let mut transports = Vec::with_capacity(self.transports.len());
        for transport in &self.transports {
            transports.push(transport.save(&mut self.event_loop)?);
        }
        Ok(SavedMachine {
            cpuid: cpuid.as_slice().to_vec(),
            vcpus: vcpus
                .iter()
                .map(|vcpu| SavedVcpu::save(&vcpu.fd, msr_indices))
                .collect::<Result<_, _>>()?,
            vm: SavedVm::save(&self.vm)?,
            transports,
            serial: self.serial.save(),
            ram: self.memory.save_to(files, &self.vm)?,
        })
    }

    /// Makes disks as large as their files are by now, and tells their drivers; why not, as a sentence.
    fn grow_disks(&self) -> Result<(), String> {
        for (slot, disk) in &self.disks.growing {
            let before = disk.size_bytes();
            let now = disk
                .grow()
                .map_err(|error| format!("a disk cannot be looked at: {error}"))?;
            if now != before {
                self.tell_size(*slot, now);
            }
        }
        Ok(())
    }

    /// Tells the drivers of a clone how large its disks are: where it was frozen they were empty.
    fn announce_disks(&self) {
        for (slot, disk) in &self.disks.growing {
            self.tell_size(*slot, disk.size_bytes());
        }
    }

    fn tell_size(&self, slot: usize, size_bytes: u64) {
        if let Some(transport) = self.transports.get(slot) {
            let sectors = size_bytes / SECTOR_BYTES;
            transport.change_config(CAPACITY_OFFSET, &sectors.to_le_bytes());
        }
    }

    /// Tells the driver of the network interface that its link is gone.
    fn tell_link_lost(&self) {
        let slot = self.network_slot.and_then(|slot| self.transports.get(slot));
        if let Some(transport) = slot {
            tracing::warn!("the link of the machine's network interface is gone");
            transport.change_config(STATUS_OFFSET, &LINK_DOWN);
        }
    }

    /// Puts into the mailbox what makes this clone different from all others. Its first disk has the name with this index.
    fn hand_over(&self, generation: u32, first_disk: usize) -> Result<(), BuildError> {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let handover = Handover {
            seed: [random()?, random()?],
            realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            generation,
            disks: self.disks.handover(first_disk),
        };
        self.put_into_mailbox(&handover)
    }

    fn put_into_mailbox(&self, letter: &impl Serialize) -> Result<(), BuildError> {
        let mut frame = Vec::new();
        // The frame's length goes before it.
        let limit_bytes = protocol::MAILBOX_BYTES - size_of::<u32>();
        protocol::encode(letter, limit_bytes, &mut frame).map_err(BuildError::Mailbox)?;
        self.memory
            .all
            .write_slice(&frame, GuestAddress(MAILBOX_ADDRESS))
            .map_err(BuildError::BootParameters)
    }
}

/// What a thread of the machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadRole {
    /// Enters the guest.
    Vcpu,
    /// Serves devices and channels, and writes the machine down while no vCPU runs.
    EventLoop,
    /// Carries out requests of disks.
    Disk,
}

/// A machine that could not be frozen.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// The guest ended before its agent was ready.
    #[error("the guest ended before it could be frozen")]
    Ended,
    /// The guest cannot go on.
    #[error("the guest failed before it could be frozen: {0}")]
    Fault(String),
    /// It could not even run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It cannot be written down; why.
    #[error("{0}")]
    Save(String),
}

/// A machine that could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The host gives no thread.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] io::Error),
    /// A vCPU cannot be called out of the guest.
    #[error("cannot interrupt a vCPU")]
    Signal,
    /// A thread could not give up its rights.
    #[error("cannot enter the jail")]
    Jail(#[source] io::Error),
    /// The event loop failed.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
}

/// What each vCPU of a machine is told of its features, by its APIC id.
fn features(kvm: &Kvm, count: VcpuCount) -> Result<impl Fn(u8) -> CpuId, BuildError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_refuses("to name its CPU features"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    Ok(move |apic_id| cpuid::for_vcpu(&supported, apic_id, count, tsc_deadline))
}

/// The windows of the machine, with their guest addresses.
fn windows(config: &MachineConfig) -> Vec<(u64, &Window)> {
    let agent = (AGENT_WINDOW_ADDRESS, &config.agent);
    match &config.root {
        Root::Window(root) => vec![agent, (ROOT_WINDOW_ADDRESS, root)],
        Root::Disk { .. } => vec![agent],
    }
}

/// The machine's virtio devices in the order of their slots: the list stands here, once.
fn virtio_devices(
    config: &MachineConfig,
    vsock: Vsock,
    notifier: &Notifier,
    disks: &mut Disks,
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(pmem(AGENT_WINDOW_ADDRESS, &config.agent)),
        match &config.root {
            Root::Window(root) => Box::new(pmem(ROOT_WINDOW_ADDRESS, root)),
            Root::Disk { size_bytes, parts } => Box::new(disk(*size_bytes, parts)?),
        },
        Box::new(vsock),
    ];
    if let Some(network) = &config.network {
        devices.push(Box::new(net(network, notifier)?));
    }
    if let Some(shares) = &config.shares {
        devices.push(Box::new(file_system(shares, notifier)?));
    }
    if let Some(file) = &config.storage {
        devices.push(Box::new(storage(file)?));
    }
    let shared = DiskThreads::new();
    if config.disks.iter().any(|disk| !disk.limits.is_any()) {
        disks
            .threads
            .extend(std::iter::repeat_n(shared.clone(), DISK_THREADS));
    }
    for disk in &config.disks {
        let threads = match disk.limits.is_any() {
            false => shared.clone(),
            true => DiskThreads::new(),
        };
        if disk.limits.is_any() {
            disks.threads.push(threads.clone());
        }
        let file = disk
            .file
            .try_clone()
            .and_then(|file| RawFile::new(file, disk.access));
        let backend = Arc::new(file.map_err(BuildError::Storage)?);
        disks.growing.push((devices.len(), Arc::clone(&backend)));
        let device = Block::new(backend, disk.id).on_threads(threads, disk.limits);
        devices.push(Box::new(match disks.are_of_a_clone {
            true => device.offered_as_writable(),
            false => device,
        }));
    }
    Ok(devices)
}

fn pmem(address: u64, window: &Window) -> Pmem {
    Pmem::new(PmemWindow {
        start: GuestAddress(address),
        size_bytes: window.class.bytes(),
    })
}

fn disk(size_bytes: u64, parts: &[Part]) -> Result<Block, BuildError> {
    let extents = parts
        .iter()
        .map(|part| {
            Ok(Extent {
                file: part.file.try_clone()?,
                file_offset_bytes: part.file_offset_bytes,
                disk_offset_bytes: part.offset_bytes,
                length_bytes: part.length_bytes,
            })
        })
        .collect::<io::Result<Vec<Extent>>>()
        .map_err(|error| BuildError::Descriptor("the root disk", error))?;
    let backend = Extents::new(extents, size_bytes)?;
    Ok(Block::new(Arc::new(backend), DiskId::new("root")))
}

fn storage(file: &File) -> Result<Block, BuildError> {
    let disk = file
        .try_clone()
        .and_then(|file| RawFile::new(file, Access::ReadWrite))
        .map_err(BuildError::Storage)?;
    Ok(Block::new(Arc::new(disk), DiskId::new("storage")))
}

fn net(network: &MachineNetwork, notifier: &Notifier) -> Result<Net, BuildError> {
    let failed = |error| BuildError::Descriptor("the network interface", error);
    let device = Net::new(network.interface)
        .limited_to(network.limits)
        .map_err(failed)?;
    Ok(match network.link.open().map_err(failed)? {
        None => device,
        Some(link) => {
            let notifier = notifier.clone();
            let report = LossReport::new(move || notifier.notify(Notice::LinkLost));
            device.connected_to(link, report)
        }
    })
}

fn file_system(shares: &Shares, notifier: &Notifier) -> Result<Fs, BuildError> {
    let server = match shares {
        Shares::Unserved => fs::Server::Nobody,
        Shares::Served {
            channel,
            on_failure,
        } => {
            let (notifier, on_failure) = (notifier.clone(), *on_failure);
            let channel = channel
                .try_clone()
                .map_err(|error| BuildError::Descriptor("the shared directories", error))?;
            fs::Server::Process {
                channel,
                on_failure: FailureReport::new(move |error| {
                    if on_failure == ShareFailure::End {
                        notifier.notify(Notice::GuestFault(error.to_string()));
                    }
                }),
            }
        }
    };
    Ok(Fs::new(Tag::new(crate::share::TAG), server))
}

fn prepare_interrupts(vm: &VmFd) -> Result<(), BuildError> {
    vm.set_tss_address(KVM_TSS_ADDRESS)
        .map_err(kvm_refuses("the TSS address"))?;
    vm.create_irq_chip()
        .map_err(kvm_refuses("to create the interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit)
        .map_err(kvm_refuses("to create the interval timer"))
}

/// Asks KVM to hand over the bytes of an instruction that it cannot emulate; older KVMs do not know how.
fn report_failed_instructions(vm: &VmFd) -> Result<(), BuildError> {
    if vm.check_extension_raw(u64::from(KVM_CAP_EXIT_ON_EMULATION_FAILURE)) <= 0 {
        return Ok(());
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
        args: [1, 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&capability)
        .map_err(kvm_refuses("to report failed instructions"))
}

/// The vCPU that says that the machine may be frozen does not come back from saying so, where somebody waits for that.
fn doorbell(notifier: &Notifier, gate: &Gate) -> Doorbell {
    let (notifier, gate) = (notifier.clone(), gate.clone());
    Doorbell::new(move |ring| {
        if ring == Ring::MayFreeze && gate.is_armed() {
            gate.close();
        }
        notifier.notify(Notice::Ring(ring));
    })
}

fn reset_line(notifier: &Notifier) -> I8042 {
    let notifier = notifier.clone();
    I8042::new(move || notifier.notify(Notice::Reset))
}

/// An eventfd bound to a pin of the I/O APIC.
fn interrupt_line(vm: &VmFd, gsi: u32) -> Result<Arc<dyn Interrupt>, BuildError> {
    let line = EventFd::new(EFD_NONBLOCK)
        .map_err(|error| BuildError::Descriptor("an interrupt line", error))?;
    vm.register_irqfd(&line, gsi)
        .map_err(kvm_refuses("an interrupt line"))?;
    Ok(Arc::new(line))
}

/// Fills the bank: devices from slot 0 on, the other slots empty.
fn place_virtio(
    vm: &VmFd,
    mmio: &mut Bus<MmioAddress>,
    memory: &MachineMemory,
    event_loop: &EventLoop,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<Arc<MmioTransport>>, BuildError> {
    if devices.len() > VIRTIO_GSIS.len() {
        return Err(BuildError::TooManyDevices(devices.len()));
    }
    let mut devices = devices.into_iter();
    let mut transports = Vec::new();
    for (slot, gsi) in VIRTIO_GSIS.into_iter().enumerate() {
        let address = virtio_slot_address(slot);
        let device: Arc<dyn BusDevice> = match devices.next() {
            Some(device) => {
                let line = interrupt_line(vm, gsi)?;
                let transport =
                    MmioTransport::new(device, memory.all.clone(), line, event_loop.handle())?;
                let notify_address = IoEventAddress::Mmio(address + QUEUE_NOTIFY_OFFSET);
                let by_event = match transport.is_notified_in_exit() {
                    true => &[],
                    false => transport.queue_notifiers(),
                };
                for (queue, notifier) in (0u32..).zip(by_event) {
                    vm.register_ioevent(notifier, &notify_address, queue)
                        .map_err(kvm_refuses("a queue's notifier"))?;
                }
                let transport = Arc::new(transport);
                transports.push(Arc::clone(&transport));
                transport
            }
            None => Arc::new(EmptySlot),
        };
        mmio.insert(
            MmioAddress(address),
            arch::layout::VIRTIO_SLOT_BYTES,
            device,
        )?;
    }
    Ok(transports)
}

/// Random bytes of the host's kernel.
fn random() -> Result<[u8; RANDOM_BYTES], BuildError> {
    let mut seed = [0; RANDOM_BYTES];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| BuildError::Descriptor("entropy", error.into()))?;
    Ok(seed)
}

/// What a kernel that boots finds on each processor.
fn prepare_for_boot(fd: &VcpuFd, cpuid: &CpuId) -> Result<(), BuildError> {
    let states = cpuid::extended_states(cpuid);
    if states != 0 {
        fd.set_xcrs(&registers::extended_control(states))
            .map_err(kvm_refuses("the vCPU's extended control register"))?;
    }
    if let Some(msrs) = registers::msrs() {
        fd.set_msrs(&msrs).map_err(kvm_refuses("the vCPU's MSRs"))?;
    }
    Ok(())
}

/// The boot processor gets the state of the boot protocol; the others wait for the kernel's start-up interrupt.
fn enter_at(fd: &VcpuFd, entry: u64) -> Result<(), BuildError> {
    let initial = fd
        .get_sregs()
        .map_err(kvm_refuses("to read the vCPU's registers"))?;
    fd.set_sregs(&registers::special_registers(initial))
        .map_err(kvm_refuses("the vCPU's special registers"))?;
    fd.set_regs(&registers::general_registers(entry))
        .map_err(kvm_refuses("the vCPU's registers"))
}
