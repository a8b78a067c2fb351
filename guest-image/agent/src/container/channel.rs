//! What the agent and a process on its way to its program say to each other.
//!
//! ```text
//! maker, process                                    agent
//!  |--- Made{pid} (from a maker, which then ends) ---->|   this is the process, I am not
//!  |--- Layers, with the directories of its root ------->|   for those who ask for what it changes
//!  |--- Waits ---------------------------------------->|   gives what only the machine's root may give, runs hooks
//!  |<-- a byte: go on ----------------------------------|
//!  |--- Built (only from one that is made ahead) ------>|
//!  |<-- what to become, with the standard streams ------|   (`staged.rs`)
//!  |--- Terminal, with its controlling side ----------->|
//!  |--- Failed{why}, or a hang-up by the exec --------->|
//! ```
//!
//! Messages keep their boundaries, a descriptor can travel, and the end that the process holds closes with its exec.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::{FailureKind, StartFailure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::step::{Step as _, failure};

/// As many descriptors as travel with a message.
const MAX_PASSED: usize = 3;

/// More than the longest message from a process: a bounded failure, encoded.
const MAX_MESSAGE_BYTES: usize = 5 << 10;

/// What a process says.
#[derive(Debug, Deserialize, Serialize)]
enum Message {
    Made(i32),
    Waits,
    Layers,
    Built,
    Terminal,
    Failed(StartFailure),
    Done,
}

/// What the agent says to one that waits.
const GO_ON: &[u8] = &[1];

/// What a container's root is made of, by directories that nobody else can reach.
#[derive(Debug)]
pub(crate) struct Layers {
    /// What the container has changed, as overlayfs keeps it.
    pub(crate) upper: OwnedFd,
    /// What it began with.
    pub(crate) lower: OwnedFd,
    /// Both as one, without what is mounted there.
    pub(crate) root: OwnedFd,
}

/// What the agent hears.
#[derive(Debug)]
pub(crate) enum LaunchNews {
    /// The process was made by one that was only there for this.
    Made(Pid),
    /// The process waits for the agent.
    Waits,
    /// What the container's root is made of.
    Layers(Layers),
    /// The container is built, and the process waits for what to become.
    Built,
    /// The controlling side of the process's terminal.
    Terminal(OwnedFd),
    /// The program runs, or the process was killed on the way to it.
    HungUp,
    /// The process ends without having become the program; or a hook failed.
    Failed(StartFailure),
    /// All hooks have run.
    Done,
}

/// The agent's end.
#[derive(Debug)]
pub(crate) struct LaunchChannel(OwnedFd);

/// The process's end.
#[derive(Debug)]
pub(crate) struct AgentChannel(OwnedFd);

/// Makes both ends.
///
/// # Errors
///
/// If the kernel has no descriptors left.
pub(super) fn pair() -> rustix::io::Result<(LaunchChannel, AgentChannel)> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    Ok((LaunchChannel(ours), AgentChannel(theirs)))
}

impl AsFd for LaunchChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for AgentChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl LaunchChannel {
    /// Takes the next news, or `None` if there is none yet. After a hang-up or a failure there is no more.
    pub(crate) fn receive(&self) -> Option<LaunchNews> {
        match self.take(RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok(news) => Some(news),
            Err(_) => Some(LaunchNews::HungUp),
        }
    }

    /// Waits for the next news.
    pub(crate) fn wait(&self) -> LaunchNews {
        loop {
            match self.take(RecvFlags::empty()) {
                Err(Errno::INTR) => (),
                Ok(news) => return news,
                Err(_) => return LaunchNews::HungUp,
            }
        }
    }

