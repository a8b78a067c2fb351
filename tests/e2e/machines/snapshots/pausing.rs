//! `vmm pause` and `vmm resume`.

use std::fs;
use std::time::{Duration, Instant};

use super::{Home, seconds_since_1970};

/// Processor time of all of the machine's processes, in ticks (proc_pid_stat(5), `utime` and `stime`).
fn ticks(home: &Home) -> u64 {
    let of_process = |pid: rustix::process::Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<u64> = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse().ok())
            .collect();
        Some(fields.iter().sum::<u64>())
    };
    let processes = home.fixture.processes();
    processes
        .iter()
        .filter_map(|(pid, _)| of_process(*pid))
        .sum()
}

/// How many ticks the machine's processes take in this time, which has to pass.
fn ticks_within(home: &Home, time: Duration) -> u64 {
    let (before, deadline) = (ticks(home), Instant::now() + time);
    while Instant::now() < deadline {
        std::thread::yield_now();
    }
    ticks(home) - before
}

#[test]
fn a_paused_machine_uses_no_processor_and_goes_on_afterwards() {
    let home = Home::new();
    home.start(
        "busy",
        &["--cpus", "2"],
        &["sh", "-c", "while :; do :; done"],
    );
    let moment = Duration::from_millis(500);
    assert!(ticks_within(&home, moment) > 10, "it is busy");

    home.vmm(&["pause", "busy"])
        .run()
        .succeeded()
        .stdout_is("busy\n");
    assert!(ticks_within(&home, moment) <= 2, "it stands still");
    assert_eq!(home.state_of("busy"), "paused null");
    home.vmm(&["ps"]).run().succeeded().stdout_has("(Paused)");
    home.vmm(&["pause", "busy"])
        .run()
        .failed(&["paused already"]);
    home.snapshot(&[], "busy", "file").failed(&["is paused"]);

    home.vmm(&["resume", "busy"])
        .run()
        .succeeded()
        .stdout_is("busy\n");
    assert!(ticks_within(&home, moment) > 10, "it is busy again");
    assert_eq!(home.state_of("busy"), "running null");
    home.vmm(&["resume", "busy"]).run().failed(&["not paused"]);

    home.vmm(&["pause", "busy"]).run().succeeded();
    home.vmm(&["kill", "busy"]).run().succeeded();
    home.fixture.nothing_runs();
    home.vmm(&["pause", "busy"]).run().failed(&["busy"]);
    home.vmm(&["resume", "nobody"]).run().failed(&["nobody"]);
}

#[test]
fn a_paused_workload_keeps_its_streams_and_the_right_time() {
    let home = Home::new();
    let script = "echo ready; while read line; do echo got $line at $(date +%s); done";
    let mut running = home
        .run(&["-i", "--name", "stands"], &["sh", "-c", script])
        .open_input()
        .start();
    running.wait_for_stdout("ready\n");
    home.vmm(&["pause", "stands"]).run().succeeded();
    running.write(b"what came meanwhile\n");
    // The clock goes on while the machine stands.
    let stood = Instant::now() + Duration::from_secs(3);
    while Instant::now() < stood {
        std::thread::yield_now();
    }
    let resumed = seconds_since_1970();
    home.vmm(&["resume", "stands"]).run().succeeded();
    running.wait_for_stdout("got what came meanwhile at ");
    let answered = seconds_since_1970();
    running.close_input();
    let done = running.finish();
    let said = done.code_is(0).stdout_text();
    let inside: u64 = said.trim().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(
        (resumed - 1..=answered + 1).contains(&inside),
        "{inside} inside, {resumed} to {answered} outside"
    );
}
