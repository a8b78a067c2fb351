//! The machine's network interface. The container is in the machine's network namespace, so it is the container's, too.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use protocol::{INTERFACE, InterfaceAddress, Neighbour, Network, StartFailure};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::step::Step as _;
use crate::sys;
use netlink::{self, AF_INET6, Batch, family, kind};

/// Flags of a link (`include/uapi/linux/if.h`).
const UP: u32 = 1 << 0;
const NO_ARP: u32 = 1 << 7;
/// `IFLA_ADDRESS`.
const MAC_ADDRESS: u16 = 1;

/// Gives the interface what is the machine's own, and sets it up.
///
/// # Errors
///
/// If there is none, or the kernel refuses something.
pub(crate) fn set_up(network: &Network) -> Result<(), StartFailure> {
    let step = || "setting up the network".to_owned();
    let index = index().step(step)?;
    // What others on the link announce changes nothing, and an address is used at once, whoever may have it, too.
    for setting in ["accept_ra", "accept_dad"] {
        let path = format!("/proc/sys/net/ipv6/conf/{INTERFACE}/{setting}");
        std::fs::write(&path, "0").step(|| format!("writing {path}"))?;
    }
    let mut batch = Batch::default();
    add_link(&mut batch, index, network);
    for address in &network.addresses {
        add_address(&mut batch, index, *address);
    }
    for gateway in &network.gateways {
        add_route(&mut batch, index, *gateway, network.mtu.into());
    }
    for neighbour in &network.neighbours {
        add_neighbour(&mut batch, index, *neighbour);
    }
    batch.carry_out().step(step)
}

/// Whether all that a network needs beside what is there is its interface's Ethernet address.
pub(crate) fn lacks_address_alone(network: &Network, there: &Network) -> bool {
    let mac = network.mac;
    network.neighbours.is_empty()
        && Network {
            mac,
            ..there.clone()
        } == *network
}

/// Gives an interface that is set up its Ethernet address. The kernel forgets its neighbours with the old one, so there are to be none.
///
/// # Errors
///
/// If there is no interface, or the kernel refuses it.
pub(crate) fn give_address(network: &Network) -> Result<(), StartFailure> {
    let step = || "giving the network interface its address".to_owned();
    let socket = socket().step(step)?;
    sys::set_ethernet_address(&socket, INTERFACE, network.mac).step(step)
}

/// How many bytes came and went over the interface; none where there is none.
pub(crate) fn traffic() -> (u64, u64) {
    let count = |name: &str| {
        let path = format!("/sys/class/net/{INTERFACE}/statistics/{name}");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    (count("rx_bytes"), count("tx_bytes"))
}

/// The interface's number.
fn index() -> rustix::io::Result<u32> {
    rustix::net::netdevice::name_to_index(&socket()?, INTERFACE)
}

/// One by which interfaces are named: any will do.
fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// `RTM_SETLINK`, twice: the kernel looks at how IPv6 makes its own address after it has set the link up.
fn add_link(batch: &mut Batch, index: u32, network: &Network) {
    const MTU: u16 = 4;
    const OF_FAMILIES: u16 = 26;
    /// `IFLA_INET6_ADDR_GEN_MODE`, and `IN6_ADDR_GEN_MODE_NONE`: there is no address that nobody has asked for.
    const GENERATION: u16 = 8;
    const NONE: u8 = 1;
    let has_ipv6 = network
        .addresses
        .iter()
        .any(|interface| interface.address.is_ipv6());
    if network.is_quiet || !has_ipv6 {
        batch.request(kind::SET_LINK, &netlink::link(index, 0, 0), |attributes| {
            attributes.nest(OF_FAMILIES, |families| {
                families.nest(AF_INET6, |inet6| inet6.add(GENERATION, &[NONE]));
            });
        });
    }
    let flags = if network.is_quiet { UP | NO_ARP } else { UP };
    let link = netlink::link(index, flags, UP | NO_ARP);
    batch.request(kind::SET_LINK, &link, |attributes| {
        attributes.add(MAC_ADDRESS, &network.mac);
        attributes.add(MTU, &u32::from(network.mtu).to_ne_bytes());
    });
}

/// `RTM_NEWADDR`: `struct ifaddrmsg`.
fn add_address(batch: &mut Batch, index: u32, interface: InterfaceAddress) {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const BROADCAST: u16 = 4;
    const NO_DUPLICATE_DETECTION: u8 = 0x02;
    const UNIVERSE: u8 = 0;
    let InterfaceAddress { address, prefix } = interface;
    let mut fixed = vec![family(address), prefix, NO_DUPLICATE_DETECTION, UNIVERSE];
    fixed.extend(index.to_ne_bytes());
    batch.request(kind::NEW_ADDRESS, &fixed, |attributes| {
        attributes.add_address(LOCAL, address);
        attributes.add_address(ADDRESS, address);
        if let IpAddr::V4(address) = address
            && let Some(hosts) = u32::MAX.checked_shr(prefix.into())
            && prefix < 31
        {
            let broadcast = u32::from(address) | hosts;
            attributes.add(BROADCAST, &broadcast.to_be_bytes());
        }
    });
}

/// `RTM_NEWROUTE` for everything: `struct rtmsg`. Where packets are as large as a window is at first (64 KiB), others are asked for
/// segments of half of that: what is received is acknowledged at once when there is more than one, and late otherwise.
fn add_route(batch: &mut Batch, index: u32, gateway: IpAddr, mtu_bytes: u32) {
    /// `RTA_METRICS`, and in it `RTAX_ADVMSS`.
    const METRICS: u16 = 8;
    const ADVERTISED_SEGMENT: u16 = 8;
    const HALF_A_WINDOW_BYTES: u32 = 32_000;
    const OUTPUT_INTERFACE: u16 = 4;
    const GATEWAY: u16 = 5;
    const MAIN_TABLE: u8 = 254;
    const STATIC: u8 = 4;
    const UNIVERSE: u8 = 0;
    const UNICAST: u8 = 1;
    let fixed = [
        family(gateway),
        0, // the destination's length
        0, // the source's length
        0, // type of service
        MAIN_TABLE,
        STATIC,
        UNIVERSE,
        UNICAST,
        0,
        0,
        0,
        0, // flags
    ];
    batch.request(kind::NEW_ROUTE, &fixed, |attributes| {
        attributes.add(OUTPUT_INTERFACE, &index.to_ne_bytes());
        attributes.add_address(GATEWAY, gateway);
        if mtu_bytes > 2 * HALF_A_WINDOW_BYTES {
            attributes.nest(METRICS, |metrics| {
                metrics.add(ADVERTISED_SEGMENT, &HALF_A_WINDOW_BYTES.to_ne_bytes());
            });
        }
    });
}

/// `RTM_NEWNEIGH`: `struct ndmsg`.
fn add_neighbour(batch: &mut Batch, index: u32, neighbour: Neighbour) {
    const DESTINATION: u16 = 1;
    const LINK_ADDRESS: u16 = 2;
    const PERMANENT: u16 = 0x80;
    let mut fixed = vec![family(neighbour.address), 0, 0, 0];
    fixed.extend(index.to_ne_bytes());
    fixed.extend(PERMANENT.to_ne_bytes());
    fixed.extend([0; 2]); // flags, type
    batch.request(kind::NEW_NEIGHBOUR, &fixed, |attributes| {
        attributes.add_address(DESTINATION, neighbour.address);
        attributes.add(LINK_ADDRESS, &neighbour.mac);
    });
}
