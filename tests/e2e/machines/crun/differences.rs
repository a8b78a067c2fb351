//! Where vmm must answer otherwise than crun, with the reason. Sections are those of the runtime-spec 1.2.1.

use super::Difference;

/// All of them.
pub(super) const DIFFERENCES: &[Difference] = &[
    Difference {
        case: "usual_process/ignored signals",
        crun: "SigIgn:\t0000000180000000",
        vmm: "SigIgn:\t0000000000000000",
        because: "crun hands down what its own caller ignores; nobody calls the agent",
    },
    Difference {
        case: "unknown_user/home",
        crun: "",
        vmm: "/",
        because: "docker's home for a user whom /etc/passwd does not know; programs expect one",
    },
    Difference {
        case: "strange_environment/environment",
        crun: "PATH=/bin\nEMPTY=\nTWICE=2\nSPACE=a b\n=nameless\nü=ü\nHOME=/root",
        vmm: "PATH=/bin\nEMPTY=\nTWICE=1\nTWICE=2\nSPACE=a b\n=nameless\nequals\nü=ü\nHOME=/root",
        because: "config.md, \"Process\", env: the list is the program's environment as it is; crun builds one with putenv(3)",
    },
    Difference {
        case: "tmpfs_options/the later option counts",
        crun: "ro,nosuid,relatime tmpfs",
        vmm: "rw,relatime tmpfs",
        because: "mount(8), which config.md, \"Mounts\", names: the later of two options counts",
    },
    Difference {
        case: "tmpfs_options/permissions of what is hidden",
        crun: "1777",
        vmm: "750",
        because: "a tmpfs without a mode takes that of the directory that it hides, as under docker",
    },
    Difference {
        case: "tmpfs_options/made on the way",
        crun: "1755 0:0",
        vmm: "755 0:0",
        because: "the specification asks for no sticky bit on a mount point that was missing, and docker sets none",
    },
    Difference {
        case: "copied_up/permissions",
        crun: "/data 1777 0:0\n/data/file 644 0:0\n/data/directory 750 0:0\n/data/private 700 0:0",
        vmm: "/data 755 0:0\n/data/file 644 0:0\n/data/directory 750 0:0\n/data/private 700 0:0",
        because: "a tmpfs without a mode takes that of the directory that it hides, as under docker",
    },
    Difference {
        case: "masked/permissions",
        crun: "1777 0:0",
        vmm: "755 0:0",
        because: "nobody can write to what is masked, and its permissions say so",
    },
    Difference {
        case: "propagation/shared",
        crun: "rw,relatime tmpfs",
        vmm: "rw,relatime shared tmpfs",
        because: "config.md, \"Linux mount options\"; crun 1.8 makes all mounts private afterwards",
    },
    Difference {
        case: "propagation/recursively shared",
        crun: "rw,relatime tmpfs",
        vmm: "rw,relatime shared tmpfs",
        because: "config.md, \"Linux mount options\"; crun 1.8 makes all mounts private afterwards",
    },
    Difference {
        case: "propagation/unbindable",
        crun: "rw,relatime tmpfs\nexit code 1",
        vmm: "rw,relatime unbindable tmpfs\nInvalid argument",
        because: "config.md, \"Linux mount options\"; crun 1.8 makes all mounts private afterwards",
    },
    Difference {
        case: "read_only_paths/of proc",
        crun: "ro,relatime proc\nbox\n/bin/sh: can't create /proc/sys/kernel/hostname: Read-only file system\nexit code 1",
        vmm: "ro,nosuid,nodev,noexec,relatime proc\nbox\n/bin/sh: can't create /proc/sys/kernel/hostname: Read-only file system\nexit code 1",
        because: "to be read-only takes no other restriction away",
    },
    Difference {
        case: "read_only_paths/a mount",
        crun: "ro,relatime tmpfs\n/bin/sh: can't create /dev/shm/new: Read-only file system\nexit code 1",
        vmm: "ro,nosuid,nodev,noexec,relatime tmpfs\n/bin/sh: can't create /dev/shm/new: Read-only file system\nexit code 1",
        because: "to be read-only takes no other restriction away",
    },
    Difference {
        case: "missing_root/ending",
        crun: "refused",
        vmm: "exit code 0",
        because: "the root is the image's, whatever the configuration calls it",
    },
    Difference {
        case: "device_over_a_file/ending",
        crun: "-rw-r--r--    1 root     root             8 Jan  2  2026 /data/file\nexit code 0",
        vmm: "refused",
        because: "config-linux.md, \"Devices\": another file in the device's place is an error",
    },
    Difference {
        case: "unknown_device/ending",
        crun: "exit code 0",
        vmm: "refused",
        because: "config-linux.md, \"Devices\": the type is one of four",
    },
    Difference {
        case: "resources/reserved huge pages",
        crun: "max",
        vmm: "4194304",
        because: "config-linux.md, \"Huge page limits\": what is reserved is limited where the kernel can",
    },
    Difference {
        case: "written_cgroup/controllers",
        crun: "cpuset cpu io memory hugetlb pids",
        vmm: "",
        because: "each controller costs at every start: those that have a limit are enabled",
    },
    Difference {
        case: "parameter_of_another/ending",
        crun: "refused",
        vmm: "exit code 0",
        because: "the machine's network belongs to its one container, so its parameters are the container's",
    },
    Difference {
        case: "notification_without_a_listener/ending",
        crun: "exit code 0",
        vmm: "refused",
        because: "nobody would answer: crun 1.8 lets the call fail when it comes, the host refuses the profile by name",
    },
    Difference {
        case: "hooks/status",
        crun: "\"status\":\"starting\"",
        vmm: "\"status\":\"created\"",
        because: "runtime.md, \"State\": the status of a container whose program does not run yet; the other one is crun's own",
    },
    Difference {
        case: "wrong_type/ending",
        crun: "exit code 0",
        vmm: "refused",
        because: "runtime.md, \"Errors\": a user who is no number is an error, and not root",
    },
];
