//! Processes that join a container that runs: `Exec`.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use protocol::{
    Answer, ContainerId, DeclaredStreams, Exec, ExitStatus, FailureKind, Process, ProcessId,
    Question, Report, Request, Role, StartFailure, StreamKind,
};
use serde_json::{Value, json};

use crate::harness::{Agent, CONTAINERS, Control, Failure, Workload, cgroup_remains};
use crate::seccomp::filter;
use crate::{Test, needs_containers};

/// A system call that the tests' filter refuses, and how: `arch/x86/entry/syscalls/syscall_64.tbl`, `SECCOMP_RET_ERRNO` with `EPERM`.
const MKDIR: u32 = 83;
const REFUSE: u32 = 0x0005_0001;

/// A container whose first process waits for the end of its input, and what joins it.
struct Container {
    agent: Agent,
    control: Control,
    first: Process,
    stdin: UnixStream,
    spec: Value,
}

/// How a process ended that joined.
#[derive(Debug, Eq, PartialEq)]
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Container {
    fn start(workload: &Workload) -> Result<Self, Failure> {
        let agent = Agent::start()?;
        let mut control = agent.control()?;
        let first = workload.process();
        let kind = StreamKind::Stdin;
        let stdin = agent.connect(Role::Stream {
            process: first,
            kind,
        })?;
        let streams = DeclaredStreams {
            stdin: true,
            ..DeclaredStreams::default()
        };
        let create = workload.create(&agent.image(), streams);
        control.send(&Request::Create(Box::new(create)))?;
        control.send(&Request::Start(first))?;
        match control.report()? {
            Report::Started { .. } => Ok(Self {
                agent,
                control,
                first,
                stdin,
                spec: workload.config["process"].clone(),
            }),
            other => Err(format!("not started: {other:?}").into()),
        }
    }

    fn usual() -> Result<Self, Failure> {
        Self::start(&Workload::new(&["cat"]))
    }

    fn process(&self, id: u32) -> Process {
        Process {
            container: self.first.container,
            process: ProcessId(id),
        }
    }

    fn exec(&self, id: u32, script: &str, streams: DeclaredStreams) -> Exec {
        let mut spec = self.spec.clone();
        spec["args"] = json!(["sh", "-c", script]);
        Exec {
            process: self.process(id),
            spec: spec.to_string().into_bytes(),
            user: None,
            groups: Vec::new(),
            streams,
            is_filtered: true,
        }
    }

    fn begin(&mut self, exec: Exec) -> Test {
        let process = exec.process;
        self.control.send(&Request::Exec(Box::new(exec)))?;
        self.control.send(&Request::Start(process))
    }

    fn stream(&self, id: u32, kind: StreamKind) -> Result<UnixStream, Failure> {
        let process = self.process(id);
        self.agent.connect(Role::Stream { process, kind })
    }

    /// Runs a process to its end.
    fn run(&mut self, exec: Exec, input: &[u8]) -> Result<Ended, Failure> {
        let id = exec.process.process.0;
        let mut stdin = self.stream(id, StreamKind::Stdin)?;
        let mut stdout = self.stream(id, StreamKind::Stdout)?;
        let mut stderr = self.stream(id, StreamKind::Stderr)?;
        self.begin(exec)?;
        self.starts(id)?;
        stdin.write_all(input)?;
        stdin.shutdown(Shutdown::Write)?;
        let mut ended = Ended {
            status: ExitStatus::Code(0),
            stdout: String::new(),
            stderr: String::new(),
        };
        stdout.read_to_string(&mut ended.stdout)?;
        stderr.read_to_string(&mut ended.stderr)?;
        ended.status = self.ends(id)?;
        Ok(ended)
    }

    fn script(&mut self, id: u32, script: &str) -> Result<Ended, Failure> {
        let exec = self.exec(id, script, all());
        self.run(exec, b"")
    }

    /// What a script says in the container.
    fn says(&mut self, id: u32, script: &str) -> Result<String, Failure> {
        match self.script(id, script)? {
            Ended {
                status: ExitStatus::Code(0),
                stdout,
                ..
            } => Ok(stdout),
            other => Err(format!("{other:?}").into()),
        }
    }

    fn starts(&mut self, id: u32) -> Test {
        match self.control.report()? {
            report if report.is_start_of(self.process(id)) => Ok(()),
            other => Err(format!("not a start: {other:?}").into()),
        }
    }

    fn ends(&mut self, id: u32) -> Result<ExitStatus, Failure> {
        match self.control.report()? {
            Report::Exited { process, exit } if process == self.process(id) => Ok(exit.status),
            other => Err(format!("not an end: {other:?}").into()),
        }
    }

    fn refusal(&mut self, exec: Exec) -> Result<StartFailure, Failure> {
        self.begin(exec)?;
        match self.control.report()? {
            Report::NotStarted { failure, .. } => Ok(failure),
            other => Err(format!("not refused: {other:?}").into()),
        }
    }
}

