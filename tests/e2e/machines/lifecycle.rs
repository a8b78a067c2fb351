//! `stop`, `wait`, `rename`, `inspect`, `ps`, and what `run` writes down about a machine.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation, kernels};

use super::busybox_with_probe;

/// A fixture with busybox in its store.
fn home() -> Fixture {
    super::with_busybox()
}

fn vmm(fixture: &Fixture, arguments: &[&str]) -> Invocation {
    fixture.vmm(arguments).limit(MACHINE_LIMIT)
}

/// Starts a machine in the background, and returns its id.
fn start(fixture: &Fixture, name: &str, options: &[&str], command: &[&str]) -> String {
    let options = [&["-d", "--name", name], options].concat();
    let started = fixture.run_name("busybox:test", &options, command).run();
    started.succeeded().stdout_text().trim_end().to_owned()
}

/// Waits until a machine's log has a line.
fn wait_for_log(fixture: &Fixture, name: &str, line: &str) {
    let follower = vmm(fixture, &["logs", "-f", name]).start();
    follower.wait_for_stdout(line);
}

fn ps(fixture: &Fixture, arguments: &[&str]) -> Finished {
    vmm(fixture, &["ps"]).args(arguments).run()
}

fn inspect(fixture: &Fixture, template: &str, name: &str) -> String {
    let inspected = vmm(fixture, &["inspect", "--format", template, name]).run();
    inspected.succeeded().stdout_text().trim_end().to_owned()
}

fn document(fixture: &Fixture, name: &str) -> Value {
    let inspected = vmm(fixture, &["inspect", name]).run();
    let list: Value =
        serde_json::from_slice(&inspected.succeeded().stdout).expect("inspect prints a list");
    list[0].clone()
}

#[test]
fn a_machine_is_asked_to_end_by_its_own_signal_and_killed_when_it_does_not() {
    let fixture = home();
    let polite = "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done";
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    start(
        &fixture,
        "polite",
        &["--stop-signal", "INT", "--stop-timeout", "100"],
        &["sh", "-c", polite],
    );
    start(
        &fixture,
        "stubborn",
        &["--stop-timeout", "1"],
        &["sh", "-c", stubborn],
    );
    wait_for_log(&fixture, "polite", "ready\n");
    wait_for_log(&fixture, "stubborn", "ready\n");
    let waiting = vmm(&fixture, &["wait", "polite", "stubborn"]).start();

    vmm(&fixture, &["stop", "polite", "stubborn"])
        .run()
        .succeeded()
        .stdout_is("polite\nstubborn\n")
        .stderr_is("");

    waiting.finish().succeeded().stdout_is("9\n137\n");
    assert_eq!(
        inspect(
            &fixture,
            "{{.Config.StopSignal}} {{.Config.StopTimeout}}",
            "polite"
        ),
        "SIGINT 100"
    );
    vmm(&fixture, &["stop", "stubborn"])
        .run()
        .succeeded()
        .stdout_is("stubborn\n");
    let mixed = vmm(&fixture, &["stop", "nobody", "polite"]).run();
    mixed
        .code_is(1)
        .stdout_is("polite\n")
        .complained(&["nobody"]);
    vmm(&fixture, &["kill", "polite"])
        .run()
        .failed(&["polite", "does not run"])
        .helped();
    vmm(&fixture, &["rm", "polite", "stubborn"])
        .run()
        .succeeded()
        .stdout_is("polite\nstubborn\n");
    fixture.nothing_runs();
    assert_eq!(fixture.machines_listing(), "");
}

#[test]
fn a_signal_and_a_time_may_be_typed_with_stop_and_a_paused_machine_is_stopped_too() {
    let fixture = home();
    let script = "trap 'exit 8' USR2; echo ready; while :; do sleep 0.1; done";
    start(&fixture, "still", &["--rm"], &["sh", "-c", script]);
    wait_for_log(&fixture, "still", "ready\n");
    vmm(&fixture, &["pause", "still"]).run().succeeded();
    ps(&fixture, &["--filter", "status=paused"])
        .succeeded()
        .stdout_has("(Paused)");
    let waiting = vmm(&fixture, &["wait", "still"]).start();

    vmm(
        &fixture,
        &["stop", "--signal", "USR2", "--time", "100", "still"],
    )
    .run()
    .succeeded();

    let code = waiting.finish();
    code.succeeded().stdout_is("8\n");
    assert_eq!(fixture.machines_listing(), "", "--rm leaves nothing");
}

