//! `vmm load`: images from outside into the store.

use std::io::{self, IsTerminal};

use super::output::print_line;
use super::progress::ImportProgress;
use crate::cli::{FileOrStdin, ImportLimitArgs, LoadArgs};
use crate::dirs::Directories;
use crate::image::{ImageSource, ImportOptions, Limits, ParseReferenceError, Store};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};

/// Imports an image and says what it is called.
pub(super) fn run(arguments: &LoadArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let source = source(arguments.input.as_ref())?;
    let name = arguments.name.as_deref().map(str::parse).transpose()?;
    let options = ImportOptions {
        name,
        select: arguments.select.clone(),
        ..import_options(&arguments.limits)
    };
    let store = Store::open(directories.store())?;
    let image = {
        let progress = ImportProgress::new();
        store.import(source, &options, &progress)?
    };
    if arguments.quiet {
        print_line(image.id.to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = store
        .images()?
        .into_iter()
        .find(|summary| summary.id == image.id)
        .map(|summary| summary.names)
        .unwrap_or_default();
    if names.is_empty() {
        print_line(format!("Loaded image: {}", image.id))?;
    }
    for name in names {
        print_line(format!("Loaded image: {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the options of an import from its limits.
pub(super) fn import_options(limits: &ImportLimitArgs) -> ImportOptions {
    let defaults = Limits::default();
    let or =
        |limit: Option<crate::limits::ByteSize>, default| limit.map_or(default, |it| it.bytes());
    ImportOptions {
        limits: Limits {
            unpacked_bytes: or(limits.unpacked_limit, defaults.unpacked_bytes),
            apparent_bytes: or(limits.files_limit, defaults.apparent_bytes),
            ..defaults
        },
        store_limit_bytes: limits.store_limit.map(|it| it.bytes()),
        ..ImportOptions::default()
    }
}

/// Says where to read from; nobody types an archive.
fn source(input: Option<&FileOrStdin>) -> Result<ImageSource, LoadError> {
    match input {
        Some(FileOrStdin::File(path)) => Ok(ImageSource::Path(path.clone())),
        Some(FileOrStdin::Stdin) | None if io::stdin().is_terminal() => Err(LoadError::Terminal),
        Some(FileOrStdin::Stdin) | None => Ok(ImageSource::from_argument("-".into())),
    }
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    /// Standard input is a keyboard.
    #[error("standard input is a terminal, not an archive")]
    Terminal,
}

impl Help for LoadError {
    fn help(&self) -> Option<String> {
        Some("name a file with --input FILE, or redirect standard input".to_owned())
    }
}

impl Help for ParseReferenceError {}
