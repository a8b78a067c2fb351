//! Signals to `vmm`, and what a `vmm` that was killed leaves behind.

use rustix::process::Signal;
use tests::Fixture;

use super::busybox;

/// A workload that says when it is ready, and how it was asked to end.
const WAITER: &str = "trap 'echo got TERM; exit 21' TERM; trap 'echo got INT; exit 22' INT; \
                      trap 'echo got USR1; exit 23' USR1; trap 'echo got HUP; exit 24' HUP; \
                      echo ready; while :; do sleep 0.1; done";

fn signalled(signal: Signal) -> tests::Finished {
    let fixture = Fixture::with_machines();
    let running = fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", WAITER])
        .start();
    running.wait_for_stdout("ready\n");
    running.signal(signal);
    let done = running.finish();
    fixture.nothing_runs();
    done
}

#[test]
fn sigterm_reaches_the_workload() {
    signalled(Signal::TERM)
        .code_is(21)
        .stdout_is("ready\ngot TERM\n")
        .stderr_is("");
}

#[test]
fn sigint_reaches_the_workload() {
    signalled(Signal::INT)
        .code_is(22)
        .stdout_is("ready\ngot INT\n")
        .stderr_is("");
}

#[test]
fn sigusr1_reaches_the_workload() {
    signalled(Signal::USR1)
        .code_is(23)
        .stdout_is("ready\ngot USR1\n")
        .stderr_is("");
}

#[test]
fn sighup_reaches_the_workload() {
    signalled(Signal::HUP)
        .code_is(24)
        .stdout_is("ready\ngot HUP\n")
        .stderr_is("");
}

#[test]
fn sigterm_while_the_machine_boots_ends_the_run() {
    let fixture = super::with_busybox();
    let running = fixture
        .run_name("busybox:test", &[], &["sleep", "1000"])
        .start();
    // The boot begins when the machine's own process is there.
    let boots = (0..10_000).any(|_| fixture.processes().len() > 1);
    assert!(boots, "the machine is a process of its own");
    running.signal(Signal::TERM);
    let done = running.finish();
    assert_ne!(done.code(), Some(0), "{done:?}");
    fixture.nothing_runs();
}

#[test]
fn a_killed_vmm_leaves_no_process_and_the_next_run_cleans_its_files() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    fixture.load(&image).run().succeeded();
    let store = fixture.store_listing();
    let running = fixture
        .run(&image, &[], &["sh", "-c", "echo ready; sleep 1000"])
        .start();
    running.wait_for_stdout("ready\n");
    running.signal(Signal::KILL);
    let killed = running.finish();
    assert_eq!(killed.signal(), Some(Signal::KILL.as_raw()), "{killed:?}");
    fixture.nothing_runs();

    fixture
        .run(&image, &[], &[])
        .run()
        .code_is(0)
        .stdout_is("hello\n")
        .stderr_is("");
    assert_eq!(
        fixture.machines_listing(),
        "",
        "the next run cleans the record of the killed one"
    );
    // Whether a file is remembered depends on how long it lay still before it was read.
    let without_sources = |listing: String| {
        let lines = listing.lines().filter(|line| !line.starts_with("sources/"));
        lines.collect::<Vec<_>>().join("\n")
    };
    tests::snapshot::assert_unchanged(
        &without_sources(store),
        &without_sources(fixture.store_listing()),
    );
    fixture
        .vmm(["ps", "--all", "--quiet"])
        .run()
        .code_is(0)
        .stdout_is("");
}

#[test]
fn a_killed_machine_process_ends_the_run_with_125() {
    let fixture = Fixture::with_machines();
    let running = fixture
        .run(
            &busybox(&fixture),
            &[],
            &["sh", "-c", "echo ready; sleep 1000"],
        )
        .start();
    running.wait_for_stdout("ready\n");
    let others: Vec<_> = fixture
        .processes()
        .into_iter()
        .filter(|(pid, _)| *pid != running.pid())
        .collect();
    assert!(!others.is_empty(), "the machine is a process of its own");
    for (pid, _) in &others {
        rustix::process::kill_process(*pid, Signal::KILL).unwrap();
    }
    let done = running.finish();
    assert!(matches!(done.code(), Some(125 | 137)), "{done:?}");
    done.complained(&[]);
    fixture.nothing_runs();
}
