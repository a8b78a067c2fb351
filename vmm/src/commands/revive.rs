//! `vmm system restore`: what a restart of the host took is started again, as far as its policy says so.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::create::start_here;
use super::output::print_line;
use super::ps;
use crate::boot;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{
    Condition, DetachError, Machine, MachineId, Registry, StartWaiter, Status, detach,
};

/// How many machines start at a time, so that a host that has many is not busy with all of them at once.
const MAX_AT_ONCE: usize = 8;

/// How long one of them is waited for.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Starts each machine that its policy brings back, prints the names of those that run then, and says on standard error why others do
/// not.
pub(super) fn run(directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    ps::clean(&registry);
    // Those that were created first start first.
    let mut machines = registry.list()?.into_iter().rev().filter(comes_back);
    let mut starts = Vec::new();
    let mut all_run = true;
    loop {
        while starts.len() < MAX_AT_ONCE
            && let Some(machine) = machines.next()
        {
            if machine.is_held() {
                registry.await_end(&machine.record.id)?;
            }
            match begin(&machine, directories) {
                Ok(waiter) => starts.push(Start {
                    machine,
                    waiter,
                    deadline: Instant::now() + START_PATIENCE,
                }),
                Err(error) => all_run &= finish(&machine, Err(error.into()), &registry)?,
            }
        }
        match next(&mut starts).map_err(DetachError::Pipe)? {
            Some((machine, Some(waiter))) => {
                all_run &= finish(&machine, waiter.wait(), &registry)?;
            }
            Some((machine, None)) => {
                all_run = false;
                say(&format!(
                    "machine '{}' has not started in {} s, and is left to start",
                    machine.record.name,
                    START_PATIENCE.as_secs()
                ));
            }
            None => break,
        }
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
struct Start<M> {
    machine: M,
    waiter: StartWaiter,
    deadline: Instant,
}

fn begin(machine: &Machine, directories: &Directories) -> Result<StartWaiter, DetachError> {
    let id = machine.record.id.clone();
    detach(|reporter| {
        let mut reporter = Some(reporter.staying());
        let result = start_here(&id, false, directories, &mut reporter);
        if let (Err(report), Some(reporter)) = (&result, reporter) {
            reporter.failed(report);
        }
        i32::from(result.is_err())
    })
}

/// Waits until something is known of a machine, or it has not started in time, in which case nobody waits for it any more.
fn next<M>(starts: &mut Vec<Start<M>>) -> io::Result<Option<(M, Option<StartWaiter>)>> {
    while let Some(deadline) = starts.iter().map(|start| start.deadline).min() {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut descriptors: Vec<PollFd<'_>> = starts
            .iter()
            .map(|start| PollFd::new(&start.waiter, PollFlags::IN))
            .collect();
        match poll(&mut descriptors, Some(&left)) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let is_known = |descriptor: &PollFd<'_>| !descriptor.revents().is_empty();
        if let Some(known) = descriptors.iter().position(is_known) {
            let start = starts.remove(known);
            return Ok(Some((start.machine, Some(start.waiter))));
        }
        let now = Instant::now();
        if let Some(late) = starts.iter().position(|start| start.deadline <= now) {
            return Ok(Some((starts.remove(late).machine, None)));
        }
    }
    Ok(None)
}

/// Says whether a machine runs, and why it does not. One that somebody else has started meanwhile runs, too.
fn finish(
    machine: &Machine,
    started: Result<MachineId, Report>,
    registry: &Registry,
) -> Result<bool, Report> {
    let name = &machine.record.name;
    let report = match started {
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
    say(&format!("machine '{name}' is not started again: {reason}"));
    Ok(false)
}

/// Nobody is left to tell if standard error is gone.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "vmm: {message}");
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_machine_that_hangs_keeps_no_other_one_waiting() {
        let id = MachineId::random().unwrap();
        let (mut gate, open_gate) = io::pipe().unwrap();
        let hangs = detach(|reporter| {
            let _ = gate.read(&mut [0]);
            drop(reporter);
            0
        });
        let starts = detach(|reporter| i32::from(reporter.started(&id).is_err()));
        let begun = |machine, waiter: Result<StartWaiter, DetachError>, patience| Start {
            machine,
            waiter: waiter.unwrap(),
            deadline: Instant::now() + patience,
        };
        let mut begun = vec![
            begun("hangs", hangs, Duration::from_millis(1)),
            begun("starts", starts, START_PATIENCE),
        ];

        let mut known = Vec::new();
        while let Some((machine, waiter)) = next(&mut begun).unwrap() {
            known.push((machine, waiter.map(|waiter| waiter.wait().unwrap())));
        }
        (&open_gate).write_all(&[1]).unwrap();

        known.sort();
        assert_eq!(known, [("hangs", None), ("starts", Some(id))]);
    }
}
