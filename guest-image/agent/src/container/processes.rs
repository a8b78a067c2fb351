//! The processes of a container as `ps` shows them: proc(5), `/proc/PID/stat`, `status` and `cmdline`.
//!
//! Names and arguments are the processes' own to write. A process may end at any time, and is not listed then.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;

use protocol::{MAX_ARGUMENT_BYTES, MAX_PROCESSES, ProcessInfo, ProcessList};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use rustix::time::ClockId;

use super::Cgroup;
use super::cgroup::guest_memory_bytes;

/// `USER_HZ`, in which the kernel tells times: `include/asm-generic/param.h`.
const TICKS_PER_SECOND: u64 = 100;
const PAGE_BYTES: u64 = 4096;
/// Two dozen numbers and a name.
const MAX_STAT_BYTES: u64 = 4 << 10;
/// Among short lines, one with up to 65536 groups (`NGROUPS_MAX`).
const MAX_STATUS_BYTES: u64 = 1 << 20;
/// What goes into one report: below its limit with all else that is in it.
const MAX_PART_BYTES: usize = protocol::MAX_REPORT_BYTES - 1024;
/// What a process takes of a report beside its texts, at most.
const NUMBERS_BYTES: usize = 160;

/// Lists the processes of a container whose first is `first`, in parts that each fit a report.
pub(crate) fn list(first: Pid, cgroup: &Cgroup) -> Vec<ProcessList> {
    let mut ids = cgroup.processes();
    let is_cut = ids.len() > MAX_PROCESSES;
    ids.truncate(MAX_PROCESSES);
    // The container's own namespace is that many levels below the agent's.
    let level = Status::of(first).map_or(0, |status| status.ids.len().saturating_sub(1));
    let now_ms = uptime_ms();
    let found: Vec<(Stat, Status, String)> = ids
        .iter()
        .filter_map(|id| Some((Stat::of(*id)?, Status::of(*id)?, arguments(*id))))
        .collect();
    let inside: BTreeMap<u32, u32> = found
        .iter()
        .map(|(stat, status, _)| (stat.pid, status.id_at(level)))
        .collect();
    let mut processes: Vec<ProcessInfo> = found
        .into_iter()
        .map(|(stat, status, arguments)| {
            let parent = inside.get(&stat.parent).copied().unwrap_or(0);
            stat.info(&status, parent, level, now_ms, arguments)
        })
        .collect();
    processes.sort_by_key(|process| process.pid);
    parts(processes, guest_memory_bytes(), is_cut)
}

fn parts(processes: Vec<ProcessInfo>, guest_memory_bytes: u64, is_cut: bool) -> Vec<ProcessList> {
    let empty = || ProcessList {
        guest_memory_bytes,
        is_cut,
        ..ProcessList::default()
    };
    let mut parts = Vec::new();
    let mut part = empty();
    let mut left_bytes = MAX_PART_BYTES;
    for process in processes {
        let bytes = NUMBERS_BYTES + process.name.len() + process.arguments.len();
        if bytes > left_bytes {
            parts.push(std::mem::replace(&mut part, empty()));
            left_bytes = MAX_PART_BYTES;
        }
        left_bytes = left_bytes.saturating_sub(bytes);
        part.processes.push(process);
    }
    part.is_last = true;
    parts.push(part);
    parts
}

/// Milliseconds since the boot, from which the kernel counts when processes started.
fn uptime_ms() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let ms = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(ms)
}

