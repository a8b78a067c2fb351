//! The commands: one file each, each as short as a screen.
//!
//! A command takes what was typed, asks the rooms below for what it means, and prints. It returns
//! the exit code; a failure becomes a [`Report`] on the way out and is printed by `main`.

mod completion;
mod doctor;
mod guest;
mod kill;
mod output;
mod progress;
mod ps;
pub mod run;

use std::io::{self, Write};

use crate::cli::{Cli, Command};
use crate::dirs::{Directories, Environment};
use crate::outcome::ExitCode;
use crate::report::Report;

/// Runs the command that was typed.
///
/// # Errors
///
/// The command's failure, with its exit code.
pub fn dispatch(cli: &Cli) -> Result<ExitCode, Report> {
    let directories = Directories::find(&Environment::of_process(cli.global.root.clone()))?;
    match &cli.command {
        Command::Run(arguments) => run::run(arguments, &directories, cli.global.verbose),
        Command::Ps(arguments) => ps::run(arguments, &directories),
        Command::Kill(arguments) => kill::kill(arguments, &directories),
        Command::Rm(arguments) => kill::rm(arguments, &directories),
        Command::Guest(command) => guest::run(command, &directories),
        Command::Doctor(arguments) => doctor::run(arguments, &directories),
        Command::Completion(arguments) => completion::completion(arguments),
        Command::Man(arguments) => completion::man(arguments),
        _ => Ok(ExitCode::SUCCESS),
    }
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
