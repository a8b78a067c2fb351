//! The interfaces of networks on the host: bridges and the taps on them, by rtnetlink(7).

use std::net::IpAddr;

use netlink::{AF_INET6, Batch, attributes, family, kind, link, link_attribute as of};
use rustix::io::Errno;

use super::subnet::Subnet;
use crate::network::random;

/// `IFF_UP` (`include/uapi/linux/if.h`).
const UP: u32 = 1;
/// Length of `struct ifinfomsg`.
const LINK_BYTES: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE_BYTES: usize = 12;

/// An interface of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HostLink {
    pub(super) index: u32,
    pub(super) name: String,
    /// What somebody wrote on it.
    pub(super) mark: String,
}

/// Lists the interfaces of the host.
pub(super) fn all() -> rustix::io::Result<Vec<HostLink>> {
    let bodies = netlink::list(kind::GET_LINK, &link(0, 0, 0))?;
    Ok(bodies.iter().filter_map(|body| read(body)).collect())
}

fn read(body: &[u8]) -> Option<HostLink> {
    let mut link = HostLink {
        index: u32::from_ne_bytes(*body.get(4..)?.first_chunk()?),
        name: String::new(),
        mark: String::new(),
    };
    for (kind, value) in attributes(body.get(LINK_BYTES..)?) {
        let text = || {
            String::from_utf8_lossy(value)
                .trim_end_matches('\0')
                .to_owned()
        };
        match kind {
            of::NAME => link.name = text(),
            of::ALIAS => link.mark = text(),
            _ => {}
        }
    }
    Some(link)
}

/// Finds an interface by its name.
pub(super) fn find(name: &str) -> rustix::io::Result<Option<HostLink>> {
    Ok(all()?.into_iter().find(|link| link.name == name))
}

/// Makes a bridge that is up, marked, and has these addresses of the host's.
pub(super) fn make_bridge(
    name: &str,
    mark: &str,
    mtu: u16,
    addresses: &[(IpAddr, u8)],
) -> rustix::io::Result<HostLink> {
    /// `IFLA_INFO_KIND`.
    const KIND: u16 = 1;
    // One that the bridge keeps: otherwise it has that of one of its taps, and another one when that goes.
    let mac = devices::virtio::net::MacAddress::local(random().map_err(|_| Errno::IO)?);
    let mut batch = Batch::default();
    batch.request(kind::NEW_LINK, &link(0, 0, 0), |attributes| {
        attributes.add(of::NAME, &terminated(name));
        attributes.add(of::ADDRESS, &mac.bytes());
        attributes.nest(of::INFO, |info| info.add(KIND, b"bridge"));
    });
    batch.carry_out()?;
    let made = find(name)?.ok_or(Errno::NODEV)?;
    match set_up_bridge(&made, mark, mtu, addresses) {
        Ok(()) => Ok(made),
        Err(error) => {
            // Nobody could tell whose it is.
            let _ = remove(&made);
            Err(error)
        }
    }
}

fn set_up_bridge(
    bridge: &HostLink,
    mark: &str,
    mtu: u16,
    addresses: &[(IpAddr, u8)],
) -> rustix::io::Result<()> {
    leave_without_own_address(bridge);
    let mut batch = Batch::default();
    batch.request(kind::SET_LINK, &link(bridge.index, UP, UP), |attributes| {
        attributes.add(of::MTU, &u32::from(mtu).to_ne_bytes());
        attributes.add(of::ALIAS, mark.as_bytes());
    });
    for (address, prefix) in addresses {
        add_address(&mut batch, bridge.index, *address, *prefix);
    }
    batch.carry_out()
}

/// `RTM_NEWADDR`: `struct ifaddrmsg`.
fn add_address(batch: &mut Batch, index: u32, address: IpAddr, prefix: u8) {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    const NO_DUPLICATE_DETECTION: u8 = 0x02;
    const UNIVERSE: u8 = 0;
    let mut fixed = vec![family(address), prefix, NO_DUPLICATE_DETECTION, UNIVERSE];
    fixed.extend(index.to_ne_bytes());
    batch.request(kind::NEW_ADDRESS, &fixed, |attributes| {
        attributes.add_address(LOCAL, address);
        attributes.add_address(ADDRESS, address);
    });
}

/// Puts a tap on a bridge.
pub(super) fn attach(
    tap: &HostLink,
    bridge: &HostLink,
    mark: &str,
    mtu: u16,
) -> rustix::io::Result<()> {
    leave_without_own_address(tap);
    let mut batch = Batch::default();
    batch.request(kind::SET_LINK, &link(tap.index, UP, UP), |attributes| {
        attributes.add(of::MTU, &u32::from(mtu).to_ne_bytes());
        attributes.add(of::ALIAS, mark.as_bytes());
        attributes.add(of::MASTER, &bridge.index.to_ne_bytes());
    });
    batch.carry_out()
}

/// Has an interface make no address of IPv6 by itself (`IN6_ADDR_GEN_MODE_NONE`). A host without IPv6 makes none anyway.
fn leave_without_own_address(found: &HostLink) {
    const GENERATION: u16 = 8;
    const NONE: u8 = 1;
    let mut batch = Batch::default();
    batch.request(kind::SET_LINK, &link(found.index, 0, 0), |attributes| {
        attributes.nest(of::OF_FAMILIES, |families| {
            families.nest(AF_INET6, |inet6| inet6.add(GENERATION, &[NONE]));
        });
    });
    if let Err(error) = batch.carry_out() {
        tracing::debug!(%error, "an interface may make an address of its own");
    }
}

/// Removes an interface.
pub(super) fn remove(found: &HostLink) -> rustix::io::Result<()> {
    let mut batch = Batch::default();
    batch.request(kind::DELETE_LINK, &link(found.index, 0, 0), |_| ());
    batch.carry_out()
}

/// What the host has routes to, but for everything.
pub(super) fn routes() -> rustix::io::Result<Vec<Subnet>> {
    let bodies = netlink::list(kind::GET_ROUTE, &[0; ROUTE_BYTES])?;
    Ok(bodies.iter().filter_map(|body| read_route(body)).collect())
}

fn read_route(body: &[u8]) -> Option<Subnet> {
    const DESTINATION: u16 = 1;
    const LOCAL_TABLE: u8 = 255;
    let (prefix, table) = (*body.get(1)?, *body.get(4)?);
    let mut attributes = attributes(body.get(ROUTE_BYTES..)?);
    let (_, destination) = attributes.find(|(kind, _)| *kind == DESTINATION)?;
    let address: IpAddr = match destination.len() {
        4 => <[u8; 4]>::try_from(destination).ok()?.into(),
        16 => <[u8; 16]>::try_from(destination).ok()?.into(),
        _ => return None,
    };
    (table != LOCAL_TABLE && prefix > 0).then(|| Subnet::around(address, prefix))?
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}
