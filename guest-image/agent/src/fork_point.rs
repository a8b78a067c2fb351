//! Where a process says that it may be duplicated: a fifo in its container that it opens for reading.
//!
//! Opening waits for a writer, so that a process that waits there does nothing else, and says so by waiting. It is opened before the
//! process is stopped, because that takes it out of the wait for a while; once it is open the process waits in its read, and the
//! fork point is kept until it is told something.
//!
//! The fifo is the container's to change: whatever is in its place is looked at before it is opened, and never beyond the
//! container's root.

use std::fs::File;
use std::io::Write as _;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::Pid;

/// A process waits at this fork point.
#[derive(Debug)]
pub(crate) struct ForkPoint(File);

impl ForkPoint {
    /// The fork point of the container of this process, if a process waits at it.
    pub(crate) fn of(pid: Pid) -> Option<Self> {
        open(pid).ok().map(Self)
    }

    /// Whether somebody still has it open for reading.
    pub(crate) fn is_awaited(&self) -> bool {
        let mut descriptors = [PollFd::new(&self.0, PollFlags::OUT)];
        let polled = rustix::event::poll(&mut descriptors, Some(&Timespec::default()));
        let [descriptor] = descriptors;
        polled.is_ok() && !descriptor.revents().contains(PollFlags::ERR)
    }

    /// Lets whoever waits go on as this generation.
    pub(crate) fn tell(mut self, generation: u32) {
        // Who waited there may have been killed.
        let _ = writeln!(self.0, "{generation}");
    }
}

fn open(pid: Pid) -> rustix::io::Result<File> {
    use std::os::fd::AsRawFd as _;
    let root = rustix::fs::open(
        format!("/proc/{}/root", pid.as_raw_nonzero()),
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let place = rustix::fs::openat2(
        &root,
        protocol::FORK_POINT,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    if kind != FileType::Fifo {
        return Err(Errno::NOTSUP);
    }
    // Fails with ENXIO where nobody has it open for reading, fifo(7).
    let writer = rustix::fs::openat(
        CWD,
        format!("/proc/self/fd/{}", place.as_raw_fd()),
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok(writer.into())
}
