//! The lab as whoever types it sees it, and what it says when something is missing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::Times;
use tempfile::TempDir;

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn is_refused(done: &Output, names: &[&str]) {
    let complaint = text(&done.stderr);
    assert_eq!(done.status.code(), Some(125), "{complaint}");
    assert!(complaint.starts_with("lab: "), "{complaint}");
    for name in names {
        assert!(complaint.contains(name), "{name} in: {complaint}");
    }
}

/// A directory of programs with this in place of QEMU.
fn programs(qemu: Option<&str>) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory can be made");
    if let Some(script) = qemu {
        let path = directory.path().join("qemu-system-x86_64");
        fs::write(&path, script).expect("a file can be made");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file can be made");
    }
    for name in ["sh", "setpriv", "ldd", "bash"] {
        let there = ["/bin", "/usr/bin"].map(|directory| Path::new(directory).join(name));
        let there = there
            .iter()
            .find(|path| path.exists())
            .expect("Debian has it");
        symlink(there, directory.path().join(name)).expect("a file can be made");
    }
    directory
}

/// A cache with a kernel package of these files.
fn cache(files: &[(&str, &[u8])]) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory can be made");
    for (name, content) in files {
        let path = directory.path().join("vmm/lab/kernel").join(name);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a file can be made");
        fs::write(path, content).expect("a file can be made");
    }
    directory
}

/// No process has this word in its command line any more.
fn nobody_runs(word: &str) -> bool {
    fs::read_dir("/proc")
        .expect("/proc can be listed")
        .all(|entry| {
            let command = fs::read(entry.expect("/proc can be listed").path().join("cmdline"))
                .unwrap_or_default();
            !command
                .split(|byte| *byte == 0)
                .any(|argument| argument == word.as_bytes())
        })
}

#[test]
fn a_command_runs_on_a_complete_kvm_and_its_streams_and_code_come_out() {
    let script = "test -c /dev/kvm && grep -q svm /proc/cpuinfo && echo yes; echo no >&2; exit 42";

    let done = lab()
        .args(["run", "--", "sh", "-c", script])
        .output()
        .unwrap();

    assert_eq!(done.status.code(), Some(42), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout), "yes\n");
    assert_eq!(text(&done.stderr), "no\n");
}

#[test]
fn counted_instructions_repeat() {
    let count = || {
        let command = ["lab", "time", "--repeat", "7", "--", "/lab/busybox", "true"];
        let done = lab()
            .args(["run", "--icount", "--"])
            .args(command)
            .output()
            .unwrap();
        let said = text(&done.stdout);
        // The first one reads the program. Addresses are random, and with them how many page tables there are.
        let exits = said
            .lines()
            .skip(1)
            .map(|line| Times::parse(line).unwrap().exit);
        exits.min().unwrap().as_secs_f64()
    };

    let (one, other) = (count(), count());

    let difference = (one - other).abs() / one;
    assert!(
        difference < 0.02,
        "{one} and {other} seconds of counted time"
    );
}

/// What `lab time` says of a script, here and by the clock of here.
fn times_of(script: &str) -> Times {
    let done = lab()
        .args(["time", "--", "sh", "-c", script])
        .output()
        .expect("it can be run");
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    Times::parse(text(&done.stdout).trim_end()).expect("it says three times")
}

#[test]
fn the_first_byte_is_told_beside_the_exit() {
    let times = times_of("echo one; sleep 0.3; echo two");

    let first_byte = times.first_byte.unwrap();
    assert!(
        times.exit >= first_byte + Duration::from_millis(300),
        "{times:?}"
    );
}

#[test]
fn who_says_nothing_has_no_first_byte() {
    let times = times_of("exec >&-; sleep 0.1");

    assert_eq!(times.first_byte, None);
    assert!(times.exit >= Duration::from_millis(100), "{times:?}");
}

#[test]
fn the_last_descendant_is_waited_for() {
    // Its parent is gone before it.
    let times = times_of("(sleep 0.4 >&- &)");

    assert!(times.exit < Duration::from_millis(400), "{times:?}");
    assert!(times.returned >= Duration::from_millis(400), "{times:?}");
}

#[test]
fn a_descendant_that_speaks_after_the_exit_is_heard() {
    let times = times_of("(sleep 0.4; seq 100000) &");

    let first_byte = times.first_byte.unwrap();
    assert!(first_byte > times.exit, "{times:?}");
    assert!(times.returned >= first_byte, "{times:?}");
}

#[test]
fn more_output_than_a_pipe_holds_stops_nobody() {
    let times = times_of("seq 100000");

    assert!(times.first_byte.unwrap() <= times.exit, "{times:?}");
}

