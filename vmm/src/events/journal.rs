//! Appending to the journal.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Event;

/// The journal's directory, among the machines.
const DIRECTORY: &str = ".events";
/// What is appended to.
pub(super) const CURRENT: &str = "journal";
/// What was, before it was full.
pub(super) const FORMER: &str = "journal.1";
/// When a file is full: some ten thousand events.
const FULL_BYTES: u64 = 4 << 20;

/// The journal of one user's machines.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// The journal in the directory of machines.
    #[must_use]
    pub fn of(machines: &Path) -> Self {
        Self {
            directory: machines.join(DIRECTORY),
        }
    }

    /// Its directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// As mkdir(2) says.
    pub fn directory(&self) -> io::Result<&Path> {
        match DirBuilder::new().mode(0o700).create(&self.directory) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => Ok(&self.directory),
        }
    }

    /// Appends an event. What it is about has happened, so that it cannot be written is only logged.
    pub fn append(&self, event: &Event) {
        let written = event
            .line()
            .ok_or_else(|| ErrorKind::FileTooLarge.into())
            .and_then(|line| self.write(&line));
        if let Err(error) = written {
            tracing::debug!(%error, action = event.action, "an event was not written down");
        }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut file = match self.open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.directory()?;
                self.open()?
            }
            other => other?,
        };
        // One write, so that nobody else's line is in between. What a full disk did not take is lost with its line.
        if file.write(line)? < line.len() {
            return Err(ErrorKind::StorageFull.into());
        }
        match file.metadata()?.len() > FULL_BYTES {
            true => self.rotate(&file),
            false => Ok(()),
        }
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(self.directory.join(CURRENT))
    }

    /// Puts a full file aside, unless somebody else does so, or has.
    fn rotate(&self, full: &File) -> io::Result<()> {
        if full.try_lock().is_err() {
            return Ok(());
        }
        let current = self.directory.join(CURRENT);
        match fs::metadata(&current)?.ino() == full.metadata()?.ino() {
            true => fs::rename(current, self.directory.join(FORMER)),
            false => Ok(()),
        }
    }
}
