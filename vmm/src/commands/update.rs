//! `vmm update`: other limits and another restart policy for machines, whether they run or not.

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
use crate::policy::RestartPolicy;
use crate::report::{Help, Report};
use crate::state::{Asked, ControlError, Machine, MachineName, Registry, Settings, StateError};
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
    /// It cannot be started again.
    #[error("machine '{0}' cannot be started again by a policy: nothing of it is kept")]
    NotKept(MachineName),
}

impl Help for UpdateError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Started(_) => Some("try again".to_owned()),
            Self::NotKept(_) => Some(
                "machines of `vmm create`, and of `vmm run -d` with --storage or --restart, are kept".to_owned(),
            ),
        }
    }
}

/// Changes the limits of each machine.
pub(super) fn run(arguments: &UpdateArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let change = arguments.change();
    each(&arguments.machines, |reference| {
        let machine = registry.find(reference)?;
        if let Some(policy) = arguments.restart {
            can_be_restarted(&machine, policy)?;
        }
        // Nothing at all is refused there.
        if arguments.restart.is_none() || change != LimitChange::default() {
            update(&registry, &machine, &change)?;
        }
        if let Some(policy) = arguments.restart {
            registry.change(&machine.record.id, |_, settings| {
                settings.restart = policy;
                Ok::<_, StateError>(())
            })?;
        }
        print_line(reference)
    })
}

/// Refuses a restart policy for a machine of which nothing stays that could be started again.
fn can_be_restarted(machine: &Machine, policy: RestartPolicy) -> Result<(), UpdateError> {
    match policy.is_none() || machine.is_kept() {
        true => Ok(()),
        false => Err(UpdateError::NotKept(machine.record.name.clone())),
    }
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

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::plan::MachineChoices;
    use crate::state::{ImageLabel, MachineId, NewMachine};
    use crate::storage::StorageSize;
    use crate::workload::Workload;

    /// A machine that is kept and does not run.
    struct Fixture {
        _base: TempDir,
        registry: Registry,
    }

    impl Fixture {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            let config = base.path().join("config.json");
            std::fs::write(
                &config,
                r#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"cwd":"/","args":["sh"],"user":{"uid":0,"gid":0}}}"#,
            )
            .unwrap();
            let choices = MachineChoices {
                cpus: "1".parse().unwrap(),
                memory: "128m".parse().unwrap(),
                kernel: None,
                verbose_kernel: false,
                storage: None,
            };
            let registry = Registry::open(&base.path().join("machines")).unwrap();
            let new = NewMachine {
                id: MachineId::random().unwrap(),
                name: Some("db".parse().unwrap()),
                image: ImageLabel {
                    reference: "app".into(),
                    id: "sha256:0".into(),
                },
                command: vec!["sh".into()],
                ephemeral: false,
                settings: Settings {
                    memory_bytes: choices.memory.bytes(),
                    nano_cpus: choices.cpus.nano_cpus(),
                    ..Settings::default()
                },
            };
            let (machine, _control) = registry.create(new).unwrap();
            let workload = Workload::from_config(&config).unwrap();
            Blueprint::new(
                workload,
                Vec::new(),
                false,
                false,
                &choices,
                StorageSize::default(),
            )
            .write(machine.directory())
            .unwrap();
            Self {
                _base: base,
                registry,
            }
        }

        fn update(&self, change: &LimitChange) -> Result<(), Report> {
            update(&self.registry, &self.registry.find("db")?, change)
        }

        /// What is recorded, and what the machine will be started with.
        fn limits(&self) -> (Settings, Value) {
            let machine = self.registry.find("db").unwrap();
            let blueprint = Blueprint::read(&machine.directory, "db").unwrap();
            let resources = blueprint.workload.config()["linux"]["resources"].clone();
            (machine.record.settings, resources)
        }
    }

    #[test]
    fn of_updates_at_a_time_none_is_lost() {
        let fixture = Fixture::new();
        for number in 10..60 {
            let pids = LimitChange {
                pids: Some(number),
                ..LimitChange::default()
            };
            let shares = LimitChange {
                cpu_shares: number.try_into().ok(),
                ..LimitChange::default()
            };

            std::thread::scope(|scope| {
                scope.spawn(|| fixture.update(&pids).unwrap());
                scope.spawn(|| fixture.update(&shares).unwrap());
            });

            let (settings, resources) = fixture.limits();
            assert_eq!(settings.limits.pids_limit, number);
            assert_eq!(Some(settings.limits.cpu_shares), shares.cpu_shares);
            assert_eq!(resources["pids"]["limit"], number);
            assert_eq!(resources["cpu"]["shares"], number);
        }
    }

    #[test]
    fn a_machine_that_could_not_be_started_with_its_limits_stays_as_it_was() {
        let fixture = Fixture::new();
        let before = fixture.limits();
        let other_processor = LimitChange {
            cpuset: Some("1".parse().unwrap()),
            pids: Some(7),
            ..LimitChange::default()
        };

        let report = fixture.update(&other_processor).unwrap_err();

        assert!(report.to_string().contains("would start"), "{report}");
        assert_eq!(fixture.limits(), before);
    }

    #[test]
    fn a_machine_that_was_started_meanwhile_keeps_its_limits() {
        let fixture = Fixture::new();
        let before = fixture.limits();
        let seen = fixture.registry.find("db").unwrap();
        let _started = fixture.registry.take_over(&seen.record.id).unwrap();
        let pids = LimitChange {
            pids: Some(7),
            ..LimitChange::default()
        };

        let report = update(&fixture.registry, &seen, &pids).unwrap_err();

        assert!(report.to_string().contains("started meanwhile"), "{report}");
        assert_eq!(fixture.limits(), before);
    }
}
