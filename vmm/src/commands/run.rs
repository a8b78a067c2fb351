//! `vmm run`: a command in a new machine.
//!
//! The reading path of the whole program: image, plan, machine on record, VM process, workload, outcome.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};

use super::load::import_options;
use super::progress::ImportProgress;
use super::start::{recipes, start};
use crate::cli::{FileOrStdin, GlobalArgs, ImportLimitArgs, RunArgs, RunImage, TimingsFormat};
use crate::dirs::Directories;
use crate::guest::GuestDirectory;
use crate::image::{
    FindError, ImageSource, ImportError, ImportOptions, Store, StoreError, StoredImage,
};
use crate::limits::{CpuQuota, MemoryLimit};
use crate::machine::host::{ProbeError, Quirks, open_kvm};
use crate::monitor::{MonitorError, RawTerminal, Signals, Supervised, client_streams, window_size};
use crate::outcome::{ExitCode, Outcome};
use crate::plan::{MachineChoices, RunPlan};
use crate::report::{Help, Report, chain};
use crate::state::{
    Ended, ImageLabel, MachineId, NewMachine, OwnedMachine, Registry, StartReporter, detach,
};
use crate::template::Templates;
use crate::timings::Timings;
use crate::vm_process::{ChannelError, SpawnError};
use crate::workload::environment::{OwnEnvironment, read_file};
use crate::workload::{Choices, CpuTime, Limits, Terminal, Workload};

