//! Namespaces, devices, cgroups, kernel parameters, seccomp and hooks: runtime-spec `config-linux.md`, and `config.md`, "POSIX-platform Hooks".

use super::configurations;

configurations! {
    /// The process ids of whoever starts the container.
    shared_process_ids: { "linux": { "namespaces": [{ "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }] } }, [
        "process ids": "namespace pid; test $$ = 1 || echo another",
        "network": "namespace net",
        "others": "test $(ls -d /proc/[0-9]* | wc -l) -gt 5 && echo visible",
    ];

    /// The network of whoever starts the container.
    shared_network: { "linux": { "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }] } }, [
        "network": "namespace net",
        "messages": "namespace ipc",
        "sys": "mounted /sys",
    ];

    /// The host name and the messages of whoever starts the container.
    shared_host_name: { "hostname": null,
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "mount" }, { "type": "cgroup" }] } }, [
        "messages": "namespace ipc",
        "host name": "namespace uts",
        "cgroups": "namespace cgroup",
    ];

    /// A name cannot be given to whom it does not belong to.
    host_name_of_another: { "process": { "args": ["/bin/true"] },
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "mount" }, { "type": "cgroup" }] } };

    /// The cgroups of whoever starts the container: all of them can be seen.
    shared_cgroups: { "linux": { "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] } }, [
        "cgroups": "namespace cgroup",
        "cgroup": "cat /proc/self/cgroup",
        "mount": "mounted /sys/fs/cgroup",
    ];

    /// Namespaces that are there already.
    joined_namespaces: { "hostname": null, "linux": { "namespaces": [
        { "type": "pid" }, { "type": "mount" }, { "type": "cgroup" },
        { "type": "ipc", "path": "/proc/1/ns/ipc" }, { "type": "uts", "path": "/proc/1/ns/uts" }, { "type": "network", "path": "/proc/1/ns/net" }
    ] } }, [
        "messages": "namespace ipc",
        "host name": "namespace uts",
        "network": "namespace net",
    ];

    /// A namespace that is not there cannot be joined.
    missing_namespace: { "process": { "args": ["/bin/true"] }, "linux": { "namespaces": [
        { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc", "path": "/proc/1/ns/none" }
    ] } };

    /// Nor one of another type.
    namespace_of_another_type: { "process": { "args": ["/bin/true"] }, "linux": { "namespaces": [
        { "type": "pid" }, { "type": "mount" }, { "type": "uts" }, { "type": "ipc", "path": "/proc/1/ns/net" }
    ] } };

    /// Nor one of a type that is none.
    unknown_namespace: { "process": { "args": ["/bin/true"] }, "linux": { "namespaces+": [{ "type": "sideways" }] } };

    /// Users of its own, who are the same outside.
    user_namespace: { "linux": {
        "namespaces+": [{ "type": "user" }],
        "uidMappings": [{ "containerID": 0, "hostID": 0, "size": 2000 }],
        "gidMappings": [{ "containerID": 0, "hostID": 0, "size": 3000 }]
    } }, [
        "users": "namespace user; tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map",
        "groups": "cat /proc/self/setgroups; status Groups",
        "user": "id -u; id -g",
        "effective capabilities": "status CapEff",
        "devices": "stat -c '%t:%T %a' /dev/null /dev/tty; echo > /dev/null && cat /dev/null",
        "new file": "echo > /new; stat -c %u:%g /new; chown 7:8 /new; stat -c %u:%g /new; chown 5000 /new",
        "given file": "stat -c %u:%g /bin/busybox /home/alice",
        "device of its own": "mknod /dev/mine c 1 3",
        "host name": "hostname; hostname changed; hostname",
        "proc": "mounted /proc",
        "sys": "mounted /sys",
        "shared memory": "mounted /dev/shm; stat -c '%a %u:%g' /dev/shm",
    ];

    /// Users who are others outside.
    mapped_user_namespace: { "linux": {
        "namespaces+": [{ "type": "user" }],
        "uidMappings": [{ "containerID": 0, "hostID": 100_000, "size": 65536 }],
        "gidMappings": [{ "containerID": 0, "hostID": 200_000, "size": 65536 }]
    } }, [
        "users": "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map",
        "user": "id -u; id -g",
        "own process": "stat -c %u:%g /proc/self",
        "new file": "echo > /dev/shm/new; stat -c %u:%g /dev/shm/new",
        "devices": "stat -c '%t:%T' /dev/null; echo > /dev/null && cat /dev/null",
    ];

    /// A user namespace needs mappings.
    user_namespace_without_mappings: { "process": { "args": ["/bin/id", "-u"] }, "linux": { "namespaces+": [{ "type": "user" }] } };

    /// Clocks of its own, which are newer than crun 1.8.
    by_the_text_clocks: { "linux": { "namespaces+": [{ "type": "time" }],
        "timeOffsets": { "boottime": { "secs": 1_000_000, "nanosecs": 5 }, "monotonic": { "secs": 2_000_000 } } } }, [
        "clocks": "namespace time" => "other",
        "offsets": "tr -s ' ' < /proc/self/timens_offsets" => "monotonic 2000000 0\nboottime 1000000 5",
        "time since the boot": "test $(cut -d. -f1 /proc/uptime) -ge 1000000 && echo late" => "late",
    ];

    /// Namespaces and `/dev` as every container has them.
    usual_linux: {}, [
        "process ids": "namespace pid; echo $$",
        "network": "namespace net",
        "messages": "namespace ipc",
        "host name": "namespace uts",
        "users": "namespace user; tr -s ' ' < /proc/self/uid_map",
        "cgroups": "namespace cgroup",
        "clocks": "namespace time",
        "cgroup": "cat /proc/self/cgroup",
        "names": "ls -A /dev",
        "nodes": "node /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty",
        "links": "for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done",
        "core": "readlink /dev/core",
        "null": "echo > /dev/null; wc -c < /dev/null",
        "zero": "head -c 3 /dev/zero | od -An -tx1",
        "full": "echo > /dev/full",
        "random": "head -c 5 /dev/urandom | wc -c; head -c 5 /dev/random | wc -c",
        "no terminal": "echo > /dev/tty",
        "log of the kernel": "mknod /dev/log c 1 11; node /dev/log; dd if=/dev/log of=/dev/null count=0",
        "memory": "mknod /dev/memory c 1 1; cat /dev/memory",
        "disk": "mknod /dev/disk b 8 0; cat /dev/disk",
        "pipe": "mkfifo /dev/pipe && node /dev/pipe | cut -d' ' -f1",
        "streams": "echo said > /dev/stdout; echo complained > /dev/stderr; cat /dev/stdin",
    ];

    /// Devices of the configuration.
    devices: { "linux": { "devices": [
        { "type": "c", "path": "/dev/log", "major": 1, "minor": 11, "fileMode": 0o640, "uid": 7, "gid": 8 },
        { "type": "u", "path": "/dev/unbuffered", "major": 1, "minor": 5, "fileMode": 0o600 },
        { "type": "b", "path": "/dev/block/of/mine", "major": 240, "minor": 1, "fileMode": 0o660 },
        { "type": "p", "path": "/dev/pipe", "fileMode": 0o622 },
        { "type": "c", "path": "/data/null", "major": 1, "minor": 3 },
        { "type": "c", "path": "/dev/null", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 1, "gid": 2 }
    ] } }, [
        "character device": "node /dev/log",
        "unbuffered": "node /dev/unbuffered; head -c 2 /dev/unbuffered | wc -c",
        "block device": "node /dev/block/of/mine; stat -c '%a %u:%g' /dev/block /dev/block/of",
        "pipe": "node /dev/pipe",
        "outside of dev": "node /data/null; echo > /data/null && cat /data/null",
        "one that is there already": "node /dev/null",
        "others": "ls /dev",
        "access": "dd if=/dev/log of=/dev/null count=0",
    ];

    /// A device of no type.
    unknown_device: { "process": { "args": ["/bin/true"] }, "linux": { "devices": [{ "type": "x", "path": "/dev/x", "major": 1, "minor": 3 }] } };

    /// A device in the place of another file.
    device_over_a_file: { "linux": { "devices": [{ "type": "c", "path": "/data/file", "major": 1, "minor": 3 }] }, "process": { "args": ["/bin/ls", "-l", "/data/file"] } };

    /// Nothing may be used but what rules allow.
    device_rules: { "linux": {
        "devices": [
            { "type": "c", "path": "/dev/log", "major": 1, "minor": 11, "fileMode": 0o666 },
            { "type": "b", "path": "/dev/allowed", "major": 240, "minor": 1 },
            { "type": "b", "path": "/dev/denied", "major": 240, "minor": 2 },
            { "type": "c", "path": "/dev/full2", "major": 1, "minor": 7 }
        ],
        "resources": { "devices": [
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
            { "allow": true, "type": "b", "major": 240, "minor": 1, "access": "rw" }
        ] }
    } }, [
        "allowed": "dd if=/dev/log of=/dev/null count=0",
        "not allowed": "dd if=/dev/null of=/dev/log count=0",
        "allowed, and not there": "cat /dev/allowed",
        "denied, and not there": "cat /dev/denied",
        "default": "echo > /dev/null; head -c 1 /dev/zero | wc -c; echo > /dev/full",
        "made": "mknod /dev/mine c 1 11",
        "made, of another kind": "mknod /dev/other c 10 1; cat /dev/other",
        "terminal": "ls -l /dev/ptmx | cut -c1; echo > /dev/pts/ptmx",
    ];

    /// All may be used but what rules deny, the later rule before the earlier.
    device_denials: { "linux": { "resources": { "devices": [
        { "allow": true, "access": "rwm" },
        { "allow": false, "type": "c", "major": 1, "minor": 11, "access": "rwm" },
        { "allow": false, "type": "b", "major": 240, "access": "rw" },
        { "allow": true, "type": "b", "major": 240, "minor": 7, "access": "r" }
    ] } } }, [
        "denied": "mknod /dev/log c 1 11; dd if=/dev/log of=/dev/null count=0",
        "all of a number": "mknod /dev/b1 b 240 1; cat /dev/b1",
        "the later rule": "mknod /dev/b7 b 240 7; cat /dev/b7",
        "another": "mknod /dev/b8 b 241 7; cat /dev/b8",
    ];

    /// Limits of all kinds.
    resources: { "linux": { "resources": {
        "memory": { "limit": 67_108_864, "reservation": 33_554_432, "swap": 100_663_296 },
        "cpu": { "shares": 1024, "quota": 50_000, "period": 200_000, "cpus": "0", "mems": "0" },
        "pids": { "limit": 123 }, "blockIO": { "weight": 500 },
        "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }],
        "unified": { "memory.high": "50000000", "memory.min": "4096" }
    } } }, [
        "memory": "cat /sys/fs/cgroup/memory.max",
        "reserved memory": "cat /sys/fs/cgroup/memory.low",
        "swap": "cat /sys/fs/cgroup/memory.swap.max",
        "unified, memory high": "cat /sys/fs/cgroup/memory.high",
        "unified, memory min": "cat /sys/fs/cgroup/memory.min",
        "weight of processors": "cat /sys/fs/cgroup/cpu.weight",
        "quota": "cat /sys/fs/cgroup/cpu.max",
        "processors": "cat /sys/fs/cgroup/cpuset.cpus; cat /sys/fs/cgroup/cpuset.cpus.effective",
        "memory nodes": "cat /sys/fs/cgroup/cpuset.mems",
        "seen by the process": "status Cpus_allowed_list; nproc",
        "processes": "cat /sys/fs/cgroup/pids.max",
        "weight of disks": "cat /sys/fs/cgroup/io.weight",
        "huge pages": "cat /sys/fs/cgroup/hugetlb.2MB.max",
        "reserved huge pages": "cat /sys/fs/cgroup/hugetlb.2MB.rsvd.max",
        "cgroup": "cat /proc/self/cgroup",
    ];

    /// More memory than there may be.
    eaten_memory: { "linux": { "resources": { "memory": { "limit": 16_777_216, "swap": 16_777_216 } } }, "process": { "args": ["/bin/probe", "allocate", "64"] } };

    /// The same in a process that is not the first: the others live on.
    memory_eaten_by_a_child: { "linux": { "resources": { "memory": { "limit": 16_777_216 } } } }, [
        "killed": "probe allocate 64 > /dev/null; echo $?",
        "alive": "echo alive",
        "told": "grep oom_kill /sys/fs/cgroup/memory.events | head -n 1",
    ];

    /// A swap limit below the memory's.
    small_swap: { "process": { "args": ["/bin/true"] }, "linux": { "resources": { "memory": { "limit": 67_108_864, "swap": 1024 } } } };

    /// A quota without a period, and no limits by -1.
    quota_alone: { "linux": { "resources": { "cpu": { "quota": 30_000, "shares": 2 }, "memory": { "limit": -1, "swap": -1 }, "pids": { "limit": -1 } } } }, [
        "memory": "cat /sys/fs/cgroup/memory.max",
        "swap": "cat /sys/fs/cgroup/memory.swap.max",
        "processes": "cat /sys/fs/cgroup/pids.max",
        "quota": "cat /sys/fs/cgroup/cpu.max",
        "weight": "cat /sys/fs/cgroup/cpu.weight",
    ];

    /// A period without a quota, and the most shares; a file by its own name comes after what has a field.
    period_alone: { "linux": { "resources": { "cpu": { "period": 50_000, "shares": 262_144 }, "pids": { "limit": 40 }, "unified": { "pids.max": "50" } } } }, [
        "quota": "cat /sys/fs/cgroup/cpu.max",
        "weight": "cat /sys/fs/cgroup/cpu.weight",
        "processes": "cat /sys/fs/cgroup/pids.max",
    ];

    /// Time that was saved up may be used, which crun 1.8 does not do on version 2 of cgroups.
    by_the_text_burst: { "linux": { "resources": { "cpu": { "quota": 50_000, "period": 100_000, "burst": 20_000 } } } }, [
        "burst": "cat /sys/fs/cgroup/cpu.max.burst" => "20000",
    ];

    /// Only when nobody else wants to.
    idle: { "linux": { "resources": { "cpu": { "idle": 1 } } } }, [
        "idle": "cat /sys/fs/cgroup/cpu.idle",
        "weight": "cat /sys/fs/cgroup/cpu.weight",
    ];

    /// Processors that there are not.
    missing_processors: { "process": { "args": ["/bin/true"] }, "linux": { "resources": { "cpu": { "cpus": "100-200" } } } };

    /// Processes.
    processes: { "linux": { "resources": { "pids": { "limit": 12 } } } }, [
        "limit": "cat /sys/fs/cgroup/pids.max",
        // Whoever cannot fork any more asks without.
        "too many": "(for i in $(seq 30); do sleep 100 & done) 2>/tmp/said; read -r said < /tmp/said; echo ${said##*: }; read -r word count < /sys/fs/cgroup/pids.events; test $count -gt 0",
    ];

    /// A file that is not there.
    missing_unified: { "process": { "args": ["/bin/true"] }, "linux": { "resources": { "unified": { "memory.none": "1" } } } };

    /// A cgroup of a given name, in another one.
    nested_cgroup: { "linux": { "cgroupsPath": "/outer/inner", "resources": { "pids": { "limit": 40 } },
        "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }] } }, [
        "cgroup": "cat /proc/self/cgroup",
    ];

    /// What may be done with the cgroup by who may write to it.
    written_cgroup: { "mounts": [
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/sys", "type": "sysfs", "source": "sysfs" },
        { "destination": "/sys/fs/cgroup", "type": "cgroup2", "source": "cgroup2", "options": ["nosuid", "noexec", "nodev"] }
    ] }, [
        "mount": "mounted /sys/fs/cgroup",
        "own cgroup": "mkdir /sys/fs/cgroup/mine && echo 0 > /sys/fs/cgroup/mine/cgroup.procs && cat /proc/self/cgroup",
        "controllers": "cat /sys/fs/cgroup/cgroup.controllers",
        "type": "cat /sys/fs/cgroup/cgroup.type",
    ];

    /// Kernel parameters that belong to namespaces.
    kernel_parameters: { "linux": { "sysctl": {
        "kernel.shmmax": "1234567", "kernel.msgmax": "4321", "kernel.domainname": "example.org", "fs.mqueue.msg_max": "20",
        "net.ipv4.ip_forward": "1", "net/ipv4/ip_unprivileged_port_start": "80", "net.ipv4.ping_group_range": "0 7", "kernel.sem": "1 2 3 4"
    } } }, [
        "shared memory": "cat /proc/sys/kernel/shmmax",
        "messages": "cat /proc/sys/kernel/msgmax",
        "semaphores": "tr '\\t' ' ' < /proc/sys/kernel/sem",
        "domain name": "cat /proc/sys/kernel/domainname",
        "message queues": "cat /proc/sys/fs/mqueue/msg_max",
        "network": "cat /proc/sys/net/ipv4/ip_forward",
        "with slashes": "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "two values": "tr '\\t' ' ' < /proc/sys/net/ipv4/ping_group_range",
    ];

    /// A parameter that belongs to no namespace.
    parameter_of_the_machine: { "process": { "args": ["/bin/true"] }, "linux": { "sysctl": { "vm.swappiness": "7" } } };

    /// A parameter of a namespace that the container does not have.
    parameter_of_another: { "process": { "args": ["/bin/true"] }, "linux": { "sysctl": { "net.ipv4.ip_forward": "1" },
        "namespaces": [{ "type": "pid" }, { "type": "uts" }, { "type": "mount" }] } };

    /// A parameter that there is not.
    missing_parameter: { "process": { "args": ["/bin/true"] }, "linux": { "sysctl": { "net.ipv4.none": "1" } } };

    /// The longest host name, `domainname`, and fields that nobody knows.
    names: {
        "hostname": "a234567890b234567890c234567890d234567890e234567890f234567890g234", "domainname": "example.org",
        "org.example.unknown": { "kept": true }, "process": { "unknown": [1] }, "linux": { "unknown": 1 }
    }, [
        "domain name": "cat /proc/sys/kernel/domainname",
        "host name": "hostname",
    ];

    /// A host name that no kernel takes.
    too_long_host_name: { "hostname": "a234567890b234567890c234567890d234567890e234567890f234567890g2345", "process": { "args": ["/bin/true"] } };

    /// The execution domain.
    personality: { "linux": { "personality": { "domain": "LINUX32" } } }, [
        "machine": "uname -m",
        "personality": "cat /proc/1/personality",
    ];

    /// A filter with all that it may do.
    seccomp: { "linux": { "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19 },
            { "names": ["rmdir"], "action": "SCMP_ACT_ERRNO" },
            { "names": ["link", "linkat"], "action": "SCMP_ACT_KILL" },
            { "names": ["symlink", "symlinkat"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["chroot"], "action": "SCMP_ACT_TRAP" },
            { "names": ["sethostname"], "action": "SCMP_ACT_LOG" },
            { "names": ["mknod", "mknodat"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 },
            { "names": ["sync"], "action": "SCMP_ACT_KILL_THREAD" }
        ]
    } } }, [
        "status": "status Seccomp; status Seccomp_filters",
        "number": "mkdir /x",
        "number by default": "rmdir /data",
        "kill": "ln /data/file /x; echo $?",
        "kill the process": "ln -s /data/file /x; echo $?",
        "trap": "chroot / true; echo $?",
        "log": "hostname logged; hostname",
        "trace": "mknod /x p; echo $?",
        "kill the thread": "sync; echo $?",
        "other": "touch /x && ls /x",
    ];

    /// What is not named is denied.
    seccomp_of_few: { "linux": { "seccomp": {
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "syscalls": [{ "action": "SCMP_ACT_ALLOW", "names": [
            "execve", "read", "write", "close", "exit", "exit_group", "brk", "mmap", "munmap", "arch_prctl", "fstat", "newfstatat", "open", "openat",
            "getpid", "getppid", "getuid", "getgid", "geteuid", "getegid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "fork", "vfork", "clone",
            "wait4", "dup2", "dup3", "fcntl", "pipe", "pipe2", "getcwd", "stat", "lstat", "ioctl", "prctl", "set_tid_address", "set_robust_list",
            "mprotect", "prlimit64", "readlink", "rseq", "getrandom", "futex", "lseek", "readv", "writev", "sendfile", "poll",
            "capget", "capset", "setgroups", "setresuid", "setresgid", "setuid", "setgid", "close_range", "umask", "chdir", "fchown", "openat2", "faccessat", "access"
        ] }]
    } } }, [
        "status": "status Seccomp",
        "allowed": "cat /data/file",
        "not named": "mkdir /x",
        "not named either": "chmod 700 /data/file",
    ];

    /// A filter that keeps the engine itself from starting the program.
    seccomp_of_nothing: { "process": { "args": ["/bin/true"] }, "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "action": "SCMP_ACT_ALLOW", "names": ["execve", "exit", "exit_group", "write", "close"] }] } } };

    /// Arguments are compared.
    seccomp_arguments: { "linux": { "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19, "args": [{ "index": 1, "value": 10, "op": "SCMP_CMP_EQ" }] },
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [{ "index": 1, "value": 60, "op": "SCMP_CMP_GT" }] },
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "args": [{ "index": 1, "value": 56, "valueTwo": 24, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [{ "index": 1, "value": 3, "op": "SCMP_CMP_LT" }] },
            { "names": ["setpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }, { "index": 1, "value": 1, "op": "SCMP_CMP_LE" }] },
            { "names": ["umask"], "action": "SCMP_ACT_KILL", "args": [{ "index": 0, "value": 511, "op": "SCMP_CMP_GE" }] },
            { "names": ["tgkill", "chroot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [{ "index": 0, "value": 18_446_744_073_709_551_615_u64, "op": "SCMP_CMP_NE" }] }
        ]
    } } }, [
        "equal": "trap '' USR1; kill -10 $$",
        "not equal": "trap '' USR2; kill -12 $$",
        "greater": "trap '' 61; kill -61 $$",
        "not greater": "trap '' 60; kill -60 $$",
        "masked": "trap '' 25; kill -25 $$",
        "not masked": "trap '' 23; kill -23 $$",
        "less": "trap '' 2; kill -2 $$",
        "not less": "trap '' 3; kill -3 $$",
        "both": "renice -n 1 -p 1",
        "one of two": "sleep 100 & renice -n 1 -p $! | tail -n 1; kill -9 $!",
        "greater or equal": "sh -c 'umask 777'; echo $?",
        "not greater or equal": "sh -c 'umask 776'; echo $?",
        "not equal to all bits": "chroot / true",
    ];

    /// Two comparisons of one argument.
    seccomp_twice_the_same_argument: { "linux": { "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 19,
            "args": [{ "index": 1, "value": 50, "op": "SCMP_CMP_GE" }, { "index": 1, "value": 55, "op": "SCMP_CMP_LE" }] }]
    } } }, [
        "both": "trap '' 52; kill -52 $$",
        "the first": "trap '' 60; kill -60 $$",
        "the second": "trap '' 12; kill -12 $$",
    ];

    /// A filter that is installed by who may not otherwise.
    seccomp_without_privileges: { "process": { "noNewPrivileges": true, "user": { "uid": 1000, "gid": 1000 }, "capabilities": null }, "linux": { "seccomp": {
        "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5 }]
    } } }, [
        "status": "status Seccomp; status Seccomp_filters; status NoNewPrivs",
        "speculation": "status Speculation_Store_Bypass | wc -l",
        "number": "mkdir /tmp/x",
    ];

    /// An action that is none.
    unknown_action: { "process": { "args": ["/bin/true"] }, "linux": { "seccomp": { "defaultAction": "SCMP_ACT_MAYBE" } } };

    /// A supervisor who is not there cannot be asked.
    notification_without_a_listener: { "process": { "args": ["/bin/true"] }, "linux": { "seccomp": { "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_NOTIFY" }] } } };

    /// Hooks that run in the container.
    hooks: { "annotations": { "org.example.key": "value" }, "process": { "cwd": "/data" }, "hooks": {
        "startContainer": [
            { "path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state; echo $0 $1 > /tmp/arguments; cat /proc/$$/environ > /tmp/environment; pwd > /tmp/directory", "zero", "one"],
                "env": ["PATH=/bin", "KEY=value"] },
            { "path": "/bin/sh", "args": ["sh", "-c", "grep CapEff /proc/$$/status > /tmp/capabilities; hostname > /tmp/host; cat /proc/$$/cgroup > /tmp/cgroup; mount > /tmp/mounts"],
                "env": ["PATH=/bin"] }
        ]
    } }, [
        "arguments": "cat /tmp/arguments",
        "environment": "tr '\\0' '\\n' < /tmp/environment",
        "working directory": "cat /tmp/directory",
        "status": "grep -o '\"status\": *\"[a-z]*\"' /tmp/state | tr -d ' '",
        "annotations": "grep -o '\"org.example.key\": *\"[a-z]*\"' /tmp/state | tr -d ' '",
        "fields": "grep -oE '\"(ociVersion|id|status|pid|bundle|annotations)\":' /tmp/state | sort",
        "host name": "cat /tmp/host",
        "cgroup": "cat /tmp/cgroup",
        "mounts": "grep -c ' on /proc ' /tmp/mounts",
    ];

    /// A hook that fails before the container is made ends it.
    failing_create_runtime_hook: { "process": { "args": ["/bin/true"] }, "hooks": { "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }] } };

    /// The same in the container's namespaces.
    failing_create_container_hook: { "process": { "args": ["/bin/true"] }, "hooks": { "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }] } };

    /// The same just before the program.
    failing_start_container_hook: { "process": { "args": ["/bin/true"] }, "hooks": { "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }] } };

    /// A hook that does not end in time.
    hanging_hook: { "process": { "args": ["/bin/true"] }, "hooks": { "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "exec sleep 1000"], "timeout": 1 }] } };

    /// A hook that is not there.
    missing_hook: { "process": { "args": ["/bin/true"] }, "hooks": { "createRuntime": [{ "path": "/no/such/hook" }] } };

    /// A hook that fails once the program runs.
    failing_poststart_hook: { "process": { "args": ["/bin/sh", "-c", "sleep 2; exit 4"] }, "hooks": { "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }] } };

    /// A hook that fails afterwards changes nothing.
    failing_poststop_hook: { "process": { "args": ["/bin/sh", "-c", "exit 4"] }, "hooks": { "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", "exit 1"] }] } };

    /// Hooks that say nothing, in all places.
    hooks_in_all_places: { "process": { "args": ["/bin/sh", "-c", "echo ran; exit 6"] }, "hooks": {
        "prestart": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }], "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }], "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }],
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }], "poststart": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }], "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/null"] }]
    } };

    /// A field of a wrong type.
    wrong_type: { "process": { "args": ["/bin/true"], "user": { "uid": "root" } } };
}
