//! The client of a process in a machine: moves the bytes of its streams, and hears of it from the machine's monitor.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::agent_link::{Pumps, Side};
use crate::monitor::{Signals, window_size};
use crate::outcome::Outcome;
use crate::report::Help;
use crate::state::{ControlError, Session, SessionNews, Signal};

/// What ends a program whose output nobody reads.
const SIGPIPE: u8 = 13;

/// A process from its request to its end, or the workload while this is joined with it.
pub(super) struct Attended<'a> {
    session: Session,
    pumps: Pumps<'a>,
    signals: Option<Signals>,
    outcome: Option<Outcome>,
    /// Whether signals are the process's.
    passes_signals: bool,
    /// Whether nobody waits for its end.
    ends_when_started: bool,
    is_leaving: bool,
    /// Whether it ends, as a plain program does, when nobody reads its output.
    ends_unread: bool,
    missed_bytes: u64,
}

/// How a client ends.
pub(super) enum Leaving {
    /// With the process.
    Ended(Outcome),
    /// Nobody wanted more than its start.
    Started,
    /// The keys for it were typed.
    Detached,
    /// A signal came.
    Signalled(u8),
}

/// Whose descriptor a poll result belongs to.
#[derive(Clone, Copy)]
enum Source {
    Session,
    Signals,
    Stream(Side),
}

impl<'a> Attended<'a> {
    /// Begins with what was asked for already. Without signals they are not read here.
    pub(super) fn new(session: Session, pumps: Pumps<'a>, signals: Option<Signals>) -> Self {
        Self {
            session,
            pumps,
            signals,
            outcome: None,
            passes_signals: false,
            ends_when_started: false,
            is_leaving: false,
            ends_unread: false,
            missed_bytes: 0,
        }
    }

    /// Passes on what signals come.
    pub(super) fn passing_signals(self) -> Self {
        Self {
            passes_signals: true,
            ..self
        }
    }

    /// Waits for the start alone, if so.
    pub(super) fn ending_when_started(self, ends_when_started: bool) -> Self {
        Self {
            ends_when_started,
            ..self
        }
    }

    /// Ends when nobody reads its output.
    pub(super) fn ending_unread(self, ends_unread: bool) -> Self {
        Self {
            ends_unread,
            ..self
        }
    }

    /// How much of the output was left out since it was not read in time.
    pub(super) fn missed_bytes(&self) -> u64 {
        self.missed_bytes
    }

    /// Attends until there is no reason to stay.
    pub(super) fn attend(&mut self) -> Result<Leaving, SessionError> {
        let mut last_progress = Instant::now();
        loop {
            if let Some(outcome) = &self.outcome
                && self.pumps.are_done(last_progress)
            {
                return Ok(Leaving::Ended(outcome.clone()));
            }
            if self.pumps.are_detached() && !self.is_leaving && self.outcome.is_none() {
                self.is_leaving = true;
                let asked = self.session.detach();
                self.note(asked);
            }
            if self.ends_unread && self.pumps.are_unread() {
                return Ok(Leaving::Signalled(SIGPIPE));
            }
            let ready = self.wait()?;
            if !ready.is_empty() {
                last_progress = Instant::now();
            }
            for (source, result) in ready {
                let leaving = match source {
                    Source::Stream(side) => {
                        self.pumps.advance(side, result);
                        None
                    }
                    Source::Signals => self.take_signals(),
                    Source::Session => self.hear()?,
                };
                if let Some(leaving) = leaving {
                    return Ok(leaving);
                }
            }
        }
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, SessionError> {
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
            Err(error) => return Err(SessionError::Poll(error.into())),
        }
        let results = descriptors.iter().map(PollFd::revents);
        Ok(sources
            .into_iter()
            .zip(results)
            .filter(|(_, result)| !result.is_empty())
            .collect())
    }

    /// Hears what the monitor has to say.
    fn hear(&mut self) -> Result<Option<Leaving>, SessionError> {
        for news in self.session.receive()? {
            match news {
                SessionNews::Started if self.ends_when_started => {
                    return Ok(Some(Leaving::Started));
                }
                SessionNews::Started => {}
                SessionNews::Ended(outcome) => {
                    self.outcome = Some(outcome);
                    self.pumps.end_input();
                }
                SessionNews::Missed(bytes) => {
                    self.missed_bytes = self.missed_bytes.saturating_add(bytes);
                }
                SessionNews::Detached => return Ok(Some(Leaving::Detached)),
            }
        }
        Ok(None)
    }

    /// Passes signals on, and a window's size. Where they are not the process's, the next one ends this client.
    fn take_signals(&mut self) -> Option<Leaving> {
        while let Some(signal) = self.signals.as_ref().and_then(Signals::next) {
            if i32::from(signal) == libc::SIGWINCH {
                self.tell_window();
            } else if !self.passes_signals {
                return Some(Leaving::Signalled(signal));
            } else if let Ok(signal) = Signal::try_from(signal) {
                let passed = self.session.pass(signal);
                self.note(passed);
            }
        }
        None
    }

    /// Passes on the size of the window, if standard input has one.
    pub(super) fn tell_window(&mut self) {
        if let Some(size) = window_size(rustix::stdio::stdin()) {
            let told = self.session.resize(size);
            self.note(told);
        }
    }

    /// A monitor that takes nothing more has said why, or hangs up: that is heard next.
    fn note(&self, told: Result<(), ControlError>) {
        if let (Err(error), None) = (told, &self.outcome) {
            tracing::debug!(%error, "the monitor is not told of something");
        }
    }
}

/// A client that could not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The monitor could not be asked.
    #[error(transparent)]
    Control(#[from] ControlError),
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

impl Help for SessionError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Control(error) => error.help(),
            _ => None,
        }
    }
}

/// The keys by which a client leaves were typed.
#[derive(Debug, thiserror::Error)]
#[error("read escape sequence")]
pub(super) struct Escaped;

impl Help for Escaped {}
