//! The namespaces of a container: runtime-spec `config-linux.md`, "Namespaces".

use std::ffi::c_int;

use protocol::StartFailure;

use crate::spec;
use crate::step::{invalid, unsupported};

/// The namespaces that are made for the container. It shares the others with the agent.
#[derive(Debug, PartialEq)]
pub(crate) struct NamespacesPlan {
    /// `CLONE_NEW*` of those that are made with the process.
    made: c_int,
    /// The cgroup namespace is made by the process itself, once it is in its cgroup.
    makes_cgroup: bool,
}

impl NamespacesPlan {
    /// Reads `linux.namespaces`.
    ///
    /// # Errors
    ///
    /// If a type is unknown or there twice, or one is to be joined, or the container has no mount namespace of its own.
    pub(crate) fn new(
        namespaces: &[spec::Namespace],
        _linux: &spec::Linux,
    ) -> Result<Self, StartFailure> {
        let mut plan = Self {
            made: 0,
            makes_cgroup: false,
        };
        for (index, namespace) in namespaces.iter().enumerate() {
            let kind = namespace.kind.as_str();
            let before = namespaces.iter().take(index);
            if before.into_iter().any(|other| other.kind == kind) {
                return Err(invalid(
                    "linux.namespaces",
                    format!("type {kind} is there twice"),
                ));
            }
            if namespace.path.0 {
                return Err(unsupported(
                    "linux.namespaces.path",
                    format!("joining a {kind} namespace is not supported"),
                ));
            }
            match kind {
                "pid" => plan.made |= libc::CLONE_NEWPID,
                "mount" => plan.made |= libc::CLONE_NEWNS,
                "uts" => plan.made |= libc::CLONE_NEWUTS,
                "ipc" => plan.made |= libc::CLONE_NEWIPC,
                "network" => plan.made |= libc::CLONE_NEWNET,
                "cgroup" => plan.makes_cgroup = true,
                other => {
                    return Err(unsupported(
                        "linux.namespaces",
                        format!("type {other} is not supported"),
                    ));
                }
            }
        }
        if plan.made & libc::CLONE_NEWNS == 0 {
            return Err(unsupported(
                "linux.namespaces",
                "a container without a mount namespace is not supported",
            ));
        }
        Ok(plan)
    }

    /// `CLONE_NEW*` of those that are made with the process.
    pub(crate) fn at_clone(&self) -> c_int {
        self.made
    }

    /// Whether the process makes a cgroup namespace.
    pub(crate) fn makes_cgroup(&self) -> bool {
        self.makes_cgroup
    }

    /// Whether all that the container started ends with its first process.
    pub(crate) fn makes_pid(&self) -> bool {
        self.made & libc::CLONE_NEWPID != 0
    }

    /// Whether the container's IPC objects are not the machine's.
    pub(crate) fn has_ipc(&self) -> bool {
        self.made & libc::CLONE_NEWIPC != 0
    }

    /// Whether the container's host name is not the machine's.
    pub(crate) fn has_uts(&self) -> bool {
        self.made & libc::CLONE_NEWUTS != 0
    }
}
