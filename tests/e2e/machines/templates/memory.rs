//! A host that gives a run less memory than a clone takes.

use std::fs;
use std::path::PathBuf;

use tests::Finished;

use super::{Home, Ran};

/// Asserts that a run ended as a failure of the appliance, told in one sentence, and that it left nothing that is in anybody's way.
#[track_caller]
fn failed_once(home: &Home, done: &Finished, reason: &str) {
    done.code_is(125);
    let errors: Vec<_> = done
        .stderr_text()
        .lines()
        .filter(|line| line.starts_with("vmm: "))
        .map(str::to_owned)
        .collect();
    assert!(
        errors.len() == 1 && errors[0].contains(reason),
        "expected one sentence that says `{reason}`: {done:?}"
    );
    home.fixture.nothing_runs();
    assert_eq!(home.leftovers(), [""; 0]);
    assert_eq!(home.fixture.machines_listing(), "");
}

/// Runs with an address space of so many KiB.
fn with_address_space(home: &Home, kib: u32) -> Finished {
    let run = format!("run --rm --timings=json {} -- echo hello", super::IMAGE);
    home.script(&format!("ulimit -v {kib}; exec \"$VMM_BINARY\" {run}"))
        .run()
}

#[test]
fn a_run_that_may_not_map_the_memory_of_its_machine_says_so_and_leaves_nothing() {
    let home = Home::prepared();
    let ids = home.ids();

    let done = with_address_space(&home, 200 << 10);

    done.stdout_is("");
    failed_once(&home, &done, "bytes of guest memory");
    assert_eq!(home.ids(), ids, "it is not the template's fault");
    home.is_well_again();
}

#[test]
fn a_run_that_may_map_the_memory_of_its_machine_and_little_more_is_a_clone() {
    let home = Home::prepared();
    Ran::of(with_address_space(&home, 400 << 10))
        .is_clone()
        .says("hello\n");
}

/// A cgroup of the host that limits memory. Only the lab is a machine whose cgroups are a test's to make.
struct Cgroup(PathBuf);

impl Cgroup {
    /// Source of the files' names: Linux, `Documentation/admin-guide/cgroup-v2.rst`.
    fn with_memory(mib: u64) -> Self {
        let top = PathBuf::from("/sys/fs/cgroup");
        fs::write(top.join("cgroup.subtree_control"), "+memory").expect("the host limits memory");
        let path = top.join("limited");
        fs::create_dir(&path).expect("a cgroup can be made");
        fs::write(path.join("memory.max"), (mib << 20).to_string()).expect("a cgroup has a limit");
        Self(path)
    }

    /// Runs `vmm run` with these arguments in it.
    fn run(&self, home: &Home, rest: &str) -> Finished {
        let enter = format!("echo $$ >'{}/cgroup.procs'", self.0.display());
        let run = format!("run --rm --timings=json {} -- {rest}", super::IMAGE);
        home.script(&format!("{enter}; exec \"$VMM_BINARY\" {run}"))
            .run()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Refused while somebody is in it, which then is what failed.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs a cgroup of the host's: the lab runs it"]
fn a_clone_takes_what_it_uses_and_one_that_outgrows_the_hosts_limit_is_one_error() {
    let home = Home::prepared();
    let id = home.ids();
    let cgroup = Cgroup::with_memory(48);

    let within = cgroup.run(&home, "echo hello");
    let above = cgroup.run(&home, "probe allocate 100");

    Ran::of(within).is_clone().says("hello\n");
    failed_once(
        &home,
        &above,
        "the VM process ended unexpectedly, with signal 9",
    );
    assert_eq!(home.ids(), id, "the template is not at fault");
    home.is_well_again();
}
