//! What only a complete KVM shows. The lab runs these; elsewhere they are ignored by name.

use std::path::Path;

use tests::{Fixture, kernels};

use super::{busybox, busybox_with_probe};

#[test]
#[ignore = "needs a complete KVM: the lab runs it"]
fn nothing_is_worked_around() {
    let fixture = Fixture::with_machines();

    let done = fixture.vmm(["doctor"]).run();

    done.succeeded().stdout_has("runs as on hardware");
}

#[test]
#[ignore = "needs a complete KVM: the lab runs it"]
fn four_processors_work() {
    let fixture = Fixture::with_machines();
    // Each processor counts what its own processes used.
    let script = "for cpu in 0 1 2 3; do taskset -c $cpu sh -c 'cat /proc/self/stat' | awk '{ print $39 }'; done";

    let done = fixture
        .run(
            &busybox_with_probe(&fixture),
            &["--cpus", "4"],
            &["sh", "-c", script],
        )
        .run();

    done.code_is(0).stdout_is("0\n1\n2\n3\n");
}

#[test]
#[ignore = "needs a complete KVM: the lab runs it"]
fn debians_own_kernel_boots_and_its_lack_of_drivers_is_told() {
    let fixture = Fixture::with_machines();
    let kernel = kernels::unpacked(Path::new("/boot/vmlinuz"), kernels::DEBIAN);
    let kernel = kernel.to_str().unwrap();

    let done = fixture
        .run(&busybox(&fixture), &["--kernel", kernel], &[])
        .run();

    // Its drivers for our devices are modules, so it finds no root; that it says so shows that it ran.
    done.code_is(125)
        .stdout_is("")
        .stderr_has("the guest died")
        .stderr_has("Unable to mount root fs");
    fixture.nothing_runs();
}
