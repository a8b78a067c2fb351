use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::super::addresses::{RESOLVER_IPV4, RESOLVER_IPV6};
use super::super::dns::tests::question;
use super::guest::{Guest, Running, at_gateway, with_loopback};

fn echoes(address: &str, is_ipv6: bool, bytes: usize) {
    let server = UdpSocket::bind((address, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        let (count, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(&buffer[..count], from).unwrap();
    });
    let (mut guest, _running) = Guest::with_loopback();
    let handle = guest.bind_udp(5000);
    let datagram: Vec<u8> = (0..bytes)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    guest.until("a neighbour", |guest| {
        if guest.udp(handle).send_queue() == 0 {
            guest.send_udp(handle, &datagram, at_gateway(is_ipv6, port));
        }
        thread.is_finished()
    });
    let (answer, from) = guest.receive_udp(handle);
    assert!(answer == datagram);
    assert_eq!(from, at_gateway(is_ipv6, port));
    thread.join().unwrap();
}

#[test]
fn the_longest_datagram_goes_there_and_comes_back_whole() {
    echoes("127.0.0.1", false, 65_507);
}

#[test]
fn the_longest_datagram_that_needs_no_fragments_goes_over_ipv6() {
    echoes("::1", true, 65_487);
}

#[test]
fn an_empty_datagram_is_one() {
    echoes("127.0.0.1", false, 0);
}

/// A name server that answers each question with itself and a mark, and says who was asked how often.
fn name_server(mark: u8) -> (SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let (asked, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((count, from)) = server.recv_from(&mut buffer) {
            let mut answer = buffer[..count].to_vec();
            answer[2] |= 0x80;
            answer.push(mark);
            if asked.send(buffer[..count].to_vec()).is_err() {
                return;
            }
            server.send_to(&answer, from).unwrap();
        }
    });
    (at, heard)
}

fn with_name_servers(servers: Vec<SocketAddr>) -> (Guest, Running) {
    let (socket, running) = Running::start(&with_loopback(), Vec::new(), servers);
    (Guest::new(socket), running)
}

fn ask(guest: &mut Guest, resolver: IpAddr, message: &[u8]) -> Vec<u8> {
    let handle = guest.bind_udp(5000);
    guest.send_udp(handle, message, SocketAddr::new(resolver, 53));
    let (answer, from) = guest.receive_udp(handle);
    assert_eq!(from, SocketAddr::new(resolver, 53));
    answer
}

#[test]
fn a_question_is_asked_of_the_hosts_name_server_under_another_identifier() {
    let (at, heard) = name_server(7);
    for resolver in [IpAddr::from(RESOLVER_IPV4), RESOLVER_IPV6.into()] {
        let (mut guest, _running) = with_name_servers(vec![at]);
        let message = question("example.org", 1);
        let answer = ask(&mut guest, resolver, &message);
        assert_eq!(answer[..2], message[..2]);
        assert_eq!(answer.last(), Some(&7));
        let asked = heard.recv().unwrap();
        assert_eq!(asked[2..], message[2..]);
    }
}

#[test]
fn another_name_server_is_asked_when_one_is_not_there() {
    let gone = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (at, _heard) = name_server(9);
    let (mut guest, _running) = with_name_servers(vec![gone, at]);
    let answer = ask(
        &mut guest,
        RESOLVER_IPV4.into(),
        &question("example.org", 1),
    );
    assert_eq!(answer.last(), Some(&9));
}

#[test]
fn a_host_without_name_servers_fails_every_question() {
    let (mut guest, _running) = with_name_servers(Vec::new());
    let message = question("example.org", 1);
    let answer = ask(&mut guest, RESOLVER_IPV4.into(), &message);
    assert_eq!(answer[3] & 0xf, 2);
    assert_eq!(answer[12..], message[12..]);
}

#[test]
fn the_hosts_own_name_is_the_gateways_address() {
    let (mut guest, _running) = with_name_servers(Vec::new());
    let answer = ask(
        &mut guest,
        RESOLVER_IPV4.into(),
        &question("host.docker.internal", 1),
    );
    assert!(answer.ends_with(&[10, 0, 2, 2]));
}

#[test]
fn a_name_server_is_asked_over_tcp_too() {
    use std::io::Read;
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap();
    let (mut guest, _running) = with_name_servers(vec![at]);
    let handle = guest.connect(SocketAddr::new(RESOLVER_IPV4.into(), 53));
    guest.send(handle, b"question");
    let mut asked = [0; 8];
    server.accept().unwrap().0.read_exact(&mut asked).unwrap();
    assert_eq!(&asked, b"question");
}
