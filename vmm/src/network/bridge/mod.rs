//! Networks on the host: a bridge that machines are on by taps, with addresses, names, a way out and published ports.
//!
//! ```text
//!   networks/
//!     .lock          held while a network or who is on it changes
//!     NAME.json      what it was made with, and the leases of the machines on it
//!
//!   guest ── tap (vmt-…) ── bridge (vmm-…, the gateway's addresses) ── the host's routes, rules of the network's own table
//!                                  └── the machine's monitor: names, ports from the host itself
//! ```
//!
//! Nobody keeps a network: there is no daemon. A machine that starts makes what is missing and puts its lease into the record; one that
//! ends takes it out. A tap goes with the process of its machine, whatever ends that, so a lease without its tap is over, and whoever
//! changes something next takes it away. The rules are a function of the record.

mod error;
mod links;
mod name;
mod record;
mod resolver;
mod rules;
mod service;
mod subnet;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::virtio::net::{MacAddress, Tap};
use protocol::InterfaceAddress;

pub use self::error::BridgeError;
pub use self::name::{NetworkName, NetworkNameError};
pub use self::record::{Lease, NetworkRecord, Pool, RecordFault};
pub use self::rules::RulesError;
pub use self::subnet::{Subnet, SubnetError};

use self::links::HostLink;
use self::resolver::Resolver;
use self::service::{RunningService, Service};
use super::PublishedPort;
use crate::dirs::create_private;
use crate::state::{MachineId, Timestamp};

/// The lock of all.
const LOCK: &str = ".lock";
/// Packets are as long as Ethernet has them, unless something else was typed.
const USUAL_MTU: u16 = 1500;
/// As many digits of an id as the name of an interface has room for behind its beginning (`IFNAMSIZ` in `include/uapi/linux/if.h`).
const NAME_DIGITS: usize = 11;
/// How the name of a bridge begins, and that of a tap.
const BRIDGE: &str = "vmm-";
const TAP: &str = "vmt-";

/// All networks of an account.
#[derive(Clone, Debug)]
pub struct Networks {
    directory: PathBuf,
}

/// A network in a list, and what is wrong with its record if something is.
pub type Listed = (NetworkName, Result<NetworkRecord, BridgeError>);

/// What a network is to be made with.
#[derive(Clone, Debug)]
pub struct NewNetwork {
    /// Its name.
    pub name: NetworkName,
    /// Its addresses; of IPv4, free ones are chosen if there are none.
    pub subnets: Vec<Subnet>,
    /// The host's own; otherwise the first.
    pub gateways: Vec<IpAddr>,
    /// From which of them machines get theirs.
    pub ranges: Vec<Subnet>,
    /// Whether it has IPv6, too.
    pub ipv6: bool,
    /// Whether nothing leads out of it.
    pub internal: bool,
    /// What a person wrote on it.
    pub labels: BTreeMap<String, String>,
    /// The options of its driver, as they were typed.
    pub options: BTreeMap<String, String>,
    /// The longest packet.
    pub mtu: Option<u16>,
    /// The name of its bridge.
    pub bridge: Option<String>,
}

/// What a machine is to have on a network.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Which machine.
    pub machine: MachineId,
    /// Its Ethernet address.
    pub mac: MacAddress,
    /// Addresses that it is to have.
    pub addresses: Vec<IpAddr>,
    /// Names beside its own.
    pub aliases: Vec<String>,
    /// Its ports that are published.
    pub published: Vec<PublishedPort>,
    /// Whom to ask for names, in place of those that the host asks.
    pub servers: Vec<IpAddr>,
}

/// The place of a machine on a network, with what is open for it.
#[derive(Debug)]
pub struct Joined {
    /// Its tap.
    pub tap: Tap,
    /// Its addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Where everything else is reached.
    pub gateways: Vec<IpAddr>,
    /// Where names are asked for.
    pub resolver: Option<IpAddr>,
    /// Its membership.
    pub membership: Membership,
}

