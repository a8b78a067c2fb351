//! Who the process is and what it may do: runtime-spec `config.md`, "Process", and how it ends.

use super::{Streams, configurations};

configurations! {
    /// What a process has if the configuration says little.
    usual_process: {}, [
        "working directory": "pwd; readlink /proc/1/cwd",
        "environment": "tr '\\0' '\\n' < /proc/1/environ",
        "user": "id -u; id -g; id -G; status Uid; status Gid; status Groups",
        "umask": "umask; status Umask",
        "bounding capabilities": "status CapBnd",
        "permitted capabilities": "status CapPrm",
        "effective capabilities": "status CapEff",
        "inheritable capabilities": "status CapInh",
        "ambient capabilities": "status CapAmb",
        "no new privileges": "status NoNewPrivs",
        "seccomp": "status Seccomp; status Seccomp_filters",
        "blocked signals": "grep SigBlk /proc/1/status",
        "ignored signals": "grep -E 'SigIgn' /proc/self/status",
        "session": "cut -d' ' -f4-7 /proc/1/stat",
        "open files": "ls /proc/1/fd",
        "score for want of memory": "cat /proc/self/oom_score_adj",
        "nice value": "cut -d' ' -f19 /proc/1/stat",
        "input priority": "ionice -p 1",
        "scheduler": "cut -d' ' -f18,40,41 /proc/1/stat",
        "personality": "cat /proc/self/personality; uname -m",
        "is dumpable": "stat -c %u:%g /proc/1/environ",
        "traced by": "status TracerPid",
        "limit of open files": "limit 'open files'",
        "limit of stack": "limit 'stack size'",
        "limit of core files": "limit 'core file size'",
        "limit of locked memory": "limit 'locked memory'",
        "other processes": "ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm",
        "host name": "hostname",
        "domain name": "cat /proc/sys/kernel/domainname",
        "network": "cat /proc/net/dev | cut -d: -f1 | tail -n +3; ip -4 addr show lo | grep -o 'inet [^ ]*'; ip link show lo | grep -o '<.*>'",
        "session keyring": "grep -c _ses /proc/keys",
    ];

    /// Arguments arrive as they are.
    strange_arguments: { "process": { "args": ["/bin/probe", "arguments", "a b", "", "ü", "*", "$HOME", "-x", "\"", "new\nline"] } };

    /// The environment is the list, in its order, with what is there twice.
    strange_environment: { "process": { "env": ["PATH=/bin", "EMPTY=", "TWICE=1", "TWICE=2", "SPACE=a b", "=nameless", "equals", "ü=ü"] } }, [
        "environment": "tr '\\0' '\\n' < /proc/1/environ",
    ];

    /// Another user than root, with groups that `/etc/group` knows nothing of.
    user_with_groups: { "process": { "user": { "uid": 1000, "gid": 1001, "umask": 23, "additionalGids": [50, 7, 4242] } } }, [
        "user": "status Uid; status Gid",
        "groups": "status Groups",
        "umask": "umask; status Umask",
        "home": "echo $HOME",
        "permitted capabilities": "status CapPrm",
        "effective capabilities": "status CapEff",
        "bounding capabilities": "status CapBnd",
        "new file": "echo > /tmp/new; stat -c '%a %u:%g' /tmp/new",
        "forbidden directory": "ls /root",
        "forbidden file": "echo > /etc/passwd",
        "standard streams": "stat -L -c %u /proc/self/fd/1; echo said > /dev/stdout",
        "own process": "stat -c %u:%g /proc/1/status",
        "is dumpable": "stat -c %u:%g /proc/1/environ",
    ];

    /// A user whom no file names.
    unknown_user: { "process": { "oomScoreAdj": 500, "user": { "uid": 4242, "gid": 4243 } } }, [
        "score for want of memory": "cat /proc/1/oom_score_adj",
        "user": "id -u; id -g; id -G",
        "home": "echo $HOME",
    ];

    /// No capabilities at all.
    no_capabilities: { "process": { "capabilities": null } }, [
        "bounding capabilities": "status CapBnd",
        "effective capabilities": "status CapEff",
        "permitted capabilities": "status CapPrm",
        "forbidden file": "chown 1:1 /data/file",
        "other's directory": "chmod 700 /home/alice; echo $?; ls /home/alice",
    ];

    /// Five sets that are not the same.
    five_sets: { "process": { "capabilities": {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL", "CAP_NET_RAW"],
        "ambient": ["CAP_KILL"]
    }, "args": ["/bin/grep", "Cap", "/proc/self/status"] } };

    /// The same for somebody who is not root: what is ambient is kept through an exec, and nothing else.
    ambient_capabilities: { "process": { "user": { "uid": 1000, "gid": 1000 }, "capabilities": {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "effective": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "inheritable": ["CAP_CHOWN", "CAP_KILL"],
        "ambient": ["CAP_CHOWN"]
    } } }, [
        "permitted capabilities": "status CapPrm",
        "effective capabilities": "status CapEff",
        "inheritable capabilities": "status CapInh",
        "ambient capabilities": "status CapAmb",
        "use": "chown 7:7 /etc/passwd && stat -c %u:%g /etc/passwd",
    ];

    /// Capabilities that are not in the bounding set cannot be had.
    bounding_alone: { "process": { "capabilities": { "bounding": ["CAP_CHOWN"], "permitted": [], "effective": [] } } }, [
        "sets": "grep Cap /proc/self/status",
    ];

    /// `noNewPrivileges`.
    no_new_privileges: { "process": { "noNewPrivileges": true, "user": { "uid": 1000, "gid": 1000 } } }, [
        "no new privileges": "status NoNewPrivs",
        "set user id": "elevated status Uid; elevated status CapEff",
    ];

    /// The same program with new privileges.
    new_privileges: { "process": { "noNewPrivileges": false, "user": { "uid": 1000, "gid": 1000 } } }, [
        "set user id": "elevated status Uid; elevated status CapEff",
    ];

    /// All limits that have a name.
    limits: { "process": { "rlimits": [
        { "type": "RLIMIT_AS", "soft": 1_000_000_000, "hard": 2_000_000_000 },
        { "type": "RLIMIT_CORE", "soft": 1, "hard": 2 },
        { "type": "RLIMIT_CPU", "soft": 1000, "hard": 2000 },
        { "type": "RLIMIT_DATA", "soft": 100_000_000, "hard": 200_000_000 },
        { "type": "RLIMIT_FSIZE", "soft": 3_000_000, "hard": 4_000_000 },
        { "type": "RLIMIT_LOCKS", "soft": 5, "hard": 6 },
        { "type": "RLIMIT_MEMLOCK", "soft": 70_000, "hard": 80_000 },
        { "type": "RLIMIT_MSGQUEUE", "soft": 9000, "hard": 10_000 },
        { "type": "RLIMIT_NICE", "soft": 11, "hard": 12 },
        { "type": "RLIMIT_NOFILE", "soft": 130, "hard": 140 },
        { "type": "RLIMIT_NPROC", "soft": 150, "hard": 160 },
        { "type": "RLIMIT_RSS", "soft": 17, "hard": 18 },
        { "type": "RLIMIT_RTPRIO", "soft": 19, "hard": 20 },
        { "type": "RLIMIT_RTTIME", "soft": 21, "hard": 22 },
        { "type": "RLIMIT_SIGPENDING", "soft": 230, "hard": 240 },
        { "type": "RLIMIT_STACK", "soft": 2_500_000, "hard": 18_446_744_073_709_551_615_u64 }
    ] } }, [
        "address space": "limit 'address space'",
        "core files": "limit 'core file size'",
        "processor time": "limit 'cpu time'",
        "data": "limit 'data size'",
        "file size": "limit 'file size'",
        "file locks": "limit 'file locks'",
        "locked memory": "limit 'locked memory'",
        "message queues": "limit 'msgqueue size'",
        "nice": "limit 'nice priority'",
        "open files": "limit 'open files'",
        "processes": "limit 'processes'",
        "resident set": "limit 'resident set'",
        "real time priority": "limit 'realtime priority'",
        "real time": "limit 'realtime timeout'",
        "pending signals": "limit 'pending signals'",
        "stack": "limit 'stack size'",
        "a file that is too large": "dd if=/dev/zero of=/tmp/large bs=1M count=4 2>/dev/null; echo $?; stat -c %s /tmp/large",
    ];

    /// A user whom `/etc/group` gives a group, which is not asked; a home that is given; and a umask of nothing.
    known_user: { "process": { "env": ["PATH=/bin", "HOME=/given"], "oomScoreAdj": -500, "user": { "uid": 1000, "gid": 1000, "umask": 0 } } }, [
        "groups": "status Groups; id -G",
        "home": "echo $HOME",
        "umask": "umask; echo > /tmp/new; stat -c %a /tmp/new",
        "score for want of memory": "cat /proc/1/oom_score_adj",
    ];

    /// A working directory that is there, and a relative program in it.
    given_directory: { "process": { "cwd": "/data/link" } }, [
        "working directory": "readlink /proc/1/cwd; cat inner; echo $PWD",
    ];

    /// Who makes it is root, whoever the process is.
    missing_directory_of_a_user: { "process": { "cwd": "/made/for/it", "user": { "uid": 1000, "gid": 1000 } } }, [
        "working directory": "pwd; stat -c '%a %u:%g' . .. /made",
    ];

    /// A working directory that only root may enter.
    private_directory: { "process": { "cwd": "/data/private", "user": { "uid": 1000, "gid": 1000 }, "args": ["/bin/pwd"] } };

    /// A working directory that is a file.
    file_for_a_directory: { "process": { "cwd": "/data/file", "args": ["/bin/true"] } };

    /// A program is found in the PATH of its own environment.
    program_in_path: { "process": { "env": ["PATH=/nowhere:/data:/bin"], "args": ["echo", "found"] } };

    /// A program with a path is found from the working directory.
    program_in_directory: { "process": { "cwd": "/bin", "args": ["./echo", "found"] } };

    /// The name of a program is its first argument.
    program_name: { "process": { "args": ["sh", "-c", "echo $0; tr '\\0' ' ' < /proc/1/cmdline"] } };

    /// There is no such program.
    missing_program: { "process": { "args": ["/bin/missing"] } };

    /// There is no such program in PATH.
    missing_command: { "process": { "args": ["missing"] } };

    /// A file that nobody may execute.
    not_executable: { "process": { "args": ["/bin/not-executable"] } };

    /// A directory is no program.
    directory_for_a_program: { "process": { "args": ["/data"] } };

    /// A script whose interpreter is missing.
    missing_interpreter: { "process": { "args": ["/bin/no-interpreter"] } };

    /// A file that is no program of any kind.
    no_program: { "process": { "args": ["/bin/no-program"] } };

    /// No arguments at all.
    no_arguments: { "process": { "args": [] } };

    /// The smallest failure.
    exit_one: { "process": { "args": ["/bin/sh", "-c", "echo said; exit 1"] } };

    /// The first process of a namespace is not ended by a signal that it sends itself.
    own_signal: { "process": { "args": ["/bin/sh", "-c", "kill -TERM $$; echo alive; exit 7"] } };

    /// A process that nothing protects is.
    signal_of_a_process: { "process": { "args": ["/bin/sh", "-c", "sh -c 'kill -TERM $$'; echo $?; sh -c 'kill -KILL $$'; echo $?"] } };

    /// A fault ends the first process of a namespace, too.
    segmentation_fault: { "process": { "args": ["/bin/probe", "segfault"] } };

    /// An illegal instruction does.
    illegal_instruction: { "process": { "args": ["/bin/probe", "illegal"] } };

    /// A process that is the first of no namespace of its own ends by the signal that it sends itself.
    own_signal_without_a_namespace: {
        "process": { "args": ["/bin/sh", "-c", "kill -USR1 $$; echo unreached"] },
        "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }, { "type": "ipc" }, { "type": "network" }, { "type": "cgroup" }] }
    };

    /// What a process leaves behind ends with it.
    left_behind: { "process": { "args": ["/bin/sh", "-c", "sleep 1000 & echo started; exit 3"] } };

    /// Standard input at its end.
    empty_input: { "process": { "args": ["/bin/sh", "-c", "wc -c; read line; echo $?"] } };

    /// Standard input with something in it.
    some_input(Streams::Input("one\ntwo\n")): { "process": { "args": ["/bin/sh", "-c", "read line; echo \"<$line>\"; wc -c"] } };

    /// Nobody reads what is said, and the program does not mind.
    closed_output(Streams::ClosedOutput): { "process": { "args": ["/bin/sh", "-c", "trap '' PIPE; echo unheard 2>/dev/null; exit 5"] } };

    /// Standard output and standard error are two.
    two_outputs: { "process": { "args": ["/bin/sh", "-c", "echo out; echo err >&2"] } };

    /// `scheduler` and `ioPriority`, which are newer than crun 1.8.
    by_the_text_real_time: { "process": { "scheduler": { "policy": "SCHED_FIFO", "priority": 7 }, "ioPriority": { "class": "IOPRIO_CLASS_BE", "priority": 6 } } }, [
        "real time priority": "cut -d' ' -f40 /proc/1/stat" => "7",
        "policy": "cut -d' ' -f41 /proc/1/stat" => "1",
        "input priority": "ionice -p 1" => "best-effort: prio 6",
    ];

    /// The same for somebody who can wait.
    by_the_text_batch: { "process": { "scheduler": { "policy": "SCHED_BATCH", "nice": 5 }, "ioPriority": { "class": "IOPRIO_CLASS_IDLE", "priority": 0 } } }, [
        "nice value": "cut -d' ' -f19 /proc/1/stat" => "5",
        "policy": "cut -d' ' -f41 /proc/1/stat" => "3",
        "input priority": "ionice -p 1" => "idle",
    ];
}
