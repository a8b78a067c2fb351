//! The container's cgroup, version 2: `Documentation/admin-guide/cgroup-v2.rst` and runtime-spec `config-linux.md`,
//! "Control groups".

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use protocol::{ContainerId, StartFailure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::spec::{Cpu, Memory, Pids, Resources};
use crate::step::{Step as _, invalid};

/// Where the agent mounts the hierarchy.
pub(crate) const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// How long processes may take to stop: one inside the kernel stops when it comes out.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);

/// A period of the CPU controller when the config names none, as the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// What to make and what to write into it.
#[derive(Debug, PartialEq)]
pub(crate) struct CgroupPlan {
    /// Below [`MOUNT_POINT`], one element a level.
    path: Vec<String>,
    /// File and content, in order.
    settings: Vec<(String, String)>,
    /// Whether the memory is limited, so that a kill for want of memory is to be expected.
    limits_memory: bool,
}

/// A cgroup that exists.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: String,
    directory: OwnedFd,
    limits_memory: bool,
}

impl CgroupPlan {
    /// Turns resources into the contents of files.
    ///
    /// # Errors
    ///
    /// If the path or a file's name could leave the cgroup, or values contradict each other.
    pub(crate) fn new(
        container: ContainerId,
        path: Option<&str>,
        resources: Resources,
    ) -> Result<Self, StartFailure> {
        let default = format!("container-{}", container.0);
        let path: Vec<String> = path
            .unwrap_or(&default)
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        if path.is_empty() || path.iter().any(|part| part == "." || part == "..") {
            return Err(invalid(
                "linux.cgroupsPath",
                "the path does not name a cgroup below the root",
            ));
        }
        let Resources {
            memory,
            cpu,
            pids,
            unified,
            ..
        } = resources;
        let mut settings = Vec::new();
        memory_settings(&memory, &mut settings)?;
        cpu_settings(cpu, &mut settings);
        pids_settings(&pids, &mut settings);
        if let Some(name) = unified
            .keys()
            .find(|name| name.contains('/') || !name.contains('.'))
        {
            return Err(invalid(
                "linux.resources.unified",
                format!("{name} is not a controller's file"),
            ));
        }
        settings.extend(unified);
        let limits_memory = settings
            .iter()
            .any(|(file, _)| file == "memory.max" || file == "memory.high");
        Ok(Self {
            path,
            settings,
            limits_memory,
        })
    }

    /// The controllers that own the files, as `cgroup.subtree_control` wants them: `+cpu +memory`.
    ///
    /// Only these are enabled: each controller adds a dozen files to every cgroup, which costs at every start.
    fn controllers(&self) -> String {
        let owner = |file: &str| file.split_once('.').map(|(owner, _)| format!("+{owner}"));
        let owners: BTreeSet<String> = self
            .settings
            .iter()
            .filter_map(|(file, _)| owner(file))
            .filter(|owner| owner != "+cgroup")
            .collect();
        owners.into_iter().collect::<Vec<_>>().join(" ")
    }

    /// Makes the cgroup.
    ///
    /// # Errors
    ///
    /// If a directory cannot be made or a file does not take its value.
    pub(crate) fn make(&self) -> Result<Cgroup, StartFailure> {
        let controllers = self.controllers();
        let mut path = MOUNT_POINT.to_owned();
        for level in &self.path {
            if !controllers.is_empty() {
                let file = format!("{path}/cgroup.subtree_control");
                write_file(CWD, &file, &controllers)
                    .step(|| format!("enabling {controllers} in {path}"))?;
            }
            path = format!("{path}/{level}");
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => (),
                Err(error) => return Err(error).step(|| format!("making cgroup {path}")),
            }
        }
        let directory = rustix::fs::open(
            &path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .step(|| format!("opening cgroup {path}"))?;
        let cgroup = Cgroup {
            path,
            directory,
            limits_memory: self.limits_memory,
        };
        for (file, value) in &self.settings {
            let set = write_file(&cgroup.directory, file, value)
                .step(|| format!("setting {file} to {value}"));
            if let Err(failure) = set {
                cgroup.remove();
                return Err(failure);
            }
        }
        Ok(cgroup)
    }
}

