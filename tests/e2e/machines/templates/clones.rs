//! A clone is what a booted machine is, only sooner.

use std::fs;

use rustix::process::Signal;
use tests::binary;
use tests::image_maker::{ImageMaker, Layer};

use super::{Home, Ran};

#[test]
fn a_clone_has_the_streams_and_the_exit_code_of_a_machine_that_booted() {
    let home = Home::prepared();
    let script = "cat; echo out; echo err >&2; id -u; pwd; env | sort; exit 42";
    let run = |options: &[&str]| {
        let invocation = home.run_invocation(&["-i", "--hostname", "same"], &["sh", "-c", script]);
        Ran::of(
            options
                .iter()
                .fold(invocation, |run, name| run.env(name, "1"))
                .input("in\n")
                .run(),
        )
    };

    let warm = run(&[]);
    let cold = run(&["VMM_NO_TEMPLATE"]);

    warm.is_clone()
        .done
        .code_is(42)
        .stdout_has("in\nout\n0\n/\n");
    cold.booted().done.code_is(42);
    assert_eq!(warm.done.stdout_text(), cold.done.stdout_text());
    assert_eq!(warm.complaints, ["err"], "{:?}", warm.done);
    assert_eq!(warm.complaints, cold.complaints);
    home.fixture.nothing_runs();
}

#[test]
fn one_template_serves_other_options_other_limits_and_other_images() {
    let home = Home::prepared();
    let other = ImageMaker::busybox()
        .layer(Layer::new().file("etc/motd", "another image\n"))
        .name("other:test");
    let file = home.fixture.file("other.oci", other.layout().archive());
    home.fixture.load(&file).run().succeeded();

    let read_only = home.run(
        &["--read-only"],
        &["sh", "-c", "touch /x 2>/dev/null || echo refused"],
    );
    let limited = home.run(&["--memory", "120m"], &["cat", "/sys/fs/cgroup/memory.max"]);
    let named = Ran::of(
        home.vmm(&[
            "run",
            "--timings=json",
            "other:test",
            "--",
            "cat",
            "/etc/motd",
        ])
        .run(),
    );

    read_only.is_clone().says("refused\n");
    limited.is_clone().says("125829120\n");
    named.is_clone().says("another image\n");
    assert_eq!(home.ids().len(), 1);
}

#[test]
fn a_machine_of_another_shape_has_a_template_of_its_own() {
    let home = Home::prepared();
    home.prepare(&["--cpus", "2"])
        .succeeded()
        .stdout_is("prepared\n");

    home.run(&["--cpus", "2"], &["nproc"])
        .is_clone()
        .says("2\n");
    home.run(&[], &["nproc"]).is_clone().says("1\n");

    let mut shapes: Vec<_> = home
        .list()
        .iter()
        .map(|template| template["vcpus"].as_u64())
        .collect();
    shapes.sort_unstable();
    assert_eq!(shapes, [Some(1), Some(2)]);
}

#[test]
fn a_machine_boots_with_a_kernel_of_its_own_a_kernel_that_talks_and_where_it_is_asked_to() {
    let home = Home::prepared();
    let kernel = binary::guest_directory().join("current/vmlinux");
    let kernel = kernel.to_str().expect("paths here are text");

    home.run(&["--kernel", kernel], &["echo", "hello"])
        .booted()
        .says("hello\n");
    home.run(&["--no-template"], &["echo", "hello"])
        .booted()
        .says("hello\n");
    let talking = Ran::of(
        home.vmm(&[
            "-vv",
            "run",
            "--timings=json",
            super::IMAGE,
            "--",
            "echo",
            "hello",
        ])
        .run(),
    );
    talking.booted().done.succeeded().stdout_is("hello\n");

    assert_eq!(home.ids().len(), 1, "none of them leaves a template");
    home.fixture.nothing_runs();
}

#[test]
fn a_clone_passes_signals_on() {
    let home = Home::prepared();
    let script = "trap 'echo got TERM; exit 21' TERM; echo ready; while :; do sleep 0.1; done";
    let running = home.run_invocation(&[], &["sh", "-c", script]).start();
    running.wait_for_stdout("ready\n");
    running.signal(Signal::TERM);
    Ran::of(running.finish())
        .is_clone()
        .done
        .code_is(21)
        .stdout_is("ready\ngot TERM\n");
    home.fixture.nothing_runs();
}

#[test]
fn clones_leave_their_template_as_it_was_and_do_not_see_each_other() {
    let home = Home::prepared();
    let memory = home.template().join("memory");
    let before = fs::read(&memory).unwrap();
    let script = "echo secret of one > /kept; echo secret of one > /dev/shm/kept; probe allocate 16 | tail -1";
    home.run(&[], &["sh", "-c", script])
        .is_clone()
        .says("all 16 MiB touched\n");

    let next = "cat /kept /dev/shm/kept 2>/dev/null; echo nothing";
    home.run(&[], &["sh", "-c", next])
        .is_clone()
        .says("nothing\n");

    let is_the_same = before == fs::read(&memory).unwrap();
    assert!(is_the_same, "a clone's writes are its own");
}

#[test]
fn two_clones_of_one_template_run_side_by_side() {
    let home = Home::prepared();
    let start = || {
        home.run_invocation(&["-i"], &["sh", "-c", "echo ready; read word; echo $word"])
            .open_input()
            .start()
    };
    let (mut one, mut two) = (start(), start());
    one.wait_for_stdout("ready\n");
    two.wait_for_stdout("ready\n");
    two.write(b"two\n");
    one.write(b"one\n");
    Ran::of(one.finish()).is_clone().says("ready\none\n");
    Ran::of(two.finish()).is_clone().says("ready\ntwo\n");
}
