//! Machines with a gateway of their own: what reaches them, what they reach, and what becomes of them without it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::{Fixture, Invocation};

use crate::with_busybox;

pub(super) const IMAGE: &str = "busybox:test";
pub(super) const LIMIT: Duration = Duration::from_secs(240);

/// What a web server says of a path; nothing if it does not answer.
fn get(at: SocketAddr, path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(mut stream) = TcpStream::connect(at) {
        let asked = stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        // What has come counts, also before a reset.
        let _ = asked.and_then(|()| stream.read_to_end(&mut text));
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until a web server answers.
#[track_caller]
pub(super) fn await_page(at: SocketAddr, path: &str, content: &str) {
    let deadline = Instant::now() + LIMIT;
    while !get(at, path).contains(content) {
        assert!(Instant::now() < deadline, "{at} does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The gateways of machines whose monitors this process or one of the fixture's is: their parents' ids.
fn gateways_of(monitor: Pid) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("processes are listed");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_gateway = |id: &i32| {
        let place = Path::new("/proc").join(id.to_string());
        let line = fs::read(place.join("cmdline")).unwrap_or_default();
        let status = fs::read_to_string(place.join("status")).unwrap_or_default();
        let parent = format!("PPid:\t{}\n", monitor.as_raw_nonzero());
        line.ends_with(b"\0gateway\0") && status.contains(&parent)
    };
    ids.filter(is_gateway).filter_map(Pid::from_raw).collect()
}

pub(super) fn vmm(fixture: &Fixture, arguments: &[&str]) -> Invocation {
    fixture.vmm(arguments).limit(LIMIT)
}

fn start(fixture: &Fixture, options: &[&str], command: &[&str]) {
    let options = [&["-d", "--rm", "--name", "web"], options].concat();
    let started = fixture.run_name(IMAGE, &options, command).limit(LIMIT);
    started.run().succeeded();
}

fn published(fixture: &Fixture, port: &str) -> Vec<SocketAddr> {
    published_by(fixture, "web", port)
}

/// Where a port of a machine is published.
pub(super) fn published_by(fixture: &Fixture, machine: &str, port: &str) -> Vec<SocketAddr> {
    let printed = vmm(fixture, &["port", machine, port]).run();
    printed.succeeded();
    let lines = printed.stdout_text();
    lines
        .lines()
        .map(|line| line.parse().expect("it prints addresses"))
        .collect()
}

fn monitor(fixture: &Fixture) -> Pid {
    let format = ["inspect", "-f", "{{.State.Pid}}", "web"];
    let printed = vmm(fixture, &format).run().stdout_text();
    let pid = printed.trim().parse().ok().and_then(Pid::from_raw);
    pid.expect("a machine that runs has a monitor")
}

const SERVER: [&str; 3] = [
    "sh",
    "-c",
    "mkdir /tmp/w; echo page > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w",
];

#[test]
fn a_published_port_is_reached_and_one_whose_gateway_was_killed_again() {
    let fixture = with_busybox();
    start(
        &fixture,
        &["-p", "127.0.0.1::80", "-p", "[::1]::80"],
        &SERVER,
    );
    let places = published(&fixture, "80");
    assert_eq!(places.len(), 2);

    for at in &places {
        await_page(*at, "/", "page\n");
    }
    let listed = vmm(&fixture, &["ps", "--format", "{{.Ports}} {{.Networks}}"]).run();
    let all = vmm(&fixture, &["port", "web"]).run();
    let first = places[0];
    listed.stdout_is(&format!("{first}->80/tcp, {}->80/tcp user\n", places[1]));
    all.stdout_is(&format!("80/tcp -> {first}\n80/tcp -> {}\n", places[1]));
    vmm(&fixture, &["port", "web", "81"])
        .run()
        .stderr_has("no public port '81/tcp' published for web");

    let monitor = monitor(&fixture);
    let [gateway] = gateways_of(monitor)[..] else {
        panic!("the machine has one gateway");
    };
    kill_process(gateway, Signal::KILL).expect("it can be killed");
    await_page(first, "/", "page\n");

    vmm(&fixture, &["rm", "-f", "web"]).run().succeeded();
    fixture.nothing_runs();
    assert!(gateways_of(monitor).is_empty());
    assert!(TcpStream::connect(first).is_err());
}

#[test]
fn an_idle_machine_has_no_gateway_and_its_network_is_there() {
    let fixture = with_busybox();
    start(&fixture, &[], &["sleep", "1000"]);

    let before = gateways_of(monitor(&fixture));
    let looked = vmm(
        &fixture,
        &[
            "exec", "web", "sh", "-c",
            "ip -o address show dev eth0 | grep -o 'inet[6]* [^ ]*'; cat /etc/resolv.conf | grep nameserver; \
             ping -c 1 10.0.2.2 > /dev/null && echo there",
        ],
    )
    .run();
    let after = gateways_of(monitor(&fixture));
    vmm(&fixture, &["rm", "-f", "web"]).run().succeeded();
    fixture.nothing_runs();

    assert_eq!(before.len(), 0);
    looked.stdout_has("inet 10.0.2.15/24\ninet6 fd00:76:6d:6d::15/64\n");
    looked.stdout_has("nameserver 10.0.2.3\n");
    looked.stdout_has("there\n");
    assert_eq!(after.len(), 1);
}

#[test]
fn a_machine_reaches_what_the_host_does_but_not_its_loopback() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("Not root: what takes a network of the test's own was not tested.");
        return;
    }
    let fixture = with_busybox();
    let page = fixture.path("www");
    fs::create_dir(&page).expect("a directory can be made");
    fs::write(page.join("index.html"), "of the host\n").expect("a file can be written");
    let script = format!(
        "ip link set lo up; ip address add 192.0.2.1/32 dev lo; ip address add 198.51.100.1/32 dev lo
         busybox httpd -f -p 80 -h {} & server=$!
         \"$@\"; code=$?; kill $server; exit $code",
        page.display()
    );
    let inside = "for to in 192.0.2.1 198.51.100.1 10.0.2.2; do \
                  printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $to 80 2>/dev/null | grep host || echo no $to; done";
    let denied = "198.51.100.0/24";
    let run = Invocation::new("unshare")
        .args(["--net", "sh", "-c", &script, "sh"])
        .arg(tests::binary::vmm())
        .args(["run", "--rm", "--no-template", "--network-deny", denied])
        .args([IMAGE, "sh", "-c", inside])
        .env("VMM_ROOT", fixture.root())
        .limit(LIMIT)
        .run();

    run.stdout_is("of the host\nno 198.51.100.1\nno 10.0.2.2\n");
}

#[test]
fn the_hosts_loopback_is_reached_by_the_gateways_name_if_that_is_said() {
    let fixture = with_busybox();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = server.local_addr().expect("it has an address").port();
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("somebody comes");
        stream.write_all(b"of the host\n").expect("it can be told");
    });
    let inside = format!(
        "nc -w 60 $(awk '/the-host/ {{ print $1; exit }}' /etc/hosts) {port} < /dev/null; grep the-host /etc/hosts"
    );
    let options = [
        "--rm",
        "--network",
        "user:host-loopback",
        "--add-host",
        "the-host:host-gateway",
    ];
    let run = fixture.run_name(IMAGE, &options, &["sh", "-c", &inside]);
    let run = run.limit(LIMIT).run();

    run.stdout_is("of the host\n10.0.2.2\tthe-host\nfd00:76:6d:6d::2\tthe-host\n");
    answers.join().expect("the server has answered");
    fixture.nothing_runs();
}

