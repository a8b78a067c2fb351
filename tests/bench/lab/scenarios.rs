//! What is measured.

use Part::*;

/// One thing that is measured, alone in a lab.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name in reports and budgets.
    pub(crate) name: &'static str,
    /// What happens between the clock's start and its stop.
    pub(crate) says: &'static str,
    /// What is put into its lab.
    pub(crate) takes: &'static [Part],
    /// A shell script that runs before the clock starts.
    pub(crate) before: &'static str,
    /// What is spawned and waited for, in the shell's words.
    pub(crate) command: &'static str,
    /// The exit code of a run that went well.
    pub(crate) code: i32,
    /// Whose clock it is.
    pub(crate) clock: Clock,
    /// Whether it takes minutes.
    pub(crate) is_long: bool,
}

impl Scenario {
    /// Whether it is another VMM's.
    pub(crate) fn is_of_a_peer(&self) -> bool {
        self.takes.iter().any(|part| matches!(part, Other(_)))
    }
}

/// What a scenario takes; nothing else is in its lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The binary with its guest image.
    Vmm,
    Crun,
    Runc,
    /// A static busybox that says hello, as an archive.
    HelloImage,
    /// The same, unpacked.
    HelloBundle,
    /// Debian's python in four layers, as an archive.
    PythonImage,
    /// The same, unpacked.
    PythonBundle,
    /// The program `work`, as an archive.
    ChoresImage,
    /// The same, unpacked, with a configuration for each kind of work.
    ChoresBundles,
    /// What makes network interfaces: `/usr/local/bin/ip`, for the shell's own knows less.
    Links,
    /// A guest image of our kernel and a program that ends at once.
    EndingGuest,
    /// Another VMM, with our kernel and an initramfs of a program that ends at once.
    Other(Peer),
}

/// Another VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Firecracker,
    CloudHypervisor,
    Qemu,
}

/// Who takes the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Whoever spawns the command and waits for it.
    Outside,
    /// The command itself, which prints it.
    Inside,
}

/// The first run of an image imports it, which is a scenario of its own. Nothing is made for a later run.
const COLD: &str =
    "export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/hello.oci --name hello:1";
/// The template is there, and the first clone has told which pages clones write. Nothing is left of it when it is waited for.
const WARM: &str = "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --rm hello:1; \
                    lab time 1 0 vmm run --rm hello:1";
/// A machine that runs, and waits.
const RUNNING: &str = "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --storage 10g hello:1; \
                       vmm run -d --name web hello:1 sleep 1000000";
/// Eight of them: what a hundred cost is reckoned from one and eight. With some twenty machines one guest has, more often than not, been
/// interrupted by its timer within its timer's interrupt by this emulator, and waits for itself from then on.
const EIGHT: &str = "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --storage 10g hello:1; \
                       for i in $(seq 8); do vmm run -d hello:1 sleep 1000000; done";
/// Work goes on for long, so how the machine started does not count: it boots, as it does without a template.
const CHORES_LOADED: &str =
    "export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1";

/// A tap, and what the host's side of the network does.
const TAP: &str = "sh /scripts/net-tap.sh; export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1";
/// The same with an address that is the host's and not its loopback.
const USER: &str = "sh /scripts/net-user.sh; export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1";

