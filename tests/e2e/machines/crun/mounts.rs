//! What is mounted where and how: runtime-spec `config.md`, "Root" and "Mounts", and `config-linux.md`, "Rootfs Mount Propagation",
//! "Masked Paths" and "Readonly Paths".

use super::configurations;

configurations! {
    /// The mounts that most containers have.
    usual_mounts: {}, [
        "mount points": "awk '{ print $5 }' /proc/self/mountinfo",
        "root": "mounted / | cut -d' ' -f1 | grep -o '^rw'",
        "proc": "mounted /proc",
        "dev": "mounted /dev; file_system /dev",
        "terminals": "mounted /dev/pts; file_system /dev/pts",
        "shared memory": "mounted /dev/shm; file_system /dev/shm",
        "message queues": "mounted /dev/mqueue",
        "sys": "mounted /sys",
        "cgroups": "mounted /sys/fs/cgroup",
        "permissions": "stat -c '%n %a %u:%g' / /dev /dev/pts /dev/shm /dev/mqueue /data /data/directory /proc /sys",
        "written to the root": "echo written > /written; cat /written; stat -c '%a %u:%g' /written",
        "written to sys": "echo > /sys/kernel/profiling",
        "written to proc": "cat /proc/sys/vm/swappiness > /proc/sys/vm/swappiness",
        "executed from shared memory": "cp /bin/busybox /dev/shm/true; /dev/shm/true",
        "new terminal": "ls -l /dev/pts | tail -n +2 | wc -l; stat -c '%t:%T %a' /dev/pts/ptmx",
    ];

    /// A root that nobody can write to. It still gets the mount points and the working directory that it lacks.
    read_only_root: { "root": { "readonly": true }, "process": { "cwd": "/made/for/it" }, "mounts+": [
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/new/place", "type": "tmpfs", "source": "tmpfs" }
    ] }, [
        "missing mount point": "mounted /new/place",
        "missing working directory": "pwd",
        "root": "mounted / | grep -o '^ro'",
        "written to the root": "echo > /written",
        "changed in the root": "rm /data/file",
        "written to a mount": "echo written > /tmp/written && cat /tmp/written",
        "written to dev": "echo > /dev/null; echo > /dev/written && ls /dev/written",
    ];

    /// Options of a tmpfs.
    tmpfs_options: { "mounts+": [
        { "destination": "/m/size", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "mode=1770", "uid=7", "gid=8"] },
        { "destination": "/m/inodes", "type": "tmpfs", "source": "inodes", "options": ["nr_inodes=10", "noatime"] },
        { "destination": "/m/ro", "type": "tmpfs", "source": "tmpfs", "options": ["ro"] },
        { "destination": "/m/later", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "nosuid", "rw", "suid"] },
        { "destination": "/m/none", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/data/directory", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/m/atime", "type": "tmpfs", "source": "tmpfs", "options": ["strictatime", "nodiratime"] },
        { "destination": "/m/sync", "type": "tmpfs", "source": "tmpfs", "options": ["sync", "dirsync"] },
        { "destination": "/m/defaults", "type": "tmpfs", "source": "tmpfs", "options": ["defaults", "noexec", "nodev"] },
        { "destination": "/m/lazytime", "type": "tmpfs", "source": "tmpfs", "options": ["lazytime"] }
    ] }, [
        "size, mode and owner": "mounted /m/size; file_system /m/size; stat -c '%a %u:%g' /m/size",
        "too much": "dd if=/dev/zero of=/m/size/x bs=1M count=2 2>&1 | grep -o 'No space.*'; stat -c %s /m/size/x",
        "inodes": "mounted /m/inodes; file_system /m/inodes | grep -o nr_inodes=10",
        "source": "awk '$5 == \"/m/inodes\" { print $(NF - 1) }' /proc/self/mountinfo",
        "read-only": "mounted /m/ro; echo > /m/ro/x",
        "the later option counts": "mounted /m/later",
        "no options": "mounted /m/none; stat -c '%a %u:%g' /m/none",
        "permissions of what is hidden": "stat -c %a /data/directory; ls /data/directory",
        "access times": "mounted /m/atime",
        "synchronous": "mounted /m/sync; file_system /m/sync | grep -o 'sync.*'",
        "defaults": "mounted /m/defaults",
        "lazy times": "mounted /m/lazytime; file_system /m/lazytime | grep -o lazytime",
        "made on the way": "stat -c '%a %u:%g' /m",
        "order": "awk '$5 ~ \"^/m/\" { print $5 }' /proc/self/mountinfo",
    ];

    /// Binds of things that every machine has.
    binds: { "mounts+": [
        { "destination": "/b/null", "type": "bind", "source": "/dev/null", "options": ["bind"] },
        { "destination": "/b/none", "type": "none", "source": "/dev/zero", "options": ["rbind", "ro"] },
        { "destination": "/b/sys", "type": "bind", "source": "/sys", "options": ["bind", "ro", "nosuid", "noexec", "nodev"] },
        { "destination": "/b/tree", "type": "bind", "source": "/sys", "options": ["rbind"] },
        { "destination": "/b/fs", "type": "bind", "source": "/sys/fs", "options": ["rbind", "rro"] },
        { "destination": "/data/file", "type": "bind", "source": "/dev/full", "options": ["bind"] },
        { "destination": "/b/link", "source": "/proc/self/ns", "options": ["bind", "noexec", "noatime"] }
    ] }, [
        "file": "node /b/null; echo > /b/null && cat /b/null",
        "options of a file": "mounted /b/null | cut -d, -f1",
        "recursive file": "node /b/none; mounted /b/none | grep -o ^ro",
        "directory": "mounted /b/sys; ls /b/sys | grep -x kernel; ls /b/sys/fs/cgroup | wc -l",
        "tree": "test -e /b/tree/fs/cgroup/cgroup.procs && echo with what is mounted in it; mounted /b/tree/fs/cgroup | grep -o 'cgroup2$'",
        "recursive read-only": "mounted /b/fs | grep -o ^ro; mounted /b/fs/cgroup | grep -o ^ro; mkdir /b/fs/cgroup/new",
        "over a file": "node /data/file; echo > /data/file",
        "options": "mounted /b/link | cut -d' ' -f1",
        "mount points": "awk '$5 ~ \"^/b/[a-z]*$\" { print $5 }' /proc/self/mountinfo",
    ];

    /// A bind mount's source must be there.
    missing_source: { "mounts+": [{ "destination": "/b", "type": "bind", "source": "/no/such/source", "options": ["bind"] }],
        "process": { "args": ["/bin/true"] } };

    /// A type of file system that no kernel knows.
    unknown_type: { "mounts+": [{ "destination": "/b", "type": "nosuchfs", "source": "x" }], "process": { "args": ["/bin/true"] } };

    /// An option that the file system does not know.
    unknown_option: { "mounts+": [{ "destination": "/b", "type": "tmpfs", "source": "x", "options": ["nosuchoption=1"] }],
        "process": { "args": ["/bin/true"] } };

    /// Mounts that others do or do not hear of.
    propagation: { "mounts+": [
        { "destination": "/m/usual", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/m/private", "type": "tmpfs", "source": "tmpfs", "options": ["private"] },
        { "destination": "/m/shared", "type": "tmpfs", "source": "tmpfs", "options": ["shared"] },
        { "destination": "/m/rshared", "type": "tmpfs", "source": "tmpfs", "options": ["rshared"] },
        { "destination": "/m/slave", "type": "tmpfs", "source": "tmpfs", "options": ["slave"] },
        { "destination": "/m/unbindable", "type": "tmpfs", "source": "tmpfs", "options": ["unbindable"] }
    ] }, [
        "usual": "mounted /m/usual",
        "private": "mounted /m/private",
        "shared": "mounted /m/shared",
        "recursively shared": "mounted /m/rshared",
        "slave": "mounted /m/slave | cut -d' ' -f1",
        "unbindable": "mounted /m/unbindable; mkdir /again; mount -o bind /m/unbindable /again 2>&1 | grep -o 'Invalid.*'",
    ];

    /// `rootfsPropagation`: shared.
    shared_root: { "linux": { "rootfsPropagation": "shared" } }, [
        "root": "mounted / | cut -d' ' -f2- | grep -o shared",
        "proc": "mounted /proc",
    ];

    /// `rootfsPropagation`: slave.
    slave_root: { "linux": { "rootfsPropagation": "slave" } }, [
        "root": "mounted / | grep -c shared",
        "proc": "mounted /proc",
    ];

    /// `rootfsPropagation`: unbindable.
    unbindable_root: { "linux": { "rootfsPropagation": "unbindable" } }, [
        "root": "mounted / | grep -o unbindable",
    ];

    /// Where mounts go.
    destinations: { "mounts+": [
        { "destination": "/data/link", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] },
        { "destination": "/n", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/n/inner", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/n/inner/most", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/twice", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] },
        { "destination": "/twice", "type": "tmpfs", "source": "tmpfs", "options": ["size=2m"] },
        { "destination": "/data/up", "type": "tmpfs", "source": "tmpfs", "options": ["size=3m"] },
        { "destination": "/data/../b/./c", "type": "tmpfs", "source": "tmpfs", "options": ["size=4m"] }
    ] }, [
        "a link is followed": "mounted /data/directory; mounted /data/link",
        "a link that leads up": "file_system /led | grep -o size=[0-9]*k",
        "a path that leads up": "file_system /b/c | grep -o size=[0-9]*k",
        "one in the other": "mounted /n/inner/most; ls /n; ls /n/inner",
        "one over the other": "file_system /twice; grep -c ' /twice ' /proc/self/mountinfo",
    ];

    /// What a tmpfs hides is copied into it.
    copied_up: { "mounts+": [
        { "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] },
        { "destination": "/home", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "ro"] }
    ] }, [
        "content": "cat /data/file /data/directory/inner; readlink /data/link",
        "permissions": "stat -c '%n %a %u:%g' /data /data/file /data/directory /data/private",
        "type": "mounted /data",
        "written": "echo more >> /data/file && cat /data/file",
        "read-only": "mounted /home; stat -c '%a %u:%g' /home/alice; echo > /home/x",
    ];

    /// Paths that cannot be seen.
    masked: { "linux": { "maskedPaths": ["/data/file", "/data/directory", "/no/such/path", "/proc/kcore", "/proc/timer_list", "/sys/firmware"] } }, [
        "file": "cat /data/file; node /data/file; echo written > /data/file",
        "directory": "ls -A /data/directory; echo > /data/directory/new",
        "mount over a directory": "mounted /data/directory",
        "permissions": "stat -c '%a %u:%g' /data/directory",
        "missing path": "ls /no",
        "of proc": "cat /proc/timer_list",
        "of sys": "ls -A /sys/firmware",
    ];

    /// Paths that cannot be changed.
    read_only_paths: { "linux": { "readonlyPaths": ["/data/file", "/data/directory", "/no/such/path", "/proc/sys", "/dev/shm"] } }, [
        "file": "cat /data/file; echo > /data/file",
        "directory": "cat /data/directory/inner; echo > /data/directory/new",
        "mount over a directory": "mounted /data/directory | grep -o ^ro",
        "missing path": "ls /no",
        "of proc": "mounted /proc/sys; hostname; echo x > /proc/sys/kernel/hostname",
        "a mount": "mounted /dev/shm; echo > /dev/shm/new",
        "beside it": "echo written > /data/new; cat /data/new",
    ];

    /// A path may be read-only and have a masked one in it.
    masked_in_read_only: { "linux": { "readonlyPaths": ["/data"], "maskedPaths": ["/data/directory"] } }, [
        "masked": "ls -A /data/directory",
        "read-only": "echo > /data/new",
    ];

    /// The options of a mount are changed by a later entry.
    remounted: { "mounts+": [
        { "destination": "/r", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] },
        { "destination": "/r", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro", "nosuid", "size=2m"] }
    ] }, [
        "changed": "mounted /r; file_system /r | grep -o size=.*; grep -c ' /r ' /proc/self/mountinfo",
    ];

    /// No mounts at all.
    no_mounts: { "mounts": [], "process": { "args": ["/bin/ls", "-A", "/proc", "/sys"] } };

    /// A root of another name.
    missing_root: { "root": null, "process": { "args": ["/bin/true"] } };

    /// Recursive options, which crun 1.8 has in part; and a destination without a slash, which is one below the root.
    by_the_text_mounts: { "mounts+": [
        { "destination": "/r/all", "type": "bind", "source": "/sys", "options": ["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"] },
        { "destination": "/r/back", "type": "bind", "source": "/sys", "options": ["rbind", "rro", "rrw"] },
        { "destination": "relative", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/r/nosymfollow", "type": "tmpfs", "source": "tmpfs", "options": ["nosymfollow"] }
    ] }, [
        "mount": "mounted /r/all" => "ro,nosuid,nodev,noexec,noatime sysfs",
        "mount below": "mounted /r/all/fs/cgroup" => "ro,nosuid,nodev,noexec,noatime cgroup2",
        "destination without a slash": "mounted /relative" => "rw,relatime tmpfs",
        "taken back": "mounted /r/back/fs/cgroup | grep -o ^rw" => "rw",
        "links": "mounted /r/nosymfollow; ln -s x /r/nosymfollow/link; echo > /r/nosymfollow/x; cat /r/nosymfollow/link"
            => "rw,relatime,nosymfollow tmpfs\ncat: can't open '/r/nosymfollow/link': Too many levels of symbolic links\nexit code 1",
    ];
}
