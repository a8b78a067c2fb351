//! The commands: one file each, each as short as a screen.
//!
//! A command takes what was typed, asks the rooms below for what it means, and prints. It returns
//! the exit code; a failure becomes a [`Report`] on the way out and is printed by `main`.

mod again;

mod attach;
mod attend;
mod bench;
mod commit;
mod completion;
mod cp;
mod create;
mod destination;
mod df;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod format;
mod front;
mod guest;
mod held;
mod images;
mod inspect;
mod kill;
mod life;
mod load;
mod logs;
mod mounts;
mod network;
mod output;
mod partial;
mod pause;
mod port;
mod prepare;
mod progress;
mod ps;
mod restore;
mod revive;
mod rmi;
mod rows;
pub mod run;
mod save;
mod session;
mod snapshot;
mod start;
mod stats;
mod stop;
mod template;
mod time;
mod top;
mod transfer;
mod update;
mod volume;

use std::io::{self, Write};

use crate::cli::{Cli, Command, ImageCommand, SystemCommand};
use crate::dirs::{Directories, Environment};
use crate::machines::Machines;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Action, Registry};

/// Runs the command that was typed.
///
/// # Errors
///
/// The command's failure, with its exit code.
pub fn dispatch(cli: &Cli) -> Result<ExitCode, Report> {
    let here = || Directories::find(&Environment::of_process(cli.global.root.clone()));
    match &cli.command {
        Command::Run(arguments) => run::run(arguments, &here()?, &cli.global),
        Command::Create(arguments) => create::create(arguments, &here()?, &cli.global),
        Command::Start(arguments) => create::start(arguments, &here()?, &cli.global),
        Command::Restart(arguments) => create::restart(arguments, &here()?, &cli.global),
        Command::Prepare(arguments) => prepare::run(arguments, &here()?),
        Command::Template(command) => template::run(command, &here()?),
        Command::Exec(arguments) => exec::run(arguments, &here()?),
        Command::Cp(arguments) => cp::run(arguments, &here()?),
        Command::Diff(arguments) => diff::run(arguments, &here()?),
        Command::Export(arguments) => export::run(arguments, &here()?),
        Command::Commit(arguments) => commit::run(arguments, &here()?),
        Command::Attach(arguments) => attach::run(arguments, &here()?),
        Command::Ps(arguments) => ps::run(arguments, &here()?),
        Command::Logs(arguments) => logs::run(arguments, &here()?),
        Command::Events(arguments) => events::run(arguments, &here()?),
        Command::Stats(arguments) => stats::run(arguments, &here()?),
        Command::Top(arguments) => top::run(arguments, &here()?),
        Command::Update(arguments) => update::run(arguments, &here()?),
        Command::Inspect(arguments) => inspect::run(arguments, &here()?),
        Command::Stop(arguments) => stop::stop(arguments, &here()?),
        Command::Wait(arguments) => stop::wait(arguments, &here()?),
        Command::Rename(arguments) => stop::rename(arguments, &here()?),
        Command::Port(arguments) => port::run(arguments, &here()?),
        Command::Kill(arguments) => kill::kill(arguments, &here()?),
        Command::Rm(arguments) => kill::rm(arguments, &here()?),
        Command::Pause(arguments) => pause::run(arguments, &Action::Pause, &here()?),
        Command::Resume(arguments) => pause::run(arguments, &Action::Resume, &here()?),
        Command::Snapshot(arguments) => snapshot::run(arguments, &here()?),
        Command::Fork(arguments) => snapshot::fork(arguments, &here()?),
        Command::Load(arguments) | Command::Image(ImageCommand::Load(arguments)) => {
            load::run(arguments, &here()?)
        }
        Command::Save(arguments) | Command::Image(ImageCommand::Save(arguments)) => {
            save::run(arguments, &here()?)
        }
        Command::Tag(arguments) | Command::Image(ImageCommand::Tag(arguments)) => {
            images::tag(arguments, &here()?)
        }
        Command::Images(arguments) | Command::Image(ImageCommand::Ls(arguments)) => {
            images::list(arguments, &here()?)
        }
        Command::History(arguments) | Command::Image(ImageCommand::History(arguments)) => {
            images::history(arguments, &here()?)
        }
        Command::Rmi(arguments) | Command::Image(ImageCommand::Rm(arguments)) => {
            rmi::rmi(arguments, &here()?)
        }
        Command::Prune(arguments) | Command::Image(ImageCommand::Prune(arguments)) => {
            rmi::prune(arguments, &here()?)
        }
        Command::Volume(command) => volume::run(command, &here()?),
        Command::Network(command) => network::run(command, &here()?),
        Command::System(SystemCommand::Df(arguments)) => df::run(arguments, &here()?),
        Command::System(SystemCommand::Restore(_)) => revive::run(&here()?),
        Command::Guest(command) => guest::run(command, &here()?),
        Command::Bench(arguments) => bench::run(arguments, &here()?, cli.global.root.as_deref()),
        Command::Doctor(arguments) => doctor::run(arguments, &here()?),
        Command::Completion(arguments) => completion::completion(arguments),
        Command::Man(arguments) => completion::man(arguments),
    }
}

/// All machines.
fn machines(directories: &Directories) -> Result<Machines, Report> {
    Ok(Machines::new(Registry::open(directories.machines())?))
}

/// Does something with each of several things that were named.
///
/// What fails is reported at once and does not keep the others from being done.
fn each(
    references: &[String],
    mut action: impl FnMut(&str) -> Result<(), Report>,
) -> Result<ExitCode, Report> {
    let mut failure = None;
    for reference in references {
        match action(reference) {
            Ok(()) => {}
            Err(report) if report.is_output_closed() => return Err(report),
            Err(report) => {
                // Nobody is left to tell if standard error is gone.
                let _ = writeln!(io::stderr(), "{report}");
                failure = Some(Report::printed(report.exit_code()));
            }
        }
    }
    match failure {
        Some(report) => Err(report),
        None => Ok(ExitCode::SUCCESS),
    }
}
