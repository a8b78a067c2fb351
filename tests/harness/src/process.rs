//! Runs the binary with a time limit, its two output streams kept apart.
//!
//! Nothing here sleeps: the end of a process is waited for through a pidfd, output through a condition variable.
//! A process is started in a process group of its own, and only that group is ever killed.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// Time limit of a command that starts no machine.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Time limit of a run of a machine: a boot under software KVM takes seconds, and two may share a CPU with a build.
pub const MACHINE_LIMIT: Duration = Duration::from_secs(180);

/// Time limit of an import of hundreds of megabytes.
pub const LARGE_IMPORT_LIMIT: Duration = Duration::from_secs(300);

/// How long output may stay open after the process that was started has ended.
const STREAMS_LIMIT: Duration = Duration::from_secs(10);

/// What the command reads as its standard input.
#[derive(Debug, Default)]
enum Input {
    #[default]
    Empty,
    Bytes(Vec<u8>),
    Open,
    File(File),
}

/// What the command writes its standard output to.
#[derive(Debug, Default)]
enum Output {
    #[default]
    Captured,
    /// A pipe whose reading end is closed before the command starts.
    ClosedPipe,
    /// No descriptor at all.
    Absent,
    File(File),
}

/// A command about to be run.
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    input: Input,
    output: Output,
    limit: Duration,
}

impl Invocation {
    /// Prepares `program` with [`COMMAND_LIMIT`] and an empty standard input.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.process_group(0);
        Self {
            command,
            input: Input::default(),
            output: Output::default(),
            limit: COMMAND_LIMIT,
        }
    }

    /// Appends one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Appends arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Removes an environment variable.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Sets the time limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Feeds `bytes` as the standard input, then end of file.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = Input::Bytes(bytes.into());
        self
    }

    /// Leaves the standard input open: see [`Running::write`] and [`Running::close_input`].
    #[must_use]
    pub fn open_input(mut self) -> Self {
        self.input = Input::Open;
        self
    }

    /// Uses a file as the standard input.
    #[must_use]
    pub fn input_file(mut self, file: File) -> Self {
        self.input = Input::File(file);
        self
    }

    /// Uses a file as the standard output.
    #[must_use]
    pub fn output_file(mut self, file: File) -> Self {
        self.output = Output::File(file);
        self
    }

    /// Gives the command a standard output that nobody reads: writing fails with `EPIPE`.
    #[must_use]
    pub fn output_to_closed_pipe(mut self) -> Self {
        self.output = Output::ClosedPipe;
        self
    }

    /// Starts the command with descriptor 1 closed.
    #[must_use]
    pub fn without_output(mut self) -> Self {
        self.output = Output::Absent;
        self
    }

    /// Starts the command.
    pub fn start(self) -> Running {
        let described = format!("{:?}", self.command);
        let mut command = self.command;
        if matches!(self.output, Output::Absent) {
            command = through_shell_without_output(&command);
        }
        command.stdin(match &self.input {
            Input::Empty => Stdio::null(),
            Input::Bytes(_) | Input::Open => Stdio::piped(),
            Input::File(file) => {
                Stdio::from(file.try_clone().expect("a descriptor can be duplicated"))
            }
        });
        command.stdout(match self.output {
            Output::Captured => Stdio::piped(),
            Output::ClosedPipe => Stdio::from(closed_pipe()),
            Output::Absent => Stdio::null(),
            Output::File(file) => Stdio::from(file),
        });
        command.stderr(Stdio::piped());

        let started = Instant::now();
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {described}: {error}"));
        let pid = Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).expect("a child of ours has a pidfd");
        let mut input = child.stdin.take();
        if let Input::Bytes(bytes) = self.input {
            let mut pipe = input.take().expect("the standard input is piped");
            // A command that does not read all of its input is no failure of the harness.
            thread::spawn(move || pipe.write_all(&bytes));
        }
        Running {
            described,
            pid,
            ended,
            stdout: child
                .stdout
                .take()
                .map(|pipe| Stream::collect(OwnedFd::from(pipe))),
            stderr: child
                .stderr
                .take()
                .map(|pipe| Stream::collect(OwnedFd::from(pipe))),
            input,
            child,
            deadline: started + self.limit,
            started,
            reaped: false,
        }
    }

    /// Runs the command to its end.
    pub fn run(self) -> Finished {
        self.start().finish()
    }
}

