//! A machine in the foreground that does without this process: `vmm run` of what is kept, or may be left, and `vmm start -a`.
//!
//! The monitor is a process of its own, as with -d, and this process is a client that is joined with the workload from its first word on.
//! The machine ends with it, unless it detaches.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::attach::Joining;
use super::attend::report_outcome;
use super::session::Leaving;
use crate::attach::DetachKeys;
use crate::dirs::Directories;
use crate::monitor::{MonitorError, Signals};
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Session, StartReporter, StartWaiter, detach};

/// Runs a machine with a monitor of its own, and stays with the workload. One with a terminal may be left by keys; what this
/// process reads is for the workload, if that takes input and `takes_input`.
pub(super) fn run(
    keys: Option<&DetachKeys>,
    takes_input: bool,
    directories: &Directories,
    run_here: impl FnOnce(&mut Option<StartReporter>) -> Result<ExitCode, Report>,
) -> Result<ExitCode, Report> {
    let (stream, monitors) = UnixStream::pair().map_err(MonitorError::Watch)?;
    let mut stream = Some(stream);
    let waiter = detach(|reporter| {
        // The monitor's copy: with it open, it would never learn that this process is gone.
        drop(stream.take());
        let mut reporter = Some(reporter.with_own_client(monitors));
        let result = run_here(&mut reporter);
        if let (Err(report), Some(reporter)) = (&result, reporter) {
            reporter.failed(report);
        }
        i32::from(result.is_err())
    })?;
    let signals = Signals::take()?;
    if let Some(signal) = await_start(&waiter, &signals)? {
        return Ok(ExitCode::of_signal(signal));
    }
    let id = waiter.wait()?;
    let Some(stream) = stream else {
        return Ok(ExitCode::APPLIANCE_FAILED);
    };
    let joined = Session::adopted(stream, &directories.machines().join(id.as_str()))?;
    let joining = Joining {
        takes_input,
        keys,
        signals: Some(signals),
        passes_signals: true,
        ends_unread: true,
    };
    match joining.join(joined)? {
        Leaving::Ended(outcome) => report_outcome(&outcome),
        // As with docker, that is what was wanted.
        Leaving::Detached | Leaving::Started => Ok(ExitCode::SUCCESS),
        Leaving::Signalled(signal) => Ok(ExitCode::of_signal(signal)),
    }
}

/// Waits until the monitor says something. Gives the signal that came first, which ends the machine with its client.
fn await_start(waiter: &StartWaiter, signals: &Signals) -> Result<Option<u8>, MonitorError> {
    loop {
        let mut descriptors = [
            PollFd::from_borrowed_fd(waiter.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(MonitorError::Watch(error.into())),
        }
        if !descriptors[0].revents().is_empty() {
            return Ok(None);
        }
        if let Some(signal) = signals.next_end() {
            return Ok(Some(signal));
        }
    }
}
