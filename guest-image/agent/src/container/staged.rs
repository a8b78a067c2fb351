//! A container that is made before anybody says what is to run in it.
//!
//! Its first process builds the container around itself as any other does, says so, and waits. What it is to become comes in one
//! message, with the streams' descriptors. So a machine can be frozen with a container in it, and a clone has only the rest to do.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use protocol::{FailureKind, Network, StartFailure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, Signal, WaitOptions};

use super::cgroup::Cgroup;
use super::channel::{AgentChannel, LaunchChannel, LaunchNews, Layers};
use super::child::{self, ChildStdio, Part};
use super::launch::{self, Launched};
use super::outside::Outside;
use super::plan::{ContainerPlan, ProcessPlan};
use super::user;
use crate::step::{Step as _, failure, invalid};
use crate::sys::{self, OneProcessor};

/// Standard streams of a process.
const STREAMS: usize = 3;

/// A container that waits for what is to run in it.
#[derive(Debug)]
pub(crate) struct Staged {
    container: Rc<ContainerPlan>,
    cgroup: Cgroup,
    pid: Pid,
    channel: LaunchChannel,
    namespaces: Namespaces,
    layers: Option<Layers>,
    processor: OneProcessor,
    /// What was set up with it.
    network: Option<Network>,
}

/// References to the namespaces of a process. While they are held its end does not take the namespaces apart, mounts and all.
#[derive(Debug)]
pub(crate) struct Namespaces {
    _held: Vec<OwnedFd>,
}

impl Namespaces {
    /// Those that take long to end.
    const COSTLY: [&str; 2] = ["mnt", "ipc"];

    fn of(pid: Pid) -> Result<Self, StartFailure> {
        let open = |name: &&str| {
            let path = format!("/proc/{}/ns/{name}", pid.as_raw_nonzero());
            rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step(|| format!("opening {path}"))
        };
        let held = Self::COSTLY.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { _held: held })
    }
}

/// A process that was released, and what to keep until it is over.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) launched: Launched,
    pub(crate) cgroup: Cgroup,
    pub(crate) namespaces: Namespaces,
    pub(crate) layers: Option<Layers>,
}

impl Staged {
    /// Builds a container, and returns when it waits. Until it is used or given up, its process and the agent stay on one processor:
    /// that a clone's first steps wake another one costs more than it could do, most of all where the host has none to spare.
    ///
    /// # Errors
    ///
    /// If it cannot be built, or has hooks, which run for one container and not for those that will be copies of it; nothing of it
    /// remains.
    pub(crate) fn new(
        container: Rc<ContainerPlan>,
        network: Option<Network>,
    ) -> Result<Self, StartFailure> {
        if !container.hooks.is_empty() {
            return Err(invalid("hooks", "a container with hooks is not made ahead"));
        }
        let processor = OneProcessor::stay();
        let cgroup = container.cgroup.make()?;
        let made = launch::make_child(&container, &cgroup, |agent, outside| {
            live(&container, outside, agent)
        });
        let (maker, channel) = match made {
            Ok(made) => made,
            Err(failure) => {
                cgroup.remove();
                return Err(failure);
            }
        };
        let mut pid = maker;
        let mut layers = None;
        let built = await_built(&channel, &mut pid, &mut layers);
        if pid != maker {
            end(maker);
        }
        match built.and_then(|()| Namespaces::of(pid)) {
            Ok(namespaces) => Ok(Self {
                container,
                cgroup,
                pid,
                channel,
                namespaces,
                layers,
                processor,
                network,
            }),
            Err(failure) => {
                end(pid);
                cgroup.remove();
                Err(failure)
            }
        }
    }

    /// Whether this is the container that is wanted.
    pub(crate) fn is(&self, wanted: &ContainerPlan) -> bool {
        *self.container == *wanted
    }

    /// The network that was set up with it.
    pub(crate) fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Lets its process become a program. Gives the container back if that cannot be told it.
    ///
    /// # Errors
    ///
    /// If there are no pipes for the streams; nothing of the container remains.
    pub(crate) fn release(
        self,
        process: &ProcessPlan,
    ) -> Result<Result<Released, Self>, StartFailure> {
        let granted = match self.container.namespaces.has_user() {
            true => process.grant(self.pid),
            false => Ok(()),
        };
        let pipes = granted.and_then(|()| launch::pipes(&self.container, process));
        let (stdio, child_stdio) = match pipes {
            Ok(pipes) => pipes,
            Err(failure) => {
                self.discard();
                return Err(failure);
            }
        };
        Ok(match self.send(process, &child_stdio) {
            Ok(()) => Ok(Released {
                launched: Launched {
                    pid: self.pid,
                    channel: self.channel,
                    stdio,
                    processor: Some(self.processor),
                    // It is made.
                    is_maker: false,
                },
                cgroup: self.cgroup,
                namespaces: self.namespaces,
                layers: self.layers,
            }),
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
        end(self.pid);
        self.cgroup.remove();
    }
}

/// Ends a process that was not reaped, so that the id is its own.
fn end(pid: Pid) {
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    while let Err(Errno::INTR) = rustix::process::waitpid(Some(pid), WaitOptions::empty()) {}
}

/// Waits until the child says that its container is built. A maker gives way to the process that it names.
fn await_built(
    channel: &LaunchChannel,
    pid: &mut Pid,
    layers: &mut Option<Layers>,
) -> Result<(), StartFailure> {
    loop {
        match channel.wait() {
            LaunchNews::Layers(of_root) => *layers = Some(of_root),
            LaunchNews::Made(process) => *pid = process,
            LaunchNews::Waits => channel.go_on(),
            LaunchNews::Built => return Ok(()),
            LaunchNews::Failed(failure) => return Err(failure),
            LaunchNews::Terminal(_) | LaunchNews::HungUp | LaunchNews::Done => {
                return Err(failure(
                    FailureKind::Failed,
                    "building the container",
                    "its process ended",
                ));
            }
        }
    }
}

/// The child's life. Returns only the reason why it did not become a program.
fn live(container: &ContainerPlan, outside: &Outside<'_>, agent: &AgentChannel) -> StartFailure {
    let told = child::build(container, outside, agent).and_then(|()| {
        user::look_ahead();
        sys::fault_in();
        let step = || "waiting for what to run".to_owned();
        agent.built().step(step)?;
        await_process(agent).step(step)
    });
    match told {
        Ok((process, stdio)) => {
            sys::use_every_processor();
            child::become_program(Part::First, container, &process, stdio, agent)
        }
        Err(failure) => failure,
    }
}

/// Waits for the message of [`Staged::send`].
fn await_process(channel: &AgentChannel) -> rustix::io::Result<(ProcessPlan, ChildStdio)> {
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
