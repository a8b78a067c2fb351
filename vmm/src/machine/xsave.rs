//! `xsave`, `xrstor` and `xgetbv` for a guest whose KVM emulates its kernel and lacks them
//! ([`Quirk::NoXsave`](super::host::Quirk)). Intel SDM 1, chapter 13, says what they do.
//!
//! Such a host runs the guest's processes natively, with all of the processor's vector registers, so their kernel must be able to
//! switch them. KVM gives and takes a vCPU's in the standard format of `xsave`: what is left to do is to heed the mask and to find the
//! guest's memory. Only the forms that Linux uses are known: 64 bits wide, the area at `rdi`.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;
use std::sync::LazyLock;

use devices::virtio::DeviceMemory;
use kvm_bindings::{kvm_regs, kvm_sregs, kvm_xsave};
use kvm_ioctls::{Error, VcpuFd};
use vm_memory::Bytes;

use super::arch::paging::{Access, Fault, translate};
use super::shape::PAGE_BYTES;
use super::vcpu::Vcpu;

/// An instruction that is done here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Xsave {
    /// `xgetbv`
    ReadControl,
    /// `xsave64 [rdi]`
    Save,
    /// `xrstor64 [rdi]`
    Restore,
}

/// Vector registers as `xsave` writes them.
type Area = [u8; AREA_BYTES];

/// Of `struct kvm_xsave`. Larger components exist and must be asked for (arch_prctl(2), `ARCH_REQ_XCOMP_GUEST_PERM`); nobody does.
const AREA_BYTES: usize = 4096;
const ALIGNMENT_BYTES: u64 = 64;

const X87: u32 = 0;
const SSE: u32 = 1;
/// SSE and AVX: a mask with one of them means MXCSR, too.
const MXCSR_MASK: u64 = 0b110;
const MXCSR: Range<usize> = 24..32;
const XMM: Range<usize> = 160..416;
const HEADER: Range<usize> = 512..576;
/// The bits of the components that are not in their initial state.
const PRESENT: Range<usize> = 512..520;
/// 0 in the standard format.
const MUST_BE_ZERO: Range<usize> = 520..576;

const LEAF_EXTENDED_STATES: u32 = 0xd;

/// Where the components from the third on lie, as the processor says.
static EXTENDED: LazyLock<[Range<usize>; 64]> = LazyLock::new(|| {
    std::array::from_fn(|component| {
        let leaf = __cpuid_count(
            LEAF_EXTENDED_STATES,
            u32::try_from(component).unwrap_or_default(),
        );
        let (start, length) = (leaf.ebx as usize, leaf.eax as usize);
        match start.checked_add(length) {
            Some(end) if component > 1 && start >= HEADER.end && end <= AREA_BYTES => start..end,
            _ => 0..0,
        }
    })
});

impl Xsave {
    /// The one that starts with these bytes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        [
            (&[0x0f, 0x01, 0xd0][..], Self::ReadControl),
            (&[0x48, 0x0f, 0xae, 0x27], Self::Save),
            (&[0x48, 0x0f, 0xae, 0x2f], Self::Restore),
        ]
        .into_iter()
        .find_map(|(opcode, instruction)| bytes.starts_with(opcode).then_some(instruction))
    }

    /// How long it is.
    pub(super) fn length_bytes(self) -> u64 {
        match self {
            Self::ReadControl => 3,
            Self::Save | Self::Restore => 4,
        }
    }

    /// Does it, and gives the general registers after it but for the instruction pointer, or the fault that it ends in.
    ///
    /// # Errors
    ///
    /// What KVM refused.
    pub(super) fn execute(
        self,
        vcpu: &VcpuFd,
        memory: &DeviceMemory,
        regs: &kvm_regs,
    ) -> Result<Result<kvm_regs, Fault>, Error> {
        let enabled = vcpu.get_xcrs()?.xcrs[0].value;
        let mask = (regs.rdx << 32 | regs.rax & u64::from(u32::MAX)) & enabled;
        let place = |special| Place {
            memory,
            special,
            address: regs.rdi,
        };
        Ok(match self {
            Self::ReadControl if regs.rcx & u64::from(u32::MAX) == 0 => Ok(kvm_regs {
                rax: enabled & u64::from(u32::MAX),
                rdx: enabled >> 32,
                ..*regs
            }),
            Self::ReadControl => Err(Fault::GeneralProtection),
            Self::Save => {
                let registers = bytes_of(&vcpu.get_xsave()?);
                let place = place(vcpu.get_sregs()?);
                let length_bytes = length_bytes(mask);
                place.read(length_bytes).and_then(|mut area| {
                    save(&registers, mask, &mut area);
                    place.write(&area[..length_bytes])?;
                    Ok(*regs)
                })
            }
            Self::Restore => {
                let mut registers = bytes_of(&vcpu.get_xsave()?);
                let place = place(vcpu.get_sregs()?);
                match place
                    .read(length_bytes(mask))
                    .and_then(|area| restore(&area, mask, enabled, &mut registers))
                {
                    // What KVM refuses is a reserved bit of MXCSR.
                    Ok(()) => Vcpu::set_extended(vcpu, &from_bytes(&registers))
                        .map(|()| *regs)
                        .map_err(|_| Fault::GeneralProtection),
                    Err(fault) => Err(fault),
                }
            }
        })
    }
}

