//! The probe: a scratch VM that executes one doubtful instruction at a time.
//!
//! Each case starts at CPL 0 (`syscall`: at CPL 3) in 64-bit mode. It succeeds by writing to [`PORT_DONE`]; an exception lands in
//! a handler that writes its vector to [`PORT_EXCEPTION`]; a KVM that cannot emulate the instruction ends the run with an
//! error. All of it takes about two milliseconds, in a child process, so that a KVM that never comes
//! back from one of them can be left behind.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::fd::OwnedFd;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::Quirk;
use crate::process;

/// A host that cannot be asked.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// It is something else.
    #[error("/dev/kvm is not the KVM device")]
    NotKvm,
    /// A step of the scratch VM failed.
    #[error("KVM refuses the probe at {step}")]
    Kvm {
        /// Which one.
        step: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The scratch memory could not be made.
    #[error("the host has no memory for the KVM probe")]
    Memory,
    /// The process that asks could not be made.
    #[error("cannot start the KVM probe")]
    Start(#[source] std::io::Error),
    /// The process that asks cannot be talked to.
    #[error("cannot listen to the KVM probe")]
    Listen(#[source] std::io::Error),
    /// It ended without an answer.
    #[error("the host's KVM did not answer the probe: {0}")]
    NoAnswer(String),
}

const RAM_BYTES: usize = 4 << 20;
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x5000;
const TASK_STATE: u64 = 0x6000;
const IDT: u64 = 0x7000;
const KERNEL_CODE: u64 = 0x1_0000;
const SYSCALL_ENTRY: u64 = 0x1_8000;
const HANDLERS: u64 = 0x2_0000;
const HANDLER_BYTES: u64 = 16;
const KERNEL_STACK_TOP: u64 = 0x8_0000;
/// The only page that CPL 3 may touch.
const USER_CODE: u64 = 0x20_0000;

const VECTORS: u64 = 32;
const BREAKPOINT: u8 = 3;

const PORT_DONE: u16 = 0x81;
const PORT_EXCEPTION: u16 = 0x82;

const KERNEL_CODE_SELECTOR: u16 = 0x10;
const KERNEL_DATA_SELECTOR: u16 = 0x18;
const USER_DATA_SELECTOR: u16 = 0x2b;
const USER_CODE_SELECTOR: u16 = 0x33;
const TASK_SELECTOR: u16 = 0x40;

/// CR4: PAE, OSFXSR, OSXMMEXCPT; with OSXSAVE for `xgetbv`.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
/// CR0: PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// EFER: SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;

const MSR_STAR: u32 = 0xc000_0081;
const MSR_LSTAR: u32 = 0xc000_0082;
const MSR_SYSCALL_MASK: u32 = 0xc000_0084;

/// CPUID leaf 7: EBX bit 9 is ERMS, EDX bit 4 is FSRM.
const LEAF_EXTENDED_FEATURES: u32 = 7;
const EBX_ERMS: u32 = 1 << 9;
const EDX_FSRM: u32 = 1 << 4;

/// A page table entry of the second level that maps 2 MiB.
const LARGE_PAGE: u64 = 1 << 7;

/// Long past what all cases take anywhere.
const HANG_TIMEOUT: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// How a case ended.
#[derive(Debug, PartialEq, Eq)]
enum Landing {
    Done,
    Exception(u8),
    Failed,
}

/// Asks the host. What it lacks comes back.
pub(super) fn probe() -> Result<BTreeSet<Quirk>, ProbeError> {
    // Opened here for the sake of a precise error.
    drop(open_kvm()?);
    let (answer, question) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| ProbeError::Listen(error.into()))?;
    let child = process::fork(|| {
        answer_through(&question);
        0
    })
    .map_err(ProbeError::Start)?;
    drop(question);
    let mut text = String::new();
    let read = if answered_in_time(&answer) {
        std::fs::File::from(answer).read_to_string(&mut text)
    } else {
        rustix::process::kill_process(child.pid(), rustix::process::Signal::KILL)
            .map(|()| 0)
            .map_err(Into::into)
    };
    let status = child.wait().map_err(ProbeError::Listen)?;
    match read
        .ok()
        .and_then(|_| serde_json::from_str::<Answer>(&text).ok())
    {
        Some(Ok(quirks)) => Ok(quirks),
        Some(Err(reason)) => Err(ProbeError::NoAnswer(reason)),
        None => Err(ProbeError::NoAnswer(format!(
            "the probe ended with {status}"
        ))),
    }
}

fn answered_in_time(answer: &OwnedFd) -> bool {
    let mut wait_for = [PollFd::new(answer, PollFlags::IN)];
    matches!(poll(&mut wait_for, Some(&HANG_TIMEOUT)), Ok(ready) if ready > 0)
}

/// Opens `/dev/kvm` and checks that it is what it is called.
///
/// # Errors
///
/// [`ProbeError::Open`], or [`ProbeError::NotKvm`] if it answers otherwise than KVM has since Linux 2.6.22.
pub fn open_kvm() -> Result<Kvm, ProbeError> {
    const API_VERSION: i32 = 12;
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        _ => Err(ProbeError::NotKvm),
    }
}

