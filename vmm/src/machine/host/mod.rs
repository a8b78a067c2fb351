//! What the host's KVM can do, found by asking it.
//!
//! Hardware virtualisation, nested virtualisation and a KVM that emulates the guest's kernel in software all offer the same
//! API, and differ in what a guest kernel may execute. [`Quirks`] names the differences that matter; the rest of the program
//! has one code path and looks at names, never at the host's make or version.

mod probe;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use probe::{ProbeError, open_kvm};

/// Something that a guest kernel expects and this host does not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quirk {
    /// `xgetbv`, `xsave` and `xrstor` fail in the guest's kernel; the VMM does them itself.
    NoXsave,
    /// `popcnt` fails in the guest's kernel.
    NoPopcnt,
    /// `stac` and `clac` fail: no supervisor-mode access prevention.
    NoSmap,
    /// `rdtscp` fails in the guest's kernel.
    NoRdtscp,
    /// `cmpxchg16b` fails in the guest's kernel, whatever CPUID says.
    NoCx16,
    /// "Enhanced `rep movsb/stosb`" is visible to the guest and not supported by KVM, so each byte is emulated.
    NoErms,
    /// "Fast short `rep movsb`", likewise.
    NoFsrm,
    /// `int3` in the guest's kernel ends in an emulation failure; the VMM delivers the exception itself.
    NoInt3,
    /// `fwait` in the guest's kernel ends in an emulation failure; our kernel leaves it out when told, for another the VMM steps
    /// over it.
    NoFwait,
    /// `syscall` arrives as a page fault at the kernel's entry point; the guest kernel repairs it when told.
    SyscallFaults,
}

impl Quirk {
    /// The CPU features that the guest's kernel is told to leave alone (`clearcpuid=`), as /proc/cpuinfo spells them.
    fn cleared_features(self) -> &'static [&'static str] {
        match self {
            // What is left is what the VMM does for it: the standard format, with components that KVM lets a guest have everywhere.
            Self::NoXsave => &[
                "xsaveopt", "xsavec", "xsaves", "xgetbv1", "amx_tile", "mpx", "pku",
            ],
            Self::NoPopcnt => &["popcnt"],
            Self::NoSmap => &["smap"],
            Self::NoRdtscp => &["rdtscp"],
            Self::NoCx16 => &["cx16"],
            Self::NoErms => &["erms"],
            Self::NoFsrm => &["fsrm"],
            Self::NoInt3 | Self::NoFwait | Self::SyscallFaults => &[],
        }
    }

    /// The name under which the guest's kernel knows a repair of its own (`vmm_quirks=`).
    fn repaired_by_guest(self) -> Option<&'static str> {
        match self {
            Self::SyscallFaults => Some("syscall"),
            Self::NoFwait => Some("fwait"),
            _ => None,
        }
    }

    /// What it means, for people.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::NoXsave => "xsave and xrstor in the guest's kernel are done by the VMM",
            Self::NoPopcnt => "popcnt does not work in the guest's kernel",
            Self::NoSmap => "stac/clac do not work in the guest's kernel",
            Self::NoRdtscp => "rdtscp does not work in the guest's kernel",
            Self::NoCx16 => "cmpxchg16b does not work in the guest's kernel",
            Self::NoErms => "rep movsb/stosb are emulated byte by byte",
            Self::NoFsrm => "short rep movsb are emulated byte by byte",
            Self::NoInt3 => "int3 in the guest's kernel is delivered by the VMM",
            Self::NoFwait => "fwait in the guest's kernel is stepped over by the VMM",
            Self::SyscallFaults => {
                "system calls arrive as page faults and are repaired by the guest's kernel"
            }
        }
    }
}

/// All quirks of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quirks(BTreeSet<Quirk>);

impl Quirks {
    /// Asks `/dev/kvm`, or takes the answer of the same boot of the host from `cache`.
    ///
    /// The cache is only a shortcut: one that cannot be read or written is done without.
    ///
    /// # Errors
    /// When `/dev/kvm` cannot be opened or does not behave as KVM.
    pub fn of_host(cache: &Path) -> Result<Self, ProbeError> {
        let boot_id =
            std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let cached = std::fs::read(cache)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Cached>(&bytes).ok());
        if let Some(cached) = cached
            && !boot_id.is_empty()
            && cached.boot_id == boot_id
            && cached.version == CACHE_VERSION
        {
            return Ok(cached.quirks);
        }
        let quirks = Self(probe::probe()?);
        let entry = Cached {
            version: CACHE_VERSION,
            boot_id,
            quirks: quirks.clone(),
        };
        if let Err(error) = entry.write(cache) {
            tracing::debug!(%error, path = %cache.display(), "the host probe's answer is not kept");
        }
        Ok(quirks)
    }

    /// Whether the host has this one.
    #[must_use]
    pub fn has(&self, quirk: Quirk) -> bool {
        self.0.contains(&quirk)
    }

    /// All of them, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = Quirk> + '_ {
        self.0.iter().copied()
    }

    /// What the guest's kernel must be told on its command line.
    #[must_use]
    pub fn kernel_parameters(&self) -> Vec<String> {
        let mut parameters = Vec::new();
        let cleared: Vec<&str> = self
            .iter()
            .flat_map(Quirk::cleared_features)
            .copied()
            .collect();
        if !cleared.is_empty() {
            parameters.push(format!("clearcpuid={}", cleared.join(",")));
        }
        let repaired: Vec<&str> = self.iter().filter_map(Quirk::repaired_by_guest).collect();
        if !repaired.is_empty() {
            parameters.push(format!("vmm_quirks={}", repaired.join(",")));
        }
        parameters
    }
}

/// Changes whenever the probe asks something new.
const CACHE_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Cached {
    version: u32,
    boot_id: String,
    quirks: Quirks,
}

impl Cached {
    fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        serde_json::to_writer(&mut file, self)?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_quirks_needs_no_parameters() {
        assert_eq!(Quirks::default().kernel_parameters(), Vec::<String>::new());
    }

    #[test]
    fn each_quirk_that_the_kernel_must_know_is_on_its_command_line() {
        let quirks = Quirks(BTreeSet::from([
            Quirk::NoXsave,
            Quirk::NoSmap,
            Quirk::NoCx16,
            Quirk::SyscallFaults,
        ]));
        assert_eq!(
            quirks.kernel_parameters(),
            [
                "clearcpuid=xsaveopt,xsavec,xsaves,xgetbv1,amx_tile,mpx,pku,smap,cx16",
                "vmm_quirks=syscall"
            ]
        );
    }

    #[test]
    fn the_answer_of_another_boot_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("host.json");
        let stale = Cached {
            version: CACHE_VERSION,
            boot_id: "another boot".to_owned(),
            quirks: Quirks(BTreeSet::from([Quirk::NoCx16])),
        };
        stale.write(&path).unwrap();
        let asked = Quirks::of_host(&path).unwrap();
        let again = Quirks::of_host(&path).unwrap();
        assert_eq!(asked, again);
        assert_eq!(asked, Quirks(probe::probe().unwrap()));
    }
}