/// What `xsave` with this mask writes over `area`.
fn save(registers: &Area, mask: u64, area: &mut Area) {
    for range in components(mask).flat_map(ranges) {
        area[range.clone()].copy_from_slice(&registers[range]);
    }
    if mask & MXCSR_MASK != 0 {
        area[MXCSR].copy_from_slice(&registers[MXCSR]);
    }
    let present = present(area) & !mask | present(registers) & mask;
    area[PRESENT].copy_from_slice(&present.to_le_bytes());
}

/// What `xrstor` with this mask makes of `registers`, and of what KVM takes for them.
fn restore(area: &Area, mask: u64, enabled: u64, registers: &mut Area) -> Result<(), Fault> {
    let given = present(area);
    if given & !enabled != 0 || area[MUST_BE_ZERO].iter().any(|byte| *byte != 0) {
        return Err(Fault::GeneralProtection);
    }
    for range in components(mask & given).flat_map(ranges) {
        registers[range.clone()].copy_from_slice(&area[range]);
    }
    // What is not given gets its initial state; KVM does that by itself for a bit that is not set.
    let mut present = present(registers) & !mask | given & mask;
    if mask & MXCSR_MASK != 0 {
        // Comes from the area even where SSE does not, and KVM takes it only together with SSE.
        registers[MXCSR].copy_from_slice(&area[MXCSR]);
        if present & 1 << SSE == 0 {
            registers[XMM].fill(0);
            present |= 1 << SSE;
        }
    }
    registers[PRESENT].copy_from_slice(&present.to_le_bytes());
    Ok(())
}

fn present(area: &Area) -> u64 {
    let mut bits = [0; 8];
    bits.copy_from_slice(&area[PRESENT]);
    u64::from_le_bytes(bits)
}

fn components(mask: u64) -> impl Iterator<Item = u32> {
    (0..u64::BITS).filter(move |component| mask & 1 << component != 0)
}

/// Where a component lies in an area. MXCSR is nobody's alone.
fn ranges(component: u32) -> [Range<usize>; 2] {
    match component {
        X87 => [0..24, 32..160],
        SSE => [XMM, 0..0],
        _ => [EXTENDED[component as usize].clone(), 0..0],
    }
}

/// As much of an area as an instruction with this mask can touch.
fn length_bytes(mask: u64) -> usize {
    components(mask)
        .flat_map(ranges)
        .map(|range| range.end)
        .fold(HEADER.end, usize::max)
}

/// An area in the guest's memory.
struct Place<'a> {
    memory: &'a DeviceMemory,
    special: kvm_sregs,
    address: u64,
}

