//! The directory of machines: who is there, who is alive, who is called what.
//!
//! ```text
//! machines/
//!   <64 digits>/          one machine
//!     record.json         what is written down about it, replaced whole
//!     lock                flock held by the monitor for as long as it lives
//!     control.sock        the monitor's control socket
//!     console.log         the guest kernel's log
//!     health.json         how well the workload is, if somebody asks
//!     disk, blueprint.json    see crate::storage
//!   @<name>               symlink to <64 digits>: making it is what makes a name unique
//!   .creating-… .removing-…   what is not yet or no longer a machine
//!   .events/              what happened to all of them, see crate::events
//! ```
//!
//! There is no daemon. A machine is alive if its lock is held: a pid says nothing after a crash.
//! The directory itself is locked, too, for moments: shared by who creates or looks, exclusively by
//! who removes what others left. So nobody takes a machine that is half created for one that was
//! left behind, and nobody who only looks at a lock is taken for a monitor.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::control::{ControlServer, SOCKET};
use super::record::{
    Cause, Ended, FORMAT, History, ImageLabel, Record, Status, Timestamp, shortened,
};
use super::words::made_up_name;
use super::{HealthMark, MachineId, MachineName, Settings, health};
use crate::boot;
use crate::dirs::{DirectoriesError, create_private};
use crate::events::{Event, Journal};
use crate::moment::Moment;
use crate::outcome::Outcome;
use crate::policy::{Health, HealthStatus, RestartPolicy};
use crate::report::Help;

/// The lock of a machine, in its directory.
pub const LOCK: &str = "lock";
/// The guest kernel's log.
const CONSOLE_LOG: &str = "console.log";
/// Is there while the machine is paused.
const PAUSED: &str = "paused";
/// Is there while the machine is held: it runs for its files alone, without its workload.
const HELD: &str = "held";
/// What it takes to start the machine again, where that is kept ([`Blueprint`](crate::storage::Blueprint)).
pub const BLUEPRINT: &str = "blueprint.json";
/// Begins the link of a name.
const NAME: char = '@';
/// Begins the name of a directory that is no machine yet.
const CREATING: &str = ".creating-";
/// Begins the name of a directory that is no machine any more.
const REMOVING: &str = ".removing-";
/// How often a name is made up before the registry is taken for broken.
const MAX_NAME_ATTEMPTS: u32 = 64;

/// All machines of one user, or of one `--root`.
#[derive(Clone, Debug)]
pub struct Registry {
    path: PathBuf,
}

/// What a machine is created from.
#[derive(Clone, Debug)]
pub struct NewMachine {
    /// A fresh id, known before so that the machine can be named by it inside.
    pub id: MachineId,
    /// The name that was asked for; one is made up otherwise.
    pub name: Option<MachineName>,
    /// The image.
    pub image: ImageLabel,
    /// What runs: entrypoint and command together.
    pub command: Vec<String>,
    /// Whether nothing stays when the machine has ended.
    pub ephemeral: bool,
    /// What was chosen for it.
    pub settings: Settings,
}

/// A machine as others see it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What is written down.
    pub record: Record,
    /// Whether its monitor lives.
    pub alive: bool,
    /// Its directory.
    pub directory: PathBuf,
}

/// How far a machine is, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is being built and booted, or was created to be started.
    Created,
    /// Its workload runs.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// Its workload stands still.
    Paused {
        /// Since when it runs.
        started: Timestamp,
    },
    /// Its workload has ended, and is about to be started again.
    Restarting(Ended),
    /// It has ended.
    Exited(Ended),
    /// Its monitor is gone without a word.
    Dead {
        /// Whether the host has restarted since. Otherwise the monitor was killed.
        host_restarted: bool,
    },
}

impl Condition {
    /// Docker's word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Paused { .. } => "paused",
            Self::Restarting(_) => "restarting",
            Self::Exited(_) => "exited",
            Self::Dead { .. } => "dead",
        }
    }
}

