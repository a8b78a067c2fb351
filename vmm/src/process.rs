//! Child processes made by `fork` alone, without `exec`.
//!
//! The roles of one machine (client, monitor, VM process) are one program: a child continues with everything that its parent has
//! opened and decided, and gives up from there what it does not need.

use std::io;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// A child that has not been waited for.
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

    /// Waits for its end.
    ///
    /// # Errors
    /// As waitpid(2) says.
    pub fn wait(self) -> io::Result<ChildStatus> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(ChildStatus(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy)]
pub struct ChildStatus(WaitStatus);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_the_result_of_its_body() {
        let status = fork(|| 7).unwrap().wait().unwrap();
        assert_eq!(status.to_string(), "exit status 7");
    }
}