impl Place<'_> {
    /// Its first bytes, zeros behind them.
    fn read(&self, length_bytes: usize) -> Result<Area, Fault> {
        let mut area = [0; AREA_BYTES];
        self.each_page(length_bytes, Access::Read, |address, range| {
            self.memory.read_slice(&mut area[range], address)
        })?;
        Ok(area)
    }

    /// Nothing is written unless all of it can be.
    fn write(&self, bytes: &[u8]) -> Result<(), Fault> {
        self.each_page(bytes.len(), Access::Write, |_, _| Ok(()))?;
        self.each_page(bytes.len(), Access::Write, |address, range| {
            self.memory.write_slice(&bytes[range], address)
        })
    }

    fn each_page(
        &self,
        length_bytes: usize,
        access: Access,
        mut visit: impl FnMut(
            vm_memory::GuestAddress,
            Range<usize>,
        ) -> Result<(), vm_memory::GuestMemoryError>,
    ) -> Result<(), Fault> {
        if !self.address.is_multiple_of(ALIGNMENT_BYTES) {
            return Err(Fault::GeneralProtection);
        }
        let mut done_bytes = 0;
        while done_bytes < length_bytes {
            let address = self.address.wrapping_add(done_bytes as u64);
            let rest_of_page =
                usize::try_from(PAGE_BYTES - address % PAGE_BYTES).unwrap_or(usize::MAX);
            let range = done_bytes..length_bytes.min(done_bytes.saturating_add(rest_of_page));
            let place = translate(self.memory, &self.special, address, access)?;
            done_bytes = range.end;
            // A page that is no memory: a processor would read ones there and write nowhere; no kernel keeps registers in it.
            visit(place, range).map_err(|_| Fault::GeneralProtection)?;
        }
        Ok(())
    }
}

fn bytes_of(registers: &kvm_xsave) -> Area {
    let mut area = [0; AREA_BYTES];
    for (bytes, word) in area.chunks_exact_mut(4).zip(registers.region) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    area
}

