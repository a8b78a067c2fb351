//! What a workload sees beside its image: directories and files of the host, volumes, file systems in memory.
//!
//! [`TypedMount`] is what was asked for, and what the blueprint of a machine that is kept remembers. [`Attachments`] is what that
//! comes to for one start: everything opened, with the mounts of the container's configuration.

mod attachments;
mod name;
mod shares;
mod typed;

pub use attachments::{AttachError, Attachments};
pub use name::{VolumeName, VolumeNameError};
pub use shares::ShareSourceError;
pub use typed::{
    Bind, CacheMode, MountError, NewTmpfs, NewVolume, TypedMount, TypedSource, destination,
    in_order,
};
