//! The monitor: stands between a machine and everybody who wants something of it.
//!
//! It owns the machine's record, its control socket and its VM process, carries the workload's streams and signals, and turns
//! whatever happens into one [`Outcome`]. In the foreground the client is the monitor; with `-d` and `-it` it is a process of its own.
//!
//! ```text
//! main thread       wait for the agent ── AgentLink::run ── outcome
//!                        ▲ end                ▲ events
//! "monitor" thread       └─ signals, control socket
//! ```

mod actions;
mod attachable;
mod health;
mod terminal;
mod threads;
mod waiting;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use protocol::{
    Answer, DeclaredStreams, ExitStatus, FailureKind, Files, FilesTask, Process, ProcessId,
    Question, WindowSize,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use crate::agent_link::{
    AgentLink, Asker, ClientStreams, Connections, Dialer, Event, EventReceiver, EventSender, Job,
    Joining, LinkError, Watcher, WorkloadExit, event_channel,
};
use crate::network::GatewayKeeper;
use crate::outcome::{NotStarted, Outcome};
use crate::plan::FIRST;
use crate::policy::Order;
use crate::process;
use crate::report::{Help, chain};
use crate::state::{
    Action, Answerer, AttachOffer, AttachRequest, Attached, Control, ControlServer, ExecRequest,
    Notes, SessionOffer, SessionTeller, Signal, Status, Timestamp,
};
use crate::vm_process::{ChannelError, End, Report, VmProcess};

use self::actions::Actions;
pub use self::actions::Facts;
pub use self::attachable::Attachable;
pub use self::health::HealthWatch;
pub use self::terminal::{RawTerminal, window_size};
pub use self::threads::Threads;
pub use self::waiting::wait;

/// The signals that are the workload's, as with docker's `--sig-proxy`; SIGWINCH becomes the terminal's new size.
const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Those of them by which a monitor is told to end.
const ENDING: [i32; 3] = [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// How many processes there may be beside the workload's own: each has up to three of the machine's vsock connections
/// (`devices/src/virtio/vsock/queue.rs`), and six of the descriptors of the guest's PID 1, of which Linux gives it 1024.
const MAX_SESSIONS: usize = 128;

/// How much of another process's command is noted.
const MAX_NOTED_COMMAND_BYTES: usize = 4 << 10;

/// How long a VM process whose guest hung up may take to say why.
const LAST_WORD: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// How long a guest whose workload has ended may take to write everything to its disk.
const SYNC_PATIENCE: Duration = Duration::from_secs(60);
/// How long one may take whose workload is killed, with the kill. Shorter than `vmm rm --force` waits.
const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// How much of a dead guest's kernel log is shown.
const LAST_LOG_LINES: usize = 20;
const LAST_LOG_BYTES: u64 = 8 << 10;

/// A run that says nothing about the workload.
#[derive(Debug, Error)]
pub enum MonitorError {
    /// The machine could not be built, or the host failed it.
    #[error("the machine could not run: {reason}")]
    NotBuilt {
        /// The VM process's own words.
        reason: String,
    },
    /// The VM process went without a word.
    #[error("the VM process ended unexpectedly, with {status}")]
    Vanished {
        /// Its exit status or signal.
        status: String,
    },
    /// The channel to the VM process failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The conversation with the agent failed while its machine was well.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The host gives no descriptor or thread.
    #[error("cannot watch the machine")]
    Watch(#[source] io::Error),
}

impl Help for MonitorError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Vanished { .. } => Some(
                "signal 9 with a word in the host's kernel log is want of memory, signal 31 a forbidden system call"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// Signals that arrive at this process from now on are read, not obeyed. Made before the VM process and any thread.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Takes over the signals that are the workload's.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn take() -> Result<Self, MonitorError> {
        process::signal_descriptor(&FORWARDED)
            .map(Self)
            .map_err(MonitorError::Watch)
    }

    /// Takes over the signal of a window's size alone.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor.
    pub fn take_window() -> Result<Self, MonitorError> {
        process::signal_descriptor(&[libc::SIGWINCH])
            .map(Self)
            .map_err(MonitorError::Watch)
    }

    /// Takes the next signal that has come.
    #[must_use]
    pub fn next(&self) -> Option<u8> {
        process::next_signal(&self.0).unwrap_or_default()
    }

    /// Takes the next signal that ends a machine whose workload does not run: any but that of a window's size.
    #[must_use]
    pub fn next_end(&self) -> Option<u8> {
        std::iter::from_fn(|| self.next()).find(|signal| i32::from(*signal) != libc::SIGWINCH)
    }
}

impl AsFd for Signals {
    /// Readable when a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What the monitor runs.
#[derive(Debug)]
pub struct Supervised<'a> {
    /// The VM process.
    pub vm: &'a VmProcess,
    /// Where the guest's kernel writes its log.
    pub console_log: &'a File,
    /// The machine's control socket.
    pub control: ControlServer,
    /// This process's signals.
    pub signals: Signals,
    /// Of a machine in the background: reports an error once the client that waits for its start is gone.
    pub client: Option<OwnedFd>,
    /// Of a machine that runs for somebody: hangs up (poll(2), `POLLHUP`) once they are done. The machine is to end by itself then, and
    /// has as long as one whose workload has ended.
    pub holder: Option<BorrowedFd<'a>>,
    /// What starts its network gateway, if it has one of its own.
    pub gateway: Option<&'a GatewayKeeper>,
    /// What asks the workload to end.
    pub stop_signal: Signal,
    /// Whether the workload has this process's terminal.
    pub has_terminal: bool,
    /// Whether what the workload wrote is to be on the machine's disk in the end.
    pub has_disk: bool,
    /// What is to be in its snapshots.
    pub facts: Facts,
    /// With what clients that attach are joined; none if the workload has this process's own streams.
    pub attachable: Option<Attachable>,
    /// Notes what happens to it.
    pub notes: Notes,
    /// How the workload is asked how it is, if it is.
    pub health: Option<HealthWatch>,
}

/// What is left of a run that has ended, for the next one or for the end.
#[derive(Debug)]
pub struct Ran {
    /// How the workload ended.
    pub outcome: Outcome,
    /// How long its program had run, if it had.
    pub run_time: Option<Duration>,
    /// Who wanted the end, if somebody did.
    pub order: Option<Order>,
    /// The control socket, so that those who wait at it learn the outcome once it is written down.
    pub control: ControlServer,
    /// This process's signals.
    pub signals: Signals,
    /// Threads that may still run.
    pub threads: Arc<Threads>,
    /// Of a machine with a disk whose workload has ended: until when the guest, from which the host has hung up, may take to write to
    /// it and end the machine.
    pub guest_ends_by: Option<Instant>,
}

impl Supervised<'_> {
    /// Waits for the agent, runs the workload to its end and says how that was. `on_ready` is called when the agent is there,
    /// `on_started` when the workload's program runs, with what the agent took for that.
    ///
    /// # Errors
    ///
    /// When the host gives no descriptor or thread.
    pub fn run(
        self,
        job: Job,
        streams: ClientStreams<'_>,
        on_ready: &mut dyn FnMut(),
        on_started: &mut dyn FnMut(Duration),
    ) -> Result<Ran, MonitorError> {
        let Self {
            vm,
            console_log,
            control,
            signals,
            client,
            holder,
            gateway,
            stop_signal,
            has_terminal,
            has_disk,
            facts,
            attachable,
            notes,
            health,
        } = self;
        let (sender, events) = event_channel().map_err(MonitorError::Watch)?;
        let (stop, stopped) = UnixStream::pair().map_err(MonitorError::Watch)?;
        let run = Run {
            vm,
            status: Mutex::new(Status::Created),
            ended_by: AtomicU8::new(0),
            stop_signal,
            order: Mutex::new(None),
            sender,
            last_process: AtomicU32::new(FIRST.process.0),
            sessions: Arc::default(),
            has_disk,
            ends_by: Mutex::new(None),
            guest_writes: AtomicBool::new(false),
            attachable,
            notes,
            threads: Arc::default(),
        };
        let actions = Actions::new(facts);
        let (actions, stopped) = (&actions, &stopped);
        std::thread::scope(|scope| {
            let attendant = Attendant {
                run: &run,
                signals,
                client,
                holder,
                gateway,
                control,
                control_is_open: true,
                has_terminal,
                impatience: 0,
                leavable: BTreeMap::new(),
            };
            let attendant = std::thread::Builder::new()
                .name("monitor".to_owned())
                .spawn_scoped(scope, move || attendant.attend(stopped, scope, actions))
                .map_err(MonitorError::Watch)?;
            let mut began = None;
            let mut started = |after| {
                began = Some(Instant::now());
                if let Some(health) = &health {
                    health.begin();
                    watch_health(scope, health, &run, actions, stopped);
                }
                run.set_running();
                on_started(after);
            };
            let result = run.converse(job, streams, &events, console_log, on_ready, &mut started);
            drop(stop);
            let (control, signals) = attendant
                .join()
                .map_err(|_| MonitorError::Watch(io::Error::other("a thread failed")))?;
            let outcome = match (result, run.ended_by()) {
                (
                    Ok(
                        outcome @ (Outcome::Exited(_)
                        | Outcome::Signalled { .. }
                        | Outcome::NotStarted { .. }),
                    ),
                    _,
                ) => outcome,
                (_, Some(outcome)) => outcome,
                (Ok(outcome), None) => outcome,
                (Err(error), None) => Outcome::HostFailed {
                    message: chain(&error),
                    help: error.help(),
                },
            };
            Ok(Ran {
                outcome,
                run_time: began.map(|moment| moment.elapsed()),
                order: run.order(),
                control,
                signals,
                threads: Arc::clone(&run.threads),
                guest_ends_by: run
                    .guest_writes
                    .load(Ordering::SeqCst)
                    .then(|| *run.ends_by())
                    .flatten(),
            })
        })
    }
}

/// Starts the thread that asks the workload how it is.
fn watch_health<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    health: &'env HealthWatch,
    run: &'env Run<'_>,
    actions: &'env Actions,
    stopped: &'env UnixStream,
) {
    let started = std::thread::Builder::new()
        .name("health".to_owned())
        .spawn_scoped(scope, move || health.attend(run, actions, stopped));
    if let Err(error) = started {
        tracing::warn!(%error, "the workload is not asked how it is");
    }
}

