//! Limits of machines, and what becomes of them when their workloads end.

use std::time::{Duration, Instant};

use protocol::{Answer, Question};
use serde_json::Value;
use thiserror::Error;

use super::{JoinError, Machines};
use crate::machine::{RamSize, ShapeError};
use crate::policy::RestartPolicy;
use crate::report::Help;
use crate::state::{ControlError, Machine, MachineName, Settings, StateError};
use crate::storage::{Blueprint, BlueprintError};
use crate::workload::limits::{LimitChange, LimitsError, check_start};

/// How long a guest may take to change limits: it may have to take memory away from its workload.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why limits or a policy were not changed.
#[derive(Debug, Error)]
pub enum UpdateError {
    /// The change makes no sense.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// No machine is that large.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// What it is started with cannot be read or written.
    #[error(transparent)]
    Blueprint(#[from] BlueprintError),
    /// The records say why.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its guest cannot be asked.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Its guest says why.
    #[error(transparent)]
    Control(#[from] ControlError),
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
            Self::Limits(error) => error.help(),
            Self::Blueprint(error) => error.help(),
            Self::State(error) => error.help(),
            Self::Join(error) => error.help(),
            Self::Control(error) => error.help(),
            Self::Shape(_) => None,
            Self::Started(_) => Some("try again".to_owned()),
            Self::NotKept(_) => Some(
                "machines of `vmm create`, and of `vmm run` without --rm and --kernel, are kept"
                    .to_owned(),
            ),
        }
    }
}

impl Machines {
    /// Changes limits of a machine: checks all of the change, has the guest make it if the machine runs, and writes it down, in this
    /// order, so that nothing is recorded that is not so.
    ///
    /// # Errors
    ///
    /// [`UpdateError`]; nothing is written down then.
    pub fn update(&self, machine: &Machine, change: &LimitChange) -> Result<(), UpdateError> {
        let record = &machine.record;
        let runs = machine.runs();
        let mut settings = record.settings.clone();
        change.apply(&mut settings)?;
        let resources = change.resources(&settings);
        next_start(machine, change, &settings)?;
        if runs {
            self.limit(machine, &resources)?;
        }
        self.registry.change(&record.id, |current, settings| {
            if current.runs() && !runs {
                return Err(UpdateError::Started(current.record.name.clone()));
            }
            change.apply(settings)?;
            if let Some(blueprint) = next_start(current, change, settings)? {
                blueprint.write(&current.directory)?;
            }
            Ok(())
        })
    }

    /// Changes what becomes of a machine when its workload ends.
    ///
    /// # Errors
    ///
    /// [`UpdateError::NotKept`] if it could not be started again, or what the records say.
    pub fn set_restart_policy(
        &self,
        machine: &Machine,
        policy: RestartPolicy,
    ) -> Result<(), UpdateError> {
        if !policy.is_none() && !machine.is_kept() {
            return Err(UpdateError::NotKept(machine.record.name.clone()));
        }
        self.registry.change(&machine.record.id, |_, settings| {
            settings.restart = policy;
            Ok(())
        })
    }

    /// Has the guest change limits.
    fn limit(&self, machine: &Machine, resources: &Value) -> Result<(), UpdateError> {
        let question = Question::Limit {
            resources: resources.to_string().into_bytes(),
        };
        let asked = self.ask(machine, &question)?;
        match asked.answer(Instant::now() + PATIENCE)? {
            Answer::Limited => Ok(()),
            _ => Err(ControlError::Unexpected(machine.directory.clone()).into()),
        }
    }
}

/// Makes what a machine will be started with, if it is kept: one that could not be started is refused.
fn next_start(
    machine: &Machine,
    change: &LimitChange,
    settings: &Settings,
) -> Result<Option<Blueprint>, UpdateError> {
    if !machine.is_kept() {
        return Ok(None);
    }
    let mut blueprint = Blueprint::read(&machine.directory, machine.record.name.as_str())?;
    blueprint.limit(change, &change.resources(settings));
    let choices = blueprint.choices()?;
    RamSize::holding(choices.memory.bytes(), 0)?;
    check_start(settings, choices.cpus.vcpus().into())?;
    Ok(Some(blueprint))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::plan::MachineChoices;
    use crate::state::{ImageLabel, MachineId, NewMachine, Registry};
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

        fn update(&self, change: &LimitChange) -> Result<(), UpdateError> {
            Machines::new(self.registry.clone()).update(&self.registry.find("db")?, change)
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

        let machines = Machines::new(fixture.registry.clone());
        let report = machines.update(&seen, &pids).unwrap_err();

        assert!(report.to_string().contains("started meanwhile"), "{report}");
        assert_eq!(fixture.limits(), before);
    }
}
