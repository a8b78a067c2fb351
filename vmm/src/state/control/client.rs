//! The clients' ends of the control socket.

use std::io::{self, BufRead, BufReader, ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{Answer, FilesTask, Question, WindowSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::{
    Action, AttachRequest, Attachment, ControlError, ExecRequest, MAX_PASSED, MAX_REQUEST_BYTES,
    REPLY_TIMEOUT, Reply, Request, VERSION, line, with_short_path,
};
use crate::outcome::Outcome;
use crate::state::record::{Ended, Status};
use crate::state::signal::Signal;

/// A reply holds at most a list of processes: 1024, of which each has texts of up to 2 KiB, which cleaning may make three times as long.
const MAX_REPLY_BYTES: u64 = 8 << 20;

/// A client's end of the control socket.
#[derive(Debug)]
pub struct ControlClient {
    stream: BufReader<UnixStream>,
    directory: PathBuf,
}

impl ControlClient {
    /// Connects to the monitor of the machine in `directory`.
    ///
    /// # Errors
    ///
    /// [`ControlError::NotRunning`] if nobody listens, [`ControlError::OtherVersion`] if the monitor
    /// is of another version of `vmm`.
    pub fn connect(directory: &Path) -> Result<Self, ControlError> {
        let stream = connect(directory)?;
        let mut client = Self {
            stream: BufReader::new(stream),
            directory: directory.to_owned(),
        };
        let reply = client.ask(&Request::Hello { version: VERSION })?;
        check_hello(directory, &reply)?;
        Ok(client)
    }

    /// Asks for a signal to the workload.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason.
    pub fn kill(&mut self, signal: Signal) -> Result<(), ControlError> {
        let reply = self.ask(&Request::Kill { signal })?;
        self.done(reply)
    }

    /// Asks for a signal to the workload that is to end it for good.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason.
    pub fn stop(&mut self, signal: Signal) -> Result<(), ControlError> {
        let reply = self.ask(&Request::Stop { signal })?;
        self.done(reply)
    }

    fn done(&self, reply: Reply) -> Result<(), ControlError> {
        match reply {
            Reply::Done => Ok(()),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Asks for something to be done with the machine, and waits until it is, however long that takes.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason.
    pub fn act(mut self, action: Action) -> Result<(), ControlError> {
        self.stream
            .get_ref()
            .set_read_timeout(None)
            .map_err(|error| ControlError::io(&self.directory, error))?;
        let reply = self.ask(&Request::Act(action))?;
        self.done(reply)
    }

    /// Asks how far the machine is.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor does not answer.
    pub fn status(&mut self) -> Result<Status, ControlError> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(status),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Waits until the machine has ended, at most for `limit` if there is one.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor goes without a word, or the time is over.
    pub fn wait(mut self, limit: Option<Duration>) -> Result<Ended, ControlError> {
        self.stream
            .get_ref()
            .set_read_timeout(limit)
            .map_err(|error| ControlError::io(&self.directory, error))?;
        match self.ask(&Request::Wait)? {
            Reply::Ended(ended) => Ok(ended),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        let failed = |error| ControlError::io(&self.directory, error);
        let line = line(request).map_err(failed)?;
        self.stream.get_mut().write_all(&line).map_err(failed)?;
        self.next()
    }

    /// Waits for the next reply.
    fn next(&mut self) -> Result<Reply, ControlError> {
        let failed = |error| ControlError::io(&self.directory, error);
        let mut reply = Vec::new();
        (&mut self.stream)
            .take(MAX_REPLY_BYTES)
            .read_until(b'\n', &mut reply)
            .map_err(failed)?;
        if reply.last() != Some(&b'\n') {
            return Err(failed(ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&reply).map_err(|error| failed(error.into()))
    }
}

/// Connects to the monitor of the machine in `directory`.
fn connect(directory: &Path) -> Result<UnixStream, ControlError> {
    let stream = match with_short_path(directory, UnixStream::connect) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::ConnectionRefused
            ) =>
        {
            return Err(ControlError::NotRunning(directory.to_owned()));
        }
        Err(error) => return Err(ControlError::io(directory, error)),
    };
    stream
        .set_read_timeout(Some(REPLY_TIMEOUT))
        .and_then(|()| stream.set_write_timeout(Some(REPLY_TIMEOUT)))
        .map_err(|error| ControlError::io(directory, error))?;
    Ok(stream)
}

fn check_hello(directory: &Path, reply: &Reply) -> Result<(), ControlError> {
    match reply {
        Reply::Hello { version: VERSION } => Ok(()),
        Reply::Hello { version } => Err(ControlError::OtherVersion {
            directory: directory.to_owned(),
            version: *version,
        }),
        _ => Err(ControlError::Unexpected(directory.to_owned())),
    }
}

/// A client's end of the control socket while it waits for what the guest answers.
#[derive(Debug)]
pub struct Asked(ControlClient);

impl Asked {
    /// Asks the guest of the machine in `directory`, and waits for nothing yet: many can be asked at once.
    ///
    /// # Errors
    ///
    /// As [`ControlClient::connect`].
    pub fn send(directory: &Path, question: &Question) -> Result<Self, ControlError> {
        let stream = connect(directory)?;
        let hello = line(&Request::Hello { version: VERSION });
        let ask = line(&Request::Ask(question.clone()));
        hello
            .and_then(|hello| (&stream).write_all(&[hello, ask?].concat()))
            .map_err(|error| ControlError::io(directory, error))?;
        Ok(Self(ControlClient {
            stream: BufReader::new(stream),
            directory: directory.to_owned(),
        }))
    }

    /// Waits for the answer, until `deadline` at the latest.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's or the guest's reason, or [`ControlError::Io`] if there is no answer in time.
    pub fn answer(mut self, deadline: Instant) -> Result<Answer, ControlError> {
        let hello = self.next(deadline)?;
        check_hello(&self.0.directory, &hello)?;
        match self.next(deadline)? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.0.directory)),
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Reply, ControlError> {
        /// None at all would be no limit.
        const LEAST: Duration = Duration::from_millis(1);
        let left = deadline.saturating_duration_since(Instant::now());
        let stream = self.0.stream.get_ref();
        stream
            .set_read_timeout(Some(left.max(LEAST)))
            .map_err(|error| ControlError::io(&self.0.directory, error))?;
        self.0.next()
    }
}

/// A client's end of the control socket while it has a process, or is joined with the workload.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    received: Vec<u8>,
    directory: PathBuf,
}

/// What a client hears of its process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SessionNews {
    /// Its program runs.
    Started,
    /// It has ended, or will never run.
    Ended(Outcome),
    /// So many bytes of output were left out.
    Missed(u64),
    /// It goes on without this client.
    Detached,
}

impl Session {
    /// Asks the monitor of the machine in `directory` for a process. Gives the connections of its streams, too.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason, or as [`ControlClient::connect`].
    pub fn open(
        directory: &Path,
        request: &ExecRequest,
    ) -> Result<(Self, Vec<OwnedFd>), ControlError> {
        Self::begin(directory, &Request::Exec(Box::new(request.clone())))
    }

    fn begin(directory: &Path, request: &Request) -> Result<(Self, Vec<OwnedFd>), ControlError> {
        let mut passed = Vec::new();
        let mut session = Self::ask(directory, request, &mut passed)?;
        match session.next(&mut passed)? {
            Reply::Session => Ok((session, passed)),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(directory.to_owned())),
        }
    }

    /// Asks the monitor of the machine in `directory` for something to be done with the container's files. Gives the connections of
    /// its streams, too.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn files(directory: &Path, task: &FilesTask) -> Result<(Self, Vec<OwnedFd>), ControlError> {
        Self::begin(directory, &Request::Files(Box::new(task.clone())))
    }

    /// Asks the monitor of the machine in `directory` to be joined with the workload. Says with what, and gives the sockets.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`] with the monitor's reason, or as [`ControlClient::connect`].
    pub fn attach(
        directory: &Path,
        request: AttachRequest,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        let mut passed = Vec::new();
        let session = Self::ask(directory, &Request::Attach(request), &mut passed)?;
        session.attached(passed)
    }

    /// Joins the workload of the machine in `directory`, which this process has started. Its monitor is at the other end of the stream.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn adopted(
        stream: UnixStream,
        directory: &Path,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        let session = Self {
            stream,
            received: Vec::new(),
            directory: directory.to_owned(),
        };
        session.attached(Vec::new())
    }

    fn attached(
        mut self,
        mut passed: Vec<OwnedFd>,
    ) -> Result<(Self, Attachment, Vec<OwnedFd>), ControlError> {
        match self.next(&mut passed)? {
            Reply::Attached(attachment) => Ok((self, attachment, passed)),
            Reply::Failed { message } => Err(ControlError::Refused(message)),
            _ => Err(ControlError::Unexpected(self.directory.clone())),
        }
    }

    /// Connects, and asks for something without waiting for more than the monitor's version.
    fn ask(
        directory: &Path,
        request: &Request,
        passed: &mut Vec<OwnedFd>,
    ) -> Result<Self, ControlError> {
        let failed = |error| ControlError::io(directory, error);
        let stream = connect(directory)?;
        let hello = line(&Request::Hello { version: VERSION }).map_err(failed)?;
        let request = line(request).map_err(failed)?;
        if request.len() > MAX_REQUEST_BYTES {
            return Err(ControlError::TooLong);
        }
        (&stream)
            .write_all(&[hello, request].concat())
            .map_err(failed)?;
        let mut session = Self {
            stream,
            received: Vec::new(),
            directory: directory.to_owned(),
        };
        let hello = session.next(passed)?;
        check_hello(directory, &hello)?;
        Ok(session)
    }

    /// Takes the news that have come, without waiting. The descriptor is readable when there are some.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor went without a word.
    pub fn receive(&mut self) -> Result<Vec<SessionNews>, ControlError> {
        self.read(RecvFlags::DONTWAIT, &mut Vec::new())?;
        let mut news = Vec::new();
        while let Some(reply) = self.take()? {
            news.push(match reply {
                Reply::Started => SessionNews::Started,
                Reply::Outcome(outcome) => SessionNews::Ended(outcome),
                Reply::Missed { bytes } => SessionNews::Missed(bytes),
                Reply::Detached => SessionNews::Detached,
                Reply::Failed { message } => return Err(ControlError::Refused(message)),
                _ => return Err(ControlError::Unexpected(self.directory.clone())),
            });
        }
        Ok(news)
    }

    /// Waits for the next of the news. Of those that have come before it, none is lost.
    ///
    /// # Errors
    ///
    /// As [`Self::receive`].
    pub fn wait(&mut self) -> Result<Vec<SessionNews>, ControlError> {
        loop {
            let news = self.receive()?;
            if !news.is_empty() {
                return Ok(news);
            }
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(self.failed(error.into())),
            }
        }
    }

    /// Tells the size of the terminal.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn resize(&mut self, size: WindowSize) -> Result<(), ControlError> {
        self.tell(&Request::Resize(size))
    }

    /// Passes on a signal to the workload that this is joined with.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn pass(&mut self, signal: Signal) -> Result<(), ControlError> {
        self.tell(&Request::Pass { signal })
    }

    /// Asks to leave. The news say when that is done.
    ///
    /// # Errors
    ///
    /// [`ControlError::Io`] if the monitor is gone.
    pub fn detach(&mut self) -> Result<(), ControlError> {
        self.tell(&Request::Detach)
    }

    fn tell(&mut self, request: &Request) -> Result<(), ControlError> {
        line(request)
            .and_then(|line| self.stream.write_all(&line))
            .map_err(|error| ControlError::io(&self.directory, error))
    }

    /// Waits for the next reply.
    pub(super) fn next(&mut self, passed: &mut Vec<OwnedFd>) -> Result<Reply, ControlError> {
        loop {
            if let Some(reply) = self.take()? {
                return Ok(reply);
            }
            self.read(RecvFlags::empty(), passed)?;
        }
    }

    /// Reads what has come, and the descriptors that came along.
    fn read(&mut self, flags: RecvFlags, passed: &mut Vec<OwnedFd>) -> Result<(), ControlError> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags | RecvFlags::CMSG_CLOEXEC,
        );
        let count = match received {
            Ok(received) if received.bytes > 0 => received.bytes,
            Ok(_) => return Err(self.failed(ErrorKind::UnexpectedEof.into())),
            Err(Errno::INTR) => return Ok(()),
            Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return Ok(()),
            Err(error) => return Err(self.failed(error.into())),
        };
        passed.extend(ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        }));
        self.received
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        match u64::try_from(self.received.len()).is_ok_and(|length| length <= MAX_REPLY_BYTES) {
            true => Ok(()),
            false => Err(self.failed(ErrorKind::InvalidData.into())),
        }
    }

    /// Takes the next reply that is complete.
    fn take(&mut self) -> Result<Option<Reply>, ControlError> {
        let Some(end) = self.received.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        let line: Vec<u8> = self.received.drain(..=end).collect();
        serde_json::from_slice(&line)
            .map(Some)
            .map_err(|error| self.failed(error.into()))
    }

    fn failed(&self, error: io::Error) -> ControlError {
        ControlError::io(&self.directory, error)
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
