//! `stats`, `top` and `update`: what machines use, what runs in them, and what they may use.

use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation};

/// Uses no processor.
const SLEEP: &str = "echo ready; exec sleep 1000";
/// Uses a processor.
const BUSY: &str = "echo ready; while :; do :; done";

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

    /// Runs a script in the background until it says that it is ready.
    fn start(&self, name: &str, options: &[&str], script: &str) {
        let options = [&["-d", "--name", name], options].concat();
        self.fixture
            .run_name("busybox:test", &options, &["sh", "-c", script])
            .run()
            .succeeded();
        let follower = self.vmm(&["logs", "-f", name]).start();
        follower.wait_for_stdout("ready");
    }

    fn stats(&self, arguments: &[&str]) -> Finished {
        self.vmm(&["stats", "--no-stream"]).args(arguments).run()
    }

    /// What is said of one machine.
    fn row(&self, name: &str) -> Value {
        let said = self.stats(&["--format", "json", name]);
        serde_json::from_str(&said.succeeded().stdout_text()).expect("an object a line")
    }

    /// What a machine says of itself. Where KVM is software and the processor shared, one may need more than the two seconds that it
    /// is given.
    fn figures(&self, name: &str) -> Value {
        let deadline = Instant::now() + MACHINE_LIMIT;
        loop {
            let row = self.row(name);
            if row["PIDs"] != "--" || Instant::now() > deadline {
                return row;
            }
        }
    }

    fn percent(&self, name: &str) -> f64 {
        let figures = self.figures(name);
        let text = figures["CPUPerc"].as_str().unwrap_or_default();
        text.trim_end_matches('%').parse().expect("a percentage")
    }

    fn script(&self, name: &str, script: &str) -> Finished {
        self.vmm(&["exec", name, "sh", "-c", script]).run()
    }

    fn inspect(&self, name: &str, template: &str) -> String {
        let inspected = self.vmm(&["inspect", "-f", template, name]).run();
        inspected.succeeded().stdout_text().trim_end().to_owned()
    }
}

/// The lines below the header, as cells.
fn cells(table: &str) -> Vec<Vec<String>> {
    let lines = table.lines().skip(1);
    let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    lines.map(cells).collect()
}

#[test]
fn a_busy_machine_and_an_idle_one_are_told_apart_in_dockers_columns() {
    let home = Home::new();
    home.start("idle", &["--memory", "64m"], SLEEP);
    home.start("busy", &["--label", "a=b"], BUSY);

    let table = home.stats(&[]).succeeded().stdout_text();
    assert!(table.starts_with("CONTAINER ID   NAME   CPU %"), "{table}");
    let titles: Vec<&str> = table
        .lines()
        .next()
        .unwrap_or_default()
        .split("   ")
        .collect();
    let titles: Vec<&str> = titles
        .iter()
        .map(|it| it.trim())
        .filter(|it| !it.is_empty())
        .collect();
    assert_eq!(
        titles[3..],
        ["MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"]
    );
    assert_eq!(table.lines().count(), 3, "{table}");

    let (busy, idle) = (home.percent("busy"), home.percent("idle"));
    assert!(busy > 50.0 && idle < 25.0, "busy {busy} %, idle {idle} %");
    let figures = home.figures("idle");
    let usage = figures["MemUsage"].as_str().unwrap_or_default();
    assert!(usage.ends_with("iB / 64MiB"), "{usage}");
    assert_eq!(figures["PIDs"], "1");
    assert_eq!(figures["NetIO"], "0B / 0B");
    assert_eq!(figures["BlockIO"], "0B / 0B");
    assert_eq!(figures["Container"], "idle");

    home.stats(&["--format", "{{.Name}} as {{.Container}}", "busy", "idle"])
        .succeeded()
        .stdout_is("busy as busy\nidle as idle\n");
    let id = home.inspect("idle", "{{.Id}}");
    home.stats(&["--no-trunc", "--format", "{{.ID}}", "idle"])
        .succeeded()
        .stdout_is(&format!("{id}\n"));
}

#[test]
fn memory_and_processes_that_a_workload_takes_are_counted() {
    let home = Home::new();
    let script = "sleep 1000 & sleep 1000 & dd if=/dev/zero of=/dev/shm/file bs=64k count=64 2> /dev/null; echo ready; wait";
    home.start("eater", &["--memory", "16m"], script);

    let figures = home.figures("eater");
    assert_eq!(figures["PIDs"], "3", "{figures}");
    let part = figures["MemPerc"].as_str().unwrap_or_default();
    let part: f64 = part.trim_end_matches('%').parse().expect("a percentage");
    assert!((25.0..60.0).contains(&part), "{figures}");
}