impl Machine {
    /// Says how far the machine is, from its record and its lock.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match &self.record.status {
            Status::Exited(ended) => Condition::Exited(ended.clone()),
            Status::Created if self.alive || self.is_kept() => Condition::Created,
            Status::Running { started } if self.alive => {
                let started = *started;
                match self.directory.join(PAUSED).exists() {
                    true => Condition::Paused { started },
                    false => Condition::Running { started },
                }
            }
            Status::Restarting(ended) if self.alive => Condition::Restarting(ended.clone()),
            Status::Created | Status::Running { .. } | Status::Restarting(_) => Condition::Dead {
                host_restarted: self.host_has_restarted(),
            },
        }
    }

    /// Returns what is known of its workload's health, if anybody asks about that and it has been started. As with docker, what does not
    /// run is not healthy.
    #[must_use]
    pub fn health(&self, condition: &Condition) -> Option<Health> {
        self.record.settings.health.as_ref()?;
        let health = health::read(&self.directory)?;
        match condition {
            Condition::Running { .. } | Condition::Paused { .. } => Some(health),
            _ => Some(Health {
                status: HealthStatus::Unhealthy,
                ..health
            }),
        }
    }

    /// Tells whether the host has restarted since a monitor had it.
    #[must_use]
    pub fn host_has_restarted(&self) -> bool {
        let (then, now) = (self.record.history.boot.as_str(), boot::id());
        !then.is_empty() && !now.is_empty() && then != now
    }

    /// Tells whether it runs for its files alone, for a moment, without its workload.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.alive && self.directory.join(HELD).exists()
    }

    /// Tells whether its monitor is there for its workload.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.alive && !self.is_held()
    }

    /// Tells whether it can be started again.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.directory.join(BLUEPRINT).exists()
    }

    fn write_record(&self) -> Result<(), StateError> {
        self.record
            .write(&self.directory)
            .map_err(|source| StateError::file("write to", &self.directory, source))
    }

    /// Tells whether the next command removes it.
    #[must_use]
    fn is_leftover(&self) -> bool {
        self.record.ephemeral && !self.alive
    }
}

impl Registry {
    /// Opens the directory of machines and creates it if it is not there.
    ///
    /// # Errors
    ///
    /// [`StateError::Directories`] if it cannot be created.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        create_private(path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Creates a machine: its directory, its lock, its control socket, its name and its record.
    ///
    /// The caller becomes its monitor.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`], or what failed. Nothing stays behind then.
    pub fn create(&self, new: NewMachine) -> Result<(OwnedMachine, ControlServer), StateError> {
        let lock = self.lock_shared()?;
        let id = new.id;
        let creating = self.path.join(format!("{CREATING}{id}"));
        let directory = self.path.join(id.as_str());
        let mut guard = RemoveOnDrop::new(&creating);
        let failed = |source| StateError::file("create", &creating, source);
        DirBuilder::new()
            .mode(0o700)
            .create(&creating)
            .map_err(failed)?;
        let lock_file = private_file(&creating.join(LOCK)).map_err(failed)?;
        lock_file.lock().map_err(failed)?;
        let control = ControlServer::bind(&creating).map_err(failed)?;
        let mut record = Record {
            format: FORMAT,
            // Replaced below if nobody asked for a name; the name needs a machine to point at.
            name: match &new.name {
                Some(name) => name.clone(),
                None => made_up_name(0).map_err(StateError::Random)?,
            },
            id,
            image: new.image,
            command: shortened(new.command),
            created: Timestamp::now(),
            ephemeral: new.ephemeral,
            settings: Settings {
                monitor_pid: std::process::id(),
                ..new.settings.bounded()
            },
            history: History::of_start(),
            status: Status::Created,
        };
        record.write(&creating).map_err(failed)?;
        fs::rename(&creating, &directory).map_err(failed)?;
        guard.path.clone_from(&directory);
        drop(lock);
        match new.name {
            Some(name) => self.take_name(&name, &record.id)?,
            None => self.take_made_up_name(&mut record, &directory)?,
        }
        guard.disarm();
        self.note(&record, "create", &[]);
        let machine = OwnedMachine {
            registry: self.clone(),
            record,
            directory,
            owner: std::process::id(),
            _lock: lock_file,
        };
        Ok((machine, control))
    }

    /// Takes over a machine that nobody runs: the caller becomes its monitor. Its record stays as it is until the workload runs.
    ///
    /// # Errors
    ///
    /// [`StateError::Alive`] if somebody else was faster, [`StateError::Unknown`] if it was removed meanwhile.
    pub fn take_over(&self, id: &MachineId) -> Result<(OwnedMachine, ControlServer), StateError> {
        // Nobody who only looks holds its lock meanwhile.
        let _lock = self.lock_exclusive()?;
        let taken = self.take(id)?;
        if let Some(machine) = self.read(id)? {
            self.note_lost_end(&Machine {
                alive: false,
                ..machine
            });
        }
        Ok(taken)
    }

