//! What the guest may reach.
//!
//! What is never reached, whatever the rules say: the host's loopback and link-local addresses of IPv6, groups, and addresses that stand
//! for others. Of the rest the most specific rule decides: the longest prefix; then one with ports, then one with a protocol; then the
//! one that denies. Where no rule matches, the default does.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::addresses::{is_gateway, is_resolver};

/// Yes or no.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is carried.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

impl FromStr for Verdict {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(RuleError::Verdict(text.to_owned())),
        }
    }
}

/// What carries ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Destinations: `CIDR[:PORT[-PORT]][/tcp|udp]`, with brackets around IPv6 addresses that ports follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destinations {
    network: IpAddr,
    prefix_bits: u8,
    ports: Option<(u16, u16)>,
    transport: Option<Transport>,
}

/// Destinations that were typed and are none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RuleError {
    /// Neither allow nor deny.
    #[error("`{0}` is neither allow nor deny")]
    Verdict(String),
    /// No address.
    #[error("`{0}` is no network: an IPv4 or IPv6 address, with /BITS for more than one")]
    Network(String),
    /// Too many bits.
    #[error("/{bits} is no prefix of {network}")]
    Prefix {
        /// What was typed.
        bits: String,
        /// The address before it.
        network: IpAddr,
    },
    /// Bits beyond the prefix.
    #[error(
        "{network}/{bits} has bits set beyond its prefix: {meant}/{bits} is meant, or more bits"
    )]
    HostBits {
        /// The address.
        network: IpAddr,
        /// Its prefix.
        bits: u8,
        /// Without the bits beyond.
        meant: IpAddr,
    },
    /// No ports.
    #[error("`{0}` is no port from 1 to 65535 and no range of them")]
    Ports(String),
    /// An IPv4 address in an IPv6 one.
    #[error("{0} stands for an IPv4 address: name that one")]
    Mapped(IpAddr),
}

impl crate::report::Help for RuleError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Verdict(_) => None,
            _ => Some(
                "write for example 10.0.0.0/8, 192.0.2.7:443/tcp or [2001:db8::]/32:8000-8999"
                    .to_owned(),
            ),
        }
    }
}

impl FromStr for Destinations {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (rest, transport) = split_transport(text);
        let no_network = || RuleError::Network(text.to_owned());
        let (address, after) = match rest.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or_else(no_network)?,
            None => rest.split_at(end_of_address(rest)),
        };
        let (bits, ports) = match after.strip_prefix('/') {
            Some(after) => match after.split_once(':') {
                Some((bits, ports)) => (Some(bits), Some(ports)),
                None => (Some(after), None),
            },
            None if after.is_empty() => (None, None),
            None => (None, Some(after.strip_prefix(':').ok_or_else(no_network)?)),
        };
        let network: IpAddr = address.parse().map_err(|_| no_network())?;
        if matches!(network, IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
            return Err(RuleError::Mapped(network));
        }
        let most = bits_of(network);
        let prefix_bits = match bits {
            None => most,
            Some(bits) => bits
                .parse()
                .ok()
                .filter(|parsed| *parsed <= most && is_number(bits))
                .ok_or_else(|| RuleError::Prefix {
                    bits: bits.to_owned(),
                    network,
                })?,
        };
        let meant = masked(network, prefix_bits);
        if meant != network {
            return Err(RuleError::HostBits {
                network,
                bits: prefix_bits,
                meant,
            });
        }
        Ok(Self {
            network,
            prefix_bits,
            ports: ports.map(parse_ports).transpose()?,
            transport,
        })
    }
}

impl fmt::Display for Destinations {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.ports) {
            (IpAddr::V6(network), Some(_)) => write!(formatter, "[{network}]")?,
            (network, _) => write!(formatter, "{network}")?,
        }
        if self.prefix_bits != bits_of(self.network) {
            write!(formatter, "/{}", self.prefix_bits)?;
        }
        match self.ports {
            Some((first, last)) if first == last => write!(formatter, ":{first}")?,
            Some((first, last)) => write!(formatter, ":{first}-{last}")?,
            None => {}
        }
        match self.transport {
            Some(transport) => write!(formatter, "/{transport}"),
            None => Ok(()),
        }
    }
}

impl Destinations {
    fn includes(&self, address: IpAddr, port: Option<(Transport, u16)>) -> bool {
        let network = address.is_ipv4() == self.network.is_ipv4()
            && masked(address, self.prefix_bits) == self.network;
        let transport = self
            .transport
            .is_none_or(|wanted| port.is_some_and(|(transport, _)| transport == wanted));
        let ports = self.ports.is_none_or(|(first, last)| {
            port.is_some_and(|(_, port)| (first..=last).contains(&port))
        });
        network && transport && ports
    }

