//! Standard input, output and error: apart, whole, and ended when they should be.

use std::fs::File;
use std::io::{Read, Seek};

use rustix::process::Signal;
use tests::process::MACHINE_LIMIT;
use tests::{Fixture, snapshot};

use super::{busybox, busybox_with_probe};

/// Bytes without a short period, so that a lost or doubled piece shows.
fn pattern(length_bytes: usize) -> Vec<u8> {
    (0..length_bytes)
        .map(|index| {
            let mixed = index.wrapping_mul(2_654_435_761) >> 7;
            mixed.to_le_bytes()[0] ^ index.to_le_bytes()[1]
        })
        .collect()
}

#[test]
fn three_megabytes_go_through_a_shell_pipeline_bit_for_bit() {
    let fixture = Fixture::with_machines();
    let sent = pattern(3 << 20);
    let done = fixture
        .run(
            &busybox(&fixture),
            &["-i"],
            &["sh", "-c", "cat | cat; echo done >&2"],
        )
        .input(sent.clone())
        .run();
    assert_eq!(
        snapshot::sha256(&done.stdout),
        snapshot::sha256(&sent),
        "{} bytes came",
        done.stdout.len()
    );
    done.code_is(0).stderr_is("done\n");
}

#[test]
fn output_of_the_workload_may_go_to_a_file() {
    let fixture = Fixture::with_machines();
    let path = fixture.path("output");
    let file = File::create_new(&path).unwrap();
    fixture
        .run(
            &busybox_with_probe(&fixture),
            &[],
            &["probe", "fill", "1000003"],
        )
        .output_file(file)
        .run()
        .code_is(0)
        .stderr_is("");
    assert_eq!(std::fs::metadata(path).unwrap().len(), 1_000_003);
}

#[test]
fn input_from_a_file_ends_where_the_file_ends() {
    let fixture = Fixture::with_machines();
    let mut file = File::open(fixture.file("input", "one\ntwo\n")).unwrap();
    file.rewind().unwrap();
    let done = fixture
        .run(
            &busybox(&fixture),
            &["-i"],
            &["sh", "-c", "wc -l; echo end"],
        )
        .input_file(file)
        .run();
    done.code_is(0).stdout_is("2\nend\n").stderr_is("");
}

#[test]
fn input_is_passed_on_while_it_comes_and_ends_when_it_is_closed() {
    let fixture = Fixture::with_machines();
    let script = "read line; echo got $line; read line || echo end; exit 5";
    let mut running = fixture
        .run(&busybox(&fixture), &["-i"], &["sh", "-c", script])
        .open_input()
        .start();
    running.write(b"first\n");
    running.wait_for_stdout("got first\n");
    running.close_input();
    running
        .finish()
        .code_is(5)
        .stdout_is("got first\nend\n")
        .stderr_is("");
}

#[test]
fn without_the_interactive_flag_standard_input_is_empty() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &[], &["wc", "-c"])
        .input("not for the workload")
        .run();
    done.code_is(0).stdout_is("0\n").stderr_is("");
}

#[test]
fn a_workload_that_leaves_its_input_unread_ends_all_the_same() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &["-i"], &["sh", "-c", "exit 3"])
        .input(pattern(8 << 20))
        .run();
    done.code_is(3).stdout_is("").stderr_is("");
}

#[test]
fn a_workload_that_ends_while_its_input_is_open_ends_the_run() {
    let fixture = Fixture::with_machines();
    let running = fixture
        .run(&busybox(&fixture), &["-i"], &["true"])
        .open_input()
        .start();
    running.finish_with_open_input().code_is(0).stderr_is("");
}

#[test]
fn a_workload_whose_reader_has_gone_ends_as_a_plain_program_would() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &[], &["yes"])
        .output_to_closed_pipe()
        .limit(MACHINE_LIMIT)
        .run();
    // A plain `yes` dies of SIGPIPE: as a signal of the process, or as a shell would report it.
    let as_signal = done.signal() == Some(Signal::PIPE.as_raw());
    let as_code = done.code() == Some(128 + Signal::PIPE.as_raw());
    let as_error = done.code() == Some(1);
    assert!(as_signal || as_code || as_error, "{done:?}");
    done.stderr_lacks("panicked");
    fixture.nothing_runs();
}

#[test]
fn a_closed_standard_output_is_no_crash() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", "exit 7"])
        .without_output()
        .run();
    done.code_is(7).stderr_lacks("panicked");
}

#[test]
fn an_image_is_read_from_standard_input() {
    let fixture = Fixture::with_machines();
    let mut archive = Vec::new();
    File::open(busybox(&fixture))
        .unwrap()
        .read_to_end(&mut archive)
        .unwrap();
    let done = fixture
        .vmm(["run", "--image", "-"])
        .input(archive)
        .limit(MACHINE_LIMIT)
        .run();
    done.code_is(0).stdout_is("hello\n").stderr_is("");
}
