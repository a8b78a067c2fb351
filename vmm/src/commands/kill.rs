//! `vmm kill` and `vmm rm`: the end of machines, and of what is left of them.

use std::time::{Duration, Instant};

use super::output::print_line;
use super::{each, ps};
use crate::cli::{KillArgs, RmArgs};
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{ControlClient, ControlError, Machine, Registry, Signal, StateError};

/// How long a killed machine may take to be gone: the guest is not asked.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait before looking again whether it is gone.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends a signal to the workload of each machine.
pub(super) fn kill(arguments: &KillArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    each(&arguments.machines, |reference| {
        let machine = registry.find_alive(reference)?;
        ControlClient::connect(&machine.directory)?.kill(arguments.signal)?;
        print_line(reference)
    })
}

/// Removes each machine; with `--force` it is killed first.
pub(super) fn rm(arguments: &RmArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    ps::clean(&registry);
    each(&arguments.machines, |reference| {
        let machine = registry.find(reference)?;
        if arguments.force && machine.alive {
            end(&machine)?;
            remove_killed(&registry, &machine)?;
        } else {
            registry.remove(&machine.record.id)?;
        }
        print_line(reference)
    })
}

/// Kills a machine. One that ended in between needs no killing.
fn end(machine: &Machine) -> Result<(), ControlError> {
    match ControlClient::connect(&machine.directory) {
        Err(ControlError::NotRunning(_)) => Ok(()),
        other => other?.kill(Signal::KILL),
    }
}

/// Removes a machine that was killed, when its monitor has let go of it.
fn remove_killed(registry: &Registry, machine: &Machine) -> Result<(), StateError> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        match registry.remove(&machine.record.id) {
            Err(StateError::Alive(_)) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}
