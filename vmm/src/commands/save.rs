//! `vmm save`: an image of the store as an archive.

use super::destination;
use crate::cli::SaveArgs;
use crate::dirs::Directories;
use crate::image::{SaveError, Store};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Writes an image to a file, which appears whole or not at all, or to standard output.
pub(super) fn run(arguments: &SaveArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let store = Store::open(directories.store())?;
    destination::write(arguments.output.as_deref(), |mut output| {
        match store.save(&arguments.image, &mut output) {
            Err(SaveError::Output(error)) => Ok(Err(error)),
            other => Ok(Ok(other?)),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Help for SaveError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}
