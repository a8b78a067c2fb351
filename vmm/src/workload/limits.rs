//! Limits of a container that change, while its machine runs or before it starts again: docker's `update`.

use std::str::FromStr;

use serde_json::{Value, json};
use thiserror::Error;

use super::container::{ContainerError, CpuSet};
use crate::limits::{ByteSize, CpuQuota, LimitError, MemoryLimit};
use crate::report::Help;
use crate::state::Settings;

/// The least processor time in a period that the kernel takes (Linux, `Documentation/scheduler/sched-bwc.rst`), and docker.
const MIN_QUOTA_US: i64 = 1000;
/// The shortest period, as above.
const MIN_PERIOD_US: u64 = 1000;
/// The longest period, docker's and the kernel's.
const MAX_PERIOD_US: u64 = 1_000_000;

/// Memory and swap together: a size, or no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SwapLimit(Option<ByteSize>);

impl FromStr for SwapLimit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        match text {
            "-1" => Ok(Self(None)),
            text => text.parse().map(|size| Self(Some(size))),
        }
    }
}

impl SwapLimit {
    /// In bytes; -1 for no limit.
    fn bytes(self) -> i64 {
        let bytes = self.0.map(ByteSize::bytes);
        bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
    }
}

/// What is to become of limits. What is none stays as it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct LimitChange {
    /// Processor time.
    pub cpus: Option<CpuQuota>,
    /// The same in docker's other way: microseconds in each period; none above zero is no limit.
    pub cpu_quota_us: Option<i64>,
    /// The period.
    pub cpu_period_us: Option<u64>,
    /// Weight among the cgroups of the machine; 0 changes nothing, as with docker.
    pub cpu_shares: Option<u64>,
    /// Processors of the machine.
    pub cpuset: Option<CpuSet>,
    /// Memory.
    pub memory: Option<MemoryLimit>,
    /// Memory that is taken away last.
    pub memory_reservation: Option<ByteSize>,
    /// Memory and swap together.
    pub memory_swap: Option<SwapLimit>,
    /// Processes and threads; none above zero is no limit.
    pub pids: Option<i64>,
}

/// Why limits cannot change so.
#[derive(Debug, Error)]
pub enum LimitsError {
    /// Nothing was named.
    #[error("nothing was named that is to change")]
    Nothing,
    /// The sum is less than one of its parts.
    #[error("{swap} bytes of memory and swap together are less than {memory} bytes of memory")]
    SwapBelowMemory {
        /// Memory and swap.
        swap: i64,
        /// Memory.
        memory: u64,
    },
    /// More is reserved than there is.
    #[error("{reservation} bytes of memory cannot be reserved of {memory}")]
    ReservationAboveMemory {
        /// What is to be reserved.
        reservation: u64,
        /// The limit.
        memory: u64,
    },
    /// The machine is too small.
    #[error(
        "the machine was started with room for {room_mib} MiB of its workload's memory, and {asked_mib} MiB were asked for"
    )]
    TooMuchMemory {
        /// What was asked for.
        asked_mib: u64,
        /// What there is.
        room_mib: u64,
    },
    /// There is no memory that the swap would be added to.
    #[error("memory and swap together are limited only along with the memory, which is not")]
    SwapAlone,
    /// The guest's kernel takes no such limit.
    #[error(
        "{quota_us} microseconds of processor time in each {period_us} are no limit that a kernel takes"
    )]
    CpuTime {
        /// The processor time.
        quota_us: i64,
        /// The period.
        period_us: u64,
    },
    /// The machine will have too few processors.
    #[error("the machine would start with {vcpus} processors, too few for its limits")]
    TooFewCpus {
        /// What there would be.
        vcpus: u32,
    },
    /// The machine has too few processors.
    #[error("the machine was started with {vcpus} processors, and more were asked for")]
    TooManyCpus {
        /// What there is.
        vcpus: u32,
    },
    /// The machine has no such processor.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl Help for LimitsError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Nothing => Some("name it, as in --memory 256m".to_owned()),
            Self::SwapBelowMemory { .. } => {
                Some("change --memory and --memory-swap together".to_owned())
            }
            Self::ReservationAboveMemory { .. } => {
                Some("change --memory and --memory-reservation together".to_owned())
            }
            Self::SwapAlone => Some("name --memory, too".to_owned()),
            Self::CpuTime { .. } => Some(format!(
                "the processor time is at least {MIN_QUOTA_US} microseconds, the period {MIN_PERIOD_US} to {MAX_PERIOD_US}"
            )),
            Self::TooFewCpus { .. } => Some(
                "it has as many as --cpus, rounded up: choose that, --cpu-quota and --cpuset-cpus to match".to_owned(),
            ),
            Self::TooMuchMemory { .. } | Self::TooManyCpus { .. } | Self::Container(_) => None,
        }
    }
}

