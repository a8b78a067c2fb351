//! Who starts a machine's gateway: a thread of the monitor, which begins with the guest's first frame, or at once where ports are
//! published. When a gateway has failed, it waits for a frame once more. A machine that is silent has no such thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::NetworkError;
use super::bridge::Membership;
use super::gateway::{Configuration, Gateway};

/// How soon after one that has failed another one is started.
const PAUSE: Duration = Duration::from_secs(1);

/// What the monitor is to keep for a machine with a network.
#[derive(Debug)]
pub enum Planned {
    /// A gateway of the machine's own.
    Gateway(PlannedGateway),
    /// Its place on a network of the host's.
    Member(Box<Membership>),
}

/// What the monitor keeps for a machine with a network; it ends when this is dropped.
#[derive(Debug)]
pub enum Keeper {
    /// A gateway of the machine's own.
    Gateway(GatewayKeeper),
    /// Its place on a network of the host's.
    Member(Box<Membership>),
}

impl Keeper {
    /// Begins to keep it for a machine of this name. Call it when the monitor has forked for the last time before the machine's end.
    ///
    /// # Errors
    ///
    /// If the host gives no thread, or a network's record cannot be written.
    pub fn start(planned: Planned, name: &str) -> Result<Self, NetworkError> {
        match planned {
            Planned::Gateway(gateway) => GatewayKeeper::new(gateway)
                .map(Self::Gateway)
                .map_err(NetworkError::Keep),
            Planned::Member(mut membership) => {
                membership.begin(name)?;
                Ok(Self::Member(membership))
            }
        }
    }

    /// The gateway, if it is one, which may not have begun.
    #[must_use]
    pub fn gateway(&self) -> Option<&GatewayKeeper> {
        match self {
            Self::Gateway(gateway) => Some(gateway),
            Self::Member(_) => None,
        }
    }
}

/// A gateway that is to be started when it is needed.
#[derive(Debug)]
pub struct PlannedGateway {
    /// What it is to do.
    pub configuration: Configuration,
    /// Its end of the wire.
    pub wire: OwnedFd,
    /// The sockets of published ports, in their order in the configuration.
    pub sockets: Vec<OwnedFd>,
}

/// Keeps a machine's gateway; it ends when this is dropped.
#[derive(Debug)]
pub struct GatewayKeeper {
    planned: Arc<PlannedGateway>,
    thread: OnceLock<KeepingThread>,
}

/// The thread that keeps a gateway, until this is dropped.
#[derive(Debug)]
struct KeepingThread {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl GatewayKeeper {
    /// Begins at once if ports are published. Call it when the monitor has forked for the last time before the machine's end.
    ///
    /// # Errors
    ///
    /// If the host gives no thread or socket.
    pub fn new(planned: PlannedGateway) -> io::Result<Self> {
        let is_published = !planned.sockets.is_empty();
        let keeper = Self {
            planned: Arc::new(planned),
            thread: OnceLock::new(),
        };
        if is_published {
            keeper.begin()?;
        }
        Ok(keeper)
    }

    /// What is readable when the guest has sent its first frame; nothing once the gateway is kept.
    #[must_use]
    pub fn first_frame(&self) -> Option<BorrowedFd<'_>> {
        match self.thread.get() {
            None => Some(self.planned.wire.as_fd()),
            Some(_) => None,
        }
    }

    /// Begins to keep the gateway. It is called once, by one thread.
    ///
    /// # Errors
    ///
    /// If the host gives no thread or socket.
    pub fn begin(&self) -> io::Result<()> {
        let (stop, stopped) = UnixStream::pair()?;
        let planned = Arc::clone(&self.planned);
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || planned.keep(&stopped))?;
        let kept = KeepingThread {
            stop: Some(stop),
            thread: Some(thread),
        };
        // One that was there already ends with the value that is given back.
        let _one_too_many = self.thread.set(kept);
        Ok(())
    }
}

impl Drop for KeepingThread {
    fn drop(&mut self) {
        self.stop.take();
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::warn!("the thread that keeps the network gateway has failed");
        }
    }
}

impl PlannedGateway {
    /// Until the machine or whoever keeps it is gone.
    fn keep(&self, stopped: &UnixStream) {
        let is_published = !self.sockets.is_empty();
        while is_published || await_first(&self.wire, PollFlags::IN, stopped) {
            let sockets: Vec<_> = self.sockets.iter().map(AsFd::as_fd).collect();
            match Gateway::start(&self.configuration, self.wire.as_fd(), &sockets) {
                Ok(gateway) => {
                    if !await_first(&gateway, PollFlags::empty(), stopped) {
                        return;
                    }
                }
                Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
            }
            if has_hung_up(&self.wire) {
                return;
            }
            tracing::warn!(
                "the machine's network gateway has ended: its connections are gone, and another one takes its place"
            );
            if is_stopped_within(stopped, PAUSE) {
                return;
            }
        }
    }
}

/// Waits for something to happen to `what`, and tells whether that came before the end.
fn await_first(what: impl AsFd, flags: PollFlags, stopped: &UnixStream) -> bool {
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(what.as_fd(), flags),
            PollFd::new(stopped, PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return false,
        }
        let [what, stopped] = descriptors.map(|descriptor| descriptor.revents());
        let has_ended = flags.contains(PollFlags::IN) && what.contains(PollFlags::HUP);
        return stopped.is_empty() && !has_ended;
    }
}

fn has_hung_up(wire: &OwnedFd) -> bool {
    let mut descriptors = [PollFd::new(wire, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut descriptors, Some(&now)).is_ok_and(|count| count > 0)
}

fn is_stopped_within(stopped: &UnixStream, pause: Duration) -> bool {
    let timeout = Timespec::try_from(pause).unwrap_or_default();
    let mut descriptors = [PollFd::new(stopped, PollFlags::IN)];
    poll(&mut descriptors, Some(&timeout)).is_ok_and(|count| count > 0)
}
