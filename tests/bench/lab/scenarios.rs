//! What is measured.

/// One thing that is measured, alone in a lab.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name in reports and budgets.
    pub(crate) name: &'static str,
    /// What happens between the clock's start and its stop.
    pub(crate) says: &'static str,
    /// A shell script that runs before the clock starts.
    pub(crate) before: &'static str,
    /// What is spawned and waited for, in the shell's words.
    pub(crate) command: &'static str,
    /// Whose clock it is.
    pub(crate) clock: Clock,
    /// Whether it takes minutes.
    pub(crate) is_long: bool,
}

/// Who takes the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Whoever spawns the command and waits for it.
    Outside,
    /// The command itself, which prints it.
    Inside,
}

/// The first run of an image imports it, which is a scenario of its own.
const LOADED: &str = "vmm load --quiet --input /images/hello.oci --name hello:1";

/// All of them. `hello` is a static busybox that says hello; `python` prints 1.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fork-exec",
        says: "fork and exec of a static `true`",
        before: "",
        command: "/lab/busybox true",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "crun-run",
        says: "`crun run` of hello, root unpacked before",
        before: "cd /bundles/hello",
        command: "crun run --bundle /bundles/hello hello",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "runc-run",
        says: "`runc run` of hello, root unpacked before",
        before: "cd /bundles/hello",
        command: "runc run --bundle /bundles/hello hello",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-cold",
        says: "`vmm run` of hello, image in the store, the guest's kernel boots",
        before: LOADED,
        command: "vmm run hello:1",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-load",
        says: "`vmm load` of hello (2 MB) into a new store",
        before: "",
        command: "sh /scripts/load.sh",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "crun-python",
        says: "`crun run` of Debian's python printing 1, root unpacked before",
        before: "",
        command: "crun run --bundle /bundles/python python",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "runc-python",
        says: "`runc run` of the same",
        before: "",
        command: "runc run --bundle /bundles/python python",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-python",
        says: "`vmm run` of the same, image in the store",
        before: "vmm load --quiet --input /images/python3.oci --name python:1",
        command: "vmm run python:1 python3 -c 'print(1)'",
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-hundred",
        says: "a hundred times `vmm run` of hello, one after the other",
        before: LOADED,
        command: "sh /scripts/hundred.sh",
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "crun-hundred",
        says: "a hundred times `crun run` of hello, one after the other",
        before: "",
        command: "sh /scripts/hundred-crun.sh",
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-twenty-at-once",
        says: "twenty `vmm run` of hello at once, on one processor",
        before: LOADED,
        command: "sh /scripts/twenty.sh",
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "crun-twenty-at-once",
        says: "twenty `crun run` of hello at once, on one processor",
        before: "",
        command: "sh /scripts/twenty-crun.sh",
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "bare-cpu",
        says: "a hundred million turns of a loop in registers, bare",
        before: "",
        command: "/bundles/work/rootfs/bin/work cpu",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-cpu",
        says: "a hundred million turns of a loop in registers, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-cpu work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-cpu",
        says: "a hundred million turns of a loop in registers, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work cpu",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-memset",
        says: "a gibibyte written for the first time, bare",
        before: "",
        command: "/bundles/work/rootfs/bin/work memset",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-memset",
        says: "a gibibyte written for the first time, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-memset work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-memset",
        says: "a gibibyte written for the first time, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work memset",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-getpid",
        says: "ten thousand `getpid`, bare",
        before: "",
        command: "/bundles/work/rootfs/bin/work getpid",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-getpid",
        says: "ten thousand `getpid`, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-getpid work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-getpid",
        says: "ten thousand `getpid`, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work getpid",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-fork",
        says: "a thousand processes, one after the other, bare",
        before: "",
        command: "chroot /bundles/work/rootfs /bin/work fork",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-fork",
        says: "a thousand processes, one after the other, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-fork work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-fork",
        says: "a thousand processes, one after the other, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work fork",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-ping-pong",
        says: "ten thousand bytes to another thread and back, bare",
        before: "",
        command: "/bundles/work/rootfs/bin/work ping-pong",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-ping-pong",
        says: "ten thousand bytes to another thread and back, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-ping-pong work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-ping-pong",
        says: "ten thousand bytes to another thread and back, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work ping-pong",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, bare",
        before: "",
        command: "chroot /bundles/work/rootfs /bin/work untar",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, in crun",
        before: "",
        command: "crun run --bundle /bundles/work-untar work",
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, in vmm",
        before: "vmm load --quiet --input /images/work.oci --name work:1",
        command: "vmm run --memory 1200m work:1 work untar",
        clock: Clock::Inside,
        is_long: true,
    },
];

/// The scripts that scenarios name.
pub(crate) const SCRIPTS: &[(&str, &str)] = &[
    (
        "load.sh",
        "exec vmm --root $(mktemp -d) load --quiet --input /images/hello.oci --name hello:1\n",
    ),
    (
        "hundred.sh",
        "for i in $(seq 100); do vmm run hello:1 || exit; done\n",
    ),
    (
        "hundred-crun.sh",
        "for i in $(seq 100); do crun run --bundle /bundles/hello hello || exit; done\n",
    ),
    (
        "twenty.sh",
        "for i in $(seq 20); do vmm run hello:1 & done; wait\n",
    ),
    (
        "twenty-crun.sh",
        "for i in $(seq 20); do crun run --bundle /bundles/hello hello$i & done; wait\n",
    ),
];

/// The kinds of work that `work.rs` knows.
pub(crate) const WORK: &[&str] = &["cpu", "memset", "getpid", "fork", "ping-pong", "untar"];
