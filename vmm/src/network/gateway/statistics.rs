//! What a gateway counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a gateway has carried since its start, what it has open, and what it did not carry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Frames from the guest.
    pub received_frames: u64,
    /// Their bytes, without the virtio header.
    pub received_bytes: u64,
    /// Frames to the guest.
    pub sent_frames: u64,
    /// Their bytes, without the virtio header.
    pub sent_bytes: u64,
    /// TCP connections that the guest or somebody outside has begun.
    pub tcp_connections: u64,
    /// Those that are open now.
    pub tcp_connections_open: u64,
    /// UDP and ping flows that are open now.
    pub flows_open: u64,
    /// Questions to the resolver over UDP.
    pub dns_questions: u64,
    /// Why something was not carried, and how often.
    pub dropped: BTreeMap<Dropped, u64>,
}

/// Why a frame or what it asked for came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dropped {
    /// It is too short, too long, or contradicts itself.
    Malformed,
    /// A checksum is wrong.
    Checksum,
    /// It is for another station than the gateway, or for many.
    ForAnother,
    /// It comes from an address that is not the guest's.
    ForeignSource,
    /// It is part of a fragmented packet.
    Fragment,
    /// A protocol that is not carried, or an extension header of IPv6.
    Protocol,
    /// The guest may not reach that.
    Refused,
    /// There are as many connections or flows as there may be, or the host has no socket.
    Full,
    /// The guest does not take what is for it.
    NotTaken,
    /// It does not fit into a frame, or is a first segment of TCP with data.
    TooLong,
    /// The host permits no ping sockets (`net.ipv4.ping_group_range`).
    NoPing,
    /// No name server of the host has answered.
    NameServers,
    /// The host could not send it on.
    Unsent,
}

impl Statistics {
    pub(super) fn drop(&mut self, why: Dropped) {
        let count = self.dropped.entry(why).or_default();
        *count = count.saturating_add(1);
    }
}
