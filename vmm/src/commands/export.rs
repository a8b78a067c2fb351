//! `vmm export`: the files of a machine as an archive.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use protocol::FilesTask;

use super::save::PartialFile;
use super::transfer::{Transfer, TransferError};
use crate::cli::ExportArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{Machine, Registry};

/// Writes the archive to a file, which appears whole or not at all, or to standard output.
pub(super) fn run(arguments: &ExportArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    match &arguments.output {
        Some(path) => export_to_file(&machine, path, directories)?,
        None if io::stdout().is_terminal() => return Err(ExportError::Terminal.into()),
        None => to_stdout(&machine, &FilesTask::Root, directories)?,
    }
    registry.note(&machine.record, "export", &[]);
    Ok(ExitCode::SUCCESS)
}

fn export_to_file(machine: &Machine, path: &Path, directories: &Directories) -> Result<(), Report> {
    let failed = |source| ExportError::File {
        path: path.to_owned(),
        source,
    };
    // A device or a pipe is written to; only a file can be replaced.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut output = File::options().write(true).open(path).map_err(failed)?;
        return Ok(pass_on(machine, &FilesTask::Root, &mut output, directories)?.map_err(failed)?);
    }
    let mut partial = PartialFile::create(path).map_err(failed)?;
    pass_on(machine, &FilesTask::Root, &mut partial.file, directories)?.map_err(failed)?;
    partial.file.sync_all().map_err(failed)?;
    partial.finish(path).map_err(failed)?;
    Ok(())
}

/// Writes the archive that a task makes to standard output.
pub(super) fn to_stdout(
    machine: &Machine,
    task: &FilesTask,
    directories: &Directories,
) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    pass_on(machine, task, &mut output, directories)?
        .and_then(|()| output.flush())
        .map_err(Report::of_output)
}

/// Passes on what a task writes. The inner error is the output's.
fn pass_on(
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

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    /// Standard output is a screen.
    #[error("standard output is a terminal, which shows no archive")]
    Terminal,
    /// The file cannot be written.
    #[error("cannot write {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Help for ExportError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Terminal => {
                Some("name a file with --output FILE, or redirect standard output".to_owned())
            }
            Self::File { .. } => None,
        }
    }
}
