//! Which pages of a template its clones write to.
//!
//! A page that a clone writes is copied, one fault each, and most were read before, which is another fault. The first clone leaves
//! a list of the pages that it wrote, and the later ones copy those in bulk before the guest runs. The list is a hint: a page too
//! many costs a copy, one too few a fault, and nothing in it can change what the guest sees.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::machine::{PAGE_BYTES, WrittenPages};

/// proc_pid_pagemap(5): the page is present; it belongs to a file.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;
const ENTRY_BYTES: u64 = 8;

/// Pages that were not written are copied along where that saves a call.
const GAP_PAGES: u64 = 2;
/// More than any machine writes between its start and the end of a short workload; a list is a hint.
const MAX_RUNS: usize = 4096;
/// The most that is copied ahead. The first clone of a base may be a hostile image's, and the later ones are other images'.
const MAX_BYTES: u64 = 4 << 20;

/// Finds out which pages of `memory` a process has copied.
///
/// # Errors
/// When the process is gone, or is not this account's to look at.
pub(super) fn of_process(pid: u32, memory: &File) -> io::Result<Vec<WrittenPages>> {
    let metadata = memory.metadata()?;
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut written = Vec::new();
    for line in maps.lines() {
        let line = line?;
        let Some(mapping) = Mapping::parse(&line).filter(|it| it.inode == metadata.ino()) else {
            continue;
        };
        let count = mapping.length_bytes / PAGE_BYTES;
        let length = usize::try_from(count * ENTRY_BYTES).map_err(io::Error::other)?;
        let mut entries = vec![0; length];
        pages.read_exact_at(&mut entries, mapping.start / PAGE_BYTES * ENTRY_BYTES)?;
        for (index, entry) in (0..).zip(entries.as_chunks().0) {
            let entry = u64::from_le_bytes(*entry);
            if entry & PRESENT != 0 && entry & OF_FILE == 0 {
                add(&mut written, mapping.file_offset_bytes + index * PAGE_BYTES);
            }
        }
    }
    bound(&mut written);
    Ok(written)
}

/// Leaves the first runs, as far as they are within the limits.
fn bound(written: &mut Vec<WrittenPages>) {
    let mut sum_bytes = 0;
    let within = written.iter().take_while(|run| {
        sum_bytes += run.length_bytes;
        sum_bytes <= MAX_BYTES
    });
    written.truncate(within.count().min(MAX_RUNS));
}

fn add(written: &mut Vec<WrittenPages>, file_offset_bytes: u64) {
    if let Some(last) = written.last_mut() {
        let end = last.file_offset_bytes + last.length_bytes;
        if (end..=end + GAP_PAGES * PAGE_BYTES).contains(&file_offset_bytes) {
            last.length_bytes = file_offset_bytes + PAGE_BYTES - last.file_offset_bytes;
            return;
        }
    }
    written.push(WrittenPages {
        file_offset_bytes,
        length_bytes: PAGE_BYTES,
    });
}

/// A line of /proc/PID/maps.
struct Mapping {
    start: u64,
    length_bytes: u64,
    file_offset_bytes: u64,
    inode: u64,
}

impl Mapping {
    /// `55d0c0000000-55d0c0021000 rw-p 00002000 fe:00 1234 /a/file`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let start = hexadecimal(start)?;
        let file_offset_bytes = hexadecimal(words.nth(1)?)?;
        let inode = words.nth(1)?.parse().ok()?;
        Some(Self {
            start,
            length_bytes: hexadecimal(end)?.checked_sub(start)?,
            file_offset_bytes,
            inode,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_is_understood() {
        let line =
            "7f0000001000-7f0000004000 rw-p 00002000 fe:00 1234                       /a b/memory";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(
            (
                mapping.start,
                mapping.length_bytes,
                mapping.file_offset_bytes,
                mapping.inode
            ),
            (0x7f00_0000_1000, 0x3000, 0x2000, 1234)
        );
        assert!(Mapping::parse("nonsense").is_none());
    }

    #[test]
    fn no_clone_decides_how_much_the_later_ones_copy() {
        let run = |page: u64, pages: u64| WrittenPages {
            file_offset_bytes: page * PAGE_BYTES,
            length_bytes: pages * PAGE_BYTES,
        };
        let within = MAX_BYTES / PAGE_BYTES;
        let mut large = vec![run(0, within - 1), run(10_000, 1), run(20_000, 1)];
        bound(&mut large);
        assert_eq!(large, [run(0, within - 1), run(10_000, 1)]);
        let mut whole = vec![run(0, within + 1)];
        bound(&mut whole);
        assert_eq!(whole, []);
    }

    #[test]
    fn pages_close_to_each_other_are_one_run() {
        let mut written = Vec::new();
        for page in [1, 2, 5, 9] {
            add(&mut written, page * PAGE_BYTES);
        }
        let runs: Vec<_> = written
            .iter()
            .map(|run| {
                (
                    run.file_offset_bytes / PAGE_BYTES,
                    run.length_bytes / PAGE_BYTES,
                )
            })
            .collect();
        assert_eq!(runs, [(1, 5), (9, 1)]);
    }
}
