//! A machine that is started again by its policy: from the end of a run to the next one, in the same monitor.

use super::attend::{Waiting, give_up};
use super::create::Prepared;
use super::run::Begun;
use crate::dirs::Directories;
use crate::outcome::Outcome;
use crate::policy::BackOff;
use crate::report::Report;
use crate::state::Registry;
use crate::timings::Timings;

/// Starts a machine whose workload has ended for as long as its policy says so. Then writes down how it ended, and lets those know who
/// wait for that.
pub(super) fn conclude(begun: Begun, registry: &Registry, directories: &Directories) -> Outcome {
    let mut back_off = BackOff::default();
    let Begun {
        mut finished,
        mut vm,
        mut share_process,
        ..
    } = begun;
    loop {
        let Some(delay) = finished.delay(&mut back_off) else {
            return finished.conclude(registry, &vm);
        };
        let mut waiting = match finished.begin_waiting(&vm) {
            Ok(waiting) => waiting,
            Err(outcome) => return outcome,
        };
        vm.reap();
        drop(share_process);
        if let Some(order) = waiting.wait(delay) {
            return waiting.conclude(order);
        }
        match start(waiting, directories) {
            Ok(begun) => {
                (finished, vm, share_process) = (begun.finished, begun.vm, begun.share_process);
            }
            Err(report) => {
                return Outcome::HostFailed {
                    message: report.sentence(),
                    help: None,
                };
            }
        }
    }
}

/// Runs the machine once more.
fn start(waiting: Waiting, directories: &Directories) -> Result<Begun, Report> {
    let Waiting {
        machine,
        control,
        signals,
        ..
    } = waiting;
    let mut timings = Timings::start();
    match Prepared::new(&machine, false, directories, &mut timings) {
        Ok(prepared) => prepared.run(
            (machine, control),
            signals,
            directories,
            &mut None,
            &mut timings,
        ),
        Err(report) => {
            give_up(machine, &report);
            Err(report)
        }
    }
}
