//! `vmm update`: other limits for machines, whether they run or not.

use std::time::{Duration, Instant};

use protocol::{Answer, Question};
use serde_json::Value;
use thiserror::Error;

use super::each;
use super::output::print_line;
use crate::cli::UpdateArgs;
use crate::dirs::Directories;
use crate::machine::RamSize;
use crate::outcome::ExitCode;
use crate::report::{Help, Report};
use crate::state::{Asked, ControlError, Machine, MachineName, Registry, Settings};
use crate::storage::Blueprint;
use crate::workload::limits::{LimitChange, check_start};

/// How long a guest may take to change limits: it may have to take memory away from its workload.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why limits were not changed, beside what is wrong with them.
#[derive(Debug, Error)]
enum UpdateError {
    /// Its guest was not asked.
    #[error("machine '{0}' was started meanwhile, and its limits are as they were")]
    Started(MachineName),
}

impl Help for UpdateError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Started(_) => Some("try again".to_owned()),
        }
    }
}

/// Changes the limits of each machine.
pub(super) fn run(arguments: &UpdateArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let change = arguments.change();
    each(&arguments.machines, |reference| {
        update(&registry, &registry.find(reference)?, &change)?;
        print_line(reference)
    })
}

/// Checks all of a change, has the guest make it, and writes it down, in this order: nothing is recorded that is not so.
fn update(registry: &Registry, machine: &Machine, change: &LimitChange) -> Result<(), Report> {
    let Machine { alive, record, .. } = machine;
    let mut settings = record.settings.clone();
    change.apply(&mut settings)?;
    let resources = change.resources(&settings);
    next_start(machine, change, &settings)?;
    if *alive {
        limit(machine, &resources)?;
    }
    registry.change(&record.id, |current, settings| {
        if current.alive && !alive {
            return Err(UpdateError::Started(current.record.name.clone()).into());
        }
        change.apply(settings)?;
        if let Some(blueprint) = next_start(current, change, settings)? {
            blueprint.write(&current.directory)?;
        }
        Ok(())
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

/// Makes what a machine will be started with, if it is kept: one that could not be started is refused.
fn next_start(
    machine: &Machine,
    change: &LimitChange,
    settings: &Settings,
) -> Result<Option<Blueprint>, Report> {
    if !machine.is_kept() {
        return Ok(None);
    }
    let mut blueprint = Blueprint::read(&machine.directory, machine.record.name.as_str())?;
    blueprint.limit(change, &change.resources(settings));
    let choices = blueprint.choices()?;
    RamSize::holding(choices.memory.bytes(), 0).map_err(Report::new)?;
    check_start(settings, choices.cpus.vcpus().into())?;
    Ok(Some(blueprint))
}
