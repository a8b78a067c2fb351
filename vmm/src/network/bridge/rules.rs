//! The rules of a network: a table of nftables that is nobody else's, put in place as a whole by `nft` (nft(8)).
//!
//! They are a function of the network's record: no rule is ever looked for, changed or forgotten.
//!
//! - Into the network comes what belongs to a connection of its machines, and what is meant for a published port; out of it goes
//!   everything, unless it is internal.
//! - What goes out has the host's address, by masquerading.
//! - What comes to the host for a published port goes on to the machine. What the host itself sends is not rewritten: the monitor's
//!   sockets take it.
//! - A machine's questions for names, which go to port 53 of its gateway, go on to its monitor.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use thiserror::Error;

use super::record::{Lease, NetworkRecord};

/// What puts rules in place.
const PROGRAM: &str = "nft";
/// Where it is looked for beside the caller's own places: those of a user have none of the system's programs.
const SYSTEM_PLACES: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Why rules are not in place.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The program is not there.
    #[error("{PROGRAM}, which sets the host's rules for a network, is not on this host")]
    NoProgram,
    /// It cannot be run.
    #[error("cannot run {PROGRAM}")]
    Run(#[source] io::Error),
    /// It has refused.
    #[error("{PROGRAM} refuses the rules of a network: {0}")]
    Refused(String),
}

/// Puts the rules of a network in the place of those that it had.
pub(super) fn put(record: &NetworkRecord) -> Result<(), RulesError> {
    carry_out(&text(record))
}

/// Takes them away.
pub(super) fn take_away(record: &NetworkRecord) -> Result<(), RulesError> {
    carry_out(&removal(record))
}

/// A table can only be removed that is there.
fn removal(record: &NetworkRecord) -> String {
    let table = record.table();
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Protocols, as IANA numbers them.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// All rules of a network.
fn text(record: &NetworkRecord) -> String {
    let bridge = &record.bridge;
    let mut text = removal(record);
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "table inet {} {{\n{}\
         chain forward {{\ntype filter hook forward priority filter; policy accept;\n\
         iifname \"{bridge}\" oifname \"{bridge}\" accept\n",
        record.table(),
        sources(record)
    );
    if record.internal {
        let _ = writeln!(text, "iifname \"{bridge}\" drop");
    } else {
        let _ = write!(
            text,
            "oifname \"{bridge}\" ct state established,related accept\n\
             oifname \"{bridge}\" ct status dnat accept\n"
        );
    }
    let _ = writeln!(text, "oifname \"{bridge}\" drop\n}}");
    if record.internal {
        text.push_str("chain input {\ntype filter hook input priority filter; policy accept;\n");
        // What the host has asked for, questions for names, and ping with what finds neighbours (RFC 4861). Protocols are numbers:
        // not every host has the file of their names.
        let _ = write!(
            text,
            "iifname \"{bridge}\" ct state established,related accept\n\
             iifname \"{bridge}\" ct status dnat accept\n\
             iifname \"{bridge}\" meta l4proto {{ {ICMP}, {ICMPV6} }} accept\n\
             iifname \"{bridge}\" drop\n}}\n"
        );
    }
    // Before the ports of any network: a machine that publishes the port of questions gets none that are another's.
    text.push_str(
        "chain questions {\ntype nat hook prerouting priority dstnat - 1; policy accept;\n",
    );
    for lease in record.leases.values() {
        questions(&mut text, record, lease);
    }
    text.push_str(
        "}\nchain prerouting {\ntype nat hook prerouting priority dstnat; policy accept;\n",
    );
    for lease in record.leases.values() {
        ports(&mut text, record, lease);
    }
    text.push_str(
        "}\nchain postrouting {\ntype nat hook postrouting priority srcnat; policy accept;\n",
    );
    for pool in record.pools.iter().filter(|_| !record.internal) {
        let family = family(pool.gateway);
        let _ = writeln!(
            text,
            "{family} saddr {} oifname != \"{bridge}\" masquerade",
            pool.subnet
        );
    }
    text.push_str("}\n}\n");
    text
}

