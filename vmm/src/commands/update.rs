//! `vmm update`: other limits for machines, whether they run or not.

use std::time::{Duration, Instant};

use protocol::{Answer, Question};
use serde_json::Value;

use super::each;
use super::output::print_line;
use crate::cli::UpdateArgs;
use crate::dirs::Directories;
use crate::limits::CpuQuota;
use crate::machine::RamSize;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Asked, ControlError, Machine, Registry, Settings};
use crate::storage::Blueprint;
use crate::workload::limits::{LimitChange, Room};

/// How long a guest may take to change limits: it may have to take memory away from its workload.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes the limits of each machine: of what runs in the guest first, so that nothing is recorded that is not so.
pub(super) fn run(arguments: &UpdateArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let change = arguments.change();
    each(&arguments.machines, |reference| {
        let machine = registry.find(reference)?;
        let mut settings = machine.record.settings.clone();
        change.apply(&mut settings)?;
        let resources = change.resources(&settings);
        match machine.alive {
            true => limit(&machine, &resources)?,
            false => check(&settings, &resources)?,
        }
        if machine.is_kept() {
            let name = machine.record.name.as_str();
            let mut blueprint = Blueprint::read(&machine.directory, name)?;
            blueprint.limit(&change, &resources);
            blueprint.write(&machine.directory)?;
        }
        record(&registry, &machine, &change)?;
        print_line(reference)
    })
}

/// Has the guest change limits.
fn limit(machine: &Machine, resources: &Value) -> Result<(), ControlError> {
    let question = Question::Limit {
        resources: resources.to_string().into_bytes(),
    };
    let asked = Asked::send(&machine.directory, &question)?;
    match asked.answer(Instant::now() + PATIENCE)? {
        Answer::Limited => Ok(()),
        _ => Err(ControlError::Unexpected(machine.directory.clone())),
    }
}

/// Says whether a machine could be started with such limits.
fn check(settings: &Settings, resources: &Value) -> Result<(), Report> {
    RamSize::holding(settings.memory_bytes, 0).map_err(Report::new)?;
    let room = Room {
        vcpus: CpuQuota::vcpus_of(settings.nano_cpus).into(),
        memory_bytes: u64::MAX,
    };
    Ok(room.check(resources)?)
}

/// Writes the change down, to what is recorded by now.
fn record(registry: &Registry, machine: &Machine, change: &LimitChange) -> Result<(), Report> {
    let mut changed = Ok(());
    registry.change(&machine.record.id, |settings| {
        changed = change.apply(settings);
    })?;
    Ok(changed?)
}
