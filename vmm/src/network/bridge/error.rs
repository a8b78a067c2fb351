//! What can be wrong with networks.

use std::io;
use std::net::IpAddr;

use devices::virtio::net::TapError;
use thiserror::Error;

use super::name::NetworkName;
use super::record::RecordFault;
use super::rules::RulesError;
use super::subnet::Subnet;
use crate::dirs::DirectoriesError;
use crate::network::PortError;
use crate::report::Help;

/// Why something cannot be done with a network.
#[derive(Debug, Error)]
pub enum BridgeError {
    /// There is none of this name or id.
    #[error("network {0} not found")]
    None(String),
    /// The beginning of several ids.
    #[error("network {0} is ambiguous: it is the beginning of several ids")]
    Ambiguous(String),
    /// There is one already.
    #[error("network with name {0} already exists")]
    Exists(NetworkName),
    /// Machines are on it.
    #[error("error while removing network: network {name} has active endpoints ({})", .machines.join(", "))]
    InUse {
        /// Which.
        name: NetworkName,
        /// What the machines are called.
        machines: Vec<String>,
    },
    /// Its record is not as it was.
    #[error("network '{name}' cannot be used: its record is damaged")]
    Damaged {
        /// Which.
        name: NetworkName,
        /// What is wrong.
        #[source]
        source: RecordFault,
    },
    /// Another network has some of the addresses.
    #[error("invalid pool request: pool {0} overlaps with {1} of network {2}")]
    Overlaps(Subnet, Subnet, NetworkName),
    /// Nobody can have such addresses.
    #[error("{0} has no addresses that machines can have")]
    Unusable(Subnet),
    /// Two of one family.
    #[error("a network has one subnet of each of IPv4 and IPv6, and {0} is one more")]
    Another(Subnet),
    /// Everything that would be taken is there.
    #[error(
        "could not find an available, non-overlapping IPv4 address pool among the defaults to assign to the network"
    )]
    NoPool,
    /// A gateway that is in no subnet.
    #[error("no matching subnet for gateway {0}")]
    GatewayElsewhere(IpAddr),
    /// A range that is in no subnet.
    #[error("no matching subnet for range {0}")]
    RangeElsewhere(Subnet),
    /// An address that is in no subnet.
    #[error("no configured subnet of network {1} contains the IP address {0}")]
    AddressElsewhere(IpAddr, NetworkName),
    /// Somebody has the address.
    #[error("Address already in use: {0} on network {1}")]
    AddressTaken(IpAddr, NetworkName),
    /// All are taken.
    #[error("no available addresses on the pool {0} of network {1}")]
    Exhausted(Subnet, NetworkName),
    /// The bridge's name is that of something else.
    #[error("the host's interface {0} was not made by this vmm for network {1}")]
    Foreign(String, NetworkName),
    /// Nothing leads into it.
    #[error("ports cannot be published: network {0} is internal")]
    Internal(NetworkName),
    /// The host's interfaces cannot be looked at or changed.
    #[error("cannot {0}")]
    Links(&'static str, #[source] io::Error),
    /// The host is not to forward packets.
    #[error("cannot have the host forward packets: {path} cannot be written")]
    Forwarding {
        /// The setting.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine's part of the network cannot be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The host's rules cannot be set.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// There is no place for records.
    #[error(transparent)]
    Directory(#[from] DirectoriesError),
    /// The records cannot be read or written.
    #[error("cannot {0} the records of networks")]
    Records(&'static str, #[source] io::Error),
    /// The monitor cannot serve it.
    #[error("cannot serve the machine's network")]
    Serve(#[source] io::Error),
    /// The host gives no random numbers.
    #[error("the host gives no random numbers for a network")]
    Random(#[source] io::Error),
}

impl Help for BridgeError {
    fn help(&self) -> Option<String> {
        /// What it takes.
        const RIGHTS: &str = "a network of this host takes root, or the capability CAP_NET_ADMIN; without it there is --network user";
        let is_refused = |error: &io::Error| {
            matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            )
        };
        let help = match self {
            Self::None(name) => {
                return Some(format!(
                    "`vmm network ls` lists those that are; make it with `vmm network create {name}`"
                ));
            }
            Self::Ambiguous(_) => "type more of it",
            Self::Exists(_) => "choose another name, or remove it first with `vmm network rm`",
            Self::InUse { .. } => "end the machines first, with `vmm stop` or `vmm rm -f`",
            Self::Damaged { .. } => {
                "remove its file in the directory `networks` beside that of machines"
            }
            Self::Overlaps(..) | Self::Unusable(_) => {
                "choose another --subnet, or leave it out to have a free one chosen"
            }
            Self::NoPool => "name a free one, as in: --subnet 10.20.0.0/16",
            Self::GatewayElsewhere(_) | Self::RangeElsewhere(_) => {
                "give a --subnet that it is in, as in: --subnet 10.20.0.0/16 --gateway 10.20.0.1"
            }
            Self::AddressElsewhere(..) | Self::AddressTaken(..) => {
                "leave it out to have a free address chosen; `vmm network inspect` shows those that are taken"
            }
            Self::Exhausted(..) => "end machines on it, or make a larger network",
            Self::Foreign(..) => {
                "remove the interface if nobody needs it, or make the network anew with another bridge: --opt com.docker.network.bridge.name=NAME"
            }
            Self::Internal(_) => {
                "leave out -p and -P, or use a network that was made without --internal"
            }
            Self::Tap(TapError::NoTun) => "load the kernel's tun module: modprobe tun",
            Self::Tap(TapError::Open(_) | TapError::NoRight(_)) => RIGHTS,
            Self::Tap(TapError::Refused { source, .. }) if is_refused(source) => RIGHTS,
            Self::Links(_, source) | Self::Forwarding { source, .. } if is_refused(source) => {
                RIGHTS
            }
            Self::Rules(RulesError::NoProgram) => "install it: apt-get install nftables",
            Self::Rules(RulesError::Refused(said)) if said.contains("not permitted") => RIGHTS,
            Self::Port(error) => return error.help(),
            _ => return None,
        };
        Some(help.to_owned())
    }
}
