//! A stream of files from or to a machine: what `cp`, `diff`, `export` and `commit` do it by.
//!
//! The monitor asks the guest and dials the streams; their bytes are read and written here. All of them are the guest's word, and
//! believed by nobody.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use protocol::FilesTask;

use super::held::Held;
use super::machines;
use super::output::printable;
use super::session::SessionError;
use crate::dirs::Directories;
use crate::outcome::Outcome;
use crate::report::{Help, Report};
use crate::state::{Condition, ControlError, Machine, MachineName, Session, SessionNews};

/// How much is read of what the guest says about a task.
const MAX_SAID_BYTES: u64 = 16 << 10;

/// A task about a machine's files that the guest does.
#[derive(Debug)]
pub(super) struct Transfer {
    session: Session,
    /// What the guest reads.
    input: Option<UnixStream>,
    /// What it writes.
    output: Option<UnixStream>,
    /// What it says about that.
    said: UnixStream,
    /// The machine, if it runs for this alone. The last to be let go of.
    _held: Option<Held>,
}

impl Transfer {
    /// Asks for a task. A machine that has ended is started for it, without its workload.
    pub(super) fn begin(
        machine: &Machine,
        task: &FilesTask,
        directories: &Directories,
    ) -> Result<Self, Report> {
        let machine = machines(directories)?.settled(machine)?;
        let held = match runs(&machine)? {
            true => None,
            false => Some(Held::start(&machine, directories)?),
        };
        Ok(Self::ask(&machine, task, held)?)
    }

    fn ask(machine: &Machine, task: &FilesTask, held: Option<Held>) -> Result<Self, TransferError> {
        let (session, descriptors) = Session::files(&machine.directory, task)?;
        let streams = task.streams();
        let wanted = [streams.stdin, streams.stdout, streams.stderr];
        let mut connections = descriptors.into_iter().map(UnixStream::from);
        let [input, output, said] = wanted.map(|is_wanted| match is_wanted {
            true => connections.next(),
            false => None,
        });
        let is_complete = input.is_some() == streams.stdin && output.is_some() == streams.stdout;
        match said {
            Some(said) if is_complete => Ok(Self {
                session,
                input,
                output,
                said,
                _held: held,
            }),
            _ => Err(SessionError::Streams.into()),
        }
    }

    /// What the guest writes.
    pub(super) fn output(&mut self) -> Result<&mut UnixStream, TransferError> {
        self.output.as_mut().ok_or(SessionError::Streams.into())
    }

    /// What the guest reads.
    pub(super) fn input(&mut self) -> Result<&mut UnixStream, TransferError> {
        self.input.as_mut().ok_or(SessionError::Streams.into())
    }

    /// Waits for the end of a task, all of whose output was read, or all of whose input was written.
    pub(super) fn end(mut self) -> Result<(), TransferError> {
        let input = self.input.take();
        if let Some(input) = &input {
            // One that has hung up needs no end.
            let _ = input.shutdown(Shutdown::Write);
        }
        self.conclude(input)
    }

    /// Lets go of a task that cannot go on here, and says why the guest ended it, if it was that.
    pub(super) fn give_up(mut self, failure: TransferError) -> TransferError {
        self.input = None;
        self.output = None;
        match self.conclude(None) {
            Err(reason @ (TransferError::Guest(_) | TransferError::MachineEnded)) => reason,
            _ => failure,
        }
    }

    fn conclude(&mut self, input: Option<UnixStream>) -> Result<(), TransferError> {
        self.output = None;
        let mut said = Vec::new();
        // A stream that breaks has ended.
        let _ = (&self.said).take(MAX_SAID_BYTES).read_to_end(&mut said);
        let outcome = outcome(&mut self.session)?;
        drop(input);
        let said = String::from_utf8_lossy(&said);
        let mut lines: Vec<String> = said.lines().map(printable).collect();
        let failure = match outcome {
            Outcome::Exited(0) => None,
            Outcome::Exited(_) => Some(TransferError::Guest(
                lines
                    .pop()
                    .unwrap_or_else(|| "it does not say why".to_owned()),
            )),
            Outcome::NotStarted { message, .. } => Some(TransferError::Guest(message)),
            Outcome::Signalled {
                out_of_memory: true,
                ..
            } => Some(TransferError::OutOfMemory),
            _ => Some(TransferError::MachineEnded),
        };
        for line in lines {
            tracing::warn!("{line}");
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Waits until it is known how the task ended.
fn outcome(session: &mut Session) -> Result<Outcome, ControlError> {
    loop {
        for news in session.wait()? {
            if let SessionNews::Ended(outcome) = news {
                return Ok(outcome);
            }
        }
    }
}

/// Says whether a machine runs; refuses one whose files cannot be had.
fn runs(machine: &Machine) -> Result<bool, TransferError> {
    let name = machine.record.name.clone();
    match machine.condition() {
        Condition::Running { .. } => Ok(true),
        Condition::Paused { .. } => Err(TransferError::Paused(name)),
        Condition::Created if machine.alive => Err(TransferError::NotYet(name)),
        _ if machine.alive => Err(TransferError::Busy(name)),
        _ if machine.is_kept() => Ok(false),
        _ => Err(TransferError::Gone(name)),
    }
}

/// Why files did not get from or to a machine.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    /// The machine boots.
    #[error("the workload of {0} does not run yet")]
    NotYet(MachineName),
    /// The machine stands still.
    #[error("{0} is paused, and its files can only be had by its own kernel")]
    Paused(MachineName),
    /// The machine has ended, and its monitor has not, or somebody else is at its files.
    #[error("{0} is ending, or its files are in use")]
    Busy(MachineName),
    /// The machine has ended, and its files with it.
    #[error("{0} does not run, and nothing is left of its files")]
    Gone(MachineName),
    /// The guest says why.
    #[error("{0}")]
    Guest(String),
    /// The guest had no memory for it.
    #[error("the machine has not enough memory left for it")]
    OutOfMemory,
    /// The machine or its agent's process is gone.
    #[error("the machine ended before all was done")]
    MachineEnded,
    /// The monitor could not be asked.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// What came is no archive.
    #[error("what the machine sent is no archive")]
    Archive(#[source] crate::image::TarError),
    /// What came is not what was asked for.
    #[error("what the machine sent is not what was asked for")]
    OtherThings,
    /// The streams broke.
    #[error("the machine's files cannot be passed on")]
    Stream(#[source] io::Error),
    /// A list without an end.
    #[error("the machine sent a list of more than {0} bytes")]
    TooLong(u64),
    /// A list of more than anybody has.
    #[error("the machine sent a list of more than {0} paths")]
    TooMany(usize),
}

impl From<ControlError> for TransferError {
    fn from(error: ControlError) -> Self {
        Self::Session(error.into())
    }
}

impl Help for TransferError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NotYet(name) => Some(format!(
                "see how far it is with `vmm ps -a`, and wait for {name}"
            )),
            Self::Paused(name) => Some(format!("let it go on with `vmm resume {name}`")),
            Self::Busy(_) => Some("try again in a moment".to_owned()),
            Self::Gone(_) => Some(
                "machines that are created, or run with --storage, keep what they have written"
                    .to_owned(),
            ),
            Self::OutOfMemory => Some("give it more with `vmm update --memory`".to_owned()),
            Self::Session(error) => error.help(),
            _ => None,
        }
    }
}
