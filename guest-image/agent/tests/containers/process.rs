//! What `process` and `linux.personality` say, seen from inside: runtime-spec `config.md`, "Process".

use protocol::FailureKind;
use serde_json::json;

use crate::harness::Workload;
use crate::{Test, needs_containers, run};

#[test]
fn a_scheduler_is_set() -> Test {
    needs_containers!();
    let workload = Workload::new(&["cut", "-d ", "-f40,41", "/proc/self/stat"]).with(
        "/process/scheduler",
        json!({ "policy": "SCHED_FIFO", "priority": 7 }),
    );

    // proc(5): the real-time priority, and the policy, of which SCHED_FIFO is 1.
    assert_eq!(run(&workload)?.output()?, "7 1\n");
    Ok(())
}

#[test]
fn a_nice_value_is_set() -> Test {
    needs_containers!();
    let workload = Workload::new(&["cut", "-d ", "-f19", "/proc/self/stat"]).with(
        "/process/scheduler",
        json!({ "policy": "SCHED_OTHER", "nice": 5 }),
    );

    assert_eq!(run(&workload)?.output()?, "5\n");
    Ok(())
}

#[test]
fn an_input_and_output_priority_is_set() -> Test {
    needs_containers!();
    let workload = Workload::script("ionice -p $$").with(
        "/process/ioPriority",
        json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 }),
    );

    assert_eq!(run(&workload)?.output()?, "best-effort: prio 6\n");
    Ok(())
}

#[test]
fn a_personality_of_32_bits_shows_in_the_machines_name() -> Test {
    needs_containers!();
    let workload =
        Workload::new(&["uname", "-m"]).with("/linux/personality", json!({ "domain": "LINUX32" }));

    assert_eq!(run(&workload)?.output()?, "i686\n");
    Ok(())
}

#[test]
fn an_affinity_of_later_processes_does_not_touch_the_first() -> Test {
    needs_containers!();
    let workload = Workload::script("grep -c . /proc/self/status >/dev/null && echo runs").with(
        "/process/execCPUAffinity",
        json!({ "initial": "0", "final": "0-63" }),
    );

    assert_eq!(run(&workload)?.output()?, "runs\n");
    Ok(())
}

#[test]
fn a_parameter_of_the_whole_machine_is_refused() -> Test {
    needs_containers!();
    let workload =
        Workload::new(&["true"]).with("/linux/sysctl", json!({ "vm.overcommit_memory": "1" }));

    let failure = run(&workload)?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Unsupported, "linux.sysctl")
    );
    Ok(())
}

#[test]
fn a_kernel_parameter_that_does_not_exist_is_named() -> Test {
    needs_containers!();
    let workload =
        Workload::new(&["true"]).with("/linux/sysctl", json!({ "net.ipv4.not_there": "1" }));

    let failure = run(&workload)?.failure()?;

    assert!(failure.step.contains("net/ipv4/not_there"), "{failure}");
    Ok(())
}
