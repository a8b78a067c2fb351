//! `vmm kill` and `vmm rm`: the end of machines, and of what is left of them.

use super::output::print_line;
use super::{each, machines, mounts, ps};
use crate::cli::{KillArgs, RmArgs};
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::Registry;

/// Sends a signal to the workload of each machine.
pub(super) fn kill(arguments: &KillArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    each(&arguments.machines, |reference| {
        machines.kill(&machines.find(reference)?, arguments.signal)?;
        print_line(reference)
    })
}

/// Removes each machine; with `--force` it is killed first.
pub(super) fn rm(arguments: &RmArgs, directories: &Directories) -> Result<ExitCode, Report> {
    ps::clean(&Registry::open(directories.machines())?);
    let machines = machines(directories)?;
    each(&arguments.machines, |reference| {
        let machine = machines.find(reference)?;
        machines.remove(&machine, arguments.force)?;
        if arguments.volumes {
            mounts::remove_own(&machine.record.settings.mounts, directories);
        }
        print_line(reference)
    })
}
