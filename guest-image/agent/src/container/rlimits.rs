//! Resource limits: runtime-spec `config.md`, "POSIX process", `rlimits`, and setrlimit(2).

use protocol::StartFailure;
use rustix::process::{Pid, Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::spec;
use crate::step::{Step as _, invalid, unsupported};

/// The names of resource limits.
const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

/// A resource limit.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct ResourceLimit {
    /// Its place in [`RESOURCES`].
    resource: usize,
    soft: u64,
    hard: u64,
}

/// Reads `process.rlimits`.
///
/// # Errors
///
/// If a type is unknown or there twice, or a soft limit is above its hard one.
pub(crate) fn read(limits: &[spec::Rlimit]) -> Result<Vec<ResourceLimit>, StartFailure> {
    let mut read: Vec<ResourceLimit> = Vec::with_capacity(limits.len());
    for limit in limits {
        let limit = ResourceLimit::new(limit)?;
        if read.iter().any(|other| other.resource == limit.resource) {
            return Err(invalid(
                "process.rlimits",
                format!("{} is there twice", limit.name()),
            ));
        }
        read.push(limit);
    }
    Ok(read)
}

impl ResourceLimit {
    fn new(limit: &spec::Rlimit) -> Result<Self, StartFailure> {
        let resource = RESOURCES
            .iter()
            .position(|(name, _)| *name == limit.kind)
            .ok_or_else(|| {
                unsupported("process.rlimits", format!("unknown type {}", limit.kind))
            })?;
        if limit.soft > limit.hard {
            return Err(invalid(
                "process.rlimits",
                format!("the soft limit of {} is above its hard limit", limit.kind),
            ));
        }
        Ok(Self {
            resource,
            soft: limit.soft,
            hard: limit.hard,
        })
    }

    fn name(self) -> &'static str {
        RESOURCES.get(self.resource).map_or("?", |(name, _)| *name)
    }

    /// Limits a process, the calling one if none is named.
    ///
    /// # Errors
    ///
    /// The kernel's, see prlimit(2).
    pub(crate) fn set(self, process: Option<Pid>) -> Result<(), StartFailure> {
        let Some((name, resource)) = RESOURCES.get(self.resource) else {
            return Ok(());
        };
        // RLIM_INFINITY is the largest value on x86-64.
        let value = |limit: u64| (limit != u64::MAX).then_some(limit);
        let limit = Rlimit {
            current: value(self.soft),
            maximum: value(self.hard),
        };
        rustix::process::prlimit(process, *resource, limit)
            .map(drop)
            .step(|| format!("setting {name}"))
    }
}