    /// Takes over a machine that nobody runs for its files alone, which [`Machine::is_held`] tells.
    ///
    /// # Errors
    ///
    /// As [`Self::take_over`].
    pub fn hold(&self, id: &MachineId) -> Result<(OwnedMachine, ControlServer), StateError> {
        let _lock = self.lock_exclusive()?;
        let taken = self.take(id)?;
        taken.0.hold()?;
        Ok(taken)
    }

    /// Becomes the monitor of a machine. The caller holds the exclusive lock.
    fn take(&self, id: &MachineId) -> Result<(OwnedMachine, ControlServer), StateError> {
        let directory = self.path.join(id.as_str());
        let failed = |source| StateError::file("take over", &directory, source);
        let Some(machine) = self.read(id)? else {
            return Err(StateError::Unknown(id.to_string()));
        };
        let lock_file = private_file(&directory.join(LOCK)).map_err(failed)?;
        match lock_unwatched(&lock_file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StateError::Alive(id.clone())),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // What a killed monitor left.
        for file in [PAUSED, HELD, SOCKET] {
            match fs::remove_file(directory.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let control = ControlServer::bind(&directory).map_err(failed)?;
        let mut record = machine.record;
        record.settings.monitor_pid = std::process::id();
        record.history = History::of_start();
        let machine = OwnedMachine {
            registry: self.clone(),
            record,
            directory,
            owner: std::process::id(),
            _lock: lock_file,
        };
        Ok((machine, control))
    }

    /// Makes `name` point at a machine.
    fn take_name(&self, name: &MachineName, id: &MachineId) -> Result<(), StateError> {
        let link = self.name_link(name);
        let target = id.as_str();
        let failed = |source| StateError::file("create", &link, source);
        let lock = self.lock_shared()?;
        match symlink(target, &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other.map_err(failed),
        }
        drop(lock);
        // Somebody has it, or had it and is gone. Under the exclusive lock nobody else takes it meanwhile.
        let _lock = self.lock_exclusive()?;
        if let Some(holder) = self.holder_of(name)? {
            if !holder.is_leftover() {
                return Err(StateError::NameTaken {
                    name: name.clone(),
                    id: holder.record.id,
                });
            }
            self.remove_lost(&holder)?;
        }
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        symlink(target, &link).map_err(failed)
    }

    /// Makes names up until one is free and writes it into the record.
    fn take_made_up_name(&self, record: &mut Record, directory: &Path) -> Result<(), StateError> {
        let mut attempt = 0;
        loop {
            match self.take_name(&record.name, &record.id) {
                Err(StateError::NameTaken { .. }) if attempt < MAX_NAME_ATTEMPTS => attempt += 1,
                Ok(()) if attempt > 0 => {
                    return record
                        .write(directory)
                        .map_err(|source| StateError::file("write to", directory, source));
                }
                other => return other,
            }
            record.name = made_up_name(attempt).map_err(StateError::Random)?;
        }
    }

    fn name_link(&self, name: &MachineName) -> PathBuf {
        self.path.join(format!("{NAME}{name}"))
    }

    /// Returns the machine that a name points at.
    fn holder_of(&self, name: &MachineName) -> Result<Option<Machine>, StateError> {
        let link = self.name_link(name);
        let target = match fs::read_link(&link) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StateError::file("read", &link, error)),
        };
        match target.to_str().and_then(|id| id.parse().ok()) {
            Some(id) => self.read(&id),
            None => Ok(None),
        }
    }

