//! The same tests on a complete KVM: this program runs itself again, in the lab.

use std::env;
use std::path::Path;
use std::time::Duration;

use lab::Lab;
use tests::{binary, cache, kernels, real_images, workload};

/// How long each part may take: a lab is some ten times slower than hardware, and one test runs after the other.
const LIMIT: Duration = Duration::from_secs(1740);
/// Where the lab finds what it cannot make.
const THINGS: &str = "/things";

/// The tests of machines that begin, or go on, as copies of others: half of all.
const COPIES: [&str; 2] = ["templates::", "snapshots::"];

/// The tests of what is done with machines that run. In `make test` they run here only: another KVM is nothing to them.
const LIFE: [&str; 9] = [
    "attach::",
    "exec::",
    "events::",
    "foreground::",
    "lifecycle::",
    "logs::",
    "network::",
    "policies::",
    "statistics::",
];

/// The tests of files and disks of machines, likewise.
const FILES: [&str; 4] = ["copying::", "disks::", "storage::", "volumes::"];

/// The tests that take minutes.
const RACES: &str = "races::";

/// The tests that run crun, too.
const CRUN: &str = "crun::";

#[test]
fn every_test_of_copied_machines_passes_on_a_complete_kvm_too() {
    pass_in_lab(&COPIES, &[]);
}

#[test]
fn every_test_of_the_life_of_machines_passes_on_a_complete_kvm() {
    pass_in_lab(&LIFE, &[]);
}

#[test]
fn every_test_of_files_of_machines_passes_on_a_complete_kvm() {
    pass_in_lab(&FILES, &[]);
}

#[test]
fn every_other_test_passes_on_a_complete_kvm_too() {
    let skips: Vec<&str> = COPIES
        .iter()
        .chain(&LIFE)
        .chain(&FILES)
        // `vmm bench` compares engines of this machine.
        .chain(&["lab::", "bench::", CRUN, RACES])
        .flat_map(|names| ["--skip", names])
        .collect();
    pass_in_lab(&skips, &[]);
}

#[test]
fn races_leave_nothing_on_a_complete_kvm() {
    pass_in_lab(&[RACES], &[]);
}

#[test]
fn containers_are_as_in_crun_on_a_complete_kvm() {
    pass_in_lab(&[CRUN], &["crun"]);
}

/// Runs this program's tests of this choice in the lab, with other engines.
#[expect(clippy::panic, reason = "what the lab says is the test's failure")]
fn pass_in_lab(choice: &[&str], engines: &[&str]) {
    let mut lab = Lab::new().unwrap_or_else(|error| panic!("no lab: {error}"));
    lab.limit = LIMIT;
    lab.memory_mib = 6 << 10;
    // QEMU 7.2 now and then stops for ever where two of its processors run guests at the same time.
    lab.cpus = 1;
    lab.has_bridges = true;
    let put = |lab: &mut Lab| {
        let this = env::current_exe().expect("a program knows where it is");
        lab.tree.program(&this, "/usr/bin/machines")?;
        lab.put_vmm(&binary::vmm(), &binary::vmm())?;
        let tools = [
            "tar",
            "setsid",
            "setpriv",
            "unshare",
            "mount",
            "find",
            "sh",
            "mkfifo",
            "cat",
            "ln",
            "mkdir",
            "rm",
            "truncate",
            "ip",
            "nft",
            "nsenter",
            "bash",
            "busybox",
            "cp",
            "dd",
            "cmp",
            "awk",
            "uniq",
            "grep",
            "mke2fs",
            "e2fsck",
            "resize2fs",
            "debugfs",
            "dumpe2fs",
        ];
        for tool in tools.iter().chain(engines) {
            lab.tree.program_called(tool)?;
        }
        for made in [
            real_images::python3(),
            real_images::layered(),
            workload::program_file("probe"),
            kernels::unpacked(&lab.parts.kernel, kernels::DEBIAN),
        ] {
            let name = made.file_name().expect("a thing has a name");
            lab.tree.copy(&made, Path::new(THINGS).join(name))?;
        }
        Ok::<(), lab::LabError>(())
    };
    put(&mut lab).unwrap_or_else(|error| panic!("no lab: {error}"));
    let set = |lab: &mut Lab, name: &str, value: &Path| {
        let value = value.to_str().expect("paths here are text").to_owned();
        lab.environment.push((name.to_owned(), value));
    };
    set(&mut lab, "VMM", &binary::vmm());
    set(&mut lab, cache::MADE_ELSEWHERE, Path::new(THINGS));

    let (mut said, mut complaint) = (Vec::new(), Vec::new());
    // Ignored elsewhere are those that need a complete KVM.
    let options = ["machines", "--test-threads=1", "--include-ignored"];
    let command = [&options, choice].concat();
    let ended = lab.run(&command, &mut said, &mut complaint);

    let said = String::from_utf8_lossy(&said);
    let complaint = String::from_utf8_lossy(&complaint);
    let ended = ended.unwrap_or_else(|error| panic!("{error}\n{said}\n{complaint}"));
    assert_eq!(ended.code, 0, "{said}\n{complaint}");
}
