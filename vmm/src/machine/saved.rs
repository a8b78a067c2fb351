//! A machine as it is written down: what a frozen one is made of, beside its memory.
//!
//! States are plain structures. Each part of the machine says in one place how it is saved and restored: vCPUs and what KVM keeps
//! for the VM here, virtio transports and the serial port beside their devices. Not saved, because they hold nothing: the
//! doorbell, the reset line, empty slots. Not saved, because each machine gets its own: the kernel's log, the mailbox.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use devices::serial::SavedSerial;
use devices::virtio::mmio::SavedTransport;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_pit_state2, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::vcpu::Vcpu;
use super::{BuildError, VcpuCount, kvm_refuses};

/// IA32_TSC_DEADLINE: when the local APIC's timer fires next.
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A frozen machine, but for the contents of its memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedMachine {
    /// What the guest was told of its processors; a clone's must be told the same.
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    pub(super) vm: SavedVm,
    pub(super) vcpus: Vec<SavedVcpu>,
    /// In the order of the slots.
    pub(super) transports: Vec<SavedTransport>,
    pub(super) serial: SavedSerial,
    /// Which parts of RAM hold data, in the order of their addresses.
    pub(super) ram: Vec<SavedRam>,
}

/// A run of pages of a frozen machine's memory that its clones are known to write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrittenPages {
    /// Where it begins in the memory's file.
    pub file_offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// The memory that a machine was written down with, apart from the rest of it.
#[derive(Debug)]
pub struct RamLayer {
    pub(super) file: File,
    pub(super) runs: Vec<SavedRam>,
}

impl RamLayer {
    /// Keeps of a machine what lies in this file.
    #[must_use]
    pub fn new(file: File, machine: SavedMachine) -> Self {
        Self {
            file,
            runs: machine.ram,
        }
    }
}

impl AsFd for RamLayer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl SavedMachine {
    /// Where the file of its memory holds data, and how much.
    pub fn memory_runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.ram
            .iter()
            .map(|run| (run.file_offset_bytes, run.length_bytes))
    }

    /// Whether a host with these processors can go on with it; the part that differs if not.
    ///
    /// # Errors
    ///
    /// When KVM refuses to say.
    pub fn is_of_host(&self, kvm: &Kvm) -> Result<Option<&'static str>, BuildError> {
        let vm = kvm.create_vm().map_err(kvm_refuses("to create a VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(kvm_refuses("to create a vCPU"))?;
        let count = u8::try_from(self.vcpus.len())
            .ok()
            .and_then(|count| VcpuCount::new(u32::from(count)).ok());
        let Some(count) = count else {
            return Ok(Some("the number of vCPUs"));
        };
        if super::features(kvm, count)?(0).as_slice() != self.cpuid {
            return Ok(Some("the processor's features"));
        }
        let is_as_fast = self.vcpus.first().is_some_and(|saved| {
            vcpu.get_tsc_khz().is_ok_and(|khz| khz == saved.tsc_khz)
                || vcpu.set_tsc_khz(saved.tsc_khz).is_ok()
        });
        Ok((!is_as_fast).then_some("the frequency of the processor's clock"))
    }
}

#[cfg(test)]
impl SavedMachine {
    /// A machine without a processor, for tests of what is around it.
    pub(crate) fn for_tests() -> Self {
        use devices::interrupt::Interrupt;
        use devices::serial::{KernelLog, KernelLogLimits, Serial};

        #[derive(Debug)]
        struct NoLine;

        impl Interrupt for NoLine {
            fn trigger(&self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let log = KernelLog::new(KernelLogLimits::default(), None);
        Self {
            cpuid: vec![kvm_cpuid_entry2::default()],
            vm: SavedVm {
                interrupt_controllers: Default::default(),
                interval_timer: kvm_pit_state2::default(),
                clock: kvm_clock_data::default(),
            },
            vcpus: Vec::new(),
            transports: Vec::new(),
            serial: Serial::new(std::sync::Arc::new(NoLine), log).save(),
            ram: Vec::new(),
        }
    }
}

/// A run of pages that are not all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedRam {
    pub(super) guest_address: u64,
    pub(super) length_bytes: u64,
    pub(super) file_offset_bytes: u64,
}

/// What KVM keeps for the whole VM.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedVm {
    interrupt_controllers: [kvm_irqchip; 3],
    interval_timer: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl SavedVm {
    pub(super) fn save(vm: &VmFd) -> Result<Self, BuildError> {
        let controller = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(kvm_refuses("to read an interrupt controller"))?;
            Ok::<_, BuildError>(chip)
        };
        Ok(Self {
            interrupt_controllers: [
                controller(KVM_IRQCHIP_PIC_MASTER)?,
                controller(KVM_IRQCHIP_PIC_SLAVE)?,
                controller(KVM_IRQCHIP_IOAPIC)?,
            ],
            interval_timer: vm
                .get_pit2()
                .map_err(kvm_refuses("to read the interval timer"))?,
            clock: vm
                .get_clock()
                .map_err(kvm_refuses("to read the guest's clock"))?,
        })
    }

