//! Containers that wait for what is to run in them.

use protocol::{Create, DeclaredStreams, ExitStatus, FailureKind};
use serde_json::json;

use crate::harness::{Agent, CONTAINERS, Failure, Run, Workload, cgroup_goes};
use crate::needs_containers;

type Test = Result<(), Failure>;

/// What a host asks for before it knows what is to run: a container, and a process that says nothing of the one to come.
pub(crate) fn container_of(workload: &Workload, image: &std::path::Path) -> Create {
    let mut create = workload.create(image, DeclaredStreams::default());
    let mut config = workload.config.clone();
    config["process"] = json!({ "args": ["sh"], "cwd": "/" });
    config["hostname"] = json!(null);
    config["root"] = json!({ "path": "rootfs" });
    create.config = config.to_string().into_bytes();
    create.user = None;
    create.seccomp = None;
    create
}

/// An agent in which the workload's container waits.
fn agent_for(workload: &Workload) -> Result<Agent, Failure> {
    Agent::start_staged(|image| Some(container_of(workload, image)))
}

/// How many processors a program may use that nobody keeps from it.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn first_process() -> Option<u32> {
    let [container, _] = CONTAINERS;
    Agent::processes_of(container).first().copied()
}

#[test]
fn a_container_waits_and_its_process_becomes_the_program() -> Test {
    needs_containers!();
    let workload = Workload::script("cat; echo $WORD $HOME; id -u; id -G; pwd; hostname; echo err >&2; grep ^0: /proc/self/cgroup; nproc; exit 3")
        .with("/process/env", json!(["PATH=/bin", "WORD=given"]))
        .with("/process/cwd", json!("/made/here"))
        .with("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]))
        .user("app")
        .stdin(b"in\n");
    let agent = agent_for(&workload)?;
    let waiting = first_process();
    assert!(waiting.is_some(), "it is there before anybody asks for it");

    let run = agent.run(&workload)?;

    let expected = "in\ngiven /home/app\n1000\n1001 27\n/made/here\ninside\n0::/\n";
    let expected = format!("{expected}{}\n", processors());
    assert_eq!(run, Run::exited(3, &expected, "err\n"));
    assert!(cgroup_goes(CONTAINERS[0]), "nothing remains of it");
    Ok(())
}

#[test]
fn the_process_that_waited_is_the_programs() -> Test {
    needs_containers!();
    let workload = Workload::script("echo $$; sleep 1000");
    let agent = agent_for(&workload)?;
    let waiting = first_process();

    let process = workload.process();
    let mut control = agent.control()?;
    let create = workload.create(&agent.image(), DeclaredStreams::default());
    control.send(&protocol::Request::Create(Box::new(create)))?;
    control.send(&protocol::Request::Start(process))?;
    assert!(control.report()?.is_start_of(process));

    assert_eq!(first_process(), waiting);
    Ok(())
}

#[test]
fn a_terminal_is_made_in_a_container_that_waited() -> Test {
    needs_containers!();
    let workload = Workload::script("tty; stty size; exit 4")
        .with("/process/consoleSize", json!({ "height": 33, "width": 99 }))
        .terminal();
    let agent = agent_for(&workload)?;

    let run = agent.run(&workload)?;

    assert!(
        matches!(&run, Run::Exited { status: ExitStatus::Code(4), stdout, .. } if stdout == b"/dev/pts/0\r\n33 99\r\n"),
        "{run:?}"
    );
    Ok(())
}

#[test]
fn a_container_that_is_not_wanted_makes_room() -> Test {
    needs_containers!();
    let staged = Workload::script("true");
    let mut other = Workload::script("cat /proc/sys/kernel/shmmni; ls -d /extra; nproc")
        .with("/linux/sysctl", json!({ "kernel.shmmni": "77" }));
    if let Some(mounts) = other.config["mounts"].as_array_mut() {
        mounts.push(json!({ "destination": "/extra", "type": "tmpfs", "source": "tmpfs" }));
    }
    let agent = agent_for(&staged)?;
    let waiting = first_process();

    let run = agent.run(&other)?;

    assert_eq!(
        run,
        Run::exited(0, &format!("77\n/extra\n{}\n", processors()), "")
    );
    let is_alive = |pid: u32| std::path::Path::new("/proc").join(pid.to_string()).exists();
    assert!(!waiting.is_some_and(is_alive));
    Ok(())
}

#[test]
fn what_is_too_long_to_be_told_runs_in_a_container_of_its_own() -> Test {
    needs_containers!();
    let long = "x".repeat(100_000);
    let environment = json!([
        "PATH=/bin",
        format!("A={long}"),
        format!("B={long}"),
        format!("C={long}")
    ]);
    let workload = Workload::script("echo ${#A} ${#B} ${#C}").with("/process/env", environment);
    let agent = agent_for(&workload)?;

    let run = agent.run(&workload)?;

    assert_eq!(run, Run::exited(0, "100000 100000 100000\n", ""));
    Ok(())
}

#[test]
fn a_container_that_cannot_be_built_is_refused_to_who_wants_it() -> Test {
    needs_containers!();
    let workload = Workload::script("true").with("/linux/sysctl", json!({ "net.not-there": "1" }));
    let agent = agent_for(&workload)?;

    let failure = agent.run(&workload)?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (
            FailureKind::Failed,
            "setting the kernel parameter net/not-there to 1"
        )
    );
    Ok(())
}

#[test]
fn a_container_with_its_own_users_waits_like_any_other() -> Test {
    needs_containers!();
    let range = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let workload = Workload::script("id -u; cut -d' ' -f19 /proc/self/stat; ulimit -n; exit 3")
        .with("/linux/uidMappings", range.clone())
        .with("/linux/gidMappings", range)
        .with(
            "/linux/namespaces",
            json!([{ "type": "user" }, { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" },
                { "type": "network" }]),
        )
        .with("/process/scheduler", json!({ "policy": "SCHED_OTHER", "nice": -3 }))
        .with("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]));
    let agent = agent_for(&workload)?;
    let waiting = first_process();
    assert!(waiting.is_some(), "it is there before anybody asks for it");

    let run = agent.run(&workload)?;

    assert_eq!(run, Run::exited(3, "0\n-3\n77\n", ""));
    Ok(())
}
