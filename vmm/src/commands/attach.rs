//! `vmm attach`: the streams of a workload that runs in the background.
//!
//! The monitor of the machine hands over sockets for them; their bytes are moved here.

use std::os::fd::OwnedFd;

use protocol::WindowSize;

use super::attend::report_outcome;
use super::machines;
use super::run::has_keyboard;
use super::session::{Attended, Escaped, Leaving, SessionError};
use crate::agent_link::{ClientStreams, Connections, Pumps};
use crate::attach::DetachKeys;
use crate::cli::{AttachArgs, StartArgs};
use crate::dirs::Directories;
use crate::machines::Machines;
use crate::monitor::{RawTerminal, Signals, window_size};
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{AttachRequest, Attachment, Machine, Session};

/// Joins this process's streams with those of a workload, and ends with its exit code.
pub(super) fn run(arguments: &AttachArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let attached = || {
        let machines = machines(directories)?;
        let machine = machines.find(&arguments.machine)?;
        let choices = AttachChoices {
            stdin: !arguments.no_stdin,
            passes_signals: arguments.sig_proxy,
            keys: &arguments.detach_keys,
        };
        attach(&machines, &machine, choices)
    };
    // As with docker, whatever keeps this from the workload.
    match attached().map_err(|report| report.with_exit_code(ExitCode::FAILURE))? {
        Leaving::Detached => Err(Report::from(Escaped).with_exit_code(ExitCode::FAILURE)),
        other => finish(&other),
    }
}

/// `vmm start -a` of a machine that runs already.
pub(super) fn join_started(
    machines: &Machines,
    machine: &Machine,
    arguments: &StartArgs,
) -> Result<ExitCode, Report> {
    let choices = AttachChoices {
        stdin: arguments.interactive,
        passes_signals: true,
        keys: &arguments.detach_keys,
    };
    finish(&attach(machines, machine, choices)?)
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

fn attach(
    machines: &Machines,
    machine: &Machine,
    choices: AttachChoices<'_>,
) -> Result<Leaving, Report> {
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
    let (mut session, attachment, sockets) = machines.attach(machine, AttachRequest { stdin })?;
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
