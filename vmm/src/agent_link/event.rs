//! What is to be told to the agent while the workload runs: signals and window sizes, and other processes.
//!
//! A byte in a pipe announces each event, so that other threads can send them, and the link can wait for them together with
//! everything else. The pipe's size bounds how many wait.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use protocol::{Answer, ContainerId, Exec, Files, Process, Question, Request, WindowSize};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::WorkloadExit;

/// Something to forward.
#[derive(Debug)]
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
    /// Another process is to run in the container. Its streams are connected already.
    Join {
        /// The process.
        joining: Joining,
        /// Who is to be told what becomes of it.
        watcher: Box<dyn Watcher>,
    },
    /// The terminal of another process has this size now.
    ResizeOf(Process, WindowSize),
    /// A signal to another process, by its number.
    SignalOf(Process, u8),
    /// Nobody wants another process any more that may not have started yet. One that runs goes on.
    Abandon(Process),
    /// Something is to be asked about a container, or changed.
    Ask {
        /// Which.
        container: ContainerId,
        /// What.
        question: Question,
        /// Who wants to know.
        asker: Box<dyn Asker>,
    },
}

/// Another process, as the agent is asked for it.
#[derive(Debug)]
pub enum Joining {
    /// One that runs a program in the container.
    Exec(Box<Exec>),
    /// One that does something with the container's files.
    Files(Box<Files>),
}

impl Joining {
    /// Which process.
    pub(super) fn process(&self) -> Process {
        match self {
            Self::Exec(exec) => exec.process,
            Self::Files(files) => files.process,
        }
    }

    pub(super) fn request(self) -> Request {
        match self {
            Self::Exec(exec) => Request::Exec(exec),
            Self::Files(files) => Request::Files(files),
        }
    }
}

/// Who has asked. Dropped without an answer, it knows that there is none.
pub trait Asker: std::fmt::Debug + Send {
    /// That is the answer: bounded, and fit for a terminal. A list is whole.
    fn answered(self: Box<Self>, answer: Answer);
}

/// Who wants to know what becomes of a process. Dropped untold, it knows that the machine has ended.
pub trait Watcher: std::fmt::Debug + Send {
    /// Its program runs.
    fn started(&mut self);

    /// It has ended, or will never run.
    fn ended(&mut self, exit: WorkloadExit);
}

/// The sending end. Closing it ends the events, not the workload.
#[derive(Debug)]
pub struct EventSender<T = Event> {
    events: Sender<T>,
    bell: OwnedFd,
}

/// The receiving end, for [`super::AgentLink::run`].
#[derive(Debug)]
pub struct EventReceiver<T = Event> {
    events: Receiver<T>,
    bell: OwnedFd,
}

/// What a receiver found.
#[derive(Debug)]
pub enum Received<T = Event> {
    /// The next event.
    Event(T),
    /// None has come.
    Nothing,
    /// None will come any more.
    End,
}

/// Makes a channel for events.
///
/// # Errors
///
/// If there are no descriptors left.
pub fn event_channel<T>() -> io::Result<(EventSender<T>, EventReceiver<T>)> {
    let (heard, bell) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let (sender, receiver) = channel();
    let sender = EventSender {
        events: sender,
        bell,
    };
    let receiver = EventReceiver {
        events: receiver,
        bell: heard,
    };
    Ok((sender, receiver))
}

impl<T> EventSender<T> {
    /// Sends an event, without waiting.
    ///
    /// # Errors
    ///
    /// If thousands of events wait already, or the receiver is gone.
    pub fn send(&self, event: T) -> io::Result<()> {
        rustix::io::write(&self.bell, &[0])?;
        self.events
            .send(event)
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl<T> EventReceiver<T> {
    /// Readable when there is an event.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Takes the next event.
    pub(crate) fn receive(&self) -> io::Result<Received<T>> {
        match rustix::io::read(&self.bell, &mut [0]) {
            Ok(0) => Ok(Received::End),
            // Its event is there, or comes with the sender's next step.
            Ok(_) => Ok(self.events.recv().map_or(Received::End, Received::Event)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_arrive_in_order_and_end_with_their_sender() {
        let (sender, receiver) = event_channel().unwrap();
        sender.send(Event::Signal(15)).unwrap();
        sender.send(Event::Stop).unwrap();
        drop(sender);

        let received = [
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
            receiver.receive().unwrap(),
        ];

        assert!(matches!(
            received,
            [
                Received::Event(Event::Signal(15)),
                Received::Event(Event::Stop),
                Received::End
            ]
        ));
    }

    #[test]
    fn no_event_is_nothing() {
        let (_sender, receiver) = event_channel::<Event>().unwrap();

        assert!(matches!(receiver.receive().unwrap(), Received::Nothing));
    }
}