/// A run as its threads see it.
#[derive(Debug)]
struct Run<'a> {
    vm: &'a VmProcess,
    status: Mutex<Status>,
    /// The signal for which the machine was ended from outside; 0 for none.
    ended_by: AtomicU8,
    /// What asks the workload to end.
    stop_signal: Signal,
    /// Who has wanted the end of the machine.
    order: Mutex<Option<Order>>,
    /// What the agent is to be told meanwhile.
    sender: EventSender,
    /// The last process's id.
    last_process: AtomicU32,
    /// How many processes there are beside the workload's own.
    sessions: Arc<AtomicUsize>,
    has_disk: bool,
    /// When a machine whose workload was killed, or that nobody holds any more, ends, whether what it wrote is on its disk or not.
    ends_by: Mutex<Option<Instant>>,
    /// Whether the workload has ended, and the guest writes what it has left.
    guest_writes: AtomicBool,
    attachable: Option<Attachable>,
    notes: Notes,
    threads: Arc<Threads>,
}

impl Run<'_> {
    fn status(&self) -> Status {
        self.status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_running(&self) {
        let started = Timestamp::now();
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Status::Running { started };
    }

    /// Gives the id of another process. There are only so many at a time.
    fn next_process(&self) -> Result<u32, String> {
        if self.sessions.load(Ordering::SeqCst) >= MAX_SESSIONS {
            return Err(format!(
                "{MAX_SESSIONS} commands run in the machine already, and no more can"
            ));
        }
        let next = |last: u32| last.checked_add(1);
        self.last_process
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next)
            .ok()
            .and_then(next)
            .ok_or_else(|| "no more commands can be told apart".to_owned())
    }

    fn order(&self) -> Option<Order> {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that somebody wants the end of the machine.
    fn set_order(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
    }

    /// Notes that a person sends a signal, if it is one that ends a machine.
    fn note_signal_of_person(&self, signal: Signal) {
        if is_end(signal, self.stop_signal) {
            self.set_order(Order::Person);
        }
    }

    /// Whether the workload's program runs, and so can get signals.
    fn is_running(&self) -> bool {
        matches!(self.status(), Status::Running { .. })
    }

    fn note_signal(&self, signal: u8) {
        self.notes.note("kill", &[("signal", signal.to_string())]);
    }

    /// Ends the machine without asking the guest.
    fn end(&self, signal: u8) {
        self.ended_by.store(signal, Ordering::SeqCst);
        self.vm.kill();
    }

    /// Kills the workload, and the machine with it. One with a disk gets a moment to write to it: after a kill, files are there that
    /// were written before.
    fn kill_workload(&self, signal: u8) {
        let can_write = self.has_disk && self.is_running();
        let killed = Event::Signal(SIGKILL);
        if !can_write || self.sender.send(killed).is_err() {
            return self.end(signal);
        }
        self.end_within(signal, KILL_PATIENCE);
    }

    /// Lets the machine end by itself, and ends it if it has not in time.
    fn end_within(&self, signal: u8, patience: Duration) {
        self.ended_by.store(signal, Ordering::SeqCst);
        let moment = Instant::now() + patience;
        let mut ends_by = self.ends_by();
        *ends_by = Some(ends_by.map_or(moment, |earlier| earlier.min(moment)));
    }

    fn ends_by(&self) -> MutexGuard<'_, Option<Instant>> {
        self.ends_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ended_by(&self) -> Option<Outcome> {
        match self.ended_by.load(Ordering::SeqCst) {
            0 => None,
            signal if i32::from(signal) == libc::SIGKILL => Some(Outcome::Killed),
            signal => Some(Outcome::Signalled {
                signal,
                out_of_memory: false,
            }),
        }
    }

    /// The conversation with the agent, from its first word to the outcome.
    fn converse(
        &self,
        job: Job,
        streams: ClientStreams<'_>,
        events: &EventReceiver,
        console_log: &File,
        on_ready: &mut dyn FnMut(),
        on_started: &mut dyn FnMut(Duration),
    ) -> Result<Outcome, MonitorError> {
        match self.vm.next_report()? {
            Some(Report::Ready) => on_ready(),
            Some(Report::Ended(end)) => return ended(end, console_log),
            Some(Report::Frozen) | None => return Err(vanished(self.vm)),
        }
        let dialer = Guest(self.vm);
        let result = AgentLink::connect(&dialer)
            .and_then(|mut link| link.run(&dialer, job, streams, events, on_started));
        match result {
            Ok(exit) => {
                if self.has_disk {
                    let mut ends_by = self.ends_by();
                    let latest = Instant::now() + SYNC_PATIENCE;
                    let earliest = ends_by.map_or(latest, |earlier| earlier.min(latest));
                    *ends_by = Some(earliest);
                    self.guest_writes.store(true, Ordering::SeqCst);
                }
                Ok(outcome_of(exit))
            }
            Err(error) => last_word(self.vm, console_log, error),
        }
    }
}

