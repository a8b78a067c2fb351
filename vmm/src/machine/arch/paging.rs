//! The guest's own page tables, followed as its processor does: Intel SDM 3A, section 4.5.
//!
//! The tables are the guest's and may say anything: each entry is read once, and one that lies nowhere maps nothing.

use devices::virtio::DeviceMemory;
use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

const CR0_WP: u64 = 1 << 16;
const CR4_LA57: u64 = 1 << 12;
const ADDRESS_MASK: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;
const INDEX_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;

/// What the guest's kernel wants with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine) enum Access {
    Read,
    Write,
}

/// An exception with an error code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::machine) enum Fault {
    /// #GP(0)
    GeneralProtection,
    /// #PF: there is no page, or none that can be written to.
    Page {
        /// CR2
        address: u64,
        /// Bit 0: there is a page; bit 1: it was to be written to (section 4.7).
        error_code: u32,
    },
}

/// Where in guest memory a linear address of 64-bit mode lies for supervisor mode.
///
/// # Errors
///
/// The fault that the access ends in.
pub(in crate::machine) fn translate(
    memory: &DeviceMemory,
    special: &kvm_sregs,
    address: u64,
    access: Access,
) -> Result<GuestAddress, Fault> {
    let levels = if special.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
    let unused_bits = u64::BITS - PAGE_BITS - levels * INDEX_BITS;
    if (address << unused_bits).cast_signed() >> unused_bits != address.cast_signed() {
        return Err(Fault::GeneralProtection);
    }
    let is_write = access == Access::Write;
    let fault = |is_present: bool| Fault::Page {
        address,
        error_code: u32::from(is_present) | u32::from(is_write) << 1,
    };
    let heeds_read_only = is_write && special.cr0 & CR0_WP != 0;
    let mut table = special.cr3 & ADDRESS_MASK;
    for level in (0..levels).rev() {
        let shift = PAGE_BITS + level * INDEX_BITS;
        let index = address >> shift & ((1 << INDEX_BITS) - 1);
        let entry: u64 = memory
            .read_obj(GuestAddress(table | index << 3))
            .map_err(|_| fault(false))?;
        if entry & PRESENT == 0 {
            return Err(fault(false));
        }
        if heeds_read_only && entry & WRITABLE == 0 {
            return Err(fault(true));
        }
        table = entry & ADDRESS_MASK;
        // A gigabyte and two megabytes can be pages of their own.
        if level == 0 || (1..=2).contains(&level) && entry & LARGE != 0 {
            let offset_mask = (1 << shift) - 1;
            return Ok(GuestAddress(table & !offset_mask | address & offset_mask));
        }
    }
    Err(fault(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PML4: u64 = 0x1000;
    const PDPT: u64 = 0x2000;
    const DIRECTORY: u64 = 0x3000;
    const TABLE: u64 = 0x4000;
    const NO_EXECUTE: u64 = 1 << 63;

    /// The first two megabytes in small pages, of which the second is read-only and the third missing; the next two as one page; the
    /// second gigabyte as one.
    fn tables() -> DeviceMemory {
        let memory = DeviceMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let put =
            |address: u64, entry: u64| memory.write_obj(entry, GuestAddress(address)).unwrap();
        put(PML4, PDPT | 0b11);
        put(PDPT, DIRECTORY | 0b11);
        put(PDPT + 8, 5 << 30 | LARGE | 0b11);
        put(DIRECTORY, TABLE | 0b11);
        put(DIRECTORY + 8, 7 << 21 | LARGE | 0b11 | NO_EXECUTE);
        put(TABLE, 0x9000 | 0b11);
        put(TABLE + 8, 0xa000 | 0b01);
        memory
    }

    fn special() -> kvm_sregs {
        kvm_sregs {
            cr0: CR0_WP,
            cr3: PML4 | 0x18,
            ..Default::default()
        }
    }

    fn lies(address: u64, access: Access) -> Result<u64, Fault> {
        translate(&tables(), &special(), address, access).map(|place| place.0)
    }

    #[test]
    fn an_address_lies_where_its_page_of_any_size_does() {
        assert_eq!(lies(0x123, Access::Write), Ok(0x9123));
        assert_eq!(lies(0x1fff, Access::Read), Ok(0xafff));
        assert_eq!(lies(0x20_1234, Access::Write), Ok((7 << 21) + 0x1234));
        assert_eq!(lies(0x4765_4321, Access::Write), Ok((5 << 30) + 0x765_4321));
    }

    #[test]
    fn what_is_missing_or_read_only_faults_as_on_a_processor() {
        let page_fault = |address, error_code| {
            Err(Fault::Page {
                address,
                error_code,
            })
        };
        assert_eq!(lies(0x2008, Access::Read), page_fault(0x2008, 0));
        assert_eq!(lies(0x2008, Access::Write), page_fault(0x2008, 0b10));
        assert_eq!(lies(0x1008, Access::Write), page_fault(0x1008, 0b11));
        assert_eq!(lies(1 << 47, Access::Read), Err(Fault::GeneralProtection));
        assert_eq!(lies(u64::MAX, Access::Read), page_fault(u64::MAX, 0));
    }

    #[test]
    fn a_kernel_that_may_write_everywhere_writes_to_read_only_pages() {
        let special = kvm_sregs {
            cr0: 0,
            ..special()
        };
        let place = translate(&tables(), &special, 0x1008, Access::Write);
        assert_eq!(place, Ok(GuestAddress(0xa008)));
    }

    #[test]
    fn tables_outside_of_memory_map_nothing() {
        let special = kvm_sregs {
            cr3: 0x7_0000_0000,
            ..special()
        };
        let place = translate(&tables(), &special, 0x10, Access::Read);
        assert_eq!(
            place,
            Err(Fault::Page {
                address: 0x10,
                error_code: 0
            })
        );
    }
}
