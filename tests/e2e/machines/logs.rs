//! `vmm logs`, `--log-driver`, `--log-opt`: what machines in the background have written.

use std::fs;
use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation};

/// A fixture with busybox in its store.
fn home() -> Fixture {
    super::with_busybox()
}

/// Starts a machine in the background whose shell runs `script`.
fn start(fixture: &Fixture, name: &str, options: &[&str], script: &str) {
    let options = [&["-d", "--name", name], options].concat();
    fixture
        .run_name("busybox:test", &options, &["sh", "-c", script])
        .run()
        .succeeded();
}

fn vmm(fixture: &Fixture, arguments: &[&str]) -> Invocation {
    fixture.vmm(arguments).limit(MACHINE_LIMIT)
}

/// Waits for a machine's end.
fn wait(fixture: &Fixture, name: &str) {
    vmm(fixture, &["wait", name]).run().succeeded();
}

fn logs(fixture: &Fixture, arguments: &[&str]) -> Finished {
    vmm(fixture, &["logs"]).args(arguments).run()
}

fn log_file(fixture: &Fixture, name: &str) -> PathBuf {
    let inspected = vmm(fixture, &["inspect", "--format", "{{.LogPath}}", name]).run();
    inspected.succeeded().stdout_text().trim_end().into()
}

/// The numbers from 1 on, a line each.
fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

#[test]
fn what_a_machine_wrote_is_shown_as_it_was_written_until_the_machine_is_removed() {
    let fixture = home();
    let script = r"echo one; echo two >&2; echo three; printf 'caf\351 \0 no end'";
    start(&fixture, "writer", &[], script);
    wait(&fixture, "writer");

    let all = logs(&fixture, &["writer"]);
    all.succeeded().stderr_is("two\n");
    assert_eq!(all.stdout, b"one\nthree\ncaf\xe9 \0 no end");
    logs(&fixture, &["-n", "0", "writer"])
        .succeeded()
        .stdout_is("")
        .stderr_is("");
    let last = logs(&fixture, &["--tail", "1", "--since", "1h", "writer"]);
    let all_later = logs(&fixture, &["--until", "1h", "writer"]);
    let future = logs(&fixture, &["--since", "2099-01-01", "writer"]);
    let lines = last.stdout.len() + last.stderr.len();
    assert!(
        (1..=13).contains(&lines),
        "one line of both streams: {last:?}"
    );
    all_later.succeeded().stdout_is("").stderr_is("");
    future.succeeded().stdout_is("").stderr_is("");
    let timed = logs(&fixture, &["--timestamps", "--tail", "all", "writer"]);
    let line = timed.succeeded().stdout_text();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(rest.starts_with("one\n"), "{line}");
    assert_eq!(time.len(), "2026-11-20T12:34:56.123456789Z".len(), "{line}");

    let file = fs::read(log_file(&fixture, "writer")).unwrap();
    let first = file.split(|byte| *byte == b'\n').next().unwrap();
    let first: Value = serde_json::from_slice(first).unwrap();
    let stream = first["stream"].as_str().unwrap();
    assert!(["stdout", "stderr"].contains(&stream), "{first}");
    assert!(first["log"].as_str().unwrap().ends_with('\n'), "{first}");

    vmm(&fixture, &["rm", "writer"]).run().succeeded();
    logs(&fixture, &["writer"]).failed(&["writer"]).helped();
    assert_eq!(fixture.machines_listing(), "");
}

