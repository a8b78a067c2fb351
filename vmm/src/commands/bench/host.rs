//! What the figures were measured on.

use std::fs;

use serde::Serialize;

use crate::dirs::Directories;
use crate::machine::host::Quirks;
use crate::report::chain;

/// The host as far as it matters for figures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Host {
    /// The processor as it calls itself.
    pub(super) cpu: String,
    /// How many of them this process may use.
    pub(super) processors: u32,
    pub(super) memory_bytes: u64,
    /// The kernel's release.
    pub(super) kernel: String,
    /// What kind of KVM there is, in words.
    pub(super) kvm: String,
}

impl Host {
    pub(super) fn look(directories: &Directories) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let kernel = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        Self {
            cpu: field(&cpuinfo, "model name")
                .unwrap_or("unknown")
                .to_owned(),
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes("MemTotal"),
            kernel,
            kvm: kvm(directories, &cpuinfo),
        }
    }
}

/// Memory that could be had now without swapping, as the kernel estimates it.
pub(super) fn available_bytes() -> u64 {
    memory_bytes("MemAvailable")
}

fn memory_bytes(name: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes: Option<u64> =
        field(&meminfo, name).and_then(|value| value.strip_suffix(" kB")?.parse().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// The value behind the first `name:`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim())
    })
}

/// The flag `hypervisor` says that this host is itself a guest.
fn kvm(directories: &Directories, cpuinfo: &str) -> String {
    let flags = field(cpuinfo, "flags").unwrap_or_default();
    let is_guest = flags.split(' ').any(|flag| flag == "hypervisor");
    match Quirks::of_host(&directories.host_cache()) {
        Err(error) => format!("cannot be used: {}", chain(&error)),
        Ok(quirks) => match (quirks.iter().count(), is_guest) {
            (0, false) => "runs guests as on hardware".to_owned(),
            (0, true) => "nested: this host is a guest itself".to_owned(),
            (count, _) => {
                format!("software: emulates or restricts the guest's kernel in {count} ways")
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model\t\t: 1\nmodel name\t: Fast CPU\nflags\t\t: a b\n";
        assert_eq!(field(text, "model name"), Some("Fast CPU"));
        assert_eq!(field(text, "name"), None);
    }
}
