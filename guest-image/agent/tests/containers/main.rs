//! Containers made by the agent on this machine, seen from inside.

mod bad_input;
mod exec;
mod files;
mod harness;
mod hooks;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod staged;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use harness::{Agent, CONTAINERS, Failure, Run, Workload, cgroup_goes, cgroup_name};
use protocol::{
    DeclaredStreams, Exit, ExitStatus, FailureKind, Report, Request, Role, StreamKind, WindowSize,
};
use serde_json::json;

type Test = Result<(), Failure>;

/// Runs a workload in a new agent, with the image changed first.
fn run_in(workload: &Workload, prepare: impl FnOnce(&Agent) -> Test) -> Result<Run, Failure> {
    let agent = Agent::start()?;
    prepare(&agent)?;
    agent.run(workload)
}

fn run(workload: &Workload) -> Result<Run, Failure> {
    run_in(workload, |_| Ok(()))
}

/// What a script says.
fn says(script: &str) -> Result<String, Failure> {
    run(&Workload::script(script))?.output()
}

macro_rules! needs_containers {
    () => {
        if !crate::harness::can_make_containers() {
            return Ok(());
        }
    };
}
pub(crate) use needs_containers;

#[test]
fn a_program_runs_and_its_output_comes_back() -> Test {
    needs_containers!();

    assert_eq!(
        run(&Workload::new(&["echo", "hello"]))?.output()?,
        "hello\n"
    );
    Ok(())
}

#[test]
fn standard_error_stays_apart() -> Test {
    needs_containers!();

    let run = run(&Workload::script("echo out; echo err >&2"))?;

    assert_eq!(run, Run::exited(0, "out\n", "err\n"));
    Ok(())
}

#[test]
fn input_comes_back_bit_for_bit() -> Test {
    needs_containers!();
    let bytes: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let agent = Agent::start()?;

    let run = agent.run(&Workload::script("cat | cat").stdin(&bytes))?;

    assert!(matches!(run, Run::Exited { stdout, .. } if stdout == bytes));
    Ok(())
}

#[test]
fn the_exit_code_is_the_programs() -> Test {
    needs_containers!();

    assert_eq!(
        run(&Workload::script("exit 42"))?.status()?,
        ExitStatus::Code(42)
    );
    Ok(())
}

#[test]
fn a_program_that_crashes_is_killed_by_its_signal() -> Test {
    needs_containers!();

    let prepare = |agent: &Agent| -> Test {
        let path = agent.image().join("crash");
        std::fs::write(&path, crashing_program())?;
        Ok(std::fs::set_permissions(
            path,
            std::fs::Permissions::from_mode(0o755),
        )?)
    };

    let run = run_in(&Workload::new(&["/crash"]), prepare)?;

    assert_eq!(run.status()?, ExitStatus::Signal(11));
    Ok(())
}

/// The smallest ELF program whose first instructions, `xor eax, eax; jmp rax`, fault.
fn crashing_program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS_BYTES: u64 = 64 + 56;
    let mut program = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    program.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version
    program.extend([BASE + HEADERS_BYTES, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, sections
    program.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]); // flags, sizes, one program header
    program.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, readable and executable
    program.extend(
        [0, BASE, BASE, HEADERS_BYTES + 4, HEADERS_BYTES + 4, 4096]
            .map(u64::to_le_bytes)
            .concat(),
    );
    program.extend([0x31, 0xC0, 0xFF, 0xE0]);
    program
}

#[test]
fn a_signal_from_the_host_reaches_the_program() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::script(
        "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
    );
    let process = workload.process();
    let mut control = agent.control()?;
    let mut stdout = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdout,
    })?;
    let streams = DeclaredStreams {
        stdout: true,
        ..DeclaredStreams::default()
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;
    let started = control.report()?;
    let mut ready = [0; 6];
    stdout.read_exact(&mut ready)?;

    control.send(&Request::Signal {
        process,
        signal: 15,
    })?;

    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    assert_eq!(
        (started.is_start_of(process), &ready, rest.as_str()),
        (true, b"ready\n", "caught\n")
    );
    let exit = Exit {
        status: ExitStatus::Code(3),
        oom_killed: false,
    };
    assert_eq!(control.report()?, Report::Exited { process, exit });
    Ok(())
}

