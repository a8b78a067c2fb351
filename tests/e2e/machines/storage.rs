//! Machines that are kept: `create`, `start`, `restart`, and what they had written.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use tests::process::{MACHINE_LIMIT, Running};
use tests::{Fixture, Invocation};

const IMAGE: &str = "busybox:test";
/// Small, so that it is soon made and soon full.
const SIZE: &str = "size=64m";

/// A place with an image for machines that are kept.
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

    /// Creates a machine that runs a script.
    #[track_caller]
    fn create(&self, name: &str, options: &[&str], script: &str) {
        let named = ["create", "--name", name, "--storage-opt", SIZE];
        let command = [IMAGE, "sh", "-c", script];
        let created = self.vmm(&[&named, options, &command].concat()).run();
        created.succeeded().stderr_is("");
    }

    /// Starts a machine with its output here.
    fn start(&self, name: &str) -> Running {
        self.vmm(&["start", "-a", name]).start()
    }

    fn disk(&self, name: &str) -> PathBuf {
        let directory = self.fixture.machines().join(format!("@{name}"));
        directory.join("disk")
    }

    /// The monitor of a machine that runs.
    #[track_caller]
    fn monitor(&self, name: &str) -> Pid {
        let pid = self.vmm(&["inspect", "-f", "{{.State.Pid}}", name]).run();
        let pid = pid.succeeded().stdout_text().trim().parse().ok();
        pid.and_then(Pid::from_raw).expect("the machine runs")
    }

    /// Ends the VM process of a machine that runs.
    #[track_caller]
    fn kill_vm_process(&self, name: &str) {
        let monitor = self.monitor(name).as_raw_nonzero();
        let children = format!("/proc/{monitor}/task/{monitor}/children");
        let children = fs::read_to_string(children).expect("the monitor runs");
        let vm = children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        let vm = vm
            .and_then(Pid::from_raw)
            .expect("the monitor has a VM process");
        kill_process(vm, Signal::KILL).expect("it can be killed");
    }
}

