//! A container that is made before anybody says what is to run in it.
//!
//! Its first process builds the container around itself as any other does, says so, and waits. What it is to become comes in one
//! message, with the streams' descriptors. So a machine can be frozen with a container in it, and a clone has only the rest to do.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use protocol::{FailureKind, StartFailure};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, Signal, WaitOptions};

use super::cgroup::Cgroup;
use super::child::{self, ChildStdio};
use super::launch::{self, LaunchChannel, Launched, MAX_MESSAGE_BYTES};
use super::plan::{ContainerPlan, ProcessPlan};
use crate::step::{Step as _, failure};

/// What a child says when its container is built. No failure is as short.
const BUILT: &[u8] = &[0];

/// Standard streams of a process.
const STREAMS: usize = 3;

/// A container that waits for what is to run in it.
#[derive(Debug)]
pub(crate) struct Staged {
    container: ContainerPlan,
    cgroup: Cgroup,
    pid: Pid,
    channel: LaunchChannel,
}

impl Staged {
    /// Builds a container, and returns when it waits.
    ///
    /// # Errors
    ///
    /// If it cannot be built; nothing of it remains.
    pub(crate) fn new(container: ContainerPlan) -> Result<Self, StartFailure> {
        let cgroup = container.cgroup.make()?;
        let made = launch::make_child(&container, &cgroup, |channel| live(&container, channel));
        let (pid, channel) = match made {
            Ok(made) => made,
            Err(failure) => {
                cgroup.remove();
                return Err(failure);
            }
        };
        let staged = Self {
            container,
            cgroup,
            pid,
            channel,
        };
        match staged.await_built() {
            Ok(()) => Ok(staged),
            Err(failure) => {
                staged.discard();
                Err(failure)
            }
        }
    }

    fn await_built(&self) -> Result<(), StartFailure> {
        let mut space = [MaybeUninit::uninit(); MAX_MESSAGE_BYTES];
        let ((message, _), _) = rustix::net::recv(&self.channel, &mut space, RecvFlags::empty())
            .step(|| "waiting for the container".to_owned())?;
        if message == BUILT {
            return Ok(());
        }
        Err(postcard::from_bytes(message).unwrap_or_else(|_| {
            failure(
                FailureKind::Failed,
                "building the container",
                "its process ended",
            )
        }))
    }

    /// Whether this is the container that is wanted.
    pub(crate) fn is(&self, wanted: &ContainerPlan) -> bool {
        self.container == *wanted
    }

    /// Lets its process become a program. Gives the container back if that cannot be told it.
    ///
    /// # Errors
    ///
    /// If there are no pipes for the streams; nothing of the container remains.
    pub(crate) fn release(
        self,
        process: &ProcessPlan,
    ) -> Result<Result<(Cgroup, Launched), Self>, StartFailure> {
        let (stdio, child_stdio) = match launch::pipes(process) {
            Ok(pipes) => pipes,
            Err(failure) => {
                self.discard();
                return Err(failure);
            }
        };
        Ok(match self.send(process, &child_stdio) {
            Ok(()) => Ok((
                self.cgroup,
                Launched {
                    pid: self.pid,
                    channel: self.channel,
                    stdio,
                },
            )),
            Err(_) => Err(self),
        })
    }

    /// The kernel takes a message whole or not at all: what is longer than a socket's buffer is refused.
    fn send(&self, process: &ProcessPlan, stdio: &ChildStdio) -> rustix::io::Result<()> {
        let message = postcard::to_stdvec(process).map_err(|_| Errno::MSGSIZE)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let streams: Vec<BorrowedFd<'_>> = [&stdio.stdin, &stdio.stdout, &stdio.stderr]
            .into_iter()
            .flatten()
            .map(|stream| stream.as_fd())
            .collect();
        if !streams.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&streams)) {
            return Err(Errno::NOBUFS);
        }
        // A message that does not fit now never fits: nothing else is in the buffer.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        rustix::net::sendmsg(
            &self.channel,
            &[IoSlice::new(&message)],
            &mut control,
            flags,
        )
        .map(drop)
    }

    /// Ends its process and removes what there is of it.
    pub(crate) fn discard(self) {
        // It was not reaped, so the id is its own.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        while let Err(Errno::INTR) = rustix::process::waitpid(Some(self.pid), WaitOptions::empty())
        {
        }
        self.cgroup.remove();
    }
}

/// The child's life. Returns only the reason why it did not become a program.
fn live(container: &ContainerPlan, channel: &OwnedFd) -> StartFailure {
    let told = child::build(container).and_then(|()| {
        let step = || "waiting for what to run".to_owned();
        rustix::net::send(channel, BUILT, SendFlags::NOSIGNAL).step(step)?;
        await_process(channel).step(step)
    });
    match told {
        Ok((process, stdio)) => child::become_program(&process, stdio, |terminal| {
            launch::send_terminal(channel, terminal)
        }),
        Err(failure) => failure,
    }
}

/// Waits for the message of [`Staged::send`].
fn await_process(channel: &OwnedFd) -> rustix::io::Result<(ProcessPlan, ChildStdio)> {
    let (_, length) = rustix::net::recv(channel, &mut [0; 0], RecvFlags::PEEK | RecvFlags::TRUNC)?;
    let mut message = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        channel,
        &mut [IoSliceMut::new(&mut message)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let process: ProcessPlan = postcard::from_bytes(&message).map_err(|_| Errno::BADMSG)?;
    let mut streams = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(streams) => streams.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let declared = process.streams;
    let has_pipes = process.terminal.is_none();
    let mut next = |is_declared: bool| {
        if is_declared && has_pipes {
            streams.next()
        } else {
            None
        }
    };
    let stdio = ChildStdio {
        stdin: next(declared.stdin),
        stdout: next(declared.stdout),
        stderr: next(declared.stderr),
    };
    Ok((process, stdio))
}