#[test]
fn a_killed_program_reports_the_signal() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::new(&["sleep", "1000"]);
    let process = workload.process();
    let mut control = agent.control()?;
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), DeclaredStreams::default()),
    )))?;
    control.send(&Request::Start(process))?;
    let started = control.report()?;

    control.send(&Request::Signal { process, signal: 9 })?;

    assert!(started.is_start_of(process));
    let exit = Exit {
        status: ExitStatus::Signal(9),
        oom_killed: false,
    };
    assert_eq!(control.report()?, Report::Exited { process, exit });
    Ok(())
}

#[test]
fn a_signal_before_the_start_is_kept_for_the_program() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    // Not process 1 of a namespace, so that a signal without a handler ends it.
    let workload = Workload::new(&["sleep", "1000"]).with(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "cgroup" }]),
    );
    let process = workload.process();
    let mut control = agent.control()?;
    let streams = DeclaredStreams {
        stdout: true,
        ..DeclaredStreams::default()
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;

    control.send(&Request::Signal {
        process,
        signal: 15,
    })?;
    let _stdout = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdout,
    })?;

    assert!(control.report()?.is_start_of(process));
    let exit = Exit {
        status: ExitStatus::Signal(15),
        oom_killed: false,
    };
    assert_eq!(control.report()?, Report::Exited { process, exit });
    Ok(())
}

#[test]
fn a_process_that_is_killed_before_its_start_does_not_start() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::new(&["sleep", "1000"]);
    let process = workload.process();
    let mut control = agent.control()?;
    let streams = DeclaredStreams {
        stdout: true,
        ..DeclaredStreams::default()
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;

    control.send(&Request::Signal { process, signal: 9 })?;

    let Report::NotStarted { failure, .. } = control.report()? else {
        return Err("it started".into());
    };
    assert_eq!(failure.message, "it was killed before it started");
    Ok(())
}

#[test]
fn output_that_the_host_closes_ends_the_writer() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::new(&["yes"]);
    let process = workload.process();
    let mut control = agent.control()?;
    let mut stdout = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdout,
    })?;
    let streams = DeclaredStreams {
        stdout: true,
        ..DeclaredStreams::default()
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;
    let started = control.report()?;
    stdout.read_exact(&mut [0; 2])?;

    drop(stdout);

    assert!(started.is_start_of(process));
    // Process 1 of a namespace is not killed by SIGPIPE's default action; the write's error ends it instead.
    assert!(matches!(control.report()?, Report::Exited { .. }));
    Ok(())
}

#[test]
fn a_writer_waits_while_the_host_does_not_read() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::script("head -c 20000000 /dev/zero; echo done >&2");
    let process = workload.process();
    let mut control = agent.control()?;
    let mut stdout = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdout,
    })?;
    let stderr = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stderr,
    })?;
    let streams = DeclaredStreams {
        stdin: false,
        stdout: true,
        stderr: true,
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;
    let started = control.report()?;
    stderr.set_read_timeout(Some(Duration::from_millis(300)))?;

    let too_early = (&stderr).read(&mut [0; 8]);
    let mut all = Vec::new();
    stdout.read_to_end(&mut all)?;

    assert!(started.is_start_of(process));
    assert!(too_early.is_err(), "the writer ended though nobody read");
    assert_eq!(all.len(), 20_000_000);
    Ok(())
}

#[test]
fn the_program_is_process_1_of_its_own() -> Test {
    needs_containers!();

    assert_eq!(says("echo $$; ls -d /proc/[0-9]* | wc -l")?, "1\n3\n");
    Ok(())
}