/// Runs a workload and returns its exit code.
///
/// # Errors
///
/// Whatever kept the workload from being run, as a report.
pub fn run(
    arguments: &RunArgs,
    directories: &Directories,
    global: &GlobalArgs,
) -> Result<ExitCode, Report> {
    if !arguments.detach {
        return run_here(arguments, directories, global, &mut None);
    }
    let waiter = detach(|reporter| {
        let mut reporter = Some(reporter);
        let result = run_here(arguments, directories, global, &mut reporter);
        if let (Err(report), Some(reporter)) = (&result, reporter) {
            reporter.failed(report);
        }
        i32::from(result.is_err())
    })?;
    let id = waiter.wait()?;
    writeln!(io::stdout(), "{id}").map_err(Report::of_output)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the workload with this process as its monitor. `reporter` is taken once a waiting client knows that the workload runs.
fn run_here(
    arguments: &RunArgs,
    directories: &Directories,
    global: &GlobalArgs,
    reporter: &mut Option<StartReporter>,
) -> Result<ExitCode, Report> {
    let mut timings = Timings::start();
    if arguments.tty && arguments.interactive && !io::stdin().is_terminal() {
        return Err(RunError::NoTerminal.into());
    }
    let kvm = open_kvm()?;
    let quirks = Quirks::of_host(&directories.cache().join("host.json"))?;
    let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
    timings.end_of("host");

    let id = MachineId::random().map_err(MonitorError::Watch)?;
    let choices = choices(arguments, &id)?;
    let (image, reference) = open_image(
        &arguments.image_and_command().0,
        &arguments.limits,
        directories,
    )?;
    timings.end_of("image");

    let image_id = image.id.to_string();
    let workload = Workload::new(&image.config, &choices, &OwnEnvironment)?;
    let new = NewMachine {
        id,
        name: arguments.name.clone(),
        image: ImageLabel {
            reference,
            id: image_id.clone(),
        },
        command: workload.command(),
        ephemeral: arguments.rm || !arguments.detach,
    };
    let is_attached = reporter.is_none();
    let streams = client_streams(is_attached, arguments.interactive, arguments.tty);
    let machine_choices = MachineChoices {
        cpus: arguments.cpus,
        memory: arguments.memory,
        kernel: arguments.kernel.clone(),
        verbose_kernel: global.verbose > 1,
    };
    let mut plan = RunPlan::decide(
        image,
        guest,
        workload,
        &machine_choices,
        quirks,
        streams.declared(),
    )?;
    // From here on a signal ends the machine in good order.
    let signals = Signals::take()?;
    let registry = Registry::open(directories.machines())?;
    let (mut machine, control) = registry.create(new)?;
    let console_log = machine.create_console_log()?;
    plan.machine.kernel_log = Some(console_log.try_clone().map_err(MonitorError::Watch)?);
    timings.end_of("plan");

    let client = reporter.as_ref().map(StartReporter::client).transpose()?;
    let templates = Templates::new(directories.cache(), arguments.templates.template_limit);
    let recipes = match arguments.templates.no_template {
        true => Vec::new(),
        false => recipes(&plan, &image_id)?,
    };
    let started = start(&kvm, &plan.machine, &templates, &recipes, &signals)?;
    let vm = started.vm;
    let supervised = Supervised {
        vm: &vm,
        console_log: &console_log,
        control,
        signals,
        client,
        has_terminal: arguments.tty,
    };
    let takes_keys = arguments.tty && arguments.interactive;
    let mut terminal = None;
    let mut failure = None;
    let result = {
        let timings = RefCell::new(&mut timings);
        let mut on_ready = || {
            let step = started.recipe.map_or("boot", |_| "clone");
            timings.borrow_mut().end_of(step);
            // Not before: until somebody reads the keys, ^C is the terminal's to handle.
            match takes_keys.then(RawTerminal::enter).transpose() {
                Ok(raw) => terminal = raw.flatten(),
                Err(error) => tracing::warn!(%error, "the terminal stays as it is"),
            }
        };
        let mut on_started = || {
            timings.borrow_mut().end_of("start");
            if let Err(report) = tell_started(&mut machine, reporter) {
                failure = Some(report);
                vm.kill();
            }
        };
        supervised.run(plan.create, streams, &mut on_ready, &mut on_started)
    };
    drop(terminal);
    timings.end_of("workload");
    if let (Some(recipe), true) = (started.recipe, started.is_first_clone) {
        templates.note_writes(recipe, &vm);
    }
    vm.kill();
    if let Some(report) = failure {
        return Err(report);
    }

    let (outcome, control) = match result {
        Ok(result) => result,
        Err(error) => {
            // Nobody listens to a machine in the background: its record keeps the reason.
            note(
                machine,
                &Outcome::GuestDied {
                    message: chain(&error),
                    last_log_lines: Vec::new(),
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
    // The first is the best that there could have been.
    if started.recipe != recipes.first() && outcome.workload_ran() {
        super::prepare::in_background(&image_id, arguments, global.root.as_deref());
    }
    timings.end_of("end");
    print_timings(arguments.timings, &timings);
    report_outcome(&outcome)
}

/// Writes down how the machine ended. That this fails does not change how it ended.
fn note(machine: OwnedMachine, outcome: &Outcome) {
    if let Err(error) = machine.finish(outcome) {
        tracing::warn!(
            error = chain(&error),
            "the machine's record is not up to date"
        );
    }
}

/// Opens the image that was typed, and says what it was called.
pub(super) fn open_image(
    image: &RunImage<'_>,
    limits: &ImportLimitArgs,
    directories: &Directories,
) -> Result<(StoredImage, String), Report> {
    let store = Store::open(directories.store())?;
    match image {
        RunImage::Name(name) => Ok((store.find(name)?, (*name).to_owned())),
        RunImage::File { source, select } => {
            let source = match source {
                FileOrStdin::File(path) => ImageSource::Path(path.clone()),
                FileOrStdin::Stdin => ImageSource::from_argument("-".into()),
            };
            let name = source.name();
            let options = ImportOptions {
                select: select.map(str::to_owned),
                ..import_options(limits)
            };
            let image = store.import(source, &options, &ImportProgress::new())?;
            Ok((image, name))
        }
    }
}

/// What was typed about the workload.
fn choices(arguments: &RunArgs, id: &MachineId) -> Result<Choices, Report> {
    let mut environment = Vec::new();
    for path in &arguments.env_file {
        environment.extend(read_file(path, &OwnEnvironment)?);
    }
    environment.extend(arguments.env.iter().cloned());
    Ok(Choices {
        command: arguments.image_and_command().1.to_vec(),
        entrypoint: arguments.entrypoint.clone(),
        environment,
        working_directory: arguments.workdir.clone(),
        user: arguments.user.clone(),
        hostname: arguments
            .hostname
            .clone()
            .unwrap_or_else(|| id.short().to_owned()),
        read_only: arguments.read_only,
        terminal: arguments.tty.then(|| Terminal {
            size: window_size(rustix::stdio::stdin()),
        }),
        limits: limits(arguments.cpus, arguments.memory),
    })
}

/// The limits of a workload in a machine of this size.
pub(super) fn limits(cpus: CpuQuota, memory: MemoryLimit) -> Limits {
    Limits {
        memory_bytes: Some(memory.bytes()),
        cpu: (!cpus.is_whole()).then(|| CpuTime {
            quota_us: cpus.quota_us(),
            period_us: CpuQuota::PERIOD_US,
        }),
        pids: None,
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

fn print_timings(format: Option<TimingsFormat>, timings: &Timings) {
    let text = match format {
        None => return,
        Some(TimingsFormat::Text) => timings.as_text(),
        Some(TimingsFormat::Json) => timings.as_json() + "\n",
    };
    // Nobody is left to tell if standard error is gone.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A workload that ran is not an error of ours, whatever its code; one that did not is.
fn report_outcome(outcome: &Outcome) -> Result<ExitCode, Report> {
    let code = outcome.exit_code();
    match outcome {
        Outcome::NotStarted { message, .. } => {
            Err(Report::new(RunError::NotStarted(message.clone())).with_exit_code(code))
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
            Err(Report::new(RunError::GuestDied(message.clone())).with_exit_code(code))
        }
        Outcome::Exited(_) | Outcome::Signalled { .. } | Outcome::Killed | Outcome::Detached => {
            Ok(code)
        }
    }
}

/// Why a workload said nothing itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Keys were to be passed on, and there is no keyboard.
    #[error("standard input is not a terminal, as -i together with -t needs it")]
    NoTerminal,
    /// It never ran.
    #[error("the workload did not start: {0}")]
    NotStarted(String),
    /// The guest's kernel ended first.
    #[error("the guest died: {0}")]
    GuestDied(String),
}

impl Help for RunError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoTerminal => Some("leave out -t to pass standard input on as it is".to_owned()),
            Self::NotStarted(_) | Self::GuestDied(_) => None,
        }
    }
}

impl Help for ProbeError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Open(error) if error.errno() == libc::EACCES => {
                Some("become a member of the group that owns /dev/kvm (often kvm)".to_owned())
            }
            Self::Open(error) if error.errno() == libc::ENOENT => {
                Some("load the kernel's kvm module, or turn virtualisation on in the firmware; vmm doctor says more".to_owned())
            }
            Self::NotKvm => Some("load the kernel's kvm module; vmm doctor says more".to_owned()),
            _ => None,
        }
    }
}

impl Help for SpawnError {}

impl Help for ChannelError {}

impl Help for StoreError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}

impl Help for FindError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}

impl Help for ImportError {
    fn help(&self) -> Option<String> {
        self.help().map(str::to_owned)
    }
}
