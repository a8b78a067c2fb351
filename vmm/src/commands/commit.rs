//! `vmm commit`: what a machine has changed becomes a layer of a new image.

use std::io::{self, Write};

use oci_spec::image::ImageConfiguration;
use protocol::FilesTask;

use super::output::print_line;
use super::transfer::{Transfer, TransferError};
use crate::cli::CommitArgs;
use crate::dirs::Directories;
use crate::image::{Change, CommitError, Commitment, Store};
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{Registry, Settings};

/// Makes the image and prints its id.
pub(super) fn run(arguments: &CommitArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let name = arguments.name.as_deref().map(str::parse).transpose()?;
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    let store = Store::open(directories.store())?;
    let base = store.find(&machine.record.image.id)?;
    let as_run = as_run(
        &machine.record.command,
        &machine.record.settings,
        &base.config,
    );
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
        as_run,
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

/// Variables that each machine gets anew.
const OWN_VARIABLES: [&str; 2] = ["HOSTNAME", "TERM"];

/// What a machine was run with: as with docker, its image's configuration and all that was typed.
fn as_run(command: &[String], settings: &Settings, image: &ImageConfiguration) -> Vec<Change> {
    let entrypoint = image
        .config()
        .as_ref()
        .and_then(|config| config.entrypoint().as_deref())
        .unwrap_or_default();
    let mut changes = match (command.strip_prefix(entrypoint), command.split_first()) {
        (Some(arguments), _) => vec![Change::Cmd(arguments.to_vec())],
        // With an entrypoint of its own.
        (None, Some((program, arguments))) => vec![
            Change::Entrypoint(vec![program.clone()]),
            Change::Cmd(arguments.to_vec()),
        ],
        (None, None) => Vec::new(),
    };
    let variables = settings
        .environment
        .iter()
        .filter_map(|entry| entry.split_once('='));
    let variables: Vec<_> = variables
        .filter(|(name, _)| !OWN_VARIABLES.contains(name))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    changes.push(Change::Env(variables));
    let labels = settings.labels.iter();
    changes.push(Change::Label(
        labels
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
    ));
    if !settings.user.is_empty() {
        changes.push(Change::User(settings.user.clone()));
    }
    if !settings.working_directory.is_empty() {
        changes.push(Change::WorkDir(settings.working_directory.clone()));
    }
    changes
}

impl Help for CommitError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        Settings {
            environment: vec!["PATH=/bin".into(), "HOSTNAME=x".into(), "A=b=c".into()],
            labels: [("team".to_owned(), "blue".to_owned())].into(),
            user: "5".into(),
            working_directory: "/srv".into(),
            ..Settings::default()
        }
    }

    fn image() -> ImageConfiguration {
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] },
            "config": { "Entrypoint": ["/entry", "-v"], "Cmd": ["serve"] }
        });
        serde_json::from_value(config).unwrap()
    }

    fn of(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn what_was_typed_is_the_new_images() {
        let changes = as_run(&of(&["/entry", "-v", "other", "-x"]), &settings(), &image());

        let variables = [("PATH", "/bin"), ("A", "b=c")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            changes,
            [
                Change::Cmd(of(&["other", "-x"])),
                Change::Env(variables.to_vec()),
                Change::Label(vec![("team".to_owned(), "blue".to_owned())]),
                Change::User("5".to_owned()),
                Change::WorkDir("/srv".to_owned()),
            ]
        );
    }

    #[test]
    fn another_entrypoint_is_the_new_images() {
        let changes = as_run(&of(&["sh", "-c", "true"]), &settings(), &image());

        assert_eq!(
            changes[..2],
            [
                Change::Entrypoint(of(&["sh"])),
                Change::Cmd(of(&["-c", "true"])),
            ]
        );
    }
}