/// The place of a machine on a network; it is given up when this is dropped.
#[derive(Debug)]
pub struct Membership {
    networks: Networks,
    network: NetworkName,
    machine: MachineId,
    service: Option<Service>,
    running: Option<RunningService>,
    /// The process that has it: one that is forked from that does not give it up.
    process: u32,
}

impl Networks {
    /// The networks in this directory, which is made with the first of them.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    fn lock(&self) -> Result<File, BridgeError> {
        create_private(&self.directory)?;
        let failed = |error| BridgeError::Records("lock", error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.directory.join(LOCK))
            .map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// The network of this name.
    ///
    /// # Errors
    ///
    /// [`BridgeError::None`], or what is wrong with it.
    pub fn read(&self, name: &NetworkName) -> Result<NetworkRecord, BridgeError> {
        NetworkRecord::read(&self.directory, name).map_err(|fault| match fault {
            RecordFault::None => BridgeError::None(name.to_string()),
            source => BridgeError::Damaged {
                name: name.clone(),
                source,
            },
        })
    }

    /// Finds a network by its name, its id, or the beginning of that.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and [`BridgeError::Ambiguous`].
    pub fn find(&self, typed: &str) -> Result<NetworkRecord, BridgeError> {
        let named = typed.parse().map(|name| self.read(&name));
        match named {
            Ok(Err(BridgeError::None(_))) | Err(_) => {}
            Ok(found) => return found,
        }
        let is_meant = |record: &NetworkRecord| record.id.as_str().starts_with(typed);
        let all = self
            .list()?
            .into_iter()
            .filter_map(|(_, record)| record.ok());
        let mut found = all.filter(|record| !typed.is_empty() && is_meant(record));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(BridgeError::Ambiguous(typed.to_owned())),
            (None, _) => Err(BridgeError::None(typed.to_owned())),
        }
    }

    /// Finds a network, with the machines that are on it now.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    pub fn find_current(&self, typed: &str) -> Result<NetworkRecord, BridgeError> {
        let mut record = self.find(typed)?;
        record.drop_leases(&all_links()?);
        Ok(record)
    }

    /// Lists all networks by their names, damaged ones, too.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, BridgeError> {
        let failed = |error| BridgeError::Records("list", error);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut names: Vec<NetworkName> = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let name = name
                .to_str()
                .and_then(|name| name.strip_suffix(record::EXTENSION));
            names.extend(name.and_then(|name| name.parse().ok()));
        }
        names.sort();
        let read = |name: NetworkName| {
            let record = self.read(&name);
            (name, record)
        };
        Ok(names.into_iter().map(read).collect())
    }

    /// Which state of a network's record is there: inode and time of change.
    fn version(&self, name: &NetworkName) -> Option<(u64, i64, i64)> {
        let file = fs::metadata(self.directory.join(record::file_name(name))).ok()?;
        Some((file.ino(), file.mtime(), file.mtime_nsec()))
    }

    fn write(&self, record: &NetworkRecord) -> Result<(), BridgeError> {
        let written = record.write(&self.directory);
        written.map_err(|error| BridgeError::Records("write", error))
    }

    /// Makes a network. The host's interfaces stay as they are until the first machine is on it.
    ///
    /// # Errors
    ///
    /// If there is one of its name, or its addresses are another's.
    pub fn create(&self, new: &NewNetwork) -> Result<NetworkRecord, BridgeError> {
        let _lock = self.lock()?;
        if !matches!(self.read(&new.name), Err(BridgeError::None(_))) {
            return Err(BridgeError::Exists(new.name.clone()));
        }
        let id = MachineId::random().map_err(BridgeError::Random)?;
        let others = self
            .list()?
            .into_iter()
            .filter_map(|(_, record)| record.ok());
        let pools = decide_pools(new, &others.collect::<Vec<_>>())?;
        let record = NetworkRecord {
            format: NetworkRecord::FORMAT,
            bridge: new
                .bridge
                .clone()
                .unwrap_or_else(|| interface_name(BRIDGE, &id)),
            id,
            name: new.name.clone(),
            created: Timestamp::now(),
            labels: new.labels.clone(),
            options: new.options.clone(),
            pools,
            internal: new.internal,
            mtu: new.mtu.unwrap_or(USUAL_MTU),
            is_up: false,
            leases: BTreeMap::new(),
        };
        self.write(&record)?;
        Ok(record)
    }

    /// Removes a network that no machine is on, with all that was made for it.
    ///
    /// # Errors
    ///
    /// [`BridgeError::InUse`], or what the host refuses.
    pub fn remove(&self, name: &NetworkName) -> Result<(), BridgeError> {
        let _lock = self.lock()?;
        let mut record = self.read(name)?;
        let links = all_links()?;
        record.drop_leases(&links);
        if !record.leases.is_empty() {
            let called = record.leases.iter();
            let called = called.map(|(id, lease)| match &lease.name {
                Some(name) => name.clone(),
                None => id.short().to_owned(),
            });
            return Err(BridgeError::InUse {
                name: name.clone(),
                machines: called.collect(),
            });
        }
        if record.is_up {
            rules::take_away(&record)?;
            if let Some(bridge) = links.iter().find(|link| record.owns(link)) {
                let removed = links::remove(bridge);
                removed.map_err(|error| {
                    BridgeError::Links("remove the network's bridge", error.into())
                })?;
            }
        }
        let removed = fs::remove_file(self.directory.join(record::file_name(name)));
        removed.map_err(|error| BridgeError::Records("remove", error))
    }

    /// Takes away what machines have left that were killed with their monitors. What it takes is the right to it.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    pub fn tidy(&self) -> Result<(), BridgeError> {
        let links = all_links()?;
        for (name, record) in self.list()? {
            let is_untidy = record.is_ok_and(|mut record| record.drop_leases(&links));
            if is_untidy {
                let _lock = self.lock()?;
                let mut record = self.read(&name)?;
                if record.drop_leases(&all_links()?) {
                    rules::put(&record)?;
                    self.write(&record)?;
                }
            }
        }
        Ok(())
    }

    /// The place that a machine has on a network now.
    #[must_use]
    pub fn lease(&self, name: &NetworkName, machine: &MachineId) -> Option<(NetworkRecord, Lease)> {
        let mut record = self.read(name).ok()?;
        record.drop_leases(&all_links().ok()?);
        let lease = record.leases.get(machine).cloned()?;
        Some((record, lease))
    }

    /// Has a machine be known by another name.
    ///
    /// # Errors
    ///
    /// If a record cannot be written.
    pub fn rename(&self, machine: &MachineId, name: &str) -> Result<(), BridgeError> {
        for (network, record) in self.list()? {
            if record.is_ok_and(|record| record.leases.contains_key(machine)) {
                self.name(&network, machine, name)?;
            }
        }
        Ok(())
    }

    fn name(
        &self,
        network: &NetworkName,
        machine: &MachineId,
        name: &str,
    ) -> Result<(), BridgeError> {
        let _lock = self.lock()?;
        let mut record = self.read(network)?;
        if let Some(lease) = record.leases.get_mut(machine) {
            lease.name = Some(name.to_owned());
            self.write(&record)?;
        }
        Ok(())
    }

    /// Puts a machine on a network: its bridge is there then, its tap, its lease, the rules and what it takes to serve it.
    ///
    /// # Errors
    ///
    /// What is taken already, or refused by the host. Nothing is left of it then but the bridge.
    pub fn join(&self, name: &NetworkName, joining: &Joining) -> Result<Joined, BridgeError> {
        let _lock = self.lock()?;
        let mut record = self.read(name)?;
        if record.internal && !joining.published.is_empty() {
            return Err(BridgeError::Internal(name.clone()));
        }
        record.drop_leases(&all_links()?);
        self.take_back(&mut record, &joining.machine)?;
        let addresses = record.decide_addresses(&joining.addresses)?;
        // First: without the right to it there is none to a bridge, and it goes by itself.
        let tap_name = interface_name(TAP, &joining.machine);
        let tap = Tap::make(&tap_name, record.mtu)?;
        let bridge = self.bridge(&mut record)?;
        attach(&tap_name, &bridge, &joining.machine, record.mtu)?;
        let (resolver, port) = self.resolver(&record, &addresses, joining)?;
        let lease = Lease {
            name: None,
            aliases: joining.aliases.clone(),
            tap: tap_name,
            mac: joining.mac,
            addresses: addresses.clone(),
            resolver_port: port,
            published: joining.published.clone(),
        };
        let sockets = open_ports(&joining.published)?;
        let service = Service::new(resolver, &lease, sockets).map_err(BridgeError::Serve)?;
        record.leases.insert(joining.machine.clone(), lease);
        self.write(&record)?;
        let membership = Membership {
            networks: self.clone(),
            network: name.clone(),
            machine: joining.machine.clone(),
            service: Some(service),
            running: None,
            process: std::process::id(),
        };
        if let Err(error) = rules::put(&record) {
            // The lock is held here.
            membership.forget();
            record.leases.remove(&joining.machine);
            self.write(&record)?;
            return Err(error.into());
        }
        let gateways = record.pools.iter().map(|pool| pool.gateway);
        Ok(Joined {
            tap,
            addresses,
            gateways: gateways.filter(|_| !record.internal).collect(),
            resolver: record.pool(true).map(|pool| pool.gateway),
            membership,
        })
    }

    /// Ends what an earlier start of a machine has left.
    fn take_back(
        &self,
        record: &mut NetworkRecord,
        machine: &MachineId,
    ) -> Result<(), BridgeError> {
        if let Some(lease) = record.leases.remove(machine) {
            remove_tap(&lease, machine)?;
        }
        Ok(())
    }

    /// The bridge of a network, which is made if it is not there.
    fn bridge(&self, record: &mut NetworkRecord) -> Result<HostLink, BridgeError> {
        let failed = |error: rustix::io::Errno| BridgeError::Links("make a bridge", error.into());
        let found = all_links()?;
        let found = found.into_iter().find(|link| link.name == record.bridge);
        let bridge = match found {
            Some(bridge) if record.owns(&bridge) => bridge,
            Some(other) => return Err(BridgeError::Foreign(other.name, record.name.clone())),
            None => {
                // Before: what was made is removed with the network.
                if !record.is_up {
                    record.is_up = true;
                    self.write(record)?;
                }
                let own = record.pools.iter();
                let own: Vec<_> = own.map(|it| (it.gateway, it.subnet.prefix())).collect();
                let (name, mark, mtu) = (&record.bridge, record.mark(), record.mtu);
                links::make_bridge(name, &mark, mtu, &own).map_err(failed)?
            }
        };
        if !record.internal {
            for pool in &record.pools {
                forward(pool.subnet.is_ipv4())?;
            }
        }
        Ok(bridge)
    }

    fn resolver(
        &self,
        record: &NetworkRecord,
        addresses: &[InterfaceAddress],
        joining: &Joining,
    ) -> Result<(Resolver, u16), BridgeError> {
        let nobody = || BridgeError::Serve(io::ErrorKind::AddrNotAvailable.into());
        let gateway = record.pool(true).ok_or_else(nobody)?.gateway;
        let own = addresses.iter().find(|it| it.address.is_ipv4());
        let own = own.ok_or_else(nobody)?.address;
        let servers = joining.servers.clone();
        Resolver::open(gateway, own, self, &record.name, servers).map_err(BridgeError::Serve)
    }

    /// Takes a machine off a network.
    fn leave(&self, name: &NetworkName, machine: &MachineId) -> Result<(), BridgeError> {
        let _lock = self.lock()?;
        let mut record = match self.read(name) {
            Err(BridgeError::None(_)) => return Ok(()),
            record => record?,
        };
        let Some(lease) = record.leases.remove(machine) else {
            return Ok(());
        };
        remove_tap(&lease, machine)?;
        record.drop_leases(&all_links()?);
        rules::put(&record)?;
        self.write(&record)
    }
}