/// What the child says: the quirks, or why there is no answer.
type Answer = Result<BTreeSet<Quirk>, String>;

fn answer_through(question: &OwnedFd) {
    let answer: Answer = ask().map_err(|error| error.to_string());
    // The answer has far less than the bytes that a pipe takes at once; a parent that is gone needs none.
    let text = serde_json::to_vec(&answer).unwrap_or_default();
    let _ = rustix::io::write(question, &text);
}

fn ask() -> Result<BTreeSet<Quirk>, ProbeError> {
    let mut scratch = Scratch::new()?;
    let mut quirks = BTreeSet::new();
    for (quirk, code) in [
        (Quirk::NoPopcnt, &[0xf3, 0x48, 0x0f, 0xb8, 0xc0][..]),
        (Quirk::NoSmap, &[0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca]),
        (Quirk::NoRdtscp, &[0x0f, 0x01, 0xf9]),
        // mov rsi, SCRATCH; cmpxchg16b [rsi]
        (
            Quirk::NoCx16,
            &[
                0x48, 0xc7, 0xc6, 0x00, 0x00, 0x03, 0x00, 0x48, 0x0f, 0xc7, 0x0e,
            ],
        ),
        (Quirk::NoFwait, &[0x9b]),
    ] {
        if scratch.run_kernel(code, CR4)? != Landing::Done {
            quirks.insert(quirk);
        }
    }
    // xor ecx, ecx; xgetbv. Setting OSXSAVE is refused where there is no XSAVE at all.
    if !matches!(
        scratch.run_kernel(&[0x31, 0xc9, 0x0f, 0x01, 0xd0], CR4 | CR4_OSXSAVE),
        Ok(Landing::Done)
    ) {
        quirks.insert(Quirk::NoXsave);
    }
    if scratch.run_kernel(&[0xcc], CR4)? != Landing::Exception(BREAKPOINT) {
        quirks.insert(Quirk::NoInt3);
    }
    if scratch.run_syscall()? != Landing::Done {
        quirks.insert(Quirk::SyscallFaults);
    }
    quirks.extend(scratch.visible_but_unsupported()?);
    Ok(quirks)
}

struct Scratch {
    vcpu: VcpuFd,
    supported: CpuId,
    /// As KVM made it; each case starts from it.
    initial: kvm_sregs,
    memory: GuestMemoryMmap,
    _vm: VmFd,
}

