//! The handle on all machines of an account: what commands, and every other door to them, find, control and follow machines by.
//!
//! ```text
//!            create                start                         stop, kill, the workload's end
//!   (none) ─────────► created ─────────────► running ─────────────────────────────────────────► exited ──► removed
//!                        ▲        pause │ ▲ resume     │ by its policy                              │ │
//!                        │              ▼ │            ▼                                            │ └─ start ─► running
//!                        │             paused      restarting ──► running                           │
//!                        └── the monitor is gone without a word, from any state: dead ── remove ────┘
//! ```
//!
//! | call | created | running | paused | restarting | exited, dead |
//! |---|---|---|---|---|---|
//! | `starting` | yes | nothing to do | nothing to do | nothing to do | yes, if it is kept |
//! | `kill` | refused | signal | signal, once it goes on; SIGKILL at once | ends the policy | refused |
//! | `end` | nothing to do | asks, then kills | asks, resumes, then kills | ends the policy | nothing to do |
//! | `exec`, `attach`, `ask` | refused | yes | refused | refused | refused |
//! | `update` | yes | yes, if its guest can | refused | yes | yes, if it is kept |
//! | `act` (pause, resume, snapshot) | refused | pause, snapshot | resume | refused | refused |
//! | `wait` | until it has ended | until it has ended | until it has ended | until it has ended again | the code at once |
//! | `remove` | if nobody starts it | refused, or kills it first | refused, or kills it first | refused, or kills it first | yes |
//! | `rename` | yes | yes | yes | yes | yes |
//!
//! Nothing is locked from the outside between two calls: a [`Machine`] says how things were. Of two callers at the same time, each gets
//! the answer of what its call found. Two ends are one; the second of two removals is told that there is no such machine, of two starts
//! or two takers of a name that the other was faster ([`StateError`]). Whoever waits is told the end that it waited for, also if the
//! machine was removed or started again meanwhile.

mod joining;
mod limits;

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::events::{Event, EventReader};
use crate::outcome::Outcome;
use crate::report::Help;
use crate::state::{
    Action, Condition, ControlClient, ControlError, Machine, MachineId, MachineName, Record,
    Registry, Signal, StateError,
};
use crate::watch::{Watch, WatchError};

pub use self::joining::JoinError;
pub use self::limits::UpdateError;

/// How long a workload may take to end unless somebody says otherwise, docker's number.
const DEFAULT_TIMEOUT_SECONDS: i64 = 10;
/// How long a killed machine may take to be gone: its guest writes to its disk.
const KILL_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait before looking again whether it is gone.
const PAUSE: Duration = Duration::from_millis(10);

/// All machines of an account.
#[derive(Clone, Debug)]
pub struct Machines {
    registry: Registry,
}

/// Why something cannot be done with a machine.
#[derive(Debug, Error)]
pub enum MachinesError {
    /// The records say why.
    #[error(transparent)]
    State(#[from] StateError),
    /// The machine's monitor says why.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The journal of events cannot be read.
    #[error("cannot read the journal of events")]
    Events(#[source] io::Error),
    /// The journal of events cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
}

impl Help for MachinesError {
    fn help(&self) -> Option<String> {
        match self {
            Self::State(error) => error.help(),
            Self::Control(error) => error.help(),
            Self::Events(_) => None,
            Self::Watch(error) => error.help(),
        }
    }
}

/// How a machine is to end. What is not chosen is what its record says, or docker's: SIGTERM and ten seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ending {
    /// What asks its workload.
    pub signal: Option<Signal>,
    /// How long that may take before it is killed; less than none is for ever.
    pub timeout_seconds: Option<i64>,
}

/// A machine that was asked to end.
#[derive(Debug)]
pub struct Stopping {
    registry: Registry,
    machine: Machine,
    monitor: ControlClient,
    /// When it is killed; never if none.
    deadline: Option<Instant>,
}

impl Machines {
    /// The machines on record in `registry`.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self { registry }
    }

    /// Lists all, the newest first, and removes what killed monitors have left.
    ///
    /// # Errors
    ///
    /// If the directory of machines cannot be read.
    pub fn list(&self) -> Result<Vec<Machine>, MachinesError> {
        Ok(self.registry.clean_and_list()?)
    }

    /// Finds one by its name, its id or the beginning of its id.
    ///
    /// # Errors
    ///
    /// If there is none, or more than one.
    pub fn find(&self, reference: &str) -> Result<Machine, MachinesError> {
        Ok(self.registry.find(reference)?)
    }

