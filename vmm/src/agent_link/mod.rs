//! The host's end of the conversation with the guest's agent (see the crate `protocol`).
//!
//! It stands apart from the machine: it gets plain stream sockets from a [`Dialer`] and knows nothing of KVM or virtio.
//! Everything that comes from the guest is hostile: frames are bounded before they are kept, streams hold a bounded number
//! of bytes, and no report leads anywhere but to a result or an error. There is no timeout but [`STREAM_END_PATIENCE`]:
//! how long a workload may take is for the user to say, and a machine that dies hangs up its sockets.

mod client;
mod event;
mod pump;
mod questions;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::{
    AGENT_PORT, Create, Exit, FailureKind, FrameBuffer, FrameError, Hello, MAX_HELLO_BYTES,
    MAX_REPORT_BYTES, MAX_REQUEST_BYTES, Process, Report, Request, Role, StartFailure, VERSION,
};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use thiserror::Error;

pub use self::event::{
    Asker, Event, EventReceiver, EventSender, Joining, Received, Watcher, event_channel,
};
use self::questions::Questions;
pub use self::streams::{ClientStreams, Connections, Pumps, STREAM_END_PATIENCE, Side};

/// What ends a process that nobody waits for.
const SIGKILL: u8 = 9;

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

/// Which descriptor a poll result belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Control,
    Events,
    Stream(Side),
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
    /// client, and forwards what comes through `events`, other processes among it. `started` is called once its program
    /// runs, with how long the agent took for that.
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
        started: &mut dyn FnMut(Duration),
    ) -> Result<WorkloadExit, LinkError> {
        let process = job.process();
        let connections = Connections::dial(dialer, process, client.declared())?;
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

/// The guest's words, fit for a terminal: bounded, and with nothing that a terminal would obey.
fn printable(failure: StartFailure) -> StartFailure {
    let StartFailure {
        kind,
        step,
        message,
    } = failure.bounded();
    StartFailure {
        kind,
        step: clean(&step),
        message: clean(&message),
    }
}

fn clean(text: &str) -> String {
    text.replace(is_unprintable, "\u{FFFD}")
}

/// Control characters, and those that turn the direction of the text around them.
fn is_unprintable(character: char) -> bool {
    character.is_control() || matches!(character, '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// The workload's process from its start to its end, and the processes that join it meanwhile.
#[derive(Debug)]
struct Session<'a> {
    link: &'a mut AgentLink,
    process: Process,
    pumps: Pumps<'a>,
    events: &'a EventReceiver,
    events_are_open: bool,
    is_started: bool,
    exit: Option<Exit>,
    others: BTreeMap<Process, Other>,
    questions: Questions,
}

/// A process that joined.
#[derive(Debug)]
struct Other {
    watcher: Box<dyn Watcher>,
    is_started: bool,
}

impl<'a> Session<'a> {
    fn new(
        link: &'a mut AgentLink,
        process: Process,
        connections: Connections,
        client: ClientStreams<'a>,
        events: &'a EventReceiver,
    ) -> Self {
        Self {
            link,
            process,
            pumps: Pumps::new(connections, client),
            events,
            events_are_open: true,
            is_started: false,
            exit: None,
            others: BTreeMap::new(),
            questions: Questions::default(),
        }
    }

    fn run(mut self, started: &mut dyn FnMut(Duration)) -> Result<WorkloadExit, LinkError> {
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
        self.exit.filter(|_| self.pumps.are_done(last_progress))
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
        for (side, fd, interest) in self.pumps.interests() {
            sources.push(Source::Stream(side));
            fds.push(PollFd::from_borrowed_fd(fd, interest));
        }
        let timeout = self.exit.map(|_| Pumps::patience());
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
        started: &mut dyn FnMut(Duration),
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
                Source::Stream(side) => self.pumps.advance(side, *result),
            }
        }
        Ok(None)
    }

    /// Deals with the reports that have come.
    fn hear(
        &mut self,
        started: &mut dyn FnMut(Duration),
    ) -> Result<Option<WorkloadExit>, LinkError> {
        while let Some(report) = self.link.next_report()? {
            match report {
                Report::Started { process, after_us }
                    if process == self.process && !self.is_started =>
                {
                    self.is_started = true;
                    started(Duration::from_micros(after_us.into()));
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
                    self.pumps.end_input();
                    // Whatever of them has not ended before has ended with it.
                    self.others.clear();
                    self.questions = Questions::default();
                    // What came along with it is about what is over.
                    return Ok(None);
                }
                Report::Answer { number, answer } if self.questions.is_asked(number) => {
                    self.questions.hear(number, answer);
                }
                report if self.hear_of_other(&report) => (),
                _ => return Err(LinkError::OutOfTurn),
            }
        }
        Ok(None)
    }

    /// Deals with a report about a process that joined. Returns whether it makes sense. The watcher may be gone.
    fn hear_of_other(&mut self, report: &Report) -> bool {
        let (Report::Started { process, .. }
        | Report::NotStarted { process, .. }
        | Report::Exited { process, .. }) = report
        else {
            return false;
        };
        let Some(mut other) = self.others.remove(process) else {
            return false;
        };
        match (report, other.is_started) {
            (Report::Started { process, .. }, false) => {
                other.is_started = true;
                other.watcher.started();
                self.others.insert(*process, other);
            }
            (Report::NotStarted { failure, .. }, false) => {
                let failure = printable(failure.clone());
                other.watcher.ended(WorkloadExit::NotStarted(failure));
            }
            (Report::Exited { exit, .. }, true) => {
                other.watcher.ended(WorkloadExit::Exited(*exit));
            }
            _ => return false,
        }
        true
    }

    fn forward_events(&mut self) -> Result<(), LinkError> {
        let event = match self.events.receive().map_err(LinkError::Events)? {
            event::Received::Event(event) => event,
            event::Received::Nothing => return Ok(()),
            event::Received::End => {
                self.events_are_open = false;
                return Ok(());
            }
        };
        // The process will not take it any more, and nothing can join it.
        if self.exit.is_some() {
            return Ok(());
        }
        let process = self.process;
        self.link.queue(&match event {
            Event::Signal(signal) => Request::Signal { process, signal },
            Event::Stop => Request::Stop(process),
            Event::Resize(size) => Request::Resize { process, size },
            Event::Freeze { at_fork_point } => Request::Freeze { at_fork_point },
            Event::ResizeOf(process, size) => Request::Resize { process, size },
            Event::SignalOf(process, signal) => Request::Signal { process, signal },
            Event::Abandon(process) => match self.others.get(&process) {
                Some(other) if !other.is_started => Request::Signal {
                    process,
                    signal: SIGKILL,
                },
                _ => return Ok(()),
            },
            Event::Join { joining, watcher } => {
                self.begin(joining, watcher);
                return Ok(());
            }
            Event::Ask {
                container,
                question,
                asker,
            } => Request::Ask {
                number: self.questions.note(asker),
                container,
                question,
            },
        })
    }

    /// Lets another process join.
    fn begin(&mut self, joining: Joining, mut watcher: Box<dyn Watcher>) {
        let process = joining.process();
        let queued = self
            .link
            .queue(&joining.request())
            .and_then(|()| self.link.queue(&Request::Start(process)));
        match queued {
            Ok(()) => {
                let other = Other {
                    watcher,
                    is_started: false,
                };
                self.others.insert(process, other);
            }
            Err(error) => watcher.ended(WorkloadExit::NotStarted(StartFailure {
                kind: FailureKind::Failed,
                step: "asking the guest".to_owned(),
                message: error.to_string(),
            })),
        }
    }
}
