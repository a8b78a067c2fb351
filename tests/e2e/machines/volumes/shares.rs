//! Directories and files of the host in a machine: `-v` and `--mount type=bind`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};
use tests::process::{MACHINE_LIMIT, Running};
use tests::{Fixture, Invocation};

const IMAGE: &str = "busybox:test";

/// A place with an image, and a directory that is shared.
struct Home {
    fixture: Fixture,
    shared: PathBuf,
}

impl Home {
    fn new() -> Self {
        let fixture = super::super::with_busybox();
        let shared = fixture.path("shared");
        fs::create_dir(&shared).expect("a directory can be made");
        Self { fixture, shared }
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    /// Shares the directory at `/shared`, with further options of the volume.
    fn volume(&self, options: &str) -> String {
        format!("{}:/shared{options}", self.shared.display())
    }

    fn run(&self, options: &[&str], script: &str) -> Invocation {
        let command = [IMAGE, "sh", "-ec", script];
        self.vmm(&[&["run", "--rm"], options, &command].concat())
    }

    /// The process of a running machine that serves its shares: the one that holds an open descriptor of the directory.
    #[track_caller]
    fn server(&self) -> Pid {
        let processes = self.fixture.processes();
        let holds = |pid: &Pid| {
            let descriptors = format!("/proc/{}/fd", pid.as_raw_nonzero());
            let links = fs::read_dir(descriptors).into_iter().flatten().flatten();
            let count = links
                .filter_map(|link| fs::read_link(link.path()).ok())
                .filter(|target| target.to_string_lossy().contains("kvm"))
                .count();
            count == 0
        };
        let found: Vec<Pid> = processes
            .iter()
            .map(|(pid, _)| *pid)
            .filter(|pid| holds(pid) && threads(*pid).iter().any(|name| name == "share"))
            .collect();
        assert_eq!(found.len(), 1, "{processes:?}");
        found[0]
    }
}

fn threads(pid: Pid) -> Vec<String> {
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    let tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

fn wait_for(running: &Running, word: &str) {
    running.wait_for_stdout(word);
}

#[test]
fn what_the_workload_does_to_a_directory_is_done_to_that_of_the_host() {
    let home = Home::new();
    fs::write(home.shared.join("read"), "from the host\n").unwrap();
    symlink("read", home.shared.join("link")).unwrap();
    let script = "
        cd /shared; cat read link
        mkdir -p a/b; echo text > a/b/new; chmod 640 a/b/new; ln a/b/new hard; ln -s a/b soft
        mkfifo pipe; echo one > many; echo two >> many; mv many moved; rm read
        stat -c '%h %a' hard; head -c 300000 /bin/busybox > large
        cmp -n 300000 large /bin/busybox && echo same; truncate -s 104857600 sparse; stat -c %s sparse
        sh -c 'rm soft; exec 3<>hard; rm hard; echo held >&3; cat a/b/new'
        for i in $(seq 60); do : > a/$i; done; ls a | wc -l";
    home.run(&["-v", &home.volume("")], script)
        .run()
        .succeeded()
        .stdout_is("from the host\nfrom the host\n2 640\nsame\n104857600\nheld\n61\n")
        .stderr_is("");
    let metadata = |name: &str| fs::symlink_metadata(home.shared.join(name)).unwrap();
    assert_eq!(
        fs::read_to_string(home.shared.join("moved")).unwrap(),
        "one\ntwo\n"
    );
    assert_eq!(metadata("a/b/new").mode() & 0o777, 0o640);
    assert!(metadata("pipe").file_type().is_fifo());
    assert!(!home.shared.join("read").exists());
    assert_eq!(metadata("large").len(), 300_000);
    assert!(metadata("sparse").blocks() < 1000);
}

#[test]
fn what_is_moved_at_once_past_the_cache_is_what_is_in_it() {
    let home = Home::new();
    let script = "
        cd /shared; head -c 3000000 /dev/urandom > once
        dd if=once of=big bs=1M 2>/dev/null; cmp once big && echo same
        dd if=big bs=700000 2>/dev/null | cmp - once && echo in pieces
        printf new | dd of=big bs=1 seek=1500000 conv=notrunc 2>/dev/null
        dd if=big bs=1M 2>/dev/null | tail -c +1500001 | head -c 3; echo
        dd if=once of=big bs=1M conv=notrunc 2>/dev/null; cmp once big && echo back
        dd if=once of=big bs=1M oflag=append conv=notrunc 2>/dev/null; stat -c %s big";
    home.run(&["-v", &home.volume("")], script)
        .run()
        .succeeded()
        .stdout_is("same\nin pieces\nnew\nback\n6000000\n")
        .stderr_is("");
    let once = fs::read(home.shared.join("once")).unwrap();
    let big = fs::read(home.shared.join("big")).unwrap();
    assert!(big == [&once[..], &once[..]].concat());
}

#[test]
fn files_and_directories_are_shown_side_by_side_and_what_is_read_only_stays() {
    let home = Home::new();
    let (file, second) = (
        home.fixture.file("file", "a file\n"),
        home.fixture.path("second"),
    );
    fs::create_dir(&second).unwrap();
    let missing = home.fixture.path("not/there");
    let source = format!("{}:/etc/one", file.display());
    let bind = format!("type=bind,src={},dst=/second,readonly", second.display());
    let made = format!("{}:/made", missing.display());
    let script = "
        cat /etc/one; echo more >> /etc/one; echo x > /shared/x
        (echo y > /second/y) 2>&1 | grep -o 'Read-only file system'
        echo z > /made/z; grep -c virtiofs /proc/mounts";
    let options = [
        "-v",
        &source,
        "-v",
        &home.volume(""),
        "--mount",
        &bind,
        "-v",
        &made,
    ];
    home.run(&options, script)
        .run()
        .succeeded()
        .stdout_is("a file\nRead-only file system\n4\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "a file\nmore\n");
    assert_eq!(fs::read_to_string(missing.join("z")).unwrap(), "z\n");
    assert_eq!(fs::read_dir(second).unwrap().count(), 0);
}

#[test]
fn what_changes_on_the_host_is_seen_soon() {
    let home = Home::new();
    fs::write(home.shared.join("file"), "old").unwrap();
    let script = "
        cat /shared/file; ls /shared/late 2>/dev/null || echo ready
        until [ -e /shared/late ]; do usleep 50000; done
        cat /shared/late /shared/file; echo back > /shared/answer";
    let running = home.run(&["-v", &home.volume("")], script).start();
    wait_for(&running, "ready");
    fs::write(home.shared.join("file"), "longer than before\n").unwrap();
    fs::write(home.shared.join("late.new"), "late\n").unwrap();
    fs::rename(home.shared.join("late.new"), home.shared.join("late")).unwrap();
    running
        .finish()
        .succeeded()
        .stdout_is("oldready\nlate\nlonger than before\n");
    assert_eq!(
        fs::read_to_string(home.shared.join("answer")).unwrap(),
        "back\n"
    );
}

#[test]
fn a_lock_on_the_host_is_in_the_way_of_one_in_the_machine() {
    let home = Home::new();
    let image = super::super::busybox_with_probe(&home.fixture);
    let file = fs::File::create(home.shared.join("file")).unwrap();
    file.lock().unwrap();
    let options = ["--rm", "-v", &home.volume("")];
    let command = ["probe", "lock", "/shared/file"];
    let running = home.fixture.run(&image, &options, &command);
    let running = running.limit(MACHINE_LIMIT).start();
    wait_for(&running, "refused");
    file.unlock().unwrap();
    running.finish().succeeded().stdout_is("refused\nlocked\n");
}

#[test]
fn a_machine_ends_with_the_server_of_its_directories_or_goes_on_as_chosen() {
    let home = Home::new();
    let volume = home.volume("");
    let script = "echo up; while [ ! -e /tmp/end ]; do usleep 50000; ls /shared >/dev/null 2>&1 || { echo failed; exit 3; }; done";
    let running = home.run(&["-v", &volume], script).start();
    wait_for(&running, "up");
    kill_process(home.server(), Signal::KILL).unwrap();
    let finished = running.finish();
    assert!(
        finished
            .stderr_text()
            .contains("serves the shared directories is gone")
    );
    finished.code_is(125);

    let goes_on = ["-v", &volume, "--on-share-failure", "continue"];
    let running = home.run(&goes_on, script).start();
    wait_for(&running, "up");
    kill_process(home.server(), Signal::KILL).unwrap();
    running.finish().code_is(3).stdout_has("failed");
}

#[test]
fn a_machine_that_is_started_again_sees_its_directories_again() {
    let home = Home::new();
    let volume = home.volume("");
    let command = [
        IMAGE,
        "sh",
        "-c",
        "echo run >> /shared/runs; cat /shared/runs",
    ];
    let create = [
        "create",
        "--name",
        "job",
        "--storage-opt",
        "size=64m",
        "-v",
        &volume,
    ];
    home.vmm(&[&create[..], &command].concat())
        .run()
        .succeeded();
    let mounts = ["inspect", "--format", "{{json .Mounts}}", "job"];
    let source = format!("\"Source\":\"{}\"", home.shared.display());
    home.vmm(&mounts).run().succeeded().stdout_has(&source);
    home.vmm(&["start", "-a", "job"])
        .run()
        .succeeded()
        .stdout_is("run\n");
    home.vmm(&["start", "-a", "job"])
        .run()
        .succeeded()
        .stdout_is("run\nrun\n");

    fs::remove_dir_all(&home.shared).unwrap();
    let mount = format!("type=bind,src={},dst=/x", home.shared.display());
    let gone = home.vmm(&["create", "--mount", &mount, IMAGE]).run();
    gone.code_is(1).stderr_has("there is no").helped();
}

#[test]
fn a_machine_with_directories_of_the_host_is_not_written_down() {
    let home = Home::new();
    let volume = home.volume("");
    let command = [IMAGE, "sh", "-c", "echo up; sleep 1000"];
    let run = ["run", "-d", "--rm", "--name", "job", "-v", &volume];
    home.vmm(&[&run[..], &command].concat()).run().succeeded();
    let file = home.fixture.path("snapshot");
    let refused = home.vmm(&["snapshot", "job", file.to_str().unwrap()]).run();
    refused.stderr_has("sees directories of the host");
    assert_ne!(refused.code(), Some(0));
    home.vmm(&["rm", "-f", "job"]).run().succeeded();
}

#[test]
fn what_cannot_be_shown_is_refused_with_help() {
    let home = Home::new();
    let refuse = |option: &str, value: &str, words: &str| {
        let refused = home.run(&[option, value], "true").run();
        refused.code_is(125).stderr_has(words).helped();
    };
    let missing = home.fixture.path("missing");
    let mount = format!("type=bind,src={},dst=/x", missing.display());
    refuse("--mount", &mount, "there is no");
    assert!(!missing.exists());
    let own = format!("{}:/x", home.fixture.store().display());
    refuse("-v", &own, "belongs to vmm itself");
    refuse("-v", "/dev/null:/x", "neither a file nor a directory");
    let below_file = home.fixture.file("plain", "");
    let below_file = format!("{}/below:/x", below_file.display());
    refuse("-v", &below_file, "cannot open");
}

#[test]
fn what_is_written_beside_a_share_is_there_at_the_next_start_and_for_cp() {
    let home = Home::new();
    let script = "cat /n 2>/dev/null; echo x >> /n; echo y >> /shared/m";
    let volume = home.volume("");
    let first = [
        "run", "--name", "job", "-v", &volume, IMAGE, "sh", "-c", script,
    ];
    home.vmm(&first).run().succeeded().stdout_is("");

    for expected in ["x\n", "x\nx\n"] {
        let again = home.vmm(&["start", "-a", "job"]).run();
        again.code_is(0).stdout_is(expected).stderr_is("");
    }
    let copied = home.vmm(&["cp", "job:/n", "-"]).run();

    copied.succeeded().stdout_has("x\nx\nx\n");
    let written = fs::read_to_string(home.shared.join("m")).unwrap();
    assert_eq!(written, "y\ny\ny\n");
}
