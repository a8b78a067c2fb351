//! `vmm pause` and `vmm resume`: machines that stand still.

use super::each;
use super::output::print_line;
use crate::cli::MachinesArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Action, ControlClient, Registry};

/// Lets each machine stand, or go on.
pub(super) fn run(
    arguments: &MachinesArgs,
    action: &Action,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    each(&arguments.machines, |reference| {
        let machine = registry.find_alive(reference)?;
        ControlClient::connect(&machine.directory)?.act(action.clone())?;
        print_line(reference)
    })
}
