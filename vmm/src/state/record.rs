//! What is written down about a machine.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{MachineId, MachineName, Settings, Signal};
use crate::boot;
use crate::outcome::Outcome;

/// The record's format that this program reads and writes.
pub(super) const FORMAT: u32 = 1;
/// The record's file.
pub(super) const RECORD: &str = "record.json";
/// The next record while it is written.
const NEXT_RECORD: &str = "record.json.next";
/// A record is a few kilobytes, or as long as its command; more than this is something else.
const MAX_RECORD_BYTES: u64 = 4 << 20;
/// Most records are shorter.
const USUAL_RECORD_BYTES: usize = 8 << 10;
/// How much of a command is written down: it is there to be recognised, and an image may hold megabytes.
const MAX_COMMAND_BYTES: usize = 64 << 10;

/// The beginning of a command, up to [`MAX_COMMAND_BYTES`] with a byte for each argument's end.
pub(super) fn shortened(command: Vec<String>) -> Vec<String> {
    let mut left = MAX_COMMAND_BYTES;
    let mut shortened = Vec::new();
    for mut argument in command {
        if left == 0 {
            break;
        }
        argument.truncate(argument.floor_char_boundary(left));
        left = left.saturating_sub(argument.len() + 1);
        shortened.push(argument);
    }
    shortened
}

/// A machine as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`].
    pub format: u32,
    /// The id.
    pub id: MachineId,
    /// The name.
    pub name: MachineName,
    /// The image.
    pub image: ImageLabel,
    /// What runs: entrypoint and command together.
    pub command: Vec<String>,
    /// When the machine was created.
    pub created: Timestamp,
    /// Whether nothing stays when the machine has ended.
    pub ephemeral: bool,
    /// What was chosen for it.
    #[serde(default)]
    pub settings: Settings,
    /// What has become of it since it was created.
    #[serde(default)]
    pub history: History,
    /// How far the machine is.
    pub status: Status,
}

/// What a machine's status does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// How often its policy has started it again since a person did.
    pub restarts: u32,
    /// Whether a person ended it.
    pub is_stopped: bool,
    /// The boot of the host in which its last monitor lived; empty if that is not known.
    pub boot: String,
}

impl History {
    /// That of a machine that a person starts now.
    pub(super) fn of_start() -> Self {
        Self {
            boot: boot::id().to_owned(),
            ..Self::default()
        }
    }
}

/// The image of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageLabel {
    /// What the person called it: a name, an id or a path.
    pub reference: String,
    /// The image's id, `sha256:…`.
    pub id: String,
}

/// How far a machine is. Who reads `Created` or `Running` looks at the lock, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    /// The machine is being built and booted.
    Created,
    /// The workload runs.
    Running {
        /// Since when.
        started: Timestamp,
    },
    /// The workload has ended, and its policy says that it is started again.
    Restarting(Ended),
    /// The machine has ended.
    Exited(Ended),
}

/// What ended a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The record is of a version that did not write it down.
    #[default]
    Unknown,
    /// The workload exited.
    Exited,
    /// A signal ended the workload.
    Signalled,
    /// The guest's kernel killed the workload for want of memory.
    OutOfMemory,
    /// The workload never ran.
    NotStarted,
    /// The guest's kernel or agent died.
    GuestDied,
    /// The host took the machine away, or failed it.
    HostFailed,
    /// Somebody ended the machine from outside.
    Killed,
    /// The host went down, and the machine with it. No record says so: the next boot does.
    HostRestarted,
}

impl Cause {
    /// The word for it, as it is written down.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Exited => "exited",
            Self::Signalled => "signalled",
            Self::OutOfMemory => "out-of-memory",
            Self::NotStarted => "not-started",
            Self::GuestDied => "guest-died",
            Self::HostFailed => "host-failed",
            Self::Killed => "killed",
            Self::HostRestarted => "host-restarted",
        }
    }

    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Exited(_) | Outcome::Detached => Self::Exited,
            Outcome::Signalled {
                out_of_memory: true,
                ..
            } => Self::OutOfMemory,
            Outcome::Signalled { .. } => Self::Signalled,
            Outcome::NotStarted { .. } => Self::NotStarted,
            Outcome::GuestDied { .. } => Self::GuestDied,
            Outcome::HostFailed { .. } => Self::HostFailed,
            Outcome::Killed => Self::Killed,
        }
    }
}

/// How and when a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The code that `vmm run` ends with.
    pub exit_code: u8,
    /// What ended it.
    #[serde(default)]
    pub cause: Cause,
    /// The signal that ended the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Whether the workload was killed for want of memory.
    #[serde(default)]
    pub out_of_memory: bool,
    /// One sentence, if the workload did not end by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The last lines of the guest kernel's log, if it died.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_log_lines: Vec<String>,
    /// Since when the workload had run, if it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When.
    pub finished: Timestamp,
}