#[test]
fn what_goes_to_a_disk_is_counted() {
    let home = Home::new();
    let script =
        "dd if=/dev/zero of=/file bs=64k count=64 2> /dev/null; sync; echo ready; exec sleep 1000";
    home.start("writer", &["--storage", "128m"], script);

    let figures = home.figures("writer");
    let written = figures["BlockIO"].as_str().unwrap_or_default();
    let (_, written) = written.split_once(" / ").unwrap_or_default();
    let megabytes = written.strip_suffix("MB").unwrap_or_default();
    let megabytes: f64 = megabytes.parse().unwrap_or_default();
    assert!((4.0..12.0).contains(&megabytes), "{figures}");
}

#[test]
fn a_machine_that_stands_still_or_has_ended_has_no_figures() {
    let home = Home::new();
    home.start("still", &[], SLEEP);
    home.vmm(&["pause", "still"]).run().succeeded();

    let figures = home.row("still");
    assert_eq!(figures["CPUPerc"], "--");
    assert_eq!(figures["MemUsage"], "-- / --");
    assert_eq!(figures["Name"], "still");
    home.vmm(&["top", "still"]).run().failed(&["is paused"]);
    home.vmm(&["update", "--cpus", "0.5", "still"])
        .run()
        .failed(&["is paused"]);

    home.vmm(&["resume", "still"]).run().succeeded();
    assert_eq!(home.figures("still")["PIDs"], "1");
    home.vmm(&["kill", "still"]).run().succeeded();
    home.vmm(&["wait", "still"]).run().succeeded();
    let named = "{{.Name}} {{.PIDs}}";
    home.stats(&["--format", named]).succeeded().stdout_is("");
    for shown in [["-a", "--format", named], ["still", "--format", named]] {
        home.stats(&shown).succeeded().stdout_is("still --\n");
    }
    home.vmm(&["top", "still"])
        .run()
        .failed(&["'still'", "does not run"]);
}

#[test]
fn a_stream_goes_on_until_the_machine_ends_and_is_redrawn_on_a_terminal() {
    let home = Home::new();
    home.start("one", &[], SLEEP);
    let blocks = home.vmm(&["stats", "--format", "{{.Name}}", "one"]).start();
    blocks.wait_for_stdout("one\none\none\n");
    let screen = home.fixture.on_terminal(["stats"]);
    screen.wait_for("\u{1b}[H\u{1b}[2J\u{1b}[HCONTAINER ID");
    screen.wait_for("\u{1b}[K\r\n\u{1b}[J\u{1b}[HCONTAINER ID");

    home.vmm(&["kill", "one"]).run().succeeded();

    let blocks = blocks.finish();
    blocks.succeeded().stdout_lacks("\u{1b}");
    screen.wait_for("PIDS\u{1b}[K\r\n\u{1b}[J");
    screen.signal(Signal::INT);
    assert_eq!(screen.finish().signal(), Some(2));
}

