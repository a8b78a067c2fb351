//! A machine that began, from its first word to its outcome: what `vmm run` does with a new workload and one that goes on alike.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use crate::agent_link::{ClientStreams, Job};
use crate::cli::TimingsFormat;
use crate::logs::{Collector, LogConfig, LogSinks, LogSources, LogWriter, log_pipes};
use crate::monitor::{Facts, MonitorError, RawTerminal, Signals, Supervised};
use crate::outcome::{ExitCode, Outcome};
use crate::report::{Help, Report, chain};
use crate::state::{ControlServer, Ended, OwnedMachine, Registry, StartReporter};
use crate::timings::Timings;
use crate::vm_process::VmProcess;

/// A machine that began, and what is to be done in it.
pub(super) struct Attended<'a> {
    pub(super) machine: OwnedMachine,
    pub(super) control: ControlServer,
    pub(super) vm: &'a VmProcess,
    pub(super) console_log: &'a File,
    pub(super) signals: Signals,
    pub(super) job: Job,
    pub(super) streams: ClientStreams<'a>,
    /// The log that the streams lead to, if they do.
    pub(super) log: Option<&'a Log>,
    pub(super) facts: Facts,
    /// Whether the workload has this process's terminal, and reads its keys.
    pub(super) has_terminal: bool,
    pub(super) takes_keys: bool,
    /// Whether what it wrote is to stay.
    pub(super) has_disk: bool,
    /// How it began, for `--timings`.
    pub(super) beginning: &'static str,
}

impl Attended<'_> {
    /// Runs the workload to its end and writes down how that was. `reporter` is taken once a waiting client knows that the workload
    /// runs; `before_end` is called while the machine is still there.
    ///
    /// # Errors
    ///
    /// When nothing can be said about the workload.
    pub(super) fn attend(
        self,
        registry: &Registry,
        reporter: &mut Option<StartReporter>,
        timings: &mut Timings,
        before_end: impl FnOnce(&VmProcess),
    ) -> Result<Outcome, Report> {
        let Self {
            mut machine,
            control,
            vm,
            console_log,
            signals,
            job,
            streams,
            log,
            facts,
            has_terminal,
            takes_keys,
            has_disk,
            beginning,
        } = self;
        let client = reporter.as_ref().map(StartReporter::client).transpose()?;
        let collector = log.map(|log| log.start(machine.directory())).transpose()?;
        let supervised = Supervised {
            vm,
            console_log,
            control,
            signals,
            client,
            has_terminal,
            has_disk,
            facts,
        };
        let mut terminal = None;
        let mut failure = None;
        let result = {
            let timings = RefCell::new(&mut *timings);
            let mut on_ready = || {
                timings.borrow_mut().end_of(beginning);
                // Not before: until somebody reads the keys, ^C is the terminal's to handle.
                match takes_keys.then(RawTerminal::enter).transpose() {
                    Ok(raw) => terminal = raw.flatten(),
                    Err(error) => tracing::warn!(%error, "the terminal stays as it is"),
                }
            };
            let mut on_started = |after| {
                timings.borrow_mut().end_of("start");
                timings.borrow_mut().spent_inside(after);
                if let Err(report) = tell_started(&mut machine, reporter) {
                    failure = Some(report);
                    vm.kill();
                }
            };
            supervised.run(job, streams, &mut on_ready, &mut on_started)
        };
        drop(terminal);
        timings.end_of("workload");
        before_end(vm);
        vm.kill();
        // Whoever learns that the machine has ended finds all that it wrote.
        if let Some(collector) = collector {
            collector.finish();
        }
        if let Some(report) = failure {
            return Err(report);
        }
        let (outcome, control) = match result {
            Ok(result) => result,
            Err(error) => {
                // Nobody listens to a machine in the background: its record keeps the reason.
                note(
                    machine,
                    &Outcome::HostFailed {
                        message: chain(&error),
                        help: None,
                    },
                );
                return Err(error.into());
            }
        };
        note(machine, &outcome);
        control.finish(&Ended::of(&outcome));
        if let Err(error) = registry.clean() {
            tracing::debug!(%error, "leftovers of killed machines stay for the next run");
        }
        Ok(outcome)
    }
}

