//! The machine: memory, vCPUs, buses, devices and the event loop, on KVM.
//!
//! [`Machine::build`] is the boot, one step a line; [`Machine::run`] enters the guest and returns how it ended. Nothing here knows
//! images, containers or the command line.

mod arch;
mod command_line;
pub mod host;
mod kernel;
mod memory;
mod notice;
mod shape;
mod vcpu;

use std::fs::File;
use std::io;
use std::sync::{Arc, Barrier};

use devices::bus::{Bus, BusDevice, InsertError, MmioAddress};
use devices::doorbell::{self, Doorbell, Ring};
use devices::event_loop::{EventLoop, EventLoopError};
use devices::i8042::{self, I8042};
use devices::interrupt::Interrupt;
use devices::serial::{self, KernelLog, KernelLogLimits, Serial};
use devices::virtio::VirtioDevice;
use devices::virtio::block::{Block, DiskId, Extent, Extents, ExtentsError};
use devices::virtio::mmio::{EmptySlot, MmioTransport, QUEUE_NOTIFY_OFFSET, TransportError};
use devices::virtio::pmem::{Pmem, PmemWindow};
use devices::virtio::vsock::{Dialer, GuestCid, Vsock};
use event_manager::MutEventSubscriber;
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VmFd};
use thiserror::Error;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use self::arch::layout::{
    AGENT_WINDOW_ADDRESS, DOORBELL_ADDRESS, KVM_TSS_ADDRESS, ROOT_WINDOW_ADDRESS, SERIAL_GSI,
    VIRTIO_GSIS, virtio_slot_address,
};
use self::arch::{boot, cpuid, mptable, registers};
pub use self::command_line::CommandLineError;
use self::host::Quirks;
pub use self::kernel::KernelError;
use self::memory::MachineMemory;
pub use self::memory::{MemoryError, Part, Window};
use self::notice::{Notice, Notices, Notifier};
pub use self::shape::{MIB_BYTES, PAGE_BYTES, RamSize, ShapeError, VcpuCount, WindowClass};
use self::vcpu::{Buses, Vcpu};

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
    /// Where the guest kernel's log goes.
    pub kernel_log: Option<File>,
    /// Whether the guest's kernel says more than what is wrong.
    pub verbose_kernel: bool,
    /// What the host cannot do.
    pub quirks: Quirks,
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
    /// Two devices claim one place.
    #[error("cannot place a device on its bus")]
    Bus(#[from] InsertError),
    /// A virtio transport cannot be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The root disk's parts do not fit together.
    #[error("cannot put the root disk together")]
    Disk(#[from] ExtentsError),
    /// The event loop cannot be made.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
    /// More devices than the bank has slots.
    #[error("the machine has more virtio devices than its {} slots", VIRTIO_GSIS.len())]
    TooManyDevices,
}

fn kvm_refuses(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { step, source }
}

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: who uses memory before the memory.
    vcpus: Vec<Vcpu>,
    event_loop: EventLoop,
    notices: Notices,
    dialer: Dialer,
    kernel_log: KernelLog,
    _vm: VmFd,
    _memory: MachineMemory,
}

impl Machine {
    /// Builds a machine up to its first instruction: memory is mapped, devices are in their places, the boot processor stands at the
    /// kernel's entry point and the others wait for its call.
    ///
    /// # Errors
    /// When a file does not fit or KVM refuses a step; nothing stays behind.
    pub fn build(kvm: &Kvm, config: &MachineConfig) -> Result<Self, BuildError> {
        let vm = kvm.create_vm().map_err(kvm_refuses("to create a VM"))?;
        prepare_interrupts(&vm)?;
        report_failed_instructions(&vm)?;

        let memory = MachineMemory::map(config.ram, &windows(config))?;
        memory.register(&vm)?;
        let entry = kernel::map(&config.kernel, &memory)?;

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

        let mut mmio = Bus::new();
        mmio.insert(
            MmioAddress(DOORBELL_ADDRESS),
            doorbell::SIZE_BYTES,
            Arc::new(doorbell(&notifier)),
        )?;
        let virtio = virtio_devices(config, vsock)?;
        let used_slots = virtio.len();
        place_virtio(&vm, &mut mmio, &memory, &event_loop, virtio)?;
        let mut pio = Bus::new();
        pio.insert(
            i8042::BASE,
            i8042::SIZE_BYTES,
            Arc::new(reset_line(&notifier)),
        )?;
        pio.insert(
            serial::BASE,
            serial::SIZE_BYTES,
            Arc::new(serial(&vm, kernel_log.clone())?),
        )?;
        let buses = Buses {
            pio: Arc::new(pio),
            mmio: Arc::new(mmio),
        };

        let command_line = command_line::build(config.verbose_kernel, &config.quirks, used_slots)?;
        registers::write_tables(&memory.all).map_err(BuildError::BootParameters)?;
        boot::write_parameters(
            &memory.all,
            config.ram,
            &command_line,
            &mptable::mp_table(config.vcpus),
            entropy()?,
        )
        .map_err(BuildError::BootParameters)?;

        let vcpus = create_vcpus(kvm, &vm, config.vcpus, entry, &buses, &notifier)?;
        Ok(Self {
            vcpus,
            event_loop,
            notices,
            dialer,
            kernel_log,
            _vm: vm,
            _memory: memory,
        })
    }