#[test]
fn a_follower_sees_everything_through_rotation_and_ends_with_the_machine() {
    let fixture = home();
    let options = ["--log-opt", "max-size=2k", "--log-opt", "max-file=200"];
    let script = "trap 'seq 2000; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    start(&fixture, "turner", &options, script);
    let follower = vmm(&fixture, &["logs", "--follow", "turner"]).start();
    follower.wait_for_stdout("ready\n");

    vmm(&fixture, &["stop", "--timeout", "100", "turner"])
        .run()
        .succeeded();

    let expected = format!("ready\n{}", numbers(2000));
    follower
        .finish()
        .succeeded()
        .stdout_is(&expected)
        .stderr_is("");
    logs(&fixture, &["-f", "turner"])
        .succeeded()
        .stdout_is(&expected);
    logs(&fixture, &["-n", "3", "turner"])
        .succeeded()
        .stdout_is("1998\n1999\n2000\n");
    let directory = log_file(&fixture, "turner");
    let rotated = fs::metadata(directory.with_extension("log.1")).unwrap();
    assert!(rotated.len() < 4000, "{rotated:?}");
}

#[test]
fn of_a_log_that_is_full_the_oldest_goes() {
    let fixture = home();
    let options = ["--log-opt", "max-size=1k", "--log-opt", "max-file=2"];
    start(&fixture, "chatty", &options, "seq 1000");
    wait(&fixture, "chatty");

    let shown = logs(&fixture, &["chatty"]).succeeded().stdout_text();

    assert!(shown.ends_with("999\n1000\n"), "{shown}");
    assert!(numbers(1000).ends_with(&shown), "{shown}");
    let file = log_file(&fixture, "chatty");
    assert!(file.with_extension("log.1").exists());
    assert!(!file.with_extension("log.2").exists());
}

#[test]
fn a_machine_without_a_log_says_so() {
    let fixture = home();
    start(&fixture, "mute", &["--log-driver", "none"], "echo unheard");
    wait(&fixture, "mute");

    logs(&fixture, &["mute"]).failed(&["mute", "none"]).helped();
    let running = fixture
        .run_name(
            "busybox:test",
            &["--name", "front"],
            &["sh", "-c", "echo ready; sleep 1000"],
        )
        .start();
    running.wait_for_stdout("ready\n");
    logs(&fixture, &["front"]).failed(&["front"]).helped();
    vmm(&fixture, &["stop", "-t", "0", "front"])
        .run()
        .succeeded();
    running.finish().code_is(137);
}

#[test]
fn a_log_file_that_is_removed_or_cut_while_it_is_written_ends_nothing() {
    let fixture = home();
    let script = "trap 'echo last; exit 5' TERM; trap 'echo more' USR1; echo first; while :; do sleep 0.1; done";
    start(&fixture, "robbed", &[], script);
    let follower = vmm(&fixture, &["logs", "-f", "robbed"]).start();
    follower.wait_for_stdout("first\n");
    fs::remove_file(log_file(&fixture, "robbed")).unwrap();
    vmm(&fixture, &["kill", "-s", "USR1", "robbed"])
        .run()
        .succeeded();
    follower.wait_for_stdout("more\n");
    let cut = fs::OpenOptions::new()
        .write(true)
        .open(log_file(&fixture, "robbed"))
        .unwrap();
    cut.set_len(0).unwrap();

    vmm(&fixture, &["stop", "-t", "100", "robbed"])
        .run()
        .succeeded();

    follower
        .finish()
        .succeeded()
        .stdout_is("first\nmore\nlast\n");
    vmm(&fixture, &["wait", "robbed"]).run().stdout_is("5\n");
    logs(&fixture, &["robbed"]).succeeded().stdout_is("last\n");
}

#[test]
fn a_full_disk_neither_ends_nor_blocks_the_workload_and_is_told_with_the_log() {
    let fixture = home();
    fs::create_dir_all(fixture.machines()).unwrap();
    let script = r#"
        mount -t tmpfs -o size=3m,mode=700 tmpfs "$VMM_ROOT/machines"
        "$VMM_BINARY" run -d --storage 64m --name full busybox:test sh -c 'seq 100000; exit 4' >&2
        "$VMM_BINARY" wait full
        "$VMM_BINARY" ps -a --format '{{.Names}}: {{.State}}'
        "$VMM_BINARY" logs full
    "#;

    let done = fixture.in_private_mounts(script).limit(MACHINE_LIMIT).run();

    done.succeeded()
        .stderr_has("bytes are missing here")
        .stdout_has("full: exited\n");
    assert!(
        done.stdout_text().starts_with("4\nfull: exited\n1\n2\n3\n"),
        "{done:?}"
    );
    fixture.nothing_runs();
}

