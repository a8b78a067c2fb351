//! `vmm bench`: what it measures, and what it leaves.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tests::process::MACHINE_LIMIT;
use tests::{Fixture, Invocation, host};

use super::busybox;

/// Prepares a bench of an image whose temporary files can be counted.
fn bench(fixture: &Fixture, image: &Path, options: &[&str]) -> Invocation {
    let temporary = fixture.path("temporary");
    fs::create_dir_all(&temporary).expect("a directory can be made");
    fixture
        .vmm(["bench"])
        .args(options)
        .arg("--image")
        .arg(image)
        .env("TMPDIR", temporary)
        .limit(MACHINE_LIMIT)
}

#[track_caller]
fn nothing_is_left(fixture: &Fixture) {
    fixture.nothing_runs();
    let left: Vec<_> = fs::read_dir(fixture.path("temporary"))
        .expect("the directory can be listed")
        .collect();
    assert!(left.is_empty(), "files are left: {left:?}");
}

#[test]
fn a_bench_measures_a_start_and_claims_no_more() {
    let fixture = Fixture::with_machines();
    let page = fixture.path("page.html");
    let options = [
        "--engines",
        "vmm",
        "--figures",
        "start",
        "--runs",
        "1",
        "--concurrency",
        "1",
        "--json",
        "--html",
    ];
    let done = fixture
        .vmm(["bench"])
        .args(options)
        .arg(&page)
        .arg("--image")
        .arg(busybox(&fixture))
        .limit(MACHINE_LIMIT)
        .run();

    let findings: Value =
        serde_json::from_str(&done.code_is(0).stdout_text()).expect("the findings are JSON");
    let start = &findings["starts"][0];
    assert_eq!(start["engine"], "vmm cold");
    assert_eq!(start["runs"], 1);
    assert!(start["exit"]["p50_ms"].as_f64() > start["first_byte"]["p50_ms"].as_f64());
    assert_eq!(start["exit"]["p99_ms"], Value::Null);
    let warm = &findings["starts"][1];
    assert_eq!(warm["engine"], "vmm warm");
    assert!(warm["exit"]["p50_ms"].as_f64() < start["exit"]["p50_ms"].as_f64());
    assert_eq!(findings["not_measured"], Value::Array(Vec::new()));
    let page = fs::read_to_string(page).expect("the page is there");
    assert!(page.contains("<svg") && page.contains("vmm cold"));
    assert!(!fixture.machines_listing().contains("record"));
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let running = bench(&fixture, &image, &["--engines", "vmm"]).start();
    running.wait_for_stderr("vmm cold: looking");

    running.signal(Signal::INT);

    running
        .finish()
        .code_is(130)
        .stdout_is("")
        .stderr_has("\nvmm: the bench was interrupted by signal 2");
    nothing_is_left(&fixture);
}

#[test]
fn a_container_is_compared_with_the_same_program_outside() {
    host::require_tool("crun", "crun");
    let fixture = Fixture::new();
    let image = busybox(&fixture);
    let options = [
        "--engines",
        "crun",
        "--runs",
        "10",
        "--concurrency",
        "2",
        "--json",
    ];

    let done = bench(&fixture, &image, &options).run();

    nothing_is_left(&fixture);
    let findings: Value = serde_json::from_str(&done.stdout_text()).expect("the findings are JSON");
    if !rustix::process::geteuid().is_root() {
        let why = findings["not_measured"][0]["why"].as_str();
        assert!(why.is_some_and(|why| why.contains("root")));
        return;
    }
    done.code_is(0);
    let start = &findings["starts"][0];
    assert_eq!(start["concurrency"], 2);
    assert!(start["first_byte"]["p90_ms"].is_number());
    assert_eq!(start["first_byte"]["p99_ms"], Value::Null);
    assert!(findings["idle"][0]["pss_bytes"].as_u64() > Some(0));
    let loops = findings["loops"].as_array().expect("there are loops");
    let ratios = loops.iter().filter(|it| it["ratio_to_native"].is_number());
    assert_eq!(ratios.count(), 3);
}

#[test]
fn an_engine_that_fails_is_reported_in_its_own_words() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);

    let done = bench(&fixture, &image, &["--engines", "vmm"])
        .args(["--", "/no/such/command"])
        .run();

    done.code_is(1)
        .stdout_has("vmm cold: ended with exit code 127: vmm: the workload did not start")
        .stderr_has("\nvmm: no engine could start the image");
    nothing_is_left(&fixture);
}

#[test]
fn a_bench_of_an_image_that_is_not_there_is_refused() {
    let fixture = Fixture::new();

    let done = bench(&fixture, Path::new("/no/such.oci"), &[]).run();

    done.failed(&["/no/such.oci"]);
    nothing_is_left(&fixture);
}
