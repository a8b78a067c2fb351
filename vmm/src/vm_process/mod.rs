//! The VM process: owns KVM and the device models, and nothing else.
//!
//! It is forked by the monitor with everything opened, builds the machine, gives up its rights (see [`sandbox`](crate::sandbox)) and
//! enters the guest. The two speak over one channel: the monitor hands in sockets to be dialled to the guest's ports, the VM process
//! reports that the agent is ready and how the machine ended. When the monitor goes, the channel hangs up and the VM process ends
//! with it; nobody waits for the VM process, whose end takes the host's kernel a while.

mod channel;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::doorbell::Ring;
use devices::virtio::vsock::Dialer;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::Kvm;
use protocol::Create;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use thiserror::Error;

use self::channel::{Answered, Channel, Command, cut};
pub use self::channel::{ChannelError, End, Report};
use crate::machine::{
    Answer, FrozenMachine, Heard, Machine, MachineConfig, MachineEnd, Order, Root, RunError,
    SaveFiles, Shares,
};
use crate::process;
use crate::report::chain;
use crate::sandbox;

/// The monitor's end of a running VM process.
#[derive(Debug)]
pub struct VmProcess {
    channel: Channel,
    child: process::Child,
    /// A report that was received ahead of whoever asks for it.
    unheard: Mutex<Option<Report>>,
}

/// How a machine begins, and what becomes of it when its agent is ready.
#[derive(Debug)]
pub enum Start {
    /// It boots, and runs.
    Boot,
    /// It goes on where a frozen one stood, and runs.
    Clone(Box<FrozenMachine>),
    /// It boots, is written down, and ends.
    Freeze(Box<FreezeFiles>),
}

/// Where a machine is written down.
#[derive(Debug)]
pub struct FreezeFiles {
    /// The files.
    pub save: SaveFiles,
    /// A container that the agent builds before, for whoever runs in a clone.
    pub container: Option<Create>,
}

/// What became of a machine that was waited for.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstReport {
    /// It is ready, or frozen.
    Came,
    /// It could not go on; why.
    Failed(String),
    /// The host has not got what any such machine takes; what.
    Want(String),
    /// It went without a word.
    HungUp,
    /// Something else came first.
    Interrupted,
    /// It has not said anything in time.
    None,
}

impl VmProcess {
    /// Forks the VM process. Call it before the calling process has made a thread.
    ///
    /// # Errors
    /// When the host gives no socket or no process.
    pub fn spawn(kvm: &Kvm, config: &MachineConfig, start: &Start) -> Result<Self, SpawnError> {
        let (ours, theirs) = Channel::pair().map_err(SpawnError::Channel)?;
        let child = process::fork(|| {
            live(kvm, config, start, theirs);
            0
        })
        .map_err(SpawnError::Fork)?;
        Ok(Self {
            channel: ours,
            child,
            unheard: Mutex::new(None),
        })
    }

