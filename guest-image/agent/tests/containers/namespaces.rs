//! Namespaces, and who owns what in them: runtime-spec `config-linux.md`, "Namespaces", "User namespace mappings", "Offset for Time
//! Namespace", and `config.md`, "Mounts", `idmap`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use protocol::{ExitStatus, FailureKind};
use serde_json::{Value, json};

use crate::harness::{Agent, Failure, Workload};
use crate::{Test, needs_containers, run, run_in};

/// The namespaces of a container with a user namespace.
fn user_namespaces() -> Value {
    json!([
        { "type": "user" }, { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" },
        { "type": "network" }, { "type": "cgroup" }
    ])
}

fn mapping(container: u32, host: u32, size: u32) -> Value {
    json!([{ "containerID": container, "hostID": host, "size": size }])
}

/// A workload whose root is user 100,000 of the machine.
fn with_users(workload: Workload) -> Workload {
    workload
        .with("/linux/namespaces", user_namespaces())
        .with("/linux/uidMappings", mapping(0, 100_000, 65_536))
        .with("/linux/gidMappings", mapping(0, 200_000, 65_536))
}

/// A process beside the agent in new namespaces, to be joined by others.
struct Neighbour {
    process: Child,
    /// Its id as the agent knows it.
    id: String,
    /// Its IPC and its network namespace.
    links: [String; 2],
}

impl Neighbour {
    fn new(agent: &Agent, options: &[&str]) -> Result<Self, Failure> {
        // The first line is the id of the process that the namespaces are made for; the others say that they are, and which.
        let script = "echo $$; exec unshare \"$@\" sh -c 'hostname neighbour 2>/dev/null; \
            readlink /proc/self/ns/ipc /proc/self/ns/net; sleep 1000; exit'";
        let mut process = Command::new("nsenter")
            .args(["--mount", "--pid", "--target", &agent.init()?])
            .args(["sh", "-c", script, "sh"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = process
            .stdout
            .take()
            .map(BufReader::new)
            .ok_or("no output")?
            .lines();
        let id = lines.next().ok_or("no id")??;
        let mut link = || lines.next().ok_or("no namespace");
        let links = [link()??, link()??];
        Ok(Self { process, id, links })
    }

    /// The path of one of its namespaces, in the agent's own.
    fn path(&self, name: &str) -> String {
        format!("/proc/{}/ns/{name}", self.id)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_user_namespace_has_its_root_and_its_ids() -> Test {
    needs_containers!();
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; cat /proc/self/setgroups";

    let said = run(&with_users(Workload::script(script)))?.output()?;

    assert_eq!(said, "0\n0\n 0 100000 65536\n 0 200000 65536\nallow\n");
    Ok(())
}

#[test]
fn in_a_user_namespace_the_images_files_are_roots() -> Test {
    needs_containers!();
    let script = "stat -c '%u %g' / /bin/busybox /proc/1; touch /made && stat -c '%u %g' /made";

    let said = run(&with_users(Workload::script(script)))?.output()?;

    assert_eq!(said, "0 0\n0 0\n0 0\n0 0\n");
    Ok(())
}

#[test]
fn in_a_user_namespace_devices_terminals_and_kernel_file_systems_work() -> Test {
    needs_containers!();
    let script = "head -c 3 /dev/zero | wc -c; echo x > /dev/null; stat -c '%t:%T %u %a' /dev/null /dev/mem2; ls /sys/class/net; \
        echo seen > /dev/stdout; ls -d /proc/1 /proc/keys";
    let device = json!([{ "type": "c", "path": "/dev/mem2", "major": 1, "minor": 5, "uid": 7, "fileMode": 0o600 }]);

    let said =
        run(&with_users(Workload::script(script)).with("/linux/devices", device))?.output()?;

    assert_eq!(
        said,
        "3\n1:3 0 666\n1:5 7 600\nlo\nseen\n/proc/1\n/proc/keys\n"
    );
    Ok(())
}

#[test]
fn in_a_user_namespace_a_terminal_works() -> Test {
    needs_containers!();

    let said = run(&with_users(Workload::script("test -t 1 && echo yes")).terminal())?.output()?;

    assert_eq!(said, "yes\r\n");
    Ok(())
}

#[test]
fn in_a_user_namespace_limits_and_scores_are_as_high_as_asked() -> Test {
    needs_containers!();
    let workload = with_users(Workload::script(
        "ulimit -Hn; cat /proc/self/oom_score_adj; cut -d' ' -f19 /proc/self/stat",
    ))
    .with(
        "/process/rlimits",
        json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 1000 }]),
    )
    .with("/process/oomScoreAdj", json!(500))
    .with(
        "/process/scheduler",
        json!({ "policy": "SCHED_OTHER", "nice": -3 }),
    );

    // The last only the machine's root can give; so it can higher limits and lower scores, which not every host lets its root do.
    assert_eq!(run(&workload)?.output()?, "1000\n500\n-3\n");
    Ok(())
}

#[test]
fn in_a_user_namespace_a_plain_user_has_its_own_files() -> Test {
    needs_containers!();
    let workload = with_users(Workload::script(
        "id -u; echo x > /dev/stderr; cat /etc/passwd | head -1",
    ))
    .user("app");

    assert_eq!(
        run(&workload)?,
        crate::harness::Run::exited(0, "1000\nroot:x:0:0:root:/root:/bin/sh\n", "x\n")
    );
    Ok(())
}

#[test]
fn a_user_namespace_without_a_network_of_its_own_sees_the_machines() -> Test {
    needs_containers!();
    let namespaces = json!([{ "type": "user" }, { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }]);
    let workload = with_users(Workload::script(
        "test -d /sys/class/net/lo && touch /sys/x 2>/dev/null || echo read-only",
    ))
    .with("/linux/namespaces", namespaces);

    assert_eq!(run(&workload)?.output()?, "read-only\n");
    Ok(())
}

#[test]
fn what_fails_in_a_user_namespace_is_named_and_leaves_nothing() -> Test {
    needs_containers!();
    let mounts = json!([{ "destination": "/x", "type": "ext4", "source": "/dev/null" }]);
    let agent = Agent::start()?;

    let workload = with_users(Workload::new(&["true"])).with("/mounts", mounts);

    let (_control, failure) = agent.fails_to_start(&workload)?;

    assert_eq!(failure.step, "mounting /x");
    assert!(crate::harness::cgroup_goes(crate::CONTAINERS[0]));
    Ok(())
}

#[test]
fn a_user_namespace_without_a_root_is_refused() -> Test {
    needs_containers!();
    let workload = with_users(Workload::new(&["true"]))
        .with("/linux/uidMappings", mapping(5, 100_000, 10))
        .with("/linux/gidMappings", mapping(5, 100_000, 10));

    let failure = run(&workload)?.failure()?;

    assert_eq!(failure.step, "becoming the root of the user namespace");
    Ok(())
}

#[test]
fn mappings_that_the_kernel_refuses_are_named() -> Test {
    needs_containers!();
    let twice = json!([
        { "containerID": 0, "hostID": 1000, "size": 10 },
        { "containerID": 5, "hostID": 3000, "size": 10 }
    ]);

    let failure =
        run(&with_users(Workload::new(&["true"])).with("/linux/uidMappings", twice))?.failure()?;

    assert!(
        failure
            .step
            .starts_with("mapping ids (uid_map: 0 1000 10, 5 3000 10)"),
        "{failure}"
    );
    Ok(())
}

#[test]
fn a_program_that_is_missing_in_a_user_namespace_is_not_found() -> Test {
    needs_containers!();

    let failure = run(&with_users(Workload::new(&["no-such-program"])))?.failure()?;

    assert_eq!(failure.kind, FailureKind::NotFound);
    Ok(())
}

#[test]
fn the_exit_of_a_program_in_a_user_namespace_is_its_own() -> Test {
    needs_containers!();

    assert_eq!(
        run(&with_users(Workload::script("exit 17")))?.status()?,
        ExitStatus::Code(17)
    );
    Ok(())
}

#[test]
fn a_time_namespace_has_its_own_clocks() -> Test {
    needs_containers!();
    let workload = Workload::script("cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time");
    let mut namespaces = workload.config["linux"]["namespaces"].clone();
    if let Value::Array(namespaces) = &mut namespaces {
        namespaces.push(json!({ "type": "time" }));
    }
    let workload = workload.with("/linux/namespaces", namespaces).with(
        "/linux/timeOffsets",
        json!({ "boottime": { "secs": 1_000_000_000 }, "monotonic": { "secs": 5, "nanosecs": 7 } }),
    );

    let said = run(&workload)?.output()?;

    let uptime: u64 = said.lines().next().unwrap_or_default().parse()?;
    assert!(uptime >= 1_000_000_000, "{said}");
    let own = std::fs::read_link("/proc/self/ns/time")?;
    assert!(!said.contains(&*own.to_string_lossy()));
    Ok(())
}

#[test]
fn namespaces_are_joined_by_their_paths() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let neighbour = Neighbour::new(&agent, &["--uts", "--ipc", "--net"])?;
    let joined = |kind: &str, name: &str| json!({ "type": kind, "path": neighbour.path(name) });
    let mut workload = Workload::script("hostname; readlink /proc/self/ns/ipc; readlink /proc/self/ns/net").with(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "pid" }, joined("uts", "uts"), joined("ipc", "ipc"), joined("network", "net")]),
    );
    workload.config["hostname"] = json!("");

    let said = agent.run(&workload)?.output()?;

    let [ipc, net] = &neighbour.links;
    assert_eq!(said, format!("neighbour\n{ipc}\n{net}\n"));
    Ok(())
}

