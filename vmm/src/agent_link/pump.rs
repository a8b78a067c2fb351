//! Moves the bytes of a standard stream between the client and its connection, holding a bounded number of them.
//!
//! A pump that holds bytes does not read more, so the connection fills, its credit ends, and in the guest the process waits:
//! that is the back-pressure.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::client::ClientSink;
use crate::attach::{DetachKeys, KeyFilter};

/// What a pump moves at once: the capacity of a pipe.
const BUFFER_BYTES: usize = 64 << 10;

/// The index of a pump's source in its interests.
const SOURCE: usize = 0;
/// The index of a pump's sink in its interests.
const SINK: usize = 1;

/// Bytes that were read and not written yet.
#[derive(Debug, Default)]
struct Held {
    bytes: Vec<u8>,
    written: usize,
}

impl Held {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.written >= self.bytes.len()
    }

    /// Gives the space for the next read; what it held is gone.
    fn space(&mut self) -> &mut [u8] {
        self.written = 0;
        self.bytes.resize(BUFFER_BYTES, 0);
        &mut self.bytes
    }

    /// Keeps this many bytes of the space.
    fn keep(&mut self, count: usize) {
        self.bytes.truncate(count);
    }

    /// Keeps these bytes in the place of all others.
    fn replace(&mut self, bytes: Vec<u8>) {
        *self = Self { bytes, written: 0 };
    }
}

/// What a read came to.
enum Read {
    Bytes,
    Later,
    End,
}

fn read_into(held: &mut Held, read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> Read {
    let result = read(held.space());
    held.keep(result.unwrap_or(0));
    match result {
        Ok(0) => Read::End,
        Ok(_) => Read::Bytes,
        Err(Errno::AGAIN | Errno::INTR) => Read::Later,
        // A stream that broke has ended.
        Err(_) => Read::End,
    }
}

/// From the client to the process: standard input.
#[derive(Debug)]
pub(super) struct Input<'fd> {
    /// The client's descriptor, until its end.
    source: Option<BorrowedFd<'fd>>,
    /// The connection, until the process reads no more.
    sink: Option<UnixStream>,
    /// Whether the end was sent. The connection stays open after it, so that nothing that is under way is lost.
    is_ended: bool,
    /// Whether the end of the client's input is that of the process's.
    passes_end: bool,
    /// Looks for the keys by which the client leaves.
    filter: Option<KeyFilter>,
    /// Whether they were typed.
    is_detached: bool,
    held: Held,
}

impl<'fd> Input<'fd> {
    pub(super) fn new(source: BorrowedFd<'fd>, sink: UnixStream) -> Self {
        Self {
            source: Some(source),
            sink: Some(sink),
            is_ended: false,
            passes_end: true,
            filter: None,
            is_detached: false,
            held: Held::default(),
        }
    }

    /// Leaves the process's input open at the end of the client's.
    pub(super) fn keep_open(&mut self) {
        self.passes_end = false;
    }

    /// Looks for these keys in what is typed.
    pub(super) fn watch_for(&mut self, keys: &DetachKeys) {
        self.filter = Some(KeyFilter::new(keys));
    }

    /// Whether the keys were typed by which the client leaves, and all that was typed before is passed on.
    pub(super) fn is_detached(&self) -> bool {
        self.is_detached && self.held.is_empty()
    }

    pub(super) fn interests<S>(
        &self,
        tag: impl Fn(usize) -> S,
    ) -> impl Iterator<Item = (S, BorrowedFd<'_>, PollFlags)> {
        let source = self.source.filter(|_| self.held.is_empty());
        let sending = if self.held.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        let source = source.map(|fd| (tag(SOURCE), fd, PollFlags::IN));
        // Hang-ups are reported whatever is asked for.
        let sink = self
            .sink
            .as_ref()
            .map(|sink| (tag(SINK), sink.as_fd(), sending));
        source.into_iter().chain(sink)
    }

    pub(super) fn advance(&mut self, side: usize, result: PollFlags) {
        if side == SINK && result.intersects(PollFlags::HUP | PollFlags::ERR) {
            return self.close();
        }
        if let (SOURCE, Some(source)) = (side, self.source) {
            let read = read_into(&mut self.held, |space| rustix::io::read(source, space));
            if let Read::End = read {
                self.source = None;
            }
            self.filter_keys(&read);
        }
        self.send();
    }

