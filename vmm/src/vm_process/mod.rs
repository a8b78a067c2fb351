//! The VM process: owns KVM and the device models, and nothing else.
//!
//! It is forked by the monitor with everything opened, builds the machine, gives up its rights (see [`sandbox`](crate::sandbox)) and
//! enters the guest. The two speak over one channel: the monitor hands in sockets to be dialled to the guest's ports, the VM process
//! reports that the agent is ready and how the machine ended. When the monitor goes, the channel hangs up and the VM process ends
//! with it; nobody waits for the VM process, whose end takes the host's kernel a while.

mod channel;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use devices::virtio::vsock::Dialer;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::Kvm;
use rustix::process::{Signal, set_parent_process_death_signal, setsid};
use thiserror::Error;

use self::channel::{Channel, Command};
pub use self::channel::{ChannelError, End, Report};
use crate::machine::{Machine, MachineConfig, MachineEnd, Root, RunError};
use crate::process;
use crate::report::chain;
use crate::sandbox;

/// The monitor's end of a running VM process.
#[derive(Debug)]
pub struct VmProcess {
    channel: Channel,
    child: process::Child,
}

impl VmProcess {
    /// Forks the VM process. Call it before the calling process has made a thread.
    ///
    /// # Errors
    /// When the host gives no socket or no process.
    pub fn spawn(kvm: &Kvm, config: &MachineConfig) -> Result<Self, SpawnError> {
        let (ours, theirs) = Channel::pair().map_err(SpawnError::Channel)?;
        let child = process::fork(|| {
            live(kvm, config, theirs);
            0
        })
        .map_err(SpawnError::Fork)?;
        Ok(Self {
            channel: ours,
            child,
        })
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
            .send(&Command::Dial { port }, Some(theirs.as_fd()))?;
        Ok(ours)
    }

    /// Waits for the next report; `None` when the VM process is gone without one.
    ///
    /// # Errors
    /// When the channel fails.
    pub fn next_report(&self) -> Result<Option<Report>, ChannelError> {
        Ok(self.channel.receive::<Report>()?.map(|(report, _)| report))
    }

    /// How a VM process ended whose channel hung up.
    pub fn last_status(&self) -> String {
        self.child
            .await_end()
            .map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Ends the machine at once, whatever the guest does.
    pub fn kill(&self) {
        if let Err(error) = rustix::process::kill_process(self.child.pid(), Signal::KILL) {
            tracing::debug!(%error, "the VM process is gone already");
        }
    }
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
fn live(kvm: &Kvm, config: &MachineConfig, channel: Channel) {
    if let Err(error) = leave_the_parent(kvm, config, &channel) {
        return channel.report(&Report::Ended(End::NotBuilt {
            reason: format!("cannot become the VM process: {error}"),
        }));
    }
    let machine = match Machine::build(kvm, config) {
        Ok(machine) => machine,
        Err(error) => {
            return channel.report(&Report::Ended(End::NotBuilt {
                reason: chain(&error),
            }));
        }
    };
    let channel = Arc::new(channel);
    let end = match run(machine, &channel) {
        Ok(MachineEnd::PoweredOff) => End::PoweredOff,
        Ok(MachineEnd::Reset) => End::GuestDied {
            reason: "the guest's kernel reset the machine".to_owned(),
        },
        Ok(MachineEnd::Fault(reason)) => End::GuestDied { reason },
        Ok(MachineEnd::Stopped) => return,
        Err(error) => End::NotBuilt {
            reason: chain(&error),
        },
    };
    channel.report(&Report::Ended(end));
}

/// Out of the terminal's reach, with no descriptor but the machine's, and never longer alive than the parent.
fn leave_the_parent(kvm: &Kvm, config: &MachineConfig, channel: &Channel) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setsid()?;
    process::unblock_signals()?;
    let mut keep = vec![channel.as_fd(), config.kernel.as_fd()];
    let kvm = process::borrow_raw(kvm);
    keep.push(kvm);
    keep.extend(config.kernel_log.as_ref().map(AsFd::as_fd));
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
    process::close_all_but(&keep)?;
    process::standard_streams_to_null()
}

fn run(mut machine: Machine, channel: &Arc<Channel>) -> Result<MachineEnd, RunError> {
    let hung_up = Arc::new(AtomicBool::new(false));
    let control = Control {
        channel: Arc::clone(channel),
        dialer: machine.dialer(),
        hung_up: Arc::clone(&hung_up),
    };
    machine.add_subscriber(Box::new(control));
    sandbox::enter_process().map_err(RunError::Jail)?;
    let mut is_ready = false;
    let on_ready = || {
        // A guest may ring as often as it likes; the monitor is told once.
        if !is_ready {
            is_ready = true;
            channel.report(&Report::Ready);
        }
    };
    machine.run(sandbox::enter_thread, on_ready, || {
        hung_up.load(Ordering::Relaxed)
    })
}

/// The channel on the machine's event loop.
struct Control {
    channel: Arc<Channel>,
    dialer: Dialer,
    hung_up: Arc<AtomicBool>,
}

impl MutEventSubscriber for Control {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        match self.channel.receive::<Command>() {
            Ok(Some((Command::Dial { port }, Some(stream)))) => {
                if let Err(error) = self.dialer.connect(port, UnixStream::from(stream)) {
                    tracing::debug!(%error, "a dial was dropped");
                }
            }
            Ok(Some((Command::Dial { port }, None))) => {
                tracing::debug!(port, "a dial came without a socket")
            }
            // The monitor is gone or speaks nonsense: there is nobody left to run for.
            Ok(None) | Err(_) => {
                self.hung_up.store(true, Ordering::Relaxed);
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
