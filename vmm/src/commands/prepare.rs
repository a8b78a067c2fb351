//! `vmm prepare`: a template before the first run.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use kvm_ioctls::Kvm;
use protocol::{DeclaredStreams, Names, Network};

use super::output::print_line;
use super::run::{blank, limits, open_image};
use super::start::recipes;
use crate::cli::{ImportLimitArgs, PrepareArgs, RunArgs, RunImage};
use crate::dirs::Directories;
use crate::guest::GuestDirectory;
use crate::machine::host::{Quirks, open_kvm};
use crate::machine::{Access, DiskId, InterfaceShape, MachineDisk, RateLimits, Shares};
use crate::network::{SHAPE_OF_USER, TypedNetwork, usual_of_user};
use crate::outcome::ExitCode;
use crate::plan::{MachineChoices, RunPlan};
use crate::report::{Help, Report};
use crate::storage::StorageSize;
use crate::template::{Made, Patience, Templates};
use crate::workload::environment::OwnEnvironment;
use crate::workload::{Choices, Workload};

/// The lowest priority that there is (setpriority(2)).
const LOWEST_PRIORITY: i32 = 19;

/// Runs `vmm prepare`: for machines that are kept and for those that are not, unless it is said for which.
pub(super) fn run(arguments: &PrepareArgs, directories: &Directories) -> Result<ExitCode, Report> {
    if arguments.background {
        // That a low priority is refused is no reason to do nothing.
        let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
    }
    let kvm = open_kvm()?;
    let kinds = match (arguments.storage, arguments.rm) {
        (Some(size), _) => vec![Some(size)],
        (None, true) => vec![None],
        (None, false) => vec![None, Some(StorageSize::default())],
    };
    let mut made = Vec::new();
    for storage in kinds {
        made.extend(make(&kvm, storage, arguments, directories)?);
    }
    if !arguments.quiet {
        print_line(if made.contains(&Made::New) {
            "prepared"
        } else if made.contains(&Made::ElsewhereAtWork) {
            "another template is being made"
        } else {
            "prepared already"
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes what is asked for, for machines with such a disk.
fn make(
    kvm: &Kvm,
    storage: Option<StorageSize>,
    arguments: &PrepareArgs,
    directories: &Directories,
) -> Result<Vec<Made>, Report> {
    let quirks = Quirks::of_host(&directories.host_cache())?;
    let guest = GuestDirectory::find(directories)?.open_current(directories.cache())?;
    let (image, _) = open_image(
        &RunImage::Name(&arguments.image),
        &ImportLimitArgs::default(),
        directories,
    )?;
    let choices = MachineChoices {
        cpus: arguments.cpus,
        memory: arguments.memory,
        kernel: None,
        verbose_kernel: false,
        storage,
    };
    let image_id = image.id.to_string();
    // The containers of all that runs in the image are the same, so anything will do.
    let anything = Choices {
        command: vec!["true".to_owned()],
        limits: limits(arguments.cpus, arguments.memory),
        ..Choices::default()
    };
    let mut workload = Workload::new(&image.config, &anything, &OwnEnvironment)?;
    let interface = match (arguments.interface, &arguments.network) {
        (None, TypedNetwork::None) => None,
        (shape, _) => Some(shape.unwrap_or(SHAPE_OF_USER)),
    };
    if let Some(shape) = interface {
        let network = match shape == SHAPE_OF_USER {
            true => usual_of_user(),
            false => Network::default(),
        };
        workload.connect(Some(network), Some(Names::default()));
    }
    let no_streams = DeclaredStreams::default();
    let mut plan = RunPlan::decide(image, guest, workload, &choices, quirks, no_streams)?;
    plan.machine.network = interface.map(InterfaceShape::unconnected);
    plan.machine.shares = arguments.shares.then_some(Shares::Unserved);
    if let Some(size) = storage {
        plan.machine.storage = Some(scratch_disk(size.bytes(), directories)?);
    }
    for _ in 0..arguments.disks {
        plan.machine.disks.push(empty_disk(directories)?);
    }
    let blank = blank(&plan, directories)?;
    let blank = blank.as_ref();
    let recipes = recipes(&plan, &image_id)?;
    let [with_container, base] = recipes.as_slice() else {
        return Err(PrepareError::TooLarge.into());
    };
    let patience = if arguments.background {
        Patience::Leave
    } else {
        Patience::Wait
    };
    let templates = Templates::new(directories.cache(), arguments.template_limit);
    let mut made = Vec::new();
    if !arguments.base {
        let container = Some(&plan.container);
        let machine = &plan.machine;
        made.push(templates.make(kvm, machine, with_container, container, blank, patience)?);
    }
    if arguments.base || arguments.background {
        plan.machine.root.empty();
        made.push(templates.make(kvm, &plan.machine, base, None, blank, patience)?);
    }
    Ok(made)
}

/// What the machine of a run has beside its root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) storage: Option<StorageSize>,
    pub(super) has_shares: bool,
    pub(super) interface: Option<InterfaceShape>,
    /// How many volumes and disks of the host.
    pub(super) disks: usize,
}

/// Starts `vmm prepare` for the machine of a run that booted, and does not wait for it.
pub(super) fn in_background(
    image_id: &str,
    arguments: &RunArgs,
    shape: Shape,
    root: Option<&Path>,
) {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(root) = root {
        words.extend(["--root".into(), root.into()]);
    }
    words.extend(["prepare", "--background", "--quiet"].map(Into::into));
    words.extend([
        "--cpus".into(),
        arguments.cpus.to_string().into(),
        "--memory".into(),
        arguments.memory.to_string().into(),
    ]);
    if shape.has_shares || shape.disks > 0 {
        // Containers that see volumes are all different: what their machines have in common is the base.
        words.push("--base".into());
    }
    if shape.has_shares {
        words.push("--shares".into());
    }
    match shape.interface {
        Some(interface) => words.extend(["--interface".into(), interface.to_string().into()]),
        None => words.extend(["--network", "none"].map(Into::into)),
    }
    if shape.disks > 0 {
        words.extend(["--disks".into(), shape.disks.to_string().into()]);
    }
    match shape.storage {
        Some(size) => words.extend(["--storage".into(), size.to_string().into()]),
        None => words.push("--rm".into()),
    }
    words.push(image_id.into());
    let started = Command::new("/proc/self/exe")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn();
    if let Err(error) = started {
        tracing::debug!(%error, "no template is made");
    }
}

/// A disk of which a clone has its own: the guest sees that it is there, and that nothing is on it.
fn empty_disk(directories: &Directories) -> Result<MachineDisk, PrepareError> {
    Ok(MachineDisk {
        file: scratch_disk(0, directories)?,
        access: Access::ReadWrite,
        id: DiskId::new("template"),
        limits: RateLimits::default(),
        lock: None,
    })
}

/// A disk without a name, with nothing on it.
fn scratch_disk(size_bytes: u64, directories: &Directories) -> Result<File, PrepareError> {
    let made = || {
        let disk = tempfile::tempfile_in(directories.cache())?;
        disk.set_len(size_bytes)?;
        Ok(disk)
    };
    made().map_err(PrepareError::Disk)
}

/// An image for which there is no template.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// The machine that is to be frozen cannot have a disk.
    #[error("cannot make a disk for a template")]
    Disk(#[source] io::Error),
    /// It is no window.
    #[error("the image is larger than the largest window, so its machines always boot")]
    TooLarge,
}

impl Help for PrepareError {}