#[test]
fn whoever_is_told_of_an_end_may_take_the_name_or_start_the_machine_at_once() {
    const ROUNDS: usize = 2;
    let fixture = home();
    let polite = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    for _ in 0..ROUNDS {
        start(&fixture, "again", &["--rm"], &["sh", "-c", polite]);
        vmm(&fixture, &["stop", "again"]).run().succeeded();
        assert_eq!(fixture.machines_listing(), "", "stopped");
        start(&fixture, "again", &["--rm"], &["sh", "-c", polite]);
        let waiting = vmm(&fixture, &["wait", "again"]).start();
        vmm(&fixture, &["kill", "again"]).run().succeeded();
        waiting.finish();
        assert_eq!(fixture.machines_listing(), "", "waited for");
    }
    start(&fixture, "kept", &[], &["sleep", "1000"]);
    for _ in 0..ROUNDS {
        vmm(&fixture, &["kill", "kept"]).run().succeeded();
        vmm(&fixture, &["wait", "kept"])
            .run()
            .succeeded()
            .stdout_is("137\n");
        vmm(&fixture, &["start", "kept"]).run().succeeded();
        let state = inspect(&fixture, "{{.State.Status}}", "kept");
        assert_eq!(state, "running");
    }
    vmm(&fixture, &["rm", "-f", "kept"]).run().succeeded();
    fixture.nothing_runs();
}

#[test]
fn a_machine_keeps_its_new_name_while_it_runs_and_after() {
    let fixture = home();
    let id = start(&fixture, "before", &[], &["sleep", "1000"]);
    start(&fixture, "other", &[], &["true"]);

    vmm(&fixture, &["rename", "before", "after"])
        .run()
        .succeeded()
        .stdout_is("");

    vmm(&fixture, &["rename", "after", "other"])
        .run()
        .failed(&["other"])
        .helped();
    vmm(&fixture, &["rename", "after", "a/b"])
        .run()
        .refused(&["a/b"]);
    vmm(&fixture, &["rename", "before", "new"])
        .run()
        .failed(&["before"])
        .helped();
    vmm(&fixture, &["kill", "after"]).run().succeeded();
    vmm(&fixture, &["wait", "after"])
        .run()
        .succeeded()
        .stdout_is("137\n");
    assert_eq!(
        inspect(&fixture, "{{.Name}} {{.Id}}", "after"),
        format!("/after {id}")
    );
    assert_eq!(inspect(&fixture, "{{.Name}}", &id[..12]), "/after");
    vmm(&fixture, &["rm", "after"]).run().succeeded();
    vmm(&fixture, &["rm", "-f", "other"]).run().succeeded();
    assert_eq!(fixture.machines_listing(), "");
}

