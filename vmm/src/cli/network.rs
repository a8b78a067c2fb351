//! Flags of `vmm run` about the machine's network.

use std::net::IpAddr;

use clap::Args;

use crate::network::gateway::MOST_PUBLISHED;
use crate::network::gateway::policy::{Destinations, Policy, Verdict};
use crate::network::{
    NameChoices, NetworkChoices, TypedAddress, TypedHost, TypedMac, TypedNetwork, TypedPorts,
    TypedPublish, TypedRates,
};

/// What the machine is connected to, and which names it knows.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkArgs {
    /// What the machine is connected to: none; user, a gateway of its own; user:host-loopback, the same, and the gateway's address is the host's loopback; tap=NAME, a tap of the host's; or NAME, one that `vmm network create` has made [default: user; none where --config says what the machine has]
    #[arg(long, visible_alias = "net", value_name = "NETWORK")]
    network: Option<TypedNetwork>,
    /// Ethernet address of the machine; one is made up if not given
    #[arg(long, value_name = "ADDRESS")]
    mac_address: Option<TypedMac>,
    /// Another name by which machines on the same network know it
    #[arg(long, visible_alias = "net-alias", value_name = "NAME", value_parser = parse_alias)]
    network_alias: Vec<String>,
    /// IPv4 address of the machine; on a tap with the length of its network's prefix, as in 192.168.5.2/24
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = TypedAddress::of_ipv4)]
    ip: Option<TypedAddress>,
    /// The same for IPv6
    #[arg(long, value_name = "ADDRESS[/BITS]", value_parser = TypedAddress::of_ipv6)]
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
    /// A name that the machine knows; its address is host-gateway for that of the machine's gateway
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<TypedHost>,
    /// Move no more than so many bytes a second: SIZE, or in=SIZE,out=SIZE
    #[arg(long, value_name = "RATE")]
    net_rate: Option<TypedRates>,
    /// Reach a port of the machine through one of the host's: [[IP:]HOSTPORT:]PORT[/tcp|udp], or ranges
    #[arg(short, long, value_name = "PORTS")]
    publish: Vec<TypedPublish>,
    /// Do so with all ports that the image or --expose names, through some of the host's
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// A port at which the machine listens, or a range, as in 8000-8010/udp
    #[arg(long, value_name = "PORTS")]
    expose: Vec<TypedPorts>,
    /// Let the machine reach CIDR[:PORT[-PORT]][/tcp|udp]; of several rules the most specific one holds
    #[arg(long, value_name = "DESTINATIONS")]
    network_allow: Vec<Destinations>,
    /// Keep the machine from reaching these
    #[arg(long, value_name = "DESTINATIONS")]
    network_deny: Vec<Destinations>,
    /// Whether it reaches what no rule names: allow or deny
    #[arg(
        long,
        value_name = "VERDICT",
        default_value = "allow",
        hide_default_value = true
    )]
    network_default: Verdict,
}

/// Arguments of `vmm port`.
#[derive(Debug, Clone, Args)]
pub struct PortArgs {
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// One port of the machine's, as in 80 or 53/udp [default: all]
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<TypedPorts>,
}

impl NetworkArgs {
    /// The ports that were typed.
    #[must_use]
    pub fn published(&self) -> &[TypedPublish] {
        &self.publish
    }

