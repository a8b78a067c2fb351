//! `vmm guest`: which kernel and agent new machines boot.

use super::output::{Table, print_json, print_line};
use crate::cli::{GuestCommand, GuestListArgs, GuestPackArgs};
use crate::dirs::Directories;
use crate::guest::{GuestDirectory, Ingredients, pack};
use crate::outcome::ExitCode;
use crate::report::Report;

/// Runs `vmm guest …`.
pub(super) fn run(command: &GuestCommand, directories: &Directories) -> Result<ExitCode, Report> {
    match command {
        GuestCommand::List(arguments) => list(arguments, directories)?,
        GuestCommand::Use(arguments) => {
            let guest = GuestDirectory::find(directories)?;
            print_line(guest.use_version(&arguments.version, directories.cache())?)?;
        }
        GuestCommand::Rollback => {
            let guest = GuestDirectory::find(directories)?;
            print_line(guest.rollback(directories.cache())?)?;
        }
        GuestCommand::Pack(arguments) => print_line(pack_ingredients(arguments)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(arguments: &GuestListArgs, directories: &Directories) -> Result<(), Report> {
    let versions = GuestDirectory::find(directories)?.list()?;
    if arguments.list.is_json() {
        return print_json(&versions);
    }
    let mut table = Table::new(["VERSION", "KERNEL", "PROTOCOL", "USE"]);
    for version in versions {
        let usage = match (version.current, version.previous) {
            (true, _) => "current",
            (false, true) => "previous",
            (false, false) => "",
        };
        let unknown = || "?".to_owned();
        table.row([
            version.version,
            version.kernel_release.unwrap_or_else(unknown),
            version.protocol.map_or_else(unknown, |it| it.to_string()),
            usage.to_owned(),
        ]);
    }
    table.print()
}

fn pack_ingredients(arguments: &GuestPackArgs) -> Result<String, Report> {
    let ingredients = Ingredients {
        kernel: &arguments.kernel,
        kernel_release: &arguments.kernel_release,
        config: &arguments.config,
        agent: &arguments.agent,
        blank: arguments.blank.as_deref(),
    };
    Ok(pack(&ingredients, &arguments.output)?)
}
