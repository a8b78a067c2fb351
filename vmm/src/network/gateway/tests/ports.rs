use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;

use smoltcp::socket::tcp::State;

use super::super::addresses::{GATEWAY_IPV4, GATEWAY_IPV6, GUEST_IPV4};
use super::super::policy::Transport;
use super::super::statistics::Dropped;
use super::super::{Configuration, Published};
use super::guest::{Guest, Running, with_loopback};

const GUEST_PORT: u16 = 80;

fn published(transport: Transport) -> Configuration {
    Configuration {
        published: vec![Published {
            transport,
            guest_port: GUEST_PORT,
        }],
        ..with_loopback()
    }
}

/// A guest whose port is published, and where.
fn with_port(address: &str) -> (Guest, Running, SocketAddr) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let sockets = vec![OwnedFd::from(listener)];
    let (socket, running) = Running::start(&published(Transport::Tcp), sockets, Vec::new());
    (Guest::new(socket), running, at)
}

fn asks_and_is_answered(address: &str, listens_at: Option<IpAddr>, comes_from: IpAddr) {
    let (mut guest, running, at) = with_port(address);
    let handle = guest.listen(listens_at, GUEST_PORT);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"ping").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    guest.until("somebody", |guest| guest.tcp(handle).may_send());
    let remote = guest.tcp(handle).remote_endpoint().unwrap();
    assert_eq!(IpAddr::from(remote.addr), comes_from);
    assert_eq!(guest.read_to_end(handle), b"ping");
    guest.send(handle, b"pong");
    guest.tcp(handle).close();
    guest.until("the end", |guest| !guest.tcp(handle).is_active());
    assert_eq!(client.join().unwrap(), "pong");
    running.await_no_connection(&mut guest);
}

#[test]
fn who_comes_to_a_published_port_speaks_to_the_guest() {
    asks_and_is_answered("127.0.0.1", None, GATEWAY_IPV4.into());
}

#[test]
fn who_comes_over_ipv6_speaks_to_the_guest_over_ipv6() {
    asks_and_is_answered("::1", None, GATEWAY_IPV6.into());
}

#[test]
fn who_comes_over_ipv6_to_a_guest_that_listens_for_ipv4_alone_speaks_to_it() {
    asks_and_is_answered("::1", Some(GUEST_IPV4.into()), GATEWAY_IPV4.into());
}

#[test]
fn who_comes_to_a_guest_that_does_not_listen_is_reset() {
    for address in ["127.0.0.1", "::1"] {
        let (mut guest, running, at) = with_port(address);
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.read(&mut [0; 8]).unwrap_err().kind()
        });
        guest.until("the reset", |_| client.is_finished());
        assert_eq!(client.join().unwrap(), std::io::ErrorKind::ConnectionReset);
        running.await_no_connection(&mut guest);
    }
}

#[test]
fn a_hundred_who_come_at_once_are_all_served() {
    const CLIENTS: usize = 100;
    let (mut guest, running, at) = with_port("127.0.0.1");
    let handles: Vec<_> = (0..CLIENTS)
        .map(|_| guest.listen(None, GUEST_PORT))
        .collect();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                let mut stream = TcpStream::connect(at).unwrap();
                stream.write_all(b"ping").unwrap();
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).unwrap();
                answer
            })
        })
        .collect();
    guest.until("all of them", |guest| {
        for handle in &handles {
            if guest.tcp(*handle).state() == State::Established
                && guest.take(*handle).is_some_and(|bytes| bytes == b"ping")
            {
                guest.tcp(*handle).send_slice(b"pong").unwrap();
            }
            if guest.tcp(*handle).state() == State::CloseWait {
                guest.tcp(*handle).close();
            }
        }
        clients.iter().all(std::thread::JoinHandle::is_finished)
            && handles.iter().all(|handle| !guest.tcp(*handle).is_active())
    });
    assert!(
        clients
            .into_iter()
            .all(|client| client.join().unwrap() == *b"pong")
    );
    running.await_no_connection(&mut guest);
}

#[test]
fn datagrams_to_a_published_port_are_answered_to_who_has_sent_them() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let sockets = vec![OwnedFd::from(socket)];
    let (wire, running) = Running::start(&published(Transport::Udp), sockets, Vec::new());
    let mut guest = Guest::new(wire);
    let handle = guest.bind_udp(GUEST_PORT);
    let clients = [b"one", b"two"].map(|text| {
        std::thread::spawn(move || {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.send_to(text, at).unwrap();
            let mut answer = [0; 3];
            let (_, from) = client.recv_from(&mut answer).unwrap();
            assert_eq!((&answer, from), (text, at));
        })
    });
    for _ in &clients {
        let (bytes, from) = guest.receive_udp(handle);
        assert_eq!(from.ip(), IpAddr::from(GATEWAY_IPV4));
        guest.send_udp(handle, &bytes, from);
    }
    guest.until("both answers", |_| {
        clients.iter().all(std::thread::JoinHandle::is_finished)
    });
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(running.statistics().flows_open, 2);
}

#[test]
fn a_datagram_that_no_frame_holds_is_not_cut() {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    let at = socket.local_addr().unwrap();
    let sockets = vec![OwnedFd::from(socket)];
    let (wire, running) = Running::start(&published(Transport::Udp), sockets, Vec::new());
    let mut guest = Guest::new(wire);
    let handle = guest.bind_udp(GUEST_PORT);
    let client = UdpSocket::bind("[::1]:0").unwrap();
    client.send_to(&[7; 65_520], at).unwrap();
    client.send_to(b"short", at).unwrap();
    let (bytes, _) = guest.receive_udp(handle);
    assert!(bytes == b"short");
    let dropped = running.statistics().dropped;
    assert_eq!(dropped.get(&Dropped::TooLong), Some(&1));
}
