//! `vmm run` in the foreground without `--rm`, and `vmm start -a`: a process that is joined with a machine which is kept.

use rustix::process::Signal;
use tests::process::{Finished, MACHINE_LIMIT};
use tests::{Fixture, Invocation};

const NAME: &str = "job";
const IMAGE: &str = "busybox:test";
/// Says what the run before has left, leaves something, and fails.
const LEAVING: &str = "cat /left 2>/dev/null; echo out; echo err >&2; echo left >> /left; exit 3";
/// Says something all the time, until the third of its signals.
const COUNTING: &str =
    "n=0; trap 'n=$((n+1)); echo int $n' INT; while :; do echo tick; sleep 0.1; done";

struct Home {
    fixture: Fixture,
}

impl Home {
    fn new() -> Self {
        Self {
            fixture: super::with_busybox(),
        }
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Invocation {
        self.vmm(&["run", "--name", NAME])
            .args(options)
            .arg(IMAGE)
            .args(command)
    }

    /// Each machine with its state.
    fn list(&self) -> String {
        let format = "{{.Names}} {{.State}}";
        let listed = self.vmm(&["ps", "-a", "--format", format]).run();
        listed.succeeded().stdout_text()
    }

    fn logs(&self) -> Finished {
        self.vmm(&["logs", NAME]).run()
    }
}

#[test]
fn what_a_run_says_and_writes_stays_until_it_is_removed() {
    let home = Home::new();

    let first = home.run(&[], &["sh", "-c", LEAVING]).run();
    let copied = home.vmm(&["cp", "job:/left", "-"]).run();
    let second = home.vmm(&["start", "-a", NAME]).run();

    first.code_is(3).stdout_is("out\n").stderr_is("err\n");
    copied.succeeded().stdout_has("left\n");
    second
        .code_is(3)
        .stdout_is("left\nout\n")
        .stderr_is("err\n");
    home.logs()
        .succeeded()
        .stdout_is("out\nleft\nout\n")
        .stderr_is("err\nerr\n");
    assert_eq!(home.list(), "job exited\n");
    home.run(&[], &["true"]).run().complained(&[NAME]);
    // At once: its guest may still write to its disk.
    home.vmm(&["start", "-a", NAME]).run().code_is(3);
    home.vmm(&["rm", NAME]).run().succeeded();
    assert_eq!(home.list(), "");
    home.fixture.nothing_runs();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn input_reaches_the_workload_bit_for_bit_and_ends_with_the_clients() {
    let home = Home::new();
    let sent: Vec<u8> = (0..100_003_u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();

    let echoed = home
        .run(&["-i"], &["sh", "-c", "echo up >&2; exec cat"])
        .input(sent.clone())
        .run();
    let again = home.vmm(&["start", "-ai", NAME]).input("once more").run();
    let without = home
        .vmm(&["start", "-a", NAME])
        .input("not for the workload")
        .start();
    without.wait_for_stderr("up\n");

    echoed.code_is(0).stderr_is("up\n");
    assert!(echoed.stdout == sent, "{} bytes came", echoed.stdout.len());
    again.code_is(0).stdout_is("once more").stderr_is("up\n");
    // Its input is open, and nobody else's.
    home.vmm(&["stop", "-t", "0", NAME]).run().succeeded();
    without.finish().code_is(137).stdout_is("");
}

#[test]
fn signals_are_the_workloads_and_the_third_that_ends_is_the_machines() {
    let home = Home::new();

    let run = home.run(&[], &["sh", "-c", COUNTING]).start();
    run.wait_for_stdout("tick\n");
    for times in ["int 1\n", "int 2\n"] {
        run.signal(Signal::INT);
        run.wait_for_stdout(times);
    }
    run.signal(Signal::INT);
    // It was killed.
    run.finish().code_is(137);

    assert_eq!(home.list(), "job exited\n");
    home.logs().succeeded().stdout_has("int 2\n");
    home.fixture.nothing_runs();
}

#[test]
fn a_machine_ends_with_its_client_and_its_record_stays() {
    let home = Home::new();

    let run = home.run(&[], &["sh", "-c", COUNTING]).start();
    run.wait_for_stdout("tick\n");
    let beside = home.vmm(&["attach", "--no-stdin", NAME]).start();
    beside.wait_for_stdout("tick\n");
    run.signal(Signal::KILL);
    run.finish();

    beside.finish();
    home.fixture.nothing_runs();
    assert_eq!(home.list(), "job exited\n");
    home.vmm(&["rm", NAME]).run().succeeded();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_run_whose_reader_has_gone_ends_as_a_plain_program_would() {
    let home = Home::new();

    let done = home.run(&[], &["yes"]).output_to_closed_pipe().run();

    let as_signal = done.signal() == Some(Signal::PIPE.as_raw());
    let as_code = done.code() == Some(128 + Signal::PIPE.as_raw());
    let as_error = done.code() == Some(1);
    assert!(as_signal || as_code || as_error, "{done:?}");
    done.stderr_lacks("panicked");
    home.fixture.nothing_runs();
}

#[test]
fn what_is_to_be_removed_leaves_nothing() {
    let home = Home::new();

    home.run(&["--rm"], &["sh", "-c", LEAVING])
        .run()
        .code_is(3)
        .stdout_is("out\n");

    assert_eq!(home.list(), "");
    assert_eq!(home.fixture.machines_listing(), "");
}