impl Container {
    /// Asks about the container, and takes the first answer.
    fn ask(&mut self, question: Question) -> Result<Answer, Failure> {
        self.control.send(&Request::Ask {
            number: 9,
            container: self.first.container,
            question,
        })?;
        match self.control.report()? {
            Report::Answer { number: 9, answer } => Ok(answer),
            other => Err(format!("no answer: {other:?}").into()),
        }
    }
}

fn all() -> DeclaredStreams {
    DeclaredStreams {
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

fn none() -> DeclaredStreams {
    DeclaredStreams::default()
}

#[test]
fn streams_and_exit_code_are_the_processs_own() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(1, "tr a-z A-Z; echo no >&2; exit 42", all());

    let ended = container.run(exec, b"yes\n")?;

    assert_eq!(
        ended,
        Ended {
            status: ExitStatus::Code(42),
            stdout: "YES\n".to_owned(),
            stderr: "no\n".to_owned(),
        }
    );
    Ok(())
}

#[test]
fn processes_are_told_with_the_ids_of_the_container() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(1, "kill -STOP $$", none());
    container.begin(exec)?;
    container.starts(1)?;

    let Answer::Processes(list) = container.ask(Question::Processes)? else {
        return Err("that is no list".into());
    };

    let told: Vec<_> = list
        .processes
        .iter()
        .map(|process| (process.pid == 1, process.parent, process.arguments.as_str()))
        .collect();
    let script = (false, 0, "sh -c kill -STOP $$");
    assert_eq!(told, [(true, 0, "cat"), script]);
    assert!(list.is_last && !list.is_cut && list.guest_memory_bytes > 0);
    Ok(())
}

#[test]
fn what_is_used_is_told_after_the_time_that_was_named() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;

    let Answer::Usage(usage) = container.ask(Question::Usage { over_ms: 20 })? else {
        return Err("that is no usage".into());
    };

    assert!(usage.over_us >= 20_000, "{usage:?}");
    assert!(usage.cpu_us < usage.over_us, "{usage:?}");
    assert_eq!(usage.tasks, 1);
    Ok(())
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;

    let resources = br#"{"memory":{"kernel":1000}}"#.to_vec();
    let answer = container.ask(Question::Limit { resources })?;

    let Answer::Failed(message) = answer else {
        return Err(format!("not refused: {answer:?}").into());
    };
    assert!(
        message.contains("linux.resources.memory.kernel"),
        "{message}"
    );
    Ok(())
}

#[test]
fn it_runs_on_the_processors_that_the_container_has_for_such() -> Test {
    needs_containers!();
    let list = "grep Cpus_allowed_list /proc/self/status | cut -f2";
    for affinity in [json!({ "initial": "0" }), json!({ "final": "0" })] {
        let workload = Workload::new(&["cat"]).with("/process/execCPUAffinity", affinity);
        let mut container = Container::start(&workload)?;
        assert_eq!(container.says(1, list)?, "0\n");
    }
    Ok(())
}

#[test]
fn processors_that_there_are_none_of_are_named() -> Test {
    needs_containers!();
    let affinity = json!({ "final": "1023" });
    let workload = Workload::new(&["cat"]).with("/process/execCPUAffinity", affinity);
    let mut container = Container::start(&workload)?;

    let failure = container.refusal(container.exec(1, "true", none()))?;

    assert_eq!(
        failure.step,
        "choosing the processors of process.execCPUAffinity"
    );
    Ok(())
}

#[test]
fn the_namespaces_are_those_of_the_first_process() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let list = |process: &str| format!("cd /proc/{process}/ns; for n in *; do readlink $n; done");

    let joined = container.says(1, &list("self"))?;

    assert_eq!(joined, container.says(2, &list("1"))?);
    Ok(())
}