    fn filter_keys(&mut self, read: &Read) {
        let Some(filter) = &mut self.filter else {
            return;
        };
        match read {
            Read::Bytes => {
                let passed = filter.pass(self.held.rest());
                self.held.replace(passed.bytes);
                if passed.is_detached {
                    self.is_detached = true;
                    self.source = None;
                    self.passes_end = false;
                }
            }
            Read::End => self.held.replace(filter.rest()),
            Read::Later => {}
        }
    }

    /// The process reads no more: the client's descriptor is left alone from here on.
    fn close(&mut self) {
        self.source = None;
        self.sink = None;
        self.held = Held::default();
    }

    fn send(&mut self) {
        let Some(sink) = &self.sink else { return };
        while !self.held.is_empty() {
            match rustix::net::send(
                sink,
                self.held.rest(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => self.held.written += sent,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.close(),
            }
        }
        if self.source.is_none() && self.passes_end && !self.is_ended {
            // The half-close is the end of the input; if the other side is gone already, it needs none.
            let _ = sink.shutdown(Shutdown::Write);
            self.is_ended = true;
        }
    }
}

/// From the process to the client: standard output or standard error.
#[derive(Debug)]
pub(super) struct Output<'fd> {
    /// The connection, until its end.
    source: Option<UnixStream>,
    /// The client's descriptor, until all is written or nobody reads it.
    sink: Option<ClientSink<'fd>>,
    held: Held,
    /// Whether nobody reads what the client writes.
    is_unread: bool,
}

impl<'fd> Output<'fd> {
    pub(super) fn new(source: UnixStream, sink: ClientSink<'fd>) -> Self {
        Self {
            source: Some(source),
            sink: Some(sink),
            held: Held::default(),
            is_unread: false,
        }
    }

    /// Whether nobody reads what the client writes.
    pub(super) fn is_unread(&self) -> bool {
        self.is_unread
    }

    /// Whether all has reached the client, or never will.
    pub(super) fn is_done(&self) -> bool {
        self.sink.is_none()
    }

    /// Whether it is the client who keeps it from going on.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.is_done() && !self.held.is_empty()
    }

    pub(super) fn interests<S>(
        &self,
        tag: impl Fn(usize) -> S,
    ) -> impl Iterator<Item = (S, BorrowedFd<'_>, PollFlags)> {
        let source = self.source.as_ref().filter(|_| self.held.is_empty());
        // Only while there is something to write: that nobody reads is no news before, as for a plain program.
        let sink = self.sink.as_ref().filter(|_| !self.held.is_empty());
        let source = source.map(|source| (tag(SOURCE), source.as_fd(), PollFlags::IN));
        let sink = sink.map(|sink| (tag(SINK), sink.as_fd(), PollFlags::OUT));
        source.into_iter().chain(sink)
    }

    pub(super) fn advance(&mut self, side: usize, _result: PollFlags) {
        if let (SOURCE, Some(source)) = (side, &self.source)
            && let Read::End = read_into(&mut self.held, |space| {
                rustix::net::recv(source, space, RecvFlags::DONTWAIT).map(|(received, _)| received)
            })
        {
            self.source = None;
        }
        let may_write = side == SINK
            || self
                .sink
                .as_ref()
                .is_some_and(|sink| !sink.needs_poll_before_each_write());
        if may_write || self.held.is_empty() {
            self.write();
        }
    }

    /// Nobody reads: closing the connection closes the process's output, and its next write fails as it would without us.
    fn close(&mut self) {
        self.source = None;
        self.sink = None;
        self.held = Held::default();
    }

    fn write(&mut self) {
        let Some(sink) = &self.sink else { return };
        while !self.held.is_empty() {
            match sink.write(self.held.rest()) {
                Ok(written) => self.held.written += written,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    self.is_unread = error == Errno::PIPE;
                    return self.close();
                }
            }
            if sink.needs_poll_before_each_write() && !self.held.is_empty() {
                return;
            }
        }
        if self.source.is_none() {
            self.sink = None;
        }
    }
}
