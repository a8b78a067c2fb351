//! Guest memory: RAM, the kernel mapped into it, and the read-only windows.
//!
//! Nothing is copied that can be mapped. RAM is anonymous; the kernel's segments and the windows are private mappings of
//! their files, so that all machines of one user share the page cache's pages until somebody writes to one.
//!
//! A window is read-only to the guest (`KVM_MEM_READONLY`). Devices see it as ordinary memory, because a guest may name
//! a page of it as the source of a transfer; where a hostile guest names one as the destination, the write goes to a private
//! copy of that page in this process and to nobody else.

use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::virtio::DeviceMemory;
use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionBuilder,
};

use super::SaveFiles;
use super::arch::layout::{MAILBOX_ADDRESS, ram_pieces};
use super::saved::{SavedRam, WrittenPages};
use super::shape::{HUGE_PAGE_BYTES, PAGE_BYTES, RamSize, WindowClass};

/// In what pieces the memory of a frozen machine is written: long enough that a clone has few mappings, short enough that it maps
/// little that nobody wrote.
const CHUNK_BYTES: usize = 16 << 10;

/// The longest gap between two of them that is mapped along: a mapping costs more than the zero pages that it saves.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// The shortest run of changed memory that is mapped.
const MIN_MAPPED_BYTES: u64 = 1 << 20;

const RAM_PROTECTION: i32 = libc::PROT_READ | libc::PROT_WRITE;
const RAM_FLAGS: i32 = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE;

/// One file's place in a window or in RAM: `length_bytes` from `file_offset_bytes` appear at `offset_bytes`.
#[derive(Debug)]
pub struct Part {
    /// The file, open for reading.
    pub file: File,
    /// Where its bytes start in the file; a multiple of a page.
    pub file_offset_bytes: u64,
    /// Where they appear, from the start of the window; a multiple of a page.
    pub offset_bytes: u64,
    /// How many of them; a multiple of a page.
    pub length_bytes: u64,
}

/// A read-only window put together from several files, zero between them.
#[derive(Debug)]
pub struct Window {
    /// Its size.
    pub class: WindowClass,
    /// What is in it, in any order.
    pub parts: Vec<Part>,
}

