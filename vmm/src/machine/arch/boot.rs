//! The boot parameters: memory map, command line and entropy, as Linux expects them in the zero page.
//!
//! Linux Documentation/arch/x86/zero-page.rst and arch/x86/include/uapi/asm/bootparam.h.

use devices::virtio::DeviceMemory;
use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};
use zerocopy::{Immutable, IntoBytes};

use super::layout::{
    COMMAND_LINE_ADDRESS, COMMAND_LINE_MAX_BYTES, HIGH_MEMORY_ADDRESS, MP_TABLE_ADDRESS,
    SETUP_DATA_ADDRESS, ZERO_PAGE_ADDRESS, ram_pieces,
};
use crate::machine::shape::RamSize;

const E820_RAM: u32 = 1;
/// "HdrS", the mark of a boot header (boot.rst, "header").
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// `SETUP_RNG_SEED` of `struct setup_data`, since Linux 6.0.
const SETUP_RNG_SEED: u32 = 9;
/// As much as the kernel's generator takes in.
pub(in crate::machine) const ENTROPY_BYTES: usize = 32;

/// `struct setup_data` with a seed as its data. The kernel wipes it after reading.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RngSeed {
    next: u64,
    kind: u32,
    length_bytes: u32,
    seed: [u8; ENTROPY_BYTES],
}

/// `struct boot_params` may be copied as bytes.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct ZeroPage(boot_params);

// SAFETY: `boot_params` is a packed C structure of integers and arrays of integers; every bit pattern is valid.
unsafe impl ByteValued for ZeroPage {}

/// Writes zero page, command line, MP table and seed.
///
/// # Errors
/// When the RAM is too small for them, which no [`RamSize`] is.
pub(in crate::machine) fn write_parameters(
    memory: &DeviceMemory,
    ram: RamSize,
    command_line: &[u8],
    mp_table: &[u8],
    entropy: [u8; ENTROPY_BYTES],
) -> Result<(), GuestMemoryError> {
    debug_assert!(command_line.len() < COMMAND_LINE_MAX_BYTES);
    memory.write_slice(command_line, GuestAddress(COMMAND_LINE_ADDRESS))?;
    memory.write_obj(
        0u8,
        GuestAddress(COMMAND_LINE_ADDRESS + command_line.len() as u64),
    )?;
    memory.write_slice(mp_table, GuestAddress(u64::from(MP_TABLE_ADDRESS)))?;
    let seed = RngSeed {
        next: 0,
        kind: SETUP_RNG_SEED,
        length_bytes: 32,
        seed: entropy,
    };
    memory.write_slice(seed.as_bytes(), GuestAddress(SETUP_DATA_ADDRESS))?;
    memory.write_obj(zero_page(ram), GuestAddress(ZERO_PAGE_ADDRESS))
}

fn zero_page(ram: RamSize) -> ZeroPage {
    let mut page = boot_params::default();
    page.hdr.header = HEADER_MAGIC;
    page.hdr.boot_flag = BOOT_FLAG;
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.cmd_line_ptr = 0x2_0000;
    page.hdr.cmdline_size = 2047;
    page.hdr.setup_data = SETUP_DATA_ADDRESS;

    let mut map = vec![(0, u64::from(MP_TABLE_ADDRESS))];
    for (start, bytes) in ram_pieces(ram.bytes()) {
        let usable_start = if start == 0 {
            HIGH_MEMORY_ADDRESS
        } else {
            start
        };
        map.push((usable_start, start + bytes - usable_start));
    }
    for (slot, (addr, size)) in page.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: *addr,
            size: *size,
            r#type: E820_RAM,
        };
        page.e820_entries += 1;
    }
    ZeroPage(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::shape::MIB_BYTES;

    #[test]
    fn the_memory_map_leaves_out_the_mp_table_and_the_video_memory() {
        let ram = RamSize::holding(64 * MIB_BYTES, 0).unwrap();
        let page = zero_page(ram).0;
        let entries: Vec<(u64, u64)> = page.e820_table[..usize::from(page.e820_entries)]
            .iter()
            .map(|entry| (entry.addr, entry.size))
            .collect();
        assert_eq!(entries, [(0, 0x9_fc00), (0x10_0000, 127 * MIB_BYTES)]);
    }

    #[test]
    fn constants_of_the_header_match_the_layout() {
        let page = zero_page(RamSize::holding(1, 0).unwrap()).0;
        assert_eq!(u64::from(page.hdr.cmd_line_ptr), COMMAND_LINE_ADDRESS);
        assert_eq!(page.hdr.cmdline_size as usize, COMMAND_LINE_MAX_BYTES - 1);
    }
}