#[test]
fn a_pid_namespace_is_joined_by_its_path() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let neighbour = Neighbour::new(&agent, &["--pid", "--fork", "--kill-child"])?;
    let path = neighbour.path("pid_for_children");
    let workload = Workload::script("test $$ -ne 1 && grep -c sleep /proc/1/cmdline; exit 3").with(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "pid", "path": path }]),
    );

    let run = agent.run(&workload)?;

    let crate::harness::Run::Exited { status, stdout, .. } = run else {
        return Err(format!("{run:?}").into());
    };
    assert_eq!(String::from_utf8(stdout)?, "1\n");
    assert_eq!(status, ExitStatus::Code(3));
    Ok(())
}

#[test]
fn a_namespace_of_another_type_is_refused() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let neighbour = Neighbour::new(&agent, &["--uts"])?;
    let path = neighbour.path("uts");
    let namespaces =
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "ipc", "path": path }]);

    let failure = agent
        .run(&Workload::new(&["true"]).with("/linux/namespaces", namespaces))?
        .failure()?;

    assert_eq!(failure.step, format!("joining the ipc namespace {path}"));
    Ok(())
}

#[test]
fn a_namespace_that_does_not_exist_is_named() -> Test {
    needs_containers!();
    let namespaces =
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "ipc", "path": "/not/there" }]);

    let failure =
        run(&Workload::new(&["true"]).with("/linux/namespaces", namespaces))?.failure()?;

    assert_eq!(failure.step, "opening the ipc namespace /not/there");
    Ok(())
}

