//! The reading end of a log: entries in order, from any place, through rotation.
//!
//! It takes no lock, for the writer must wait for nobody. A file is known by its inode, so that one which was renamed meanwhile is
//! neither missed nor read twice.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::entry::{Entry, MAX_ENTRY_BYTES};
use super::files::path_of_age;
use crate::moment::Moment;
use crate::report::Help;

/// What is read at once.
const READ_BYTES: usize = 256 << 10;
/// No line that anybody wrote on purpose is longer, a future version's included.
const MAX_LINE_BYTES: usize = 4 * MAX_ENTRY_BYTES;

/// Which part of a log is wanted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window {
    /// Nothing before.
    pub since: Option<Moment>,
    /// Nothing after.
    pub until: Option<Moment>,
    /// So many of the last entries; all if none.
    pub tail: Option<u64>,
}

/// Why a log cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file cannot be read.
    #[error("cannot read the log {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Help for ReadError {}

/// What comes next in a log.
#[derive(Debug)]
pub enum Next {
    /// This.
    Entry(Entry),
    /// Nothing is there yet.
    Later,
    /// Nothing that is wanted comes any more.
    End,
}

/// Reads the log of one machine.
#[derive(Debug)]
pub struct LogReader {
    directory: PathBuf,
    window: Window,
    /// What is read, and then what is read after it.
    current: Option<OpenFile>,
    newer: Vec<OpenFile>,
    /// The time of the last entry.
    last: Option<Moment>,
    /// The inodes of the last files that were read to their ends.
    gone_through: [u64; 2],
    /// The file that was read is gone; it had entries up to then.
    skip_to: Option<Moment>,
    damaged_lines: u64,
}

#[derive(Debug)]
struct OpenFile {
    reader: BufReader<File>,
    path: PathBuf,
    inode: u64,
    /// Where the line that is read next begins.
    offset: u64,
    /// The beginning of a line that is not whole yet.
    partial: Vec<u8>,
}

impl LogReader {
    /// Opens the log of the machine in `directory`. One that has no file is empty.
    ///
    /// # Errors
    ///
    /// If a file is there and cannot be read.
    pub fn open(directory: &Path, window: Window) -> Result<Self, ReadError> {
        let mut reader = Self {
            directory: directory.to_owned(),
            window,
            current: None,
            newer: reversed_files(directory)?,
            last: None,
            gone_through: [0; 2],
            skip_to: None,
            damaged_lines: 0,
        };
        if let Some(count) = window.tail {
            reader.seek_tail(count)?;
        }
        reader.current = reader.newer.pop();
        Ok(reader)
    }

    /// How many lines were left out because they are no entries.
    #[must_use]
    pub fn damaged_lines(&self) -> u64 {
        self.damaged_lines
    }

    /// Reads the next entry that is wanted.
    ///
    /// # Errors
    ///
    /// If a file cannot be read.
    pub fn next_entry(&mut self) -> Result<Next, ReadError> {
        loop {
            let mut line = self.current_line()?;
            if line.is_none() {
                let Some(next) = self.next_file()? else {
                    return Ok(Next::Later);
                };
                // Between its last line and its rotation there may have been more.
                line = self.current_line()?;
                match line {
                    Some(_) => self.newer.push(next),
                    None => {
                        let inode = self.current.replace(next).map_or(0, |file| file.inode);
                        self.gone_through = [self.gone_through[1], inode];
                    }
                }
            }
            if let Some(next) = line.and_then(|line| self.judge(&line)) {
                return Ok(next);
            }
        }
    }

    /// Reads the next line of the file that is read.
    fn current_line(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        match &mut self.current {
            Some(file) => file.next_line(),
            None => Ok(None),
        }
    }

    /// Decides about a line; nothing if it is not wanted.
    fn judge(&mut self, line: &[u8]) -> Option<Next> {
        let Some(entry) = Entry::parse(line) else {
            self.damaged_lines += 1;
            return None;
        };
        if self.is_read_already(&entry) {
            return None;
        }
        self.skip_to = None;
        self.last = Some(entry.time);
        match self.window {
            Window {
                until: Some(until), ..
            } if entry.time > until => Some(Next::End),
            Window {
                since: Some(since), ..
            } if entry.time < since => None,
            _ => Some(Next::Entry(entry)),
        }
    }

    /// Whether an entry was read before the file that followed it went. What came at the same time may lie in two files.
    fn is_read_already(&self, entry: &Entry) -> bool {
        let is_gone_through = self
            .current
            .as_ref()
            .is_some_and(|file| self.gone_through.contains(&file.inode));
        match self.skip_to {
            Some(seen) if is_gone_through => entry.time <= seen,
            Some(seen) => entry.time < seen,
            None => false,
        }
    }