impl Cgroup {
    /// The cgroup's directory, for a process that is to be made in it.
    pub(crate) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Whether the kernel killed something in the cgroup because its memory limit was reached.
    pub(crate) fn was_oom_killed(&self) -> bool {
        /// More than the file's half dozen short lines.
        const MAX_BYTES: u64 = 4096;
        if !self.limits_memory {
            return false;
        }
        let open = || {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::openat(&self.directory, "memory.events", flags, Mode::empty())
        };
        let mut events = String::new();
        let read = open().map_err(io::Error::from).and_then(|fd| {
            std::fs::File::from(fd)
                .take(MAX_BYTES)
                .read_to_string(&mut events)
        });
        read.is_ok()
            && events
                .lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count != "0")
    }

    /// Kills every process in the cgroup.
    pub(crate) fn kill(&self) {
        // One that is empty already, or a kernel without the file, leaves nothing to do that could be reported better.
        let _ = write_file(&self.directory, "cgroup.kill", "1");
    }

    /// Stops every process in the cgroup, or lets them go on, and waits until they do. Returns whether they do.
    pub(crate) fn freeze(&self, is_frozen: bool) -> bool {
        let value = if is_frozen { "1" } else { "0" };
        if write_file(&self.directory, "cgroup.freeze", value).is_err() {
            return false;
        }
        // What is to go on does so without being waited for.
        !is_frozen || self.await_frozen().unwrap_or(false)
    }

    /// The file tells of a change by an exceptional condition (poll(2), `POLLPRI`).
    fn await_frozen(&self) -> rustix::io::Result<bool> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, "cgroup.events", flags, Mode::empty())?;
        let deadline = Instant::now() + FREEZE_PATIENCE;
        loop {
            let mut text = [0; 256];
            let count = rustix::io::pread(&file, &mut text, 0)?;
            let text = text.get(..count).unwrap_or_default();
            if text
                .split(|byte| *byte == b'\n')
                .any(|line| line == b"frozen 1")
            {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut change = [PollFd::new(&file, PollFlags::PRI)];
            match rustix::event::poll(&mut change, Some(&left)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes the cgroup, whose processes have ended.
    pub(crate) fn remove(self) {
        // Left behind, an empty cgroup holds some kernel memory until the machine ends, and nothing else.
        let _ = rustix::fs::rmdir(self.path);
    }
}

fn write_file(
    directory: impl std::os::fd::AsFd,
    file: &str,
    value: &str,
) -> rustix::io::Result<()> {
    let file = rustix::fs::openat(
        directory,
        file,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::write(file, value.as_bytes()).map(drop)
}

fn limit(bytes: i64) -> String {
    if bytes < 0 {
        "max".to_owned()
    } else {
        bytes.to_string()
    }
}

fn memory_settings(
    memory: &Memory,
    settings: &mut Vec<(String, String)>,
) -> Result<(), StartFailure> {
    if let Some(bytes) = memory.limit {
        settings.push(("memory.max".to_owned(), limit(bytes)));
    }
    if let Some(bytes) = memory.reservation {
        settings.push(("memory.low".to_owned(), limit(bytes)));
    }
    // The spec's swap is memory and swap together, the kernel's is swap alone.
    let swap = match (memory.swap, memory.limit) {
        (None, _) => return Ok(()),
        (Some(total), _) if total < 0 => "max".to_owned(),
        (Some(total), Some(memory)) if memory >= 0 && total >= memory => {
            (total - memory).to_string()
        }
        (Some(_), _) => {
            return Err(invalid(
                "linux.resources.memory.swap",
                "a swap limit needs a memory limit that is not above it",
            ));
        }
    };
    settings.push(("memory.swap.max".to_owned(), swap));
    Ok(())
}

fn cpu_settings(cpu: Cpu, settings: &mut Vec<(String, String)>) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares > 0) {
        settings.push(("cpu.weight".to_owned(), weight(shares).to_string()));
    }
    if cpu.quota.is_some() || cpu.period.is_some() {
        let quota = match cpu.quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        settings.push((
            "cpu.max".to_owned(),
            format!("{quota} {}", cpu.period.unwrap_or(DEFAULT_PERIOD_US)),
        ));
    }
    if let Some(burst) = cpu.burst {
        settings.push(("cpu.max.burst".to_owned(), burst.to_string()));
    }
    if let Some(idle) = cpu.idle {
        settings.push(("cpu.idle".to_owned(), idle.to_string()));
    }
    settings.extend(cpu.cpus.map(|cpus| ("cpuset.cpus".to_owned(), cpus)));
    settings.extend(cpu.mems.map(|mems| ("cpuset.mems".to_owned(), mems)));
}

/// Maps shares (cgroup v1, 2 to 262144) to a weight (v2, 1 to 10000) on the line through both ends.
fn weight(shares: u64) -> u64 {
    const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
    let above_least = shares.clamp(*SHARES.start(), *SHARES.end()) - SHARES.start();
    1 + above_least * 9_999 / (SHARES.end() - SHARES.start())
}

fn pids_settings(pids: &Pids, settings: &mut Vec<(String, String)>) {
    if let Some(count) = pids.limit {
        settings.push((
            "pids.max".to_owned(),
            if count <= 0 {
                "max".to_owned()
            } else {
                count.to_string()
            },
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(resources: &str) -> Vec<(String, String)> {
        let resources = serde_json::from_str(resources).unwrap();
        CgroupPlan::new(ContainerId(1), None, resources)
            .unwrap()
            .settings
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn memory_and_swap_become_two_limits() {
        let json = r#"{"memory":{"limit":1000,"reservation":500,"swap":3000}}"#;

        assert_eq!(
            settings(json),
            pairs(&[
                ("memory.max", "1000"),
                ("memory.low", "500"),
                ("memory.swap.max", "2000")
            ])
        );
    }

    #[test]
    fn a_quota_without_a_period_takes_the_kernels_period() {
        assert_eq!(
            settings(r#"{"cpu":{"quota":150000}}"#),
            pairs(&[("cpu.max", "150000 100000")])
        );
    }

    #[test]
    fn shares_become_a_weight_on_a_line() {
        assert_eq!(
            (
                weight(0),
                weight(2),
                weight(1024),
                weight(262_144),
                weight(u64::MAX)
            ),
            (1, 1, 39, 10_000, 10_000)
        );
    }

    #[test]
    fn only_the_controllers_in_use_are_enabled() {
        let resources =
            serde_json::from_str(r#"{"memory":{"limit":1},"pids":{"limit":5}}"#).unwrap();

        let plan = CgroupPlan::new(ContainerId(1), None, resources).unwrap();

        assert_eq!(plan.controllers(), "+memory +pids");
    }

    #[test]
    fn a_unified_name_cannot_leave_the_cgroup() {
        let resources = serde_json::from_str(r#"{"unified":{"../memory.max":"1"}}"#).unwrap();

        assert!(CgroupPlan::new(ContainerId(1), None, resources).is_err());
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        assert!(CgroupPlan::new(ContainerId(1), Some("/a/../b"), Resources::default()).is_err());
    }
}
