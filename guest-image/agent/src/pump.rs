//! Moves the bytes of a standard stream between a process and its connection, holding a bounded number of them.
//!
//! Back-pressure comes by itself: a pump that holds bytes does not ask for more, so the pipe or the connection behind it
//! fills, and whoever writes there waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::process::Connection;

/// What a pump moves at once: the capacity of a pipe.
const BUFFER_BYTES: usize = 64 << 10;

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

    /// Gives the space for the next read; what it held is gone. The space is not touched before it is needed: a page of the
    /// guest's memory costs more than a short output.
    fn space(&mut self) -> &mut Vec<u8> {
        self.written = 0;
        self.bytes.clear();
        self.bytes.reserve_exact(BUFFER_BYTES);
        &mut self.bytes
    }
}

/// From a process to the host: standard output, standard error, or what a terminal shows.
#[derive(Debug)]
pub(crate) struct Output {
    /// The pipe or terminal, until its end.
    source: Option<OwnedFd>,
    /// The connection, until all is sent or the host closes it.
    sink: Option<OwnedFd>,
    /// Whether another connection is to come in the place of the one that was lost.
    is_detached: bool,
    /// Whether nobody ever wants what comes.
    is_discarded: bool,
    held: Held,
}

/// From the host to a process: standard input.
#[derive(Debug)]
pub(crate) struct Input {
    /// The connection, until its end.
    source: Option<OwnedFd>,
    /// The pipe or terminal, until all is written or the process closes it.
    sink: Option<OwnedFd>,
    /// Whether another connection is to come in the place of the one that was lost.
    is_detached: bool,
    held: Held,
    /// The end of a terminal's input is the process's business: the terminal stays.
    sink_is_terminal: bool,
}

/// The descriptors that a pump waits for, in the order in which it gets the results.
pub(crate) type Interests<'a> = [(Option<BorrowedFd<'a>>, PollFlags); 2];

impl Output {
    /// Makes a pump from `source` to the connection `sink`.
    pub(crate) fn new(source: OwnedFd, sink: Connection) -> Self {
        Self {
            source: Some(source),
            sink: Some(sink.socket),
            is_detached: false,
            is_discarded: false,
            held: Held::default(),
        }
    }

    /// Makes a pump from `source` to nowhere: whoever writes there is not to wait.
    pub(crate) fn discarding(source: OwnedFd) -> Self {
        Self {
            source: Some(source),
            sink: None,
            is_detached: false,
            is_discarded: true,
            held: Held::default(),
        }
    }

    /// Whether everything was sent, or nobody wants it any more.
    pub(crate) fn is_done(&self) -> bool {
        self.sink.is_none() && !self.is_detached
    }

    /// Sends on what can be had and sent at once.
    pub(crate) fn flush(&mut self) {
        loop {
            let had = self.source.is_some() && self.sink.is_some() && self.held.is_empty();
            let is_readable = self.source.as_ref().filter(|_| had).is_some_and(|source| {
                let mut descriptors = [PollFd::new(source, PollFlags::IN)];
                rustix::event::poll(&mut descriptors, Some(&Timespec::default())) == Ok(1)
            });
            if is_readable {
                self.read();
            }
            self.send();
            if !is_readable || !self.held.is_empty() {
                return;
            }
        }
    }

    /// The connection is lost, and another one will come; what was not sent yet waits for it.
    pub(crate) fn detach(&mut self) {
        self.is_detached = self.sink.take().is_some();
    }

    /// Goes on with another connection. One that nobody waits for is closed.
    pub(crate) fn attach(&mut self, sink: Connection) {
        if std::mem::take(&mut self.is_detached) {
            self.sink = Some(sink.socket);
            self.send();
        }
    }

