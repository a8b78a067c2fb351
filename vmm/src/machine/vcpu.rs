//! A vCPU: one thread that enters the guest, and answers what the guest asks of the buses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::bus::{Bus, MmioAddress, PioAddress};
use devices::virtio::DeviceMemory;
use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVMIO, kvm_regs, kvm_xsave};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::clear_signal;

use super::Notice;
use super::arch::paging::Fault;
use super::notice::Notifier;
use super::xsave::Xsave;

/// Breakpoint exception, #BP.
const BREAKPOINT_VECTOR: u8 = 3;
/// Invalid opcode, #UD.
const INVALID_OPCODE_VECTOR: u8 = 6;
/// General protection, #GP.
const GENERAL_PROTECTION_VECTOR: u8 = 13;
/// Page fault, #PF.
const PAGE_FAULT_VECTOR: u8 = 14;
/// Linux processes lie below (Documentation/arch/x86/x86_64/mm.rst, four-level page tables).
const USER_SPACE_END: u64 = 1 << 47;
/// Set in `emulation_failure.flags` when KVM gives the instruction's bytes (KVM API,
/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`).
const FLAG_INSTRUCTION_BYTES: u64 = 1;

const OPCODE_INT3: u8 = 0xcc;
const OPCODE_FWAIT: u8 = 0x9b;

/// The guest's ways out to devices.
#[derive(Debug, Clone)]
pub(super) struct Buses {
    pub(super) pio: Arc<Bus<PioAddress>>,
    pub(super) mmio: Arc<Bus<MmioAddress>>,
}

/// One vCPU, before and while it runs.
#[derive(Debug)]
pub(super) struct Vcpu {
    pub(super) index: usize,
    pub(super) fd: VcpuFd,
    pub(super) buses: Buses,
    pub(super) memory: DeviceMemory,
    pub(super) notifier: Notifier,
    pub(super) gate: Gate,
}

/// Closed to stop all vCPUs of a machine between two instructions; clones are the same gate.
///
/// A vCPU that is inside the guest comes out by the signal [`Gate::KICK`], which its thread blocks and KVM lets through: one that
/// arrives just before the guest is entered is still pending then, and KVM does not enter.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    is_closed: Arc<AtomicBool>,
    is_armed: Arc<AtomicBool>,
}

impl Gate {
    /// The signal that brings a vCPU out of the guest.
    pub(super) const KICK: i32 = libc::SIGUSR1;

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
    }

    pub(super) fn open(&self) {
        self.is_closed.store(false, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Whether the agent's word that the machine may be frozen closes the gate.
    pub(super) fn arm(&self, is_armed: bool) {
        self.is_armed.store(is_armed, Ordering::SeqCst);
    }

    pub(super) fn is_armed(&self) -> bool {
        self.is_armed.load(Ordering::SeqCst)
    }

    /// Takes the kick that called this thread out, so that the guest can be entered again: KVM leaves it pending.
    pub(super) fn forget_kick() {
        // That there is none is no error: a vCPU that rang came out by itself, and its kick may be another's.
        let _ = clear_signal(Self::KICK);
    }
}

/// `struct kvm_signal_mask` (KVM API, `KVM_SET_SIGNAL_MASK`) with the kernel's set of 64 signals.
#[repr(C)]
struct SignalMask {
    length_bytes: u32,
    signals: [u8; 8],
}

ioctl_iow_nr!(
    KVM_SET_SIGNAL_MASK,
    KVMIO,
    0x8b,
    kvm_bindings::kvm_signal_mask
);

/// What a look at an exit decided.
enum Next {
    Enter,
    /// The machine cannot go on; why, for people.
    Stop(String),
    /// KVM could not emulate an instruction.
    RepairEmulation,
}

impl Vcpu {
    /// Lets only [`Gate::KICK`] interrupt the guest. The thread that runs this vCPU must block it.
    pub(super) fn let_kicks_through(&self) -> Result<(), kvm_ioctls::Error> {
        let mask = SignalMask {
            length_bytes: 8,
            signals: (!(1_u64 << (Gate::KICK - 1))).to_le_bytes(),
        };
        // SAFETY: KVM reads as many bytes as the structure says that follow its length.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_SET_SIGNAL_MASK(), &mask) };
        if result < 0 {
            return Err(kvm_ioctls::Error::last());
        }
        Ok(())
    }

    /// Enters the guest again and again. Where the gate is closed, `stand` gets the vCPU with no exit under way, and gives it back to
    /// go on. Returns when it does not, and when this vCPU can never be entered again, after it said why.
    pub(super) fn run(mut self, stand: impl Fn(Self) -> Option<Self>) {
        loop {
            let next = match self.step() {
                Next::RepairEmulation => self.repair_emulation(),
                next => next,
            };
            if let Next::Stop(reason) = next {
                return self.notifier.notify(Notice::GuestFault(reason));
            }
            if self.gate.is_closed() {
                self.complete_exit();
                match stand(self) {
                    Some(vcpu) => self = vcpu,
                    None => return,
                }
            }
        }
    }

    /// KVM finishes an instruction that needed a device when the guest is entered next. With this flag it does, and comes back before
    /// the next instruction (KVM API, "immediate_exit").
    fn complete_exit(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        // Comes back with EINTR, which says that it did as it was told.
        let _ = self.fd.run();
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Puts the vector registers of a saved vCPU in place.
    pub(super) fn set_extended(fd: &VcpuFd, state: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
        // SAFETY: a vCPU here has no state beyond the 4096 bytes of the structure: nobody asks the host's kernel for dynamic ones
        // (arch_prctl(2), ARCH_REQ_XCOMP_GUEST_PERM).
        unsafe { fd.set_xsave(state) }
    }

    fn step(&mut self) -> Next {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                self.buses.pio.read(PioAddress(port), data);
                Next::Enter
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.buses.pio.write(PioAddress(port), data);
                Next::Enter
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.buses.mmio.read(MmioAddress(address), data);
                Next::Enter
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.buses.mmio.write(MmioAddress(address), data);
                Next::Enter
            }
            Ok(VcpuExit::InternalError) => Next::RepairEmulation,
            Ok(VcpuExit::Shutdown) => {
                Next::Stop("the processor shut down after a triple fault".to_owned())
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => Next::Stop(format!(
                "the host's processor {cpu} refused to enter the guest (reason {reason:#x})"
            )),
            Ok(VcpuExit::Intr | VcpuExit::Hlt) => Next::Enter,
            Ok(exit) => Next::Stop(format!("KVM left the guest unexpectedly: {exit:?}")),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => Next::Enter,
            Err(error) => Next::Stop(format!("KVM cannot run the guest: {error}")),
        }
    }

    /// Does what a processor would have done for the instructions that some hosts cannot emulate in the guest's kernel
    /// ([`Quirk`](super::host::Quirk): `NoInt3`, `NoFwait`, `NoXsave`); anything else ends the machine.
    fn repair_emulation(&mut self) -> Next {
        let (suberror, instruction) = self.failed_instruction();
        let regs = match self.fd.get_regs() {
            Ok(regs) => regs,
            Err(error) => {
                return Next::Stop(format!("KVM cannot read the guest's registers: {error}"));
            }
        };
        if suberror != KVM_INTERNAL_ERROR_EMULATION {
            return Next::Stop(format!(
                "KVM failed inside (suberror {suberror}) at {:#x}",
                regs.rip
            ));
        }
        let repaired = match instruction.first() {
            Some(&OPCODE_INT3) => self.deliver_breakpoint(&regs),
            Some(&OPCODE_FWAIT) => self.step_over(&regs, 1),
            // In a process it is the process's own affair.
            _ if regs.rip < USER_SPACE_END => self.raise(INVALID_OPCODE_VECTOR, None),
            _ if let Some(instruction) = Xsave::decode(&instruction) => {
                self.execute(instruction, &regs)
            }
            _ => {
                let bytes: Vec<String> = instruction
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                let bytes = if bytes.is_empty() {
                    "unknown".to_owned()
                } else {
                    bytes.join(" ")
                };
                return Next::Stop(format!(
                    "KVM cannot emulate the instruction at {:#x} (bytes {bytes})",
                    regs.rip
                ));
            }
        };
        match repaired {
            Ok(()) => Next::Enter,
            Err(error) => Next::Stop(format!(
                "KVM refuses the registers after a repair at {:#x}: {error}",
                regs.rip
            )),
        }
    }

    /// The kind of internal error, and the bytes of the instruction where KVM tells them.
    fn failed_instruction(&mut self) -> (u32, Vec<u8>) {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which this member of the union is the valid one; all
        // of its fields are integers.
        let failure = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.emulation_failure };
        if failure.suberror != KVM_INTERNAL_ERROR_EMULATION
            || failure.flags & FLAG_INSTRUCTION_BYTES == 0
        {
            return (failure.suberror, Vec::new());
        }
        // SAFETY: the flag says that size and bytes are there; the union has no other member.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
        (failure.suberror, instruction.insn_bytes[..size].to_vec())
    }

    /// #BP is a trap: the frame's instruction pointer is behind the `int3` (Intel SDM 3A, section 6.15).
    fn deliver_breakpoint(&self, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
        self.step_over(regs, 1)?;
        self.raise(BREAKPOINT_VECTOR, None)
    }

    /// Does what the instruction does, or lets the guest take the fault that it ends in.
    fn execute(&self, instruction: Xsave, regs: &kvm_regs) -> Result<(), kvm_ioctls::Error> {
        match instruction.execute(&self.fd, &self.memory, regs)? {
            Ok(regs) => self.step_over(&regs, instruction.length_bytes()),
            Err(Fault::GeneralProtection) => self.raise(GENERAL_PROTECTION_VECTOR, Some(0)),
            Err(Fault::Page {
                address,
                error_code,
            }) => {
                let mut special = self.fd.get_sregs()?;
                special.cr2 = address;
                self.fd.set_sregs(&special)?;
                self.raise(PAGE_FAULT_VECTOR, Some(error_code))
            }
        }
    }

    /// Lets the guest take an exception when it is entered next.
    fn raise(&self, vector: u8, error_code: Option<u32>) -> Result<(), kvm_ioctls::Error> {
        let mut events = self.fd.get_vcpu_events()?;
        events.exception.injected = 1;
        events.exception.nr = vector;
        events.exception.has_error_code = u8::from(error_code.is_some());
        events.exception.error_code = error_code.unwrap_or_default();
        self.fd.set_vcpu_events(&events)
    }

    fn step_over(&self, regs: &kvm_regs, length_bytes: u64) -> Result<(), kvm_ioctls::Error> {
        self.fd.set_regs(&kvm_regs {
            rip: regs.rip.wrapping_add(length_bytes),
            ..*regs
        })
    }
}