/// Why the guest hung up: the VM process knows.
fn last_word(
    vm: &VmProcess,
    console_log: &File,
    error: LinkError,
) -> Result<Outcome, MonitorError> {
    loop {
        let mut descriptors = [PollFd::new(vm, PollFlags::IN)];
        match poll(&mut descriptors, Some(&LAST_WORD)) {
            Err(rustix::io::Errno::INTR) => continue,
            Ok(0) | Err(_) => {
                vm.kill();
                return Err(error.into());
            }
            Ok(_) => {}
        }
        match vm.next_report()? {
            Some(Report::Ended(end)) => return ended(end, console_log),
            Some(Report::Ready | Report::Frozen) => {}
            None => return Err(vanished(vm)),
        }
    }
}

fn vanished(vm: &VmProcess) -> MonitorError {
    MonitorError::Vanished {
        status: vm.last_status(),
    }
}

fn ended(end: End, console_log: &File) -> Result<Outcome, MonitorError> {
    let message = match end {
        End::NotBuilt { reason, .. } => return Err(MonitorError::NotBuilt { reason }),
        End::GuestDied { reason } => reason,
        End::PoweredOff => "the guest's agent ended the machine before the workload".to_owned(),
    };
    Ok(Outcome::GuestDied {
        message,
        last_log_lines: last_lines(console_log),
    })
}

