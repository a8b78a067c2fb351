//! What a process does to itself: signal dispositions, forking away from the terminal.
//!
//! The only file of the command layer with `unsafe`: the calls have no safe wrapper in the
//! libraries that we use.

use std::process::ExitCode;

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
