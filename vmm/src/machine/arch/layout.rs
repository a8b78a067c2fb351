//! Where things are in the guest's physical address space and on its interrupt lines.
//!
//! ```text
//! 0x0000_0000_0500  GDT
//! 0x0000_0000_7000  boot parameters ("zero page")
//! 0x0000_0000_9000  page tables of the first instructions (3 pages)
//! 0x0000_0002_0000  kernel command line
//! 0x0000_0003_0000  setup data: boot entropy
//! 0x0000_0009_fc00  MP table (reserved in the E820 map up to 1 MiB)
//! 0x0000_0010_0000  RAM: the kernel where its ELF headers say (16 MiB)
//! 0x0000_c000_0000  end of low RAM, hole for devices
//! 0x0000_d000_0000  doorbell
//! 0x0000_d000_1000  virtio-mmio bank
//! 0x0000_d002_0000  mailbox
//! 0x0000_fec0_0000  I/O APIC, 0xfee0_0000 local APIC (in KVM)
//! 0x0001_0000_0000  RAM above the hole
//! 0x0040_0000_0000  windows: the agent's, then the image's
//! ```

/// The boot GDT.
pub(in crate::machine) const GDT_ADDRESS: u64 = 0x500;
/// `struct boot_params`, passed in RSI (Linux Documentation/arch/x86/boot.rst, "64-bit Boot Protocol").
pub(in crate::machine) const ZERO_PAGE_ADDRESS: u64 = 0x7000;
/// PML4, PDPT and page directory that map the first GiB to itself.
pub(in crate::machine) const PML4_ADDRESS: u64 = 0x9000;
pub(in crate::machine) const PDPT_ADDRESS: u64 = 0xa000;
pub(in crate::machine) const PAGE_DIRECTORY_ADDRESS: u64 = 0xb000;
/// The command line, zero-terminated.
pub(in crate::machine) const COMMAND_LINE_ADDRESS: u64 = 0x2_0000;
/// `COMMAND_LINE_SIZE` of x86 in the kernel's arch/x86/include/asm/setup.h.
pub(in crate::machine) const COMMAND_LINE_MAX_BYTES: usize = 2048;
/// `struct setup_data` with the entropy seed.
pub(in crate::machine) const SETUP_DATA_ADDRESS: u64 = 0x3_0000;
/// Where the extended BIOS data area would be: the kernel scans the last KiB of base memory for an MP table.
pub(in crate::machine) const MP_TABLE_ADDRESS: u32 = 0x9_fc00;
/// Start of the kernel's usable "high" memory.
pub(in crate::machine) const HIGH_MEMORY_ADDRESS: u64 = 0x10_0000;

/// Low RAM ends here at the latest.
pub(in crate::machine) const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM goes on here.
pub(in crate::machine) const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// One page of MMIO that the agent writes.
pub(in crate::machine) const DOORBELL_ADDRESS: u64 = protocol::DOORBELL_ADDRESS;
/// Memory in which a clone finds what is its own.
pub(in crate::machine) const MAILBOX_ADDRESS: u64 = protocol::MAILBOX_ADDRESS;
/// The first slot of the virtio-mmio bank.
pub(in crate::machine) const VIRTIO_BANK_ADDRESS: u64 = 0xd000_1000;
/// Bytes of one slot.
pub(in crate::machine) const VIRTIO_SLOT_BYTES: u64 = 0x1000;

/// The window of the agent's file system. 256 GiB is inside the 39 address bits that every processor with hardware
/// virtualisation has, and above the largest RAM.
pub(in crate::machine) const AGENT_WINDOW_ADDRESS: u64 = 0x40_0000_0000;
/// The window of the image: 1 GiB further.
pub(in crate::machine) const ROOT_WINDOW_ADDRESS: u64 = 0x40_4000_0000;

/// The I/O APIC in KVM (`KVM_CREATE_IRQCHIP`).
pub(in crate::machine) const IO_APIC_ADDRESS: u32 = 0xfec0_0000;
/// The local APIC in KVM.
pub(in crate::machine) const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// Three pages that Intel's VMX without unrestricted guest needs (KVM API, `KVM_SET_TSS_ADDR`); inside the hole.
pub(in crate::machine) const KVM_TSS_ADDRESS: usize = 0xfffb_d000;

/// The first serial port and its line.
pub(in crate::machine) const SERIAL_GSI: u32 = 4;

/// The interrupt line of each virtio slot. PC lines that the kernel takes for the timer (0, 2), the serial port (4)
/// and the clock (8) are left out; the I/O APIC has 24 pins.
pub(in crate::machine) const VIRTIO_GSIS: [u32; 16] =
    [5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21];

/// The address of a slot of the virtio-mmio bank.
pub(in crate::machine) fn virtio_slot_address(slot: usize) -> u64 {
    VIRTIO_BANK_ADDRESS + slot as u64 * VIRTIO_SLOT_BYTES
}

/// RAM as (guest address, bytes) pieces around the hole.
pub(in crate::machine) fn ram_pieces(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let mut pieces = vec![(0, low)];
    if bytes > low {
        pieces.push((HIGH_RAM_START, bytes - low));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_pieces(128 << 20), [(0, 128 << 20)]);
        assert_eq!(
            ram_pieces(4 << 30),
            [(0, LOW_RAM_END), (HIGH_RAM_START, 1 << 30)]
        );
    }

    #[test]
    fn each_slot_has_a_line_of_its_own() {
        let mut lines = VIRTIO_GSIS.to_vec();
        lines.dedup();
        assert_eq!(lines.len(), VIRTIO_GSIS.len());
        assert!(
            VIRTIO_GSIS
                .iter()
                .all(|gsi| ![0, 2, SERIAL_GSI, 8].contains(gsi) && *gsi < 24)
        );
    }
}
