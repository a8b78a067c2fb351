//! The commands: one file each, each as short as a screen.
//!
//! A command takes what was typed, asks the rooms below for what it means, and prints. It returns
//! the exit code; a failure becomes a [`Report`] on the way out and is printed by `main`.

mod completion;
mod guest;
mod output;
pub mod run;

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
        Command::Run(arguments) => run::run(arguments, &directories),
        Command::Guest(command) => guest::run(command, &directories),
        Command::Completion(arguments) => completion::completion(arguments),
        Command::Man(arguments) => completion::man(arguments),
        _ => Ok(ExitCode::SUCCESS),
    }
}
