//! `vmm run`: a command in a new machine.
//!
//! The reading path of the whole program: image, plan, machine on record, VM process, workload, outcome.

use std::fs::File;
use std::io::{self, IsTerminal, Write};

use kvm_ioctls::Kvm;

use super::again;
use super::attend::{
    Attended, Finished, Relay, RelayChoices, give_up, print_timings, report_outcome,
};
use super::front;
use super::life::{IdFiles, settings};
use super::load::import_options;
use super::mounts;
use super::progress::ImportProgress;
use super::restore;
use super::start::{recipes, start};
use crate::agent_link::{ClientStreams, Job};
use crate::cli::{
    ContainerArgs, FileOrStdin, GlobalArgs, ImportLimitArgs, RunArgs, RunImage, TemplateArgs,
};
use crate::dirs::Directories;
use crate::guest::{GuestDirectory, GuestImage};
use crate::image::{
    FindError, ImageSource, ImportError, ImportOptions, Store, StoreError, StoredImage,
};
use crate::limits::{ByteSize, CpuQuota, MemoryLimit};
use crate::machine::host::{ProbeError, Quirks, open_kvm};
use crate::machine::{MachineNetwork, Shares};
use crate::monitor::{Facts, MonitorError, Signals, client_streams, window_size};
use crate::network::bridge::Networks;
use crate::network::{Host, Keeper, Network, Planned, TypedPorts};
use crate::outcome::ExitCode;
use crate::plan::{MachineChoices, RunPlan};
use crate::report::{Help, Report};
use crate::share::ShareProcess;
use crate::snapshot::{Origin, Streams, Subject};
use crate::state::{
    ControlServer, ImageLabel, MachineId, NewMachine, OwnedMachine, Registry, Settings,
    StartReporter, detach,
};
use crate::storage::{self, Blueprint, StorageSize};
use crate::template::Templates;
use crate::timings::Timings;
use crate::vm_process::{ChannelError, SpawnError, VmProcess};
use crate::volumes::TypedMount;
use crate::workload::container::{ContainerChoices, SecurityOption};
use crate::workload::environment::{OwnEnvironment, read_file};
use crate::workload::exec::Basis;
use crate::workload::limits::Room;
use crate::workload::{Choices, CpuTime, Limits, Terminal, Workload, WorkloadError};

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
    check_restart(arguments)?;
    if let Some(file) = &arguments.restore {
        return in_its_place(arguments, arguments.tty, directories, |reporter| {
            restore::run_here(file, arguments, directories, reporter)
        });
    }
    // What takes long is done in this process, which ^C ends at once.
    let opened = Opened::new(arguments, directories, global)?;
    let has_terminal = opened.workload.has_terminal();
    in_its_place(arguments, has_terminal, directories, |reporter| {
        opened.run(arguments, directories, global, reporter)
    })
}

