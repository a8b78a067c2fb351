//! A machine that began, from its first word to its outcome: what `vmm run` does with a new workload and one that goes on alike.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::agent_link::{ClientStreams, Job, event_channel};
use crate::attach::Audience;
use crate::cli::TimingsFormat;
use crate::logs::{Collector, LogConfig, LogSinks, LogSources, LogWriter, log_pipes};
use crate::monitor::{
    Attachable, Facts, HealthWatch, MonitorError, Ran, RawTerminal, Signals, Supervised, wait,
};
use crate::network::GatewayKeeper;
use crate::outcome::{ExitCode, Outcome};
use crate::policy::{BackOff, End, Order};
use crate::report::{Help, Report, chain};
use crate::state::{ControlServer, Ended, OwnedMachine, Registry, Signal, StartReporter};
use crate::timings::Timings;
use crate::vm_process::VmProcess;

/// A machine that began, and what is to be done in it.
pub(super) struct Attended<'a> {
    pub(super) machine: OwnedMachine,
    pub(super) control: ControlServer,
    pub(super) vm: &'a VmProcess,
    pub(super) console_log: &'a File,
    pub(super) signals: Signals,
    /// What starts its network gateway, if it has one of its own.
    pub(super) gateway: Option<&'a GatewayKeeper>,
    pub(super) job: Job,
    pub(super) streams: ClientStreams<'a>,
    /// Where the streams lead, if not to this process's own.
    pub(super) relay: Option<&'a Relay>,
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
    /// Runs the workload to its end. `reporter` is taken once a waiting client knows that the workload runs; `before_end` is called
    /// while the machine is still there.
    ///
    /// # Errors
    ///
    /// When nothing can be said about the workload.
    pub(super) fn attend(
        self,
        reporter: &mut Option<StartReporter>,
        timings: &mut Timings,
        before_end: impl FnOnce(&VmProcess),
    ) -> Result<Finished, Report> {
        let Self {
            mut machine,
            mut control,
            vm,
            console_log,
            signals,
            gateway,
            job,
            streams,
            relay,
            facts,
            has_terminal,
            takes_keys,
            has_disk,
            beginning,
        } = self;
        let client = reporter
            .as_ref()
            .map(StartReporter::client)
            .transpose()?
            .flatten();
        let own_client = reporter.as_mut().and_then(StartReporter::take_own_client);
        let has_client = own_client.is_some() || relay.is_none();
        let started = relay
            .map(|relay| relay.start(machine.directory()))
            .transpose()?;
        let (collector, attachable) = started.unzip();
        if let Some((attachable, stream)) = attachable.as_ref().zip(own_client) {
            control
                .adopt(stream)
                .and_then(|offer| attachable.attach_own(offer))
                .map_err(MonitorError::Watch)?;
        }
        let supervised = Supervised {
            vm,
            console_log,
            control,
            signals,
            client,
            holder: None,
            gateway,
            stop_signal: stop_signal(&machine),
            has_terminal,
            has_disk,
            facts,
            attachable,
            notes: machine.notes(),
            health: machine
                .record()
                .settings
                .health
                .clone()
                .map(|check| HealthWatch {
                    check,
                    mark: machine.health_mark(),
                }),
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
        let guest_ends_by = result.as_ref().ok().and_then(|ran| ran.guest_ends_by);
        if guest_ends_by.is_none() || failure.is_some() {
            vm.kill();
        }
        // Whoever learns that the machine has ended finds all that it wrote.
        if let Some(collector) = collector {
            collector.finish();
        }
        if let Some(report) = failure {
            return Err(report);
        }
        let ran = match result {
            Ok(ran) => ran,
            Err(error) => {
                // Nobody listens to a machine in the background: its record keeps the reason.
                note(
                    &mut machine,
                    &Outcome::HostFailed {
                        message: chain(&error),
                        help: None,
                    },
                );
                return Err(error.into());
            }
        };
        Ok(Finished {
            machine,
            ran,
            has_client,
        })
    }
}

