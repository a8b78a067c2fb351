//! Who starts a machine's gateway: a thread of the monitor, which waits for the guest's first frame, or for nothing where ports are
//! published. When a gateway has failed, that happens again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
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
            Planned::Gateway(gateway) => GatewayKeeper::start(gateway)
                .map(Self::Gateway)
                .map_err(NetworkError::Keep),
            Planned::Member(mut membership) => {
                membership.begin(name)?;
                Ok(Self::Member(membership))
            }
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
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl GatewayKeeper {
    /// Begins to wait. Call it when the monitor has forked for the last time before the machine's end.
    ///
    /// # Errors
    ///
    /// If the host gives no thread or socket.
    pub fn start(planned: PlannedGateway) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name("gateway".to_owned())
            .spawn(move || planned.keep(&stopped))?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for GatewayKeeper {
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
