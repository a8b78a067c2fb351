//! A process of a container, from its creation to the report of its exit.
//!
//! ```text
//! Created --start, streams connected--> Launching --exec--> Running --reaped--> Ended --output sent--> reported
//!                                           '-----failed-----------------------------------------------^
//! ```

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use protocol::{
    Exit, ExitStatus, FailureKind, FilesTask, Names, Report, StartFailure, StreamKind, WindowSize,
};
use rustix::event::PollFlags;
use rustix::process::{Pid, Signal, WaitStatus};
use rustix::pty::OpenptFlags;

use crate::container::channel::{LaunchChannel, LaunchNews, Layers};
use crate::container::hooks::{Files, Moment, Runner};
use crate::container::launch::{self, Launched};
use crate::container::{
    self, Cgroup, ContainerPlan, Freezer, Frozen, Joint, Namespaces, Part, Plan, ProcessPlan,
    Released, Staged,
};
use crate::fork_point::ForkPoint;
use crate::pump::{Input, Interests, Output};
use crate::step::failure;
use crate::sys::{self, OneProcessor};

/// How many signals wait for a process that is not its program yet: as many as there are signals, more are dropped.
const MAX_PENDING: usize = 64;

/// How long the streams of a process that joined its container may stay open after its end: what it left behind may hold them for
/// ever. As docker's.
const STREAMS_PATIENCE: Duration = Duration::from_secs(2);

/// What asks a process to end that joined its container.
const SIGTERM: u8 = 15;

/// How a process ended that nobody saw end.
const KILLED: ExitStatus = ExitStatus::Signal(9);

/// A process that the host asked for.
#[derive(Debug)]
pub(crate) struct Process {
    id: protocol::Process,
    /// When the host asked for it.
    asked: Instant,
    part: Part,
    plan: Plan,
    state: State,
    connections: Connections,
    /// What was sent to it before it was its program. If SIGKILL is among them, it must not start.
    pending: Vec<Signal>,
    cgroup: Option<Cgroup>,
    namespaces: Option<Namespaces>,
    terminal: Option<OwnedFd>,
    /// The side of its terminal that programs have, while it is there: it may close all of its own and open them anew, as systemd does.
    terminal_side: Option<OwnedFd>,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    /// Its container's files, while hooks may need them.
    files: Option<Files>,
    /// Hooks that run.
    runner: Option<Runner>,
    /// Where it waits to be duplicated, once somebody has asked.
    fork_point: Option<ForkPoint>,
    /// What its container's root is made of, of a first process.
    layers: Option<Rc<Layers>>,
    /// What it does with its container's files, if it is there for that.
    task: Option<FilesTask>,
    /// Its container, if that is to stand still for as long as it runs.
    frozen: Option<Rc<Frozen>>,
    /// What stops its container, of a first process: for all that join it.
    freezer: Freezer,
}

#[derive(Debug)]
enum State {
    /// Waits for the start and for its streams.
    Created { start_requested: bool },
    /// Exists, and builds its container. It may already have ended.
    Launching {
        pid: Pid,
        /// Whether that is a maker's, whose end is none of the process.
        is_maker: bool,
        channel: LaunchChannel,
        ended: Option<ExitStatus>,
        _processor: Option<OneProcessor>,
    },
    /// Is its program.
    Running { pid: Pid },
    /// Was reaped; output may be under way.
    Ended { status: ExitStatus, at: Instant },
    /// Did not start, and is not reported yet: its `poststop` hooks come first, and its child's end before them.
    Failing {
        child: Option<Pid>,
        failure: StartFailure,
    },
    /// Is gone with its container; its `poststop` hooks run.
    Gone { report: Report },
    /// All was said. A child that did not become the program may still be on its way out.
    Reported { child: Option<Pid> },
}

/// The connections of streams, until a pump takes them over.
#[derive(Debug, Default)]
struct Connections {
    stdin: Option<Connection>,
    stdout: Option<Connection>,
    stderr: Option<Connection>,
}

/// The connection of a stream.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    /// What came with the hello.
    pub(crate) received: Vec<u8>,
}

