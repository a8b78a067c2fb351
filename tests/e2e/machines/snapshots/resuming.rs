//! `vmm snapshot` and `vmm run --restore`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::{COUNTING, Home, seconds_since_1970};

#[test]
fn a_workload_goes_on_where_it_was_written_down_with_its_streams() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&[], "first", "file")
        .succeeded()
        .stdout_is("");
    assert_eq!(
        fs::metadata(home.path("file"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    // The machine that was written down goes on.
    first.write(b"two\n");
    first.wait_for_stdout("2 two\n");
    let refused = home.restore(&[], "file").run();
    refused.refused(&["first", "still runs"]).helped();
    home.check("file").failed(&["first", "still runs"]);
    first.close_input();
    first.finish().code_is(0).stdout_has("end after 2\n");

    home.check("file").succeeded().stdout_has("can be resumed");
    let second = home.restore(&["-i"], "file").input("other\nthird\n").run();
    second
        .code_is(0)
        .stdout_is("2 other\n3 third\nend after 3\n")
        .stderr_is("");
    home.fixture.nothing_runs();

    let again = home.restore(&["-i"], "file").input("x\n").run();
    again.refused(&["was resumed before"]).helped();
    home.check("file").failed(&["was resumed before"]);
}

#[test]
fn a_stopped_machine_goes_on_in_the_background_and_on_two_processors() {
    let home = Home::new();
    let script = "taskset -c 1 true; echo ready; while [ ! -e /tmp/go ]; do read line; touch /tmp/go; done; exit 42";
    let mut running = home
        .run(
            &["-i", "--cpus", "2", "--name", "first"],
            &["sh", "-c", script],
        )
        .open_input()
        .start();
    running.wait_for_stdout("ready\n");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    running.close_input();
    running.finish().code_is(137);

    // Without -i its input ends, so it goes on.
    let id = home.restore(&["-d", "--name", "second"], "file").run();
    id.succeeded();
    home.fixture.nothing_runs();
    assert_eq!(home.state_of("second"), "exited 42");
}

#[test]
fn a_workload_on_a_terminal_goes_on_on_another_one() {
    let home = Home::new();
    let script = "echo ready; while read line; do stty size; echo got $line; done";
    let mut first = home.fixture.on_terminal([
        "run",
        "-it",
        "--name",
        "first",
        super::IMAGE,
        "sh",
        "-c",
        script,
    ]);
    first.wait_for("ready");
    first.press(b"one\r");
    first.wait_for("got one");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.finish().code_is(137);

    let file = home.path("file");
    let file = file.to_str().unwrap();
    let mut second = home.fixture.on_terminal(["run", "-it", "--restore", file]);
    while !second.settings_differ() {
        std::thread::yield_now();
    }
    second.press(b"two\r");
    second.wait_for("got two");
    second.press(b"\x04");
    second.finish().code_is(0);
}

/// What a workload that goes on in another machine may rely on.
#[test]
fn the_clock_is_right_and_the_kernels_random_numbers_are_others_after_a_restore() {
    let home = Home::new();
    let script = "echo ready; while read line; do \
         echo $line $(date +%s) $(hostname) $(cat /proc/sys/kernel/random/uuid) $(head -c 16 /dev/urandom | sha1sum); done";
    let mut first = home
        .run(
            &["-i", "--name", "first", "-h", "its-own"],
            &["sh", "-c", script],
        )
        .open_input()
        .start();
    first.wait_for_stdout("ready\n");
    home.snapshot(&[], "first", "file").succeeded();
    first.write(b"goes-on\n");
    first.wait_for_stdout("goes-on ");
    first.close_input();
    let first = first.finish().code_is(0).stdout_text();
    let before = seconds_since_1970();
    let second = home.restore(&["-i"], "file").input("goes-on\n").run();
    let after = seconds_since_1970();
    let second = second.code_is(0).stdout_text();

    let words = |said: &str| -> Vec<String> {
        let line = said
            .lines()
            .find(|line| line.starts_with("goes-on "))
            .unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let (first, second) = (words(&first), words(&second));
    let at: u64 = second[1].parse().unwrap();
    assert!(
        (before - 1..=after + 1).contains(&at),
        "{at} inside, {before} to {after} outside"
    );
    assert_eq!(second[2], "its-own", "the host name is the workload's");
    assert_ne!(first[3], second[3], "UUIDs differ");
    assert_ne!(first[4], second[4], "random bytes differ");
}

#[test]
fn only_what_fits_the_workload_can_be_typed() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.close_input();
    first.finish().code_is(137);

    home.restore(&["-t"], "file")
        .run()
        .refused(&["no terminal"])
        .helped();
    home.restore(&["-m", "256m"], "file")
        .run()
        .refused(&["--restore"]);
    let path = home.path("file");
    let file = path.to_str().unwrap();
    home.vmm(&["run", "--restore", file, "sh"])
        .run()
        .refused(&["--restore"]);
    home.vmm(&["rmi", "-f", super::IMAGE]).run().succeeded();
    home.check("file").failed(&["image"]);
    home.restore(&[], "file").run().refused(&["image"]);

    // None of them has used it up.
    home.fixture
        .load(&super::busybox_with_probe(&home.fixture))
        .run()
        .succeeded();
    let done = home.restore(&["-i"], "file").input("two\n").run();
    done.code_is(0).stdout_is("2 two\nend after 2\n");
}

#[test]
fn a_workload_that_has_no_output_is_resumed_without_one() {
    let home = Home::new();
    home.start("silent", &[], &["sh", "-c", COUNTING]);
    // Its input is /dev/null, so it ends by itself; a machine that has ended cannot be written down.
    home.fixture.nothing_runs();
    home.snapshot(&[], "silent", "file").failed(&["silent"]);
    assert!(!home.path("file").exists());

    home.start("sleeper", &[], &["sh", "-c", "sleep 1000; exit 3"]);
    home.snapshot(&["--stop"], "sleeper", "file").succeeded();
    home.fixture.nothing_runs();
    let running = home.restore(&["--name", "again"], "file").start();
    while !home
        .vmm(&["ps"])
        .run()
        .succeeded()
        .stdout_text()
        .contains("Up ")
    {
        std::thread::yield_now();
    }
    home.vmm(&["kill", "again"]).run().succeeded();
    running.finish().code_is(137).stdout_is("");
}

#[test]
#[ignore = "needs a complete KVM: the lab runs it"]
fn whole_vector_registers_survive_a_snapshot() {
    let home = Home::new();
    let script = "probe hold-registers 1 & echo ready; wait";
    let first = home
        .run(&["--name", "first"], &["sh", "-c", script])
        .start();
    first.wait_for_stdout("ready\n");
    // By the time of the second, the registers are held.
    home.snapshot(&[], "first", "early").succeeded();
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.finish().code_is(137).stdout_is("ready\n");

    let second = home.restore(&[], "file").run();
    second
        .code_is(0)
        .stdout_is("pattern 1: 256 bits, low halves lost 0, high halves lost 0\n");
}

#[test]
#[ignore = "needs a complete KVM: the lab runs it"]
fn the_monotonic_clock_goes_on_where_it_stood_after_a_restore() {
    let home = Home::new();
    let script = "echo ready; while read line; do echo $line $(cut -d. -f1 /proc/uptime); done";
    let mut first = home
        .run(&["-i", "--name", "first"], &["sh", "-c", script])
        .open_input()
        .start();
    first.wait_for_stdout("ready\n");
    first.write(b"before\n");
    first.wait_for_stdout("before ");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.close_input();
    let before = first.finish().code_is(137).stdout_text();
    // Time that is not the workload's.
    let later = Instant::now() + Duration::from_secs(5);
    while Instant::now() < later {
        std::thread::yield_now();
    }
    let after = home.restore(&["-i"], "file").input("after\n").run();
    let after = after.code_is(0).stdout_text();

    let seconds = |said: &str| -> u64 { said.trim().rsplit(' ').next().unwrap().parse().unwrap() };
    let (before, after) = (seconds(&before), seconds(&after));
    assert!(
        (before..before + 4).contains(&after),
        "{before} s before, {after} s after"
    );
}