    /// Lists all machines, the newest first. Leftovers are not among them.
    ///
    /// Machines whose record cannot be read are named by a warning, not an error: one of them must
    /// not hide the others.
    ///
    /// # Errors
    ///
    /// [`StateError::File`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Machine>, StateError> {
        let _lock = self.lock_shared()?;
        let mut machines = Vec::new();
        for id in ids(&self.entries()?) {
            match self.read(&id) {
                Ok(Some(machine)) if !machine.is_leftover() => machines.push(machine),
                Ok(_) => {}
                Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
            }
        }
        sort(&mut machines);
        Ok(machines)
    }

    /// Lists all machines as [`Self::list`] does, and removes leftovers as [`Self::clean`] does, in one go.
    ///
    /// # Errors
    ///
    /// [`StateError::File`] if the directory cannot be read. What cannot be removed is named by a warning.
    pub fn clean_and_list(&self) -> Result<Vec<Machine>, StateError> {
        let _lock = self.lock_exclusive()?;
        let mut machines = Vec::new();
        for id in ids(&self.entries()?) {
            match self.clean_machine(&id) {
                Ok(Cleaned::Stays(machine)) => machines.push(*machine),
                Ok(Cleaned::Removed) => {}
                Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
            }
        }
        if let Err(error) = self.clean_entries() {
            tracing::warn!("{}", crate::report::chain(&error));
        }
        sort(&mut machines);
        Ok(machines)
    }

    /// Finds a machine by its name, its id or the beginning of its id.
    ///
    /// # Errors
    ///
    /// [`StateError::Unknown`] or [`StateError::Ambiguous`].
    pub fn find(&self, reference: &str) -> Result<Machine, StateError> {
        let _lock = self.lock_shared()?;
        if let Ok(name) = reference.parse()
            && let Some(machine) = self.holder_of(&name)?
            && !machine.is_leftover()
        {
            return Ok(machine);
        }
        let mut found = Vec::new();
        if !reference.is_empty() {
            for id in ids(&self.entries()?) {
                if id.as_str().starts_with(reference)
                    && let Some(machine) = self.read(&id)?
                    && !machine.is_leftover()
                {
                    found.push(machine);
                }
            }
        }
        match (found.pop(), found.pop()) {
            (Some(machine), None) => Ok(machine),
            (Some(_), Some(_)) => Err(StateError::Ambiguous(reference.to_owned())),
            (None, _) => Err(StateError::Unknown(reference.to_owned())),
        }
    }

    /// Finds a machine that runs, as [`Self::find`] does.
    ///
    /// # Errors
    ///
    /// [`StateError::NotAlive`] if it has ended.
    pub fn find_alive(&self, reference: &str) -> Result<Machine, StateError> {
        let machine = self.find(reference)?;
        match machine.runs() {
            true => Ok(machine),
            false => Err(StateError::NotAlive(machine.record.name)),
        }
    }

    /// Gives a machine another name, whether it runs or not.
    ///
    /// # Errors
    ///
    /// [`StateError::NameTaken`], or [`StateError::SameName`] if it is called that already.
    pub fn rename(&self, reference: &str, name: &MachineName) -> Result<(), StateError> {
        let id = self.find(reference)?.record.id;
        let _lock = self.lock_exclusive()?;
        let Some(mut machine) = self.read(&id)? else {
            return Err(StateError::Unknown(reference.to_owned()));
        };
        if machine.record.name == *name {
            return Err(StateError::SameName(name.clone()));
        }
        if let Some(holder) = self.holder_of(name)? {
            if !holder.is_leftover() {
                return Err(StateError::NameTaken {
                    name: name.clone(),
                    id: holder.record.id,
                });
            }
            self.remove_lost(&holder)?;
        }
        let link = self.name_link(name);
        let former = self.name_link(&machine.record.name);
        let failed = |source| StateError::file("create", &link, source);
        // Of a machine that is gone.
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        // In this order it is found by a name at any time, whatever happens in between.
        symlink(id.as_str(), &link).map_err(failed)?;
        let former_name = std::mem::replace(&mut machine.record.name, name.clone());
        machine.write_record()?;
        self.note(
            &machine.record,
            "rename",
            &[("oldName", former_name.to_string())],
        );
        fs::remove_file(&former).map_err(|source| StateError::file("remove", &former, source))
    }

    /// Changes what is written down as chosen for a machine, whether it runs or not. `change` is given the machine as it is by now,
    /// which nobody else changes, starts or removes meanwhile. If it fails, nothing is written.
    ///
    /// # Errors
    ///
    /// [`StateError::Unknown`] if it was removed meanwhile, or why `change` failed.
    pub fn change<E: From<StateError>>(
        &self,
        id: &MachineId,
        change: impl FnOnce(&Machine, &mut Settings) -> Result<(), E>,
    ) -> Result<(), E> {
        let machine = self.rewrite(id, |machine| -> Result<(), E> {
            let mut settings = machine.record.settings.clone();
            change(machine, &mut settings)?;
            machine.record.settings = settings;
            Ok(())
        })?;
        self.note(&machine.record, "update", &[]);
        Ok(())
    }

    /// Writes a machine's record anew as `change` makes it of what it is by now.
    fn rewrite<E: From<StateError>>(
        &self,
        id: &MachineId,
        change: impl FnOnce(&mut Machine) -> Result<(), E>,
    ) -> Result<Machine, E> {
        let _lock = self.lock_exclusive()?;
        let Some(mut machine) = self.read(id)? else {
            return Err(StateError::Unknown(id.to_string()).into());
        };
        change(&mut machine)?;
        machine.write_record()?;
        Ok(machine)
    }

    /// The journal of what happens to these machines.
    #[must_use]
    pub fn journal(&self) -> Journal {
        Journal::of(&self.path)
    }

    /// Notes in the journal what happened to a machine.
    pub fn note(&self, record: &Record, action: impl Into<String>, more: &[(&str, String)]) {
        let known = [
            ("name", record.name.to_string()),
            ("image", record.image.reference.clone()),
        ];
        let attributes = known.iter().chain(more);
        self.journal().append(&Event {
            time: Moment::now(),
            action: action.into(),
            id: record.id.to_string(),
            attributes: attributes
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            labels: record.settings.labels.clone(),
        });
    }

    /// Notes the end that a machine's monitor could not note.
    fn note_lost_end(&self, machine: &Machine) {
        if let Condition::Dead { host_restarted } = machine.condition() {
            let code = Outcome::Killed.exit_code().number();
            let cause = match host_restarted {
                true => Cause::HostRestarted.name(),
                false => "lost",
            };
            let more = [("exitCode", code.to_string()), ("cause", cause.to_owned())];
            self.note(&machine.record, "die", &more);
        }
    }

    /// Tells whether a workload has ended that ran after so many restarts, or its machine is not there any more.
    ///
    /// # Errors
    ///
    /// [`StateError::File`] if its record cannot be read.
    pub fn has_ended(&self, id: &MachineId, restarts: u32) -> Result<bool, StateError> {
        Ok(self.read(id)?.is_none_or(|machine| {
            let is_another = machine.record.history.restarts != restarts;
            is_another
                || matches!(
                    machine.condition(),
                    Condition::Restarting(_) | Condition::Exited(_) | Condition::Dead { .. }
                )
        }))
    }

    /// Waits until nobody holds a machine's lock: its monitor is gone then.
    ///
    /// # Errors
    ///
    /// [`StateError::File`] if the lock cannot be waited for.
    pub fn await_end(&self, id: &MachineId) -> Result<(), StateError> {
        let path = self.path.join(id.as_str()).join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StateError::file("open", &path, error)),
        };
        file.lock_shared()
            .map_err(|source| StateError::file("lock", &path, source))
    }

    /// Removes a machine that has ended.
    ///
    /// # Errors
    ///
    /// [`StateError::Alive`] if it has not.
    pub fn remove(&self, id: &MachineId) -> Result<(), StateError> {
        let _lock = self.lock_exclusive()?;
        match self.read(id) {
            Ok(Some(machine)) if machine.alive => Err(StateError::Alive(id.clone())),
            Ok(Some(machine)) => self.remove_lost(&machine),
            // What cannot be read can be removed.
            _ if self.is_alive(id)? => Err(StateError::Alive(id.clone())),
            _ => self.remove_directory(id),
        }
    }

    /// Removes a machine that nobody runs.
    fn remove_lost(&self, machine: &Machine) -> Result<(), StateError> {
        self.note_lost_end(machine);
        self.remove_directory(&machine.record.id)
    }

    /// Removes what killed monitors left behind, and returns how many machines that were.
    ///
    /// Looks at the lock of every machine, and at the record of those that nobody runs: for a moment when nobody waits.
    ///
    /// # Errors
    ///
    /// [`StateError::File`] for the first thing that cannot be removed.
    pub fn clean(&self) -> Result<usize, StateError> {
        let _lock = self.lock_exclusive()?;
        let mut removed = 0;
        for id in ids(&self.entries()?) {
            // What is not understood is not ours to remove unasked.
            if !self.is_alive(&id)? && matches!(self.clean_machine(&id), Ok(Cleaned::Removed)) {
                removed += 1;
            }
        }
        self.clean_entries()?;
        Ok(removed)
    }

    /// Removes a machine that is a leftover. The caller holds the exclusive lock.
    fn clean_machine(&self, id: &MachineId) -> Result<Cleaned, StateError> {
        match self.read(id)? {
            Some(machine) if machine.is_leftover() => self.remove_lost(&machine)?,
            Some(machine) => return Ok(Cleaned::Stays(Box::new(machine))),
            // Created without its record having reached the disk before the host went down.
            None if !self.is_alive(id)? => self.remove_directory(id)?,
            None => {}
        }
        Ok(Cleaned::Removed)
    }

    /// Removes what is not yet or no longer a machine, and names without one.
    fn clean_entries(&self) -> Result<(), StateError> {
        for entry in self.entries()? {
            let path = self.path.join(&entry);
            if entry.starts_with(CREATING) || entry.starts_with(REMOVING) {
                remove_tree(&path)?;
            } else if entry.starts_with(NAME) && !path.exists() {
                fs::remove_file(&path)
                    .map_err(|source| StateError::file("remove", &path, source))?;
            }
        }
        Ok(())
    }

    /// Reads a machine's record and looks at its lock; `None` if there is no record.
    fn read(&self, id: &MachineId) -> Result<Option<Machine>, StateError> {
        let directory = self.path.join(id.as_str());
        // The lock first: a monitor writes how the machine ended before it lets go of the lock.
        let alive = self.is_alive(id)?;
        let record = Record::read(&directory)
            .map_err(|source| StateError::file("read the record in", &directory, source))?;
        Ok(record.map(|record| Machine {
            record,
            alive,
            directory,
        }))
    }

    /// Tells whether somebody holds a machine's lock.
    fn is_alive(&self, id: &MachineId) -> Result<bool, StateError> {
        let path = self.path.join(id.as_str()).join(LOCK);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(StateError::file("open", &path, error)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(StateError::file("lock", &path, error)),
        }
    }

    /// Removes a machine's name and directory. The caller holds the exclusive lock or is its monitor.
    fn remove_directory(&self, id: &MachineId) -> Result<(), StateError> {
        let directory = self.path.join(id.as_str());
        let record = Record::read(&directory).ok().flatten();
        if let Some(record) = &record {
            let link = self.name_link(&record.name);
            let is_ours = fs::read_link(&link).is_ok_and(|it| it == Path::new(id.as_str()));
            if is_ours {
                fs::remove_file(&link)
                    .map_err(|source| StateError::file("remove", &link, source))?;
            }
        }
        let removing = self.path.join(format!("{REMOVING}{id}"));
        match fs::rename(&directory, &removing) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StateError::file("remove", &directory, error)),
        }
        if let Some(record) = &record {
            self.note(record, "destroy", &[]);
        }
        remove_tree(&removing)
    }

    fn entries(&self) -> Result<Vec<String>, StateError> {
        let failed = |source| StateError::file("list", &self.path, source);
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                entries.push(name);
            }
        }
        Ok(entries)
    }

    fn lock_shared(&self) -> Result<File, StateError> {
        let failed = |source| StateError::file("lock", &self.path, source);
        let directory = File::open(&self.path).map_err(failed)?;
        directory.lock_shared().map_err(failed)?;
        Ok(directory)
    }

    fn lock_exclusive(&self) -> Result<File, StateError> {
        let failed = |source| StateError::file("lock", &self.path, source);
        let directory = File::open(&self.path).map_err(failed)?;
        directory.lock().map_err(failed)?;
        Ok(directory)
    }
}

