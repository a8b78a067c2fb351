//! Capabilities: capabilities(7), runtime-spec `process.capabilities`.

use protocol::StartFailure;
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities,
};
use serde::{Deserialize, Serialize};

use crate::spec;
use crate::step::{Step as _, unsupported};

/// The names, in the order of their numbers (`include/uapi/linux/capability.h`).
const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets of a process, a bit for each number.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Capabilities {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

impl Capabilities {
    /// Turns names into sets. What the kernel does not know is left out with a warning, as the specification demands.
    pub(crate) fn new(names: &spec::Capabilities) -> Self {
        Self {
            bounding: set("bounding", &names.bounding),
            effective: set("effective", &names.effective),
            inheritable: set("inheritable", &names.inheritable),
            permitted: set("permitted", &names.permitted),
            ambient: set("ambient", &names.ambient),
        }
    }

    /// Takes all other capabilities out of the bounding set. Needs `CAP_SETPCAP`, so it comes before
    /// [`Capabilities::apply`].
    ///
    /// # Errors
    ///
    /// The kernel's, see prctl(2), `PR_CAPBSET_DROP`.
    pub(crate) fn bound(&self) -> Result<(), StartFailure> {
        for capability in each(all() & !self.bounding) {
            remove_capability_from_bounding_set(capability)
                .step(|| "bounding the capabilities".to_owned())?;
        }
        Ok(())
    }

    /// Sets the other four sets.
    ///
    /// # Errors
    ///
    /// The kernel's, see capset(2) and prctl(2), `PR_CAP_AMBIENT`.
    pub(crate) fn apply(&self) -> Result<(), StartFailure> {
        let Self {
            effective,
            permitted,
            inheritable,
            ambient,
            ..
        } = *self;
        set_capabilities(
            None,
            CapabilitySets {
                effective: CapabilitySet::from_bits_retain(effective),
                permitted: CapabilitySet::from_bits_retain(permitted),
                inheritable: CapabilitySet::from_bits_retain(inheritable),
            },
        )
        .step(|| "setting the capabilities".to_owned())?;
        for capability in each(ambient) {
            configure_capability_in_ambient_set(capability, true)
                .step(|| "setting the ambient capabilities".to_owned())?;
        }
        Ok(())
    }
}

/// The bits of all known capabilities.
fn all() -> u64 {
    (1 << NAMES.len()) - 1
}

fn each(set: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..NAMES.len())
        .map(|number| 1 << number)
        .filter(move |one| set & one != 0)
        .map(CapabilitySet::from_bits_retain)
}

fn set(which: &str, names: &[String]) -> u64 {
    let mut bits = 0;
    for name in names {
        match NAMES.iter().position(|known| known == name) {
            Some(number) => bits |= 1 << number,
            None => crate::warn(&unsupported(
                format!("process.capabilities.{which}"),
                format!("there is no capability {name}"),
            )),
        }
    }
    bits
}
