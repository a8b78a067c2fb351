//! Machines that nobody looks after: started again by their restart policy and after a restart of the host, and asked how they are.

use std::fs;
use std::time::Instant;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::image_maker::ImageMaker;
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation};

const IMAGE: &str = "busybox:test";
/// Small, so that it is soon made.
const SIZE: &str = "size=64m";

/// A place with an image.
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

    fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Finished {
        let named = ["run", "-d", "--name", name, "--storage-opt", SIZE];
        self.vmm(&[&named, options, &[IMAGE], command].concat())
            .run()
    }

    #[track_caller]
    fn inspected(&self, name: &str, template: &str) -> String {
        let inspected = self.vmm(&["inspect", "-f", template, name]).run();
        inspected.succeeded().stdout_text().trim_end().to_owned()
    }

    #[track_caller]
    fn wait_is(&self, name: &str, code: &str) {
        let waited = self.vmm(&["wait", name]).run();
        waited.succeeded().stdout_is(&format!("{code}\n"));
    }

    fn restarts(&self, name: &str) -> u32 {
        let count = self.inspected(name, "{{.RestartCount}}");
        count.parse().expect("it is a number")
    }

    /// Looks at a machine until it waits for so many restarts or more. What it waits doubles with each: after five it is 3.2 s.
    #[track_caller]
    fn await_restarts(&self, name: &str, count: u32) {
        let deadline = Instant::now() + MACHINE_LIMIT;
        while self.restarts(name) < count
            || self.inspected(name, "{{.State.Status}}") != "restarting"
        {
            assert!(Instant::now() < deadline, "{name} is not started so often");
        }
    }

    /// Ends all monitors and VM processes, as a host that goes down.
    fn kill_all(&self) {
        for (pid, _) in self.fixture.processes() {
            // One takes the other with it.
            let _ = kill_process(pid, Signal::KILL);
        }
        self.fixture.nothing_runs();
    }

    /// Lets a machine's record be one of another boot of the host.
    fn reboot(&self, name: &str) {
        let path = self.fixture.machines().join(format!("@{name}"));
        let path = path.join("record.json");
        let record = fs::read_to_string(&path).expect("a machine has a record");
        let (before, after) = record.split_once("\"boot\":\"").expect("it names a boot");
        fs::write(&path, format!("{before}\"boot\":\"another-{after}")).expect("it can be changed");
    }
}

#[test]
fn a_failing_machine_is_started_again_until_a_person_or_the_host_ends_it() {
    let home = Home::new();
    let script = "echo run $(cat /n 2>/dev/null); echo x >> /n; exit 3";
    home.run("flaky", &["--restart", "on-failure"], &["sh", "-c", script])
        .succeeded();

    home.wait_is("flaky", "3");
    home.await_restarts("flaky", 6);
    let template = "{{.State.Restarting}} {{.State.ExitCode}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(home.inspected("flaky", template), "true 3 on-failure");
    let listed = home.vmm(&["ps", "--filter", "status=restarting"]).run();
    listed.succeeded().stdout_has("Restarting (3)");
    let refused = home.vmm(&["exec", "flaky", "true"]).run();
    refused.failed(&["flaky", "started again"]).helped();
    let refused = home.vmm(&["attach", "--no-stdin", "flaky"]).run();
    refused.complained(&["flaky", "started again"]).helped();
    let followed = home.vmm(&["logs", "-f", "flaky"]).run();
    followed.succeeded().stdout_has("run\nrun x\nrun x x\n");
    home.vmm(&["start", "flaky"]).run().succeeded();
    home.vmm(&["rm", "flaky"]).run().failed(&["runs"]);
    home.wait_is("flaky", "3");
    home.vmm(&["stop", "flaky"])
        .run()
        .succeeded()
        .stdout_is("flaky\n");
    home.fixture.nothing_runs();
    home.wait_is("flaky", "3");
    let template = "{{.State.Status}} {{.State.ExitCode}}";
    assert_eq!(home.inspected("flaky", template), "exited 3");

    home.vmm(&["start", "flaky"]).run().succeeded();
    home.wait_is("flaky", "3");
    assert!(home.restarts("flaky") < 6, "it is counted anew");
    home.await_restarts("flaky", 5);
    home.kill_all();
    let listed = home.vmm(&["ps", "-a"]).run();
    listed.succeeded().stdout_has("Dead");
    home.vmm(&["ps"]).run().succeeded().stdout_lacks("flaky");

    home.reboot("flaky");
    let listed = home.vmm(&["ps", "-a"]).run();
    listed.succeeded().stdout_has("Dead (host restarted)");
    let template = "{{.Vmm.Cause}}: {{.State.Error}}";
    assert_eq!(
        home.inspected("flaky", template),
        "host-restarted: the host restarted while the machine ran"
    );
    let restored = home.vmm(&["system", "restore"]).run();
    restored.succeeded().stdout_is("flaky\n");
    let twice = home.vmm(&["system", "restore"]).run();
    twice.succeeded().stdout_is("");
    home.vmm(&["rm", "-f", "flaky"]).run().succeeded();
    home.fixture.nothing_runs();
    assert_eq!(home.fixture.machines_listing(), "");
}

