//! `vmm diff`: what a machine has changed of its image's files.

use std::io::Read;

use protocol::FilesTask;
use serde::Serialize;

use super::output::{print_json, print_text, printable};
use super::transfer::{Transfer, TransferError};
use crate::cli::DiffArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::Registry;

/// The longest list that is taken from a guest.
const MAX_LIST_BYTES: u64 = 256 << 20;

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
    let changes = changes(&list).ok_or(TransferError::OtherThings)?;
    if arguments.list.is_json() {
        print_json(&changes)?;
    } else {
        let lines = changes.iter().map(|change| {
            let Change { kind, path } = change;
            format!("{kind} {}\n", printable(path))
        });
        print_text(&lines.collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A path that is not what it was.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Change {
    path: String,
    /// `A` for one that is new, `C` for one that is another, `D` for one that is gone.
    kind: char,
}

/// Takes the guest's list apart, by path; nothing if it is none.
fn changes(list: &[u8]) -> Option<Vec<Change>> {
    let mut changes = list
        .split_inclusive(|byte| *byte == 0)
        .map(|record| {
            let (kind, path) = record.strip_suffix(&[0])?.split_first()?;
            let kind = char::from(*kind);
            let is_one = matches!(kind, 'A' | 'C' | 'D') && path.starts_with(b"/");
            is_one.then(|| Change {
                path: String::from_utf8_lossy(path).into_owned(),
                kind,
            })
        })
        .collect::<Option<Vec<_>>>()?;
    changes.sort_unstable();
    Some(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: char, path: &str) -> Change {
        Change {
            path: path.to_owned(),
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
        assert_eq!(changes(b""), Some(Vec::new()));
        assert_eq!(changes(b"A/cut off"), None);
        assert_eq!(changes(b"X/a\0"), None);
        assert_eq!(changes(b"Aa\0"), None);
        assert_eq!(changes(b"\0"), None);
    }
}