impl Membership {
    /// Says what the machine is called, and begins to serve it. Call it when the monitor has forked for the last time before the
    /// machine's end.
    ///
    /// # Errors
    ///
    /// If the record cannot be written, or the host gives no thread.
    pub fn begin(&mut self, name: &str) -> Result<(), BridgeError> {
        self.networks.name(&self.network, &self.machine, name)?;
        if let Some(service) = self.service.take() {
            self.running = Some(service.start().map_err(BridgeError::Serve)?);
        }
        Ok(())
    }

    /// Leaves the lease to somebody else.
    fn forget(mut self) {
        self.process = 0;
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        self.running.take();
        self.service.take();
        if let Err(error) = self.networks.leave(&self.network, &self.machine) {
            tracing::warn!(
                "what was made for the machine on network {} is removed by the next one: {}",
                self.network,
                crate::report::chain(&error)
            );
        }
    }
}

impl NetworkRecord {
    /// Drops the leases of machines that are gone; says whether there were any.
    fn drop_leases(&mut self, links: &[HostLink]) -> bool {
        let before = self.leases.len();
        self.leases.retain(|machine, lease| {
            let mark = machine_mark(machine);
            let is_its = |link: &HostLink| link.name == lease.tap && link.mark == mark;
            links.iter().any(is_its)
        });
        self.leases.len() < before
    }

