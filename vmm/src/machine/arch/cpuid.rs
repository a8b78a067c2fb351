//! What the guest's CPUID instruction answers: what KVM supports, with the machine's own topology in it.
//!
//! Intel SDM 2A, CPUID; AMD APM 3, appendix E. One package, one thread a core, APIC ids from 0.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use crate::machine::shape::VcpuCount;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_PERFORMANCE_COUNTERS: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_EXTENDED_STATES: u32 = 0xd;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1 ECX: the TSC-deadline timer, which KVM reports by a capability instead, and "runs under a hypervisor".
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the package has more than one logical processor.
const EDX_HTT: u32 = 1 << 28;

const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The answers for the vCPU with this APIC id.
pub(in crate::machine) fn for_vcpu(
    supported: &CpuId,
    apic_id: u8,
    vcpus: VcpuCount,
    tsc_deadline: bool,
) -> CpuId {
    let mut cpuid = supported.clone();
    for entry in cpuid.as_mut_slice() {
        adjust(
            entry,
            u32::from(apic_id),
            u32::from(vcpus.get()),
            tsc_deadline,
        );
    }
    cpuid
}

fn adjust(entry: &mut kvm_cpuid_entry2, apic_id: u32, vcpus: u32, tsc_deadline: bool) {
    let id_bits = vcpus.next_power_of_two().trailing_zeros();
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = entry.ebx & 0x0000_ffff | apic_id << 24 | vcpus << 16;
            entry.ecx |= ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
            entry.edx = if vcpus > 1 {
                entry.edx | EDX_HTT
            } else {
                entry.edx & !EDX_HTT
            };
        }
        LEAF_CACHES | LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            // Bits 25 to 14: how many threads share this cache, less one. All of the package for level 3, else one.
            let level = entry.eax >> 5 & 0x7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
            if entry.function == LEAF_CACHES {
                entry.eax |= (vcpus.next_power_of_two() - 1) << 26;
            }
        }
        // The kernel would set up counters that the guest does not get.
        LEAF_PERFORMANCE_COUNTERS => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => {
            let (shift, processors, level) = match entry.index {
                0 => (0, 1, LEVEL_THREAD),
                1 => (id_bits, vcpus, LEVEL_CORE),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = processors;
            entry.ecx = entry.index & 0xff | level << 8;
            entry.edx = apic_id;
        }
        LEAF_AMD_SIZES => entry.ecx = id_bits << 12 | (vcpus - 1),
        LEAF_AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// The register states that XSAVE may be told to switch: leaf 0xd, sub-leaf 0, EAX and EDX.
pub(in crate::machine) fn extended_states(cpuid: &CpuId) -> u64 {
    cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == LEAF_EXTENDED_STATES && entry.index == 0)
        .map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_reads_its_own_id_and_the_number_of_all() {
        let supported = CpuId::from_entries(&[leaf(1, 0), leaf(0xb, 1)]).unwrap();
        let cpuid = for_vcpu(&supported, 2, VcpuCount::new(3).unwrap(), true);
        let entries = cpuid.as_slice();
        assert_eq!((entries[0].ebx >> 24, entries[0].ebx >> 16 & 0xff), (2, 3));
        assert_eq!((entries[1].eax, entries[1].ebx, entries[1].edx), (2, 3, 2));
    }

    #[test]
    fn a_single_vcpu_has_no_siblings() {
        let mut features = leaf(1, 0);
        features.edx = EDX_HTT;
        let supported = CpuId::from_entries(&[features]).unwrap();
        let cpuid = for_vcpu(&supported, 0, VcpuCount::new(1).unwrap(), false);
        assert_eq!(cpuid.as_slice()[0].edx & EDX_HTT, 0);
        assert_eq!(cpuid.as_slice()[0].ecx, ECX_HYPERVISOR);
    }

    #[test]
    fn extended_states_are_both_halves_of_the_first_sub_leaf() {
        let mut states = leaf(0xd, 0);
        (states.eax, states.edx) = (7, 1);
        let cpuid = CpuId::from_entries(&[leaf(0xd, 1), states]).unwrap();

        assert_eq!(extended_states(&cpuid), 0x1_0000_0007);
    }
}
