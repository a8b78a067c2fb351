//! Clones with volumes and disks of the host: a base was frozen with disks on which nothing was, and each clone has its own there.

use std::fs;

use serde_json::json;
use tests::image_maker::{ImageMaker, Layer};

use super::{Home, Ran};

/// An image that says that a directory of its own is a volume.
const DECLARED: &str = "declared:test";

/// A home with a base for machines with so many disks.
fn with_base(disks: &str) -> Home {
    let home = Home::new();
    home.prepare(&["--base", "--disks", disks])
        .succeeded()
        .stdout_is("prepared\n");
    home
}

impl Home {
    fn load_declared(&self) {
        let layer = Layer::new()
            .directory("srv")
            .directory("srv/data")
            .file("srv/data/file", "of the image\n");
        let image = ImageMaker::busybox()
            .layer(layer)
            .config("Volumes", json!({ "/srv/data": {} }))
            .name(DECLARED)
            .layout()
            .archive();
        let file = self.fixture.file("declared.oci", image);
        self.fixture.load(&file).run().succeeded();
    }

    fn sh(&self, options: &[&str], script: &str) -> Ran {
        self.run(options, &["sh", "-c", script])
    }
}

#[test]
fn the_second_machine_with_a_volume_is_a_clone_that_reads_what_the_first_wrote() {
    let home = Home::new();

    let first = home.sh(&["-v", "data:/data"], "echo text > /data/file");
    home.fixture.nothing_runs();
    let made = home.list();
    let second = home.run(&["-v", "data:/data"], &["cat", "/data/file"]);
    let reader = home.sh(
        &["-v", "data:/data:ro"],
        "cat /data/file; cat /sys/block/vda/ro; echo no > /data/more",
    );

    first.booted().says("");
    assert_eq!(made.len(), 1, "{made:?}");
    assert!(made[0]["image_id"].is_null(), "{made:?}");
    second.is_clone().says("text\n");
    reader.is_clone();
    reader
        .done
        .code_is(1)
        .stdout_is("text\n1\n")
        .stderr_has("Read-only file system");
    // The base has one disk, and so serves no machine that has another number of them.
    home.run(&["-v", "data:/data", "-v", "more:/more"], &["true"])
        .booted();
}

#[test]
fn a_disk_of_the_host_that_is_only_read_takes_no_writes_of_a_clone() {
    let home = with_base("1");
    let disk = home.fixture.file("raw", [b'a'; 8192]);
    let disk = disk.to_str().expect("paths here are text");
    let options = ["--privileged", "--disk", &format!("{disk}:/dev/data:ro")];
    let script = "cat /sys/block/vda/ro /sys/block/vda/size; head -c 4 /dev/data; echo; blockdev --setrw /dev/data; \
                  printf bbbb | dd of=/dev/data conv=notrunc,fsync 2>/dev/null || echo refused";

    let ran = home.sh(&options, script);

    ran.is_clone();
    ran.done.code_is(0).stdout_is("1\n16\naaaa\nrefused\n");
    assert_eq!(fs::read(disk).unwrap(), [b'a'; 8192]);
}

#[test]
fn two_volumes_of_clones_are_not_exchanged() {
    let home = with_base("2");
    let options = ["volume", "create", "--opt", "size=64m", "small"];
    home.vmm(&options).run().succeeded();

    let first = home.sh(
        &["-v", "small:/small", "-v", "large:/large"],
        "echo small > /small/name; echo large > /large/name",
    );
    let second = home.sh(
        &["-v", "large:/large", "-v", "small:/small"],
        "cat /small/name /large/name; cat /sys/block/vda/size /sys/block/vdb/size",
    );

    first.is_clone().says("");
    second.is_clone().says("small\nlarge\n20971520\n131072\n");
}

#[test]
fn machines_of_an_image_that_declares_a_volume_are_clones() {
    let home = with_base("1");
    home.load_declared();
    home.prepare(&["--storage", "10g", "--base", "--disks", "1"])
        .succeeded();
    let run = |options: &[&str]| {
        let options = [&["run", "--timings=json"], options].concat();
        let command = [DECLARED, "cat", "/srv/data/file"];
        Ran::of(home.vmm(&[&options[..], &command].concat()).run())
    };

    run(&["--rm"]).is_clone().says("of the image\n");
    run(&[]).is_clone().says("of the image\n");
}

#[test]
fn a_clone_may_have_a_volume_beside_a_directory_of_the_host() {
    let home = Home::new();
    home.prepare(&["--base", "--shares", "--disks", "1"])
        .succeeded();
    let directory = home.fixture.path("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "of the host\n").unwrap();
    let share = format!("{}:/host", directory.display());

    home.sh(
        &["-v", &share, "-v", "data:/data"],
        "cp /host/file /data/; cat /data/file",
    )
    .is_clone()
    .says("of the host\n");
}

#[test]
fn the_limits_of_a_clones_volume_hold() {
    let home = with_base("1");
    let options = ["-v", "data:/data", "--device-write-bps", "data:1m"];
    let script = "cd /data; a=$(date +%s); dd if=/dev/zero of=x bs=1M count=4 conv=fsync 2>/dev/null; b=$(date +%s); [ $((b - a)) -ge 3 ] && echo slow";

    home.sh(&options, script).is_clone().says("slow\n");
}

#[test]
fn a_clone_on_two_processors_has_its_volume() {
    let home = Home::new();
    home.prepare(&["--cpus", "2", "--base", "--disks", "1"])
        .succeeded();

    home.sh(
        &["--cpus", "2", "-v", "data:/data"],
        "echo text > /data/file; cat /data/file; nproc",
    )
    .is_clone()
    .says("text\n2\n");
}
