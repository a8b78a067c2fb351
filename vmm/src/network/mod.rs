//! The network of a machine: as it is typed, decided, written down, and opened for one start.
//!
//! A machine has one interface, or none. What the interface is connected to is a descriptor that carries frames
//! ([`devices::virtio::net::Link`]); what its guest is told of the network is said by the agent's protocol, and nobody is asked for
//! an address.

pub mod bridge;
pub mod gateway;
mod keeper;
mod names;
mod ports;
mod typed;

#[cfg(test)]
mod tests;

use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use std::os::fd::OwnedFd;

use devices::virtio::net::{Interface, MacAddress, Offloads, Rate, RateLimits, Tap, TapError};
use protocol::InterfaceAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits::ByteSize;
use crate::machine::{InterfaceShape, MachineLink, MachineNetwork};
use crate::report::Help;
use crate::state::MachineId;

use self::bridge::{BridgeError, Joining, Networks};
use self::gateway::addresses;
use self::gateway::policy::Policy;
use self::gateway::{Configuration, GatewayError, MOST_PUBLISHED, Published};
pub use self::keeper::{GatewayKeeper, Keeper, Planned, PlannedGateway};
pub use self::names::{HostEntry, NameChoices, TypedHost, TypedHostError};
pub use self::ports::{PortError, PublishedPort, TypedPorts, TypedPortsError, TypedPublish};
pub use self::typed::{TypedAddress, TypedMac, TypedNetwork, TypedRates};

/// How long a tap may still be taken by a machine that has ended: the host's kernel takes that down after its end.
const TAP_PATIENCE: Duration = Duration::from_secs(2);
/// How long to wait between two looks at it.
const TAP_PAUSE: Duration = Duration::from_millis(10);

/// What was typed about a machine's network.
#[derive(Clone, Debug, Default)]
pub struct NetworkChoices {
    /// Which.
    pub network: TypedNetwork,
    /// The Ethernet address.
    pub mac: Option<TypedMac>,
    /// Names of the machine on its network, beside its own.
    pub aliases: Vec<String>,
    /// Addresses.
    pub addresses: Vec<TypedAddress>,
    /// Where everything else is reached.
    pub gateways: Vec<IpAddr>,
    /// How fast.
    pub rates: TypedRates,
    /// Names, without those that have addresses.
    pub names: NameChoices,
    /// Names with addresses.
    pub hosts: Vec<TypedHost>,
    /// Ports that are reached through the host's.
    pub published: Vec<TypedPublish>,
    /// What the machine may reach.
    pub policy: Policy,
}

/// The network of a machine, decided: all that another start needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Network {
    /// The interface; none of a machine without a network.
    pub interface: Option<DecidedInterface>,
    /// Names.
    pub names: NameChoices,
}

/// The interface of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedInterface {
    /// What it is connected to.
    pub connection: Connection,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Where everything else is reached.
    pub gateways: Vec<IpAddr>,
    /// Bytes a second to the guest.
    #[serde(default)]
    pub receive_rate: Option<u64>,
    /// Bytes a second from the guest.
    #[serde(default)]
    pub transmit_rate: Option<u64>,
}

/// What an interface is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Connection {
    /// A tap of the host's, which somebody else has made.
    Tap(String),
    /// A network of the host's: its addresses there are the machine's for one start.
    Bridge {
        /// Which.
        network: bridge::NetworkName,
        /// Addresses that it is to have.
        addresses: Vec<IpAddr>,
        /// Names beside its own.
        aliases: Vec<String>,
        /// Its ports that are reached through the host's.
        published: Vec<PublishedPort>,
    },
    /// A gateway of the machine's own, which takes no right.
    User {
        /// What the machine may reach.
        policy: Policy,
        /// Its ports that are reached through the host's.
        published: Vec<PublishedPort>,
    },
}

/// A network that is open.
#[derive(Debug)]
pub struct OpenNetwork {
    /// The machine's part of it.
    pub machine: MachineNetwork,
    /// The agent's.
    pub agent: protocol::Network,
    /// The monitor's: what it keeps for the machine, if anything.
    pub planned: Option<Planned>,
    /// Who answers the machine's questions for names; none if those that the host asks.
    pub resolvers: Vec<IpAddr>,
}

/// Where a network is opened, and for whom.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The host's networks.
    pub networks: &'a Networks,
    /// The machine.
    pub machine: &'a MachineId,
}

