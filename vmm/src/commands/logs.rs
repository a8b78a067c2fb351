//! `vmm logs`: what a machine in the background has written.
//!
//! It reads the files and asks no monitor, so it works after the machine's end, and whoever reads slowly keeps nobody waiting.

use std::io::{self, BufWriter, Stderr, Stdout, Write};
use std::time::Duration;

use crate::cli::LogsArgs;
use crate::dirs::Directories;
use crate::logs::{Entry, LogReader, Next, Stream, Window};
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{LOCK, Machine, MachineName, Registry};
use crate::watch::Watch;

/// Shows a machine's log.
pub(super) fn run(arguments: &LogsArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let machine = registry.find(&arguments.machine)?;
    has_log(&machine)?;
    // Before anything is read, so that nothing comes unnoticed in between.
    let watch = match arguments.follow {
        true => Some(Watch::new(&machine.directory)?),
        false => None,
    };
    let window = Window {
        since: arguments.since,
        until: arguments.until,
        tail: arguments.tail.0,
    };
    let mut reader = LogReader::open(&machine.directory, window)?;
    let mut output = Output::new(arguments.timestamps);
    let mut is_over = false;
    loop {
        match reader.next_entry()? {
            Next::Entry(entry) => output.show(&entry).map_err(Report::of_output)?,
            Next::End => break,
            Next::Later => {
                output.flush().map_err(Report::of_output)?;
                let Some(watch) = watch.as_ref().filter(|_| !is_over) else {
                    break;
                };
                // What was written before that is read once more after it.
                is_over = has_ended(&registry, &machine, arguments)?
                    || wait(watch, &registry, &machine, arguments)?;
            }
        }
    }
    output.flush().map_err(Report::of_output)?;
    if reader.damaged_lines() > 0 {
        tracing::warn!(
            count = reader.damaged_lines(),
            "damaged lines of the log were left out"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Says why there is no log, if there is none.
fn has_log(machine: &Machine) -> Result<(), LogsError> {
    let name = || machine.record.name.clone();
    match &machine.record.settings.log {
        Some(log) if log.is_kept() => Ok(()),
        Some(_) => Err(LogsError::NotKept(name())),
        None => Err(LogsError::Foreground(name())),
    }
}

fn has_ended(registry: &Registry, machine: &Machine, arguments: &LogsArgs) -> Result<bool, Report> {
    let is_late = arguments.until.is_some_and(|until| until < Moment::now());
    Ok(is_late || registry.has_ended(&machine.record.id, machine.record.history.restarts)?)
}

/// Waits until there may be more to read, and says whether the machine's monitor has gone.
fn wait(
    watch: &Watch,
    registry: &Registry,
    machine: &Machine,
    arguments: &LogsArgs,
) -> Result<bool, Report> {
    let limit = arguments
        .until
        .map(|until| Duration::from_nanos(until.nanoseconds_after(Moment::now())));
    let is_lock_closed = watch.wait_and_see(limit, LOCK)?;
    if is_lock_closed {
        // A file is closed a moment before its lock is free.
        registry.await_end(&machine.record.id)?;
    }
    Ok(is_lock_closed)
}

/// Standard output and standard error, in the order in which the workload wrote to its own.
struct Output {
    stdout: BufWriter<Stdout>,
    stderr: BufWriter<Stderr>,
    with_times: bool,
}

impl Output {
    fn new(with_times: bool) -> Self {
        const BATCH_BYTES: usize = 64 << 10;
        Self {
            stdout: BufWriter::with_capacity(BATCH_BYTES, io::stdout()),
            stderr: BufWriter::with_capacity(BATCH_BYTES, io::stderr()),
            with_times,
        }
    }

    fn show(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.lost_bytes > 0 {
            self.flush()?;
            writeln!(
                self.stderr,
                "vmm: {} bytes are missing here, which could not be written to the log",
                entry.lost_bytes
            )?;
        }
        if entry.bytes.is_empty() {
            return Ok(());
        }
        match entry.stream {
            Stream::Stdout => {
                self.stderr.flush()?;
                put(&mut self.stdout, entry, self.with_times)
            }
            Stream::Stderr => {
                self.stdout.flush()?;
                put(&mut self.stderr, entry, self.with_times)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()?;
        self.stderr.flush()
    }
}

fn put(output: &mut impl Write, entry: &Entry, with_times: bool) -> io::Result<()> {
    if with_times {
        write!(output, "{} ", entry.time)?;
    }
    output.write_all(&entry.bytes)
}

/// There is nothing to show.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    /// It was run with `--log-driver none`.
    #[error("machine '{0}' keeps no log: it was run with --log-driver none")]
    NotKept(MachineName),
    /// It was run without `-d`.
    #[error("machine '{0}' keeps no log: its output goes to the client that runs it")]
    Foreground(MachineName),
}

impl Help for LogsError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::NotKept(_) => "run it with --log-driver json-file, or without --log-driver",
            Self::Foreground(_) => "run it with -d to have its output kept",
        };
        Some(help.to_owned())
    }
}