    /// What is greater is more specific.
    fn precision(&self) -> (u8, bool, bool) {
        let ports = self.ports.is_some();
        (self.prefix_bits, ports, self.transport.is_some())
    }
}

fn split_transport(text: &str) -> (&str, Option<Transport>) {
    for transport in [Transport::Tcp, Transport::Udp] {
        let name = transport.to_string();
        let rest = text
            .strip_suffix(&name)
            .and_then(|rest| rest.strip_suffix('/'));
        if let Some(rest) = rest {
            return (rest, Some(transport));
        }
    }
    (text, None)
}

/// Where an address without brackets ends: an IPv6 address has more than one colon, and no port after it.
fn end_of_address(text: &str) -> usize {
    let address = text.split('/').next().unwrap_or_default();
    match address.matches(':').count() {
        1 => address.find(':').unwrap_or(address.len()),
        _ => address.len(),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_ports(text: &str) -> Result<(u16, u16), RuleError> {
    let wrong = || RuleError::Ports(text.to_owned());
    let port = |text: &str| match text.parse() {
        Ok(port) if port > 0 && is_number(text) => Ok(port),
        _ => Err(wrong()),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    match first <= last {
        true => Ok((first, last)),
        false => Err(wrong()),
    }
}

fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The address without the bits beyond the prefix.
fn masked(address: IpAddr, prefix_bits: u8) -> IpAddr {
    let beyond = u32::from(bits_of(address).saturating_sub(prefix_bits));
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(beyond).unwrap_or_default();
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(beyond).unwrap_or_default();
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// All that is said about what the guest may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What holds where no rule does.
    pub default: Verdict,
    /// The rules, in any order.
    pub rules: Vec<(Destinations, Verdict)>,
    /// Whether the host's loopback is reached under the gateway's address.
    pub host_loopback: bool,
}

impl Policy {
    /// Says whether the guest may send to this address, and to this port of it.
    #[must_use]
    pub fn judge(&self, address: IpAddr, port: Option<(Transport, u16)>) -> Verdict {
        if is_never_reached(address) {
            return Verdict::Deny;
        }
        let embedded = embedded_ipv4(address).map(IpAddr::V4);
        if embedded.is_some_and(|inner| self.judge(inner, port) == Verdict::Deny) {
            return Verdict::Deny;
        }
        let matching = self
            .rules
            .iter()
            .filter(|(at, _)| at.includes(address, port));
        let decisive = matching.max_by_key(|(at, verdict)| (at.precision(), *verdict));
        decisive.map_or(self.default, |(_, verdict)| *verdict)
    }
}

/// Where on the host something of the guest's goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// To this address.
    Host(IpAddr),
    /// To the resolver.
    Resolver,
    /// Nowhere.
    Nowhere,
}

/// The port of name servers (RFC 1035, section 4.2).
pub(in crate::network) const DNS_PORT: u16 = 53;

impl Policy {
    /// Says where it goes. The resolver is always there.
    pub(super) fn target(&self, address: IpAddr, port: Option<(Transport, u16)>) -> Target {
        if is_resolver(address) {
            return match port {
                Some((_, DNS_PORT)) => Target::Resolver,
                _ => Target::Nowhere,
            };
        }
        if is_gateway(address) && !self.host_loopback || self.judge(address, port) == Verdict::Deny
        {
            return Target::Nowhere;
        }
        Target::Host(match address {
            IpAddr::V4(_) if is_gateway(address) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) if is_gateway(address) => Ipv6Addr::LOCALHOST.into(),
            address => address,
        })
    }
}

/// Networks that are never reached, of IPv4: "this network", which the host's kernel takes for itself, loopback, groups, reserved ones
/// and the broadcast (RFC 6890).
const NEVER_IPV4: [RangeInclusive<u32>; 3] = [
    0x0000_0000..=0x00ff_ffff,
    0x7f00_0000..=0x7fff_ffff,
    0xe000_0000..=0xffff_ffff,
];

fn is_never_reached(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => NEVER_IPV4
            .iter()
            .any(|range| range.contains(&address.to_bits())),
        // `::/96` has loopback, the unspecified address and IPv4 addresses in old spelling.
        IpAddr::V6(address) => {
            address.to_ipv4_mapped().is_some()
                || address.segments().starts_with(&[0; 6])
                || address.is_unicast_link_local()
                || address.is_multicast()
        }
    }
}