/// Runs a workload here, in the background, or with a monitor of its own while this process stays with it.
fn in_its_place(
    arguments: &RunArgs,
    has_terminal: bool,
    directories: &Directories,
    run_here: impl FnOnce(&mut Option<StartReporter>) -> Result<ExitCode, Report>,
) -> Result<ExitCode, Report> {
    if !arguments.detach {
        has_keyboard(arguments.interactive, has_terminal)?;
    }
    if arguments.joins() {
        let keys = has_terminal.then_some(&arguments.detach_keys);
        return front::run(keys, true, directories, run_here);
    }
    if !arguments.detach {
        return run_here(&mut None);
    }
    let id = in_background(run_here)?;
    writeln!(io::stdout(), "{id}").map_err(Report::of_output)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a workload in a process of its own, and waits until it runs.
pub(super) fn in_background(
    run_here: impl FnOnce(&mut Option<StartReporter>) -> Result<ExitCode, Report>,
) -> Result<MachineId, Report> {
    let waiter = detach(|reporter| {
        let mut reporter = Some(reporter);
        let result = run_here(&mut reporter);
        if let (Err(report), Some(reporter)) = (&result, reporter) {
            reporter.failed(report);
        }
        i32::from(result.is_err())
    })?;
    waiter.wait()
}

/// A run that was decided, with what it takes open.
struct Opened {
    timings: Timings,
    kvm: Kvm,
    quirks: Quirks,
    guest: GuestImage,
    id: MachineId,
    choices: MachineChoices,
    image: StoredImage,
    /// What the image was called.
    reference: String,
    workload: Workload,
    mounts: Vec<TypedMount>,
    network: Network,
}

impl Opened {
    fn new(
        arguments: &RunArgs,
        directories: &Directories,
        global: &GlobalArgs,
    ) -> Result<Self, Report> {
        let mut timings = Timings::start();
        let kvm = open_kvm()?;
        let quirks = Quirks::of_host(&directories.host_cache())?;
        let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
        timings.end_of("host");
        let id = MachineId::random().map_err(MonitorError::Watch)?;
        let choices = machine_choices(arguments, global, storage(arguments)?);
        let Decided {
            image,
            reference,
            workload,
            mounts,
            network,
        } = decide(arguments, directories, &id)?;
        timings.end_of("image");
        Ok(Self {
            timings,
            kvm,
            quirks,
            guest,
            id,
            choices,
            image,
            reference,
            workload,
            mounts,
            network,
        })
    }

    /// Runs the workload with this process as its monitor. `reporter` is taken once a waiting client knows that the workload runs.
    fn run(
        self,
        arguments: &RunArgs,
        directories: &Directories,
        global: &GlobalArgs,
        reporter: &mut Option<StartReporter>,
    ) -> Result<ExitCode, Report> {
        let Self {
            mut timings,
            kvm,
            quirks,
            guest,
            id,
            choices: machine_choices,
            image,
            reference,
            mut workload,
            mut mounts,
            network,
        } = self;
        let id_files = IdFiles::reserve(&arguments.life)?;
        let image_id = image.id.to_string();
        let has_terminal = workload.has_terminal();
        let mut own_volumes = mounts::make(&mut mounts, directories)?;
        let settings = Settings {
            mounts: mounts.clone(),
            network: network.clone(),
            ..settings(arguments, &workload, &image.health)?
        };
        let log = settings.log;
        let new = NewMachine {
            id,
            name: arguments.name.clone(),
            image: ImageLabel {
                reference,
                id: image_id.clone(),
            },
            command: workload.command(),
            ephemeral: arguments.rm,
            settings,
        };
        let relay_choices = RelayChoices {
            interactive: arguments.interactive,
            has_terminal,
            passes_end: !arguments.detach,
        };
        let relay = log.map(|log| Relay::new(log, relay_choices)).transpose()?;
        let streams = match &relay {
            None => client_streams(true, arguments.interactive, has_terminal),
            Some(relay) => relay.streams(),
        };
        let blueprint = machine_choices.storage.map(|size| {
            let interactive = arguments.interactive;
            let (workload, mounts) = (workload.clone(), mounts.clone());
            Blueprint::new(
                workload,
                mounts,
                interactive,
                !arguments.detach,
                &machine_choices,
                size,
            )
            .with_share_failure(arguments.volumes.on_share_failure())
        });
        let attachments = mounts::open(&mounts, &image, &machine_choices, directories)?;
        workload.attach(&attachments);
        let (network, keeper) = connect(&network, &new.id, &mut workload, directories)?;
        let mut plan = RunPlan::decide(
            image,
            guest,
            workload,
            &machine_choices,
            quirks,
            streams.declared(),
        )?;
        plan.machine.network = network;
        plan.keeper = keeper;
        plan.machine.disks = attachments.disks;
        plan.shares = attachments.shares;
        let shape = super::prepare::Shape {
            storage: machine_choices.storage,
            has_shares: !plan.shares.is_empty(),
            interface: plan.machine.network.as_ref().map(MachineNetwork::shape),
            disks: plan.machine.disks.len(),
        };
        plan.on_share_failure = arguments.volumes.on_share_failure();
        // From here on a signal ends the machine in good order.
        let signals = Signals::take()?;
        let registry = Registry::open(directories.machines())?;
        let (machine, control) = registry.create(new)?;
        let machine = match blueprint {
            None => machine,
            Some(blueprint) => {
                let (machine, disk) = keep(machine, &blueprint)?;
                own_volumes.keep();
                plan.machine.storage = Some(disk);
                machine
            }
        };
        let blank = blank(&plan, directories)?;
        id_files.name(machine.id())?;
        let beginning = Beginning {
            kvm: &kvm,
            plan,
            choices: &machine_choices,
            machine,
            control,
            signals,
            streams,
            relay: relay.as_ref(),
            has_terminal: has_terminal && relay.is_none(),
            takes_keys: has_terminal && arguments.interactive && relay.is_none(),
            blank,
            templates: &arguments.templates,
        };
        let begun = beginning.attend(directories, reporter, &mut timings)?;
        let has_best_template = begun.has_best_template;
        let outcome = again::conclude(begun, &registry, directories);
        if !has_best_template && outcome.workload_ran() {
            super::prepare::in_background(&image_id, arguments, shape, global.root.as_deref());
        }
        timings.end_of("end");
        print_timings(arguments.timings, &timings);
        report_outcome(&outcome)
    }
}

/// What was typed, with the image that was named.
pub(super) struct Decided {
    pub(super) image: StoredImage,
    /// What the image was called.
    pub(super) reference: String,
    pub(super) workload: Workload,
    /// What it is to see beside its image.
    pub(super) mounts: Vec<TypedMount>,
    /// Its network.
    pub(super) network: Network,
}

/// Decides what is to run in the machine with this id, and opens its image.
pub(super) fn decide(
    arguments: &RunArgs,
    directories: &Directories,
    id: &MachineId,
) -> Result<Decided, Report> {
    let vcpus = u32::from(arguments.cpus.vcpus());
    arguments
        .container
        .check_processors(vcpus)
        .map_err(WorkloadError::from)?;
    let choices = choices(arguments, id)?;
    let given = given(arguments)?;
    let (image, reference) = open_image(
        &arguments.image_and_command().0,
        &arguments.limits,
        directories,
    )?;
    let is_configured = arguments.container.config.is_some();
    let network = Network::decide(
        &arguments.network.choices(&exposed(&image), is_configured),
        &Networks::new(directories.networks()),
    )?;
    let mounts = mounts::decide(arguments, &image, directories)?;
    let mut workload = match given {
        Some(given) => given,
        None => Workload::new(&image.config, &choices, &OwnEnvironment)?,
    };
    if let Some(signal) = arguments.life.stop_signal {
        workload.set_stop_signal(signal);
    }
    Ok(Decided {
        image,
        reference,
        workload,
        mounts,
        network,
    })
}

/// The ports at which the image says that its workload listens. What makes no sense there is left out.
fn exposed(image: &StoredImage) -> Vec<TypedPorts> {
    let config = image.config.config().as_ref();
    let exposed = config.and_then(|config| config.exposed_ports().as_ref());
    let names = exposed.into_iter().flatten();
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Opens the network of a machine for one start, and gives the workload its part of it.
pub(super) fn connect(
    network: &Network,
    machine: &MachineId,
    workload: &mut Workload,
    directories: &Directories,
) -> Result<(Option<MachineNetwork>, Option<Planned>), Report> {
    let hostname = workload.config()["hostname"].as_str().unwrap_or_default();
    let networks = &Networks::new(directories.networks());
    let open = network.open(Host { networks, machine })?;
    let (addresses, resolvers) = match &open {
        None => (&[][..], &[][..]),
        Some(open) => (&*open.agent.addresses, &*open.resolvers),
    };
    let names = network.names(hostname, addresses, resolvers)?;
    let (machine, agent, keeper) = match open {
        None => (None, None, None),
        Some(open) => (Some(open.machine), Some(open.agent), open.planned),
    };
    workload.connect(agent, names);
    Ok((machine, keeper))
}

/// What was typed about the machine.
pub(super) fn machine_choices(
    arguments: &RunArgs,
    global: &GlobalArgs,
    storage: Option<StorageSize>,
) -> MachineChoices {
    MachineChoices {
        cpus: arguments.cpus,
        memory: arguments.memory,
        kernel: arguments.kernel.clone(),
        verbose_kernel: global.verbose > 1,
        storage,
    }
}

/// How large the disk of the machine is; none for one that is not kept. One with a kernel of its own could not be started again.
fn storage(arguments: &RunArgs) -> Result<Option<StorageSize>, RunError> {
    let is_kept = !arguments.rm && arguments.kernel.is_none();
    match (is_kept, arguments.storage.size()) {
        (false, Some(_)) => Err(RunError::StorageNotKept),
        (false, None) => Ok(None),
        (true, size) => Ok(Some(size.unwrap_or_default())),
    }
}

/// Refuses a restart policy for a machine of which nothing stays that could be started again.
fn check_restart(arguments: &RunArgs) -> Result<(), RunError> {
    if arguments.life.restart.is_none() {
        return Ok(());
    }
    match (arguments.rm, arguments.kernel.is_some(), arguments.detach) {
        (true, ..) => Err(RunError::RestartRemoved),
        (_, true, _) => Err(RunError::RestartOwnKernel),
        (_, _, false) => Err(RunError::RestartForeground),
        (false, false, true) => Ok(()),
    }
}

/// Gives a new machine what it is kept with: its disk, and what it takes to start it again. A machine that cannot have them is removed.
pub(super) fn keep(
    machine: OwnedMachine,
    blueprint: &Blueprint,
) -> Result<(OwnedMachine, File), Report> {
    let kept = || -> Result<File, Report> {
        let size = blueprint.choices()?.storage.unwrap_or_default();
        let disk = storage::make(machine.directory(), size)?;
        // Last: a machine that has it has all.
        blueprint.write(machine.directory())?;
        Ok(disk)
    };
    match kept() {
        Ok(disk) => Ok((machine, disk)),
        Err(report) => {
            machine.discard()?;
            Err(report)
        }
    }
}

/// The empty file system that the disk of a new machine begins with, if it has one.
pub(super) fn blank(plan: &RunPlan, directories: &Directories) -> Result<Option<File>, Report> {
    if plan.machine.storage.is_none() {
        return Ok(None);
    }
    let blank = plan.guest_image().open_blank(directories.cache())?;
    Ok(Some(blank.ok_or(RunError::NoBlank)?))
}

/// The same for a machine that was made before; none if something is on its disk.
pub(super) fn blank_if_new(
    plan: &RunPlan,
    directories: &Directories,
) -> Result<Option<File>, Report> {
    let disk = plan.machine.storage.as_ref();
    let is_new = disk.map(storage::is_blank).transpose();
    match is_new.map_err(RunError::Disk)? {
        Some(true) => blank(plan, directories),
        _ => Ok(None),
    }
}

/// A machine on record that is to begin.
pub(super) struct Beginning<'a> {
    pub(super) kvm: &'a Kvm,
    pub(super) plan: RunPlan,
    pub(super) choices: &'a MachineChoices,
    pub(super) machine: OwnedMachine,
    pub(super) control: ControlServer,
    pub(super) signals: Signals,
    pub(super) streams: ClientStreams<'a>,
    /// Where the streams lead, if not to this process's own.
    pub(super) relay: Option<&'a Relay>,
    /// Whether the workload has this process's terminal, and reads its keys.
    pub(super) has_terminal: bool,
    pub(super) takes_keys: bool,
    /// What its disk begins with, if nothing is on it yet.
    pub(super) blank: Option<File>,
    pub(super) templates: &'a TemplateArgs,
}

/// What became of it.
pub(super) struct Begun {
    pub(super) finished: Finished,
    /// What is left of its VM process.
    pub(super) vm: VmProcess,
    /// What serves it the host's directories: until the VM process has ended.
    pub(super) share_process: Option<ShareProcess>,
    /// Whether it began with the best template that there could have been.
    pub(super) has_best_template: bool,
}

impl Beginning<'_> {
    /// Starts the machine and runs its workload to its end.
    pub(super) fn attend(
        self,
        directories: &Directories,
        reporter: &mut Option<StartReporter>,
        timings: &mut Timings,
    ) -> Result<Begun, Report> {
        let Self {
            kvm,
            mut plan,
            choices,
            machine,
            control,
            signals,
            streams,
            relay,
            has_terminal,
            takes_keys,
            blank,
            templates,
        } = self;
        let decided = (|| {
            let console_log = machine.create_console_log()?;
            let share_process = serve(&mut plan)?;
            plan.machine.kernel_log = Some(console_log.try_clone().map_err(MonitorError::Watch)?);
            timings.end_of("plan");
            // A template knows nothing of what is on a disk.
            let has_used_disk = plan.machine.storage.is_some() && blank.is_none();
            let recipes = match templates.no_template || has_used_disk {
                true => Vec::new(),
                false => recipes(&plan, &machine.record().image.id)?,
            };
            let facts = facts(
                &plan,
                &machine,
                choices,
                machine.record().settings.terminal,
                plan.create.streams.into(),
                Basis::of(&plan.create),
            )?;
            Ok((console_log, recipes, facts, share_process))
        })();
        let (console_log, recipes, facts, share_process) = match decided {
            Ok(decided) => decided,
            Err(report) => {
                give_up(machine, &report);
                return Err(report);
            }
        };
        let templates = Templates::new(directories.cache(), templates.template_limit);
        let blank = blank.as_ref();
        let started = match start(kvm, &plan.machine, &templates, &recipes, blank, &signals) {
            Ok(started) => started,
            Err(report) => {
                give_up(machine, &report);
                return Err(report);
            }
        };
        // It is the VM process's alone, and goes with that.
        plan.machine.network = None;
        let name = machine.record().name.to_string();
        let keeper = plan.keeper.take();
        let keeper = keeper.map(|planned| Keeper::start(planned, &name));
        let keeper = match keeper.transpose() {
            Ok(keeper) => keeper,
            Err(error) => {
                let report = error.into();
                give_up(machine, &report);
                return Err(report);
            }
        };
        let attended = Attended {
            machine,
            control,
            vm: &started.vm,
            console_log: &console_log,
            signals,
            gateway: keeper.as_ref().and_then(Keeper::gateway),
            job: Job::Create(Box::new(plan.create)),
            streams,
            relay,
            facts,
            has_terminal,
            takes_keys,
            has_disk: plan.machine.keeps_something(),
            beginning: started.recipe.map_or("boot", |_| "clone"),
        };
        let finished = attended.attend(reporter, timings, |vm| {
            if let (Some(recipe), true) = (started.recipe, started.is_first_clone) {
                templates.note_touched(recipe, vm, &plan.machine.mapped_files());
            }
        })?;
        Ok(Begun {
            finished,
            // The first is the best that there could have been.
            has_best_template: started.recipe == recipes.first(),
            vm: started.vm,
            share_process,
        })
    }
}

