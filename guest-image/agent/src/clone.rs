//! What the agent of a clone does before anything else: everything by which clones of one template would otherwise be alike.
//!
//! The order matters: first the kernel's random numbers, from which the rest is made. A step that fails ends the machine, so that
//! no workload ever runs in a clone that is not one of its own.

use std::io;
use std::time::{Duration, Instant};

use protocol::{DiskHandover, Handover};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::time::{ClockId, Timespec};
use thiserror::Error;

use crate::sys;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;
/// How long the kernel may take to learn how large a disk is, on the slowest host.
const DISK_PATIENCE: Duration = Duration::from_secs(5);

/// Why a clone cannot run.
#[derive(Debug, Error)]
pub(crate) enum CloneError {
    /// The kernel's generator does not start afresh.
    #[error("reseeding the kernel's random numbers")]
    Reseed(#[source] io::Error),
    /// The clock cannot be set.
    #[error("setting the clock")]
    Clock(#[source] io::Error),
    /// The kernel does not see a disk as it is.
    #[error("taking over the disk {device}")]
    Disk {
        device: String,
        #[source]
        source: io::Error,
    },
}

/// Makes this machine different from all others of its template.
///
/// # Errors
///
/// If the kernel refuses a step.
pub(crate) fn become_another(handover: &Handover) -> Result<(), CloneError> {
    let urandom = rustix::fs::open(
        "/dev/urandom",
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| CloneError::Reseed(error.into()))?;
    sys::reseed_as_clone(&urandom, handover.seed.as_flattened()).map_err(CloneError::Reseed)?;
    let (seconds, nanoseconds) = (
        handover.realtime_ns / NANOSECONDS_PER_SECOND,
        handover.realtime_ns % NANOSECONDS_PER_SECOND,
    );
    let now = Timespec {
        tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
    };
    rustix::time::clock_settime(ClockId::Realtime, now)
        .map_err(|error| CloneError::Clock(error.into()))?;
    handover.disks.iter().try_for_each(|disk| {
        take_over(disk).map_err(|source| CloneError::Disk {
            device: disk.device.clone(),
            source,
        })
    })
}

/// Waits until the kernel sees how large a disk is, which the device has told it already, and makes it one that is only read if it
/// is to be. From an empty disk to another size, the kernel sends no event (`set_capacity_and_notify` in block/genhd.c).
fn take_over(disk: &DiskHandover) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let device = rustix::fs::open(&disk.device, flags, Mode::empty())?;
    let deadline = Instant::now() + DISK_PATIENCE;
    while rustix::fs::seek(&device, SeekFrom::End(0))? != disk.size_bytes {
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel's thread that learns of it may need this processor.
        rustix::thread::sched_yield();
    }
    match disk.read_only {
        true => sys::make_disk_read_only(&device),
        false => Ok(()),
    }
}
