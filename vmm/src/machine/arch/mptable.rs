//! The MP table: tells a kernel without ACPI which processors and interrupt lines there are.
//!
//! Intel MultiProcessor Specification 1.4, chapter 4. One floating pointer, then the configuration table with one bus
//! (ISA), one I/O APIC, every pin wired through one to one, and the two local lines.

use zerocopy::{Immutable, IntoBytes};

use super::layout::{IO_APIC_ADDRESS, LOCAL_APIC_ADDRESS, MP_TABLE_ADDRESS};
use crate::machine::shape::VcpuCount;

/// Version of the local and the I/O APIC that KVM emulates.
const APIC_VERSION: u8 = 0x14;
const MP_SPECIFICATION_1_4: u8 = 4;
const IO_APIC_PINS: u8 = 24;
const ISA_BUS_ID: u8 = 0;
/// Destination "all local APICs" of a local interrupt entry (section 4.3.5).
const ALL_LOCAL_APICS: u8 = 0xff;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IO_APIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const INTERRUPT_INT: u8 = 0;
const INTERRUPT_NMI: u8 = 1;
const INTERRUPT_EXTINT: u8 = 3;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

/// Section 4.1.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct FloatingPointer {
    signature: [u8; 4],
    table_address: u32,
    length_16_bytes: u8,
    specification: u8,
    checksum: u8,
    features: [u8; 5],
}

/// Section 4.2.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct TableHeader {
    signature: [u8; 4],
    length_bytes: u16,
    specification: u8,
    checksum: u8,
    oem: [u8; 8],
    product: [u8; 12],
    oem_table: u32,
    oem_table_bytes: u16,
    entries: u16,
    local_apic_address: u32,
    extended: [u8; 4],
}

/// Bytes of the floating pointer, which the table follows.
const FLOATING_POINTER_BYTES: u32 = 16;

/// Both structures as the bytes that stand at [`MP_TABLE_ADDRESS`].
pub(in crate::machine) fn mp_table(vcpus: VcpuCount) -> Vec<u8> {
    let io_apic_id = vcpus.get();
    let mut entries: Vec<Vec<u8>> = (0..vcpus.get()).map(processor).collect();
    entries.push([&[ENTRY_BUS, ISA_BUS_ID][..], b"ISA   "].concat());
    entries.push(
        [
            &[ENTRY_IO_APIC, io_apic_id, APIC_VERSION, ENABLED][..],
            &IO_APIC_ADDRESS.to_le_bytes(),
        ]
        .concat(),
    );
    entries.extend((0..IO_APIC_PINS).map(|pin| {
        vec![
            ENTRY_IO_INTERRUPT,
            INTERRUPT_INT,
            0,
            0,
            ISA_BUS_ID,
            pin,
            io_apic_id,
            pin,
        ]
    }));
    entries.push(vec![
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_EXTINT,
        0,
        0,
        ISA_BUS_ID,
        0,
        0,
        0,
    ]);
    entries.push(vec![
        ENTRY_LOCAL_INTERRUPT,
        INTERRUPT_NMI,
        0,
        0,
        ISA_BUS_ID,
        0,
        ALL_LOCAL_APICS,
        1,
    ]);

    let body = entries.concat();
    let header = TableHeader {
        signature: *b"PCMP",
        length_bytes: u16_len(size_of::<TableHeader>() + body.len()),
        specification: MP_SPECIFICATION_1_4,
        checksum: 0,
        oem: *b"VMM     ",
        product: *b"MICROVM     ",
        oem_table: 0,
        oem_table_bytes: 0,
        entries: u16_len(entries.len()),
        local_apic_address: LOCAL_APIC_ADDRESS,
        extended: [0; 4],
    };
    let mut table = [header.as_bytes(), &body].concat();
    table[std::mem::offset_of!(TableHeader, checksum)] = checksum(&table);

    let pointer = FloatingPointer {
        signature: *b"_MP_",
        table_address: MP_TABLE_ADDRESS + FLOATING_POINTER_BYTES,
        length_16_bytes: 1,
        specification: MP_SPECIFICATION_1_4,
        checksum: 0,
        features: [0; 5],
    };
    let mut bytes = pointer.as_bytes().to_vec();
    bytes[std::mem::offset_of!(FloatingPointer, checksum)] = checksum(&bytes);
    bytes.extend(table);
    bytes
}

fn processor(apic_id: u8) -> Vec<u8> {
    let flags = if apic_id == 0 {
        ENABLED | BOOT_PROCESSOR
    } else {
        ENABLED
    };
    // Signature and feature flags are left zero: the kernel reads CPUID itself.
    let mut entry = vec![ENTRY_PROCESSOR, apic_id, APIC_VERSION, flags];
    entry.resize(20, 0);
    entry
}

/// The value that makes all bytes add up to zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// The table has at most 1 KiB, so its counts always fit.
fn u16_len(length: usize) -> u16 {
    u16::try_from(length).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn both_checksums_add_up_to_zero() {
        let bytes = mp_table(VcpuCount::new(3).unwrap());
        assert_eq!(sum(&bytes[..16]), 0);
        assert_eq!(sum(&bytes[16..]), 0);
    }

    #[test]
    fn the_largest_table_ends_before_the_video_memory() {
        let bytes = mp_table(VcpuCount::new(32).unwrap());
        assert!(u64::from(MP_TABLE_ADDRESS) + bytes.len() as u64 <= 0xa_0000);
    }

    #[test]
    fn the_header_counts_what_follows() {
        let bytes = mp_table(VcpuCount::new(2).unwrap());
        let length = u16::from_le_bytes([bytes[20], bytes[21]]);
        let entries = u16::from_le_bytes([bytes[16 + 34], bytes[16 + 35]]);
        assert_eq!(usize::from(length), bytes.len() - 16);
        assert_eq!(entries, 2 + 1 + 1 + 24 + 2);
    }
}
