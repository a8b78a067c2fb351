//! What is had from a machine whose workload runs: another process in it, the workload's streams, answers.

use std::os::fd::OwnedFd;

use protocol::Question;
use thiserror::Error;

use super::Machines;
use crate::report::Help;
use crate::state::{
    Asked, AttachRequest, Attachment, Condition, ControlError, ExecRequest, Machine, MachineName,
    Session,
};

/// Why a machine cannot be joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// It boots.
    #[error("the workload of {0} does not run yet")]
    NotYet(MachineName),
    /// It is started again.
    #[error("{0} is about to be started again")]
    Restarting(MachineName),
    /// It stands still.
    #[error("{0} is paused")]
    Paused(MachineName),
    /// It has ended, or was not started. The other says whether it can be.
    #[error("machine '{0}' does not run: it is stopped")]
    Stopped(MachineName, bool),
    /// Its streams are the client's that runs it.
    #[error("cannot attach to {0}, which runs in the foreground of another vmm")]
    Foreground(MachineName),
    /// Its monitor says why.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Help for JoinError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotYet(name) | Self::Restarting(name) => {
                format!("see how far it is with `vmm ps -a`, and wait for {name}")
            }
            Self::Paused(name) => format!("let it go on first with `vmm unpause {name}`"),
            Self::Stopped(name, true) => format!("start it first with `vmm start {name}`"),
            Self::Stopped(name, false) => {
                format!(
                    "see what it has written with `vmm logs {name}`, and what runs with `vmm ps`"
                )
            }
            Self::Foreground(_) => "run it without --rm, with -d or with -it".to_owned(),
            Self::Control(error) => return error.help(),
        })
    }
}

impl Machines {
    /// Asks for another process in a machine's container, and gives the connections of its streams: see [`Session::open`].
    ///
    /// # Errors
    ///
    /// If the workload does not run, or the monitor says why not.
    pub fn exec(
        &self,
        machine: &Machine,
        request: &ExecRequest,
    ) -> Result<(Session, Vec<OwnedFd>), JoinError> {
        runs(machine)?;
        Ok(Session::open(&machine.directory, request)?)
    }

    /// Asks for the workload's own streams: see [`Session::attach`].
    ///
    /// # Errors
    ///
    /// If the workload does not run, its streams are another client's, or the monitor says why not.
    pub fn attach(
        &self,
        machine: &Machine,
        request: AttachRequest,
    ) -> Result<(Session, Attachment, Vec<OwnedFd>), JoinError> {
        runs(machine)?;
        if machine.record.settings.log.is_none() {
            return Err(JoinError::Foreground(machine.record.name.clone()));
        }
        Ok(Session::attach(&machine.directory, request)?)
    }

    /// Asks a machine's agent something, which it answers in its time.
    ///
    /// # Errors
    ///
    /// If the workload does not run, or the monitor says why not.
    pub fn ask(&self, machine: &Machine, question: &Question) -> Result<Asked, JoinError> {
        runs(machine)?;
        Ok(Asked::send(&machine.directory, question)?)
    }
}

fn runs(machine: &Machine) -> Result<(), JoinError> {
    let name = machine.record.name.clone();
    Err(match machine.condition() {
        Condition::Running { .. } => return Ok(()),
        Condition::Created if machine.alive => JoinError::NotYet(name),
        Condition::Paused { .. } => JoinError::Paused(name),
        Condition::Restarting(_) => JoinError::Restarting(name),
        Condition::Created | Condition::Exited(_) | Condition::Dead { .. } => {
            JoinError::Stopped(name, machine.is_kept())
        }
    })
}
