//! `vmm completion` and `vmm man`: what is generated from the command line's own description.

use std::io::{self, Write};

use clap::CommandFactory;

use crate::cli::{Cli, CompletionArgs, ManArgs};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Prints the completion script of a shell.
pub(super) fn completion(arguments: &CompletionArgs) -> Result<ExitCode, Report> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "vmm", &mut script);
    let mut output = io::stdout().lock();
    output
        .write_all(&script)
        .and_then(|()| output.flush())
        .map_err(Report::of_output)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes one manual page for each command.
pub(super) fn man(arguments: &ManArgs) -> Result<ExitCode, Report> {
    clap_mangen::generate_to(Cli::command(), &arguments.directory).map_err(|source| ManError {
        directory: arguments.directory.display().to_string(),
        source,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The manual pages could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the manual pages to {directory}")]
struct ManError {
    directory: String,
    source: io::Error,
}

impl Help for ManError {
    fn help(&self) -> Option<String> {
        Some("name a directory that exists and can be written to".to_owned())
    }
}