    /// What to wait for.
    pub(crate) fn interests(&self) -> Interests<'_> {
        let source = self
            .source
            .as_ref()
            .filter(|_| self.held.is_empty() && !self.is_detached);
        let sending = if self.held.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        [
            (source.map(AsFd::as_fd), PollFlags::IN),
            (
                self.sink.as_ref().map(AsFd::as_fd),
                sending | PollFlags::RDHUP,
            ),
        ]
    }

    /// Moves what can be moved.
    pub(crate) fn advance(&mut self, results: [PollFlags; 2]) {
        let [source, sink] = results;
        if sink.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            // The host wants no more: the process's next write gets EPIPE, as if its reader had gone.
            self.close();
            return;
        }
        if !source.is_empty() {
            self.read();
        }
        self.send();
    }

    fn close(&mut self) {
        self.source = None;
        self.sink = None;
        self.held = Held::default();
    }

    fn read(&mut self) {
        let Some(source) = &self.source else { return };
        match rustix::io::read(source, spare_capacity(self.held.space())) {
            Ok(1..) | Err(Errno::AGAIN | Errno::INTR) => (),
            // EIO is how a terminal says that its last user has gone.
            Ok(0) | Err(_) => self.source = None,
        }
        if self.is_discarded {
            self.held = Held::default();
        }
    }

    fn send(&mut self) {
        let Some(sink) = &self.sink else { return };
        while !self.held.is_empty() {
            match rustix::net::send(
                sink,
                self.held.rest(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => self.held.written += count,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.close(),
            }
        }
        if self.source.is_none() {
            // Closing is the shut-down: what was sent goes first.
            self.sink = None;
        }
    }
}

impl Input {
    /// Makes a pump from the connection `source` to a pipe, which must not block, or a terminal.
    pub(crate) fn new(source: Connection, sink: OwnedFd, sink_is_terminal: bool) -> Self {
        let Connection { socket, received } = source;
        Self {
            source: Some(socket),
            sink: Some(sink),
            is_detached: false,
            held: Held {
                bytes: received,
                written: 0,
            },
            sink_is_terminal,
        }
    }

    /// What to wait for.
    pub(crate) fn interests(&self) -> Interests<'_> {
        let source = self.source.as_ref().filter(|_| self.held.is_empty());
        let writing = if self.held.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        // A terminal in hang-up would be reported for ever; its end is seen by the output.
        let sink = self
            .sink
            .as_ref()
            .filter(|_| !self.sink_is_terminal || !self.held.is_empty());
        [
            (source.map(AsFd::as_fd), PollFlags::IN),
            (sink.map(AsFd::as_fd), writing),
        ]
    }

    /// Moves what can be moved.
    pub(crate) fn advance(&mut self, results: [PollFlags; 2]) {
        let [source, sink] = results;
        if sink.intersects(PollFlags::ERR | PollFlags::HUP) {
            self.close();
            return;
        }
        if !source.is_empty() {
            self.receive();
        }
        self.write();
    }

    /// The connection is lost, and another one will come.
    pub(crate) fn detach(&mut self) {
        self.is_detached = self.source.take().is_some();
    }

    /// Goes on with another connection. One that nobody waits for is closed.
    pub(crate) fn attach(&mut self, source: Connection) {
        if std::mem::take(&mut self.is_detached) {
            let Connection { socket, received } = source;
            let rest = self.held.rest();
            self.held = Held {
                bytes: [rest, &received].concat(),
                written: 0,
            };
            self.source = Some(socket);
            self.write();
        }
    }

    /// The process reads no more, so the host need send no more.
    fn close(&mut self) {
        self.source = None;
        self.sink = None;
        self.held = Held::default();
    }

    fn receive(&mut self) {
        let Some(source) = &self.source else { return };
        match rustix::net::recv(
            source,
            spare_capacity(self.held.space()),
            RecvFlags::DONTWAIT,
        ) {
            Ok((1.., _)) | Err(Errno::AGAIN | Errno::INTR) => (),
            Ok((0, _)) | Err(_) => self.source = None,
        }
    }

    fn write(&mut self) {
        let Some(sink) = &self.sink else { return };
        while !self.held.is_empty() {
            match rustix::io::write(sink, self.held.rest()) {
                Ok(count) => self.held.written += count,
                Err(Errno::INTR) => (),
                Err(Errno::AGAIN) => return,
                Err(_) => return self.close(),
            }
        }
        if self.source.is_none() && !self.is_detached {
            self.sink = None;
        }
    }
}