#[test]
fn clones_have_a_gateway_each_and_are_told_apart() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("Not root: what takes a network of the test's own was not tested.");
        return;
    }
    let fixture = with_busybox();
    let inside = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 60 192.0.2.1 80 | grep host; \
                  cat /sys/class/net/eth0/address >&2";
    let script = r#"
        export VMM_NO_TEMPLATE=0
        cd "$VMM_ROOT"
        ip link set lo up; ip address add 192.0.2.1/32 dev lo
        mkdir www; echo 'of the host' > www/index.html
        busybox httpd -f -p 192.0.2.1:80 -h www & server=$!
        trap 'kill $server' EXIT
        "$VMM_BINARY" prepare --rm busybox:test
        for number in 1 2; do
            "$VMM_BINARY" run --rm --timings busybox:test sh -c "$INSIDE" 2> said$number
            busybox grep -o clone said$number
        done
        busybox grep -h '^02:' said1 said2 | busybox sort -u | busybox wc -l
        "#;
    let run = fixture.in_private_network(script);
    let run = run.env("INSIDE", inside).limit(LIMIT).run();

    run.succeeded()
        .stdout_is("prepared\nof the host\nclone\nof the host\nclone\n2\n");
    fixture.nothing_runs();
}

#[test]
fn a_clone_has_the_ethernet_address_that_was_typed_and_one_without_a_network_has_none() {
    let fixture = with_busybox();
    let script = r#"
        export VMM_NO_TEMPLATE=0
        cd "$VMM_ROOT"
        "$VMM_BINARY" prepare --rm busybox:test
        "$VMM_BINARY" prepare --rm --network none busybox:test
        "$VMM_BINARY" run --rm --timings --mac-address 02:00:00:00:00:07 busybox:test sh -c "$INSIDE" 2> said
        busybox grep -o clone said
        "$VMM_BINARY" run --rm --timings --network none busybox:test ls /sys/class/net 2> said
        busybox grep -o clone said
        "#;
    let inside = "cat /sys/class/net/eth0/address; ping -c 1 10.0.2.2 > /dev/null && echo there";
    let run = fixture.in_private_network(script);
    let run = run.env("INSIDE", inside).limit(LIMIT).run();

    run.succeeded()
        .stdout_is("prepared\nprepared\n02:00:00:00:00:07\nthere\nclone\nlo\nclone\n");
    fixture.nothing_runs();
}

#[test]
fn a_port_that_cannot_be_published_is_named() {
    let fixture = with_busybox();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let at = taken.local_addr().expect("it has an address");
    let run = |options: &[&str]| fixture.run_name(IMAGE, options, &["true"]).run();

    run(&["-p", &format!("{at}:80")])
        .code_is(125)
        .stderr_has(&format!("Bind for {at} failed: port is already allocated"));
    run(&["-p", "192.0.2.1:8080:80"])
        .code_is(125)
        .stderr_has("the host has no such address");
    run(&["-p", "70000:80"])
        .code_is(125)
        .stderr_has("'70000' is no port from 1 to 65535");
    run(&["-p", "8080:80", "--network", "none"])
        .code_is(125)
        .stderr_has("--publish is for a machine with --network user");
}