/// The ids among the entries of the directory: each is a machine.
fn ids(entries: &[String]) -> impl Iterator<Item = MachineId> {
    entries.iter().filter_map(|entry| entry.parse().ok())
}

/// The newest first.
fn sort(machines: &mut [Machine]) {
    machines.sort_by(|one, other| {
        let key = |machine: &Machine| (machine.record.created, machine.record.id.clone());
        key(other).cmp(&key(one))
    });
}

/// What came of looking whether a machine is a leftover.
enum Cleaned {
    Removed,
    Stays(Box<Machine>),
}

/// A machine in the hands of its monitor.
///
/// When it is dropped, the lock is free: the machine has ended for everybody. An ephemeral machine
/// is removed then, but only by the process that created it: a forked child that drops its copy
/// changes nothing but keeps the lock held until then.
#[derive(Debug)]
pub struct OwnedMachine {
    registry: Registry,
    record: Record,
    directory: PathBuf,
    owner: u32,
    _lock: File,
}

/// Locks a machine. Those who waited for its end have the lock for a moment, too, and are waited for.
fn lock_unwatched(lock: &File) -> Result<(), TryLockError> {
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                // Refused if somebody is the machine's monitor.
                lock.try_lock_shared()?;
                lock.unlock().map_err(TryLockError::Error)?;
                std::thread::yield_now();
            }
            other => return other,
        }
    }
}

