//! `-t`: a terminal inside, and the one outside put back as it was.

use rustix::process::Signal;
use tests::Fixture;

use super::busybox;

fn load(fixture: &Fixture) {
    fixture.load(&busybox(fixture)).run().succeeded();
}

#[test]
fn a_terminal_inside_has_the_size_of_the_one_outside_and_follows_it() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    let script = "tty; echo $TERM; stty size; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done";
    let terminal = fixture.on_terminal(["run", "-i", "-t", "busybox:test", "sh", "-c", script]);
    terminal.wait_for("ready");
    assert!(terminal.settings_differ(), "keys go to the workload raw");
    terminal.resize(44, 111);
    let done = terminal.finish();
    done.code_is(6)
        .stdout_has("/dev/pts/")
        .stdout_has("xterm")
        .stdout_has("33 99")
        .stdout_has("44 111");
}

#[test]
fn control_c_on_a_terminal_reaches_the_workload_as_sigint() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    let script = "trap 'echo got INT; exit 22' INT; echo ready; while :; do sleep 0.1; done";
    let mut terminal = fixture.on_terminal(["run", "-it", "busybox:test", "sh", "-c", script]);
    terminal.wait_for("ready");
    terminal.press(b"\x03");
    terminal.finish().code_is(22).stdout_has("got INT");
    fixture.nothing_runs();
}

#[test]
fn control_c_without_a_terminal_inside_reaches_the_workload_too() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    let script = "trap 'echo got INT; exit 22' INT; echo ready; while :; do sleep 0.1; done";
    let mut terminal = fixture.on_terminal(["run", "busybox:test", "sh", "-c", script]);
    terminal.wait_for("ready");
    terminal.press(b"\x03");
    terminal.finish().code_is(22).stdout_has("got INT");
    fixture.nothing_runs();
}

#[test]
fn typed_lines_reach_a_shell_and_control_d_ends_it() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    let mut terminal = fixture.on_terminal(["run", "-it", "busybox:test", "sh"]);
    terminal.wait_for("# ");
    terminal.press(b"echo $((6 * 7)) and; tty\r");
    terminal.wait_for("42 and");
    terminal.wait_for("/dev/pts/0");
    terminal.press(b"echo begin; cat; exit 9\r");
    terminal.wait_for("begin\r\n");
    terminal.press(b"line\r");
    terminal.wait_for("line\r\nline\r\n");
    terminal.press(b"\x04");
    terminal.finish().code_is(9);
}

#[test]
fn the_terminal_is_restored_when_vmm_is_terminated() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    let terminal = fixture.on_terminal([
        "run",
        "-it",
        "busybox:test",
        "sh",
        "-c",
        "trap 'exit 21' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    terminal.wait_for("ready");
    assert!(terminal.settings_differ(), "keys go to the workload raw");
    terminal.signal(Signal::TERM);
    terminal.finish().code_is(21);
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let fixture = Fixture::with_machines();
    load(&fixture);
    fixture
        .run_name("busybox:test", &["-i", "-t"], &["true"])
        .run()
        .refused(&["terminal"]);
}
