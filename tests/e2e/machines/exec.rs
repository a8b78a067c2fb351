//! `vmm exec`: other commands in a machine that runs.

use std::time::Duration;

use rustix::process::Signal;
use tests::process::{Finished, MACHINE_LIMIT, Running};
use tests::terminal::OnTerminal;
use tests::{Fixture, Invocation};

/// How long a hundred commands may take to start at once, where KVM is software and the processor shared.
const HUNDRED_LIMIT: Duration = Duration::from_secs(600);

/// Lets scripts wait for each other without using the processor: `await NAME` goes on when `tell NAME` does.
const WAITING: &str = "meet() { [ -p /$1 ] || mkfifo /$1 2> /dev/null; }; await() { meet $1; read said < /$1; }; tell() { meet $1; echo > /$1; };";

/// A machine whose workload sleeps, and what is run in it.
struct Machine {
    fixture: Fixture,
}

const NAME: &str = "web";

/// Says of a process what it shares with its container.
const WHERE: &str = "for n in pid mnt net uts ipc cgroup user; do readlink /proc/$1/ns/$n; done; cat /proc/$1/cgroup; stat -c %d:%i /proc/$1/root/.";

impl Machine {
    /// The image alone.
    fn loaded() -> Self {
        Self {
            fixture: super::with_busybox(),
        }
    }

    fn start(options: &[&str], command: &[&str]) -> Self {
        let machine = Self::loaded();
        machine.run(NAME, options, command);
        machine
    }

    fn usual() -> Self {
        Self::start(&[], &["sleep", "1000"])
    }