/// The last lines of the guest kernel's log. They are the guest's: only printable characters are kept.
fn last_lines(console_log: &File) -> Vec<String> {
    let mut log = console_log;
    let mut bytes = Vec::new();
    let length = log.metadata().map_or(0, |metadata| metadata.len());
    let start = length.saturating_sub(LAST_LOG_BYTES);
    let read = log
        .seek(SeekFrom::Start(start))
        .and_then(|_| log.take(LAST_LOG_BYTES).read_to_end(&mut bytes));
    if let Err(error) = read {
        tracing::debug!(%error, "the guest kernel's log cannot be read");
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            line.chars()
                .filter(|character| !character.is_control())
                .collect::<String>()
        })
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(LAST_LOG_LINES)..].to_vec()
}

fn outcome_of(exit: WorkloadExit) -> Outcome {
    match exit {
        WorkloadExit::Exited(exit) => match exit.status {
            ExitStatus::Code(code) => Outcome::Exited(code),
            ExitStatus::Signal(signal) => Outcome::Signalled {
                signal,
                out_of_memory: exit.oom_killed,
            },
        },
        WorkloadExit::NotStarted(failure) => Outcome::NotStarted {
            reason: match failure.kind {
                FailureKind::NotFound => NotStarted::NotFound,
                FailureKind::NotExecutable => NotStarted::NotExecutable,
                FailureKind::UnknownUser | FailureKind::Unsupported | FailureKind::Failed => {
                    NotStarted::Failed
                }
            },
            message: failure.to_string(),
        },
    }
}

