//! The plan of a run: everything decided and opened, before a process or a machine is made.
//!
//! What was typed may leave things open; nothing behind this room does.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use protocol::{
    ContainerId, Create, DeclaredStreams, Filesystem, Process, ProcessId, RootSource, Upper,
};
use thiserror::Error;

use crate::guest::{GuestImage, Manifest};
use crate::image::{RootTree, StoredImage};
use crate::limits::{CpuQuota, MemoryLimit};
use crate::machine::host::Quirks;
use crate::machine::{
    MachineConfig, Part, RamSize, Root, ShapeError, ShareFailure, VcpuCount, Window, WindowClass,
    disk_name,
};
use crate::network::Planned;
use crate::report::Help;
use crate::share::Share;
use crate::storage::StorageSize;
use crate::workload::{Workload, WorkloadError};

/// A run that cannot be planned.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The machine would be too large.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The workload cannot be written down.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// A file of the plan cannot be used.
    #[error("cannot use {what}")]
    File {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Help for PlanError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Shape(ShapeError::TooMuchRam { .. }) => {
                Some("ask for less with --memory".to_owned())
            }
            Self::Workload(error) => error.help(),
            Self::Shape(_) | Self::File { .. } => None,
        }
    }
}

/// What the person decided about the machine.
#[derive(Debug, Clone)]
pub struct MachineChoices {
    /// Processor time.
    pub cpus: CpuQuota,
    /// Memory of the workload.
    pub memory: MemoryLimit,
    /// A kernel in place of the guest image's.
    pub kernel: Option<PathBuf>,
    /// Whether the guest's kernel says what it does.
    pub verbose_kernel: bool,
    /// How much the workload may write to its root, where that is kept; none where it is in the workload's memory.
    pub storage: Option<StorageSize>,
}

/// A run in which nothing is open.
#[derive(Debug)]
pub struct RunPlan {
    /// The machine, but for its log and its disk.
    pub machine: MachineConfig,
    /// What its agent is asked for.
    pub create: Create,
    /// The container of that alone: what can be built before anybody says what runs in it.
    pub container: Create,
    /// Whether that is the container of most runs of the image.
    pub has_usual_container: bool,
    /// What of the host is to be served to it.
    pub shares: Vec<Share>,
    /// What becomes of it when they are not served any more.
    pub on_share_failure: ShareFailure,
    /// What its monitor keeps for its network, if anything.
    pub keeper: Option<Planned>,
    // Held so that neither is removed while the machine runs.
    _image: StoredImage,
    guest: GuestImage,
}

/// The one container of a machine that `vmm run` makes, and its first process.
pub const FIRST: Process = Process {
    container: ContainerId(0),
    process: ProcessId(0),
};

/// The writable layer lives in the workload's memory and may take this part of it, as tmpfs(5) has it by default.
const UPPER_SHARE: u64 = 2;

impl RunPlan {
    /// Decides the machine's shape and puts the parts together.
    ///
    /// # Errors
    ///
    /// When no machine is large enough, or a file cannot be used.
    pub fn decide(
        mut image: StoredImage,
        guest: GuestImage,
        workload: Workload,
        choices: &MachineChoices,
        quirks: Quirks,
        streams: DeclaredStreams,
    ) -> Result<Self, PlanError> {
        let tree = std::mem::replace(
            &mut image.root,
            RootTree {
                parts: Vec::new(),
                size_bytes: 0,
            },
        );
        let (root, source, filesystem) = root(tree);
        let upper = match choices.storage {
            None => Upper::Tmpfs {
                size_bytes: choices.memory.bytes() / UPPER_SHARE,
            },
            Some(_) => Upper::Disk {
                source: storage_device(&root),
            },
        };
        let machine = machine(root, &guest, choices, quirks)?;
        let root = RootSource {
            source: source.to_owned(),
            filesystem,
            upper,
        };
        let has_usual_container = workload.has_usual_container();
        let container = workload.container(FIRST, root.clone())?;
        let create = workload.create(FIRST, root, streams)?;
        Ok(Self {
            machine,
            create,
            container,
            has_usual_container,
            shares: Vec::new(),
            on_share_failure: ShareFailure::default(),
            keeper: None,
            _image: image,
            guest,
        })
    }

    /// The guest image that the machine boots.
    #[must_use]
    pub fn guest(&self) -> &Manifest {
        &self.guest.manifest
    }

    /// Its files.
    #[must_use]
    pub fn guest_image(&self) -> &GuestImage {
        &self.guest
    }
}

/// The machine, but for its log and its disk.
fn machine(
    root: Root,
    guest: &GuestImage,
    choices: &MachineChoices,
    quirks: Quirks,
) -> Result<MachineConfig, PlanError> {
    let window_bytes = root.window_bytes();
    let kernel = match &choices.kernel {
        Some(path) => File::open(path).map_err(failed(path))?,
        None => guest.kernel.try_clone().map_err(failed(&guest.directory))?,
    };
    Ok(MachineConfig {
        vcpus: VcpuCount::new(u32::from(choices.cpus.vcpus()))?,
        ram: RamSize::holding(choices.memory.bytes(), window_bytes)?,
        kernel,
        has_own_kernel: choices.kernel.is_some(),
        agent: agent_window(guest)?,
        root,
        storage: None,
        network: None,
        disks: Vec::new(),
        shares: None,
        kernel_log: None,
        verbose_kernel: choices.verbose_kernel,
        quirks,
    })
}

/// The image as a window of the smallest class that holds it, or as a disk; with its name in the guest.
fn root(tree: RootTree) -> (Root, &'static str, Filesystem) {
    let parts = tree
        .parts
        .into_iter()
        .map(|part| Part {
            file: part.file,
            file_offset_bytes: 0,
            offset_bytes: part.window_offset_bytes,
            length_bytes: part.length_bytes,
        })
        .collect();
    match WindowClass::holding(tree.size_bytes) {
        Some(class) => (
            Root::Window(Window { class, parts }),
            "/dev/pmem1",
            Filesystem::ErofsDax,
        ),
        None => (
            Root::Disk {
                size_bytes: tree.size_bytes,
                parts,
            },
            "/dev/vda",
            Filesystem::Erofs,
        ),
    }
}

/// The name in the guest of the machine's own disk, beside such a root.
fn storage_device(root: &Root) -> String {
    match root {
        Root::Window(_) => disk_name(0),
        Root::Disk { .. } => disk_name(1),
    }
}

/// Which of the machine's disks, in the order of their names, is the first beside the root and its own.
#[must_use]
pub fn first_disk(image: &StoredImage, choices: &MachineChoices) -> usize {
    let has_root_disk = WindowClass::holding(image.root.size_bytes).is_none();
    usize::from(has_root_disk) + usize::from(choices.storage.is_some())
}

fn agent_window(guest: &GuestImage) -> Result<Window, PlanError> {
    let file = guest.agent.try_clone().map_err(failed(&guest.directory))?;
    let length_bytes = file.metadata().map_err(failed(&guest.directory))?.len();
    let part = Part {
        file,
        file_offset_bytes: 0,
        offset_bytes: 0,
        length_bytes,
    };
    Ok(Window {
        class: WindowClass::exact(length_bytes),
        parts: vec![part],
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PlanError {
    let what = path.display().to_string();
    move |source| PlanError::File { what, source }
}
