//! The thread of a monitor that writes the log: it reads what the agent link passes on, cuts it into lines, writes them, and shows the bytes
//! to the clients that attach.
//!
//! Pipes stand between the two, so that a disk that is slow for a moment keeps the agent link from nothing else.

use std::io::{self, BufRead as _, PipeReader, PipeWriter, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::entry::{MAX_PIECE_BYTES, Stream};
use super::writer::LogWriter;
use crate::attach::Audience;
use crate::moment::Moment;

/// What a pipe holds if the host allows it: larger batches than the 64 KiB of pipe(7).
const PIPE_BYTES: usize = 1 << 20;
/// What is read at once.
const READ_BYTES: usize = 256 << 10;

/// The ends of a log's pipes that a workload's output goes into.
#[derive(Debug)]
pub struct LogSinks {
    stdout: PipeWriter,
    stderr: PipeWriter,
}

impl LogSinks {
    /// What takes the workload's standard output.
    #[must_use]
    pub fn stdout(&self) -> BorrowedFd<'_> {
        self.stdout.as_fd()
    }

    /// What takes the workload's standard error.
    #[must_use]
    pub fn stderr(&self) -> BorrowedFd<'_> {
        self.stderr.as_fd()
    }
}

/// The other ends, before anybody reads them.
#[derive(Debug)]
pub struct LogSources {
    stdout: PipeReader,
    stderr: PipeReader,
}

/// Makes the pipes to a log.
///
/// # Errors
///
/// If there are no descriptors left.
pub fn log_pipes() -> io::Result<(LogSinks, LogSources)> {
    let (stdout_source, stdout) = log_pipe()?;
    let (stderr_source, stderr) = log_pipe()?;
    let sources = LogSources {
        stdout: stdout_source,
        stderr: stderr_source,
    };
    Ok((LogSinks { stdout, stderr }, sources))
}

fn log_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = io::pipe()?;
    // A smaller one serves, too, with more turns.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_BYTES);
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, writer))
}

/// The thread at work.
#[derive(Debug)]
pub struct Collector {
    /// Hung up on to say that nothing more comes. The ends of the pipes cannot say it: whoever was forked may have copies.
    stop: PipeWriter,
    thread: JoinHandle<()>,
}

impl Collector {
    /// Starts the thread. To be called once nothing is forked any more. Without a writer there is no log.
    ///
    /// # Errors
    ///
    /// If there can be no thread.
    pub fn start(
        sources: LogSources,
        writer: Option<LogWriter>,
        audience: Audience,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let sources = [
            Source::new(Stream::Stdout, sources.stdout),
            Source::new(Stream::Stderr, sources.stderr),
        ];
        let thread = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || collect(sources, &stopped, writer, audience))?;
        Ok(Self { stop, thread })
    }

    /// Waits until all that was passed on is written, and shown to those who are waited for.
    pub fn finish(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::warn!("the log ended early");
        }
    }
}

/// One stream as the thread sees it.
#[derive(Debug)]
struct Source {
    stream: Stream,
    /// None after its end.
    reader: Option<PipeReader>,
    lines: Lines,
}

impl Source {
    fn new(stream: Stream, reader: PipeReader) -> Self {
        Self {
            stream,
            reader: Some(reader),
            lines: Lines::default(),
        }
    }

    /// Reads once, takes what came, and says whether anything did.
    fn advance(
        &mut self,
        space: &mut [u8],
        writer: &mut Option<LogWriter>,
        audience: &mut Audience,
    ) -> bool {
        let Some(reader) = &mut self.reader else {
            return false;
        };
        match reader.read(space) {
            Ok(0) => {
                self.reader = None;
                false
            }
            Ok(count) => {
                let chunk = space.get(..count).unwrap_or_default();
                if let Some(writer) = writer {
                    let pieces = self.lines.cut(chunk);
                    writer.write(self.stream, Moment::now(), pieces);
                    self.lines.keep_rest();
                }
                audience.show(self.stream, chunk);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => {
                tracing::warn!(%error, "a stream's log ends here");
                self.reader = None;
                false
            }
        }
    }
}

fn collect(
    mut sources: [Source; 2],
    stopped: &PipeReader,
    mut writer: Option<LogWriter>,
    mut audience: Audience,
) {
    let mut space = vec![0; READ_BYTES];
    let mut is_stopped = false;
    loop {
        let is_held_up = audience.holds_up(is_stopped);
        let mut descriptors = Vec::new();
        descriptors.extend(
            audience
                .interests()
                .map(|(descriptor, interest)| PollFd::from_borrowed_fd(descriptor, interest)),
        );
        let of_audience = descriptors.len();
        if !is_stopped {
            descriptors.push(PollFd::new(stopped, PollFlags::IN));
        }
        if !is_held_up {
            let readers = sources.iter().filter_map(|source| source.reader.as_ref());
            descriptors.extend(readers.map(|reader| PollFd::new(reader, PollFlags::IN)));
        }
        let limit = match is_stopped && !is_held_up {
            true => Some(Duration::ZERO),
            false => audience.limit(is_stopped),
        };
        let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or_default());
        match poll(&mut descriptors, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(%error, "the log ends here");
                break;
            }
        }
        let results: Vec<PollFlags> = descriptors.iter().map(PollFd::revents).collect();
        let (of_audience, others) = results.split_at(of_audience);
        let has_stopped = is_stopped || others.first().is_some_and(|result| !result.is_empty());
        audience.advance(of_audience);
        let mut has_come = false;
        if !audience.holds_up(false) {
            for source in &mut sources {
                has_come |= source.advance(&mut space, &mut writer, &mut audience);
            }
        }
        if let Some(writer) = &mut writer {
            writer.flush();
        }
        if is_stopped && !has_come && !audience.holds_up(true) {
            break;
        }
        is_stopped = has_stopped;
    }
    if let Some(mut writer) = writer {
        for source in &sources {
            writer.write(source.stream, Moment::now(), source.lines.rest());
        }
        writer.finish();
    }
}

