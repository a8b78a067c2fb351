//! `vmm create`, `vmm start` and `vmm restart`: machines that are kept, from their creation to each of their starts.

use std::fs::File;

use kvm_ioctls::Kvm;
use protocol::DeclaredStreams;

use super::again;
use super::attach;
use super::attend::{Relay, RelayChoices, report_outcome};
use super::front;
use super::life::{IdFiles, of_life, settings};
use super::mounts;
use super::output::print_line;
use super::run::{
    Beginning, Begun, Decided, blank_if_new, connect, decide, has_keyboard, in_background, keep,
    machine_choices, open_image,
};
use super::{each, machines};
use crate::cli::{
    CreateArgs, GlobalArgs, ImportLimitArgs, RestartArgs, RunArgs, RunImage, StartArgs,
    TemplateArgs,
};
use crate::dirs::Directories;
use crate::guest::{GuestDirectory, GuestImage};
use crate::image::StoredImage;
use crate::machine::ShareFailure;
use crate::machine::host::{Quirks, open_kvm};
use crate::machines::Ending;
use crate::monitor::{MonitorError, Signals};
use crate::network::Network;
use crate::outcome::ExitCode;
use crate::plan::{MachineChoices, RunPlan};
use crate::report::{Help, Report};
use crate::state::{
    ControlServer, ImageLabel, Machine, MachineId, NewMachine, OwnedMachine, Registry, Settings,
    StartReporter,
};
use crate::storage::{self, Blueprint};
use crate::timings::Timings;
use crate::volumes::{Attachments, TypedMount};
use crate::workload::Workload;

/// Creates a machine and prints its id.
pub(super) fn create(
    arguments: &CreateArgs,
    directories: &Directories,
    global: &GlobalArgs,
) -> Result<ExitCode, Report> {
    let arguments = &arguments.run;
    if let Some(flag) = refused_flag(arguments) {
        return Err(CreateError::Flag(flag).into());
    }
    let id_files = IdFiles::reserve(&arguments.life)?;
    let id = MachineId::random().map_err(MonitorError::Watch)?;
    let size = arguments.storage.size().unwrap_or_default();
    let choices = machine_choices(arguments, global, Some(size));
    let Decided {
        image,
        reference,
        workload,
        mut mounts,
        network,
    } = decide(arguments, directories, &id)?;
    let mut own_volumes = mounts::make(&mut mounts, directories)?;
    let new = NewMachine {
        id,
        name: arguments.name.clone(),
        image: ImageLabel {
            reference,
            id: image.id.to_string(),
        },
        command: workload.command(),
        ephemeral: false,
        settings: Settings {
            log: of_life(&arguments.life, true)?.log,
            mounts: mounts.clone(),
            network,
            ..settings(arguments, &workload, &image.health)?
        },
    };
    // What is missing is said now, and not at the first start.
    Attachments::check_shares(&mounts, &directories.own())?;
    let blueprint = Blueprint::new(
        workload,
        mounts,
        arguments.interactive,
        true,
        &choices,
        size,
    )
    .with_share_failure(arguments.volumes.on_share_failure());
    let (machine, _control) = Registry::open(directories.machines())?.create(new)?;
    let (machine, _disk) = keep(machine, &blueprint)?;
    own_volumes.keep();
    id_files.name(machine.id())?;
    print_line(machine.id().as_str())?;
    Ok(ExitCode::SUCCESS)
}

/// The first flag of `vmm run` that a machine which is only created cannot have.
fn refused_flag(arguments: &RunArgs) -> Option<&'static str> {
    let flags = [
        (arguments.detach, "--detach"),
        (arguments.rm, "--rm"),
        (arguments.kernel.is_some(), "--kernel"),
        (arguments.restore.is_some(), "--restore"),
        (arguments.timings.is_some(), "--timings"),
    ];
    flags
        .iter()
        .find(|(is_there, _)| *is_there)
        .map(|(_, flag)| *flag)
}

