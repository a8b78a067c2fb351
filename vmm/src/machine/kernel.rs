//! The guest kernel: an uncompressed ELF file whose segments are mapped, or read, to where they run.
//!
//! System V ABI, "Program Header". Code and constants are mapped, so that all machines share them; a segment whose place in the
//! file and whose physical address do not agree within a page is refused, since our own build aligns them. Data are read into
//! RAM: a boot writes to most of their pages, and each would be mapped, mapped again and copied one by one.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PF_W, PT_LOAD};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::arch::layout::{HIGH_MEMORY_ADDRESS, LOW_RAM_END};
use super::memory::{MachineMemory, MemoryError, Place};
use super::shape::PAGE_BYTES;

const ELF_MAGIC: &[u8] = b"\x7fELF";
/// `ELFCLASS64`, `ELFDATA2LSB`: 64 bits, little endian.
const ELF_64_LITTLE: [u8; 2] = [2, 1];
const EM_X86_64: u16 = 62;
/// Far above what a kernel has; keeps a wrong file from costing memory.
const MAX_SEGMENTS: u16 = 64;

/// A kernel file that cannot be booted.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("cannot read the kernel")]
    Read(#[source] std::io::Error),
    /// It is something else.
    #[error("the kernel is not an uncompressed x86-64 ELF file (vmlinux)")]
    NotElf,
    /// The file is shorter than its headers say.
    #[error("the kernel's file ends in the middle of a segment")]
    Truncated,
    /// A segment cannot be mapped where it belongs.
    #[error(
        "the kernel's segment for address {address:#x} is not aligned for mapping, or lies outside the machine's memory"
    )]
    BadSegment {
        /// Its physical address.
        address: u64,
    },
    /// No segment holds the entry point.
    #[error("the kernel's entry point {entry:#x} is in none of its segments")]
    BadEntry {
        /// As the ELF header names it.
        entry: u64,
    },
    /// Mapping failed.
    #[error("cannot map the kernel")]
    Map(#[from] MemoryError),
    /// A segment's memory could not be written.
    #[error("cannot write the kernel into the machine's memory")]
    Fill(#[source] GuestMemoryError),
}

/// Maps the kernel's segments into RAM and returns the physical address of its first instruction.
pub(super) fn map(file: &File, memory: &MachineMemory) -> Result<u64, KernelError> {
    let header: Elf64_Ehdr = read(file, 0)?;
    let entry_size = size_of::<Elf64_Phdr>();
    if !header.e_ident.starts_with(ELF_MAGIC)
        || header.e_ident[4..6] != ELF_64_LITTLE
        || header.e_machine != EM_X86_64
        || usize::from(header.e_phentsize) != entry_size
        || header.e_phnum > MAX_SEGMENTS
    {
        return Err(KernelError::NotElf);
    }
    let length_bytes = file.metadata().map_err(KernelError::Read)?.len();
    let mut holds_entry = false;
    for index in 0..u64::from(header.e_phnum) {
        let offset = index
            .checked_mul(entry_size as u64)
            .and_then(|offset| offset.checked_add(header.e_phoff))
            .ok_or(KernelError::NotElf)?;
        let segment: Elf64_Phdr = read(file, offset)?;
        if segment.p_type == PT_LOAD && segment.p_memsz > 0 {
            // A mapping goes on behind the end of its file, and whoever touches it there dies of SIGBUS.
            let end = segment.p_offset.checked_add(segment.p_filesz);
            if end.is_none_or(|end| end > length_bytes) {
                return Err(KernelError::Truncated);
            }
            load_segment(file, &segment, memory)?;
            holds_entry |= header.e_entry >= segment.p_paddr
                && header.e_entry - segment.p_paddr < segment.p_memsz;
        }
    }
    if !holds_entry {
        return Err(KernelError::BadEntry {
            entry: header.e_entry,
        });
    }
    Ok(header.e_entry)
}

fn load_segment(
    file: &File,
    segment: &Elf64_Phdr,
    memory: &MachineMemory,
) -> Result<(), KernelError> {
    let address = segment.p_paddr;
    let end = address.checked_add(segment.p_memsz.max(segment.p_filesz));
    if address < HIGH_MEMORY_ADDRESS || end.is_none_or(|end| end > LOW_RAM_END) {
        return Err(KernelError::BadSegment { address });
    }
    if segment.p_filesz == 0 {
        return Ok(());
    }
    if segment.p_flags & PF_W == 0 {
        map_segment(file, segment, memory)
    } else {
        read_segment(file, segment, memory)
    }
}

fn read_segment(
    mut file: &File,
    segment: &Elf64_Phdr,
    memory: &MachineMemory,
) -> Result<(), KernelError> {
    let address = segment.p_paddr;
    let bad = KernelError::BadSegment { address };
    let length = usize::try_from(segment.p_filesz).map_err(|_| bad)?;
    file.seek(SeekFrom::Start(segment.p_offset))
        .map_err(KernelError::Read)?;
    memory
        .all
        .read_exact_volatile_from(GuestAddress(address), &mut file, length)
        .map_err(KernelError::Fill)
}

fn map_segment(
    file: &File,
    segment: &Elf64_Phdr,
    memory: &MachineMemory,
) -> Result<(), KernelError> {
    let address = segment.p_paddr;
    if address % PAGE_BYTES != segment.p_offset % PAGE_BYTES {
        return Err(KernelError::BadSegment { address });
    }
    let lead = address % PAGE_BYTES;
    let length_bytes = (lead + segment.p_filesz).next_multiple_of(PAGE_BYTES);
    let place = Place {
        file_offset_bytes: segment.p_offset - lead,
        offset_bytes: address - lead,
        length_bytes,
    };
    memory.map_over_ram(file, place)?;
    // What follows the segment in its last page of the file is not the kernel's.
    let tail_bytes = length_bytes - lead - segment.p_filesz;
    let zeros = vec![0u8; usize::try_from(tail_bytes).unwrap_or_default()];
    memory
        .all
        .write_slice(&zeros, GuestAddress(address + segment.p_filesz))
        .map_err(KernelError::Fill)
}

fn read<T: ByteValued + Default>(file: &File, offset: u64) -> Result<T, KernelError> {
    let mut value = T::default();
    file.read_exact_at(value.as_mut_slice(), offset)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => KernelError::NotElf,
            _ => KernelError::Read(source),
        })?;
    Ok(value)
}
