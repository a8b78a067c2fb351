//! `vmm pause` and `vmm resume`: machines that stand still.

use super::output::print_line;
use super::{each, machines};
use crate::cli::MachinesArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::Action;

/// Lets each machine stand, or go on.
pub(super) fn run(
    arguments: &MachinesArgs,
    action: &Action,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    each(&arguments.machines, |reference| {
        machines.act(&machines.find(reference)?, action.clone())?;
        print_line(reference)
    })
}