/// Cuts what comes into lines, and those into pieces of at most [`MAX_PIECE_BYTES`].
#[derive(Debug, Default)]
struct Lines {
    /// What came, from the beginning of the first line that is not cut.
    bytes: Vec<u8>,
    /// How much of it is cut.
    cut_bytes: usize,
}

impl Lines {
    /// Gives all pieces that are whole with these bytes.
    fn cut(&mut self, chunk: &[u8]) -> impl Iterator<Item = &[u8]> {
        self.bytes.extend_from_slice(chunk);
        let Self { bytes, cut_bytes } = self;
        let bytes = bytes.as_slice();
        std::iter::from_fn(move || {
            let rest = &bytes[*cut_bytes..];
            let length_bytes = piece_bytes(rest)?;
            *cut_bytes += length_bytes;
            rest.get(..length_bytes)
        })
    }

    /// Lets go of what is cut.
    fn keep_rest(&mut self) {
        self.bytes.drain(..self.cut_bytes);
        self.cut_bytes = 0;
    }

    /// Gives what is no whole line, at the end.
    fn rest(&self) -> impl Iterator<Item = &[u8]> {
        Some(self.bytes.as_slice())
            .filter(|rest| !rest.is_empty())
            .into_iter()
    }
}

/// The length of the first piece; none if more has to come before it is known.
fn piece_bytes(bytes: &[u8]) -> Option<usize> {
    let window = &bytes[..bytes.len().min(MAX_PIECE_BYTES)];
    // Reading from memory does not fail.
    let length_bytes = (&mut { window }).skip_until(b'\n').unwrap_or_default();
    if window[..length_bytes].ends_with(b"\n") {
        return Some(length_bytes);
    }
    if bytes.len() < MAX_PIECE_BYTES {
        return None;
    }
    Some(whole_characters(window))
}

/// How much of a piece ends with a whole character: UTF-8 has at most three bytes after the first, RFC 3629 section 3.
fn whole_characters(piece: &[u8]) -> usize {
    let is_continuation = |byte: &&u8| **byte & 0xc0 == 0x80;
    let continuations = piece
        .iter()
        .rev()
        .take(4)
        .take_while(is_continuation)
        .count();
    let Some(first_at) = piece.len().checked_sub(continuations + 1) else {
        return piece.len();
    };
    let wanted = match piece.get(first_at) {
        Some(0xc0..=0xdf) => 2,
        Some(0xe0..=0xef) => 3,
        Some(0xf0..=0xf7) => 4,
        _ => 1,
    };
    match continuations + 1 < wanted {
        true => first_at,
        false => piece.len(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::super::config::LogConfig;
    use super::super::entry::Entry;
    use super::super::files::path_of;
    use super::*;
    use crate::agent_link::event_channel;

    fn cut(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut lines = Lines::default();
        let mut pieces = Vec::new();
        for chunk in chunks {
            pieces.extend(lines.cut(chunk).map(<[u8]>::to_vec));
            lines.keep_rest();
        }
        pieces.extend(lines.rest().map(<[u8]>::to_vec));
        pieces
    }

    #[test]
    fn a_line_is_one_piece_however_it_comes() {
        assert_eq!(
            cut(&[b"o", b"ne\ntw", b"o\nthree"]),
            [&b"one\n"[..], b"two\n", b"three"]
        );
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let line = "é".repeat(MAX_PIECE_BYTES / 2);

        let pieces = cut(&[b"a", line.as_bytes(), b"\n"]);

        assert_eq!(pieces[0].len(), MAX_PIECE_BYTES - 1);
        assert_eq!(pieces[1], "é\n".as_bytes());
    }

    #[test]
    fn all_that_was_passed_on_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let writer = LogWriter::new(directory.path(), &LogConfig::default());
        let (mut sinks, sources) = log_pipes().unwrap();
        let (_newcomers, nobody) = event_channel().unwrap();
        let collector = Collector::start(sources, Some(writer), Audience::new(nobody)).unwrap();

        sinks.stdout.write_all(b"out\nno end").unwrap();
        sinks.stderr.write_all(b"err\n").unwrap();
        collector.finish();

        let text = std::fs::read(path_of(directory.path())).unwrap();
        let entries: Vec<Entry> = text
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| Entry::parse(line).unwrap())
            .collect();
        let of = |stream| {
            let of_stream = entries.iter().filter(move |entry| entry.stream == stream);
            of_stream
                .flat_map(|entry| entry.bytes.clone())
                .collect::<Vec<u8>>()
        };
        assert_eq!(of(Stream::Stdout), b"out\nno end");
        assert_eq!(of(Stream::Stderr), b"err\n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_too_long(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40_000), 0..4)) {
            let borrowed: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let pieces = cut(&borrowed);
            prop_assert_eq!(pieces.concat(), chunks.concat());
            prop_assert!(pieces.iter().all(|piece| (1..=MAX_PIECE_BYTES).contains(&piece.len())));
        }

        #[test]
        fn no_character_is_cut(start in "[a-zé€😀]{0,4}", character in "[zé€😀]") {
            let text = start + &character.repeat(MAX_PIECE_BYTES);
            let pieces = cut(&[text.as_bytes()]);
            prop_assert!(pieces.iter().all(|piece| std::str::from_utf8(piece).is_ok()));
        }
    }
}
