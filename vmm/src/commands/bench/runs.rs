//! Runs commands and watches them: first byte, last byte, end.
//!
//! One thread and one poll loop for all that are under way, so the clocks are read in one place: right after the poll
//! that reports what happened. A clock starts before the process is spawned.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
};

use super::Stop;
use super::interrupt::Interrupt;
use super::processes::descendants_of;

/// How long a command may take before it is given up: beyond what a start takes on the slowest host that was seen.
const RUN_LIMIT: Duration = Duration::from_secs(120);
/// How long a command that was asked to end may take before it is killed.
const GRACE: Duration = Duration::from_secs(3);
/// A signal that comes between a check and a poll is noticed this much later.
const POLL_LIMIT: Duration = Duration::from_millis(100);
/// Bytes of each output stream that are kept: the first of the output, the last of the errors.
const KEPT_BYTES: usize = 4096;

/// When things happened, counted from the spawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// First byte on standard output, if there was any.
    pub(super) first_byte: Option<Duration>,
    /// Last byte there.
    pub(super) last_byte: Option<Duration>,
    /// End of the process.
    pub(super) exit: Duration,
}

/// A command that was run to its end.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) sample: Sample,
    status: ExitStatus,
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Finished {
    /// Itself if it ended well; otherwise how it ended and the last that it said.
    pub(super) fn succeeded(self) -> Result<Self, Stop> {
        if self.status.success() {
            return Ok(self);
        }
        let ending = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
        };
        Err(Stop::Because(match last_line(&self.errors) {
            Some(line) => format!("{ending}: {line}"),
            None => ending,
        }))
    }

    /// What it printed, at most the first 4 KiB of it.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).trim().to_owned()
    }
}

/// The last line that says what is wrong, without what a terminal would obey. Ours may be followed by one of help.
fn last_line(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines().rev();
    let line = lines.find(|line| !line.trim().is_empty() && !line.starts_with("help: "))?;
    Some(line.trim().replace(char::is_control, "\u{fffd}"))
}

/// A command under way.
struct Running {
    child: Child,
    ended: OwnedFd,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
    errors: Option<ChildStderr>,
    started: Instant,
    first_byte: Option<Duration>,
    last_byte: Option<Duration>,
    kept_output: Vec<u8>,
    kept_errors: Vec<u8>,
}

/// What a descriptor is of.
#[derive(Clone, Copy)]
enum Event {
    Output,
    Errors,
    End,
}

impl Running {
    fn start(mut command: Command, keeps_input: bool) -> io::Result<Self> {
        let input = if keeps_input {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn()?;
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self {
            input: child.stdin.take(),
            output: child.stdout.take(),
            errors: child.stderr.take(),
            child,
            ended,
            started,
            first_byte: None,
            last_byte: None,
            kept_output: Vec::new(),
            kept_errors: Vec::new(),
        })
    }

    fn read_output(&mut self, now: Instant) {
        let mut buffer = [0; 64 * 1024];
        match read(self.output.as_ref(), &mut buffer) {
            Some(bytes) => {
                let since = now.duration_since(self.started);
                self.first_byte.get_or_insert(since);
                self.last_byte = Some(since);
                let room = KEPT_BYTES - self.kept_output.len();
                self.kept_output
                    .extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            None => self.output = None,
        }
    }

    fn read_errors(&mut self) {
        let mut buffer = [0; KEPT_BYTES];
        match read(self.errors.as_ref(), &mut buffer) {
            Some(bytes) => {
                self.kept_errors.extend_from_slice(bytes);
                let excess = self.kept_errors.len().saturating_sub(KEPT_BYTES);
                self.kept_errors.drain(..excess);
            }
            None => self.errors = None,
        }
    }

    /// Takes what a process left in its pipes when it ended. What it left running may hold them open: that is not waited for.
    fn drain(&mut self, now: Instant) {
        while is_readable(self.output.as_ref()) {
            self.read_output(now);
        }
        while is_readable(self.errors.as_ref()) {
            self.read_errors();
        }
    }

    fn finish(mut self, now: Instant) -> io::Result<Finished> {
        self.drain(now);
        let exit = now.duration_since(self.started);
        Ok(Finished {
            status: self.child.wait()?,
            sample: Sample {
                first_byte: self.first_byte,
                last_byte: self.last_byte,
                exit,
            },
            output: self.kept_output,
            errors: self.kept_errors,
        })
    }
}

/// Reads what is there; nothing at the end, or when the pipe fails, which says no more.
fn read<'a>(pipe: Option<&impl AsFd>, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    match rustix::io::read(pipe?, &mut *buffer) {
        Ok(0) | Err(_) => None,
        Ok(count) => Some(&buffer[..count]),
    }
}

