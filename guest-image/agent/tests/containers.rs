//! Containers made by the agent on this machine, seen from inside.

mod harness;

use harness::{Agent, Failure, Workload, can_make_containers};
use protocol::{ExitStatus, FailureKind};
use serde_json::json;

type Test = Result<(), Failure>;

#[test]
fn a_program_runs_and_its_output_comes_back() -> Test {
    if !can_make_containers() {
        return Ok(());
    }
    let agent = Agent::start()?;

    let output = agent.run(&Workload::new(&["echo", "hello"]))?.output()?;

    assert_eq!(output, "hello\n");
    Ok(())
}

#[test]
fn the_exit_code_is_the_programs() -> Test {
    if !can_make_containers() {
        return Ok(());
    }
    let agent = Agent::start()?;

    let status = agent.run(&Workload::script("exit 42"))?.status()?;

    assert_eq!(status, ExitStatus::Code(42));
    Ok(())
}

#[test]
fn a_missing_program_is_not_found() -> Test {
    if !can_make_containers() {
        return Ok(());
    }
    let agent = Agent::start()?;

    let failure = agent.run(&Workload::new(&["no-such-program"]))?.failure()?;

    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.step.contains("no-such-program"));
    Ok(())
}

#[test]
fn a_seccomp_profile_is_refused_by_name() -> Test {
    if !can_make_containers() {
        return Ok(());
    }
    let agent = Agent::start()?;
    let workload = Workload::new(&["true"]).with(
        "/linux/seccomp",
        json!({ "defaultAction": "SCMP_ACT_ALLOW" }),
    );

    let failure = agent.run(&workload)?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Unsupported, "linux.seccomp")
    );
    Ok(())
}
