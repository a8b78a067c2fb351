//! The thread of a monitor that asks a workload how it is: a command in its container now and then, one at a time.

use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::{DeclaredStreams, Process};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::actions::Actions;
use super::{Counted, Guest, Run, SIGKILL, outcome_of, process_of};
use crate::agent_link::{Connections, Event, Joining, Watcher, WorkloadExit};
use crate::moment::Moment;
use crate::outcome::Outcome;
use crate::policy::{Health, HealthCheck, MAX_OUTPUT_BYTES, Probe};
use crate::report::chain;
use crate::state::HealthMark;
use crate::workload::exec::ExecChoices;

/// How long a probe that was killed may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// What is read of a probe's output at once.
const READ_BYTES: usize = 4096;
/// The exit code of a probe that has none.
const NO_EXIT_CODE: i32 = -1;

/// A health check, and where it is written down what comes of it.
#[derive(Debug)]
pub struct HealthWatch {
    /// The check.
    pub check: HealthCheck,
    /// Where it is written down.
    pub mark: HealthMark,
}

impl HealthWatch {
    /// Writes down that nobody knows yet.
    pub(super) fn begin(&self) {
        self.mark.set(&Health::default());
    }

    /// Asks until `stopped` hangs up.
    pub(super) fn attend(&self, run: &Run<'_>, actions: &Actions, stopped: &UnixStream) {
        let started = Instant::now();
        let mut health = Health::default();
        while !hangs_up(stopped, health.pause(&self.check, started.elapsed())) {
            // Until it is over, the machine is neither stopped nor written down.
            let Some(probing) = actions.begin_probe() else {
                continue;
            };
            let since_start = started.elapsed();
            let Some(probe) = probe(&self.check, run, actions, stopped) else {
                continue;
            };
            drop(probing);
            let before = health.status;
            health.note(probe, &self.check, since_start);
            self.mark.set(&health);
            if health.status != before {
                let action = format!("health_status: {}", health.status.name());
                run.notes.note(action, &[]);
            }
        }
    }
}

/// Waits, and says whether there is a hang-up before that is over.
fn hangs_up(stopped: &UnixStream, pause: Duration) -> bool {
    let deadline = Instant::now().checked_add(pause);
    loop {
        match poll(
            &mut [PollFd::new(stopped, PollFlags::IN)],
            left(deadline).as_ref(),
        ) {
            Ok(0) => return false,
            Err(rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => return true,
        }
    }
}

/// How long there is until then; without end if that is never.
fn left(deadline: Option<Instant>) -> Option<Timespec> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Timespec::try_from(left).ok()
}

/// Asks once. Nothing comes of it if the machine ends meanwhile.
fn probe(
    check: &HealthCheck,
    run: &Run<'_>,
    actions: &Actions,
    stopped: &UnixStream,
) -> Option<Probe> {
    let start = Moment::now().to_string();
    let (exit_code, output) = match Asked::begin(check, run, actions) {
        Err(reason) => (NO_EXIT_CODE, reason),
        Ok(mut asked) => match asked.await_end(check.timeout(), stopped)? {
            Some(exit) => exit_of(exit, &asked.output),
            None => {
                asked.kill(run, stopped)?;
                let timeout = check.timeout();
                let said = printed(&asked.output);
                let output = format!("Health check exceeded timeout ({timeout:?}): {said}");
                (NO_EXIT_CODE, output)
            }
        },
    };
    Some(Probe {
        start,
        end: Moment::now().to_string(),
        exit_code,
        output,
    })
}

fn exit_of(exit: WorkloadExit, output: &[u8]) -> (i32, String) {
    match outcome_of(exit) {
        Outcome::NotStarted { message, .. } => (NO_EXIT_CODE, message),
        outcome => (outcome.exit_code().number().into(), printed(output)),
    }
}

/// What a probe wrote, as far as it is kept: docker marks by dots what is not whole.
fn printed(output: &[u8]) -> String {
    let kept = output.get(..MAX_OUTPUT_BYTES);
    let text = String::from_utf8_lossy(kept.unwrap_or(output));
    match kept.is_some() && output.len() > MAX_OUTPUT_BYTES {
        true => format!("{text}..."),
        false => text.into_owned(),
    }
}

/// A probe that runs.
struct Asked {
    process: Process,
    streams: Vec<UnixStream>,
    /// Readable once the end is told.
    bell: UnixStream,
    exit: Arc<Mutex<Option<WorkloadExit>>>,
    /// A byte more than is kept, so that it is known that there was more.
    output: Vec<u8>,
}