#[test]
fn what_a_program_leaves_running_ends_with_it() -> Test {
    needs_containers!();
    let begin = Instant::now();

    let output = says("sleep 1000 & echo started")?;

    assert_eq!(output, "started\n");
    assert!(begin.elapsed() < Duration::from_secs(10));
    Ok(())
}

#[test]
fn without_a_pid_namespace_what_a_program_leaves_running_ends_too() -> Test {
    needs_containers!();
    let workload = Workload::script("sleep 1000 & echo started").with(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "cgroup" }]),
    );
    let begin = Instant::now();

    let output = run(&workload)?.output()?;

    assert_eq!(output, "started\n");
    assert!(begin.elapsed() < Duration::from_secs(10));
    Ok(())
}

#[test]
fn the_host_name_is_the_containers() -> Test {
    needs_containers!();

    assert_eq!(says("hostname")?, "inside\n");
    Ok(())
}

#[test]
fn the_root_is_the_image_and_nothing_of_the_agents() -> Test {
    needs_containers!();

    let mounts = says("cut -d' ' -f2 /proc/mounts")?;

    let expected = [
        "/",
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/sys",
        "/proc/sys",
        "/proc/keys",
        "/proc/tty",
    ];
    assert_eq!(mounts.lines().collect::<Vec<_>>(), expected);
    Ok(())
}

#[test]
fn what_is_written_does_not_reach_the_image() -> Test {
    needs_containers!();
    let agent = Agent::start()?;

    let output = agent
        .run(&Workload::script(
            "echo x >/new && rm /etc/group && cat /new",
        ))?
        .output()?;

    assert_eq!(output, "x\n");
    assert!(!agent.image().join("new").exists());
    assert!(agent.image().join("etc/group").exists());
    Ok(())
}

#[test]
fn the_writable_layer_is_limited() -> Test {
    needs_containers!();

    let output = says("head -c 20000000 /dev/zero >/big 2>/dev/null; stat -c %s /big")?;

    assert!(output.trim().parse::<u64>()? <= 8 << 20);
    Ok(())
}

#[test]
fn a_read_only_root_refuses_writes_but_not_its_mounts() -> Test {
    needs_containers!();
    let workload =
        Workload::script("touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo written")
            .with("/root/readonly", json!(true));

    assert_eq!(run(&workload)?.output()?, "refused\nwritten\n");
    Ok(())
}

#[test]
fn the_root_directory_keeps_the_images_permissions() -> Test {
    needs_containers!();
    let prepare = |agent: &Agent| -> Test {
        Ok(std::fs::set_permissions(
            agent.image(),
            std::fs::Permissions::from_mode(0o711),
        )?)
    };

    let output = run_in(&Workload::script("stat -c %a /"), prepare)?.output()?;

    assert_eq!(output, "711\n");
    Ok(())
}

#[test]
fn devices_and_links_are_there() -> Test {
    needs_containers!();

    let output = says(
        "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; readlink /dev/fd; readlink /dev/ptmx",
    )?;

    assert_eq!(
        output,
        "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n/dev/urandom 1:9 666\n\
        /dev/tty 5:0 666\n/proc/self/fd\npts/ptmx\n"
    );
    Ok(())
}

#[test]
fn a_device_of_the_config_is_made() -> Test {
    needs_containers!();
    let device = json!([{ "type": "c", "path": "/dev/net/tun", "major": 10, "minor": 200, "fileMode": 0o600, "gid": 7 }]);
    let workload =
        Workload::script("stat -c '%t:%T %a %g' /dev/net/tun").with("/linux/devices", device);

    assert_eq!(run(&workload)?.output()?, "a:c8 600 7\n");
    Ok(())
}

#[test]
fn masked_files_and_directories_are_empty() -> Test {
    needs_containers!();

    assert_eq!(says("cat /proc/keys; ls /proc/tty")?, "");
    Ok(())
}

#[test]
fn read_only_paths_refuse_writes() -> Test {
    needs_containers!();

    assert_eq!(
        says("echo x 2>/dev/null >/proc/sys/kernel/hostname || echo refused")?,
        "refused\n"
    );
    Ok(())
}