/// All of them. `hello` is a static busybox that says hello; `python` prints 1, out of an image of four layers. Starts that have a
/// ceiling are those without a network; beside each is the same with one.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "fork-exec",
        says: "fork and exec of a static `true`",
        takes: &[],
        before: "",
        command: "/lab/busybox true",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "crun-run",
        says: "`crun run` of hello, root unpacked before",
        takes: &[Crun, HelloBundle],
        before: "cd /bundles/hello",
        command: "crun run --bundle /bundles/hello hello",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "runc-run",
        says: "`runc run` of hello, root unpacked before",
        takes: &[Runc, HelloBundle],
        before: "cd /bundles/hello",
        command: "runc run --bundle /bundles/hello hello",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-cold",
        says: "`vmm run` of hello, image in the store, the guest's kernel boots",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "vmm run --rm --network none hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-no-profile",
        says: "the same with a configuration of docker's mounts and namespaces, and nothing else of its profile",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "vmm run --rm --config /scripts/no-profile.json hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-cold-user",
        says: "`vmm run` of hello, the guest's kernel boots, with a network",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "vmm run --rm hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-agent",
        says: "the agent's part of a cold start, from the configuration's arrival to the program",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "sh /scripts/agent.sh --network none hello:1",
        code: 0,
        clock: Clock::Inside,
        is_long: false,
    },
    Scenario {
        name: "vmm-agent-warm",
        says: "the agent's part of a start as a clone",
        takes: &[Vmm, HelloImage],
        before: WARM,
        command: "sh /scripts/agent.sh hello:1",
        code: 0,
        clock: Clock::Inside,
        is_long: false,
    },
    Scenario {
        name: "vmm-exec",
        says: "`vmm exec` of `true` in a machine that runs",
        takes: &[Vmm, HelloImage],
        before: RUNNING,
        command: "vmm exec web true",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "crun-exec",
        says: "`crun exec` of `true` in a container that runs",
        takes: &[Crun, HelloBundle],
        before: "crun run --detach --bundle /bundles/sleep web </dev/null 2>/dev/null",
        command: "crun exec web true",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-ps-one",
        says: "`vmm ps` with a machine that runs",
        takes: &[Vmm, HelloImage],
        before: RUNNING,
        command: "vmm ps",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-ps",
        says: "`vmm ps` with eight machines that run",
        takes: &[Vmm, HelloImage],
        before: EIGHT,
        command: "vmm ps",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-stats-one",
        says: "`vmm stats --no-stream` with a machine that runs",
        takes: &[Vmm, HelloImage],
        before: RUNNING,
        command: "vmm stats --no-stream",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-stats",
        says: "`vmm stats --no-stream` with eight machines that run",
        takes: &[Vmm, HelloImage],
        before: EIGHT,
        command: "vmm stats --no-stream",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-stop",
        says: "`vmm stop` of a machine whose workload ends at once",
        takes: &[Vmm, HelloImage],
        before: RUNNING,
        command: "sh /scripts/stop.sh",
        code: 0,
        clock: Clock::Inside,
        is_long: false,
    },
    Scenario {
        name: "vmm-lines",
        says: "100 MiB of lines that a workload writes, through its log and to whoever runs it",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "sh /scripts/lines.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "crun-lines",
        says: "the same lines through crun's pipe",
        takes: &[Crun, HelloBundle],
        before: "",
        command: "sh /scripts/lines-crun.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-run-warm-kept",
        says: "`vmm run` of hello as a clone with a disk, of which log and files stay",
        takes: &[Vmm, HelloImage],
        before: "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --storage 10g hello:1; \
                 lab time 1 0 vmm run hello:1",
        command: "vmm run hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-warm-volume",
        says: "`vmm run` of hello as a clone with a volume",
        takes: &[Vmm, HelloImage],
        before: "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --rm --base --disks 1 hello:1; \
                 lab time 1 0 vmm run --rm -v data:/data hello:1; lab time 1 0 vmm run --rm -v data:/data hello:1",
        command: "vmm run --rm -v data:/data hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-warm",
        says: "`vmm run` of hello, image in the store, as a clone",
        takes: &[Vmm, HelloImage],
        before: "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --rm --network none hello:1; \
                 lab time 1 0 vmm run --rm --network none hello:1",
        command: "vmm run --rm --network none hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-warm-2-vcpus",
        says: "the same with two vCPUs, on one processor",
        takes: &[Vmm, HelloImage],
        before: "vmm load --quiet --input /images/hello.oci --name hello:1; vmm prepare --rm --network none --cpus 2 hello:1; \
                 lab time 1 0 vmm run --rm --network none --cpus 2 hello:1",
        command: "vmm run --rm --network none --cpus 2 hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-run-warm-user",
        says: "`vmm run` of hello as a clone, with a network",
        takes: &[Vmm, HelloImage],
        before: WARM,
        command: "vmm run --rm hello:1",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-load",
        says: "`vmm load` of hello (2 MB) into a new store",
        takes: &[Vmm, HelloImage],
        before: "",
        command: "sh /scripts/load.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "crun-python",
        says: "`crun run` of Debian's python in four layers printing 1, root unpacked before",
        takes: &[Crun, PythonBundle],
        before: "",
        command: "crun run --bundle /bundles/python python",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "runc-python",
        says: "`runc run` of the same",
        takes: &[Runc, PythonBundle],
        before: "",
        command: "runc run --bundle /bundles/python python",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-python",
        says: "`vmm run` of the same, image in the store, the guest's kernel boots",
        takes: &[Vmm, PythonImage],
        before: "export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/python.oci --name python:1",
        command: "vmm run --rm python:1 python3 -c 'print(1)'",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-python-warm",
        says: "`vmm run` of the same, image in the store, as a clone",
        takes: &[Vmm, PythonImage],
        before: "vmm load --quiet --input /images/python.oci --name python:1; vmm prepare --rm python:1; \
                 lab time 1 0 vmm run --rm python:1 python3 -c 'print(1)'",
        command: "vmm run --rm python:1 python3 -c 'print(1)'",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-boot",
        says: "`vmm run` of a guest image whose kernel is ours and whose init ends at once",
        takes: &[Vmm, HelloImage, EndingGuest],
        before: "export VMM_NO_TEMPLATE=1 VMM_GUEST_DIR=/boot/guest; vmm load --quiet --input /images/hello.oci --name hello:1",
        command: "vmm run --rm hello:1",
        code: 125,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "firecracker-boot",
        says: "Firecracker boots the same kernel to an initramfs whose init ends at once",
        takes: &[Other(Peer::Firecracker)],
        before: "",
        command: "/boot/firecracker --no-api --config-file /boot/firecracker.json",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "cloud-hypervisor-boot",
        says: "Cloud Hypervisor does the same",
        takes: &[Other(Peer::CloudHypervisor)],
        before: "",
        command: "/boot/cloud-hypervisor --kernel /boot/vmlinux --initramfs /boot/initramfs \
                  --cmdline \"$(cat /boot/parameters) port-0x600\" --cpus boot=1 --memory size=128M --console off --serial null",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "qemu-boot",
        says: "QEMU's `microvm` does the same",
        takes: &[Other(Peer::Qemu)],
        before: "",
        command: "qemu-system-x86_64 -machine microvm,accel=kvm -cpu host -m 128M -no-user-config -nodefaults -no-reboot \
                  -display none -serial null -kernel /boot/vmlinux -initrd /boot/initramfs \
                  -append \"$(sed s/reboot=k/reboot=t/ /boot/parameters)\"",
        code: 0,
        clock: Clock::Outside,
        is_long: false,
    },
    Scenario {
        name: "vmm-hundred",
        says: "a hundred times `vmm run` of hello, one after the other, the guest's kernel boots",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "sh /scripts/hundred.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-hundred-warm",
        says: "a hundred times `vmm run` of hello, one after the other, as clones",
        takes: &[Vmm, HelloImage],
        before: WARM,
        command: "sh /scripts/hundred.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "crun-hundred",
        says: "a hundred times `crun run` of hello, one after the other",
        takes: &[Crun, HelloBundle],
        before: "",
        command: "sh /scripts/hundred-crun.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-twenty-at-once",
        says: "twenty `vmm run` of hello at once, on one processor, the guest's kernel boots",
        takes: &[Vmm, HelloImage],
        before: COLD,
        command: "sh /scripts/twenty.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "vmm-twenty-at-once-warm",
        says: "twenty `vmm run` of hello at once, on one processor, as clones",
        takes: &[Vmm, HelloImage],
        before: WARM,
        command: "sh /scripts/twenty.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "crun-twenty-at-once",
        says: "twenty `crun run` of hello at once, on one processor",
        takes: &[Crun, HelloBundle],
        before: "",
        command: "sh /scripts/twenty-crun.sh",
        code: 0,
        clock: Clock::Outside,
        is_long: true,
    },
    Scenario {
        name: "bare-cpu",
        says: "a hundred million turns of a loop in registers, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "/bundles/chores/rootfs/bin/work cpu",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-cpu",
        says: "a hundred million turns of a loop in registers, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-cpu chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-cpu",
        says: "a hundred million turns of a loop in registers, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work cpu",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-memset",
        says: "a gibibyte written for the first time, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "/bundles/chores/rootfs/bin/work memset",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-memset",
        says: "a gibibyte written for the first time, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-memset chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-memset",
        says: "a gibibyte written for the first time, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work memset",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-getpid",
        says: "ten thousand `getpid`, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "/bundles/chores/rootfs/bin/work getpid",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-getpid",
        says: "ten thousand `getpid`, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-getpid chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-getpid",
        says: "ten thousand `getpid`, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work getpid",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-fork",
        says: "a thousand processes, one after the other, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "chroot /bundles/chores/rootfs /bin/work fork",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-fork",
        says: "a thousand processes, one after the other, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-fork chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-fork",
        says: "a thousand processes, one after the other, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work fork",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-ping-pong",
        says: "ten thousand bytes to another thread and back, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "/bundles/chores/rootfs/bin/work ping-pong",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-ping-pong",
        says: "ten thousand bytes to another thread and back, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-ping-pong chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-ping-pong",
        says: "ten thousand bytes to another thread and back, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work ping-pong",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "bare-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, bare",
        takes: &[ChoresBundles],
        before: "",
        command: "chroot /bundles/chores/rootfs /bin/work untar",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "crun-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-untar chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "vmm-untar",
        says: "an archive of two thousand files of 4 KiB unpacked to a tmpfs, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m chores:1 work untar",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-write-crun",
        says: "256 MiB written in requests of one, and synced, to a directory of the host, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-share-write chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-write",
        says: "256 MiB written in requests of one, and synced, to a directory of the host, in vmm",
        takes: &[Vmm, ChoresImage],
        before: "export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1",
        command: "vmm run --rm --memory 1200m -v /data:/data chores:1 work share-write",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-read-crun",
        says: "256 MiB read in requests of one from a directory of the host, in crun",
        takes: &[Crun, ChoresBundles],
        before: "sh /scripts/data-read.sh",
        command: "crun run --bundle /bundles/chores-share-read chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-read",
        says: "256 MiB read in requests of one from a directory of the host, in vmm",
        takes: &[Vmm, ChoresImage],
        before: "sh /scripts/data-read.sh; export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1",
        command: "vmm run --rm --memory 1200m -v /data:/data chores:1 work share-read",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-stat-crun",
        says: "twenty thousand files found and asked for their sizes in a directory of the host, in crun",
        takes: &[Crun, ChoresBundles],
        before: "sh /scripts/data-stat.sh",
        command: "crun run --bundle /bundles/chores-share-stat chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-stat",
        says: "twenty thousand files found and asked for their sizes in a directory of the host, in vmm",
        takes: &[Vmm, ChoresImage],
        before: "sh /scripts/data-stat.sh; export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1",
        command: "vmm run --rm --memory 1200m -v /data:/data chores:1 work share-stat",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-untar-crun",
        says: "an archive of a thousand files of 1 KiB unpacked to a directory of the host, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-share-untar chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "share-untar",
        says: "an archive of a thousand files of 1 KiB unpacked to a directory of the host, in vmm",
        takes: &[Vmm, ChoresImage],
        before: "export VMM_NO_TEMPLATE=1; vmm load --quiet --input /images/chores.oci --name chores:1",
        command: "vmm run --rm --memory 1200m -v /data:/data chores:1 work share-untar",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "volume-read-crun",
        says: "2,048 pieces of 4 KiB read in no order, 32 at once, of a file of the host, in crun",
        takes: &[Crun, ChoresBundles],
        before: "",
        command: "crun run --bundle /bundles/chores-volume-read chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "volume-read",
        says: "2,048 pieces of 4 KiB read in no order, 32 at once, past the page cache of a volume, in vmm",
        takes: &[Vmm, ChoresImage],
        before: CHORES_LOADED,
        command: "vmm run --rm --memory 1200m -v pieces:/data chores:1 work volume-read",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-send-crun",
        says: "64 MiB sent to the host over TCP, by a veth pair, in crun",
        takes: &[Crun, ChoresBundles, Links],
        before: "sh /scripts/net-veth.sh",
        command: "crun run --bundle /bundles/chores-net-send chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-send-tap",
        says: "64 MiB sent to the host over TCP, by a tap, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: TAP,
        command: "vmm run --rm --memory 1200m --network tap=tap0 --ip 10.8.0.2/24 chores:1 work net-send 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-send-user",
        says: "64 MiB sent to the host over TCP, by the gateway in user mode, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: USER,
        command: "vmm run --rm --memory 1200m --network user chores:1 work net-send 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-receive-crun",
        says: "64 MiB received from the host over TCP, by a veth pair, in crun",
        takes: &[Crun, ChoresBundles, Links],
        before: "sh /scripts/net-veth.sh",
        command: "crun run --bundle /bundles/chores-net-receive chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-receive-tap",
        says: "64 MiB received from the host over TCP, by a tap, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: TAP,
        command: "vmm run --rm --memory 1200m --network tap=tap0 --ip 10.8.0.2/24 chores:1 work net-receive 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-receive-user",
        says: "64 MiB received from the host over TCP, by the gateway in user mode, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: USER,
        command: "vmm run --rm --memory 1200m --network user chores:1 work net-receive 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-ping-pong-crun",
        says: "two thousand times a byte to the host and back over TCP, by a veth pair, in crun",
        takes: &[Crun, ChoresBundles, Links],
        before: "sh /scripts/net-veth.sh",
        command: "crun run --bundle /bundles/chores-net-ping-pong chores",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-ping-pong-tap",
        says: "two thousand times a byte to the host and back over TCP, by a tap, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: TAP,
        command: "vmm run --rm --memory 1200m --network tap=tap0 --ip 10.8.0.2/24 chores:1 work net-ping-pong 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
    Scenario {
        name: "net-ping-pong-user",
        says: "two thousand times a byte to the host and back over TCP, by the gateway in user mode, in vmm",
        takes: &[Vmm, ChoresImage, ChoresBundles, Links],
        before: USER,
        command: "vmm run --rm --memory 1200m --network user chores:1 work net-ping-pong 10.8.0.1",
        code: 0,
        clock: Clock::Inside,
        is_long: true,
    },
];

