//! The virtio-fs device (VirtIO 1.2 section 5.11): directories of the host, served by another process.
//!
//! The device does not know what is said. It moves what the guest asks into a slot of memory that it shares with the server, and
//! what the server answers from there to the guest ([`channel`]): the server sees the requests and none of the guest's memory.

pub mod channel;
mod queue;
mod running;
mod worker;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use self::channel::{Channel, ChannelError};
use self::queue::Exchange;
use self::running::{Running, Shared};
use super::{ActivateError, Activation, DeviceType, InExit, VirtioDevice, Worker};

/// Entries of the queue of requests that come first, and of the request queue. The largest request takes an entry for each of its pages
/// and some more (`virtio_fs_get_tree` in fs/fuse/virtio_fs.c): 1024 hold three of a mebibyte. One that finds no room waits for a tick.
const QUEUE_SIZES: [u16; 2] = [64, 1024];
/// How long a vCPU stands for a reply. Most are there in a tenth of it; those for which a disk is read take longer.
const LONGEST_WAIT: Duration = Duration::from_millis(1);
/// Length of `tag` in the configuration (VirtIO 1.2 section 5.11.4).
const TAG_BYTES: usize = 36;

/// By what name the driver mounts the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag([u8; TAG_BYTES]);

impl Tag {
    /// Takes as much of a name as fits.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut tag = [0; TAG_BYTES];
        for (place, byte) in tag.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        Self(tag)
    }
}

/// Who serves the requests.
#[derive(Debug)]
pub enum Server {
    /// Nobody: the device is there to be probed, and every request fails.
    Nobody,
    /// The process at the other end.
    Process {
        /// The way to it.
        channel: Channel,
        /// Told once when it is gone, or says what makes no sense. All requests fail from then on.
        on_failure: FailureReport,
    },
}

/// What is done when the server fails; called on the event loop's thread.
pub struct FailureReport(Box<dyn FnMut(&ChannelError) + Send>);

impl FailureReport {
    /// Makes one that calls `report`.
    pub fn new(report: impl FnMut(&ChannelError) + Send + 'static) -> Self {
        Self(Box::new(report))
    }
}

impl fmt::Debug for FailureReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FailureReport")
    }
}

/// The device while it is configured.
#[derive(Debug)]
pub struct Fs {
    tag: Tag,
    shared: Arc<Shared>,
}

impl Fs {
    /// Makes the device of a file system.
    #[must_use]
    pub fn new(tag: Tag, server: Server) -> Self {
        Self::with_wait(tag, server, LONGEST_WAIT)
    }

    /// The same with another time for which a vCPU stands for a reply, at most.
    fn with_wait(tag: Tag, server: Server, longest: Duration) -> Self {
        Self {
            tag,
            shared: Arc::new(Shared::new(Exchange::new(server), longest)),
        }
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `u8 tag[36]`, `le32 num_request_queues` (VirtIO 1.2 section 5.11.4).
    fn config_space(&self) -> Vec<u8> {
        const REQUEST_QUEUES: u32 = 1;
        [&self.tag.0[..], &REQUEST_QUEUES.to_le_bytes()].concat()
    }

    fn in_exit(&self) -> Option<Arc<dyn InExit>> {
        Some(Arc::clone(&self.shared) as Arc<dyn InExit>)
    }

    fn activate(
        self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)> {
        match <[_; 2]>::try_from(activation.queues) {
            Ok([hiprio, requests]) => Ok(Box::new(worker::FsWorker::new(
                *self,
                Running {
                    memory: activation.memory,
                    hiprio,
                    requests,
                    interrupt: activation.interrupt,
                    stalled: [false; 2],
                },
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