/// Starts each machine; with `--attach` the one that is named, here.
pub(super) fn start(
    arguments: &StartArgs,
    directories: &Directories,
    global: &GlobalArgs,
) -> Result<ExitCode, Report> {
    let verbose_kernel = global.verbose > 1;
    let machines = machines(directories)?;
    if arguments.attach || arguments.interactive {
        let [reference] = arguments.machines.as_slice() else {
            return Err(CreateError::AttachSeveral.into());
        };
        let machine = machines.find(reference)?;
        if !machines.starting(&machine)? {
            return attach::join_started(&machines, &machine, arguments);
        }
        let has_terminal = machine.record.settings.terminal;
        let takes_input = arguments.interactive && is_interactive(&machine)?;
        has_keyboard(takes_input, has_terminal)?;
        let keys = has_terminal.then_some(&arguments.detach_keys);
        return front::run(keys, takes_input, directories, |reporter| {
            start_here(&machine.record.id, verbose_kernel, directories, reporter)
        });
    }
    each(&arguments.machines, |reference| {
        let machine = machines.find(reference)?;
        // As with docker, what runs need not be started.
        if machines.starting(&machine)? {
            let id = &machine.record.id;
            in_background(|reporter| start_here(id, verbose_kernel, directories, reporter))?;
        }
        print_line(reference)
    })
}

/// Whether a machine was created to have an input.
fn is_interactive(machine: &Machine) -> Result<bool, Report> {
    let blueprint = Blueprint::read(&machine.directory, machine.record.name.as_str())?;
    Ok(blueprint.interactive)
}

/// Lets each machine end and starts it again. One that does not run is only started.
pub(super) fn restart(
    arguments: &RestartArgs,
    directories: &Directories,
    global: &GlobalArgs,
) -> Result<ExitCode, Report> {
    let verbose_kernel = global.verbose > 1;
    let machines = machines(directories)?;
    let ending = Ending {
        signal: arguments.signal,
        timeout_seconds: arguments.timeout,
    };
    each(&arguments.machines, |reference| {
        let machine = machines.find(reference)?;
        // One that cannot be started again is left running.
        Blueprint::read(&machine.directory, machine.record.name.as_str())?;
        let (id, record) = (machine.record.id.clone(), machine.record.clone());
        machines.end(machine, ending)?;
        machines.await_free(&id)?;
        in_background(|reporter| start_here(&id, verbose_kernel, directories, reporter))?;
        machines.note(&record, "restart");
        print_line(reference)
    })
}

/// Starts a machine with this process as its monitor. `reporter` is taken once a waiting client knows that the workload runs.
pub(super) fn start_here(
    id: &MachineId,
    verbose_kernel: bool,
    directories: &Directories,
    reporter: &mut Option<StartReporter>,
) -> Result<ExitCode, Report> {
    let mut timings = Timings::start();
    let registry = Registry::open(directories.machines())?;
    // From here on nobody else starts or removes it.
    let (machine, control) = registry.take_over(id)?;
    let prepared = Prepared::new(&machine, verbose_kernel, directories, &mut timings)?;
    // From here on a signal ends the machine in good order.
    let signals = Signals::take()?;
    let begun = prepared.run(
        (machine, control),
        signals,
        directories,
        reporter,
        &mut timings,
    )?;
    report_outcome(&again::conclude(begun, &registry, directories))
}

/// All that it takes to run a machine that is kept.
pub(super) struct Prepared {
    kvm: Kvm,
    plan: RunPlan,
    /// What its disk begins with, if nothing is on it yet.
    blank: Option<File>,
    choices: MachineChoices,
    /// Where its streams lead.
    relay: Relay,
}

impl Prepared {
    /// Opens it.
    pub(super) fn new(
        machine: &OwnedMachine,
        verbose_kernel: bool,
        directories: &Directories,
        timings: &mut Timings,
    ) -> Result<Self, Report> {
        let kvm = open_kvm()?;
        let quirks = Quirks::of_host(&directories.host_cache())?;
        timings.end_of("host");
        let mut kept = open_kept(machine, directories)?;
        kept.network = machine.record().settings.network.clone();
        let choices = MachineChoices {
            verbose_kernel,
            ..kept.choices.clone()
        };
        let has_terminal = kept.workload.has_terminal();
        timings.end_of("image");
        let log = machine.record().settings.log.unwrap_or_default();
        let relay_choices = RelayChoices {
            interactive: kept.interactive,
            has_terminal,
            passes_end: kept.passes_end,
        };
        let relay = Relay::new(log, relay_choices)?;
        let declared = relay.streams().declared();
        let (plan, blank) = kept.plan(&choices, quirks, declared, directories)?;
        Ok(Self {
            kvm,
            plan,
            blank,
            choices,
            relay,
        })
    }

