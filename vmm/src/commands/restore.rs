//! `vmm run --restore`, and the copies of `vmm fork`: machines that go on where one was written down.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::attend::{Attended, Relay, RelayChoices, give_up, note, print_timings, report_outcome};
use super::life::{IdFiles, of_life};
use super::run::{facts, limits, open_image};
use crate::agent_link::{ClientStreams, Job};
use crate::cli::{ImportLimitArgs, LifeArgs, RunArgs, RunImage};
use crate::dirs::Directories;
use crate::guest::GuestDirectory;
use crate::limits::{CpuQuota, MemoryLimit};
use crate::machine::host::{Quirks, open_kvm};
use crate::monitor::{MonitorError, Signals, client_streams};
use crate::network::bridge::Networks;
use crate::network::{Host, Keeper, SHAPE_OF_USER, TypedPublish};
use crate::outcome::{ExitCode, Outcome};
use crate::plan::{FIRST, MachineChoices, RunPlan};
use crate::report::{Help, Report};
use crate::snapshot::{Opened, Origin, SnapshotError, Streams};
use crate::state::{
    Ended, MachineId, MachineName, NewMachine, OwnedMachine, Registry, Settings, StartReporter,
};
use crate::storage::{self, Blueprint};
use crate::timings::Timings;
use crate::vm_process::{FirstReport, Start, VmProcess};
use crate::workload::environment::OwnEnvironment;
use crate::workload::{Choices, Workload};

/// How long the agent may take to acknowledge what it was handed, on the slowest host under load.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of several copies of a machine.
pub(super) struct Copy {
    pub(super) file: File,
    pub(super) generation: u32,
    /// Ports of the host's in place of those that the machine has.
    pub(super) published: Vec<TypedPublish>,
}

/// What a machine that goes on is for whoever lets it.
struct Client {
    settings: Settings,
    id_files: IdFiles,
    passes_end: bool,
    interactive: bool,
    tty: bool,
    name: Option<MachineName>,
    ephemeral: bool,
    /// Ports of the host's in place of those that the machine had.
    published: Vec<TypedPublish>,
}

/// Goes on with the snapshot in a file, with this process as the monitor.
pub(super) fn run_here(
    file: &Path,
    arguments: &RunArgs,
    directories: &Directories,
    reporter: &mut Option<StartReporter>,
) -> Result<ExitCode, Report> {
    let mut timings = Timings::start();
    let opened = Opened::open(file)?;
    is_resumable(&opened, directories)?;
    if arguments.tty && !opened.snapshot.subject.has_terminal {
        return Err(RestoreError::NoTerminal.into());
    }
    timings.end_of("snapshot");
    let life = &arguments.life;
    let client = Client {
        settings: of_life(life, arguments.has_log())?,
        id_files: IdFiles::reserve(life)?,
        passes_end: !arguments.detach,
        interactive: arguments.interactive,
        tty: arguments.tty,
        name: arguments.name.clone(),
        ephemeral: arguments.rm,
        published: arguments.network.published().to_vec(),
    };
    let code = resume(opened, None, client, directories, reporter, &mut timings);
    print_timings(arguments.timings, &timings);
    code
}

/// Runs a copy, with this process as the monitor.
pub(super) fn fork_here(
    copy: Copy,
    directories: &Directories,
    reporter: &mut Option<StartReporter>,
) -> Result<ExitCode, Report> {
    let opened = Opened::of_own(copy.file)?;
    let client = Client {
        settings: of_life(&LifeArgs::default(), true)?,
        id_files: IdFiles::default(),
        passes_end: false,
        interactive: false,
        tty: false,
        name: None,
        ephemeral: false,
        published: copy.published,
    };
    let generation = Some(copy.generation);
    let mut timings = Timings::start();
    resume(
        opened,
        generation,
        client,
        directories,
        reporter,
        &mut timings,
    )
}

/// Refuses a snapshot whose machine still runs: its workload's secrets would be used twice.
pub(super) fn is_resumable(opened: &Opened, directories: &Directories) -> Result<(), Report> {
    let registry = Registry::open(directories.machines())?;
    match registry.find(opened.snapshot.subject.machine.as_str()) {
        Ok(machine) if machine.alive => {
            Err(SnapshotError::StillRuns(machine.record.name.to_string()).into())
        }
        _ => Ok(()),
    }
}

