//! The container in the machine: docker's default profile, docker's flags, and whole configurations.

use serde_json::{Value, json};
use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

use super::busybox;

/// Lines of `/proc/self/status` that say what a process may do.
const STATUS: &str =
    "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'";

#[test]
fn the_default_is_dockers() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = format!(
        "{STATUS}; mount -t tmpfs none /mnt 2>&1; mknod /dev/log c 1 11 && cat /dev/log 2>&1; \
         echo x > /proc/sys/kernel/hostname; ls /proc/acpi /proc/scsi 2>/dev/null; ulimit -Hn; \
         stat -c '%t:%T' /dev/null; mount | grep -c cgroup2"
    );

    let done = fixture.run(&image, &[], &["sh", "-c", &script]).run();

    done.stdout_has("CapEff:00000000a80425fb\nCapBnd:00000000a80425fb\nNoNewPrivs:0\nSeccomp:2\n")
        .stdout_has("mount: permission denied")
        .stdout_has("Operation not permitted")
        .stdout_has("524288\n1:3\n1\n")
        .stderr_has("Read-only file system");
}

#[test]
fn flags_change_what_the_command_may_do_and_finds() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = format!(
        "{STATUS}; ulimit -Sn; ulimit -Hn; id -G; cat /proc/self/oom_score_adj /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; \
         grep -E ' (/run|/dev/shm) ' /proc/mounts | cut -d' ' -f2,4; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.weight \
         /sys/fs/cgroup/cpuset.cpus; dd if=/dev/log of=/dev/null count=0 2>/dev/null && echo log; echo $PPID"
    );
    let flags = [
        "--cap-drop",
        "ALL",
        "--cap-add",
        "syslog",
        "--security-opt",
        "no-new-privileges",
        "--ulimit",
        "nofile=100:200",
        "--group-add",
        "4242",
        "--oom-score-adj",
        "77",
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--sysctl",
        "kernel.msgmax=1234",
        "--tmpfs",
        "/run:size=1m,exec",
        "--shm-size",
        "1m",
        "--pids-limit",
        "50",
        "--cpu-shares",
        "2",
        "--cpuset-cpus",
        "0",
        "--device",
        "/dev/kmsg:/dev/log:r",
        "--init",
        "--cpus",
        "2",
    ];

    let done = fixture.run(&image, &flags, &["sh", "-c", &script]).run();

    done.code_is(0)
        .stdout_has("CapEff:0000000400000000\nCapBnd:0000000400000000\nNoNewPrivs:1\nSeccomp:2\n")
        .stdout_has("100\n200\n0 4242\n77\n1\n1234\n")
        .stdout_has("/dev/shm rw,nosuid,nodev,noexec,relatime,size=1024k")
        .stdout_has("/run rw,nosuid,nodev,relatime,size=1024k")
        .stdout_has("50\n1\n0\nlog\n1\n");
}

#[test]
fn a_privileged_command_may_do_everything_in_the_guest() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = format!(
        "{STATUS}; mkdir /x && mount -t tmpfs none /x && echo mounted; test -c /dev/fuse && echo fuse; \
         mkdir /sys/fs/cgroup/mine && echo cgroup; echo 7 > /proc/sys/vm/swappiness && echo sysctl"
    );

    let done = fixture
        .run(&image, &["--privileged"], &["sh", "-c", &script])
        .run();

    done.code_is(0)
        .stdout_has("CapEff:000001ffffffffff\n")
        .stdout_has("Seccomp:0\n")
        .stdout_has("mounted\nfuse\ncgroup\nsysctl\n");
}

#[test]
fn a_container_may_have_users_of_its_own() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = "tr -s ' ' < /proc/self/uid_map; stat -c %u / /bin/busybox; echo x > /written; stat -c %u /written; ulimit -Hn; \
        echo y > /dev/null && ls /sys/class/net; ip -4 -o address show eth0 | grep -o 10.0.2.15";

    let done = fixture
        .run(&image, &["--userns", "private"], &["sh", "-c", script])
        .run();

    done.code_is(0)
        .stdout_is(" 0 1073741824 65536\n0\n0\n0\n524288\neth0\nlo\n10.0.2.15\n");
}

