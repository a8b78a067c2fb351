//! What a machine can be asked to do as a whole while its workload runs: stand still, go on, be written down.
//!
//! One thing at a time, each on a thread of its own, since it waits for the machine.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use protocol::Question;

use super::Run;
use crate::agent_link::Event;
use crate::policy::Order;
use crate::report::chain;
use crate::snapshot::{Origin, Parent, Subject, Target, Writer};
use crate::state::{Action, PauseMark};
use crate::storage::{Blueprint, BlueprintError};
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
    /// Whether it sees something of the host.
    pub has_shares: bool,
    /// Its disk, if it has one.
    pub disk: Option<File>,
    /// Whether it has disks of others, which go on after it was written down.
    pub has_volumes: bool,
    /// Its directory, where is written down what it was created with.
    pub directory: PathBuf,
    /// Where it is written down that it is paused.
    pub pause_mark: PauseMark,
}

/// How far a machine is with what it is asked for.
#[derive(Debug)]
pub(super) struct Actions {
    facts: Facts,
    turns: Turns,
}

/// Who may begin something with the machine as a whole: one action at a time, and none while its workload is asked how it is, which is
/// waited for. That begins only while there is no action, and while the machine does not stand still.
#[derive(Debug, Default)]
struct Turns {
    state: Mutex<State>,
    /// Held while the workload is asked, and while the machine is stopped or written down.
    probing: Mutex<()>,
}

impl Turns {
    /// Begins an action, if there is no other.
    fn begin_action(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(PoisonError::into_inner(poisoned)),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Waits until the workload is not being asked. It is not until the result is dropped.
    fn await_probe(&self) -> MutexGuard<'_, ()> {
        self.probing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to ask the workload, which goes on until the result is dropped.
    fn begin_probe(&self) -> Option<MutexGuard<'_, ()>> {
        let probing = self.await_probe();
        let may_begin = self.begin_action().is_some_and(|state| !state.is_paused);
        may_begin.then_some(probing)
    }
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
            turns: Turns::default(),
        }
    }

    /// Whether the machine stands still. While something is being done with it that is not said.
    pub(super) fn is_paused(&self) -> bool {
        let state = self.turns.state.try_lock();
        state.is_ok_and(|state| state.is_paused)
    }

    /// Lets the workload be asked how it is until the result is dropped; nothing while the machine stands still, or something is being
    /// done with it.
    pub(super) fn begin_probe(&self) -> Option<MutexGuard<'_, ()>> {
        self.turns.begin_probe()
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
        let state = self.turns.begin_action();
        let mut state =
            state.ok_or_else(|| "something else is being done with the machine".to_owned())?;
        if !run.is_running() {
            return Err("the workload does not run".to_owned());
        }
        let failed = |error| format!("the machine cannot do that: {}", chain(&error));
        match (action, state.is_paused) {
            (Action::Pause, true) => Err("the machine is paused already".to_owned()),
            (Action::Pause, false) => {
                let _calm = self.await_probe(run)?;
                run.vm.pause().map_err(failed)?;
                state.is_paused = true;
                self.facts.pause_mark.set(true);
                run.notes.note("pause", &[]);
                Ok(())
            }
            (Action::Grow, true) => {
                Err("the machine is paused, and its guest cannot make a volume larger".to_owned())
            }
            (Action::Grow, false) => run.vm.grow_disks().map_err(failed),
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
                if self.facts.has_volumes {
                    return Err(
                        "it has volumes, and what is on them would not be what its memory knows of them"
                            .to_owned(),
                    );
                }
                if self.facts.has_shares {
                    return Err(
                        "the machine sees directories of the host, and knows open files there that a copy would not have"
                            .to_owned(),
                    );
                }
                if self.facts.subject.network.bridge().is_some() {
                    return Err(
                        "it is on a network of the host's, where what goes on from it would have other addresses"
                            .to_owned(),
                    );
                }
                if at_fork_point && !self.facts.subject.network.is_its_own() {
                    return Err(
                        "it is connected to a tap, where a copy would be another machine with the same addresses"
                            .to_owned(),
                    );
                }
                let _calm = self.await_probe(run)?;
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

    /// Waits until the workload is not being asked how it is. Somebody may have ended it meanwhile.
    fn await_probe(&self, run: &Run<'_>) -> Result<MutexGuard<'_, ()>, String> {
        let calm = self.turns.await_probe();
        match run.ended_by() {
            Some(_) => Err("the machine is ending".to_owned()),
            None => Ok(calm),
        }
    }

    /// What the machine was created with, if it can be started again.
    fn blueprint(&self) -> Result<Option<String>, String> {
        let copied = match Blueprint::read(&self.facts.directory, "") {
            Err(BlueprintError::None(_)) => return Ok(None),
            read => read.and_then(|blueprint| blueprint.to_copy()),
        };
        copied.map(Some).map_err(|error| chain(&error))
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
        if let Some(blueprint) = self.blueprint()? {
            writer.set_blueprint(blueprint);
        }
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_machine_that_stands_still_or_has_something_done_with_it_is_not_asked() {
        let turns = Turns::default();

        let action = turns.begin_action().unwrap();
        assert!(turns.begin_probe().is_none());
        drop(action);
        assert!(turns.begin_probe().is_some());
        turns.begin_action().unwrap().is_paused = true;
        assert!(turns.begin_probe().is_none());
    }

    #[test]
    fn a_machine_is_stopped_once_it_has_been_asked_and_asked_once_it_goes_on() {
        let turns = Turns::default();
        let probe = turns.begin_probe().unwrap();
        let (sender, events) = mpsc::channel();

        std::thread::scope(|scope| {
            let (turns, stopped) = (&turns, sender.clone());
            scope.spawn(move || {
                let _action = turns.begin_action().unwrap();
                stopped.send("acts").unwrap();
                let _calm = turns.await_probe();
                stopped.send("stopped").unwrap();
            });
            assert_eq!(events.recv(), Ok("acts"));
            assert!(turns.begin_action().is_none());
            sender.send("asked").unwrap();
            drop(probe);
        });

        assert_eq!(events.try_iter().collect::<Vec<_>>(), ["asked", "stopped"]);
        assert!(turns.begin_probe().is_some());
    }
}