/// Guest memory that could not be put together.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The host has no room for the mapping.
    #[error("cannot map {bytes} bytes of guest memory")]
    Map {
        /// Of this size.
        bytes: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A file cannot be mapped into guest memory.
    #[error("cannot map a file of the machine at offset {offset_bytes:#x}")]
    MapFile {
        /// The place in the window or in RAM.
        offset_bytes: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A part lies outside, is not made of whole pages, or is longer than its file.
    #[error(
        "a part of {length_bytes} bytes at offset {offset_bytes:#x} does not fit where it belongs"
    )]
    BadPart {
        /// Where it would begin.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// The memory of a frozen machine cannot be written down.
    #[error("cannot write the memory of a frozen machine")]
    Save(#[source] std::io::Error),
    /// Nothing is known of changes.
    #[error("there is nothing that changes could be noted against")]
    Untracked,
    /// Changed memory cannot be read.
    #[error("cannot read the changes of a machine's memory")]
    Read(#[source] std::io::Error),
    /// The pieces overlap, or their addresses overflow.
    #[error("the pieces of guest memory do not fit together")]
    Layout,
    /// KVM refused a memory slot.
    #[error("KVM refuses a memory slot at {guest_address:#x}")]
    Slot {
        /// Where in the guest.
        guest_address: u64,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// All memory of a machine.
#[derive(Debug)]
pub(super) struct MachineMemory {
    /// RAM, mailbox and windows, for devices.
    pub(super) all: DeviceMemory,
    /// Pieces of RAM: guest address and size.
    ram: Vec<(u64, u64)>,
    /// Guest addresses of the windows, which KVM gets read-only.
    read_only: Vec<u64>,
    /// Whether what is written to is known since the machine was written down last.
    is_tracked: bool,
}

type Mapping = MmapRegion<AtomicBitmap>;

impl MachineMemory {
    /// Maps the RAM and the windows, each with its guest address.
    pub(super) fn map(ram: RamSize, windows: &[(u64, &Window)]) -> Result<Self, MemoryError> {
        let ram = ram_pieces(ram.bytes());
        let mut regions = Vec::new();
        for (start, bytes) in &ram {
            regions.push(region(*start, ram_piece(*bytes)?)?);
        }
        regions.push(region(MAILBOX_ADDRESS, mailbox()?)?);
        for (start, window) in windows {
            regions.push(region(*start, compose(window)?)?);
        }
        regions.sort_by_key(|region| region.start_addr());
        let all = DeviceMemory::from_regions(regions).map_err(|_| MemoryError::Layout)?;
        Ok(Self {
            all,
            ram,
            read_only: windows.iter().map(|(start, _)| *start).collect(),
            is_tracked: false,
        })
    }

    /// Maps a part of a file over RAM, privately: the guest's writes stay in the machine. The part's place is a guest address.
    pub(super) fn map_over_ram(&self, file: &File, part: Place) -> Result<(), MemoryError> {
        let region = self
            .all
            .find_region(GuestAddress(part.offset_bytes))
            .ok_or(part.misfit())?;
        let in_region = Place {
            offset_bytes: part.offset_bytes - region.start_addr().0,
            ..part
        };
        map_part(&region.get_mmap(), file, in_region)
    }

    /// Writes to `file` what of RAM was `changed`, or all that holds something, and says where it is; zero pages stay holes. RAM
    /// begins at `offset_bytes` of the file. Called while no vCPU runs.
    fn save(
        &self,
        file: &File,
        offset_bytes: u64,
        changed: Option<&Changed>,
    ) -> Result<Vec<SavedRam>, MemoryError> {
        let mut saved: Vec<SavedRam> = Vec::new();
        let mut piece_offset_bytes = offset_bytes;
        let mut chunk = vec![0; CHUNK_BYTES];
        for (start, bytes) in &self.ram {
            for offset in (0..*bytes).step_by(CHUNK_BYTES) {
                let guest_address = start + offset;
                if changed.is_some_and(|changed| !changed.holds(guest_address)) {
                    continue;
                }
                self.all
                    .read_slice(&mut chunk, GuestAddress(guest_address))
                    .map_err(|_| MemoryError::Layout)?;
                let is_zero = chunk.iter().all(|byte| *byte == 0);
                if is_zero && changed.is_none() {
                    continue;
                }
                let max_gap_bytes = changed.map_or(MAX_GAP_BYTES, |_| 0);
                let file_offset_bytes = piece_offset_bytes + offset;
                if !is_zero {
                    file.write_all_at(&chunk, file_offset_bytes)
                        .map_err(MemoryError::Save)?;
                }
                let length_bytes = CHUNK_BYTES as u64;
                let end = guest_address + length_bytes;
                match saved.last_mut() {
                    // Within one piece of RAM, what lies between them in the file lies between them in RAM.
                    Some(last)
                        if last.guest_address >= *start
                            && last.guest_address + last.length_bytes + max_gap_bytes
                                >= guest_address =>
                    {
                        last.length_bytes = end - last.guest_address;
                    }
                    _ => saved.push(SavedRam {
                        guest_address,
                        length_bytes,
                        file_offset_bytes,
                    }),
                }
            }
            piece_offset_bytes += bytes;
        }
        Ok(saved)
    }

    /// Writes what is wanted of RAM. Called while no vCPU runs.
    pub(super) fn save_to(
        &mut self,
        files: &SaveFiles,
        vm: &VmFd,
    ) -> Result<Vec<SavedRam>, MemoryError> {
        let changed = match (files.only_changes, self.is_tracked) {
            (false, _) => None,
            (true, true) => Some(self.changed(vm)?),
            (true, false) => return Err(MemoryError::Untracked),
        };
        if files.tracks_changes && changed.is_none() {
            self.track(vm)?;
        }
        let saved = self.save(&files.memory, files.memory_offset_bytes, changed.as_ref());
        if saved.is_err() && files.tracks_changes {
            // What was known is used up.
            self.is_tracked = false;
        }
        saved
    }

    /// Begins to note what is written to: KVM what the guest writes, the regions' bitmaps what devices write.
    fn track(&mut self, vm: &VmFd) -> Result<(), MemoryError> {
        if !self.is_tracked {
            self.set_slots(vm, KVM_MEM_LOG_DIRTY_PAGES)?;
        }
        self.is_tracked = true;
        self.changed(vm).map(drop)
    }

    /// What was written to since the last time that this was asked.
    fn changed(&self, vm: &VmFd) -> Result<Changed, MemoryError> {
        let mut pieces = Vec::new();
        for (slot, region) in (0u32..).zip(self.all.iter()) {
            let guest_address = region.start_addr().0;
            if !self.is_ram(guest_address) {
                continue;
            }
            let size = usize::try_from(region.len()).map_err(|_| MemoryError::Layout)?;
            let by_guest = vm
                .get_dirty_log(slot, size)
                .map_err(|source| MemoryError::Slot {
                    guest_address,
                    source,
                })?;
            let by_devices = region.get_mmap().bitmap().get_and_reset();
            let pages = by_guest
                .iter()
                .zip(by_devices.iter().chain(std::iter::repeat(&0)))
                .map(|(guest, device)| guest | device)
                .collect();
            pieces.push((guest_address, pages));
        }
        Ok(Changed { pieces })
    }

    fn is_ram(&self, guest_address: u64) -> bool {
        self.ram.iter().any(|(start, _)| *start == guest_address)
    }

    /// Puts what has changed over what was restored before. Short runs are copied: a mapping for each would be too many.
    pub(super) fn overlay(&self, file: &File, saved: &[SavedRam]) -> Result<(), MemoryError> {
        let (long, short): (Vec<SavedRam>, Vec<SavedRam>) = saved
            .iter()
            .partition(|run| run.length_bytes >= MIN_MAPPED_BYTES);
        self.restore(file, &long)?;
        for run in short {
            let mut bytes = vec![0; usize::try_from(run.length_bytes).unwrap_or_default()];
            file.read_exact_at(&mut bytes, run.file_offset_bytes)
                .map_err(MemoryError::Read)?;
            self.all
                .write_slice(&bytes, GuestAddress(run.guest_address))
                .map_err(|_| MemoryError::Layout)?;
        }
        Ok(())
    }

    /// Maps what [`Self::save`] wrote over RAM, privately: nothing is read before the guest touches it, and what the guest writes
    /// stays in the machine.
    pub(super) fn restore(&self, file: &File, saved: &[SavedRam]) -> Result<(), MemoryError> {
        for part in saved {
            let place = Place {
                file_offset_bytes: part.file_offset_bytes,
                offset_bytes: part.guest_address,
                length_bytes: part.length_bytes,
            };
            let is_ram = self.ram.iter().any(|(start, bytes)| {
                part.guest_address
                    .checked_sub(*start)
                    .and_then(|offset| offset.checked_add(part.length_bytes))
                    .is_some_and(|end| end <= *bytes)
            });
            if !is_ram {
                return Err(place.misfit());
            }
            self.map_over_ram(file, place)?;
        }
        Ok(())
    }

    /// Copies pages that the guest will write to, in bulk. What is no part of what was restored, and what the host refuses, is left
    /// to be copied one by one.
    pub(super) fn copy_ahead(&self, saved: &[SavedRam], written: &[WrittenPages]) {
        let mut parts = saved.iter().peekable();
        for run in written {
            let end = run.file_offset_bytes.saturating_add(run.length_bytes);
            // Both lists are in the order of the file.
            while parts.peek().is_some_and(|part| {
                part.file_offset_bytes + part.length_bytes <= run.file_offset_bytes
            }) {
                parts.next();
            }
            let Some(part) = parts.peek() else { return };
            let start = run.file_offset_bytes.max(part.file_offset_bytes);
            let end = end.min(part.file_offset_bytes + part.length_bytes);
            let Some(length) = end
                .checked_sub(start)
                .and_then(|length| usize::try_from(length).ok())
                .filter(|length| *length > 0)
            else {
                continue;
            };
            let address = GuestAddress(part.guest_address + (start - part.file_offset_bytes));
            let Ok(place) = self.all.get_host_address(address) else {
                continue;
            };
            // SAFETY: the range is RAM, which `self.all` owns; what this does to a private mapping no reader of it can see.
            let result = unsafe { libc::madvise(place.cast(), length, libc::MADV_POPULATE_WRITE) };
            if result != 0 {
                return;
            }
        }
    }

    /// Gives all of it to KVM.
    pub(super) fn register(&self, vm: &VmFd) -> Result<(), MemoryError> {
        self.set_slots(vm, 0)
    }

    /// Makes or changes KVM's memory slots, those of RAM with these flags.
    fn set_slots(&self, vm: &VmFd, ram_flags: u32) -> Result<(), MemoryError> {
        for (slot, region) in (0u32..).zip(self.all.iter()) {
            let guest_address = region.start_addr().0;
            let flags = if self.read_only.contains(&guest_address) {
                KVM_MEM_READONLY
            } else if self.is_ram(guest_address) {
                ram_flags
            } else {
                0
            };
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: guest_address,
                memory_size: region.len(),
                userspace_addr: region.get_mmap().as_ptr() as u64,
            };
            // SAFETY: the range is a mapping that `self.all` owns. The machine keeps `self` as long as the VM
            // (fields drop in order: vCPUs, VM, memory), and slots do not overlap since regions do not.
            unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Slot {
                guest_address,
                source,
            })?;
        }
        Ok(())
    }
}

/// Which pages of RAM were written to.
struct Changed {
    /// Guest address of each piece, and a bit for each of its pages.
    pieces: Vec<(u64, Vec<u64>)>,
}

impl Changed {
    /// Whether something in the chunk that begins here was.
    fn holds(&self, guest_address: u64) -> bool {
        const {
            assert!(
                (u64::BITS as u64 * PAGE_BYTES).is_multiple_of(CHUNK_BYTES as u64),
                "a chunk's pages are bits of one word"
            )
        };
        const CHUNK_PAGES: u64 = CHUNK_BYTES as u64 / PAGE_BYTES;
        let piece = self
            .pieces
            .iter()
            .rev()
            .find(|(start, _)| *start <= guest_address);
        let Some((start, pages)) = piece else {
            return false;
        };
        let page = (guest_address - start) / PAGE_BYTES;
        let word = usize::try_from(page / u64::from(u64::BITS)).ok();
        let word = word.and_then(|word| pages.get(word)).copied().unwrap_or(0);
        let bits = (word >> (page % u64::from(u64::BITS))) & ((1 << CHUNK_PAGES) - 1);
        bits != 0
    }
}

fn region(start: u64, mapping: Mapping) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
    GuestRegionMmap::with_arc(Arc::new(mapping), GuestAddress(start)).ok_or(MemoryError::Layout)
}

/// Memory that starts on a boundary of the host's huge pages, as it does in the guest: KVM maps a huge page of the host as one only
/// where both addresses agree. It stays mapped until the process ends. What devices write to in the first `noted_bytes` is noted.
///
/// With huge pages a boot has 8 faults of RAM instead of 2,600, and 49 million instructions instead of 61.
fn aligned(bytes: u64, noted_bytes: usize) -> Result<Mapping, MemoryError> {
    let reserved = anonymous(bytes + HUGE_PAGE_BYTES as u64)?;
    let lead_bytes = reserved.as_ptr().align_offset(HUGE_PAGE_BYTES);
    let start = reserved.as_ptr().wrapping_add(lead_bytes);
    let size = reserved.size() - HUGE_PAGE_BYTES;
    mem::forget(reserved);
    // SAFETY: the range lies inside `reserved`: its lead is shorter than the huge page that was added. Nobody unmaps that.
    let aligned = unsafe {
        MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(noted_bytes))
            .with_raw_mmap_pointer(start)
    };
    aligned
        .with_mmap_prot(RAM_PROTECTION)
        .with_mmap_flags(RAM_FLAGS)
        .build()
        .map_err(|source| MemoryError::Map { bytes, source })
}

