//! The clock of whoever measures inside a lab.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{
    Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper, wait,
};

/// When what happened, from before the spawn on.
///
/// As text: nanoseconds, with a dash for what never happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// The first byte of standard output was there to be read.
    pub first_byte: Option<Duration>,
    /// The wait for the command returned.
    pub exit: Duration,
    /// The last process that the command had started was gone, and with it what it held.
    pub returned: Duration,
}

impl fmt::Display for Times {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first_byte {
            Some(first_byte) => write!(to, "{}", first_byte.as_nanos())?,
            None => write!(to, "-")?,
        }
        write!(to, " {} {}", self.exit.as_nanos(), self.returned.as_nanos())
    }
}

impl Times {
    /// Reads what `Display` wrote.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let first_byte = match words.next()? {
            "-" => None,
            word => Some(nanoseconds(word)?),
        };
        let exit = nanoseconds(words.next()?)?;
        let returned = nanoseconds(words.next()?)?;
        words.next().is_none().then_some(Self {
            first_byte,
            exit,
            returned,
        })
    }
}

fn nanoseconds(word: &str) -> Option<Duration> {
    word.parse().ok().map(Duration::from_nanos)
}

/// Runs a command with nothing to read, and hands on what it says.
///
/// For a process that does nothing else: it becomes the parent of all that the command leaves behind, for good, and waits for
/// all its children.
///
/// # Errors
///
/// If the command cannot be run, or what it says not be handed on.
pub fn time(command: &mut Command, says: &mut impl Write) -> io::Result<(Times, ExitStatus)> {
    set_child_subreaper(Some(getpid()))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let end = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let mut output = child.stdout.take();
    let mut first_byte = None;
    loop {
        let (has_ended, output_is) = next(&end, output.as_ref())?;
        let has_said = output_is.contains(PollFlags::IN);
        if has_said {
            first_byte.get_or_insert_with(|| start.elapsed());
        }
        if has_ended {
            break;
        }
        if has_said {
            hand_on(output.as_mut(), says)?;
        } else if !output_is.is_empty() {
            // The command has closed it.
            output = None;
        }
    }
    let status = child.wait()?;
    let exit = start.elapsed();
    // Who is left may still have something to say.
    if let Some(mut output) = output {
        while hand_on(Some(&mut output), says)? > 0 {
            first_byte.get_or_insert_with(|| start.elapsed());
        }
    }
    wait_for_all()?;
    let times = Times {
        first_byte,
        exit,
        returned: start.elapsed(),
    };
    Ok((times, status))
}

/// Waits for the end or for the output: whether it has ended, and what the output is ready for.
fn next(end: &OwnedFd, output: Option<&ChildStdout>) -> io::Result<(bool, PollFlags)> {
    let mut watched = vec![PollFd::new(end, PollFlags::IN)];
    watched.extend(output.map(|output| PollFd::new(output, PollFlags::IN)));
    retry_on_intr(|| poll(&mut watched, None))?;
    let of_output = watched.get(1).map(PollFd::revents);
    Ok((
        watched.first().is_some_and(|end| !end.revents().is_empty()),
        of_output.unwrap_or(PollFlags::empty()),
    ))
}

/// Hands on what is there now, and returns how much that was.
fn hand_on(output: Option<&mut impl Read>, says: &mut impl Write) -> io::Result<usize> {
    let mut bytes = [0; 4096];
    let length = match output {
        Some(output) => output.read(&mut bytes)?,
        None => 0,
    };
    says.write_all(bytes.get(..length).unwrap_or_default())?;
    Ok(length)
}

/// Waits until there is no child any more.
fn wait_for_all() -> io::Result<()> {
    loop {
        match retry_on_intr(|| wait(WaitOptions::empty())) {
            Ok(_) => {}
            Err(Errno::CHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_written() {
        let times = Times {
            first_byte: Some(Duration::from_nanos(1)),
            exit: Duration::from_nanos(2),
            returned: Duration::from_nanos(3),
        };

        assert_eq!(times.to_string(), "1 2 3");
        assert_eq!(Times::parse("1 2 3"), Some(times));
    }

    #[test]
    fn a_byte_that_never_came_is_a_dash() {
        let times = Times {
            first_byte: None,
            exit: Duration::from_nanos(2),
            returned: Duration::from_nanos(3),
        };

        assert_eq!(times.to_string(), "- 2 3");
        assert_eq!(Times::parse("- 2 3"), Some(times));
    }

    #[test]
    fn two_times_are_no_three() {
        assert_eq!(Times::parse("2 3"), None);
        assert_eq!(Times::parse("1 2 3 4"), None);
        assert_eq!(Times::parse("Hits: 3"), None);
    }
}