/// Why a machine has not got the network that was asked for.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// There is no interface to give it to.
    #[error("{0} needs a network, and the machine has none")]
    Without(&'static str),
    /// Two of one kind.
    #[error("{0} were given more than once")]
    Twice(&'static str),
    /// A gateway that cannot be reached.
    #[error("the gateway {0} is on no network of the machine's addresses")]
    GatewayElsewhere(IpAddr),
    /// The tap cannot be used.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The host's list of name servers cannot be read.
    #[error("cannot read {path}")]
    Resolvers {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no gateway for a name.
    #[error("{0}:host-gateway is the address of a gateway, and the machine has none")]
    NoHostGateway(String),
    /// It is for one kind of network alone.
    #[error("{0} is for a machine with --network user")]
    NotOfUser(&'static str),
    /// It is for all other kinds.
    #[error("a machine with --network user has addresses of its own, and none by {0}")]
    OfOthers(&'static str),
    /// A port cannot be published.
    #[error(transparent)]
    Port(#[from] PortError),
    /// It is for a network of the host's alone.
    #[error("{0} is for a machine on a network that `vmm network create` has made")]
    NotOfBridge(&'static str),
    /// It is for all but a network of the host's.
    #[error("{0} is not for a machine on network {1}")]
    OfOthersThan(&'static str, String),
    /// A tap has no network that would say it.
    #[error("the address {0} needs the length of its network's prefix")]
    NoPrefix(IpAddr),
    /// A network has one.
    #[error("the address {0} has the prefix of its network, and none is typed")]
    Prefix(IpAddr),
    /// A network of the host's.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// There can be no gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The host gives no thread.
    #[error("cannot watch the machine's network")]
    Keep(#[source] io::Error),
    /// The host gives no random numbers.
    #[error("the host gives no random numbers for a MAC address")]
    Random(#[source] io::Error),
}

impl Help for NetworkError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Without(_) => "name one with --network, as in: --network tap=NAME",
            Self::Twice(_) => "leave all but one of them out",
            Self::GatewayElsewhere(_) => {
                "give the machine an address beside it, as in: --ip 192.168.5.2/24 --gateway 192.168.5.1"
            }
            Self::Tap(TapError::NoTun) => "load the kernel's tun module: modprobe tun",
            Self::Tap(TapError::Open(_)) => "become root, or get the right to open /dev/net/tun",
            Self::Tap(TapError::NoInterface(name)) => {
                return Some(format!(
                    "make it first, as in: ip tuntap add dev {name} mode tap user {}; ip link set {name} up",
                    rustix::process::getuid().as_raw()
                ));
            }
            Self::Tap(TapError::NotATap(_)) => {
                "make one with `ip tuntap add dev NAME mode tap`, without multi_queue"
            }
            Self::Tap(TapError::NoRight(name)) => {
                return Some(format!(
                    "make it yours: ip tuntap del dev {name} mode tap; ip tuntap add dev {name} mode tap user {}",
                    rustix::process::getuid().as_raw()
                ));
            }
            Self::Tap(TapError::InUse(_)) => {
                "end what uses it, or give each machine a tap of its own"
            }
            Self::NoHostGateway(_) => {
                "connect it with --network user, or name the gateway of its tap with --gateway"
            }
            Self::NotOfUser(_) => "leave it out, or connect the machine with --network user",
            Self::OfOthers(_) => "leave it out, or connect the machine with --network tap=NAME",
            Self::NotOfBridge(_) => {
                "leave it out, or make a network with `vmm network create NAME` and connect the machine with --network NAME"
            }
            Self::OfOthersThan("--network-allow", _) => {
                "leave it out, or connect the machine with --network user, whose gateway keeps such rules"
            }
            Self::OfOthersThan(..) => "leave it out: the network says it",
            Self::NoPrefix(_) => "type it behind the address, as in: --ip 192.168.5.2/24",
            Self::Prefix(_) => "leave the prefix out, as in: --ip 172.18.0.9",
            Self::Bridge(error) => return error.help(),
            Self::Port(error) => return error.help(),
            Self::Gateway(_) => return None,
            Self::Tap(TapError::BadName(_)) => "`ip link` lists them",
            Self::Tap(TapError::Refused { .. })
            | Self::Resolvers { .. }
            | Self::Keep(_)
            | Self::Random(_) => {
                return None;
            }
        };
        Some(help.to_owned())
    }
}

impl Help for PortError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Taken(_) => {
                "end what listens there (`ss -lntup` lists it), or publish another port of the host's"
            }
            Self::NotHere(_) => "`ip address` lists those that it has",
            Self::NoRight(_) => "publish a higher port of the host's, as in: -p 8080:80",
            Self::Refused { .. } | Self::TooMany(_) => return None,
        };
        Some(help.to_owned())
    }
}

impl Network {
    /// Decides what a machine's network is.
    ///
    /// # Errors
    ///
    /// If what was typed makes no sense together.
    pub fn decide(choices: &NetworkChoices, networks: &Networks) -> Result<Self, NetworkError> {
        // What a machine on a network of the host's reaches the host by.
        let mut host_gateways = None;
        let connection = match &choices.network {
            TypedNetwork::None => {
                choices.check_nothing_else()?;
                return Ok(Self {
                    interface: None,
                    names: choices.decide_names(&[])?,
                });
            }
            TypedNetwork::Tap(name) => {
                choices.check_no_gateway()?;
                choices.check_no_alias()?;
                Connection::Tap(name.clone())
            }
            TypedNetwork::User { host_loopback } => choices.decide_user(*host_loopback)?,
            TypedNetwork::Named(name) => {
                let network = networks.find(name.as_str())?;
                let gateways = network.pools.iter().map(|pool| pool.gateway);
                host_gateways = Some(gateways.collect::<Vec<_>>());
                choices.decide_bridge(network.name)?
            }
        };
        let mac = match choices.mac {
            Some(TypedMac(mac)) => mac,
            None => MacAddress::local(random().map_err(NetworkError::Random)?),
        };
        let (addresses, gateways) = match connection {
            Connection::Tap(_) => {
                let typed = choices.addresses.iter().map(|typed| {
                    let interface = typed.interface();
                    interface.ok_or(NetworkError::NoPrefix(typed.address))
                });
                let typed: Result<Vec<_>, _> = typed.collect();
                (typed?, choices.gateways.clone())
            }
            Connection::Bridge { .. } => (Vec::new(), Vec::new()),
            Connection::User { .. } => of_user(),
        };
        only_one(&gateways, |gateway| *gateway, "gateways")?;
        for gateway in &gateways {
            if !addresses
                .iter()
                .any(|interface| is_beside(*interface, *gateway))
            {
                return Err(NetworkError::GatewayElsewhere(*gateway));
            }
        }
        let names = choices.decide_names(host_gateways.as_deref().unwrap_or(&gateways))?;
        Ok(Self {
            interface: Some(DecidedInterface {
                connection,
                mac,
                addresses,
                gateways,
                receive_rate: choices.rates.receive.map(ByteSize::bytes),
                transmit_rate: choices.rates.transmit.map(ByteSize::bytes),
            }),
            names,
        })
    }

    /// What was typed for it.
    #[must_use]
    pub fn mode(&self) -> String {
        match &self.interface {
            None => TypedNetwork::None.to_string(),
            Some(DecidedInterface {
                connection: Connection::Tap(name),
                ..
            }) => TypedNetwork::Tap(name.clone()).to_string(),
            Some(DecidedInterface {
                connection: Connection::Bridge { network, .. },
                ..
            }) => network.to_string(),
            Some(DecidedInterface {
                connection: Connection::User { policy, .. },
                ..
            }) => {
                let host_loopback = policy.host_loopback;
                TypedNetwork::User { host_loopback }.to_string()
            }
        }
    }

    /// Opens it for one start; none if there is no interface.
    ///
    /// # Errors
    ///
    /// If what the interface is to be connected to cannot be used.
    pub fn open(&self, host: Host<'_>) -> Result<Option<OpenNetwork>, NetworkError> {
        self.interface
            .as_ref()
            .map(|interface| interface.open(host, &self.names))
            .transpose()
    }

    /// What the files by which programs know names have in them, in a machine with this host name, these addresses and these
    /// who answer its questions; none if they are the image's.
    ///
    /// # Errors
    ///
    /// If the host's own cannot be read.
    pub fn names(
        &self,
        hostname: &str,
        addresses: &[InterfaceAddress],
        resolvers: &[IpAddr],
    ) -> Result<Option<protocol::Names>, NetworkError> {
        /// A name without a dot is first that of a machine, as with docker.
        const MACHINES_FIRST: &str = "ndots:0";
        if self.interface.is_none() && self.names.is_empty() {
            return Ok(None);
        }
        let addresses = addresses.iter().map(|interface| interface.address);
        let mut names = self.names.clone();
        if !resolvers.is_empty() && (names.servers.is_empty() || self.bridge().is_some()) {
            // Those that were typed are asked by the one of the network.
            names.servers = resolvers.to_vec();
        }
        if self.bridge().is_some() && names.options.is_empty() {
            names.options = vec![MACHINES_FIRST.to_owned()];
        }
        names.files(hostname, addresses).map(Some)
    }
}

impl Network {
    /// Whether nobody else is on it, so that there may be another one with the same addresses.
    #[must_use]
    pub fn is_its_own(&self) -> bool {
        let connection = self
            .interface
            .as_ref()
            .map(|interface| &interface.connection);
        matches!(connection, None | Some(Connection::User { .. }))
    }

    /// The network of a copy of the machine: the same, with these ports in place of its own if some were typed.
    ///
    /// # Errors
    ///
    /// If it can publish none, or not these.
    pub fn of_copy(mut self, published: &[TypedPublish]) -> Result<Self, NetworkError> {
        if published.is_empty() {
            return Ok(self);
        }
        match self
            .interface
            .as_mut()
            .map(|interface| &mut interface.connection)
        {
            Some(Connection::User { published: own, .. }) => *own = decide_ports(published)?,
            _ => return Err(NetworkError::NotOfUser("--publish")),
        }
        Ok(self)
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let mut policy = Policy::default();
        policy.rules.push((
            "192.0.2.0/24:80/tcp".parse().unwrap(),
            gateway::policy::Verdict::Deny,
        ));
        let choices = NetworkChoices {
            network: "user".parse().unwrap(),
            mac: Some("02:00:00:00:00:07".parse().unwrap()),
            published: vec!["127.0.0.1:8080:80".parse().unwrap()],
            policy,
            ..NetworkChoices::default()
        };
        Self::decide(&choices, &Networks::new(std::path::Path::new("/nowhere"))).unwrap()
    }

    /// The network of the host's that the machine is on, if that is what it is on.
    #[must_use]
    pub fn bridge(&self) -> Option<&bridge::NetworkName> {
        let interface = self.interface.as_ref();
        match interface.map(|interface| &interface.connection) {
            Some(Connection::Bridge { network, .. }) => Some(network),
            _ => None,
        }
    }

    /// The ports that are reached through the host's, of a machine of which there can be some.
    #[must_use]
    pub fn published(&self) -> Option<&[PublishedPort]> {
        match self
            .interface
            .as_ref()
            .map(|interface| &interface.connection)
        {
            Some(Connection::User { published, .. } | Connection::Bridge { published, .. }) => {
                Some(published)
            }
            _ => None,
        }
    }
}

/// What the driver of an interface with a gateway of its own is told. Nothing is longer than a packet may be, so nothing is cut.
pub const SHAPE_OF_USER: InterfaceShape = InterfaceShape {
    mtu: addresses::MTU,
    offloads: Offloads {
        checksum: true,
        segmentation: false,
    },
};

/// What the agent of a machine with a gateway of its own is told: the same for all, but for the Ethernet address.
#[must_use]
pub fn usual_of_user() -> protocol::Network {
    let (addresses, gateways) = of_user();
    protocol::Network {
        mac: MacAddress::local([0; 6]).bytes(),
        mtu: SHAPE_OF_USER.mtu,
        addresses,
        gateways,
        neighbours: Vec::new(),
        is_quiet: true,
    }
}

/// What of a machine's network can be set up before anybody says whose it is: that of a machine with a gateway of its own, which is
/// connected to nothing else.
#[must_use]
pub fn staged(network: &protocol::Network) -> Option<protocol::Network> {
    network.is_quiet.then(usual_of_user)
}

/// Decides through which ports of the host's these are reached.
fn decide_ports(typed: &[TypedPublish]) -> Result<Vec<PublishedPort>, PortError> {
    // An image may name any number of them. Each is a socket of IPv4 and one of IPv6.
    let count = typed.iter().map(TypedPublish::count).sum();
    if count > MOST_PUBLISHED / 2 {
        return Err(PortError::TooMany(count));
    }
    let mut published = Vec::with_capacity(count);
    for ports in typed {
        published.extend(ports.decide()?);
    }
    Ok(published)
}

/// The addresses of a machine with a gateway of its own, and the gateway's.
fn of_user() -> (Vec<InterfaceAddress>, Vec<IpAddr>) {
    let own = [
        (addresses::GUEST_IPV4.into(), addresses::PREFIX_IPV4_BITS),
        (addresses::GUEST_IPV6.into(), addresses::PREFIX_IPV6_BITS),
    ];
    let own = own.map(|(address, prefix)| InterfaceAddress { address, prefix });
    let gateways = [
        addresses::GATEWAY_IPV4.into(),
        addresses::GATEWAY_IPV6.into(),
    ];
    (own.to_vec(), gateways.to_vec())
}

impl NetworkChoices {
    /// Decides which names a machine with these gateways knows.
    fn decide_names(&self, gateways: &[IpAddr]) -> Result<NameChoices, NetworkError> {
        let mut names = self.names.clone();
        for host in &self.hosts {
            names.hosts.extend(host.entries(gateways)?);
        }
        Ok(names)
    }

    /// Decides the network of a machine with a gateway of its own.
    fn decide_user(&self, host_loopback: bool) -> Result<Connection, NetworkError> {
        let typed = [
            (!self.addresses.is_empty(), "--ip"),
            (!self.gateways.is_empty(), "--gateway"),
        ];
        if let Some((_, flag)) = typed.iter().find(|(is_there, _)| *is_there) {
            return Err(NetworkError::OfOthers(flag));
        }
        self.check_no_alias()?;
        let published = decide_ports(&self.published)?;
        Ok(Connection::User {
            policy: Policy {
                host_loopback,
                ..self.policy.clone()
            },
            published,
        })
    }

    /// Decides the network of a machine that is on one of the host's.
    fn decide_bridge(&self, network: bridge::NetworkName) -> Result<Connection, NetworkError> {
        let typed = [
            (!self.gateways.is_empty(), "--gateway"),
            (self.policy != Policy::default(), "--network-allow"),
        ];
        if let Some((_, flag)) = typed.iter().find(|(is_there, _)| *is_there) {
            return Err(NetworkError::OfOthersThan(flag, network.to_string()));
        }
        let addresses = self.addresses.iter().map(|typed| match typed.prefix {
            None => Ok(typed.address),
            Some(_) => Err(NetworkError::Prefix(typed.address)),
        });
        Ok(Connection::Bridge {
            addresses: addresses.collect::<Result<_, _>>()?,
            aliases: self.aliases.clone(),
            published: decide_ports(&self.published)?,
            network,
        })
    }

    /// Refuses what only a network of the host's can have.
    fn check_no_alias(&self) -> Result<(), NetworkError> {
        match self.aliases.is_empty() {
            true => Ok(()),
            false => Err(NetworkError::NotOfBridge("--network-alias")),
        }
    }

    /// Refuses what only a gateway of the machine's own can do.
    fn check_no_gateway(&self) -> Result<(), NetworkError> {
        let typed = [
            (!self.published.is_empty(), "--publish"),
            (self.policy != Policy::default(), "--network-allow"),
        ];
        match typed.iter().find(|(is_there, _)| *is_there) {
            Some((_, flag)) => Err(NetworkError::NotOfUser(flag)),
            None => Ok(()),
        }
    }

    /// Refuses what only an interface can have.
    fn check_nothing_else(&self) -> Result<(), NetworkError> {
        self.check_no_gateway()?;
        self.check_no_alias()?;
        let typed = [
            (self.mac.is_some(), "--mac-address"),
            (!self.addresses.is_empty(), "--ip"),
            (!self.gateways.is_empty(), "--gateway"),
            (self.rates != TypedRates::default(), "--net-rate"),
        ];
        match typed.iter().find(|(is_there, _)| *is_there) {
            Some((_, flag)) => Err(NetworkError::Without(flag)),
            None => Ok(()),
        }
    }
}

impl DecidedInterface {
    fn open(&self, host: Host<'_>, names: &NameChoices) -> Result<OpenNetwork, NetworkError> {
        let mut addresses = self.addresses.clone();
        let mut gateways = self.gateways.clone();
        let mut resolvers = Vec::new();
        let (link, mtu, offloads, planned) = match &self.connection {
            Connection::Tap(name) => {
                let tap = open_tap(name)?;
                let mtu = tap.mtu();
                (MachineLink::Tap(tap), mtu, Offloads::ALL, None)
            }
            Connection::User { policy, published } => {
                let (device, gateway) = self.plan_gateway(policy, published)?;
                resolvers = vec![
                    addresses::RESOLVER_IPV4.into(),
                    addresses::RESOLVER_IPV6.into(),
                ];
                let InterfaceShape { mtu, offloads } = SHAPE_OF_USER;
                let link = MachineLink::Socket(device);
                (link, mtu, offloads, Some(Planned::Gateway(gateway)))
            }
            Connection::Bridge {
                network,
                addresses: wanted,
                aliases,
                published,
            } => {
                let joining = Joining {
                    machine: host.machine.clone(),
                    mac: self.mac,
                    addresses: wanted.clone(),
                    aliases: aliases.clone(),
                    published: published.clone(),
                    servers: names.servers.clone(),
                };
                let joined = host.networks.join(network, &joining)?;
                (addresses, gateways) = (joined.addresses, joined.gateways);
                resolvers.extend(joined.resolver);
                let planned = Planned::Member(Box::new(joined.membership));
                let mtu = joined.tap.mtu();
                (
                    MachineLink::Tap(joined.tap),
                    mtu,
                    Offloads::ALL,
                    Some(planned),
                )
            }
        };
        let rate = |bytes_a_second: u64| Rate { bytes_a_second };
        Ok(OpenNetwork {
            machine: MachineNetwork {
                interface: Interface {
                    mac: self.mac,
                    mtu,
                    offloads,
                },
                link,
                limits: RateLimits {
                    receive: self.receive_rate.map(rate),
                    transmit: self.transmit_rate.map(rate),
                },
            },
            agent: protocol::Network {
                mac: self.mac.bytes(),
                mtu,
                addresses,
                gateways,
                neighbours: Vec::new(),
                is_quiet: matches!(self.connection, Connection::User { .. }),
            },
            planned,
            resolvers,
        })
    }

    /// Makes the wire to a gateway, and opens the ports that it publishes. The device's end comes first.
    fn plan_gateway(
        &self,
        policy: &Policy,
        published: &[PublishedPort],
    ) -> Result<(OwnedFd, PlannedGateway), NetworkError> {
        let (device, wire) = gateway::wire()?;
        let mut configuration = Configuration {
            guest_mac: self.mac.bytes(),
            policy: policy.clone(),
            published: Vec::new(),
        };
        let mut sockets = Vec::new();
        for port in published {
            for socket in port.open()? {
                sockets.push(socket);
                configuration.published.push(Published {
                    transport: port.transport,
                    guest_port: port.port,
                });
            }
        }
        let planned = PlannedGateway {
            configuration,
            wire,
            sockets,
        };
        Ok((device, planned))
    }
}

/// Opens a tap, and waits a moment for one that is taken: the machine that had it may just have ended.
fn open_tap(name: &str) -> Result<Tap, TapError> {
    let deadline = Instant::now() + TAP_PATIENCE;
    loop {
        match Tap::open(name) {
            Err(TapError::InUse(_)) if Instant::now() < deadline => thread::sleep(TAP_PAUSE),
            opened => return opened,
        }
    }
}

/// Refuses two addresses of one family.
fn only_one<T>(
    typed: &[T],
    address: impl Fn(&T) -> IpAddr,
    what: &'static str,
) -> Result<(), NetworkError> {
    let of_ipv4 = typed.iter().filter(|it| address(it).is_ipv4()).count();
    if of_ipv4 > 1 || typed.len() - of_ipv4 > 1 {
        return Err(NetworkError::Twice(what));
    }
    Ok(())
}

/// Whether an address is on the network of the interface's.
fn is_beside(interface: InterfaceAddress, other: IpAddr) -> bool {
    let (own, other, bits) = match (interface.address, other) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            (u128::from(u32::from(own)), u32::from(other).into(), 32)
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => (u128::from(own), u128::from(other), 128),
        _ => return false,
    };
    let shift = u32::saturating_sub(bits, interface.prefix.into());
    own.checked_shr(shift).unwrap_or(0) == other.checked_shr(shift).unwrap_or(0)
}

fn random() -> io::Result<[u8; 6]> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes)
}
