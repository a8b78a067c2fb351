//! `vmm exec`: another command in a machine that runs.
//!
//! The monitor of the machine asks for the process and dials its streams; their bytes are moved here, past the monitor.

use super::machines;
use super::run::has_keyboard;
use super::session::{Attended, Escaped, Leaving, SessionError};
use crate::agent_link::{Connections, Pumps};
use crate::cli::ExecArgs;
use crate::dirs::Directories;
use crate::monitor::{RawTerminal, Signals, client_streams, window_size};
use crate::outcome::{ExitCode, Outcome};
use crate::report::{Help, Report};
use crate::state::ExecRequest;
use crate::workload::environment::{HostEnvironment as _, OwnEnvironment, Variable, read_file};
use crate::workload::exec::ExecChoices;

/// Runs a command in a machine and returns its exit code.
pub(super) fn run(arguments: &ExecArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let is_attached = !arguments.detach;
    if is_attached {
        has_keyboard(arguments.interactive, arguments.tty)?;
    }
    let machines = machines(directories)?;
    let machine = machines.find(&arguments.machine)?;
    let streams = client_streams(is_attached, arguments.interactive, arguments.tty);
    let request = ExecRequest {
        choices: choices(arguments)?,
        streams: streams.declared(),
    };
    let takes_keys = is_attached && arguments.tty && arguments.interactive;
    let signals = match (is_attached && arguments.tty, takes_keys) {
        (false, _) => None,
        (true, false) => Some(Signals::take_window()?),
        // Whatever ends this is not to leave the terminal raw.
        (true, true) => Some(Signals::take()?),
    };
    let (session, descriptors) = machines.exec(&machine, &request)?;
    let connections =
        Connections::received(descriptors, request.streams).ok_or(SessionError::Streams)?;
    let terminal = takes_keys
        .then(RawTerminal::enter)
        .transpose()
        .map_err(SessionError::Terminal)?;
    let mut pumps = Pumps::new(connections, streams);
    if takes_keys {
        pumps.watch_for(&arguments.detach_keys);
    }
    let mut attended = Attended::new(session, pumps, signals).ending_when_started(arguments.detach);
    let leaving = attended.attend();
    drop(terminal);
    match leaving? {
        Leaving::Ended(outcome) => report_outcome(&outcome),
        Leaving::Started => Ok(ExitCode::SUCCESS),
        // As docker does.
        Leaving::Detached => Err(Report::from(Escaped).with_exit_code(ExitCode::FAILURE)),
        Leaving::Signalled(signal) => Ok(ExitCode::of_signal(signal)),
    }
}

fn choices(arguments: &ExecArgs) -> Result<ExecChoices, Report> {
    let mut environment = Vec::new();
    for path in &arguments.env_file {
        environment.extend(read_file(path, &OwnEnvironment)?);
    }
    environment.extend(arguments.env.iter().cloned());
    let resolve = |variable| match variable {
        Variable::Set { name, value } => (name, Some(value)),
        Variable::Inherit { name } => {
            let value = OwnEnvironment.value(&name);
            (name, value)
        }
    };
    Ok(ExecChoices {
        arguments: arguments.command.clone(),
        environment: environment.into_iter().map(resolve).collect(),
        working_directory: arguments.workdir.clone(),
        user: arguments.user.clone(),
        has_terminal: arguments.tty,
        window: arguments
            .tty
            .then(|| window_size(rustix::stdio::stdin()))
            .flatten(),
        is_privileged: arguments.privileged,
    })
}

/// A command that ran is no error of ours, whatever its code; one that did not is.
fn report_outcome(outcome: &Outcome) -> Result<ExitCode, Report> {
    let code = outcome.exit_code();
    match outcome {
        Outcome::NotStarted { message, .. } => {
            Err(Report::new(ExecError::NotStarted(message.clone())).with_exit_code(code))
        }
        _ => Ok(code),
    }
}

/// A command that was not run.
#[derive(Debug, thiserror::Error)]
enum ExecError {
    /// The guest says why.
    #[error("the command did not start: {0}")]
    NotStarted(String),
}

impl Help for ExecError {}
