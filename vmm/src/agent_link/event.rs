//! What the client wants forwarded to the workload while it runs: signals and window sizes.
//!
//! Events travel through a pipe, so that a signal handler's thread, or the handler itself, can send them, and the link can
//! wait for them together with everything else.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use protocol::WindowSize;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

/// Length of an event in the pipe. A write of no more than `PIPE_BUF` bytes is atomic, pipe(7).
const EVENT_BYTES: usize = 5;

/// Something to forward.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A signal, by its number.
    Signal(u8),
    /// The workload is asked to end, with its own signal for that.
    Stop,
    /// The client's terminal has this size now.
    Resize(WindowSize),
    /// The machine is to be frozen.
    Freeze {
        /// For several copies.
        at_fork_point: bool,
    },
}

/// The sending end. Closing it ends the events, not the workload.
#[derive(Debug)]
pub struct EventSender(OwnedFd);

/// The receiving end, for [`super::AgentLink::run`].
#[derive(Debug)]
pub struct EventReceiver(OwnedFd);

/// What a receiver found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Received {
    Event(Event),
    Nothing,
    End,
}

/// Makes a channel for events.
///
/// # Errors
///
/// If there are no descriptors left.
pub fn event_channel() -> io::Result<(EventSender, EventReceiver)> {
    let (receiver, sender) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((EventSender(sender), EventReceiver(receiver)))
}

impl EventSender {
    /// Sends an event. It neither waits nor allocates, so a signal handler may call it.
    ///
    /// # Errors
    ///
    /// If thousands of events wait already, or the receiver is gone.
    pub fn send(&self, event: Event) -> io::Result<()> {
        rustix::io::write(&self.0, &encode(event))?;
        Ok(())
    }
}

impl EventReceiver {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Takes the next event.
    pub(super) fn receive(&self) -> io::Result<Received> {
        let mut bytes = [0; EVENT_BYTES];
        match rustix::io::read(&self.0, &mut bytes) {
            Ok(0) => Ok(Received::End),
            // Writes are atomic and of this length, so a shorter read cannot be an event.
            Ok(EVENT_BYTES) => Ok(decode(bytes).map_or(Received::Nothing, Received::Event)),
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

fn encode(event: Event) -> [u8; EVENT_BYTES] {
    match event {
        Event::Signal(number) => [0, number, 0, 0, 0],
        Event::Resize(WindowSize { rows, columns }) => {
            let ([a, b], [c, d]) = (rows.to_ne_bytes(), columns.to_ne_bytes());
            [1, a, b, c, d]
        }
        Event::Freeze { at_fork_point } => [2, u8::from(at_fork_point), 0, 0, 0],
        Event::Stop => [3, 0, 0, 0, 0],
    }
}

fn decode(bytes: [u8; EVENT_BYTES]) -> Option<Event> {
    match bytes {
        [0, number, ..] => Some(Event::Signal(number)),
        [1, a, b, c, d] => Some(Event::Resize(WindowSize {
            rows: u16::from_ne_bytes([a, b]),
            columns: u16::from_ne_bytes([c, d]),
        })),
        [2, at_fork_point, ..] => Some(Event::Freeze {
            at_fork_point: at_fork_point != 0,
        }),
        [3, ..] => Some(Event::Stop),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_order() {
        let (sender, receiver) = event_channel().unwrap();
        let size = WindowSize {
            rows: 24,
            columns: 80,
        };
        sender.send(Event::Signal(15)).unwrap();
        sender.send(Event::Resize(size)).unwrap();
        let freeze = [false, true].map(|at_fork_point| Event::Freeze { at_fork_point });
        for event in freeze {
            sender.send(event).unwrap();
        }
        drop(sender);

        let received = [
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
        ];

        assert_eq!(
            received,
            [
                Received::Event(Event::Signal(15)),
                Received::Event(Event::Resize(size)),
                Received::Event(freeze[0]),
                Received::Event(freeze[1]),
                Received::End
            ]
        );
    }

    #[test]
    fn no_event_is_nothing() {
        let (_sender, receiver) = event_channel().unwrap();

        assert_eq!(receiver.receive().unwrap(), Received::Nothing);
    }
}