#[test]
fn a_kernel_parameter_is_set() -> Test {
    needs_containers!();
    let workload = Workload::script("cat /proc/sys/kernel/msgmax")
        .with("/linux/sysctl", json!({ "kernel.msgmax": "4242" }));

    assert_eq!(run(&workload)?.output()?, "4242\n");
    Ok(())
}

#[test]
fn the_loopback_interface_is_up() -> Test {
    needs_containers!();

    assert_eq!(
        says("ip -o -4 address show lo | awk '{print $4}'")?,
        "127.0.0.1/8\n"
    );
    Ok(())
}

#[test]
fn a_bind_mount_shows_a_directory_of_the_guest() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let shared = agent.image().join("etc");
    let mount = json!({ "destination": "/a/b", "source": shared, "type": "bind", "options": ["rbind", "ro"] });
    let mut workload =
        Workload::script("cat /a/b/group | wc -l; touch /a/b/x 2>/dev/null || echo refused");
    if let Some(mounts) = workload.config["mounts"].as_array_mut() {
        mounts.push(mount);
    }

    assert_eq!(agent.run(&workload)?.output()?, "3\nrefused\n");
    Ok(())
}

#[test]
fn a_link_in_the_image_cannot_lead_a_mount_out_of_it() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let outside = agent.image().with_file_name("outside");
    std::fs::create_dir(&outside)?;
    std::os::unix::fs::symlink("../../../../../../../../proc", agent.image().join("proc"))?;
    std::os::unix::fs::symlink(&outside, agent.image().join("dev"))?;

    let failure = agent.run(&Workload::script("true"))?.failure()?;

    assert_eq!(failure.kind, FailureKind::Failed);
    assert_eq!(std::fs::read_dir(&outside)?.count(), 0);
    Ok(())
}

#[test]
fn a_named_user_has_its_groups_and_its_home() -> Test {
    needs_containers!();

    let output = run(&Workload::script("id -u; id -G; echo $HOME").user("app"))?.output()?;

    assert_eq!(output, "1000\n1001 27\n/home/app\n");
    Ok(())
}

#[test]
fn numbers_of_the_config_are_taken_as_they_are() -> Test {
    needs_containers!();
    let user = json!({ "uid": 12, "gid": 34, "additionalGids": [56, 78], "umask": 0o027 });

    let output =
        run(&Workload::script("id -u; id -G; umask").with("/process/user", user))?.output()?;

    assert_eq!(output, "12\n34 56 78\n0027\n");
    Ok(())
}

#[test]
fn an_unknown_user_is_named() -> Test {
    needs_containers!();

    let failure = run(&Workload::new(&["true"]).user("nobody"))?.failure()?;

    assert_eq!(failure.kind, FailureKind::UnknownUser);
    assert!(failure.message.contains("nobody"));
    Ok(())
}

#[test]
fn a_passwd_that_never_ends_is_refused() -> Test {
    needs_containers!();
    let prepare = |agent: &Agent| -> Test {
        std::fs::remove_file(agent.image().join("etc/passwd"))?;
        Ok(std::os::unix::fs::symlink(
            "/dev/zero",
            agent.image().join("etc/passwd"),
        )?)
    };

    let failure = run_in(&Workload::new(&["true"]).user("app"), prepare)?.failure()?;

    assert!(failure.to_string().contains("/etc/passwd"));
    Ok(())
}

#[test]
fn a_plain_user_may_open_its_own_output_anew() -> Test {
    needs_containers!();

    let output = run(&Workload::script("echo again >/dev/stdout").user("app"))?.output()?;

    assert_eq!(output, "again\n");
    Ok(())
}

#[test]
fn the_capabilities_are_those_of_the_config() -> Test {
    needs_containers!();

    let output = says("grep ^Cap /proc/self/status | cut -f2")?;

    assert_eq!(
        output,
        "0000000000000000\n0000000000000001\n0000000000000001\n0000000000000001\n0000000000000000\n"
    );
    Ok(())
}

