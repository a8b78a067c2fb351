//! Containers: from a `config.json` to a process that runs its program.
//!
//! [`Plan::new`] decides everything and refuses what is not supported, before anything exists. [`launch::launch`] makes
//! the process; in the child, [`child::build`] builds the container around itself, step by step, and [`child::become_program`]
//! becomes the program. [`Staged`] does the first half ahead. Another process of a container joins what was built: [`Joint`].

mod capabilities;
mod cgroup;
pub(crate) mod channel;
mod child;
mod copy_up;
mod devices;
mod disk;
mod files;
pub(crate) mod hooks;
mod id_mappings;
mod init;
mod join;
pub(crate) mod launch;
mod loopback;
mod mount_options;
mod mounts;
mod namespaces;
mod outside;
mod paths;
mod personality;
mod plan;
pub(crate) mod processes;
mod program;
mod rlimits;
mod rootfs;
mod scheduling;
mod seccomp;
mod staged;
mod sysctl;
mod upper;
mod user;
pub(crate) mod volumes;

use rustix::fs::{Mode, OFlags};

pub(crate) use cgroup::{Cgroup, Freezer, Frozen, MOUNT_POINT as CGROUP_MOUNT_POINT};
pub(crate) use child::{Part, winsize};
pub(crate) use join::{Joint, ended};
pub(crate) use plan::{ContainerPlan, Plan, ProcessPlan};
pub(crate) use staged::{Namespaces, Released, Staged};

/// Writes a value into a file of the kernel's, in one piece.
fn write_file(path: &str, value: &str) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, value.as_bytes()).map(drop)
}
