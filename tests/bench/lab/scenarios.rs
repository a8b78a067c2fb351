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
    /// What is spawned and waited for, split at blanks.
    pub(crate) command: &'static str,
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
    },
    Scenario {
        name: "crun-run",
        says: "`crun run` of hello, root unpacked before",
        before: "cd /bundles/hello",
        command: "crun run --bundle /bundles/hello hello",
    },
    Scenario {
        name: "runc-run",
        says: "`runc run` of hello, root unpacked before",
        before: "cd /bundles/hello",
        command: "runc run --bundle /bundles/hello hello",
    },
    Scenario {
        name: "vmm-run-cold",
        says: "`vmm run` of hello, image in the store, the guest's kernel boots",
        before: LOADED,
        command: "vmm run hello:1",
    },
    Scenario {
        name: "vmm-load",
        says: "`vmm load` of hello (2 MB) into a new store",
        before: "",
        command: "sh /scripts/load.sh",
    },
    Scenario {
        name: "crun-python",
        says: "`crun run` of Debian's python printing 1, root unpacked before",
        before: "",
        command: "crun run --bundle /bundles/python python",
    },
    Scenario {
        name: "runc-python",
        says: "`runc run` of the same",
        before: "",
        command: "runc run --bundle /bundles/python python",
    },
    Scenario {
        name: "vmm-python",
        says: "`vmm run` of the same, image in the store",
        before: "vmm load --quiet --input /images/python3.oci --name python:1",
        command: "vmm run python:1 python3 -c print(1)",
    },
    Scenario {
        name: "vmm-hundred",
        says: "a hundred times `vmm run` of hello, one after the other",
        before: LOADED,
        command: "sh /scripts/hundred.sh",
    },
    Scenario {
        name: "crun-hundred",
        says: "a hundred times `crun run` of hello, one after the other",
        before: "",
        command: "sh /scripts/hundred-crun.sh",
    },
    Scenario {
        name: "vmm-twenty-at-once",
        says: "twenty `vmm run` of hello at once, on one processor",
        before: LOADED,
        command: "sh /scripts/twenty.sh",
    },
    Scenario {
        name: "crun-twenty-at-once",
        says: "twenty `crun run` of hello at once, on one processor",
        before: "",
        command: "sh /scripts/twenty-crun.sh",
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
