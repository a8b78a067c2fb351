//! The network of a machine in user mode: a gateway between the guest's frames and ordinary sockets of the host, without any right
//! that an ordinary user does not have.
//!
//! ```text
//!   guest ── virtio-net ── VM process ── a socket, one frame a message ── gateway ── sockets ── the host's network
//! ```
//!
//! The gateway is a process of its own for each machine, started when the guest first sends something, or at the machine's start if a
//! port is published. It is this program anew (`exec`), so that it has nothing of the monitor's in its memory; gets what it is to do
//! over its standard input; and is in its [jail] before it reads a frame. It ends with the machine and with the monitor.
//!
//! All frames are as `virtio_net_hdr_v1` and Ethernet say ([frame]), which is also what a tap carries. The guest's network consists of
//! the [addresses]. Its [TCP](tcp) ends in the library's stack and goes on in a socket of the host; [datagrams] go through sockets of
//! their own; the [resolver](dns) asks the host's name servers; what may be reached is a matter of [policy].

pub mod addresses;
mod datagrams;
pub(in crate::network) mod dns;
mod engine;
mod frame;
mod icmp;
mod jail;
mod link;
pub mod policy;
pub mod statistics;
mod tcp;
mod timers;

#[cfg(test)]
mod tests;

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::engine::Engine;
use self::policy::{Policy, Transport};
use self::statistics::Statistics;
use crate::process;

/// What the gateway's process is started with instead of a command.
const COMMAND: &str = "gateway";

/// How many ports of one machine may be published.
pub const MOST_PUBLISHED: usize = 1024;
/// How long a configuration may be.
const MOST_CONFIGURATION_BYTES: usize = 128 << 10;
/// How many descriptors come with one message (`SCM_MAX_FD` in the kernel is 253).
const MOST_PASSED: usize = 128;
/// Signals that are not the gateway's.
const FOR_THE_MONITOR: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];
/// What each side of the wire holds of frames that the other has not taken; a few of the longest.
const WIRE_BYTES: usize = 208 << 10;

/// What a gateway is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The guest's Ethernet address.
    pub guest_mac: [u8; 6],
    /// What it may reach.
    pub policy: Policy,
    /// The ports of the guest that are reached from outside.
    pub published: Vec<Published>,
}

/// A port of the guest that is reached through a socket of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// TCP or UDP.
    pub transport: Transport,
    /// The port in the guest.
    pub guest_port: u16,
}

