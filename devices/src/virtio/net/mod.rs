//! The virtio-net device (VirtIO 1.2 section 5.1): one network interface, one receive and one transmit queue.
//!
//! Frames go straight between guest memory and a [`Link`], a descriptor that carries one frame a read or write. What the guest
//! says about a frame is read once, checked against what was negotiated and against the frame, and dropped and counted if it does
//! not fit ([`header`]). Nothing is lost for want of room: a link that takes no more keeps the transmit queue waiting, and a guest
//! without buffers keeps the link waiting.
//!
//! There is one pair of queues: all devices of a machine share the event loop's thread, so that more of them would not move more.

mod header;
mod link;
mod queue;
mod rate;
mod tap;
mod used;
mod worker;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
};

pub use header::HEADER_BYTES;
pub use link::{FrameSocket, Link};
pub use rate::Rate;
pub use tap::{Tap, TapError};

use self::rate::Pacer;
use super::{ActivateError, Activation, DeviceType, VirtioDevice, Worker};

/// Entries of the receive and transmit queues.
///
/// Linux fills the receive queue with buffers of at least 1.5 KiB when the interface goes up, memory of the guest's that stays
/// taken: 128 hold the largest frame three times, and after some of those buffers are pages.
const QUEUE_SIZES: [u16; 2] = [128, 128];

/// Where the status is in the configuration space, two bytes (VirtIO 1.2 section 5.1.4).
pub const STATUS_OFFSET: usize = 6;

/// The status of an interface whose link is gone.
pub const LINK_DOWN: [u8; 2] = [0, 0];

/// The longest frame without its header: an Ethernet header, a VLAN tag, and the longest packet.
pub const MAX_FRAME_BYTES: usize = 14 + 4 + 65_535;

/// The shortest frame: an Ethernet header.
const MIN_FRAME_BYTES: usize = 14;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Takes its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// Makes one of random bytes: of one interface, and locally administered (IEEE 802, the two lowest bits of the first byte).
    #[must_use]
    pub fn local(random: [u8; 6]) -> Self {
        let [_, rest @ ..] = random;
        let [b1, b2, b3, b4, b5] = rest;
        Self([0x02, b1, b2, b3, b4, b5])
    }

    /// Its bytes.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index > 0 { ":" } else { "" };
            write!(formatter, "{colon}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "MacAddress({self})")
    }
}

/// A text that is no Ethernet address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a MAC address is six bytes such as 02:42:ac:11:00:02, the first of them even")]
pub struct MacAddressError;

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddressError)?;
            let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| is_hex)
                .ok_or(MacAddressError)?;
        }
        // An odd first byte is a group's address (IEEE 802).
        let is_of_one = bytes.first().is_some_and(|first| first & 1 == 0) && bytes != [0; 6];
        match parts.next() {
            None if is_of_one => Ok(Self(bytes)),
            _ => Err(MacAddressError),
        }
    }
}

/// What a link does with frames that are not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// It takes and gives frames whose checksum is still to be computed.
    pub checksum: bool,
    /// It takes and gives TCP segments that are longer than the MTU. Needs checksums.
    pub segmentation: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self {
        checksum: true,
        segmentation: true,
    };

    const CHECKSUM: u64 = 1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_GUEST_CSUM;
    const SEGMENTATION: u64 = 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN
        | 1 << VIRTIO_NET_F_GUEST_TSO4
        | 1 << VIRTIO_NET_F_GUEST_TSO6
        | 1 << VIRTIO_NET_F_GUEST_ECN;

    /// The feature bits (VirtIO 1.2 section 5.1.3).
    fn features(self) -> u64 {
        match (self.checksum, self.segmentation) {
            (false, _) => 0,
            (true, false) => Self::CHECKSUM,
            (true, true) => Self::CHECKSUM | Self::SEGMENTATION,
        }
    }
}

/// What the driver is told of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its address.
    pub mac: MacAddress,
    /// The longest packet without Ethernet header, in bytes.
    pub mtu: u16,
    /// What its link does. Those that it has when the guest goes on elsewhere are to be the same.
    pub offloads: Offloads,
}

