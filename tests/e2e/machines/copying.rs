//! `vmm cp`, `vmm diff`, `vmm export` and `vmm commit`: the files of a machine that runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tests::process::{Finished, MACHINE_LIMIT};
use tests::{Fixture, Invocation};

const IMAGE: &str = "busybox:test";

/// A machine that has done something to its files, and waits.
struct Machine {
    fixture: Fixture,
}

impl Machine {
    fn after(options: &[&str], script: &str) -> Self {
        let fixture = super::with_busybox();
        let script = format!("{script}\necho ready; exec sleep 1000");
        let options = [&["-d", "--name", "web"], options].concat();
        fixture
            .run_name(IMAGE, &options, &["sh", "-ec", &script])
            .run()
            .succeeded();
        let machine = Self { fixture };
        let log = machine.vmm(["logs", "-f", "web"]).start();
        log.wait_for_stdout("ready\n");
        log.signal(rustix::process::Signal::TERM);
        log.finish();
        machine
    }

    fn vmm<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    fn path(&self, name: &str) -> String {
        self.fixture.path(name).display().to_string()
    }

    fn cp(&self, options: &[&str], from: &str, to: &str) -> Finished {
        self.vmm(["cp"]).args(options).arg(from).arg(to).run()
    }

    fn copied(&self, from: &str, to: &str) {
        self.cp(&[], from, to)
            .succeeded()
            .stdout_is("")
            .stderr_is("");
    }

    fn failed(&self, from: &str, to: &str, says: &str) {
        self.cp(&[], from, to).code_is(1).stderr_has(says);
    }

    fn sh(&self, script: &str) -> String {
        let done = self.vmm(["exec", "web", "sh", "-c", script]).run();
        done.succeeded().stdout_text()
    }
}

#[test]
fn a_machine_that_is_kept_has_its_files_when_it_has_ended() {
    let fixture = super::with_busybox();
    let machine = Machine { fixture };
    let create = ["create", "--name", "web", "--storage", "64m", IMAGE];
    let script = "cat /given; echo written > /f; rm /bin/ls";
    let created = machine.vmm(create).args(["sh", "-c", script]).run();
    created.succeeded();
    let given = machine
        .fixture
        .file("given", "given\n")
        .display()
        .to_string();

    machine.copied(&given, "web:/given");
    let status = machine
        .vmm(["inspect", "-f", "{{.State.Status}}", "web"])
        .run();
    let ran = machine.vmm(["start", "-a", "web"]).run();
    machine.copied("web:/f", &machine.path("f"));
    let changes = machine.vmm(["diff", "web"]).run();

    status.succeeded().stdout_is("created\n");
    ran.succeeded().stdout_is("given\n");
    let written = fs::read_to_string(machine.fixture.path("f"));
    assert_eq!(written.unwrap(), "written\n");
    changes
        .succeeded()
        .stdout_is("C /bin\nD /bin/ls\nA /f\nA /given\n");
    machine.vmm(["rm", "web"]).run().succeeded();
    machine.fixture.nothing_runs();
}