#[test]
fn the_cgroup_and_the_root_are_those_of_the_first_process() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let script = "echo here > /tmp-file; cat /proc/self/cgroup; ls -di /";

    let joined = container.says(1, script)?;

    let of_first =
        "cat /proc/1/root/tmp-file >/dev/null && cat /proc/1/cgroup; ls -di /proc/1/root/";
    let of_first = container.says(2, of_first)?.replace("/proc/1/root/", "/");
    assert_eq!(joined, of_first);
    Ok(())
}

#[test]
fn rights_are_those_of_the_specification() -> Test {
    needs_containers!();
    let workload = Workload::new(&["cat"]).with("/process/noNewPrivileges", json!(true));
    let mut container = Container::start(&workload)?;
    let status = |process: &str| format!("grep -E '^(Cap|NoNew|Uid|Gid)' /proc/{process}/status");

    let joined = container.says(1, &status("self"))?;

    assert!(joined.contains("CapEff:\t0000000000000001"), "{joined}");
    assert_eq!(joined, container.says(2, &status("1"))?);
    Ok(())
}

#[test]
fn a_filter_is_the_containers_unless_it_is_not_wanted() -> Test {
    needs_containers!();
    let mut workload = Workload::new(&["cat"]);
    workload.seccomp = Some(filter(MKDIR, REFUSE));
    let mut container = Container::start(&workload)?;
    let script = "grep -w Seccomp /proc/self/status";
    let unfiltered = Exec {
        is_filtered: false,
        ..container.exec(2, script, all())
    };

    let filtered = container.says(1, script)?;
    let unfiltered = container.run(unfiltered, b"")?;

    assert_eq!(filtered, "Seccomp:\t2\n");
    assert_eq!(unfiltered.stdout, "Seccomp:\t0\n");
    Ok(())
}

#[test]
fn a_users_name_is_resolved_in_the_container() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = Exec {
        user: Some("app".to_owned()),
        ..container.exec(1, "id -u; id -g; id -G; echo $HOME", all())
    };

    let ended = container.run(exec, b"")?;

    assert_eq!(ended.stdout, "1000\n1001\n1001 27\n/home/app\n");
    Ok(())
}

#[test]
fn a_container_with_users_of_its_own_is_joined_as_its_root() -> Test {
    needs_containers!();
    let range = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    let mut workload = Workload::new(&["cat"])
        .with("/linux/uidMappings", range.clone())
        .with("/linux/gidMappings", range)
        .with("/process/oomScoreAdj", json!(100))
        .with(
            "/process/rlimits",
            json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]),
        );
    if let Some(namespaces) = workload.config["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({ "type": "user" }));
    }
    let mut container = Container::start(&workload)?;
    let script =
        "id -u; cat /proc/self/uid_map | tr -s ' '; cat /proc/self/oom_score_adj; ulimit -n";

    let joined = container.says(1, script)?;

    assert_eq!(joined, "0\n 0 100000 65536\n100\n77\n");
    Ok(())
}

#[test]
fn a_process_without_streams_has_the_null_device() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(1, "cat; echo lost; exit 3", none());

    container.begin(exec)?;

    container.starts(1)?;
    assert_eq!(container.ends(1)?, ExitStatus::Code(3));
    Ok(())
}

#[test]
fn the_end_of_a_process_ends_nothing_else() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    container.script(1, "exit 1")?;
    let [id, _] = CONTAINERS;

    container.script(2, "kill -9 $$")?;

    assert!(cgroup_remains(id));
    assert_eq!(container.says(3, "cat /proc/1/comm")?, "cat\n");
    Ok(())
}

#[test]
fn a_signal_reaches_the_process_alone() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(1, "exec sleep 1000", none());
    container.begin(exec)?;
    container.starts(1)?;

    container.control.send(&Request::Signal {
        process: container.process(1),
        signal: 15,
    })?;

    assert_eq!(container.ends(1)?, ExitStatus::Signal(15));
    assert_eq!(container.says(2, "echo still here")?, "still here\n");
    Ok(())
}

#[test]
fn the_end_of_the_first_process_ends_all_and_is_reported_last() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(1, "exec sleep 1000", none());
    container.begin(exec)?;
    container.starts(1)?;

    container.stdin.shutdown(Shutdown::Write)?;

    assert_eq!(container.ends(1)?, ExitStatus::Signal(9));
    assert_eq!(container.ends(0)?, ExitStatus::Code(0));
    Ok(())
}

