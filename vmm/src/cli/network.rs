//! Flags of `vmm run` about the machine's network.

use std::net::IpAddr;

use clap::Args;

use crate::network::{
    HostEntry, NameChoices, NetworkChoices, TypedAddress, TypedMac, TypedNetwork, TypedRates,
};

/// What the machine is connected to, and which names it knows.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// What the machine is connected to: none, or tap=NAME, a tap of the host's [default: none]
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<TypedNetwork>,
    /// Ethernet address of the machine; one is made up if not given
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<TypedMac>,
    /// IPv4 address of the machine, with the length of its network's prefix, as in 192.168.5.2/24
    #[arg(long, value_name = "ADDRESS/BITS", value_parser = TypedAddress::of_ipv4)]
    ip: Option<TypedAddress>,
    /// The same for IPv6
    #[arg(long, value_name = "ADDRESS/BITS", value_parser = TypedAddress::of_ipv6)]
    ip6: Option<TypedAddress>,
    /// Address by which the machine reaches all others; may be given for IPv4 and IPv6
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<IpAddr>,
    /// Ask this server for names, in place of those that the host asks
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Look for short names in this domain; . for none
    #[arg(long, value_name = "DOMAIN", value_parser = parse_word)]
    dns_search: Vec<String>,
    /// Option of resolv.conf(5)
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION", value_parser = parse_word)]
    dns_option: Vec<String>,
    /// A name that the machine knows
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<HostEntry>,
    /// Move no more than so many bytes a second: SIZE, or in=SIZE,out=SIZE
    #[arg(long, value_name = "RATE")]
    net_rate: Option<TypedRates>,
}

impl NetworkArgs {
    /// All that was typed.
    #[must_use]
    pub fn choices(&self) -> NetworkChoices {
        NetworkChoices {
            network: self.network.clone().unwrap_or_default(),
            mac: self.mac_address,
            addresses: self.ip.into_iter().chain(self.ip6).collect(),
            gateways: self.gateway.clone(),
            rates: self.net_rate.unwrap_or_default(),
            names: NameChoices {
                servers: self.dns.clone(),
                search: self.dns_search.clone(),
                options: self.dns_option.clone(),
                hosts: self.add_host.clone(),
            },
        }
    }
}

/// A word of resolv.conf(5).
fn parse_word(text: &str) -> Result<String, String> {
    match NameChoices::is_word(text) {
        true => Ok(text.to_owned()),
        false => Err("it is to be one word".to_owned()),
    }
}
