//! Who is shown what a workload writes, beside its log.
//!
//! A client has a bounded number of bytes kept for it. When they are all taken up, the workload waits for it, as it would for the reader of
//! a pipe, but for a client that reads nothing no longer than [`STALL`]: from then on the client misses what comes, is told how much, and
//! joins again where it has read all that was kept. Only a machine's own client, in the foreground, is waited for without end: there
//! a terminal that is stopped stops what writes to it.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::agent_link::{EventReceiver, Received};
use crate::logs::Stream;
use crate::state::AttachedTeller;

/// How many bytes are kept for a client before it is waited for.
const KEPT_BYTES: usize = 1 << 20;
/// How long a client that reads nothing may keep a workload waiting.
const STALL: Duration = Duration::from_secs(1);

/// How long a client is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Patience {
    /// For a moment.
    Short,
    /// Until it reads, or is gone.
    Endless,
}

/// One stream of a client.
#[derive(Debug)]
pub struct Listener {
    stream: Stream,
    socket: UnixStream,
    patience: Patience,
    /// Who is told what was missed.
    teller: AttachedTeller,
    /// What was not sent yet.
    kept: Vec<u8>,
    /// Since when nothing of it was read.
    unread_since: Instant,
    /// How many bytes were left out since it fell behind; none if it has not.
    missed_bytes: Option<u64>,
    is_gone: bool,
}

impl Listener {
    /// Begins with nothing shown. `socket` is the monitor's end.
    #[must_use]
    pub fn new(
        stream: Stream,
        socket: UnixStream,
        patience: Patience,
        teller: AttachedTeller,
    ) -> Self {
        Self {
            stream,
            socket,
            patience,
            teller,
            kept: Vec::new(),
            unread_since: Instant::now(),
            missed_bytes: None,
            is_gone: false,
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        if let Some(missed_bytes) = &mut self.missed_bytes {
            *missed_bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            return;
        }
        if self.kept.is_empty() {
            self.unread_since = Instant::now();
        }
        self.kept.extend_from_slice(bytes);
        self.send();
    }

    /// Sends what the socket takes.
    fn send(&mut self) {
        let mut sent_bytes = 0;
        while let Some(rest) = self.kept.get(sent_bytes..).filter(|rest| !rest.is_empty()) {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, rest, flags) {
                Ok(count) => sent_bytes += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.is_gone = true;
                    break;
                }
            }
        }
        if sent_bytes > 0 {
            self.unread_since = Instant::now();
            self.kept.drain(..sent_bytes);
        }
        if self.kept.is_empty() {
            self.catch_up();
        }
    }

    /// Tells what was missed, and shows again what comes.
    fn catch_up(&mut self) {
        if let Some(missed_bytes) = self.missed_bytes.take().filter(|count| *count > 0) {
            self.teller.missed(missed_bytes);
        }
    }

    /// When it is not waited for any longer; none if that is never, or now.
    fn deadline(&self) -> Option<Instant> {
        match self.patience {
            Patience::Short => Some(self.unread_since + STALL),
            Patience::Endless => None,
        }
    }

    fn is_late(&self) -> bool {
        self.deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Whether it keeps others waiting: when so much is kept for it, and in the end until all is sent.
    fn holds_up(&self, is_end: bool) -> bool {
        let is_full = match is_end {
            true => !self.kept.is_empty(),
            false => self.kept.len() >= KEPT_BYTES && self.missed_bytes.is_none(),
        };
        is_full && !self.is_gone && !self.is_late()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.kept.is_empty() {
            let unsent_bytes = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
            *self.missed_bytes.get_or_insert(0) += unsent_bytes;
        }
        self.catch_up();
    }
}

/// All that listen.
#[derive(Debug)]
pub struct Audience {
    newcomers: EventReceiver<Listener>,
    newcomers_are_over: bool,
    listeners: Vec<Listener>,
}

impl Audience {
    /// Begins with nobody.
    #[must_use]
    pub fn new(newcomers: EventReceiver<Listener>) -> Self {
        Self {
            newcomers,
            newcomers_are_over: false,
            listeners: Vec::new(),
        }
    }

