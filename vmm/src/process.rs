//! What a process does to itself: fork, end, close descriptors, die as a plain program dies.
//!
//! The roles of one machine (client, monitor, VM process) are one program: a forked child continues,
//! without `exec`, with everything that its parent has opened and decided, and gives up from there
//! what it does not need.
//!
//! The only file of the command layer with `unsafe`: these calls have no safe wrapper in the
//! libraries that we use.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
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

/// Forks a child that runs `body` and ends with its result, without ever returning to the code of its
/// parent.
///
/// # Errors
///
/// As [`fork`].
pub fn spawn(body: impl FnOnce() -> u8) -> Result<Child, ForkError> {
    #[cfg(not(test))]
    let fork = fork;
    #[cfg(test)]
    let fork = fork_in_test;
    match fork()? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => {
            const PANICKED: u8 = 101;
            let body = std::panic::AssertUnwindSafe(body);
            exit_now(std::panic::catch_unwind(body).unwrap_or(PANICKED))
        }
    }
}

/// Says how a child ended, for people.
#[must_use]
pub fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    }
}

/// Ends a forked child at once: no destructor and no buffer of the parent's is run or written twice.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(i32::from(status)) }
}

/// Borrows the descriptor of a type that only tells its number.
pub fn borrow_raw<T: AsRawFd>(owner: &T) -> BorrowedFd<'_> {
    // SAFETY: `owner` keeps its descriptor open as long as it is borrowed, and so as long as the result lives.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Closes every descriptor from 3 on that is not in `keep`. For a fresh child that never returns to the code of its parent, where
/// owners of the closed descriptors live on untouched.
///
/// # Errors
/// As close_range(2) says.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    const FIRST_AFTER_STANDARD_STREAMS: u32 = 3;
    let mut kept: Vec<u32> = keep
        .iter()
        .map(|descriptor| number(descriptor.as_raw_fd()))
        .collect();
    kept.sort_unstable();
    let mut next = FIRST_AFTER_STANDARD_STREAMS;
    for descriptor in kept {
        if descriptor > next {
            close_range(next, descriptor - 1)?;
        }
        next = next.max(descriptor + 1);
    }
    close_range(next, u32::MAX)
}

fn number(descriptor: RawFd) -> u32 {
    u32::try_from(descriptor).unwrap_or(u32::MAX - 1)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    const NO_FLAGS: i32 = 0;
    // SAFETY: the caller is a child whose parent's owners of these descriptors are never used or dropped again.
    match unsafe { libc::close_range(first, last, NO_FLAGS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Points standard input, output and error at `/dev/null`, so that nobody waits for this process to close them.
///
/// # Errors
/// When `/dev/null` cannot be opened.
pub fn standard_streams_to_null() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Unblocks all signals.
///
/// # Errors
/// As sigprocmask(2) says.
pub fn unblock_signals() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it gets.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was initialised above; a null pointer asks for no old mask.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks `signals` for this thread, and those that it will make, and gives a descriptor from which they
/// are read instead.
///
/// # Errors
///
/// As signalfd(2) says.
pub fn signal_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it gets.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was initialised above; a number that is no signal is refused.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: the set was initialised above; a null pointer asks for no old mask.
    if unsafe { libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    const NEW: RawFd = -1;
    // SAFETY: the set was initialised above.
    let descriptor =
        unsafe { libc::signalfd(NEW, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Takes the number of the next signal from a [`signal_descriptor`], if one has come.
///
/// # Errors
///
/// As read(2) says.
pub fn next_signal(descriptor: &OwnedFd) -> io::Result<Option<u8>> {
    // struct signalfd_siginfo: 128 bytes, the signal's number in the first four (signalfd(2)).
    let mut information = [0; 128];
    match rustix::io::read(descriptor, &mut information) {
        Ok(_) => Ok(Some(information[0])),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_the_result_of_its_body() {
        let status = spawn(|| 7).unwrap().wait().unwrap();
        assert_eq!(describe(status), "exit status 7");
    }
}
