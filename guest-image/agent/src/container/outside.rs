//! What a container takes from outside of it, opened by the agent before there is a process, so that whatever is missing is refused
//! before anything exists.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use protocol::StartFailure;

use super::cgroup::Cgroup;
use super::namespaces::OpenNamespaces;
use super::plan::ContainerPlan;
use super::volumes;

/// Open descriptors, for the process to inherit.
#[derive(Debug)]
pub(super) struct Outside<'agent> {
    pub(super) cgroup: &'agent Cgroup,
    pub(super) namespaces: OpenNamespaces,
    /// For each mount the user namespace of its own mappings, if it has some.
    mappings: Vec<Option<OwnedFd>>,
}

impl<'agent> Outside<'agent> {
    /// Opens all that the container takes from outside.
    ///
    /// # Errors
    ///
    /// If something is not there, or the kernel refuses a mapping of ids.
    pub(super) fn open(
        container: &ContainerPlan,
        cgroup: &'agent Cgroup,
    ) -> Result<Self, StartFailure> {
        volumes::mount(&container.volumes)?;
        Ok(Self {
            cgroup,
            namespaces: container.namespaces.open()?,
            mappings: container
                .mounts
                .iter()
                .map(super::mounts::Mount::open_mappings)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The user namespace whose ids a mount shows if it maps them: its own, or the container's.
    pub(super) fn users_of_mount(&self, index: usize) -> Option<BorrowedFd<'_>> {
        let own = self.mappings.get(index).and_then(Option::as_ref);
        own.map(|fd| fd.as_fd()).or_else(|| self.namespaces.user())
    }
}
