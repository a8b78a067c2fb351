//! Volumes and disks of the host in machines: what is on them, who may have them, and what becomes of it.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Signal, kill_process};
use serde_json::{Value, json};
use tests::image_maker::{ImageMaker, Layer};
use tests::process::{Finished, MACHINE_LIMIT, Running};
use tests::{Fixture, Invocation};

const IMAGE: &str = "busybox:test";

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

    /// The same with an image that has a directory of its own, and says that it is a volume.
    fn with_declared_volume() -> Self {
        let fixture = Fixture::with_machines();
        let layer = Layer::new()
            .directory("srv")
            .directory("srv/data")
            .with_mode(0o751)
            .with_owner(1000, 50)
            .file("srv/data/file", "of the image\n")
            .with_mode(0o640)
            .with_owner(1000, 60);
        let image = ImageMaker::busybox()
            .layer(layer)
            .config("Volumes", json!({ "/srv/data": {} }))
            .name(IMAGE)
            .layout()
            .archive();
        let file = fixture.file("declared.oci", image);
        fixture.load(&file).run().succeeded();
        Self { fixture }
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture.vmm(arguments).limit(MACHINE_LIMIT)
    }

    /// Runs a script in a machine of which nothing stays but its volumes.
    fn run(&self, options: &[&str], script: &str) -> Invocation {
        let options = [&["--rm"], options].concat();
        let run = self
            .fixture
            .run_name(IMAGE, &options, &["sh", "-c", script]);
        run.limit(MACHINE_LIMIT)
    }

    fn done(&self, options: &[&str], script: &str) -> Finished {
        self.run(options, script).run()
    }

    fn volumes(&self) -> String {
        self.vmm(&["volume", "ls", "-q"]).run().stdout_text()
    }

    /// What is known of a thing.
    fn inspect(&self, arguments: &[&str]) -> Value {
        let inspected = self.vmm(arguments).run();
        inspected.succeeded();
        serde_json::from_str(&inspected.stdout_text()).expect("it prints JSON")
    }

    /// Ends the VM process of a machine whose monitor this is.
    #[track_caller]
    fn kill_vm_process(&self, monitor: &Running) {
        let processes = self.fixture.processes();
        let vm = processes.iter().find(|(pid, _)| *pid != monitor.pid());
        let (vm, _) = vm.expect("the monitor has a VM process");
        kill_process(*vm, Signal::KILL).expect("it can be killed");
    }

    /// A copy of the empty file system that volumes begin with, as a disk of the host.
    fn disk_image(&self, name: &str) -> PathBuf {
        let made = self.vmm(&["volume", "create", "--opt", "size=64m", "origin"]);
        made.run().succeeded();
        self.done(&["-v", "origin:/x"], "true").succeeded();
        let path = self.fixture.path(name);
        let target = path.to_str().expect("paths here are text");
        let copied = self.vmm(&["volume", "snapshot", "origin", target]).run();
        copied.succeeded();
        path
    }
}

#[test]
fn what_one_machine_writes_to_a_volume_the_next_ones_read() {
    let home = Home::new();

    let first = home.done(
        &["-v", "data:/srv/data"],
        "cd /srv/data; ls -a; echo text > file",
    );
    let second = home.done(
        &["--mount", "type=volume,source=data,target=/other,readonly"],
        "cat /other/file; echo no > /other/more; ls /other",
    );

    first.code_is(0).stdout_is(".\n..\n").stderr_is("");
    second
        .code_is(0)
        .stdout_is("text\nfile\n")
        .stderr_has("Read-only file system");
    assert_eq!(home.volumes(), "data\n");
    let known = home.inspect(&["volume", "inspect", "data"]);
    assert_eq!(known[0]["Vmm"]["SizeBytes"], 10_u64 << 30);
    assert!(known[0]["Vmm"]["UsedBytes"].as_u64().unwrap() < 16 << 20);
}