impl Scratch {
    fn new() -> Result<Self, ProbeError> {
        let failed = |step| move |source| ProbeError::Kvm { step, source };
        let kvm = open_kvm()?;
        let vm = kvm.create_vm().map_err(failed("creating a VM"))?;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)])
            .map_err(|_| ProbeError::Memory)?;
        let host_address = memory
            .get_host_address(GuestAddress(0))
            .map_err(|_| ProbeError::Memory)?;
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM_BYTES as u64,
            userspace_addr: host_address as u64,
        };
        // SAFETY: the range is the mapping behind `memory`, which lives in the same structure as the VM.
        unsafe { vm.set_user_memory_region(slot) }.map_err(failed("adding memory"))?;
        let vcpu = vm.create_vcpu(0).map_err(failed("creating a vCPU"))?;
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("asking for CPUID"))?;
        vcpu.set_cpuid2(&supported)
            .map_err(failed("setting CPUID"))?;
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[
            entry(
                MSR_STAR,
                u64::from(KERNEL_CODE_SELECTOR) << 32 | u64::from(USER_DATA_SELECTOR - 8) << 48,
            ),
            entry(MSR_LSTAR, SYSCALL_ENTRY),
            entry(MSR_SYSCALL_MASK, 1 << 9),
        ])
        .map_err(|_| ProbeError::Memory)?;
        vcpu.set_msrs(&msrs).map_err(failed("setting MSRs"))?;
        let initial = vcpu.get_sregs().map_err(failed("reading registers"))?;
        write_tables(&memory).map_err(|_| ProbeError::Memory)?;
        Ok(Self {
            vcpu,
            supported,
            initial,
            memory,
            _vm: vm,
        })
    }

    /// Runs `code` in kernel mode, then a write to the "done" port.
    fn run_kernel(&mut self, code: &[u8], cr4: u64) -> Result<Landing, ProbeError> {
        self.place(KERNEL_CODE, &[code, &out(PORT_DONE)].concat())?;
        self.run(KERNEL_CODE, 0, cr4)
    }

    /// Runs `syscall` in user mode; its entry point writes to the "done" port.
    fn run_syscall(&mut self) -> Result<Landing, ProbeError> {
        self.place(USER_CODE, &[0x0f, 0x05])?;
        self.place(SYSCALL_ENTRY, &out(PORT_DONE))?;
        self.run(USER_CODE, 3, CR4)
    }

    /// Features that the guest reads from CPUID although KVM does not claim to support them.
    fn visible_but_unsupported(&mut self) -> Result<Vec<Quirk>, ProbeError> {
        // mov eax, 7; xor ecx, ecx; cpuid
        if self.run_kernel(&[0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2], CR4)? != Landing::Done {
            return Ok(Vec::new());
        }
        let seen = self.vcpu.get_regs().map_err(|source| ProbeError::Kvm {
            step: "reading registers",
            source,
        })?;
        let (ebx, edx) = (low(seen.rbx), low(seen.rdx));
        let supported = self
            .supported
            .as_slice()
            .iter()
            .find(|entry| entry.function == LEAF_EXTENDED_FEATURES && entry.index == 0)
            .copied()
            .unwrap_or_default();
        let mut quirks = Vec::new();
        if ebx & !supported.ebx & EBX_ERMS != 0 {
            quirks.push(Quirk::NoErms);
        }
        if edx & !supported.edx & EDX_FSRM != 0 {
            quirks.push(Quirk::NoFsrm);
        }
        Ok(quirks)
    }

    fn place(&self, address: u64, code: &[u8]) -> Result<(), ProbeError> {
        self.memory
            .write_slice(code, GuestAddress(address))
            .map_err(|_| ProbeError::Memory)
    }

    fn run(&mut self, rip: u64, cpl: u8, cr4: u64) -> Result<Landing, ProbeError> {
        let failed = |step| move |source| ProbeError::Kvm { step, source };
        self.vcpu
            .set_sregs(&special_registers(self.initial, cpl, cr4))
            .map_err(failed("setting registers"))?;
        let registers = kvm_regs {
            rip,
            rsp: KERNEL_STACK_TOP,
            rflags: 2,
            ..Default::default()
        };
        self.vcpu
            .set_regs(&registers)
            .map_err(failed("setting registers"))?;
        Ok(match self.vcpu.run() {
            Ok(VcpuExit::IoOut(PORT_DONE, _)) => Landing::Done,
            Ok(VcpuExit::IoOut(PORT_EXCEPTION, data)) => {
                Landing::Exception(data.first().copied().unwrap_or_default())
            }
            _ => Landing::Failed,
        })
    }
}