impl Ended {
    /// Notes how a run ended, now.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let mut last_log_lines = Vec::new();
        let (signal, out_of_memory, message) = match outcome {
            Outcome::Signalled {
                signal,
                out_of_memory,
            } => (Signal::try_from(*signal).ok(), *out_of_memory, None),
            Outcome::NotStarted { message, .. } | Outcome::HostFailed { message, .. } => {
                (None, false, Some(message.clone()))
            }
            Outcome::GuestDied {
                message,
                last_log_lines: lines,
            } => {
                last_log_lines.clone_from(lines);
                (None, false, Some(message.clone()))
            }
            Outcome::Killed => (Some(Signal::KILL), false, None),
            Outcome::Exited(_) | Outcome::Detached => (None, false, None),
        };
        Self {
            exit_code: outcome.exit_code().number(),
            cause: Cause::of(outcome),
            signal,
            out_of_memory,
            message,
            last_log_lines,
            started: None,
            finished: Timestamp::now(),
        }
    }
}

/// Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Reads the clock.
    #[must_use]
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(since_1970.map_or(0, |duration| duration.as_secs()))
    }

    /// Returns how many seconds ago this was; none if it is to come.
    #[must_use]
    pub fn age_seconds(self) -> u64 {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Record {
    /// Reads the record in a machine's directory.
    ///
    /// `None` if there is none, or an empty one: that machine was never finished.
    pub(super) fn read(directory: &Path) -> io::Result<Option<Self>> {
        use std::io::Read;

        let mut text = Vec::with_capacity(USUAL_RECORD_BYTES);
        match File::open(directory.join(RECORD)) {
            Ok(file) => file.take(MAX_RECORD_BYTES).read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if text.is_empty() {
            return Ok(None);
        }
        let record: Self = serde_json::from_slice(&text)?;
        if record.format == FORMAT {
            Ok(Some(record))
        } else {
            let message = format!("format {} is not known, only {FORMAT}", record.format);
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }

    /// Replaces the record in a machine's directory, so that every reader sees the old or the new one.
    ///
    /// A record that must outlive a power failure is synced; that of an ephemeral machine need not.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let next = directory.join(NEXT_RECORD);
        match self.write_file(&next, &text) {
            Ok(()) => fs::rename(&next, directory.join(RECORD))?,
            Err(error) if is_want_of_room(&error) => {
                // What cannot be removed is written over by the next record.
                let _ = fs::remove_file(&next);
                self.write_over(directory, text)?;
            }
            Err(error) => return Err(error),
        }
        if !self.ephemeral {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

impl Record {
    fn write_file(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(text)?;
        match self.ephemeral {
            true => Ok(()),
            false => file.sync_all(),
        }
    }

    /// Writes a record in the room that the one before it has: what a full disk still takes. It is filled up with spaces, so that
    /// nothing of a longer record stays.
    fn write_over(&self, directory: &Path, mut text: Vec<u8>) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;

        let file = fs::OpenOptions::new()
            .write(true)
            .open(directory.join(RECORD))?;
        let former_bytes = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        if text.len() < former_bytes {
            text.resize(former_bytes, b' ');
        }
        file.write_all_at(&text, 0)?;
        file.sync_all()
    }
}

/// Whether a disk or a quota is full.
fn is_want_of_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Settings;

    fn record(command: &[&str]) -> Record {
        Record {
            format: FORMAT,
            id: MachineId::random().unwrap(),
            name: "web".parse().unwrap(),
            image: ImageLabel {
                reference: "app".into(),
                id: "sha256:0".into(),
            },
            command: command.iter().map(|it| (*it).to_owned()).collect(),
            created: Timestamp(1),
            ephemeral: false,
            settings: Settings::default(),
            history: History::default(),
            status: Status::Created,
        }
    }

    #[test]
    fn why_a_guest_died_is_on_record_with_its_last_lines() {
        let ended = Ended::of(&Outcome::GuestDied {
            message: "the guest's kernel reset the machine".into(),
            last_log_lines: vec!["Kernel panic".into()],
        });

        assert_eq!(ended.cause, Cause::GuestDied);
        assert_eq!(ended.last_log_lines, ["Kernel panic"]);
        assert!(ended.message.unwrap().contains("reset"));
    }

    #[test]
    fn a_record_written_over_a_longer_or_shorter_one_is_read_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let [long, short] = [record(&["a much longer command"]), record(&["sh"])];
        long.write(directory.path()).unwrap();

        let text = |record: &Record| serde_json::to_vec(record).unwrap();
        short.write_over(directory.path(), text(&short)).unwrap();
        let after_longer = Record::read(directory.path()).unwrap();
        long.write_over(directory.path(), text(&long)).unwrap();
        let after_shorter = Record::read(directory.path()).unwrap();

        assert_eq!(after_longer, Some(short));
        assert_eq!(after_shorter, Some(long));
    }

    #[test]
    fn a_command_is_written_down_whole_if_it_is_short() {
        let command = vec!["sh".to_owned(), "-c".to_owned(), "true".to_owned()];

        assert_eq!(shortened(command.clone()), command);
    }

    #[test]
    fn what_is_written_down_of_a_command_is_bounded() {
        let long = shortened(vec!["é".repeat(1 << 20), "next".to_owned()]);
        let many = shortened(vec![String::new(); 1 << 20]);

        assert_eq!(long, ["é".repeat(MAX_COMMAND_BYTES / 2)]);
        assert_eq!(many.len(), MAX_COMMAND_BYTES);
    }
}