    /// The file after the current one; none if that is the newest.
    fn next_file(&mut self) -> Result<Option<OpenFile>, ReadError> {
        if let Some(next) = self.newer.pop() {
            return Ok(Some(next));
        }
        let mut files = reversed_files(&self.directory)?;
        let Some(current) = &self.current else {
            self.newer = files;
            return Ok(self.newer.pop());
        };
        match files.iter().position(|file| file.inode == current.inode) {
            // Those before it are newer, the newest first.
            Some(at) => files.truncate(at),
            // It was rotated away, or removed: what follows is among these, after what was read.
            None if !files.is_empty() => self.skip_to = self.last,
            None => {}
        }
        self.newer = files;
        Ok(self.newer.pop())
    }

    /// Goes to the last entries of the files.
    fn seek_tail(&mut self, count: u64) -> Result<(), ReadError> {
        let mut left = count;
        for at in 0..self.newer.len() {
            let (offset, found) = self.newer[at].offset_of_last(left)?;
            self.newer[at].seek(offset)?;
            left -= found;
            if left == 0 {
                self.newer.truncate(at + 1);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Opens all files of a log, the newest first.
fn reversed_files(directory: &Path) -> Result<Vec<OpenFile>, ReadError> {
    let mut files: Vec<OpenFile> = Vec::new();
    for age in 0.. {
        let path = path_of_age(directory, age);
        match OpenFile::open(&path) {
            // It was rotated between the two looks.
            Ok(file) if files.iter().any(|it| it.inode == file.inode) => {}
            Ok(file) => files.push(file),
            // The newest may be about to be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound && age == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(source) => return Err(ReadError::File { path, source }),
        }
    }
    Ok(files)
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            reader: BufReader::with_capacity(READ_BYTES, file),
            path: path.to_owned(),
            inode,
            offset: 0,
            partial: Vec::new(),
        })
    }

    fn failed(&self, source: io::Error) -> ReadError {
        ReadError::File {
            path: self.path.clone(),
            source,
        }
    }

    fn seek(&mut self, offset: u64) -> Result<(), ReadError> {
        self.partial.clear();
        self.offset = offset;
        let sought = self.reader.seek(SeekFrom::Start(offset));
        sought.map(drop).map_err(|error| self.failed(error))
    }

    /// Reads the next whole line; nothing if there is none yet.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            let room = MAX_LINE_BYTES.saturating_sub(self.partial.len());
            let limit = u64::try_from(room).unwrap_or(u64::MAX);
            let read = (&mut self.reader)
                .take(limit)
                .read_until(b'\n', &mut self.partial)
                .map_err(|error| self.failed(error))?;
            self.offset += u64::try_from(read).unwrap_or(u64::MAX);
            if self.partial.last() == Some(&b'\n') || self.partial.len() >= MAX_LINE_BYTES {
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            if read == 0 {
                let length = self
                    .reader
                    .get_ref()
                    .metadata()
                    .map_err(|error| self.failed(error))?
                    .len();
                if length >= self.offset {
                    return Ok(None);
                }
                // Somebody truncated it: it goes on from its beginning.
                self.seek(0)?;
            }
        }
    }

    /// Where the last `count` lines begin, and how many there are, at most so many.
    fn offset_of_last(&self, count: u64) -> Result<(u64, u64), ReadError> {
        let file = self.reader.get_ref();
        let length = file.metadata().map_err(|error| self.failed(error))?.len();
        if count == 0 {
            return Ok((length, 0));
        }
        let mut block = vec![0; READ_BYTES];
        let mut end = length;
        let mut ends_found: u64 = 0;
        while end > 0 {
            let size = end.min(u64::try_from(block.len()).unwrap_or(u64::MAX));
            let start = end - size;
            let bytes = &mut block[..usize::try_from(size).unwrap_or(0)];
            match file.read_exact_at(bytes, start) {
                Ok(()) => {}
                // Somebody truncates it.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok((0, 0)),
                Err(error) => return Err(self.failed(error)),
            }
            let ends = bytes
                .iter()
                .enumerate()
                .rev()
                .filter(|(_, byte)| **byte == b'\n');
            for (at, _) in ends {
                // The end of the line before the first that is wanted.
                if ends_found == count {
                    let at = u64::try_from(at).unwrap_or(u64::MAX);
                    return Ok((start + at + 1, count));
                }
                ends_found += 1;
            }
            end = start;
        }
        Ok((0, ends_found))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::config::LogConfig;
    use super::super::entry::Stream;
    use super::super::writer::LogWriter;
    use super::*;

    struct Log {
        directory: tempfile::TempDir,
        writer: LogWriter,
    }

    impl Log {
        fn of_small_files() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let config = LogConfig {
                max_file_bytes: Some(150),
                max_files: 4,
                ..LogConfig::default()
            };
            let writer = LogWriter::new(directory.path(), &config);
            Self { directory, writer }
        }

        fn write(&mut self, line: &str) {
            self.write_at(line, Moment::now());
        }

        fn write_at(&mut self, line: &str, time: Moment) {
            self.writer
                .write(Stream::Stdout, time, std::iter::once(line.as_bytes()));
            self.writer.flush();
        }

        fn reader(&self, window: Window) -> LogReader {
            LogReader::open(self.directory.path(), window).unwrap()
        }

        fn file(&self, age: u32) -> PathBuf {
            path_of_age(self.directory.path(), age)
        }
    }

