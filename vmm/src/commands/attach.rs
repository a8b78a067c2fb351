//! `vmm attach`: the streams of a workload that runs in the background.
//!
//! The monitor of the machine hands over sockets for them; their bytes are moved here.

use std::os::fd::OwnedFd;

use protocol::WindowSize;

use super::attend::report_outcome;
use super::run::has_keyboard;
use super::session::{Attended, Escaped, Leaving, SessionError};
use crate::agent_link::{ClientStreams, Connections, Pumps};
use crate::attach::DetachKeys;
use crate::cli::{AttachArgs, StartArgs};
use crate::dirs::Directories;
use crate::monitor::{RawTerminal, Signals, window_size};
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{AttachRequest, Attachment, Condition, Machine, MachineName, Registry, Session};

/// Joins this process's streams with those of a workload, and ends with its exit code.
pub(super) fn run(arguments: &AttachArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let attached = || {
        let registry = Registry::open(directories.machines())?;
        let machine = registry.find(&arguments.machine)?;
        let choices = AttachChoices {
            stdin: !arguments.no_stdin,
            passes_signals: arguments.sig_proxy,
            keys: &arguments.detach_keys,
        };
        attach(&machine, choices)
    };
    // As with docker, whatever keeps this from the workload.
    match attached().map_err(|report| report.with_exit_code(ExitCode::FAILURE))? {
        Leaving::Detached => Err(Report::from(Escaped).with_exit_code(ExitCode::FAILURE)),
        other => finish(&other),
    }
}

/// `vmm start -a` of a machine that runs already.
pub(super) fn join_started(machine: &Machine, arguments: &StartArgs) -> Result<ExitCode, Report> {
    let choices = AttachChoices {
        stdin: arguments.interactive,
        passes_signals: true,
        keys: &arguments.detach_keys,
    };
    finish(&attach(machine, choices)?)
}

fn finish(leaving: &Leaving) -> Result<ExitCode, Report> {
    match leaving {
        Leaving::Ended(outcome) => report_outcome(outcome),
        Leaving::Started | Leaving::Detached => Ok(ExitCode::SUCCESS),
        Leaving::Signalled(signal) => Ok(ExitCode::of_signal(*signal)),
    }
}

/// How a machine is to be attached to.
#[derive(Clone, Copy)]
struct AttachChoices<'a> {
    stdin: bool,
    passes_signals: bool,
    keys: &'a DetachKeys,
}

fn attach(machine: &Machine, choices: AttachChoices<'_>) -> Result<Leaving, Report> {
    can_be_attached(machine)?;
    let AttachChoices {
        stdin,
        passes_signals,
        keys,
    } = choices;
    let has_terminal = machine.record.settings.terminal;
    has_keyboard(stdin, has_terminal).map_err(|report| {
        Report::from(report).with_help("add --no-stdin to see the output alone")
    })?;
    // Whatever ends this is not to leave the terminal raw.
    let takes_signals = has_terminal || passes_signals;
    let signals = takes_signals.then(Signals::take).transpose()?;
    let (mut session, attachment, sockets) =
        Session::attach(&machine.directory, AttachRequest { stdin }).map_err(|error| {
            let help = error.help();
            let help = help.unwrap_or_else(|| "see what runs with `vmm ps -a`".to_owned());
            Report::from(error).with_help(help)
        })?;
    if let (true, Some(size)) = (has_terminal, window_size(rustix::stdio::stdin())) {
        // The size that follows is another one, so that what runs there shows itself anew.
        session.resize(WindowSize {
            rows: size.rows.saturating_add(1),
            columns: size.columns.saturating_add(1),
        })?;
    }
    let joining = Joining {
        takes_input: true,
        keys: has_terminal.then_some(keys),
        signals,
        passes_signals: !has_terminal,
        ends_unread: false,
    };
    Ok(joining.join((session, attachment, sockets))?)
}