#[test]
fn a_volume_has_one_writer_or_several_readers_and_who_has_it_is_said() {
    let home = Home::new();
    home.done(&["-v", "data:/data"], "echo text > /data/file")
        .succeeded();
    let options = ["-d", "--name", "holder", "-v", "data:/data:ro"];
    home.done(&options, "sleep 1000").succeeded();

    let reader = home.done(&["-v", "data:/data:ro"], "cat /data/file");
    let writer = home.done(&["-v", "data:/data"], "true");
    let removed = home.vmm(&["volume", "rm", "data"]).run();
    home.vmm(&["rm", "-f", "holder"]).run().succeeded();
    home.fixture.nothing_runs();

    reader.code_is(0).stdout_is("text\n").stderr_is("");
    writer
        .refused(&["volume 'data' is in use by machine 'holder'"])
        .helped();
    removed
        .failed(&["volume 'data' is in use by machine 'holder'"])
        .helped();
    home.vmm(&["volume", "rm", "data"])
        .run()
        .succeeded()
        .stdout_is("data\n");
    assert_eq!(home.volumes(), "");
}

#[test]
fn a_new_volume_begins_with_what_the_image_has_there() {
    let home = Home::with_declared_volume();
    let script = "cd /srv/data; stat -c '%n %a %u:%g' . file; cat file; echo changed > file";

    let first = home.done(&["-v", "data:/srv/data"], script);
    let second = home.done(&["-v", "data:/srv/data"], "cat /srv/data/file");
    let uncopied = home.done(&["-v", "empty:/srv/data:nocopy"], "ls -a /srv/data");

    first
        .code_is(0)
        .stdout_is(". 751 1000:50\nfile 640 1000:60\nof the image\n")
        .stderr_is("");
    second.code_is(0).stdout_is("changed\n").stderr_is("");
    uncopied.code_is(0).stdout_is(".\n..\n").stderr_is("");
}

#[test]
fn the_volumes_that_an_image_declares_go_with_the_machine() {
    let home = Home::with_declared_volume();
    let place = "volume=$(mount | grep -c ' /srv/data .*ext4'); echo $volume; cat /srv/data/file";

    home.done(&[], place)
        .code_is(0)
        .stdout_is("1\nof the image\n")
        .stderr_is("");
    assert_eq!(home.volumes(), "");

    let created = home.vmm(&[
        "create",
        "--name",
        "kept",
        IMAGE,
        "sh",
        "-c",
        "echo x >> /srv/data/n; cat /srv/data/n",
    ]);
    created.run().succeeded();
    home.vmm(&["start", "-a", "kept"]).run().stdout_is("x\n");
    home.vmm(&["start", "-a", "kept"]).run().stdout_is("x\nx\n");
    let own = home.volumes();
    assert_eq!(own.trim_end().len(), 64, "{own}");
    let mounts = home.inspect(&["inspect", "kept"])[0]["Mounts"].clone();
    assert_eq!(mounts[0]["Type"], "volume");
    assert_eq!(mounts[0]["Name"], own.trim_end());
    assert_eq!(mounts[0]["Destination"], "/srv/data");
    home.vmm(&["volume", "prune", "-f"])
        .run()
        .succeeded()
        .stdout_is("Total reclaimed space: 0B\n");
    home.vmm(&["volume", "rm", own.trim_end()])
        .run()
        .failed(&["in use by machine 'kept'"])
        .helped();
    home.vmm(&["rm", "-v", "kept"]).run().succeeded();
    assert_eq!(home.volumes(), "");
}

#[test]
fn another_machine_mounts_what_the_first_one_does() {
    let home = Home::new();
    let created = home.vmm(&[
        "create",
        "--name",
        "first",
        "-v",
        "data:/data",
        IMAGE,
        "true",
    ]);
    created.run().succeeded();

    let written = home.done(&["--volumes-from", "first"], "echo text > /data/file");
    let read = home.done(
        &["--volumes-from", "first:ro"],
        "cat /data/file; touch /data/more 2>/dev/null || echo read-only",
    );

    written.code_is(0).stderr_is("");
    read.code_is(0).stdout_is("text\nread-only\n").stderr_is("");
}

#[test]
fn what_was_synced_to_a_volume_survives_a_killed_machine() {
    let home = Home::new();
    let script = "i=0; while :; do i=$((i+1)); echo $i >> /data/log; sync; echo $i; done";
    let running = home.run(&["-v", "data:/data"], script).start();
    running.wait_for_stdout("\n20\n");

    home.kill_vm_process(&running);
    let said = running.finish().stdout_text();
    let found = home.done(&["-v", "data:/data"], "tail -n 1 /data/log");

    let acknowledged: u32 = said.lines().last().unwrap().parse().unwrap();
    let kept: u32 = found.code_is(0).stdout_text().trim().parse().unwrap();
    assert!(kept >= acknowledged, "{kept} of {acknowledged}");
}