#[test]
fn ambient_capabilities_survive_for_a_plain_user() -> Test {
    needs_containers!();
    let one = ["CAP_CHOWN"];
    let sets = json!({ "bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one });
    let workload = Workload::script("grep CapEff /proc/self/status | cut -f2")
        .with("/process/capabilities", sets)
        .user("app");

    assert_eq!(run(&workload)?.output()?, "0000000000000001\n");
    Ok(())
}

#[test]
fn limits_and_scores_are_set() -> Test {
    needs_containers!();
    let workload = Workload::script(
        "ulimit -n; cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status",
    )
    .with(
        "/process/rlimits",
        json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]),
    )
    .with("/process/oomScoreAdj", json!(500))
    .with("/process/noNewPrivileges", json!(true));

    assert_eq!(run(&workload)?.output()?, "77\n500\nNoNewPrivs:\t1\n");
    Ok(())
}

#[test]
fn no_descriptor_of_the_agent_is_left() -> Test {
    needs_containers!();

    assert_eq!(says("ls /proc/$$/fd; true")?, "0\n1\n2\n");
    Ok(())
}

#[test]
fn signals_have_their_default_state() -> Test {
    needs_containers!();

    // Only the first 31: who starts the tests may have changed others.
    let output = says("grep -E 'Sig(Blk|Ign)' /proc/self/status | grep -oE '[0-9a-f]{8}$'")?;

    let sets = output.lines().map(|set| u32::from_str_radix(set, 16));
    assert_eq!(
        sets.map(|set| set.map(|set| set & 0x7FFF_FFFF))
            .collect::<Result<Vec<_>, _>>()?,
        [0, 0]
    );
    Ok(())
}

#[test]
fn a_working_directory_that_is_missing_is_made() -> Test {
    needs_containers!();

    let output =
        run(&Workload::new(&["pwd"]).with("/process/cwd", json!("/srv/app/data")))?.output()?;

    assert_eq!(output, "/srv/app/data\n");
    Ok(())
}

#[test]
fn streams_that_are_not_declared_are_null() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::script("test \"$(cat)\" = '' && echo x && echo y >&2 && exit 9");
    let process = workload.process();
    let mut control = agent.control()?;

    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), DeclaredStreams::default()),
    )))?;
    control.send(&Request::Start(process))?;

    assert!(control.report()?.is_start_of(process));
    let exit = Exit {
        status: ExitStatus::Code(9),
        oom_killed: false,
    };
    assert_eq!(control.report()?, Report::Exited { process, exit });
    Ok(())
}

#[test]
fn a_missing_program_is_not_found() -> Test {
    needs_containers!();

    let failure = run(&Workload::new(&["no-such-program"]))?.failure()?;

    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.step.contains("no-such-program"));
    Ok(())
}

#[test]
fn a_process_that_did_not_start_leaves_its_ids_free() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let (missing, present) = (
        Workload::new(&["no-such-program"]),
        Workload::new(&["true"]),
    );
    let process = missing.process();
    let mut control = agent.control()?;
    let create = |workload: &Workload| {
        let create = workload.create(&agent.image(), DeclaredStreams::default());
        Request::Create(Box::new(create))
    };
    control.send(&create(&missing))?;
    control.send(&Request::Start(process))?;
    let first = control.report()?;
    let is_gone = cgroup_goes(missing.container);

    control.send(&create(&present))?;
    control.send(&Request::Start(process))?;

    assert!(is_gone && matches!(first, Report::NotStarted { .. }));
    assert!(control.report()?.is_start_of(process));
    Ok(())
}

#[test]
fn a_missing_path_is_not_found() -> Test {
    needs_containers!();

    assert_eq!(
        run(&Workload::new(&["/no/such"]))?.failure()?.kind,
        FailureKind::NotFound
    );
    Ok(())
}

