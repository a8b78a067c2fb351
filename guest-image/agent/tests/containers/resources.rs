//! Control groups and devices, seen from inside and from beside: runtime-spec `config-linux.md`, "Control groups" and "Devices".

use std::path::Path;

use protocol::{FailureKind, Report, Request};
use serde_json::{Value, json};

use crate::harness::{
    Agent, Failure, Workload, cgroup_goes, cgroup_name, cgroup_path, cgroup_remains,
};
use crate::{Test, needs_containers, run};

/// Major and minor number of the kernel's log, which any machine has and no container needs.
const LOG: (u32, u32) = (1, 11);

/// A container that has the kernel's log as a device, and tries to read it.
fn reads_log(rules: Option<Value>) -> Workload {
    let device =
        json!([{ "type": "c", "path": "/dev/log-of-kernel", "major": LOG.0, "minor": LOG.1 }]);
    let workload =
        Workload::script("dd if=/dev/log-of-kernel of=/dev/null count=0 2>&1 && echo read")
            .with("/linux/devices", device)
        .with(
            "/process/capabilities",
            json!({ "bounding": ["CAP_SYSLOG"], "effective": ["CAP_SYSLOG"], "permitted": ["CAP_SYSLOG"] }),
        );
    match rules {
        Some(rules) => workload.with("/linux/resources", json!({ "devices": rules })),
        None => workload,
    }
}

#[test]
fn a_device_that_the_rules_deny_cannot_be_opened() -> Test {
    needs_containers!();
    let rules = json!([{ "allow": false, "access": "rwm" }]);

    let run = run(&reads_log(Some(rules)))?;

    let crate::harness::Run::Exited { stdout, .. } = run else {
        return Err(format!("{run:?}").into());
    };
    let said = String::from_utf8(stdout)?;
    assert!(said.contains("Operation not permitted"), "{said}");
    Ok(())
}

#[test]
fn a_device_that_the_rules_allow_can_be_opened() -> Test {
    needs_containers!();
    let rules = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": LOG.0, "minor": LOG.1, "access": "r" }
    ]);

    assert!(run(&reads_log(Some(rules)))?.output()?.contains("read\n"));
    Ok(())
}

#[test]
fn without_rules_every_device_can_be_opened() -> Test {
    needs_containers!();

    assert!(run(&reads_log(None))?.output()?.contains("read\n"));
    Ok(())
}

#[test]
fn under_rules_the_default_devices_work() -> Test {
    needs_containers!();
    let workload =
        Workload::script("head -c 4 /dev/zero | wc -c; echo x > /dev/null && echo written").with(
            "/linux/resources",
            json!({ "devices": [{ "allow": false, "access": "rwm" }] }),
        );

    assert_eq!(run(&workload)?.output()?, "4\nwritten\n");
    Ok(())
}

#[test]
fn a_device_takes_no_other_files_place() -> Test {
    needs_containers!();
    let device = json!([{ "type": "c", "path": "/etc/passwd", "major": 1, "minor": 3 }]);

    let failure = run(&Workload::new(&["true"]).with("/linux/devices", device))?.failure()?;

    assert_eq!(failure.step, "making device /etc/passwd");
    Ok(())
}

#[test]
fn a_default_device_may_have_other_permissions() -> Test {
    needs_containers!();
    let device = json!([{ "type": "c", "path": "/dev/null", "major": 1, "minor": 3, "fileMode": 0o640, "gid": 7 }]);

    let said =
        run(&Workload::new(&["stat", "-c", "%a %g", "/dev/null"]).with("/linux/devices", device))?;

    assert_eq!(said.output()?, "640 7\n");
    Ok(())
}

/// Starts a container that waits, and gives what one of its cgroup's files says.
fn file_of_cgroup(workload: &Workload, file: &str) -> Result<Option<String>, Failure> {
    let agent = Agent::start()?;
    let mut control = agent.control()?;
    let process = workload.process();
    let create = workload.create(&agent.image(), protocol::DeclaredStreams::default());
    control.send(&Request::Create(Box::new(create)))?;
    control.send(&Request::Start(process))?;
    match control.report()? {
        Report::Started { .. } => (),
        other => return Err(format!("{other:?}").into()),
    }
    let read = cgroup_path(workload.container)
        .and_then(|path| std::fs::read_to_string(path.join(file)).ok());
    control.send(&Request::Signal { process, signal: 9 })?;
    control.report()?;
    Ok(read)
}

/// Whether the hierarchy that the agent mounts here lets a controller be used; only a guest's surely does.
fn has_controller(name: &str) -> bool {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .filter_map(|hierarchy| {
            std::fs::read_to_string(Path::new(hierarchy).join("cgroup.controllers")).ok()
        })
        .any(|controllers| controllers.split_whitespace().any(|one| one == name))
}

#[test]
fn huge_pages_are_limited() -> Test {
    needs_containers!();
    if !has_controller("hugetlb") {
        return Ok(());
    }
    let workload = Workload::new(&["sleep", "100"]).with(
        "/linux/resources",
        json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
    );

    let limit = file_of_cgroup(&workload, "hugetlb.2MB.max")?;

    assert_eq!(limit.as_deref(), Some("4194304\n"));
    Ok(())
}

#[test]
fn a_controller_that_does_not_exist_is_named_and_leaves_nothing() -> Test {
    needs_containers!();
    let workload =
        Workload::new(&["true"]).with("/linux/resources", json!({ "unified": { "no.such": "1" } }));

    let failure = run(&workload)?.failure()?;

    assert!(failure.step.starts_with("enabling +no in "), "{failure}");
    assert!(!cgroup_remains(workload.container));
    Ok(())
}

#[test]
fn a_limit_that_cgroups_no_longer_have_is_refused_by_name() -> Test {
    needs_containers!();
    let workload = Workload::new(&["true"]).with(
        "/linux/resources",
        json!({ "memory": { "swappiness": 10 } }),
    );

    let failure = run(&workload)?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (
            FailureKind::Unsupported,
            "linux.resources.memory.swappiness"
        )
    );
    Ok(())
}

#[test]
fn the_cgroups_on_the_way_go_with_the_container() -> Test {
    needs_containers!();
    let mut workload = Workload::script("mkdir -p /sys/fs/cgroup/inner/most && echo made");
    let outer = cgroup_name(workload.container);
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts
            .push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" }));
    }
    let workload = workload.with("/linux/cgroupsPath", json!(format!("{outer}/middle/own")));

    let agent = Agent::start()?;
    let said = agent.run(&workload)?.output()?;

    assert_eq!(said, "made\n");
    assert!(cgroup_goes(workload.container));
    Ok(())
}

#[test]
fn two_containers_cannot_share_a_cgroup() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let mut control = agent.control()?;
    let first = Workload::new(&["sleep", "100"]);
    let mut second = Workload::new(&["sleep", "100"]);
    second.container = crate::CONTAINERS[1];
    for workload in [&first, &second] {
        let create = workload.create(&agent.image(), protocol::DeclaredStreams::default());
        control.send(&Request::Create(Box::new(create)))?;
        control.send(&Request::Start(workload.process()))?;
    }

    let reports = [control.report()?, control.report()?];

    let failure = reports.iter().find_map(|report| match report {
        Report::NotStarted { failure, .. } => Some(failure.step.as_str()),
        _ => None,
    });
    assert_eq!(failure, Some("linux.cgroupsPath"), "{reports:?}");
    Ok(())
}
