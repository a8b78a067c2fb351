//! The resolver: hands questions of the guest on to the host's name servers, and answers those about the host itself.
//!
//! Each question gets a socket of its own, from a port that the host's kernel chooses at random, and a random identifier, and is asked
//! of one name server after the other. Over TCP the guest speaks to the first of them by a connection like all others.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{UDP_HEADER_LEN, UdpPacket};

use super::addresses::{GATEWAY_IPV4, GATEWAY_IPV6};
use super::frame::Packet;
use super::link::Link;
use super::policy::DNS_PORT;
use super::statistics::Dropped;
use super::timers::Timers;

/// Where the host says who its name servers are (resolv.conf(5)).
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How many of them are asked (`MAXNS` in resolv.h).
const MOST_SERVERS: usize = 3;
/// How much of that file is read.
const MOST_FILE_BYTES: u64 = 64 << 10;
/// How many questions may be without an answer.
pub(in crate::network) const MOST_QUESTIONS: usize = 256;
/// How long a name server has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often all of them are asked.
pub(in crate::network) const ROUNDS: usize = 2;
/// How soon a change of the file is looked for again.
const FRESH: Duration = Duration::from_secs(1);
/// A message's header (RFC 1035, section 4.1.1).
pub(in crate::network) const HEADER_BYTES: usize = 12;
/// Names by which docker and podman know the host.
const OWN_NAMES: [&str; 2] = ["host.docker.internal", "host.containers.internal"];
/// How long they may be remembered.
const OWN_TTL_SECONDS: u32 = 60;

/// The server has failed (RFC 1035, section 4.1.1).
pub(in crate::network) const SERVFAIL: u8 = 2;
/// In the third byte of a header: it is an answer.
pub(in crate::network) const IS_ANSWER: u8 = 0x80;
pub(in crate::network) const TYPE_A: u16 = 1;
pub(in crate::network) const TYPE_AAAA: u16 = 28;

/// What is asked under which identifier from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Asker {
    resolver: SocketAddr,
    guest_port: u16,
    identifier: [u8; 2],
}

/// A question without an answer.
#[derive(Debug)]
struct Question {
    asker: Asker,
    /// As the guest has sent it.
    message: Vec<u8>,
    socket: Option<OwnedFd>,
    /// The one under which it goes out.
    identifier: [u8; 2],
    attempts: usize,
    /// Until when the name server that was asked has time.
    due: Option<Instant>,
}

/// The resolver.
#[derive(Debug)]
pub(super) struct Resolver {
    open: HashMap<u64, Question>,
    by_asker: HashMap<Asker, u64>,
    next: u64,
    timers: Timers,
    ready: VecDeque<u64>,
    servers: Servers,
}

impl Resolver {
    pub(super) fn new(port: u16) -> Self {
        Self {
            open: HashMap::new(),
            by_asker: HashMap::new(),
            next: 0,
            timers: Timers::default(),
            ready: VecDeque::new(),
            servers: Servers::new(port),
        }
    }

    #[cfg(test)]
    pub(super) fn ask_only(&mut self, servers: Vec<SocketAddr>) {
        self.servers.known = servers;
        self.servers.is_fixed = true;
    }

    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The name server that is asked over TCP.
    pub(super) fn first_server(&mut self, now: Instant) -> Option<SocketAddr> {
        self.servers.current(now).first().copied()
    }

