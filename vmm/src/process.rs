//! What a process does to itself and how it makes another: forks, descriptors, signal dispositions.
//!
//! The roles of one machine (client, monitor, VM process) are one program: a child continues, without `exec`, with everything that
//! its parent has opened and decided, and gives up from there what it does not need.
//!
//! The calls here have no safe wrapper in the libraries that we use; the `unsafe` of the command layer is in this file alone.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};

/// A child process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
}

impl Child {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its end and lets go of its process id.
    ///
    /// # Errors
    /// As waitid(2) says.
    pub fn wait(self) -> io::Result<ChildStatus> {
        self.wait_with(WaitIdOptions::EXITED)
    }

    /// Waits for its end. Its process id stays its own, so that it can still be named.
    ///
    /// # Errors
    /// As waitid(2) says.
    pub fn await_end(&self) -> io::Result<ChildStatus> {
        self.wait_with(WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
    }

    fn wait_with(&self, options: WaitIdOptions) -> io::Result<ChildStatus> {
        loop {
            match waitid(WaitId::Pid(self.pid), options) {
                Ok(Some(status)) => return Ok(ChildStatus(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone)]
pub struct ChildStatus(WaitIdStatus);

impl std::fmt::Display for ChildStatus {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0.exit_status(), self.0.terminating_signal()) {
            (Some(code), _) => write!(formatter, "exit status {code}"),
            (None, Some(signal)) => write!(formatter, "signal {signal}"),
            (None, None) => formatter.write_str("an unknown status"),
        }
    }
}

/// Forks; the child runs `body` and ends with its result, without unwinding into the caller's code and without running the
/// caller's destructors or exit handlers.
///
/// Call it before the process has a second thread: a lock that another thread holds at that moment stays locked in the child.
///
/// # Errors
/// As fork(2) says.
pub fn fork(body: impl FnOnce() -> i32) -> io::Result<Child> {
    // SAFETY: the child goes on with a copy of this thread only. It touches what `body` touches; the callers fork before they
    // make threads, so no lock is held by a thread that the child does not have.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            exit_now(code)
        }
        pid => Pid::from_raw(pid)
            .map(|pid| Child { pid })
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData)),
    }
}

/// Ends the process at once: no exit handlers, no destructors.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) has no preconditions.
    unsafe { libc::_exit(code) }
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

/// Blocks these signals for good, and unblocks all others.
///
/// # Errors
/// As sigprocmask(2) says.
pub fn block_only(signals: &[i32]) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it gets.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was initialised above; a number that is no signal is refused.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    // SAFETY: the set was initialised above; a null pointer asks for no old mask.
    match unsafe { libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()) } {
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
/// Rust programs start with SIGPIPE ignored, so a write reports `BrokenPipe` instead. Returns the code that a shell would show if
/// the signal is blocked and does not come.
#[must_use]
pub fn die_of_closed_output() -> ExitCode {
    // SAFETY: SIG_DFL is a valid disposition for SIGPIPE; no Rust state refers to the old one.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: `raise` has no preconditions.
    unsafe { libc::raise(libc::SIGPIPE) };
    crate::outcome::ExitCode::of_signal(13).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_the_result_of_its_body() {
        let status = fork(|| 7).unwrap().wait().unwrap();
        assert_eq!(status.to_string(), "exit status 7");
    }
}