/// Wraps a command so that its descriptor 1 is closed: only a shell can do that without unsafe code.
fn through_shell_without_output(inner: &Command) -> Command {
    let mut outer = Command::new("sh");
    outer
        .args(["-c", "exec \"$@\" >&-", "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer.process_group(0);
    outer
}

fn closed_pipe() -> OwnedFd {
    let (reader, writer) = std::io::pipe().expect("a pipe can be made");
    drop(reader);
    OwnedFd::from(writer)
}

/// A command that has been started.
#[derive(Debug)]
pub struct Running {
    described: String,
    pid: Pid,
    ended: OwnedFd,
    child: Child,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    input: Option<ChildStdin>,
    deadline: Instant,
    started: Instant,
    reaped: bool,
}

impl Running {
    /// Returns the process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("a running child can be signalled");
    }

    /// Sends a signal to every process of the command's group.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(self.pid, signal).expect("a running group can be signalled");
    }

    /// Writes to the standard input.
    pub fn write(&mut self, bytes: &[u8]) {
        let input = self
            .input
            .as_mut()
            .expect("the standard input was left open");
        input
            .write_all(bytes)
            .expect("the command reads its standard input");
    }

    /// Closes the standard input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until the standard output contains `needle`.
    pub fn wait_for_stdout(&self, needle: &str) {
        let stream = self
            .stdout
            .as_ref()
            .expect("the standard output is captured");
        if !stream.wait_for(needle.as_bytes(), self.deadline) {
            self.give_up(&format!("`{needle}` on standard output"));
        }
    }

    /// Waits until the standard error contains `needle`.
    pub fn wait_for_stderr(&self, needle: &str) {
        let stream = self
            .stderr
            .as_ref()
            .expect("the standard error is captured");
        if !stream.wait_for(needle.as_bytes(), self.deadline) {
            self.give_up(&format!("`{needle}` on standard error"));
        }
    }

    /// Closes the standard input and waits for the end of the process and of its streams.
    pub fn finish(mut self) -> Finished {
        self.close_input();
        self.finish_with_open_input()
    }

    /// Waits for the end of the process and of its streams, the standard input left as it is.
    pub fn finish_with_open_input(mut self) -> Finished {
        if !wait_readable(&self.ended, self.deadline) {
            self.give_up("its end");
        }
        let status = self
            .child
            .wait()
            .expect("a child that has ended can be reaped");
        self.reaped = true;
        let took = self.started.elapsed();
        let streams_deadline = Instant::now() + STREAMS_LIMIT;
        for (name, stream) in [("output", &self.stdout), ("error", &self.stderr)] {
            let closed = stream
                .as_ref()
                .is_none_or(|stream| stream.wait_closed(streams_deadline));
            assert!(
                closed,
                "{} has ended, but somebody still holds its standard {name} open",
                self.described
            );
        }
        Finished {
            described: self.described.clone(),
            status,
            stdout: self.stdout.as_ref().map(Stream::bytes).unwrap_or_default(),
            stderr: self.stderr.as_ref().map(Stream::bytes).unwrap_or_default(),
            took,
        }
    }

    fn give_up(&self, awaited: &str) -> ! {
        let stdout = self.stdout.as_ref().map(Stream::bytes).unwrap_or_default();
        let stderr = self.stderr.as_ref().map(Stream::bytes).unwrap_or_default();
        panic!(
            "{} did not come to {awaited} within {:?}\nstandard output: {}\nstandard error: {}",
            self.described,
            self.started.elapsed(),
            Excerpt(&stdout),
            Excerpt(&stderr)
        );
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            // The group may be gone already; then there is nothing to end.
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Waits until `descriptor` can be read, and tells whether that was before the deadline.
pub(crate) fn wait_readable(descriptor: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a time limit fits a timespec");
        match poll(
            &mut [PollFd::new(descriptor, PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("cannot poll: {error}"),
        }
    }
}

/// Bytes collected from a pipe or terminal by a thread of their own.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    shared: Arc<(Mutex<Collected>, Condvar)>,
}

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    closed: bool,
}

impl Stream {
    pub(crate) fn collect(source: OwnedFd) -> Self {
        let stream = Self {
            shared: Arc::default(),
        };
        let writer = stream.clone();
        thread::spawn(move || {
            let mut source = File::from(source);
            let mut buffer = vec![0; 64 * 1024];
            loop {
                // A terminal whose last other end is closed answers EIO: its way of saying end of file.
                let count = source.read(&mut buffer).unwrap_or(0);
                writer.update(|collected| {
                    collected.bytes.extend(buffer.iter().take(count));
                    collected.closed = count == 0;
                });
                if count == 0 {
                    return;
                }
            }
        });
        stream
    }

    fn update(&self, change: impl FnOnce(&mut Collected)) {
        let (collected, changed) = &*self.shared;
        change(&mut collected.lock().unwrap_or_else(PoisonError::into_inner));
        changed.notify_all();
    }

    fn wait_until(&self, deadline: Instant, mut satisfied: impl FnMut(&Collected) -> bool) -> bool {
        let (collected, changed) = &*self.shared;
        let guard = collected.lock().unwrap_or_else(PoisonError::into_inner);
        let left = deadline.saturating_duration_since(Instant::now());
        let (guard, _) = changed
            .wait_timeout_while(guard, left, |collected| {
                !satisfied(collected) && !collected.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        satisfied(&guard)
    }

    pub(crate) fn wait_for(&self, needle: &[u8], deadline: Instant) -> bool {
        self.wait_until(deadline, |collected| contains(&collected.bytes, needle))
    }

    pub(crate) fn wait_closed(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |collected| collected.closed)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.shared
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes
            .clone()
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// How a command ended and what it wrote.
#[derive(Clone)]
pub struct Finished {
    described: String,
    status: ExitStatus,
    /// Everything written to standard output.
    pub stdout: Vec<u8>,
    /// Everything written to standard error.
    pub stderr: Vec<u8>,
    /// From start to end of the process.
    pub took: Duration,
}

impl Finished {
    pub(crate) fn new(
        described: String,
        status: ExitStatus,
        stdout: Vec<u8>,
        took: Duration,
    ) -> Self {
        Self {
            described,
            status,
            stdout,
            stderr: Vec::new(),
            took,
        }
    }

    /// Returns the exit code; `None` when the process was killed by a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns the signal that killed the process.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// Returns the standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns the standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Asserts the exit code.
    #[track_caller]
    pub fn code_is(&self, expected: i32) -> &Self {
        assert!(
            self.code() == Some(expected),
            "expected exit code {expected}\n{self:?}"
        );
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        self.code_is(0)
    }

    /// Asserts the whole standard output.
    #[track_caller]
    pub fn stdout_is(&self, expected: &str) -> &Self {
        assert!(
            self.stdout == expected.as_bytes(),
            "expected standard output {expected:?}\n{self:?}"
        );
        self
    }

    /// Asserts the whole standard error.
    #[track_caller]
    pub fn stderr_is(&self, expected: &str) -> &Self {
        assert!(
            self.stderr == expected.as_bytes(),
            "expected standard error {expected:?}\n{self:?}"
        );
        self
    }

    /// Asserts that the standard output contains `needle`.
    #[track_caller]
    pub fn stdout_has(&self, needle: &str) -> &Self {
        assert!(
            contains(&self.stdout, needle.as_bytes()),
            "expected `{needle}` on standard output\n{self:?}"
        );
        self
    }

    /// Asserts that the standard output does not contain `needle`.
    #[track_caller]
    pub fn stdout_lacks(&self, needle: &str) -> &Self {
        assert!(
            !contains(&self.stdout, needle.as_bytes()),
            "unexpected `{needle}` on standard output\n{self:?}"
        );
        self
    }

    /// Asserts that the standard error contains `needle`.
    #[track_caller]
    pub fn stderr_has(&self, needle: &str) -> &Self {
        assert!(
            contains(&self.stderr, needle.as_bytes()),
            "expected `{needle}` on standard error\n{self:?}"
        );
        self
    }

    /// Asserts that the standard error does not contain `needle`.
    #[track_caller]
    pub fn stderr_lacks(&self, needle: &str) -> &Self {
        assert!(
            !contains(&self.stderr, needle.as_bytes()),
            "unexpected `{needle}` on standard error\n{self:?}"
        );
        self
    }

    /// Asserts how `vmm run`, and any command that cannot be understood, is refused: exit code 125, nothing on standard output, one
    /// sentence `vmm: …` that contains each of `names`, then at most a `help:` line.
    #[track_caller]
    pub fn refused(&self, names: &[&str]) -> &Self {
        self.code_is(125).stdout_is("").complained(names)
    }

    /// Asserts how a command but `run` fails: the same, with exit code 1.
    #[track_caller]
    pub fn failed(&self, names: &[&str]) -> &Self {
        self.code_is(1).stdout_is("").complained(names)
    }

    /// Asserts that a command was refused or failed, where the difference is not what the test is about.
    #[track_caller]
    pub fn declined(&self, names: &[&str]) -> &Self {
        assert!(matches!(self.code(), Some(1 | 125)), "{self:?}");
        self.stdout_is("").complained(names)
    }

    /// Asserts the shape of a complaint on standard error: one line `vmm: …` naming `names`, then at most `help:` lines.
    #[track_caller]
    pub fn complained(&self, names: &[&str]) -> &Self {
        let text = self.stderr_text();
        let mut lines = text.lines();
        let sentence = lines.next().unwrap_or_default();
        assert!(
            sentence.starts_with("vmm: "),
            "expected one sentence after `vmm: `\n{self:?}"
        );
        for name in names {
            assert!(
                sentence.contains(name),
                "expected the sentence to name `{name}`\n{self:?}"
            );
        }
        let rest: Vec<&str> = lines.collect();
        let orderly = rest.is_empty() || (rest[0].starts_with("help: ") && rest.len() <= 3);
        assert!(
            orderly,
            "expected nothing but a `help:` line after the sentence\n{self:?}"
        );
        for tell_tale in ["panicked", "RUST_BACKTRACE", "unwrap()"] {
            assert!(
                !text.contains(tell_tale),
                "a complaint is not a crash\n{self:?}"
            );
        }
        self
    }

    /// Asserts that the complaint ends with a `help:` line.
    #[track_caller]
    pub fn helped(&self) -> &Self {
        let helped = self
            .stderr_text()
            .lines()
            .any(|line| line.starts_with("help: "));
        assert!(helped, "expected a `help:` line\n{self:?}");
        self
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "command: {}", self.described)?;
        writeln!(f, "ended: {} after {:?}", self.status, self.took)?;
        writeln!(f, "standard output: {}", Excerpt(&self.stdout))?;
        write!(f, "standard error: {}", Excerpt(&self.stderr))
    }
}

/// Shows bytes as text, the middle of long ones left out.
struct Excerpt<'a>(&'a [u8]);

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES: usize = 4096;
        let Self(bytes) = self;
        if bytes.is_empty() {
            return f.write_str("(empty)");
        }
        if bytes.len() <= 2 * SHOWN_BYTES {
            return write!(f, "\n{}", String::from_utf8_lossy(bytes));
        }
        let (head, tail) = (&bytes[..SHOWN_BYTES], &bytes[bytes.len() - SHOWN_BYTES..]);
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        write!(f, "\n{head}\n… {} bytes in all …\n{tail}", bytes.len())
    }
}
