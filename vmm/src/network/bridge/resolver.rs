//! The names of a network: answers the questions of one machine's guest, in that machine's monitor.
//!
//! Names, first digits of ids and aliases of the machines on the network are answered from its record; everything else is asked of the
//! name servers that were typed, or of the host's, each question from a port and with an identifier that nobody can know. Machines on an
//! internal network are told of nobody else. A question is a guest's word: it is read by [`dns`](crate::network::gateway::dns).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Networks;
use super::name::NetworkName;
use super::record::NetworkRecord;
use crate::network::gateway::dns::{
    HEADER_BYTES, IS_ANSWER, MOST_QUESTIONS, ROUNDS, SERVFAIL, TYPE_A, TYPE_AAAA, add_record,
    failure, name_and_type, question_of, reply, servers_of_host,
};
use crate::network::gateway::policy::DNS_PORT;

/// How long a name server has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a guest may take to say something over TCP.
const TCP_PATIENCE: Duration = Duration::from_secs(10);
/// How many connections of a guest are answered at a time.
const MOST_CONNECTIONS: usize = 8;
/// The longest message (RFC 1035, section 4.2.2).
const MOST_BYTES: usize = 65_535;
/// An answer over UDP is no longer (RFC 1035, section 4.2.1): of many addresses, some are enough.
const MOST_ANSWER_BYTES: usize = 512;
/// The most that a record of an address takes.
const ADDRESS_BYTES: usize = 28;
/// How long the address of a machine may be remembered: docker's, which is long enough for one start of a program.
const TTL_SECONDS: u32 = 0;
const NOT_THERE: u8 = 3;
const NOT_IMPLEMENTED: u8 = 4;
const TYPE_PTR: u16 = 12;

/// What a question gets.
#[derive(Debug, PartialEq, Eq)]
enum Answered {
    /// This.
    Here(Vec<u8>),
    /// What others say.
    Elsewhere,
    /// Nothing: it is no question.
    Nothing,
}

/// Answers a question about the machines of a network.
fn answer(record: &NetworkRecord, message: &[u8]) -> Answered {
    const OPERATION: u8 = 0x78;
    const CLASS_IN: [u8; 2] = [0, 1];
    let Some([_, _, flags, ..]) = message.first_chunk::<HEADER_BYTES>() else {
        return Answered::Nothing;
    };
    if flags & IS_ANSWER != 0 {
        return Answered::Nothing;
    }
    let Some(question) = question_of(message) else {
        return Answered::Here(failure(message));
    };
    if flags & OPERATION != 0 {
        return Answered::Here(reply(message, NOT_IMPLEMENTED, question));
    }
    let Some((name, kind)) = name_and_type(question).filter(|_| question.ends_with(&CLASS_IN))
    else {
        return Answered::Elsewhere;
    };
    match reversed(&name) {
        Some(address) if record.pools.iter().any(|it| it.subnet.contains(address)) => {
            Answered::Here(name_of(record, message, question, address, kind))
        }
        Some(_) => Answered::Elsewhere,
        None => addresses_of(record, message, question, &name, kind)
            .map_or(Answered::Elsewhere, Answered::Here),
    }
}

/// The addresses of a machine; none if none is called that.
fn addresses_of(
    record: &NetworkRecord,
    message: &[u8],
    question: &[u8],
    name: &str,
    kind: u16,
) -> Option<Vec<u8>> {
    let network = record.name.as_str().to_ascii_lowercase();
    let within = name.strip_suffix(&network);
    let short = within.and_then(|rest| rest.strip_suffix('.'));
    let names = [Some(name), short];
    let is_meant = |wanted: &Option<&str>, id, lease: &super::Lease| {
        wanted.is_some_and(|wanted| lease.is_called(id, wanted))
    };
    let found = record
        .leases
        .iter()
        .filter(|(id, lease)| names.iter().any(|wanted| is_meant(wanted, id, lease)));
    let mut found = found.peekable();
    found.peek()?;
    let mut answer = reply(message, 0, question);
    for (_, lease) in found {
        let address = match kind {
            TYPE_A => lease.address(true),
            TYPE_AAAA => lease.address(false),
            _ => None,
        };
        let Some(address) = address else { continue };
        if answer.len() + ADDRESS_BYTES > MOST_ANSWER_BYTES {
            break;
        }
        match address.address {
            IpAddr::V4(address) => add_record(&mut answer, kind, TTL_SECONDS, &address.octets()),
            IpAddr::V6(address) => add_record(&mut answer, kind, TTL_SECONDS, &address.octets()),
        }
    }
    Some(answer)
}