/// Puts together the machine that a snapshot needs, and refuses one that is not made of the same.
pub(super) fn plan(
    opened: &Opened,
    directories: &Directories,
) -> Result<(RunPlan, MachineChoices), Report> {
    let subject = &opened.snapshot.subject;
    let quirks = Quirks::of_host(&directories.host_cache())?;
    let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
    let (image, _) = open_image(
        &RunImage::Name(&subject.image.id),
        &ImportLimitArgs::default(),
        directories,
    )?;
    let (Ok(cpus), Ok(memory)) = (
        CpuQuota::from_str(&subject.cpus),
        MemoryLimit::from_str(&subject.memory),
    ) else {
        return Err(RestoreError::Limits.into());
    };
    let choices = MachineChoices {
        cpus,
        memory,
        kernel: None,
        verbose_kernel: false,
        storage: None,
    };
    // What runs is there already.
    let anything = Choices {
        command: vec!["true".to_owned()],
        limits: limits(cpus, memory),
        ..Choices::default()
    };
    let workload = Workload::new(&image.config, &anything, &OwnEnvironment)?;
    let mut plan = RunPlan::decide(
        image,
        guest,
        workload,
        &choices,
        quirks,
        ClientStreams::default().declared(),
    )?;
    plan.machine.storage = opened.stand_in_for_disk()?;
    let has_interface = subject.network.interface.is_some();
    plan.machine.network = has_interface.then(|| SHAPE_OF_USER.unconnected());
    opened.fits(&Origin::of(&plan.machine, plan.guest()).map_err(Report::new)?)?;
    Ok((plan, choices))
}

fn resume(
    opened: Opened,
    generation: Option<u32>,
    client: Client,
    directories: &Directories,
    reporter: &mut Option<StartReporter>,
    timings: &mut Timings,
) -> Result<ExitCode, Report> {
    let kvm = open_kvm()?;
    let (mut plan, choices) = plan(&opened, directories)?;
    let subject = opened.snapshot.subject.clone();
    let network = subject.network.clone().of_copy(&client.published)?;
    let id = MachineId::random().map_err(MonitorError::Watch)?;
    let host = Host {
        networks: &Networks::new(directories.networks()),
        machine: &id,
    };
    let (interface, planned) = match network.open(host)? {
        None => (None, None),
        Some(open) => (Some(open.machine), open.planned),
    };
    plan.machine.network = interface;
    let new = NewMachine {
        id,
        name: client.name,
        image: subject.image.clone(),
        command: subject.command.clone(),
        ephemeral: client.ephemeral,
        settings: Settings {
            memory_bytes: choices.memory.bytes(),
            nano_cpus: choices.cpus.nano_cpus(),
            terminal: subject.has_terminal,
            network,
            ..client.settings
        },
    };
    let relay_choices = RelayChoices {
        interactive: client.interactive && subject.streams.stdin,
        has_terminal: subject.has_terminal,
        passes_end: client.passes_end,
    };
    let log = new.settings.log;
    let relay = log.map(|log| Relay::new(log, relay_choices)).transpose()?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(RestoreError::Null)?;
    let wanted = match &relay {
        None => client_streams(true, client.interactive, client.tty),
        Some(relay) => relay.streams(),
    };
    let streams = streams(subject.streams, wanted, &null);
    // From here on a signal ends the machine in good order.
    let signals = Signals::take()?;
    let registry = Registry::open(directories.machines())?;
    let (machine, control) = registry.create(new)?;
    let mut machine = match fill(&machine, &opened) {
        Ok(disk) => {
            plan.machine.storage = disk;
            machine
        }
        Err(report) => {
            machine.discard()?;
            return Err(report);
        }
    };
    let console_log = machine.create_console_log()?;
    client.id_files.name(machine.id())?;
    plan.machine.kernel_log = Some(console_log.try_clone().map_err(MonitorError::Watch)?);
    let facts = facts(
        &plan,
        &machine,
        &choices,
        subject.has_terminal,
        subject.streams,
        subject.basis.clone(),
    )?;
    timings.end_of("plan");

    let (frozen, claim) = opened.machine(generation.unwrap_or_default())?;
    let vm = VmProcess::spawn(&kvm, &plan.machine, &Start::Clone(Box::new(frozen)))?;
    // Its workload stands still until the agent hears of its new host: until then, the snapshot is as good as before.
    match await_ready(&vm, &signals)? {
        Began::Ready => {}
        Began::Failed(reason) => {
            vm.kill();
            return Err(RestoreError::NotResumed(reason).into());
        }
        Began::Interrupted(signal) => {
            vm.kill();
            let outcome = Outcome::Signalled {
                signal,
                out_of_memory: false,
            };
            note(&mut machine, &outcome);
            control.finish(&Ended::of(&outcome), &outcome);
            return report_outcome(&outcome);
        }
    }
    if generation.is_none()
        && let Err(error) = claim.mark_resumed()
    {
        vm.kill();
        return Err(error.into());
    }
    // It is the VM process's alone, and goes with that.
    plan.machine.network = None;
    let name = machine.record().name.to_string();
    let keeper = planned.map(|planned| Keeper::start(planned, &name));
    let keeper = match keeper.transpose() {
        Ok(keeper) => keeper,
        Err(error) => {
            vm.kill();
            let report = error.into();
            give_up(machine, &report);
            return Err(report);
        }
    };
    let attended = Attended {
        machine,
        control,
        vm: &vm,
        console_log: &console_log,
        signals,
        gateway: keeper.as_ref().and_then(Keeper::gateway),
        job: Job::Attach(FIRST),
        streams,
        relay: relay.as_ref(),
        facts,
        has_terminal: client.tty && relay.is_none(),
        takes_keys: client.tty && client.interactive && relay.is_none(),
        has_disk: plan.machine.storage.is_some(),
        beginning: "restore",
    };
    let outcome = attended
        .attend(reporter, timings, |_| {})?
        .conclude(&registry, &vm);
    timings.end_of("end");
    report_outcome(&outcome)
}

