//! The files by which programs in a machine know names: hosts(5), hostname(5) and resolv.conf(5), with docker's contents.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::slice;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::NetworkError;

/// Where the host says whom it asks for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As much of that as is read.
const RESOLV_CONF_BYTES: u64 = 64 << 10;

/// What docker's hosts(5) begins with.
const USUAL_HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// What was chosen about names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NameChoices {
    /// Whom to ask, in place of whom the host asks.
    pub servers: Vec<IpAddr>,
    /// Domains in which a short name is looked for; a single `.` is none.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
    /// Names that are known.
    pub hosts: Vec<HostEntry>,
}

/// A name and its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for HostEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.name, self.address)
    }
}

/// A name and its address, as they are typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedHost {
    /// The name.
    pub name: String,
    /// The address; none for docker's `host-gateway`, that of the machine's gateway.
    pub address: Option<IpAddr>,
}

/// A text that is no name with an address.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no name with an address, such as db:192.168.5.3 or host:host-gateway")]
pub struct TypedHostError(String);

impl FromStr for TypedHost {
    type Err = TypedHostError;

    /// As with docker, the name ends at the first `=` or `:`, and brackets may be around an address.
    fn from_str(text: &str) -> Result<Self, TypedHostError> {
        /// What stands for the gateway's address.
        const GATEWAY: &str = "host-gateway";
        let malformed = || TypedHostError(text.to_owned());
        let (name, address) = text.split_once(['=', ':']).ok_or_else(malformed)?;
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(address);
        let address = match address == GATEWAY {
            true => None,
            false => Some(bare.parse().map_err(|_| malformed())?),
        };
        if !NameChoices::is_word(name) {
            return Err(malformed());
        }
        Ok(Self {
            name: name.to_owned(),
            address,
        })
    }
}

impl TypedHost {
    /// The entries that it stands for in a machine with these gateways.
    pub(super) fn entries(&self, gateways: &[IpAddr]) -> Result<Vec<HostEntry>, NetworkError> {
        let addresses = match &self.address {
            Some(address) => slice::from_ref(address),
            None if gateways.is_empty() => {
                return Err(NetworkError::NoHostGateway(self.name.clone()));
            }
            None => gateways,
        };
        let entry = |address: &IpAddr| HostEntry {
            name: self.name.clone(),
            address: *address,
        };
        Ok(addresses.iter().map(entry).collect())
    }
}

impl NameChoices {
    /// Whether a text can stand in such a file: it makes no second word and no second line.
    #[must_use]
    pub fn is_word(text: &str) -> bool {
        !text.is_empty()
            && text
                .chars()
                .all(|it| !it.is_whitespace() && !it.is_control())
    }

    /// Whether nothing was chosen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The files of a machine with this host name and these addresses.
    ///
    /// # Errors
    ///
    /// If the host's resolv.conf cannot be read.
    pub(super) fn files(
        &self,
        hostname: &str,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<protocol::Names, NetworkError> {
        let mut hosts = USUAL_HOSTS.to_owned();
        for HostEntry { name, address } in &self.hosts {
            // Writing to a string cannot fail.
            let _ = writeln!(hosts, "{address}\t{name}");
        }
        for address in addresses {
            let _ = writeln!(hosts, "{address}\t{hostname}");
        }
        let of_host = match File::open(RESOLV_CONF) {
            Ok(file) => read(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(unreadable(error)),
        };
        Ok(protocol::Names {
            hosts,
            hostname: format!("{hostname}\n"),
            resolv_conf: self.resolv_conf(&of_host),
        })
    }

    /// Takes from the host what was not chosen. A server on the host's loopback is none that a machine could reach.
    pub(super) fn resolv_conf(&self, of_host: &str) -> String {
        let words = |keyword: &str| {
            let lines = of_host.lines().rev();
            let mut values = lines.filter_map(|line| line.trim().strip_prefix(keyword));
            let last = values.find(|rest| rest.starts_with([' ', '\t']));
            let words = last.unwrap_or_default().split_whitespace();
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let servers_of_host = of_host.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let is_server = words.next() == Some("nameserver");
            let address: IpAddr = words.next().filter(|_| is_server)?.parse().ok()?;
            (!address.is_loopback()).then_some(address)
        });
        let servers: Vec<IpAddr> = match self.servers.is_empty() {
            true => servers_of_host.collect(),
            false => self.servers.clone(),
        };
        let search = match self.search.is_empty() {
            true => words("search"),
            false => self.search.clone(),
        };
        let options = match self.options.is_empty() {
            true => words("options"),
            false => self.options.clone(),
        };
        let mut text = String::new();
        for server in servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        if !search.is_empty() && search != ["."] {
            let _ = writeln!(text, "search {}", search.join(" "));
        }
        if !options.is_empty() {
            let _ = writeln!(text, "options {}", options.join(" "));
        }
        text
    }
}

fn read(file: File) -> Result<String, NetworkError> {
    let mut bytes = Vec::new();
    file.take(RESOLV_CONF_BYTES)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn unreadable(source: io::Error) -> NetworkError {
    NetworkError::Resolvers {
        path: RESOLV_CONF,
        source,
    }
}
