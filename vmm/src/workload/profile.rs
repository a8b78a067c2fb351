//! The fixed part of a workload's configuration: docker's default profile. Its filter of system calls is in `seccomp/default.rs`.
//!
//! It differs from docker's in this:
//!
//! | docker | here | why |
//! |---|---|---|
//! | a network namespace | none | the machine's own is the container's, and a second one inside would only cost time at every start |
//! | AppArmor or SELinux where the host has them | none | the guest's kernel has neither: the boundary between tenants is the machine |
//! | no limits unless asked for | memory and processor time of the machine | the machine is as large as its workload may get |
//! | `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf` are files of the host's | files in the machine's memory, where it has a network or names were chosen; else the image's | nobody writes to them while it runs, and a start without a network need not pay for them |
//! | `--privileged` shows every device of the host | those of the guest that are in [`DEVICES`] | there are no others that mean anything to a container |

use serde_json::{Value, json};

/// The capabilities that a container's root has. An unprivileged user loses them at the exec, capabilities(7).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Every capability that the guest's kernel knows, in the order of their numbers: include/uapi/linux/capability.h.
pub(super) const ALL_CAPABILITIES: [&str; 41] = [
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

/// Whether a container's root has a capability unless somebody says otherwise.
pub(super) fn is_default_capability(name: &str) -> bool {
    DEFAULT_CAPABILITIES.contains(&name)
}

/// The devices of the guest that a container may be given beside those that every one has. Path, major and minor number:
/// Documentation/admin-guide/devices.txt.
pub(super) const DEVICES: [(&str, u32, u32); 10] = [
    ("/dev/full", 1, 7),
    ("/dev/fuse", 10, 229),
    ("/dev/hwrng", 10, 183),
    ("/dev/kmsg", 1, 11),
    ("/dev/net/tun", 10, 200),
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/zero", 1, 5),
];

/// The names of [`DEVICES`], as a sentence has them.
pub(super) fn device_names() -> String {
    DEVICES.map(|(path, ..)| path).join(", ")
}

/// The machine's ids of a container's users where it has users of its own: far above those of any image.
pub(super) const FIRST_USER: u32 = 0x4000_0000;
pub(super) const USERS: u32 = 65_536;

pub(super) const NAMESPACES: [&str; 5] = ["pid", "mount", "uts", "ipc", "cgroup"];

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

pub(super) const MASKED_PATHS: [&str; 11] = [
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

pub(super) const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a container inherits where docker runs as a service, in place of what the kernel gives its first process, which is
/// too little for common servers. Type, soft limit, hard limit.
const RLIMITS: [(&str, u64, u64); 2] = [
    ("RLIMIT_NOFILE", 1024, 524_288),
    ("RLIMIT_NPROC", u64::MAX, u64::MAX),
];

/// Lets every user listen on low ports and send pings, as in docker.
pub(super) const SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

pub(super) fn mounts() -> Vec<Value> {
    MOUNTS
        .into_iter()
        .map(|(destination, kind, options)| {
            json!({ "destination": destination, "type": kind, "source": kind, "options": options })
        })
        .collect()
}

pub(super) fn rlimits() -> Vec<Value> {
    RLIMITS
        .into_iter()
        .map(|(kind, soft, hard)| json!({ "type": kind, "soft": soft, "hard": hard }))
        .collect()
}