/// A machine whose workload has ended, of which that is not written down yet.
#[derive(Debug)]
pub(super) struct Finished {
    machine: OwnedMachine,
    ran: Ran,
    /// Whether the machine was somebody's, who is told all of its end.
    has_client: bool,
}

impl Finished {
    /// How long to wait until the machine is started again; none if it is not.
    pub(super) fn delay(&mut self, back_off: &mut BackOff) -> Option<Duration> {
        let end = End {
            has_run: self.ran.run_time.is_some(),
            is_failure: self.ran.outcome.exit_code() != ExitCode::SUCCESS,
            order: self.ran.order,
        };
        let is_again = !self.has_client
            && self.machine.is_kept()
            && self
                .machine
                .restart_policy()
                .goes_on(end, self.machine.record().history.restarts);
        is_again.then(|| back_off.next(self.ran.run_time.unwrap_or_default()))
    }

    /// Writes down that the machine is started again, and lets those know who wait for the end of this run. Returns when that is over
    /// for the guest, too.
    pub(super) fn begin_waiting(self, vm: &VmProcess) -> Result<Waiting, Outcome> {
        let guest_ends_by = self.ran.guest_ends_by;
        let waiting = self.note_restart();
        vm.end(guest_ends_by);
        waiting
    }

    fn note_restart(mut self) -> Result<Waiting, Outcome> {
        let Ran {
            outcome,
            mut control,
            signals,
            threads,
            ..
        } = self.ran;
        match self.machine.set_restarting(&outcome) {
            Ok(ended) => {
                control.tell_end(&ended, &outcome);
                // There must be none when the next VM process is forked.
                threads.join();
                Ok(Waiting {
                    machine: self.machine,
                    control,
                    signals,
                    ended,
                    outcome,
                })
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the machine is not started again");
                control.finish(&Ended::of(&outcome), &outcome);
                Err(outcome)
            }
        }
    }

    /// Writes down how the machine ended, and lets those know who wait for that. Returns when nothing more is written to its disk; till
    /// then it is there for its files alone.
    pub(super) fn conclude(mut self, registry: &Registry, vm: &VmProcess) -> Outcome {
        let Ran {
            outcome,
            run_time,
            control,
            order,
            guest_ends_by,
            ..
        } = self.ran;
        hold_if_kept(&self.machine);
        if order == Some(Order::Person) {
            self.machine.note_stopped();
        }
        let ended = match (order, run_time) {
            // As docker has it: what was ended before it ran again has ended as it had.
            (Some(_), None) if self.machine.is_restarting() => finish_restarting(&mut self.machine),
            _ => {
                note(&mut self.machine, &outcome);
                None
            }
        };
        control.finish(&ended.unwrap_or_else(|| Ended::of(&outcome)), &outcome);
        vm.end(guest_ends_by);
        drop(self.machine);
        if let Err(error) = registry.clean() {
            tracing::debug!(%error, "leftovers of killed machines stay for the next run");
        }
        outcome
    }
}

/// A machine that is to be started again.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) machine: OwnedMachine,
    pub(super) control: ControlServer,
    pub(super) signals: Signals,
    ended: Ended,
    outcome: Outcome,
}

impl Waiting {
    /// Waits for that. Says who does not want it any more, if somebody does not.
    pub(super) fn wait(&mut self, delay: Duration) -> Option<Order> {
        let stop_signal = stop_signal(&self.machine);
        wait(
            &mut self.control,
            &self.signals,
            &self.ended,
            stop_signal,
            delay,
        )
    }

    /// Writes down that the machine has ended as it had, and lets those know who wait for that.
    pub(super) fn conclude(mut self, order: Order) -> Outcome {
        if order == Order::Person {
            self.machine.note_stopped();
        }
        hold_if_kept(&self.machine);
        finish_restarting(&mut self.machine);
        self.control.finish(&self.ended, &self.outcome);
        self.outcome
    }
}

/// Has those who are told of a machine's end wait, if they start or remove it, until its monitor is gone. One that is not kept is
/// removed before anybody is told.
fn hold_if_kept(machine: &OwnedMachine) {
    if machine.is_kept()
        && let Err(error) = machine.hold()
    {
        tracing::warn!(
            error = chain(&error),
            "the machine seems to run until its monitor is gone"
        );
    }
}