/// The IPv4 address that is reached by way of this one: through NAT64 (`64:ff9b::/96`, RFC 6052) or 6to4 (`2002::/16`, RFC 3056).
fn embedded_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(address) = address else {
        return None;
    };
    let of = |high: u16, low: u16| Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low));
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(default: Verdict, rules: &[(&str, Verdict)]) -> Policy {
        Policy {
            default,
            rules: rules
                .iter()
                .map(|(text, verdict)| (text.parse().unwrap(), *verdict))
                .collect(),
            host_loopback: false,
        }
    }

    fn tcp(policy: &Policy, address: &str, port: u16) -> Verdict {
        policy.judge(address.parse().unwrap(), Some((Transport::Tcp, port)))
    }

    #[test]
    fn destinations_are_written_as_they_are_read() {
        for text in [
            "10.0.0.0/8",
            "192.0.2.7",
            "192.0.2.7:443/tcp",
            "10.0.0.0/8:8000-8999",
            "2001:db8::/32",
            "2001:db8::1/udp",
            "[2001:db8::]/32:53/udp",
            "0.0.0.0/0",
        ] {
            let parsed: Destinations = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_destination_is_named() {
        for (text, sentence) in [
            ("example.org", "`example.org` is no network"),
            ("10.0.0.0/33", "/33 is no prefix of 10.0.0.0"),
            ("10.0.0.0/+8", "/+8 is no prefix of 10.0.0.0"),
            ("10.0.0.1/8", "10.0.0.0/8 is meant"),
            ("10.0.0.1:0", "`0` is no port"),
            ("10.0.0.1:9-8", "`9-8` is no port"),
            ("10.0.0.1:70000", "`70000` is no port"),
            ("[2001:db8::1", "is no network"),
            ("::ffff:10.0.0.1", "stands for an IPv4 address"),
            ("", "is no network"),
        ] {
            let error = text.parse::<Destinations>().unwrap_err().to_string();
            assert!(error.contains(sentence), "{text}: {error}");
        }
    }

    #[test]
    fn the_most_specific_rule_decides_whatever_the_order() {
        let rules = [
            ("10.0.0.0/8", Verdict::Deny),
            ("10.1.0.0/16", Verdict::Allow),
            ("10.1.0.0/16:22/tcp", Verdict::Deny),
        ];
        let mut reversed = rules;
        reversed.reverse();
        for rules in [rules, reversed] {
            let policy = policy(Verdict::Allow, &rules);
            assert_eq!(tcp(&policy, "10.2.0.1", 80), Verdict::Deny);
            assert_eq!(tcp(&policy, "10.1.0.1", 80), Verdict::Allow);
            assert_eq!(tcp(&policy, "10.1.0.1", 22), Verdict::Deny);
            assert_eq!(tcp(&policy, "192.0.2.1", 22), Verdict::Allow);
        }
    }

    #[test]
    fn of_equal_rules_the_one_that_denies_holds() {
        let rules = [
            ("10.0.0.0/8", Verdict::Deny),
            ("10.0.0.0/8", Verdict::Allow),
        ];
        assert_eq!(
            tcp(&policy(Verdict::Allow, &rules), "10.0.0.1", 80),
            Verdict::Deny
        );
    }

    #[test]
    fn a_rule_with_ports_is_silent_about_ping() {
        let policy = policy(Verdict::Deny, &[("192.0.2.0/24:80", Verdict::Allow)]);
        assert_eq!(tcp(&policy, "192.0.2.1", 80), Verdict::Allow);
        assert_eq!(
            policy.judge("192.0.2.1".parse().unwrap(), None),
            Verdict::Deny
        );
    }

    #[test]
    fn the_hosts_own_addresses_are_never_reached() {
        let all = [("0.0.0.0/0", Verdict::Allow), ("::/0", Verdict::Allow)];
        let policy = policy(Verdict::Allow, &all);
        for address in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:192.0.2.1",
            "fe80::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
        ] {
            assert_eq!(tcp(&policy, address, 80), Verdict::Deny, "{address}");
        }
    }

    #[test]
    fn an_address_that_leads_to_a_denied_one_is_denied() {
        let policy = policy(Verdict::Allow, &[("10.0.0.0/8", Verdict::Deny)]);
        assert_eq!(tcp(&policy, "64:ff9b::a00:1", 80), Verdict::Deny);
        assert_eq!(tcp(&policy, "64:ff9b::c000:201", 80), Verdict::Allow);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,40}") {
            if let Ok(parsed) = text.parse::<Destinations>() {
                prop_assert_eq!(parsed.to_string().parse::<Destinations>().unwrap(), parsed);
            }
        }

        #[test]
        fn a_network_includes_what_begins_like_it(address: u128, bits in 0_u8..=128) {
            let address = IpAddr::from(Ipv6Addr::from_bits(address));
            let network = masked(address, bits);
            prop_assume!(!matches!(network, IpAddr::V6(of) if of.to_ipv4_mapped().is_some()));
            let rule: Destinations = format!("{network}/{bits}").parse().unwrap();
            prop_assert!(rule.includes(address, None));
        }
    }
}