/// Notes in the journal what happens to a machine.
#[derive(Clone, Debug)]
pub struct Notes {
    registry: Registry,
    id: MachineId,
}

impl Notes {
    /// Notes it, under the name that the machine has by now.
    pub fn note(&self, action: impl Into<String>, more: &[(&str, String)]) {
        let directory = self.registry.path.join(self.id.as_str());
        if let Ok(Some(record)) = Record::read(&directory) {
            self.registry.note(&record, action, more);
        }
    }
}

/// Writes down whether a machine is paused.
#[derive(Debug)]
pub struct PauseMark(PathBuf);

impl PauseMark {
    /// Writes it down. That it cannot be only misleads `vmm ps`.
    pub fn set(&self, is_paused: bool) {
        let written = match is_paused {
            true => private_file(&self.0).map(drop),
            false => fs::remove_file(&self.0),
        };
        if let Err(error) = written {
            tracing::debug!(%error, "a pause is not written down");
        }
    }
}

impl OwnedMachine {
    /// Returns the machine's id.
    #[must_use]
    pub fn id(&self) -> &MachineId {
        &self.record.id
    }

    /// Returns what is written down about the machine.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Returns the machine's directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Creates the file for the guest kernel's log.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn create_console_log(&self) -> Result<File, StateError> {
        let path = self.directory.join(CONSOLE_LOG);
        let emptied = private_file(&path).and_then(|file| {
            // Of an earlier run.
            file.set_len(0)?;
            Ok(file)
        });
        emptied.map_err(|source| StateError::file("create", &path, source))
    }

    /// The way to write down that the machine is paused, for another thread.
    #[must_use]
    pub fn pause_mark(&self) -> PauseMark {
        PauseMark(self.directory.join(PAUSED))
    }

    /// The way to note in the journal what happens to the machine, for another thread.
    #[must_use]
    pub fn notes(&self) -> Notes {
        Notes {
            registry: self.registry.clone(),
            id: self.record.id.clone(),
        }
    }

    /// The way to write down how well its workload is, for another thread.
    #[must_use]
    pub fn health_mark(&self) -> HealthMark {
        HealthMark::new(&self.directory)
    }

    /// Writes down that the workload runs, since now.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn set_running(&mut self) -> Result<(), StateError> {
        let started = Timestamp::now();
        self.set_status(Status::Running { started })?;
        self.registry.note(&self.record, "start", &[]);
        Ok(())
    }

    /// Tells whether it can be started again.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.directory.join(BLUEPRINT).exists()
    }

    /// Returns what is written down by now as the machine's restart policy.
    pub fn restart_policy(&mut self) -> RestartPolicy {
        self.refresh();
        self.record.settings.restart
    }

    /// Notes that a person has ended the machine, for when its end is written down.
    pub fn note_stopped(&mut self) {
        self.record.history.is_stopped = true;
    }

    /// Writes down how the workload ended, and that it is to be started again.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn set_restarting(&mut self, outcome: &Outcome) -> Result<Ended, StateError> {
        self.refresh();
        let ended = self.ended(outcome);
        self.note_end(&ended);
        let history = &mut self.record.history;
        history.restarts = history.restarts.saturating_add(1);
        self.set_status(Status::Restarting(ended.clone()))?;
        Ok(ended)
    }

    /// Tells whether the machine is about to be started again.
    #[must_use]
    pub fn is_restarting(&self) -> bool {
        matches!(self.record.status, Status::Restarting(_))
    }

    /// Writes down that the machine is not started again after all, and returns how it had ended; nothing if it was not to be.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn finish_restarting(&mut self) -> Result<Option<Ended>, StateError> {
        let Status::Restarting(ended) = self.record.status.clone() else {
            return Ok(None);
        };
        self.set_status(Status::Exited(ended.clone()))?;
        Ok(Some(ended))
    }

    /// Writes down how the machine ended, and removes it if it is ephemeral.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn finish(&mut self, outcome: &Outcome) -> Result<Ended, StateError> {
        self.refresh();
        let ended = self.ended(outcome);
        self.note_end(&ended);
        if self.record.ephemeral {
            self.remove()?;
        } else {
            self.set_status(Status::Exited(ended.clone()))?;
        }
        Ok(ended)
    }

    fn note_end(&self, ended: &Ended) {
        if ended.out_of_memory {
            self.registry.note(&self.record, "oom", &[]);
        }
        let ran_seconds = ended
            .started
            .map_or(0, |started| ended.finished.0.saturating_sub(started.0));
        let mut more = vec![
            ("exitCode", ended.exit_code.to_string()),
            ("execDuration", ran_seconds.to_string()),
            ("cause", ended.cause.name().to_owned()),
        ];
        more.extend(ended.message.clone().map(|message| ("message", message)));
        self.registry.note(&self.record, "die", &more);
    }

    /// How the machine ended, with what only its record knows.
    fn ended(&self, outcome: &Outcome) -> Ended {
        let mut ended = Ended::of(outcome);
        if let Status::Running { started } = &self.record.status {
            ended.started = Some(*started);
        }
        if ended.out_of_memory && self.record.settings.memory_bytes > 0 {
            ended.message = Some(format!(
                "the workload reached its memory limit of {} bytes, and the guest's kernel killed it",
                self.record.settings.memory_bytes
            ));
        }
        ended
    }

    fn set_status(&mut self, status: Status) -> Result<(), StateError> {
        // Whoever renames or changes the machine holds the lock exclusively.
        let _lock = self.registry.lock_shared()?;
        self.refresh();
        self.record.status = status;
        self.record
            .write(&self.directory)
            .map_err(|source| StateError::file("write to", &self.directory, source))
    }

    /// Keeps the machine for its files alone from here on, which [`Machine::is_held`] tells.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn hold(&self) -> Result<(), StateError> {
        let mark = self.directory.join(HELD);
        private_file(&mark)
            .map(drop)
            .map_err(|source| StateError::file("create", &mark, source))
    }

    /// Takes over what others may have written down.
    fn refresh(&mut self) {
        if let Ok(Some(record)) = Record::read(&self.directory) {
            self.record.name = record.name;
            self.record.settings = Settings {
                monitor_pid: self.record.settings.monitor_pid,
                ..record.settings
            };
        }
    }

    /// Removes the machine that could not be made.
    ///
    /// # Errors
    ///
    /// [`StateError::File`].
    pub fn discard(self) -> Result<(), StateError> {
        self.remove()
    }

    /// Removes the machine's name and directory.
    fn remove(&self) -> Result<(), StateError> {
        self.registry.remove_directory(&self.record.id)
    }
}

