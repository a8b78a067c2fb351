//! The packet header (VirtIO 1.2 section 5.10.6) as the device makes it.
//!
//! Packets of the guest are parsed by `virtio_vsock::packet`, which reads each header once; ours
//! are put together here and written to guest memory in one piece.

use virtio_vsock::packet::PKT_HEADER_SIZE;

use super::GuestCid;

/// The context id of the host (VirtIO 1.2 section 5.10.4).
pub(super) const HOST_CID: u64 = 2;
/// The only socket type here: stream (VirtIO 1.2 section 5.10.6.2).
pub(super) const TYPE_STREAM: u16 = 1;

/// Operations (VirtIO 1.2 section 5.10.6).
pub(super) mod op {
    pub(in crate::virtio::vsock) const REQUEST: u16 = 1;
    pub(in crate::virtio::vsock) const RESPONSE: u16 = 2;
    pub(in crate::virtio::vsock) const RST: u16 = 3;
    pub(in crate::virtio::vsock) const SHUTDOWN: u16 = 4;
    pub(in crate::virtio::vsock) const RW: u16 = 5;
    pub(in crate::virtio::vsock) const CREDIT_UPDATE: u16 = 6;
    pub(in crate::virtio::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a SHUTDOWN packet (VirtIO 1.2 section 5.10.6.5).
pub(super) mod shutdown {
    pub(in crate::virtio::vsock) const RECEIVE: u32 = 1 << 0;
    pub(in crate::virtio::vsock) const SEND: u32 = 1 << 1;
    pub(in crate::virtio::vsock) const BOTH: u32 = RECEIVE | SEND;
}

/// The two ports that name a connection; the context ids are always the same two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    /// The host's, given by the device, unique among its connections.
    pub(super) host: u32,
    /// The guest's.
    pub(super) guest: u32,
}

/// A packet to the guest, but for its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) ports: Ports,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Length of the payload in bytes.
    pub(super) length: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// Makes the reply to a packet that belongs to no connection.
    pub(super) fn reset(ports: Ports) -> Self {
        Self {
            ports,
            op: op::RST,
            flags: 0,
            length: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// Returns the header as it lies in guest memory (VirtIO 1.2 section 5.10.6).
    pub(super) fn to_bytes(self, guest: GuestCid) -> [u8; PKT_HEADER_SIZE] {
        let mut bytes = [0; PKT_HEADER_SIZE];
        let fields: [&[u8]; 10] = [
            &HOST_CID.to_le_bytes(),
            &guest.value().to_le_bytes(),
            &self.ports.host.to_le_bytes(),
            &self.ports.guest.to_le_bytes(),
            &self.length.to_le_bytes(),
            &TYPE_STREAM.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (byte, value) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *byte = *value;
        }
        bytes
    }
}

/// The event "the transport was reset": `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (VirtIO 1.2 section 5.10.6.7).
pub(super) const EVENT_TRANSPORT_RESET: u32 = 0;
