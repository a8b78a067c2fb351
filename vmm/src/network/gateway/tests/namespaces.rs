//! What takes a network of the host's that is the test's own: it makes a network namespace, with addresses on its loopback interface
//! that are not loopback addresses. Making one takes root; without it the tests say so and pass.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use smoltcp::wire::IpProtocol;

use super::super::Configuration;
use super::super::policy::{Policy, Verdict};
use super::super::statistics::Dropped;
use super::frames::{answer, echo, syn};
use super::guest::{GUEST_MAC, Guest, Running};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Moves this thread, and those that it will make, into a network of their own that has these addresses, and lets all ping there.
fn enter_network() -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("Not root: what takes a network of the test's own was not tested.");
        return false;
    }
    let mut holder = Command::new("unshare")
        .args(["--net", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // It answers once it is there.
    let (mut ask, mut answer) = (holder.stdin.take().unwrap(), holder.stdout.take().unwrap());
    ask.write_all(b"?").unwrap();
    answer.read_exact(&mut [0]).unwrap();
    let network = File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    drop(ask);
    holder.wait().unwrap();
    for arguments in [
        "link set lo up",
        "address add 192.0.2.1/32 dev lo",
        "address add 198.51.100.1/32 dev lo",
        "address add 2001:db8::1/128 dev lo nodad",
    ] {
        let done = Command::new("ip").args(arguments.split(' ')).status();
        assert!(done.unwrap().success(), "ip {arguments}");
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    true
}

fn start(policy: Policy) -> (Guest, Running) {
    let configuration = Configuration {
        guest_mac: GUEST_MAC,
        policy,
        published: Vec::new(),
    };
    let (socket, running) = Running::start(&configuration, Vec::new(), Vec::new());
    (Guest::new(socket), running)
}

#[test]
fn an_address_of_the_hosts_is_reached_and_its_loopback_is_not() {
    if !enter_network() {
        return;
    }
    let listener = TcpListener::bind("0.0.0.0:80").unwrap();
    let (mut guest, running) = start(Policy::default());
    let handle = guest.connect((HOST, 80).into());
    guest.send(handle, b"hello");
    let (mut stream, from) = listener.accept().unwrap();
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    assert_eq!((&text, from.ip()), (b"hello", HOST.into()));
    let refused = guest.begin((Ipv4Addr::LOCALHOST, 80).into());
    guest.until("the refusal", |_| {
        running.statistics().dropped.contains_key(&Dropped::Refused)
    });
    assert!(!guest.tcp(refused).may_send());
}

#[test]
fn an_address_over_ipv6_is_reached() {
    if !enter_network() {
        return;
    }
    let host: SocketAddr = "[2001:db8::1]:80".parse().unwrap();
    let listener = TcpListener::bind(host).unwrap();
    let (mut guest, _running) = start(Policy::default());
    guest.connect(host);
    assert_eq!(listener.accept().unwrap().1.ip(), host.ip());
}

#[test]
fn only_what_is_allowed_is_reached() {
    if !enter_network() {
        return;
    }
    let _listener = TcpListener::bind("0.0.0.0:80").unwrap();
    let (mut guest, running) = start(Policy {
        default: Verdict::Deny,
        rules: vec![("192.0.2.0/24:80/tcp".parse().unwrap(), Verdict::Allow)],
        host_loopback: false,
    });
    guest.connect((HOST, 80).into());
    let refused = guest.begin((OTHER, 80).into());
    guest.until("the refusal", |_| {
        running.statistics().dropped.contains_key(&Dropped::Refused)
    });
    assert!(!guest.tcp(refused).may_send());
}

#[test]
fn pings_go_out_and_come_back() {
    if !enter_network() {
        return;
    }
    let (guest, running) = start(Policy::default());
    let mut wire = guest.wire;
    for host in [HOST, OTHER] {
        let (from, _, payload) = answer(&mut wire, &echo(host));
        assert_eq!(from, IpAddr::from(host));
        // An echo reply, with the guest's own identifier and sequence number.
        assert_eq!((payload[0], &payload[4..8]), (0, &[0, 7, 0, 9][..]));
        assert_eq!(&payload[8..], b"data");
    }
    assert_eq!(running.statistics().flows_open, 2);
}

#[test]
fn a_host_that_permits_no_pings_is_counted() {
    if !enter_network() {
        return;
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "1 0").unwrap();
    let (mut guest, running) = start(Policy::default());
    guest.wire.send(&echo(HOST));
    guest.until("the count", |_| {
        running.statistics().dropped.contains_key(&Dropped::NoPing)
    });
}

#[test]
fn a_network_without_a_way_is_said_to_be_unreachable() {
    if !enter_network() {
        return;
    }
    let (guest, _running) = start(Policy::default());
    let mut wire = guest.wire;
    let nowhere = Ipv4Addr::new(203, 0, 113, 1);
    let (_, protocol, payload) = answer(&mut wire, &syn(nowhere, 1234, 80));
    assert_eq!(protocol, IpProtocol::Icmp);
    assert_eq!(payload[..2], [3, 0]);
}