/// The name of the machine with an address, in docker's form: `NAME.NETWORK`.
fn name_of(
    record: &NetworkRecord,
    message: &[u8],
    question: &[u8],
    address: IpAddr,
    kind: u16,
) -> Vec<u8> {
    let has_it = |lease: &&super::Lease| lease.addresses.iter().any(|it| it.address == address);
    let lease = record.leases.values().find(has_it);
    let name = lease.and_then(|lease| lease.name.as_deref());
    let data = name.and_then(|name| spell(&format!("{name}.{}", record.name)));
    match (data, kind) {
        (None, _) => reply(message, NOT_THERE, question),
        (Some(data), TYPE_PTR) => {
            let mut answer = reply(message, 0, question);
            add_record(&mut answer, TYPE_PTR, TTL_SECONDS, &data);
            answer
        }
        (Some(_), _) => reply(message, 0, question),
    }
}

/// A name as messages have it (RFC 1035, section 3.1); none of one that is too long.
fn spell(name: &str) -> Option<Vec<u8>> {
    const MOST_LABEL_BYTES: usize = 63;
    const MOST_NAME_BYTES: usize = 255;
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let length = u8::try_from(label.len()).ok()?;
        (label.len() <= MOST_LABEL_BYTES).then_some(())?;
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MOST_NAME_BYTES).then_some(bytes)
}

/// The address whose name is asked for (RFC 1035, section 3.5; RFC 3596, section 2.5).
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let parts: Vec<&str> = digits.rsplit('.').collect();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::from);
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut value: u128 = 0;
    let mut count: u32 = 0;
    for digit in digits.rsplit('.') {
        let [digit] = digit.as_bytes() else {
            return None;
        };
        let digit = char::from(*digit).to_digit(16)?;
        value = value.checked_shl(4)? | u128::from(digit);
        count = count.checked_add(1)?;
    }
    (count == 32).then(|| Ipv6Addr::from(value).into())
}

/// The network's record as it is now, read when it has changed.
#[derive(Clone, Debug)]
struct Names {
    networks: Networks,
    network: NetworkName,
    known: Option<Arc<NetworkRecord>>,
    version: Option<(u64, i64, i64)>,
    /// Name servers that were typed.
    servers: Vec<IpAddr>,
}

impl Names {
    fn current(&mut self) -> Option<Arc<NetworkRecord>> {
        let version = self.networks.version(&self.network);
        if version != self.version || self.known.is_none() {
            self.known = self.networks.read(&self.network).ok().map(Arc::new);
            self.version = version;
        }
        self.known.clone()
    }

    fn answer(&mut self, message: &[u8]) -> Answered {
        let Some(record) = self.current() else {
            return Answered::Here(failure(message));
        };
        match answer(&record, message) {
            Answered::Elsewhere if record.internal => Answered::Here(failure(message)),
            answered => answered,
        }
    }

    /// Whom to ask about everything else.
    fn servers(&self) -> Vec<SocketAddr> {
        let typed = self.servers.iter();
        let typed: Vec<_> = typed.map(|it| SocketAddr::new(*it, DNS_PORT)).collect();
        match typed.is_empty() {
            true => servers_of_host(),
            false => typed,
        }
    }
}

/// A question that others are asked.
#[derive(Debug)]
struct Question {
    asker: SocketAddr,
    /// As the guest has sent it.
    message: Vec<u8>,
    socket: Option<UdpSocket>,
    /// The one under which it goes out.
    identifier: [u8; 2],
    attempts: usize,
    due: Instant,
}

