//! When the process runs and when its input and output is served: runtime-spec `config.md`, "Linux Process", `scheduler`,
//! `ioPriority` and `execCPUAffinity`.

use protocol::StartFailure;
use rustix::process::Pid;
use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

use crate::spec;
use crate::step::{Step as _, invalid, unsupported};
use crate::sys::{self, IoPriorityClass, SchedulerAttributes};

/// Policies and their numbers: sched(7), `include/uapi/linux/sched.h`. The number of `SCHED_ISO` is reserved, and no kernel of
/// Linux has the policy.
const POLICIES: [(&str, u32); 6] = [
    ("SCHED_OTHER", 0),
    ("SCHED_FIFO", 1),
    ("SCHED_RR", 2),
    ("SCHED_BATCH", 3),
    ("SCHED_IDLE", 5),
    ("SCHED_DEADLINE", 6),
];

/// Flags of sched_setattr(2), `include/uapi/linux/sched.h`.
const FLAGS: [(&str, u64); 7] = [
    ("SCHED_FLAG_RESET_ON_FORK", 0x01),
    ("SCHED_FLAG_RECLAIM", 0x02),
    ("SCHED_FLAG_DL_OVERRUN", 0x04),
    ("SCHED_FLAG_KEEP_POLICY", 0x08),
    ("SCHED_FLAG_KEEP_PARAMS", 0x10),
    ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
    ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
];

/// The levels of a class: ioprio_set(2).
const IO_PRIORITIES: std::ops::RangeInclusive<i32> = 0..=7;

/// How the process is scheduled.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Scheduler(SchedulerAttributes);

/// How the process's input and output is scheduled.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct IoPriority {
    class: IoPriorityClass,
    level: u8,
}

impl Scheduler {
    /// Reads `process.scheduler`.
    ///
    /// # Errors
    ///
    /// If the policy or a flag is unknown, or a number cannot be one.
    pub(crate) fn new(scheduler: &spec::Scheduler) -> Result<Self, StartFailure> {
        let policy = number(&POLICIES, &scheduler.policy).ok_or_else(|| {
            unsupported(
                "process.scheduler.policy",
                format!("{} is no policy of this kernel", scheduler.policy),
            )
        })?;
        let mut flags = 0;
        for name in &scheduler.flags {
            flags |= number(&FLAGS, name).ok_or_else(|| {
                unsupported("process.scheduler.flags", format!("{name} is unknown"))
            })?;
        }
        let priority = u32::try_from(scheduler.priority).map_err(|_| {
            invalid(
                "process.scheduler.priority",
                format!("{} is below 0", scheduler.priority),
            )
        })?;
        Ok(Self(SchedulerAttributes {
            policy,
            flags,
            nice: scheduler.nice,
            priority,
            runtime_ns: scheduler.runtime,
            deadline_ns: scheduler.deadline,
            period_ns: scheduler.period,
        }))
    }

    /// Schedules a process so, the calling one if none is named.
    ///
    /// # Errors
    ///
    /// The kernel's, see sched_setattr(2).
    pub(crate) fn apply(&self, process: Option<Pid>) -> Result<(), StartFailure> {
        sys::set_scheduler(process, &self.0).step(|| "setting the scheduler".to_owned())
    }
}

impl IoPriority {
    /// Reads `process.ioPriority`.
    ///
    /// # Errors
    ///
    /// If the class is unknown or the level is none.
    pub(crate) fn new(priority: &spec::IoPriority) -> Result<Self, StartFailure> {
        let class = match priority.class.as_str() {
            "IOPRIO_CLASS_RT" => IoPriorityClass::RealTime,
            "IOPRIO_CLASS_BE" => IoPriorityClass::BestEffort,
            "IOPRIO_CLASS_IDLE" => IoPriorityClass::Idle,
            other => {
                return Err(unsupported(
                    "process.ioPriority.class",
                    format!("{other} is unknown"),
                ));
            }
        };
        let level = Some(priority.priority)
            .filter(|level| IO_PRIORITIES.contains(level))
            .and_then(|level| u8::try_from(level).ok())
            .ok_or_else(|| {
                invalid(
                    "process.ioPriority.priority",
                    format!("{} is not from 0 to 7", priority.priority),
                )
            })?;
        Ok(Self { class, level })
    }

