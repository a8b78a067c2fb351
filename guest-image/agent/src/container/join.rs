//! How another process gets into a container that runs: by what its first process is in.
//!
//! The process is made by a maker that goes ahead, since a PID namespace is entered only by being made in it. Its memory is a copy of
//! the agent's for a moment, with the agent's descriptors, so it lets nobody look into it until it is the program.

use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;

use protocol::{FailureKind, StartFailure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;

use super::cgroup::{self, Cgroup, Freezer, Frozen};
use super::channel::{AgentChannel, Layers};
use super::child;
use super::plan::ContainerPlan;
use crate::step::{Step as _, failure};
use crate::sys::{self, Parent, Side};

/// A container that can be joined.
#[derive(Debug)]
pub(crate) struct Joint {
    first: OwnedFd,
    first_pid: Pid,
    cgroup: Option<OwnedFd>,
    freezer: Freezer,
    layers: Option<Rc<Layers>>,
}

impl Joint {
    /// The container of a first process, which was not reaped.
    ///
    /// # Errors
    ///
    /// If the process has ended, or there are no descriptors left.
    pub(crate) fn of(
        first: Pid,
        cgroup: Option<&Cgroup>,
        freezer: Freezer,
        layers: Option<Rc<Layers>>,
    ) -> Result<Self, StartFailure> {
        let step = || "joining the container".to_owned();
        let directory = cgroup.and_then(Cgroup::directory);
        Ok(Self {
            first: rustix::process::pidfd_open(first, PidfdFlags::empty()).step(step)?,
            first_pid: first,
            cgroup: directory
                .map(|directory| rustix::io::fcntl_dupfd_cloexec(directory, 0))
                .transpose()
                .step(step)?,
            freezer,
            layers,
        })
    }

    /// What its root is made of.
    pub(super) fn layers(&self) -> Option<&Layers> {
        self.layers.as_deref()
    }

    /// Stops what runs in it until the result, and that of all others who have stopped it, is dropped; nothing where it does not come
    /// to a stop.
    pub(crate) fn freeze(&self) -> Option<Rc<Frozen>> {
        self.freezer.freeze(self.cgroup.as_ref()?)
    }

    /// Makes the maker in the container's cgroup. Where that has no processes of its own, because the container has divided it, as
    /// systemd does, it is made in the first process's.
    pub(super) fn clone_into_cgroup(&self) -> Result<Side, StartFailure> {
        let step = || "making the process".to_owned();
        let directory = self.cgroup.as_ref().map(OwnedFd::as_fd);
        let error = match sys::clone(0, directory, Parent::Caller) {
            Ok(side) => return Ok(side),
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => {
                let directory = self.cgroup_of_first().step(step)?;
                sys::clone(0, Some(directory.as_fd()), Parent::Caller).step(step)
            }
            _ => Err(error).step(step),
        }
    }

    fn cgroup_of_first(&self) -> rustix::io::Result<OwnedFd> {
        let path = cgroup::path_of(self.first_pid)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
    }

    /// Takes the calling maker into the container, and makes the process there. Returns in that.
    ///
    /// # Errors
    ///
    /// If a step fails; it is named.
    pub(super) fn enter(
        &self,
        container: &ContainerPlan,
        agent: &AgentChannel,
    ) -> Result<(), StartFailure> {
        let step = || "joining the container".to_owned();
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(step)?;
        let namespaces = &container.namespaces;
        let kinds = ThreadNameSpaceType::from_bits_retain(namespaces.all().cast_unsigned());
        match rustix::thread::move_into_thread_name_spaces(self.first.as_fd(), kinds) {
            Err(Errno::SRCH) => return Err(ended()),
            result => result.step(step)?,
        }
        if namespaces.has_user() {
            sys::become_root().step(|| "becoming the root of the user namespace".to_owned())?;
        }
        child::give_way(0, agent).map_err(|failure| match self.has_ended() {
            true => ended(),
            false => failure,
        })?;
        sys::reset_signals();
        rustix::process::umask(Mode::empty());
        rustix::process::setsid().step(|| "making a session".to_owned())?;
        if namespaces.has_user() {
            agent.wait()?;
        }
        Ok(())
    }

    /// Whether the first process has ended: nothing can be made in its PID namespace then.
    fn has_ended(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut descriptors = [PollFd::new(&self.first, PollFlags::IN)];
        poll(&mut descriptors, Some(&Timespec::default())) == Ok(1)
    }
}

/// The failure of a process that came too late.
pub(crate) fn ended() -> StartFailure {
    failure(
        FailureKind::Failed,
        "joining the container",
        "its first process does not run",
    )
}