/// Starts the server of what the machine sees of the host, if it sees any.
fn serve(plan: &mut RunPlan) -> Result<Option<ShareProcess>, Report> {
    let shares = std::mem::take(&mut plan.shares);
    if shares.is_empty() {
        return Ok(None);
    }
    let (process, channel) = ShareProcess::spawn(shares)?;
    plan.machine.shares = Some(Shares::Served {
        channel,
        on_failure: plan.on_share_failure,
    });
    Ok(Some(process))
}

/// Refuses to pass on keys where there is no keyboard.
pub(super) fn has_keyboard(interactive: bool, tty: bool) -> Result<(), RunError> {
    match tty && interactive && !io::stdin().is_terminal() {
        true => Err(RunError::NoTerminal),
        false => Ok(()),
    }
}

/// What is to be in the machine's snapshots.
pub(super) fn facts(
    plan: &RunPlan,
    machine: &OwnedMachine,
    choices: &MachineChoices,
    has_terminal: bool,
    streams: Streams,
    basis: Basis,
) -> Result<Facts, Report> {
    let record = machine.record();
    let disk = plan.machine.storage.as_ref().map(File::try_clone);
    Ok(Facts {
        origin: Origin::of(&plan.machine, plan.guest()).map_err(Report::new)?,
        subject: Subject {
            machine: record.id.clone(),
            image: record.image.clone(),
            command: record.command.clone(),
            cpus: choices.cpus.to_string(),
            memory: choices.memory.to_string(),
            has_terminal,
            streams,
            network: record.settings.network.clone(),
            basis,
        },
        ram_bytes: plan.machine.ram.bytes(),
        room: Room {
            vcpus: plan.machine.vcpus.get().into(),
            memory_bytes: plan
                .machine
                .ram
                .room_bytes(plan.machine.root.window_bytes()),
        },
        has_volumes: !plan.machine.disks.is_empty(),
        has_shares: plan.machine.shares.is_some(),
        disk: disk.transpose().map_err(MonitorError::Watch)?,
        directory: machine.directory().to_owned(),
        pause_mark: machine.pause_mark(),
    })
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
        fork_point: arguments.fork_point,
        terminal: arguments.tty.then(|| Terminal {
            size: window_size(rustix::stdio::stdin()),
        }),
        limits: Limits {
            pids: arguments.container.pids(),
            ..limits(arguments.cpus, arguments.memory)
        },
        container: container(&arguments.container)?,
    })
}

