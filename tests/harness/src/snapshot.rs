//! Listings of a directory tree that can be compared before and after.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Lists every path below `directory` with its type, mode, size and content digest, one a line, in order.
///
/// Times are left out: looking a thing up may touch a lock. A directory that does not exist lists as empty.
pub fn listing(directory: &Path) -> String {
    let mut lines = String::new();
    list(directory, directory, &mut lines);
    lines
}

fn list(top: &Path, directory: &Path, lines: &mut String) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    let mut paths: Vec<_> = entries
        .map(|entry| entry.expect("a directory can be listed").path())
        .collect();
    paths.sort();
    for path in paths {
        let metadata = fs::symlink_metadata(&path).expect("a listed file has metadata");
        let name = path
            .strip_prefix(top)
            .expect("a listed path lies below the top")
            .display();
        let mode = metadata.permissions().mode();
        let content = if metadata.is_file() {
            hex(&Sha256::digest(
                fs::read(&path).expect("a listed file can be read"),
            ))
        } else if metadata.is_symlink() {
            fs::read_link(&path)
                .expect("a symlink can be read")
                .display()
                .to_string()
        } else {
            String::new()
        };
        let size = if metadata.is_file() {
            metadata.size()
        } else {
            0
        };
        writeln!(lines, "{name} {mode:o} {size} {content}").expect("a string takes everything");
        if metadata.is_dir() {
            list(top, &path, lines);
        }
    }
}

/// Asserts that two listings are the same; a failure shows the lines that only one of them has.
#[track_caller]
pub fn assert_unchanged(before: &str, after: &str) {
    let only_in = |one: &str, other: &str, mark: char| -> String {
        let lines = one
            .lines()
            .filter(|line| !other.lines().any(|candidate| candidate == *line));
        lines.map(|line| format!("{mark} {line}\n")).collect()
    };
    assert!(
        before == after,
        "the directory has changed:\n{}{}",
        only_in(before, after, '-'),
        only_in(after, before, '+')
    );
}

/// Writes bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes everything");
            text
        })
}

/// Returns the SHA-256 of bytes as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
