//! `vmm commit`: what a machine has changed becomes a layer of a new image.

use std::io::{self, Write};

use protocol::FilesTask;

use super::output::print_line;
use super::transfer::{Transfer, TransferError};
use crate::cli::CommitArgs;
use crate::dirs::Directories;
use crate::image::{CommitError, Commitment, Store};
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::Registry;

/// Makes the image and prints its id.
pub(super) fn run(arguments: &CommitArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let name = arguments.name.as_deref().map(str::parse).transpose()?;
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    let store = Store::open(directories.store())?;
    let mut draft = store.draft(&machine.record.image.id)?;
    let task = FilesTask::Layer {
        pauses: arguments.pause,
    };
    let mut transfer = Transfer::begin(&machine, &task, directories)?;
    if let Err(error) = io::copy(transfer.output()?, &mut draft) {
        return Err(match draft.failure(error) {
            Ok(failure) => failure.into(),
            Err(error) => transfer.give_up(TransferError::Stream(error)).into(),
        });
    }
    draft.flush().map_err(TransferError::Stream)?;
    transfer.end()?;
    let image = draft.commit(&Commitment {
        name,
        created: Moment::now().to_string(),
        created_by: machine.record.command.join(" "),
        author: arguments.author.clone(),
        comment: arguments.message.clone(),
        changes: arguments.change.clone(),
    })?;
    registry.note(
        &machine.record,
        "commit",
        &[("imageID", image.id.to_string())],
    );
    print_line(image.id.to_string())?;
    Ok(ExitCode::SUCCESS)
}

impl Help for CommitError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}
