//! Makes the process of a container, from the agent's side.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::{FailureKind, StartFailure};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::cgroup::Cgroup;
use super::child::{self, ChildStdio};
use super::plan::{ContainerPlan, Plan, ProcessPlan};
use crate::step::{Step as _, failure};
use crate::sys::{self, OneProcessor, Side};

/// More than the longest message from a child: a bounded failure, encoded.
pub(super) const MAX_MESSAGE_BYTES: usize = 5 << 10;

/// A process that was made and that has not become its program yet.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: Pid,
    pub(crate) channel: LaunchChannel,
    pub(crate) stdio: AgentStdio,
    /// Of one that waited: where it stays until it is its program.
    pub(crate) processor: Option<OneProcessor>,
}

/// The agent's ends of a process's standard streams. With a terminal, that comes through the channel instead.
#[derive(Debug, Default)]
pub(crate) struct AgentStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// What the child says about its launch.
#[derive(Debug)]
pub(crate) enum LaunchNews {
    /// The controlling side of the process's terminal.
    Terminal(OwnedFd),
    /// The program runs, or the child was killed on the way to it.
    Running,
    /// The child ends without having become the program.
    Failed(StartFailure),
}

/// Makes the process.
///
/// # Errors
///
/// If a pipe or the process cannot be made.
pub(crate) fn launch(plan: &Plan, cgroup: &Cgroup) -> Result<Launched, StartFailure> {
    let (agent_stdio, child_stdio) = pipes(&plan.process)?;
    let (pid, channel) = make_child(&plan.container, cgroup, |channel| {
        match child::build(&plan.container) {
            Ok(()) => child::become_program(&plan.process, child_stdio, |terminal| {
                send_terminal(channel, terminal)
            }),
            Err(failure) => failure,
        }
    })?;
    Ok(Launched {
        pid,
        channel,
        stdio: agent_stdio,
        processor: None,
    })
}

/// Makes the first process of a container's namespaces, which lives `life`; what that returns is sent as why it failed.
pub(super) fn make_child(
    container: &ContainerPlan,
    cgroup: &Cgroup,
    life: impl FnOnce(&OwnedFd) -> StartFailure,
) -> Result<(Pid, LaunchChannel), StartFailure> {
    // Messages keep their boundaries, a descriptor can travel, and the end that the child holds closes with its exec.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .step(|| "making the launch channel".to_owned())?;
    let side = sys::clone(container.namespaces.at_clone(), cgroup.directory())
        .step(|| "making the process".to_owned())?;
    match side {
        Side::Parent(pid) => Ok((pid, LaunchChannel(ours))),
        Side::Child => {
            // Whoever holds the other end in a copy would keep this process from noticing that the agent let go of it.
            drop(ours);
            let failure = life(&theirs);
            // Nobody is left to tell if this fails; the agent then sees a process that exited.
            let message = postcard::to_stdvec(&failure.bounded()).unwrap_or_default();
            let _ = rustix::net::send(&theirs, &message, SendFlags::NOSIGNAL);
            sys::exit_child()
        }
    }
}

/// Makes the pipes of the streams that are declared.
///
/// # Errors
///
/// If the kernel has none left.
pub(super) fn pipes(process: &ProcessPlan) -> Result<(AgentStdio, ChildStdio), StartFailure> {
    open_pipes(process).step(|| "making the standard streams".to_owned())
}

fn open_pipes(process: &ProcessPlan) -> rustix::io::Result<(AgentStdio, ChildStdio)> {
    let mut agent = AgentStdio::default();
    let mut child = ChildStdio::default();
    if process.terminal.is_some() {
        return Ok((agent, child));
    }
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    if process.streams.stdin {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (child.stdin, agent.stdin) = (Some(read), Some(write));
    }
    if process.streams.stdout {
        let (read, write) = pipe()?;
        (agent.stdout, child.stdout) = (Some(read), Some(write));
    }
    if process.streams.stderr {
        let (read, write) = pipe()?;
        (agent.stderr, child.stderr) = (Some(read), Some(write));
    }
    Ok((agent, child))
}

/// Sends the terminal's controlling side; the message's body is empty but for one byte, which failures never are.
pub(super) fn send_terminal(channel: &OwnedFd, terminal: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [terminal];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    rustix::net::sendmsg(
        channel,
        &[IoSlice::new(&[0])],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map(drop)
}

/// The agent's end of the channel to a child that is not a program yet.
#[derive(Debug)]
pub(crate) struct LaunchChannel(OwnedFd);

impl AsFd for LaunchChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl LaunchChannel {
    /// Takes the next news, or `None` if there is none yet. After anything but a terminal, there is no more.
    pub(crate) fn receive(&self) -> Option<LaunchNews> {
        let mut message = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut message)],
            &mut control,
            flags,
        ) {
            Ok(received) => received.bytes,
            Err(Errno::AGAIN | Errno::INTR) => return None,
            Err(_) => 0,
        };
        if received == 0 {
            return Some(LaunchNews::Running);
        }
        let terminal = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        if let Some(terminal) = terminal {
            return Some(LaunchNews::Terminal(terminal));
        }
        let body = message.get(..received).unwrap_or_default();
        Some(LaunchNews::Failed(
            postcard::from_bytes(body).unwrap_or_else(|error| {
                failure(
                    FailureKind::Failed,
                    "starting the process",
                    error.to_string(),
                )
            }),
        ))
    }
}