fn is_readable(pipe: Option<&impl AsFd>) -> bool {
    pipe.is_some_and(|pipe| {
        let mut polled = [PollFd::new(pipe, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    })
}

/// The commands that are under way together. None of them outlives it.
pub(super) struct Crew {
    interrupt: Interrupt,
    running: Vec<Running>,
}

impl fmt::Debug for Crew {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Crew of {}", self.running.len())
    }
}

impl Crew {
    pub(super) fn new(interrupt: Interrupt) -> Self {
        Self {
            interrupt,
            running: Vec::new(),
        }
    }

    /// Starts one more. With `keeps_input` its standard input stays open until [`Crew::close_inputs`].
    pub(super) fn start(&mut self, command: Command, keeps_input: bool) -> Result<(), Stop> {
        self.interrupt.check()?;
        let program = command.get_program().to_string_lossy().into_owned();
        let running = Running::start(command, keeps_input)
            .map_err(|error| Stop::Because(format!("{program} cannot be started: {error}")))?;
        self.running.push(running);
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// How many have printed something.
    pub(super) fn speaking(&self) -> usize {
        let spoke = |running: &&Running| running.first_byte.is_some();
        self.running.iter().filter(spoke).count()
    }

    pub(super) fn close_inputs(&mut self) {
        for running in &mut self.running {
            running.input = None;
        }
    }

    /// Waits until something happens, for a moment at most, and returns those that ended.
    pub(super) fn watch(&mut self) -> Result<Vec<Finished>, Stop> {
        self.interrupt.check()?;
        let now = Instant::now();
        if self
            .running
            .iter()
            .any(|running| now.duration_since(running.started) > RUN_LIMIT)
        {
            let limit = RUN_LIMIT.as_secs();
            return Err(Stop::Because(format!("did not end within {limit} seconds")));
        }
        let (events, now) = self.wait()?;
        let mut ended = Vec::new();
        for (index, event) in events {
            let running = &mut self.running[index];
            match event {
                Event::Output => running.read_output(now),
                Event::Errors => running.read_errors(),
                Event::End => ended.push(index),
            }
        }
        // From the back, so that the places of those before stay the same.
        ended.reverse();
        ended
            .into_iter()
            .map(|index| self.running.remove(index).finish(now))
            .collect::<io::Result<_>>()
            .map_err(|error| Stop::Because(format!("its end cannot be seen: {error}")))
    }

    /// Polls everything once, and says what happened and when.
    fn wait(&self) -> Result<(Vec<(usize, Event)>, Instant), Stop> {
        let mut events = Vec::new();
        let mut polled = Vec::new();
        for (index, running) in self.running.iter().enumerate() {
            if let Some(output) = &running.output {
                events.push((index, Event::Output));
                polled.push(PollFd::new(output, PollFlags::IN));
            }
            if let Some(errors) = &running.errors {
                events.push((index, Event::Errors));
                polled.push(PollFd::new(errors, PollFlags::IN));
            }
            events.push((index, Event::End));
            polled.push(PollFd::new(&running.ended, PollFlags::IN));
        }
        let limit = Timespec::try_from(POLL_LIMIT).unwrap_or_default();
        match poll(&mut polled, Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Stop::Because(format!("poll failed: {error}"))),
        }
        let now = Instant::now();
        let happened = polled.iter().map(|polled| !polled.revents().is_empty());
        let events = events.into_iter().zip(happened);
        let events = events.filter_map(|(event, happened)| happened.then_some(event));
        Ok((events.collect(), now))
    }

    /// Runs one command to its end.
    pub(super) fn run(interrupt: Interrupt, command: Command) -> Result<Finished, Stop> {
        let mut crew = Self::new(interrupt);
        crew.start(command, false)?;
        loop {
            if let Some(finished) = crew.watch()?.pop() {
                return finished.succeeded();
            }
        }
    }
}

impl Drop for Crew {
    /// Asks those that still run to end, and kills those that do not, with all their children.
    fn drop(&mut self) {
        for running in &self.running {
            // It may have ended meanwhile.
            let _ = kill_process(Pid::from_child(&running.child), Signal::TERM);
        }
        let deadline = Instant::now() + GRACE;
        for running in &mut self.running {
            running.input = None;
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let ended = poll(
                &mut [PollFd::new(&running.ended, PollFlags::IN)],
                Some(&left),
            )
            .unwrap_or(0);
            if ended == 0 {
                kill_all(&descendants_of(running.child.id()));
                let _ = running.child.kill();
            }
            let _ = running.child.wait();
        }
    }
}

fn kill_all(processes: &[u32]) {
    for id in processes {
        let pid = i32::try_from(*id).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Lets go of children that have ended and were left to this process by theirs. No [`Crew`] may be at work.
pub(super) fn reap() {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    while let Ok(Some(_)) = waitid(WaitId::All, options) {}
}

/// Kills whatever descends from this process. No [`Crew`] may be at work.
pub(super) fn kill_descendants() {
    let deadline = Instant::now() + GRACE;
    loop {
        reap();
        let left = descendants_of(std::process::id());
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        kill_all(&left);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn run(script: &str) -> Result<Finished, Stop> {
        Crew::run(Interrupt::watch().unwrap(), shell(script))
    }

    #[test]
    fn the_first_byte_comes_before_the_last_and_the_last_before_the_end() {
        let sample = run("echo a; sleep 0.05; echo b; sleep 0.05")
            .unwrap()
            .sample;

        let (first, last) = (sample.first_byte.unwrap(), sample.last_byte.unwrap());
        assert!(first + Duration::from_millis(40) < last);
        assert!(last + Duration::from_millis(40) < sample.exit);
    }

    #[test]
    fn a_command_without_output_has_no_first_byte() {
        assert!(run("true").unwrap().sample.first_byte.is_none());
    }

    #[test]
    fn a_failure_is_reported_by_the_last_line_of_its_errors() {
        let Err(Stop::Because(reason)) =
            run("echo first >&2; printf 'so\\033[1m\\n\\n' >&2; exit 3")
        else {
            panic!("it succeeded");
        };
        assert_eq!(reason, "ended with exit code 3: so\u{fffd}[1m");
    }

    #[test]
    fn what_still_runs_ends_with_its_crew() {
        let mut crew = Crew::new(Interrupt::watch().unwrap());
        crew.start(shell("exec sleep 1000"), false).unwrap();
        let id = crew.running[0].child.id();

        drop(crew);

        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
