//! The control socket: how other commands talk to the monitor of a machine.
//!
//! One JSON object a line, both ways, each line bounded. The client opens with its version, the
//! monitor answers with its own; from then on each request gets one reply.
//!
//! ```text
//! client                              monitor
//!   {"hello":{"version":2}}      ->
//!                                <-   {"hello":{"version":2}}
//!   {"kill":{"signal":15}}       ->
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

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{Answer, DeclaredStreams, Question, WindowSize};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::record::{Ended, Status};
use super::signal::Signal;
use crate::outcome::{NotStarted, Outcome};
use crate::report::Help;
use crate::snapshot::Target;
use crate::workload::exec::ExecChoices;

/// Version of the conversation. The two sides talk only if it is the same.
const VERSION: u32 = 4;
/// The socket's file in the machine's directory.
pub(super) const SOCKET: &str = "control.sock";
/// The longest request: a command and its environment, of which Linux passes on 2 MiB, as JSON.
const MAX_REQUEST_BYTES: usize = 3 << 20;
/// How much of requests that are not complete may be kept for all clients together.
const MAX_PENDING_BYTES: usize = 16 << 20;
/// What is read of a request at once.
const READ_BYTES: usize = 16 << 10;
/// A reply holds at most a list of processes: 1024, of which each has texts of up to 2 KiB, which cleaning may make three times as long.
const MAX_REPLY_BYTES: u64 = 8 << 20;
/// Clients beyond this many wait in the socket's backlog, or are refused.
const MAX_CONNECTIONS: usize = 256;
/// How long a client waits for the answer of a monitor that may be busy booting.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);
/// What a client is told of an action that nothing came of.
const NOT_BEGUN: &str = "the monitor could not begin with it";
/// What a client is told of a question that nothing came of.
const ENDED_BEFORE: &str = "the machine ended before it answered";
/// The listener's place among the epoll's tokens; connections count up from the next.
const LISTENER: u64 = 0;

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
}

/// The way to tell a client what came of its [`Action`] or its question, from any thread.
///
/// Dropped, it tells of a failure, so that no client waits in vain. Only [`Self::answer_slowly`] waits for a client to read.
#[derive(Debug)]
pub struct Answerer {
    stream: UnixStream,
    /// None once the client was told.
    reply: Option<Reply>,
}

impl Answerer {
    /// Tells of this failure if nothing else is told.
    fn new(stream: UnixStream, failure: &str) -> Self {
        let reply = Some(Reply::Failed {
            message: failure.to_owned(),
        });
        Self { stream, reply }
    }

    /// Tells the client; why not, as one sentence.
    pub fn tell(mut self, result: Result<(), String>) {
        self.reply = Some(match result {
            Ok(()) => Reply::Done,
            Err(message) => Reply::Failed { message },
        });
    }

    /// Tells the client what the guest answered, in few words.
    pub fn answer(mut self, answer: Answer) {
        self.reply = Some(Reply::of(answer));
    }

    /// Tells the client what the guest answered, at whatever length. Waits for a client that reads slowly.
    pub fn answer_slowly(mut self, answer: Answer) {
        self.reply = None;
        // A client that is gone does not want to know.
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let _ = write_long_reply(&self.stream, &Reply::of(answer), deadline);
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        if let Some(reply) = &self.reply {
            // A client that is gone does not want to know.
            let _ = write_reply(&self.stream, reply);
        }
    }
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

/// A client that can be given a process.
#[derive(Debug)]
pub struct SessionOffer(UnixStream);

impl SessionOffer {
    /// Hands over the connections of the process's streams.
    ///
    /// # Errors
    ///
    /// If the client is gone.
    pub fn open(self, connections: &[BorrowedFd<'_>]) -> io::Result<SessionTeller> {
        send_with(&self.0, &Reply::Session, connections)?;
        Ok(SessionTeller {
            stream: self.0,
            is_started: false,
            is_told: false,
        })
    }
}

/// The way to tell a client what becomes of its process, from any thread.
///
/// Dropped before the end was told, it tells that the process ended with its machine.
#[derive(Debug)]
pub struct SessionTeller {
    stream: UnixStream,
    is_started: bool,
    is_told: bool,
}

impl SessionTeller {
    /// Tells that the program runs.
    pub fn started(&mut self) {
        self.is_started = true;
        self.tell(&Reply::Started);
    }

    /// Tells the end.
    pub fn ended(&mut self, outcome: Outcome) {
        self.is_told = true;
        self.tell(&Reply::Outcome(outcome));
    }

    fn tell(&self, reply: &Reply) {
        // A client that is gone does not want to know.
        let _ = write_reply(&self.stream, reply);
    }
}

impl Drop for SessionTeller {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        self.tell(&Reply::Outcome(match self.is_started {
            true => Outcome::Killed,
            false => Outcome::NotStarted {
                reason: NotStarted::Failed,
                message: "the machine has ended".to_owned(),
            },
        }));
    }
}

/// A client that can be joined with the workload.
#[derive(Debug)]
pub struct AttachOffer(UnixStream);

impl AttachOffer {
    /// Hands over the client's ends of the sockets, in the order in which the attachment names them.
    ///
    /// # Errors
    ///
    /// If the client is gone.
    pub fn open(self, attachment: Attachment, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_with(&self.0, &Reply::Attached(attachment), sockets)
    }

    /// The way to tell the client more, from any thread.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn teller(&self) -> io::Result<AttachedTeller> {
        self.0.try_clone().map(AttachedTeller::new)
    }
}

/// The way to tell a client what it missed.
#[derive(Debug)]
pub struct AttachedTeller(UnixStream);