/// What asks a machine's workload to end.
pub(super) fn stop_signal(machine: &OwnedMachine) -> Signal {
    machine
        .record()
        .settings
        .stop_signal
        .unwrap_or(Signal::TERM)
}

/// Writes down that a machine is not started again after all, and says how it had ended.
fn finish_restarting(machine: &mut OwnedMachine) -> Option<Ended> {
    let finished = machine.finish_restarting();
    finished.unwrap_or_else(|error| {
        tracing::warn!(
            error = chain(&error),
            "the machine's record is not up to date"
        );
        None
    })
}

/// Writes down that a machine could not be started again, and why. One that was to be started by a person stays as it was.
pub(super) fn give_up(mut machine: OwnedMachine, report: &Report) {
    if machine.is_restarting() {
        note(
            &mut machine,
            &Outcome::HostFailed {
                message: report.sentence(),
                help: None,
            },
        );
    }
}

/// The way of a workload's streams that are not this process's own: output to the log and to clients that attach, input from those.
#[derive(Debug)]
pub(super) struct Relay {
    log: LogConfig,
    has_terminal: bool,
    passes_end: bool,
    sinks: LogSinks,
    sources: RefCell<Option<LogSources>>,
    /// What the workload reads, and the other end, which clients get; both are kept, for the input to stay open.
    input: Option<(UnixStream, UnixStream)>,
}

/// How a workload was asked for, as far as its streams go.
#[derive(Clone, Copy, Debug)]
pub(super) struct RelayChoices {
    /// Whether it has an input.
    pub(super) interactive: bool,
    pub(super) has_terminal: bool,
    /// Whether the end of a client's input is that of the workload's. With docker that is so unless the machine was run with -d.
    pub(super) passes_end: bool,
}

impl Relay {
    /// Makes the way. Nothing is read before [`Self::start`].
    pub(super) fn new(log: LogConfig, choices: RelayChoices) -> Result<Self, MonitorError> {
        let RelayChoices {
            interactive,
            has_terminal,
            passes_end,
        } = choices;
        let (sinks, sources) = log_pipes().map_err(MonitorError::Watch)?;
        let input = interactive.then(UnixStream::pair).transpose();
        Ok(Self {
            log,
            has_terminal,
            passes_end,
            sinks,
            sources: RefCell::new(Some(sources)),
            input: input.map_err(MonitorError::Watch)?,
        })
    }

    /// The streams of a workload that lead there.
    pub(super) fn streams(&self) -> ClientStreams<'_> {
        ClientStreams {
            stdin: self.input.as_ref().map(|(source, _)| source.as_fd()),
            stdout: Some(self.sinks.stdout()),
            stderr: (!self.has_terminal).then(|| self.sinks.stderr()),
        }
    }

    /// Starts to write what comes to the log in a machine's directory, and to show it to those who attach.
    fn start(&self, directory: &Path) -> Result<(Collector, Attachable), MonitorError> {
        let taken = io::Error::other("the output is read already");
        let sources = self.sources.take().ok_or(MonitorError::Watch(taken))?;
        let is_kept = self.log.is_kept();
        let writer = is_kept.then(|| LogWriter::new(directory, &self.log));
        let input = self.input.as_ref().map(|(_, clients)| clients.try_clone());
        let (audience, newcomers) = event_channel().map_err(MonitorError::Watch)?;
        let attachable = Attachable {
            audience,
            input: input.transpose().map_err(MonitorError::Watch)?,
            has_terminal: self.has_terminal,
            passes_end: self.passes_end,
        };
        let collector = Collector::start(sources, writer, Audience::new(newcomers));
        Ok((collector.map_err(MonitorError::Watch)?, attachable))
    }
}

/// Writes down how the machine ended. That this fails does not change how it ended.
pub(super) fn note(machine: &mut OwnedMachine, outcome: &Outcome) {
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
