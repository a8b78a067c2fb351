//! How a machine leaves its client: the monitor becomes a process of its own, and the client
//! waits only until it knows that the machine has started.
//!
//! ```text
//! client ── fork ── (setsid) ── fork ── monitor
//!   |                                      |  creates the machine, boots, starts the workload
//!   |<── pipe: {"started":"<id>"} ─────────|  and closes 0, 1, 2
//!   |          {"failed":{…}}              |
//!   prints the id                          goes on
//! ```

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::MachineId;
use crate::process::{self, Fork, ForkError};
use crate::report::{Help, Report};

/// More than any report needs.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Detached {
    /// The process that was started, which ends as soon as it knows how it went.
    Client(StartWaiter),
    /// The process that stays: in a session of its own, with nobody to wait for it.
    Monitor(StartReporter),
}

/// What the monitor tells the client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Message {
    /// The workload runs.
    Started(MachineId),
    /// It does not.
    Failed {
        /// The report as it is printed.
        text: String,
        /// What the client ends with.
        exit_code: u8,
    },
}

/// Splits the process into a client that waits and a monitor that stays.
///
/// To be called before any thread was started and before the machine is created: the machine's lock
/// belongs to the monitor.
///
/// # Errors
///
/// [`DetachError::Fork`] if there are threads already or the kernel refuses.
pub fn detach() -> Result<Detached, DetachError> {
    detach_with(process::fork)
}

fn detach_with(fork: impl Fn() -> Result<Fork, ForkError>) -> Result<Detached, DetachError> {
    let (reader, writer) = io::pipe().map_err(DetachError::Pipe)?;
    match fork()? {
        Fork::Parent(child) => {
            drop(writer);
            // The child between ends at once.
            child.wait().map_err(DetachError::Wait)?;
            Ok(Detached::Client(StartWaiter { reader }))
        }
        Fork::Child => {
            drop(reader);
            // Fails only for the leader of a process group, which a new child is not.
            let _ = rustix::process::setsid();
            // The second fork: who leads no session can get no terminal by opening one.
            match fork() {
                Ok(Fork::Child) => Ok(Detached::Monitor(StartReporter { writer })),
                Ok(Fork::Parent(_)) => process::exit_now(0),
                Err(error) => {
                    let reporter = StartReporter { writer };
                    reporter.failed(&Report::from(DetachError::Fork(error)));
                    process::exit_now(0)
                }
            }
        }
    }
}

/// The client's end.
#[derive(Debug)]
pub struct StartWaiter {
    reader: PipeReader,
}

impl StartWaiter {
    /// Waits until the workload runs, or does not.
    ///
    /// # Errors
    ///
    /// The monitor's own report, which has its exit code; or one that says that the monitor went
    /// without a word.
    pub fn wait(self) -> Result<MachineId, Report> {
        let mut text = Vec::new();
        self.reader
            .take(MAX_MESSAGE_BYTES)
            .read_to_end(&mut text)
            .map_err(DetachError::Pipe)?;
        match serde_json::from_slice(&text) {
            Ok(Message::Started(id)) => Ok(id),
            Ok(Message::Failed { text, exit_code }) => Err(Report::of_text(text, exit_code)),
            Err(_) => Err(DetachError::Silent)?,
        }
    }
}

/// The monitor's end.
///
/// Dropped, it leaves the client with an error.
#[derive(Debug)]
pub struct StartReporter {
    writer: PipeWriter,
}

impl StartReporter {
    /// Tells the client that the workload runs, and lets go of the client's terminal and directory.
    ///
    /// # Errors
    ///
    /// [`DetachError::Client`] if the client is gone: nobody knows of this machine, so it should end.
    pub fn started(self, id: &MachineId) -> Result<(), DetachError> {
        self.send(&Message::Started(id.clone()))
            .map_err(DetachError::Client)?;
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(DetachError::Null)?;
        dup2_stdin(&null).map_err(|error| DetachError::Null(error.into()))?;
        dup2_stdout(&null).map_err(|error| DetachError::Null(error.into()))?;
        dup2_stderr(&null).map_err(|error| DetachError::Null(error.into()))?;
        // A directory that cannot be left stays busy, no more.
        let _ = std::env::set_current_dir("/");
        Ok(())
    }

    /// Tells the client why the workload does not run.
    pub fn failed(self, report: &Report) {
        let message = Message::Failed {
            text: report.to_string(),
            exit_code: report.exit_code().number(),
        };
        // A client that is gone does not want to know.
        let _ = self.send(&message);
    }

    fn send(mut self, message: &Message) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        self.writer.write_all(&text)
    }
}

/// Why a machine cannot be put into the background.
#[derive(Debug, Error)]
pub enum DetachError {
    /// There can be no pipe, or it cannot be read.
    #[error("cannot hear from the machine's monitor")]
    Pipe(#[source] io::Error),
    /// There can be no other process.
    #[error("cannot start the machine's monitor")]
    Fork(#[from] ForkError),
    /// The process between could not be waited for.
    #[error("cannot wait for the process that starts the machine's monitor")]
    Wait(#[source] io::Error),
    /// The monitor ended without a word.
    #[error("the machine's monitor ended without saying why")]
    Silent,
    /// The client is gone.
    #[error("the client that started the machine is gone")]
    Client(#[source] io::Error),
    /// The client's terminal could not be let go.
    #[error("cannot replace the standard streams by /dev/null")]
    Null(#[source] io::Error),
}

impl Help for DetachError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Silent => Some("run it without -d to see more".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::ExitCode;

    /// Forks in a test's process, which has threads; what the children do here takes no lock of theirs.
    fn detach_in_test() -> Detached {
        detach_with(process::fork_in_test).unwrap()
    }

    #[test]
    fn the_client_learns_the_id_of_a_machine_that_started() {
        let id = MachineId::random().unwrap();

        let client = match detach_in_test() {
            Detached::Client(client) => client,
            Detached::Monitor(monitor) => {
                let _ = monitor.started(&id);
                process::exit_now(0)
            }
        };

        assert_eq!(client.wait().unwrap(), id);
    }

    #[test]
    fn the_client_prints_the_monitors_report() {
        let report = Report::from(DetachError::Silent).with_exit_code(ExitCode::NOT_FOUND);

        let client = match detach_in_test() {
            Detached::Client(client) => client,
            Detached::Monitor(monitor) => {
                monitor.failed(&report);
                process::exit_now(0)
            }
        };

        let told = client.wait().unwrap_err();
        assert_eq!(told.to_string(), report.to_string());
        assert_eq!(told.exit_code(), ExitCode::NOT_FOUND);
    }

    #[test]
    fn a_monitor_that_goes_without_a_word_is_an_error() {
        let client = match detach_in_test() {
            Detached::Client(client) => client,
            Detached::Monitor(_) => process::exit_now(0),
        };

        let told = client.wait().unwrap_err();
        assert!(told.to_string().contains("without saying why"));
    }

    #[test]
    fn the_monitor_leads_no_session_and_is_nobodys_child() {
        let session = rustix::process::getsid(None).unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();

        match detach_in_test() {
            Detached::Client(_) => drop(writer),
            Detached::Monitor(_) => {
                let own = rustix::process::getsid(None).unwrap();
                let is_detached = own != session && own != rustix::process::getpid();
                let _ = writer.write_all(&[u8::from(is_detached)]);
                process::exit_now(0)
            }
        }

        let mut told = [0];
        reader.read_exact(&mut told).unwrap();
        assert_eq!(told, [1]);
    }

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let error = detach().unwrap_err();

        assert!(matches!(error, DetachError::Fork(ForkError::Threads)));
    }
}