/// How a client joins a workload.
pub(super) struct Joining<'a> {
    /// Whether it passes on what it reads.
    pub(super) takes_input: bool,
    /// The keys that a client with a terminal leaves by.
    pub(super) keys: Option<&'a DetachKeys>,
    pub(super) signals: Option<Signals>,
    /// Whether signals are the workload's.
    pub(super) passes_signals: bool,
    /// Whether it ends when nobody reads its output.
    pub(super) ends_unread: bool,
}

impl Joining<'_> {
    /// Joins this process's streams with those that a monitor has handed over, and attends until there is no reason to stay.
    pub(super) fn join(
        self,
        (session, attachment, sockets): (Session, Attachment, Vec<OwnedFd>),
    ) -> Result<Leaving, SessionError> {
        let Self {
            takes_input,
            keys,
            signals,
            passes_signals,
            ends_unread,
        } = self;
        let has_terminal = keys.is_some();
        let Attachment {
            streams,
            passes_end,
        } = attachment;
        let client = ClientStreams {
            stdin: (streams.stdin && takes_input).then(rustix::stdio::stdin),
            stdout: streams.stdout.then(rustix::stdio::stdout),
            stderr: streams.stderr.then(rustix::stdio::stderr),
        };
        let connections = Connections::received(sockets, streams).ok_or(SessionError::Streams)?;
        let mut pumps = Pumps::new(connections, client);
        if !passes_end {
            pumps.keep_input_open();
        }
        if let Some(keys) = keys {
            pumps.watch_for(keys);
        }
        let takes_keys = has_terminal && client.stdin.is_some();
        let terminal = takes_keys
            .then(RawTerminal::enter)
            .transpose()
            .map_err(SessionError::Terminal)?;
        let mut attended = Attended::new(session, pumps, signals).ending_unread(ends_unread);
        if passes_signals {
            attended = attended.passing_signals();
        }
        if has_terminal {
            attended.tell_window();
        }
        let leaving = attended.attend();
        drop(terminal);
        if attended.missed_bytes() > 0 {
            tracing::warn!(
                bytes = attended.missed_bytes(),
                "output was left out since it was not read in time; `vmm logs` has it"
            );
        }
        leaving
    }
}

/// Refuses a machine that has nothing to be joined with.
fn can_be_attached(machine: &Machine) -> Result<(), AttachError> {
    let name = machine.record.name.clone();
    match machine.condition() {
        Condition::Running { .. } if machine.record.settings.log.is_none() => {
            Err(AttachError::Foreground(name))
        }
        Condition::Running { .. } => Ok(()),
        Condition::Created if machine.alive => Err(AttachError::NotYet(name)),
        Condition::Paused { .. } => Err(AttachError::Paused(name)),
        Condition::Restarting(_) => Err(AttachError::Restarting(name)),
        Condition::Created | Condition::Exited(_) | Condition::Dead { .. } => {
            Err(AttachError::Stopped(name, machine.is_kept()))
        }
    }
}

/// A machine that cannot be attached to.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    /// It boots.
    #[error("cannot attach to {0}, whose workload does not run yet")]
    NotYet(MachineName),
    /// It is started again.
    #[error("cannot attach to {0}, which is about to be started again")]
    Restarting(MachineName),
    /// It stands still.
    #[error("cannot attach to {0}, which is paused")]
    Paused(MachineName),
    /// Its streams are the client's that runs it.
    #[error("cannot attach to {0}, which runs in the foreground of another vmm")]
    Foreground(MachineName),
    /// It has ended, or was not started. The other says whether it can be.
    #[error("cannot attach to {0}, which is stopped")]
    Stopped(MachineName, bool),
}

impl Help for AttachError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotYet(name) | Self::Restarting(name) => {
                format!("see how far it is with `vmm ps -a`, and wait for {name}")
            }
            Self::Foreground(_) => {
                "run it with -d or with -it, or start it without -a, to attach to it".to_owned()
            }
            Self::Paused(name) => format!("let it go on first with `vmm unpause {name}`"),
            Self::Stopped(name, true) => format!("start it first with `vmm start {name}`"),
            Self::Stopped(name, false) => {
                format!(
                    "see what it has written with `vmm logs {name}`, and what runs with `vmm ps`"
                )
            }
        })
    }
}