    /// The way to dial ports of the guest.
    #[must_use]
    pub fn dialer(&self) -> Dialer {
        self.dialer.clone()
    }

    /// What the guest's kernel printed last.
    #[must_use]
    pub fn kernel_log(&self) -> KernelLog {
        self.kernel_log.clone()
    }

    /// Puts something on the machine's event loop: a control channel.
    pub fn add_subscriber(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.event_loop.add(subscriber);
    }

    /// Enters the guest and serves its devices until it ends. `jail` runs first on every thread; `on_ready` is called when the agent
    /// has rung; `should_stop` is asked after every event.
    ///
    /// The vCPU threads are left as they are when this returns: the process is expected to end.
    ///
    /// # Errors
    /// When the host gives no thread, or the event loop fails.
    pub fn run<J>(
        self,
        jail: J,
        mut on_ready: impl FnMut(),
        mut should_stop: impl FnMut() -> bool,
    ) -> Result<MachineEnd, RunError>
    where
        J: Fn(ThreadRole) -> io::Result<()> + Clone + Send + 'static,
    {
        let Self {
            vcpus,
            mut event_loop,
            notices,
            _vm,
            _memory,
            ..
        } = self;
        // No vCPU enters the guest before every thread is jailed.
        let jailed = Arc::new(Barrier::new(vcpus.len() + 1));
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let jail = jail.clone();
            let jailed = Arc::clone(&jailed);
            std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    let result = jail(ThreadRole::Vcpu);
                    if let Err(error) = &result {
                        let reason = format!("cannot jail a vCPU thread: {error}");
                        vcpu.notifier.notify(Notice::GuestFault(reason));
                    }
                    jailed.wait();
                    if result.is_ok() {
                        vcpu.run();
                    }
                })
                .map_err(RunError::Thread)?;
        }
        jail(ThreadRole::EventLoop).map_err(RunError::Jail)?;
        jailed.wait();
        loop {
            event_loop.run_once(-1)?;
            while let Some(notice) = notices.next() {
                match notice {
                    Notice::Ring(Ring::AgentReady) => on_ready(),
                    Notice::Ring(Ring::MachineEnd) => return Ok(MachineEnd::PoweredOff),
                    Notice::Ring(Ring::Unknown(code)) => {
                        tracing::debug!(code, "the guest rang an unknown code")
                    }
                    Notice::Reset => return Ok(MachineEnd::Reset),
                    Notice::GuestFault(reason) => return Ok(MachineEnd::Fault(reason)),
                }
            }
            if should_stop() {
                return Ok(MachineEnd::Stopped);
            }
        }
    }
}

/// What a thread of the machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadRole {
    /// Enters the guest.
    Vcpu,
    /// Serves devices and channels.
    EventLoop,
}