impl LimitChange {
    /// Changes what is recorded of a machine's limits.
    ///
    /// # Errors
    ///
    /// If nothing changes, or limits contradict each other.
    pub fn apply(&self, settings: &mut Settings) -> Result<(), LimitsError> {
        if *self == Self::default() {
            return Err(LimitsError::Nothing);
        }
        let limits = &mut settings.limits;
        if let Some(cpus) = self.cpus {
            settings.nano_cpus = cpus.nano_cpus();
            limits.cpu_quota_us = 0;
            limits.cpu_period_us = 0;
        }
        set(&mut limits.cpu_quota_us, self.cpu_quota_us);
        set(&mut limits.cpu_period_us, self.cpu_period_us);
        set(&mut limits.cpu_shares, self.weight());
        let cpuset = self.cpuset.as_ref().map(|set| set.text().to_owned());
        set(&mut limits.cpuset_cpus, cpuset);
        let memory = self.memory.map(MemoryLimit::bytes);
        set(&mut settings.memory_bytes, memory);
        let reservation = self.memory_reservation.map(ByteSize::bytes);
        set(&mut limits.memory_reservation_bytes, reservation);
        let swap = self.memory_swap.map(SwapLimit::bytes);
        set(&mut limits.memory_swap_bytes, swap);
        set(&mut limits.pids_limit, self.pids);

        let memory = settings.memory_bytes;
        let swap = limits.memory_swap_bytes;
        if swap > 0 && memory == 0 {
            return Err(LimitsError::SwapAlone);
        }
        if u64::try_from(swap).is_ok_and(|swap| swap > 0 && swap < memory) {
            return Err(LimitsError::SwapBelowMemory { swap, memory });
        }
        let reservation = limits.memory_reservation_bytes;
        if memory > 0 && reservation > memory {
            return Err(LimitsError::ReservationAboveMemory {
                reservation,
                memory,
            });
        }
        let (quota_us, period_us) = cpu_time(settings);
        let is_quota = !(0..MIN_QUOTA_US).contains(&quota_us);
        match is_quota && (MIN_PERIOD_US..=MAX_PERIOD_US).contains(&period_us) {
            true => Ok(()),
            false => Err(LimitsError::CpuTime {
                quota_us,
                period_us,
            }),
        }
    }

    /// The weight, if one was named.
    fn weight(&self) -> Option<u64> {
        self.cpu_shares.filter(|shares| *shares > 0)
    }

    /// What changes, as `linux.resources` of the runtime-spec. Of limits that are one for the guest's kernel all are there.
    #[must_use]
    pub fn resources(&self, changed: &Settings) -> Value {
        let mut resources = json!({});
        let limits = &changed.limits;
        let has_cpu_time =
            self.cpus.is_some() || self.cpu_quota_us.is_some() || self.cpu_period_us.is_some();
        if has_cpu_time {
            let (quota, period) = cpu_time(changed);
            resources["cpu"]["quota"] = json!(quota);
            resources["cpu"]["period"] = json!(period);
        }
        if let Some(shares) = self.weight() {
            resources["cpu"]["shares"] = json!(shares);
        }
        if self.cpuset.is_some() {
            resources["cpu"]["cpus"] = json!(limits.cpuset_cpus);
        }
        if self.memory.is_some() || self.memory_swap.is_some() {
            resources["memory"]["limit"] = match changed.memory_bytes {
                0 => json!(-1),
                bytes => json!(bytes),
            };
            if limits.memory_swap_bytes != 0 {
                resources["memory"]["swap"] = json!(limits.memory_swap_bytes);
            }
        }
        if self.memory_reservation.is_some() {
            resources["memory"]["reservation"] = json!(limits.memory_reservation_bytes);
        }
        if self.pids.is_some() {
            resources["pids"]["limit"] = json!(limits.pids_limit);
        }
        resources
    }
}

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// Microseconds of processor time, -1 for no limit, in each period.
fn cpu_time(settings: &Settings) -> (i64, u64) {
    /// Billionths of a processor.
    const NANO: u128 = 1_000_000_000;
    let limits = &settings.limits;
    let period = match limits.cpu_period_us {
        0 => CpuQuota::PERIOD_US,
        period => period,
    };
    let share = u128::from(settings.nano_cpus) * u128::from(period) / NANO;
    let quota = match (limits.cpu_quota_us, share) {
        // Another period for what there was.
        (0, 1..) => i64::try_from(share).unwrap_or(i64::MAX),
        (1.., _) => limits.cpu_quota_us,
        (_, _) => -1,
    };
    (quota, period)
}

