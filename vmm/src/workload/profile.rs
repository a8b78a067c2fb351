//! The fixed part of a workload's configuration: docker's default profile.
//!
//! Two things are left out. There is no seccomp profile: the agent refuses one until it can install it. There is no network
//! namespace: the machine's own is the container's, and a second one inside would only cost time at every start.

use std::collections::HashMap;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType,
};

/// The capabilities that a container's root has. An unprivileged user loses them at the exec, capabilities(7).
const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

const NAMESPACES: [LinuxNamespaceType; 5] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Cgroup,
];

/// Destination, type, options.
const MOUNTS: [(&str, &str, &[&str]); 7] = [
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
];

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a container inherits where docker runs as a service, in place of what the kernel gives its first process, which is
/// too little for common servers. Type, soft limit, hard limit.
const RLIMITS: [(PosixRlimitType, u64, u64); 2] = [
    (PosixRlimitType::RlimitNofile, 1024, 524_288),
    (PosixRlimitType::RlimitNproc, u64::MAX, u64::MAX),
];

/// Lets every user listen on low ports and send pings, as in docker.
const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

pub(super) fn capabilities() -> Result<LinuxCapabilities, OciSpecError> {
    let root: Capabilities = CAPABILITIES.into_iter().collect();
    LinuxCapabilitiesBuilder::default()
        .bounding(root.clone())
        .effective(root.clone())
        .permitted(root)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
}

pub(super) fn namespaces() -> Result<Vec<LinuxNamespace>, OciSpecError> {
    NAMESPACES
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect()
}

pub(super) fn mounts() -> Result<Vec<Mount>, OciSpecError> {
    let mount = |(destination, kind, options): (&str, &str, &[&str])| {
        MountBuilder::default()
            .destination(destination)
            .typ(kind)
            .source(kind)
            .options(
                options
                    .iter()
                    .map(|option| (*option).to_owned())
                    .collect::<Vec<_>>(),
            )
            .build()
    };
    MOUNTS.into_iter().map(mount).collect()
}

pub(super) fn rlimits() -> Result<Vec<PosixRlimit>, OciSpecError> {
    RLIMITS
        .into_iter()
        .map(|(kind, soft, hard)| {
            PosixRlimitBuilder::default()
                .typ(kind)
                .soft(soft)
                .hard(hard)
                .build()
        })
        .collect()
}

pub(super) fn sysctls() -> HashMap<String, String> {
    SYSCTLS
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

pub(super) fn masked_paths() -> Vec<String> {
    MASKED_PATHS.map(str::to_owned).to_vec()
}

pub(super) fn readonly_paths() -> Vec<String> {
    READONLY_PATHS.map(str::to_owned).to_vec()
}
