//! What `/proc` says of processes: who descends from whom, and how much memory they take.

use std::collections::HashMap;
use std::fs;
use std::io;

/// A process id as `/proc` spells it.
pub(super) type ProcessId = u32;

/// Finds the children of `root`, their children, and so on.
pub(super) fn descendants_of(root: ProcessId) -> Vec<ProcessId> {
    let mut children: HashMap<ProcessId, Vec<ProcessId>> = HashMap::new();
    for id in process_ids() {
        if let Some(parent) = parent_of(id) {
            children.entry(parent).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root];
    while let Some(parent) = open.pop() {
        let of_parent = children.remove(&parent).unwrap_or_default();
        found.extend(&of_parent);
        open.extend(of_parent);
    }
    found
}

fn process_ids() -> Vec<ProcessId> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The parent of a process that is still there.
pub(super) fn parent_of(id: ProcessId) -> Option<ProcessId> {
    parent_in(&fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// The fourth field of proc_pid_stat(5). The second is in parentheses and may hold anything, parentheses too.
fn parent_in(stat: &str) -> Option<ProcessId> {
    let (_, behind_name) = stat.rsplit_once(") ")?;
    behind_name.split(' ').nth(1)?.parse().ok()
}

/// The proportional set size of a process: pages that several processes map are divided among them (proc_pid_smaps_rollup(5)).
///
/// One that has ended meanwhile takes nothing.
pub(super) fn pss_bytes(id: ProcessId) -> io::Result<u64> {
    match fs::read_to_string(format!("/proc/{id}/smaps_rollup")) {
        Ok(text) => Ok(pss_in(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(0),
        Err(error) => Err(error),
    }
}

fn pss_in(rollup: &str) -> u64 {
    let kibibytes: Option<u64> = rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_is_found_behind_a_name_with_parentheses() {
        assert_eq!(parent_in("7 (a) R 9 (b) S 42 7 7 0"), Some(42));
    }

    #[test]
    fn the_proportional_size_is_read_in_kibibytes() {
        let rollup = "00400000-7ff000 ---p 00000000 00:00 0 [rollup]\nRss:  900 kB\nPss:  12 kB\nPss_Dirty:  3 kB\n";
        assert_eq!(pss_in(rollup), 12 * 1024);
    }

    #[test]
    fn a_child_descends_from_its_parent() {
        let child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn();
        let mut child = child.unwrap();

        let found = descendants_of(std::process::id());

        assert!(found.contains(&child.id()));
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