impl AttachedTeller {
    /// Tells whoever is at the other end of this.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Tells how much output was left out.
    pub fn missed(&self, bytes: u64) {
        // A client that is gone does not want to know.
        let _ = write_reply(&self.0, &Reply::Missed { bytes });
    }
}

/// Whose client is joined with the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The one that the machine was started by, and ends with.
    Own,
    /// Another.
    Other,
}

/// What the monitor does when it is asked to.
///
/// Called by [`ControlServer::handle`] on the monitor's thread; must not wait.
pub trait Control {
    /// Sends a signal to the workload, or ends the machine if there is no workload to receive it.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    fn kill(&mut self, signal: Signal) -> Result<(), String>;

    /// Says how far the machine is.
    fn status(&self) -> Status;

    /// Begins to do something with the machine.
    fn act(&mut self, action: Action, answerer: Answerer);

    /// Begins to ask the guest.
    fn ask(&mut self, question: Question, answerer: Answerer);

    /// Lets another process run, and opens the session. Returns the process's id.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    fn exec(&mut self, request: ExecRequest, offer: SessionOffer) -> Result<u32, String>;

    /// Passes on the size of a process's terminal.
    fn resize(&mut self, process: u32, size: WindowSize);

    /// The client of a process is gone. One that has not started need not start any more.
    fn abandon(&mut self, process: u32);

    /// The client of a process leaves it to go on, with a terminal that nobody looks at.
    fn leave(&mut self, process: u32);

    /// Joins a client with the workload's streams.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    fn attach(&mut self, request: AttachRequest, offer: AttachOffer) -> Result<(), String>;

    /// Passes on the size of a client's terminal to the workload's.
    fn resize_workload(&mut self, size: WindowSize);

    /// A client that is joined with the workload got a signal.
    fn pass(&mut self, signal: Signal, from: Attached);

    /// A client that is joined with the workload leaves: it has said so, or is gone.
    fn left(&mut self, client: Attached, has_detached: bool);
}

/// The monitor's end of the control socket.
///
/// Its descriptor is readable when there is something to [`handle`](Self::handle). Dropped, it hangs
/// up on all clients.
#[derive(Debug)]
pub struct ControlServer {
    epoll: OwnedFd,
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next_token: u64,
}

/// One client.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    state: ConnectionState,
}

/// How far the conversation with a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionState {
    /// It has not said its version.
    New,
    /// It may ask.
    Greeted,
    /// It waits for the machine's end.
    Waiting,
    /// It waits for what it asked for.
    Acting,
    /// It has a process of this id.
    Session(u32),
    /// It is joined with the workload.
    Attached(Attached),
    /// It was, and the machine goes on without it.
    Detached,
}

/// The conversation with a client is over.
struct HangUp;

impl ControlServer {
    /// Creates the socket in a machine's directory.
    pub(super) fn bind(directory: &Path) -> io::Result<Self> {
        let listener = with_short_path(directory, UnixListener::bind)?;
        fs::set_permissions(directory.join(SOCKET), fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: clients for whom there is no room wait without waking anybody.
        watch(&epoll, &listener, LISTENER, epoll::EventFlags::ET)?;
        Ok(Self {
            epoll,
            listener,
            connections: BTreeMap::new(),
            next_token: LISTENER + 1,
        })
    }

    /// Accepts clients, as many as there is room for, and answers their requests, without waiting.
    ///
    /// # Errors
    ///
    /// Only if the kernel refuses to say what is ready. What a client does wrong ends the
    /// conversation with that client.
    pub fn handle(&mut self, control: &mut dyn Control) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(16);
        let no_wait = rustix::event::Timespec::default();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&no_wait)) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        for event in events {
            let token = event.data.u64();
            if token == LISTENER {
                self.accept();
            } else {
                self.converse(token, control);
            }
        }
        Ok(())
    }

    /// Takes the client by which the machine was started, and gives the way to join it with the workload.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn adopt(&mut self, stream: UnixStream) -> io::Result<AttachOffer> {
        let offer = AttachOffer(stream.try_clone()?);
        self.add(stream, ConnectionState::Attached(Attached::Own))?;
        Ok(offer)
    }

    /// Tells those who wait how the machine ended, and hangs up on everybody.
    pub fn finish(mut self, ended: &Ended, outcome: &Outcome) {
        for connection in self.connections.values_mut() {
            let reply = match connection.state {
                ConnectionState::Waiting => Reply::Ended(ended.clone()),
                ConnectionState::Attached(_) => Reply::Outcome(outcome.clone()),
                _ => continue,
            };
            let _ = connection.reply(&reply);
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            match self.accept_one() {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: those who wait are taken when the next client comes or goes.
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a control connection");
                    return;
                }
            }
        }
    }

    fn accept_one(&mut self) -> io::Result<()> {
        let (stream, _) = self.listener.accept()?;
        self.add(stream, ConnectionState::New)
    }

    fn add(&mut self, stream: UnixStream, state: ConnectionState) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = self.next_token;
        self.next_token += 1;
        watch(&self.epoll, &stream, token, epoll::EventFlags::empty())?;
        let connection = Connection {
            stream,
            received: Vec::new(),
            state,
        };
        self.connections.insert(token, connection);
        Ok(())
    }

    fn converse(&mut self, token: u64, control: &mut dyn Control) {
        let pending: usize = self.connections.values().map(Connection::pending).sum();
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let others_bytes = pending - connection.pending();
        let limit_bytes = MAX_REQUEST_BYTES.min(MAX_PENDING_BYTES.saturating_sub(others_bytes));
        if connection.converse(control, limit_bytes).is_ok() {
            return;
        }
        match connection.state {
            ConnectionState::Session(process) => control.abandon(process),
            ConnectionState::Attached(client) => control.left(client, false),
            _ => {}
        }
        if let ConnectionState::Session(_)
        | ConnectionState::Attached(_)
        | ConnectionState::Detached = connection.state
        {
            // Whoever tells of the process has the stream, too.
            let _ = connection.stream.shutdown(Shutdown::Both);
            let _ = epoll::delete(&self.epoll, &connection.stream);
        }
        // Closing the stream takes it out of the epoll.
        self.connections.remove(&token);
        // There is room for one of those who wait.
        self.accept();
    }
}

