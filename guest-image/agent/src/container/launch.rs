//! Makes the process of a container, from the agent's side.

use std::os::fd::OwnedFd;

use protocol::{FilesTask, StartFailure};
use rustix::fs::{Gid, Uid};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;

use super::cgroup::Cgroup;
use super::channel::{self, AgentChannel, LaunchChannel};
use super::child::{self, ChildStdio, Part};
use super::files;
use super::join::Joint;
use super::outside::Outside;
use super::plan::{ContainerPlan, Plan, ProcessPlan};
use crate::step::Step as _;
use crate::sys::{self, OneProcessor, Parent, Side};

/// A process that was made and that has not become its program yet.
#[derive(Debug)]
pub(crate) struct Launched {
    /// The process, or the maker, which says who the process is.
    pub(crate) pid: Pid,
    pub(crate) channel: LaunchChannel,
    pub(crate) stdio: AgentStdio,
    /// Whether it is a maker.
    pub(crate) is_maker: bool,
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

/// Makes the process.
///
/// # Errors
///
/// If what it joins or binds is not there, or a pipe or the process cannot be made.
pub(crate) fn launch(plan: &Plan, cgroup: &Cgroup) -> Result<Launched, StartFailure> {
    let (agent_stdio, child_stdio) = pipes(&plan.container, &plan.process)?;
    let (pid, channel) = make_child(
        &plan.container,
        cgroup,
        |agent, outside| match child::build(&plan.container, outside, agent) {
            Ok(()) => child::become_program(
                Part::First,
                &plan.container,
                &plan.process,
                child_stdio,
                agent,
            ),
            Err(failure) => failure,
        },
    )?;
    Ok(Launched {
        pid,
        channel,
        stdio: agent_stdio,
        is_maker: plan.container.namespaces.needs_maker(),
        processor: None,
    })
}

/// Makes the first process of a container's namespaces, which lives `life`; what that returns is sent as why it failed. Where the
/// namespaces need one, it makes the maker, which does the same and leaves its life to the process.
pub(super) fn make_child(
    container: &ContainerPlan,
    cgroup: &Cgroup,
    life: impl FnOnce(&AgentChannel, &Outside<'_>) -> StartFailure,
) -> Result<(Pid, LaunchChannel), StartFailure> {
    let outside = Outside::open(container, cgroup)?;
    let (ours, theirs) = channel::pair().step(|| "making the launch channel".to_owned())?;
    let namespaces = if container.namespaces.needs_maker() {
        libc::CLONE_NEWNS
    } else {
        container.namespaces.at_clone()
    };
    let side = sys::clone(namespaces, cgroup.directory(), Parent::Caller)
        .step(|| "making the process".to_owned())?;
    match side {
        Side::Parent(pid) => Ok((pid, ours)),
        Side::Child => {
            // Whoever holds the other end in a copy would keep this process from noticing that the agent let go of it.
            drop(ours);
            theirs.failed(life(&theirs, &outside));
            sys::exit_child()
        }
    }
}

/// Makes another process of a container.
///
/// # Errors
///
/// If a pipe or the process cannot be made.
pub(crate) fn join(
    container: &ContainerPlan,
    process: &ProcessPlan,
    joint: &Joint,
) -> Result<Launched, StartFailure> {
    let (agent_stdio, child_stdio) = pipes(container, process)?;
    let (ours, theirs) = channel::pair().step(|| "making the launch channel".to_owned())?;
    match joint.clone_into_cgroup()? {
        Side::Parent(pid) => Ok(Launched {
            pid,
            channel: ours,
            stdio: agent_stdio,
            is_maker: true,
            processor: None,
        }),
        Side::Child => {
            drop(ours);
            let joined = process
                .affinity
                .begin()
                .and_then(|()| joint.enter(container, &theirs))
                .and_then(|()| process.affinity.settle());
            let failure = match joined {
                Ok(()) => {
                    child::become_program(Part::Joined, container, process, child_stdio, &theirs)
                }
                Err(failure) => failure,
            };
            theirs.failed(failure);
            sys::exit_child()
        }
    }
}

/// Makes the pipes of the streams that are declared.
///
/// # Errors
///
/// If the kernel has none left.
pub(super) fn pipes(
    container: &ContainerPlan,
    process: &ProcessPlan,
) -> Result<(AgentStdio, ChildStdio), StartFailure> {
    let step = || "making the standard streams".to_owned();
    let (agent, child) = open_pipes(process).step(step)?;
    if let Some(mappings) = container.namespaces.mappings() {
        // The root of the container hands them to its user, and knows only who is mapped.
        let (uid, gid) = mappings.outside(0, 0);
        for stream in [&child.stdin, &child.stdout, &child.stderr] {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            if let Some(stream) = stream {
                rustix::fs::fchown(stream, Some(uid), Some(gid)).step(step)?;
            }
        }
    }
    Ok((agent, child))
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

/// Makes a process that does something with a container's files.
///
/// # Errors
///
/// If a pipe or the process cannot be made.
pub(crate) fn files(
    container: &ContainerPlan,
    process: &ProcessPlan,
    task: &FilesTask,
    joint: &Joint,
) -> Result<Launched, StartFailure> {
    let (agent_stdio, child_stdio) = pipes(container, process)?;
    let (ours, theirs) = channel::pair().step(|| "making the launch channel".to_owned())?;
    let joins = files::joins(task);
    let side = match joins {
        true => joint.clone_into_cgroup()?,
        // The container may be frozen.
        false => sys::clone(0, None, Parent::Caller).step(|| "making the process".to_owned())?,
    };
    match side {
        Side::Parent(pid) => Ok(Launched {
            pid,
            channel: ours,
            stdio: agent_stdio,
            is_maker: joins,
            processor: None,
        }),
        Side::Child => {
            drop(ours);
            let ready = match joins {
                true => joint.enter(container, &theirs),
                false => {
                    sys::reset_signals();
                    Ok(())
                }
            };
            let failure = match ready {
                Ok(()) => files::attend(container, task, joint, child_stdio, &theirs),
                Err(failure) => failure,
            };
            theirs.failed(failure);
            sys::exit_child()
        }
    }
}
