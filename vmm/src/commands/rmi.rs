//! `vmm rmi` and `vmm prune`: what leaves the store.

use std::io::{self, Write};

use super::each;
use super::output::{print_line, spell_size};
use crate::cli::{PruneArgs, RmiArgs};
use crate::dirs::Directories;
use crate::image::{Needed, PruneScope, RemoveError, Store};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{Machine, Registry};

/// Removes names, and images with their last name.
pub(super) fn rmi(arguments: &RmiArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let store = Store::open(directories.store())?;
    each(&arguments.images, |reference| {
        let removed = store.remove(reference, arguments.force, || needed(directories))?;
        for name in removed.untagged {
            print_line(format!("Untagged: {name}"))?;
        }
        if let Some(id) = removed.deleted {
            print_line(format!("Deleted: {id}"))?;
        }
        Ok(())
    })
}

/// Removes what nothing needs, after asking.
pub(super) fn prune(arguments: &PruneArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let (scope, question) = match arguments.all {
        true => (PruneScope::All, "all images that no machine uses"),
        false => (PruneScope::Unnamed, "all images without a name"),
    };
    if !arguments.force {
        confirm(question)?;
    }
    let pruned = Store::open(directories.store())?.prune(scope, || needed(directories))?;
    for id in pruned.deleted {
        print_line(format!("Deleted: {id}"))?;
    }
    let size = spell_size(pruned.reclaimed_bytes);
    print_line(format!("Total reclaimed space: {size}"))?;
    Ok(ExitCode::SUCCESS)
}

/// The images of machines that may be started again.
fn needed(directories: &Directories) -> io::Result<Needed> {
    let machines = Registry::open(directories.machines()).and_then(|registry| registry.list());
    let machines = machines.map_err(io::Error::other)?;
    Ok(machines
        .into_iter()
        .filter(Machine::is_kept)
        .filter_map(|machine| {
            let image = machine.record.image.id.parse().ok()?;
            Some((image, machine.record.name.to_string()))
        })
        .collect())
}

/// Asks whether something is to be removed.
///
/// # Errors
///
/// If it is not.
pub(super) fn confirm(what: &str) -> Result<(), Report> {
    match is_confirmed(what)? {
        true => Ok(()),
        false => Err(PruneError::NotConfirmed.into()),
    }
}

/// Asks on standard error and reads the answer from standard input, whatever they are.
fn is_confirmed(what: &str) -> Result<bool, PruneError> {
    let mut error = io::stderr();
    let _ = write!(error, "This removes {what}. Go on? [y/N] ");
    let _ = error.flush();
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(PruneError::NoAnswer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
enum PruneError {
    /// The answer was not yes.
    #[error("nothing was removed: it was not confirmed")]
    NotConfirmed,
    /// There was no answer.
    #[error("nothing was removed: standard input cannot be read")]
    NoAnswer(#[source] io::Error),
}

impl Help for PruneError {
    fn help(&self) -> Option<String> {
        Some("answer y, or add --force".to_owned())
    }
}

impl Help for RemoveError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}
