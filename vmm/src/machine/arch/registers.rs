//! The state in which a vCPU executes the kernel's first instruction.
//!
//! Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol": paging on with the kernel, the zero page and the command
//! line mapped one to one, flat segments `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), interrupts off, RSI at the zero page.

use devices::virtio::DeviceMemory;
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs, kvm_xcrs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::layout::{
    GDT_ADDRESS, PAGE_DIRECTORY_ADDRESS, PDPT_ADDRESS, PML4_ADDRESS, ZERO_PAGE_ADDRESS,
};

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Descriptors as the processor reads them: unused, unused, 64-bit code, data, task state (Intel SDM 3A, section 3.4.5).
const GDT: [u64; 5] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x008f_8b00_0000_ffff,
];

/// CR0: protection enabled, extension type, paging.
const CR0_PE_ET_PG: u64 = 1 | 1 << 4 | 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;

/// Page table entry: present and writable; with bit 7 a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const ENTRIES_PER_TABLE: u64 = 512;

/// RFLAGS with only its always-one bit.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// IA32_MISC_ENABLE, bit 0: fast strings.
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// IA32_MTRR_DEF_TYPE: enabled, write back.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Writes the GDT and the page tables that map the first GiB to itself.
///
/// # Errors
/// When the RAM does not reach that far.
pub(in crate::machine) fn write_tables(memory: &DeviceMemory) -> Result<(), GuestMemoryError> {
    for (index, descriptor) in (0u64..).zip(GDT) {
        memory.write_obj(descriptor, GuestAddress(GDT_ADDRESS + index * 8))?;
    }
    memory.write_obj(PDPT_ADDRESS | PRESENT_WRITABLE, GuestAddress(PML4_ADDRESS))?;
    memory.write_obj(
        PAGE_DIRECTORY_ADDRESS | PRESENT_WRITABLE,
        GuestAddress(PDPT_ADDRESS),
    )?;
    let directory: Vec<u8> = (0..ENTRIES_PER_TABLE)
        .flat_map(|index| {
            (index * LARGE_PAGE_BYTES + (PRESENT_WRITABLE | LARGE_PAGE)).to_le_bytes()
        })
        .collect();
    memory.write_slice(&directory, GuestAddress(PAGE_DIRECTORY_ADDRESS))
}

/// The special registers of the boot processor; `initial` is what KVM gave the vCPU.
pub(in crate::machine) fn special_registers(initial: kvm_sregs) -> kvm_sregs {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 0x3,
        db: 1,
        ..flat
    };
    let task = kvm_segment {
        selector: TASK_SELECTOR,
        type_: 0xb,
        s: 0,
        ..flat
    };
    let mut registers = initial;
    (registers.cs, registers.tr) = (code, task);
    (
        registers.ds,
        registers.es,
        registers.fs,
        registers.gs,
        registers.ss,
    ) = (data, data, data, data, data);
    registers.gdt.base = GDT_ADDRESS;
    registers.gdt.limit = 5 * 8 - 1;
    registers.idt.base = 0;
    registers.idt.limit = 0;
    registers.cr0 = CR0_PE_ET_PG;
    registers.cr3 = PML4_ADDRESS;
    registers.cr4 = CR4_PAE;
    registers.efer = EFER_LME_LMA;
    registers
}

/// The general registers of the boot processor.
pub(in crate::machine) fn general_registers(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsi: ZERO_PAGE_ADDRESS,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    }
}

/// XCR0 of every vCPU with everything enabled, as firmware may leave it; the kernel sets it again before it uses it.
///
/// A KVM on a processor that QEMU emulates (7.2) is not told when a guest sets XCR0. If it already holds what the guest will
/// write, KVM's idea of it, and with it the guest's AVX, is right there, too.
pub(in crate::machine) fn extended_control(states: u64) -> kvm_xcrs {
    let mut registers = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    registers.xcrs[0].value = states;
    registers
}

/// The model-specific registers of every vCPU.
pub(in crate::machine) fn msrs() -> Option<Msrs> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    Msrs::from_entries(&[
        entry(MSR_MISC_ENABLE, 1),
        entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
    ])
    .ok()
}
