//! What the workload finds around itself: variables, directory, user, host name, root file system, devices.

use serde_json::json;
use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

use super::{busybox, busybox_with_probe};

#[test]
fn flags_win_over_env_files_and_those_over_the_image() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox().config(
        "Env",
        json!(["PATH=/bin", "A=image", "B=image", "C=image", "D=a=b c"]),
    );
    let image = fixture.file("env.oci", maker.layout().archive());
    let file = fixture.file("env", "# a comment\n\nB=file\nC=file\nFROM_HOST\n");
    let file = file.to_str().unwrap();
    let done = fixture
        .run(
            &image,
            &[
                "--env-file",
                file,
                "--env",
                "C=flag",
                "--env",
                "EMPTY=",
                "--env",
                "TAKEN",
            ],
            &["env"],
        )
        .env("FROM_HOST", "host one")
        .env("TAKEN", "host two")
        .env("UNASKED", "never")
        .run();
    done.code_is(0).stderr_is("");
    done.stdout_has("A=image\n")
        .stdout_has("B=file\n")
        .stdout_has("C=flag\n")
        .stdout_has("D=a=b c\n");
    done.stdout_has("EMPTY=\n")
        .stdout_has("FROM_HOST=host one\n")
        .stdout_has("TAKEN=host two\n");
    done.stdout_has("PATH=/bin\n")
        .stdout_has("HOME=/root\n")
        .stdout_has("HOSTNAME=");
    done.stdout_lacks("UNASKED").stdout_lacks("VMM_ROOT");
}

#[test]
fn user_workdir_hostname_and_home_follow_the_flags() {
    let fixture = Fixture::with_machines();
    let flags = [
        "--user",
        "alice",
        "--workdir",
        "/home/alice",
        "--hostname",
        "wonderland",
    ];
    let script = "id -u; id -g; id -G; pwd; hostname; echo $HOME; touch mine && stat -c %u mine";
    let done = fixture
        .run(&busybox(&fixture), &flags, &["sh", "-c", script])
        .run();
    done.code_is(0)
        .stdout_is("1000\n1000\n1000 50\n/home/alice\nwonderland\n/home/alice\n1000\n")
        .stderr_is("");
}

#[test]
fn user_and_workdir_of_the_image_are_the_default_and_a_missing_workdir_is_made() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox()
        .config("User", json!("alice:staff"))
        .config("WorkingDir", json!("/made/here"));
    let image = fixture.file("user.oci", maker.layout().archive());
    let done = fixture
        .run(&image, &[], &["sh", "-c", "id -u; id -g; pwd"])
        .run();
    done.code_is(0)
        .stdout_is("1000\n50\n/made/here\n")
        .stderr_is("");
}

#[test]
fn a_numeric_user_needs_no_entry_in_the_image() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(
            &busybox(&fixture),
            &["--user", "4242:4343"],
            &["sh", "-c", "id -u; id -g"],
        )
        .run();
    done.code_is(0).stdout_is("4242\n4343\n").stderr_is("");
}

#[test]
fn entrypoint_and_command_join_as_docker_joins_them() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox()
        .layer(Layer::new().executable("bin/probe", tests::workload::program("probe")))
        .config(
            "Entrypoint",
            json!(["probe", "arguments", "from entrypoint"]),
        )
        .config("Cmd", json!(["from", "command"]));
    let image = fixture.file("entry.oci", maker.layout().archive());
    fixture
        .run(&image, &[], &[])
        .run()
        .code_is(0)
        .stdout_is("[from entrypoint]\n[from]\n[command]\n");
    fixture
        .run(&image, &[], &["typed", "-x", ""])
        .run()
        .code_is(0)
        .stdout_is("[from entrypoint]\n[typed]\n[-x]\n[]\n");
}

#[test]
fn a_typed_entrypoint_drops_the_images_command() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--entrypoint", "probe"],
            &["arguments", "a b", "$HOME"],
        )
        .run();
    done.code_is(0).stdout_is("[a b]\n[$HOME]\n").stderr_is("");
}

#[test]
fn a_read_only_root_takes_no_write_but_the_usual_places_do() {
    let fixture = Fixture::with_machines();
    let script = "touch /new 2>&1; touch /dev/shm/yes && echo shm; echo x > /dev/null && echo null";
    let done = fixture
        .run(&busybox(&fixture), &["--read-only"], &["sh", "-c", script])
        .run();
    done.code_is(0)
        .stdout_has("Read-only file system")
        .stdout_has("shm\n")
        .stdout_has("null\n");
}

#[test]
fn the_root_is_writable_and_forgotten_afterwards() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script =
        "echo changed >> /etc/passwd && rm /bin/yes && mkdir /new && tail -n 1 /etc/passwd";
    fixture
        .run(&image, &[], &["sh", "-c", script])
        .run()
        .code_is(0)
        .stdout_is("changed\n")
        .stderr_is("");
    let script =
        "tail -n 1 /etc/passwd | cut -d: -f1; test -e /bin/yes && test ! -e /new && echo whole";
    fixture
        .run(&image, &[], &["sh", "-c", script])
        .run()
        .code_is(0)
        .stdout_is("alice\nwhole\n")
        .stderr_is("");
}

#[test]
fn the_workload_finds_the_usual_mounts_and_devices() {
    let fixture = Fixture::with_machines();
    let script = "
        for mount in / /proc /sys /dev /dev/pts /dev/shm; do
            grep -q \" $mount \" /proc/mounts && echo mount $mount
        done
        for device in null zero full random urandom tty; do
            test -c /dev/$device && echo device $device
        done
        for link in fd stdin stdout stderr ptmx; do
            test -e /dev/$link && echo link $link
        done
        echo pid $$
        head -c 8 /dev/urandom | wc -c
        echo direct > /dev/stdout
        test -e /dev/kmsg && echo 'kmsg is visible'
        test -e /dev/mem && echo 'mem is visible'
        test -e /dev/pmem1 && echo 'pmem1 is visible'
        exit 0";
    let done = fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", script])
        .run();
    let expected = "mount /\nmount /proc\nmount /sys\nmount /dev\nmount /dev/pts\nmount /dev/shm\n\
                    device null\ndevice zero\ndevice full\ndevice random\ndevice urandom\ndevice tty\n\
                    link fd\nlink stdin\nlink stdout\nlink stderr\nlink ptmx\npid 1\n8\ndirect\n";
    done.code_is(0).stdout_is(expected).stderr_is("");
}

#[test]
fn orphans_are_reaped_and_do_not_hold_the_run_open() {
    let fixture = Fixture::with_machines();
    let script =
        "(sleep 1000 >/dev/null 2>&1 &) ; (true &) ; sleep 1; ps | grep -c '[Zz]ombie'; exit 4";
    fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", script])
        .run()
        .code_is(4)
        .stderr_is("");
    fixture.nothing_runs();
}
