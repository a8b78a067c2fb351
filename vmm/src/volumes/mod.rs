//! What a workload sees beside its image: directories and files of the host, volumes, file systems in memory.
//!
//! [`TypedMount`] is what was asked for, and what the blueprint of a machine that is kept remembers. [`Attachments`] is what that
//! comes to for one start: everything opened, with the mounts of the container's configuration. The volumes themselves are kept in
//! [`store`].

mod attachments;
mod disks;
mod name;
mod rate;
mod shares;
pub mod store;
mod typed;

pub use attachments::{AttachError, Attachments};
pub use disks::DiskSources;
pub use name::{VolumeName, VolumeNameError};
pub use rate::{DiskLimits, Limited, RateError, TypedRate};
pub use shares::ShareSourceError;
pub use typed::{
    Bind, CacheMode, HostDisk, MountError, NewTmpfs, NewVolume, TypedMount, TypedSource,
    destination, in_order,
};