/// What writes the lines of `vmm-lines`, for crun.
pub(crate) const LINES: &str =
    "yes a line that is as long as lines often are in logs | head -c 104857600";

/// The scripts that scenarios name.
pub(crate) const SCRIPTS: &[(&str, &str)] = &[
    (
        "load.sh",
        "exec vmm --root $(mktemp -d) load --quiet --input /images/hello.oci --name hello:1\n",
    ),
    (
        "hundred.sh",
        "for i in $(seq 100); do vmm run --rm hello:1 || exit; done\n",
    ),
    (
        "hundred-crun.sh",
        "for i in $(seq 100); do crun run --bundle /bundles/hello hello || exit; done\n",
    ),
    (
        "twenty.sh",
        "for i in $(seq 20); do vmm run --rm hello:1 & done; wait\n",
    ),
    (
        "stop.sh",
        "vmm start web >/dev/null; set -- $(lab time 1 0 vmm stop --signal KILL web); echo $2\n",
    ),
    (
        "lines.sh",
        "count=$(vmm run --name lines --log-opt max-size=1g hello:1 \
           sh -c 'yes a line that is as long as lines often are in logs | head -c 104857600' | wc -c); \
         vmm rm lines >/dev/null; test $count = 104857600\n",
    ),
    (
        "lines-crun.sh",
        "test $(crun run --bundle /bundles/lines lines | wc -c) = 104857600\n",
    ),
    (
        "net-veth.sh",
        "ip=/usr/local/bin/ip; $ip netns add container\n\
         $ip link add veth0 type veth peer name eth0 netns container\n\
         $ip address add 10.8.0.1/24 dev veth0; $ip link set veth0 up\n\
         $ip -n container address add 10.8.0.2/24 dev eth0; $ip -n container link set eth0 up\n\
         setsid /bundles/chores/rootfs/bin/work net-serve </dev/null >/dev/null 2>&1 &\n",
    ),
    (
        "net-tap.sh",
        "ip=/usr/local/bin/ip; $ip tuntap add tap0 mode tap; $ip address add 10.8.0.1/24 dev tap0; $ip link set tap0 up\n\
         setsid /bundles/chores/rootfs/bin/work net-serve </dev/null >/dev/null 2>&1 &\n",
    ),
    (
        "net-user.sh",
        "ip=/usr/local/bin/ip; $ip address add 10.8.0.1/32 dev lo; $ip link set lo up\n\
         setsid /bundles/chores/rootfs/bin/work net-serve </dev/null >/dev/null 2>&1 &\n",
    ),
    (
        "agent.sh",
        "said=$(vmm run --rm --timings=json \"$@\" 2>&1 >/dev/null) || exit\n\
         spent=${said##*agent_microseconds\\\":}\n\
         echo ${spent%%[!0-9]*}000\n",
    ),
    (
        "no-profile.json",
        r#"{
            "ociVersion": "1.2.0",
            "process": { "args": ["echo", "hello"], "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "root": { "path": "rootfs" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts" },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs" },
                { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
                { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs" }
            ],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc" }, { "type": "cgroup" }] }
        }"#,
    ),
    (
        "data-read.sh",
        "mkdir -p /data; dd if=/dev/zero of=/data/read bs=1M count=256 2>/dev/null\n",
    ),
    (
        "data-stat.sh",
        "for directory in $(seq 100); do mkdir -p /data/tree/$directory; \
           for file in $(seq 200); do echo $file >/data/tree/$directory/$file; done; done\n",
    ),
    (
        "twenty-crun.sh",
        "for i in $(seq 20); do crun run --bundle /bundles/hello hello$i & done; wait\n",
    ),
];

/// The kinds of work that `work.rs` knows.
pub(crate) const CHORES: &[&str] = &[
    "cpu",
    "memset",
    "getpid",
    "fork",
    "ping-pong",
    "untar",
    "share-write",
    "share-read",
    "share-stat",
    "share-untar",
    "volume-read",
    "net-send",
    "net-receive",
    "net-ping-pong",
];

/// The directory that containers and machines see of the lab, where they see one.
pub(crate) const DATA: &str = "/data";