/// How fast an interface may be, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// To the guest.
    pub receive: Option<Rate>,
    /// From the guest.
    pub transmit: Option<Rate>,
}

/// What was moved in one direction.
#[derive(Debug, Default)]
pub struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
    errors: AtomicU64,
}

impl Counter {
    fn count(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that were moved.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Their bytes, without headers of virtio.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Frames that made no sense, or for which there is no link.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Frames that the link refused.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

/// What an interface has moved since the machine's start.
#[derive(Debug, Default)]
pub struct Counters {
    /// To the guest.
    pub receive: Counter,
    /// From the guest.
    pub transmit: Counter,
}

/// What is done when the link is gone; called on the event loop's thread, once.
pub struct LossReport(Box<dyn FnMut() + Send>);

impl LossReport {
    /// Makes one that calls `report`.
    pub fn new(report: impl FnMut() + Send + 'static) -> Self {
        Self(Box::new(report))
    }
}

impl fmt::Debug for LossReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("LossReport")
    }
}

/// What the interface is connected to.
#[derive(Debug)]
struct Port {
    /// None where there is nothing, or nothing any more.
    link: Option<Box<dyn Link>>,
    /// What was there until now, for the worker to wait for no longer.
    lost: Option<Box<dyn Link>>,
    on_loss: Option<LossReport>,
    receive_pacer: Option<Pacer>,
    transmit_pacer: Option<Pacer>,
    counters: Arc<Counters>,
}

impl Port {
    /// Lets go of the link, whose end of the world has come.
    fn lose(&mut self) {
        let Some(link) = self.link.take() else { return };
        self.lost = Some(link);
        if let Some(LossReport(report)) = &mut self.on_loss {
            report();
        }
    }
}

/// The device while it is configured.
#[derive(Debug)]
pub struct Net {
    interface: Interface,
    port: Port,
}

impl Net {
    /// Makes an interface that is connected to nothing: what the guest sends is dropped.
    #[must_use]
    pub fn new(interface: Interface) -> Self {
        Self {
            interface,
            port: Port {
                link: None,
                lost: None,
                on_loss: None,
                receive_pacer: None,
                transmit_pacer: None,
                counters: Arc::default(),
            },
        }
    }

    /// Connects it.
    #[must_use]
    pub fn connected_to(mut self, link: Box<dyn Link>, on_loss: LossReport) -> Self {
        self.port.link = Some(link);
        self.port.on_loss = Some(on_loss);
        self
    }

    /// Limits how fast it is.
    ///
    /// # Errors
    ///
    /// If the kernel gives no timer.
    pub fn limited_to(mut self, limits: RateLimits) -> io::Result<Self> {
        self.port.receive_pacer = limits.receive.map(Pacer::new).transpose()?;
        self.port.transmit_pacer = limits.transmit.map(Pacer::new).transpose()?;
        Ok(self)
    }

    /// What it moves, which goes on being counted.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.port.counters)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MTU
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | self.interface.offloads.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// `u8 mac[6]`, `le16 status`, `le16 max_virtqueue_pairs`, `le16 mtu` (VirtIO 1.2 section 5.1.4).
    fn config_space(&self) -> Vec<u8> {
        const PAIRS: u16 = 1;
        let status = u16::try_from(VIRTIO_NET_S_LINK_UP).unwrap_or_default();
        let fields: [&[u8]; 4] = [
            &self.interface.mac.bytes(),
            &status.to_le_bytes(),
            &PAIRS.to_le_bytes(),
            &self.interface.mtu.to_le_bytes(),
        ];
        fields.concat()
    }

    fn activate(
        self: Box<Self>,
        activation: Activation,
    ) -> Result<Box<dyn Worker>, (Box<dyn VirtioDevice>, ActivateError)> {
        match <[_; 2]>::try_from(activation.queues) {
            Ok(queues) => Ok(Box::new(worker::NetWorker::new(
                *self,
                activation.memory,
                queues,
                activation.interrupt,
                activation.features,
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