    /// Gives the group of a process this priority, of the calling one if none is named, and so all that it starts.
    ///
    /// # Errors
    ///
    /// The kernel's, see ioprio_set(2).
    pub(crate) fn apply(&self, process: Option<Pid>) -> Result<(), StartFailure> {
        sys::set_io_priority(process, self.class, self.level)
            .step(|| "setting the input and output priority".to_owned())
    }
}

/// On which processors a process runs that joins the container. For its first process it means nothing.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Affinity {
    initial: Option<Processors>,
    last: Option<Processors>,
}

/// Processors: ranges, both ends included.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Processors(Vec<(usize, usize)>);

impl Affinity {
    /// Reads `process.execCPUAffinity`.
    ///
    /// # Errors
    ///
    /// If a list of processors is none.
    pub(crate) fn new(affinity: &spec::CpuAffinity) -> Result<Self, StartFailure> {
        let read = |field, list: &str| match list {
            "" => Ok(None),
            _ => Processors::read(list).map(Some).ok_or_else(|| {
                invalid(
                    field,
                    format!("{list:?} is not a list of processors like 0-3,7"),
                )
            }),
        };
        Ok(Self {
            initial: read("process.execCPUAffinity.initial", &affinity.initial)?,
            last: read("process.execCPUAffinity.final", &affinity.last)?,
        })
    }

    /// Takes the calling process to where it is to be on its way into the container.
    ///
    /// # Errors
    ///
    /// If it may run on none of them.
    pub(crate) fn begin(&self) -> Result<(), StartFailure> {
        Processors::run_on(self.initial.as_ref())
    }

    /// Takes the calling process to where it is to stay.
    ///
    /// # Errors
    ///
    /// If it may run on none of them.
    pub(crate) fn settle(&self) -> Result<(), StartFailure> {
        Processors::run_on(self.last.as_ref())
    }
}

impl Processors {
    /// Reads a comma-separated list of numbers and ranges.
    fn read(list: &str) -> Option<Self> {
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last && last < CpuSet::MAX_CPU).then_some((first, last))
        };
        list.split(',').map(range).collect::<Option<_>>().map(Self)
    }

    fn run_on(processors: Option<&Self>) -> Result<(), StartFailure> {
        let Some(Self(ranges)) = processors else {
            return Ok(());
        };
        let mut set = CpuSet::new();
        for (first, last) in ranges {
            (*first..=*last).for_each(|processor| set.set(processor));
        }
        rustix::thread::sched_setaffinity(None, &set)
            .step(|| "choosing the processors of process.execCPUAffinity".to_owned())
    }
}

fn number<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affinity(initial: &str) -> Result<Affinity, StartFailure> {
        Affinity::new(&spec::CpuAffinity {
            initial: initial.to_owned(),
            last: String::new(),
        })
    }

    #[test]
    fn a_list_of_processors_has_numbers_and_ranges() {
        let processors = |ranges: &[(usize, usize)]| Affinity {
            initial: Some(Processors(ranges.to_vec())),
            last: None,
        };
        assert_eq!(affinity("0-3,7"), Ok(processors(&[(0, 3), (7, 7)])));
        assert_eq!(affinity(""), Ok(Affinity::default()));
    }

    #[test]
    fn what_is_no_list_of_processors_is_refused_by_name() {
        for list in ["3-0", "0-4294967295", "a", "0,", "-1"] {
            assert_eq!(
                affinity(list).unwrap_err().step,
                "process.execCPUAffinity.initial"
            );
        }
    }

    #[test]
    fn a_policy_that_no_kernel_has_is_refused_by_name() {
        let scheduler = serde_json::from_str(r#"{"policy":"SCHED_ISO"}"#).unwrap();

        assert_eq!(
            Scheduler::new(&scheduler).unwrap_err().step,
            "process.scheduler.policy"
        );
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name() {
        let scheduler =
            serde_json::from_str(r#"{"policy":"SCHED_RR","flags":["SCHED_FLAG_X"]}"#).unwrap();

        assert_eq!(
            Scheduler::new(&scheduler).unwrap_err().step,
            "process.scheduler.flags"
        );
    }

    #[test]
    fn an_io_priority_has_eight_levels() {
        let priority = serde_json::from_str(r#"{"class":"IOPRIO_CLASS_BE","priority":8}"#).unwrap();

        assert_eq!(
            IoPriority::new(&priority).unwrap_err().step,
            "process.ioPriority.priority"
        );
    }
}