fn ram_piece(bytes: u64) -> Result<Mapping, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Layout)?;
    aligned(bytes, size)
}

/// Memory that costs nothing until it is touched. What is written to in it is not noted.
fn anonymous(bytes: u64) -> Result<Mapping, MemoryError> {
    let size = usize::try_from(bytes).map_err(|_| MemoryError::Layout)?;
    MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::with_len(0))
        .with_mmap_prot(RAM_PROTECTION)
        .with_mmap_flags(RAM_FLAGS)
        .build()
        .map_err(|source| MemoryError::Map { bytes, source })
}

/// The mailbox. Beside RAM it would be a part of a huge page, all of which is cleared when the mailbox is written to.
fn mailbox() -> Result<Mapping, MemoryError> {
    let mapping = anonymous(protocol::MAILBOX_BYTES as u64)?;
    // SAFETY: the range is the mapping's, and this changes nothing that a reader of it could see. A kernel without huge pages
    // refuses it, and need not be asked.
    unsafe {
        libc::madvise(
            mapping.as_ptr().cast(),
            mapping.size(),
            libc::MADV_NOHUGEPAGE,
        )
    };
    Ok(mapping)
}

fn compose(window: &Window) -> Result<Mapping, MemoryError> {
    let mapping = aligned(window.class.bytes(), 0)?;
    for part in &window.parts {
        let place = Place {
            file_offset_bytes: part.file_offset_bytes,
            offset_bytes: part.offset_bytes,
            length_bytes: part.length_bytes,
        };
        map_part(&mapping, &part.file, place)?;
    }
    Ok(mapping)
}