/// Says whether a machine of so many processors can be started with all limits of its processors as they are written down.
///
/// # Errors
///
/// [`LimitsError::TooFewCpus`].
pub fn check_start(settings: &Settings, vcpus: u32) -> Result<(), LimitsError> {
    let (quota, period) = cpu_time(settings);
    let cpus = &settings.limits.cpuset_cpus;
    let room = Room {
        vcpus,
        memory_bytes: u64::MAX,
    };
    room.check(&json!({ "cpu": { "quota": quota, "period": period, "cpus": cpus } }))
        .map_err(|_| LimitsError::TooFewCpus { vcpus })
}

/// How large a machine is for its workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Room {
    /// Its processors.
    pub vcpus: u32,
    /// The memory that there is for the workload.
    pub memory_bytes: u64,
}

impl Room {
    /// Says whether `linux.resources` of the runtime-spec are to be had in the machine.
    ///
    /// # Errors
    ///
    /// If they are not.
    pub fn check(&self, resources: &Value) -> Result<(), LimitsError> {
        /// Bytes in one MiB.
        const MIB: u64 = 1 << 20;
        let memory = &resources["memory"];
        for bytes in [&memory["limit"], &memory["reservation"]] {
            if let Some(bytes) = bytes.as_u64()
                && bytes > self.memory_bytes
            {
                return Err(LimitsError::TooMuchMemory {
                    asked_mib: bytes.div_ceil(MIB),
                    room_mib: self.memory_bytes / MIB,
                });
            }
        }
        let cpu = &resources["cpu"];
        let period = cpu["period"].as_u64().unwrap_or(CpuQuota::PERIOD_US);
        let quota = cpu["quota"].as_u64().unwrap_or(0);
        if u128::from(quota) > u128::from(period) * u128::from(self.vcpus) {
            return Err(LimitsError::TooManyCpus { vcpus: self.vcpus });
        }
        match cpu["cpus"].as_str() {
            Some(set) if !set.is_empty() => Ok(CpuSet::from_str(set)?.check(self.vcpus)?),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            memory_bytes: 128 << 20,
            nano_cpus: 1_000_000_000,
            ..Settings::default()
        }
    }

    fn changed(change: &LimitChange) -> (Settings, Value) {
        let mut settings = settings();
        change.apply(&mut settings).unwrap();
        let resources = change.resources(&settings);
        (settings, resources)
    }

    fn refused(change: &LimitChange) -> String {
        change.apply(&mut settings()).unwrap_err().to_string()
    }

    #[test]
    fn only_what_is_named_changes() {
        let (settings, resources) = changed(&LimitChange {
            pids: Some(7),
            ..LimitChange::default()
        });

        assert_eq!(resources, json!({ "pids": { "limit": 7 } }));
        assert_eq!(
            (settings.memory_bytes, settings.limits.pids_limit),
            (128 << 20, 7)
        );
        assert!(refused(&LimitChange::default()).contains("nothing was named"));
    }