    /// Takes a question of the guest's.
    pub(super) fn receive(&mut self, link: &mut Link, packet: &Packet<'_>, token: u64) {
        let datagram = match UdpPacket::new_checked(packet.payload) {
            Ok(datagram) if datagram.src_port() != 0 => datagram,
            _ => return link.statistics.drop(Dropped::Malformed),
        };
        let length = usize::from(datagram.len());
        let message = packet
            .payload
            .get(UDP_HEADER_LEN..length)
            .unwrap_or_default();
        let (id_0, id_1) = match message.first_chunk::<HEADER_BYTES>() {
            Some([id_0, id_1, flags, ..]) if flags & IS_ANSWER == 0 => (id_0, id_1),
            _ => return link.statistics.drop(Dropped::Malformed),
        };
        link.statistics.dns_questions = link.statistics.dns_questions.saturating_add(1);
        let asker = Asker {
            resolver: SocketAddr::new(packet.destination, DNS_PORT),
            guest_port: datagram.src_port(),
            identifier: [*id_0, *id_1],
        };
        if let Some(answer) = own_answer(message) {
            return asker.answer(link, &answer);
        }
        if let Some(known) = self.by_asker.get(&asker).copied() {
            // Who asks again has waited long enough for the one that was asked.
            return self.ask_next(link, known, token);
        }
        if self.open.len() >= MOST_QUESTIONS {
            link.statistics.drop(Dropped::Full);
            return asker.answer(link, &failure(message));
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let question = Question {
            asker,
            message: message.to_vec(),
            socket: None,
            identifier: [0; 2],
            attempts: 0,
            due: None,
        };
        self.open.insert(id, question);
        self.by_asker.insert(asker, id);
        self.ask_next(link, id, token);
    }

    /// Asks the next name server, or gives up.
    fn ask_next(&mut self, link: &mut Link, id: u64, token: u64) {
        let servers = self.servers.current(link.now).to_vec();
        loop {
            let Some(question) = self.open.get_mut(&id) else {
                return;
            };
            let turn = question.attempts.checked_rem(servers.len());
            let server = turn.and_then(|turn| servers.get(turn));
            let is_over = question.attempts >= servers.len().saturating_mul(ROUNDS);
            let Some(server) = server.filter(|_| !is_over) else {
                link.statistics.drop(Dropped::NameServers);
                let answer = failure(&question.message);
                question.asker.answer(link, &answer);
                return self.remove(id);
            };
            question.attempts = question.attempts.saturating_add(1);
            if question.ask(link, *server, token | id).is_ok() {
                let due = link.now + PATIENCE;
                self.timers.forget(question.due.replace(due), id);
                return self.timers.add(due, id);
            }
        }
    }

    fn remove(&mut self, id: u64) {
        if let Some(question) = self.open.remove(&id) {
            self.timers.forget(question.due, id);
            self.by_asker.remove(&question.asker);
        }
    }

    /// Notes that a name server has answered.
    pub(super) fn note(&mut self, id: u64) {
        if self.open.contains_key(&id) && !self.ready.contains(&id) {
            self.ready.push_back(id);
        }
    }

    /// Gives the guest the answers that have come, and asks on where none has.
    pub(super) fn work(&mut self, link: &mut Link, token: u64) {
        // An answer that the guest has no room for stays with its socket.
        while !link.is_full()
            && let Some(id) = self.ready.pop_front()
        {
            let heard = self.open.get_mut(&id).map(|question| question.hear(link));
            match heard {
                Some(Heard::Answer) => self.remove(id),
                Some(Heard::Refusal) => self.ask_next(link, id, token),
                Some(Heard::Nothing) | None => {}
            }
        }
        while let Some(id) = self.timers.due(link.now) {
            self.ask_next(link, id, token);
        }
    }
}

/// What came from a name server.
#[derive(Debug)]
enum Heard {
    Answer,
    Refusal,
    Nothing,
}

impl Question {
    fn ask(&mut self, link: &mut Link, server: SocketAddr, token: u64) -> Result<(), Errno> {
        let family = match server {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        rustix::net::connect(&socket, &server)?;
        link.watch(&socket, token).map_err(|_| Errno::NFILE)?;
        rustix::rand::getrandom(&mut self.identifier, rustix::rand::GetRandomFlags::empty())?;
        let mut message = self.message.clone();
        if let Some(identifier) = message.first_chunk_mut() {
            *identifier = self.identifier;
        }
        rustix::net::send(&socket, &message, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        self.socket = Some(socket);
        Ok(())
    }

    fn hear(&mut self, link: &mut Link) -> Heard {
        let Some(socket) = &self.socket else {
            return Heard::Nothing;
        };
        loop {
            let room = link.datagram_room(self.asker.resolver.ip());
            let bytes = match rustix::net::recv(socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((bytes, _)) => bytes,
                Err(Errno::AGAIN) => return Heard::Nothing,
                Err(Errno::INTR) => continue,
                Err(_) => return Heard::Refusal,
            };
            let answer = room.get_mut(..bytes).unwrap_or_default();
            // Whoever guesses the port has to guess this, and know the question.
            let is_ours = answer.first_chunk() == Some(&self.identifier)
                && answer.get(2).is_some_and(|flags| flags & IS_ANSWER != 0)
                && question_of(answer)
                    .is_none_or(|asked| Some(asked) == question_of(&self.message));
            if is_ours {
                if let Some(identifier) = answer.first_chunk_mut() {
                    *identifier = self.asker.identifier;
                }
                let asker = self.asker;
                link.send_datagram(asker.resolver, asker.guest_port, bytes);
                return Heard::Answer;
            }
        }
    }
}

impl Asker {
    fn answer(&self, link: &mut Link, answer: &[u8]) {
        let room = link.datagram_room(self.resolver.ip());
        if let Some(room) = room.get_mut(..answer.len()) {
            room.copy_from_slice(answer);
            link.send_datagram(self.resolver, self.guest_port, answer.len());
        }
    }
}

/// The bytes of the one question of a message; `None` if there is not exactly one that makes sense.
pub(in crate::network) fn question_of(message: &[u8]) -> Option<&[u8]> {
    /// Type and class.
    const AFTER_NAME: usize = 4;
    if message.get(4..6) != Some(&[0, 1]) {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*message.get(at)?);
        at = at.checked_add(1)?;
        match length {
            0 => return message.get(HEADER_BYTES..at.checked_add(AFTER_NAME)?),
            1..64 => at = at.checked_add(length)?,
            _ => return None,
        }
    }
}

/// The name of a question, with dots and in small letters, and its type.
pub(in crate::network) fn name_and_type(question: &[u8]) -> Option<(String, u16)> {
    let (name, [type_0, type_1, ..]) = question.split_last_chunk::<4>()?;
    let mut rest = name;
    let mut labels = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (label, after) = after.split_at_checked(usize::from(*length))?;
        rest = after;
        if !label.is_empty() {
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        }
    }
    Some((labels.join("."), u16::from_be_bytes([*type_0, *type_1])))
}

/// The answer to a question about the host.
fn own_answer(message: &[u8]) -> Option<Vec<u8>> {
    let question = question_of(message)?;
    let (name, kind) = name_and_type(question)?;
    if !OWN_NAMES.contains(&name.as_str()) {
        return None;
    }
    let address = match kind {
        TYPE_A => GATEWAY_IPV4.octets().to_vec(),
        TYPE_AAAA => GATEWAY_IPV6.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut answer = reply(message, 0, question);
    if !address.is_empty() {
        add_record(&mut answer, kind, OWN_TTL_SECONDS, &address);
    }
    Some(answer)
}

/// What a question gets that nobody answers.
pub(in crate::network) fn failure(message: &[u8]) -> Vec<u8> {
    reply(message, SERVFAIL, question_of(message).unwrap_or_default())
}

pub(in crate::network) fn reply(message: &[u8], code: u8, question: &[u8]) -> Vec<u8> {
    /// Recursion is desired if the question says so, and available.
    const RECURSION_DESIRED: u8 = 1;
    const RECURSION_AVAILABLE: u8 = 0x80;
    let at = |index: usize| message.get(index).copied().unwrap_or_default();
    let mut reply = vec![
        at(0),
        at(1),
        IS_ANSWER | at(2) & RECURSION_DESIRED,
        RECURSION_AVAILABLE | code,
    ];
    reply.extend([0, u8::from(!question.is_empty())]);
    reply.extend([0; 6]);
    reply.extend(question);
    reply
}

/// The host's name servers.
#[derive(Debug)]
struct Servers {
    port: u16,
    known: Vec<SocketAddr>,
    /// Which file that was: device, inode, size and time of change.
    version: Option<[u64; 5]>,
    looked: Option<Instant>,
    is_fixed: bool,
}

impl Servers {
    fn new(port: u16) -> Self {
        Self {
            port,
            known: Vec::new(),
            version: None,
            looked: None,
            is_fixed: false,
        }
    }

    /// Those that the host has now.
    fn current(&mut self, now: Instant) -> &[SocketAddr] {
        let is_fresh = self.looked.is_some_and(|looked| now < looked + FRESH);
        if !self.is_fixed && !is_fresh {
            self.looked = Some(now);
            self.look();
        }
        &self.known
    }

    fn look(&mut self) {
        let version = fs::metadata(RESOLV_CONF).ok().map(|file| {
            [
                file.dev(),
                file.ino(),
                file.size(),
                file.mtime().cast_unsigned(),
                file.mtime_nsec().cast_unsigned(),
            ]
        });
        if version == self.version && version.is_some() {
            return;
        }
        // A file that is being replaced is there the next time.
        if let Ok(text) = read(RESOLV_CONF) {
            self.known = name_servers(&text, self.port);
            self.version = version;
        }
    }
}

fn read(path: &str) -> std::io::Result<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)?
        .take(MOST_FILE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The name servers that the host has now.
pub(in crate::network) fn servers_of_host() -> Vec<SocketAddr> {
    // A file that is being replaced is there the next time.
    let text = read(RESOLV_CONF).unwrap_or_default();
    name_servers(&text, DNS_PORT)
}

/// Adds a record to an answer, about the name in its question.
pub(in crate::network) fn add_record(
    answer: &mut Vec<u8>,
    kind: u16,
    ttl_seconds: u32,
    data: &[u8],
) {
    /// A pointer to the name in the question (RFC 1035, section 4.1.4), and the class IN.
    const NAME: [u8; 2] = [0xc0, 0x0c];
    const IN: [u8; 2] = [0, 1];
    /// Where the number of records is.
    const COUNT: usize = 6;
    let Ok(length) = u16::try_from(data.len()) else {
        return;
    };
    if let Some(place) = answer.get_mut(COUNT..COUNT + 2)
        && let Some(count) = place.first_chunk().map(|count| u16::from_be_bytes(*count))
    {
        place.copy_from_slice(&count.saturating_add(1).to_be_bytes());
    }
    answer.extend(NAME);
    answer.extend(kind.to_be_bytes());
    answer.extend(IN);
    answer.extend(ttl_seconds.to_be_bytes());
    answer.extend(length.to_be_bytes());
    answer.extend(data);
}

/// The name servers that the text of a resolv.conf names. Those whose address needs an interface's name are left out.
fn name_servers(text: &str, port: u16) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => words.next()?.parse::<IpAddr>().ok(),
            _ => None,
        }
    });
    let servers = named.take(MOST_SERVERS);
    servers
        .map(|address| SocketAddr::new(address, port))
        .collect()
}

