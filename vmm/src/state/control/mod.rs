//! The control socket: how other commands talk to the monitor of a machine.
//!
//! One JSON object a line, both ways, each line bounded. The client opens with its version, the
//! monitor answers with its own; from then on each request gets one reply.
//!
//! ```text
//! client                              monitor
//!   {"hello":{"version":5}}      ->
//!                                <-   {"hello":{"version":5}}
//!   {"kill":{"signal":15}}       ->
//!                                <-   "done"  or  {"failed":{"message":"…"}}
//!   {"stop":{"signal":15}}       ->
//!                                <-   "done"  or  {"failed":{"message":"…"}}
//!   "status"                     ->
//!                                <-   {"status":{…}}
//!   "wait"                       ->
//!                                <-   {"ended":{…}}          when the machine has ended
//!   {"act":"pause"}              ->
//!                                <-   "done"  or  {"failed":{…}}   when that is done
//!   {"ask":{"usage":{…}}}        ->
//!                                <-   {"answer":{…}}  or  {"failed":{…}}   when the guest has answered
//!   {"exec":{…}}                 ->
//!                                <-   "session"  or  {"failed":{…}}   with the connections of the process's streams
//!                                <-   "started"
//!   {"resize":{…}}               ->
//!                                <-   {"outcome":{…}}        when the process has ended, or will never run
//!   {"files":{…}}                ->
//!                                <-   as with exec
//!   {"attach":{…}}               ->
//!                                <-   {"attached":{…}}  or  {"failed":{…}}   with sockets for the workload's streams
//!   {"resize":{…}}               ->
//!   {"pass":{"signal":2}}        ->
//!                                <-   {"missed":{"bytes":7}}   when the client did not read, and does again
//!   "detach"                     ->
//!                                <-   "detached"
//!                                <-   {"outcome":{…}}        when the machine has ended
//! ```
//!
//! A session's client may send its first line and its request at once, and may go at any time: a process that runs goes on.
//!
//! The monitor has one poll loop and no thread for this: [`ControlServer`] is one descriptor that
//! becomes readable, and a method that does what there is to do without ever waiting.

mod client;
mod server;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::{Answer, DeclaredStreams, FilesTask, Question, WindowSize};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::client::{Asked, ControlClient, Session, SessionNews};
pub use self::server::{
    Answerer, AttachOffer, Attached, AttachedTeller, Control, ControlServer, SessionOffer,
    SessionTeller,
};
use super::record::{Ended, Status};
use super::signal::Signal;
use crate::outcome::Outcome;
use crate::report::Help;
use crate::snapshot::Target;
use crate::workload::exec::ExecChoices;

/// Version of the conversation. The two sides talk only if it is the same.
const VERSION: u32 = 5;
/// The socket's file in the machine's directory.
pub(in crate::state) const SOCKET: &str = "control.sock";
/// The longest request: a command and its environment, of which Linux passes on 2 MiB, as JSON.
const MAX_REQUEST_BYTES: usize = 3 << 20;
/// How long a client waits for the answer of a monitor that may be busy booting.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Request {
    /// The first line.
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// Asks for a signal to the workload.
    Kill {
        /// Which.
        signal: Signal,
    },
    /// Asks for a signal that is to end the workload for good.
    Stop {
        /// Which.
        signal: Signal,
    },
    /// Asks how far the machine is.
    Status,
    /// Asks to be told when the machine has ended.
    Wait,
    /// Asks for something that takes its time; the answer comes when it is done.
    Act(Action),
    /// Asks the guest something; the answer comes when it has answered.
    Ask(Question),
    /// Asks for another process.
    Exec(Box<ExecRequest>),
    /// Asks for something to be done with the container's files, by a process with streams.
    Files(Box<FilesTask>),
    /// Tells the size of the process's terminal.
    Resize(WindowSize),
    /// Asks to be joined with the workload's own streams.
    Attach(AttachRequest),
    /// Passes on a signal that the client got. There is no answer.
    Pass {
        /// Which.
        signal: Signal,
    },
    /// Leaves, so that what it was joined with goes on without it.
    Detach,
}