    /// Whether an interface was made for it.
    fn owns(&self, link: &HostLink) -> bool {
        link.name == self.bridge && link.mark == self.mark()
    }

    /// The addresses of another machine: those that were typed, and free ones.
    fn decide_addresses(&self, typed: &[IpAddr]) -> Result<Vec<InterfaceAddress>, BridgeError> {
        let name = || self.name.clone();
        for address in typed {
            let mut pools = self.pools.iter();
            if !pools.any(|pool| pool.subnet.may_have(*address)) {
                return Err(BridgeError::AddressElsewhere(*address, name()));
            }
            if self.is_taken(*address) {
                return Err(BridgeError::AddressTaken(*address, name()));
            }
        }
        let decided = self.pools.iter().map(|pool| {
            let mut typed = typed.iter().copied();
            let typed = typed.find(|address| pool.subnet.contains(*address));
            let address = typed.or_else(|| self.free_address(pool));
            let exhausted = || BridgeError::Exhausted(pool.range.unwrap_or(pool.subnet), name());
            Ok(InterfaceAddress {
                address: address.ok_or_else(exhausted)?,
                prefix: pool.subnet.prefix(),
            })
        });
        decided.collect()
    }
}

/// Decides which addresses a new network has.
fn decide_pools(new: &NewNetwork, others: &[NetworkRecord]) -> Result<Vec<Pool>, BridgeError> {
    let overlapping = |subnet: &Subnet| {
        let mut pools = others.iter().flat_map(|other| {
            let pools = other.pools.iter();
            pools.map(move |pool| (other, pool.subnet))
        });
        pools.find(|(_, pool)| pool.overlaps(subnet))
    };
    for (at, subnet) in new.subnets.iter().enumerate() {
        let first = subnet.first();
        if first.is_loopback() || first.is_multicast() || first.is_unspecified() {
            return Err(BridgeError::Unusable(*subnet));
        }
        if let Some((other, pool)) = overlapping(subnet) {
            return Err(BridgeError::Overlaps(*subnet, pool, other.name.clone()));
        }
        let mut before = new.subnets.iter().take(at);
        if before.any(|it| it.is_ipv4() == subnet.is_ipv4()) {
            return Err(BridgeError::Another(*subnet));
        }
    }
    let typed = |is_ipv4: bool| {
        let mut subnets = new.subnets.iter().copied();
        subnets.find(|subnet| subnet.is_ipv4() == is_ipv4)
    };
    let mut subnets = vec![match typed(true) {
        Some(subnet) => subnet,
        None => {
            let routes = links::routes()
                .map_err(|error| BridgeError::Links("list the host's routes", error.into()))?;
            let is_free = |subnet: &Subnet| {
                overlapping(subnet).is_none() && !routes.iter().any(|route| route.overlaps(subnet))
            };
            subnet::usual().find(is_free).ok_or(BridgeError::NoPool)?
        }
    }];
    match typed(false) {
        Some(subnet) => subnets.push(subnet),
        None if new.ipv6 => subnets.push(random_ipv6().map_err(BridgeError::Random)?),
        None => {}
    }
    let is_beside = |address: &IpAddr| subnets.iter().any(|subnet| subnet.may_have(*address));
    if let Some(elsewhere) = new.gateways.iter().find(|gateway| !is_beside(gateway)) {
        return Err(BridgeError::GatewayElsewhere(*elsewhere));
    }
    let is_within = |range: &Subnet| subnets.iter().any(|subnet| subnet.includes(range));
    if let Some(elsewhere) = new.ranges.iter().find(|range| !is_within(range)) {
        return Err(BridgeError::RangeElsewhere(*elsewhere));
    }
    let decided = subnets.into_iter().map(|subnet| {
        let mut typed = new.gateways.iter().copied();
        let gateway = typed.find(|gateway| subnet.contains(*gateway));
        let mut usual = subnet.addresses();
        let gateway = gateway.or_else(|| usual.find(|address| subnet.may_have(*address)));
        let mut ranges = new.ranges.iter().copied();
        Ok(Pool {
            gateway: gateway.ok_or(BridgeError::Unusable(subnet))?,
            range: ranges.find(|range| subnet.includes(range)),
            subnet,
        })
    });
    decided.collect()
}

