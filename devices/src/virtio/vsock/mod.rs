//! The virtio-vsock device (VirtIO 1.2 section 5.10): stream sockets between host and guest.
//!
//! The host dials: a [`Dialer`] hands the device one end of a `UnixStream` and a port, and from
//! then on what is written to the other end arrives at the guest's listener on that port.

mod connection;
mod packet;
mod queue;
mod worker;

#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{ActivateError, Activation, DeviceType, VirtioDevice, Worker};

/// Entries of the receive, transmit and event queues.
///
/// Linux fills the receive queue with buffers of a page each when it starts, and the event queue
/// with eight (`net/vmw_vsock/virtio_transport.c`): small queues boot faster. Sixty-four pages are
/// as much as one connection has in flight.
const QUEUE_SIZES: [u16; 3] = [64, 64, 8];

/// How many dialled streams may wait for the device to take them.
const WAITING_DIALS: usize = 128;

/// A context id of the guest (VirtIO 1.2 section 5.10.4): above the reserved ones, 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCid(u32);

impl GuestCid {
    /// The lowest context id that a guest may have; a machine has one guest, so it is the usual.
    pub const FIRST: Self = Self(3);

    /// Returns the id as a number.
    #[must_use]
    pub fn value(self) -> u64 {
        u64::from(self.0)
    }
}

/// Why a stream could not be handed to the device.
#[derive(Debug, Error)]
pub enum DialError {
    /// Too many dialled streams wait for the device already.
    #[error("the dial of port {port} was refused: {WAITING_DIALS} dials are waiting")]
    TooMany {
        /// The port.
        port: u32,
    },
    /// The device is gone.
    #[error("the dial of port {port} was refused: the device is gone")]
    Gone {
        /// The port.
        port: u32,
    },
    /// The device's event descriptor failed.
    #[error("the dial of port {port} failed")]
    Descriptor {
        /// The port.
        port: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A stream that is to be connected to a port of the guest.
#[derive(Debug)]
struct Dial {
    port: u32,
    stream: UnixStream,
}

/// The host's way to the guest's ports; clones dial the same guest.
#[derive(Clone, Debug)]
pub struct Dialer {
    dials: SyncSender<Dial>,
    event: Arc<EventFd>,
}

impl Dialer {
    /// Connects `stream` to the guest's listener on `port`.
    ///
    /// Returns at once; a dial before the guest's driver runs waits for it. From any thread.
    ///
    /// The other end of the stream is the connection. Its end of data (`shutdown`) is the guest's
    /// and the other way round; closing it closes the connection, after what was written before. It
    /// sees the end if nobody listens, if the guest resets, and if the guest's driver goes, and
    /// `ECONNRESET` in the end's place if something that it wrote has not reached the guest then.
    ///
    /// # Errors
    ///
    /// Returns [`DialError`] if the device does not take the stream.
    pub fn connect(&self, port: u32, stream: UnixStream) -> Result<(), DialError> {
        self.dials
            .try_send(Dial { port, stream })
            .map_err(|error| match error {
                TrySendError::Full(_) => DialError::TooMany { port },
                TrySendError::Disconnected(_) => DialError::Gone { port },
            })?;
        self.event
            .write(1)
            .map_err(|source| DialError::Descriptor { port, source })
    }
}

/// The receiving half of the dialers; moves between device and worker.
#[derive(Debug)]
struct DialInbox {
    dials: Receiver<Dial>,
    event: Arc<EventFd>,
}

/// The device while it is configured.
#[derive(Debug)]
pub struct Vsock {
    cid: GuestCid,
    inbox: DialInbox,
    first_host_port: u32,
    /// Whether the guest believes in connections that are not there.
    lost_connections: bool,
}

impl Vsock {
    /// Makes the device of the guest `cid` and the way to dial it.
    ///
    /// # Errors
    ///
    /// Returns the kernel's error if it gives no eventfd.
    pub fn new(cid: GuestCid) -> io::Result<(Self, Dialer)> {
        let (sender, dials) = sync_channel(WAITING_DIALS);
        let event = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let dialer = Dialer {
            dials: sender,
            event: Arc::clone(&event),
        };
        let device = Self {
            cid,
            inbox: DialInbox { dials, event },
            first_host_port: queue::FIRST_HOST_PORT,
            lost_connections: false,
        };
        Ok((device, dialer))
    }

    /// Makes it the device of a guest that was written down with connections open: they stayed behind, and the guest is told so
    /// when it goes on. `first_host_port` should be a port that none of them had, until the guest has let go of them.
    #[must_use]
    pub fn without_its_connections(self, first_host_port: u32) -> Self {
        Self {
            first_host_port,
            lost_connections: true,
            ..self
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `le64 guest_cid` (VirtIO 1.2 section 5.10.4).
    fn config_space(&self) -> Vec<u8> {
        self.cid.value().to_le_bytes().to_vec()
    }

    fn activate(
        self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)> {
        match <[_; 3]>::try_from(activation.queues) {
            Ok(queues) => Ok(Box::new(worker::VsockWorker::new(
                *self,
                activation.memory,
                queues,
                activation.interrupt,
            ))),
            Err(queues) => Err((
                self,
                ActivateError::WrongQueueCount {
                    got: queues.len(),
                    needed: QUEUE_SIZES.len(),
                },
            )),
        }
    }
}