fn from_bytes(area: &Area) -> kvm_xsave {
    let mut registers = kvm_xsave::default();
    for (word, bytes) in registers.region.iter_mut().zip(area.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    registers
}

#[cfg(test)]
mod tests {
    use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
    use kvm_ioctls::Kvm;
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    use super::*;

    const X87_AND_SSE: u64 = 0b11;
    /// As on every processor: x87's control word and MXCSR after a reset.
    const FCW: Range<usize> = 0..2;
    const INITIAL_MXCSR: [u8; 4] = 0x1f80_u32.to_le_bytes();

    fn filled(byte: u8, present: u64) -> Area {
        let mut area = [byte; AREA_BYTES];
        area[HEADER].fill(0);
        area[PRESENT].copy_from_slice(&present.to_le_bytes());
        area
    }

    #[test]
    fn only_the_forms_that_linux_uses_are_known() {
        assert_eq!(
            Xsave::decode(&[0x48, 0x0f, 0xae, 0x27, 0x90]),
            Some(Xsave::Save)
        );
        assert_eq!(
            Xsave::decode(&[0x48, 0x0f, 0xae, 0x2f]),
            Some(Xsave::Restore)
        );
        assert_eq!(Xsave::decode(&[0x0f, 0x01, 0xd0]), Some(Xsave::ReadControl));
        // xsaves64 [rdi], xsave [rdi], xsave64 [rsi], and half of one.
        for other in [
            &[0x48, 0x0f, 0xc7, 0x2f][..],
            &[0x0f, 0xae, 0x27],
            &[0x48, 0x0f, 0xae, 0x26],
            &[0x48, 0x0f, 0xae],
        ] {
            assert_eq!(Xsave::decode(other), None);
        }
    }

    #[test]
    fn saving_writes_what_the_mask_names_and_leaves_the_rest() {
        let mut area = filled(0xee, 0b100);
        save(&filled(0x11, X87_AND_SSE), 1 << SSE, &mut area);

        assert!(area[XMM].iter().all(|byte| *byte == 0x11));
        assert!(area[MXCSR].iter().all(|byte| *byte == 0x11));
        assert!(
            area[0..24]
                .iter()
                .chain(&area[32..160])
                .all(|byte| *byte == 0xee)
        );
        assert_eq!(present(&area), 0b110);
        assert!(area[HEADER.end..].iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn a_component_in_its_initial_state_is_said_to_be() {
        let mut area = filled(0xee, X87_AND_SSE);
        save(&filled(0x11, 1 << SSE), X87_AND_SSE, &mut area);
        assert_eq!(present(&area), 1 << SSE);
    }

    #[test]
    fn restoring_takes_what_is_there_and_resets_what_is_not() {
        let mut registers = filled(0x11, X87_AND_SSE);
        let area = filled(0x22, 1 << X87);

        assert_eq!(
            restore(&area, X87_AND_SSE, X87_AND_SSE, &mut registers),
            Ok(())
        );

        assert!(
            registers[0..24]
                .iter()
                .chain(&registers[32..160])
                .all(|byte| *byte == 0x22)
        );
        assert!(registers[XMM].iter().all(|byte| *byte == 0));
        // From the area, although SSE is not.
        assert!(registers[MXCSR].iter().all(|byte| *byte == 0x22));
    }

    #[test]
    fn a_header_that_means_nothing_is_a_general_protection_fault() {
        let before = filled(0x11, X87_AND_SSE);
        let mut registers = before;
        let disabled = filled(0x22, 0b100);
        let mut compacted = filled(0x22, 0b11);
        compacted[527] = 0x80;
        for area in [disabled, compacted] {
            let done = restore(&area, X87_AND_SSE, X87_AND_SSE, &mut registers);
            assert_eq!(done, Err(Fault::GeneralProtection));
            assert_eq!(registers, before);
        }
    }

    /// A vCPU with these tables, and a megabyte of memory that is mapped at its own address, all but the last page.
    struct Guest {
        vcpu: VcpuFd,
        memory: DeviceMemory,
        _vm: kvm_ioctls::VmFd,
    }

    const MEMORY_BYTES: usize = 1 << 20;
    const MISSING_PAGE: u64 = MEMORY_BYTES as u64 - PAGE_BYTES;

    impl Guest {
        fn new() -> Self {
            let kvm = Kvm::new().unwrap();
            let vm = kvm.create_vm().unwrap();
            let vcpu = vm.create_vcpu(0).unwrap();
            vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap())
                .unwrap();
            let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap();
            let put =
                |address: u64, entry: u64| memory.write_obj(entry, GuestAddress(address)).unwrap();
            put(0x1000, 0x2003);
            put(0x2000, 0x3003);
            put(0x3000, 0x4003);
            for page in 0..MISSING_PAGE / PAGE_BYTES {
                put(0x4000 + 8 * page, (page * PAGE_BYTES) | 0b11);
            }
            let mut special = vcpu.get_sregs().unwrap();
            special.cr3 = 0x1000;
            vcpu.set_sregs(&special).unwrap();
            // A new vCPU has x87 alone.
            let mut control = vcpu.get_xcrs().unwrap();
            control.nr_xcrs = 1;
            control.xcrs[0].value = X87_AND_SSE;
            vcpu.set_xcrs(&control).unwrap();
            Self {
                vcpu,
                memory,
                _vm: vm,
            }
        }

        fn execute(&self, instruction: Xsave, mask: u64, address: u64) -> Result<kvm_regs, Fault> {
            let regs = kvm_regs {
                rax: mask & u64::from(u32::MAX),
                rdx: mask >> 32,
                rdi: address,
                ..Default::default()
            };
            instruction
                .execute(&self.vcpu, &self.memory, &regs)
                .unwrap()
        }

        fn bytes(&self, address: u64) -> Area {
            let mut area = [0; AREA_BYTES];
            self.memory
                .read_slice(&mut area, GuestAddress(address))
                .unwrap();
            area
        }
    }

    #[test]
    fn what_was_saved_comes_back_over_the_end_of_a_page() {
        let guest = Guest::new();
        let mut registers = bytes_of(&guest.vcpu.get_xsave().unwrap());
        registers[XMM].copy_from_slice(&std::array::from_fn::<_, 256, _>(|index| {
            index.to_le_bytes()[0]
        }));
        registers[PRESENT].copy_from_slice(&X87_AND_SSE.to_le_bytes());
        Vcpu::set_extended(&guest.vcpu, &from_bytes(&registers)).unwrap();
        let address = 0x1_0f40;

        guest.execute(Xsave::Save, u64::MAX, address).unwrap();
        let saved = guest.bytes(address);
        assert_eq!(saved[XMM], registers[XMM]);
        // An area that says that nothing is there resets all.
        guest
            .memory
            .write_slice(&[0; AREA_BYTES], GuestAddress(0x2_0000))
            .unwrap();
        guest
            .memory
            .write_slice(&INITIAL_MXCSR, GuestAddress(0x2_0018))
            .unwrap();
        guest.execute(Xsave::Restore, u64::MAX, 0x2_0000).unwrap();
        let reset = bytes_of(&guest.vcpu.get_xsave().unwrap());
        assert!(reset[XMM].iter().all(|byte| *byte == 0));
        assert_eq!(reset[FCW], 0x37f_u16.to_le_bytes());
        guest.execute(Xsave::Restore, u64::MAX, address).unwrap();
        assert_eq!(
            bytes_of(&guest.vcpu.get_xsave().unwrap())[XMM],
            registers[XMM]
        );
    }

    #[test]
    fn an_area_that_is_not_all_there_is_a_page_fault_and_nothing_is_written() {
        let guest = Guest::new();
        let address = MISSING_PAGE - 64;
        let fault = |error_code| {
            Err(Fault::Page {
                address: MISSING_PAGE,
                error_code,
            })
        };

        assert_eq!(
            guest.execute(Xsave::Save, 0b11, address).map(drop),
            fault(0)
        );
        assert_eq!(
            guest.execute(Xsave::Restore, 0b11, address).map(drop),
            fault(0)
        );
        let mut rest = [1; 64];
        guest
            .memory
            .read_slice(&mut rest, GuestAddress(address))
            .unwrap();
        assert_eq!(rest, [0; 64]);
    }

    #[test]
    fn what_a_processor_refuses_is_a_general_protection_fault() {
        let guest = Guest::new();
        let refused = Err(Fault::GeneralProtection);
        // Not aligned, no address at all, and a reserved bit of MXCSR.
        assert_eq!(
            guest.execute(Xsave::Save, 0b11, 0x1_0020).map(drop),
            refused
        );
        assert_eq!(guest.execute(Xsave::Save, 0b11, 1 << 50).map(drop), refused);
        guest
            .memory
            .write_slice(&[0xff; 4], GuestAddress(0x2_0018))
            .unwrap();
        assert_eq!(
            guest.execute(Xsave::Restore, 0b11, 0x2_0000).map(drop),
            refused
        );
        let second = kvm_regs {
            rcx: 2,
            ..Default::default()
        };
        let read = Xsave::ReadControl.execute(&guest.vcpu, &guest.memory, &second);
        assert_eq!(read.unwrap().map(drop), refused);
    }

    #[test]
    fn the_control_register_is_read() {
        let guest = Guest::new();
        let regs = guest.execute(Xsave::ReadControl, u64::MAX, 0).unwrap();
        assert_eq!((regs.rdx, regs.rax), (0, X87_AND_SSE));
    }

    proptest! {
        /// Whatever a guest writes: each component is either the area's or the old one, and nothing panics.
        #[test]
        fn a_guests_area_changes_what_its_mask_names_only(
            bytes in proptest::collection::vec(any::<u8>(), HEADER.end),
            clean in any::<bool>(),
            mask in any::<u64>(),
            enabled in any::<u64>(),
        ) {
            let mut area = [0; AREA_BYTES];
            area[..HEADER.end].copy_from_slice(&bytes);
            if clean {
                area[MUST_BE_ZERO].fill(0);
                let given = present(&area) & enabled;
                area[PRESENT].copy_from_slice(&given.to_le_bytes());
            }
            let before = filled(0x11, u64::MAX);
            let mut registers = before;
            let done = restore(&area, mask & enabled, enabled, &mut registers);
            prop_assert_eq!(done.is_ok(), clean || {
                present(&area) & !enabled == 0 && area[MUST_BE_ZERO].iter().all(|byte| *byte == 0)
            });
            if mask & enabled & 1 == 0 {
                prop_assert_eq!(&registers[0..24], &before[0..24]);
            }
            if mask & enabled & MXCSR_MASK == 0 {
                prop_assert_eq!(&registers[MXCSR], &before[MXCSR]);
                prop_assert_eq!(&registers[XMM], &before[XMM]);
            }
        }
    }
}
