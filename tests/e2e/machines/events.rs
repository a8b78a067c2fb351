//! `vmm events`.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::process::MACHINE_LIMIT;
use tests::{Fixture, Invocation};

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

    /// What has happened, a line of a template each.
    fn past(&self, template: &str, filters: &[&str]) -> Vec<String> {
        let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
        let told = self
            .vmm(&[
                "events", "--since", "0", "--until", "0s", "--format", template,
            ])
            .args(filters)
            .run();
        let text = told.succeeded().stdout_text().to_owned();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_life_of_a_machine_is_told_as_it_happens_and_later() {
    let home = Home::new();
    let follower = home.vmm(&["events", "--filter", "label=role"]).start();
    home.fixture
        .run_name(
            "busybox:test",
            &[
                "-d",
                "--storage",
                "1g",
                "--name",
                "job",
                "--label",
                "role=front",
            ],
            &[
                "sh",
                "-c",
                "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done",
            ],
        )
        .run()
        .succeeded();
    home.vmm(&["logs", "-f", "job"])
        .start()
        .wait_for_stdout("up\n");
    home.vmm(&["exec", "job", "sh", "-c", "exit 5"])
        .run()
        .code_is(5);
    home.vmm(&["pause", "job"]).run().succeeded();
    home.vmm(&["resume", "job"]).run().succeeded();
    home.vmm(&["top", "job"]).run().succeeded();
    home.vmm(&["rename", "job", "work"]).run().succeeded();
    home.vmm(&["restart", "work"]).run().succeeded();
    home.vmm(&["rm", "-f", "work"]).run().succeeded();
    follower.wait_for_stdout(" container destroy ");

    let told = home.past("{{.Action}}", &["container=job"]);
    assert_eq!(
        told,
        [
            "create",
            "start",
            "exec_create: sh -c exit 5",
            "exec_start: sh -c exit 5",
            "exec_die",
            "pause",
            "unpause",
            "top"
        ]
    );
    let later = home.past(
        "{{.Action}} {{index .Actor.Attributes \"exitCode\"}} {{index .Actor.Attributes \"signal\"}}",
        &["container=work"],
    );
    let none = "<no value>";
    assert_eq!(
        later,
        [
            format!("rename {none} {none}"),
            format!("kill {none} 15"),
            format!("die 3 {none}"),
            format!("stop {none} {none}"),
            format!("start {none} {none}"),
            format!("restart {none} {none}"),
            format!("kill {none} 9"),
            format!("die 137 {none}"),
            format!("destroy {none} {none}"),
        ]
    );
    let exits = home.past(
        "{{.Actor.Attributes.execID}} {{.Actor.Attributes.exitCode}}",
        &["event=exec_die"],
    );
    assert_eq!(exits, ["1 5"]);
}

#[test]
fn an_event_has_dockers_shape_and_a_lost_monitor_is_told_of() {
    let home = Home::new();
    let started = home
        .fixture
        .run_name("busybox:test", &["-d", "--name", "web"], &["sleep", "1000"])
        .run();
    let id = started.succeeded().stdout_text().trim_end().to_owned();
    let pid = home
        .vmm(&["inspect", "--format", "{{.State.Pid}}", "web"])
        .run();
    let pid: i32 = pid.succeeded().stdout_text().trim_end().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    home.fixture.nothing_runs();
    home.vmm(&["rm", "web"]).run().succeeded();

    let lines = home.past("json", &["event=die"]);
    let die: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(die["Type"], "container");
    assert_eq!(die["Action"], "die");
    assert_eq!(die["status"], "die");
    assert_eq!(die["id"], id.as_str());
    assert_eq!(die["from"], "busybox:test");
    assert_eq!(die["Actor"]["ID"], id.as_str());
    assert_eq!(die["scope"], "local");
    let attributes = &die["Actor"]["Attributes"];
    assert_eq!(attributes["name"], "web");
    assert_eq!(attributes["exitCode"], "137");
    assert_eq!(attributes["cause"], "lost");
    let nanoseconds = die["timeNano"].as_i64().unwrap();
    assert_eq!(die["time"].as_i64().unwrap(), nanoseconds / 1_000_000_000);
    assert_eq!(lines.len(), 1);

    home.vmm(&["events", "--filter", "colour=red"])
        .run()
        .failed(&["colour"])
        .helped();
    home.vmm(&["events", "--since", "yesterday"])
        .run()
        .refused(&["--since", "yesterday"]);
    home.vmm(&[
        "events",
        "--format",
        "{{.Nothing}}",
        "--since",
        "0",
        "--until",
        "0s",
    ])
    .run()
    .failed(&["Nothing"])
    .helped();
}
