//! How a machine starts: as a clone of a template, or by a boot.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use kvm_ioctls::Kvm;
use thiserror::Error;

use crate::machine::{FrozenMachine, MachineConfig};
use crate::monitor::{MonitorError, Signals};
use crate::plan::RunPlan;
use crate::report::{Help, Report, chain};
use crate::storage;
use crate::template::{Recipe, Template, Templates};
use crate::vm_process::{FirstReport, Start, VmProcess};

/// The templates that would serve a run, the best first.
pub(super) fn recipes(plan: &RunPlan, image_id: &str) -> Result<Vec<Recipe>, Report> {
    let Some(base) = Recipe::of_base(&plan.machine, plan.guest())? else {
        return Ok(Vec::new());
    };
    // Nobody makes a template for a container of which there may never be another.
    if !plan.has_usual_container {
        return Ok(vec![base]);
    }
    let with_container = base.with_container(image_id, &plan.container, &plan.machine)?;
    Ok(vec![with_container, base])
}

/// A machine that began.
pub(super) struct Started<'recipes> {
    /// Its process.
    pub(super) vm: VmProcess,
    /// The template of which it is a clone; none for one that booted.
    pub(super) recipe: Option<&'recipes Recipe>,
    /// Whether nobody has seen yet what clones of that template write to.
    pub(super) is_first_clone: bool,
}

/// How long the agent of a clone may take to acknowledge what it was handed, on the slowest host under load.
const CLONE_PATIENCE: Duration = Duration::from_secs(15);

/// Starts the machine as a clone of the first of the templates that is there and works, and boots it where there is none. A disk on which
/// nothing is yet begins as the template's, or else as `blank`.
pub(super) fn start<'recipes>(
    kvm: &Kvm,
    machine: &MachineConfig,
    templates: &Templates,
    recipes: &'recipes [Recipe],
    blank: Option<&File>,
    signals: &Signals,
) -> Result<Started<'recipes>, Report> {
    let mut reasons = Vec::new();
    let mut started = None;
    for recipe in recipes {
        let Template { frozen, disk } = match templates.find(recipe) {
            Ok(Some(template)) => template,
            Ok(None) => continue,
            Err(error) => {
                reasons.push(chain(&error));
                continue;
            }
        };
        match fill_disk(machine, disk.as_ref()) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                templates.reject(recipe);
                reasons.push(error.to_string());
                continue;
            }
            filled => filled.map_err(StartError::Disk)?,
        }
        let is_first_clone = frozen.written.is_empty();
        match clone(kvm, machine, frozen, signals)? {
            Ok(vm) => {
                started = Some(Started {
                    vm,
                    recipe: Some(recipe),
                    is_first_clone,
                });
                break;
            }
            Err(reason) => {
                templates.reject(recipe);
                reasons.push(format!("a clone did not start: {reason}"));
            }
        }
    }
    let so_it = if started.is_some() {
        "begins with another template"
    } else {
        "boots"
    };
    // What keeps one of them from being used often keeps the next, too.
    if let Some(reason) = reasons.first() {
        tracing::warn!("the machine {so_it}, because {reason}");
    }
    if let Some(started) = started {
        return Ok(started);
    }
    fill_disk(machine, blank).map_err(StartError::Disk)?;
    Ok(Started {
        vm: VmProcess::spawn(kvm, machine, &Start::Boot)?,
        recipe: None,
        is_first_clone: false,
    })
}

/// Fills the machine's disk, if there is something to fill it with.
fn fill_disk(machine: &MachineConfig, from: Option<&File>) -> io::Result<()> {
    match (&machine.storage, from) {
        (Some(disk), Some(from)) => storage::fill(disk, from),
        _ => Ok(()),
    }
}

/// A machine that cannot start.
#[derive(Debug, Error)]
enum StartError {
    /// Its disk takes nothing.
    #[error("cannot fill the machine's disk")]
    Disk(#[source] io::Error),
}

impl Help for StartError {
    fn help(&self) -> Option<String> {
        Some("the file system of the machines' directory needs room".to_owned())
    }
}

/// Starts a clone, and says in a sentence why it did not come so far.
fn clone(
    kvm: &Kvm,
    machine: &MachineConfig,
    frozen: FrozenMachine,
    signals: &Signals,
) -> Result<Result<VmProcess, String>, Report> {
    let vm = VmProcess::spawn(kvm, machine, &Start::Clone(Box::new(frozen)))?;
    let reason = match vm.await_report(signals.as_fd(), CLONE_PATIENCE)? {
        FirstReport::Came | FirstReport::Interrupted => return Ok(Ok(vm)),
        FirstReport::Failed(reason) => reason,
        // That is not the template's fault, and a boot takes no less.
        FirstReport::Want(reason) => return Err(MonitorError::NotBuilt { reason }.into()),
        FirstReport::HungUp => format!("its process ended, with {}", vm.last_status()),
        FirstReport::None => "its agent does not answer".to_owned(),
    };
    vm.kill();
    // It must not write any more to a disk that is filled again.
    vm.reap();
    Ok(Err(reason))
}
