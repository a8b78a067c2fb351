//! A machine that has ended, started once more without its workload, for its files: they are on its disk, which only a guest can read.
//!
//! Its record stays as it is. Its monitor is a process of its own, as that of any machine in the background; the guest waits for the end
//! of an input that the client holds, so that it ends with the client, however that ends.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;

use super::attend::stop_signal;
use super::create::open_kept;
use super::run::{facts, in_background};
use super::start::start;
use crate::agent_link::{ClientStreams, Job};
use crate::dirs::Directories;
use crate::machine::host::{Quirks, open_kvm};
use crate::monitor::{MonitorError, Ran, Signals, Supervised};
use crate::outcome::{ExitCode, Outcome};
use crate::report::{Report, chain};
use crate::snapshot::Streams;
use crate::state::{Ended, Machine, MachineId, Registry, StartReporter};
use crate::template::Templates;
use crate::workload::exec::Basis;

/// A machine that runs for its files alone. Dropped, it ends, which is waited for: everything is on its disk then.
#[derive(Debug)]
pub(super) struct Held {
    registry: Registry,
    id: MachineId,
    input: Option<PipeWriter>,
}

impl Held {
    /// Starts a machine that has ended, and waits until its files can be had.
    pub(super) fn start(machine: &Machine, directories: &Directories) -> Result<Self, Report> {
        let registry = Registry::open(directories.machines())?;
        let (reader, writer) = std::io::pipe().map_err(MonitorError::Watch)?;
        let id = machine.record.id.clone();
        let mut ends = Some((reader, writer));
        in_background(|reporter| {
            let Some((reader, writer)) = ends.take() else {
                return Ok(ExitCode::SUCCESS);
            };
            // Its end is the client's alone to tell.
            drop(writer);
            hold_here(&id, &reader, directories, reporter)
        })?;
        let (_, input) = ends.ok_or(MonitorError::Watch(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            registry,
            id,
            input: Some(input),
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.input = None;
        if let Err(error) = self.registry.await_end(&self.id) {
            tracing::warn!("{}", chain(&error));
        }
    }
}

/// Runs the machine with this process as its monitor, until `input` ends, and no longer than a guest may take to write to its disk then.
fn hold_here(
    id: &MachineId,
    input: &PipeReader,
    directories: &Directories,
    reporter: &mut Option<StartReporter>,
) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    // From here on nobody else starts or removes it.
    let (machine, control) = registry.hold(id)?;
    let mut kept = open_kept(&machine, directories)?;
    // Its root alone: what it mounts may be with others by now.
    kept.mounts.clear();
    let kvm = open_kvm()?;
    let quirks = Quirks::of_host(&directories.host_cache())?;
    let streams = ClientStreams {
        stdin: Some(input.as_fd()),
        stdout: None,
        stderr: None,
    };
    let declared = streams.declared();
    let choices = kept.choices.clone();
    let (mut plan, blank) = kept.plan(&choices, quirks, declared, directories)?;
    // The log of its last run stays.
    let console_log = tempfile::tempfile().map_err(MonitorError::Watch)?;
    plan.machine.kernel_log = Some(console_log.try_clone().map_err(MonitorError::Watch)?);
    let mut create = plan.container.clone();
    create.idles = true;
    create.streams = declared;
    let facts = facts(
        &plan,
        &machine,
        &choices,
        false,
        Streams::from(declared),
        Basis::of(&create),
    )?;
    let signals = Signals::take()?;
    let templates = Templates::new(directories.cache(), None);
    let started = start(
        &kvm,
        &plan.machine,
        &templates,
        &[],
        blank.as_ref(),
        &signals,
    )?;
    let client = reporter
        .as_ref()
        .map(StartReporter::client)
        .transpose()?
        .flatten();
    let supervised = Supervised {
        vm: &started.vm,
        console_log: &console_log,
        control,
        signals,
        client,
        holder: Some(input.as_fd()),
        gateway: None,
        has_terminal: false,
        has_disk: true,
        facts,
        attachable: None,
        notes: machine.notes(),
        health: None,
        stop_signal: stop_signal(&machine),
    };
    let mut failure = None;
    let mut on_started = |_| {
        let told = reporter
            .take()
            .map_or(Ok(()), |reporter| reporter.started(id));
        if let Err(error) = told {
            failure = Some(error);
            started.vm.kill();
        }
    };
    let result = supervised.run(
        Job::Create(Box::new(create)),
        streams,
        &mut || {},
        &mut on_started,
    );
    let guest_ends_by = result.as_ref().ok().and_then(|ran| ran.guest_ends_by);
    started.vm.end(guest_ends_by);
    let Ran {
        outcome, control, ..
    } = result?;
    control.finish(&Ended::of(&outcome), &outcome);
    match (failure, outcome) {
        (Some(error), _) => Err(error.into()),
        (None, Outcome::Exited(0)) => Ok(ExitCode::SUCCESS),
        (None, outcome) => super::attend::report_outcome(&outcome),
    }
}
