//! `vmm prepare`: a template before the first run.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use super::output::print_line;
use super::run::open_image;
use crate::cli::{ImportLimitArgs, PrepareArgs, RunArgs, RunImage};
use crate::dirs::Directories;
use crate::guest::GuestDirectory;
use crate::machine::host::{Quirks, open_kvm};
use crate::outcome::ExitCode;
use crate::plan::{MachineChoices, template_machine};
use crate::report::{Help, Report};
use crate::template::{Made, Patience, Recipe, Templates};

/// The lowest priority that there is (setpriority(2)).
const LOWEST_PRIORITY: i32 = 19;

/// Runs `vmm prepare`.
pub(super) fn run(arguments: &PrepareArgs, directories: &Directories) -> Result<ExitCode, Report> {
    if arguments.background {
        // That a low priority is refused is no reason to do nothing.
        let _ = rustix::process::setpriority_process(None, LOWEST_PRIORITY);
    }
    let kvm = open_kvm()?;
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
    };
    let machine = template_machine(image.root.size_bytes, &guest, &choices, quirks)?
        .ok_or(PrepareError::TooLarge)?;
    let recipe = Recipe::of(&machine, &guest.manifest)?.ok_or(PrepareError::TooLarge)?;
    let patience = if arguments.background {
        Patience::Leave
    } else {
        Patience::Wait
    };
    let made = Templates::new(directories.cache(), arguments.template_limit)
        .make(&kvm, &machine, &recipe, patience)?;
    if !arguments.quiet {
        print_line(match made {
            Made::New => "prepared",
            Made::Already => "prepared already",
            Made::ElsewhereAtWork => "another template is being made",
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts `vmm prepare` for the machine of a run that booted, and does not wait for it.
pub(super) fn in_background(image_id: &str, arguments: &RunArgs, root: Option<&Path>) {
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
        image_id.into(),
    ]);
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

/// An image for which there is no template.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    /// It is no window.
    #[error("the image is larger than the largest window, so its machines always boot")]
    TooLarge,
}

impl Help for PrepareError {}
