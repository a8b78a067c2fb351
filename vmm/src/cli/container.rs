//! Flags of `vmm run` about the container inside the machine: docker's names, and docker's meanings with the guest for the host.

use std::path::PathBuf;

use clap::Args;

use crate::limits::ByteSize;
use crate::workload::container::{
    CapabilityName, ContainerError, CpuSet, Device, SecurityOption, Sysctl, Tmpfs, Ulimit,
    ipc_mode, only_private, user_mode,
};
use crate::workload::systemd::ForSystemd;

/// What a whole configuration says itself.
const SAID_BY_CONFIG: [&str; 29] = [
    "cap_add",
    "cap_drop",
    "privileged",
    "security_opt",
    "ulimit",
    "sysctl",
    "device",
    "tmpfs",
    "shm_size",
    "pids_limit",
    "cpu_shares",
    "cpuset_cpus",
    "group_add",
    "userns",
    "uts",
    "ipc",
    "pid",
    "oom_score_adj",
    "init",
    "systemd",
    "read_only",
    "hostname",
    "user",
    "env",
    "env_file",
    "workdir",
    "entrypoint",
    "fork_point",
    "tty",
];

/// Flags about the container. All of them act inside the guest: a device, a processor or a namespace of the host cannot be named.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Container (all of it inside the guest)")]
pub struct ContainerArgs {
    /// Give the command what FILE says, a whole config.json of the OCI runtime-spec; the image is only its root
    ///
    /// Paths, devices, namespaces and hooks in it are those of the guest.
    #[arg(long, value_name = "FILE", conflicts_with_all = SAID_BY_CONFIG)]
    pub config: Option<PathBuf>,
    /// Add a capability of the guest's kernel, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<CapabilityName>,
    /// Take a capability away, or ALL
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<CapabilityName>,
    /// Give the command every capability and device of the guest, and neither filter nor masked paths
    #[arg(long)]
    pub privileged: bool,
    /// no-new-privileges, seccomp=FILE (a profile of the host's files, for the guest), seccomp=unconfined or systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<SecurityOption>,
    /// Limit a resource of the command's process, as in nofile=1024:4096
    #[arg(long, value_name = "TYPE=SOFT[:HARD]")]
    pub ulimit: Vec<Ulimit>,
    /// Set a kernel parameter of the container's namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    pub sysctl: Vec<Sysctl>,
    /// Give the container a device of the guest, as in /dev/fuse or /dev/net/tun:/dev/tun:rw
    #[arg(long, value_name = "DEVICE[:PATH][:RIGHTS]")]
    pub device: Vec<Device>,
    /// Mount a file system in the guest's memory, with options of mount(8)
    #[arg(long, value_name = "PATH[:OPTIONS]")]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "SIZE")]
    pub shm_size: Option<ByteSize>,
    /// The most processes and threads at a time; -1 for no limit
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    /// Weight among the cgroups of the machine
    #[arg(short = 'c', long, value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,
    /// Processors of the machine to run on, as in 0-1,3
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<CpuSet>,
    /// Add the user to a group: a name of the image, or a number
    #[arg(long, value_name = "GROUP")]
    pub group_add: Vec<String>,
    /// `private` gives the container users of its own: its root is nobody in the guest
    #[arg(long, value_name = "MODE", value_parser = user_mode)]
    pub userns: Option<bool>,
    /// `private`, as always: the host's UTS namespace is out of reach
    #[arg(long, value_name = "MODE", value_parser = |text: &str| only_private("UTS", text).map(|()| true))]
    pub uts: Option<bool>,
    /// `private` as always, or `none` for no /dev/shm either
    #[arg(long, value_name = "MODE", value_parser = ipc_mode)]
    pub ipc: Option<bool>,
    /// `private`, as always: the host's processes are out of reach
    #[arg(long, value_name = "MODE", value_parser = |text: &str| only_private("PID", text).map(|()| true))]
    pub pid: Option<bool>,
    /// How readily the guest's kernel ends the command for want of memory, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,
    /// Give the command a parent that passes signals on and reaps processes
    #[arg(long)]
    pub init: bool,
    /// Give the command what systemd needs: its cgroup to manage, tmpfs on /run and /run/lock, SIGRTMIN+3 for SIGTERM [default: true]
    ///
    /// `true` does so if the command is systemd, or init of an sbin directory; `always`, which a bare --systemd is, in any case.
    #[arg(
        long,
        value_name = "MODE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        conflicts_with = "init"
    )]
    pub systemd: Option<ForSystemd>,
}

impl ContainerArgs {
    /// Says whether a machine of so many processors has all that are named.
    ///
    /// # Errors
    ///
    /// If it has not.
    pub fn check_processors(&self, vcpus: u32) -> Result<(), ContainerError> {
        self.cpuset_cpus
            .as_ref()
            .map_or(Ok(()), |set| set.check(vcpus))
    }

    /// The limit of processes, if there is one.
    #[must_use]
    pub fn pids(&self) -> Option<u32> {
        // Docker's 0 and -1 are no limit.
        self.pids_limit
            .filter(|limit| *limit > 0)
            .map(|limit| u32::try_from(limit).unwrap_or(u32::MAX))
    }
}
