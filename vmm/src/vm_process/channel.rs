//! The channel between monitor and VM process: one message a packet, sockets passed along.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the monitor says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Command {
    /// Connect the socket that comes along to this port of the guest.
    Dial { port: u32 },
    /// Let the machine stand; the socket that comes along gets an [`Answered`].
    Pause,
    /// Let it go on; the same.
    Resume,
    /// Write it down when its agent lets it be frozen; after the socket come the file for its state and that for its memory.
    Save {
        memory_offset_bytes: u64,
        only_changes: bool,
        tracks_changes: bool,
        stays: bool,
    },
    /// Do not wait for the agent any longer.
    GiveUp,
    /// Let the guest know that disks have grown; the socket that comes along gets an [`Answered`].
    Grow,
}

/// What a command came to; why not, as one sentence.
pub(super) type Answered = Result<(), String>;

/// As many descriptors as a message brings.
const MAX_PASSED: usize = 3;

/// What the VM process says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The agent listens; a clone's has taken over what it was handed.
    Ready,
    /// The machine is written down; the last report.
    Frozen,
    /// The machine has ended; the last report.
    Ended(End),
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// As the agent wanted.
    PoweredOff,
    /// The guest's kernel died.
    GuestDied {
        /// Why, as one sentence.
        reason: String,
    },
    /// The machine never ran, or the host failed it.
    NotBuilt {
        /// Why, as one sentence.
        reason: String,
        /// Whether no machine of this shape can be built now.
        is_want: bool,
    },
}

/// A channel that does not carry a message.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The host gives no socket.
    #[error("cannot make a socket to the guest")]
    Socket(#[source] std::io::Error),
    /// A message cannot be sent.
    #[error("the VM process does not take a message")]
    Send(#[source] std::io::Error),
    /// A message cannot be received.
    #[error("the VM process cannot be heard")]
    Receive(#[source] std::io::Error),
    /// A message makes no sense.
    #[error("a message between monitor and VM process makes no sense")]
    Nonsense,
}

/// Longer than any message; reasons are cut.
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_REASON_CHARS: usize = 512;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends. Message boundaries are kept, and a hang-up is seen.
    pub(super) fn pair() -> std::io::Result<(Self, Self)> {
        let (one, other) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(one), Self(other)))
    }

    /// Sends one message, with the descriptors that it speaks of.
    pub(super) fn send<T: Serialize>(
        &self,
        message: &T,
        passed: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes = postcard::to_stdvec(message).map_err(|_| ChannelError::Nonsense)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(passed)) {
            return Err(ChannelError::Nonsense);
        }
        loop {
            match sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            ) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(ChannelError::Send(error.into())),
            }
        }
    }

    /// Waits for one message; `None` after a hang-up.
    pub(super) fn receive<T: DeserializeOwned>(
        &self,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, ChannelError> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(received) => break received.bytes,
                Err(Errno::INTR) => {}
                // The other end died with a message of ours unread.
                Err(Errno::CONNRESET) => return Ok(None),
                Err(error) => return Err(ChannelError::Receive(error.into())),
            }
        };
        if received == 0 {
            return Ok(None);
        }
        let passed = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        let message =
            postcard::from_bytes(&bytes[..received]).map_err(|_| ChannelError::Nonsense)?;
        Ok(Some((message, passed)))
    }

    /// Sends a report; a monitor that is gone needs none.
    pub(super) fn report(&self, report: &Report) {
        let report = match report {
            Report::Ready => Report::Ready,
            Report::Frozen => Report::Frozen,
            Report::Ended(End::PoweredOff) => Report::Ended(End::PoweredOff),
            Report::Ended(End::GuestDied { reason }) => Report::Ended(End::GuestDied {
                reason: cut(reason),
            }),
            Report::Ended(End::NotBuilt { reason, is_want }) => Report::Ended(End::NotBuilt {
                reason: cut(reason),
                is_want: *is_want,
            }),
        };
        if let Err(error) = self.send(&report, &[]) {
            tracing::debug!(%error, "nobody hears the report");
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn cut(reason: &str) -> String {
    reason.chars().take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_dial_brings_its_socket() {
        let (monitor, vm) = Channel::pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        monitor
            .send(&Command::Dial { port: 1024 }, &[theirs.as_fd()])
            .unwrap();
        drop(theirs);
        let (command, mut passed) = vm.receive::<Command>().unwrap().unwrap();
        assert!(matches!(command, Command::Dial { port: 1024 }));
        UnixStream::from(passed.pop().unwrap())
            .write_all(b"hello")
            .unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn a_hang_up_is_no_message() {
        let (monitor, vm) = Channel::pair().unwrap();
        drop(vm);
        assert!(monitor.receive::<Report>().unwrap().is_none());
    }

    #[test]
    fn an_endless_reason_is_cut() {
        let (monitor, vm) = Channel::pair().unwrap();
        vm.report(&Report::Ended(End::GuestDied {
            reason: "x".repeat(100_000),
        }));
        let (report, _) = monitor.receive::<Report>().unwrap().unwrap();
        assert_eq!(
            report,
            Report::Ended(End::GuestDied {
                reason: "x".repeat(MAX_REASON_CHARS)
            })
        );
    }
}