#[test]
fn what_a_machine_was_run_with_is_inspected_and_listed() {
    let fixture = home();
    let labels = fixture.file("labels", "# of a file\nteam=red\nrank=3\n");
    let (cidfile, pidfile) = (fixture.path("cid"), fixture.path("pid"));
    let options = [
        "--label",
        "team=blue",
        "-l",
        "bare",
        "--label-file",
        labels.to_str().unwrap(),
        "--cidfile",
        cidfile.to_str().unwrap(),
        "--pidfile",
        pidfile.to_str().unwrap(),
        "--memory",
        "64m",
        "--cpus",
        "1.5",
        "--env",
        "COLOUR=green",
        "--workdir",
        "/tmp",
        "--read-only",
        "--log-opt",
        "max-size=1m",
        "--hostname",
        "inside",
    ];
    let id = start(&fixture, "known", &options, &["sleep", "1000"]);

    let known = document(&fixture, "known");
    assert_eq!(fs::read_to_string(&cidfile).unwrap(), id);
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        known["State"]["Pid"].to_string()
    );
    assert_eq!(known["Id"], id);
    assert_eq!(
        (&known["Path"], &known["Args"][0]),
        (&"sleep".into(), &"1000".into())
    );
    assert_eq!(known["State"]["Status"], "running");
    assert_eq!(
        known["Config"]["Labels"],
        serde_json::json!({ "team": "blue", "bare": "", "rank": "3" })
    );
    assert_eq!(
        (&known["Config"]["Hostname"], &known["Config"]["WorkingDir"]),
        (&"inside".into(), &"/tmp".into())
    );
    assert!(
        known["Config"]["Env"]
            .as_array()
            .unwrap()
            .contains(&"COLOUR=green".into())
    );
    assert_eq!(known["HostConfig"]["Memory"], 64 << 20);
    assert_eq!(known["HostConfig"]["NanoCpus"], 1_500_000_000);
    assert_eq!(known["HostConfig"]["ReadonlyRootfs"], true);
    assert_eq!(
        known["HostConfig"]["LogConfig"]["Config"]["max-size"],
        "1000000"
    );
    assert!(known["Created"].as_str().unwrap().ends_with('Z'));

    let again = ["--cidfile", cidfile.to_str().unwrap()];
    fixture
        .run_name("busybox:test", &again, &["true"])
        .run()
        .refused(&["cid"])
        .helped();
    assert_eq!(fs::read_to_string(&cidfile).unwrap(), id);

    let row = |arguments: &[&str]| ps(&fixture, arguments).succeeded().stdout_text();
    assert_eq!(row(&["-q"]).trim_end(), &id[..12]);
    assert_eq!(row(&["-q", "--no-trunc"]).trim_end(), id);
    assert_eq!(
        row(&["--format", "{{.Names}} {{.Label \"team\"}} {{.State}}"]),
        "known blue running\n"
    );
    let table = row(&["--format", r"table {{.Names}}\t{{.Image}}"]);
    assert_eq!(table, "NAMES   IMAGE\nknown   busybox:test\n");
    let line: Value = serde_json::from_str(&row(&["--format", "json"])).unwrap();
    assert_eq!(
        (&line["Names"], &line["ID"]),
        (&"known".into(), &id[..12].into())
    );
    let status = row(&["--format", "{{.Status}}"]);
    assert!(status.starts_with("Up "), "{status}");
    vmm(&fixture, &["rm", "--force", "--volumes", "known"])
        .run()
        .succeeded();
}

#[test]
fn machines_are_filtered_by_what_they_are() {
    let fixture = home();
    start(
        &fixture,
        "first",
        &["--label", "team=blue"],
        &["sh", "-c", "exit 3"],
    );
    vmm(&fixture, &["wait", "first"])
        .run()
        .succeeded()
        .stdout_is("3\n");
    start(
        &fixture,
        "second",
        &["--label", "team=red"],
        &["sleep", "1000"],
    );

    let names = |arguments: &[&str]| {
        let arguments = [arguments, &["--format", "{{.Names}}"]].concat();
        ps(&fixture, &arguments).succeeded().stdout_text()
    };
    assert_eq!(names(&[]), "second\n");
    assert_eq!(names(&["-a"]), "second\nfirst\n");
    assert_eq!(names(&["--latest"]), "second\n");
    assert_eq!(names(&["--last", "2"]), "second\nfirst\n");
    assert_eq!(names(&["--filter", "status=exited"]), "first\n");
    assert_eq!(names(&["-a", "-f", "exited=3"]), "first\n");
    assert_eq!(names(&["-a", "-f", "exited=0"]), "");
    assert_eq!(names(&["-a", "-f", "label=team=red"]), "second\n");
    assert_eq!(names(&["-a", "-f", "label=team"]), "second\nfirst\n");
    assert_eq!(names(&["-a", "-f", "name=^fir"]), "first\n");
    assert_eq!(
        names(&["-a", "-f", "ancestor=busybox:test", "-f", "status=running"]),
        "second\n"
    );
    assert_eq!(names(&["-a", "-f", "before=second"]), "first\n");
    assert_eq!(names(&["-a", "-f", "since=first"]), "second\n");
    ps(&fixture, &["-a"]).succeeded().stdout_has("Exited (3) ");
    let array: Value = serde_json::from_slice(&ps(&fixture, &["-a", "--json"]).stdout).unwrap();
    assert_eq!(
        (&array[1]["cause"], &array[1]["exit_code"]),
        (&"exited".into(), &3.into())
    );
}