impl Drop for OwnedMachine {
    fn drop(&mut self) {
        if self.record.ephemeral
            && self.owner == std::process::id()
            && self.directory.exists()
            && let Err(error) = self.remove()
        {
            tracing::warn!("{}", crate::report::chain(&error));
        }
    }
}

/// Removes a directory unless told otherwise.
struct RemoveOnDrop {
    path: PathBuf,
    armed: bool,
}

impl RemoveOnDrop {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            armed: true,
        }
    }

    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if self.armed {
            // The next command cleans what stays.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Creates or opens a file for reading and writing that is private to the user.
fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

/// Removes a directory with all that is in it, if it is there.
fn remove_tree(path: &Path) -> Result<(), StateError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StateError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// What can be wrong with the records of machines.
#[derive(Debug, Error)]
pub enum StateError {
    /// The directory of machines cannot be had.
    #[error(transparent)]
    Directories(#[from] DirectoriesError),
    /// A file could not be read, written, locked…
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no random bytes.
    #[error("cannot make up an id or a name")]
    Random(#[source] io::Error),
    /// Another machine has the name.
    #[error("the name '{name}' is taken by machine {id}", id = id.short())]
    NameTaken {
        /// The name.
        name: MachineName,
        /// Who has it.
        id: MachineId,
    },
    /// The machine has the name already.
    #[error("the machine is called '{0}' already")]
    SameName(MachineName),
    /// No machine has this name or id.
    #[error("there is no machine '{0}'")]
    Unknown(String),
    /// Several ids begin like this.
    #[error("'{0}' begins the ids of several machines")]
    Ambiguous(String),
    /// The machine has ended.
    #[error("machine '{0}' does not run")]
    NotAlive(MachineName),
    /// The machine has not ended.
    #[error("machine {id} runs", id = .0.short())]
    Alive(MachineId),
}

impl StateError {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl Help for StateError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Directories(error) => return error.help(),
            Self::NameTaken { id, .. } => {
                return Some(format!(
                    "choose another --name, or remove that machine with `vmm rm -f {}`",
                    id.short()
                ));
            }
            Self::Unknown(_) => "see all machines with `vmm ps -a`",
            Self::NotAlive(_) => "see what runs with `vmm ps`",
            Self::Ambiguous(_) => "type more of the id",
            Self::Alive(_) => "end it with `vmm kill`, or remove it with `vmm rm -f`",
            Self::SameName(_) => "choose another name",
            Self::File { .. } | Self::Random(_) => return None,
        };
        Some(help.to_owned())
    }
}

#[cfg(test)]
mod tests;
