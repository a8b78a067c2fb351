//! The clock of whoever measures inside a lab.

use std::io;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Runs a command with nothing to read and nobody to read it. The clock runs from before the spawn to the return of wait.
///
/// # Errors
///
/// If it cannot be run.
pub fn time(command: &mut Command) -> io::Result<(Duration, ExitStatus)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let status = command.status()?;
    Ok((start.elapsed(), status))
}
