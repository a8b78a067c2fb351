//! What a cgroup uses, from its files: `Documentation/admin-guide/cgroup-v2.rst`.
//!
//! The kernel writes the files, but what is in them is the container's doing, and so are the cgroups below: all of it is bounded.

use std::fs::File;
use std::io::Read as _;

use protocol::Usage;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::Pid;

use super::{Cgroup, tree};
use crate::network;

/// More than any of the files that are kept short by the kernel.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// A list of tasks: as many as the kernel has ids for (`PID_MAX_LIMIT`), each with seven digits and a line's end.
const MAX_LIST_BYTES: u64 = (4 << 20) * 8;
/// As many cgroups as are looked into.
const MAX_CGROUPS: usize = 1024;

impl Cgroup {
    /// Processor time that was used since the cgroup was made, in microseconds.
    pub(crate) fn cpu_time_us(&self) -> Option<u64> {
        let text = self.read("cpu.stat", MAX_FILE_BYTES)?;
        value_of(&text, "usage_usec")
    }

    /// What is used now, but for the processors.
    pub(crate) fn usage(&self) -> Usage {
        let text = |file: &str| self.read(file, MAX_FILE_BYTES).unwrap_or_default();
        let inactive_files = value_of(&text("memory.stat"), "inactive_file").unwrap_or(0);
        let memory = number(&text("memory.current"));
        let guest_memory = guest_memory_bytes();
        let limit = number(&text("memory.max")).unwrap_or(u64::MAX);
        let (read_bytes, written_bytes) = io_bytes(&text("io.stat"));
        let (read_before, written_before) = self.io_before;
        let (received_bytes, sent_bytes) = network::traffic();
        Usage {
            // As docker counts it.
            memory_bytes: memory.map(|bytes| bytes.saturating_sub(inactive_files)),
            memory_limit_bytes: limit.min(guest_memory),
            tasks: number(&text("pids.current")).unwrap_or_else(|| self.count_tasks()),
            read_bytes: read_bytes.saturating_sub(read_before),
            written_bytes: written_bytes.saturating_sub(written_before),
            received_bytes,
            sent_bytes,
            ..Usage::default()
        }
    }

    /// From here on what is read and written is the program's.
    pub(crate) fn begin_counting_io(&mut self) {
        if self.has_disk {
            let text = self.read("io.stat", MAX_FILE_BYTES);
            self.io_before = io_bytes(&text.unwrap_or_default());
        }
    }

    /// All its processes, and those of the cgroups below, in the order of their ids.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let lists = self.lists("cgroup.procs");
        let ids = lists.iter().flat_map(|list| list.lines());
        let mut processes: Vec<Pid> = ids
            .filter_map(|id| Pid::from_raw(id.parse().ok()?))
            .collect();
        processes.sort_by_key(|process| process.as_raw_nonzero());
        processes.dedup();
        processes
    }

    /// Counts what the kernel counts only where there is a limit for it.
    fn count_tasks(&self) -> u64 {
        let lists = self.lists("cgroup.threads");
        let count: usize = lists.iter().map(|list| list.lines().count()).sum();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// A file of this cgroup and of each below.
    fn lists(&self, file: &str) -> Vec<String> {
        let cgroups = tree(&self.path, MAX_CGROUPS);
        let texts = cgroups.iter().filter_map(|path| {
            let path = format!("{path}/{file}");
            let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            read(File::from(file.ok()?), MAX_LIST_BYTES)
        });
        texts.collect()
    }

    /// The text of a file, if there is one.
    pub(super) fn read(&self, file: &str, max_bytes: u64) -> Option<String> {
        read(File::from(self.open(file).ok()?), max_bytes)
    }
}

/// All memory of the guest: proc(5), `/proc/meminfo`.
pub(crate) fn guest_memory_bytes() -> u64 {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, "/proc/meminfo", flags, Mode::empty()).ok();
    let text = file.and_then(|file| read(File::from(file), MAX_FILE_BYTES));
    let line = text.as_deref().unwrap_or_default().lines().next();
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    kib.and_then(number).unwrap_or(0).saturating_mul(1024)
}

fn read(file: File, max_bytes: u64) -> Option<String> {
    let mut text = String::new();
    file.take(max_bytes).read_to_string(&mut text).ok()?;
    Some(text)
}

/// A number alone; none for `max`.
fn number(text: &str) -> Option<u64> {
    text.trim_end().parse().ok()
}

/// The value of a key in a file of one key and value a line.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| number(value))
}

/// Bytes read and written in all lines of `io.stat`, each of them a device: `8:0 rbytes=1 wbytes=2 rios=3 …`.
fn io_bytes(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        let words = text.split_ascii_whitespace();
        let values = words.filter_map(|word| number(word.strip_prefix(key)?));
        values.fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let text = "user_usec 1\nusage_usec 1234\nsystem_usec 5\n";

        assert_eq!(value_of(text, "usage_usec"), Some(1234));
        assert_eq!(value_of(text, "usec"), None);
        assert_eq!(value_of("usage_usec -1\n", "usage_usec"), None);
    }

    #[test]
    fn no_limit_is_no_number() {
        assert_eq!(number("max\n"), None);
        assert_eq!(number("134217728\n"), Some(134_217_728));
    }

    #[test]
    fn bytes_of_all_devices_are_added_up() {
        let text = "254:0 rbytes=4096 wbytes=1 rios=1 wios=1 dbytes=7 dios=0\n254:16 \n259:0 rbytes=4 wbytes=2\n";

        assert_eq!(io_bytes(text), (4100, 3));
        assert_eq!(io_bytes(""), (0, 0));
        assert_eq!(
            io_bytes("1:1 rbytes=18446744073709551615\n1:2 rbytes=9"),
            (u64::MAX, 0)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,200}") {
            let _ = (value_of(&text, "a"), io_bytes(&text), number(&text));
        }
    }
}
