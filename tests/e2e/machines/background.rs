//! `-d`, `ps`, `kill`, `rm`: machines without a client.

use rustix::process::Signal;
use serde_json::Value;
use tests::Fixture;
use tests::process::MACHINE_LIMIT;

use super::busybox;

fn machines(fixture: &Fixture, arguments: &[&str]) -> Vec<Value> {
    let listed = fixture.vmm(["ps", "--json"]).args(arguments).run();
    serde_json::from_slice(&listed.succeeded().stdout).expect("ps --json prints a list")
}

#[test]
fn a_machine_in_the_background_is_listed_and_killed() {
    let fixture = super::with_busybox();
    let started = fixture
        .run_name(
            "busybox:test",
            &["-d", "--name", "sleeper"],
            &["sleep", "1000"],
        )
        .run();
    let id = started.succeeded().stderr_is("").stdout_text();
    assert_eq!(
        id.lines().count(),
        1,
        "only the machine's id is printed: {id:?}"
    );
    assert!(
        !fixture.processes().is_empty(),
        "the machine outlives the command that started it"
    );

    let listed = fixture.vmm(["ps"]).run();
    listed
        .succeeded()
        .stdout_has("sleeper")
        .stdout_has("busybox:test");
    assert_eq!(machines(&fixture, &[]).len(), 1);

    let twice = fixture
        .run_name("busybox:test", &["-d", "--name", "sleeper"], &["true"])
        .run();
    twice.refused(&["sleeper"]);

    fixture
        .vmm(["kill", "sleeper"])
        .limit(MACHINE_LIMIT)
        .run()
        .succeeded();
    fixture.nothing_runs();
    assert_eq!(machines(&fixture, &[]).len(), 0);
}

#[test]
fn a_machine_whose_client_goes_before_it_has_started_goes_too() {
    let fixture = super::with_busybox();
    let client = fixture
        .run_name("busybox:test", &["-d"], &["sleep", "1000"])
        .start();
    while machines(&fixture, &["--all"]).is_empty() {}

    client.signal(Signal::KILL);

    client.finish();
    fixture.nothing_runs();
}

#[test]
fn an_image_in_use_is_not_pruned() {
    let fixture = super::with_busybox();
    fixture
        .run_name(
            "busybox:test",
            &["-d", "--name", "user"],
            &["sleep", "1000"],
        )
        .run()
        .succeeded();
    fixture.vmm(["prune", "--all", "--force"]).run().succeeded();
    fixture
        .vmm(["images", "--quiet"])
        .run()
        .succeeded()
        .stdout_has("\n");
    fixture
        .vmm(["kill", "user"])
        .limit(MACHINE_LIMIT)
        .run()
        .succeeded();
    fixture.nothing_runs();
}

#[test]
fn a_signal_of_choice_reaches_the_workload_and_ends_it_only_if_it_means_to() {
    let fixture = Fixture::with_machines();
    let script = "trap 'exit 30' USR1; echo ready; while :; do sleep 0.1; done";
    let running = fixture
        .run(
            &busybox(&fixture),
            &["--name", "polite"],
            &["sh", "-c", script],
        )
        .start();
    running.wait_for_stdout("ready\n");
    fixture
        .vmm(["kill", "--signal", "WINCH", "polite"])
        .run()
        .succeeded();
    assert_eq!(machines(&fixture, &[]).len(), 1);
    fixture
        .vmm(["kill", "--signal", "USR1", "polite"])
        .run()
        .succeeded();
    running
        .finish()
        .code_is(30)
        .stdout_is("ready\n")
        .stderr_is("");
    fixture.nothing_runs();
}

#[test]
fn an_unknown_machine_is_named() {
    let fixture = Fixture::new();
    fixture.vmm(["kill", "nobody"]).run().failed(&["nobody"]);
}

#[test]
fn a_run_in_the_foreground_is_listed_and_can_be_killed_from_elsewhere() {
    let fixture = Fixture::with_machines();
    let script = "echo ready; sleep 1000";
    let running = fixture
        .run(
            &busybox(&fixture),
            &["--name", "front"],
            &["sh", "-c", script],
        )
        .start();
    running.wait_for_stdout("ready\n");
    fixture.vmm(["ps"]).run().succeeded().stdout_has("front");
    fixture.vmm(["kill", "front"]).run().succeeded();
    running.finish().code_is(137).stdout_is("ready\n");
    fixture.nothing_runs();
    assert_eq!(
        machines(&fixture, &["--all"]).len(),
        0,
        "a run in the foreground leaves no record"
    );
}

#[test]
fn a_machine_that_ended_stays_listed_with_its_exit_code_until_it_is_removed() {
    let fixture = super::with_busybox();
    fixture
        .run_name(
            "busybox:test",
            &["-d", "--name", "brief"],
            &["sh", "-c", "exit 33"],
        )
        .run()
        .succeeded();
    fixture.nothing_runs();
    assert_eq!(machines(&fixture, &[]).len(), 0);
    fixture
        .vmm(["ps", "--all"])
        .run()
        .succeeded()
        .stdout_has("brief")
        .stdout_has("33");
    fixture.vmm(["rm", "brief"]).run().succeeded();
    assert_eq!(machines(&fixture, &["--all"]).len(), 0);
    assert_eq!(fixture.machines_listing(), "");
}