    /// Runs it.
    pub(super) fn run(
        self,
        (machine, control): (OwnedMachine, ControlServer),
        signals: Signals,
        directories: &Directories,
        reporter: &mut Option<StartReporter>,
        timings: &mut Timings,
    ) -> Result<Begun, Report> {
        let Self {
            kvm,
            plan,
            blank,
            choices,
            relay,
        } = self;
        let beginning = Beginning {
            kvm: &kvm,
            plan,
            choices: &choices,
            machine,
            control,
            signals,
            streams: relay.streams(),
            relay: Some(&relay),
            has_terminal: false,
            takes_keys: false,
            blank,
            templates: &TemplateArgs::default(),
        };
        beginning.attend(directories, reporter, timings)
    }
}

/// What a machine that is kept starts with again.
pub(super) struct Kept {
    /// Whose it is.
    pub(super) machine: MachineId,
    pub(super) choices: MachineChoices,
    pub(super) disk: File,
    pub(super) guest: GuestImage,
    pub(super) image: StoredImage,
    pub(super) workload: Workload,
    pub(super) mounts: Vec<TypedMount>,
    /// Its network: none where only its files are looked at.
    pub(super) network: Network,
    /// What becomes of it when what it sees of the host is not served any more.
    pub(super) on_share_failure: ShareFailure,
    /// Whether its input is to be open, and to end with that of the client that has it.
    pub(super) interactive: bool,
    pub(super) passes_end: bool,
}

impl Kept {
    /// Puts the machine together, with what its disk begins with if nothing is on it yet.
    pub(super) fn plan(
        mut self,
        choices: &MachineChoices,
        quirks: Quirks,
        streams: DeclaredStreams,
        directories: &Directories,
    ) -> Result<(RunPlan, Option<File>), Report> {
        let attachments = mounts::open(&self.mounts, &self.image, choices, directories)?;
        self.workload.attach(&attachments);
        let (network, keeper) = connect(
            &self.network,
            &self.machine,
            &mut self.workload,
            directories,
        )?;
        let mut plan = RunPlan::decide(
            self.image,
            self.guest,
            self.workload,
            choices,
            quirks,
            streams,
        )?;
        plan.machine.storage = Some(self.disk);
        plan.machine.network = network;
        plan.keeper = keeper;
        plan.machine.disks = attachments.disks;
        plan.shares = attachments.shares;
        plan.on_share_failure = self.on_share_failure;
        let blank = blank_if_new(&plan, directories)?;
        Ok((plan, blank))
    }
}

/// Opens all that a machine starts with again.
pub(super) fn open_kept(machine: &OwnedMachine, directories: &Directories) -> Result<Kept, Report> {
    let name = machine.record().name.to_string();
    let blueprint = Blueprint::read(machine.directory(), &name)?;
    let choices = blueprint.choices()?;
    let disk = storage::open(machine.directory(), choices.storage.unwrap_or_default())?;
    let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
    let (image, _) = open_image(
        &RunImage::Name(&machine.record().image.id),
        &ImportLimitArgs::default(),
        directories,
    )?;
    Ok(Kept {
        machine: machine.id().clone(),
        choices,
        disk,
        guest,
        image,
        workload: blueprint.workload,
        mounts: blueprint.mounts,
        network: Network::default(),
        on_share_failure: blueprint.on_share_failure,
        interactive: blueprint.interactive,
        passes_end: blueprint.passes_end,
    })
}

/// Why a machine was not created or started.
#[derive(Debug, thiserror::Error)]
enum CreateError {
    /// A flag means nothing here.
    #[error("a machine cannot be created with {0}")]
    Flag(&'static str),
    /// There is one output.
    #[error("only one machine can be attached to")]
    AttachSeveral,
}

impl Help for CreateError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Flag(_) => Some("use it with `vmm run`".to_owned()),
            Self::AttachSeveral => Some("start the others without -a and -i".to_owned()),
        }
    }
}