#[test]
fn a_full_volume_fails_what_is_written_and_not_the_machine() {
    let home = Home::new();
    let mount = "type=volume,src=small,dst=/data,volume-opt=size=64m";
    let script = "dd if=/dev/zero of=/data/big bs=1M count=100 2>&1 | grep -o 'No space.*'; rm /data/big; echo still > /data/small; cat /data/small";

    let done = home.done(&["--mount", mount], script);

    done.code_is(0)
        .stdout_is("No space left on device\nstill\n")
        .stderr_is("");
}

#[test]
fn a_host_that_is_full_fails_what_is_written_to_a_volume_and_not_the_machine() {
    let home = Home::new();
    let script = r#"
        mkdir -p -m 700 "$VMM_ROOT/volumes"
        mount -t tmpfs -o size=4m,mode=700 tmpfs "$VMM_ROOT/volumes"
        "$VMM_BINARY" run --rm -v data:/data busybox:test sh -c 'echo before > /data/file'
        head -c 4m /dev/zero > "$VMM_ROOT/volumes/fill" 2> /dev/null || true
        write="dd if=/dev/zero of=/data/big bs=64k count=64 conv=fsync 2>&1 | grep -o 'Input/output error'; echo lives"
        "$VMM_BINARY" run --rm -v data:/data busybox:test sh -c "$write"
        rm "$VMM_ROOT/volumes/fill"
        "$VMM_BINARY" run --rm -v data:/data busybox:test cat /data/file"#;

    let done = home
        .fixture
        .in_private_mounts(script)
        .limit(MACHINE_LIMIT)
        .run();

    done.code_is(0)
        .stdout_is("Input/output error\nlives\nbefore\n");
}

#[test]
fn a_volume_that_was_made_larger_has_more_room() {
    let home = Home::new();
    let create = ["volume", "create", "-o", "size=64m", "data"];
    home.vmm(&create).run().succeeded();
    let room = "df -m /data | awk 'END { print ($2 > 100) }'";
    home.done(&["-v", "data:/data"], room).stdout_is("0\n");

    home.vmm(&["volume", "resize", "data", "256m"])
        .run()
        .succeeded();

    home.done(&["-v", "data:/data"], room).stdout_is("1\n");
    home.vmm(&["volume", "resize", "data", "64m"])
        .run()
        .failed(&["data", "only grows"])
        .helped();
}

#[test]
fn a_volume_grows_while_a_machine_has_it() {
    let home = Home::new();
    let create = ["volume", "create", "-o", "size=64m", "data"];
    home.vmm(&create).run().succeeded();
    home.done(&["-d", "--name", "web", "-v", "data:/data"], "sleep 1000")
        .succeeded();
    let room = "df -m /data | awk 'END { print ($2 > 100) }'";
    let asked = || home.vmm(&["exec", "web", "sh", "-c", room]).run();
    asked().stdout_is("0\n");

    let grown = home.vmm(&["volume", "resize", "data", "256m"]).run();

    grown.succeeded().stdout_is("data\n").stderr_is("");
    asked().stdout_is("1\n");
    home.vmm(&["volume", "resize", "data", "128m"])
        .run()
        .failed(&["data", "only grows"])
        .helped();
    home.vmm(&["rm", "-f", "web"]).run().succeeded();
    home.fixture.nothing_runs();
}

