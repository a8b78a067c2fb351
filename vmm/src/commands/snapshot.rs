//! `vmm snapshot` and `vmm fork`: machines that are written down, and what becomes of them.

use std::os::fd::AsRawFd;
use std::path::Path;

use super::machines;
use super::output::{print_line, spell_duration};
use super::restore::{self, Copy};
use super::run::in_background;
use crate::cli::{ForkArgs, SnapshotArgs, SnapshotCommand};
use crate::dirs::{Directories, create_private};
use crate::machine::host::open_kvm;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::snapshot::{Opened, SnapshotError, Target};
use crate::state::Action;

/// Runs `vmm snapshot`.
pub(super) fn run(arguments: &SnapshotArgs, directories: &Directories) -> Result<ExitCode, Report> {
    match (&arguments.command, &arguments.machine, &arguments.file) {
        (Some(SnapshotCommand::Check(arguments)), ..) => check(&arguments.file, directories),
        (None, Some(machine), Some(file)) => {
            // The monitor's directory may be another one.
            let file = std::path::absolute(file).map_err(CommandError::Path)?;
            let action = Action::Snapshot {
                target: Target::File(file),
                incremental: arguments.incremental,
                at_fork_point: false,
                stop: arguments.stop,
            };
            let machines = machines(directories)?;
            machines.act(&machines.find(machine)?, action)?;
            Ok(ExitCode::SUCCESS)
        }
        // The parser lets nobody get here.
        (None, ..) => Ok(ExitCode::APPLIANCE_FAILED),
    }
}

/// Says whether a snapshot could be resumed here.
fn check(file: &Path, directories: &Directories) -> Result<ExitCode, Report> {
    let kvm = open_kvm()?;
    let opened = Opened::look_at(file)?;
    let subject = opened.snapshot.subject.clone();
    restore::is_resumable(&opened, directories)?;
    restore::plan(&opened, directories)?;
    if let Some(part) = opened.saved().is_of_host(&kvm).map_err(Report::new)? {
        return Err(SnapshotError::Origin {
            path: file.to_owned(),
            part,
        }
        .into());
    }
    print_line(format!(
        "{} of {}, {} ago: {}",
        subject.machine.short(),
        subject.image.reference,
        spell_duration(opened.snapshot.created.age_seconds()),
        subject.command.join(" ")
    ))?;
    print_line("it can be resumed here")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `vmm fork`.
pub(super) fn fork(arguments: &ForkArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    let machine = machines.find(&arguments.machine)?;
    create_private(directories.cache())?;
    // It has no name, so that nothing is left of it whatever happens.
    let file = tempfile::tempfile_in(directories.cache()).map_err(CommandError::File)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let action = Action::Snapshot {
        target: Target::Open(path.into()),
        incremental: false,
        at_fork_point: true,
        stop: false,
    };
    machines.act(&machine, action)?;
    for generation in 1..=arguments.number {
        let file = file.try_clone().map_err(CommandError::File)?;
        let copy = Copy {
            file,
            generation,
            published: arguments.publish.clone(),
        };
        let id = in_background(|reporter| restore::fork_here(copy, directories, reporter))?;
        print_line(id.as_str())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A snapshot that cannot be asked for.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// The current directory is gone.
    #[error("the file cannot be named")]
    Path(#[source] std::io::Error),
    /// There is no room.
    #[error("cannot write the machine down")]
    File(#[source] std::io::Error),
}

impl Help for CommandError {}