    #[test]
    fn processor_time_is_told_in_both_ways() {
        let cpus = LimitChange {
            cpus: Some("0.5".parse().unwrap()),
            ..LimitChange::default()
        };
        let period = LimitChange {
            cpu_period_us: Some(10_000),
            ..LimitChange::default()
        };
        let quota = LimitChange {
            cpu_quota_us: Some(25_000),
            ..LimitChange::default()
        };
        let none = LimitChange {
            cpu_quota_us: Some(-1),
            ..LimitChange::default()
        };

        let cpu = |change: &LimitChange| changed(change).1["cpu"].clone();
        assert_eq!(cpu(&cpus), json!({ "quota": 50_000, "period": 100_000 }));
        assert_eq!(cpu(&period), json!({ "quota": 10_000, "period": 10_000 }));
        assert_eq!(cpu(&quota), json!({ "quota": 25_000, "period": 100_000 }));
        assert_eq!(cpu(&none), json!({ "quota": -1, "period": 100_000 }));
        assert_eq!(changed(&cpus).0.nano_cpus, 500_000_000);
    }

    #[test]
    fn memory_and_swap_go_together() {
        let swap = |text: &str| LimitChange {
            memory_swap: Some(text.parse().unwrap()),
            ..LimitChange::default()
        };
        let reservation = LimitChange {
            memory_reservation: Some("129m".parse().unwrap()),
            ..LimitChange::default()
        };

        let (_, resources) = changed(&swap("256m"));
        let memory = json!({ "limit": 128 << 20, "swap": 256 << 20 });
        assert_eq!(resources, json!({ "memory": memory }));
        assert_eq!(changed(&swap("-1")).1["memory"]["swap"], -1);
        assert!(refused(&swap("64m")).contains("together are less"));
        assert!(refused(&reservation).contains("cannot be reserved"));
    }

    #[test]
    fn processor_time_that_a_kernel_refuses_is_refused_before() {
        let least = LimitChange {
            cpu_quota_us: Some(1000),
            ..LimitChange::default()
        };
        let less = LimitChange {
            cpu_quota_us: Some(999),
            ..LimitChange::default()
        };
        let mut slow = Settings {
            nano_cpus: 10_000_000,
            ..settings()
        };
        let shorter = LimitChange {
            cpu_period_us: Some(10_000),
            ..LimitChange::default()
        };

        assert_eq!(changed(&least).1["cpu"]["quota"], 1000);
        assert!(refused(&less).contains("999 microseconds"));
        // A hundredth of a processor.
        let error = shorter.apply(&mut slow).unwrap_err().to_string();
        assert!(error.contains("100 microseconds"), "{error}");
    }

    #[test]
    fn swap_without_a_limit_of_the_memory_is_refused() {
        let swap = LimitChange {
            memory_swap: Some("64m".parse().unwrap()),
            ..LimitChange::default()
        };

        let error = swap.apply(&mut Settings::default()).unwrap_err();

        assert!(matches!(error, LimitsError::SwapAlone));
    }

    #[test]
    fn a_weight_of_none_changes_nothing() {
        let (settings, resources) = changed(&LimitChange {
            cpu_shares: Some(0),
            ..LimitChange::default()
        });

        assert_eq!((settings.limits.cpu_shares, resources), (0, json!({})));
    }

    #[test]
    fn all_limits_must_be_for_the_processors_of_the_next_start() {
        let mut both = settings();
        both.limits.cpuset_cpus = "0-1".to_owned();
        let mut quota = settings();
        quota.limits.cpu_quota_us = 150_000;

        for settings in [both, quota] {
            let error = check_start(&settings, 1).unwrap_err();
            assert!(error.to_string().contains("would start"), "{error}");
            assert!(check_start(&settings, 2).is_ok());
        }
    }

    #[test]
    fn what_a_machine_does_not_have_is_refused() {
        let room = Room {
            vcpus: 2,
            memory_bytes: 200 << 20,
        };
        let refused = |resources: Value| room.check(&resources).unwrap_err().to_string();

        let memory = refused(json!({ "memory": { "limit": 201 << 20 } }));
        assert_eq!(
            memory,
            "the machine was started with room for 200 MiB of its workload's memory, and 201 MiB were asked for"
        );
        assert!(refused(json!({ "cpu": { "quota": 200_001 } })).contains("2 processors"));
        assert!(refused(json!({ "cpu": { "cpus": "0-2" } })).contains('2'));
        let fits = json!({
            "memory": { "limit": 200 << 20 },
            "cpu": { "quota": 100_000, "period": 50_000, "cpus": "1" },
        });
        assert!(room.check(&fits).is_ok());
        assert!(room.check(&json!({ "memory": { "limit": -1 } })).is_ok());
    }
}
