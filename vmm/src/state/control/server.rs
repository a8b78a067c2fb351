//! The monitor's end of the control socket.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use protocol::{Answer, FilesTask, Question, WindowSize};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::{
    Action, AttachRequest, Attachment, ExecRequest, MAX_PASSED, MAX_REQUEST_BYTES, REPLY_TIMEOUT,
    Reply, Request, SOCKET, VERSION, line, with_short_path,
};
use crate::outcome::{NotStarted, Outcome};
use crate::state::record::{Ended, Status};
use crate::state::signal::Signal;

/// How much of requests that are not complete may be kept for all clients together.
const MAX_PENDING_BYTES: usize = 16 << 20;
/// What is read of a request at once.
pub(super) const READ_BYTES: usize = 16 << 10;
/// Clients beyond this many wait in the socket's backlog, or are refused.
pub(super) const MAX_CONNECTIONS: usize = 256;
/// What a client is told of an action that nothing came of.
const NOT_BEGUN: &str = "the monitor could not begin with it";
/// What a client is told of a question that nothing came of.
pub(super) const ENDED_BEFORE: &str = "the machine ended before it answered";
/// The listener's place among the epoll's tokens; connections count up from the next.
const LISTENER: u64 = 0;

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
    pub(super) fn new(stream: UnixStream, failure: &str) -> Self {
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

/// A client that can be given a process.
#[derive(Debug)]
pub struct SessionOffer(pub(super) UnixStream);

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

    /// Does the same, and lets nothing start the machine again but a person.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    fn stop(&mut self, signal: Signal) -> Result<(), String>;

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

    /// Lets something be done with the container's files, and opens the session. Returns the id of the process that does it.
    ///
    /// # Errors
    ///
    /// One sentence for the client.
    fn files(&mut self, task: FilesTask, offer: SessionOffer) -> Result<u32, String>;

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
    pub(in crate::state) fn bind(directory: &Path) -> io::Result<Self> {
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
        self.tell_end(ended, outcome);
    }

    /// Tells those who wait how the workload ended, and hangs up on all that had to do with it. Others may go on asking.
    pub fn tell_end(&mut self, ended: &Ended, outcome: &Outcome) {
        for connection in self.connections.values_mut() {
            let reply = match connection.state {
                ConnectionState::Waiting => Reply::Ended(ended.clone()),
                ConnectionState::Attached(_) => Reply::Outcome(outcome.clone()),
                _ => continue,
            };
            let _ = connection.reply(&reply);
        }
        self.connections.retain(|_, connection| {
            let has_not_begun = [ConnectionState::New, ConnectionState::Greeted];
            has_not_begun.contains(&connection.state)
        });
        // There is room for those who wait.
        self.accept();
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
            (ConnectionState::Greeted, Request::Stop { signal }) => match control.stop(signal) {
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
            (ConnectionState::Greeted, Request::Files(task)) => {
                let stream = self.stream.try_clone().map_err(|_| HangUp)?;
                match control.files(*task, SessionOffer(stream)) {
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
                | Request::Stop { .. }
                | Request::Status
                | Request::Wait
                | Request::Act(_)
                | Request::Ask(_)
                | Request::Exec(_)
                | Request::Files(_)
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
pub(super) fn write_long_reply(
    mut stream: &UnixStream,
    reply: &Reply,
    deadline: Instant,
) -> io::Result<()> {
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