    /// All that is there now.
    fn rest(reader: &mut LogReader) -> String {
        let entries = std::iter::from_fn(|| match reader.next_entry().unwrap() {
            Next::Entry(entry) => Some(entry.bytes),
            Next::Later | Next::End => None,
        });
        String::from_utf8(entries.flatten().collect()).unwrap()
    }

    fn tail(count: u64) -> Window {
        Window {
            tail: Some(count),
            ..Window::default()
        }
    }

    #[test]
    fn all_files_are_read_from_the_oldest() {
        let mut log = Log::of_small_files();
        "1 2 3 4 5".split(' ').for_each(|line| log.write(line));

        assert_eq!(rest(&mut log.reader(Window::default())), "12345");
        assert!(log.file(1).exists());
    }

    #[test]
    fn the_last_entries_are_found_across_files() {
        let mut log = Log::of_small_files();
        "1 2 3 4 5".split(' ').for_each(|line| log.write(line));

        assert_eq!(rest(&mut log.reader(tail(0))), "");
        assert_eq!(rest(&mut log.reader(tail(1))), "5");
        assert_eq!(rest(&mut log.reader(tail(3))), "345");
        assert_eq!(rest(&mut log.reader(tail(5))), "12345");
        assert_eq!(rest(&mut log.reader(tail(99))), "12345");
    }

    #[test]
    fn a_reader_of_no_tail_goes_on_with_what_comes() {
        let mut log = Log::of_small_files();
        log.write("1");
        let mut reader = log.reader(tail(0));

        log.write("2");
        log.write("3");

        assert_eq!(rest(&mut reader), "23");
    }

    #[test]
    fn a_reader_follows_through_rotation() {
        let mut log = Log::of_small_files();
        log.write("1");
        let mut reader = log.reader(Window::default());
        let first = rest(&mut reader);

        "2 3 4 5".split(' ').for_each(|line| log.write(line));

        assert_eq!(first, "1");
        assert_eq!(rest(&mut reader), "2345");
        log.write("6");
        assert_eq!(rest(&mut reader), "6");
    }

    #[test]
    fn a_reader_that_was_left_behind_goes_on_with_the_oldest() {
        let mut log = Log::of_small_files();
        log.write("1");
        let mut reader = log.reader(Window::default());
        assert_eq!(rest(&mut reader), "1");

        ('a'..='z').for_each(|line| log.write(&line.to_string()));

        let read = rest(&mut reader);
        assert!(read.ends_with("wxyz"), "{read}");
    }

    #[test]
    fn a_file_that_was_removed_is_not_read_again() {
        let mut log = Log::of_small_files();
        "1 2 3".split(' ').for_each(|line| log.write(line));
        let mut reader = log.reader(Window::default());
        assert_eq!(rest(&mut reader), "123");
        fs::remove_file(log.file(0)).unwrap();

        log.write("4");

        assert_eq!(rest(&mut reader), "4");
    }

    #[test]
    fn a_file_that_was_truncated_is_read_from_its_beginning() {
        let mut log = Log::of_small_files();
        log.write("1");
        let mut reader = log.reader(Window::default());
        assert_eq!(rest(&mut reader), "1");
        File::options()
            .write(true)
            .open(log.file(0))
            .unwrap()
            .set_len(0)
            .unwrap();
        assert_eq!(rest(&mut reader), "");

        log.write("2");

        assert_eq!(rest(&mut reader), "2");
    }

    #[test]
    fn a_window_is_kept_to() {
        let mut log = Log::of_small_files();
        ["1", "2", "3"]
            .into_iter()
            .zip(1..)
            .for_each(|(line, second)| {
                log.write_at(line, Moment::of_seconds(second));
            });
        let window = Window {
            since: Some(Moment::of_seconds(2)),
            until: Some(Moment::of_seconds(2)),
            tail: None,
        };

        let mut reader = log.reader(window);

        assert!(matches!(reader.next_entry().unwrap(), Next::Entry(entry) if entry.bytes == b"2"));
        assert!(matches!(reader.next_entry().unwrap(), Next::End));
    }

    #[test]
    fn damaged_lines_are_counted_and_left_out() {
        let mut log = Log::of_small_files();
        fs::write(log.file(0), b"no entry\n{\"log\":\"cut\n").unwrap();
        log.write("1");

        let mut reader = log.reader(Window::default());

        assert_eq!(rest(&mut reader), "1");
        assert_eq!(reader.damaged_lines(), 2);
    }

    #[test]
    fn an_endless_line_is_no_entry_and_takes_no_memory() {
        let mut log = Log::of_small_files();
        fs::write(log.file(0), vec![b'x'; 3 * MAX_LINE_BYTES]).unwrap();
        log.write("1");

        let mut reader = log.reader(Window::default());

        rest(&mut reader);
        assert!(reader.damaged_lines() >= 3);
    }

    #[test]
    fn a_log_without_a_file_is_empty() {
        let directory = tempfile::tempdir().unwrap();

        let mut reader = LogReader::open(directory.path(), Window::default()).unwrap();

        assert!(matches!(reader.next_entry().unwrap(), Next::Later));
    }
}