/// Where bytes of a file are, and where they appear; all of it in whole pages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Where they start in the file.
    pub(super) file_offset_bytes: u64,
    /// Where they appear.
    pub(super) offset_bytes: u64,
    /// How many they are.
    pub(super) length_bytes: u64,
}

impl Place {
    fn misfit(self) -> MemoryError {
        MemoryError::BadPart {
            offset_bytes: self.offset_bytes,
            length_bytes: self.length_bytes,
        }
    }
}

/// Replaces pages of `mapping` by the file's.
fn map_part(mapping: &Mapping, file: &File, place: Place) -> Result<(), MemoryError> {
    let Place {
        offset_bytes,
        length_bytes,
        file_offset_bytes,
    } = place;
    let bad_part = || place.misfit();
    let map_error = |source| MemoryError::MapFile {
        offset_bytes,
        source,
    };
    let file_bytes = file.metadata().map_err(map_error)?.len();
    let whole_pages = [offset_bytes, length_bytes, file_offset_bytes]
        .iter()
        .all(|value| value % PAGE_BYTES == 0);
    // A mapping past the end of its file would kill the process at the first touch.
    let in_file = file_offset_bytes
        .checked_add(length_bytes)
        .is_some_and(|end| end <= file_bytes.next_multiple_of(PAGE_BYTES));
    let in_mapping = offset_bytes
        .checked_add(length_bytes)
        .is_some_and(|end| end <= mapping.size() as u64);
    if !(whole_pages && in_file && in_mapping) || length_bytes == 0 {
        return Err(bad_part());
    }
    let length = usize::try_from(length_bytes).map_err(|_| bad_part())?;
    let offset = usize::try_from(offset_bytes).map_err(|_| bad_part())?;
    let file_offset = libc::off_t::try_from(file_offset_bytes).map_err(|_| bad_part())?;
    let address = mapping.as_ptr().wrapping_add(offset);
    // SAFETY: `address` and `length` were checked to lie inside `mapping`, which this module made and owns; nothing
    // holds a reference into it, guest memory being reached only by volatile accesses.
    let mapped = unsafe {
        libc::mmap(
            address.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            file.as_raw_fd(),
            file_offset,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(map_error(std::io::Error::last_os_error()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::machine::shape::MIB_BYTES;

    fn file_of(byte: u8, bytes: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![byte; bytes]).unwrap();
        file
    }

    fn part(file: File, offset_bytes: u64, length_bytes: u64) -> Part {
        Part {
            file,
            file_offset_bytes: 0,
            offset_bytes,
            length_bytes,
        }
    }

    #[test]
    fn a_window_shows_its_files_and_zero_between_them() {
        let window = Window {
            class: WindowClass::exact(2 * MIB_BYTES),
            parts: vec![
                part(file_of(1, 4096), 0, 4096),
                part(file_of(2, 4096), 8192, 4096),
            ],
        };
        let ram = RamSize::holding(1, 0).unwrap();
        let memory = MachineMemory::map(ram, &[(1u64 << 38, &window)]).unwrap();
        let byte = |offset| {
            memory
                .all
                .read_obj::<u8>(GuestAddress((1u64 << 38) + offset))
                .unwrap()
        };
        assert_eq!([byte(0), byte(4096), byte(8192)], [1, 0, 2]);
    }

    #[test]
    fn a_write_to_a_mapped_file_stays_in_the_machine() {
        let file = file_of(7, 4096);
        let ram = RamSize::holding(1, 0).unwrap();
        let memory = MachineMemory::map(ram, &[]).unwrap();
        memory
            .map_over_ram(
                &file,
                Place {
                    file_offset_bytes: 0,
                    offset_bytes: 0x10_0000,
                    length_bytes: 4096,
                },
            )
            .unwrap();
        memory.all.write_obj(9u8, GuestAddress(0x10_0000)).unwrap();
        let mut on_disk = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut on_disk, 0).unwrap();
        assert_eq!(on_disk, [7]);
    }

    #[test]
    fn what_was_written_down_is_there_again_and_the_rest_is_zero() {
        let ram = RamSize::holding(1, 0).unwrap();
        let before = MachineMemory::map(ram, &[]).unwrap();
        let last_byte = ram.bytes() - 1;
        for (address, value) in [(0x500, 1u8), (0x10_0000, 2), (0x11_0000, 3), (last_byte, 4)] {
            before.all.write_obj(value, GuestAddress(address)).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(ram.bytes()).unwrap();
        let saved = before.save(&file, 0, None).unwrap();
        assert_eq!(saved.len(), 3, "{saved:?}");

        let after = MachineMemory::map(ram, &[]).unwrap();
        after.restore(&file, &saved).unwrap();
        let read = |address| after.all.read_obj::<u8>(GuestAddress(address)).unwrap();
        let found = [0x500, 0x10_0000, 0x10_4000, 0x11_0000, last_byte].map(read);
        assert_eq!(found, [1, 2, 0, 3, 4]);

        // What the clone writes is its own.
        after.all.write_obj(9u8, GuestAddress(0x500)).unwrap();
        let mut on_disk = [0];
        file.read_exact_at(&mut on_disk, 0x500).unwrap();
        assert_eq!(on_disk, [1]);
    }

    #[test]
    fn only_what_was_written_to_since_is_written_down_again() {
        let kvm = kvm_ioctls::Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        let ram = RamSize::holding(1, 0).unwrap();
        let mut memory = MachineMemory::map(ram, &[]).unwrap();
        memory.register(&vm).unwrap();
        let [place, other] = [0x10_0000, 0x20_0000].map(GuestAddress);
        memory.all.write_obj(1u8, place).unwrap();
        memory.all.write_obj(1u8, other).unwrap();
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(ram.bytes()).unwrap();
            file
        };
        let files = |memory, only_changes| SaveFiles {
            state: tempfile::tempfile().unwrap(),
            memory,
            memory_offset_bytes: 0,
            only_changes,
            tracks_changes: true,
            stays: false,
        };
        let refused = memory.save_to(&files(file(), true), &vm);
        assert!(matches!(refused, Err(MemoryError::Untracked)));

        let (whole, changes) = (file(), file());
        let saved = memory
            .save_to(&files(whole.try_clone().unwrap(), false), &vm)
            .unwrap();
        // A page that is zero now has changed, too.
        memory.all.write_obj(0u8, place).unwrap();
        let changed = memory
            .save_to(&files(changes.try_clone().unwrap(), true), &vm)
            .unwrap();
        assert_eq!(saved.len(), 2);
        let places: Vec<u64> = changed.iter().map(|run| run.guest_address).collect();
        assert_eq!(places, [place.0]);
        let unchanged = memory.save_to(&files(file(), true), &vm).unwrap();
        assert_eq!(unchanged, []);

        let again = MachineMemory::map(ram, &[]).unwrap();
        again.restore(&whole, &saved).unwrap();
        again.overlay(&changes, &changed).unwrap();
        let read = |place| again.all.read_obj::<u8>(place).unwrap();
        assert_eq!([read(place), read(other)], [0, 1]);
    }

    #[test]
    fn memory_that_is_no_ram_is_not_restored() {
        let ram = RamSize::holding(1, 0).unwrap();
        let memory = MachineMemory::map(ram, &[]).unwrap();
        let file = file_of(1, CHUNK_BYTES);
        for (guest_address, length_bytes) in [
            (MAILBOX_ADDRESS, PAGE_BYTES),
            (ram.bytes() - PAGE_BYTES, 2 * PAGE_BYTES),
            (u64::MAX - PAGE_BYTES + 1, PAGE_BYTES),
        ] {
            let saved = SavedRam {
                guest_address,
                length_bytes,
                file_offset_bytes: 0,
            };
            let refused = memory.restore(&file, &[saved]);
            assert!(matches!(refused, Err(MemoryError::BadPart { .. })));
        }
    }

    #[test]
    fn a_part_beyond_its_file_or_its_window_is_refused() {
        let window = |part| Window {
            class: WindowClass::exact(1),
            parts: vec![part],
        };
        let ram = RamSize::holding(1, 0).unwrap();
        for bad in [
            part(file_of(1, 4096), 0, 8192),
            part(file_of(1, 4096), 2 * MIB_BYTES, 4096),
            part(file_of(1, 4096), 1, 4096),
            part(file_of(1, 4096), u64::MAX - 4095, 4096),
        ] {
            let error = MachineMemory::map(ram, &[(1u64 << 38, &window(bad))]).unwrap_err();
            assert!(matches!(error, MemoryError::BadPart { .. }), "{error}");
        }
    }
}
