//! Where an archive goes: to a file, which appears whole or not at all, or to standard output.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use super::partial::PartialFile;
use crate::report::{Help, Report};

/// Lets `fill` write an archive to the file that was named, or to standard output unless that is a terminal. The inner error of `fill`
/// is the output's.
///
/// # Errors
///
/// Why there is no archive.
pub(super) fn write(
    output: Option<&Path>,
    fill: impl FnOnce(&mut dyn Write) -> Result<io::Result<()>, Report>,
) -> Result<(), Report> {
    let Some(path) = output else {
        return match io::stdout().is_terminal() {
            true => Err(OutputError::Terminal.into()),
            false => write_to_stdout(fill),
        };
    };
    let failed = |source| OutputError::File {
        path: path.to_owned(),
        source,
    };
    // A device or a pipe is written to; only a file can be replaced.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut output = File::options().write(true).open(path).map_err(failed)?;
        return Ok(fill(&mut output)?.map_err(failed)?);
    }
    let mut partial = PartialFile::create(path).map_err(failed)?;
    fill(&mut partial.file)?.map_err(failed)?;
    partial.finish(path).map_err(failed)?;
    Ok(())
}

/// The same for standard output, whatever that is.
///
/// # Errors
///
/// As [`write`].
pub(super) fn write_to_stdout(
    fill: impl FnOnce(&mut dyn Write) -> Result<io::Result<()>, Report>,
) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    fill(&mut output)?
        .and_then(|()| output.flush())
        .map_err(Report::of_output)
}

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
enum OutputError {
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

impl Help for OutputError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Terminal => {
                Some("name a file with --output FILE, or redirect standard output".to_owned())
            }
            Self::File { .. } => None,
        }
    }
}
