//! `vmm network`.

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::Later;
use super::life::parse_label;
use crate::network::bridge::{NetworkName, Subnet};

/// Commands of `vmm network`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network, and print its id
    Create(Later<NetworkCreateArgs>),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Later<NetworkListArgs>),
    /// Show all that is known of networks, and which machines are on them
    Inspect(Later<NetworkInspectArgs>),
    /// Remove networks that no machine is on, with their bridges and rules
    #[command(visible_alias = "remove")]
    Rm(Later<NetworkRmArgs>),
    /// Remove all networks that no machine is on
    Prune(Later<NetworkPruneArgs>),
}

/// Arguments of `vmm network create`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A network is a bridge on this host, with rules of nftables of its own. It is made when the first machine is on it, which takes
root or the capability CAP_NET_ADMIN, and stays until the network is removed.

Examples:
  vmm network create net
  vmm network create --subnet 10.20.0.0/16 --gateway 10.20.0.1 --ip-range 10.20.5.0/24 net
  vmm network create --internal --ipv6 --opt com.docker.network.driver.mtu=9000 net")]
pub struct NetworkCreateArgs {
    /// The driver: bridge is the only one
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge", value_parser = ["bridge"])]
    pub driver: String,
    /// Its addresses, as in 10.20.0.0/16; one of IPv4 and one of IPv6 [default: of IPv4, free ones]
    #[arg(long, value_name = "CIDR")]
    pub subnet: Vec<Subnet>,
    /// The host's own address in a subnet [default: the first one]
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Give machines addresses of this part of a subnet
    #[arg(long, value_name = "CIDR")]
    pub ip_range: Vec<Subnet>,
    /// Have addresses of IPv6, too
    #[arg(long)]
    pub ipv6: bool,
    /// Let nothing lead out of it
    #[arg(long)]
    pub internal: bool,
    /// Write something on it
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// com.docker.network.driver.mtu=BYTES, the longest packet, or com.docker.network.bridge.name=NAME, the host's interface
    #[arg(short, long = "opt", value_name = "OPTION", value_parser = parse_option)]
    pub options: Vec<NetworkOption>,
    /// Its name
    #[arg(value_name = "NETWORK")]
    pub name: NetworkName,
}

/// Arguments of `vmm network ls`.
#[derive(Debug, Clone, Args)]
pub struct NetworkListArgs {
    /// List only those: name=PART, id=BEGINNING, label=KEY[=VALUE], driver=bridge, dangling=true|false
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// How to print it: table, json, a template as in '{{.Name}} {{.Internal}}', or a table of one
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// The same as --format json, in one list
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Print whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `vmm network inspect`.
#[derive(Debug, Clone, Args)]
pub struct NetworkInspectArgs {
    /// How to print it: json, or a template as in '{{.Internal}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// Arguments of `vmm network rm`.
#[derive(Debug, Clone, Args)]
pub struct NetworkRmArgs {
    /// Do not mind if there is no such network
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "NETWORK", required = true)]
    pub networks: Vec<String>,
}

/// Arguments of `vmm network prune`.
#[derive(Debug, Clone, Args)]
pub struct NetworkPruneArgs {
    /// Remove only those: label=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// What `--opt` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkOption {
    /// The longest packet, in bytes.
    Mtu(u16),
    /// The name of the bridge.
    Bridge(String),
}

impl NetworkOption {
    const MTU: &str = "com.docker.network.driver.mtu";
    const BRIDGE: &str = "com.docker.network.bridge.name";

    /// As docker has it: its name and its value.
    #[must_use]
    pub fn pair(&self) -> (String, String) {
        match self {
            Self::Mtu(mtu) => (Self::MTU.to_owned(), mtu.to_string()),
            Self::Bridge(name) => (Self::BRIDGE.to_owned(), name.clone()),
        }
    }
}

/// The value of `--opt`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum OptionError {
    #[error("'{0}' is not known: there are {mtu}=BYTES and {bridge}=NAME", mtu = NetworkOption::MTU, bridge = NetworkOption::BRIDGE)]
    Unknown(String),
    #[error("'{0}' is no length of packets: it is 1280 to 65535 bytes")]
    Mtu(String),
    #[error(
        "'{0}' is no name for an interface: it takes up to 15 letters, digits, '_', '.' and '-'"
    )]
    Name(String),
}

fn parse_option(text: &str) -> Result<NetworkOption, OptionError> {
    /// With less there is no IPv6 (RFC 8200, section 5).
    const LEAST: u16 = 1280;
    /// `IFNAMSIZ` in `include/uapi/linux/if.h`, without the zero at its end.
    const MOST_NAME_BYTES: usize = 15;
    match text.split_once('=') {
        Some((NetworkOption::MTU, mtu)) => {
            let bytes = mtu.parse().ok().filter(|bytes| *bytes >= LEAST);
            let bytes = bytes.ok_or_else(|| OptionError::Mtu(mtu.to_owned()))?;
            Ok(NetworkOption::Mtu(bytes))
        }
        Some((NetworkOption::BRIDGE, name)) => {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            let is_name = (1..=MOST_NAME_BYTES).contains(&name.len())
                && name.bytes().all(is_plain)
                && !name.starts_with(['.', '-']);
            match is_name {
                true => Ok(NetworkOption::Bridge(name.to_owned())),
                false => Err(OptionError::Name(name.to_owned())),
            }
        }
        _ => Err(OptionError::Unknown(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_one_of_two() {
        let mtu = parse_option("com.docker.network.driver.mtu=9000");
        assert_eq!(mtu, Ok(NetworkOption::Mtu(9000)));
        let bridge = parse_option("com.docker.network.bridge.name=br-x");
        assert_eq!(bridge, Ok(NetworkOption::Bridge("br-x".to_owned())));
        for wrong in [
            "com.docker.network.driver.mtu=100",
            "com.docker.network.driver.mtu=x",
            "com.docker.network.bridge.name=a\" drop",
            "com.docker.network.bridge.name=",
            "com.docker.network.bridge.name=sixteen-letters-",
            "mtu=1500",
            "",
        ] {
            assert!(parse_option(wrong).is_err(), "{wrong}");
        }
    }
}
