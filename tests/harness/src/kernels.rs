//! Kernels other than our own: Debian's, and some of a few instructions.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache;

/// What Debian's kernel is called among the things of a machine that cannot make them.
pub const DEBIAN: &str = "debian-vmlinux";

/// Where a kernel of [`of_instructions`] runs.
const ADDRESS: u64 = 0x10_0000;

/// An ELF executable for x86-64 that a VMM boots: these instructions, in long mode.
///
/// System V ABI, "ELF Header" and "Program Header".
pub fn of_instructions(instructions: &[u8]) -> Vec<u8> {
    const PAGE: u64 = 0x1000;
    let mut elf = Vec::new();
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend_from_slice(&2_u16.to_le_bytes()); // e_type: ET_EXEC
    elf.extend_from_slice(&62_u16.to_le_bytes()); // e_machine: EM_X86_64
    elf.extend_from_slice(&1_u32.to_le_bytes()); // e_version
    for address in [ADDRESS, 64, 0] {
        elf.extend_from_slice(&address.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    elf.extend_from_slice(&0_u32.to_le_bytes()); // e_flags
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes()); // sizes and numbers of headers
    }
    elf.extend_from_slice(&1_u32.to_le_bytes()); // p_type: PT_LOAD
    elf.extend_from_slice(&5_u32.to_le_bytes()); // p_flags: read and execute
    let length = instructions.len() as u64;
    for field in [PAGE, ADDRESS, ADDRESS, length, length, PAGE] {
        elf.extend_from_slice(&field.to_le_bytes()); // p_offset, p_vaddr, p_paddr, sizes, p_align
    }
    elf.resize(usize::try_from(PAGE).unwrap_or_default(), 0);
    elf.extend_from_slice(instructions);
    elf
}

/// Unpacks the ELF file in a bzImage that was compressed with LZ4, as Debian's cloud kernel is.
///
/// Linux, Documentation/x86/boot.rst: `setup_sects`, `payload_offset`, `payload_length`.
pub fn unpacked(bz_image: &Path, name: &str) -> PathBuf {
    if let Some(made) = cache::made_elsewhere(name) {
        return made;
    }
    let image = fs::read(bz_image).expect("a kernel can be read");
    cache::file(name, &[&image], |output| {
        let word = |at: usize| {
            let bytes = image[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let setup_sectors = usize::from(image[0x1f1]);
        let start = (setup_sectors + 1) * 512 + word(0x248);
        let payload = &image[start..start + word(0x24c)];
        fs::write(output, lz4_legacy(payload)).expect("a kernel can be written");
    })
}

/// LZ4's legacy frame, as the kernel's build makes it: a magic number, then blocks of at most 8 MiB, each behind its length.
fn lz4_legacy(payload: &[u8]) -> Vec<u8> {
    const MAGIC: &[u8] = b"\x02\x21\x4c\x18";
    const BLOCK_BYTES: usize = 8 << 20;
    let mut rest = payload
        .strip_prefix(MAGIC)
        .expect("Debian's cloud kernel is compressed with LZ4");
    let mut unpacked = Vec::new();
    // The kernel's build puts the unpacked length behind the last block.
    while rest.len() > 4 {
        let (length, behind) = rest.split_first_chunk().expect("a block has a length");
        let (block, next) = behind.split_at(u32::from_le_bytes(*length) as usize);
        let plain = lz4_flex::block::decompress(block, BLOCK_BYTES).expect("a block is whole");
        unpacked.extend_from_slice(&plain);
        rest = next;
    }
    unpacked
}