fn read(process: Pid, file: &str, max_bytes: u64) -> Option<Vec<u8>> {
    let path = format!("/proc/{}/{file}", process.as_raw_nonzero());
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    File::from(file)
        .take(max_bytes)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// The arguments with spaces for what ends each.
fn arguments(process: Pid) -> String {
    let max_bytes = u64::try_from(MAX_ARGUMENT_BYTES).unwrap_or(u64::MAX);
    let bytes = read(process, "cmdline", max_bytes).unwrap_or_default();
    joined(&bytes)
}

fn joined(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\0').replace('\0', " ")
}

/// `/proc/PID/stat`, ids as the agent sees them.
#[derive(Debug, PartialEq)]
struct Stat {
    pid: u32,
    name: String,
    state: u8,
    parent: u32,
    group: i64,
    session: i64,
    terminal: u32,
    foreground_group: i64,
    ticks: u64,
    priority: i32,
    nice: i32,
    threads: u32,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn of(process: Pid) -> Option<Self> {
        let bytes = read(process, "stat", MAX_STAT_BYTES)?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        // The name may hold anything, what follows it no parenthesis.
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        let signed = |at: usize| field(at)?.parse::<i64>().ok();
        Some(Self {
            pid: pid.parse().ok()?,
            name: name.to_owned(),
            state: *field(0)?.as_bytes().first()?,
            parent: field(1)?.parse().ok()?,
            group: signed(2)?,
            session: signed(3)?,
            terminal: u32::try_from(signed(4)?).unwrap_or(0),
            foreground_group: signed(5)?,
            ticks: number(11)?.saturating_add(number(12)?),
            priority: i32::try_from(signed(15)?).ok()?,
            nice: i32::try_from(signed(16)?).ok()?,
            threads: u32::try_from(number(17)?).ok()?,
            started_ticks: number(19)?,
            virtual_bytes: number(20)?,
            resident_pages: u64::try_from(signed(21)?).unwrap_or(0),
        })
    }

    fn info(
        self,
        status: &Status,
        parent: u32,
        level: usize,
        now_ms: u64,
        arguments: String,
    ) -> ProcessInfo {
        let ms = |ticks: u64| ticks.saturating_mul(1000 / TICKS_PER_SECOND);
        ProcessInfo {
            pid: status.id_at(level),
            parent,
            uid: status.uid,
            gid: status.gid,
            state: self.state,
            leads_session: self.session == i64::from(self.pid),
            is_foreground: self.foreground_group > 0 && self.foreground_group == self.group,
            locks_memory: status.locked_kib > 0,
            terminal: self.terminal,
            nice: self.nice,
            priority: self.priority,
            threads: self.threads,
            cpu_ms: ms(self.ticks),
            age_ms: now_ms.saturating_sub(ms(self.started_ticks)),
            virtual_bytes: self.virtual_bytes,
            resident_bytes: self.resident_pages.saturating_mul(PAGE_BYTES),
            name: self.name,
            arguments,
        }
        .bounded()
    }
}

/// `/proc/PID/status`, as far as it is not in `stat`.
#[derive(Debug, Default, PartialEq)]
struct Status {
    uid: u32,
    gid: u32,
    locked_kib: u64,
    /// Its ids, from that in the agent's PID namespace to that in its own.
    ids: Vec<u32>,
}

impl Status {
    fn of(process: Pid) -> Option<Self> {
        let bytes = read(process, "status", MAX_STATUS_BYTES)?;
        Self::parse(&String::from_utf8_lossy(&bytes))
    }

    fn parse(text: &str) -> Option<Self> {
        /// Of real, effective, saved and file system's.
        const EFFECTIVE: usize = 1;
        let mut status = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let mut words = value.split_ascii_whitespace();
            match key {
                "Uid" => status.uid = words.nth(EFFECTIVE)?.parse().ok()?,
                "Gid" => status.gid = words.nth(EFFECTIVE)?.parse().ok()?,
                "VmLck" => status.locked_kib = words.next()?.parse().ok()?,
                "NSpid" => status.ids = words.filter_map(|id| id.parse().ok()).collect(),
                _ => {}
            }
        }
        (!status.ids.is_empty()).then_some(status)
    }

    /// Its id in the PID namespace at this level.
    fn id_at(&self, level: usize) -> u32 {
        let id = self.ids.get(level).or(self.ids.last());
        id.copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::{Answer, MAX_REPORT_BYTES, Report};

    use super::*;

    const STAT: &str = "42 (a) b (c) S 1 42 42 34816 42 4194304 1 2 3 4 150 50 0 0 20 -5 3 0 7000 4096000 25 18446744073709551615 1\n";

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let stat = Stat::parse(STAT).unwrap();

        assert_eq!(stat.name, "a) b (c");
        assert_eq!((stat.pid, stat.state, stat.parent), (42, b'S', 1));
        assert_eq!((stat.ticks, stat.started_ticks), (200, 7000));
        assert_eq!((stat.nice, stat.threads, stat.resident_pages), (-5, 3, 25));
    }

    #[test]
    fn a_process_has_its_containers_ids_and_what_ps_tells() {
        let status = Status::parse(
            "Name:\tx\nUid:\t1\t7\t1\t1\nGid:\t1\t8\t1\t1\nVmLck:\t  4 kB\nNSpid:\t42\t5\t1\n",
        )
        .unwrap();

        let info = Stat::parse(STAT)
            .unwrap()
            .info(&status, 3, 1, 71_000, "a b".to_owned());

        assert_eq!((info.pid, info.parent, info.uid, info.gid), (5, 3, 7, 8));
        assert!(info.leads_session && info.is_foreground && info.locks_memory);
        assert_eq!((info.cpu_ms, info.age_ms), (2000, 1000));
        assert_eq!(info.resident_bytes, 25 * 4096);
    }

    #[test]
    fn arguments_are_one_text() {
        assert_eq!(joined(b"sh\0-c\0true\0\0"), "sh -c true");
        assert_eq!(joined(b"\xFFx"), "\u{FFFD}x");
        assert_eq!(joined(b""), "");
    }

    #[test]
    fn a_process_that_is_half_gone_is_not_listed() {
        assert_eq!(Stat::parse("42 (x) Z 1"), None);
        assert_eq!(Status::parse("Name:\tx\nUid:\t0\t0\t0\t0\n"), None);
    }

    #[test]
    fn the_largest_list_is_in_parts_that_fit_reports() {
        let largest = ProcessInfo {
            pid: u32::MAX,
            parent: u32::MAX,
            uid: u32::MAX,
            gid: u32::MAX,
            terminal: u32::MAX,
            nice: i32::MIN,
            priority: i32::MIN,
            threads: u32::MAX,
            cpu_ms: u64::MAX,
            age_ms: u64::MAX,
            virtual_bytes: u64::MAX,
            resident_bytes: u64::MAX,
            name: "x".repeat(MAX_ARGUMENT_BYTES),
            arguments: "x".repeat(MAX_ARGUMENT_BYTES),
            ..ProcessInfo::default()
        };

        let parts = parts(vec![largest; MAX_PROCESSES], u64::MAX, true);

        let count: usize = parts.iter().map(|part| part.processes.len()).sum();
        assert_eq!(count, MAX_PROCESSES);
        assert_eq!(parts.iter().filter(|part| part.is_last).count(), 1);
        assert!(parts.into_iter().all(|part| {
            let report = Report::Answer {
                number: u32::MAX,
                answer: Answer::Processes(part),
            };
            protocol::encode(&report, MAX_REPORT_BYTES, &mut Vec::new()).is_ok()
        }));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Stat::parse(&text), Status::parse(&text), joined(&bytes));
        }
    }
}
