//! `vmm export`: the files of a machine as an archive.

use std::io::{self, Write};

use protocol::FilesTask;

use super::destination;
use super::transfer::{Transfer, TransferError};
use crate::cli::ExportArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Machine, Registry};

/// Writes the archive to a file, which appears whole or not at all, or to standard output.
pub(super) fn run(arguments: &ExportArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    destination::write(arguments.output.as_deref(), |output| {
        pass_on(&machine, &FilesTask::Root, output, directories)
    })?;
    registry.note(&machine.record, "export", &[]);
    Ok(ExitCode::SUCCESS)
}

/// Passes on what a task writes. The inner error is the output's.
pub(super) fn pass_on(
    machine: &Machine,
    task: &FilesTask,
    output: &mut dyn Write,
    directories: &Directories,
) -> Result<io::Result<()>, Report> {
    let mut transfer = Transfer::begin(machine, task, directories)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = match io::Read::read(transfer.output()?, &mut buffer) {
            Ok(0) => return Ok(transfer.end().map(Ok)?),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(transfer.give_up(TransferError::Stream(error)).into());
            }
        };
        if let Err(error) = output.write_all(buffer.get(..count).unwrap_or_default()) {
            return Ok(Err(error));
        }
    }
}
