//! Whether the emulator still gets on: QEMU 7.2, counting instructions, now and then stands still for ever while it keeps a
//! processor of the host busy. Seen from outside, only its count tells; QEMU's monitor (QMP) is asked for it.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long the count may stay the same. The lab's kernel has a timer every few milliseconds, at which the count is written down,
/// even while a loaded host takes a hundred times as long for them.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long to wait before looking again.
const INTERVAL: Duration = Duration::from_secs(5);

const BEGIN: &str = "{\"execute\":\"qmp_capabilities\"}";
const COUNT: &str = "{\"execute\":\"query-replay\"}";

/// Asks again and again, and returns true once the emulator stands still; false when it has ended.
pub(crate) fn stops(monitor: &UnixStream) -> bool {
    watch(monitor, PATIENCE, INTERVAL).unwrap_or(false)
}

fn watch(monitor: &UnixStream, patience: Duration, interval: Duration) -> io::Result<bool> {
    let mut replies = BufReader::new(monitor);
    // Its greeting.
    next_line(&mut replies)?;
    ask(monitor, &mut replies, BEGIN)?;
    let mut last = (ask(monitor, &mut replies, COUNT)?, Instant::now());
    loop {
        // The end of the emulator ends the wait.
        monitor.set_read_timeout(Some(interval))?;
        match next_line(&mut replies) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => drop(other?),
        }
        monitor.set_read_timeout(None)?;
        let count = ask(monitor, &mut replies, COUNT)?;
        if count != last.0 {
            last = (count, Instant::now());
        } else if last.1.elapsed() >= patience {
            return Ok(true);
        }
    }
}

/// Asks, and returns the answer; what the monitor tells by itself meanwhile is left out.
fn ask(mut monitor: &UnixStream, replies: &mut impl BufRead, question: &str) -> io::Result<String> {
    writeln!(monitor, "{question}")?;
    loop {
        let line = next_line(replies)?;
        if !line.contains("\"event\"") {
            return Ok(line);
        }
    }
}

fn next_line(replies: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match replies.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::{Child, Command, Stdio};

    use rustix::io::{FdFlags, fcntl_setfd};

    use super::*;

    /// An emulator that executes its firmware, or nothing, and its monitor.
    fn emulator(executes: bool) -> (Child, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
        let mut command = Command::new("qemu-system-x86_64");
        command.args("-machine q35 -nodefaults -display none -icount 0".split(' '));
        let chardev = format!("socket,id=monitor,fd={}", theirs.as_raw_fd());
        command.args(["-chardev", &chardev, "-mon", "chardev=monitor,mode=control"]);
        if !executes {
            command.arg("-S");
        }
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        (child, ours)
    }

    #[test]
    fn an_emulator_that_executes_nothing_stands_still_and_one_that_ended_does_not() {
        let moment = Duration::from_millis(100);
        let (mut still, monitor) = emulator(false);
        assert!(watch(&monitor, Duration::from_secs(2), moment).unwrap());
        still.kill().unwrap();
        still.wait().unwrap();
        assert!(!stops(&monitor));
    }

    #[test]
    fn an_emulator_that_executes_gets_on() {
        let (mut busy, monitor) = emulator(true);
        let watched = std::thread::scope(|scope| {
            let watch =
                scope.spawn(|| watch(&monitor, Duration::from_secs(4), Duration::from_millis(100)));
            let deadline = Instant::now() + Duration::from_secs(8);
            while !watch.is_finished() && Instant::now() < deadline {
                std::thread::yield_now();
            }
            busy.kill().unwrap();
            busy.wait().unwrap();
            watch.join().unwrap()
        });
        assert!(watched.is_err(), "it did not stand still before it ended");
    }
}
