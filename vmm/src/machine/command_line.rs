//! The guest kernel's command line, each parameter with its reason.
//!
//! Linux Documentation/admin-guide/kernel-parameters.txt.

use linux_loader::cmdline::{Cmdline, Error};
use thiserror::Error;

use super::arch::layout::{
    COMMAND_LINE_MAX_BYTES, VIRTIO_GSIS, VIRTIO_SLOT_BYTES, virtio_slot_address,
};
use super::host::Quirks;

/// A command line that cannot be put together.
#[derive(Debug, Error)]
pub enum CommandLineError {
    /// A parameter is too long or has a character that does not belong.
    #[error("the guest kernel's command line cannot take {parameter:?}")]
    Refused {
        /// Which.
        parameter: String,
        /// Why.
        #[source]
        source: Error,
    },
}

/// What every guest is told.
const PARAMETERS: [&str; 11] = [
    // The kernel's log goes to the serial port.
    "console=ttyS0",
    // A kernel that panics resets the machine at once, through the keyboard controller that the machine has.
    "reboot=k",
    "panic=-1",
    // KVM's TSC is constant, and there is no other clock to check it against.
    "tsc=reliable",
    // Nothing waits for a grace period of normal length.
    "rcupdate.rcu_expedited=1",
    // No interface whose hardware address, drawn during the boot, all clones would have; a workload may still add some.
    "dummy.numdummies=0",
    // The agent's image is the root of PID 1.
    "root=/dev/pmem0",
    "rootfstype=erofs",
    "rootflags=dax=always",
    "ro",
    "init=/init",
];

/// All parameters, without the final zero byte. Only the first `used_slots` slots of the bank are named: an empty one costs the
/// guest's kernel 64,000 instructions to look at.
pub(super) fn build(
    verbose_kernel: bool,
    quirks: &Quirks,
    used_slots: usize,
) -> Result<Vec<u8>, CommandLineError> {
    let mut line = Cmdline::new(COMMAND_LINE_MAX_BYTES).map_err(refused("an empty line"))?;
    let mut insert = |parameter: &str| line.insert_str(parameter).map_err(refused(parameter));
    for parameter in PARAMETERS {
        insert(parameter)?;
    }
    insert(if verbose_kernel {
        "loglevel=7"
    } else {
        "quiet"
    })?;
    for parameter in quirks.kernel_parameters() {
        insert(&parameter)?;
    }
    for (slot, gsi) in VIRTIO_GSIS.into_iter().enumerate().take(used_slots) {
        let address = virtio_slot_address(slot);
        insert(&format!(
            "virtio_mmio.device={}K@{address:#x}:{gsi}",
            VIRTIO_SLOT_BYTES / 1024
        ))?;
    }
    let text = line.as_cstring().map_err(refused("the whole line"))?;
    Ok(text.into_bytes())
}

fn refused(parameter: &str) -> impl FnOnce(Error) -> CommandLineError {
    let parameter = parameter.to_owned();
    move |source| CommandLineError::Refused { parameter, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(verbose: bool, used_slots: usize) -> String {
        String::from_utf8(build(verbose, &Quirks::default(), used_slots).unwrap()).unwrap()
    }

    #[test]
    fn a_full_bank_fits() {
        let line = line(false, VIRTIO_GSIS.len());
        assert!(
            line.contains("virtio_mmio.device=4K@0xd0010000:21"),
            "{line}"
        );
        assert!(line.len() < COMMAND_LINE_MAX_BYTES);
    }

    #[test]
    fn only_slots_in_use_are_named() {
        let line = line(false, 2);
        assert!(
            line.contains("virtio_mmio.device=4K@0xd0002000:6"),
            "{line}"
        );
        assert!(!line.contains("0xd0003000"), "{line}");
    }

    #[test]
    fn only_a_verbose_kernel_is_not_quiet() {
        let is_quiet = |line: String| line.split(' ').any(|parameter| parameter == "quiet");
        assert!(is_quiet(line(false, 1)));
        assert!(!is_quiet(line(true, 1)));
    }
}
