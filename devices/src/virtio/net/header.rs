//! What stands in front of a frame, `struct virtio_net_hdr` (VirtIO 1.2 section 5.1.6): what is still to be done to it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_DATA_VALID, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN,
    VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::MIN_FRAME_BYTES;

/// Length of a header.
pub const HEADER_BYTES: usize = 12;

/// A header as it goes over a link.
pub(super) type Bytes = [u8; HEADER_BYTES];

/// Which way a frame goes, by the features that say what may be left to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowed {
    needs_checksum: bool,
    tcp4: bool,
    tcp6: bool,
    congestion: bool,
}

impl Allowed {
    /// What the guest may leave to the link.
    pub(super) fn from_guest(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Self {
            needs_checksum: has(VIRTIO_NET_F_CSUM),
            tcp4: has(VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(VIRTIO_NET_F_HOST_TSO6),
            congestion: has(VIRTIO_NET_F_HOST_ECN),
        }
    }

    /// What the link may leave to the guest.
    pub(super) fn to_guest(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        Self {
            needs_checksum: has(VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(VIRTIO_NET_F_GUEST_TSO6),
            congestion: has(VIRTIO_NET_F_GUEST_ECN),
        }
    }

    pub(super) fn checksum(self) -> bool {
        self.needs_checksum
    }

    pub(super) fn tcp4(self) -> bool {
        self.tcp4
    }

    pub(super) fn tcp6(self) -> bool {
        self.tcp6
    }

    pub(super) fn congestion(self) -> bool {
        self.congestion
    }
}

/// The fields (VirtIO 1.2 section 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    flags: u8,
    gso_type: u8,
    header_bytes: u16,
    gso_bytes: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

/// Checks the header of a frame of so many bytes that leaves the guest, and returns it as it goes on: without what means nothing.
/// `None` if it does not fit the frame or was not negotiated.
pub(super) fn from_guest(bytes: Bytes, frame_bytes: usize, allowed: Allowed) -> Option<Bytes> {
    let header = Header::read(bytes);
    header
        .checked(frame_bytes, allowed, NEEDS_CHECKSUM)
        .map(|header| header.write(0))
}

/// The same for a frame that goes to the guest, in so many buffers.
pub(super) fn to_guest(
    bytes: Bytes,
    frame_bytes: usize,
    allowed: Allowed,
    buffers: u16,
) -> Option<Bytes> {
    let header = Header::read(bytes);
    // That a checksum was checked is nothing to a driver that knows of none (VirtIO 1.2 section 5.1.6.4.1).
    let flags = if allowed.needs_checksum {
        NEEDS_CHECKSUM | CHECKSUM_IS_VALID
    } else {
        NEEDS_CHECKSUM
    };
    header
        .checked(frame_bytes, allowed, flags)
        .map(|header| header.write(buffers))
}

/// The flags and types that fit a byte.
const fn byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

const NEEDS_CHECKSUM: u8 = byte(VIRTIO_NET_HDR_F_NEEDS_CSUM);
const CHECKSUM_IS_VALID: u8 = byte(VIRTIO_NET_HDR_F_DATA_VALID);
const GSO_NONE: u8 = byte(VIRTIO_NET_HDR_GSO_NONE);
const GSO_TCP4: u8 = byte(VIRTIO_NET_HDR_GSO_TCPV4);
const GSO_TCP6: u8 = byte(VIRTIO_NET_HDR_GSO_TCPV6);
const GSO_CONGESTION: u8 = byte(VIRTIO_NET_HDR_GSO_ECN);
/// Length of a checksum.
const CHECKSUM_BYTES: usize = 2;

impl Header {
    fn read(bytes: Bytes) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = bytes;
        Self {
            flags,
            gso_type,
            header_bytes: u16::from_le_bytes([h0, h1]),
            gso_bytes: u16::from_le_bytes([g0, g1]),
            checksum_start: u16::from_le_bytes([s0, s1]),
            checksum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    fn write(self, buffers: u16) -> Bytes {
        let [h0, h1] = self.header_bytes.to_le_bytes();
        let [g0, g1] = self.gso_bytes.to_le_bytes();
        let [s0, s1] = self.checksum_start.to_le_bytes();
        let [o0, o1] = self.checksum_offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [
            self.flags,
            self.gso_type,
            h0,
            h1,
            g0,
            g1,
            s0,
            s1,
            o0,
            o1,
            b0,
            b1,
        ]
    }

    /// What of it means something, if that fits the frame and was negotiated.
    fn checked(self, frame_bytes: usize, allowed: Allowed, flags: u8) -> Option<Self> {
        let mut checked = Self {
            flags: self.flags & flags,
            ..Self::default()
        };
        if self.flags & NEEDS_CHECKSUM != 0 {
            let start = usize::from(self.checksum_start);
            let end = start + usize::from(self.checksum_offset) + CHECKSUM_BYTES;
            if !allowed.needs_checksum || start < MIN_FRAME_BYTES || end > frame_bytes {
                return None;
            }
            checked.checksum_start = self.checksum_start;
            checked.checksum_offset = self.checksum_offset;
        }
        if self.gso_type == GSO_NONE {
            return Some(checked);
        }
        let is_allowed = match self.gso_type & !GSO_CONGESTION {
            GSO_TCP4 => allowed.tcp4,
            GSO_TCP6 => allowed.tcp6,
            _ => false,
        };
        let is_congested = self.gso_type & GSO_CONGESTION != 0;
        let fits = usize::from(self.header_bytes) <= frame_bytes && self.gso_bytes > 0;
        // A segment's checksum is always left to do (VirtIO 1.2 section 5.1.6.2).
        let needs_checksum = checked.flags & NEEDS_CHECKSUM != 0;
        if !is_allowed || !fits || !needs_checksum || is_congested && !allowed.congestion {
            return None;
        }
        Some(Self {
            gso_type: self.gso_type,
            header_bytes: self.header_bytes,
            gso_bytes: self.gso_bytes,
            ..checked
        })
    }
}