impl Process {
    /// Makes the first process of a container, which waits for its start.
    pub(crate) fn new(id: protocol::Process, plan: Plan, asked: Instant) -> Self {
        Self::of(id, Part::First, plan, asked)
    }

    /// Makes another process of a container, which waits for its start.
    pub(crate) fn joining(
        id: protocol::Process,
        container: Rc<ContainerPlan>,
        process: ProcessPlan,
        asked: Instant,
    ) -> Self {
        let plan = Plan {
            container,
            process,
            stop_signal: SIGTERM,
            network: None,
            names: Names::default(),
        };
        Self::of(id, Part::Joined, plan, asked)
    }

    /// Makes a process that does something with a container's files, and waits for its start.
    pub(crate) fn with_files(
        id: protocol::Process,
        container: Rc<ContainerPlan>,
        task: FilesTask,
        asked: Instant,
    ) -> Self {
        let process = ProcessPlan::of_agent(task.streams());
        Self {
            task: Some(task),
            ..Self::joining(id, container, process, asked)
        }
    }

    fn of(id: protocol::Process, part: Part, plan: Plan, asked: Instant) -> Self {
        Self {
            id,
            asked,
            part,
            plan,
            state: State::Created {
                start_requested: false,
            },
            connections: Connections::default(),
            pending: Vec::new(),
            cgroup: None,
            namespaces: None,
            terminal: None,
            terminal_side: None,
            stdin: None,
            stdout: None,
            stderr: None,
            files: None,
            runner: None,
            fork_point: None,
            layers: None,
            task: None,
            frozen: None,
            freezer: Freezer::default(),
        }
    }

    /// Takes the connection of a stream. One that was not declared, or that is there already, is closed.
    pub(crate) fn connect(&mut self, kind: StreamKind, connection: Connection) {
        if !matches!(self.state, State::Created { .. }) {
            return self.attach_stream(kind, connection);
        }
        let declared = self.plan.process.streams;
        let (is_declared, slot) = match kind {
            StreamKind::Stdin => (declared.stdin, &mut self.connections.stdin),
            StreamKind::Stdout => (declared.stdout, &mut self.connections.stdout),
            StreamKind::Stderr => (declared.stderr, &mut self.connections.stderr),
        };
        if is_declared && slot.is_none() {
            *slot = Some(connection);
        }
    }

    /// Goes on with a stream whose connection was lost.
    fn attach_stream(&mut self, kind: StreamKind, connection: Connection) {
        let output = match kind {
            StreamKind::Stdin => {
                if let Some(pump) = &mut self.stdin {
                    pump.attach(connection);
                }
                return;
            }
            StreamKind::Stdout => &mut self.stdout,
            StreamKind::Stderr => &mut self.stderr,
        };
        if let Some(pump) = output {
            pump.attach(connection);
        }
    }

    /// The host is another one from now on: its connections will come.
    pub(crate) fn detach(&mut self) {
        self.stdin.iter_mut().for_each(Input::detach);
        self.stdout.iter_mut().for_each(Output::detach);
        self.stderr.iter_mut().for_each(Output::detach);
    }

    /// What the new host is told.
    pub(crate) fn attach(&self) -> Option<Report> {
        match self.state {
            State::Running { .. } | State::Ended { .. } => Some(Report::Started {
                process: self.id,
                after_us: 0,
            }),
            _ => None,
        }
    }

    /// What it is in its container.
    pub(crate) fn part(&self) -> Part {
        self.part
    }

