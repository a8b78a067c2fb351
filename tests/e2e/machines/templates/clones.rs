//! A clone is what a booted machine is, only sooner.

use std::fs::{self, File};

use rustix::process::Signal;
use tests::guest_image::GuestImage;
use tests::image_maker::{ImageMaker, Layer};
use tests::{Finished, binary};

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
fn an_images_template_serves_all_that_is_run_in_it() {
    let home = Home::prepared();
    let run = |options: &[&str], script: &str, said: &str| {
        home.run(options, &["sh", "-c", script])
            .is_clone()
            .says(said);
    };

    run(
        &["--read-only"],
        "touch /x 2>/dev/null || echo refused",
        "refused\n",
    );
    run(
        &["--user", "1000:7"],
        "id -u; id -g; touch /x 2>/dev/null || echo refused",
        "1000\n7\nrefused\n",
    );
    run(&["--workdir", "/made/here"], "pwd", "/made/here\n");
    run(&["--hostname", "called-so"], "hostname", "called-so\n");
    run(
        &["-e", "WORD=one two"],
        "echo $WORD; echo $HOME",
        "one two\n/root\n",
    );
    run(&["--entrypoint", "echo"], "x", "sh -c x\n");
    home.run(&[], &["not-a-program"])
        .is_clone()
        .done
        .code_is(127);

    assert_eq!(home.ids().len(), 1);
}

#[test]
fn a_base_serves_other_limits_and_other_images() {
    let home = Home::new();
    home.prepare(&["--base"])
        .succeeded()
        .stdout_is("prepared\n");
    let base = home.list().remove(0);
    assert!(base["image_id"].is_null(), "{base}");
    let other = ImageMaker::busybox()
        .layer(Layer::new().file("etc/motd", "another image\n"))
        .name("other:test");
    let file = home.fixture.file("other.oci", other.layout().archive());
    home.fixture.load(&file).run().succeeded();
    // Or each run would leave a template of its image.
    let making = File::open(home.directory().join("making")).unwrap();
    making.lock().unwrap();

    let plain = home.run(&[], &["echo", "hello"]);
    let limited = home.run(&["--memory", "120m"], &["cat", "/sys/fs/cgroup/memory.max"]);
    let named = Ran::of(
        home.vmm(&[
            "run",
            "--rm",
            "--timings=json",
            "other:test",
            "--",
            "cat",
            "/etc/motd",
        ])
        .run(),
    );

    plain.is_clone().says("hello\n");
    limited.is_clone().says("125829120\n");
    named.is_clone().says("another image\n");
    home.fixture.nothing_runs();
    assert_eq!(home.ids(), [base["id"].as_str().unwrap()]);
}

#[test]
fn a_template_of_another_image_or_of_other_limits_is_not_used() {
    let home = Home::prepared();
    let id = home.list().remove(0);
    assert!(id["image_id"].is_string(), "{id}");
    let other = ImageMaker::busybox().name("other:test");
    let file = home.fixture.file("other.oci", other.layout().archive());
    home.fixture.load(&file).run().succeeded();

    let named = home
        .vmm(&[
            "run",
            "--rm",
            "--timings=json",
            "other:test",
            "--",
            "ls",
            "/bin/probe",
        ])
        .run();
    let limited = home.run(&["--memory", "120m"], &["cat", "/sys/fs/cgroup/memory.max"]);

    Ran::of(named).booted().done.code_is(1);
    limited.booted().says("125829120\n");
    home.fixture.nothing_runs();
}

#[test]
fn a_template_of_another_guest_image_is_left_to_that_one() {
    let home = Home::prepared();
    let before = home.ids();
    let other = GuestImage::copied(&home.fixture);
    other.lengthen_agent();
    let run = || {
        let run = home.run_invocation(&[], &["echo", "hello"]);
        Ran::of(run.env("VMM_GUEST_DIR", other.directory()).run())
    };

    run().booted().says("hello\n");
    home.fixture.nothing_runs();
    run().is_clone().says("hello\n");

    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
    let ids = home.ids();
    assert!(ids.len() == 3 && ids.contains(&before[0]), "{ids:?}");
}

#[test]
fn a_run_takes_the_template_of_its_image_before_the_one_for_all() {
    let home = Home::new();
    home.prepare(&["--base"]).succeeded();
    home.run(&[], &["true"]).is_clone().says("");
    home.fixture.nothing_runs();
    let list = home.list();
    let of_image = list
        .iter()
        .find(|template| template["image_id"].is_string())
        .expect("a run from a base leaves a template of its image");
    let id = of_image["id"].as_str().unwrap();

    let running = home
        .run_invocation(&["-i"], &["sh", "-c", "echo ready; read word"])
        .open_input()
        .start();
    running.wait_for_stdout("ready\n");
    let used: Vec<_> = home
        .list()
        .into_iter()
        .filter(|template| template["in_use"] == true)
        .map(|template| template["id"].clone())
        .collect();
    assert_eq!(used, [id]);
    Ran::of(running.finish()).is_clone();
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
            "--rm",
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

/// On a terminal, timings are among what the workload says.
#[track_caller]
fn was_a_clone(done: &Finished) {
    done.stdout_has("\"step\":\"clone\"")
        .stdout_lacks("\"step\":\"boot\"");
}

#[test]
fn a_terminal_in_a_clone_has_the_size_of_the_one_outside_and_follows_it() {
    let home = Home::prepared();
    let script = "tty; echo $TERM; stty size; trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done";

    let terminal = home.on_terminal(&["-it"], &["sh", "-c", script]);
    terminal.wait_for("ready");
    assert!(terminal.settings_differ(), "keys go to the workload raw");
    terminal.resize(44, 111);
    let done = terminal.finish();

    done.code_is(6)
        .stdout_has("/dev/pts/0\r\nxterm\r\n33 99\r\nready\r\n")
        .stdout_has("44 111\r\n");
    was_a_clone(&done);
    home.fixture.nothing_runs();
}

#[test]
fn keys_reach_a_shell_in_a_clone_and_end_it() {
    let home = Home::prepared();

    let mut terminal = home.on_terminal(&["-it"], &["sh"]);
    terminal.wait_for("# ");
    terminal.press(b"trap 'echo got INT' INT; echo $((6 * 7)) and\r");
    terminal.wait_for("42 and");
    terminal.press(b"\x03");
    terminal.wait_for("got INT");
    terminal.press(b"echo begin; cat; exit 9\r");
    terminal.wait_for("begin\r\n");
    terminal.press(b"\x04");
    let done = terminal.finish();

    done.code_is(9);
    was_a_clone(&done);
    home.fixture.nothing_runs();
}

#[test]
fn a_terminal_without_keys_is_in_a_clone_what_it_is_in_a_machine_that_booted() {
    let home = Home::prepared();
    let script = "tty; echo out; echo err >&2; exit 5";
    let run = |options: &[&str]| home.run(&[options, &["-t"]].concat(), &["sh", "-c", script]);

    let warm = run(&[]);
    let cold = run(&["--no-template"]);

    warm.is_clone()
        .done
        .code_is(5)
        .stdout_is("/dev/pts/0\r\nout\r\nerr\r\n");
    cold.booted()
        .done
        .code_is(5)
        .stdout_is(&warm.done.stdout_text());
    assert_eq!(warm.complaints, [""; 0], "{:?}", warm.done);
}
