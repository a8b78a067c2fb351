//! `vmm stop`, `vmm wait` and `vmm rename`.

use super::output::print_line;
use super::{each, machines};
use crate::cli::{MachinesArgs, RenameArgs, StopArgs};
use crate::dirs::Directories;
use crate::machines::Ending;
use crate::network::bridge::Networks;
use crate::outcome::ExitCode;
use crate::report::Report;

/// Asks each machine to end, all at once, and then waits for each.
pub(super) fn stop(arguments: &StopArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    let ending = Ending {
        signal: arguments.signal,
        timeout_seconds: arguments.timeout,
    };
    let mut begun = arguments
        .machines
        .iter()
        .map(|reference| machines.begin_end(machines.find(reference)?, ending))
        .collect::<Vec<_>>()
        .into_iter();
    each(&arguments.machines, |reference| {
        if let Some(stopping) = begun.next().transpose()?.flatten() {
            stopping.wait()?;
        }
        print_line(reference)
    })
}

/// Waits for each machine and prints the code that it ended with.
pub(super) fn wait(
    arguments: &MachinesArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    each(&arguments.machines, |reference| {
        let code = machines.wait(machines.find(reference)?)?;
        print_line(code.to_string())
    })
}

/// Gives a machine another name.
pub(super) fn rename(
    arguments: &RenameArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    machines.rename(&arguments.machine, &arguments.name)?;
    let machine = machines.find(arguments.name.as_str())?.record.id;
    // It is known by its new name on its network, too.
    Networks::new(directories.networks()).rename(&machine, arguments.name.as_str())?;
    Ok(ExitCode::SUCCESS)
}
