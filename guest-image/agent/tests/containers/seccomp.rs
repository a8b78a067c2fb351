//! Filters of system calls, seen from inside: runtime-spec `config-linux.md`, "Seccomp".

use protocol::{ExitStatus, FailureKind, Seccomp};
use serde_json::json;

use crate::harness::{Run, Workload};
use crate::{Test, needs_containers, run};

/// `SECCOMP_RET_*`, `include/uapi/linux/seccomp.h`.
const ALLOW: u32 = 0x7FFF_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// Numbers of system calls: `arch/x86/entry/syscalls/syscall_64.tbl`.
const MKDIR: u32 = 83;
const CAPSET: u32 = 126;

/// A filter that does something for one system call and lets all others pass.
pub(crate) fn filter(call: u32, action: u32) -> Seccomp {
    let instructions: [(u16, u8, u8, u32); 4] = [
        (0x20, 0, 0, 0),      // load the number
        (0x15, 0, 1, call),   // skip one unless it is the call
        (0x06, 0, 0, action), // return
        (0x06, 0, 0, ALLOW),
    ];
    let filter = instructions
        .iter()
        .flat_map(|(code, yes, no, number)| {
            [&code.to_le_bytes()[..], &[*yes, *no], &number.to_le_bytes()].concat()
        })
        .collect();
    Seccomp { filter, flags: 0 }
}

fn with_filter(script: &str, seccomp: Seccomp) -> Workload {
    let mut workload = Workload::script(script);
    workload.seccomp = Some(seccomp);
    workload
}

#[test]
fn a_filtered_call_fails_with_the_error_of_the_filter() -> Test {
    needs_containers!();
    const ENODEV: u32 = 19;
    let script = "mkdir /x 2>&1; grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -d '\t'";

    let said = run(&with_filter(script, filter(MKDIR, ERRNO | ENODEV)))?.output()?;

    assert_eq!(
        said,
        "mkdir: can't create directory '/x': No such device\nNoNewPrivs:0\nSeccomp:2\n"
    );
    Ok(())
}

#[test]
fn a_filter_goes_with_no_new_privileges() -> Test {
    needs_containers!();
    let script =
        "mkdir /x 2>/dev/null || echo refused; grep -E 'NoNewPrivs' /proc/self/status | tr -d '\t'";
    let workload =
        with_filter(script, filter(MKDIR, ERRNO | 1)).with("/process/noNewPrivileges", json!(true));

    assert_eq!(run(&workload)?.output()?, "refused\nNoNewPrivs:1\n");
    Ok(())
}

#[test]
fn with_no_new_privileges_the_filter_is_the_last_step() -> Test {
    needs_containers!();
    // Setting the capabilities is a step before.
    let workload = with_filter("echo runs", filter(CAPSET, KILL_PROCESS))
        .with("/process/noNewPrivileges", json!(true));

    assert_eq!(run(&workload)?.output()?, "runs\n");
    Ok(())
}

#[test]
fn a_filtered_call_may_kill() -> Test {
    needs_containers!();

    let run = run(&with_filter("exec mkdir /x", filter(MKDIR, KILL_PROCESS)))?;

    assert_eq!(run.status()?, ExitStatus::Signal(31));
    Ok(())
}

#[test]
fn a_filtered_call_may_trap() -> Test {
    needs_containers!();

    let run = run(&with_filter("mkdir /x; echo $?", filter(MKDIR, TRAP)))?;

    assert!(matches!(run, Run::Exited { stdout, .. } if stdout == b"159\n"));
    Ok(())
}

#[test]
fn in_a_user_namespace_a_filter_works() -> Test {
    needs_containers!();
    let range = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let workload = with_filter(
        "mkdir /x 2>/dev/null || echo refused",
        filter(MKDIR, ERRNO | 1),
    )
    .with(
        "/linux/namespaces",
        json!([{ "type": "user" }, { "type": "pid" }, { "type": "mount" }, { "type": "uts" },
            { "type": "ipc" }, { "type": "network" }]),
    )
    .with("/linux/uidMappings", range.clone())
    .with("/linux/gidMappings", range);

    assert_eq!(run(&workload)?.output()?, "refused\n");
    Ok(())
}

#[test]
fn what_is_no_program_is_refused() -> Test {
    needs_containers!();
    let workload = with_filter(
        "true",
        Seccomp {
            filter: vec![0; 12],
            flags: 0,
        },
    );

    assert_eq!(run(&workload)?.failure()?.step, "linux.seccomp");
    Ok(())
}

#[test]
fn a_program_that_the_kernel_refuses_is_named() -> Test {
    needs_containers!();
    let workload = with_filter(
        "true",
        Seccomp {
            filter: vec![0; 8],
            flags: 0,
        },
    );

    assert_eq!(
        run(&workload)?.failure()?.step,
        "installing the seccomp filter"
    );
    Ok(())
}

#[test]
fn a_profile_that_nobody_has_compiled_is_refused_by_name() -> Test {
    needs_containers!();
    let workload = Workload::new(&["true"]).with(
        "/linux/seccomp",
        json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
    );

    let failure = run(&workload)?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Unsupported, "linux.seccomp")
    );
    Ok(())
}

#[test]
fn a_flag_that_needs_a_listener_is_refused_by_name() -> Test {
    needs_containers!();
    let seccomp = Seccomp {
        flags: 1 << 3,
        ..filter(MKDIR, ALLOW)
    };

    let failure = run(&with_filter("true", seccomp))?.failure()?;

    assert_eq!(failure.step, "linux.seccomp.flags");
    Ok(())
}