/// What a client that attaches wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Whether it has an input to pass on.
    pub stdin: bool,
}

/// What a client is joined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The streams whose sockets come along.
    pub streams: DeclaredStreams,
    /// Whether the end of the client's input is that of the workload's.
    pub passes_end: bool,
}

/// Another process, as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The process.
    pub choices: ExecChoices,
    /// Which of its streams the client wants.
    pub streams: DeclaredStreams,
}

/// What a monitor can be asked to do with its machine as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let it stand.
    Pause,
    /// Let it go on.
    Resume,
    /// Write it down.
    Snapshot {
        /// Where to.
        target: Target,
        /// Only what was written to since the last time.
        incremental: bool,
        /// For several copies.
        at_fork_point: bool,
        /// And end it then.
        stop: bool,
    },
    /// Let its guest know that disks have grown.
    Grow,
}

/// What the monitor says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    /// The answer to the first line.
    Hello {
        /// The monitor's [`VERSION`].
        version: u32,
    },
    /// It was done.
    Done,
    /// It was not done.
    Failed {
        /// Why, in one sentence.
        message: String,
    },
    /// How far the machine is.
    Status(Status),
    /// How the machine ended.
    Ended(Ended),
    /// What the guest answered.
    Answer(Answer),
    /// The process is asked for; its connections come along.
    Session,
    /// Its program runs.
    Started,
    /// How it ended, or why it does not run.
    Outcome(Outcome),
    /// The client is joined with the workload; the sockets come along.
    Attached(Attachment),
    /// So much output was left out, since the client did not read.
    Missed {
        /// How much.
        bytes: u64,
    },
    /// The client may go.
    Detached,
}

impl Reply {
    fn of(answer: Answer) -> Self {
        match answer {
            Answer::Failed(message) => Self::Failed { message },
            answer => Self::Answer(answer),
        }
    }
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// As many descriptors as come along with a line.
const MAX_PASSED: usize = 3;

/// Lets `act` name a machine's socket by a path that fits: socket addresses hold 107 bytes (`unix(7)`),
/// and a machine's directory alone may be longer.
fn with_short_path<T>(
    directory: &Path,
    act: impl FnOnce(PathBuf) -> io::Result<T>,
) -> io::Result<T> {
    let opened = File::open(directory)?;
    act(PathBuf::from(format!(
        "/proc/self/fd/{}/{SOCKET}",
        opened.as_raw_fd()
    )))
}

/// Why a monitor could not be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("the machine in {path} does not run", path = .0.display())]
    NotRunning(PathBuf),
    /// The conversation broke off.
    #[error("cannot talk to the monitor of the machine in {directory}", directory = directory.display())]
    Io {
        /// The machine's directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The monitor is of another version.
    #[error("the monitor of the machine in {directory} speaks version {version}, this vmm speaks {VERSION}", directory = directory.display())]
    OtherVersion {
        /// The machine's directory.
        directory: PathBuf,
        /// The monitor's version.
        version: u32,
    },
    /// The monitor answered something else.
    #[error("the monitor of the machine in {path} gave an answer to another question", path = .0.display())]
    Unexpected(PathBuf),
    /// The monitor could not do it.
    #[error("{0}")]
    Refused(String),
    /// More than a monitor takes.
    #[error("the command and its environment are too long")]
    TooLong,
}

impl ControlError {
    fn io(directory: &Path, source: io::Error) -> Self {
        Self::Io {
            directory: directory.to_owned(),
            source,
        }
    }
}

impl Help for ControlError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NotRunning(_) => Some("see what runs with `vmm ps`".to_owned()),
            Self::OtherVersion { .. } => {
                Some("use the vmm that started the machine, or end its process".to_owned())
            }
            Self::Io { .. } | Self::Unexpected(_) | Self::Refused(_) | Self::TooLong => None,
        }
    }
}

#[cfg(test)]
mod tests;
