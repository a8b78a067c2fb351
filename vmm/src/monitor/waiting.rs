//! A monitor without a machine: between the end of a run and the next one.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use protocol::{FilesTask, Question, WindowSize};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{ENDING, Signals, is_end};
use crate::policy::Order;
use crate::state::{
    Action, Answerer, AttachOffer, AttachRequest, Attached, Control, ControlServer, Ended,
    ExecRequest, SessionOffer, Signal, Status,
};

/// What is answered to those who want something of the workload.
const RESTARTING: &str = "the machine is about to be started again";

/// Waits before a machine is started again, and answers clients meanwhile. Says who does not want that any more, if somebody does not.
pub fn wait(
    control: &mut ControlServer,
    signals: &Signals,
    ended: &Ended,
    stop_signal: Signal,
    delay: Duration,
) -> Option<Order> {
    let deadline = Instant::now() + delay;
    let mut idle = Idle {
        ended,
        stop_signal,
        order: None,
    };
    while idle.order.is_none() && Instant::now() < deadline {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).unwrap_or_default();
        let mut descriptors = [
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN),
        ];
        match poll(&mut descriptors, Some(&left)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "nobody can be heard");
                break;
            }
        }
        while let Some(signal) = signals.next() {
            if ENDING.contains(&i32::from(signal)) {
                idle.order = Some(Order::Host);
            }
        }
        if let Err(error) = control.handle(&mut idle) {
            tracing::warn!(%error, "the control socket failed");
            break;
        }
    }
    idle.order
}

/// Answers while there is no machine.
struct Idle<'a> {
    ended: &'a Ended,
    stop_signal: Signal,
    order: Option<Order>,
}

impl Control for Idle<'_> {
    /// There is nobody to get a signal. As with docker that is no failure.
    fn kill(&mut self, signal: Signal) -> Result<(), String> {
        if is_end(signal, self.stop_signal) {
            self.order = Some(Order::Person);
        }
        Ok(())
    }

    fn stop(&mut self, _signal: Signal) -> Result<(), String> {
        self.order = Some(Order::Person);
        Ok(())
    }

    fn status(&self) -> Status {
        Status::Restarting(self.ended.clone())
    }

    fn act(&mut self, _action: Action, answerer: Answerer) {
        answerer.tell(Err(RESTARTING.to_owned()));
    }

    fn ask(&mut self, _question: Question, answerer: Answerer) {
        answerer.tell(Err(RESTARTING.to_owned()));
    }

    fn exec(&mut self, _request: ExecRequest, _offer: SessionOffer) -> Result<u32, String> {
        Err(RESTARTING.to_owned())
    }

    fn files(&mut self, _task: FilesTask, _offer: SessionOffer) -> Result<u32, String> {
        Err(RESTARTING.to_owned())
    }

    fn resize(&mut self, _process: u32, _size: WindowSize) {}

    fn abandon(&mut self, _process: u32) {}

    fn leave(&mut self, _process: u32) {}

    fn attach(&mut self, _request: AttachRequest, _offer: AttachOffer) -> Result<(), String> {
        Err(RESTARTING.to_owned())
    }

    fn resize_workload(&mut self, _size: WindowSize) {}

    fn pass(&mut self, _signal: Signal, _from: Attached) {}

    fn left(&mut self, _client: Attached, _has_detached: bool) {}
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::outcome::Outcome;
    use crate::state::{
        ControlClient, ControlError, ImageLabel, MachineId, NewMachine, OwnedMachine, Registry,
        Settings,
    };

    /// A machine that is to be started again.
    fn machine() -> (TempDir, OwnedMachine, ControlServer) {
        let base = tempfile::tempdir().unwrap();
        let new = NewMachine {
            id: MachineId::random().unwrap(),
            name: None,
            image: ImageLabel {
                reference: "app".into(),
                id: "sha256:0".into(),
            },
            command: vec!["sh".into()],
            ephemeral: false,
            settings: Settings::default(),
        };
        let registry = Registry::open(base.path()).unwrap();
        let (machine, control) = registry.create(new).unwrap();
        (base, machine, control)
    }

    fn waits(control: &mut ControlServer, delay: Duration) -> Option<Order> {
        let signals = Signals::take_window().unwrap();
        let ended = Ended::of(&Outcome::Exited(3));
        wait(control, &signals, &ended, Signal::TERM, delay)
    }

    #[test]
    fn a_machine_that_nobody_stops_is_started_again_in_its_time() {
        let (_base, _machine, mut control) = machine();

        assert_eq!(waits(&mut control, Duration::from_millis(1)), None);
    }

    #[test]
    fn a_person_who_stops_it_is_not_kept_waiting_and_others_are_told_what_goes_on() {
        let (_base, machine, mut control) = machine();
        let hour = Duration::from_secs(3600);

        let order = std::thread::scope(|scope| {
            let client = || ControlClient::connect(machine.directory()).unwrap();
            scope.spawn(move || {
                let status = client().status().unwrap();
                assert!(matches!(status, Status::Restarting(ended) if ended.exit_code == 3));
                let refused = client().act(Action::Pause).unwrap_err();
                assert!(matches!(refused, ControlError::Refused(reason) if reason == RESTARTING));
                client().stop(Signal::TERM).unwrap();
            });
            waits(&mut control, hour)
        });

        assert_eq!(order, Some(Order::Person));
    }

    #[test]
    fn a_signal_is_lost_unless_it_is_one_that_ends_machines() {
        let (_base, machine, mut control) = machine();
        let hour = Duration::from_secs(3600);

        let order = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = ControlClient::connect(machine.directory()).unwrap();
                client.kill(Signal::try_from(1).unwrap()).unwrap();
                client.kill(Signal::TERM).unwrap();
            });
            waits(&mut control, hour)
        });

        assert_eq!(order, Some(Order::Person));
    }
}
