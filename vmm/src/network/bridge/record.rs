//! What a network was made with, and who is on it: `NAME.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::Path;

use devices::virtio::net::MacAddress;
use protocol::InterfaceAddress;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::name::NetworkName;
use super::subnet::Subnet;
use crate::network::PublishedPort;
use crate::state::{MachineId, Timestamp};

/// The format that this program reads and writes.
const FORMAT: u32 = 1;
/// More is no record.
const MAX_BYTES: u64 = 64 << 20;
/// How the name of a record begins that is being written.
const NEW: &str = ".new-";
/// What the name of a record ends with.
pub(super) const EXTENSION: &str = ".json";

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub(super) format: u32,
    /// Its id, as machines have them.
    pub id: MachineId,
    /// Its name.
    pub name: NetworkName,
    /// When it was made.
    pub created: Timestamp,
    /// What a person wrote on it.
    pub labels: BTreeMap<String, String>,
    /// The options of its driver, as they were typed.
    pub options: BTreeMap<String, String>,
    /// Its addresses: of IPv4, and perhaps of IPv6.
    pub pools: Vec<Pool>,
    /// Whether nothing leads out of it.
    pub internal: bool,
    /// The host's interface that is its bridge.
    pub bridge: String,
    /// The longest packet, in bytes.
    pub mtu: u16,
    /// Whether the bridge was made once, on this host.
    pub is_up: bool,
    /// Who is on it.
    pub leases: BTreeMap<MachineId, Lease>,
}

/// Addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// All of them.
    pub subnet: Subnet,
    /// The host's own.
    pub gateway: IpAddr,
    /// From which machines get theirs, if not from all.
    pub range: Option<Subnet>,
}

/// The place of a machine on a network, while it runs. It holds for as long as its tap is there, which goes with the VM process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The machine's name, once it is known.
    pub name: Option<String>,
    /// Other names of it.
    pub aliases: Vec<String>,
    /// The host's interface.
    pub tap: String,
    /// The machine's Ethernet address.
    pub mac: MacAddress,
    /// The machine's addresses.
    pub addresses: Vec<InterfaceAddress>,
    /// Where on the gateway's address its questions for names are answered.
    pub resolver_port: u16,
    /// Ports that are published.
    pub published: Vec<PublishedPort>,
}

impl Lease {
    /// Its address of one family.
    #[must_use]
    pub fn address(&self, is_ipv4: bool) -> Option<InterfaceAddress> {
        let mut addresses = self.addresses.iter().copied();
        addresses.find(|it| it.address.is_ipv4() == is_ipv4)
    }

    /// Whether it is called that, in small letters, and the machine has this id.
    #[must_use]
    pub fn is_called(&self, id: &MachineId, name: &str) -> bool {
        let is_own = |own: &str| own.eq_ignore_ascii_case(name);
        self.name.as_deref().is_some_and(is_own)
            || id.short() == name
            || self.aliases.iter().any(|alias| is_own(alias))
    }
}

/// What is wrong with the record of a network.
#[derive(Debug, Error)]
pub enum RecordFault {
    /// There is none.
    #[error("it is not there")]
    None,
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is none.
    #[error("it makes no sense")]
    NotARecord(#[source] serde_json::Error),
    /// Another version's.
    #[error("it has format {0}, and this vmm knows {FORMAT}")]
    Format(u32),
    /// Another network's.
    #[error("it is that of '{0}'")]
    OtherName(NetworkName),
}

impl NetworkRecord {
    pub(super) const FORMAT: u32 = FORMAT;

    /// Its addresses of one family.
    #[must_use]
    pub fn pool(&self, is_ipv4: bool) -> Option<&Pool> {
        let mut pools = self.pools.iter();
        pools.find(|pool| pool.subnet.is_ipv4() == is_ipv4)
    }

    /// The name of its table of nftables.
    #[must_use]
    pub fn table(&self) -> String {
        format!("vmm_{}", self.id.short())
    }

    /// What is written on the interfaces that are made for it.
    #[must_use]
    pub fn mark(&self) -> String {
        format!("vmm network {}", self.id)
    }

    /// Whether a machine has the address, or the host.
    #[must_use]
    pub fn is_taken(&self, address: IpAddr) -> bool {
        let mut leased = self.leases.values().flat_map(|lease| &lease.addresses);
        leased.any(|it| it.address == address)
            || self.pools.iter().any(|pool| pool.gateway == address)
    }

    /// A free address of a pool; none if all are taken.
    #[must_use]
    pub fn free_address(&self, pool: &Pool) -> Option<IpAddr> {
        let range = pool.range.unwrap_or(pool.subnet);
        let mut addresses = range.addresses();
        addresses.find(|it| pool.subnet.may_have(*it) && !self.is_taken(*it))
    }

    /// Writes it into the directory of networks, whole or not at all.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        let mut file = tempfile::Builder::new()
            .prefix(NEW)
            .tempfile_in(directory)?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(directory.join(file_name(&self.name)))?;
        File::open(directory)?.sync_all()
    }

    /// Reads that of the network with this name.
    pub(super) fn read(directory: &Path, name: &NetworkName) -> Result<Self, RecordFault> {
        let file = match File::open(directory.join(file_name(name))) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(RecordFault::None),
            Err(error) => return Err(RecordFault::Read(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES)
            .read_to_end(&mut text)
            .map_err(RecordFault::Read)?;
        /// What every version has.
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let Versioned { format } =
            serde_json::from_slice(&text).map_err(RecordFault::NotARecord)?;
        if format != FORMAT {
            return Err(RecordFault::Format(format));
        }
        let record: Self = serde_json::from_slice(&text).map_err(RecordFault::NotARecord)?;
        match record.name == *name {
            true => Ok(record),
            false => Err(RecordFault::OtherName(record.name)),
        }
    }
}

/// The name of a network's record.
pub(super) fn file_name(name: &NetworkName) -> String {
    format!("{name}{EXTENSION}")
}