    /// All that was typed; `exposed` are the ports that the image names. A configuration that was handed in says all that its
    /// container is to find, so nothing is added unless it was typed.
    #[must_use]
    pub fn choices(&self, exposed: &[TypedPorts], is_configured: bool) -> NetworkChoices {
        let mut published = self.publish.clone();
        if self.publish_all {
            // As with docker, those that were published by name, or twice, have that one port of the host's.
            for ports in self.expose.iter().chain(exposed) {
                // More are refused, however many an image names.
                if published.len() > MOST_PUBLISHED {
                    break;
                }
                if !published.iter().any(|known| known.includes(ports)) {
                    published.push(TypedPublish::anywhere(*ports));
                }
            }
        }
        let policy = self.policy();
        let needs_gateway =
            self.publish_all || !published.is_empty() || policy != Policy::default();
        let usual = match is_configured && !needs_gateway {
            true => TypedNetwork::None,
            false => TypedNetwork::default(),
        };
        NetworkChoices {
            published,
            policy,
            network: self.network.clone().unwrap_or(usual),
            mac: self.mac_address,
            aliases: self.network_alias.clone(),
            addresses: self.ip.into_iter().chain(self.ip6).collect(),
            gateways: self.gateway.clone(),
            rates: self.net_rate.unwrap_or_default(),
            names: NameChoices {
                servers: self.dns.clone(),
                search: self.dns_search.clone(),
                options: self.dns_option.clone(),
                hosts: Vec::new(),
            },
            hosts: self.add_host.clone(),
        }
    }
}

impl NetworkArgs {
    fn policy(&self) -> Policy {
        let allowed = self
            .network_allow
            .iter()
            .map(|at| (at.clone(), Verdict::Allow));
        let denied = self
            .network_deny
            .iter()
            .map(|at| (at.clone(), Verdict::Deny));
        Policy {
            default: self.network_default,
            rules: allowed.chain(denied).collect(),
            host_loopback: false,
        }
    }
}

/// A network for which templates are made by name.
pub(super) fn parse_prepared(text: &str) -> Result<TypedNetwork, String> {
    match text.parse() {
        Ok(TypedNetwork::Tap(_) | TypedNetwork::Named(_)) => {
            Err("the first run on it leaves a template for those that follow".to_owned())
        }
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// A name as it can be asked for (RFC 1035, section 2.3.4).
fn parse_alias(text: &str) -> Result<String, String> {
    const MOST_BYTES: usize = 253;
    const MOST_LABEL_BYTES: usize = 63;
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        (1..=MOST_LABEL_BYTES).contains(&label.len())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    match text.len() <= MOST_BYTES && text.split('.').all(is_label) {
        true => Ok(text.to_owned()),
        false => Err("it is to be a name such as db or db.example".to_owned()),
    }
}

/// A word of resolv.conf(5).
fn parse_word(text: &str) -> Result<String, String> {
    match NameChoices::is_word(text) {
        true => Ok(text.to_owned()),
        false => Err("it is to be one word".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(arguments: &NetworkArgs, exposed: &[&str]) -> Vec<TypedPublish> {
        let exposed: Vec<TypedPorts> = exposed.iter().map(|text| text.parse().unwrap()).collect();
        arguments.choices(&exposed, false).published
    }

    fn all_and(publish: &str) -> NetworkArgs {
        NetworkArgs {
            publish: vec![publish.parse().unwrap()],
            publish_all: true,
            ..NetworkArgs::default()
        }
    }

    #[test]
    fn a_port_that_is_published_by_name_is_not_published_again() {
        let arguments = all_and("8080:80");
        let ports = published(&arguments, &["80", "53/udp", "53/udp", "80/udp"]);
        let anywhere = |text: &str| TypedPublish::anywhere(text.parse().unwrap());
        assert_eq!(
            ports,
            [
                "8080:80".parse().unwrap(),
                anywhere("53/udp"),
                anywhere("80/udp")
            ]
        );
    }

    #[test]
    fn a_machine_has_a_network_unless_all_that_it_has_was_handed_in() {
        let usual = NetworkArgs::default();
        assert_eq!(usual.choices(&[], false).network, TypedNetwork::default());
        assert_eq!(usual.choices(&[], true).network, TypedNetwork::None);
        let publishing = all_and("8080:80");
        assert_eq!(
            publishing.choices(&[], true).network,
            TypedNetwork::default()
        );
    }

    #[test]
    fn of_ports_without_end_no_more_are_looked_at_than_make_an_error() {
        let names: Vec<String> = (1..=60_000).map(|port: u16| port.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let ports = published(&all_and("80"), &names);
        assert_eq!(ports.len(), MOST_PUBLISHED + 1);
    }
}