/// Page tables, descriptor tables, a task state with a kernel stack, and the exception handlers.
fn write_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let put = |address: u64, value: u64| memory.write_obj(value, GuestAddress(address));
    // Present, writable, for user mode; the first 2 MiB page is for the kernel alone.
    put(PML4, PDPT | 0b111)?;
    put(PDPT, PAGE_DIRECTORY | 0b111)?;
    put(PAGE_DIRECTORY, LARGE_PAGE | 0b011)?;
    put(PAGE_DIRECTORY + 8, USER_CODE | LARGE_PAGE | 0b111)?;

    let descriptor = |selector: u16, value: u64| put(GDT + u64::from(selector & !7), value);
    descriptor(KERNEL_CODE_SELECTOR, 0x00af_9b00_0000_ffff)?;
    descriptor(KERNEL_DATA_SELECTOR, 0x00cf_9300_0000_ffff)?;
    descriptor(USER_DATA_SELECTOR, 0x00cf_f300_0000_ffff)?;
    descriptor(USER_CODE_SELECTOR, 0x00af_fb00_0000_ffff)?;
    descriptor(TASK_SELECTOR, 0x67 | TASK_STATE << 16 | 0x89 << 40)?;
    put(TASK_STATE + 4, KERNEL_STACK_TOP)?;

    for vector in 0..VECTORS {
        let handler = HANDLERS + vector * HANDLER_BYTES;
        // mov al, vector; out PORT_EXCEPTION, al
        let code = [&[0xb0, low_byte(vector)][..], &out(PORT_EXCEPTION)].concat();
        memory.write_slice(&code, GuestAddress(handler))?;
        // Interrupt gate, present, callable from CPL 3 (Intel SDM 3A, section 6.14.1).
        let gate = handler & 0xffff
            | u64::from(KERNEL_CODE_SELECTOR) << 16
            | 0xee00 << 32
            | (handler >> 16 & 0xffff) << 48;
        put(IDT + vector * 16, gate)?;
        put(IDT + vector * 16 + 8, 0)?;
    }
    Ok(())
}

fn special_registers(initial: kvm_sregs, cpl: u8, cr4: u64) -> kvm_sregs {
    let (code_selector, data_selector) = match cpl {
        0 => (KERNEL_CODE_SELECTOR, KERNEL_DATA_SELECTOR),
        _ => (USER_CODE_SELECTOR, USER_DATA_SELECTOR),
    };
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        dpl: cpl,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: code_selector,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: data_selector,
        type_: 0x3,
        db: 1,
        ..flat
    };
    let mut registers = initial;
    registers.cs = code;
    (
        registers.ds,
        registers.es,
        registers.fs,
        registers.gs,
        registers.ss,
    ) = (data, data, data, data, data);
    registers.tr = kvm_segment {
        base: TASK_STATE,
        limit: 0x67,
        selector: TASK_SELECTOR,
        present: 1,
        type_: 0xb,
        ..Default::default()
    };
    registers.gdt.base = GDT;
    registers.gdt.limit = 0x4f;
    registers.idt.base = IDT;
    registers.idt.limit = 0xfff;
    (registers.cr0, registers.cr3, registers.cr4, registers.efer) = (CR0, PML4, cr4, EFER);
    registers
}

/// `out port, al`
fn out(port: u16) -> [u8; 2] {
    [0xe6, low_byte(u64::from(port))]
}

fn low_byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}

fn low(register: u64) -> u32 {
    let [a, b, c, d, ..] = register.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
