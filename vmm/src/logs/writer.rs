//! The writing end of a log: batches, rotation, and what becomes of it when the disk takes no more.
//!
//! It never fails and never waits but for the disk: what cannot be written is dropped and counted, and the count is written where
//! it is missing as soon as there is room again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::config::LogConfig;
use super::entry::{Encoder, Stream};
use super::files::path_of_age;
use crate::moment::Moment;

/// Writes the log of one machine.
#[derive(Debug)]
pub struct LogWriter {
    directory: PathBuf,
    max_file_bytes: u64,
    max_files: u32,
    /// Opened for appending; none when it could not be opened the last time.
    file: Option<File>,
    /// How large that file is.
    length_bytes: u64,
    /// Encoded and not written yet.
    batch: Vec<u8>,
    /// How many of the workload's bytes are in the batch.
    batch_payload_bytes: u64,
    /// How many of the workload's bytes were lost since the last that was written.
    lost_bytes: u64,
    /// Whether that was said once.
    has_warned: bool,
}

impl LogWriter {
    /// Begins the log of the machine in `directory`, or goes on with it.
    #[must_use]
    pub fn new(directory: &Path, config: &LogConfig) -> Self {
        let mut writer = Self {
            directory: directory.to_owned(),
            max_file_bytes: config.max_file_bytes.unwrap_or(u64::MAX),
            max_files: config.max_files,
            file: None,
            length_bytes: 0,
            batch: Vec::new(),
            batch_payload_bytes: 0,
            lost_bytes: 0,
            has_warned: false,
        };
        // That it cannot be opened shows with the first bytes.
        let _ = writer.open();
        writer
    }

