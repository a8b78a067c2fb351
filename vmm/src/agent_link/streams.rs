//! The standard streams of one process: their connections to the guest, and the client's side of them.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protocol::{DeclaredStreams, Process, Role, StreamKind};
use rustix::event::{PollFlags, Timespec};

use super::client::ClientSink;
use super::pump::{Input, Output};
use super::{Dialer, LinkError, dial};
use crate::attach::DetachKeys;

/// How long a stream may stay silent and open after the exit was reported, before the rest is given up. An honest agent
/// ends all streams before it reports.
pub const STREAM_END_PATIENCE: Duration = Duration::from_secs(5);

/// The client's side of the standard streams. A stream that is `None` is not connected: `/dev/null` for the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientStreams<'fd> {
    /// Read until its end, which becomes the end of the process's input.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Written to. When it is closed, the process's output is closed.
    pub stdout: Option<BorrowedFd<'fd>>,
    /// Written to. Must be `None` for a process with a terminal.
    pub stderr: Option<BorrowedFd<'fd>>,
}

impl ClientStreams<'_> {
    /// What [`protocol::Create::streams`] has to say for these.
    #[must_use]
    pub fn declared(&self) -> DeclaredStreams {
        DeclaredStreams {
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
        }
    }
}

/// The connections of a process's streams.
#[derive(Debug, Default)]
pub struct Connections {
    stdin: Option<UnixStream>,
    stdout: Option<UnixStream>,
    stderr: Option<UnixStream>,
}

impl Connections {
    /// Dials all streams that are declared, and says on each what it is for.
    ///
    /// # Errors
    ///
    /// If a connection cannot be made.
    pub fn dial(
        dialer: &dyn Dialer,
        process: Process,
        declared: DeclaredStreams,
    ) -> Result<Self, LinkError> {
        let connect = |wanted: bool, kind: StreamKind| {
            wanted
                .then(|| dial(dialer, Role::Stream { process, kind }))
                .transpose()
        };
        Ok(Self {
            stdin: connect(declared.stdin, StreamKind::Stdin)?,
            stdout: connect(declared.stdout, StreamKind::Stdout)?,
            stderr: connect(declared.stderr, StreamKind::Stderr)?,
        })
    }

    /// Takes connections that another process has dialled, in the order of [`Self::descriptors`]; nothing if they are not as many.
    #[must_use]
    pub fn received(descriptors: Vec<OwnedFd>, declared: DeclaredStreams) -> Option<Self> {
        let mut descriptors = descriptors.into_iter().map(UnixStream::from);
        let mut take = |wanted: bool| match wanted {
            true => descriptors.next().map(Some),
            false => Some(None),
        };
        let connections = Self {
            stdin: take(declared.stdin)?,
            stdout: take(declared.stdout)?,
            stderr: take(declared.stderr)?,
        };
        descriptors.next().is_none().then_some(connections)
    }

    /// Gives the same connections once more.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |stream: &Option<UnixStream>| stream.as_ref().map(UnixStream::try_clone);
        Ok(Self {
            stdin: again(&self.stdin).transpose()?,
            stdout: again(&self.stdout).transpose()?,
            stderr: again(&self.stderr).transpose()?,
        })
    }

    /// Reads what a process with a terminal shows until it ends, for nobody, and leaves its input open meanwhile.
    pub fn discard(self) {
        if let Some(mut stdout) = self.stdout {
            // One that breaks has ended.
            let _ = io::copy(&mut stdout, &mut io::sink());
        }
    }

    /// Gives the outputs: standard output, error.
    #[must_use]
    pub fn into_outputs(self) -> Vec<UnixStream> {
        self.stdout.into_iter().chain(self.stderr).collect()
    }

    /// All that there are: standard input, output, error.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .flatten()
            .map(|stream| stream.as_fd())
            .collect()
    }
}

/// Moves the bytes of a process's streams between the client and their connections.
#[derive(Debug)]
pub struct Pumps<'fd> {
    stdin: Option<Input<'fd>>,
    stdout: Option<Output<'fd>>,
    stderr: Option<Output<'fd>>,
}

/// Which descriptor of which stream a poll result belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Side(StreamKind, usize);

impl<'fd> Pumps<'fd> {
    /// Joins connections with the client's side.
    #[must_use]
    pub fn new(connections: Connections, client: ClientStreams<'fd>) -> Self {
        let Connections {
            stdin,
            stdout,
            stderr,
        } = connections;
        let output = |sink: Option<BorrowedFd<'fd>>, source: Option<UnixStream>| {
            sink.zip(source)
                .map(|(sink, source)| Output::new(source, ClientSink::new(sink)))
        };
        Self {
            stdin: client
                .stdin
                .zip(stdin)
                .map(|(source, sink)| Input::new(source, sink)),
            stdout: output(client.stdout, stdout),
            stderr: output(client.stderr, stderr),
        }
    }

    /// What to wait for.
    pub fn interests(&self) -> impl Iterator<Item = (Side, BorrowedFd<'_>, PollFlags)> {
        let of = |kind| move |side| Side(kind, side);
        let stdin = self
            .stdin
            .iter()
            .flat_map(move |pump| pump.interests(of(StreamKind::Stdin)));
        let stdout = self
            .stdout
            .iter()
            .flat_map(move |pump| pump.interests(of(StreamKind::Stdout)));
        let stderr = self
            .stderr
            .iter()
            .flat_map(move |pump| pump.interests(of(StreamKind::Stderr)));
        stdin.chain(stdout).chain(stderr)
    }

    /// Moves what can be moved after a result.
    pub fn advance(&mut self, side: Side, result: PollFlags) {
        let Side(kind, side) = side;
        match kind {
            StreamKind::Stdin => self
                .stdin
                .iter_mut()
                .for_each(|pump| pump.advance(side, result)),
            StreamKind::Stdout => self
                .stdout
                .iter_mut()
                .for_each(|pump| pump.advance(side, result)),
            StreamKind::Stderr => self
                .stderr
                .iter_mut()
                .for_each(|pump| pump.advance(side, result)),
        }
    }

    /// Leaves the process's input open when the client's ends.
    pub fn keep_input_open(&mut self) {
        self.stdin.iter_mut().for_each(Input::keep_open);
    }

    /// Looks in the client's input for the keys by which it leaves.
    pub fn watch_for(&mut self, keys: &DetachKeys) {
        self.stdin.iter_mut().for_each(|pump| pump.watch_for(keys));
    }

    /// Whether they were typed.
    #[must_use]
    pub fn are_detached(&self) -> bool {
        self.stdin.as_ref().is_some_and(Input::is_detached)
    }

    /// Whether nobody reads the client's standard output, as a write to it has shown.
    #[must_use]
    pub fn are_unread(&self) -> bool {
        self.stdout.as_ref().is_some_and(Output::is_unread)
    }

    /// The process will not read any more.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Whether all output of a process that has ended has reached the client, or never will: nothing has moved for too long.
    #[must_use]
    pub fn are_done(&self, last_progress: Instant) -> bool {
        let outputs = || [&self.stdout, &self.stderr].into_iter().flatten();
        let is_complete = outputs().all(Output::is_done);
        // What waits for the client is not the guest's fault, and is waited for.
        let is_given_up = last_progress.elapsed() >= STREAM_END_PATIENCE
            && !outputs().any(Output::waits_for_client);
        is_complete || is_given_up
    }

    /// How long to wait for something to move after the process has ended.
    #[must_use]
    pub fn patience() -> Timespec {
        Timespec::try_from(STREAM_END_PATIENCE).unwrap_or_default()
    }
}