/// What was typed about the container.
fn container(arguments: &ContainerArgs) -> Result<ContainerChoices, WorkloadError> {
    Ok(ContainerChoices {
        cap_add: arguments.cap_add.clone(),
        cap_drop: arguments.cap_drop.clone(),
        privileged: arguments.privileged,
        security: arguments
            .security_opt
            .iter()
            .map(SecurityOption::read)
            .collect::<Result<_, _>>()?,
        ulimits: arguments.ulimit.clone(),
        groups: arguments.group_add.clone(),
        oom_score_adj: arguments.oom_score_adj,
        init: arguments.init,
        systemd: arguments.systemd.unwrap_or_default(),
        sysctls: arguments.sysctl.clone(),
        devices: arguments.device.clone(),
        tmpfs: arguments.tmpfs.clone(),
        shm_bytes: arguments.shm_size.map(ByteSize::bytes),
        // As with docker, none is named by it.
        cpu_shares: arguments.cpu_shares.filter(|shares| *shares > 0),
        cpuset: arguments.cpuset_cpus.clone(),
        own_users: arguments.userns.unwrap_or_default(),
        without_shm: arguments.ipc.unwrap_or_default(),
    })
}

/// The whole configuration that was handed in, if one was.
fn given(arguments: &RunArgs) -> Result<Option<Workload>, Report> {
    let Some(path) = &arguments.container.config else {
        return Ok(None);
    };
    if !arguments.image_and_command().1.is_empty() {
        return Err(RunError::CommandBesideConfig.into());
    }
    Ok(Some(Workload::from_config(path)?))
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

/// What was typed makes no sense here.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Keys were to be passed on, and there is no keyboard.
    #[error("standard input is not a terminal, as -i together with -t needs it")]
    NoTerminal,
    /// A command was typed where the configuration has one.
    #[error("a command was typed, and --config names one already")]
    CommandBesideConfig,
    /// There is nothing to keep it with.
    #[error("a size of storage was typed, and the machine is not kept")]
    StorageNotKept,
    /// Nothing is left to be started again.
    #[error("--restart and --rm exclude each other")]
    RestartRemoved,
    /// The kernel is not kept.
    #[error("--restart and --kernel exclude each other")]
    RestartOwnKernel,
    /// It ends with its client.
    #[error("--restart needs -d: a machine in the foreground ends with its client")]
    RestartForeground,
    /// The disk of a machine cannot be looked at.
    #[error("cannot look at the machine's disk")]
    Disk(#[source] io::Error),
    /// The guest image is an old one.
    #[error(
        "the guest image has no empty file system, as the disk of a machine that is kept begins with"
    )]
    NoBlank,
}

impl Help for RunError {
    fn help(&self) -> Option<String> {
        match self {
            Self::CommandBesideConfig => {
                Some("change process.args in the configuration".to_owned())
            }
            Self::StorageNotKept => Some(
                "leave out --rm and --kernel; what such machines write is in their --memory"
                    .to_owned(),
            ),
            Self::NoBlank => Some(
                "install a newer guest image, or add --rm to keep nothing of the machine"
                    .to_owned(),
            ),
            Self::Disk(_) => None,
            Self::RestartRemoved | Self::RestartOwnKernel => {
                Some("leave one of them out".to_owned())
            }
            Self::RestartForeground => {
                Some("add -d, and see what it writes with `vmm logs -f`".to_owned())
            }
            Self::NoTerminal => Some("leave out -t to pass standard input on as it is".to_owned()),
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
