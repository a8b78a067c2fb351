//! Machines that are started again: by their restart policy, and after a restart of the host.

use std::fs;

use rustix::process::{Signal, kill_process};
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation};

use super::busybox;

const IMAGE: &str = "busybox:test";
/// Small, so that it is soon made.
const SIZE: &str = "size=64m";

/// A place with an image.
struct Home {
    fixture: Fixture,
}

impl Home {
    fn new() -> Self {
        let fixture = Fixture::with_machines();
        fixture.load(&busybox(&fixture)).run().succeeded();
        Self { fixture }
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
    let template = "{{.State.Status}} {{.State.Restarting}} {{.State.ExitCode}} {{.RestartCount}} {{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(
        home.inspected("flaky", template),
        "restarting true 3 1 on-failure"
    );
    let listed = home.vmm(&["ps", "--filter", "status=restarting"]).run();
    listed.succeeded().stdout_has("Restarting (3)");
    let refused = home.vmm(&["exec", "flaky", "true"]).run();
    refused.refused(&["flaky", "started again"]).helped();
    let refused = home.vmm(&["attach", "--no-stdin", "flaky"]).run();
    refused.complained(&["flaky", "started again"]).helped();
    let followed = home.vmm(&["logs", "-f", "flaky"]).run();
    followed.succeeded().stdout_is("run\n");
    home.vmm(&["start", "flaky"]).run().succeeded();
    home.vmm(&["rm", "flaky"]).run().refused(&["runs"]);
    home.wait_is("flaky", "3");
    home.vmm(&["stop", "flaky"])
        .run()
        .succeeded()
        .stdout_is("flaky\n");
    home.fixture.nothing_runs();
    home.wait_is("flaky", "3");
    let logs = home.vmm(&["logs", "flaky"]).run();
    logs.succeeded().stdout_is("run\nrun x\n");
    let template = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
    assert_eq!(home.inspected("flaky", template), "exited 3 2");

    home.vmm(&["start", "flaky"]).run().succeeded();
    home.wait_is("flaky", "3");
    assert_eq!(home.inspected("flaky", "{{.RestartCount}}"), "1");
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
