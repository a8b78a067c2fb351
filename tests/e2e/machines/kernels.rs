//! Kernels that do what a kernel should not, given with `--kernel`.

use tests::{Fixture, kernels};

use super::busybox;

fn machines(fixture: &Fixture) -> String {
    let listed = fixture.vmm(["ps", "--quiet"]).run();
    listed.succeeded().stdout_text()
}

#[test]
fn a_kernel_that_spins_with_interrupts_off_can_be_killed() {
    let fixture = Fixture::with_machines();
    // cli; 1: jmp 1b
    let kernel = fixture.file("spin", kernels::of_instructions(b"\xfa\xeb\xfe"));
    let kernel = kernel.to_str().unwrap();
    let running = fixture
        .run(
            &busybox(&fixture),
            &["--name", "spinner", "--kernel", kernel],
            &[],
        )
        .start();
    while machines(&fixture).is_empty() {}

    fixture.vmm(["kill", "spinner"]).run().succeeded();

    running.finish().code_is(137);
    fixture.nothing_runs();
}

#[test]
fn a_kernel_that_triple_faults_is_said_to_have_died() {
    let fixture = Fixture::with_machines();
    // lidt [rip + 1]; ud2 (an exception without a table to deliver it by); a table of length 0
    let instructions = b"\x0f\x01\x1d\x02\0\0\0\x0f\x0b\0\0\0\0\0\0\0\0\0\0";
    let kernel = fixture.file("fault", kernels::of_instructions(instructions));
    let kernel = kernel.to_str().unwrap();

    let done = fixture
        .run(&busybox(&fixture), &["--kernel", kernel], &[])
        .run();

    done.code_is(125).stdout_is("").stderr_has("the guest died");
    fixture.nothing_runs();
}

#[test]
fn a_kernel_cut_short_is_refused() {
    let fixture = Fixture::with_machines();
    let mut elf = kernels::of_instructions(&[0x90; 64]);
    elf.pop();
    let kernel = fixture.file("short", elf);

    let done = fixture
        .run(
            &busybox(&fixture),
            &["--kernel", kernel.to_str().unwrap()],
            &[],
        )
        .run();

    done.refused(&["in the middle of a segment"]);
    fixture.nothing_runs();
}

#[test]
fn a_kernel_that_is_none_is_refused() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);

    let done = fixture
        .run(&image, &["--kernel", image.to_str().unwrap()], &[])
        .run();

    done.refused(&["vmlinux"]);
    fixture.nothing_runs();
}
