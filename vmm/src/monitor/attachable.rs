//! What clients that attach are joined with while the monitor carries the workload's streams.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use protocol::DeclaredStreams;

use crate::agent_link::EventSender;
use crate::attach::{Listener, Patience};
use crate::logs::Stream;
use crate::state::{AttachOffer, AttachRequest, Attachment};

/// The workload's streams, as clients that attach have them.
#[derive(Debug)]
pub struct Attachable {
    /// Where a client's ends for output go.
    pub audience: EventSender<Listener>,
    /// What all clients write their input to, if the workload has one.
    pub input: Option<UnixStream>,
    /// Whether the workload has a terminal, and so one output.
    pub has_terminal: bool,
    /// Whether the end of a client's input is that of the workload's.
    pub passes_end: bool,
}

impl Attachable {
    /// Joins a client.
    ///
    /// # Errors
    ///
    /// If there are no descriptors left, or the client is gone.
    pub fn attach(&self, request: AttachRequest, offer: AttachOffer) -> io::Result<()> {
        self.join(request, offer, Patience::Short)
    }

    /// Joins the client by which the machine was started.
    ///
    /// # Errors
    ///
    /// As [`Self::attach`].
    pub fn attach_own(&self, offer: AttachOffer) -> io::Result<()> {
        let request = AttachRequest { stdin: true };
        self.join(request, offer, Patience::Endless)
    }

    fn join(
        &self,
        request: AttachRequest,
        offer: AttachOffer,
        patience: Patience,
    ) -> io::Result<()> {
        let input = self.input.as_ref().filter(|_| request.stdin);
        let mut outputs = vec![Stream::Stdout];
        if !self.has_terminal {
            outputs.push(Stream::Stderr);
        }
        let mut theirs = Vec::new();
        for stream in outputs {
            let (ours, their) = UnixStream::pair()?;
            self.audience
                .send(Listener::new(stream, ours, patience, offer.teller()?))?;
            theirs.push(their);
        }
        let attachment = Attachment {
            streams: DeclaredStreams {
                stdin: input.is_some(),
                stdout: true,
                stderr: !self.has_terminal,
            },
            passes_end: self.passes_end,
        };
        let sockets: Vec<BorrowedFd<'_>> = input
            .into_iter()
            .chain(&theirs)
            .map(|socket| socket.as_fd())
            .collect();
        offer.open(attachment, &sockets)
    }
}