#[test]
fn what_a_workload_did_to_its_root_is_there_when_it_is_started_again() {
    let home = Home::new();
    let script = "
        cd /; if [ -e kept ]; then stat -c '%n %a %u:%g %h' kept; cat other; ls bin/vi 2>&1; exit 7; fi
        echo text > kept; chown 1000:50 kept; chmod 640 kept; ln kept other; rm bin/vi; echo new";
    home.create("job", &["--env", "PATH=/bin"], script);
    home.vmm(&["ps"]).run().succeeded().stdout_lacks("job");
    let listed = home.vmm(&["ps", "-a"]).run();
    listed.succeeded().stdout_has("Created").stdout_has("job");
    let taken_bytes = fs::metadata(home.disk("job")).unwrap().blocks() * 512;
    assert!(
        taken_bytes < 1 << 20,
        "{taken_bytes} bytes of an empty disk"
    );

    let first = home.start("job").finish();
    let second = home.start("job").finish();

    first.code_is(0).stdout_is("new\n").stderr_is("");
    second
        .code_is(7)
        .stdout_is("kept 640 1000:50 2\ntext\nls: bin/vi: No such file or directory\n")
        .stderr_is("");
    home.vmm(&["ps", "-a"])
        .run()
        .succeeded()
        .stdout_has("Exited (7)");
    home.vmm(&["rm", "job"]).run().succeeded();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn what_was_synced_survives_a_killed_machine_and_a_killed_monitor() {
    let home = Home::new();
    let script = "n=$(cat /n 2>/dev/null); echo found $n; echo x$n > /n; sync; echo synced; [ \"$n\" = xx ] || sleep 1000";
    home.create("db", &[], script);

    let first = home.start("db");
    first.wait_for_stdout("synced\n");
    home.kill_vm_process("db");
    first.finish().code_is(125).stdout_is("found\nsynced\n");
    let second = home.start("db");
    second.wait_for_stdout("synced\n");
    kill_process(home.monitor("db"), Signal::KILL).unwrap();
    second.finish().stdout_is("found x\nsynced\n");
    let third = home.start("db").finish();

    third
        .code_is(0)
        .stdout_is("found xx\nsynced\n")
        .stderr_is("");
}

#[test]
fn a_kill_and_a_restart_keep_what_was_not_synced() {
    let home = Home::new();
    let script = "echo x >> /n; echo wrote $(wc -l < /n); sleep 1000";
    home.create("web", &[], script);

    let first = home.start("web");
    first.wait_for_stdout("wrote 1\n");
    home.vmm(&["restart", "-t", "1", "web"])
        .run()
        .succeeded()
        .stdout_is("web\n");
    first.finish().code_is(137);
    home.vmm(&["ps"]).run().succeeded().stdout_has("Up");
    let running = home.vmm(&["start", "web"]).run();
    running.succeeded().stdout_is("web\n");
    home.vmm(&["kill", "web"]).run().succeeded();
    home.fixture.nothing_runs();
    let third = home.start("web");
    third.wait_for_stdout("wrote ");
    home.vmm(&["rm", "-f", "web"]).run().succeeded();

    third.finish().code_is(137).stdout_lacks("wrote 1\n");
    home.fixture.nothing_runs();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_snapshot_has_what_was_on_the_disk() {
    let home = Home::new();
    let script = "echo kept > /file; sync; echo ready; read line; echo 3 > /proc/sys/vm/drop_caches; cat /file; echo $line > /file; sync; cat /file";
    home.create("web", &["-i", "--privileged"], script);
    let file = home.fixture.path("web.snapshot");
    let file = file.to_str().expect("paths here are text");
    let first = home.vmm(&["start", "-ai", "web"]).open_input().start();
    first.wait_for_stdout("ready\n");

    let written = home.vmm(&["snapshot", "--stop", "web", file]).run();
    first.finish_with_open_input().code_is(137);
    home.vmm(&["rm", "web"]).run().succeeded();
    let resumed = home
        .vmm(&["run", "--rm", "-i", "--restore", file])
        .input("changed\n")
        .run();

    written.succeeded();
    resumed
        .code_is(0)
        .stdout_is("kept\nchanged\n")
        .stderr_is("");
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_machine_that_went_on_from_a_snapshot_is_started_again_with_its_disk() {
    let home = Home::new();
    let script = "if [ -e /file ]; then cat /file; exit 3; fi; echo first > /file; echo ready; read line; echo $line > /file";
    home.create("web", &["-i", "--memory", "96m"], script);
    let file = home.fixture.path("web.snapshot");
    let file = file.to_str().expect("paths here are text");
    let first = home.vmm(&["start", "-ai", "web"]).open_input().start();
    first.wait_for_stdout("ready\n");
    home.vmm(&["snapshot", "--stop", "web", file])
        .run()
        .succeeded();
    first.finish_with_open_input().code_is(137);
    home.vmm(&["rm", "web"]).run().succeeded();

    let resumed = home
        .vmm(&["run", "-i", "--name", "again", "--restore", file])
        .input("changed\n")
        .run();
    let started = home.vmm(&["start", "-a", "again"]).run();

    resumed.code_is(0).stdout_is("").stderr_is("");
    started.code_is(3).stdout_is("changed\n");
    home.vmm(&["inspect", "-f", "{{.HostConfig.Memory}}", "again"])
        .run()
        .succeeded()
        .stdout_is(&format!("{}\n", 96 << 20));
}

#[test]
fn a_workload_cannot_write_more_than_its_storage() {
    let home = Home::new();
    let script = "
        fallocate -l 100m /big 2>&1 | grep -o 'No space.*'; rm -f /big
        dd if=/dev/zero of=/some bs=1M count=8 2>/dev/null; sync; rm /some; sync
        echo still > /small; cat /small";
    home.create("full", &[], script);

    let done = home.start("full").finish();

    done.code_is(0)
        .stdout_is("No space left on device\nstill\n")
        .stderr_is("");
    let taken_bytes = fs::metadata(home.disk("full")).unwrap().blocks() * 512;
    assert!(
        taken_bytes < 16 << 20,
        "{taken_bytes} bytes are not given back"
    );
}

#[test]
fn a_host_that_is_full_fails_what_is_written_and_not_the_machine() {
    let home = Home::new();
    let script = r#"
        mkdir -p -m 700 "$VMM_ROOT/machines"
        mount -t tmpfs -o size=2m,mode=700 tmpfs "$VMM_ROOT/machines"
        write="dd if=/dev/zero of=/big bs=64k count=64 conv=fsync 2>&1 | grep -o 'Input/output error'; echo lives"
        "$VMM_BINARY" create --name web --storage 64m busybox:test sh -c "$write" > /dev/null
        head -c 2m /dev/zero > "$VMM_ROOT/machines/fill" 2> /dev/null || true
        "$VMM_BINARY" start -a web 2>&1 | grep -o 'No space left'
        rm "$VMM_ROOT/machines/fill"
        "$VMM_BINARY" start -a web"#;

    let done = home
        .fixture
        .in_private_mounts(script)
        .limit(MACHINE_LIMIT)
        .run();

    done.code_is(0)
        .stdout_is("No space left\nInput/output error\nlives\n");
}

#[test]
fn of_two_who_start_a_machine_at_once_one_does() {
    let home = Home::new();
    home.create("once", &[], "sleep 1000");

    let one = home.vmm(&["start", "once"]).start();
    let other = home.vmm(&["start", "once"]).start();
    let codes = [one.finish().code(), other.finish().code()];

    assert!(codes.contains(&Some(0)), "{codes:?}");
    assert!(codes.iter().all(|code| [Some(0), Some(1)].contains(code)));
    home.vmm(&["ps", "-q"]).run().succeeded().stdout_has("\n");
    home.vmm(&["rm", "-f", "once"]).run().succeeded();
    home.fixture.nothing_runs();
}

#[test]
fn a_machine_that_is_removed_in_the_end_has_no_disk() {
    let home = Home::new();
    let options = ["-d", "--rm", "--name", "brief"];
    let run = home.fixture.run_name(IMAGE, &options, &["sleep", "1000"]);
    run.run().succeeded();

    assert!(!home.disk("brief").exists());

    home.vmm(&["kill", "brief"]).run().succeeded();
    home.fixture.nothing_runs();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_disk_that_is_not_what_it_was_is_named_and_nothing_starts() {
    let home = Home::new();
    home.create("web", &[], "true");
    let disk = home.disk("web");
    let refused = || {
        let started = home.vmm(&["start", "web"]).run();
        started.failed(&["disk"]).helped();
    };

    let whole = fs::read(&disk).unwrap();
    fs::write(&disk, &whole[..4096]).unwrap();
    refused();
    fs::remove_file(&disk).unwrap();
    refused();
    symlink("elsewhere", &disk).unwrap();
    refused();
    fs::remove_file(&disk).unwrap();
    fs::create_dir(&disk).unwrap();
    refused();

    home.vmm(&["ps", "-a"])
        .run()
        .succeeded()
        .stdout_has("Created");
    home.vmm(&["rm", "web"]).run().succeeded();
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn the_image_of_a_machine_that_is_kept_is_not_removed() {
    let home = Home::new();
    home.create("web", &[], "true");

    home.vmm(&["rmi", IMAGE]).run().failed(&["web"]).helped();
    home.vmm(&["prune", "--all", "--force"]).run().succeeded();
    home.vmm(&["images"])
        .run()
        .succeeded()
        .stdout_has("busybox");

    home.vmm(&["rm", "web"]).run().succeeded();
    home.vmm(&["rmi", IMAGE]).run().succeeded();
}

#[test]
fn what_makes_no_sense_for_a_kept_machine_is_refused() {
    let home = Home::new();
    let refused = |arguments: &[&str], names: &[&str]| {
        home.vmm(arguments).run().declined(names).helped();
    };

    refused(&["create", "--storage", "1m", IMAGE], &["--storage"]);
    refused(&["create", "--storage", "9999g", IMAGE], &["--storage"]);
    refused(
        &["create", "--storage-opt", "quota=1g", IMAGE],
        &["quota=1g"],
    );
    refused(&["create", "--rm", IMAGE], &["--rm"]);
    refused(&["create", "-d", IMAGE], &["--detach"]);
    refused(&["create", "no-such-image"], &["no-such-image"]);
    refused(&["run", "--rm", "--storage", "1g", IMAGE], &["storage"]);
    refused(&["start", "nobody"], &["nobody"]);
    refused(&["restart", "nobody"], &["nobody"]);
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_machine_that_ends_when_it_is_asked_is_restarted_with_what_it_wrote() {
    let home = Home::new();
    let script = "trap 'echo x >> /n; exit 0' TERM; echo up $(cat /n); while :; do sleep 0.1; done";
    home.create("web", &[], script);
    let started = home.start("web");
    started.wait_for_stdout("up\n");

    for _ in 0..3 {
        home.vmm(&["restart", "web"]).run().succeeded();
    }
    started.finish();
    let log = home.vmm(&["logs", "-f", "web"]).start();
    log.wait_for_stdout("up x x x\n");
    home.vmm(&["rm", "-f", "web"]).run().succeeded();
    log.finish();
    home.fixture.nothing_runs();
}