/// Answers the questions of a machine.
#[derive(Debug)]
pub(super) struct Resolver {
    /// Whose questions they are; nobody else is answered.
    asker: IpAddr,
    udp: UdpSocket,
    tcp: TcpListener,
    names: Names,
    questions: Vec<Question>,
    connections: Arc<AtomicUsize>,
}

impl Resolver {
    /// Opens it on this address, at a port that the host chooses, the same for UDP and TCP.
    pub(super) fn open(
        address: IpAddr,
        asker: IpAddr,
        networks: &Networks,
        network: &NetworkName,
        servers: Vec<IpAddr>,
    ) -> io::Result<(Self, u16)> {
        const ATTEMPTS: usize = 16;
        let mut attempts = 0;
        let (udp, tcp) = loop {
            attempts += 1;
            let udp = UdpSocket::bind((address, 0))?;
            match TcpListener::bind(udp.local_addr()?) {
                Ok(tcp) => break (udp, tcp),
                Err(error) if attempts >= ATTEMPTS => return Err(error),
                Err(_) => {}
            }
        };
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let port = udp.local_addr()?.port();
        let names = Names {
            networks: networks.clone(),
            network: network.clone(),
            known: None,
            version: None,
            servers,
        };
        let resolver = Self {
            asker,
            udp,
            tcp,
            names,
            questions: Vec::new(),
            connections: Arc::default(),
        };
        Ok((resolver, port))
    }

    /// What becomes readable when there is something to do.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = [self.udp.as_fd(), self.tcp.as_fd()];
        let asked = self.questions.iter().filter_map(|it| it.socket.as_ref());
        own.into_iter().chain(asked.map(AsFd::as_fd))
    }

    /// When there is something to do even if nothing comes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.questions.iter().map(|it| it.due).min()
    }

    /// Does what there is to do.
    pub(super) fn work(&mut self) {
        self.hear();
        let mut room = vec![0; MOST_BYTES];
        // No more at a time than may be open: the rest waits.
        for _ in 0..MOST_QUESTIONS {
            match self.udp.recv_from(&mut room) {
                Ok((_, asker)) if asker.ip() != self.asker => {}
                Ok((length, asker)) => {
                    self.take(room.get(..length).unwrap_or_default(), asker);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An answer that nobody took is no reason to stop.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(_) => break,
            }
        }
        while let Ok((stream, asker)) = self.tcp.accept() {
            if asker.ip() == self.asker {
                self.converse(stream);
            }
        }
    }

    fn take(&mut self, message: &[u8], asker: SocketAddr) {
        match self.names.answer(message) {
            Answered::Nothing => {}
            Answered::Here(answer) => self.tell(&answer, asker),
            Answered::Elsewhere if self.questions.len() >= MOST_QUESTIONS => {
                self.tell(&failure(message), asker);
            }
            Answered::Elsewhere => {
                let question = Question {
                    asker,
                    message: message.to_vec(),
                    socket: None,
                    identifier: [0; 2],
                    attempts: 0,
                    due: Instant::now(),
                };
                self.ask(question);
            }
        }
    }

    fn tell(&self, answer: &[u8], asker: SocketAddr) {
        if let Err(error) = self.udp.send_to(answer, asker) {
            tracing::debug!(%error, "an answer about names was lost");
        }
    }

    /// Asks the next name server, or gives up.
    fn ask(&mut self, mut question: Question) {
        let servers = self.names.servers();
        while question.attempts < servers.len().saturating_mul(ROUNDS) {
            let turn = question.attempts.checked_rem(servers.len());
            let server = turn.and_then(|turn| servers.get(turn));
            question.attempts = question.attempts.saturating_add(1);
            if server.is_some_and(|server| question.send(*server).is_ok()) {
                question.due = Instant::now() + PATIENCE;
                return self.questions.push(question);
            }
        }
        self.tell(&failure(&question.message), question.asker);
    }

    /// Hands on the answers that have come, and asks on where none has.
    fn hear(&mut self) {
        let now = Instant::now();
        if self.questions.is_empty() {
            return;
        }
        let mut room = vec![0; MOST_BYTES];
        for mut question in std::mem::take(&mut self.questions) {
            match question.hear(&mut room) {
                Ok(Some(answer)) => self.tell(&answer, question.asker),
                Ok(None) if question.due > now => self.questions.push(question),
                Ok(None) | Err(_) => self.ask(question),
            }
        }
    }

    /// Answers questions over TCP, which nobody else waits for.
    fn converse(&self, stream: TcpStream) {
        let counted = Counted::new(&self.connections);
        if counted.others >= MOST_CONNECTIONS {
            return;
        }
        let mut names = self.names.clone();
        let started = std::thread::Builder::new()
            .name("names".to_owned())
            .spawn(move || {
                let _counted = counted;
                if let Err(error) = answer_stream(&stream, &mut names) {
                    tracing::debug!(%error, "a conversation about names has ended");
                }
            });
        if let Err(error) = started {
            tracing::debug!(%error, "a conversation about names has not begun");
        }
    }
}