#[test]
fn processes_are_listed_as_ps_lists_them_with_the_ids_of_the_container() {
    let home = Home::new();
    let script = "sleep 1001 & echo ready; wait";
    home.start("web", &[], script);
    let mut joined = home
        .vmm(&["exec", "-i", "web", "sh", "-c", "echo joined; exec cat"])
        .open_input()
        .start();
    joined.wait_for_stdout("joined");

    let usual = home.vmm(&["top", "web"]).run().succeeded().stdout_text();
    let titles: Vec<&str> = usual
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    assert_eq!(
        titles,
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    let rows = cells(&usual);
    let first = &rows[0];
    assert_eq!(
        (&first[..3], &first[5]),
        (&["root", "1", "0"].map(str::to_owned)[..], &"?".to_owned())
    );
    assert_eq!(first[7..].join(" "), format!("sh -c {script}"));

    let listed = home.vmm(&["top", "web", "-eo", "pid,ppid,comm,args"]).run();
    let rows = cells(&listed.succeeded().stdout_text());
    let sleep = rows
        .iter()
        .find(|row| row[2] == "sleep")
        .expect("it sleeps");
    assert_eq!((sleep[1].as_str(), sleep[4].as_str()), ("1", "1001"));
    let cat = rows.iter().find(|row| row[2] == "cat").expect("it joined");
    assert_eq!(cat[1], "0");
    home.vmm(&["top", "web", "aux"])
        .run()
        .succeeded()
        .stdout_has("%MEM");

    // The ids are those that commands in the machine take.
    home.script("web", &format!("kill {}", cat[0])).succeeded();
    joined.close_input();
    joined.finish().code_is(143);
}

#[test]
fn what_a_process_calls_itself_cannot_command_the_terminal() {
    let home = Home::new();
    let script = "printf '\\033[31mred' > /proc/self/comm; echo ready; while :; do read -t 1000 x < /fifo; done";
    let script = format!("mkfifo /fifo; exec 9<> /fifo; {script} # $(printf '\\033[2J')");
    let long = format!("{script} {}", "x".repeat(5000));
    home.start("rude", &[], &long);

    let listed = home.vmm(&["top", "rude", "-o", "comm,args"]).run();

    let text = listed.succeeded().stdout_text();
    assert!(!text.contains('\u{1b}'), "{text}");
    assert!(text.contains("\u{FFFD}[31mred"), "{text}");
    assert!(text.len() < 3000, "{} bytes", text.len());
}

#[test]
fn limits_of_a_running_machine_change_in_the_guest_and_on_record() {
    let home = Home::new();
    home.start("web", &["--memory", "64m"], SLEEP);
    let update = |options: &[&str]| home.vmm(&["update"]).args(options).arg("web").run();
    let limits = "cd /sys/fs/cgroup; cat memory.max memory.low cpu.max cpu.weight pids.max";

    update(&[
        "--memory",
        "8m",
        "--memory-reservation",
        "7m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "2048",
        "--pids-limit",
        "20",
    ])
    .succeeded()
    .stdout_is("web\n");

    home.script("web", limits)
        .succeeded()
        .stdout_is("8388608\n7340032\n50000 100000\n79\n20\n");
    let usage = home.figures("web")["MemUsage"].to_string();
    assert!(usage.ends_with(" / 8MiB\""), "{usage}");
    let recorded = "{{.HostConfig.Memory}} {{.HostConfig.MemoryReservation}} {{.HostConfig.NanoCpus}} {{.HostConfig.CpuShares}} {{.HostConfig.PidsLimit}}";
    assert_eq!(
        home.inspect("web", recorded),
        "8388608 7340032 500000000 2048 20"
    );

    update(&["--memory", "2g"]).failed(&["room for", "2048 MiB"]);
    update(&["--cpus", "2"]).failed(&["1 processors"]);
    update(&["--cpuset-cpus", "1"]).failed(&["1 processors"]);
    assert_eq!(
        home.inspect("web", recorded),
        "8388608 7340032 500000000 2048 20"
    );
    let greedy = "dd if=/dev/zero of=/dev/shm/file bs=64k count=160";
    home.script("web", greedy).code_is(137);
}

#[test]
fn limits_of_a_machine_that_is_kept_are_those_of_its_next_start() {
    let home = Home::new();
    home.vmm(&["create", "--name", "db", "busybox:test", "sh", "-c", SLEEP])
        .run()
        .succeeded();
    let limits = [
        "update",
        "--memory",
        "48m",
        "--cpus",
        "1.5",
        "--pids-limit",
        "30",
        "db",
    ];

    home.vmm(&limits).run().succeeded().stdout_is("db\n");
    let update = |option, value| home.vmm(&["update", option, value, "db"]).run();
    update("--cpuset-cpus", "2").failed(&["would start", "2"]);
    update("--cpu-quota", "999").failed(&["999 microseconds"]);
    home.vmm(&["start", "db"]).run().succeeded();

    home.script(
        "db",
        "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; nproc",
    )
    .succeeded()
    .stdout_is("50331648\n150000 100000\n30\n2\n");
    home.vmm(&["update", "--memory", "40m", "db"])
        .run()
        .succeeded();
    home.vmm(&["restart", "-t", "0", "db"]).run().succeeded();
    home.script("db", "cat /sys/fs/cgroup/memory.max")
        .succeeded()
        .stdout_is("41943040\n");
    let recorded = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}";
    assert_eq!(home.inspect("db", recorded), "41943040 1500000000");
}

#[test]
fn what_makes_no_sense_is_refused_with_help() {
    let fixture = Fixture::new();
    let refused = |arguments: &[&str], names: &[&str]| {
        fixture.vmm(arguments).run().declined(names).helped();
    };
    refused(&["stats", "nobody"], &["nobody"]);
    refused(&["stats", "--format", "{{.Nothing", "nobody"], &["{{"]);
    refused(&["top", "nobody"], &["nobody"]);
    refused(&["top", "nobody", "--forest"], &["--forest"]);
    refused(&["top", "nobody", "-o", "wchan"], &["wchan"]);
    refused(&["update", "--cpus", "1", "nobody"], &["nobody"]);
    refused(&["update", "--memory", "1", "nobody"], &["--memory"]);
    refused(
        &["update", "--cpus", "1", "--cpu-quota", "7", "nobody"],
        &["--cpus", "--cpu-quota"],
    );
}
