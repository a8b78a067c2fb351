//! What a machine can be asked to do as a whole while its workload runs: stand still, go on, be written down.
//!
//! One thing at a time, each on a thread of its own, since it waits for the machine.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use protocol::Question;

use super::Run;
use crate::agent_link::Event;
use crate::policy::Order;
use crate::report::chain;
use crate::snapshot::{Origin, Parent, Subject, Target, Writer};
use crate::state::{Action, PauseMark};
use crate::workload::exec::Basis;
use crate::workload::limits::Room;

/// How long the agent may take to stop what runs, on the slowest host under load.
const FREEZE_PATIENCE: Duration = Duration::from_secs(30);

/// What ends a machine that was written down to be stopped.
const SIGKILL: u8 = 9;

/// What a monitor knows of its machine beside how to run it: what is to be in a snapshot.
#[derive(Debug)]
pub struct Facts {
    /// Of what it was made.
    pub origin: Origin,
    /// What runs in it.
    pub subject: Subject,
    /// How much RAM it has.
    pub ram_bytes: u64,
    /// How large it is for its workload.
    pub room: Room,
    /// Its disk, if it has one.
    pub disk: Option<File>,
    /// Where it is written down that it is paused.
    pub pause_mark: PauseMark,
}

/// How far a machine is with what it is asked for.
#[derive(Debug)]
pub(super) struct Actions {
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_paused: bool,
    /// What the next increment stands on.
    last: Option<Parent>,
    /// Where that is, and all that it stands on itself.
    chain: Vec<PathBuf>,
}

impl Actions {
    pub(super) fn new(facts: Facts) -> Self {
        Self {
            facts,
            state: Mutex::default(),
        }
    }

    /// Whether the machine stands still. While something is being done with it that is not said.
    pub(super) fn is_paused(&self) -> bool {
        self.state.try_lock().is_ok_and(|state| state.is_paused)
    }

    /// What other processes of the workload's container begin with.
    pub(super) fn basis(&self) -> &Basis {
        &self.facts.subject.basis
    }

    /// Says whether the guest can be asked this; why not, as a sentence.
    pub(super) fn check(&self, question: &Question) -> Result<(), String> {
        let Question::Limit { resources } = question else {
            return Ok(());
        };
        let resources = serde_json::from_slice(resources)
            .map_err(|error| format!("those are no limits: {error}"))?;
        self.facts
            .room
            .check(&resources)
            .map_err(|error| chain(&error))
    }

    /// Does what was asked for, and returns when it is done; why not, as a sentence.
    pub(super) fn act(&self, run: &Run<'_>, action: Action) -> Result<(), String> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => PoisonError::into_inner(poisoned),
            Err(TryLockError::WouldBlock) => {
                return Err("something else is being done with the machine".to_owned());
            }
        };
        if !run.is_running() {
            return Err("the workload does not run".to_owned());
        }
        let failed = |error| format!("the machine cannot do that: {}", chain(&error));
        match (action, state.is_paused) {
            (Action::Pause, true) => Err("the machine is paused already".to_owned()),
            (Action::Pause, false) => {
                run.vm.pause().map_err(failed)?;
                state.is_paused = true;
                self.facts.pause_mark.set(true);
                run.notes.note("pause", &[]);
                Ok(())
            }
            (Action::Resume, false) => Err("the machine is not paused".to_owned()),
            (Action::Resume, true) => {
                // Before, so that whoever sees it resumed does not find it marked.
                self.facts.pause_mark.set(false);
                run.vm.resume().map_err(failed)?;
                state.is_paused = false;
                run.notes.note("unpause", &[]);
                Ok(())
            }
            (Action::Snapshot { .. }, true) => {
                Err("the machine is paused, and its workload cannot be asked to stop".to_owned())
            }
            (
                Action::Snapshot {
                    target,
                    incremental,
                    at_fork_point,
                    stop,
                },
                false,
            ) => {
                if run.sessions.load(Ordering::SeqCst) > 0 {
                    return Err(
                        "commands of `vmm exec` run in the machine, and a copy of them would have no client"
                            .to_owned(),
                    );
                }
                let parent = match (incremental, &state.last) {
                    (false, _) => None,
                    (true, Some(last)) => Some(last.clone()),
                    (true, None) => {
                        return Err(
                            "there is no snapshot of this machine for an increment to stand on"
                                .to_owned(),
                        );
                    }
                };
                self.snapshot(run, &mut state, target, parent, at_fork_point, stop)?;
                if stop {
                    run.set_order(Order::Person);
                    run.end(SIGKILL);
                }
                Ok(())
            }
        }
    }

    fn snapshot(
        &self,
        run: &Run<'_>,
        state: &mut State,
        target: Target,
        parent: Option<Parent>,
        at_fork_point: bool,
        stop: bool,
    ) -> Result<(), String> {
        let kept = match &target {
            Target::File(path) => Some(path.clone()),
            Target::Open(_) => None,
        };
        if let (Some(_), Some(path)) = (&parent, &kept)
            && state.chain.contains(path)
        {
            return Err("an increment cannot take the place of what it stands on".to_owned());
        }
        let mut writer =
            Writer::new(target, self.facts.ram_bytes).map_err(|error| chain(&error))?;
        let mut files = writer
            .files(parent.is_some(), stop)
            .map_err(|error| chain(&error))?;
        // Nobody writes to a disk that is copied.
        files.stays |= self.facts.disk.is_some();
        let failed = |error| format!("the machine cannot be written down: {}", chain(&error));
        if kept.is_some() {
            // From here on, changes are noted against the new one.
            state.last = None;
        }
        let pending = run.vm.save(&files).map_err(failed)?;
        let asked = run.sender.send(Event::Freeze { at_fork_point });
        let patience = match asked {
            Ok(()) => FREEZE_PATIENCE,
            // Nobody will ring.
            Err(_) => Duration::ZERO,
        };
        pending.wait(patience).map_err(failed)?;
        let Facts {
            origin, subject, ..
        } = &self.facts;
        let is_whole = parent.is_none();
        if let Some(disk) = &self.facts.disk {
            let copied = writer.copy_disk(disk);
            if !stop || copied.is_err() {
                run.vm.resume().map_err(failed)?;
            }
            copied.map_err(|error| chain(&error))?;
        }
        let written = writer.finish(origin.clone(), subject.clone(), parent);
        if stop && written.is_err() {
            // It stands since it was written down.
            run.vm.resume().map_err(failed)?;
        }
        let id = written.map_err(|error| chain(&error))?;
        if let Some(path) = kept {
            if is_whole {
                state.chain.clear();
            }
            state.chain.push(path.clone());
            state.last = Some(Parent { id, path });
        }
        Ok(())
    }
}