#[test]
fn a_script_without_its_interpreter_says_so() -> Test {
    needs_containers!();
    let prepare = |agent: &Agent| -> Test {
        let script = agent.image().join("bin/script");
        std::fs::write(&script, "#!/no/such/shell\n")?;
        Ok(std::fs::set_permissions(
            script,
            std::fs::Permissions::from_mode(0o755),
        )?)
    };

    let failure = run_in(&Workload::new(&["script"]), prepare)?.failure()?;

    assert_eq!(failure.kind, FailureKind::NotFound);
    assert!(failure.message.contains("interpreter"));
    Ok(())
}

#[test]
fn a_directory_is_not_executable() -> Test {
    needs_containers!();

    assert_eq!(
        run(&Workload::new(&["/etc"]))?.failure()?.kind,
        FailureKind::NotExecutable
    );
    Ok(())
}

#[test]
fn a_file_without_the_right_is_not_executable() -> Test {
    needs_containers!();

    assert_eq!(
        run(&Workload::new(&["/not-executable"]))?.failure()?.kind,
        FailureKind::NotExecutable
    );
    Ok(())
}

#[test]
fn a_file_of_no_known_format_is_not_executable() -> Test {
    needs_containers!();
    let prepare = |agent: &Agent| -> Test {
        let rights = std::fs::Permissions::from_mode(0o755);
        Ok(std::fs::set_permissions(
            agent.image().join("not-executable"),
            rights,
        )?)
    };

    let failure = run_in(&Workload::new(&["/not-executable"]), prepare)?.failure()?;

    assert_eq!(failure.kind, FailureKind::NotExecutable);
    Ok(())
}

#[test]
fn a_terminal_has_a_size_and_shows_everything() -> Test {
    needs_containers!();
    let workload =
        Workload::script("stty size; tty; test -t 0 && test -t 2 && echo yes >&2; ls /dev/console")
            .with("/process/consoleSize", json!({ "height": 12, "width": 34 }))
            .terminal();

    assert_eq!(
        run(&workload)?.output()?,
        "12 34\r\n/dev/pts/0\r\nyes\r\n/dev/console\r\n"
    );
    Ok(())
}

#[test]
fn a_terminal_that_nobody_has_open_for_a_moment_is_still_there() -> Test {
    needs_containers!();
    let script = "exec <&- >&- 2>&-; sleep 0.2; echo again >/dev/console";

    let said = run(&Workload::script(script).terminal())?.output()?;

    assert_eq!(said, "again\r\n");
    Ok(())
}