/// The guest's ports, by way of the VM process.
struct Guest<'a>(&'a VmProcess);

impl Dialer for Guest<'_> {
    fn dial(&self, port: u32) -> io::Result<UnixStream> {
        self.0.dial(port).map_err(io::Error::other)
    }
}

/// Whether a person who sends this signal wants the end of the machine: docker's rule for an image that names its stop signal.
fn is_end(signal: Signal, stop_signal: Signal) -> bool {
    [stop_signal, Signal::KILL].contains(&signal)
}

/// What ends a machine whose client went before it had started, or that nobody holds any more.
const SIGHUP: u8 = 1;

/// What ends a workload that is not asked.
const SIGKILL: u8 = 9;

/// So many SIGINT or SIGTERM end a machine whose workload does not heed them, as with docker.
const IMPATIENCE: u8 = 3;

/// The thread that listens to signals and to the control socket while the main thread carries the streams.
#[derive(Debug)]
struct Attendant<'a> {
    run: &'a Run<'a>,
    signals: Signals,
    client: Option<OwnedFd>,
    holder: Option<BorrowedFd<'a>>,
    gateway: Option<&'a GatewayKeeper>,
    control: ControlServer,
    control_is_open: bool,
    has_terminal: bool,
    /// How many SIGINT and SIGTERM have come.
    impatience: u8,
    /// The connections of the processes that their clients may leave.
    leavable: BTreeMap<u32, Connections>,
}

impl<'env> Attendant<'env> {
    /// Attends until `stopped` hangs up, and gives back what it has listened to.
    fn attend<'scope>(
        mut self,
        stopped: &UnixStream,
        scope: &'scope Scope<'scope, 'env>,
        actions: &'env Actions,
    ) -> (ControlServer, Signals) {
        self.tell_window();
        loop {
            let control_interest = if self.control_is_open {
                PollFlags::IN
            } else {
                PollFlags::empty()
            };
            // Errors are reported without being asked for, hence the empty set.
            let client = self.client.as_ref().unwrap_or(&self.signals.0);
            let holder = self.holder.unwrap_or(self.signals.as_fd());
            let first_frame = self.gateway.and_then(GatewayKeeper::first_frame);
            let wire = first_frame.map(|wire| PollFd::from_borrowed_fd(wire, PollFlags::IN));
            let nothing = PollFd::new(&self.signals.0, PollFlags::empty());
            let mut descriptors = [
                wire.unwrap_or(nothing),
                PollFd::new(stopped, PollFlags::IN),
                PollFd::new(&self.signals.0, PollFlags::IN),
                PollFd::from_borrowed_fd(self.control.as_fd(), control_interest),
                PollFd::new(client, PollFlags::empty()),
                PollFd::from_borrowed_fd(holder, PollFlags::empty()),
            ];
            let ends_by = *self.run.ends_by();
            let left = ends_by.map(|moment| {
                let left = moment.saturating_duration_since(Instant::now());
                Timespec::try_from(left).unwrap_or_default()
            });
            match poll(&mut descriptors, left.as_ref()) {
                Ok(0) => {
                    // It goes away, and with it what else is waited for.
                    self.run.vm.kill();
                    self.run.ends_by().take();
                    continue;
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::warn!(%error, "signals and requests are not forwarded any more");
                    return (self.control, self.signals);
                }
            }
            let [wire, ..] = &descriptors;
            let wire = wire.revents();
            let [
                _,
                is_stopped,
                has_signal,
                has_request,
                has_no_client,
                has_no_holder,
            ] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
            if is_stopped {
                return (self.control, self.signals);
            }
            if !wire.is_empty() {
                self.begin_gateway(wire);
            }
            if has_signal {
                self.take_signals();
            }
            if has_no_client && self.client.take().is_some() && !self.run.is_running() {
                // Nobody would ever learn of this machine.
                self.run.end(SIGHUP);
            }
            if has_no_holder && self.holder.take().is_some() {
                self.run.end_within(SIGHUP, SYNC_PATIENCE);
            }
            if has_request && self.control_is_open {
                let mut requests = Requests {
                    run: self.run,
                    scope,
                    actions,
                    leavable: &mut self.leavable,
                    impatience: &mut self.impatience,
                };
                if let Err(error) = self.control.handle(&mut requests) {
                    tracing::warn!(%error, "the control socket failed");
                    self.control_is_open = false;
                }
            }
        }
    }

    /// Starts the network gateway with the guest's first frame; nothing is waited for where the guest has gone.
    fn begin_gateway(&mut self, wire: PollFlags) {
        let gateway = self.gateway.take();
        if wire.contains(PollFlags::HUP) {
            return;
        }
        if let Some(Err(error)) = gateway.map(GatewayKeeper::begin) {
            tracing::warn!(%error, "the machine has no network gateway");
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if i32::from(signal) == libc::SIGWINCH {
                self.tell_window();
                continue;
            }
            self.run.note_signal(signal);
            if ENDING.contains(&i32::from(signal)) {
                self.run.set_order(Order::Host);
            }
            take_signal(self.run, &mut self.impatience, signal);
        }
    }

    fn tell_window(&self) {
        if self.has_terminal
            && let Some(size) = window_size(rustix::stdio::stdin())
            && let Err(error) = self.run.sender.send(Event::Resize(size))
        {
            tracing::debug!(%error, "a window's size was not forwarded");
        }
    }
}

