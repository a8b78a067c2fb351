//! The agent's loop: takes connections, does what the host asks, moves streams, reaps, reports. One thread, one poll.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use protocol::{
    Answer, ContainerId, Create, Exec, Files, FrameBuffer, Handover, Hello, MAGIC, MAX_HELLO_BYTES,
    MAX_REPORT_BYTES, MAX_REQUEST_BYTES, MAX_SAMPLE_MS, Question, Report, Request, Role,
    StartFailure, StreamKind, Usage, VERSION,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};
use rustix::process::WaitOptions;
use thiserror::Error;

use crate::clone;
use crate::connections;
use crate::container::{self, Part, Plan, ProcessPlan, Staged, processes};
use crate::doorbell::Vmm;
use crate::process::{Connection, Process, exists_already, no_such_process};
use crate::spec::Resources;

/// How many connections may wait for their hello or for the creation of their process. The host, who alone can connect, has
/// no use for more: it has no more connections.
const MAX_WAITING: usize = 512;

/// How many questions that take a while may wait for their answers.
const MAX_SAMPLES: usize = 256;

/// Why a question about a container has no answer.
const NOT_RUNNING: &str = "the container does not run";

/// What is read from the control connection at once: a usual request.
const READ_BYTES: usize = 4 << 10;

/// How long what is over may lie about. Most machines end before, with all that is in them.
const TIDY_AFTER: Duration = Duration::from_millis(10);

/// The agent while it serves.
#[derive(Debug)]
pub(crate) struct Server<'a> {
    listener: OwnedFd,
    children: OwnedFd,
    control: Option<Control>,
    /// Connections whose hello has not arrived yet.
    strangers: Vec<Stranger>,
    /// Streams whose process has not been created yet.
    unclaimed: Vec<(protocol::Process, StreamKind, Connection)>,
    processes: BTreeMap<protocol::Process, Process>,
    /// A container that was made ahead, for whoever starts first.
    staged: Option<Staged>,
    /// Containers that are looked at for a while.
    samples: Vec<Sample>,
    /// When what is over is cleaned up.
    tidy_at: Option<Instant>,
    /// The machine that this one is in; none in tests without one.
    vmm: Option<&'a Vmm>,
}

/// The control connection.
#[derive(Debug)]
struct Control {
    connection: OwnedFd,
    requests: FrameBuffer,
    /// Whether the host speaks this version. What another one sends means nothing here.
    is_understood: bool,
    /// Reports that the connection did not take yet.
    unsent: Vec<u8>,
}

/// A container whose use of the processors is looked at for a while.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// The question's.
    number: u32,
    container: ContainerId,
    /// Processor time that it had used when that began.
    cpu_time_us: u64,
    began: Instant,
    ends: Instant,
}

#[derive(Debug)]
struct Stranger {
    connection: OwnedFd,
    hello: FrameBuffer,
}

/// Why the agent stops serving.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub(crate) enum Stop {
    /// The host asked for it.
    #[error("the host asked for the end of the machine")]
    PowerOff,
    /// The control connection ended.
    #[error("the host hung up")]
    HungUp,
    /// The host sent what is not a frame of this protocol.
    #[error("the host sent what is not a request")]
    Nonsense,
    /// The kernel refused to poll.
    #[error("waiting for something to do")]
    PollFailed(#[source] Errno),
    /// This is a copy of a machine and could not be made another one.
    #[error("this copy of a machine is none of its own")]
    NotAnother,
}

/// Whose descriptor a poll result belongs to.
#[derive(Clone, Copy, Debug)]
enum Source {
    Listener,
    Children,
    Control,
    Stranger(usize),
    Launch(protocol::Process),
    Hooks(protocol::Process),
    Stream(protocol::Process, StreamKind, usize),
}

