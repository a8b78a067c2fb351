//! The table of exit codes, a test a row.

use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

use super::{busybox, busybox_with_probe};

#[test]
fn an_image_in_a_file_runs_its_own_command() {
    let fixture = Fixture::with_machines();
    let done = fixture.run(&busybox(&fixture), &[], &[]).run();
    done.code_is(0).stdout_is("hello\n").stderr_is("");
    fixture.nothing_runs();
}

#[test]
fn the_workloads_exit_code_is_the_exit_code() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(
            &busybox(&fixture),
            &[],
            &["sh", "-c", "echo out; echo err >&2; exit 42"],
        )
        .run();
    done.code_is(42).stdout_is("out\n").stderr_is("err\n");
}

#[test]
fn exit_code_1_is_1() {
    let fixture = Fixture::with_machines();
    fixture
        .run(&busybox(&fixture), &[], &["false"])
        .run()
        .code_is(1)
        .stdout_is("")
        .stderr_is("");
}

#[test]
fn a_workload_may_exit_with_125_and_nothing_is_said() {
    let fixture = Fixture::with_machines();
    fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", "exit 125"])
        .run()
        .code_is(125)
        .stderr_is("");
}

#[test]
fn the_largest_exit_code_is_255() {
    let fixture = Fixture::with_machines();
    fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", "exit 255"])
        .run()
        .code_is(255)
        .stderr_is("");
}

#[test]
fn a_command_that_is_not_found_gives_127_and_is_named() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &[], &["no-such-command"])
        .run();
    done.code_is(127)
        .stdout_is("")
        .complained(&["no-such-command"]);
}

#[test]
fn a_command_by_a_path_that_does_not_exist_gives_127() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &[], &["/no/such/file"])
        .run();
    done.code_is(127)
        .stdout_is("")
        .complained(&["/no/such/file"]);
}

#[test]
fn a_file_without_the_right_to_execute_gives_126() {
    let fixture = Fixture::with_machines();
    let done = fixture.run(&busybox(&fixture), &[], &["/etc/passwd"]).run();
    done.code_is(126).stdout_is("").complained(&["/etc/passwd"]);
}

#[test]
fn a_directory_as_the_command_gives_126() {
    let fixture = Fixture::with_machines();
    let done = fixture.run(&busybox(&fixture), &[], &["/etc"]).run();
    done.code_is(126).stdout_is("").complained(&["/etc"]);
}

#[test]
fn a_file_in_no_executable_format_gives_126() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox().layer(Layer::new().executable("bin/noise", [0x91; 64]));
    let image = fixture.file("noise.oci", maker.layout().archive());
    let done = fixture.run(&image, &[], &["noise"]).run();
    done.code_is(126).stdout_is("").complained(&["noise"]);
}

#[test]
fn a_script_without_its_interpreter_gives_127() {
    let fixture = Fixture::with_machines();
    let maker =
        ImageMaker::busybox().layer(Layer::new().executable("bin/script", "#!/no/such/shell\n"));
    let image = fixture.file("script.oci", maker.layout().archive());
    let done = fixture.run(&image, &[], &["script"]).run();
    done.code_is(127).stdout_is("").complained(&["script"]);
}

#[test]
fn a_workload_that_faults_gives_139() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox_with_probe(&fixture), &[], &["probe", "segfault"])
        .run();
    done.code_is(139).stdout_is("");
}

#[test]
fn a_workload_with_an_illegal_instruction_gives_132() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox_with_probe(&fixture), &[], &["probe", "illegal"])
        .run();
    done.code_is(132).stdout_is("");
}

#[test]
fn a_shell_reports_children_killed_by_signals() {
    let fixture = Fixture::with_machines();
    let script =
        "sh -c 'kill -9 $$'; echo $?; sh -c 'kill -15 $$'; echo $?; sh -c 'kill -11 $$'; exit $?";
    let done = fixture
        .run(&busybox(&fixture), &[], &["sh", "-c", script])
        .run();
    done.code_is(139).stdout_has("137\n").stdout_has("143\n");
}

#[test]
fn an_unknown_user_is_refused_by_name() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(&busybox(&fixture), &["--user", "nobody-here"], &["true"])
        .run();
    done.refused(&["nobody-here"]);
}

#[test]
fn an_unknown_group_is_refused_by_name() {
    let fixture = Fixture::with_machines();
    let done = fixture
        .run(
            &busybox(&fixture),
            &["--user", "alice:nogroup-here"],
            &["true"],
        )
        .run();
    done.refused(&["nogroup-here"]);
}