#[test]
fn what_a_command_left_in_the_pipes_comes_out_though_another_holds_them() {
    let script = "sleep 100000 & head -c 65000 /dev/zero >&2; head -c 265000 /dev/zero";

    let done = lab()
        .args(["run", "--icount", "--", "sh", "-c", script])
        .output()
        .unwrap();

    assert_eq!((done.stdout.len(), done.stderr.len()), (265_000, 65_000));
}

#[test]
fn what_a_command_left_running_may_talk_on() {
    let done = lab()
        .args(["run", "--", "sh", "-c", "yes & exit 7"])
        .output()
        .unwrap();

    assert_eq!(done.status.code(), Some(7), "{}", text(&done.stderr));
}

#[test]
fn a_command_that_never_ends_is_ended() {
    // An odd size of memory, to tell this QEMU from others.
    let done = lab()
        .args([
            "run", "--memory", "1531", "--limit", "12", "--", "sleep", "1000",
        ])
        .output()
        .unwrap();

    is_refused(&done, &["within 12 s", "help: "]);
    assert!(nobody_runs("1531M"));
}

#[test]
fn an_interrupted_lab_says_so_and_leaves_nobody() {
    let running = lab()
        .args(["run", "--memory", "1532", "--", "sleep", "1000"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while nobody_runs("1532M") {}

    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();

    let done = running.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(130));
    assert_eq!(text(&done.stderr), "lab: interrupted by signal 2\n");
    // The kernel ends it as soon as its parent is gone.
    while !nobody_runs("1532M") {}
}

#[test]
fn a_missing_qemu_is_named_with_its_package() {
    let done = lab()
        .args(["run", "--", "true"])
        .env("PATH", programs(None).path())
        .output()
        .unwrap();

    is_refused(
        &done,
        &[
            "qemu-system-x86_64",
            "help: apt-get install qemu-system-x86",
        ],
    );
}

#[test]
fn an_old_qemu_is_named_with_its_version() {
    let old = "#!/bin/sh\necho 'QEMU emulator version 5.2.0 (Debian 1:5.2+dfsg-11)'\n";

    let done = lab()
        .args(["run", "--", "true"])
        .env("PATH", programs(Some(old)).path())
        .output()
        .unwrap();

    is_refused(&done, &["5.2.0", "7.2"]);
}

#[test]
fn a_kernel_package_without_its_modules_is_named() {
    let cache = cache(&[("boot/vmlinuz-6.1.0", b"")]);

    let done = lab()
        .args(["run", "--", "true"])
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .unwrap();

    is_refused(&done, &["irqbypass.ko", "help: remove"]);
}

#[test]
fn a_lab_that_never_comes_up_is_told_with_qemus_words() {
    let modules = "lib/modules/6.1.0/kernel";
    let names = [
        "virt/lib/irqbypass.ko",
        "arch/x86/kvm/kvm.ko",
        "arch/x86/kvm/kvm-amd.ko",
        "drivers/net/tun.ko",
        "drivers/net/veth.ko",
    ];
    let modules = names.map(|name| format!("{modules}/{name}"));
    let mut files: Vec<(&str, &[u8])> = vec![("boot/vmlinuz-6.1.0", b"no kernel")];
    files.extend(modules.iter().map(|name| (name.as_str(), &b""[..])));
    let cache = cache(&files);

    let done = lab()
        .args(["run", "--limit", "20", "--", "true"])
        .env("XDG_CACHE_HOME", cache.path())
        .output()
        .unwrap();

    is_refused(&done, &["the lab ended before its command", "kernel"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let done = lab()
        .args(["run", "--with", "no-such-image.oci", "--", "true"])
        .output()
        .unwrap();

    is_refused(&done, &["no-such-image.oci", "No such file"]);
}

#[test]
fn a_command_that_is_not_there_is_the_shells_127() {
    let done = lab()
        .args(["run", "--", "no-such-command"])
        .output()
        .unwrap();

    assert_eq!(done.status.code(), Some(127));
    assert!(text(&done.stderr).contains("no-such-command"));
}

#[test]
fn a_lab_that_hangs_before_its_command_is_ended_with_everything_in_it() {
    // It says its version, and then nothing any more. The odd number tells this one from others.
    let silent = "#!/bin/sh\ntest \"$1\" = --version && echo 'QEMU emulator version 7.2.0' && exit\nexec sleep 15331\n";
    let programs = programs(Some(silent));
    let path = std::env::var("PATH").unwrap();

    let done = lab()
        .args(["run", "--limit", "2", "--", "true"])
        .env("PATH", format!("{}:{path}", programs.path().display()))
        .output()
        .unwrap();

    is_refused(&done, &["within 2 s", "help: "]);
    assert!(nobody_runs("15331"));
}