#[test]
fn a_bind_mount_shows_mapped_ids() -> Test {
    needs_containers!();
    let prepare = |agent: &Agent| -> Test {
        let file = agent.image().join("etc/owned");
        std::fs::write(&file, "")?;
        Ok(std::os::unix::fs::chown(file, Some(5), Some(6))?)
    };
    let agent = Agent::start()?;
    prepare(&agent)?;
    let source = agent.image().join("etc").to_string_lossy().into_owned();
    let mut workload = Workload::new(&["stat", "-c", "%u %g", "/mapped/owned"]);
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.push(json!({
            "destination": "/mapped", "type": "bind", "source": source, "options": ["bind", "idmap"],
            "uidMappings": mapping(0, 1000, 10), "gidMappings": mapping(0, 2000, 10)
        }));
    }

    assert_eq!(agent.run(&workload)?.output()?, "1005 2006\n");
    Ok(())
}

#[test]
fn a_mapped_mount_without_mappings_takes_the_containers() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let source = agent.image().join("etc").to_string_lossy().into_owned();
    let mut workload = with_users(Workload::new(&[
        "stat",
        "-c",
        "%u %g",
        "/mapped/passwd",
        "/plain/passwd",
    ]));
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.push(json!({ "destination": "/mapped", "type": "bind", "source": source, "options": ["rbind", "ridmap"] }));
        mounts.push(json!({ "destination": "/plain", "type": "bind", "source": source, "options": ["rbind"] }));
    }

    assert_eq!(agent.run(&workload)?.output()?, "0 0\n65534 65534\n");
    Ok(())
}

#[test]
fn mapped_ids_without_any_mappings_are_refused_by_name() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["true"]);
    if let Value::Array(mounts) = &mut workload.config["mounts"] {
        mounts.push(json!({ "destination": "/x", "type": "bind", "source": "/bin", "options": ["bind", "idmap"] }));
    }

    let failure = run_in(&workload, |_| Ok(()))?.failure()?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Unsupported, "mounts.options")
    );
    Ok(())
}