    /// Runs a machine in the background.
    fn run(&self, name: &str, options: &[&str], command: &[&str]) {
        let options = [&["-d", "--name", name], options].concat();
        self.fixture
            .run_name("busybox:test", &options, command)
            .run()
            .succeeded();
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    fn exec(&self, options: &[&str], command: &[&str]) -> Invocation {
        self.vmm(&["exec"]).args(options).arg(NAME).args(command)
    }

    fn script(&self, options: &[&str], script: &str) -> Finished {
        self.exec(options, &["sh", "-c", &waiting(script)]).run()
    }

    /// Starts a script, and waits until it is ready.
    fn ready(&self, script: &str) -> Running {
        let script = waiting(&format!("echo ready; {script}"));
        let running = self
            .exec(&["-i"], &["sh", "-c", &script])
            .open_input()
            .start();
        running.wait_for_stdout("ready\n");
        running
    }

    fn on_terminal(&self, script: &str) -> OnTerminal {
        let arguments = ["exec", "-it", NAME, "sh", "-c", script];
        self.fixture.on_terminal(arguments)
    }
}

/// A script with the means of [`WAITING`].
fn waiting(script: &str) -> String {
    format!("{WAITING} {script}")
}

#[test]
fn streams_stay_apart_and_the_exit_code_is_the_commands() {
    let machine = Machine::usual();

    let done = machine.script(&[], "echo out; echo err >&2; exit 42");

    done.code_is(42).stdout_is("out\n").stderr_is("err\n");
    machine.script(&[], "kill -TERM $$").code_is(143);
}

#[test]
fn input_reaches_the_command_with_i_alone_and_ends() {
    let machine = Machine::usual();
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();

    let passed = machine.exec(&["-i"], &["cat"]).input(bytes.clone()).run();
    let not_passed = machine.exec(&[], &["cat"]).input(bytes.clone()).run();

    assert_eq!(passed.succeeded().stdout, bytes);
    not_passed.succeeded().stdout_is("");
}

#[test]
fn what_is_chosen_is_the_commands_and_the_rest_is_the_workloads() {
    let machine = Machine::start(
        &["--env", "A=1", "--env", "B=2", "--workdir", "/srv"],
        &["sleep", "1000"],
    );
    let file = machine.fixture.file("variables", "C=3\n# none\nD=4\n");
    let file = file.to_str().unwrap_or_default();

    let usual = machine.script(&[], "echo $A $B $C $HOME $PWD $(id -u)");
    let chosen = machine
        .exec(
            &[
                "-e",
                "A=7",
                "-e",
                "B",
                "-e",
                "FROM_HERE",
                "--env-file",
                file,
                "-w",
                "/tmp",
                "-u",
                "7:8",
            ],
            &[
                "sh",
                "-c",
                "echo $A $B $C $D $FROM_HERE $HOME $PWD $(id -u):$(id -g)",
            ],
        )
        .env("FROM_HERE", "here")
        .without_env("B")
        .run();

    usual.succeeded().stdout_is("1 2 /root /srv 0\n");
    chosen.succeeded().stdout_is("7 3 4 here / /tmp 7:8\n");
}

#[test]
fn a_users_name_is_the_images() {
    let machine = Machine::usual();
    machine
        .script(
            &[],
            "echo 'app:x:1000:1001::/home/app:/bin/sh' >> /etc/passwd",
        )
        .succeeded();

    let known = machine.script(&["--user", "app"], "id -u; echo $HOME");
    let unknown = machine.script(&["--user", "nobody-knows"], "true");

    known.succeeded().stdout_is("1000\n/home/app\n");
    unknown.code_is(125).stderr_has("nobody-knows");
}

#[test]
fn the_command_is_where_the_workload_is_with_the_same_rights() {
    let machine = Machine::start(&["--cap-add", "NET_ADMIN"], &["sleep", "1000"]);
    let rights = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/$1/status; grep files /proc/$1/limits";
    let both = format!(
        "show() {{ {WHERE}; {rights}; }}; show self > /a; show 1 > /b; cmp /a /b && grep Seccomp: /a"
    );

    let compared = machine.script(&[], &both);

    compared.succeeded().stdout_is("Seccomp:\t2\n");
}

#[test]
fn a_privileged_command_has_every_capability_and_no_filter() {
    let machine = Machine::usual();

    let status = machine.script(
        &["--privileged"],
        "grep -E '^(CapEff|Seccomp:)' /proc/self/status",
    );

    status
        .succeeded()
        .stdout_is("CapEff:\t000001ffffffffff\nSeccomp:\t0\n");
}

#[test]
fn a_container_with_users_of_its_own_is_joined_as_its_root() {
    let machine = Machine::start(&["--userns", "private"], &["sleep", "1000"]);

    let seen = machine.script(&[], "id -u; ls -ln /proc/self/exe | tr -s ' ' | cut -d' ' -f3; [ $(readlink /proc/self/ns/user) = $(readlink /proc/1/ns/user) ] && echo same");

    seen.succeeded().stdout_is("0\n0\nsame\n");
}

#[test]
fn what_cannot_be_run_has_the_codes_of_a_run() {
    let machine = Machine::usual();

    let missing = machine.exec(&[], &["no-such-command"]).run();
    let directory = machine.exec(&[], &["/etc"]).run();
    let nowhere = machine.exec(&["-w", "/nowhere"], &["true"]).run();

    missing
        .code_is(127)
        .stdout_is("")
        .stderr_has("no-such-command");
    directory.code_is(126).stderr_has("/etc");
    nowhere.code_is(125).stderr_has("/nowhere");
}

#[test]
fn a_detached_command_goes_on_without_its_client() {
    let machine = Machine::usual();

    let detached = machine.script(&["-d"], "echo lost; await stop; tell done");

    detached.succeeded().stdout_is("").stderr_is("");
    let waits = machine.script(&[], "tell stop; await done; echo done");
    waits.succeeded().stdout_is("done\n");
    machine
        .exec(&["--detach"], &["no-such-command"])
        .run()
        .code_is(127);
}

#[test]
fn a_terminal_has_the_size_of_the_one_outside_and_follows_it() {
    let machine = Machine::usual();
    let script = "tty; echo $TERM; stty size; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done";

    let terminal = machine.on_terminal(script);
    terminal.wait_for("ready");
    assert!(terminal.settings_differ(), "keys go to the command raw");
    terminal.resize(44, 111);

    let done = terminal.finish();
    done.code_is(6)
        .stdout_has("/dev/pts/")
        .stdout_has("xterm")
        .stdout_has("33 99")
        .stdout_has("44 111");
}

#[test]
fn keys_reach_the_command_and_control_c_is_its_interrupt() {
    let machine = Machine::usual();
    let mut terminal = machine.on_terminal(
        "echo begin; read line; echo got $line; trap 'exit 22' INT; echo ready; while :; do sleep 0.1; done",
    );

    terminal.wait_for("begin");
    terminal.press(b"these words\r");
    terminal.wait_for("got these words");
    terminal.wait_for("ready");
    terminal.press(b"\x03");

    terminal.finish().code_is(22);
}

#[test]
fn the_terminal_is_restored_when_the_client_is_terminated() {
    let machine = Machine::usual();
    let script = "trap 'tell hung-up; exit' HUP; echo ready; while :; do sleep 0.1; done";
    let terminal = machine.on_terminal(&waiting(script));
    terminal.wait_for("ready");

    terminal.signal(Signal::TERM);

    terminal.finish().code_is(143);
    machine.script(&[], "await hung-up").succeeded();
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let machine = Machine::usual();

    machine
        .exec(&["-it"], &["true"])
        .run()
        .failed(&["terminal"]);
}

/// The n-th of many commands at once, which waits for the end of its input.
fn one_of_many(machine: &Machine, number: u8) -> Running {
    let script = format!("echo number {number}; cat; echo error {number} >&2; exit {number}");
    machine
        .exec(&["-i"], &["sh", "-c", &script])
        .limit(HUNDRED_LIMIT)
        .open_input()
        .start()
}

#[test]
fn a_hundred_at_once_have_their_own_streams_and_exit_codes() {
    let machine = Machine::start(&["--memory", "256m"], &["sleep", "1000"]);

    let many: Vec<Running> = (0..100)
        .map(|number| one_of_many(&machine, number))
        .collect();
    many.iter().for_each(|one| one.wait_for_stdout("number"));

    (0..).zip(many).for_each(|(number, one)| {
        one.finish()
            .code_is(number)
            .stdout_is(&format!("number {number}\n"))
            .stderr_is(&format!("error {number}\n"));
    });
}

#[test]
fn a_command_whose_client_is_killed_loses_its_streams_and_goes_on() {
    let machine = Machine::usual();
    let client = machine.ready("cat; await goes-on; tell done");

    client.signal(Signal::KILL);
    client.finish();

    let waits = machine.script(&[], "tell goes-on; await done; echo done");
    waits.succeeded().stdout_is("done\n");
}

#[test]
fn a_command_ends_with_the_workload() {
    let script = waiting("await stop; exit 3");
    let machine = Machine::start(&[], &["sh", "-c", &script]);
    let running = machine.ready("cat");

    let last = machine.script(&[], "echo last words; tell stop; exec sleep 1000");

    running
        .finish_with_open_input()
        .code_is(137)
        .stdout_is("ready\n");
    last.code_is(137).stdout_is("last words\n");
    machine.fixture.nothing_runs();
}

#[test]
fn a_command_ends_with_a_machine_that_is_killed() {
    let machine = Machine::usual();
    let running = machine.ready("cat");

    machine.vmm(&["kill", NAME]).run().succeeded();

    running.finish_with_open_input().code_is(137);
    machine.fixture.nothing_runs();
}

#[test]
fn what_is_left_in_the_background_does_not_keep_the_client() {
    let machine = Machine::usual();

    let done = machine.script(&[], "sleep 1000 & echo begun");

    done.succeeded().stdout_is("begun\n");
}

#[test]
fn a_machine_that_is_paused_or_unknown_or_has_ended_is_named() {
    let machine = Machine::usual();
    machine.vmm(&["pause", NAME]).run().succeeded();

    let paused = machine.exec(&[], &["true"]).run();
    machine.vmm(&["resume", NAME]).run().succeeded();
    let resumed = machine.exec(&[], &["true"]).run();
    machine.vmm(&["kill", NAME]).run().succeeded();
    machine.fixture.nothing_runs();
    let ended = machine.exec(&[], &["true"]).run();
    let unknown = machine.vmm(&["exec", "nobody", "true"]).run();

    paused.failed(&[NAME, "paused"]).helped();
    resumed.succeeded();
    ended.failed(&[NAME]).helped();
    unknown.failed(&["nobody"]);
}

#[test]
fn two_machines_have_their_own_commands() {
    let machine = Machine::start(&["--hostname", "first"], &["sleep", "1000"]);
    machine.run("other", &["--hostname", "second"], &["sleep", "1000"]);

    let first = machine.exec(&[], &["hostname"]).run();
    let second = machine.vmm(&["exec", "other", "hostname"]).run();

    first.succeeded().stdout_is("first\n");
    second.succeeded().stdout_is("second\n");
}

#[test]
fn a_container_that_has_divided_its_cgroup_is_joined_where_its_first_process_is() {
    let divide = "cd /sys/fs/cgroup && mkdir scope && echo 1 > scope/cgroup.procs && echo +memory > cgroup.subtree_control && echo divided; exec sleep 1000";
    let machine = Machine::loaded();
    let workload = machine
        .fixture
        .run_name(
            "busybox:test",
            &["--name", NAME, "--systemd=always"],
            &["sh", "-c", divide],
        )
        .start();
    workload.wait_for_stdout("divided\n");

    let joined = machine.script(&[], "cat /proc/self/cgroup");

    joined.succeeded().stdout_is("0::/scope\n");
}

#[test]
fn a_machine_with_commands_is_not_written_down() {
    let machine = Machine::usual();
    let file = machine.fixture.path("snapshot");
    let file = file.to_str().unwrap_or_default();
    let client = machine.ready("cat");

    let refused = machine.vmm(&["snapshot", NAME, file]).run();
    client.finish().succeeded();
    let written = machine.vmm(&["snapshot", NAME, file]).run();

    refused.failed(&["vmm exec"]);
    written.succeeded();
}

#[test]
fn a_resumed_machine_runs_commands_as_the_first_did() {
    let machine = Machine::start(&["--env", "A=1", "--user", "7"], &["sleep", "1000"]);
    let file = machine.fixture.path("snapshot");
    let file = file.to_str().unwrap_or_default();
    machine.script(&[], "echo before > /tmp/file").succeeded();
    machine
        .vmm(&["snapshot", "--stop", NAME, file])
        .run()
        .succeeded();
    machine.fixture.nothing_runs();
    machine.vmm(&["rm", NAME]).run().succeeded();
    machine
        .vmm(&["run", "-d", "--name", NAME, "--restore", file])
        .run()
        .succeeded();

    let done = machine.script(&[], "cat /tmp/file; echo $A; id -u");

    done.succeeded().stdout_is("before\n1\n7\n");
}