#[test]
fn volumes_are_listed_chosen_and_pruned() {
    let home = Home::new();
    for arguments in [
        &["--label", "of=web", "web-data"][..],
        &["--label", "of=db", "db-data"],
        &[],
    ] {
        let create = [&["volume", "create"], arguments].concat();
        home.vmm(&create).run().succeeded();
    }
    let created = home.vmm(&[
        "create",
        "--name",
        "db",
        "-v",
        "db-data:/data",
        IMAGE,
        "true",
    ]);
    created.run().succeeded();
    let listed = |filters: &[&str]| {
        let list = [&["volume", "ls", "--format", "{{.Name}}", "-f"], filters].concat();
        home.vmm(&list).run().stdout_text()
    };

    assert_eq!(listed(&["name=data"]), "db-data\nweb-data\n");
    assert_eq!(listed(&["label=of=web"]), "web-data\n");
    assert_eq!(listed(&["dangling=false"]), "db-data\n");
    assert_eq!(listed(&["driver=other"]), "");
    home.vmm(&["volume", "ls", "-f", "size=1"])
        .run()
        .failed(&["size=1"])
        .helped();
    let having = |volume: &str| {
        let format = "{{.Names}} {{.Mounts}} {{.LocalVolumes}}";
        let list = ["ps", "-a", "-f", volume, "--format", format];
        home.vmm(&list).run().stdout_text()
    };
    assert_eq!(having("volume=db-data"), "db db-data 1\n");
    assert_eq!(having("volume=/data"), "db db-data 1\n");
    assert_eq!(having("volume=web-data"), "");
    let table = home.vmm(&["volume", "ls", "-f", "name=web"]).run();
    table.stdout_is("DRIVER   VOLUME NAME\nlocal    web-data\n");
    home.vmm(&["volume", "prune"])
        .input("n\n")
        .run()
        .code_is(1)
        .stderr_has("not confirmed");
    let pruned = home.vmm(&["volume", "prune", "--all", "-f"]).run();
    pruned
        .succeeded()
        .stdout_has("Deleted Volumes:\n")
        .stdout_has("web-data\n");
    assert_eq!(home.volumes(), "db-data\n");
    home.vmm(&["volume", "rm", "nobody"])
        .run()
        .failed(&["no such volume: nobody"])
        .helped();
    home.vmm(&["volume", "rm", "-f", "nobody"])
        .run()
        .succeeded();
    home.vmm(&["system", "df"])
        .run()
        .succeeded()
        .stdout_has("Local Volumes   1       1");
}

#[test]
fn what_a_volume_held_can_be_put_back() {
    let home = Home::new();
    home.done(&["-v", "data:/data"], "echo before > /data/file")
        .succeeded();
    let copy = ["volume", "snapshot", "data", "copy"];
    home.vmm(&copy).run().succeeded().stdout_is("copy\n");
    home.done(&["-v", "data:/data"], "echo after > /data/file")
        .succeeded();
    home.vmm(&copy)
        .run()
        .failed(&["'copy' exists already"])
        .helped();

    home.vmm(&["volume", "restore", "data", "copy"])
        .run()
        .succeeded();

    home.done(
        &["-v", "data:/data", "-v", "copy:/copy"],
        "cat /data/file /copy/file",
    )
    .code_is(0)
    .stdout_is("before\nbefore\n");
}

#[test]
fn eight_volumes_are_eight_file_systems() {
    let home = Home::new();
    let volumes: Vec<String> = (1..=8).map(|n| format!("v{n}:/v/{n}")).collect();
    let mut options = Vec::new();
    for volume in &volumes {
        options.extend(["-v", volume]);
    }
    let script = "for n in 1 2 3 4 5 6 7 8; do echo $n > /v/$n/file; done; cat /v/*/file | tr -d '\\n'; stat -c %d /v/* | sort -u | wc -l";

    home.done(&options, script)
        .code_is(0)
        .stdout_is("123456788\n")
        .stderr_is("");
}

#[test]
fn a_disk_of_the_host_is_mounted_and_one_that_is_cut_off_fails_and_not_the_machine() {
    let home = Home::new();
    let image = home.disk_image("disk.img");
    let path = image.to_str().expect("paths here are text");
    let disk = format!("{path}:/disk");

    home.done(&["--disk", &disk], "echo text > /disk/file")
        .code_is(0)
        .stderr_is("");
    home.done(&["--disk", &format!("{disk}:ro")], "cat /disk/file")
        .code_is(0)
        .stdout_is("text\n");
    let script = "echo ready; read line; dd if=/dev/zero of=/disk/big bs=64k count=64 conv=fsync 2>&1 >/dev/null | grep -o 'Input/output error\\|Read-only.*'; cat /disk/big > /dev/null; echo lives";
    let mut running = home
        .run(&["-i", "--disk", &format!("{disk}:ro")], script)
        .open_input()
        .start();
    running.wait_for_stdout("ready\n");
    File::options()
        .write(true)
        .open(&image)
        .and_then(|file| file.set_len(1 << 20))
        .expect("it can be cut off");
    running.write(b"go\n");
    running.finish().code_is(0).stdout_has("lives\n");
}

