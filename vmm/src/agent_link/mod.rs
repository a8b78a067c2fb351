//! The host's end of the conversation with the guest's agent (see the crate `protocol`).
//!
//! It stands apart from the machine: it gets plain stream sockets from a [`Dialer`] and knows nothing of KVM or virtio.
//! Everything that comes from the guest is hostile: frames are bounded before they are kept, streams hold a bounded number
//! of bytes, and no report leads anywhere but to a result or an error. There is no timeout but [`STREAM_END_PATIENCE`]:
//! how long a workload may take is for the user to say, and a machine that dies hangs up its sockets.

mod client;
mod event;
mod pump;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::{
    AGENT_PORT, Create, DeclaredStreams, Exit, FrameBuffer, FrameError, Hello, MAX_HELLO_BYTES,
    MAX_REPORT_BYTES, MAX_REQUEST_BYTES, Process, Report, Request, Role, StartFailure, StreamKind,
    VERSION,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use thiserror::Error;

use self::client::ClientSink;
pub use self::event::{Event, EventReceiver, EventSender, event_channel};
use self::pump::{Input, Output};

/// How long a stream may stay silent and open after the exit was reported, before the rest is given up. An honest agent
/// ends all streams before it reports.
pub const STREAM_END_PATIENCE: Duration = Duration::from_secs(5);

/// What is read from the control connection at once.
const READ_BYTES: usize = 4 << 10;

/// Makes connections to the guest.
pub trait Dialer {
    /// Connects to a vsock port of the guest, and gives the host's end as a stream socket.
    ///
    /// # Errors
    ///
    /// If the machine cannot be asked any more, or a socket cannot be made.
    fn dial(&self, port: u32) -> io::Result<UnixStream>;
}

/// Why the conversation with the agent ended early.
#[derive(Debug, Error)]
pub enum LinkError {
    /// A connection could not be made.
    #[error("connecting to the guest's agent")]
    Dial(#[source] io::Error),
    /// A request could not be sent.
    #[error("sending to the guest's agent")]
    Send(#[source] io::Error),
    /// Reports could not be received.
    #[error("receiving from the guest's agent")]
    Receive(#[source] io::Error),
    /// A message of ours does not fit a frame.
    #[error("the container's configuration is too large to be sent to the guest")]
    TooLarge(#[source] FrameError),
    /// The agent sent what is not a report.
    #[error("the guest's agent sent what is not a report")]
    Malformed(#[source] FrameError),
    /// The agent sent a report that makes no sense at this point.
    #[error("the guest's agent sent a report out of turn")]
    OutOfTurn,
    /// The agent speaks another version.
    #[error(
        "the guest's agent speaks version {agent} of the protocol, this program version {VERSION}"
    )]
    Version {
        /// The agent's version.
        agent: u16,
    },
    /// The agent, or the machine, went away.
    #[error("the guest's agent hung up")]
    HungUp,
    /// The kernel refused to poll.
    #[error("waiting for the guest's agent")]
    Poll(#[source] io::Error),
    /// The client's events could not be received.
    #[error("receiving signals and window sizes to forward")]
    Events(#[source] io::Error),
}

/// How a workload ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WorkloadExit {
    /// Its process ran and ended.
    Exited(Exit),
    /// It never ran.
    NotStarted(StartFailure),
}

/// The client's side of the standard streams. A stream that is `None` is not connected: `/dev/null` for the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientStreams<'fd> {
    /// Read until its end, which becomes the end of the process's input.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Written to. When it is closed, the process's output is closed.
    pub stdout: Option<BorrowedFd<'fd>>,
    /// Written to. Must be `None` for a process with a terminal.
    pub stderr: Option<BorrowedFd<'fd>>,
}

impl ClientStreams<'_> {
    /// What [`Create::streams`] has to say for these.
    #[must_use]
    pub fn declared(&self) -> DeclaredStreams {
        DeclaredStreams {
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
        }
    }
}

/// What the agent is asked for.
#[derive(Clone, Debug)]
pub enum Job {
    /// A new process.
    Create(Box<Create>),
    /// A process that runs in a machine that was written down, with other connections.
    Attach(Process),
}

impl Job {
    fn process(&self) -> Process {
        match self {
            Self::Create(create) => create.process,
            Self::Attach(process) => *process,
        }
    }
}

/// The control connection to the agent.
#[derive(Debug)]
pub struct AgentLink {
    control: UnixStream,
    reports: FrameBuffer,
    unsent: Vec<u8>,
    is_welcome: bool,
}

/// The connections of a process's streams.
#[derive(Debug, Default)]
struct Connections {
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

/// Which descriptor a poll result belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Control,
    Events,
    Stdin(usize),
    Stdout(usize),
    Stderr(usize),
}

impl AgentLink {
    /// Opens the control connection. It sends nothing yet and waits for no answer: whether the agent speaks our version shows with its first
    /// report.
    ///
    /// # Errors
    ///
    /// If the connection cannot be made.
    pub fn connect(dialer: &dyn Dialer) -> Result<Self, LinkError> {
        let control = dialer.dial(AGENT_PORT).map_err(LinkError::Dial)?;
        // The hello travels with the first request: a packet less for the guest to take.
        let mut unsent = Vec::new();
        let hello = Hello::new(Role::Control);
        protocol::encode(&hello, MAX_HELLO_BYTES, &mut unsent).map_err(LinkError::TooLarge)?;
        Ok(Self {
            control,
            reports: FrameBuffer::new(MAX_REPORT_BYTES),
            unsent,
            is_welcome: false,
        })
    }

    /// Runs a container's first process to its end: creates and starts it, or takes it over, carries its streams from and to the
    /// client, and forwards what comes through `events`. `started` is called once its program runs.
    ///
    /// `create.streams` must be what [`ClientStreams::declared`] says of `client`.
    ///
    /// # Errors
    ///
    /// If the conversation breaks off; the workload's own failures are a [`WorkloadExit`].
    pub fn run(
        &mut self,
        dialer: &dyn Dialer,
        job: Job,
        client: ClientStreams<'_>,
        events: &EventReceiver,
        started: &mut dyn FnMut(),
    ) -> Result<WorkloadExit, LinkError> {
        let process = job.process();
        let connections = connect_streams(dialer, process, client.declared())?;
        match job {
            Job::Create(create) => {
                self.queue(&Request::Create(create))?;
                self.queue(&Request::Start(process))?;
            }
            Job::Attach(process) => self.queue(&Request::Attach(process))?,
        }
        Session::new(self, process, connections, client, events).run(started)
    }

    /// Tells the agent to end the machine. It waits for no answer.
    ///
    /// # Errors
    ///
    /// If the request cannot be sent.
    pub fn power_off(&mut self) -> Result<(), LinkError> {
        self.queue(&Request::PowerOff)?;
        self.flush()
    }

    fn queue(&mut self, request: &Request) -> Result<(), LinkError> {
        protocol::encode(request, MAX_REQUEST_BYTES, &mut self.unsent).map_err(LinkError::TooLarge)
    }

    /// Sends what the connection takes now. To an agent that hung up, nothing is sent: [`Self::receive`] says so, once what
    /// the agent had reported before is read.
    fn flush(&mut self) -> Result<(), LinkError> {
        while !self.unsent.is_empty() {
            match rustix::net::send(
                &self.control,
                &self.unsent,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::PIPE | Errno::CONNRESET) => self.unsent.clear(),
                Err(error) => return Err(LinkError::Send(error.into())),
            }
        }
        Ok(())
    }

    /// Reads what has come.
    fn receive(&mut self) -> Result<(), LinkError> {
        let mut bytes = [0; READ_BYTES];
        match rustix::net::recv(&self.control, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(LinkError::HungUp),
            Ok((received, _)) => {
                self.reports.push(bytes.get(..received).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(LinkError::Receive(error.into())),
        }
    }

    /// Takes the next report that is complete. The welcome is dealt with here.
    fn next_report(&mut self) -> Result<Option<Report>, LinkError> {
        loop {
            match (
                self.reports.take().map_err(LinkError::Malformed)?,
                self.is_welcome,
            ) {
                (None, _) => return Ok(None),
                (Some(Report::Welcome { version: VERSION }), false) => self.is_welcome = true,
                (Some(Report::Welcome { version }), false) => {
                    return Err(LinkError::Version { agent: version });
                }
                (Some(_), false) | (Some(Report::Welcome { .. }), true) => {
                    return Err(LinkError::OutOfTurn);
                }
                (Some(report), true) => return Ok(Some(report)),
            }
        }
    }
}

fn dial(dialer: &dyn Dialer, role: Role) -> Result<UnixStream, LinkError> {
    let connection = dialer.dial(AGENT_PORT).map_err(LinkError::Dial)?;
    let mut hello = Vec::new();
    protocol::encode(&Hello::new(role), MAX_HELLO_BYTES, &mut hello)
        .map_err(LinkError::TooLarge)?;
    // A new socket takes these few bytes whole.
    rustix::net::send(&connection, &hello, SendFlags::NOSIGNAL)
        .map_err(|error| LinkError::Send(error.into()))?;
    Ok(connection)
}

fn connect_streams(
    dialer: &dyn Dialer,
    process: Process,
    declared: DeclaredStreams,
) -> Result<Connections, LinkError> {
    let connect = |wanted: bool, kind: StreamKind| {
        wanted
            .then(|| dial(dialer, Role::Stream { process, kind }))
            .transpose()
    };
    Ok(Connections {
        stdin: connect(declared.stdin, StreamKind::Stdin)?,
        stdout: connect(declared.stdout, StreamKind::Stdout)?,
        stderr: connect(declared.stderr, StreamKind::Stderr)?,
    })
}

/// The guest's words, fit for a terminal: bounded, and with nothing that a terminal would obey.
fn printable(failure: StartFailure) -> StartFailure {
    let clean = |text: String| text.replace(is_unprintable, "\u{FFFD}");
    let StartFailure {
        kind,
        step,
        message,
    } = failure.bounded();
    StartFailure {
        kind,
        step: clean(step),
        message: clean(message),
    }
}

/// Control characters, and those that turn the direction of the text around them.
fn is_unprintable(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A process from its start to its end.
#[derive(Debug)]
struct Session<'a> {
    link: &'a mut AgentLink,
    process: Process,
    stdin: Option<Input<'a>>,
    stdout: Option<Output<'a>>,
    stderr: Option<Output<'a>>,
    events: &'a EventReceiver,
    events_are_open: bool,
    is_started: bool,
    exit: Option<Exit>,
}

impl<'a> Session<'a> {
    fn new(
        link: &'a mut AgentLink,
        process: Process,
        connections: Connections,
        client: ClientStreams<'a>,
        events: &'a EventReceiver,
    ) -> Self {
        let Connections {
            stdin,
            stdout,
            stderr,
        } = connections;
        Self {
            link,
            process,
            stdin: client
                .stdin
                .zip(stdin)
                .map(|(source, sink)| Input::new(source, sink)),
            stdout: client
                .stdout
                .zip(stdout)
                .map(|(sink, source)| Output::new(source, ClientSink::new(sink))),
            stderr: client
                .stderr
                .zip(stderr)
                .map(|(sink, source)| Output::new(source, ClientSink::new(sink))),
            events,
            events_are_open: true,
            is_started: false,
            exit: None,
        }
    }

    fn run(mut self, started: &mut dyn FnMut()) -> Result<WorkloadExit, LinkError> {
        let mut last_progress = Instant::now();
        loop {
            let sent = self.link.flush();
            // After the exit, what cannot be sent is of no use to anybody.
            if self.exit.is_none() {
                sent?;
            }
            if let Some(exit) = self.finished(last_progress) {
                return Ok(WorkloadExit::Exited(exit));
            }
            let ready = self.wait()?;
            if !ready.is_empty() {
                last_progress = Instant::now();
            }
            if let Some(exit) = self.handle(&ready, started)? {
                return Ok(exit);
            }
        }
    }

    /// The exit, if it was reported and all output has reached the client, or never will.
    fn finished(&self, last_progress: Instant) -> Option<Exit> {
        let exit = self.exit?;
        let outputs = || [&self.stdout, &self.stderr].into_iter().flatten();
        let is_complete = outputs().all(Output::is_done);
        // What waits for the client is not the guest's fault, and is waited for.
        let is_given_up = last_progress.elapsed() >= STREAM_END_PATIENCE
            && !outputs().any(Output::waits_for_client);
        (is_complete || is_given_up).then_some(exit)
    }

    /// Waits until something can be done, and says what.
    fn wait(&self) -> Result<Vec<(Source, PollFlags)>, LinkError> {
        let sending = if self.link.unsent.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        // An agent that has reported the exit has nothing more to say.
        if self.exit.is_none() {
            sources.push(Source::Control);
            fds.push(PollFd::new(&self.link.control, PollFlags::IN | sending));
        }
        if self.events_are_open {
            sources.push(Source::Events);
            fds.push(PollFd::from_borrowed_fd(self.events.as_fd(), PollFlags::IN));
        }
        let stdin = self
            .stdin
            .iter()
            .flat_map(|pump| pump.interests(Source::Stdin));
        let stdout = self
            .stdout
            .iter()
            .flat_map(|pump| pump.interests(Source::Stdout));
        let stderr = self
            .stderr
            .iter()
            .flat_map(|pump| pump.interests(Source::Stderr));
        for (source, fd, interest) in stdin.chain(stdout).chain(stderr) {
            sources.push(source);
            fds.push(PollFd::from_borrowed_fd(fd, interest));
        }
        let timeout = self.exit.map(|_| Timespec {
            tv_sec: i64::try_from(STREAM_END_PATIENCE.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) => (),
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(LinkError::Poll(error.into())),
        }
        let results = fds.iter().map(PollFd::revents);
        Ok(sources
            .into_iter()
            .zip(results)
            .filter(|(_, result)| !result.is_empty())
            .collect())
    }

    fn handle(
        &mut self,
        ready: &[(Source, PollFlags)],
        started: &mut dyn FnMut(),
    ) -> Result<Option<WorkloadExit>, LinkError> {
        for (source, result) in ready {
            match *source {
                Source::Control => {
                    if result.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                        self.link.receive()?;
                        if let Some(exit) = self.hear(started)? {
                            return Ok(Some(exit));
                        }
                    }
                }
                Source::Events => self.forward_events()?,
                Source::Stdin(side) => self
                    .stdin
                    .iter_mut()
                    .for_each(|pump| pump.advance(side, *result)),
                Source::Stdout(side) => self
                    .stdout
                    .iter_mut()
                    .for_each(|pump| pump.advance(side, *result)),
                Source::Stderr(side) => self
                    .stderr
                    .iter_mut()
                    .for_each(|pump| pump.advance(side, *result)),
            }
        }
        Ok(None)
    }

    /// Deals with the reports that have come.
    fn hear(&mut self, started: &mut dyn FnMut()) -> Result<Option<WorkloadExit>, LinkError> {
        while let Some(report) = self.link.next_report()? {
            match report {
                Report::Started(process) if process == self.process && !self.is_started => {
                    self.is_started = true;
                    started();
                }
                Report::NotStarted { process, failure }
                    if process == self.process && !self.is_started =>
                {
                    return Ok(Some(WorkloadExit::NotStarted(printable(failure))));
                }
                Report::Exited { process, exit }
                    if process == self.process && self.is_started && self.exit.is_none() =>
                {
                    self.exit = Some(exit);
                    // The process will not read any more.
                    self.stdin = None;
                }
                _ => return Err(LinkError::OutOfTurn),
            }
        }
        Ok(None)
    }

    fn forward_events(&mut self) -> Result<(), LinkError> {
        let process = self.process;
        match self.events.receive().map_err(LinkError::Events)? {
            // The process will not take it any more.
            event::Received::Event(_) if self.exit.is_some() => Ok(()),
            event::Received::Event(Event::Signal(signal)) => {
                self.link.queue(&Request::Signal { process, signal })
            }
            event::Received::Event(Event::Stop) => self.link.queue(&Request::Stop(process)),
            event::Received::Event(Event::Resize(size)) => {
                self.link.queue(&Request::Resize { process, size })
            }
            event::Received::Event(Event::Freeze { at_fork_point }) => {
                self.link.queue(&Request::Freeze { at_fork_point })
            }
            event::Received::Nothing => Ok(()),
            event::Received::End => {
                self.events_are_open = false;
                Ok(())
            }
        }
    }
}