    /// Says whether a machine is to be started: not if it runs. One that has ended and is held is waited for. Whoever starts it becomes
    /// its monitor, and of two who do the second is told by [`Registry::take_over`].
    ///
    /// # Errors
    ///
    /// If its lock cannot be waited for.
    pub fn starting(&self, machine: &Machine) -> Result<bool, MachinesError> {
        if machine.is_held() {
            self.registry.await_end(&machine.record.id)?;
        }
        Ok(!machine.runs())
    }

    /// Sends a signal to the workload of a machine that runs.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn kill(&self, machine: &Machine, signal: Signal) -> Result<(), MachinesError> {
        if !machine.runs() {
            return Err(StateError::NotAlive(machine.record.name.clone()).into());
        }
        Ok(ControlClient::connect(&machine.directory)?.kill(signal)?)
    }

    /// Has a machine's monitor do something with it, and returns when it is done.
    ///
    /// # Errors
    ///
    /// If it does not run, or the monitor says why not.
    pub fn act(&self, machine: &Machine, action: Action) -> Result<(), MachinesError> {
        if !machine.runs() {
            return Err(StateError::NotAlive(machine.record.name.clone()).into());
        }
        Ok(ControlClient::connect(&machine.directory)?.act(action)?)
    }

    /// Asks a machine to end, and waits for it.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub fn end(&self, machine: Machine, ending: Ending) -> Result<(), MachinesError> {
        match self.begin_end(machine, ending)? {
            Some(stopping) => stopping.wait(),
            None => Ok(()),
        }
    }

    /// Asks a machine to end; nothing if it has ended.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub fn begin_end(
        &self,
        machine: Machine,
        ending: Ending,
    ) -> Result<Option<Stopping>, MachinesError> {
        if !machine.runs() {
            return Ok(None);
        }
        let connect = || ControlClient::connect(&machine.directory);
        let mut monitor = match connect() {
            // It has ended in between, and its lock is free soon.
            Err(ControlError::NotRunning(_)) => {
                self.registry.await_end(&machine.record.id)?;
                return Ok(None);
            }
            other => other?,
        };
        let settings = &machine.record.settings;
        let signal = ending.signal.or(settings.stop_signal);
        let timeout = ending.timeout_seconds.or(settings.stop_timeout_seconds);
        let timeout = u64::try_from(timeout.unwrap_or(DEFAULT_TIMEOUT_SECONDS)).ok();
        let asked = Instant::now();
        monitor.stop(signal.unwrap_or(Signal::TERM))?;
        if matches!(machine.condition(), Condition::Paused { .. }) {
            // It would not notice otherwise. Somebody else may have let it go on meanwhile.
            let _ = connect().and_then(|other| other.act(Action::Resume));
        }
        Ok(Some(Stopping {
            registry: self.registry.clone(),
            machine,
            monitor,
            deadline: timeout.and_then(|seconds| asked.checked_add(Duration::from_secs(seconds))),
        }))
    }

    /// Waits until a machine has ended, and returns the code that it ended with.
    ///
    /// # Errors
    ///
    /// [`StateError::Alive`] if it was never started.
    pub fn wait(&self, machine: Machine) -> Result<u8, MachinesError> {
        let id = &machine.record.id;
        let has_ended = machine.is_held() && matches!(machine.condition(), Condition::Exited(_));
        let is_waited_for = machine.alive && !has_ended;
        if is_waited_for {
            // Its disk may still be written then.
            let told =
                ControlClient::connect(&machine.directory).and_then(|client| client.wait(None));
            if let Ok(ended) = told {
                return Ok(ended.exit_code);
            }
            self.registry.await_end(id)?;
        }
        let ended = match is_waited_for {
            true => self.registry.find(id.as_str())?,
            false => machine,
        };
        match ended.condition() {
            Condition::Exited(ended) => Ok(ended.exit_code),
            // What its monitor was ended by takes the machine with it.
            Condition::Dead { .. } => Ok(Outcome::Killed.exit_code().number()),
            Condition::Created
            | Condition::Restarting(_)
            | Condition::Running { .. }
            | Condition::Paused { .. } => Err(StateError::Alive(ended.record.id).into()),
        }
    }

    /// Removes a machine; one that runs only by `force`, which kills it first.
    ///
    /// # Errors
    ///
    /// [`StateError::Alive`] if it runs.
    pub fn remove(&self, machine: &Machine, force: bool) -> Result<(), MachinesError> {
        let id = &machine.record.id;
        if !(force && machine.alive) {
            return match self.registry.remove(id) {
                Err(StateError::Alive(_)) if self.is_ending(id)? => {
                    self.registry.await_end(id)?;
                    Ok(self.registry.remove(id)?)
                }
                other => Ok(other?),
            };
        }
        match ControlClient::connect(&machine.directory) {
            // One that ended in between needs no killing.
            Err(ControlError::NotRunning(_)) => {}
            other => other?.kill(Signal::KILL)?,
        }
        let deadline = Instant::now() + KILL_TIMEOUT;
        loop {
            match self.registry.remove(&machine.record.id) {
                Err(StateError::Alive(_)) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                other => return Ok(other?),
            }
        }
    }

    /// Waits until a machine that has ended is not held any more, for its files or by its guest.
    ///
    /// # Errors
    ///
    /// If it was removed, or its lock cannot be waited for.
    pub fn await_free(&self, id: &MachineId) -> Result<(), MachinesError> {
        if self.registry.find(id.as_str())?.is_held() {
            self.registry.await_end(id)?;
        }
        Ok(())
    }

    /// Gives a machine as it is once nothing more is written to its disk after the end of its workload.
    ///
    /// # Errors
    ///
    /// If it was removed meanwhile.
    pub fn settled(&self, machine: &Machine) -> Result<Machine, MachinesError> {
        let id = &machine.record.id;
        if machine.is_held() && self.is_ending(id)? {
            self.registry.await_end(id)?;
        }
        Ok(self.registry.find(id.as_str())?)
    }

    /// Tells whether a machine's workload has ended, and its guest writes to its disk: it is held, and nobody answers for it.
    fn is_ending(&self, id: &MachineId) -> Result<bool, MachinesError> {
        let machine = self.registry.find(id.as_str())?;
        let answered = || ControlClient::connect(&machine.directory);
        Ok(machine.is_held() && matches!(answered(), Err(ControlError::NotRunning(_))))
    }

    /// Gives a machine another name.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`] or [`StateError::SameName`].
    pub fn rename(&self, reference: &str, name: &MachineName) -> Result<(), MachinesError> {
        Ok(self.registry.rename(reference, name)?)
    }

    /// Follows what happens to all machines, from here on or from as long ago as it is known.
    ///
    /// # Errors
    ///
    /// If the journal cannot be opened or watched.
    pub fn events(&self, from_beginning: bool) -> Result<Events, MachinesError> {
        let journal = self.registry.journal();
        let directory = journal.directory().map_err(MachinesError::Events)?;
        // Before anything is read, so that nothing comes unnoticed in between.
        let watch = Watch::new(directory)?;
        let reader = EventReader::open(directory, from_beginning).map_err(MachinesError::Events)?;
        Ok(Events { watch, reader })
    }

    /// Notes what was done with a machine, for those who follow events.
    pub fn note(&self, record: &Record, action: &str) {
        self.registry.note(record, action, &[]);
    }
}

