//! Hooks, by what they leave in a directory of the machine: runtime-spec `config.md`, "POSIX-platform Hooks", and `runtime.md`,
//! "Lifecycle".

use std::path::PathBuf;
use std::time::{Duration, Instant};

use protocol::{Report, Request};
use serde_json::{Value, json};

use crate::harness::{Agent, Failure, Run, Workload, cgroup_goes, cgroup_remains};
use crate::{CONTAINERS, Test, needs_containers};

/// An agent, and a workload that has a directory of the machine at `/shared`.
fn agent_and_workload(script: &str) -> Result<(Agent, Workload, PathBuf), Failure> {
    let agent = Agent::start()?;
    let shared = agent.image().join("shared");
    std::fs::create_dir(&shared)?;
    let mut workload = Workload::script(script);
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.push(json!({
            "destination": "/shared", "type": "bind", "source": shared.to_string_lossy(), "options": ["rbind"]
        }));
    }
    Ok((agent, workload, shared))
}

fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"] })
}

/// A hook that says in the order of all hooks when it was called, and with what.
fn note(name: &str) -> Value {
    hook(&format!(
        "echo {name} >> /shared/order; cat > /shared/{name}"
    ))
}

#[test]
fn hooks_run_in_the_order_of_the_lifecycle() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("echo program >> /shared/order")?;
    let early = |name: &str| hook(&format!("echo {name} >> /shared/order; test -e /dev/null"));
    let workload = workload.with(
        "/hooks",
        json!({
            "prestart": [early("prestart")], "createRuntime": [early("createRuntime")],
            "createContainer": [early("createContainer")], "startContainer": [early("startContainer")],
            "poststart": [note("poststart")], "poststop": [note("poststop")]
        }),
    );

    let run = agent.run(&workload)?;

    assert_eq!(run, Run::exited(0, "", ""));
    let order = std::fs::read_to_string(shared.join("order"))?;
    let mut order: Vec<&str> = order.lines().collect();
    // The program and the hook after its start are at work at the same time.
    order[4..6].sort_unstable();
    assert_eq!(
        order,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "program",
            "poststop"
        ]
    );
    Ok(())
}

#[test]
fn a_hook_reads_the_containers_state() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("sleep 0.1")?;
    let workload = workload
        .with("/annotations", json!({ "org.example.key": "value" }))
        .with(
            "/hooks",
            json!({ "startContainer": [hook("cat > /shared/startContainer")], "poststart": [note("poststart")],
                "poststop": [note("poststop")] }),
        );

    agent.run(&workload)?;

    let state = |name: &str| -> Result<Value, Failure> {
        Ok(serde_json::from_slice(&std::fs::read(shared.join(name))?)?)
    };
    let running = state("poststart")?;
    assert_eq!(
        (
            &running["status"],
            &running["id"],
            &running["ociVersion"],
            &running["annotations"]
        ),
        (
            &json!("running"),
            &json!("1"),
            &json!("1.2.0"),
            &json!({ "org.example.key": "value" })
        )
    );
    assert!(
        running["pid"].as_u64().is_some_and(|pid| pid > 1),
        "{running}"
    );
    // For a hook in the container it is the pid as the container knows it.
    assert_eq!(
        (
            &state("startContainer")?["status"],
            &state("startContainer")?["pid"]
        ),
        (&json!("created"), &json!(1))
    );
    let stopped = state("poststop")?;
    assert_eq!(
        (&stopped["status"], &stopped["pid"]),
        (&json!("stopped"), &Value::Null)
    );
    Ok(())
}

#[test]
fn hooks_are_in_the_namespaces_that_the_specification_names() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("readlink /proc/self/ns/net; sleep 0.2")?;
    let workload = workload.with(
        "/hooks",
        json!({ "startContainer": [hook("readlink /proc/self/ns/net > /shared/startContainer.net")],
            "poststart": [hook("mkdir /p && mount -t proc proc /p && readlink /p/self/ns/net > /shared/poststart.net")] }),
    );

    let inside = agent.run(&workload)?.output()?;

    let own = std::fs::read_link("/proc/self/ns/net")?
        .to_string_lossy()
        .into_owned();
    let of = |name: &str| std::fs::read_to_string(shared.join(name));
    assert_eq!(of("startContainer.net")?, inside);
    assert_eq!(of("poststart.net")?.trim(), own);
    Ok(())
}

/// How a workload fails whose hook does, and whether its program ran and its `poststop` hook did.
fn with_failing(
    list: &str,
    failing: &Value,
) -> Result<(protocol::StartFailure, bool, bool), Failure> {
    let (agent, workload, shared) = agent_and_workload("touch /shared/program; sleep 100")?;
    let workload = workload.with(
        "/hooks",
        json!({ list: [failing], "poststop": [hook("touch /shared/poststop")] }),
    );

    let (_control, failure) = agent.fails_to_start(&workload)?;

    assert!(cgroup_goes(CONTAINERS[0]), "nothing remains");
    Ok((
        failure,
        shared.join("program").exists(),
        shared.join("poststop").exists(),
    ))
}

#[test]
fn a_hook_that_fails_before_the_start_keeps_the_program_from_it() -> Test {
    needs_containers!();
    for list in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
    ] {
        let (failure, ran, stopped) = with_failing(list, &hook("echo why >&2; exit 3"))?;

        assert_eq!(failure.step, format!("running the {list} hook /bin/sh"));
        assert_eq!(failure.message, "it exited with 3: why");
        assert_eq!((ran, stopped), (false, true), "{list}");
    }
    Ok(())
}