/// A machine that could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The host gives no thread.
    #[error("cannot start a vCPU thread")]
    Thread(#[source] io::Error),
    /// A thread could not give up its rights.
    #[error("cannot enter the jail")]
    Jail(#[source] io::Error),
    /// The event loop failed.
    #[error(transparent)]
    EventLoop(#[from] EventLoopError),
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
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    Ok(vec![
        Box::new(pmem(AGENT_WINDOW_ADDRESS, &config.agent)),
        match &config.root {
            Root::Window(root) => Box::new(pmem(ROOT_WINDOW_ADDRESS, root)),
            Root::Disk { size_bytes, parts } => Box::new(disk(*size_bytes, parts)?),
        },
        Box::new(vsock),
    ])
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
    Ok(Block::new(Box::new(backend), DiskId::new("root")))
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

fn doorbell(notifier: &Notifier) -> Doorbell {
    let notifier = notifier.clone();
    Doorbell::new(move |ring| notifier.notify(Notice::Ring(ring)))
}

fn reset_line(notifier: &Notifier) -> I8042 {
    let notifier = notifier.clone();
    I8042::new(move || notifier.notify(Notice::Reset))
}

fn serial(vm: &VmFd, log: KernelLog) -> Result<Serial, BuildError> {
    Ok(Serial::new(interrupt_line(vm, SERIAL_GSI)?, log))
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
) -> Result<(), BuildError> {
    if devices.len() > VIRTIO_GSIS.len() {
        return Err(BuildError::TooManyDevices);
    }
    let mut devices = devices.into_iter();
    for (slot, gsi) in VIRTIO_GSIS.into_iter().enumerate() {
        let address = virtio_slot_address(slot);
        let device: Arc<dyn BusDevice> = match devices.next() {
            Some(device) => {
                let line = interrupt_line(vm, gsi)?;
                let transport =
                    MmioTransport::new(device, memory.all.clone(), line, event_loop.handle())?;
                let notify_address = IoEventAddress::Mmio(address + QUEUE_NOTIFY_OFFSET);
                for (queue, notifier) in (0u32..).zip(transport.queue_notifiers()) {
                    vm.register_ioevent(notifier, &notify_address, queue)
                        .map_err(kvm_refuses("a queue's notifier"))?;
                }
                Arc::new(transport)
            }
            None => Arc::new(EmptySlot),
        };
        mmio.insert(
            MmioAddress(address),
            arch::layout::VIRTIO_SLOT_BYTES,
            device,
        )?;
    }
    Ok(())
}

fn entropy() -> Result<[u8; boot::ENTROPY_BYTES], BuildError> {
    let mut seed = [0; boot::ENTROPY_BYTES];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| BuildError::Descriptor("entropy", error.into()))?;
    Ok(seed)
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    count: VcpuCount,
    entry: u64,
    buses: &Buses,
    notifier: &Notifier,
) -> Result<Vec<Vcpu>, BuildError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_refuses("to name its CPU features"))?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    (0..count.get())
        .map(|apic_id| {
            let cpuid = cpuid::for_vcpu(&supported, apic_id, count, tsc_deadline);
            let fd = create_vcpu(vm, apic_id, &cpuid, entry)?;
            Ok(Vcpu {
                fd,
                buses: buses.clone(),
                notifier: notifier.clone(),
            })
        })
        .collect()
}

/// The boot processor (APIC id 0) gets the state of the boot protocol; the others wait for the kernel's start-up interrupt.
fn create_vcpu(
    vm: &VmFd,
    apic_id: u8,
    cpuid: &CpuId,
    entry: u64,
) -> Result<kvm_ioctls::VcpuFd, BuildError> {
    let fd = vm
        .create_vcpu(u64::from(apic_id))
        .map_err(kvm_refuses("to create a vCPU"))?;
    fd.set_cpuid2(cpuid)
        .map_err(kvm_refuses("the vCPU's features"))?;
    let states = cpuid::extended_states(cpuid);
    if states != 0 {
        fd.set_xcrs(&registers::extended_control(states))
            .map_err(kvm_refuses("the vCPU's extended control register"))?;
    }
    if let Some(msrs) = registers::msrs() {
        fd.set_msrs(&msrs).map_err(kvm_refuses("the vCPU's MSRs"))?;
    }
    if apic_id == 0 {
        let initial = fd
            .get_sregs()
            .map_err(kvm_refuses("to read the vCPU's registers"))?;
        fd.set_sregs(&registers::special_registers(initial))
            .map_err(kvm_refuses("the vCPU's special registers"))?;
        fd.set_regs(&registers::general_registers(entry))
            .map_err(kvm_refuses("the vCPU's registers"))?;
    }
    Ok(fd)
}
