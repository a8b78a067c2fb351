//! `vmm system restore`: what a restart of the host took is started again, as far as its policy says so.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::create::{Client, start_here};
use super::output::print_line;
use super::ps;
use crate::boot;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Condition, DetachError, Machine, Registry, StartWaiter, Status, detach};

/// How many machines start at a time, so that a host that has many is not busy with all of them at once.
const MAX_AT_ONCE: usize = 8;

/// Starts each machine that its policy brings back, prints the names of those that run then, and says on standard error why others do
/// not.
pub(super) fn run(directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    ps::clean(&registry);
    let mut starts = VecDeque::new();
    let mut all_run = true;
    // Those that were created first start first.
    for machine in registry.list()?.into_iter().rev().filter(comes_back) {
        if starts.len() >= MAX_AT_ONCE
            && let Some(first) = starts.pop_front()
        {
            all_run &= finish(first, &registry)?;
        }
        starts.push_back(begin(machine, directories));
    }
    for start in starts {
        all_run &= finish(start, &registry)?;
    }
    match all_run {
        true => Ok(ExitCode::SUCCESS),
        false => Err(Report::printed(ExitCode::FAILURE)),
    }
}

/// Whether a machine is to be started. What a person has stopped since the host started is left alone in any case.
fn comes_back(machine: &Machine) -> bool {
    let record = &machine.record;
    let is_failure = match machine.condition() {
        Condition::Exited(ended) => ended.exit_code != ExitCode::SUCCESS.number(),
        Condition::Dead { .. } => true,
        Condition::Created
        | Condition::Restarting(_)
        | Condition::Running { .. }
        | Condition::Paused { .. } => return false,
    };
    let history = &record.history;
    let was_started = record.status != Status::Created;
    let is_left = history.is_stopped && history.boot == boot::id();
    machine.is_kept()
        && was_started
        && !is_left
        && record.settings.restart.goes_on_with_host(
            is_failure,
            history.is_stopped,
            history.restarts,
        )
}

/// A machine that is being started.
struct Start {
    machine: Machine,
    waiter: Result<StartWaiter, DetachError>,
}

fn begin(machine: Machine, directories: &Directories) -> Start {
    let id = machine.record.id.clone();
    let waiter = detach(|reporter| {
        let mut reporter = Some(reporter);
        let result = start_here(&id, &Client::default(), directories, &mut reporter);
        if let (Err(report), Some(reporter)) = (&result, reporter) {
            reporter.failed(report);
        }
        i32::from(result.is_err())
    });
    Start { machine, waiter }
}

/// Waits until a machine runs, and says why it does not. One that somebody else has started meanwhile runs, too.
fn finish(start: Start, registry: &Registry) -> Result<bool, Report> {
    let Start { machine, waiter } = start;
    let name = &machine.record.name;
    let report = match waiter.map_err(Report::from).and_then(StartWaiter::wait) {
        Ok(_) => {
            print_line(name.as_str())?;
            return Ok(true);
        }
        Err(report) => report,
    };
    let now = registry.find(machine.record.id.as_str());
    if now.is_ok_and(|machine| machine.alive) {
        return Ok(true);
    }
    let text = report.to_string();
    let reason = text.strip_prefix("vmm: ").unwrap_or(&text);
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(
        io::stderr(),
        "vmm: machine '{name}' is not started again: {reason}"
    );
    Ok(false)
}