#[test]
fn what_is_left_behind_with_the_output_does_not_keep_the_end_from_being_reported() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;

    let ended = container.script(1, "sleep 1000 & echo begun")?;

    assert_eq!(ended.stdout, "begun\n");
    assert_eq!(ended.status, ExitStatus::Code(0));
    Ok(())
}

#[test]
fn a_terminal_is_one_of_the_containers_own_and_hangs_up_with_its_connection() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    container.spec["terminal"] = json!(true);
    let streams = DeclaredStreams {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    let script = "trap 'exit 7' HUP; tty; while :; do sleep 0.05; done";
    let exec = container.exec(1, script, streams);
    let stdin = container.stream(1, StreamKind::Stdin)?;
    let mut stdout = container.stream(1, StreamKind::Stdout)?;
    container.begin(exec)?;
    container.starts(1)?;
    let mut line = [0; 12];
    stdout.read_exact(&mut line)?;

    drop((stdin, stdout));

    assert_eq!(&line, b"/dev/pts/0\r\n");
    assert_eq!(container.ends(1)?, ExitStatus::Code(7));
    Ok(())
}

#[test]
fn a_terminal_that_nobody_looks_at_keeps_nobody_waiting() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    container.spec["terminal"] = json!(true);
    let exec = container.exec(1, "tty && seq 100000; exit 5", none());

    container.begin(exec)?;

    container.starts(1)?;
    assert_eq!(container.ends(1)?, ExitStatus::Code(5));
    Ok(())
}

#[test]
fn what_cannot_be_executed_is_told_apart() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = |container: &Container, id, program: &str| {
        let mut exec = container.exec(id, "", none());
        let mut spec = container.spec.clone();
        spec["args"] = json!([program]);
        exec.spec = spec.to_string().into_bytes();
        exec
    };
    let missing = exec(&container, 1, "nothing");
    let not_executable = exec(&container, 2, "/not-executable");

    let missing = container.refusal(missing)?;
    let not_executable = container.refusal(not_executable)?;

    assert_eq!(missing.kind, FailureKind::NotFound);
    assert_eq!(not_executable.kind, FailureKind::NotExecutable);
    Ok(())
}

#[test]
fn a_directory_that_is_not_there_is_not_made() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    container.spec["cwd"] = json!("/nowhere");
    let exec = container.exec(1, "pwd", none());

    let failure = container.refusal(exec)?;

    assert!(failure.step.contains("/nowhere"), "{failure}");
    Ok(())
}

#[test]
fn a_container_that_is_not_there_is_not_joined() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let mut exec = container.exec(1, "true", none());
    exec.process.container = ContainerId(77);

    let failure = container.refusal(exec)?;

    assert_eq!(failure.step, "joining the container");
    Ok(())
}

#[test]
fn a_container_that_has_not_started_is_not_joined() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::new(&["true"]);
    let mut control = agent.control()?;
    let create = workload.create(&agent.image(), none());
    control.send(&Request::Create(Box::new(create)))?;
    let process = Process {
        process: ProcessId(1),
        ..workload.process()
    };
    let exec = Exec {
        process,
        spec: workload.config["process"].to_string().into_bytes(),
        user: None,
        groups: Vec::new(),
        streams: none(),
        is_filtered: true,
    };
    control.send(&Request::Exec(Box::new(exec)))?;
    control.send(&Request::Start(process))?;

    let Report::NotStarted { failure, .. } = control.report()? else {
        return Err("it started".into());
    };

    assert_eq!(failure.message, "its first process does not run");
    Ok(())
}

#[test]
fn an_id_is_not_used_twice() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    let exec = container.exec(0, "true", none());

    let failure = container.refusal(exec)?;

    assert_eq!(failure.step, "creating the process");
    Ok(())
}

#[test]
fn a_field_that_is_not_supported_is_named() -> Test {
    needs_containers!();
    let mut container = Container::usual()?;
    container.spec["selinuxLabel"] = json!("x");
    let exec = container.exec(1, "true", none());

    let failure = container.refusal(exec)?;

    assert_eq!(
        (failure.kind, failure.step.as_str()),
        (FailureKind::Unsupported, "process.selinuxLabel")
    );
    Ok(())
}
