//! `vmm stop`, `vmm wait` and `vmm rename`.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::each;
use super::output::print_line;
use crate::cli::{MachinesArgs, RenameArgs, StopArgs};
use crate::dirs::Directories;
use crate::outcome::{ExitCode, Outcome};
use crate::report::Report;
use crate::state::{
    Action, Condition, ControlClient, ControlError, Machine, Registry, Signal, StateError,
};

/// How long a workload may take to end unless somebody says otherwise, docker's number.
const DEFAULT_TIMEOUT_SECONDS: i64 = 10;

/// A machine that was asked to end.
struct Stopping {
    machine: Machine,
    waiter: ControlClient,
    /// When it is killed; never if none.
    deadline: Option<Instant>,
}

/// Asks each machine to end, all at once, and then waits for each.
pub(super) fn stop(arguments: &StopArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let mut begun = arguments
        .machines
        .iter()
        .map(|reference| {
            let machine = registry.find(reference)?;
            begin(&registry, machine, arguments.signal, arguments.timeout)
        })
        .collect::<Vec<_>>()
        .into_iter();
    each(&arguments.machines, |reference| {
        if let Some(stopping) = begun.next().transpose()?.flatten() {
            finish(&registry, stopping)?;
        }
        print_line(reference)
    })
}

/// Asks a machine to end, by the signal and within the seconds that its record says unless others are given, and waits for it.
pub(super) fn end(
    registry: &Registry,
    machine: Machine,
    signal: Option<Signal>,
    timeout_seconds: Option<i64>,
) -> Result<(), Report> {
    match begin(registry, machine, signal, timeout_seconds)? {
        Some(stopping) => finish(registry, stopping),
        None => Ok(()),
    }
}

/// Asks a machine to end; nothing if it has ended.
fn begin(
    registry: &Registry,
    machine: Machine,
    signal: Option<Signal>,
    timeout_seconds: Option<i64>,
) -> Result<Option<Stopping>, Report> {
    if !machine.alive {
        return Ok(None);
    }
    let (waiter, mut control) = match connect_twice(&machine) {
        // It has ended in between, and its lock is free soon.
        Err(ControlError::NotRunning(_)) => {
            registry.await_end(&machine.record.id)?;
            return Ok(None);
        }
        other => other?,
    };
    let settings = &machine.record.settings;
    let signal = signal.or(settings.stop_signal);
    let timeout = timeout_seconds.or(settings.stop_timeout_seconds);
    let timeout = u64::try_from(timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS)).ok();
    let asked = Instant::now();
    control.stop(signal.unwrap_or(Signal::TERM))?;
    if matches!(machine.condition(), Condition::Paused { .. }) {
        // It would not notice otherwise. Somebody else may have let it go on meanwhile.
        let _ = control.act(Action::Resume);
    }
    Ok(Some(Stopping {
        machine,
        waiter,
        deadline: timeout.and_then(|seconds| asked.checked_add(Duration::from_secs(seconds))),
    }))
}

fn connect_twice(machine: &Machine) -> Result<(ControlClient, ControlClient), ControlError> {
    let connect = || ControlClient::connect(&machine.directory);
    Ok((connect()?, connect()?))
}

/// Waits for a machine's end, and kills it when its time is over.
fn finish(registry: &Registry, stopping: Stopping) -> Result<(), Report> {
    let Stopping {
        machine,
        waiter,
        deadline,
    } = stopping;
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let is_late = match left {
        Some(Duration::ZERO) => true,
        _ => matches!(waiter.wait(left), Err(ControlError::Io { source, .. })
            if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
    };
    if is_late {
        match ControlClient::connect(&machine.directory) {
            Err(ControlError::NotRunning(_)) => {}
            other => other?.kill(Signal::KILL)?,
        }
    }
    // Also for the monitor's own end, after which the machine can be removed.
    registry.await_end(&machine.record.id)?;
    registry.note(&machine.record, "stop", &[]);
    Ok(())
}

/// Waits for each machine and prints the code that it ended with.
pub(super) fn wait(
    arguments: &MachinesArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    each(&arguments.machines, |reference| {
        let code = exit_code(&registry, reference)?;
        print_line(code.to_string())
    })
}

fn exit_code(registry: &Registry, reference: &str) -> Result<u8, Report> {
    let machine = registry.find(reference)?;
    let id = &machine.record.id;
    if machine.alive {
        // One that leaves no record tells it to those who wait, and to nobody else.
        let told = ControlClient::connect(&machine.directory).and_then(|client| client.wait(None));
        // As with docker, one that is started again has ended, too.
        let goes_on = registry.find(id.as_str()).is_ok_and(|it| {
            let restarts = machine.record.history.restarts;
            it.alive && it.record.history.restarts != restarts
        });
        if !goes_on {
            registry.await_end(id)?;
        }
        if let Ok(ended) = told {
            return Ok(ended.exit_code);
        }
    }
    let ended = match machine.alive {
        true => registry.find(id.as_str())?,
        false => machine,
    };
    match ended.condition() {
        Condition::Exited(ended) => Ok(ended.exit_code),
        // What its monitor was ended by takes the machine with it.
        Condition::Dead { .. } => Ok(Outcome::Killed.exit_code().number()),
        Condition::Created
        | Condition::Restarting(_)
        | Condition::Running { .. }
        | Condition::Paused { .. } => Err(StateError::Alive(ended.record.id).into()),
    }
}

/// Gives a machine another name.
pub(super) fn rename(
    arguments: &RenameArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    registry.rename(&arguments.machine, &arguments.name)?;
    Ok(ExitCode::SUCCESS)
}
