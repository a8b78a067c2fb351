//! The gateway as the process that it is: the hidden command, with a wire and a monitor that are this test.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};
use vmm::network::gateway::addresses::{GATEWAY_IPV4, GATEWAY_MAC, GUEST_IPV4};
use vmm::network::gateway::{Configuration, Gateway, wire};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a gateway that has spoken and idles may take for itself.
const MOST_PRIVATE_KIB: u64 = 2 << 10;

fn start() -> (OwnedFd, Gateway) {
    let (guest, end) = wire().expect("sockets can be made");
    let program = Path::new(env!("CARGO_BIN_EXE_vmm"));
    let configuration = Configuration::default();
    let gateway = Gateway::start_program(program, &configuration, end.as_fd(), &[]);
    (guest, gateway.expect("a gateway starts"))
}

/// Asks by ARP who has the gateway's address (RFC 826), and waits for the answer.
fn speak(guest: &OwnedFd) {
    let mut frame = vec![0; 12];
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 0x15, 0x08, 0x06]);
    frame.extend([0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend([2, 0, 0, 0, 0, 0x15]);
    frame.extend(GUEST_IPV4.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY_IPV4.octets());
    rustix::net::send(guest, &frame, SendFlags::NOSIGNAL).expect("a frame is taken");
    rustix::io::ioctl_fionbio(guest, false).expect("a socket can block");
    let mut answer = [0; 128];
    let received = rustix::net::recv(guest, &mut answer, RecvFlags::empty());
    let (count, _) = received.expect("a frame comes");
    let arp = &answer[12 + 14..count];
    assert_eq!(arp[6..8], [0, 2]);
    assert_eq!(arp[8..14], GATEWAY_MAC);
}

/// A field of `/proc/PID/status` or a file like it.
fn field(pid: u32, file: &str, name: &str) -> String {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("the process is there");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.expect("the field is there")
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

fn await_end(pid: u32) {
    let deadline = Instant::now() + PATIENCE;
    // One that was not waited for is a zombie.
    while !field(pid, "status", "State").starts_with('Z') {
        assert!(Instant::now() < deadline, "the gateway lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_gateway_that_works_is_in_its_jail() {
    let (guest, gateway) = start();
    speak(&guest);
    let status = |name| field(gateway.pid(), "status", name);
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Seccomp"), "2");
    for set in ["CapEff", "CapPrm", "CapInh"] {
        assert_eq!(status(set), "0000000000000000");
    }
    assert_eq!(status("Threads"), "1");
    if rustix::process::geteuid().is_root() {
        assert_eq!(status("Uid"), "65534\t65534\t65534\t65534");
        assert_eq!(status("Groups"), "");
    } else {
        eprintln!("Not root: whether root's gateway is nobody's was not tested.");
    }
}

#[test]
fn a_gateway_has_its_own_descriptors_and_no_others() {
    let _of_the_test = std::fs::File::open("/proc/self/status").unwrap();
    let (guest, gateway) = start();
    speak(&guest);
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let open: Vec<_> = open
        .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let of = |kind: &str| open.iter().filter(|path| path.starts_with(kind)).count();
    assert_eq!(
        (of("/dev/null"), of("socket:"), of("anon_inode:[eventpoll]")),
        (3, 2, 1),
        "{open:?}"
    );
    assert_eq!(open.len(), 6, "{open:?}");
}

#[test]
fn a_gateway_that_has_spoken_takes_little_memory() {
    let (guest, gateway) = start();
    speak(&guest);
    let kib = |name| -> u64 {
        let text = field(gateway.pid(), "smaps_rollup", name);
        text.trim_end_matches(" kB").parse().unwrap()
    };
    // The rest is the program's file, which is the monitor's and all other machines', too.
    let own = kib("Anonymous");
    assert!(own <= MOST_PRIVATE_KIB, "{own} KiB");
}

#[test]
fn a_gateway_tells_what_it_has_counted() {
    let (guest, gateway) = start();
    speak(&guest);
    let statistics = gateway.statistics().unwrap();
    assert_eq!((statistics.received_frames, statistics.sent_frames), (1, 1));
    assert_eq!((statistics.received_bytes, statistics.sent_bytes), (42, 42));
}

#[test]
fn a_gateway_ends_with_its_machine() {
    let (guest, gateway) = start();
    speak(&guest);
    drop(guest);
    await_end(gateway.pid());
}

#[test]
fn a_gateway_is_gone_when_the_monitor_lets_go_of_it() {
    let (_guest, gateway) = start();
    gateway.statistics().unwrap();
    let place = format!("/proc/{}", gateway.pid());
    drop(gateway);
    assert!(!Path::new(&place).exists());
}

#[test]
fn a_gateway_without_a_monitor_says_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vmm"))
        .arg("gateway")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), None);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("network gateway has ended"), "{said}");
}