/// The way of a workload's output to the log of its machine.
#[derive(Debug)]
pub(super) struct Log {
    config: LogConfig,
    sinks: LogSinks,
    sources: RefCell<Option<LogSources>>,
}

impl Log {
    /// Makes the way. Nothing is read before [`Self::start`].
    pub(super) fn new(config: LogConfig) -> Result<Self, MonitorError> {
        let (sinks, sources) = log_pipes().map_err(MonitorError::Watch)?;
        Ok(Self {
            config,
            sinks,
            sources: RefCell::new(Some(sources)),
        })
    }

    /// The streams of a workload that lead there.
    pub(super) fn streams(&self, has_terminal: bool) -> ClientStreams<'_> {
        ClientStreams {
            stdin: None,
            stdout: Some(self.sinks.stdout()),
            stderr: (!has_terminal).then(|| self.sinks.stderr()),
        }
    }

    /// Starts to write what comes to the log in a machine's directory.
    fn start(&self, directory: &Path) -> Result<Collector, MonitorError> {
        let taken = io::Error::other("the log is written already");
        let sources = self.sources.take().ok_or(MonitorError::Watch(taken))?;
        let writer = LogWriter::new(directory, &self.config);
        Collector::start(sources, writer).map_err(MonitorError::Watch)
    }
}

/// Writes down how the machine ended. That this fails does not change how it ended.
pub(super) fn note(machine: OwnedMachine, outcome: &Outcome) {
    if let Err(error) = machine.finish(outcome) {
        tracing::warn!(
            error = chain(&error),
            "the machine's record is not up to date"
        );
    }
}

/// Writes down that the workload runs, and lets a waiting client go.
fn tell_started(
    machine: &mut OwnedMachine,
    reporter: &mut Option<StartReporter>,
) -> Result<(), Report> {
    machine.set_running()?;
    if let Some(reporter) = reporter.take() {
        reporter.started(machine.id())?;
    }
    Ok(())
}

pub(super) fn print_timings(format: Option<TimingsFormat>, timings: &Timings) {
    let text = match format {
        None => return,
        Some(TimingsFormat::Text) => timings.as_text(),
        Some(TimingsFormat::Json) => timings.as_json() + "\n",
    };
    // Nobody is left to tell if standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A workload that ran is not an error of ours, whatever its code; one that did not is.
pub(super) fn report_outcome(outcome: &Outcome) -> Result<ExitCode, Report> {
    let code = outcome.exit_code();
    match outcome {
        Outcome::NotStarted { message, .. } => {
            Err(Report::new(OutcomeError::NotStarted(message.clone())).with_exit_code(code))
        }
        Outcome::HostFailed { message, help } => {
            let report =
                Report::new(OutcomeError::HostFailed(message.clone())).with_exit_code(code);
            Err(match help {
                Some(help) => report.with_help(help),
                None => report,
            })
        }
        Outcome::GuestDied {
            message,
            last_log_lines,
        } => {
            let mut stderr = io::stderr().lock();
            for line in last_log_lines {
                // Nobody is left to tell if standard error is gone.
                let _ = writeln!(stderr, "guest: {line}");
            }
            Err(Report::new(OutcomeError::GuestDied(message.clone())).with_exit_code(code))
        }
        Outcome::Signalled {
            out_of_memory: true,
            ..
        } => {
            tracing::warn!(
                "the workload reached its memory limit, and the guest's kernel killed it"
            );
            Ok(code)
        }
        Outcome::Exited(_) | Outcome::Signalled { .. } | Outcome::Killed | Outcome::Detached => {
            Ok(code)
        }
    }
}

/// Why a workload said nothing itself.
#[derive(Debug, thiserror::Error)]
enum OutcomeError {
    /// It never ran.
    #[error("the workload did not start: {0}")]
    NotStarted(String),
    /// The host took the machine away.
    #[error("{0}")]
    HostFailed(String),
    /// The guest's kernel ended first.
    #[error("the guest died: {0}")]
    GuestDied(String),
}

impl Help for OutcomeError {}