impl AsFd for ControlServer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Connection {
    /// How much is kept of a request that is not complete.
    fn pending(&self) -> usize {
        self.received.len()
    }

    /// Reads what has come and answers every whole line of it.
    fn converse(&mut self, control: &mut dyn Control, limit_bytes: usize) -> Result<(), HangUp> {
        let mut chunk = [0; READ_BYTES];
        loop {
            let count = match self.stream.read(&mut chunk) {
                Ok(0) => return Err(HangUp),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Err(HangUp),
            };
            let mut rest = &chunk[..count];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, next) = rest.split_at(end + 1);
                let mut request = std::mem::take(&mut self.received);
                request.extend_from_slice(line);
                self.answer(&request, control)?;
                rest = next;
            }
            self.received.extend_from_slice(rest);
            if self.received.len() > limit_bytes {
                return Err(HangUp);
            }
        }
    }

    fn answer(&mut self, line: &[u8], control: &mut dyn Control) -> Result<(), HangUp> {
        let Ok(request) = serde_json::from_slice(line) else {
            self.fail(format!(
                "the request is not known to this monitor, which speaks version {VERSION}"
            ))?;
            return Err(HangUp);
        };
        match (self.state, request) {
            (ConnectionState::New, Request::Hello { version }) => {
                self.reply(&Reply::Hello { version: VERSION })?;
                if version != VERSION {
                    return Err(HangUp);
                }
                self.state = ConnectionState::Greeted;
                Ok(())
            }
            (ConnectionState::Greeted, Request::Kill { signal }) => match control.kill(signal) {
                Ok(()) => self.reply(&Reply::Done),
                Err(message) => self.fail(message),
            },
            (ConnectionState::Greeted, Request::Status) => {
                self.reply(&Reply::Status(control.status()))
            }
            (ConnectionState::Greeted, Request::Wait) => {
                self.state = ConnectionState::Waiting;
                Ok(())
            }
            (ConnectionState::Greeted, Request::Act(action)) => {
                let stream = self.stream.try_clone().map_err(|_| HangUp)?;
                self.state = ConnectionState::Acting;
                control.act(action, Answerer::new(stream, NOT_BEGUN));
                Ok(())
            }
            (ConnectionState::Greeted, Request::Ask(question)) => {
                let stream = self.stream.try_clone().map_err(|_| HangUp)?;
                self.state = ConnectionState::Acting;
                control.ask(question, Answerer::new(stream, ENDED_BEFORE));
                Ok(())
            }
            (ConnectionState::Greeted, Request::Exec(request)) => {
                let stream = self.stream.try_clone().map_err(|_| HangUp)?;
                match control.exec(*request, SessionOffer(stream)) {
                    Ok(process) => {
                        self.state = ConnectionState::Session(process);
                        Ok(())
                    }
                    Err(message) => self.fail(message),
                }
            }
            (ConnectionState::Session(process), Request::Resize(size)) => {
                control.resize(process, size);
                Ok(())
            }
            (ConnectionState::Session(process), Request::Detach) => {
                self.state = ConnectionState::Detached;
                control.leave(process);
                self.reply(&Reply::Detached)
            }
            (ConnectionState::Greeted, Request::Attach(request)) => {
                let stream = self.stream.try_clone().map_err(|_| HangUp)?;
                match control.attach(request, AttachOffer(stream)) {
                    Ok(()) => {
                        self.state = ConnectionState::Attached(Attached::Other);
                        Ok(())
                    }
                    Err(message) => self.fail(message),
                }
            }
            (ConnectionState::Attached(_), Request::Resize(size)) => {
                control.resize_workload(size);
                Ok(())
            }
            (ConnectionState::Attached(client), Request::Pass { signal }) => {
                control.pass(signal, client);
                Ok(())
            }
            (ConnectionState::Attached(client), Request::Detach) => {
                self.state = ConnectionState::Detached;
                control.left(client, true);
                self.reply(&Reply::Detached)
            }
            (
                ConnectionState::New
                | ConnectionState::Greeted
                | ConnectionState::Waiting
                | ConnectionState::Acting
                | ConnectionState::Session(_)
                | ConnectionState::Attached(_)
                | ConnectionState::Detached,
                Request::Hello { .. }
                | Request::Kill { .. }
                | Request::Status
                | Request::Wait
                | Request::Act(_)
                | Request::Ask(_)
                | Request::Exec(_)
                | Request::Resize(_)
                | Request::Attach(_)
                | Request::Pass { .. }
                | Request::Detach,
            ) => Err(HangUp),
        }
    }

    fn fail(&mut self, message: String) -> Result<(), HangUp> {
        self.reply(&Reply::Failed { message })
    }

    /// Writes a reply; a client that does not read its replies is hung up on.
    fn reply(&mut self, reply: &Reply) -> Result<(), HangUp> {
        write_reply(&self.stream, reply).map_err(|_| HangUp)
    }
}

fn write_reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    stream.write_all(&line(reply)?)
}