/// A small configuration of the runtime-spec.
fn configuration(script: &str) -> Value {
    json!({
        "ociVersion": "1.2.1",
        "org.example.unknown": { "kept": true },
        "process": { "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 7, "gid": 8 } },
        "root": { "path": "rootfs" },
        "hostname": "given",
        "annotations": { "org.example.key": "value" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/shared", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] }
        ],
        "hooks": {
            "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /shared/created"], "timeout": 20 }],
            "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }]
        },
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" }, { "type": "time" }],
            "timeOffsets": { "boottime": { "secs": 1_000_000 } },
            "resources": {
                "memory": { "limit": 33_554_432 }, "pids": { "limit": 20 },
                "blockIO": { "weight": 500 }, "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }]
            },
            "seccomp": { "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19 }] }
        }
    })
}

#[test]
fn a_whole_configuration_is_executed() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = "hostname; id -u; id -g; test $(cut -d. -f1 /proc/uptime) -ge 1000000 && echo late; \
        grep -o '\"status\":\"creating\"' /shared/created; mkdir /shared/x 2>&1; exit 9";
    let config = fixture.file("config.json", configuration(script).to_string());

    let done = fixture
        .run(&image, &["--config", &config.to_string_lossy()], &[])
        .run();

    done.code_is(9).stdout_is(
        "given\n7\n8\nlate\n\"status\":\"creating\"\nmkdir: can't create directory '/shared/x': No such device\n",
    );
}

#[test]
fn a_mount_point_that_leads_up_is_one_in_the_container() {
    let fixture = Fixture::with_machines();
    let link = Layer::new().directory("led").symlink("home/up", "../led");
    let image = ImageMaker::busybox().layer(link).layout().archive();
    let image = fixture.file("image.oci", image);
    let mut config = configuration("grep -E ' /(led|made) ' /proc/mounts | cut -d' ' -f1");
    let mount = |destination: &str, source: &str| json!({ "destination": destination, "type": "tmpfs", "source": source });
    let mounts = config["mounts"].as_array_mut().unwrap();
    mounts.extend([
        mount("/home/up", "by-link"),
        mount("/home/../made", "by-path"),
    ]);
    let config = fixture.file("config.json", config.to_string());

    let done = fixture
        .run(&image, &["--config", &config.to_string_lossy()], &[])
        .run();

    done.code_is(0).stdout_is("by-link\nby-path\n");
}

#[test]
fn a_process_that_forks_without_end_is_held() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let script = "for i in $(seq 100); do sleep 100 & done; echo unreached";

    let done = fixture
        .run(&image, &["--pids-limit", "20"], &["sh", "-c", script])
        .run();

    done.stdout_lacks("unreached").stderr_has("can't fork");
}

#[test]
fn one_that_eats_all_memory_of_its_configuration_is_said_to_have_been_killed_for_it() {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let mut config = configuration("tail /dev/zero");
    config["linux"]["resources"]["memory"]["limit"] = json!(8 << 20);
    let config = fixture.file("config.json", config.to_string());

    let done = fixture
        .run(&image, &["--config", &config.to_string_lossy()], &[])
        .run();

    done.code_is(137).stderr_has("memory limit");
}

/// Runs a configuration that cannot be, and says how it was refused.
fn refused(config: &Value) -> String {
    let fixture = Fixture::with_machines();
    let image = busybox(&fixture);
    let config = fixture.file("config.json", config.to_string());
    let done = fixture
        .run(&image, &["--config", &config.to_string_lossy()], &[])
        .run();
    done.code_is(125).stdout_is("");
    done.stderr_text()
}

#[test]
fn a_profile_that_forbids_what_a_start_takes_is_told() {
    let mut config = configuration("true");
    config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ["execve", "write", "exit", "exit_group"], "action": "SCMP_ACT_ALLOW" }] });

    let said = refused(&config);

    assert!(said.contains("becoming the user"), "{said}");
}

#[test]
fn a_field_that_the_guest_cannot_execute_is_named() {
    let mut config = configuration("true");
    config["process"]["apparmorProfile"] = json!("mine");

    let said = refused(&config);

    assert!(said.contains("process.apparmorProfile"), "{said}");
}

#[test]
fn a_wrong_type_is_named_by_its_path() {
    let mut config = configuration("true");
    config["linux"]["resources"]["memory"]["limit"] = json!("much");

    let said = refused(&config);

    assert!(said.contains("linux.resources.memory.limit"), "{said}");
}