#[test]
fn who_does_not_read_what_he_asked_for_keeps_nobody_waiting() {
    let fixture = home();
    let script = r#"
        "$VMM_BINARY" run -d --name fast busybox:test seq 60000 >&2
        mkfifo "$VMM_ROOT/pipe"
        "$VMM_BINARY" logs -f fast > "$VMM_ROOT/pipe" &
        exec 3< "$VMM_ROOT/pipe"
        "$VMM_BINARY" wait fast
        cat <&3
    "#;

    let done = fixture.in_private_mounts(script).limit(MACHINE_LIMIT).run();

    let expected = format!("0\n{}", numbers(60_000));
    assert!(done.succeeded().stdout_text() == expected, "{done:?}");
}

#[test]
fn the_log_of_a_machine_whose_monitor_is_killed_stays_and_its_followers_end() {
    let fixture = home();
    start(&fixture, "victim", &[], "echo written; sleep 1000");
    let follower = vmm(&fixture, &["logs", "-f", "victim"]).start();
    follower.wait_for_stdout("written\n");
    let pid = vmm(&fixture, &["inspect", "-f", "{{.State.Pid}}", "victim"])
        .run()
        .stdout_text();
    let pid = pid.trim_end().parse().unwrap();

    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL)
        .unwrap();

    follower.finish().succeeded().stdout_is("written\n");
    vmm(
        &fixture,
        &["ps", "-a", "--format", "{{.State}} {{.Status}}"],
    )
    .run()
    .succeeded()
    .stdout_is("dead Dead\n");
    vmm(&fixture, &["wait", "victim"])
        .run()
        .succeeded()
        .stdout_is("137\n");
    vmm(
        &fixture,
        &[
            "inspect",
            "-f",
            "{{.State.Dead}} {{.State.Error}}",
            "victim",
        ],
    )
    .run()
    .succeeded()
    .stdout_has("true ")
    .stdout_has("monitor");
    vmm(&fixture, &["stop", "victim"])
        .run()
        .succeeded()
        .stdout_is("victim\n");
    logs(&fixture, &["victim"])
        .succeeded()
        .stdout_is("written\n");
    vmm(&fixture, &["rm", "victim"]).run().succeeded();
    fixture.nothing_runs();
    assert_eq!(fixture.machines_listing(), "");
}

#[test]
fn options_of_logs_that_make_no_sense_are_refused() {
    let fixture = Fixture::new();
    let run = |options: &[&str]| fixture.vmm(["run", "-d"]).args(options).arg("app").run();

    run(&["--log-driver", "syslog"])
        .declined(&["--log-driver", "syslog"])
        .helped();
    run(&["--log-opt", "max-size"])
        .declined(&["--log-opt", "max-size"])
        .helped();
    run(&["--log-opt", "max-size=big"])
        .declined(&["big"])
        .helped();
    run(&["--log-opt", "max-file=0"])
        .declined(&["'0'"])
        .helped();
    run(&["--log-opt", "compress=true"])
        .declined(&["compress"])
        .helped();
    logs(&fixture, &["--since", "yesterday", "x"])
        .declined(&["--since", "yesterday"])
        .helped();
    logs(&fixture, &["--until", "1m30", "x"])
        .declined(&["--until", "1m30"])
        .helped();
    logs(&fixture, &["--tail", "few", "x"])
        .declined(&["--tail", "few"])
        .helped();
    logs(&fixture, &["nobody"]).declined(&["nobody"]).helped();
}
