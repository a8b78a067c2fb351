//! Runs of images of the store, and of a real distribution's programs.

use tests::host::bytes_read_so_far;
use tests::process::LARGE_IMPORT_LIMIT;
use tests::{Fixture, real_images};

use super::busybox;

#[test]
fn an_image_of_the_store_runs_by_name_and_by_id() {
    let fixture = super::with_busybox();
    fixture
        .run_name("busybox:test", &[], &[])
        .run()
        .code_is(0)
        .stdout_is("hello\n")
        .stderr_is("");
    let ids = fixture.vmm(["images", "--quiet"]).run().stdout_text();
    fixture
        .run_name(ids.trim(), &[], &["echo", "by id"])
        .run()
        .code_is(0)
        .stdout_is("by id\n")
        .stderr_is("");
}

#[test]
fn python_computes_and_prints_and_its_second_run_reads_next_to_nothing() {
    let fixture = Fixture::with_machines();
    let image = real_images::python3();
    let script = "import hashlib, sys; print(sum(n * n for n in range(100))); sys.exit(hashlib.sha256(b'').digest()[0] % 8)";
    let first = fixture
        .run(&image, &[], &["python3", "-c", script])
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    // 0xe3, the first byte of the digest of nothing, is 3 modulo 8.
    first.code_is(3).stdout_is("328350\n").stderr_is("");

    let listing = fixture.store_listing();
    let before = bytes_read_so_far();
    let second = fixture
        .run(&image, &[], &["python3", "-c", "print('again')"])
        .run();
    let read = bytes_read_so_far() - before;
    second.code_is(0).stdout_is("again\n").stderr_is("");
    assert!(read < 4 << 20, "the second run read {read} bytes");
    tests::snapshot::assert_unchanged(&listing, &fixture.store_listing());
}

#[test]
fn two_machines_run_side_by_side_from_one_store() {
    let fixture = super::with_busybox();
    let start = || {
        fixture
            .run_name(
                "busybox:test",
                &["-i"],
                &["sh", "-c", "echo ready; read word; echo $word"],
            )
            .open_input()
            .start()
    };
    let (mut one, mut two) = (start(), start());
    one.wait_for_stdout("ready\n");
    two.wait_for_stdout("ready\n");
    two.write(b"two\n");
    one.write(b"one\n");
    one.finish().code_is(0).stdout_is("ready\none\n");
    two.finish().code_is(0).stdout_is("ready\ntwo\n");
}

#[test]
fn timings_say_where_the_time_goes() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let told = fixture.run(&image, &["--timings"], &[]).run();
    told.code_is(0).stdout_is("hello\n").stderr_has("ms");
    assert!(told.stderr_text().lines().count() >= 4, "{told:?}");
    let told = fixture.run(&image, &["--timings=json"], &[]).run();
    let steps: serde_json::Value =
        serde_json::from_slice(&told.code_is(0).stderr).expect("one JSON document");
    assert!(steps.is_object(), "{steps}");
}