#[test]
fn a_terminal_can_be_resized_and_interrupted() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let workload = Workload::script(
        "trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; echo ready; while :; do sleep 0.05; done",
    )
    .terminal();
    let process = workload.process();
    let mut control = agent.control()?;
    let mut stdin = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdin,
    })?;
    let mut stdout = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdout,
    })?;
    let streams = DeclaredStreams {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    control.send(&Request::Create(Box::new(
        workload.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;
    let started = control.report()?;
    stdout.read_exact(&mut [0; 7])?;

    control.send(&Request::Resize {
        process,
        size: WindowSize {
            rows: 9,
            columns: 8,
        },
    })?;
    let mut size = [0; 5];
    stdout.read_exact(&mut size)?;
    stdin.write_all(b"\x03")?;

    let mut rest = String::new();
    stdout.read_to_string(&mut rest)?;
    assert_eq!(
        (started.is_start_of(process), &size, rest.as_str()),
        (true, b"9 8\r\n", "^Cinterrupted\r\n")
    );
    Ok(())
}

#[test]
fn a_terminals_input_that_nobody_reads_keeps_nobody_waiting() -> Test {
    needs_containers!();
    let workload = Workload::script("stty raw -echo; echo ready; sleep 1; echo done")
        .stdin(&[b'x'; 1 << 20])
        .terminal();

    let output = run(&workload)?.output()?;

    assert!(output.contains("done"));
    Ok(())
}

#[test]
fn an_id_that_is_taken_is_an_error_and_its_holder_lives_on() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let holder = Workload::new(&["cat"]);
    let process = holder.process();
    let mut control = agent.control()?;
    let mut stdin = agent.connect(Role::Stream {
        process,
        kind: StreamKind::Stdin,
    })?;
    let streams = DeclaredStreams {
        stdin: true,
        ..DeclaredStreams::default()
    };
    control.send(&Request::Create(Box::new(
        holder.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(process))?;
    assert!(control.report()?.is_start_of(process));

    let another = Workload::new(&["true"]);
    control.send(&Request::Create(Box::new(
        another.create(&agent.image(), DeclaredStreams::default()),
    )))?;

    let refused = control.report()?;
    assert!(
        matches!(&refused, Report::NotStarted { failure, .. } if failure.step == "creating the process"),
        "{refused:?}"
    );
    stdin.write_all(b"still here")?;
    stdin.shutdown(Shutdown::Write)?;
    let exit = Exit {
        status: ExitStatus::Code(0),
        oom_killed: false,
    };
    assert_eq!(control.report()?, Report::Exited { process, exit });
    Ok(())
}

#[test]
fn two_containers_run_at_a_time() -> Test {
    needs_containers!();
    let agent = Agent::start()?;
    let mut first = Workload::new(&["cat"]);
    let mut second = Workload::script("hostname");
    (first.container, second.container) = CONTAINERS.into();
    second = second
        .with("/hostname", json!("second"))
        .with("/linux/cgroupsPath", json!(cgroup_name(2)));
    let (one, two) = (first.process(), second.process());
    let mut control = agent.control()?;
    let mut stdin = agent.connect(Role::Stream {
        process: one,
        kind: StreamKind::Stdin,
    })?;
    let mut first_output = agent.connect(Role::Stream {
        process: one,
        kind: StreamKind::Stdout,
    })?;
    let mut second_output = agent.connect(Role::Stream {
        process: two,
        kind: StreamKind::Stdout,
    })?;
    let streams = DeclaredStreams {
        stdin: true,
        stdout: true,
        stderr: false,
    };
    control.send(&Request::Create(Box::new(
        first.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(one))?;
    let first_started = control.report()?;
    let streams = DeclaredStreams {
        stdout: true,
        ..DeclaredStreams::default()
    };

    control.send(&Request::Create(Box::new(
        second.create(&agent.image(), streams),
    )))?;
    control.send(&Request::Start(two))?;

    let exit = Exit {
        status: ExitStatus::Code(0),
        oom_killed: false,
    };
    let mut output = String::new();
    second_output.read_to_string(&mut output)?;
    assert_eq!(
        (first_started.is_start_of(one), output.as_str()),
        (true, "second\n")
    );
    assert!(control.report()?.is_start_of(two));
    assert_eq!(control.report()?, Report::Exited { process: two, exit });
    stdin.write_all(b"still here")?;
    stdin.shutdown(Shutdown::Write)?;
    output.clear();
    first_output.read_to_string(&mut output)?;
    assert_eq!(output, "still here");
    assert_eq!(control.report()?, Report::Exited { process: one, exit });
    Ok(())
}

#[test]
fn power_off_ends_the_agent() -> Test {
    needs_containers!();
    let mut agent = Agent::start()?;
    let mut control = agent.control()?;

    control.send(&Request::PowerOff)?;

    assert!(agent.ended()?.success());
    Ok(())
}

#[test]
fn a_hang_up_of_the_host_ends_the_agent() -> Test {
    needs_containers!();
    let mut agent = Agent::start()?;

    drop(agent.control()?);

    assert!(agent.ended()?.success());
    Ok(())
}

#[test]
fn a_host_of_another_version_learns_the_agents() -> Test {
    needs_containers!();
    let agent = Agent::start()?;

    let mut control = agent.control_of_version(protocol::VERSION + 1)?;

    assert_eq!(
        control.report()?,
        Report::Welcome {
            version: protocol::VERSION
        }
    );
    Ok(())
}