    fn take(&self, flags: RecvFlags) -> rustix::io::Result<LaunchNews> {
        let mut message = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Ok(LaunchNews::HungUp);
        }
        let mut passed = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        });
        let (first, second, third) = (passed.next(), passed.next(), passed.next());
        let body = message.get(..received.bytes).unwrap_or_default();
        Ok(match (postcard::from_bytes(body), first) {
            (Ok(Message::Terminal), Some(terminal)) => LaunchNews::Terminal(terminal),
            (Ok(Message::Layers), Some(upper)) => match (second, third) {
                (Some(lower), Some(root)) => LaunchNews::Layers(Layers { upper, lower, root }),
                _ => nonsense(),
            },
            (Ok(Message::Made(pid)), _) => {
                Pid::from_raw(pid).map_or_else(nonsense, LaunchNews::Made)
            }
            (Ok(Message::Waits), _) => LaunchNews::Waits,
            (Ok(Message::Built), _) => LaunchNews::Built,
            (Ok(Message::Failed(failure)), _) => LaunchNews::Failed(failure),
            (Ok(Message::Done), _) => LaunchNews::Done,
            (Ok(Message::Terminal | Message::Layers), None) | (Err(_), _) => nonsense(),
        })
    }

    /// Lets a process go on that waits. One that is no more hears nothing.
    pub(crate) fn go_on(&self) {
        let _ = rustix::net::send(&self.0, GO_ON, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

fn nonsense() -> LaunchNews {
    LaunchNews::Failed(failure(
        FailureKind::Failed,
        "starting the process",
        "it says what nobody understands",
    ))
}

impl AgentChannel {
    fn send(&self, message: &Message) -> rustix::io::Result<()> {
        let message = postcard::to_stdvec(message).map_err(|_| Errno::MSGSIZE)?;
        // Not send(2): a failure may be one of the container's own seccomp filter, and few of them forbid to write.
        rustix::io::write(&self.0, &message).map(drop)
    }

    /// Says who the container's process is.
    pub(super) fn made(&self, pid: Pid) -> Result<(), StartFailure> {
        self.send(&Message::Made(pid.as_raw_nonzero().get()))
            .step(|| "naming the process".to_owned())
    }

    /// Waits until the agent has done its part.
    pub(super) fn wait(&self) -> Result<(), StartFailure> {
        let step = || "waiting for the agent".to_owned();
        self.send(&Message::Waits).step(step)?;
        let mut answer = [0; 1];
        let (received, _) =
            rustix::net::recv(&self.0, &mut answer, RecvFlags::empty()).step(step)?;
        match received {
            1 => Ok(()),
            _ => Err(failure(FailureKind::Failed, step(), "it is gone")),
        }
    }

    /// Says that the container is built.
    pub(super) fn built(&self) -> rustix::io::Result<()> {
        self.send(&Message::Built)
    }

    /// Sends the terminal's controlling side.
    pub(super) fn send_terminal(&self, terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
        self.send_with(&Message::Terminal, &[terminal])
    }

    /// Sends what the container's root is made of.
    pub(super) fn send_layers(&self, layers: &Layers) -> rustix::io::Result<()> {
        let Layers { upper, lower, root } = layers;
        self.send_with(
            &Message::Layers,
            &[upper.as_fd(), lower.as_fd(), root.as_fd()],
        )
    }

    fn send_with(&self, message: &Message, passed: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
        let message = postcard::to_stdvec(message).map_err(|_| Errno::MSGSIZE)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(passed)) {
            return Err(Errno::NOBUFS);
        }
        let body = [IoSlice::new(&message)];
        rustix::net::sendmsg(&self.0, &body, &mut control, SendFlags::NOSIGNAL).map(drop)
    }

    /// Says that all hooks have run.
    pub(super) fn done(&self) {
        // As with a failure, nobody is left to tell.
        let _ = self.send(&Message::Done);
    }

    /// Says why the process ends without having become its program.
    pub(super) fn failed(&self, failure: StartFailure) {
        // Nobody is left to tell if this fails; the agent then sees a process that exited.
        let _ = self.send(&Message::Failed(failure.bounded()));
    }
}
