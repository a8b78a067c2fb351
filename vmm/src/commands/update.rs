//! `vmm update`: other limits and another restart policy for machines, whether they run or not.

use super::output::print_line;
use super::{each, machines};
use crate::cli::UpdateArgs;
use crate::dirs::Directories;
use crate::machines::UpdateError;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::workload::limits::LimitChange;

/// Changes the limits of each machine.
pub(super) fn run(arguments: &UpdateArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let machines = machines(directories)?;
    let change = arguments.change();
    each(&arguments.machines, |reference| {
        let machine = machines.find(reference)?;
        if let Some(policy) = arguments.restart
            && !policy.is_none()
            && !machine.is_kept()
        {
            return Err(UpdateError::NotKept(machine.record.name).into());
        }
        // Nothing at all is refused there.
        if arguments.restart.is_none() || change != LimitChange::default() {
            machines.update(&machine, &change)?;
        }
        if let Some(policy) = arguments.restart {
            machines.set_restart_policy(&machine, policy)?;
        }
        print_line(reference)
    })
}