/// Lets the workload have a signal that the machine's own client got.
fn take_signal(run: &Run<'_>, impatience: &mut u8, signal: u8) {
    if [libc::SIGINT, libc::SIGTERM].contains(&i32::from(signal)) {
        *impatience = impatience.saturating_add(1);
    }
    let event = match i32::from(signal) {
        // Who sends it wants an end, and the workload may have a signal of its own for that.
        libc::SIGTERM => Event::Stop,
        _ => Event::Signal(signal),
    };
    if *impatience >= IMPATIENCE {
        run.kill_workload(signal);
    } else {
        deliver(run, signal, event);
    }
}

/// Lets the workload have a signal. Before its program runs there is nobody to have it: the machine ends.
fn deliver(run: &Run<'_>, signal: u8, event: Event) {
    if !run.is_running() {
        run.end(signal);
    } else if let Err(error) = run.sender.send(event) {
        tracing::debug!(%error, signal, "a signal was not forwarded");
    }
}

/// Answers requests of other clients.
struct Requests<'turn, 'run, 'scope, 'env> {
    run: &'run Run<'run>,
    scope: &'scope Scope<'scope, 'env>,
    actions: &'env Actions,
    leavable: &'turn mut BTreeMap<u32, Connections>,
    impatience: &'turn mut u8,
}

impl<'run: 'scope, 'scope> Requests<'_, 'run, 'scope, '_> {
    /// Kills the workload. One that stands still could not die.
    fn kill_workload(&self, signal: u8) {
        let (run, actions) = (self.run, self.actions);
        if !run.has_disk {
            return run.end(signal);
        }
        let started = std::thread::Builder::new()
            .name("kill".to_owned())
            .spawn_scoped(self.scope, move || {
                // Most are not paused, and say so.
                let _ = actions.act(run, Action::Resume);
                run.kill_workload(signal);
            });
        if started.is_err() {
            run.end(signal);
        }
    }
}