/// Drops what comes from the network with a source that it has not, before connections are noted: an answer to it would be let through
/// where no question is. Nobody on it tells the host of routers, either (RFC 4861, types 134 and 137).
fn sources(record: &NetworkRecord) -> String {
    let bridge = &record.bridge;
    let subnet = |is_ipv4| {
        let pool = record.pool(is_ipv4);
        pool.map_or_else(String::new, |pool| format!(", {}", pool.subnet))
    };
    let (ipv4, ipv6) = (subnet(true), subnet(false));
    format!(
        "chain sources {{\ntype filter hook prerouting priority raw; policy accept;\n\
         iifname \"{bridge}\" fib saddr type local drop\n\
         iifname \"{bridge}\" ip saddr != {{ 0.0.0.0{ipv4} }} drop\n\
         iifname \"{bridge}\" ip6 saddr != {{ ::, fe80::/10{ipv6} }} drop\n\
         iifname \"{bridge}\" meta l4proto {ICMPV6} icmpv6 type {{ 134, 137 }} drop\n}}\n"
    )
}

/// Hands a machine's questions on to its monitor.
fn questions(text: &mut String, record: &NetworkRecord, lease: &Lease) {
    let (Some(pool), Some(own)) = (record.pool(true), lease.address(true)) else {
        return;
    };
    let (bridge, gateway) = (&record.bridge, pool.gateway);
    for transport in ["udp", "tcp"] {
        let _ = writeln!(
            text,
            "iifname \"{bridge}\" ip saddr {} ip daddr {gateway} {transport} dport 53 dnat ip to {gateway}:{}",
            own.address, lease.resolver_port
        );
    }
}

/// Hands on what others send to the host for a published port.
fn ports(text: &mut String, record: &NetworkRecord, lease: &Lease) {
    let bridge = &record.bridge;
    for port in &lease.published {
        for address in port.addresses() {
            let own = lease.address(address.is_ipv4());
            // What comes for the loopback comes from the host, and what a machine has no address for the monitor takes.
            let Some(own) = own.filter(|_| !address.ip().is_loopback()) else {
                continue;
            };
            let family = family(own.address);
            let here = match address.ip().is_unspecified() {
                true => format!(
                    "meta nfproto {} fib daddr type local",
                    protocol(own.address)
                ),
                false => format!("{family} daddr {}", address.ip()),
            };
            let to = std::net::SocketAddr::new(own.address, port.port);
            let _ = writeln!(
                text,
                "iifname != \"{bridge}\" {here} {} dport {} dnat {family} to {to}",
                port.transport, port.host_port
            );
        }
    }
}

fn family(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

fn protocol(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "ipv4",
        IpAddr::V6(_) => "ipv6",
    }
}

/// Has `nft` carry out all of a text, or nothing.
fn carry_out(text: &str) -> Result<(), RulesError> {
    let places = std::env::var("PATH").unwrap_or_default();
    let places = [places.as_str(), SYSTEM_PLACES].join(":");
    let program = places
        .split(':')
        .filter(|place| place.starts_with('/'))
        .map(|place| std::path::Path::new(place).join(PROGRAM))
        .find(|path| path.is_file());
    let mut child = Command::new(program.ok_or(RulesError::NoProgram)?)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RulesError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        // One that has ended says why.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(RulesError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    Err(RulesError::Refused(first.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::bridge::tests::{network, with_machine};

    #[test]
    fn an_internal_network_has_no_way_out_and_reaches_nothing_of_the_host() {
        let mut record = network("net", &["10.5.0.0/24", "fd05::/64"]);
        record.internal = true;
        with_machine(&mut record, "web", &[], &["10.5.0.2", "fd05::2"]);
        let text = text(&record);
        assert!(text.contains("iifname \"vmm-0\" drop\noifname \"vmm-0\" drop\n"));
        assert!(!text.contains("masquerade"));
        let input = text.split("chain input").nth(1).unwrap();
        assert!(!input.split('}').next().unwrap().contains("daddr"));
    }

    #[test]
    fn a_published_port_is_handed_on_from_everywhere_but_the_loopback() {
        let mut record = network("net", &["10.5.0.0/24"]);
        let id = with_machine(&mut record, "web", &[], &["10.5.0.2"]);
        let port = |host: Option<&str>| crate::network::PublishedPort {
            host: host.map(|host| host.parse().unwrap()),
            host_port: 8080,
            port: 80,
            transport: crate::network::gateway::policy::Transport::Tcp,
        };
        let lease = record.leases.get_mut(&id).unwrap();
        lease.published = vec![port(None), port(Some("192.0.2.1")), port(Some("127.0.0.1"))];
        let text = text(&record);
        let handed = "tcp dport 8080 dnat ip to 10.5.0.2:80\n";
        assert_eq!(text.matches(handed).count(), 2, "{text}");
        assert!(text.contains(&format!("ip daddr 192.0.2.1 {handed}")));
    }
}
