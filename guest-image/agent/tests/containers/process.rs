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

#[test]
fn further_groups_are_resolved_in_the_container() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["id", "-G"]).user("app:app");
    workload.groups = vec!["video".to_owned(), "4242".to_owned()];

    assert_eq!(run(&workload)?.output()?, "1001 27 4242\n");
    Ok(())
}

#[test]
fn an_unknown_further_group_is_named() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["true"]).user("app");
    workload.groups = vec!["nobody-knows".to_owned()];

    let failure = run(&workload)?.failure()?;

    assert_eq!(failure.kind, FailureKind::UnknownUser);
    assert!(failure.message.contains("nobody-knows"), "{failure}");
    Ok(())
}

/// A workload whose program has a parent.
fn with_init(script: &str) -> Workload {
    let mut workload = Workload::script(script);
    workload.init = true;
    workload
}

#[test]
fn a_program_with_a_parent_is_not_process_1() -> Test {
    needs_containers!();

    assert_eq!(
        run(&with_init("echo $$ $PPID; exit 9"))?,
        crate::harness::Run::exited(9, "2 1\n", "")
    );
    Ok(())
}

#[test]
fn the_parent_reaps_what_the_program_leaves_behind() -> Test {
    needs_containers!();
    // The orphan ends while the program still runs; a process that nobody reaps would still be listed.
    let script = "sh -c 'sleep 0.05 &'; sleep 0.3; ps -o stat,comm | grep -c '^Z'; true";

    assert_eq!(run(&with_init(script))?.output()?, "0\n");
    Ok(())
}

#[test]
fn the_parent_passes_signals_on_and_ends_as_the_program_does() -> Test {
    needs_containers!();
    // A parent that passed nothing on would leave the program asleep for longer than a test may take.
    let workload = with_init("kill -TERM 1; sleep 1000");

    assert_eq!(
        run(&workload)?.status()?,
        protocol::ExitStatus::Code(128 + 15)
    );
    Ok(())
}

#[test]
fn a_program_with_a_parent_that_is_missing_is_not_found() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["no-such-program"]);
    workload.init = true;

    assert_eq!(run(&workload)?.failure()?.kind, FailureKind::NotFound);
    Ok(())
}

#[test]
fn a_parent_is_made_where_a_filter_hides_clone3() -> Test {
    needs_containers!();
    let mut workload = with_init("echo $PPID");
    workload.seccomp = Some(crate::seccomp::filter(435, 0x0005_0000 | 38));

    assert_eq!(run(&workload)?.output()?, "1\n");
    Ok(())
}

#[test]
fn at_a_terminal_the_keys_are_for_the_program() -> Test {
    needs_containers!();
    let mut workload = Workload::script("test \"$(cut -d' ' -f5 /proc/self/stat)\" = \"$(cut -d' ' -f8 /proc/self/stat)\" && echo foreground").terminal();
    workload.init = true;

    assert_eq!(run(&workload)?.output()?, "foreground\r\n");
    Ok(())
}