    /// The guest's monotonic clock goes on where it stood: without the flag that would add the time since the freeze, which is not
    /// the clone's.
    pub(super) fn restore(&self, vm: &VmFd) -> Result<(), BuildError> {
        for chip in &self.interrupt_controllers {
            vm.set_irqchip(chip)
                .map_err(kvm_refuses("an interrupt controller's state"))?;
        }
        vm.set_pit2(&self.interval_timer)
            .map_err(kvm_refuses("the interval timer's state"))?;
        let clock = kvm_clock_data {
            clock: self.clock.clock,
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(kvm_refuses("the guest's clock"))
    }
}

/// A vCPU between two instructions.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedVcpu {
    tsc_khz: u32,
    activity: kvm_mp_state,
    general: kvm_regs,
    special: kvm_sregs,
    /// Only where the vCPU has XSAVE.
    extended_control: Option<kvm_xcrs>,
    extended: kvm_xsave,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    /// Written after the clock that it is compared with.
    deadline: Option<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl SavedVcpu {
    /// Writes down a vCPU that has no exit under way.
    pub(super) fn save(vcpu: &VcpuFd, msr_indices: &[u32]) -> Result<Self, BuildError> {
        // First: KVM takes in a pending start-up interrupt here, which changes the rest.
        let activity = vcpu
            .get_mp_state()
            .map_err(kvm_refuses("to read the vCPU's activity"))?;
        let mut msrs = read_msrs(vcpu, msr_indices)?;
        let deadline = msrs
            .iter()
            .position(|entry| entry.index == MSR_TSC_DEADLINE)
            .map(|place| msrs.remove(place));
        Ok(Self {
            tsc_khz: vcpu
                .get_tsc_khz()
                .map_err(kvm_refuses("to read the frequency of the vCPU's clock"))?,
            activity,
            general: vcpu
                .get_regs()
                .map_err(kvm_refuses("to read the vCPU's registers"))?,
            special: vcpu
                .get_sregs()
                .map_err(kvm_refuses("to read the vCPU's special registers"))?,
            extended_control: vcpu
                .get_xcrs()
                .ok()
                .filter(|registers| registers.nr_xcrs > 0),
            extended: vcpu
                .get_xsave()
                .map_err(kvm_refuses("to read the vCPU's vector registers"))?,
            debug: vcpu
                .get_debug_regs()
                .map_err(kvm_refuses("to read the vCPU's debug registers"))?,
            local_apic: vcpu
                .get_lapic()
                .map_err(kvm_refuses("to read the vCPU's local APIC"))?,
            msrs,
            deadline,
            events: vcpu
                .get_vcpu_events()
                .map_err(kvm_refuses("to read the vCPU's events"))?,
        })
    }

    /// Puts a new vCPU, which knows its CPUID, where the saved one stood.
    pub(super) fn restore(&self, vcpu: &VcpuFd) -> Result<(), BuildError> {
        let is_as_fast = vcpu.get_tsc_khz().is_ok_and(|khz| khz == self.tsc_khz);
        if !is_as_fast {
            vcpu.set_tsc_khz(self.tsc_khz)
                .map_err(|_| BuildError::Mismatch("the frequency of the processor's clock"))?;
        }
        vcpu.set_mp_state(self.activity)
            .map_err(kvm_refuses("the vCPU's activity"))?;
        vcpu.set_regs(&self.general)
            .map_err(kvm_refuses("the vCPU's registers"))?;
        vcpu.set_sregs(&self.special)
            .map_err(kvm_refuses("the vCPU's special registers"))?;
        if let Some(registers) = &self.extended_control {
            vcpu.set_xcrs(registers)
                .map_err(kvm_refuses("the vCPU's extended control register"))?;
        }
        Vcpu::set_extended(vcpu, &self.extended)
            .map_err(kvm_refuses("the vCPU's vector registers"))?;
        vcpu.set_debug_regs(&self.debug)
            .map_err(kvm_refuses("the vCPU's debug registers"))?;
        // Before the MSRs: the deadline's mode is the local APIC's.
        vcpu.set_lapic(&self.local_apic)
            .map_err(kvm_refuses("the vCPU's local APIC"))?;
        write_msrs(vcpu, &self.msrs)?;
        write_msrs(vcpu, self.deadline.as_slice())?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(kvm_refuses("the vCPU's events"))?;
        // Refused where the guest has no such clock; then there is no watchdog of it to be told either.
        let _ = vcpu.kvmclock_ctrl();
        Ok(())
    }
}

/// The indices of all MSRs that this host's KVM can read and write.
pub(super) fn msr_indices(kvm: &Kvm) -> Result<Vec<u32>, BuildError> {
    let list = kvm
        .get_msr_index_list()
        .map_err(kvm_refuses("to name its MSRs"))?;
    Ok(list.as_slice().to_vec())
}

/// Reads those that the vCPU has: KVM stops at the first that it does not have, and lists some that depend on CPUID.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, BuildError> {
    let mut found = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted: Vec<kvm_msr_entry> = rest
            .iter()
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut msrs = msrs_of(&wanted)?;
        let count = vcpu
            .get_msrs(&mut msrs)
            .map_err(kvm_refuses("to read the vCPU's MSRs"))?;
        found.extend(msrs.as_slice().iter().take(count).copied());
        // The one that was refused is not there.
        rest = rest.get(count + 1..).unwrap_or_default();
    }
    Ok(found)
}

fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), BuildError> {
    if entries.is_empty() {
        return Ok(());
    }
    let written = vcpu
        .set_msrs(&msrs_of(entries)?)
        .map_err(kvm_refuses("the vCPU's MSRs"))?;
    match entries.get(written) {
        None => Ok(()),
        Some(_) => Err(BuildError::Mismatch("the processor's MSRs")),
    }
}

fn msrs_of(entries: &[kvm_msr_entry]) -> Result<Msrs, BuildError> {
    Msrs::from_entries(entries).map_err(|_| BuildError::Mismatch("the number of MSRs"))
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED};

    use super::*;

    /// IA32_TSC, which runs on.
    const MSR_TSC: u32 = 0x10;

    struct Scratch {
        kvm: Kvm,
        vm: VmFd,
        vcpu: VcpuFd,
    }

    fn scratch() -> Scratch {
        let kvm = Kvm::new().unwrap();
        let vm = kvm.create_vm().unwrap();
        super::super::prepare_interrupts(&vm).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        Scratch { kvm, vm, vcpu }
    }

    fn save(scratch: &Scratch) -> SavedVcpu {
        SavedVcpu::save(&scratch.vcpu, &msr_indices(&scratch.kvm).unwrap()).unwrap()
    }

    /// What can be compared: the clock runs on between two looks.
    fn comparable(mut saved: SavedVcpu) -> Vec<u8> {
        saved.msrs.retain(|entry| entry.index != MSR_TSC);
        postcard::to_stdvec(&saved).unwrap()
    }

    #[test]
    fn a_restored_vcpu_is_the_saved_one_in_every_part() {
        let before = scratch();
        let mut regs = before.vcpu.get_regs().unwrap();
        (regs.rip, regs.rax, regs.r15) = (0x1234_5678, 1, 15);
        before.vcpu.set_regs(&regs).unwrap();
        let mut debug = before.vcpu.get_debug_regs().unwrap();
        debug.db[0] = 0xdead_0000;
        before.vcpu.set_debug_regs(&debug).unwrap();
        let mut extended = before.vcpu.get_xsave().unwrap();
        // The legacy area: XMM0 at byte 160; the header's mask says that SSE state is there.
        extended.region[40] = 0x4d4d_5830;
        extended.region[128] |= 0b11;
        Vcpu::set_extended(&before.vcpu, &extended).unwrap();
        let mut apic = before.vcpu.get_lapic().unwrap();
        // The task priority, at 0x80.
        apic.regs[0x80] = 0x20;
        before.vcpu.set_lapic(&apic).unwrap();
        before
            .vcpu
            .set_mp_state(kvm_mp_state {
                mp_state: KVM_MP_STATE_HALTED,
            })
            .unwrap();
        let mut events = before.vcpu.get_vcpu_events().unwrap();
        events.nmi.masked = 1;
        before.vcpu.set_vcpu_events(&events).unwrap();
        let saved = save(&before);

        let after = scratch();
        assert_ne!(comparable(save(&after)), comparable(save(&before)));
        saved.restore(&after.vcpu).unwrap();
        let again = save(&after);
        assert_eq!(again.general, saved.general);
        assert_eq!(again.debug, saved.debug);
        assert_eq!(again.extended.region[40], 0x4d4d_5830);
        assert_eq!(again.activity, saved.activity);
        assert_eq!(again.events, saved.events);
        assert_eq!(comparable(again), comparable(saved));
    }

    #[test]
    fn a_clock_that_runs_on_is_not_behind() {
        let before = scratch();
        let saved = save(&before);
        let after = scratch();
        saved.restore(&after.vcpu).unwrap();
        let tsc = |saved: &SavedVcpu| {
            let entry = saved.msrs.iter().find(|entry| entry.index == MSR_TSC);
            entry.unwrap().data
        };
        assert!(tsc(&save(&after)) >= tsc(&saved));
    }

    #[test]
    fn the_guests_clock_stands_where_it_stood_and_not_later() {
        let before = scratch();
        let saved = SavedVm::save(&before.vm).unwrap();
        let after = scratch();
        saved.restore(&after.vm).unwrap();
        let now = after.vm.get_clock().unwrap().clock;
        let passed_ns = now.checked_sub(saved.clock.clock).unwrap();
        assert!(passed_ns < 1_000_000_000, "{passed_ns} ns passed");
    }

    #[test]
    fn an_msr_that_this_host_does_not_have_is_a_mismatch() {
        let before = scratch();
        let mut saved = save(&before);
        saved.msrs.push(kvm_msr_entry {
            index: 0x4b4d_1234,
            ..Default::default()
        });
        let refused = saved.restore(&scratch().vcpu);
        assert!(matches!(refused, Err(BuildError::Mismatch(_))));
    }
}
