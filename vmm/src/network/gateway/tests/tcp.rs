use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use smoltcp::socket::tcp::State;

use super::guest::{Guest, at_gateway};

/// Bytes that tell where they are.
fn pattern(start: usize, length: usize) -> Vec<u8> {
    (start..start + length)
        .map(|at| u8::try_from((at / 251 + at) % 256).unwrap())
        .collect()
}

fn listen(address: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A connection of the guest's to a server on the host, and the server's end of it.
fn connected(guest: &mut Guest) -> (smoltcp::iface::SocketHandle, TcpStream) {
    let (listener, port) = listen("127.0.0.1");
    let handle = guest.connect(at_gateway(false, port));
    (handle, listener.accept().unwrap().0)
}

fn echoes_64_mib(address: &'static str, is_ipv6: bool) {
    const BYTES: usize = 64 << 20;
    const CHUNK_BYTES: usize = 64 << 10;
    let (listener, port) = listen(address);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return,
                count => stream.write_all(&buffer[..count]).unwrap(),
            }
        }
    });
    let (mut guest, running) = Guest::with_loopback();
    let handle = guest.connect(at_gateway(is_ipv6, port));
    let mut sent = 0;
    let mut received = 0;
    let mut pending = Vec::new();
    guest.until("all of it", |guest| {
        if pending.is_empty() && sent < BYTES {
            pending = pattern(sent, CHUNK_BYTES);
            sent += CHUNK_BYTES;
        }
        if guest.tcp(handle).may_send() {
            let taken = guest.tcp(handle).send_slice(&pending).unwrap();
            pending.drain(..taken);
            if pending.is_empty() && sent == BYTES {
                guest.tcp(handle).close();
            }
        }
        let Some(bytes) = guest.take(handle) else {
            return true;
        };
        assert!(bytes == pattern(received, bytes.len()), "bytes differ");
        received += bytes.len();
        false
    });
    server.join().unwrap();
    assert_eq!(received, BYTES);
    running.await_no_connection(&mut guest);
}

#[test]
fn sixty_four_mebibytes_go_there_and_come_back() {
    echoes_64_mib("127.0.0.1", false);
}

#[test]
fn sixty_four_mebibytes_go_there_and_come_back_over_ipv6() {
    echoes_64_mib("::1", true);
}

#[test]
fn a_server_answers_after_the_guest_has_said_all() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, mut stream) = connected(&mut guest);
    guest.send(handle, b"question");
    guest.tcp(handle).close();
    let server = std::thread::spawn(move || {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream.write_all(b"answer to ").unwrap();
        stream.write_all(question.as_bytes()).unwrap();
    });
    assert_eq!(guest.read_to_end(handle), b"answer to question");
    server.join().unwrap();
    running.await_no_connection(&mut guest);
}

#[test]
fn a_guest_answers_after_the_server_has_said_all() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, mut stream) = connected(&mut guest);
    stream.write_all(b"question").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.read_to_end(handle), b"question");
    guest.send(handle, b"answer");
    guest.tcp(handle).close();
    let server = std::thread::spawn(move || {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    guest.until("the end", |guest| !guest.tcp(handle).is_active());
    assert_eq!(server.join().unwrap(), "answer");
    running.await_no_connection(&mut guest);
}

#[test]
fn nobody_listens_and_the_guest_is_refused() {
    let (listener, port) = listen("127.0.0.1");
    drop(listener);
    let (mut guest, running) = Guest::with_loopback();
    let handle = guest.begin(at_gateway(false, port));
    guest.until("a reset", |guest| {
        guest.tcp(handle).state() == State::Closed
    });
    running.await_no_connection(&mut guest);
}

#[test]
fn a_reset_of_the_guests_reaches_the_server() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, mut stream) = connected(&mut guest);
    guest.tcp(handle).abort();
    guest.turn();
    let error = stream.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    running.await_no_connection(&mut guest);
}

#[test]
fn a_reset_of_the_servers_reaches_the_guest() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, stream) = connected(&mut guest);
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("a reset", |guest| {
        guest.tcp(handle).state() == State::Closed
    });
    running.await_no_connection(&mut guest);
}

/// More than the buffers of the gateway and of the host's kernel on the way together.
const TOO_MUCH_BYTES: usize = 64 << 20;

#[test]
fn a_server_that_does_not_read_stops_the_guest() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, mut stream) = connected(&mut guest);
    let mut sent = 0;
    let mut stands_since = std::time::Instant::now();
    guest.until("a stop", |guest| {
        let room = guest.tcp(handle).send_slice(&[7; 64 << 10]).unwrap();
        sent += room;
        if room > 0 {
            stands_since = std::time::Instant::now();
        }
        assert!(sent < TOO_MUCH_BYTES, "nothing stops the guest");
        stands_since.elapsed() > Duration::from_millis(500)
    });
    guest.tcp(handle).close();
    let server = std::thread::spawn(move || {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.len()
    });
    guest.until("the end", |guest| !guest.tcp(handle).may_recv());
    assert_eq!(server.join().unwrap(), sent);
    running.await_no_connection(&mut guest);
}

#[test]
fn a_guest_that_does_not_read_stops_the_server() {
    let (mut guest, running) = Guest::with_loopback();
    let (handle, mut stream) = connected(&mut guest);
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut stands_since = std::time::Instant::now();
    guest.until("a stop", |_| {
        if let Ok(count) = stream.write(&[7; 64 << 10]) {
            sent += count;
            stands_since = std::time::Instant::now();
        }
        assert!(sent < TOO_MUCH_BYTES, "nothing stops the server");
        stands_since.elapsed() > Duration::from_millis(500)
    });
    drop(stream);
    assert_eq!(guest.read_to_end(handle).len(), sent);
    guest.tcp(handle).close();
    running.await_no_connection(&mut guest);
}

#[test]
fn ten_thousand_connections_leave_nothing() {
    const CONNECTIONS: u64 = 10_000;
    let (listener, port) = listen("127.0.0.1");
    let server = std::thread::spawn(move || {
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let (mut guest, running) = Guest::with_loopback();
    for _ in 0..CONNECTIONS {
        let handle = guest.connect(at_gateway(false, port));
        guest.send(handle, b"x");
        assert_eq!(guest.read_to_end(handle), b"x");
        guest.tcp(handle).close();
        guest.turn();
        guest.forget(handle);
    }
    server.join().unwrap();
    running.await_no_connection(&mut guest);
    assert_eq!(running.statistics().tcp_connections, CONNECTIONS);
}
