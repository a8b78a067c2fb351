//! `vmm run`: a command in a new machine.

use crate::cli::RunArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Runs a workload and returns its exit code.
///
/// # Errors
///
/// [`RunError`], as a report.
pub fn run(arguments: &RunArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let _ = (arguments, directories);
    Err(RunError::NoMachine)?
}

/// Why a workload could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no machine yet.
    #[error("this build cannot start machines")]
    NoMachine,
}

impl Help for RunError {}