/// Writes a reply that may be longer than what a socket takes at once, until `deadline` at the latest.
fn write_long_reply(mut stream: &UnixStream, reply: &Reply, deadline: Instant) -> io::Result<()> {
    let line = line(reply)?;
    let mut rest = line.as_slice();
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                let left = Timespec::try_from(left).unwrap_or_default();
                match poll(&mut [PollFd::new(stream, PollFlags::OUT)], Some(&left)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// As many descriptors as come along with a line.
const MAX_PASSED: usize = 3;

/// Writes a short reply, and descriptors along with it.
fn send_with(stream: &UnixStream, reply: &Reply, passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let line = line(reply)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = sendmsg(stream, &[IoSlice::new(&line)], &mut ancillary, flags)?;
    match sent == line.len() {
        true => Ok(()),
        // So full that it does not take a few bytes: nobody reads there.
        false => Err(ErrorKind::WouldBlock.into()),
    }
}

/// A client's end of the control socket.
#[derive(Debug)]
pub struct ControlClient {
    stream: BufReader<UnixStream>,
    directory: PathBuf,
}

impl ControlClient {
    /// Connects to the monitor of the machine in `directory`.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotRunning`] if nobody listens, [`ControlError::OtherVersion`] if the monitor
    /// is of another version of `vmm`.
    pub fn connect(directory: &Path) -> Result<Self, ControlError> {
        let stream = connect(directory)?;
        let mut client = Self {
            stream: BufReader::new(stream),
            directory: directory.to_owned(),
        };
        let reply = client.ask(&Request::Hello { version: VERSION })?;
        check_hello(directory, &reply)?;
        Ok(client)
    }

    /// Asks for a signal to the workload.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason.
    pub fn kill(&mut self, signal: Signal) -> Result<(), ControlError> {
        match self.ask(&Request::Kill { signal })? {
            Reply::Done => Ok(()),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Asks for something to be done with the machine, and waits until it is, however long that takes.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason.
    pub fn act(mut self, action: Action) -> Result<(), ControlError> {
        self.stream
            .get_ref()
            .set_read_timeout(None)
            .map_err(|error| ControlError::io(&self.directory, error))?;
        match self.ask(&Request::Act(action))? {
            Reply::Done => Ok(()),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Asks how far the machine is.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor does not answer.
    pub fn status(&mut self) -> Result<Status, ControlError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Waits until the machine has ended, at most for `limit` if there is one.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor goes without a word, or the time is over.
    pub fn wait(mut self, limit: Option<Duration>) -> Result<Ended, ControlError> {
        self.stream
            .get_ref()
            .set_read_timeout(limit)
            .map_err(|error| ControlError::io(&self.directory, error))?;
        match self.ask(&Request::Wait)? {
            Reply::Ended(ended) => Ok(ended),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let failed = |error| ControlError::io(&self.directory, error);
        let line = line(request).map_err(failed)?;
        self.stream.get_mut().write_all(&line).map_err(failed)?;
        self.next()
    }

    /// Waits for the next reply.
    fn next(&mut self) -> Result<Reply, ControlError> {
        let failed = |error| ControlError::io(&self.directory, error);
        let mut reply = Vec::new();
        (&mut self.stream)
            .take(MAX_REPLY_BYTES)
            .read_until(b'\n', &mut reply)
            .map_err(failed)?;
        if reply.last() != Some(&b'\n') {
            return Err(failed(ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&reply).map_err(|error| failed(error.into()))
    }
}

/// Connects to the monitor of the machine in `directory`.
fn connect(directory: &Path) -> Result<UnixStream, ControlError> {
    let stream = match with_short_path(directory, UnixStream::connect) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(ControlError::NotRunning(directory.to_owned()));
        }
        Err(error) => return Err(ControlError::io(directory, error)),
    };
    stream
        .set_read_timeout(Some(REPLY_TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(REPLY_TIMEOUT)))
        .map_err(|error| ControlError::io(directory, error))?;
    Ok(stream)
}

fn check_hello(directory: &Path, reply: &Reply) -> Result<(), ControlError> {
    match reply {
        Reply::Hello { version: VERSION } => Ok(()),
        Reply::Hello { version } => Err(ControlError::OtherVersion {
            directory: directory.to_owned(),
            version: *version,
        }),
        _ => Err(ControlError::Unexpected(directory.to_owned())),
    }
}

/// A client's end of the control socket while it waits for what the guest answers.
#[derive(Debug)]
pub struct Asked(ControlClient);

impl Asked {
    /// Asks the guest of the machine in `directory`, and waits for nothing yet: many can be asked at once.
    ///
    /// # Errors
    ///
    /// As [`ControlClient::connect`].
    pub fn send(directory: &Path, question: &Question) -> Result<Self, ControlError> {
        let stream = connect(directory)?;
        let hello = line(&Request::Hello { version: VERSION });
        let ask = line(&Request::Ask(question.clone()));
        hello
            .and_then(|hello| (&stream).write_all(&[hello, ask?].concat()))
            .map_err(|error| ControlError::io(directory, error))?;
        Ok(Self(ControlClient {
            stream: BufReader::new(stream),
            directory: directory.to_owned(),
        }))
    }

    /// Waits for the answer, until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's or the guest's reason, or [`ControlError::Io`] if there is no answer in time.
    pub fn answer(mut self, deadline: Instant) -> Result<Answer, ControlError> {
        let hello = self.next(deadline)?;
        check_hello(&self.0.directory, &hello)?;
        match self.next(deadline)? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.0.directory)),
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Reply, ControlError> {
        /// None at all would be no limit.
        const LEAST: Duration = Duration::from_millis(1);
        let left = deadline.saturating_duration_since(Instant::now());
        let stream = self.0.stream.get_ref();
        stream
            .set_read_timeout(Some(left.max(LEAST)))
            .map_err(|error| ControlError::io(&self.0.directory, error))?;
        self.0.next()
    }
}

/// A client's end of the control socket while it has a process, or is joined with the workload.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    received: Vec<u8>,
    directory: PathBuf,
}

/// What a client hears of its process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SessionNews {
    /// Its program runs.
    Started,
    /// It has ended, or will never run.
    Ended(Outcome),
    /// So many bytes of output were left out.
    Missed(u64),
    /// It goes on without this client.
    Detached,
}

impl Session {
    /// Asks the monitor of the machine in `directory` for a process. Gives the connections of its streams, too.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason, or as [`ControlClient::connect`].
    pub fn open(
        directory: &Path,
        request: &ExecRequest,
    ) -> Result<(Self, Vec<OwnedFd>), ControlError> {
        let request = Request::Exec(Box::new(request.clone()));
        let mut passed = Vec::new();
        let mut session = Self::ask(directory, &request, &mut passed)?;
        match session.next(&mut passed)? {
            Reply::Session => Ok((session, passed)),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(directory.to_owned())),
        }
    }

    /// Asks the monitor of the machine in `directory` to be joined with the workload. Says with what, and gives the sockets.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason, or as [`ControlClient::connect`].
    pub fn attach(
        directory: &Path,
        request: AttachRequest,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        let mut passed = Vec::new();
        let session = Self::ask(directory, &Request::Attach(request), &mut passed)?;
        session.attached(passed)
    }

    /// Joins the workload of the machine in `directory`, which this process has started. Its monitor is at the other end of the stream.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn adopted(
        stream: UnixStream,
        directory: &Path,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        let session = Self {
            stream,
            received: Vec::new(),
            directory: directory.to_owned(),
        };
        session.attached(Vec::new())
    }

    fn attached(
        mut self,
        mut passed: Vec<OwnedFd>,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        match self.next(&mut passed)? {
            Reply::Attached(attachment) => Ok((self, attachment, passed)),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Connects, and asks for something without waiting for more than the monitor's version.
    fn ask(
        directory: &Path,
        request: &Request,
        passed: &mut Vec<OwnedFd>,
    ) -> Result<Self, ControlError> {
        let failed = |error| ControlError::io(directory, error);
        let stream = connect(directory)?;
        let hello = line(&Request::Hello { version: VERSION }).map_err(failed)?;
        let request = line(request).map_err(failed)?;
        if request.len() > MAX_REQUEST_BYTES {
            return Err(ControlError::TooLong);
        }
        (&stream)
            .write_all(&[hello, request].concat())
            .map_err(failed)?;
        let mut session = Self {
            stream,
            received: Vec::new(),
            directory: directory.to_owned(),
        };
        let hello = session.next(passed)?;
        check_hello(directory, &hello)?;
        Ok(session)
    }

    /// Takes the news that have come, without waiting. The descriptor is readable when there are some.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor went without a word.
    pub fn receive(&mut self) -> Result<Vec<SessionNews>, ControlError> {
        self.read(RecvFlags::DONTWAIT, &mut Vec::new())?;
        let mut news = Vec::new();
        while let Some(reply) = self.take()? {
            news.push(match reply {
                Reply::Started => SessionNews::Started,
                Reply::Outcome(outcome) => SessionNews::Ended(outcome),
                Reply::Missed { bytes } => SessionNews::Missed(bytes),
                Reply::Detached => SessionNews::Detached,
                Reply::Failed { message } => return Err(ControlError::Refused(message)),
                _ => return Err(ControlError::Unexpected(self.directory.clone())),
            });
        }
        Ok(news)
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn resize(&mut self, size: WindowSize) -> Result<(), ControlError> {
        self.tell(&Request::Resize(size))
    }

    /// Passes on a signal to the workload that this is joined with.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn pass(&mut self, signal: Signal) -> Result<(), ControlError> {
        self.tell(&Request::Pass { signal })
    }

    /// Asks to leave. The news say when that is done.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn detach(&mut self) -> Result<(), ControlError> {
        self.tell(&Request::Detach)
    }

    fn tell(&mut self, request: &Request) -> Result<(), ControlError> {
        line(request)
            .and_then(|line| self.stream.write_all(&line))
            .map_err(|error| ControlError::io(&self.directory, error))
    }

    /// Waits for the next reply.
    fn next(&mut self, passed: &mut Vec<OwnedFd>) -> Result<Reply, ControlError> {
        loop {
            if let Some(reply) = self.take()? {
                return Ok(reply);
            }
            self.read(RecvFlags::empty(), passed)?;
        }
    }

    /// Reads what has come, and the descriptors that came along.
    fn read(&mut self, flags: RecvFlags, passed: &mut Vec<OwnedFd>) -> Result<(), ControlError> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) if received.bytes > 0 => received.bytes,
            Ok(_) => return Err(self.failed(ErrorKind::UnexpectedEof.into())),
            Err(Errno::INTR) => return Ok(()),
            Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return Ok(()),
            Err(error) => return Err(self.failed(error.into())),
        };
        passed.extend(ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        }));
        self.received
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        match u64::try_from(self.received.len()).is_ok_and(|length| length <= MAX_REPLY_BYTES) {
            true => Ok(()),
            false => Err(self.failed(ErrorKind::InvalidData.into())),
        }
    }

    /// Takes the next reply that is complete.
    fn take(&mut self) -> Result<Option<Reply>, ControlError> {
        let Some(end) = self.received.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.received.drain(..=end).collect();
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, error: io::Error) -> ControlError {
        ControlError::io(&self.directory, error)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

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

/// Adds a descriptor to those that make the epoll readable.
fn watch(
    epoll: &OwnedFd,
    descriptor: &impl AsFd,
    token: u64,
    how: epoll::EventFlags,
) -> io::Result<()> {
    let data = epoll::EventData::new_u64(token);
    epoll::add(epoll, descriptor, data, epoll::EventFlags::IN | how)?;
    Ok(())
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
mod tests {
    use std::sync::mpsc;

    use protocol::{ProcessInfo, ProcessList};

    use super::super::record::{Cause, Timestamp};
    use super::*;

    /// A monitor that notes what it was asked for.
    #[derive(Default)]
    struct Monitor {
        executed: Vec<Vec<String>>,
        resized: Vec<(u32, WindowSize)>,
        abandoned: Vec<u32>,
        left_alone: Vec<u32>,
        passed: Vec<(Signal, Attached)>,
        left: Vec<(Attached, bool)>,
        teller: Option<SessionTeller>,
        killed: Vec<Signal>,
        acted: Vec<Action>,
        refuse: bool,
    }

    impl Control for Monitor {
        fn kill(&mut self, signal: Signal) -> Result<(), String> {
            if self.refuse {
                return Err("the workload has not started".to_owned());
            }
            self.killed.push(signal);
            Ok(())
        }

        fn status(&self) -> Status {
            Status::Running {
                started: Timestamp(7),
            }
        }

        fn act(&mut self, action: Action, answerer: Answerer) {
            let refused = self.refuse.then(|| "it is paused already".to_owned());
            self.acted.push(action);
            std::thread::spawn(move || answerer.tell(refused.map_or(Ok(()), Err)));
        }

        fn ask(&mut self, question: Question, answerer: Answerer) {
            let process = ProcessInfo {
                arguments: "x".repeat(1000),
                ..ProcessInfo::default()
            };
            std::thread::spawn(move || match question {
                Question::Usage { .. } => drop(answerer),
                Question::Limit { .. } => answerer.answer(Answer::Failed("no".to_owned())),
                Question::Processes => answerer.answer_slowly(Answer::Processes(ProcessList {
                    processes: vec![process; 1000],
                    ..ProcessList::default()
                })),
            });
        }

        fn exec(&mut self, request: ExecRequest, offer: SessionOffer) -> Result<u32, String> {
            if self.refuse {
                return Err("it is paused".to_owned());
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut teller = offer.open(&[theirs.as_fd()]).unwrap();
            (&ours).write_all(b"through the stream").unwrap();
            self.executed.push(request.choices.arguments);
            teller.started();
            self.teller = Some(teller);
            Ok(7)
        }

        fn resize(&mut self, process: u32, size: WindowSize) {
            self.resized.push((process, size));
            if let Some(mut teller) = self.teller.take() {
                teller.ended(Outcome::Exited(42));
            }
        }

        fn abandon(&mut self, process: u32) {
            self.abandoned.push(process);
        }

        fn leave(&mut self, process: u32) {
            self.left_alone.push(process);
        }

        fn attach(&mut self, request: AttachRequest, offer: AttachOffer) -> Result<(), String> {
            if self.refuse {
                return Err("it is paused".to_owned());
            }
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(b"output").unwrap();
            let attachment = Attachment {
                streams: DeclaredStreams {
                    stdin: request.stdin,
                    stdout: true,
                    stderr: false,
                },
                passes_end: true,
            };
            let teller = offer.teller().unwrap();
            offer.open(attachment, &[theirs.as_fd()]).unwrap();
            teller.missed(3);
            Ok(())
        }

        fn resize_workload(&mut self, size: WindowSize) {
            self.resized.push((0, size));
        }

        fn pass(&mut self, signal: Signal, from: Attached) {
            self.passed.push((signal, from));
        }

        fn left(&mut self, client: Attached, has_detached: bool) {
            self.left.push((client, has_detached));
        }
    }

    fn ended() -> Ended {
        Ended {
            exit_code: 42,
            cause: Cause::Exited,
            signal: None,
            out_of_memory: false,
            message: None,
            last_log_lines: Vec::new(),
            started: None,
            finished: Timestamp(9),
        }
    }

    /// Runs a monitor's loop for as long as `client` takes, ends the machine, and returns the monitor.
    fn with_monitor(refuse: bool, client: impl FnOnce(&Path) + Send) -> Monitor {
        let base = tempfile::tempdir().unwrap();
        // Longer than a socket's address.
        let directory = base.path().join("a".repeat(150));
        fs::create_dir(&directory).unwrap();
        let mut server = ControlServer::bind(&directory).unwrap();
        let mut monitor = Monitor {
            refuse,
            ..Monitor::default()
        };
        let (done, is_done) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                client(&directory);
                drop(done);
            });
            while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
                let tick = Timespec {
                    tv_sec: 0,
                    tv_nsec: 5_000_000,
                };
                let mut fds = [PollFd::new(&server, PollFlags::IN)];
                poll(&mut fds, Some(&tick)).unwrap();
                server.handle(&mut monitor).unwrap();
            }
        });
        server.finish(&ended(), &Outcome::Exited(42));
        monitor
    }

    #[test]
    fn a_signal_reaches_the_monitor() {
        let monitor = with_monitor(false, |directory| {
            let mut client = ControlClient::connect(directory).unwrap();
            client.kill(Signal::TERM).unwrap();
            client.kill(Signal::KILL).unwrap();
        });

        assert_eq!(monitor.killed, [Signal::TERM, Signal::KILL]);
    }

    #[test]
    fn an_action_is_answered_when_it_is_done() {
        let snapshot = Action::Snapshot {
            target: Target::File("/tmp/file".into()),
            incremental: true,
            at_fork_point: false,
            stop: false,
        };
        let wanted = [Action::Pause, Action::Resume, snapshot];
        let monitor = with_monitor(false, |directory| {
            for action in wanted.clone() {
                let client = ControlClient::connect(directory).unwrap();
                client.act(action).unwrap();
            }
        });
        assert_eq!(monitor.acted, wanted);

        with_monitor(true, |directory| {
            let client = ControlClient::connect(directory).unwrap();
            let error = client.act(Action::Pause).unwrap_err();
            assert_eq!(error.to_string(), "it is paused already");
        });
    }

    #[test]
    fn the_monitors_reason_reaches_the_client() {
        with_monitor(true, |directory| {
            let mut client = ControlClient::connect(directory).unwrap();
            let error = client.kill(Signal::TERM).unwrap_err();
            assert_eq!(error.to_string(), "the workload has not started");
        });
    }

    fn asked(directory: &Path, question: &Question) -> Result<Answer, ControlError> {
        let patience = Duration::from_secs(20);
        Asked::send(directory, question)?.answer(Instant::now() + patience)
    }

    #[test]
    fn an_answer_arrives_whole_however_long_it_is() {
        with_monitor(false, |directory| {
            let answer = asked(directory, &Question::Processes).unwrap();
            let Answer::Processes(list) = answer else {
                unreachable!("that is a list");
            };
            assert_eq!(list.processes.len(), 1000);
        });
    }

    #[test]
    fn a_question_without_an_answer_has_a_reason() {
        with_monitor(false, |directory| {
            let limit = Question::Limit {
                resources: Vec::new(),
            };
            let error = asked(directory, &limit).unwrap_err();
            assert_eq!(error.to_string(), "no");
            let error = asked(directory, &Question::Usage { over_ms: 1 }).unwrap_err();
            assert_eq!(error.to_string(), "the machine ended before it answered");
        });
    }

    /// A socket that takes nothing more, since nobody reads at its other end.
    fn full_socket() -> (UnixStream, UnixStream) {
        let (stream, client) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        while (&stream).write(&[0; 4096]).is_ok() {}
        (stream, client)
    }

    #[test]
    fn a_client_that_does_not_read_is_not_waited_for() {
        let (stream, _client) = full_socket();
        let (sender, told) = std::sync::mpsc::channel();

        std::thread::spawn(move || {
            Answerer::new(stream, ENDED_BEFORE).answer(Answer::Limited);
            sender.send(())
        });

        assert_eq!(told.recv_timeout(REPLY_TIMEOUT / 2), Ok(()));
    }

    #[test]
    fn a_long_reply_has_one_deadline_for_all_of_it() {
        let (stream, _client) = full_socket();

        let written = write_long_reply(&stream, &Reply::Done, Instant::now());

        assert_eq!(written.unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_monitor_that_does_not_answer_is_waited_for_until_the_deadline() {
        let base = tempfile::tempdir().unwrap();
        let _server = ControlServer::bind(base.path()).unwrap();

        let asked = Asked::send(base.path(), &Question::Processes).unwrap();
        let answered = asked.answer(Instant::now() + Duration::from_millis(50));

        assert!(matches!(answered, Err(ControlError::Io { .. })));
    }

    fn exec_request() -> ExecRequest {
        ExecRequest {
            choices: ExecChoices {
                arguments: vec!["sh".to_owned()],
                ..ExecChoices::default()
            },
            streams: DeclaredStreams::default(),
        }
    }

    #[test]
    fn a_session_has_the_streams_and_hears_of_the_start_and_the_end() {
        let size = WindowSize {
            rows: 1,
            columns: 2,
        };

        let monitor = with_monitor(false, |directory| {
            let (mut session, passed) = Session::open(directory, &exec_request()).unwrap();
            let mut text = [0; 18];
            let stream = passed.into_iter().next().unwrap();
            UnixStream::from(stream).read_exact(&mut text).unwrap();
            assert_eq!(&text, b"through the stream");
            let started = session.next(&mut Vec::new()).unwrap();
            session.resize(size).unwrap();
            let ended = session.next(&mut Vec::new()).unwrap();
            assert_eq!(started, Reply::Started);
            assert_eq!(ended, Reply::Outcome(Outcome::Exited(42)));
        });

        assert_eq!(monitor.executed, [["sh"]]);
        assert_eq!(monitor.resized, [(7, size)]);
    }

    #[test]
    fn a_session_that_its_client_leaves_is_abandoned() {
        let monitor = with_monitor(false, |directory| {
            drop(Session::open(directory, &exec_request()).unwrap());
            // Answered after the monitor has noticed.
            ControlClient::connect(directory).unwrap().status().unwrap();
        });

        assert_eq!(monitor.abandoned, [7]);
    }

    #[test]
    fn a_session_that_its_client_leaves_alone_is_not_abandoned() {
        let monitor = with_monitor(false, |directory| {
            let (mut session, _) = Session::open(directory, &exec_request()).unwrap();
            session.next(&mut Vec::new()).unwrap();
            session.detach().unwrap();
            assert_eq!(session.next(&mut Vec::new()).unwrap(), Reply::Detached);
            drop(session);
            // Answered after the monitor has noticed.
            ControlClient::connect(directory).unwrap().status().unwrap();
        });

        assert_eq!(monitor.left_alone, [7]);
        assert!(monitor.abandoned.is_empty());
    }

    #[test]
    fn a_session_ends_with_its_machine() {
        let monitor = with_monitor(false, |directory| {
            let (mut session, _) = Session::open(directory, &exec_request()).unwrap();
            session.next(&mut Vec::new()).unwrap();
            std::mem::forget(session);
        });
        let (client, stream) = UnixStream::pair().unwrap();
        let teller = SessionOffer(stream).open(&[]).unwrap();

        drop((teller, monitor));

        let mut said = String::new();
        (&client).read_to_string(&mut said).unwrap();
        assert!(said.contains("the machine has ended"), "{said}");
    }

    #[test]
    fn an_attached_client_has_the_streams_and_hears_what_it_missed_and_the_end() {
        let size = WindowSize {
            rows: 1,
            columns: 2,
        };
        let (result, told) = mpsc::channel();

        let monitor = with_monitor(false, |directory| {
            let request = AttachRequest { stdin: false };
            let (mut session, attachment, sockets) = Session::attach(directory, request).unwrap();
            assert!(attachment.streams.stdout && !attachment.streams.stdin);
            let mut text = [0; 6];
            let stream = sockets.into_iter().next().unwrap();
            UnixStream::from(stream).read_exact(&mut text).unwrap();
            assert_eq!(&text, b"output");
            let missed = session.next(&mut Vec::new()).unwrap();
            assert_eq!(missed, Reply::Missed { bytes: 3 });
            session.resize(size).unwrap();
            session.pass(Signal::TERM).unwrap();
            // Answered after all that was said before.
            ControlClient::connect(directory).unwrap().status().unwrap();
            std::thread::spawn(move || result.send(session.next(&mut Vec::new())));
        });

        let ended = told.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(ended.unwrap(), Reply::Outcome(Outcome::Exited(42)));
        assert_eq!(monitor.resized, [(0, size)]);
        assert_eq!(monitor.passed, [(Signal::TERM, Attached::Other)]);
    }

    #[test]
    fn a_client_that_detaches_is_told_from_one_that_is_gone() {
        let monitor = with_monitor(false, |directory| {
            let request = AttachRequest { stdin: true };
            let attach = || Session::attach(directory, request).unwrap().0;
            let mut polite = attach();
            polite.next(&mut Vec::new()).unwrap();
            polite.detach().unwrap();
            assert_eq!(polite.next(&mut Vec::new()).unwrap(), Reply::Detached);
            drop(polite);
            drop(attach());
            // Answered after the monitor has noticed.
            ControlClient::connect(directory).unwrap().status().unwrap();
        });

        let other = Attached::Other;
        assert_eq!(monitor.left, [(other, true), (other, false)]);
    }

    #[test]
    fn a_client_that_is_not_joined_has_the_monitors_reason() {
        with_monitor(true, |directory| {
            let request = AttachRequest { stdin: true };
            let error = Session::attach(directory, request).unwrap_err();
            assert_eq!(error.to_string(), "it is paused");
        });
    }

    #[test]
    fn a_refused_process_has_the_monitors_reason() {
        with_monitor(true, |directory| {
            let error = Session::open(directory, &exec_request()).unwrap_err();
            assert_eq!(error.to_string(), "it is paused");
        });
    }

    #[test]
    fn the_status_is_told() {
        with_monitor(false, |directory| {
            let mut client = ControlClient::connect(directory).unwrap();
            let status = client.status().unwrap();
            assert_eq!(
                status,
                Status::Running {
                    started: Timestamp(7)
                }
            );
        });
    }

    #[test]
    fn who_waits_is_told_the_end() {
        let (result, waited) = mpsc::channel();

        with_monitor(false, |directory| {
            let client = ControlClient::connect(directory).unwrap();
            std::thread::spawn(move || {
                result
                    .send(client.wait(Some(Duration::from_secs(20))))
                    .unwrap();
            });
            std::thread::sleep(Duration::from_millis(100));
        });

        let told = waited.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_eq!(told.unwrap(), ended());
    }

    #[test]
    fn a_client_of_another_version_is_told_and_hung_up_on() {
        with_monitor(false, |directory| {
            let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
            stream.write_all(b"{\"hello\":{\"version\":99}}\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "{\"hello\":{\"version\":4}}\n");
        });
    }

    #[test]
    fn nothing_is_done_before_the_versions_are_known() {
        let monitor = with_monitor(false, |directory| {
            let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
            stream.write_all(b"{\"kill\":{\"signal\":9}}\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, "");
        });

        assert!(monitor.killed.is_empty());
    }

    #[test]
    fn an_endless_request_is_cut_off() {
        with_monitor(false, |directory| {
            let mut stream = with_short_path(directory, UnixStream::connect).unwrap();
            let flood = vec![b'x'; MAX_REQUEST_BYTES + READ_BYTES];
            // The monitor hangs up in the midst of it.
            let _ = stream.write_all(&flood);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.is_empty());
        });
    }

    #[test]
    fn more_clients_than_the_limit_wait_their_turn() {
        with_monitor(false, |directory| {
            let crowd: Vec<_> = (0..MAX_CONNECTIONS)
                .map(|_| ControlClient::connect(directory).unwrap())
                .collect();
            let late = std::thread::scope(|scope| {
                let late = scope.spawn(|| ControlClient::connect(directory).map(drop));
                std::thread::sleep(Duration::from_millis(50));
                drop(crowd);
                late.join().unwrap()
            });
            late.unwrap();
        });
    }

    #[test]
    fn without_a_monitor_the_machine_does_not_run() {
        let base = tempfile::tempdir().unwrap();
        drop(ControlServer::bind(base.path()).unwrap());

        let error = ControlClient::connect(base.path()).unwrap_err();

        assert!(matches!(error, ControlError::NotRunning(_)));
    }
}
