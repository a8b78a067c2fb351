//! Machines with a gateway of their own that were written down, and go on, or are copied: their connections and their ports.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use tests::Fixture;

use super::user::{IMAGE, LIMIT, await_page, published_by, vmm};
use crate::with_busybox;

/// A fixture, and the words of the file for a snapshot in it.
fn home() -> (Fixture, String) {
    let fixture = with_busybox();
    let file = fixture.path("snapshot");
    let file = file.to_str().expect("paths here are text").to_owned();
    (fixture, file)
}

/// A web server whose page says which copy it is of a machine that waited to be copied.
const FORKING: &str = "mkdir /tmp/w; echo first > /tmp/w/index.html; httpd -p 80 -h /tmp/w; \
     read generation < /dev/fork-point; echo copy $generation > /tmp/w/index.html; exec sleep 1000";

#[test]
fn a_connection_that_was_open_ends_at_once_in_a_copy_which_can_make_others() {
    let (fixture, file) = home();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = server.local_addr().expect("it has an address").port();
    let inside = format!(
        "mkfifo /tmp/out /tmp/in; exec 3<>/tmp/out 4<>/tmp/in
         nc -l -p 9 <&3 > /tmp/heard & until nc 127.0.0.1 9 <&4; do sleep 0.1; done &
         nc 10.0.2.2 {port} <&3; echo over
         nc 10.0.2.2 {port} <&3
         echo within >&4; until cat /tmp/heard | grep within; do sleep 0.1; done"
    );
    let options = ["--name", "first", "--network", "user:host-loopback"];
    let first = fixture.run_name(IMAGE, &options, &["sh", "-c", &inside]);
    let first = first.limit(LIMIT).start();
    let (mut open, _) = server.accept().expect("somebody comes");
    open.write_all(b"connected\n").expect("it can be told");
    first.wait_for_stdout("connected\n");

    vmm(&fixture, &["snapshot", "--stop", "first", &file])
        .run()
        .succeeded();
    first.finish().code_is(137);
    let answers = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().expect("the copy comes");
        stream
            .write_all(b"connected anew\n")
            .expect("it can be told");
    });
    let copy = vmm(&fixture, &["run", "--restore", &file]).run();

    copy.code_is(0).stdout_is("over\nconnected anew\nwithin\n");
    answers.join().expect("the server has answered");
    fixture.nothing_runs();
}

#[test]
fn a_server_that_goes_on_is_reached_by_the_ports_it_had_or_by_others_that_are_typed() {
    let (fixture, file) = home();
    let options = ["-d", "--name", "first", "-p", "127.0.0.1::80"];
    let server = "mkdir /tmp/w; echo page > /tmp/w/index.html; exec httpd -f -p 80 -h /tmp/w";
    let first = fixture.run_name(IMAGE, &options, &["sh", "-c", server]);
    first.limit(LIMIT).run().succeeded();
    let had = published_by(&fixture, "first", "80")[0];
    await_page(had, "/", "page\n");
    let stop = |name: &str| vmm(&fixture, &["snapshot", "--stop", name, &file]).run();
    let restore = |options: &[&str]| {
        let arguments = [&["run", "-d", "--restore", &file], options].concat();
        vmm(&fixture, &arguments).run()
    };
    stop("first").succeeded();
    fixture.nothing_runs();

    let taken = TcpListener::bind(had).expect("nobody has it any more");
    restore(&[])
        .refused(&[&format!("Bind for {had} failed: port is already allocated")])
        .helped();
    restore(&["--name", "second", "-p", "127.0.0.1::80"]).succeeded();
    let other = published_by(&fixture, "second", "80")[0];
    assert_ne!(other, had);
    await_page(other, "/", "page\n");

    stop("second").succeeded();
    fixture.nothing_runs();
    drop(taken);
    restore(&["--name", "third"]).succeeded();
    assert_eq!(published_by(&fixture, "third", "80"), [other]);
    await_page(other, "/", "page\n");

    vmm(&fixture, &["rm", "-f", "third"]).run().succeeded();
    fixture.nothing_runs();
}

#[test]
fn copies_of_a_server_are_each_reached_by_a_port_of_their_own() {
    let (fixture, _) = home();
    let options = [
        "-d",
        "--fork-point",
        "--name",
        "parent",
        "-p",
        "127.0.0.1::80",
    ];
    let parent = fixture.run_name(IMAGE, &options, &["sh", "-c", FORKING]);
    parent.limit(LIMIT).run().succeeded();
    let of_parent: SocketAddr = published_by(&fixture, "parent", "80")[0];
    await_page(of_parent, "/", "first\n");

    let forked = loop {
        let forked = vmm(
            &fixture,
            &["fork", "-n", "2", "-p", "127.0.0.1::80", "parent"],
        )
        .run();
        if forked.code() == Some(0) {
            break forked;
        }
        forked.failed(&["fork point"]);
    };
    let ids = forked.stdout_text();
    for (id, page) in ids.lines().zip(["copy 1\n", "copy 2\n"]) {
        let at = published_by(&fixture, id, "80")[0];
        assert_ne!(at, of_parent);
        await_page(at, "/", page);
    }
    await_page(of_parent, "/", "copy 0\n");

    let all = [
        &["rm", "-f", "parent"][..],
        &ids.lines().collect::<Vec<_>>(),
    ]
    .concat();
    vmm(&fixture, &all).run().succeeded();
    fixture.nothing_runs();
}
