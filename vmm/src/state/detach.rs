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

use std::io::{self, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::MachineId;
use crate::outcome::ExitCode;
use crate::process;
use crate::report::{Help, Report};

/// More than any report needs.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

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
        /// What the client ends with, if that is not for it to choose.
        exit_code: Option<u8>,
    },
}

/// Runs `monitor` in a process of its own: in a session of its own, with nobody to wait for it. Its
/// result is that process's exit status, which nobody sees.
///
/// To be called before any thread was started and before the machine is created: the machine's lock
/// belongs to the monitor.
///
/// # Errors
///
/// [`DetachError::Start`] if the kernel refuses.
pub fn detach(monitor: impl FnOnce(StartReporter) -> i32) -> Result<StartWaiter, DetachError> {
    let (reader, writer) = io::pipe().map_err(DetachError::Pipe)?;
    let mut reader = Some(reader);
    let between = process::fork(|| {
        // The child's copy: with it open, the monitor would never learn that the client is gone.
        drop(reader.take());
        // Fails only for the leader of a process group, which a new child is not.
        let _ = rustix::process::setsid();
        let reporter = StartReporter {
            writer,
            own_client: None,
            stays: false,
        };
        // The second fork: who leads no session can get no terminal by opening one.
        match process::fork(|| monitor(reporter)) {
            Ok(_) => 0,
            Err(_) => 1,
        }
    })
    .map_err(DetachError::Start)?;
    // The writer went with the closure, so the pipe ends when the monitor does.
    between.wait().map_err(DetachError::Wait)?;
    reader
        .map(|reader| StartWaiter { reader })
        .ok_or(DetachError::Silent)
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
        let reader = BufReader::new(self.reader.take(MAX_MESSAGE_BYTES));
        match Message::deserialize(&mut serde_json::Deserializer::from_reader(reader)) {
            Ok(Message::Started(id)) => Ok(id),
            Ok(Message::Failed { text, exit_code }) => Err(Report::of_text(text, exit_code)),
            Err(error) if error.is_io() => Err(DetachError::Pipe(error.into()))?,
            Err(_) => Err(DetachError::Silent)?,
        }
    }
}

impl AsFd for StartWaiter {
    /// Readable when [`Self::wait`] need not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// The monitor's end.
///
/// Dropped, it leaves the client with an error.
#[derive(Debug)]
pub struct StartReporter {
    writer: PipeWriter,
    /// The other end of the stream of a client that stays, until it is taken.
    own_client: Option<UnixStream>,
    /// Whether the machine starts also if the client is gone by then.
    stays: bool,
}

impl StartReporter {
    /// Lets the machine start also if the client does not wait for that.
    #[must_use]
    pub fn staying(self) -> Self {
        Self {
            stays: true,
            ..self
        }
    }

    /// Adds the stream of a client that does not leave once the workload runs.
    #[must_use]
    pub fn with_own_client(self, stream: UnixStream) -> Self {
        Self {
            own_client: Some(stream),
            ..self
        }
    }

    /// Takes that stream, if there is one.
    pub fn take_own_client(&mut self) -> Option<UnixStream> {
        self.own_client.take()
    }

    /// A descriptor that reports an error (poll(2), `POLLERR`) as soon as the client is gone; none if the machine stays then.
    ///
    /// # Errors
    ///
    /// [`DetachError::Pipe`] if there is none to be had.
    pub fn client(&self) -> Result<Option<OwnedFd>, DetachError> {
        if self.stays {
            return Ok(None);
        }
        let writer = self.writer.try_clone().map_err(DetachError::Pipe)?;
        Ok(Some(writer.into()))
    }

    /// Tells the client that the workload runs, and lets go of the client's terminal and directory.
    ///
    /// # Errors
    ///
    /// [`DetachError::Client`] if the client is gone and the machine does not stay then: nobody knows of it, so it should end.
    pub fn started(self, id: &MachineId) -> Result<(), DetachError> {
        let stays = self.stays;
        match self.send(&Message::Started(id.clone())) {
            Err(error) if !stays => return Err(DetachError::Client(error)),
            _ => {}
        }
        process::standard_streams_to_null().map_err(DetachError::Null)?;
        // A directory that cannot be left stays busy, no more.
        let _ = std::env::set_current_dir("/");
        Ok(())
    }

    /// Tells the client why the workload does not run.
    pub fn failed(self, report: &Report) {
        let message = Message::Failed {
            text: report.to_string(),
            exit_code: report.own_exit_code().map(ExitCode::number),
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
    Start(#[source] io::Error),
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

    #[test]
    fn the_client_learns_the_id_of_a_machine_that_started() {
        let id = MachineId::random().unwrap();

        let client = detach(|reporter| i32::from(reporter.started(&id).is_err())).unwrap();

        assert_eq!(client.wait().unwrap(), id);
    }

    #[test]
    fn the_client_prints_the_monitors_report() {
        let report = Report::from(DetachError::Silent).with_exit_code(ExitCode::NOT_FOUND);

        let client = detach(|reporter| {
            reporter.failed(&report);
            0
        })
        .unwrap();

        let told = client.wait().unwrap_err();
        assert_eq!(told.to_string(), report.to_string());
        assert_eq!(told.exit_code(), ExitCode::NOT_FOUND);
    }

    #[test]
    fn a_monitor_that_goes_without_a_word_is_an_error() {
        let client = detach(|_| 0).unwrap();

        let told = client.wait().unwrap_err();
        assert!(told.to_string().contains("without saying why"));
    }

    /// Whether a monitor whose client went before the start is told to end.
    fn ends_with_client(stays: bool) -> bool {
        let id = MachineId::random().unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        let (mut gate, open_gate) = io::pipe().unwrap();

        let client = detach(|reporter| {
            let reporter = if stays { reporter.staying() } else { reporter };
            let _ = gate.read(&mut [0]);
            let is_told = reporter.started(&id).is_err();
            i32::from(writer.write_all(&[u8::from(is_told)]).is_err())
        })
        .unwrap();
        drop(client);
        (&open_gate).write_all(&[1]).unwrap();

        let mut told = [0];
        reader.read_exact(&mut told).unwrap();
        told == [1]
    }

    #[test]
    fn a_monitor_learns_that_its_client_is_gone_unless_its_machine_stays() {
        assert!(ends_with_client(false));
        assert!(!ends_with_client(true));
    }

    /// The session of this process, field 6 of proc(5) `stat`; 0 where its leader is outside of
    /// this PID namespace.
    fn own_session() -> u32 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(") ").unwrap();
        after_name.split(' ').nth(3).unwrap().parse().unwrap()
    }

    #[test]
    fn the_monitor_lives_in_a_session_that_it_does_not_lead() {
        let session = own_session();
        let (mut reader, mut writer) = io::pipe().unwrap();

        detach(|_| {
            let own = own_session();
            let is_detached = own != session && own != std::process::id();
            i32::from(writer.write_all(&[u8::from(is_detached)]).is_err())
        })
        .unwrap();

        let mut told = [0];
        reader.read_exact(&mut told).unwrap();
        assert_eq!(told, [1]);
    }
}