/// An image that says how its workload is to be asked.
fn image_with_health(fixture: &Fixture) {
    let script = "[ -e /hang ] && exec sleep 1000; [ -e /well ] || { echo 'not well'; exit 1; }";
    let check = json!({
        "Test": ["CMD-SHELL", script],
        "Interval": 100_000_000_000_i64,
        "Timeout": 100_000_000_000_i64,
        "Retries": 1,
    });
    let image = ImageMaker::busybox()
        .config("Healthcheck", check)
        .name("health:test");
    let file = fixture.file("health.oci", image.layout().archive());
    fixture.load(&file).run().succeeded();
}

impl Home {
    /// Looks at a machine until it is so well.
    #[track_caller]
    fn await_health(&self, name: &str, health: &str) {
        let deadline = Instant::now() + MACHINE_LIMIT;
        while self.inspected(name, "{{.State.Health.Status}}") != health {
            assert!(Instant::now() < deadline, "{name} is never {health}");
        }
    }
}

#[test]
fn a_workload_is_asked_how_it_is_as_its_image_or_the_user_says() {
    let home = Home::new();
    image_with_health(&home.fixture);
    let create = ["create", "--name"];
    let silent = [&create[..], &["silent", "--no-healthcheck", "health:test"]].concat();
    home.vmm(&silent).run().succeeded();
    assert!(!home.inspected("silent", "{{json .}}").contains("Health"));
    let options = [
        "--health-interval",
        "2s",
        "--health-timeout",
        "20s",
        "--health-start-period",
        "0s",
    ];
    let started = home
        .fixture
        .run_name(
            "health:test",
            &[&["-d", "--name", "web"], &options[..]].concat(),
            &["sleep", "1000"],
        )
        .run();
    started.succeeded();

    let listed = home.vmm(&["ps"]).run();
    listed.succeeded().stdout_has("(health: starting)");
    home.await_health("web", "unhealthy");
    let listed = home.vmm(&["ps", "--filter", "health=unhealthy"]).run();
    listed.succeeded().stdout_has("(unhealthy)");
    let config = home.inspected("web", "{{json .Config.Healthcheck}}");
    let config: Value = serde_json::from_str(&config).expect("it is JSON");
    assert_eq!(config["Retries"], 1);
    assert_eq!(config["Timeout"], 20_000_000_000_i64);
    assert_eq!(config["Interval"], 2_000_000_000_i64);
    assert_eq!(config["Test"][0], "CMD-SHELL");
    home.vmm(&["exec", "web", "touch", "/well"])
        .run()
        .succeeded();
    home.await_health("web", "healthy");
    let health = home.inspected("web", "{{json .State.Health}}");
    let health: Value = serde_json::from_str(&health).expect("it is JSON");
    let log = health["Log"].as_array().expect("probes are kept");
    assert!((1..=5).contains(&log.len()), "{health}");
    assert_eq!(health["FailingStreak"], 0);
    assert_eq!(log.last().expect("there is one")["ExitCode"], 0);
    let failed = log.iter().find(|probe| probe["ExitCode"] == 1);
    assert!(
        failed.is_none_or(|probe| probe["Output"] == "not well\n"),
        "{health}"
    );

    home.vmm(&["exec", "web", "touch", "/hang"])
        .run()
        .succeeded();
    home.await_health("web", "unhealthy");
    let log = home.inspected("web", "{{json .State.Health.Log}}");
    assert!(
        log.contains("Health check exceeded timeout (20s)") && log.contains("\"ExitCode\":-1"),
        "{log}"
    );
    home.vmm(&["exec", "web", "rm", "/hang"]).run().succeeded();
    home.await_health("web", "healthy");
    let processes = home.vmm(&["top", "web", "-eo", "args"]).run();
    let hanging = processes.stdout_text().matches("sleep 1000").count();
    assert_eq!(
        hanging, 1,
        "a probe that hangs is killed, and only the workload is left"
    );

    home.vmm(&["kill", "web"]).run().succeeded();
    home.vmm(&["wait", "web"]).run().succeeded();
    let template = "{{.State.Status}} {{.State.Health.Status}}";
    assert_eq!(home.inspected("web", template), "exited unhealthy");
    home.vmm(&["rm", "web", "silent"]).run().succeeded();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn what_cannot_start_is_not_started_again_and_what_is_stopped_stays() {
    let home = Home::new();
    let missing = home.run("missing", &["--restart", "always"], &["/no/such/program"]);
    missing.code_is(127);
    home.fixture.nothing_runs();
    let template = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
    assert_eq!(home.inspected("missing", template), "exited 127 0");

    home.run("web", &[], &["sleep", "1000"]).succeeded();
    let updated = home
        .vmm(&["update", "--restart", "unless-stopped", "web"])
        .run();
    updated.succeeded().stdout_is("web\n");
    let template = "{{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(home.inspected("web", template), "unless-stopped");
    home.vmm(&["stop", "-t", "1", "web"]).run().succeeded();
    home.fixture.nothing_runs();
    home.reboot("web");
    home.vmm(&["rm", "missing"]).run().succeeded();
    let restored = home.vmm(&["system", "restore"]).run();
    restored.succeeded().stdout_is("");

    home.vmm(&["update", "--restart", "always", "web"])
        .run()
        .succeeded();
    let blueprint = home.fixture.machines().join("@web").join("blueprint.json");
    fs::write(&blueprint, "{").expect("it can be damaged");
    let restored = home.vmm(&["system", "restore"]).run();
    restored
        .code_is(1)
        .complained(&["web", "is not started again"])
        .helped();
    home.vmm(&["rm", "web"]).run().succeeded();
    assert_eq!(home.fixture.machines_listing(), "");
}