impl<'a> Server<'a> {
    /// Makes a server of `listener` that is told of children's exits by `children`, and has a container ready.
    pub(crate) fn new(
        listener: OwnedFd,
        children: OwnedFd,
        staged: Option<Staged>,
        vmm: Option<&'a Vmm>,
    ) -> Self {
        Self {
            listener,
            children,
            control: None,
            strangers: Vec::new(),
            unclaimed: Vec::new(),
            processes: BTreeMap::new(),
            staged,
            samples: Vec::new(),
            tidy_at: None,
            vmm,
        }
    }

    /// Serves until there is a reason to stop.
    pub(crate) fn run(&mut self) -> Stop {
        let stop = self.serve_until_stop();
        self.clean_up_processes();
        if let Some(staged) = self.staged.take() {
            staged.discard();
        }
        stop
    }

    fn serve_until_stop(&mut self) -> Stop {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::INTR) => continue,
                Err(error) => return Stop::PollFailed(error),
            };
            if let Some(stop) = self.handle(&ready) {
                return stop;
            }
            self.advance_processes();
            self.finish_samples();
            if let Some(control) = &mut self.control {
                control.flush();
            }
            self.tidy();
        }
    }

    /// Waits until something can be done, and says what; nothing where it is time to tidy.
    fn wait(&self) -> rustix::io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Children];
        let mut fds = vec![PollFd::new(&self.children, PollFlags::IN)];
        if self.strangers.len() < MAX_WAITING {
            sources.push(Source::Listener);
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        if let Some(control) = &self.control {
            let sending = if control.unsent.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            sources.push(Source::Control);
            fds.push(PollFd::new(&control.connection, PollFlags::IN | sending));
        }
        for (index, stranger) in self.strangers.iter().enumerate() {
            sources.push(Source::Stranger(index));
            fds.push(PollFd::new(&stranger.connection, PollFlags::IN));
        }
        for (id, process) in &self.processes {
            if let Some(channel) = process.launch_channel() {
                sources.push(Source::Launch(*id));
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
            if let Some(channel) = process.hook_channel() {
                sources.push(Source::Hooks(*id));
                fds.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
            }
            for (kind, interests) in process.interests() {
                for (side, (fd, interest)) in interests.into_iter().enumerate() {
                    let Some(fd) = fd else { continue };
                    sources.push(Source::Stream(*id, kind, side));
                    fds.push(PollFd::from_borrowed_fd(fd, interest));
                }
            }
        }
        let deadlines = self.processes.values().filter_map(Process::deadline);
        let samples = self.samples.iter().map(|sample| sample.ends);
        let until_deadline = deadlines
            .chain(self.tidy_at)
            .chain(samples)
            .min()
            .map(|moment| {
                let left = moment.saturating_duration_since(Instant::now());
                Timespec::try_from(left).unwrap_or_default()
            });
        rustix::event::poll(&mut fds, until_deadline.as_ref())?;
        let results = fds.iter().map(PollFd::revents);
        Ok(sources
            .into_iter()
            .zip(results)
            .filter(|(_, result)| !result.is_empty())
            .collect())
    }

    /// Does what became possible.
    fn handle(&mut self, ready: &[(Source, PollFlags)]) -> Option<Stop> {
        let mut heard = Vec::new();
        for (source, result) in ready {
            match *source {
                Source::Listener => self.accept(),
                Source::Children => self.reap(),
                Source::Control => {
                    if let Some(stop) = self.serve_control(*result) {
                        return Some(stop);
                    }
                }
                Source::Stranger(index) => heard.push(index),
                Source::Launch(id) => {
                    self.with_process(id, Process::hear_launch);
                    // Before its output: whoever has seen that may send it a signal, which is the machine's until it runs.
                    if let Some(control) = &mut self.control {
                        control.flush();
                    }
                }
                Source::Hooks(id) => self.with_process(id, Process::hear_hooks),
                Source::Stream(id, kind, side) => {
                    if let Some(process) = self.processes.get_mut(&id) {
                        process.advance(kind, side, *result);
                    }
                }
            }
        }
        // From the last to the first, because each leaves the list when it is known.
        for index in heard.into_iter().rev() {
            if let Some(stop) = self.hear_stranger(index) {
                return Some(stop);
            }
        }
        None
    }

    /// Takes one connection that waits; the next round of the loop takes the next.
    ///
    /// Never looks whether there is one more: Linux 6.1's vsock sleeps in an accept that finds nothing until the next tick but one
    /// (`vsock_accept` in net/vmw_vsock/af_vsock.c, a `schedule_timeout(0)` whatever `O_NONBLOCK` says), up to 20 ms.
    fn accept(&mut self) {
        let Ok(connection) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            return;
        };
        self.strangers.push(Stranger {
            connection,
            hello: FrameBuffer::new(MAX_HELLO_BYTES),
        });
    }

    /// Reads a hello, and gives the connection to whom it is for.
    fn hear_stranger(&mut self, index: usize) -> Option<Stop> {
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let stranger = self.strangers.get_mut(index)?;
        let received: &[u8] =
            match rustix::net::recv(&stranger.connection, &mut space, RecvFlags::DONTWAIT) {
                Ok(((received, _), _)) => received,
                Err(Errno::AGAIN | Errno::INTR) => return None,
                Err(_) => &[],
            };
        stranger.hello.push(received);
        let hello = stranger.hello.take::<Hello>();
        if matches!(hello, Ok(None)) && !received.is_empty() {
            return None;
        }
        let Stranger {
            connection,
            hello: buffer,
        } = self.strangers.swap_remove(index);
        match hello {
            Ok(Some(Hello {
                magic: MAGIC,
                version: VERSION,
                role: Role::Stream { process, kind },
            })) => {
                self.take_stream(
                    process,
                    kind,
                    Connection {
                        socket: connection,
                        received: buffer.into_rest(),
                    },
                );
                None
            }
            Ok(Some(Hello {
                magic: MAGIC,
                version,
                role: Role::Control,
            })) => self.take_control(connection, version, &buffer.into_rest()),
            // Nobody whom the agent knows: the connection is closed.
            _ => None,
        }
    }

    fn take_stream(&mut self, id: protocol::Process, kind: StreamKind, connection: Connection) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.connect(kind, connection);
        } else if self.unclaimed.len() < MAX_WAITING {
            self.unclaimed.push((id, kind, connection));
        }
    }

    fn take_control(&mut self, connection: OwnedFd, version: u16, received: &[u8]) -> Option<Stop> {
        if self.control.is_some() {
            return None;
        }
        let mut control = Control {
            connection,
            requests: FrameBuffer::new(MAX_REQUEST_BYTES),
            is_understood: version == VERSION,
            unsent: Vec::new(),
        };
        // A host of another version learns the agent's, and hangs up.
        control.report(&Report::Welcome { version: VERSION });
        control.requests.push(received);
        self.control = Some(control);
        self.serve_requests()
    }

    /// Reads from the control connection.
    fn serve_control(&mut self, result: PollFlags) -> Option<Stop> {
        let control = self.control.as_mut()?;
        if !result.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return None;
        }
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        match rustix::net::recv(&control.connection, &mut space, RecvFlags::DONTWAIT) {
            Ok(((&mut [], _), _)) => Some(Stop::HungUp),
            Ok(((received, _), _)) => {
                if control.is_understood {
                    control.requests.push(received);
                }
                self.serve_requests()
            }
            Err(Errno::AGAIN | Errno::INTR) => None,
            Err(_) => Some(Stop::HungUp),
        }
    }

    /// Serves all requests that are complete.
    fn serve_requests(&mut self) -> Option<Stop> {
        loop {
            let control = self
                .control
                .as_mut()
                .filter(|control| control.is_understood)?;
            match control.requests.take() {
                Ok(Some(Request::PowerOff)) => return Some(Stop::PowerOff),
                Ok(Some(Request::Freeze { at_fork_point })) => {
                    if let Some(stop) = self.freeze(at_fork_point) {
                        return Some(stop);
                    }
                }
                Ok(Some(request)) => self.serve(request),
                Ok(None) => return None,
                Err(_) => return Some(Stop::Nonsense),
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Create(create) => self.create(*create),
            Request::Exec(exec) => self.exec(*exec),
            Request::Files(files) => self.files(*files),
            Request::Start(id) => match self.processes.get_mut(&id) {
                Some(process) => process.request_start(),
                None => self.report(&Report::NotStarted {
                    process: id,
                    failure: no_such_process(),
                }),
            },
            Request::Signal { process, signal } => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.signal(signal);
                }
            }
            Request::Stop(process) => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.stop();
                }
            }
            Request::Resize { process, size } => {
                if let Some(process) = self.processes.get_mut(&process) {
                    process.resize(size);
                }
            }
            Request::Attach(id) => self.attach(id),
            Request::Ask {
                number,
                container,
                question,
            } => self.ask(number, container, question),
            Request::PowerOff | Request::Freeze { .. } => (),
        }
    }

    /// Lets the machine be frozen while nothing runs in the containers. Comes back in this machine, and in each copy of it.
    fn freeze(&mut self, at_fork_point: bool) -> Option<Stop> {
        let Vmm { doorbell, mailbox } = self.vmm?;
        let mut forkable = self.processes.values_mut();
        if at_fork_point && !forkable.any(Process::is_at_fork_point) {
            doorbell.ring(protocol::DOORBELL_NO_FORK_POINT);
            return None;
        }
        let mut processes = self.processes.values();
        if self.processes.is_empty() || !processes.all(|process| process.freeze(true)) {
            self.thaw();
            doorbell.ring(protocol::DOORBELL_CANNOT_FREEZE);
            return None;
        }
        self.processes.values_mut().for_each(Process::flush);
        doorbell.ring(protocol::DOORBELL_FREEZE);
        let generation = match mailbox.take::<Handover>() {
            Ok(None) => {
                self.thaw();
                0
            }
            // From here on, this is a copy, and its containers wait for their new host.
            Ok(Some(handover)) => {
                if clone::become_another(&handover).is_err() || connections::reset().is_err() {
                    return Some(Stop::NotAnother);
                }
                self.lose_host();
                doorbell.ring(protocol::DOORBELL_HANDED_OVER);
                handover.generation
            }
            Err(_) => return Some(Stop::Nonsense),
        };
        if at_fork_point {
            let processes = self.processes.values_mut();
            processes.for_each(|process| process.leave_fork_point(generation));
        }
        None
    }

    /// Lets all that was stopped go on.
    fn thaw(&self) {
        for process in self.processes.values() {
            process.freeze(false);
        }
    }

    /// Forgets the connections of a host that this machine is not on.
    fn lose_host(&mut self) {
        self.control = None;
        self.strangers.clear();
        self.unclaimed.clear();
        self.samples.clear();
        self.processes.values_mut().for_each(Process::detach);
    }

    /// Takes over a process as another host's.
    fn attach(&mut self, id: protocol::Process) {
        self.thaw();
        let report = self.processes.get(&id).and_then(Process::attach);
        self.report(&report.unwrap_or_else(|| Report::NotStarted {
            process: id,
            failure: no_such_process(),
        }));
    }

    fn create(&mut self, create: Create) {
        let asked = Instant::now();
        let id = create.process;
        // The id may be that of one that is over.
        self.clean_up_processes();
        if self.processes.contains_key(&id) {
            return self.report(&Report::NotStarted {
                process: id,
                failure: exists_already(),
            });
        }
        let process = Plan::new(create).map(|plan| Process::new(id, plan, asked));
        self.take_process(id, process);
    }

    /// Makes another process of a container.
    fn exec(&mut self, exec: Exec) {
        let asked = Instant::now();
        let id = exec.process;
        if self.processes.contains_key(&id) {
            return self.report(&Report::NotStarted {
                process: id,
                failure: exists_already(),
            });
        }
        let process = match self.first_in(id.container) {
            None => Err(container::ended()),
            Some(first) => {
                let Plan {
                    container, process, ..
                } = first.plan();
                ProcessPlan::joining(exec, process.seccomp.as_ref())
                    .map(|process| Process::joining(id, Rc::clone(container), process, asked))
            }
        };
        self.take_process(id, process);
    }

    /// Makes a process that does something with a container's files.
    fn files(&mut self, files: Files) {
        let asked = Instant::now();
        let Files { process: id, task } = files;
        let process = match (
            self.processes.contains_key(&id),
            self.first_in(id.container),
        ) {
            (true, _) => {
                return self.report(&Report::NotStarted {
                    process: id,
                    failure: exists_already(),
                });
            }
            (false, None) => Err(container::ended()),
            (false, Some(first)) => {
                let container = Rc::clone(&first.plan().container);
                Ok(Process::with_files(id, container, task, asked))
            }
        };
        self.take_process(id, process);
    }

    /// The first process of a container.
    fn first_in(&mut self, container: ContainerId) -> Option<&mut Process> {
        let mut of_container = self
            .processes
            .iter_mut()
            .filter(|(id, _)| id.container == container);
        let first = of_container.find(|(_, process)| process.part() == Part::First);
        first.map(|(_, process)| process)
    }

    /// Answers what can be answered at once, and begins with what takes a while.
    fn ask(&mut self, number: u32, container: ContainerId, question: Question) {
        let samples = self.samples.len();
        let first = self.first_in(container);
        let Some((first, cgroup)) = first.and_then(Process::running_cgroup) else {
            return self.answer(number, Answer::Failed(NOT_RUNNING.to_owned()));
        };
        match question {
            Question::Usage { .. } if samples >= MAX_SAMPLES => {
                let message = "too much is asked at once".to_owned();
                self.answer(number, Answer::Failed(message));
            }
            Question::Usage { over_ms } => {
                let began = Instant::now();
                let over = Duration::from_millis(over_ms.min(MAX_SAMPLE_MS).into());
                let sample = Sample {
                    number,
                    container,
                    cpu_time_us: cgroup.cpu_time_us().unwrap_or(0),
                    began,
                    ends: began + over,
                };
                self.samples.push(sample);
            }
            Question::Processes => {
                for part in processes::list(first, cgroup) {
                    self.answer(number, Answer::Processes(part));
                }
            }
            Question::Grow => {
                let grown = container::volumes::grow().map(Answer::Grown);
                self.answer(
                    number,
                    grown.unwrap_or_else(|failure| Answer::Failed(failure.to_string())),
                );
            }
            Question::Limit { resources } => {
                let limited = Resources::parse(&resources)
                    .and_then(|resources| cgroup.limit(&resources))
                    .map(|()| Answer::Limited);
                self.answer(
                    number,
                    limited.unwrap_or_else(|failure| Answer::Failed(failure.to_string())),
                );
            }
        }
    }

    /// Answers the questions whose while is over.
    fn finish_samples(&mut self) {
        let now = Instant::now();
        let finished: Vec<Sample> = self
            .samples
            .extract_if(.., |sample| sample.ends <= now)
            .collect();
        for sample in finished {
            let first = self.first_in(sample.container);
            let answer = match first.and_then(Process::running_cgroup) {
                None => Answer::Failed(NOT_RUNNING.to_owned()),
                Some((_, cgroup)) => {
                    let cpu_time_us = cgroup.cpu_time_us().unwrap_or(0);
                    let over = sample.began.elapsed().as_micros();
                    Answer::Usage(Usage {
                        cpu_us: cpu_time_us.saturating_sub(sample.cpu_time_us),
                        over_us: u64::try_from(over).unwrap_or(u64::MAX),
                        ..cgroup.usage()
                    })
                }
            };
            self.answer(sample.number, answer);
        }
    }

    fn answer(&mut self, number: u32, answer: Answer) {
        let answer = answer.bounded();
        self.report(&Report::Answer { number, answer });
    }

    /// Takes over a process that was made, with the streams that came before it.
    fn take_process(&mut self, id: protocol::Process, process: Result<Process, StartFailure>) {
        match process {
            Ok(mut process) => {
                for (_, kind, connection) in
                    self.unclaimed.extract_if(.., |(owner, _, _)| *owner == id)
                {
                    process.connect(kind, connection);
                }
                self.processes.insert(id, process);
            }
            Err(failure) => {
                self.unclaimed.retain(|(owner, _, _)| *owner != id);
                self.report(&Report::NotStarted {
                    process: id,
                    failure: failure.bounded(),
                });
            }
        }
    }

    /// Takes the exits of all children that ended, the orphans that PID 1 inherits among them.
    fn reap(&mut self) {
        // The signal only wakes; how many children it stands for is for wait to say.
        let mut information = [0; 128];
        while rustix::io::read(&self.children, &mut information).is_ok() {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            self.hear_makers();
            self.processes
                .values_mut()
                .for_each(|process| process.reap(pid, status));
        }
    }

    /// A child may be a process that nobody has heard of yet. Its maker has told of it before it could end.
    fn hear_makers(&mut self) {
        let being_made = self
            .processes
            .iter()
            .filter(|(_, process)| process.is_being_made());
        let ids: Vec<protocol::Process> = being_made.map(|(id, _)| *id).collect();
        for id in ids {
            self.with_process(id, Process::hear_launch);
        }
    }

    /// Starts what is ready to start, reports what has ended: the first process of a container, after which the host may hang up,
    /// last.
    fn advance_processes(&mut self) {
        let ids: Vec<protocol::Process> = self.processes.keys().rev().copied().collect();
        for id in ids {
            self.launch_if_ready(id);
            self.with_process(id, Process::report_end);
        }
    }

    fn launch_if_ready(&mut self, id: protocol::Process) {
        let process = self.processes.get(&id);
        let Some(part) = process
            .filter(|process| process.is_ready())
            .map(Process::part)
        else {
            return;
        };
        match part {
            Part::First => {
                let mut staged = self.staged.take();
                self.with_process(id, |process| process.launch(&mut staged));
                self.staged = staged;
            }
            Part::Joined => {
                let container = self.first_in(id.container).map(|first| first.joint());
                let container = container.unwrap_or_else(|| Err(container::ended()));
                self.with_process(id, |process| process.join(container));
            }
        }
    }

    /// Cleans up behind what has been over for a while.
    fn tidy(&mut self) {
        match self.tidy_at {
            Some(moment) if moment <= Instant::now() => self.clean_up_processes(),
            None if self.processes.values().any(Process::is_over) => {
                self.tidy_at = Some(Instant::now() + TIDY_AFTER);
            }
            _ => (),
        }
    }

    /// Lets go of the processes that are over.
    fn clean_up_processes(&mut self) {
        self.tidy_at = None;
        for (_, process) in self
            .processes
            .extract_if(.., |_, process| process.is_over())
        {
            process.clean_up();
        }
    }

    /// Lets a process do something, and sends the report that comes of it.
    fn with_process(
        &mut self,
        id: protocol::Process,
        act: impl FnOnce(&mut Process) -> Option<Report>,
    ) {
        if let Some(report) = self.processes.get_mut(&id).and_then(act) {
            self.report(&report);
        }
    }

    fn report(&mut self, report: &Report) {
        if let Some(control) = &mut self.control {
            control.report(report);
        }
    }
}

impl Control {
    fn report(&mut self, report: &Report) {
        // A report is far below the limit: its texts are bounded.
        let _ = protocol::encode(report, MAX_REPORT_BYTES, &mut self.unsent);
    }

    /// Sends what the connection takes. A connection that ended is noticed by the next read.
    fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match rustix::net::send(
                &self.connection,
                &self.unsent,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::INTR) => (),
                Err(_) => return,
            }
        }
    }
}