/// Addresses that nobody else has (RFC 4193, section 3.2).
fn random_ipv6() -> io::Result<Subnet> {
    let [a, b, c, d, e, _] = super::random()?;
    let first = Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    Subnet::around(first.into(), 64).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The name of an interface for something with this id.
fn interface_name(beginning: &str, id: &MachineId) -> String {
    let digits = id.as_str().get(..NAME_DIGITS).unwrap_or_default();
    format!("{beginning}{digits}")
}

/// What is written on the tap of a machine.
fn machine_mark(machine: &MachineId) -> String {
    format!("vmm machine {machine}")
}

fn all_links() -> Result<Vec<HostLink>, BridgeError> {
    let links = links::all();
    links.map_err(|error| BridgeError::Links("list the host's interfaces", error.into()))
}

/// Puts a machine's tap on a bridge.
fn attach(name: &str, bridge: &HostLink, machine: &MachineId, mtu: u16) -> Result<(), BridgeError> {
    let attach = || {
        let tap = links::find(name)?.ok_or(rustix::io::Errno::NODEV)?;
        links::attach(&tap, bridge, &machine_mark(machine), mtu)
    };
    attach().map_err(|error| BridgeError::Links("put a tap on the network's bridge", error.into()))
}

/// Removes a tap, if it is the machine's. Its device finds that the link is down.
fn remove_tap(lease: &Lease, machine: &MachineId) -> Result<(), BridgeError> {
    let mark = machine_mark(machine);
    let links = all_links()?;
    let is_its = |link: &&HostLink| link.name == lease.tap && link.mark == mark;
    match links.iter().find(is_its).map(links::remove) {
        // Its machine has just ended.
        None | Some(Ok(()) | Err(rustix::io::Errno::NODEV)) => Ok(()),
        Some(Err(error)) => Err(BridgeError::Links("remove a machine's tap", error.into())),
    }
}

/// Opens the sockets of published ports.
fn open_ports(published: &[PublishedPort]) -> Result<Vec<(PublishedPort, OwnedFd)>, BridgeError> {
    let mut sockets = Vec::new();
    for port in published {
        let open = port.open()?;
        sockets.extend(open.into_iter().map(|socket| (*port, socket)));
    }
    Ok(sockets)
}

/// Has the host forward packets of a family, and says so if it did not.
fn forward(is_ipv4: bool) -> Result<(), BridgeError> {
    let path = match is_ipv4 {
        true => "/proc/sys/net/ipv4/ip_forward",
        false => "/proc/sys/net/ipv6/conf/all/forwarding",
    };
    let failed = |source| BridgeError::Forwarding { path, source };
    if fs::read_to_string(path).map_err(failed)?.trim() != "0" {
        return Ok(());
    }
    fs::write(path, "1").map_err(failed)?;
    tracing::warn!(
        "the host forwards packets from now on, as a network with a way out needs it: {path} is 1"
    );
    Ok(())
}