/// A gateway that does not start, or is gone.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// The host gives no socket.
    #[error("cannot make a wire to the network gateway")]
    Wire(#[source] io::Error),
    /// The host gives no process.
    #[error("cannot start the network gateway")]
    Start(#[source] io::Error),
    /// More ports than there may be.
    #[error("{count} ports are published, more than {MOST_PUBLISHED}")]
    TooManyPorts {
        /// How many were asked for.
        count: usize,
    },
    /// It does not take its configuration or a question, or does not answer.
    #[error("the network gateway has ended")]
    Ended(#[source] io::Error),
    /// It was started with something else than a configuration.
    #[error("the network gateway cannot read what it is to do")]
    Configuration,
    /// It cannot give up what it is to give up.
    #[error("the network gateway cannot enter its jail")]
    Jail(#[source] io::Error),
    /// It cannot go on.
    #[error("the network gateway has failed")]
    Failed(#[source] io::Error),
}

impl crate::report::Help for GatewayError {}

/// Makes the wire between a network device and a gateway: the device's end first. One message is one frame.
///
/// # Errors
///
/// [`GatewayError::Wire`].
pub fn wire() -> Result<(OwnedFd, OwnedFd), GatewayError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let made = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let (device, gateway) = made.map_err(|error| GatewayError::Wire(error.into()))?;
    for end in [&device, &gateway] {
        sockopt::set_socket_send_buffer_size(end, WIRE_BYTES)
            .map_err(|error| GatewayError::Wire(error.into()))?;
    }
    Ok((device, gateway))
}

/// A running gateway; it ends when this is dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    control: OwnedFd,
}

impl Gateway {
    /// Starts a gateway at its end of a wire. The sockets are those of the published ports, in their order: listening ones for TCP,
    /// bound ones for UDP. Call it from a thread that lives as long as the gateway is to.
    ///
    /// # Errors
    ///
    /// [`GatewayError`].
    pub fn start(
        configuration: &Configuration,
        wire: BorrowedFd<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Self, GatewayError> {
        /// The executable of this process, whatever has become of its file since.
        const OWN_EXECUTABLE: &str = "/proc/self/exe";
        Self::start_program(OWN_EXECUTABLE.as_ref(), configuration, wire, sockets)
    }

    /// The same, of another executable of this program.
    ///
    /// # Errors
    ///
    /// [`GatewayError`].
    pub fn start_program(
        program: &std::path::Path,
        configuration: &Configuration,
        wire: BorrowedFd<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<Self, GatewayError> {
        if sockets.len() > MOST_PUBLISHED {
            let count = sockets.len();
            return Err(GatewayError::TooManyPorts { count });
        }
        let flags = SocketFlags::CLOEXEC;
        let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (control, theirs) = pair.map_err(|error| GatewayError::Wire(error.into()))?;
        let mut command = Command::new(program);
        command
            .arg(COMMAND)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .env_clear()
            // Buffers of connections are given back to the host when they are freed, whatever was freed before (mallopt(3)).
            .env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=32768");
        let child = command.spawn().map_err(GatewayError::Start)?;
        let gateway = Self { child, control };
        gateway.configure(configuration, wire, sockets)?;
        Ok(gateway)
    }

    fn configure(
        &self,
        configuration: &Configuration,
        wire: BorrowedFd<'_>,
        sockets: &[BorrowedFd<'_>],
    ) -> Result<(), GatewayError> {
        let bytes = postcard::to_stdvec(configuration).map_err(|_| GatewayError::Configuration)?;
        send_with(&self.control, &bytes, &[wire]).map_err(GatewayError::Ended)?;
        for some in sockets.chunks(MOST_PASSED) {
            send_with(&self.control, &[0], some).map_err(GatewayError::Ended)?;
        }
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks what it has counted. Once this has an answer, the gateway is in its jail and works.
    ///
    /// # Errors
    ///
    /// [`GatewayError::Ended`].
    pub fn statistics(&self) -> Result<Statistics, GatewayError> {
        /// More than all counters take.
        const MOST_BYTES: usize = 4096;
        send_with(&self.control, &[0], &[]).map_err(GatewayError::Ended)?;
        let mut bytes = vec![0; MOST_BYTES];
        let received = loop {
            match rustix::net::recv(&self.control, &mut *bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                received => break received,
            }
        };
        let ended = |error: io::Error| GatewayError::Ended(error);
        let (received, _) = received.map_err(|error| ended(error.into()))?;
        let answer = bytes.get(..received).filter(|answer| !answer.is_empty());
        let answer = answer.ok_or_else(|| ended(io::ErrorKind::UnexpectedEof.into()))?;
        postcard::from_bytes(answer).map_err(|_| ended(io::ErrorKind::InvalidData.into()))
    }
}

impl AsFd for Gateway {
    /// Becomes readable, with a hang-up, when the gateway has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It is gone, or it goes now; what it carried goes with the machine.
        let _gone = self.child.kill();
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "the network gateway cannot be waited for");
        }
    }
}

/// Tells whether this process is to be a gateway. There is one for each machine: it goes without what it takes to read a command line.
#[must_use]
pub fn is_asked_for() -> bool {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().is_some_and(|first| first == COMMAND) && arguments.next().is_none()
}

/// The life of a gateway. Its standard input is the monitor.
///
/// # Errors
///
/// [`GatewayError`]; the gateway of a machine that ends has none.
pub fn live() -> Result<(), GatewayError> {
    let started = |error: Errno| GatewayError::Start(error.into());
    // What the terminal's keys or a service manager send to all processes of a machine, the monitor sees to.
    process::block_only(&FOR_THE_MONITOR).map_err(GatewayError::Start)?;
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3).map_err(started)?;
    // Who starts it by hand in a shell has it in a session already.
    let _session = rustix::process::setsid();
    process::close_all_but(&[control.as_fd()]).map_err(GatewayError::Start)?;
    let (configuration, wire, sockets) = take_configuration(&control)?;
    let engine = Engine::new(&configuration, wire, control, sockets);
    let mut engine = engine.map_err(GatewayError::Start)?;
    process::standard_streams_to_null().map_err(GatewayError::Start)?;
    jail::enter().map_err(GatewayError::Jail)?;
    jail::seal().map_err(GatewayError::Jail)?;
    engine.run().map_err(GatewayError::Failed)
}

/// Reads what this gateway is to do, and takes the sockets for it.
fn take_configuration(
    control: &OwnedFd,
) -> Result<(Configuration, OwnedFd, Vec<OwnedFd>), GatewayError> {
    let (bytes, mut passed) = receive_with(control, MOST_CONFIGURATION_BYTES)?;
    let configuration: Configuration =
        postcard::from_bytes(&bytes).map_err(|_| GatewayError::Configuration)?;
    let wire = passed.pop().ok_or(GatewayError::Configuration)?;
    let count = configuration.published.len();
    if count > MOST_PUBLISHED || !passed.is_empty() {
        return Err(GatewayError::Configuration);
    }
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let (_, passed) = receive_with(control, 1)?;
        if passed.is_empty() {
            return Err(GatewayError::Configuration);
        }
        sockets.extend(passed);
    }
    Ok((configuration, wire, sockets))
}

fn send_with(control: &OwnedFd, bytes: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_PASSED))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(passed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        let flags = SendFlags::NOSIGNAL;
        match sendmsg(control, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn receive_with(
    control: &OwnedFd,
    most_bytes: usize,
) -> Result<(Vec<u8>, Vec<OwnedFd>), GatewayError> {
    let mut bytes = vec![0; most_bytes];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_PASSED))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(
            control,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags,
        ) {
            Err(Errno::INTR) => {}
            received => break received,
        }
    };
    let received = received.map_err(|error| GatewayError::Ended(error.into()))?;
    if received.bytes == 0 {
        return Err(GatewayError::Ended(io::ErrorKind::UnexpectedEof.into()));
    }
    bytes.truncate(received.bytes);
    let passed = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((bytes, passed.flatten().collect()))
}
