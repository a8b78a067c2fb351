//! The addresses of the network that each machine in user mode has for itself. They are the same for all machines: nobody outside of
//! one sees them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The guest's address.
pub const GUEST_IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The way out, and where connections to published ports come from.
pub const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Who answers questions about names.
pub const RESOLVER_IPV4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of the network's part of these addresses.
pub const PREFIX_IPV4_BITS: u8 = 24;

/// The guest's address.
pub const GUEST_IPV6: Ipv6Addr = unique_local(0x15);
/// The way out, and where connections to published ports come from.
pub const GATEWAY_IPV6: Ipv6Addr = unique_local(2);
/// Who answers questions about names.
pub const RESOLVER_IPV6: Ipv6Addr = unique_local(3);
/// Bits of the network's part of these addresses.
pub const PREFIX_IPV6_BITS: u8 = 64;

/// The gateway's and the resolver's Ethernet address, administered locally.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x6d, 0x6d, 0x00, 0x02];

/// The longest IP packet: what IPv4 can say (RFC 791, section 3.1), so that no datagram needs fragments.
pub const MTU: u16 = u16::MAX;

/// `fd00:76:6d:6d::`, a unique local prefix (RFC 4193).
const fn unique_local(host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x76, 0x6d, 0x6d, 0, 0, 0, host)
}

/// The guest's address of the same family.
pub(super) fn guest_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GUEST_IPV4.into(),
        IpAddr::V6(_) => GUEST_IPV6.into(),
    }
}

/// The gateway's address of the same family.
pub(super) fn gateway_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_IPV4.into(),
        IpAddr::V6(_) => GATEWAY_IPV6.into(),
    }
}

pub(super) fn is_gateway(address: IpAddr) -> bool {
    address == gateway_like(address)
}

pub(super) fn is_resolver(address: IpAddr) -> bool {
    address == IpAddr::from(RESOLVER_IPV4) || address == IpAddr::from(RESOLVER_IPV6)
}
