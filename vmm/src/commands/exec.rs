//! `vmm exec`: another command in a machine that runs.
//!
//! The monitor of the machine asks for the process and dials its streams; their bytes are moved here, past the monitor.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::run::has_keyboard;
use crate::agent_link::{Connections, Pumps, Side};
use crate::cli::ExecArgs;
use crate::dirs::Directories;
use crate::monitor::{RawTerminal, Signals, client_streams, window_size};
use crate::outcome::{ExitCode, Outcome};
use crate::report::{Help, Report};
use crate::state::{
    Condition, ControlError, ExecRequest, Machine, MachineName, Registry, Session, SessionNews,
};
use crate::workload::environment::{HostEnvironment as _, OwnEnvironment, Variable, read_file};
use crate::workload::exec::ExecChoices;

/// Runs a command in a machine and returns its exit code.
pub(super) fn run(arguments: &ExecArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let is_attached = !arguments.detach;
    if is_attached {
        has_keyboard(arguments.interactive, arguments.tty)?;
    }
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    runs(&machine)?;
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
    let (session, descriptors) = Session::open(&machine.directory, &request)?;
    let connections =
        Connections::received(descriptors, request.streams).ok_or(ExecError::Streams)?;
    let terminal = takes_keys
        .then(RawTerminal::enter)
        .transpose()
        .map_err(ExecError::Terminal)?;
    let mut attended = Attended {
        session,
        pumps: Pumps::new(connections, streams),
        signals,
        outcome: None,
        ends_when_started: arguments.detach,
    };
    let code = attended.attend();
    drop(terminal);
    code
}

/// Refuses a machine in which nothing can be run.
fn runs(machine: &Machine) -> Result<(), ExecError> {
    let name = machine.record.name.clone();
    match machine.condition() {
        Condition::Running { .. } => Ok(()),
        Condition::Created => Err(ExecError::NotYet(name)),
        Condition::Paused { .. } => Err(ExecError::Paused(name)),
        Condition::Exited(_) | Condition::Dead => Err(ExecError::Ended(name)),
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

/// A process from its request to its end.
struct Attended<'a> {
    session: Session,
    pumps: Pumps<'a>,
    signals: Option<Signals>,
    outcome: Option<Outcome>,
    /// Whether nobody waits for its end.
    ends_when_started: bool,
}

/// Whose descriptor a poll result belongs to.
#[derive(Clone, Copy)]
enum Source {
    Session,
    Signals,
    Stream(Side),
}

impl Attended<'_> {
    fn attend(&mut self) -> Result<ExitCode, Report> {
        let mut last_progress = Instant::now();
        loop {
            if let Some(outcome) = &self.outcome
                && self.pumps.are_done(last_progress)
            {
                return report_outcome(outcome);
            }
            let ready = self.wait()?;
            if !ready.is_empty() {
                last_progress = Instant::now();
            }
            for (source, result) in ready {
                match source {
                    Source::Stream(side) => self.pumps.advance(side, result),
                    Source::Signals => {
                        if let Some(signal) = self.take_signals()? {
                            return Ok(ExitCode::of_signal(signal));
                        }
                    }
                    Source::Session => {
                        for news in self.session.receive()? {
                            match news {
                                SessionNews::Started if self.ends_when_started => {
                                    return Ok(ExitCode::SUCCESS);
                                }
                                SessionNews::Started => {}
                                SessionNews::Ended(outcome) => {
                                    self.outcome = Some(outcome);
                                    self.pumps.end_input();
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, ExecError> {
        let mut sources = Vec::new();
        let mut descriptors = Vec::new();
        if self.outcome.is_none() {
            sources.push(Source::Session);
            descriptors.push(PollFd::new(&self.session, PollFlags::IN));
        }
        if let Some(signals) = &self.signals {
            sources.push(Source::Signals);
            descriptors.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
        }
        for (side, descriptor, interest) in self.pumps.interests() {
            sources.push(Source::Stream(side));
            descriptors.push(PollFd::from_borrowed_fd(descriptor, interest));
        }
        let patience = self.outcome.as_ref().map(|_| Pumps::patience());
        match poll(&mut descriptors, patience.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(ExecError::Poll(error.into())),
        }
        let results = descriptors.iter().map(PollFd::revents);
        Ok(sources
            .into_iter()
            .zip(results)
            .filter(|(_, result)| !result.is_empty())
            .collect())
    }

    /// Passes a window's size on. Gives the signal that ends this client: the process has those that are typed as keys.
    fn take_signals(&mut self) -> Result<Option<u8>, ControlError> {
        let Some(signals) = &self.signals else {
            return Ok(None);
        };
        let end = signals.next_end();
        if end.is_none()
            && self.outcome.is_none()
            && let Some(size) = window_size(rustix::stdio::stdin())
        {
            self.session.resize(size)?;
        }
        Ok(end)
    }
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
    /// The machine boots.
    #[error("the workload of {0} does not run yet")]
    NotYet(MachineName),
    /// The machine stands still.
    #[error("{0} is paused")]
    Paused(MachineName),
    /// The machine has ended.
    #[error("{0} does not run")]
    Ended(MachineName),
    /// The guest says why.
    #[error("the command did not start: {0}")]
    NotStarted(String),
    /// The monitor is not one of ours.
    #[error("the monitor handed over other streams than it was asked for")]
    Streams,
    /// Raw mode was refused.
    #[error("cannot pass on what is typed")]
    Terminal(#[source] io::Error),
    /// The host's kernel refused to wait.
    #[error("cannot wait for the command")]
    Poll(#[source] io::Error),
}

impl Help for ExecError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NotYet(name) => Some(format!(
                "see how far it is with `vmm ps -a`, and wait for {name}"
            )),
            Self::Paused(name) => Some(format!("let it go on with `vmm resume {name}`")),
            Self::Ended(_) => Some("see what runs with `vmm ps`".to_owned()),
            _ => None,
        }
    }
}