impl Asked {
    /// Lets a probe run; why not, as a sentence.
    fn begin(check: &HealthCheck, run: &Run<'_>, actions: &Actions) -> Result<Self, String> {
        let process = process_of(run.next_process()?);
        let streams = DeclaredStreams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let choices = ExecChoices {
            arguments: check.arguments.clone(),
            ..ExecChoices::default()
        };
        let exec = actions.basis().exec(choices, process, streams);
        let exec =
            exec.map_err(|error| format!("the container's configuration cannot be read: {error}"))?;
        let connections =
            Connections::dial(&Guest(run.vm), process, streams).map_err(|error| chain(&error))?;
        let streams = connections.into_outputs();
        let no_wait = streams
            .iter()
            .try_for_each(|stream| stream.set_nonblocking(true));
        let (bell, ringer) = no_wait
            .and_then(|()| UnixStream::pair())
            .map_err(|error| format!("the host gives no descriptor: {error}"))?;
        let exit = Arc::default();
        let event = Event::Join {
            joining: Joining::Exec(Box::new(exec)),
            watcher: Box::new(Watched {
                exit: Arc::clone(&exit),
                _ringer: ringer,
                _counted: Counted::new(&run.sessions),
            }),
        };
        run.sender
            .send(event)
            .map_err(|error| format!("the guest cannot be asked: {error}"))?;
        Ok(Self {
            process,
            streams,
            bell,
            exit,
            output: Vec::new(),
        })
    }

    /// Reads what the probe writes until it ends or its time is over, in which case there is no exit. Nothing at all comes of it if the
    /// machine ends before.
    fn await_end(
        &mut self,
        patience: Duration,
        stopped: &UnixStream,
    ) -> Option<Option<WorkloadExit>> {
        let deadline = Instant::now().checked_add(patience);
        loop {
            let mut descriptors = vec![
                PollFd::new(stopped, PollFlags::IN),
                PollFd::new(&self.bell, PollFlags::IN),
            ];
            descriptors.extend(
                self.streams
                    .iter()
                    .map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN)),
            );
            match poll(&mut descriptors, left(deadline).as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return None,
                Ok(0) => return Some(None),
                Ok(_) => {}
            }
            let is_ready: Vec<bool> = descriptors
                .iter()
                .map(|descriptor| !descriptor.revents().is_empty())
                .collect();
            let [is_stopped, has_ended, ..] = *is_ready.as_slice() else {
                return None;
            };
            self.read();
            if has_ended {
                let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
                return exit.clone().map(Some);
            }
            if is_stopped {
                return None;
            }
            // Whoever writes without end has no more time than others.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Some(None);
            }
        }
    }

    /// Reads what has come, and forgets what is not kept.
    fn read(&mut self) {
        let output = &mut self.output;
        self.streams.retain_mut(|stream| {
            let mut bytes = [0; READ_BYTES];
            match stream.read(&mut bytes) {
                Ok(0) => false,
                Ok(count) => {
                    let room = (MAX_OUTPUT_BYTES + 1).saturating_sub(output.len());
                    output.extend_from_slice(bytes.get(..count.min(room)).unwrap_or_default());
                    true
                }
                Err(error) => matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ),
            }
        });
    }

    /// Ends the probe.
    fn kill(&mut self, run: &Run<'_>, stopped: &UnixStream) -> Option<()> {
        let killed = Event::SignalOf(self.process, SIGKILL);
        if let Err(error) = run.sender.send(killed) {
            tracing::debug!(%error, "a health check that takes too long is not ended");
        }
        self.await_end(KILL_PATIENCE, stopped).map(drop)
    }
}

/// The link's end of a probe. Dropped, it rings.
#[derive(Debug)]
struct Watched {
    exit: Arc<Mutex<Option<WorkloadExit>>>,
    /// Before the bell, so that who hears that knows of no such process any more.
    _counted: Counted,
    _ringer: UnixStream,
}

impl Watcher for Watched {
    fn started(&mut self) {}

    fn ended(&mut self, exit: WorkloadExit) {
        *self.exit.lock().unwrap_or_else(PoisonError::into_inner) = Some(exit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_ends_with_dots() {
        let whole = printed(&[b'x'; MAX_OUTPUT_BYTES]);
        let long = printed(&[b'x'; MAX_OUTPUT_BYTES + 1]);

        assert_eq!(whole.len(), MAX_OUTPUT_BYTES);
        assert_eq!(long, whole + "...");
    }

    #[test]
    fn what_is_no_text_is_kept_as_far_as_it_is() {
        assert_eq!(printed(b"a\xffb"), "a\u{fffd}b");
    }
}
