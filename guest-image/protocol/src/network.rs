//! The machine's network, as its agent sets it up.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The guest kernel's name of the machine's one network interface.
pub const INTERFACE: &str = "eth0";

/// The file names of [`Names`] in their volume.
pub const HOSTS_FILE: &str = "hosts";
/// See [`HOSTS_FILE`].
pub const HOSTNAME_FILE: &str = "hostname";
/// See [`HOSTS_FILE`].
pub const RESOLV_CONF_FILE: &str = "resolv.conf";
/// All of them.
pub const NAMES_FILES: [&str; 3] = [HOSTS_FILE, HOSTNAME_FILE, RESOLV_CONF_FILE];

/// What the machine's interface is to be. It is up when the container's program starts.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Network {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The longest packet.
    pub mtu: u16,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Where everything else is reached; at most one of each kind.
    pub gateways: Vec<IpAddr>,
    /// Who is reached at which Ethernet address, without being asked.
    pub neighbours: Vec<Neighbour>,
    /// Whether nobody on the link is asked for or told anything: the neighbours above are all that there are.
    pub is_quiet: bool,
}

/// An address of the interface.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// How many bits of it all addresses on the link have.
    pub prefix: u8,
}

/// A neighbour on the link.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

/// What stands in the files by which programs know names: the volume [`Volume::Names`](crate::Volume::Names) has them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Names {
    /// hosts(5).
    pub hosts: String,
    /// hostname(5).
    pub hostname: String,
    /// resolv.conf(5).
    pub resolv_conf: String,
}
