//! What was chosen for a machine, as far as somebody asks for it later.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Signal;
use super::record::shortened;
use crate::logs::LogConfig;
use crate::network::Network;
use crate::policy::{HealthCheck, RestartPolicy};
use crate::volumes::TypedMount;

/// What was chosen for a machine. Records of earlier versions have none of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// The monitor's process, whose end is the machine's. It says nothing about who is alive.
    pub monitor_pid: u32,
    /// What a person wrote on it.
    pub labels: BTreeMap<String, String>,
    /// What becomes of the workload's output; none if a client in the foreground has it.
    pub log: Option<LogConfig>,
    /// What asks the workload to end.
    pub stop_signal: Option<Signal>,
    /// How long it may take then; less than none is for ever.
    pub stop_timeout_seconds: Option<i64>,
    /// Whether it is started again when its workload has ended.
    pub restart: RestartPolicy,
    /// How it is asked how it is; none if it is not.
    pub health: Option<HealthCheck>,
    /// The host name inside.
    pub hostname: String,
    /// The user, docker's syntax.
    pub user: String,
    /// The directory that the workload starts in.
    pub working_directory: String,
    /// Its environment.
    pub environment: Vec<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether nothing may write to its root.
    pub read_only: bool,
    /// What it may use of the memory.
    pub memory_bytes: u64,
    /// What it may use of the processors, in billionths of one.
    pub nano_cpus: u64,
    /// Its other limits.
    pub limits: OtherLimits,
    /// What it mounts beside its image.
    pub mounts: Vec<TypedMount>,
    /// Its network.
    pub network: Network,
}

/// Limits that are not those of every machine, in docker's numbers: 0, or nothing, where there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OtherLimits {
    /// Memory that is taken away last.
    pub memory_reservation_bytes: u64,
    /// Memory and swap together; -1 is no limit.
    pub memory_swap_bytes: i64,
    /// Microseconds of processor time in each period, in place of the billionths.
    pub cpu_quota_us: i64,
    /// That period.
    pub cpu_period_us: u64,
    /// Weight among the cgroups of the machine.
    pub cpu_shares: u64,
    /// Processors of the machine.
    pub cpuset_cpus: String,
    /// Processes and threads.
    pub pids_limit: i64,
}

impl Settings {
    /// As they are written down: bounded, whatever an image holds.
    pub(super) fn bounded(self) -> Self {
        Self {
            environment: shortened(self.environment),
            ..self
        }
    }
}