    /// Waits for the first report until `deadline`, or until `interrupt` becomes readable. The report is not lost: whoever asks for
    /// the next one gets it.
    ///
    /// # Errors
    /// When the channel or the wait fails.
    pub fn await_report(
        &self,
        interrupt: BorrowedFd<'_>,
        patience: Duration,
    ) -> Result<FirstReport, ChannelError> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut descriptors = [
                PollFd::new(&self.channel, PollFlags::IN),
                PollFd::from_borrowed_fd(interrupt, PollFlags::IN),
            ];
            match poll(&mut descriptors, Some(&left)) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(ChannelError::Receive(error.into())),
                Ok(0) => return Ok(FirstReport::None),
                Ok(_) if descriptors[0].revents().is_empty() => {
                    return Ok(FirstReport::Interrupted);
                }
                Ok(_) => {}
            }
            let report = self.channel.receive::<Report>()?.map(|(report, _)| report);
            return Ok(match report {
                None => FirstReport::HungUp,
                Some(Report::Ended(End::NotBuilt {
                    reason,
                    is_want: true,
                })) => FirstReport::Want(reason),
                Some(Report::Ended(End::NotBuilt { reason, .. } | End::GuestDied { reason })) => {
                    FirstReport::Failed(reason)
                }
                Some(Report::Ended(End::PoweredOff)) => {
                    FirstReport::Failed("its agent ended it".to_owned())
                }
                Some(report @ (Report::Ready | Report::Frozen)) => {
                    *self.unheard() = Some(report);
                    FirstReport::Came
                }
            });
        }
    }

    fn unheard(&self) -> MutexGuard<'_, Option<Report>> {
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Connects to a port of the guest. The stream may be used at once; what is written waits for the guest. If nobody listens there,
    /// it reads as closed.
    ///
    /// # Errors
    /// When the VM process is gone.
    pub fn dial(&self, port: u32) -> Result<UnixStream, ChannelError> {
        let (ours, theirs) = UnixStream::pair().map_err(ChannelError::Socket)?;
        self.channel
            .send(&Command::Dial { port }, &[theirs.as_fd()])?;
        Ok(ours)
    }

    /// Lets the machine stand, and returns when it does.
    ///
    /// # Errors
    /// When it is paused already, something else is being done with it, or the VM process is gone.
    pub fn pause(&self) -> Result<(), OrderError> {
        self.order(&Command::Pause, &[])?.wait(ORDER_PATIENCE)
    }

    /// Lets a paused machine go on.
    ///
    /// # Errors
    /// When it is not paused, or the VM process is gone.
    pub fn resume(&self) -> Result<(), OrderError> {
        self.order(&Command::Resume, &[])?.wait(ORDER_PATIENCE)
    }

    /// Lets the guest know how large the machine's disks are by now.
    ///
    /// # Errors
    /// When one cannot be looked at, or the VM process is gone.
    pub fn grow_disks(&self) -> Result<(), OrderError> {
        self.order(&Command::Grow, &[])?.wait(ORDER_PATIENCE)
    }

    /// Asks for the machine to be written down when its agent lets it be frozen. Ask the agent after this.
    ///
    /// # Errors
    /// When the VM process is gone.
    pub fn save(&self, files: &SaveFiles) -> Result<Pending<'_>, OrderError> {
        let command = Command::Save {
            memory_offset_bytes: files.memory_offset_bytes,
            only_changes: files.only_changes,
            tracks_changes: files.tracks_changes,
            stays: files.stays,
        };
        self.order(&command, &[files.state.as_fd(), files.memory.as_fd()])
    }

    fn order(
        &self,
        command: &Command,
        files: &[BorrowedFd<'_>],
    ) -> Result<Pending<'_>, OrderError> {
        let (ours, theirs) = UnixStream::pair().map_err(ChannelError::Socket)?;
        let passed = [&[theirs.as_fd()], files].concat();
        self.channel.send(command, &passed)?;
        Ok(Pending {
            vm: self,
            answer: ours,
        })
    }

    /// Waits for the next report; `None` when the VM process is gone without one.
    ///
    /// # Errors
    /// When the channel fails.
    pub fn next_report(&self) -> Result<Option<Report>, ChannelError> {
        if let Some(report) = self.unheard().take() {
            return Ok(Some(report));
        }
        Ok(self.channel.receive::<Report>()?.map(|(report, _)| report))
    }

    /// How a VM process ended whose channel hung up.
    pub fn last_status(&self) -> String {
        self.child
            .await_end()
            .map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Waits until the host's kernel has taken all of it down: for whoever starts the machine once more.
    pub fn reap(self) {
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the VM process cannot be waited for");
        }
    }

    /// Ends the machine: at once, or when its guest has, if that is given time to write to its disk.
    pub fn end(&self, guest_ends_by: Option<Instant>) {
        if let Some(deadline) = guest_ends_by {
            self.await_guest(deadline);
        }
        self.kill();
    }

    /// Waits until the guest, from which the host has hung up, has written everything to its disk and ended the machine.
    fn await_guest(&self, deadline: Instant) {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(
                &mut [PollFd::new(&self.channel, PollFlags::IN)],
                Some(&left),
            ) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(0) => {
                    tracing::warn!("the machine did not write everything to its disk in time");
                    return;
                }
                Ok(_) => {}
            }
            match self.next_report() {
                Ok(Some(Report::Ready | Report::Frozen)) => {}
                Ok(Some(Report::Ended(_)) | None) | Err(_) => return,
            }
        }
    }

    /// Ends the machine at once, whatever the guest does.
    pub fn kill(&self) {
        if let Err(error) = rustix::process::kill_process(self.child.pid(), Signal::KILL) {
            tracing::debug!(%error, "the VM process is gone already");
        }
    }
}

/// How long a machine may take to stand or to go on, on the slowest host under load.
const ORDER_PATIENCE: Duration = Duration::from_secs(20);
/// Longer than any answer.
const MAX_ANSWER_BYTES: usize = 4096;

/// An order that was given.
#[derive(Debug)]
pub struct Pending<'vm> {
    vm: &'vm VmProcess,
    answer: UnixStream,
}

