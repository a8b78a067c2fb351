//! How a machine starts: as a clone of its template, or by a boot.

use std::os::fd::AsFd;
use std::time::Duration;

use kvm_ioctls::Kvm;

use crate::machine::MachineConfig;
use crate::monitor::Signals;
use crate::report::{Report, chain};
use crate::template::{Recipe, Templates};
use crate::vm_process::{FirstReport, Start, VmProcess};

/// How a machine began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Began {
    /// By its kernel's first instruction.
    Booted,
    /// As a clone of a template of which nobody has seen yet what clones write to.
    FirstClone,
    /// As a clone like others before it.
    Cloned,
}

/// How long the agent of a clone may take to acknowledge what it was handed, on the slowest host.
const CLONE_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the machine as a clone of its template, and boots it where there is none, or none that works. Says which of the two.
pub(super) fn start(
    kvm: &Kvm,
    machine: &MachineConfig,
    template: Option<(&Templates, &Recipe)>,
    signals: &Signals,
) -> Result<(VmProcess, Began), Report> {
    if let Some((templates, recipe)) = template {
        match templates.find(recipe) {
            Ok(None) => {}
            Ok(Some(frozen)) => {
                let began = if frozen.written.is_empty() {
                    Began::FirstClone
                } else {
                    Began::Cloned
                };
                let vm = VmProcess::spawn(kvm, machine, &Start::Clone(Box::new(frozen)))?;
                let reason = match vm.await_report(signals.as_fd(), CLONE_PATIENCE)? {
                    FirstReport::Came | FirstReport::Interrupted => return Ok((vm, began)),
                    FirstReport::Failed(reason) => reason,
                    FirstReport::HungUp => {
                        format!("its process ended, with {}", vm.last_status())
                    }
                    FirstReport::None => "its agent does not answer".to_owned(),
                };
                vm.kill();
                templates.reject(recipe);
                tracing::warn!("the machine boots, because a clone did not start: {reason}");
            }
            Err(error) => tracing::warn!("the machine boots, because {}", chain(&error)),
        }
    }
    let vm = VmProcess::spawn(kvm, machine, &Start::Boot)?;
    Ok((vm, Began::Booted))
}
