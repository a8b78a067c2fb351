//! Reading the journal, and going on where it is appended to.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Event;
use super::event::MAX_LINE_BYTES;
use super::journal::{CURRENT, FORMER};

/// What is read at once.
const READ_BYTES: u64 = 64 << 10;

/// Reads events in the order in which they were written down.
#[derive(Debug)]
pub struct EventReader {
    directory: PathBuf,
    /// The file that was full, which somebody may just have been writing to, and the current one.
    files: VecDeque<Tail>,
}

impl EventReader {
    /// Opens the journal in its directory: at its beginning, or at its end.
    ///
    /// # Errors
    ///
    /// If a file is there and cannot be opened.
    pub fn open(directory: &Path, from_beginning: bool) -> io::Result<Self> {
        let mut reader = Self {
            directory: directory.to_owned(),
            files: VecDeque::new(),
        };
        for name in [FORMER, CURRENT] {
            reader.open_file(name)?;
        }
        if !from_beginning {
            for tail in &mut reader.files {
                tail.file.seek(SeekFrom::End(0))?;
            }
        }
        Ok(reader)
    }

    /// Takes the next event; none if there is no other yet. Damaged lines are left out.
    ///
    /// # Errors
    ///
    /// As read(2) says.
    pub fn next_event(&mut self) -> io::Result<Option<Event>> {
        loop {
            for tail in &mut self.files {
                while let Some(line) = tail.next_line()? {
                    if let Some(event) = Event::of_line(&line) {
                        return Ok(Some(event));
                    }
                }
            }
            if !self.open_file(CURRENT)? {
                return Ok(None);
            }
        }
    }

    /// Opens a file unless it is open already, and says whether it was opened.
    fn open_file(&mut self, name: &str) -> io::Result<bool> {
        let file = match File::open(self.directory.join(name)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let inode = file.metadata()?.ino();
        if self.files.iter().any(|tail| tail.inode == inode) {
            return Ok(false);
        }
        self.files.push_back(Tail::new(file, inode));
        if self.files.len() > 2 {
            self.files.pop_front();
        }
        Ok(true)
    }
}

/// A file that is read line by line while it grows.
#[derive(Debug)]
struct Tail {
    file: File,
    inode: u64,
    pending: Vec<u8>,
    /// How much of it holds no end of a line.
    searched: usize,
}

impl Tail {
    fn new(file: File, inode: u64) -> Self {
        Self {
            file,
            inode,
            pending: Vec::new(),
            searched: 0,
        }
    }

    /// Takes the next line without its end; none if there is no whole one. Of one that is too long, only a part is given.
    fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let unsearched = self.pending.iter().skip(self.searched);
            if let Some(length) = unsearched.into_iter().position(|byte| *byte == b'\n') {
                let end = self.searched.saturating_add(length);
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.pending.len();
            if self.searched > MAX_LINE_BYTES {
                self.pending.clear();
                self.searched = 0;
            }
            let read = (&mut self.file)
                .take(READ_BYTES)
                .read_to_end(&mut self.pending)?;
            if read == 0 {
                return Ok(None);
            }
        }
    }
}