#[test]
fn a_hook_that_fails_after_the_start_keeps_nothing_from_going_on() -> Test {
    needs_containers!();
    let (agent, workload, shared) =
        agent_and_workload("while test ! -e /shared/second; do sleep 0.05; done; exit 4")?;
    let workload = workload.with(
        "/hooks",
        json!({ "poststart": [hook("kill -TERM $$"), note("second")] }),
    );

    assert_eq!(
        agent.run(&workload)?.status()?,
        protocol::ExitStatus::Code(4)
    );
    assert!(shared.join("second").exists());
    Ok(())
}

#[test]
fn a_hook_that_does_not_exist_is_named() -> Test {
    needs_containers!();

    let (failure, ..) = with_failing("createRuntime", &json!({ "path": "/not/there" }))?;

    assert_eq!(failure.step, "running the createRuntime hook /not/there");
    assert!(
        failure.message.contains("No such file or directory"),
        "{failure}"
    );
    Ok(())
}

#[test]
fn a_hook_that_hangs_is_ended_after_its_time() -> Test {
    needs_containers!();
    let mut hanging = hook("sleep 1000 & sleep 1000");
    hanging["timeout"] = json!(1);
    let begin = Instant::now();

    let (failure, ..) = with_failing("createContainer", &hanging)?;

    assert_eq!(failure.message, "it took longer than 1 s");
    assert!(begin.elapsed() < Duration::from_secs(10));
    Ok(())
}

#[test]
fn while_a_hook_hangs_the_agent_serves_and_the_process_can_be_killed() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("true")?;
    let workload = workload.with(
        "/hooks",
        json!({ "createRuntime": [hook("touch /shared/hangs; sleep 1000")] }),
    );
    let mut other = Workload::new(&["true"]);
    other.container = CONTAINERS[1];
    let other = other.with(
        "/linux/cgroupsPath",
        json!(crate::harness::cgroup_name(CONTAINERS[1])),
    );
    let mut control = agent.control()?;
    for workload in [&workload, &other] {
        let create = workload.create(&agent.image(), protocol::DeclaredStreams::default());
        control.send(&Request::Create(Box::new(create)))?;
        control.send(&Request::Start(workload.process()))?;
    }

    let served = [control.report()?, control.report()?];
    let begin = Instant::now();
    while !shared.join("hangs").exists() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
    }
    control.send(&Request::Signal {
        process: workload.process(),
        signal: 9,
    })?;
    let killed = control.report()?;

    assert!(
        matches!(&served, [Report::Started { process: a, .. }, Report::Exited { process: b, .. }] if *a == other.process() && *b == other.process()),
        "{served:?}"
    );
    assert!(
        matches!(&killed, Report::NotStarted { process, .. } if *process == workload.process()),
        "{killed:?}"
    );
    assert!(cgroup_goes(CONTAINERS[0]));
    Ok(())
}

#[test]
fn a_poststop_hook_that_fails_changes_nothing() -> Test {
    needs_containers!();
    let (agent, workload, _) = agent_and_workload("exit 7")?;
    let workload = workload.with(
        "/hooks",
        json!({ "poststop": [hook("exit 1"), hook("exit 2")] }),
    );

    assert_eq!(
        agent.run(&workload)?.status()?,
        protocol::ExitStatus::Code(7)
    );
    Ok(())
}

#[test]
fn poststop_hooks_after_one_that_fails_run_all_the_same() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("true")?;
    let workload = workload.with(
        "/hooks",
        json!({ "poststop": [hook("exit 1"), note("second")] }),
    );

    let run = agent.run(&workload)?;

    assert_eq!(run.status()?, protocol::ExitStatus::Code(0));
    assert_eq!(std::fs::read_to_string(shared.join("order"))?, "second\n");
    Ok(())
}

#[test]
fn a_start_container_hook_begins_in_the_programs_working_directory() -> Test {
    needs_containers!();
    let (agent, workload, _) = agent_and_workload("cat /directory")?;
    let workload = workload.with("/process/cwd", json!("/dev")).with(
        "/hooks",
        json!({ "startContainer": [hook("pwd > /directory")] }),
    );

    assert_eq!(agent.run(&workload)?, Run::exited(0, "/dev\n", ""));
    Ok(())
}

#[test]
fn when_poststop_hooks_run_the_cgroup_is_gone() -> Test {
    needs_containers!();
    let (agent, workload, shared) = agent_and_workload("true")?;
    let workload = workload.with(
        "/hooks",
        json!({ "poststop": [hook("while test ! -e /shared/seen; do sleep 0.05; done")] }),
    );
    let mut control = agent.control()?;
    let create = workload.create(&agent.image(), protocol::DeclaredStreams::default());
    control.send(&Request::Create(Box::new(create)))?;
    control.send(&Request::Start(workload.process()))?;
    let started = control.report()?;

    let is_gone = cgroup_goes(CONTAINERS[0]) && !cgroup_remains(CONTAINERS[0]);
    std::fs::write(shared.join("seen"), "")?;

    assert!(matches!(started, Report::Started { .. }), "{started:?}");
    assert!(is_gone);
    assert!(matches!(control.report()?, Report::Exited { .. }));
    Ok(())
}

#[test]
fn a_container_with_hooks_is_not_made_ahead() -> Test {
    needs_containers!();
    let workload = Workload::new(&["true"]).with("/hooks", json!({ "poststop": [hook("true")] }));
    let staged = workload.config.clone();

    let agent = Agent::start_staged(|image| {
        let mut create = workload.create(image, protocol::DeclaredStreams::default());
        create.config = staged.to_string().into_bytes();
        Some(create)
    })?;

    assert_eq!(Agent::processes_of(CONTAINERS[0]), Vec::<u32>::new());
    assert_eq!(agent.run(&workload)?, Run::exited(0, "", ""));
    Ok(())
}
