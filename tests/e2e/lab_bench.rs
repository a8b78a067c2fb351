//! What the benchmark in the lab says when it cannot measure, and what it leaves when it is interrupted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::binary;

/// How long a lab may take to come up.
const COMES_UP: Duration = Duration::from_secs(60);

/// The benchmark, built as `make bench` builds it.
fn bench() -> Command {
    let built = Command::new("cargo")
        .args(["bench", "--quiet", "--locked", "--profile", "dev"])
        .args(["--package", "tests", "--bench", "lab", "--no-run"])
        .args(["--message-format", "json"])
        .current_dir(binary::checkout())
        .stdin(Stdio::null())
        .output()
        .expect("cargo can be run");
    let messages = String::from_utf8_lossy(&built.stdout).into_owned();
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            message["target"]["name"] == "lab" && message["target"]["kind"][0] == "bench"
        })
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    let mut command = Command::new(program.expect("cargo names what it built"));
    command.current_dir(binary::checkout()).stdin(Stdio::null());
    command
}

#[track_caller]
fn is_refused(done: &Output, code: i32, line: &str) {
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(code), "{said}");
    // Whoever is the first on a machine says what it makes for all.
    let complaints: Vec<&str> = said
        .lines()
        .filter(|line| !line.starts_with("making "))
        .collect();
    assert_eq!(complaints.len(), 1, "{said}");
    let complaint = complaints.concat();
    assert!(complaint.starts_with("lab bench: "), "{said}");
    assert!(complaint.contains(line), "{line} in: {said}");
}

/// Where the benchmark of this process keeps what it makes.
fn made(process: u32) -> PathBuf {
    binary::checkout().join(format!("target/bench/made/{process}"))
}

/// A process of this parent whose command line has this word.
fn child_with(parent: u32, word: &str) -> Option<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc can be listed");
    let paths = processes.map(|entry| entry.expect("/proc can be listed").path());
    paths.into_iter().find(|path| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let command = fs::read_to_string(path.join("cmdline")).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let its_parent = after_name.split_whitespace().nth(1);
        its_parent == Some(&parent.to_string()) && command.contains(word)
    })
}

/// Waits until there is one.
#[track_caller]
fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let deadline = Instant::now() + COMES_UP;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_scenario_that_is_not_there_is_named_beside_those_that_are() {
    let done = bench().args(["--only", "no-such-thing"]).output().unwrap();

    is_refused(&done, 2, "no scenario no-such-thing; there are fork-exec, ");
}

#[test]
fn an_argument_that_is_not_known_is_named() {
    let done = bench().arg("--no-such-thing").output().unwrap();

    is_refused(&done, 2, "--no-such-thing");
}

#[test]
fn another_vmm_that_was_not_named_is_one_line() {
    let done = bench()
        .args(["--only", "firecracker-boot"])
        .output()
        .unwrap();

    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(0), "{said}");
    assert!(said.contains("firecracker-boot"), "{said}");
    assert!(said.contains("--firecracker PATH was not given"), "{said}");
}

#[test]
fn another_vmm_that_cannot_be_executed_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();

    let done = bench()
        .args(["--only", "firecracker-boot", "--firecracker"])
        .arg(file.path())
        .output()
        .unwrap();

    is_refused(
        &done,
        125,
        &format!("{} cannot be measured: ", file.path().display()),
    );
}

#[test]
fn another_vmm_that_ends_badly_is_told_in_its_own_words() {
    // It says a version, and knows nothing else.
    let done = bench()
        .args([
            "--only",
            "firecracker-boot",
            "--firecracker",
            "/usr/bin/env",
        ])
        .output()
        .unwrap();

    is_refused(&done, 125, "firecracker-boot did not end well: ");
}

#[test]
fn another_vmm_that_runs_no_guest_has_no_figure() {
    let done = bench()
        .args([
            "--only",
            "cloud-hypervisor-boot",
            "--cloud-hypervisor",
            "/usr/bin/true",
        ])
        .output()
        .unwrap();

    is_refused(
        &done,
        125,
        "cloud-hypervisor-boot did not end well: no guest ran",
    );
}

#[test]
fn an_interrupted_benchmark_says_so_and_leaves_nothing() {
    let running = bench()
        .args(["--only", "vmm-run-cold"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let process = running.id();
    let emulator = wait_for("an emulator", || child_with(process, "qemu-system"));

    kill_process(Pid::from_child(&running), Signal::INT).unwrap();

    let done = running.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130));
    assert_eq!(
        String::from_utf8_lossy(&done.stderr),
        "lab: interrupted by signal 2\n"
    );
    assert!(!made(process).exists());
    // The kernel ends it as soon as its parent is gone.
    wait_for("the emulator's end", || (!emulator.exists()).then_some(()));
}