/// An ext4 file system whose machine died while it grew: the journal has what makes it 300 MiB large, and nothing of that has got to its
/// place. The disk is larger still.
fn interrupted_growth(fixture: &Fixture) -> PathBuf {
    const SCRIPT: &str = r#"
        set -eu; cd "$1"; PATH=$PATH:/usr/sbin:/sbin
        truncate -s 32M disk
        mke2fs -q -F -t ext4 -b 4096 -J size=8 -E resize=268435456 disk
        cp --sparse=always disk grown
        truncate -s 300M grown
        e2fsck -fp grown > fsck.out
        resize2fs grown > resize.out 2>&1
        cmp -l disk grown 2> cmp.err | awk '{ print int(($1 - 1) / 4096) }' | uniq > blocks || true
        cp --sparse=always grown disk.new
        dd if=disk of=disk.new bs=1M conv=notrunc status=none
        { echo jo
          while read -r block; do
              dd if=grown of="block.$block" bs=4096 skip="$block" count=1 status=none
              echo "jw -b $block block.$block"
          done < blocks
          echo jc; } > commands
        debugfs -w -f commands disk.new > debugfs.out 2>&1
        truncate -s 400M disk.new
        dumpe2fs -h disk.new 2>&1 | grep -q needs_recovery"#;
    let directory = fixture.path("interrupted");
    fs::create_dir(&directory).expect("the fixture has room");
    let made = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .arg(&directory)
        .output()
        .expect("there is a shell");
    assert!(made.status.success(), "{made:?}");
    directory.join("disk.new")
}

#[test]
fn a_disk_whose_machine_died_while_it_grew_is_as_large_as_it_was_to_be() {
    let home = Home::new();
    let disk = interrupted_growth(&home.fixture);
    let disk = format!("{}:/disk", disk.display());
    let script =
        "df -m /disk | awk 'END { print ($2 > 350) }'; fallocate -l 330M /disk/big; echo $?";

    for _ in 0..2 {
        home.done(&["--disk", &disk], script)
            .code_is(0)
            .stdout_is("1\n0\n")
            .stderr_is("");
    }
}

#[test]
fn a_disk_of_the_host_is_a_device_if_it_is_to_be_one() {
    let home = Home::new();
    let disk = home.fixture.file("raw", [b'a'; 8192]);
    let disk = disk.to_str().expect("paths here are text");
    let script = "head -c 4 /dev/data; echo; printf bbbb | dd of=/dev/data conv=notrunc,fsync 2>/dev/null || echo refused; head -c 4 /dev/data";

    let written = home.done(&["--disk", &format!("{disk}:/dev/data")], script);
    let read = home.done(&["--disk", &format!("{disk}:/dev/data:ro")], script);

    written.code_is(0).stdout_is("aaaa\nbbbb").stderr_is("");
    read.code_is(0)
        .stdout_is("bbbb\nrefused\nbbbb")
        .stderr_is("");
    assert!(fs::read(disk).unwrap().starts_with(b"bbbba"));
}

#[test]
fn a_disk_that_is_none_is_refused() {
    let home = Home::new();
    let refused = |disk: &str, names: &[&str]| {
        let options = ["--disk", disk];
        home.done(&options, "true").refused(names);
    };

    refused("/no/such/file:/disk", &["/no/such/file"]);
    refused("/etc:/disk", &["/etc"]);
    refused(
        "/dev/null:/disk",
        &["/dev/null", "neither a file nor a block device"],
    );
    let empty = home.fixture.file("empty", "");
    refused(&format!("{}:/disk", empty.display()), &["empty"]);
    let mut text = File::create(home.fixture.path("text")).unwrap();
    text.write_all(&[b'x'; 1 << 16]).unwrap();
    let text = home.fixture.path("text");
    home.done(&["--disk", &format!("{}:/disk", text.display())], "true")
        .code_is(125)
        .stderr_has("mounting the volume on /dev/vda");
    assert_eq!(home.fixture.machines_listing(), "");
}

