//! What a process does to itself: fork, end, die as a plain program dies.
//!
//! The only file of the command layer with `unsafe`: these calls have no safe wrapper in the
//! libraries that we use.

use std::fs;
use std::io;
use std::process::ExitCode;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};
use thiserror::Error;

/// Which of the two processes this is after [`fork`].
#[derive(Debug)]
pub enum Fork {
    /// The one that was there before.
    Parent(Child),
    /// The new one.
    Child,
}

/// A child process that was forked.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
}

impl Child {
    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits until the child has ended.
    ///
    /// # Errors
    ///
    /// What `waitpid(2)` says, except for an interruption.
    pub fn wait(&self) -> io::Result<WaitStatus> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(status),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Forks a process that has no threads but this one.
///
/// # Errors
///
/// [`ForkError::Threads`] if it has: the child would find their locks held for ever.
pub fn fork() -> Result<Fork, ForkError> {
    let threads = fs::read_dir("/proc/self/task")
        .map_err(ForkError::Unknown)?
        .count();
    if threads != 1 {
        return Err(ForkError::Threads);
    }
    fork_unchecked()
}

/// Forks in a test, whose harness has threads; the child must end by [`exit_now`] soon.
#[cfg(test)]
pub(crate) fn fork_in_test() -> Result<Fork, ForkError> {
    fork_unchecked()
}

fn fork_unchecked() -> Result<Fork, ForkError> {
    // SAFETY: without other threads the child may do whatever its parent could: no lock is held by
    // somebody who is not there. `fork` above saw to that.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(ForkError::Refused(io::Error::last_os_error()));
    }
    Ok(match Pid::from_raw(pid) {
        Some(pid) => Fork::Parent(Child { pid }),
        None => Fork::Child,
    })
}

/// Ends a forked child at once: no destructor and no buffer of the parent's is run or written twice.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Ends the process as a plain program ends whose reader went away: by SIGPIPE, without a word.
///
/// Rust programs start with SIGPIPE ignored, so a write reports `BrokenPipe` instead. Returns the
/// code that a shell would show if the signal is blocked and does not come.
#[must_use]
pub fn die_of_closed_output() -> ExitCode {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE; no Rust state refers to the old one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `raise` has no preconditions.
    unsafe { libc::raise(libc::SIGPIPE) };
    crate::outcome::ExitCode::of_signal(13).into()
}

/// Why there is no second process.
#[derive(Debug, Error)]
pub enum ForkError {
    /// The process has threads.
    #[error("the process has started threads")]
    Threads,
    /// It is not known how many threads the process has.
    #[error("cannot count the threads in /proc/self/task")]
    Unknown(#[source] io::Error),
    /// The kernel refused.
    #[error("the kernel refuses another process")]
    Refused(#[source] io::Error),
}
