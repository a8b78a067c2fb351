//! `vmm diff`: what a machine has changed of its image's files.

use std::io::{self, BufWriter, Read, Write as _};

use protocol::FilesTask;
use serde::{Serialize, Serializer};

use super::output::{print_json, printable};
use super::transfer::{Transfer, TransferError};
use crate::cli::DiffArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::Registry;

/// The longest list that is taken from a guest.
const MAX_LIST_BYTES: u64 = 256 << 20;
/// The most paths in it.
const MAX_CHANGES: usize = 1_000_000;

/// Lists the changes, by path.
pub(super) fn run(arguments: &DiffArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machine = Registry::open(directories.machines())?.find(&arguments.machine)?;
    let mut transfer = Transfer::begin(&machine, &FilesTask::Changes, directories)?;
    let mut list = Vec::new();
    let read = transfer
        .output()?
        .take(MAX_LIST_BYTES + 1)
        .read_to_end(&mut list);
    match read {
        Ok(count) if count as u64 > MAX_LIST_BYTES => {
            return Err(TransferError::TooLong(MAX_LIST_BYTES).into());
        }
        Ok(_) => transfer.end()?,
        Err(error) => return Err(transfer.give_up(TransferError::Stream(error)).into()),
    }
    let changes = changes(&list)?;
    if arguments.list.is_json() {
        print_json(&changes)?;
    } else {
        print(&changes).map_err(Report::of_output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a line for each change.
fn print(changes: &[Change<'_>]) -> io::Result<()> {
    let mut output = BufWriter::new(io::stdout().lock());
    for Change { path, kind } in changes {
        let path = String::from_utf8_lossy(path);
        writeln!(output, "{kind} {}", printable(&path))?;
    }
    output.flush()
}

/// A path that is not what it was.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Change<'a> {
    #[serde(serialize_with = "as_text")]
    path: &'a [u8],
    /// `A` for one that is new, `C` for one that is another, `D` for one that is gone.
    kind: char,
}

fn as_text<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(path))
}

/// Takes the guest's list apart, by path.
fn changes(list: &[u8]) -> Result<Vec<Change<'_>>, TransferError> {
    let mut changes = Vec::new();
    for record in list.split_inclusive(|byte| *byte == 0) {
        if changes.len() >= MAX_CHANGES {
            return Err(TransferError::TooMany(MAX_CHANGES));
        }
        changes.push(change(record).ok_or(TransferError::OtherThings)?);
    }
    changes.sort_unstable();
    Ok(changes)
}

fn change(record: &[u8]) -> Option<Change<'_>> {
    let (kind, path) = record.strip_suffix(&[0])?.split_first()?;
    let kind = char::from(*kind);
    let is_one = matches!(kind, 'A' | 'C' | 'D') && path.starts_with(b"/");
    is_one.then_some(Change { path, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: char, path: &str) -> Change<'_> {
        Change {
            path: path.as_bytes(),
            kind,
        }
    }

    #[test]
    fn changes_are_in_the_order_of_their_paths() {
        let list = b"A/a/b\0C/a\0D/a-b\0";

        let changes = changes(list).unwrap();

        assert_eq!(
            changes,
            [change('C', "/a"), change('D', "/a-b"), change('A', "/a/b")]
        );
    }

    #[test]
    fn nothing_but_a_list_is_taken_for_one() {
        let is_none = |list| matches!(changes(list), Err(TransferError::OtherThings));

        assert_eq!(changes(b"").unwrap(), []);
        assert!(is_none(b"A/cut off"));
        assert!(is_none(b"X/a\0"));
        assert!(is_none(b"Aa\0"));
        assert!(is_none(b"\0"));
    }

    #[test]
    fn a_list_of_very_many_paths_is_refused() {
        let list = b"A/\0".repeat(MAX_CHANGES + 1);
        let (_, enough) = list.split_at(3);

        assert_eq!(changes(enough).unwrap().len(), MAX_CHANGES);
        assert!(matches!(changes(&list), Err(TransferError::TooMany(_))));
    }

    #[test]
    fn a_path_that_is_no_text_is_shown_as_far_as_it_is() {
        let list = b"A/\xff\0";

        let json = serde_json::to_value(changes(list).unwrap()).unwrap();

        assert_eq!(
            json,
            serde_json::json!([{"path": "/\u{fffd}", "kind": "A"}])
        );
    }
}