#[test]
fn why_a_machine_ended_is_kept() {
    let fixture = Fixture::with_machines();
    fixture
        .load(&busybox_with_probe(&fixture))
        .arg("--name=busybox:test")
        .run()
        .succeeded();
    start(
        &fixture,
        "hungry",
        &["--memory", "8m"],
        &["probe", "allocate", "16"],
    );
    start(&fixture, "faulty", &[], &["probe", "segfault"]);
    vmm(&fixture, &["wait", "hungry", "faulty"])
        .run()
        .succeeded()
        .stdout_is("137\n139\n");

    let state = "{{.State.OOMKilled}} {{.State.ExitCode}} {{.Vmm.Cause}} {{.State.Error}}";
    let hungry = inspect(&fixture, state, "hungry");
    assert!(hungry.starts_with("true 137 out-of-memory "), "{hungry}");
    assert!(hungry.contains("8388608 bytes"), "{hungry}");
    assert_eq!(
        inspect(&fixture, "{{.Vmm.Cause}} {{.Vmm.Signal}}", "faulty"),
        "signalled SIGSEGV"
    );
    ps(&fixture, &["-a"])
        .succeeded()
        .stdout_has("Exited (139) ");
}

#[test]
fn a_guest_that_died_before_its_workload_ran_is_on_record() {
    let fixture = home();
    // lidt [rip + 1]; ud2 (an exception without a table to deliver it by); a table of length 0
    let instructions = b"\x0f\x01\x1d\x02\0\0\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0";
    let kernel = fixture.file("fault", kernels::of_instructions(instructions));
    let options = ["-d", "--name", "dead", "--kernel", kernel.to_str().unwrap()];

    let done = fixture.run_name("busybox:test", &options, &["true"]).run();

    done.refused(&["the guest died"]);
    let state = "{{.State.ExitCode}} {{.Vmm.Cause}} {{.State.StartedAt}}";
    let told = inspect(&fixture, state, "dead");
    assert_eq!(told, "125 guest-died 0001-01-01T00:00:00Z");
    vmm(&fixture, &["rm", "dead"]).run().succeeded();
}

#[test]
fn a_machine_that_the_host_killed_says_so() {
    let fixture = home();
    start(&fixture, "victim", &[], &["sleep", "1000"]);
    let monitor = inspect(&fixture, "{{.State.Pid}}", "victim").parse().ok();
    let monitor = monitor.and_then(Pid::from_raw);
    let machine = fixture
        .processes()
        .into_iter()
        .find(|(pid, _)| Some(*pid) != monitor);
    let waiting = vmm(&fixture, &["wait", "victim"]).start();

    kill_process(machine.unwrap().0, Signal::KILL).unwrap();

    waiting.finish().succeeded().stdout_is("125\n");
    let state = "{{.State.Status}} {{.Vmm.Cause}} {{.State.Error}}";
    let told = inspect(&fixture, state, "victim");
    assert_eq!(
        told,
        "exited host-failed the VM process ended unexpectedly, with signal 9"
    );
    ps(&fixture, &["-a"])
        .succeeded()
        .stdout_has("Exited (125) ");
    fixture.nothing_runs();
}

#[test]
fn what_makes_no_sense_is_refused_with_help() {
    let fixture = Fixture::new();
    let refused = |arguments: &[&str], names: &[&str]| {
        fixture.vmm(arguments).run().declined(names).helped();
    };
    refused(&["ps", "--filter", "colour=red"], &["colour"]);
    refused(&["ps", "--filter", "status=up"], &["'up'"]);
    refused(&["ps", "--format", "{{range .}}"], &["range"]);
    refused(&["ps", "--format", "table {{.ID"], &["{{"]);
    fixture
        .vmm(["inspect", "nobody"])
        .run()
        .code_is(1)
        .stdout_is("[]\n")
        .complained(&["nobody"])
        .helped();
    refused(&["inspect", "-f", "{{if .Id}}", "nobody"], &["if .Id"]);
    refused(&["wait", "nobody"], &["nobody"]);
    refused(&["stop", "-s", "NOPE", "nobody"], &["NOPE"]);
    refused(&["stop", "-t", "soon", "nobody"], &["soon"]);
    refused(&["rename", "nobody", "somebody"], &["nobody"]);
    refused(&["run", "--label", "=x", "app"], &["--label", "=x"]);
    refused(&["run", "--stop-signal", "NOPE", "app"], &["NOPE"]);
}