#[test]
fn a_damaged_volume_is_named_and_nothing_starts() {
    let home = Home::new();
    home.vmm(&["volume", "create", "data"]).run().succeeded();
    let record = home.fixture.root().join("volumes/data/volume.json");
    let whole = fs::read(&record).unwrap();
    let refused = |names: &[&str]| {
        home.done(&["-v", "data:/data"], "true")
            .refused(names)
            .helped();
    };

    fs::write(&record, r#"{"format":99}"#).unwrap();
    refused(&["data", "format 99"]);
    fs::write(&record, "{").unwrap();
    refused(&["data", "volume.json"]);
    fs::write(&record, whole).unwrap();
    let disk = File::options()
        .write(true)
        .open(home.fixture.root().join("volumes/data/disk"))
        .unwrap();
    disk.set_len(4096).unwrap();
    refused(&["data", "4096 bytes long"]);

    home.vmm(&["volume", "ls"])
        .run()
        .succeeded()
        .stdout_has("data");
    home.vmm(&["volume", "rm", "data"]).run().succeeded();
}

#[test]
fn a_damaged_file_system_is_said_and_the_next_volume_is_fine() {
    let home = Home::new();
    home.done(&["-v", "data:/data"], "true").succeeded();
    let disk = File::options()
        .write(true)
        .open(home.fixture.root().join("volumes/data/disk"))
        .unwrap();
    disk.write_all_at(&[0xff; 4096], 0).unwrap();

    let done = home.done(&["-v", "data:/data"], "true");

    done.code_is(125)
        .stderr_has("mounting the volume on /dev/vda");
    home.done(&["-v", "other:/data"], "echo fine")
        .stdout_is("fine\n");
}

#[test]
fn a_machine_with_volumes_is_not_written_down() {
    let home = Home::new();
    home.done(&["-d", "--name", "web", "-v", "data:/data"], "sleep 1000")
        .succeeded();
    let file = home.fixture.path("web.snapshot");

    let refused = home
        .vmm(&[
            "snapshot",
            "web",
            file.to_str().expect("paths here are text"),
        ])
        .run();
    home.vmm(&["rm", "-f", "web"]).run().succeeded();

    refused.failed(&["volumes"]);
    assert!(!file.exists());
}

#[test]
fn a_limited_volume_takes_its_time() {
    let home = Home::new();
    let options = ["-v", "data:/data", "--device-write-bps", "data:1m"];
    let script = "cd /data; a=$(date +%s); dd if=/dev/zero of=x bs=1M count=4 conv=fsync 2>/dev/null; b=$(date +%s); [ $((b - a)) -ge 3 ] && echo slow";

    home.done(&options, script).code_is(0).stdout_is("slow\n");
    home.done(
        &["-v", "data:/data", "--device-read-iops", "other:5"],
        "true",
    )
    .refused(&["other"])
    .helped();
}

#[test]
fn machines_that_are_kept_have_a_volume_one_after_the_other() {
    let home = Home::new();
    let run = |script: &str| {
        let command = ["run", "-v", "data:/data", IMAGE, "sh", "-c", script];
        home.vmm(&command).run()
    };

    run("echo one > /data/file").succeeded();
    run("echo two >> /data/file").succeeded();
    let third = run("cat /data/file");
    home.vmm(&["volume", "snapshot", "data", "copy"])
        .run()
        .succeeded();

    third.code_is(0).stdout_is("one\ntwo\n").stderr_is("");
}

#[test]
fn what_a_person_has_named_and_what_others_mount_is_never_removed_with_a_machine() {
    let home = Home::with_declared_volume();
    let made = home.vmm(&["volume", "create"]).run();
    let named = made.succeeded().stdout_text().trim().to_owned();
    let volume = format!("{named}:/mine");
    let first = ["run", "--name", "first", "-v", &volume, IMAGE, "true"];
    home.vmm(&first).run().succeeded();
    let other = ["create", "--name", "other", "--volumes-from", "first"];
    home.vmm(&[&other[..], &[IMAGE, "cat", "/srv/data/file"]].concat())
        .run()
        .succeeded();

    home.vmm(&["rm", "-v", "first"]).run().succeeded();

    assert!(home.volumes().contains(&named));
    home.vmm(&["start", "-a", "other"])
        .run()
        .code_is(0)
        .stdout_is("of the image\n");
}