#[cfg(test)]
pub(in crate::network) mod tests {
    use super::*;

    /// A question as a stub resolver asks it.
    pub(in crate::network) fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    #[test]
    fn name_servers_are_those_of_resolv_conf() {
        let text = "# me\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 \nnameserver fe80::1%eth0\n";
        assert_eq!(
            name_servers(text, 53),
            [
                "192.0.2.1:53".parse().unwrap(),
                "[2001:db8::1]:53".parse().unwrap()
            ]
        );
    }

    #[test]
    fn the_host_is_the_gateway() {
        let asked = question("Host.Docker.internal", TYPE_A);
        let answer = own_answer(&asked).unwrap();
        assert_eq!(answer[..4], [0x12, 0x34, 0x81, 0x80]);
        assert_eq!(answer[6..8], [0, 1]);
        assert!(answer.ends_with(&[0, 4, 10, 0, 2, 2]));
    }

    #[test]
    fn the_host_has_no_other_records() {
        let asked = question("host.containers.internal", 15);
        assert_eq!(own_answer(&asked).unwrap()[6..8], [0, 0]);
        assert!(own_answer(&question("example.org", TYPE_A)).is_none());
    }

    #[test]
    fn a_question_that_ends_early_is_none() {
        let whole = question("example.org", TYPE_A);
        for length in 0..whole.len() {
            assert_eq!(question_of(&whole[..length]), None);
            assert_eq!(own_answer(&whole[..length]), None);
        }
        assert!(question_of(&whole).is_some());
    }
}