    /// What it is made by, for those that join its container.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its container, for a process that joins it.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub(crate) fn joint(&self) -> Result<Joint, StartFailure> {
        let first = self.program().ok_or_else(container::ended)?;
        Joint::of(
            first,
            self.cgroup.as_ref(),
            self.freezer.clone(),
            self.layers.clone(),
        )
    }

    /// Stops its container, or lets it go on. Returns whether it does; only where the first process is its program, and no other is
    /// there, whose host would not know of it.
    pub(crate) fn freeze(&self, is_frozen: bool) -> bool {
        if self.part == Part::Joined {
            return matches!(self.state, State::Reported { .. });
        }
        let cgroup = self.cgroup.as_ref();
        self.program().is_some() && cgroup.is_some_and(|cgroup| cgroup.freeze(is_frozen))
    }

    /// Its container's cgroup, while it is its program.
    pub(crate) fn running_cgroup(&mut self) -> Option<(Pid, &mut Cgroup)> {
        let first = self.program()?;
        Some((first, self.cgroup.as_mut()?))
    }

    /// Sends on what it has written so far.
    pub(crate) fn flush(&mut self) {
        self.stdout.iter_mut().for_each(Output::flush);
        self.stderr.iter_mut().for_each(Output::flush);
    }

    /// Whether its container waits at a fork point.
    pub(crate) fn is_at_fork_point(&mut self) -> bool {
        let known = self.fork_point.take().filter(ForkPoint::is_awaited);
        self.fork_point = known.or_else(|| ForkPoint::of(self.program()?));
        self.fork_point.is_some()
    }

    /// Lets what waits at a fork point go on as this generation.
    pub(crate) fn leave_fork_point(&mut self, generation: u32) {
        if let Some(fork_point) = self.fork_point.take() {
            fork_point.tell(generation);
        }
    }

    /// Its process id while it is its program.
    fn program(&self) -> Option<Pid> {
        match self.state {
            State::Running { pid } => Some(pid),
            _ => None,
        }
    }

    /// Notes that the host wants the process to start.
    pub(crate) fn request_start(&mut self) {
        if let State::Created { start_requested } = &mut self.state {
            *start_requested = true;
        }
    }

    /// Whether it is to start, and all its streams are there.
    pub(crate) fn is_ready(&self) -> bool {
        let State::Created {
            start_requested: true,
        } = self.state
        else {
            return false;
        };
        let (declared, there) = (self.plan.process.streams, &self.connections);
        let is_there =
            |declared: bool, connection: &Option<Connection>| !declared || connection.is_some();
        self.is_killed()
            || (is_there(declared.stdin, &there.stdin)
                && is_there(declared.stdout, &there.stdout)
                && is_there(declared.stderr, &there.stderr))
    }

    /// Whether it must not start any more.
    fn is_killed(&self) -> bool {
        self.pending.contains(&Signal::KILL)
    }

    /// Launches a first process that is ready, in the container that is staged if it is its own. Reports only a failure.
    pub(crate) fn launch(&mut self, staged: &mut Option<Staged>) -> Option<Report> {
        self.begin(|process| {
            process.plan.prepare_machine(staged.as_ref())?;
            match process.release(staged)? {
                Some(launched) => Ok(launched),
                None => {
                    // Kept before the launch, so that it is removed also if that fails.
                    let cgroup = process.cgroup.insert(process.plan.container.cgroup.make()?);
                    launch::launch(&process.plan, cgroup)
                }
            }
        })
    }

    /// Launches a process that is ready in a container that it joins. Reports only a failure.
    pub(crate) fn join(&mut self, container: Result<Joint, StartFailure>) -> Option<Report> {
        self.begin(|process| {
            let (joint, plan) = (container?, &process.plan);
            let Some(task) = &process.task else {
                return launch::join(&plan.container, &plan.process, &joint);
            };
            if let FilesTask::Layer { pauses: true } = task {
                let step = "stopping what runs in the container";
                process.frozen = Some(joint.freeze().ok_or_else(|| {
                    failure(FailureKind::Failed, step, "it does not come to a stop")
                })?);
            }
            launch::files(&plan.container, &plan.process, task, &joint)
        })
    }

    fn begin(
        &mut self,
        launch: impl FnOnce(&mut Self) -> Result<Launched, StartFailure>,
    ) -> Option<Report> {
        if self.is_killed() {
            return self.fail(failure(
                FailureKind::Failed,
                "starting the process",
                "it was killed before it started",
            ));
        }
        match launch(self) {
            Ok(launched) => {
                self.watch(launched);
                None
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Follows a process on its way to its program.
    fn watch(&mut self, launched: Launched) {
        self.state = State::Launching {
            pid: launched.pid,
            is_maker: launched.is_maker,
            channel: launched.channel,
            ended: None,
            _processor: launched.processor,
        };
        let Connections {
            stdin,
            stdout,
            stderr,
        } = &mut self.connections;
        let stdio = launched.stdio;
        if self.plan.process.terminal.is_none() {
            self.stdin = stdio
                .stdin
                .zip(stdin.take())
                .map(|(sink, source)| Input::new(source, sink, false));
            self.stdout = stdio
                .stdout
                .zip(stdout.take())
                .map(|(source, sink)| Output::new(source, sink));
            self.stderr = stdio
                .stderr
                .zip(stderr.take())
                .map(|(source, sink)| Output::new(source, sink));
        }
    }

    /// Launches the process in the container that is staged. One that is another's, or of no use, makes room.
    fn release(&mut self, staged: &mut Option<Staged>) -> Result<Option<Launched>, StartFailure> {
        let Some(staged) = staged.take() else {
            return Ok(None);
        };
        if !staged.is(&self.plan.container) {
            staged.discard();
            return Ok(None);
        }
        match staged.release(&self.plan.process)? {
            Ok(Released {
                launched,
                cgroup,
                namespaces,
                layers,
            }) => {
                self.cgroup = Some(cgroup);
                self.namespaces = Some(namespaces);
                self.layers = layers.map(Rc::new);
                Ok(Some(launched))
            }
            Err(staged) => {
                staged.discard();
                Ok(None)
            }
        }
    }

    /// Whether it is made by a process that was only there for this, and has not said yet which it is.
    pub(crate) fn is_being_made(&self) -> bool {
        matches!(self.state, State::Launching { is_maker: true, .. })
    }

    /// The channel on which news of the launch come.
    pub(crate) fn launch_channel(&self) -> Option<&LaunchChannel> {
        match &self.state {
            State::Launching { channel, .. } => Some(channel),
            _ => None,
        }
    }

    /// Takes the news of the launch. Reports what came of it, once that is known.
    pub(crate) fn hear_launch(&mut self) -> Option<Report> {
        loop {
            let State::Launching {
                pid,
                is_maker,
                channel,
                ended,
                ..
            } = &mut self.state
            else {
                return None;
            };
            match channel.receive()? {
                LaunchNews::Made(process) => {
                    (*pid, *is_maker) = (process, false);
                    // If its end was noticed before its making was told, it was killed: until then it waits. What it says itself
                    // is heard later, so that a child that was waited for since is known as this process.
                    let is_there = rustix::process::test_kill_process(process).is_ok();
                    *ended = (!is_there).then_some(KILLED);
                    return None;
                }
                LaunchNews::Waits => {
                    let pid = *pid;
                    if let Err(failure) = self.do_agents_part(pid) {
                        return self.give_up(failure);
                    }
                }
                LaunchNews::Layers(layers) => self.layers = Some(Rc::new(layers)),
                LaunchNews::Terminal(terminal) => self.use_terminal(terminal),
                LaunchNews::HungUp if *is_maker || self.runner.is_some() => {
                    let step = match self.part {
                        Part::First => "making the container",
                        Part::Joined => "joining the container",
                    };
                    return self.give_up(failure(
                        FailureKind::Failed,
                        step,
                        "its process was killed",
                    ));
                }
                LaunchNews::HungUp => {
                    let (pid, ended) = (*pid, *ended);
                    self.state = ended.map_or(State::Running { pid }, State::ended);
                    return self.begin_hooks_of_start(pid);
                }
                LaunchNews::Failed(failure) => return self.fail(failure),
                // Only one that is made ahead says so, to whom it is made for; and a runner of hooks.
                LaunchNews::Built | LaunchNews::Done => (),
            }
        }
    }

    /// Does what a process waits for that builds its container, and lets it go on once that is done.
    fn do_agents_part(&mut self, pid: Pid) -> Result<(), StartFailure> {
        let container = &self.plan.container;
        if container.namespaces.has_user() {
            self.plan.process.grant(pid)?;
        }
        if self.part == Part::First && container.hooks.needs_runner() {
            let files = self.files.insert(Files::of(pid)?);
            self.runner = Runner::start(&container.hooks, Moment::Create, files, Some(pid))?;
        }
        if self.runner.is_none() {
            self.let_go_on();
        }
        Ok(())
    }

    fn let_go_on(&self) {
        if let State::Launching { channel, .. } = &self.state {
            channel.go_on();
        }
    }

    /// Reports the start, unless hooks come before that.
    fn begin_hooks_of_start(&mut self, pid: Pid) -> Option<Report> {
        let started = match &self.files {
            None => Ok(None),
            Some(files) => {
                let hooks = &self.plan.container.hooks;
                Runner::start(hooks, Moment::Poststart, files, Some(pid))
            }
        };
        match started {
            Ok(None) => Some(self.started()),
            Ok(runner) => {
                self.runner = runner;
                None
            }
            Err(failure) => self.give_up(failure),
        }
    }

    fn started(&mut self) -> Report {
        self.send_pending();
        self.cgroup.iter_mut().for_each(Cgroup::begin_counting_io);
        let after = self.asked.elapsed().as_micros();
        Report::Started {
            process: self.id,
            after_us: u32::try_from(after).unwrap_or(u32::MAX),
        }
    }

    /// The channel on which news of hooks come.
    pub(crate) fn hook_channel(&self) -> Option<&LaunchChannel> {
        self.runner.as_ref().map(|runner| &runner.channel)
    }

    /// Takes the news of hooks. Reports what comes after them.
    pub(crate) fn hear_hooks(&mut self) -> Option<Report> {
        let news = self.runner.as_ref()?.channel.receive()?;
        let moment = self.runner.take()?.moment;
        let result = match news {
            LaunchNews::Done => Ok(()),
            LaunchNews::Failed(failure) => Err(failure),
            _ => Err(failure(
                FailureKind::Failed,
                "running hooks",
                "who ran them was killed",
            )),
        };
        if let Err(failure) = result {
            if moment == Moment::Create {
                return self.give_up(failure);
            }
            // runtime.md, "Lifecycle": all goes on as if it had succeeded.
            crate::warn(&failure);
        }
        match moment {
            Moment::Create => {
                self.let_go_on();
                None
            }
            Moment::Poststart => Some(self.started()),
            Moment::Poststop => {
                let gone = State::Reported { child: None };
                match std::mem::replace(&mut self.state, gone) {
                    State::Gone { report } => Some(report),
                    _ => None,
                }
            }
        }
    }

    /// Ends the process before anybody was told that it runs, whatever it is doing.
    fn give_up(&mut self, failure: StartFailure) -> Option<Report> {
        if let Some(runner) = self.runner.take() {
            runner.kill();
        }
        self.kill();
        self.fail(failure)
    }

    /// Kills it, whatever it is: a first process with its whole container.
    fn kill(&self) {
        match (self.part, &self.state) {
            (Part::First, _) => self.cgroup.iter().for_each(Cgroup::kill),
            (
                Part::Joined,
                State::Launching {
                    pid, ended: None, ..
                }
                | State::Running { pid },
            ) => kill(*pid, Signal::KILL),
            (Part::Joined, _) => (),
        }
    }

    /// Joins the terminal's controlling side with the connections.
    fn use_terminal(&mut self, terminal: OwnedFd) {
        // Input that the process does not read must not keep the agent waiting. If this fails, it may; there is no reason
        // why it should.
        let _ = rustix::io::ioctl_fionbio(&terminal, true);
        let duplicate = || rustix::io::fcntl_dupfd_cloexec(&terminal, 0).ok();
        let (stdin, stdout) = (
            self.connections.stdin.take(),
            self.connections.stdout.take(),
        );
        self.stdin = stdin
            .zip(duplicate())
            .map(|(source, sink)| Input::new(source, sink, true));
        self.stdout = duplicate().map(|source| match stdout {
            Some(sink) => Output::new(source, sink),
            None => Output::discarding(source),
        });
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        // One that has ended already would never let go of it.
        if let State::Launching { ended: None, .. } = self.state {
            self.terminal_side = rustix::pty::ioctl_tiocgptpeer(&terminal, flags).ok();
        }
        self.terminal = Some(terminal);
    }

    /// What its streams wait for.
    pub(crate) fn interests(&self) -> impl Iterator<Item = (StreamKind, Interests<'_>)> {
        let stdin = self
            .stdin
            .as_ref()
            .map(|pump| (StreamKind::Stdin, pump.interests()));
        let stdout = self
            .stdout
            .as_ref()
            .map(|pump| (StreamKind::Stdout, pump.interests()));
        let stderr = self
            .stderr
            .as_ref()
            .map(|pump| (StreamKind::Stderr, pump.interests()));
        [stdin, stdout, stderr].into_iter().flatten()
    }

    /// Moves a stream's bytes after a result for one of its two [`Interests`].
    pub(crate) fn advance(&mut self, kind: StreamKind, side: usize, result: PollFlags) {
        let results = if side == 0 {
            [result, PollFlags::empty()]
        } else {
            [PollFlags::empty(), result]
        };
        match kind {
            StreamKind::Stdin => self.stdin.iter_mut().for_each(|pump| pump.advance(results)),
            StreamKind::Stdout => self
                .stdout
                .iter_mut()
                .for_each(|pump| pump.advance(results)),
            StreamKind::Stderr => self
                .stderr
                .iter_mut()
                .for_each(|pump| pump.advance(results)),
        }
        let is_unseen = || self.stdout.as_ref().is_some_and(Output::is_done);
        let plan = &self.plan.process;
        if self.part == Part::Joined
            && plan.terminal.is_some()
            && plan.streams.stdout
            && is_unseen()
        {
            // Nobody looks at its terminal any more: letting go of it is the hang-up.
            self.terminal = None;
            self.terminal_side = None;
            self.stdin = None;
        }
    }

    /// Ends the process before it began. Its child, if there is one, has said so and exits by itself. Reports that, unless hooks
    /// come first.
    fn fail(&mut self, failure: StartFailure) -> Option<Report> {
        let child = match self.state {
            State::Launching {
                pid, ended: None, ..
            }
            | State::Running { pid } => Some(pid),
            _ => None,
        };
        self.stdin = None;
        self.stdout = None;
        self.stderr = None;
        self.frozen = None;
        self.layers = None;
        self.connections = Connections::default();
        // Only what was created is deleted.
        if self.files.is_some() {
            self.state = State::Failing { child, failure };
            return None;
        }
        self.state = State::Reported { child };
        Some(self.not_started(failure))
    }

    fn not_started(&self, failure: StartFailure) -> Report {
        Report::NotStarted {
            process: self.id,
            failure: failure.bounded(),
        }
    }

    /// Takes an exit that was reaped, if it is this process's.
    pub(crate) fn reap(&mut self, pid: Pid, wait_status: WaitStatus) {
        match &mut self.state {
            State::Launching {
                pid: own, ended, ..
            } if *own == pid => *ended = Some(exit_status(wait_status)),
            State::Running { pid: own } if *own == pid => {
                self.state = State::ended(exit_status(wait_status));
            }
            State::Reported { child } | State::Failing { child, .. } if *child == Some(pid) => {
                *child = None;
                return;
            }
            _ => return,
        }
        self.terminal_side = None;
        self.frozen = None;
        self.layers = None;
        if self.part == Part::First && !self.plan.container.namespaces.makes_pid() {
            // What it started would hold its output open, and outlive its container.
            self.cgroup.iter().for_each(Cgroup::kill);
        }
    }

    /// Reports the end, once all output was sent, and all hooks have run.
    pub(crate) fn report_end(&mut self) -> Option<Report> {
        if self.runner.is_some() {
            return None;
        }
        let report = match &self.state {
            State::Ended { status, .. } => {
                let is_sent = |output: &Option<Output>| output.as_ref().is_none_or(Output::is_done);
                let is_over = self
                    .deadline()
                    .is_some_and(|deadline| deadline <= Instant::now());
                if !is_over && (!is_sent(&self.stdout) || !is_sent(&self.stderr)) {
                    return None;
                }
                let oom_killed = self.cgroup.as_ref().is_some_and(Cgroup::was_oom_killed);
                let exit = Exit {
                    status: *status,
                    oom_killed,
                };
                Report::Exited {
                    process: self.id,
                    exit,
                }
            }
            State::Failing {
                child: None,
                failure,
            } => self.not_started(failure.clone()),
            _ => return None,
        };
        self.stdin = None;
        if self.part == Part::Joined {
            self.stdout = None;
            self.stderr = None;
            self.terminal = None;
        }
        self.delete(report)
    }

    /// When its end is reported in any case.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match (self.part, &self.state) {
            (Part::Joined, State::Ended { at, .. }) => Some(*at + STREAMS_PATIENCE),
            _ => None,
        }
    }

    /// Gives back the report, unless the container is to go first, and hooks are to run after that.
    fn delete(&mut self, report: Report) -> Option<Report> {
        self.state = State::Reported { child: None };
        let files = self.files.take();
        let hooks = &self.plan.container.hooks;
        let (Some(files), false) = (files, hooks.poststop.is_empty()) else {
            return Some(report);
        };
        self.namespaces = None;
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.remove();
        }
        match Runner::start(hooks, Moment::Poststop, &files, None) {
            Ok(Some(runner)) => {
                self.runner = Some(runner);
                self.state = State::Gone { report };
                None
            }
            Ok(None) => Some(report),
            Err(failure) => {
                crate::warn(&failure);
                Some(report)
            }
        }
    }

    /// Whether it was reported and has left.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.state, State::Reported { child: None })
    }

    /// Lets go of what the container leaves behind.
    pub(crate) fn clean_up(self) {
        drop(self.namespaces);
        if let Some(cgroup) = self.cgroup {
            cgroup.remove();
        }
    }

    /// Sends a signal, or keeps it until the process is its program: before that, process 1 of a namespace would not take
    /// it, except SIGKILL.
    pub(crate) fn signal(&mut self, number: u8) {
        let Some(signal) = sys::signal(number) else {
            return;
        };
        match self.state {
            State::Running { pid } => {
                kill(pid, signal);
                // A hook that hangs is not to keep what was killed.
                if signal == Signal::KILL {
                    self.runner.iter().for_each(Runner::kill);
                }
            }
            State::Launching { ended: None, .. } if signal == Signal::KILL => {
                self.kill();
                self.runner.iter().for_each(Runner::kill);
            }
            State::Created { .. } if signal == Signal::KILL => self.pending = vec![signal],
            State::Created { .. } | State::Launching { ended: None, .. }
                if self.pending.len() < MAX_PENDING =>
            {
                self.pending.push(signal);
            }
            _ => (),
        }
    }

    /// Asks the process to end.
    pub(crate) fn stop(&mut self) {
        self.signal(self.plan.stop_signal);
    }

    /// Sends what was kept, if the process runs.
    fn send_pending(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if let State::Running { pid } = self.state {
            pending.into_iter().for_each(|signal| kill(pid, signal));
        }
    }

    /// Sets the size of the terminal's window, if there is a terminal.
    pub(crate) fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            let _ = rustix::termios::tcsetwinsize(terminal.as_fd(), container::winsize(size));
        }
    }
}

impl State {
    fn ended(status: ExitStatus) -> Self {
        Self::Ended {
            status,
            at: Instant::now(),
        }
    }
}

/// Sends a signal to a process that was not reaped, so that the id is still its own.
fn kill(pid: Pid, signal: Signal) {
    // That it may just have ended is no error.
    let _ = rustix::process::kill_process(pid, signal);
}

/// The failure of a request about a process that does not exist.
pub(crate) fn no_such_process() -> StartFailure {
    failure(
        FailureKind::Failed,
        "starting the process",
        "it was not created",
    )
}

/// The failure of a second creation.
pub(crate) fn exists_already() -> StartFailure {
    failure(
        FailureKind::Failed,
        "creating the process",
        "there is one of these ids already",
    )
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(number(code)),
        (None, Some(signal)) => ExitStatus::Signal(number(signal)),
        (None, None) => ExitStatus::Code(u8::MAX),
    }
}
