//! `vmm attach`, and the keys by which a client leaves a machine to itself.

use rustix::process::Signal;
use tests::process::{Finished, MACHINE_LIMIT, Running};
use tests::terminal::OnTerminal;
use tests::{Fixture, Invocation};

/// How much is written at once to see who is kept waiting.
const ALL_BYTES: usize = 4 << 20;
const NAME: &str = "web";
const IMAGE: &str = "busybox:test";
/// The keys that leave, unless others are chosen.
const LEAVE: &[u8] = b"\x10\x11";
/// Answers each line that it reads, and ends when it is told to.
const ANSWERING: &str = "while read line; do echo \"got $line\"; echo \"error $line\" >&2; [ $line = end ] && exit 7; done; exit 8";
/// Says something all the time, until a signal ends it.
const TICKING: &str = "trap 'exit 22' INT; while :; do echo tick; sleep 0.1; done";

/// Where machines are started in the background and attached to.
struct Home {
    fixture: Fixture,
}

impl Home {
    fn new() -> Self {
        Self {
            fixture: super::with_busybox(),
        }
    }

    /// Runs a machine in the background.
    fn run(&self, options: &[&str], command: &[&str]) {
        let options = [&["-d", "--name", NAME], options].concat();
        self.fixture
            .run_name(IMAGE, &options, command)
            .run()
            .succeeded();
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    fn attach(&self, options: &[&str]) -> Invocation {
        self.vmm(&["attach"]).args(options).arg(NAME)
    }

    /// Attaches with an input that stays open.
    fn attached(&self, options: &[&str]) -> Running {
        self.attach(options).open_input().start()
    }

    fn on_terminal(&self, arguments: &[&str]) -> OnTerminal {
        self.fixture.on_terminal(arguments)
    }

    fn attached_on_terminal(&self, options: &[&str]) -> OnTerminal {
        let terminal = self.on_terminal(&[&["attach"], options, &[NAME]].concat());
        // What is typed before is not passed on.
        while !terminal.settings_differ() {}
        terminal
    }

    /// What `vmm ps` says of the machine.
    fn status(&self) -> String {
        let format = "{{.Names}} {{.State}}";
        let listed = self.vmm(&["ps", "-a", "--format", format]).run();
        listed.succeeded().stdout_text()
    }

    fn log(&self) -> Finished {
        self.vmm(&["logs", NAME]).run()
    }

    fn kill(&self) {
        self.vmm(&["kill", NAME]).run().succeeded();
        self.fixture.nothing_runs();
    }
}

/// Runs a command in a shell on a terminal, and waits for what it says.
fn ask(terminal: &mut OnTerminal, command: &str, answer: &str) {
    terminal.press(command.as_bytes());
    terminal.press(b"\r");
    terminal.wait_for(answer);
}

#[test]
fn all_clients_see_the_output_and_end_with_the_exit_code() {
    let home = Home::new();
    home.run(&["-i"], &["sh", "-c", ANSWERING]);

    let first = home.attach(&[]).input("one\n").start();
    first.wait_for_stdout("got one\n");
    first.wait_for_stderr("error one\n");
    let mut second = home.attached(&[]);
    second.write(b"two\n");
    second.wait_for_stdout("got two\n");
    second.wait_for_stderr("error two\n");
    second.write(b"end\n");

    let second = second.finish_with_open_input();
    second
        .code_is(7)
        .stdout_is("got two\ngot end\n")
        .stderr_is("error two\nerror end\n");
    let first = first.finish();
    first
        .code_is(7)
        .stdout_is("got one\ngot two\ngot end\n")
        .stderr_is("error one\nerror two\nerror end\n");
    home.fixture.nothing_runs();
    home.log()
        .succeeded()
        .stdout_is("got one\ngot two\ngot end\n")
        .stderr_is("error one\nerror two\nerror end\n");
}

#[test]
fn signals_are_the_workloads_unless_they_are_to_be_the_clients() {
    let home = Home::new();
    home.run(&["--log-driver", "none"], &["sh", "-c", TICKING]);
    let passes = home.attach(&[]).input("not read\n").start();
    let keeps = home.attach(&["--sig-proxy=false"]).start();
    passes.wait_for_stdout("tick\n");
    keeps.wait_for_stdout("tick\n");

    keeps.signal(Signal::INT);
    let kept = keeps.finish();
    let still = home.status();
    passes.signal(Signal::INT);
    let passed = passes.finish();

    assert_eq!(kept.signal(), Some(Signal::INT.as_raw()), "{kept:?}");
    assert_eq!(still, "web running\n");
    passed.code_is(22);
    home.fixture.nothing_runs();
}

#[test]
fn a_client_that_does_not_read_keeps_nobody_waiting() {
    let home = Home::new();
    // A million at once, for the sake of guests whose system calls are slow.
    let script = "s=y; for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do s=$s$s; done; \
                  (until [ -e /go ]; do echo tick; sleep 0.1; done) & read line; touch /go; wait; \
                  for n in 1 2 3 4; do echo $s; done; exit 3";
    home.run(&["-i"], &["sh", "-c", script]);
    let mut reads = home.attached(&[]);
    let stops = home.attached(&[]);
    reads.wait_for_stdout("tick\n");
    stops.wait_for_stdout("tick\n");

    stops.signal(Signal::STOP);
    reads.write(b"go\n");
    let read = reads.finish_with_open_input();
    let waited = home.vmm(&["wait", NAME]).run();
    stops.signal(Signal::CONT);
    let stopped = stops.finish_with_open_input();

    let count = |shown: &Finished| shown.stdout.iter().filter(|byte| **byte == b'y').count();
    read.code_is(3).stderr_is("");
    assert_eq!(count(&read), ALL_BYTES);
    waited.succeeded().stdout_is("3\n");
    stopped.code_is(3).stderr_has("left out");
    assert!(count(&stopped) < ALL_BYTES, "{stopped:?}");
    assert_eq!(count(home.log().succeeded()), ALL_BYTES);
}

#[test]
fn a_terminal_is_left_by_keys_and_attached_to_again() {
    let home = Home::new();
    home.run(&["-i", "-t"], &["sh"]);

    let mut first = home.attached_on_terminal(&[]);
    ask(&mut first, "echo $((6 * 7)) and; tty", "42 and");
    first.wait_for("/dev/pts/0");
    assert!(first.settings_differ(), "keys go to the workload raw");
    ask(&mut first, "stty size", "33 99");
    first.resize(44, 111);
    ask(
        &mut first,
        "until stty size | grep 111; do :; done; echo si''zed",
        "sized",
    );
    // The beginning of the keys alone is the workload's.
    ask(
        &mut first,
        "echo re''ady; read -r -n 2 keys; echo \"$keys\" | od -c",
        "ready",
    );
    first.press(b"\x10x");
    first.wait_for("020   x");
    first.press(LEAVE);
    let left = first.finish();
    left.code_is(1).stdout_has("read escape sequence");

    let mut second = home.attached_on_terminal(&["--detach-keys", "ctrl-a,d"]);
    ask(&mut second, "echo se''cond", "second");
    second.press(b"\x01d");
    second.finish().code_is(1);
    let mut third = home.attached_on_terminal(&[]);
    ask(&mut third, "echo th''ird", "third");
    third.press(b"exit 9\r");
    third.finish().code_is(9);
    home.fixture.nothing_runs();
    home.log()
        .succeeded()
        .stdout_has("second")
        .stdout_has("third");
}

#[test]
fn a_terminal_is_restored_whatever_ends_its_client() {
    let home = Home::new();
    home.run(&["-i", "-t"], &["sh"]);

    let mut terminated = home.attached_on_terminal(&[]);
    ask(&mut terminated, "echo o''ne", "one");
    terminated.signal(Signal::TERM);
    terminated.finish().code_is(143);
    assert_eq!(home.status(), "web running\n");
    let mut killed = home.attached_on_terminal(&[]);
    ask(&mut killed, "echo t''wo", "two");
    home.kill();
    killed.finish().code_is(137);
}

#[test]
fn a_terminal_needs_one_outside_unless_nothing_is_typed() {
    let home = Home::new();
    home.run(&["-i", "-t"], &["sh", "-c", TICKING]);

    let refused = home.attach(&[]).run();
    let watches = home.attach(&["--no-stdin"]).start();
    watches.wait_for_stdout("tick\r\n");
    home.kill();

    refused.code_is(1).complained(&["terminal"]).helped();
    watches.finish().code_is(137);
}

#[test]
fn a_run_that_is_left_goes_on_and_stays_on_record() {
    let home = Home::new();

    let mut run = home.on_terminal(&["run", "-it", "--name", NAME, IMAGE, "sh"]);
    run.wait_for("# ");
    ask(&mut run, "echo be''fore", "before");
    let beside = home.attach(&["--no-stdin"]).start();
    run.press(LEAVE);
    run.finish().code_is(0).stdout_lacks("escape");
    assert_eq!(home.status(), "web running\n");
    let mut again = home.attached_on_terminal(&[]);
    ask(&mut again, "echo af''ter", "after");
    again.press(b"exit 5\r");

    again.finish().code_is(5);
    beside.finish().code_is(5).stdout_has("after");
    home.fixture.nothing_runs();
    assert_eq!(home.status(), "web exited\n");
    home.log()
        .succeeded()
        .stdout_has("before")
        .stdout_has("after");
}

#[test]
fn a_run_that_is_left_removes_itself_if_it_was_told_to() {
    let home = Home::new();
    let arguments = [
        "run",
        "--rm",
        "-it",
        "--name",
        NAME,
        "--detach-keys",
        "x",
        IMAGE,
        "sh",
    ];

    let mut run = home.on_terminal(&arguments);
    run.wait_for("# ");
    run.press(b"x");
    run.finish().code_is(0);
    assert_eq!(home.status(), "web running\n");
    home.kill();

    assert_eq!(home.status(), "");
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_run_ends_with_its_client_unless_it_is_left() {
    let home = Home::new();

    let run = home.on_terminal(&["run", "-it", "--name", NAME, IMAGE, "sh"]);
    run.wait_for("# ");
    run.signal(Signal::KILL);

    home.fixture.nothing_runs();
    assert_eq!(home.status(), "web exited\n");
}

#[test]
fn a_machine_that_is_started_is_left_and_attached_to() {
    let home = Home::new();
    let created = home
        .vmm(&[
            "create",
            "-it",
            "--storage",
            "64m",
            "--name",
            NAME,
            IMAGE,
            "sh",
        ])
        .run();
    created.succeeded();

    let mut start = home.on_terminal(&["start", "-ai", NAME]);
    start.wait_for("# ");
    ask(
        &mut start,
        "echo fi''rst > /kept; echo wr''itten",
        "written",
    );
    start.press(LEAVE);
    start.finish().code_is(0);
    let mut again = home.on_terminal(&["start", "-ai", NAME]);
    while !again.settings_differ() {}
    ask(&mut again, "cat /kept", "first");
    again.press(b"exit 4\r");
    again.finish().code_is(4);
    home.fixture.nothing_runs();
}

#[test]
fn the_end_of_a_clients_input_is_the_workloads_if_the_machine_was_created_for_it() {
    let home = Home::new();
    home.vmm(&[
        "create",
        "-i",
        "--storage",
        "64m",
        "--name",
        NAME,
        IMAGE,
        "sh",
        "-c",
        ANSWERING,
    ])
    .run()
    .succeeded();
    home.vmm(&["start", NAME]).run().succeeded();

    let attached = home.attach(&[]).input("one\n").run();

    attached.code_is(8).stdout_is("got one\n");
    home.fixture.nothing_runs();
}

#[test]
fn a_command_that_is_left_goes_on() {
    let home = Home::new();
    home.run(&[], &["sleep", "1000"]);
    let script = "trap 'echo hung up > /end' HUP; echo ready; until [ -e /go ]; do echo x; sleep 0.1; done; echo done > /end";

    let mut exec = home.on_terminal(&["exec", "-it", NAME, "sh", "-c", script]);
    exec.wait_for("ready");
    exec.press(LEAVE);
    let left = exec.finish();
    let ended = home
        .vmm(&["exec", NAME, "sh", "-c"])
        .arg("touch /go; until [ -s /end ]; do sleep 0.1; done; cat /end")
        .run();

    left.code_is(1).stdout_has("read escape sequence");
    ended.succeeded().stdout_is("done\n");
}

#[test]
fn a_machine_that_cannot_be_attached_to_is_named() {
    let home = Home::new();
    home.vmm(&["create", "--name", "made", IMAGE])
        .run()
        .succeeded();
    home.run(&[], &["sleep", "1000"]);

    home.vmm(&["pause", NAME]).run().succeeded();
    let paused = home.attach(&[]).run();
    home.vmm(&["resume", NAME]).run().succeeded();
    home.kill();
    let ended = home.attach(&[]).run();
    let created = home.vmm(&["attach", "made"]).run();
    let unknown = home.vmm(&["attach", "nobody"]).run();
    let front = home
        .fixture
        .run_name(IMAGE, &["--name", "front"], &["sh", "-c", TICKING])
        .start();
    front.wait_for_stdout("tick\n");
    let foreground = home.vmm(&["attach", "front"]).run();
    front.signal(Signal::INT);
    front.finish().code_is(22);

    paused.code_is(1).complained(&[NAME, "paused"]).helped();
    ended.code_is(1).complained(&[NAME, "stopped"]).helped();
    created.code_is(1).complained(&["made", "stopped"]).helped();
    unknown.code_is(1).complained(&["nobody"]).helped();
    foreground
        .code_is(1)
        .complained(&["front", "foreground"])
        .helped();
}
