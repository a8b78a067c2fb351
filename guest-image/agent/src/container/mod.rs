//! Containers: from a `config.json` to a process that runs its program.
//!
//! [`Plan::new`] decides everything and refuses what is not supported, before anything exists. [`launch::launch`] makes
//! the process; in the child, [`child::build`] builds the container around itself, step by step, and [`child::become_program`]
//! becomes the program. [`Staged`] does the first half ahead.

mod capabilities;
mod cgroup;
mod child;
mod devices;
pub(crate) mod launch;
mod loopback;
mod mounts;
mod plan;
mod program;
mod rootfs;
mod staged;
mod user;

pub(crate) use cgroup::{Cgroup, MOUNT_POINT as CGROUP_MOUNT_POINT};
pub(crate) use child::winsize;
pub(crate) use plan::Plan;
pub(crate) use staged::{Namespaces, Released, Staged};