impl<'run: 'scope, 'scope> Control for Requests<'_, 'run, 'scope, '_> {
    /// SIGKILL needs no help of the guest's.
    fn kill(&mut self, signal: Signal) -> Result<(), String> {
        self.run.note_signal(signal.number());
        self.run.note_signal_of_person(signal);
        if i32::from(signal.number()) == libc::SIGKILL {
            self.kill_workload(signal.number());
        } else {
            deliver(self.run, signal.number(), Event::Signal(signal.number()));
        }
        Ok(())
    }

    fn stop(&mut self, signal: Signal) -> Result<(), String> {
        self.run.set_order(Order::Person);
        self.kill(signal)
    }

    fn status(&self) -> Status {
        self.run.status()
    }

    fn act(&mut self, action: Action, answerer: Answerer) {
        let (run, actions) = (self.run, self.actions);
        let started = std::thread::Builder::new()
            .name("action".to_owned())
            .spawn_scoped(self.scope, move || answerer.tell(actions.act(run, action)));
        if let Err(error) = started {
            tracing::warn!(%error, "a request was not carried out");
        }
    }

    fn ask(&mut self, question: Question, answerer: Answerer) {
        let refusal = match (self.run.is_running(), self.actions.is_paused()) {
            (false, _) => Err("the workload does not run".to_owned()),
            (true, true) => Err("the machine is paused".to_owned()),
            (true, false) => self.actions.check(&question),
        };
        if let Err(message) = refusal {
            return answerer.answer(Answer::Failed(message));
        }
        // An asker that is dropped tells the client.
        self.tell(Event::Ask {
            container: FIRST.container,
            question,
            asker: Box::new(Asking {
                answerer,
                threads: Arc::clone(&self.run.threads),
            }),
        });
    }

    fn exec(&mut self, request: ExecRequest, offer: SessionOffer) -> Result<u32, String> {
        let id = self.next_session()?;
        let process = process_of(id);
        let ExecRequest { choices, streams } = request;
        let notes = ExecNotes::new(&self.run.notes, id, &choices.arguments);
        let is_leavable = choices.has_terminal && streams.stdin;
        let exec = self
            .actions
            .basis()
            .exec(choices, process, streams)
            .map_err(|error| format!("the container's configuration cannot be read: {error}"))?;
        let connections = self.dial(process, streams)?;
        let kept = is_leavable.then(|| connections.try_clone()).transpose();
        let kept = kept.map_err(|error| chain(&error))?;
        self.join(
            Joining::Exec(Box::new(exec)),
            Some(notes),
            &connections,
            offer,
        )?;
        self.leavable.extend(kept.map(|kept| (id, kept)));
        Ok(id)
    }

    fn files(&mut self, task: FilesTask, offer: SessionOffer) -> Result<u32, String> {
        let id = self.next_session()?;
        let process = process_of(id);
        let connections = self.dial(process, task.streams())?;
        let files = Files { process, task };
        self.join(Joining::Files(Box::new(files)), None, &connections, offer)?;
        Ok(id)
    }

    fn resize(&mut self, process: u32, size: WindowSize) {
        self.tell(Event::ResizeOf(process_of(process), size));
    }

    fn abandon(&mut self, process: u32) {
        self.leavable.remove(&process);
        self.tell(Event::Abandon(process_of(process)));
    }

    fn leave(&mut self, process: u32) {
        let Some(connections) = self.leavable.remove(&process) else {
            return;
        };
        // Not one of the run's: it ends when the process does, or with the machine.
        let started = self
            .run
            .threads
            .start("left", move || connections.discard());
        if let Err(error) = started {
            tracing::warn!(%error, "the terminal of a command is hung up");
        }
    }

    fn attach(&mut self, request: AttachRequest, offer: AttachOffer) -> Result<(), String> {
        if !self.run.is_running() {
            return Err("the workload does not run".to_owned());
        }
        if self.actions.is_paused() {
            return Err("the machine is paused".to_owned());
        }
        let Some(attachable) = &self.run.attachable else {
            return Err(
                "the client that runs the machine in the foreground has its streams".to_owned(),
            );
        };
        attachable
            .attach(request, offer)
            .map_err(|error| format!("the machine cannot be attached to: {error}"))?;
        self.run.notes.note("attach", &[]);
        Ok(())
    }

    fn resize_workload(&mut self, size: WindowSize) {
        self.tell(Event::Resize(size));
    }

    fn pass(&mut self, signal: Signal, from: Attached) {
        self.run.note_signal(signal.number());
        self.run.note_signal_of_person(signal);
        match from {
            Attached::Own => take_signal(self.run, self.impatience, signal.number()),
            Attached::Other => {
                deliver(self.run, signal.number(), Event::Signal(signal.number()));
            }
        }
    }

    fn left(&mut self, client: Attached, has_detached: bool) {
        if has_detached {
            self.run.notes.note("detach", &[]);
        }
        match (client, has_detached) {
            // Its client is gone, and the machine with it.
            (Attached::Own, false) => self.kill_workload(SIGHUP),
            (Attached::Own, true) | (Attached::Other, _) => {}
        }
    }
}

