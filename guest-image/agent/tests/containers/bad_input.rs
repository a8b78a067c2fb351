//! Configurations that are large, odd or impossible: what does not work is said by name, and the agent lives on.

use protocol::FailureKind;
use serde_json::{Value, json};

use crate::harness::{Agent, Failure, Workload};
use crate::{Test, needs_containers, run};

/// Asserts that a workload does not start, and that the agent then runs another one.
fn fails_alone(workload: &Workload) -> Result<protocol::StartFailure, Failure> {
    let agent = Agent::start()?;
    let (mut control, failure) = agent.fails_to_start(workload)?;
    let mut next = Workload::new(&["true"]);
    next.container = crate::CONTAINERS[1];
    let next = next.with(
        "/linux/cgroupsPath",
        json!(crate::harness::cgroup_name(crate::CONTAINERS[1])),
    );
    let create = next.create(&agent.image(), protocol::DeclaredStreams::default());
    control.send(&protocol::Request::Create(Box::new(create)))?;
    control.send(&protocol::Request::Start(next.process()))?;
    loop {
        match control.report()? {
            report if report.is_start_of(next.process()) => return Ok(failure),
            // The start of what could not even be created.
            protocol::Report::NotStarted { process, .. } if process == workload.process() => (),
            other => return Err(format!("nothing runs any more: {other:?}").into()),
        }
    }
}

#[test]
fn ten_thousand_variables_arrive() -> Test {
    needs_containers!();
    let variables: Vec<String> = (0..10_000)
        .map(|number| format!("V{number}=value"))
        .collect();
    let mut environment = vec!["PATH=/bin".to_owned()];
    environment.extend(variables);
    let workload = Workload::script("env | grep -c '^V[0-9]*=value$'")
        .with("/process/env", json!(environment));

    assert_eq!(run(&workload)?.output()?, "10000\n");
    Ok(())
}

#[test]
fn an_argument_that_is_longer_than_the_kernel_takes_is_said() -> Test {
    needs_containers!();
    let long = "x".repeat(2 << 20);

    let failure = fails_alone(&Workload::new(&["echo", &long]))?;

    assert_eq!(failure.step, "executing echo");
    assert!(
        failure.message.contains("Argument list too long"),
        "{failure}"
    );
    Ok(())
}

#[test]
fn a_thousand_mounts_are_mounted() -> Test {
    needs_containers!();
    let mut workload = Workload::script("grep -c ' /many/' /proc/self/mountinfo");
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.extend((0..1000).map(|number| {
            json!({ "destination": format!("/many/{number}"), "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"] })
        }));
    }

    assert_eq!(run(&workload)?.output()?, "1000\n");
    Ok(())
}

#[test]
fn a_capability_that_nobody_knows_is_left_out() -> Test {
    needs_containers!();
    let names = json!(["CAP_CHOWN", "CAP_FLYING"]);
    let workload = Workload::script("grep CapEff /proc/self/status | tr -d '\\t'").with(
        "/process/capabilities",
        json!({ "bounding": names, "effective": names, "permitted": names }),
    );

    assert_eq!(run(&workload)?.output()?, "CapEff:0000000000000001\n");
    Ok(())
}

#[test]
fn a_wrong_type_is_named_by_its_path() -> Test {
    needs_containers!();
    let workload = Workload::new(&["true"]).with("/process/user", json!({ "uid": "root" }));

    let failure = fails_alone(&workload)?;

    assert_eq!(failure.step, "process.user.uid");
    assert_eq!(
        failure.message,
        "invalid type: string \"root\", expected u32"
    );
    Ok(())
}

#[test]
fn a_terminal_without_its_file_system_is_said() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["true"]).with("/process/terminal", json!(true));
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.retain(|mount| mount["destination"] != "/dev/pts");
    }

    let failure = fails_alone(&workload)?;

    assert_eq!(failure.step, "making a terminal");
    Ok(())
}

#[test]
fn a_working_directory_that_is_a_file_is_named() -> Test {
    needs_containers!();

    let failure =
        fails_alone(&Workload::new(&["true"]).with("/process/cwd", json!("/etc/passwd")))?;

    assert_eq!(failure.step, "entering the working directory /etc/passwd");
    Ok(())
}

#[test]
fn a_mount_on_a_file_is_named() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["true"]);
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.push(json!({ "destination": "/etc/passwd/x", "type": "tmpfs", "source": "tmpfs" }));
    }

    let failure = fails_alone(&workload)?;

    assert_eq!(failure.step, "mounting /etc/passwd/x");
    Ok(())
}

#[test]
fn each_field_of_another_system_is_refused_by_name() -> Test {
    needs_containers!();
    for (pointer, value) in [
        ("/windows", json!({ "layerFolders": ["x"] })),
        ("/vm", json!({ "kernel": { "path": "/x" } })),
        ("/process/selinuxLabel", json!("label")),
        ("/linux/intelRdt", json!({ "closID": "x" })),
        ("/linux/mountLabel", json!("label")),
        ("/linux/netDevices", json!({ "eth0": {} })),
        ("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" })),
    ] {
        let failure = fails_alone(&Workload::new(&["true"]).with(pointer, value))?;

        let field = pointer.trim_start_matches('/').replace('/', ".");
        assert_eq!(
            (failure.kind, failure.step),
            (FailureKind::Unsupported, field)
        );
    }
    Ok(())
}