/// Gives a machine the disk that a snapshot has, and what it takes to start it again, unless it is removed in the end.
fn fill(machine: &OwnedMachine, opened: &Opened) -> Result<Option<File>, Report> {
    let Some(copy) = &opened.snapshot.disk else {
        return Ok(None);
    };
    let fill = |disk: &File| opened.fill_disk(disk);
    let disk = storage::make_filled(machine.directory(), copy.length_bytes, fill)?;
    if let Some(blueprint) = &opened.snapshot.blueprint
        && !machine.record().ephemeral
    {
        Blueprint::of_copy(blueprint)?.write(machine.directory())?;
    }
    Ok(Some(disk))
}

/// How a machine that is to go on began.
enum Began {
    Ready,
    /// Why not.
    Failed(String),
    /// A signal that ends it came first.
    Interrupted(u8),
}

/// Waits until the machine's agent has taken over what it was handed.
fn await_ready(vm: &VmProcess, signals: &Signals) -> Result<Began, Report> {
    loop {
        let began = match vm.await_report(signals.as_fd(), PATIENCE)? {
            FirstReport::Came => Began::Ready,
            FirstReport::Interrupted => match signals.next_end() {
                Some(signal) => Began::Interrupted(signal),
                None => continue,
            },
            FirstReport::Failed(reason) | FirstReport::Want(reason) => Began::Failed(reason),
            FirstReport::HungUp => {
                Began::Failed(format!("its process ended, with {}", vm.last_status()))
            }
            FirstReport::None => Began::Failed("its agent does not answer".to_owned()),
        };
        return Ok(match (began, signals.next_end()) {
            (Began::Ready, Some(signal)) => Began::Interrupted(signal),
            (began, _) => began,
        });
    }
}

/// What the workload's streams are connected to: each one that it has needs somebody, or it would wait for ever.
fn streams<'fd>(
    of_workload: Streams,
    wanted: ClientStreams<'fd>,
    null: &'fd File,
) -> ClientStreams<'fd> {
    let connected =
        |has: bool, wanted: Option<BorrowedFd<'fd>>| has.then(|| wanted.unwrap_or(null.as_fd()));
    ClientStreams {
        stdin: connected(of_workload.stdin, wanted.stdin),
        stdout: connected(of_workload.stdout, wanted.stdout),
        stderr: connected(of_workload.stderr, wanted.stderr),
    }
}

/// A machine that cannot go on.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    /// -t was typed.
    #[error("the workload of this snapshot has no terminal")]
    NoTerminal,
    /// No version of this program writes such limits.
    #[error("the snapshot's limits make no sense")]
    Limits,
    /// The host has no such file.
    #[error("cannot open /dev/null")]
    Null(#[source] io::Error),
    /// The VM process or the agent says why.
    #[error("the machine does not go on: {0}")]
    NotResumed(String),
}

impl Help for RestoreError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoTerminal => Some("leave out -t".to_owned()),
            _ => None,
        }
    }
}