/// The names in an archive, as tar(1) lists them.
fn listed(archive: &Path) -> Vec<String> {
    let output = Command::new("tar")
        .arg("-tf")
        .arg(archive)
        .output()
        .expect("tar can be run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).expect("the file is there");
    metadata.permissions().mode() & 0o7777
}

#[test]
fn files_are_copied_from_a_machine_as_docker_would() {
    let machine = Machine::after(
        &[],
        "mkdir -p /d/sub; echo one > /d/one; echo deep > /d/sub/deep; ln -s one /d/link; ln -s /etc/shadow /out
        touch -d @1000000000 /d/one; chown 7:8 /d/one; chmod 4750 /d/one; mknod /d/null c 1 3
        mkdir /bad; ln -s / /bad/root; echo x > /dev/shm/memory; ln /d/one /d/hard",
    );
    let here = |name: &str| machine.fixture.path(name);
    let read = |name: &str| fs::read_to_string(here(name)).expect("it was copied");
    fs::create_dir(here("there")).unwrap();
    fs::write(here("file"), "old and longer").unwrap();
    symlink("file", here("to-file")).unwrap();

    machine.copied("web:/d/one", &machine.path("new"));
    machine.copied("web:d/one", &machine.path("there"));
    machine.copied("web:/d/one", &machine.path("to-file"));
    machine.copied("web:/d/link", &machine.path("link"));
    machine.copied("web:/dev/shm/memory", &machine.path("memory"));
    machine
        .cp(&["-L"], "web:/d/link", &machine.path("followed"))
        .succeeded();
    let whole = machine.cp(&["-q"], "web:/d", &machine.path("tree"));
    machine
        .cp(&[], "web:/d/", &machine.path("there"))
        .succeeded();
    machine
        .cp(&[], "web:/d/.", &machine.path("merged/"))
        .succeeded();
    machine
        .cp(&["-a"], "web:/d/one", &machine.path("owned"))
        .succeeded();

    assert_eq!(read("new"), "one\n");
    assert_eq!((mode(&here("new")), mode(&here("owned"))), (0o750, 0o4750));
    let owner = |name: &str| fs::metadata(here(name)).map(|it| (it.uid(), it.gid(), it.mtime()));
    assert_eq!(owner("new").unwrap().0, rustix::process::getuid().as_raw());
    assert_eq!(owner("owned").unwrap(), (7, 8, 1_000_000_000));
    assert_eq!(
        (read("there/one"), read("file")),
        ("one\n".into(), "one\n".into())
    );
    assert!(fs::symlink_metadata(here("to-file")).unwrap().is_symlink());
    assert_eq!(fs::read_link(here("link")).unwrap(), Path::new("one"));
    assert_eq!(
        (read("followed"), read("memory")),
        ("one\n".into(), "x\n".into())
    );
    whole
        .succeeded()
        .stderr_has("null` is a device, and was left out");
    for place in ["tree", "there/d", "merged"] {
        assert_eq!(read(&format!("{place}/sub/deep")), "deep\n");
        assert!(!here(place).join("null").exists());
        assert_eq!(fs::metadata(here(place).join("hard")).unwrap().nlink(), 2);
    }

    let archive = machine.vmm(["cp", "web:/d/sub", "-"]).run();
    let archive = machine.fixture.file("sub.tar", &archive.succeeded().stdout);
    assert_eq!(listed(&archive), ["sub/", "sub/deep"]);

    machine.failed("web:/none", &machine.path("x"), "/none");
    machine.failed("web:/d/one/", &machine.path("x"), "is not a directory");
    machine.failed("web:/d/one", &machine.path("no/where"), "No such file");
    machine.failed("web:/d/one", &machine.path("no/"), "does not exist");
    machine.failed("web:/d", &machine.path("file"), "cannot copy a directory");
    machine.failed("web:/d/one", "web:/x", "from one machine to another");
    machine.failed("a", "b", "neither of the two paths");
    machine.failed("web:", &machine.path("x"), "MACHINE:PATH");
    machine.failed("other:/d", &machine.path("x"), "other");
    assert!(!here("x").exists() && !here("no").exists());
    machine.copied("web:/out", &machine.path("out"));
    assert!(fs::symlink_metadata(here("out")).unwrap().is_symlink());
    // A link that came with the copy is not followed by the next one.
    machine.copied("web:/bad", &machine.path("bad"));
    machine.sh("rm /bad/root; mkdir /bad/root; echo x > /bad/root/vmm-was-here");
    machine.failed("web:/bad/.", &machine.path("bad"), "cannot replace");
    assert!(!Path::new("/vmm-was-here").exists());
}

#[test]
fn files_are_copied_to_a_machine_and_stay_inside() {
    let machine = Machine::after(
        &["--read-only", "--tmpfs", "/t"],
        "mkdir -p /t/d /t/etc; ln -s /t/etc /t/abs; ln -s ../../../../../t/etc /t/up; echo old > /t/file",
    );
    let here = |name: &str| machine.fixture.path(name);
    fs::create_dir_all(here("tree/sub")).unwrap();
    fs::write(here("tree/sub/f"), "deep\n").unwrap();
    fs::set_permissions(here("tree/sub"), fs::Permissions::from_mode(0o710)).unwrap();
    symlink("sub/f", here("tree/link")).unwrap();
    let one = machine.fixture.file("one", "one\n").display().to_string();

    machine.copied(&one, "web:/t/d");
    machine.copied(&one, "web:/t/d/named");
    machine.copied(&one, "web:/t/file");
    machine.copied(&one, "web:/t/abs/through");
    machine.copied(&one, "web:/t/up/../above");
    machine.copied(&machine.path("tree"), "web:/t");
    machine.copied(&machine.path("tree"), "web:/t/made");
    machine.copied(&machine.path("tree/."), "web:/t/d");
    machine.copied(&machine.path("tree/link"), "web:/t/kept");
    machine
        .cp(&["-L"], &machine.path("tree/link"), "web:/t/followed")
        .succeeded();

    let seen = machine.sh(
        "cd /t; cat d/one d/named file etc/through above tree/sub/f made/sub/f d/sub/f followed; readlink kept; readlink tree/link
        stat -c '%a %u:%g' tree/sub d/one",
    );
    let ones = "one\n".repeat(5);
    let deep = "deep\n".repeat(4);
    let one_mode = mode(&here("one"));
    assert_eq!(
        seen,
        format!("{ones}{deep}sub/f\nsub/f\n710 0:0\n{one_mode:o} 0:0\n")
    );
    machine.failed(&one, "web:/root-is-read-only", "Read-only file system");
    machine.failed(&one, "web:/t/no/where", "/t/no/where");
    machine.failed(&one, "web:/t/file/", "is not a directory");
    machine.failed(
        &machine.path("tree"),
        "web:/t/file",
        "cannot copy a directory",
    );
    machine.failed(&machine.path("none"), "web:/t", "none");

    let tar = |arguments: &str| {
        let script = format!("cd {}; {arguments}", machine.fixture.path("").display());
        let output = Command::new("sh")
            .args(["-c", &script])
            .output()
            .expect("sh runs");
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let send = |to: &str, archive: Vec<u8>| machine.vmm(["cp", "-", to]).input(archive).run();
    send(
        "web:/t/d",
        tar("tar -cf - --transform 's,^,from-tar/,' one"),
    )
    .succeeded();
    send(
        "web:/t/d",
        tar("tar -cPf - --transform 's,^one,/absolute,' one"),
    )
    .succeeded();
    assert_eq!(
        machine.sh("cat /t/d/from-tar/one /t/d/absolute"),
        "one\none\n"
    );
    let up = tar("tar -cPf - --transform 's,^one,../../escaped,' one");
    send("web:/t/d", up).code_is(1).stderr_has("leads out");
    send("web:/t/none", tar("tar -cf - one"))
        .code_is(1)
        .stderr_has("does not exist");
    send("web:/t/file", tar("tar -cf - one"))
        .code_is(1)
        .stderr_has("not a directory");
    send("web:/t/d", b"this is no archive".to_vec())
        .code_is(1)
        .stderr_has("archive");
    // Links that the archive makes lead where they lead in the machine.
    let through = tar(
        "ln -s /t/etc l; tar -cf l.tar l; rm l; mkdir l; echo in > l/linked; tar -rf l.tar l/linked; cat l.tar",
    );
    send("web:/t/d", through).succeeded();
    assert_eq!(
        machine.sh("cat /t/etc/linked; ls /t/d/l/"),
        "in\nlinked\nthrough\n"
    );
    assert!(!Path::new("/t/etc/linked").exists());
    let holes = tar("truncate -s 1M hole; printf end >> hole; tar -cSf - hole");
    send("web:/t/d", holes).succeeded();
    assert_eq!(
        machine.sh("stat -c %s /t/d/hole; tail -c 3 /t/d/hole"),
        "1048579\nend"
    );

    machine.vmm(["pause", "web"]).run().succeeded();
    machine.failed(&one, "web:/t", "is paused");
    machine
        .vmm(["diff", "web"])
        .run()
        .code_is(1)
        .stderr_has("vmm resume web");
    machine.vmm(["resume", "web"]).run().succeeded();
}

#[test]
fn what_a_machine_has_changed_is_listed_exported_and_becomes_an_image() {
    let machine = Machine::after(
        &["-e", "IN=vain"],
        "mkdir -p /new/dir; echo data > /new/dir/f; rm /bin/ls; chmod 711 /new/dir; echo tool > /bin/tool; chmod 4755 /bin/tool
        echo x > /dev/shm/mine; chown 3:4 /new/dir/f",
    );
    let fixture = &machine.fixture;

    let plain = machine.vmm(["diff", "web"]).run();
    let json = machine.vmm(["diff", "--json", "web"]).run();
    plain
        .succeeded()
        .stdout_is("C /bin\nD /bin/ls\nA /bin/tool\nA /new\nA /new/dir\nA /new/dir/f\n");
    let json: serde_json::Value = serde_json::from_str(&json.succeeded().stdout_text()).unwrap();
    assert_eq!(
        json[1],
        serde_json::json!({ "kind": "D", "path": "/bin/ls" })
    );

    let archive = fixture.path("web.tar");
    machine
        .vmm(["export", "-o", &machine.path("web.tar"), "web"])
        .run()
        .succeeded()
        .stdout_is("");
    let to_stdout = machine.vmm(["export", "web"]).run();
    let names = listed(&archive);
    assert_eq!(
        listed(&fixture.file("stdout.tar", &to_stdout.succeeded().stdout)),
        names
    );
    let has = |name: &str| names.iter().any(|it| it == name);
    assert!(has("bin/tool") && has("bin/sh") && has("new/dir/f"));
    assert!(!has("bin/ls") && !names.iter().any(|name| name.ends_with("/mine")));
    let on_terminal = fixture.on_terminal(["export", "web"]);
    on_terminal.wait_for("standard output is a terminal");
    machine
        .vmm(["export", "-o", &machine.path("no/where.tar"), "web"])
        .run()
        .code_is(1)
        .stderr_has("where.tar");

    let committed = machine
        .vmm([
            "commit", "-a", "Jo <jo@example.org>", "-m", "a remark",
            "-c", r#"CMD ["sh", "-c", "cat /new/dir/f; echo $ADDED $IN; pwd; id -u; stat -c '%a %u:%g' /bin/tool /new/dir/f; [ -e /bin/ls ] || echo no ls"]"#,
            "-c", "ENV ADDED='two words'", "-c", "WORKDIR /new", "-c", "USER 5:6", "-c", "LABEL tested=yes",
            "-c", "EXPOSE 80", "web", "web:tested",
        ])
        .run();
    let id = committed.succeeded().stdout_text();
    assert!(id.starts_with("sha256:"), "{id}");
    let nameless = machine.vmm(["commit", "--pause=false", "web"]).run();
    assert!(nameless.succeeded().stdout_text().starts_with("sha256:"));
    machine
        .vmm(["commit", "-c", "RUN make", "web"])
        .run()
        .refused(&["RUN"]);
    machine
        .vmm(["commit", "web", "Bad Name"])
        .run()
        .code_is(1)
        .stderr_has("Bad Name");
    let history = machine.vmm(["history", "--no-trunc", "web:tested"]).run();
    history
        .succeeded()
        .stdout_has("a remark")
        .stdout_has("sh -ec");
    let run = fixture.run_name("web:tested", &["--rm"], &[]).run();
    run.succeeded()
        .stdout_is("data\ntwo words vain\n/new\n5\n4755 0:0\n644 3:4\nno ls\n");

    machine.vmm(["stop", "-t", "0", "web"]).run().succeeded();
    let stopped = machine
        .vmm(["export", "-o", &machine.path("stopped.tar"), "web"])
        .run();
    stopped.succeeded().stderr_is("");
    let length = |name: &str| fs::metadata(fixture.path(name)).map(|file| file.len());
    assert!(length("stopped.tar").unwrap() > 1 << 20);
}