    /// What to wait for: those who come, those who go, and those who read. What is ready is for [`Self::advance`].
    pub fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let newcomers = (!self.newcomers_are_over).then(|| (self.newcomers.as_fd(), PollFlags::IN));
        let listeners = self.listeners.iter().map(|listener| {
            let sending = match listener.kept.is_empty() {
                true => PollFlags::empty(),
                false => PollFlags::OUT,
            };
            // That it is gone is reported whatever is asked for.
            (listener.socket.as_fd(), sending)
        });
        newcomers.into_iter().chain(listeners)
    }

    /// Deals with what the interests came to, in their order.
    pub fn advance(&mut self, results: &[PollFlags]) {
        let skipped = usize::from(!self.newcomers_are_over);
        for (listener, result) in self.listeners.iter_mut().zip(results.iter().skip(skipped)) {
            if result.intersects(PollFlags::HUP | PollFlags::ERR) {
                listener.is_gone = true;
            } else if !result.is_empty() {
                listener.send();
            }
        }
        for listener in &mut self.listeners {
            if listener.kept.len() >= KEPT_BYTES && listener.is_late() {
                listener.missed_bytes.get_or_insert(0);
            }
        }
        self.listeners.retain(|listener| !listener.is_gone);
        self.welcome();
    }

    fn welcome(&mut self) {
        while !self.newcomers_are_over {
            match self.newcomers.receive() {
                Ok(Received::Event(listener)) => self.listeners.push(listener),
                Ok(Received::Nothing) => return,
                Ok(Received::End) | Err(_) => self.newcomers_are_over = true,
            }
        }
    }

    /// Shows bytes of a stream to all that listen to it.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        let of_stream = self
            .listeners
            .iter_mut()
            .filter(|listener| listener.stream == stream);
        of_stream.for_each(|listener| listener.show(bytes));
    }

    /// Whether anybody is waited for before more is shown, or, in the end, before it is over.
    #[must_use]
    pub fn holds_up(&self, is_end: bool) -> bool {
        self.listeners
            .iter()
            .any(|listener| listener.holds_up(is_end))
    }

    /// How long those who are waited for may take; none if that is for ever.
    #[must_use]
    pub fn limit(&self, is_end: bool) -> Option<Duration> {
        let waited_for = self
            .listeners
            .iter()
            .filter(|listener| listener.holds_up(is_end));
        let deadline = waited_for.filter_map(Listener::deadline).min()?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};

    use super::*;
    use crate::agent_link::{EventSender, event_channel};

    /// An audience, and the way to join it.
    fn audience() -> (EventSender<Listener>, Audience) {
        let (sender, receiver) = event_channel().unwrap();
        (sender, Audience::new(receiver))
    }

    /// Joins, and gives the client's end and what it is told.
    fn join(
        sender: &EventSender<Listener>,
        patience: Patience,
    ) -> (UnixStream, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (told, hears) = UnixStream::pair().unwrap();
        let teller = AttachedTeller::new(told);
        sender
            .send(Listener::new(Stream::Stdout, ours, patience, teller))
            .unwrap();
        (theirs, BufReader::new(hears))
    }

    fn turn(audience: &mut Audience) {
        let count = audience.interests().count();
        audience.advance(&vec![PollFlags::OUT; count]);
    }

    /// Shows so much that the client is waited for.
    fn fill(audience: &mut Audience) -> usize {
        let chunk = [b'x'; 4096];
        let mut shown = 0;
        while !audience.holds_up(false) {
            audience.show(Stream::Stdout, &chunk);
            shown += chunk.len();
        }
        shown
    }

    fn fall_behind(audience: &mut Audience) {
        audience.listeners[0].unread_since -= STALL;
        turn(audience);
    }

    #[test]
    fn each_client_is_shown_its_stream_from_when_it_came() {
        let (sender, mut audience) = audience();
        audience.show(Stream::Stdout, b"before");
        let (mut one, _) = join(&sender, Patience::Short);
        turn(&mut audience);
        audience.show(Stream::Stdout, b"first ");
        let (mut other, _) = join(&sender, Patience::Short);
        turn(&mut audience);
        audience.show(Stream::Stderr, b"not this");
        audience.show(Stream::Stdout, b"second");
        drop(audience);

        let (mut told_one, mut told_other) = (String::new(), String::new());
        one.read_to_string(&mut told_one).unwrap();
        other.read_to_string(&mut told_other).unwrap();

        assert_eq!(told_one, "first second");
        assert_eq!(told_other, "second");
    }

    #[test]
    fn one_that_reads_nothing_is_waited_for_no_longer_than_a_moment_and_told_what_it_missed() {
        let (sender, mut audience) = audience();
        let (mut reader, mut hears) = join(&sender, Patience::Short);
        turn(&mut audience);
        let shown = fill(&mut audience);

        fall_behind(&mut audience);

        assert!(!audience.holds_up(false));
        audience.show(Stream::Stdout, b"missed");
        let mut read = vec![0; shown];
        let mut read_bytes = 0;
        while read_bytes < shown {
            read_bytes += reader.read(&mut read[read_bytes..]).unwrap();
            turn(&mut audience);
        }
        audience.show(Stream::Stdout, b"again");
        drop(audience);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        let mut told = String::new();
        hears.read_line(&mut told).unwrap();

        assert_eq!(rest, "again");
        assert_eq!(told, "{\"missed\":{\"bytes\":6}}\n");
    }

    #[test]
    fn the_machines_own_client_is_waited_for_until_it_is_gone() {
        let (sender, mut audience) = audience();
        let (reader, _hears) = join(&sender, Patience::Endless);
        turn(&mut audience);
        fill(&mut audience);

        fall_behind(&mut audience);

        assert!(audience.holds_up(false));
        assert_eq!(audience.limit(false), None);
        drop(reader);
        turn(&mut audience);
        assert!(!audience.holds_up(false));
        assert!(audience.listeners.is_empty());
    }

    #[test]
    fn in_the_end_what_is_kept_is_waited_for() {
        let (sender, mut audience) = audience();
        let (reader, _hears) = join(&sender, Patience::Short);
        turn(&mut audience);
        fill(&mut audience);
        fall_behind(&mut audience);

        assert!(!audience.holds_up(true), "it has read nothing for too long");
        audience.listeners[0].unread_since = Instant::now();
        assert!(audience.holds_up(true));
        drop(reader);
        turn(&mut audience);
        assert!(!audience.holds_up(true));
    }
}
