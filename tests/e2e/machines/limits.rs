//! `--memory` and `--cpus`, and what processes do to each other's registers.

use tests::Fixture;

use super::busybox_with_probe;

#[test]
fn a_workload_above_its_memory_limit_is_killed_and_one_below_is_not() {
    let fixture = Fixture::with_machines();
    let image = busybox_with_probe(&fixture);
    let within = fixture
        .run(&image, &["--memory", "32m"], &["probe", "allocate", "8"])
        .run();
    within.code_is(0).stdout_has("all 8 MiB touched\n");
    let above = fixture
        .run(&image, &["--memory", "32m"], &["probe", "allocate", "96"])
        .run();
    above
        .code_is(137)
        .stdout_has("touched 8 MiB\n")
        .stdout_lacks("all 96 MiB");
}

#[test]
fn a_memory_limit_above_a_gibibyte_is_there() {
    let fixture = Fixture::with_machines();
    let script = "free -m | awk '/^Mem/ { exit !($2 >= 1024) }'";
    fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--memory", "1100m"],
            &["sh", "-c", script],
        )
        .run()
        .code_is(0);
}

#[test]
fn virtual_processors_are_the_next_whole_number() {
    let fixture = Fixture::with_machines();
    let image = busybox_with_probe(&fixture);
    let done = fixture
        .run(
            &image,
            &["--cpus", "1.5"],
            &["sh", "-c", "nproc; grep -c ^processor /proc/cpuinfo"],
        )
        .run();
    done.code_is(0).stdout_is("2\n2\n").stderr_is("");
}

#[test]
fn half_a_processor_gives_about_half_the_time() {
    let fixture = Fixture::with_machines();
    let script = "probe spin 3000 1 >/dev/null; cat /sys/fs/cgroup/cpu.stat";
    let done = fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--cpus", "0.5"],
            &["sh", "-c", script],
        )
        .run();
    let text = done.code_is(0).stdout_text();
    let number = |name: &str| -> f64 {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or_else(|| panic!("cpu.stat has a line {name}: {done:?}"))
    };
    // A period is 100 ms in which somebody wanted to run: spinning never lets one pass.
    let time_us = number("nr_periods") * 100_000.0;
    let share = number("usage_usec") / time_us;
    assert!((0.3..=0.7).contains(&share), "a share of {share}: {done:?}");
    assert!(number("nr_throttled") >= 10.0, "{done:?}");
}

#[test]
fn vector_registers_survive_other_processes_and_signals() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--cpus", "1"],
            &["probe", "registers"],
        )
        .run();
    let kept = done.code_is(0).stdout_text();
    let nothing_lost = "low halves lost 0, high halves lost 0\n";
    assert_eq!(kept.matches(nothing_lost).count(), 2, "{done:?}");
}

#[test]
fn what_is_written_to_the_root_has_a_limit_too() {
    let fixture = Fixture::with_machines();
    let script = "dd if=/dev/zero of=/big bs=1M count=48; rm /big; echo goes on";
    let done = fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--memory", "32m"],
            &["sh", "-c", script],
        )
        .run();
    done.code_is(0)
        .stdout_is("goes on\n")
        .stderr_has("No space left on device");
}