impl Question {
    fn send(&mut self, server: SocketAddr) -> io::Result<()> {
        let any: IpAddr = match server.is_ipv4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(server)?;
        rustix::rand::getrandom(&mut self.identifier, rustix::rand::GetRandomFlags::empty())?;
        let mut message = self.message.clone();
        if let Some(identifier) = message.first_chunk_mut() {
            *identifier = self.identifier;
        }
        socket.send(&message)?;
        self.socket = Some(socket);
        Ok(())
    }

    /// The answer, if it has come; an error if none comes.
    fn hear(&mut self, room: &mut [u8]) -> io::Result<Option<Vec<u8>>> {
        let Some(socket) = &self.socket else {
            return Ok(None);
        };
        loop {
            let length = match socket.recv(room) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let answer = room.get(..length).unwrap_or_default();
            // Whoever guesses the port has to guess this, and know the question.
            let is_ours = answer.first_chunk() == Some(&self.identifier)
                && answer.get(2).is_some_and(|flags| flags & IS_ANSWER != 0)
                && question_of(answer)
                    .is_none_or(|asked| Some(asked) == question_of(&self.message));
            if is_ours {
                let mut answer = answer.to_vec();
                if let (Some(place), Some(own)) =
                    (answer.first_chunk_mut::<2>(), self.message.first_chunk())
                {
                    *place = *own;
                }
                return Ok(Some(answer));
            }
        }
    }
}

/// One of several, for as long as this is there.
#[derive(Debug)]
pub(super) struct Counted {
    all: Arc<AtomicUsize>,
    /// How many there were before.
    pub(super) others: usize,
}