impl Pending<'_> {
    /// Waits for the order to be carried out.
    ///
    /// # Errors
    /// When it was not, or the VM process goes meanwhile.
    pub fn wait(self, patience: Duration) -> Result<(), OrderError> {
        let Self { vm, mut answer } = self;
        if !is_readable(&answer, patience)? {
            vm.channel.send(&Command::GiveUp, &[])?;
            // What had begun by then is carried out.
            is_readable(&answer, ORDER_PATIENCE)?;
        }
        let mut bytes = [0; MAX_ANSWER_BYTES];
        answer.set_nonblocking(true)?;
        // An answer is short enough to come whole.
        match answer.read(&mut bytes) {
            Ok(0) => Err(OrderError::Gone),
            Ok(count) => postcard::from_bytes::<Answered>(bytes.get(..count).unwrap_or_default())
                .map_err(|_| ChannelError::Nonsense)?
                .map_err(OrderError::Refused),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(OrderError::Refused(
                "it does not come to a stand".to_owned(),
            )),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_readable(stream: &UnixStream, patience: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}

/// An order that was not carried out.
#[derive(Debug, Error)]
pub enum OrderError {
    /// The machine did not; why.
    #[error("{0}")]
    Refused(String),
    /// It ended meanwhile.
    #[error("it has ended")]
    Gone,
    /// The VM process cannot be asked.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The host gives no descriptor.
    #[error("cannot hear the VM process")]
    Io(#[from] io::Error),
}

impl AsFd for VmProcess {
    /// Readable when there is a report, or when the VM process is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

/// A VM process that could not be made.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The host gives no socket.
    #[error("cannot make a channel to the VM process")]
    Channel(#[source] io::Error),
    /// The host gives no process.
    #[error("cannot start the VM process")]
    Fork(#[source] io::Error),
}

/// The life of the VM process.
fn live(kvm: &Kvm, config: &MachineConfig, start: &Start, channel: Channel) {
    if let Err(error) = leave_the_parent(kvm, config, start, &channel) {
        return channel.report(&Report::Ended(End::NotBuilt {
            reason: format!("cannot become the VM process: {error}"),
            is_want: false,
        }));
    }
    let built = match start {
        Start::Boot | Start::Freeze(_) => Machine::build(kvm, config),
        Start::Clone(frozen) => Machine::restore(kvm, config, frozen),
    };
    let machine = match built {
        Ok(machine) => machine,
        Err(error) => {
            return channel.report(&Report::Ended(End::NotBuilt {
                reason: chain(&error),
                is_want: error.is_want(),
            }));
        }
    };
    let ready_ring = match start {
        Start::Boot => Ring::AgentReady,
        Start::Clone(_) => Ring::HandedOver,
        Start::Freeze(files) => {
            return channel.report(&match freeze(kvm, machine, files) {
                Ok(()) => Report::Frozen,
                Err(reason) => Report::Ended(End::NotBuilt {
                    reason,
                    is_want: false,
                }),
            });
        }
    };
    let channel = Arc::new(channel);
    let end = match run(kvm, machine, &channel, ready_ring) {
        Ok(MachineEnd::PoweredOff) => End::PoweredOff,
        Ok(MachineEnd::Reset) => End::GuestDied {
            reason: "the guest's kernel reset the machine".to_owned(),
        },
        Ok(MachineEnd::Fault(reason)) => End::GuestDied { reason },
        Ok(MachineEnd::Stopped) => return,
        Err(error) => End::NotBuilt {
            reason: chain(&error),
            is_want: false,
        },
    };
    channel.report(&Report::Ended(end));
}

/// What a service manager sends to all processes of a machine when it is to end. The monitor lets the workload end, for which it takes
/// this one.
const FOR_THE_MONITOR: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Out of the terminal's reach, with no descriptor but the machine's, and never longer alive than the parent.
fn leave_the_parent(
    kvm: &Kvm,
    config: &MachineConfig,
    start: &Start,
    channel: &Channel,
) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setsid()?;
    process::block_only(&FOR_THE_MONITOR)?;
    let mut keep = vec![channel.as_fd(), config.kernel.as_fd()];
    let kvm = process::borrow_raw(kvm);
    keep.push(kvm);
    keep.extend(config.kernel_log.as_ref().map(AsFd::as_fd));
    keep.extend(config.storage.as_ref().map(AsFd::as_fd));
    let link = config.network.as_ref();
    keep.extend(link.and_then(|network| network.link.descriptor()));
    for disk in &config.disks {
        keep.push(disk.file.as_fd());
        keep.extend(disk.lock.as_ref().map(AsFd::as_fd));
    }
    if let Some(Shares::Served { channel, .. }) = &config.shares {
        keep.extend(channel.descriptors());
    }
    let root = match &config.root {
        Root::Window(window) => &window.parts,
        Root::Disk { parts, .. } => parts,
    };
    keep.extend(
        config
            .agent
            .parts
            .iter()
            .chain(root)
            .map(|part| part.file.as_fd()),
    );
    match start {
        Start::Boot => {}
        Start::Clone(frozen) => {
            keep.push(frozen.memory.as_fd());
            keep.extend(frozen.below.iter().map(AsFd::as_fd));
        }
        Start::Freeze(files) => keep.extend([files.save.state.as_fd(), files.save.memory.as_fd()]),
    }
    process::close_all_but(&keep)?;
    process::standard_streams_to_null()
}

/// Writes the machine down when its agent is ready; says why not as one sentence.
fn freeze(kvm: &Kvm, machine: Machine, files: &FreezeFiles) -> Result<(), String> {
    if let Some(container) = &files.container {
        machine.stage(container).map_err(|error| chain(&error))?;
    }
    sandbox::enter_process().map_err(|error| format!("cannot enter the jail: {error}"))?;
    machine
        .freeze(kvm, sandbox::enter_thread, &files.save)
        .map_err(|error| chain(&error))
}

/// Runs the machine; its agent is ready when it rings `ready_ring`, and any other ring before says nothing.
fn run(
    kvm: &Kvm,
    mut machine: Machine,
    channel: &Arc<Channel>,
    ready_ring: Ring,
) -> Result<MachineEnd, RunError> {
    let (orders, given) = std::sync::mpsc::channel();
    let control = Control {
        channel: Arc::clone(channel),
        dialer: machine.dialer(),
        orders,
    };
    machine.add_subscriber(Box::new(control));
    sandbox::enter_process().map_err(RunError::Jail)?;
    let mut is_ready = false;
    let on_ring = |ring| {
        if ring == Ring::MachineEnd {
            return Heard::End;
        }
        // A guest may ring as often as it likes; the monitor is told once.
        if ring == ready_ring && !is_ready {
            is_ready = true;
            channel.report(&Report::Ready);
        }
        Heard::GoOn
    };
    machine.run(kvm, sandbox::enter_thread, on_ring, || {
        given.try_recv().ok()
    })
}

/// The channel on the machine's event loop.
struct Control {
    channel: Arc<Channel>,
    dialer: Dialer,
    orders: Sender<Order>,
}

impl Control {
    /// Does what the monitor says, or gives it to whoever runs the machine.
    fn obey(&self, command: Command, passed: Vec<OwnedFd>) {
        let mut passed = passed.into_iter();
        let (first, second, third) = (passed.next(), passed.next(), passed.next());
        let order = match (command, first, second, third) {
            (Command::Dial { port }, Some(stream), ..) => {
                if let Err(error) = self.dialer.connect(port, UnixStream::from(stream)) {
                    tracing::debug!(%error, "a dial was dropped");
                }
                return;
            }
            (Command::Pause, Some(answer), ..) => Order::Pause(answer_on(answer)),
            (Command::Resume, Some(answer), ..) => Order::Resume(answer_on(answer)),
            (Command::Grow, Some(answer), ..) => Order::Grow(answer_on(answer)),
            (
                Command::Save {
                    memory_offset_bytes,
                    only_changes,
                    tracks_changes,
                    stays,
                },
                Some(answer),
                Some(state),
                Some(memory),
            ) => Order::Save {
                files: Box::new(SaveFiles {
                    state: state.into(),
                    memory: memory.into(),
                    memory_offset_bytes,
                    only_changes,
                    tracks_changes,
                    stays,
                }),
                answer: answer_on(answer),
            },
            (Command::GiveUp, ..) => Order::GiveUp,
            (command, ..) => {
                tracing::debug!(?command, "a command came without its descriptors");
                return;
            }
        };
        self.give(order);
    }

    fn give(&self, order: Order) {
        // Nobody takes it where the machine has ended.
        let _ = self.orders.send(order);
    }
}

/// Answers on a socket, once.
fn answer_on(socket: OwnedFd) -> Answer {
    let mut stream = UnixStream::from(socket);
    Answer::new(move |result| {
        let result: Answered = result.map_err(|reason| cut(&reason));
        let sent = postcard::to_stdvec(&result)
            .map_err(io::Error::other)
            .and_then(|bytes| stream.write_all(&bytes));
        if let Err(error) = sent {
            tracing::debug!(%error, "nobody hears what came of an order");
        }
    })
}

impl MutEventSubscriber for Control {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        match self.channel.receive::<Command>() {
            Ok(Some((command, passed))) => self.obey(command, passed),
            // The monitor is gone or speaks nonsense: there is nobody left to run for.
            Ok(None) | Err(_) => {
                self.give(Order::Stop);
                let _ = ops.remove(Events::empty(&self.channel.as_fd()));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.channel.as_fd(), EventSet::IN)) {
            tracing::error!(%error, "the event loop does not take the monitor's channel");
        }
    }
}
