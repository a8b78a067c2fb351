//! Running machines from outside: paused, written down, resumed, forked, and everything that can go wrong with it.

mod faults;
mod forking;
mod increments;
mod pausing;
mod resuming;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use tests::process::{MACHINE_LIMIT, Running};
use tests::{Finished, Fixture, Invocation};

use super::busybox_with_probe;

/// The image that these tests run.
const IMAGE: &str = "probe:test";

/// Says each line that it reads with its number, which a file keeps, and how many there were in the end.
const COUNTING: &str = "echo 0 > /tmp/n; echo ready; \
     while read line; do n=$(($(cat /tmp/n) + 1)); echo $n > /tmp/n; echo $n $line; done; \
     echo end after $(cat /tmp/n)";

/// A fixture with [`IMAGE`] in its store.
struct Home {
    fixture: Fixture,
}

impl Home {
    fn new() -> Self {
        let fixture = Fixture::with_machines();
        fixture
            .load(&busybox_with_probe(&fixture))
            .run()
            .succeeded();
        let images = fixture.vmm(["images", "-q"]).run();
        let id = images.succeeded().stdout_text();
        fixture.vmm(["tag", id.trim(), IMAGE]).run().succeeded();
        Self { fixture }
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Invocation {
        self.fixture
            .run_name(IMAGE, options, command)
            .limit(MACHINE_LIMIT)
    }

    /// Starts a machine in the background.
    #[track_caller]
    fn start(&self, name: &str, options: &[&str], command: &[&str]) {
        let options = [&["-d", "--name", name], options].concat();
        self.run(&options, command).run().succeeded();
    }

    /// Starts [`COUNTING`], and lets it read one line.
    #[track_caller]
    fn counting(&self, name: &str) -> Running {
        let mut running = self
            .run(&["-i", "--name", name], &["sh", "-c", COUNTING])
            .open_input()
            .start();
        running.wait_for_stdout("ready\n");
        running.write(b"one\n");
        running.wait_for_stdout("1 one\n");
        running
    }

    fn path(&self, name: &str) -> PathBuf {
        self.fixture.path(name)
    }

    /// Writes a machine down to the file of this name.
    #[track_caller]
    fn snapshot(&self, options: &[&str], machine: &str, file: &str) -> Finished {
        let path = self.path(file);
        let mut arguments = [&["snapshot"], options, &[machine]].concat();
        arguments.push(path.to_str().expect("paths here are text"));
        self.vmm(&arguments).run()
    }

    fn restore(&self, options: &[&str], file: &str) -> Invocation {
        let path = self.path(file);
        let mut arguments = [&["run"], options, &["--restore"]].concat();
        arguments.push(path.to_str().expect("paths here are text"));
        self.vmm(&arguments)
    }

    fn check(&self, file: &str) -> Finished {
        let path = self.path(file);
        let path = path.to_str().expect("paths here are text");
        self.vmm(&["snapshot", "check", path]).run()
    }

    /// Waits until the machine's workload has written this file, and returns what is in it. Only where it can be asked: it pauses
    /// nothing and runs nothing inside.
    #[track_caller]
    fn state_of(&self, name: &str) -> String {
        let listed = self.vmm(&["ps", "-a", "--json"]).run();
        let machines: Vec<serde_json::Value> =
            serde_json::from_slice(&listed.succeeded().stdout).expect("ps --json prints a list");
        let machine = machines.iter().find(|machine| machine["name"] == name);
        let machine = machine.expect("the machine is listed");
        format!(
            "{} {}",
            machine["state"].as_str().unwrap_or_default(),
            machine["exit_code"]
        )
    }
}

/// What the clock of this machine says.
fn seconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("it is after 1970").as_secs()
}