    /// Takes pieces of what the workload wrote, which came together. Nothing is on the disk before [`Self::flush`].
    pub(super) fn write<'a>(
        &mut self,
        stream: Stream,
        time: Moment,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) {
        let encoder = Encoder::new(stream, time);
        for piece in pieces {
            if self.batch.is_empty() && self.lost_bytes > 0 {
                encoder.append_lost(self.lost_bytes, &mut self.batch);
            }
            encoder.append(piece, &mut self.batch);
            self.batch_payload_bytes += u64::try_from(piece.len()).unwrap_or(u64::MAX);
            if self.length_after_batch() >= self.max_file_bytes {
                self.flush();
                self.rotate();
            }
        }
    }

    /// Writes what was taken.
    pub(super) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        match self.append() {
            Ok(()) => self.lost_bytes = 0,
            Err(error) => {
                self.lost_bytes += self.batch_payload_bytes;
                if !self.has_warned {
                    tracing::warn!(%error, "the log cannot be written to; what is lost is counted");
                }
                self.has_warned = true;
            }
        }
        self.batch.clear();
        self.batch_payload_bytes = 0;
    }

    /// Says what is lost, if anything is and there is room to.
    pub(super) fn finish(mut self) {
        self.flush();
        if self.lost_bytes > 0 {
            Encoder::new(Stream::Stderr, Moment::now())
                .append_lost(self.lost_bytes, &mut self.batch);
            self.flush();
        }
    }

    fn length_after_batch(&self) -> u64 {
        let batch_bytes = u64::try_from(self.batch.len()).unwrap_or(u64::MAX);
        self.length_bytes.saturating_add(batch_bytes)
    }

    fn append(&mut self) -> io::Result<()> {
        self.look_after_file()?;
        let Some(mut file) = self.file.as_ref() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let written = file.write_all(&self.batch);
        match &written {
            Ok(()) => self.length_bytes = self.length_after_batch(),
            // No half of a line is to stand before the next one.
            Err(_) => file.set_len(self.length_bytes)?,
        }
        written
    }

    /// Sees to it that there is a file: it may have been removed or truncated by somebody else.
    fn look_after_file(&mut self) -> io::Result<()> {
        if let Some(file) = &self.file {
            let metadata = file.metadata()?;
            if metadata.nlink() > 0 {
                self.length_bytes = metadata.len();
                return Ok(());
            }
        }
        self.open()
    }

    fn open(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path_of_age(&self.directory, 0))?;
        self.length_bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Makes the file the second newest. One that cannot be renamed goes on growing: nothing is lost by that.
    fn rotate(&mut self) {
        if self.lost_bytes > 0 {
            return;
        }
        let path = |age| path_of_age(&self.directory, age);
        let rotated = match self.max_files {
            1 => fs::remove_file(path(0)),
            count => (0..count - 1).rev().try_for_each(|age| {
                match fs::rename(path(age), path(age + 1)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    other => other,
                }
            }),
        };
        if let Err(error) = rotated.and_then(|()| self.open()) {
            tracing::debug!(%error, "the log is not rotated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Entry;
    use super::*;

    fn config(max_file_bytes: u64, max_files: u32) -> LogConfig {
        LogConfig {
            max_file_bytes: Some(max_file_bytes),
            max_files,
            ..LogConfig::default()
        }
    }

    fn write(writer: &mut LogWriter, line: &[u8]) {
        writer.write(Stream::Stdout, Moment::now(), std::iter::once(line));
        writer.flush();
    }

    fn entries(path: &Path) -> Vec<Entry> {
        let bytes = fs::read(path).unwrap();
        bytes
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| Entry::parse(line).unwrap())
            .collect()
    }

    #[test]
    fn a_full_file_makes_room_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(directory.path(), &config(1, 3));

        write(&mut writer, b"1\n");
        write(&mut writer, b"2\n");
        write(&mut writer, b"3\n");

        let path = |age| path_of_age(directory.path(), age);
        assert_eq!(fs::read(path(0)).unwrap(), b"");
        assert_eq!(entries(&path(1))[0].bytes, b"3\n");
        assert_eq!(entries(&path(2))[0].bytes, b"2\n");
        assert!(!path(3).exists());
    }

    #[test]
    fn a_single_file_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(directory.path(), &config(100, 1));

        write(
            &mut writer,
            b"first, and long enough to fill the file to the brim\n",
        );
        write(&mut writer, b"2\n");

        let path = path_of_age(directory.path(), 0);
        assert_eq!(entries(&path)[0].bytes, b"2\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_was_removed_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(directory.path(), &LogConfig::default());
        write(&mut writer, b"1\n");
        fs::remove_file(path_of_age(directory.path(), 0)).unwrap();

        write(&mut writer, b"2\n");

        assert_eq!(entries(&path_of_age(directory.path(), 0))[0].bytes, b"2\n");
    }

    #[test]
    fn a_file_that_was_truncated_goes_on_from_its_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = LogWriter::new(directory.path(), &LogConfig::default());
        write(&mut writer, b"1\n");
        let path = path_of_age(directory.path(), 0);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();

        write(&mut writer, b"2\n");

        assert_eq!(entries(&path)[0].bytes, b"2\n");
    }

    #[test]
    fn what_is_lost_is_counted_and_said_when_there_is_room_again() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        let away = directory.path().join("away");
        fs::create_dir(&home).unwrap();
        let mut writer = LogWriter::new(&home, &LogConfig::default());
        write(&mut writer, b"1\n");
        fs::remove_file(path_of_age(&home, 0)).unwrap();
        fs::rename(&home, &away).unwrap();

        write(&mut writer, b"lost\n");
        write(&mut writer, b"too\n");
        fs::rename(&away, &home).unwrap();
        write(&mut writer, b"2\n");
        write(&mut writer, b"3\n");

        let entries = entries(&path_of_age(&home, 0));
        let told: Vec<_> = entries
            .iter()
            .map(|it| (it.bytes.as_slice(), it.lost_bytes))
            .collect();
        assert_eq!(told, [(&b""[..], 9), (&b"2\n"[..], 0), (&b"3\n"[..], 0)]);
    }
}
