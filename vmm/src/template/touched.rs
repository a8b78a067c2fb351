//! Which pages of a template its clones touch: write to, or only read.
//!
//! A page that a clone writes is copied, one fault each, and most were read before, which is another fault. The first clone leaves
//! a list of the pages that it wrote, and the later ones copy those in bulk before the guest runs. The list is a hint: a page too
//! many costs a copy, one too few a fault, and nothing in it can change what the guest sees.
//!
//! Where clones read much and write nothing, the kernel's program and the image's, one [huge page](super::huge) spares them hundreds of
//! faults.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::machine::{self, PAGE_BYTES, WrittenPages};

/// proc_pid_pagemap(5): the page is present; it belongs to a file.
const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;
const ENTRY_BYTES: usize = 8;
const HUGE_PAGE_BYTES: u64 = machine::HUGE_PAGE_BYTES as u64;
const PAGES_OF_HUGE: usize = 512;

/// Pages that were not written are copied along where that saves a call.
const GAP_PAGES: u64 = 2;
/// More than any machine writes between its start and the end of a short workload; a list is a hint.
const MAX_RUNS: usize = 4096;
/// The most that is copied ahead. The first clone of a base may be a hostile image's, and the later ones are other images'.
const MAX_BYTES: u64 = 4 << 20;

/// A huge page is worth it from so many pages of it on that are read. The host maps up to 15 more with each, which count.
const MIN_READ_PAGES: usize = 64;
/// The most that becomes huge pages.
const MAX_HUGE_PAGES: usize = 32;

/// What a process touched of its template and its image.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// What it wrote to, of the template's memory.
    pub(super) written: Vec<WrittenPages>,
    /// Of which huge pages it read much and wrote nothing.
    pub(super) only_read: Vec<HugePage>,
}

/// Pages of a file that could be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HugePage {
    /// The number of the file, counted from the template's memory, which is 0.
    pub(super) file: usize,
    /// Where it begins there.
    pub(super) offset_bytes: u64,
}

/// Finds out which pages of these files a process has touched. The first one is the template's memory.
///
/// # Errors
/// When the process is gone, or is not this account's to look at.
pub(super) fn by_process(pid: u32, files: &[&File]) -> io::Result<Touched> {
    let inode = |file: &&File| file.metadata().map(|metadata| metadata.ino());
    let inodes: Vec<u64> = files.iter().map(inode).collect::<io::Result<_>>()?;
    let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
    let pages = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut touched = Touched::default();
    for line in maps.lines() {
        let line = line?;
        let Some(mapping) = Mapping::parse(&line) else {
            continue;
        };
        let Some(file) = inodes.iter().position(|inode| *inode == mapping.inode) else {
            continue;
        };
        let count = mapping.length_bytes / PAGE_BYTES;
        let count = usize::try_from(count).map_err(io::Error::other)?;
        let mut entries = vec![0; count * ENTRY_BYTES];
        let place = mapping.start / PAGE_BYTES * ENTRY_BYTES as u64;
        pages.read_exact_at(&mut entries, place)?;
        let kinds: Vec<Kind> = entries.as_chunks().0.iter().map(Kind::of).collect();
        for (index, kind) in (0..).zip(&kinds) {
            if file == 0 && *kind == Kind::Written {
                let place = mapping.file_offset_bytes + index * PAGE_BYTES;
                add(&mut touched.written, place);
            }
        }
        let huge = |offset_bytes| HugePage { file, offset_bytes };
        touched
            .only_read
            .extend(mapping.only_read(&kinds).map(huge));
    }
    bound(&mut touched.written);
    bound_huge(&mut touched.only_read);
    Ok(touched)
}

/// What happened to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Untouched,
    Read,
    Written,
}

impl Kind {
    fn of(entry: &[u8; ENTRY_BYTES]) -> Self {
        let entry = u64::from_le_bytes(*entry);
        match (entry & PRESENT != 0, entry & OF_FILE != 0) {
            (false, _) => Self::Untouched,
            (true, true) => Self::Read,
            (true, false) => Self::Written,
        }
    }
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

/// Leaves the first files' pages, as far as they are within the limit: however much of its image a clone reads, the template's memory
/// comes before that.
fn bound_huge(only_read: &mut Vec<HugePage>) {
    only_read.sort_by_key(|page| page.file);
    only_read.truncate(MAX_HUGE_PAGES);
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

    /// The places of huge pages that this maps as a whole, that were much read and not written to.
    fn only_read(&self, kinds: &[Kind]) -> impl Iterator<Item = u64> {
        let first = self.file_offset_bytes.next_multiple_of(HUGE_PAGE_BYTES);
        let lead = (first - self.file_offset_bytes) / PAGE_BYTES;
        // One entry of a page directory can map it only where both begin with one.
        let is_possible = self.start % HUGE_PAGE_BYTES == self.file_offset_bytes % HUGE_PAGE_BYTES;
        let lead = usize::try_from(lead).ok().filter(|_| is_possible);
        let kinds = lead.and_then(|lead| kinds.get(lead..)).unwrap_or_default();
        let whole = kinds.chunks_exact(PAGES_OF_HUGE).zip(0..);
        whole.filter_map(move |(pages, index)| {
            let read = pages.iter().filter(|kind| **kind == Kind::Read).count();
            let is_written = pages.contains(&Kind::Written);
            (read >= MIN_READ_PAGES && !is_written).then_some(first + index * HUGE_PAGE_BYTES)
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
    fn huge_pages_are_where_much_is_read_and_nothing_written() {
        let mapping = Mapping::parse("7f0000101000-7f0000800000 rw-p 00101000 fe:00 1 /m").unwrap();
        let mut kinds = vec![Kind::Untouched; 0x6ff];
        // Beginning with the page at 0x101000: what is before 0x200000 is no whole huge page.
        kinds[0xff - 80..0xff].fill(Kind::Read);
        let of = |place: usize| place / 4096 - 0x101;
        kinds[of(0x20_0000)..][..MIN_READ_PAGES].fill(Kind::Read);
        kinds[of(0x40_0000)..][..500].fill(Kind::Read);
        kinds[of(0x40_0000) + 511] = Kind::Written;
        kinds[of(0x60_0000)..][..MIN_READ_PAGES - 1].fill(Kind::Read);
        let found: Vec<u64> = mapping.only_read(&kinds).collect();
        assert_eq!(found, [0x20_0000]);

        let shifted = Mapping {
            start: mapping.start + PAGE_BYTES,
            ..mapping
        };
        assert_eq!(shifted.only_read(&kinds).count(), 0);
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
    fn no_image_keeps_huge_pages_from_the_template() {
        let page = |file, offset_bytes| HugePage { file, offset_bytes };
        let mut found: Vec<HugePage> = (0..100).map(|place| page(2, place)).collect();
        found.extend([page(0, 7), page(1, 3), page(0, 9)]);
        bound_huge(&mut found);
        assert_eq!(found.len(), MAX_HUGE_PAGES);
        assert_eq!(found[..4], [page(0, 7), page(0, 9), page(1, 3), page(2, 0)]);
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