impl Stopping {
    /// Waits for the machine's end, and kills it when its time is over.
    ///
    /// # Errors
    ///
    /// If it cannot be killed or waited for.
    pub fn wait(self) -> Result<(), MachinesError> {
        let Self {
            registry,
            machine,
            monitor,
            deadline,
        } = self;
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let is_late = match left {
            Some(Duration::ZERO) => true,
            _ => matches!(monitor.wait(left), Err(ControlError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        };
        if is_late {
            match ControlClient::connect(&machine.directory) {
                Err(ControlError::NotRunning(_)) => {}
                other => other?.kill(Signal::KILL)?,
            }
        }
        if is_late {
            registry.await_end(&machine.record.id)?;
        }
        registry.note(&machine.record, "stop", &[]);
        Ok(())
    }
}

/// What happens to machines, as it happens.
#[derive(Debug)]
pub struct Events {
    watch: Watch,
    reader: EventReader,
}

impl Events {
    /// Takes the next event that is written down; none if there is no other yet.
    ///
    /// # Errors
    ///
    /// As read(2) says.
    pub fn next_event(&mut self) -> Result<Option<Event>, MachinesError> {
        self.reader.next_event().map_err(MachinesError::Events)
    }

    /// Waits until there may be another, at most for `limit` if there is one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn wait(&self, limit: Option<Duration>) -> Result<(), MachinesError> {
        Ok(self.watch.wait(limit)?)
    }
}