impl Requests<'_, '_, '_, '_> {
    /// The id of another process, if there can be one.
    fn next_session(&mut self) -> Result<u32, String> {
        let run = self.run;
        if !run.is_running() {
            return Err("the workload does not run".to_owned());
        }
        if self.actions.is_paused() {
            return Err("the machine is paused".to_owned());
        }
        run.next_process()
    }

    fn dial(&self, process: Process, streams: DeclaredStreams) -> Result<Connections, String> {
        Connections::dial(&Guest(self.run.vm), process, streams).map_err(|error| chain(&error))
    }

    /// Lets a process join, and gives its client the connections.
    fn join(
        &self,
        joining: Joining,
        notes: Option<ExecNotes>,
        connections: &Connections,
        offer: SessionOffer,
    ) -> Result<(), String> {
        let teller = offer
            .open(&connections.descriptors())
            .map_err(|error| error.to_string())?;
        let event = Event::Join {
            joining,
            watcher: Box::new(Watched {
                teller,
                notes,
                _counted: Counted::new(&self.run.sessions),
            }),
        };
        // A watcher that is dropped tells the client.
        if let Err(error) = self.run.sender.send(event) {
            tracing::debug!(%error, "a process was not asked for");
        }
        Ok(())
    }

    fn tell(&self, event: Event) {
        if let Err(error) = self.run.sender.send(event) {
            tracing::debug!(%error, "the guest is not told of a client");
        }
    }
}

/// Another process of the workload's container.
fn process_of(id: u32) -> Process {
    Process {
        process: ProcessId(id),
        ..FIRST
    }
}

/// The client that has asked.
#[derive(Debug)]
struct Asking {
    answerer: Answerer,
    threads: Arc<Threads>,
}

impl Asker for Asking {
    fn answered(self: Box<Self>, answer: Answer) {
        let is_long = matches!(answer, Answer::Processes(_));
        if !is_long {
            return self.answerer.answer(answer);
        }
        // The workload's streams do not wait for a client that reads slowly.
        let Self { answerer, threads } = *self;
        let started = threads.start("answer", move || answerer.answer_slowly(answer));
        if let Err(error) = started {
            tracing::warn!(%error, "a question was not answered");
        }
    }
}

/// Notes what happens to another process.
#[derive(Debug)]
struct ExecNotes {
    notes: Notes,
    id: u32,
    command: String,
}

impl ExecNotes {
    fn new(notes: &Notes, id: u32, command: &[String]) -> Self {
        let mut command = command.join(" ");
        command.truncate(command.floor_char_boundary(MAX_NOTED_COMMAND_BYTES));
        let noted = Self {
            notes: notes.clone(),
            id,
            command,
        };
        noted.note(&format!("exec_create: {}", noted.command), None);
        noted
    }

    fn note(&self, action: &str, exit_code: Option<u8>) {
        let mut more = vec![("execID", self.id.to_string())];
        more.extend(exit_code.map(|code| ("exitCode", code.to_string())));
        self.notes.note(action, &more);
    }
}

/// The client of another process, counted for as long as that is there.
#[derive(Debug)]
struct Watched {
    teller: SessionTeller,
    /// Of a command; tasks about files are noted by whoever has them done.
    notes: Option<ExecNotes>,
    _counted: Counted,
}

/// One of the processes beside the workload's own, for as long as this is there.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(sessions: &Arc<AtomicUsize>) -> Self {
        sessions.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(sessions))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Watcher for Watched {
    fn started(&mut self) {
        self.teller.started();
        if let Some(notes) = &self.notes {
            notes.note(&format!("exec_start: {}", notes.command), None);
        }
    }

    fn ended(&mut self, exit: WorkloadExit) {
        let outcome = outcome_of(exit);
        if let Some(notes) = &self.notes {
            notes.note("exec_die", Some(outcome.exit_code().number()));
        }
        self.teller.ended(outcome);
    }
}

/// The standard streams of this process that the workload gets. A machine without a client has none.
#[must_use]
pub fn client_streams(
    is_attached: bool,
    interactive: bool,
    terminal: bool,
) -> ClientStreams<'static> {
    ClientStreams {
        stdin: (is_attached && interactive).then(rustix::stdio::stdin),
        stdout: is_attached.then(rustix::stdio::stdout),
        stderr: (is_attached && !terminal).then(rustix::stdio::stderr),
    }
}
