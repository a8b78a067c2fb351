//! `vmm save`: an image of the store as an archive.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use crate::cli::SaveArgs;
use crate::dirs::Directories;
use crate::image::{SaveError, Store};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Writes an image to a file, which appears whole or not at all, or to standard output.
pub(super) fn run(arguments: &SaveArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let store = Store::open(directories.store())?;
    match &arguments.output {
        Some(path) => save_to_file(&store, &arguments.image, path)?,
        None if io::stdout().is_terminal() => return Err(OutputError::Terminal.into()),
        None => save_to_stdout(&store, &arguments.image)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn save_to_file(store: &Store, image: &str, path: &Path) -> Result<(), Report> {
    let failed = |source| OutputError::File {
        path: path.to_owned(),
        source,
    };
    // A device or a pipe is written to; only a file can be replaced.
    if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
        let mut output = File::options().write(true).open(path).map_err(failed)?;
        return store
            .save(image, &mut output)
            .map_err(|error| named(error, path));
    }
    let mut partial = PartialFile::create(path).map_err(failed)?;
    store
        .save(image, &mut partial.file)
        .map_err(|error| named(error, path))?;
    partial.finish(path).map_err(failed)?;
    Ok(())
}

/// A file beside the one that it becomes when it is whole; removed if it never is.
#[derive(Debug)]
pub(super) struct PartialFile {
    path: PathBuf,
    /// What to write to.
    pub(super) file: File,
    is_whole: bool,
}

impl PartialFile {
    /// Begins a file that is to replace the one of this path.
    pub(super) fn create(whole: &Path) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(whole.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}", std::process::id()));
        let path = whole.with_file_name(name);
        Ok(Self {
            file: File::create_new(&path)?,
            path,
            is_whole: false,
        })
    }

    /// Puts the file in its place.
    pub(super) fn finish(mut self, whole: &Path) -> io::Result<()> {
        fs::rename(&self.path, whole)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn save_to_stdout(store: &Store, image: &str) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    let result = store
        .save(image, &mut output)
        .and_then(|()| output.flush().map_err(SaveError::Output));
    match result {
        Err(SaveError::Output(error)) => Err(Report::of_output(error)),
        other => Ok(other?),
    }
}

/// Names the file in an error of writing to it.
fn named(error: SaveError, path: &Path) -> Report {
    match error {
        SaveError::Output(source) => OutputError::File {
            path: path.to_owned(),
            source,
        }
        .into(),
        other => other.into(),
    }
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

impl Help for SaveError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}