impl Counted {
    pub(super) fn new(all: &Arc<AtomicUsize>) -> Self {
        Self {
            others: all.fetch_add(1, Ordering::SeqCst),
            all: Arc::clone(all),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers what comes over a connection, until it ends or says nothing for too long.
fn answer_stream(stream: &TcpStream, names: &mut Names) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.set_write_timeout(Some(TCP_PATIENCE))?;
    loop {
        let message = read_message(stream)?;
        let answer = match names.answer(&message) {
            Answered::Nothing => return Ok(()),
            Answered::Here(answer) => answer,
            Answered::Elsewhere => {
                let servers = names.servers();
                let mut answers = servers.iter().map(|server| ask_over_tcp(*server, &message));
                let found = answers.find_map(Result::ok);
                found.unwrap_or_else(|| {
                    reply(
                        &message,
                        SERVFAIL,
                        question_of(&message).unwrap_or_default(),
                    )
                })
            }
        };
        write_message(stream, &answer)?;
    }
}

fn ask_over_tcp(server: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(TCP_PATIENCE))?;
    stream.set_write_timeout(Some(TCP_PATIENCE))?;
    write_message(&stream, message)?;
    read_message(&stream)
}

/// Reads a message with its length before it (RFC 1035, section 4.2.2).
fn read_message(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(mut stream: &TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend(message);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::network::bridge::tests::{network, with_machine};
    use crate::network::gateway::dns::tests::question;

    fn of(record: &NetworkRecord, name: &str, kind: u16) -> Answered {
        answer(record, &question(name, kind))
    }

    /// The code and the number of records of an answer.
    fn code(answered: &Answered) -> (u8, u8) {
        match answered {
            Answered::Here(answer) => (answer[3] & 0xf, answer[7]),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_machine_is_known_by_name_id_and_alias() {
        let mut record = network("net", &["10.5.0.0/24"]);
        let id = with_machine(&mut record, "web", &["shop"], &["10.5.0.2"]);
        for name in ["web", "WEB", "shop", id.short(), "web.net", "shop.net"] {
            let answered = of(&record, name, TYPE_A);
            assert_eq!(code(&answered), (0, 1), "{name}");
            let Answered::Here(answer) = answered else {
                unreachable!()
            };
            assert!(answer.ends_with(&[0, 4, 10, 5, 0, 2]));
        }
        assert_eq!(of(&record, "other", TYPE_A), Answered::Elsewhere);
        assert_eq!(of(&record, "web.other", TYPE_A), Answered::Elsewhere);
        assert_eq!(of(&record, &id.short()[..11], TYPE_A), Answered::Elsewhere);
    }

    #[test]
    fn what_a_machine_has_not_is_no_data_and_no_lie() {
        let mut record = network("net", &["10.5.0.0/24"]);
        with_machine(&mut record, "web", &[], &["10.5.0.2"]);
        assert_eq!(code(&of(&record, "web", TYPE_AAAA)), (0, 0));
        assert_eq!(code(&of(&record, "web", 15)), (0, 0));
    }

    #[test]
    fn machines_with_one_alias_are_all_answered_as_far_as_there_is_room() {
        let mut record = network("net", &["10.5.0.0/24"]);
        for last in 2..100 {
            let (name, address) = (format!("w{last}"), format!("10.5.0.{last}"));
            with_machine(&mut record, &name, &["all"], &[&address]);
        }
        let Answered::Here(answer) = of(&record, "all", TYPE_A) else {
            panic!("it is known")
        };
        assert!(answer.len() <= MOST_ANSWER_BYTES);
        assert!(answer[7] > 20);
    }

    #[test]
    fn an_address_has_its_machines_name() {
        let mut record = network("net", &["10.5.0.0/24", "fd05::/64"]);
        with_machine(&mut record, "web", &[], &["10.5.0.2", "fd05::2"]);
        let name = b"\x03web\x03net\x00";
        let Answered::Here(answer) = of(&record, "2.0.5.10.in-addr.arpa", TYPE_PTR) else {
            panic!("it is known")
        };
        assert!(answer.ends_with(name));
        let six = format!("2.{}5.0.d.f.ip6.arpa", "0.".repeat(27));
        let Answered::Here(answer) = of(&record, &six, TYPE_PTR) else {
            panic!("it is known")
        };
        assert!(answer.ends_with(name));
        assert_eq!(
            code(&of(&record, "3.0.5.10.in-addr.arpa", TYPE_PTR)),
            (NOT_THERE, 0)
        );
        assert_eq!(
            of(&record, "1.2.0.192.in-addr.arpa", TYPE_PTR),
            Answered::Elsewhere
        );
    }

    #[test]
    fn an_answer_is_no_question() {
        let mut message = question("web", TYPE_A);
        message[2] |= IS_ANSWER;
        assert_eq!(
            answer(&network("net", &["10.5.0.0/24"]), &message),
            Answered::Nothing
        );
    }

    proptest! {
        #[test]
        fn whatever_a_guest_sends_is_read(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut record = network("net", &["10.5.0.0/24"]);
            with_machine(&mut record, "web", &["shop"], &["10.5.0.2"]);
            if let Answered::Here(answer) = answer(&record, &bytes) {
                prop_assert_eq!(&answer[..2], &bytes[..2]);
            }
        }

        #[test]
        fn whatever_is_asked_has_an_answer_that_fits(name in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,5}", kind: u16) {
            let mut record = network("net", &["10.5.0.0/24"]);
            with_machine(&mut record, &name, &[], &["10.5.0.2"]);
            let answered = answer(&record, &question(&name, kind));
            if let Answered::Here(answer) = answered {
                prop_assert!(answer.len() <= MOST_ANSWER_BYTES);
            }
        }
    }
}
