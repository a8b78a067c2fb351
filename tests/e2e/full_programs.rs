//! Programs as people run them, each once in a container of crun's and once in a machine, with the same answers. In the lab, where
//! crun has a whole cgroup v2. Only in the full profile.

#![expect(clippy::panic, reason = "what the lab says is the test's failure")]

use std::path::{Path, PathBuf};

use lab::LabError;
use serde_json::{Value, json};
use tests::image_maker::{ImageMaker, Layer};
use tests::lab_script::{WAIT_FOR, in_lab, lab_with};
use tests::{Fixture, bundle, real_images, workload};

/// What a program did.
#[derive(Debug, Eq, PartialEq)]
struct Done {
    code: i32,
    said: String,
}

/// What to run: an image, with a command in place of its own, or with its own.
struct Program<'a> {
    image: PathBuf,
    command: &'a [&'a str],
    /// What it reads.
    input: String,
    /// Changes crun's configuration.
    configure: fn(&mut Value),
    /// Tools of this host that the lab gets, and what it does with them first.
    before: (&'a [&'a str], &'a str),
}

impl Program<'_> {
    /// A script for the image's own bash.
    fn script(image: PathBuf, script: &str) -> Self {
        Self {
            image,
            command: &["bash"],
            input: format!("{WAIT_FOR}{script}"),
            configure: |_| (),
            before: (&[], ""),
        }
    }

    /// Runs it in crun and in vmm, which must do the same.
    fn runs_alike(&self) -> Done {
        let fixture = Fixture::new();
        let unpacked = fixture.path("bundle");
        bundle::unpack(&self.image, &unpacked);
        let mut config = bundle::configuration(&unpacked, self.command);
        as_docker_would(&mut config);
        (self.configure)(&mut config);
        let (tools, before) = self.before;
        let mut lab = lab_with(&self.image);
        let mut put = || {
            let crun = lab.tree.program_called("crun")?;
            lab.tree.symlink("/usr/local/bin/crun", crun);
            for tool in tools {
                lab.tree.program_called(tool)?;
            }
            lab.tree.copy(unpacked.join("rootfs"), "/bundle/rootfs")
        };
        put().unwrap_or_else(|error: LabError| panic!("no lab: {error}"));
        lab.tree
            .bytes("/bundle/config.json", config.to_string(), 0o644);
        lab.tree.bytes("/input", self.input.clone(), 0o644);
        let command = self
            .command
            .iter()
            .map(|word| format!("'{word}'"))
            .collect::<Vec<_>>()
            .join(" ");
        let script = format!(
            "{before}
             crun run --bundle /bundle program < /input > /said 2> /complained; echo crun $?; cat /said; tail -5 /complained >&2
             vmm run -i --memory 1g --image /image.oci -- {command} < /input > /said 2> /complained; echo vmm $?; cat /said
             tail -5 /complained >&2"
        );
        let (said, complaint) = in_lab(&mut lab, &script);
        let of = |engine: &str, text: &str| {
            let (code, said) = text
                .strip_prefix(engine)
                .and_then(|text| text.trim_start().split_once('\n'))
                .unwrap_or_else(|| panic!("no answer of {engine}:\n{said}\n{complaint}"));
            Done {
                code: code.parse().expect("the shell prints a number"),
                said: said.to_owned(),
            }
        };
        let at = said.find("\nvmm ").map_or(said.len(), |at| at + 1);
        let (crun, vmm) = said.split_at(at);
        let (crun, vmm) = (of("crun", crun), of("vmm", vmm));
        assert_eq!(crun, vmm, "{complaint}");
        vmm
    }
}

/// What docker gives a container's root, and umoci does not.
fn as_docker_would(config: &mut Value) {
    let all = [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
    .map(|name| format!("CAP_{name}"));
    config["process"]["capabilities"] =
        json!({ "bounding": all, "effective": all, "permitted": all });
    config["process"]["noNewPrivileges"] = json!(false);
    config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096 }]);
}

#[test]
fn python_answers() {
    let program = Program {
        image: real_images::python3(),
        command: &["python3"],
        input: "import sys, json\nprint(json.dumps({'sum': sum(range(10))}))\nsys.exit(3)\n"
            .to_owned(),
        configure: |_| (),
        before: (&[], ""),
    };

    let done = program.runs_alike();

    assert_eq!((done.code, done.said.as_str()), (3, "{\"sum\": 45}\n"));
}

#[test]
fn nginx_serves_a_page() {
    let program = Program::script(
        real_images::debian_app("nginx"),
        r"
        nginx -g 'daemon off;' &
        server=$!
        wait_for bash -c 'exec 3<>/dev/tcp/127.0.0.1/80'
        exec 3<>/dev/tcp/127.0.0.1/80
        printf 'GET / HTTP/1.0\r\n\r\n' >&3
        head -n 1 <&3
        grep -o 'Welcome to nginx' <&3 | head -n 1
        kill -QUIT $server
        wait $server
        exit $(($? + 4))
        ",
    );

    let done = program.runs_alike();

    assert_eq!(done.code, 4, "{}", done.said);
    assert!(done.said.starts_with("HTTP/1.1 200 OK"), "{}", done.said);
}

#[test]
fn redis_keeps_what_it_is_told() {
    let program = Program::script(
        real_images::debian_app("redis"),
        "
        redis-server --save '' >/dev/null &
        server=$!
        wait_for redis-cli ping
        redis-cli set word kept
        redis-cli get word
        redis-cli shutdown nosave
        wait $server
        exit $(($? + 5))
        ",
    );

    let done = program.runs_alike();

    assert_eq!((done.code, done.said.as_str()), (5, "OK\nkept\n"));
}

#[test]
fn postgresql_answers_a_question() {
    let program = Program::script(
        real_images::debian_app("postgresql"),
        "
        id -un
        export PATH=/usr/lib/postgresql/15/bin:$PATH
        initdb --no-sync --pgdata=/tmp/cluster >/dev/null
        pg_ctl --wait --timeout=300 --pgdata=/tmp/cluster --log=/tmp/log --options='-k /tmp' start >/dev/null
        psql --host=/tmp --quiet --no-psqlrc --tuples-only --no-align --command='create table t (n int); insert into t select generate_series(1, 1000); select sum(n) from t' postgres
        pg_ctl --wait --timeout=300 --pgdata=/tmp/cluster stop >/dev/null
        exit $(($? + 6))
        ",
    );

    let done = program.runs_alike();

    assert_eq!(done.code, 6, "{}", done.said);
    assert!(done.said.starts_with("postgres\n"), "{}", done.said);
    assert!(done.said.ends_with("500500\n"), "{}", done.said);
}

#[test]
fn node_finds_its_package() {
    let program = Program {
        image: real_images::debian_app("node"),
        command: &["node", "-"],
        input:
            "console.log(require('semver').inc('1.2.3', 'minor'), process.pid); process.exit(8)\n"
                .to_owned(),
        configure: |_| (),
        before: (&[], ""),
    };

    let done = program.runs_alike();

    assert_eq!((done.code, done.said.as_str()), (8, "1.3.0 1\n"));
}

#[test]
fn systemd_reaches_its_default_target() {
    let program = Program {
        image: real_images::debian_app("systemd"),
        command: &["/sbin/init"],
        input: String::new(),
        // As for `--systemd` of vmm, which knows the command.
        configure: |config| {
            let mounts = config["mounts"].as_array_mut().expect("there are mounts");
            mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
            mounts.extend([
                json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev"] }),
                json!({ "destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755"] }),
                json!({ "destination": "/run/lock", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777"] }),
            ]);
            let namespaces = config["linux"]["namespaces"].as_array_mut();
            namespaces
                .expect("there are namespaces")
                .push(json!({ "type": "cgroup" }));
            let environment = config["process"]["env"].as_array_mut();
            environment
                .expect("there are variables")
                .push(json!("container=oci"));
        },
        before: (&[], ""),
    };

    let done = program.runs_alike();

    // Any other code says what was missing; `debian-app.sh` knows which.
    assert_eq!((done.code, done.said.as_str()), (7, ""));
}

#[test]
fn a_signal_to_end_lets_systemd_halt() {
    let mut lab = lab_with(&real_images::debian_app("systemd"));
    let script = "
        vmm load --quiet --input /image.oci --name systemd:1
        vmm run -t --systemd --memory 512m systemd:1 sh -c 'touch /stays; exec /sbin/init' > /said &
        until grep -q 'Reached target.*multi-user.target' /said; do sleep 0.2; done
        kill -TERM $!
        wait $!
        echo $?
        grep -c 'Reached target.*umount.target' /said";

    let said = in_lab(&mut lab, script).0;

    assert!(said.ends_with("\n0\n1\n"), "{said}");
}

#[test]
fn a_user_runs_programs_that_bring_privileges() {
    // `struct vfs_cap_data` of version 2, include/uapi/linux/capability.h: CAP_NET_RAW, effective.
    let net_raw = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let probe = workload::program("probe");
    let layer = Layer::new()
        .executable("bin/probe", &probe)
        .executable("bin/as-root", &probe)
        .with_mode(0o4755)
        .executable("bin/with-capability", &probe)
        .with_xattr("security.capability", net_raw);
    let maker = ImageMaker::busybox()
        .layer(layer)
        .config("User", json!("1000:1000"))
        .config("Entrypoint", json!(["sh", "-c"]))
        .config(
            "Cmd",
            json!([
                "for probe in probe as-root with-capability; do $probe status Uid; $probe status CapEff; done; exit 9"
            ]),
        );
    let fixture = Fixture::new();
    let program = Program {
        image: fixture.file(
            "privileges.oci",
            maker.name("privileges:1").layout().archive(),
        ),
        command: &[],
        input: String::new(),
        configure: |_| (),
        // The lab's own tree carries no extended attributes.
        before: (
            &["setcap"],
            "setcap cap_net_raw+ep /bundle/rootfs/bin/with-capability",
        ),
    };

    let done = program.runs_alike();

    assert_eq!(done.code, 9, "{}", done.said);
    assert_eq!(
        done.said,
        "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\n\
         Uid:\t1000\t0\t0\t0\nCapEff:\t00000000a80425fb\n\
         Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000002000\n"
    );
}

/// How often a database is killed.
const KILLS: usize = 20;

/// Runs a program on a volume that counts up as fast as it can, prints each number once it is durable, and goes on where it was when it is
/// started again; kills it again and again with its machine, and its monitor. Says what was lost.
fn kill_again_and_again(image: &Path, place: &str, script: &str) -> String {
    let mut lab = lab_with(image);
    lab.tree
        .bytes("/input", format!("{WAIT_FOR}{script}"), 0o644);
    let script = format!(
        "vmm load --quiet --input /image.oci --name database:1
         last=0
         for turn in $(seq {KILLS}); do
             vmm run --rm -i --memory 512m -v data:{place} database:1 bash < /input > /said 2> /complained &
             client=$!
             for wait in $(seq 3000); do
                 [ $(wc -l < /said) -gt $((turn * 5)) ] && break
                 kill -0 $client || break
                 sleep 0.1
             done
             kill -9 $client
             wait $client 2> /dev/null
             first=$(head -n 1 /said)
             [ \"$first\" -gt \"$last\" ] || echo \"turn $turn begins with $first after $last: $(tail -n 3 /complained)\"
             last=$(sed '$d' /said | tail -n 1)
         done
         [ \"$last\" -gt 60 ] && echo done"
    );
    in_lab(&mut lab, &script).0
}

#[test]
fn redis_on_a_volume_has_every_write_that_it_acknowledged_after_each_kill() {
    let said = kill_again_and_again(
        &real_images::debian_app("redis"),
        "/data",
        "
        redis-server --dir /data --appendonly yes --appendfsync always --save '' >/dev/null &
        wait_for redis-cli ping
        while redis-cli incr n; do :; done
        ",
    );

    assert_eq!(said.lines().skip(1).collect::<Vec<_>>(), ["done"], "{said}");
}

#[test]
fn postgresql_on_a_volume_has_every_row_that_it_acknowledged_after_each_kill() {
    let said = kill_again_and_again(
        &real_images::debian_app("postgresql"),
        "/var/lib/postgresql",
        "
        export PATH=/usr/lib/postgresql/15/bin:$PATH
        cluster=/var/lib/postgresql/cluster
        [ -e $cluster/PG_VERSION ] || initdb --pgdata=$cluster >/dev/null
        rm -f $cluster/postmaster.pid
        pg_ctl --wait --timeout=300 --pgdata=$cluster --log=/tmp/log --options='-k /tmp' start >/dev/null
        ask() {
            psql --host=/tmp --quiet --no-psqlrc --tuples-only --no-align --command=\"$1\" postgres
        }
        ask 'create table if not exists t (n int)'
        while ask 'insert into t select count(*) + 1 from t returning n'; do :; done
        ",
    );

    assert_eq!(said.lines().skip(1).collect::<Vec<_>>(), ["done"], "{said}");
}

/// Adds one to a number in a database so many times, each in a transaction of its own, in each of so many processes.
const COUNT_IN_SQLITE: &str = "
import sqlite3, subprocess, sys
times, processes = int(sys.argv[1]), int(sys.argv[2])
if processes > 1:
    again = [sys.executable, '-c', sys.argv[3], str(times), '1', '']
    workers = [subprocess.Popen(again) for _ in range(processes)]
    sys.exit(max(worker.wait() for worker in workers))
db = sqlite3.connect('/share/db', timeout=300, isolation_level=None)
for _ in range(times):
    db.execute('begin immediate')
    (n,) = db.execute('select n from t').fetchone()
    db.execute('update t set n = ?', (n + 1,))
    db.execute('commit')
";

#[test]
fn sqlite_on_a_share_loses_nothing_with_two_processes_and_with_two_machines() {
    let mut lab = lab_with(&real_images::python3());
    lab.tree.bytes("/count.py", COUNT_IN_SQLITE, 0o644);
    let script = "
        mkdir /shared; vmm load --quiet --input /image.oci --name python:1 > /dev/null
        python() { vmm run --rm --memory 256m -v /shared:/share python:1 python3 -c \"$@\"; }
        count() { python \"$(cat /count.py)\" $1 $2 \"$(cat /count.py)\"; }
        ask() { python \"import sqlite3; print(*sqlite3.connect('/share/db').execute('$1'))\"; }
        python \"import sqlite3; db = sqlite3.connect('/share/db'); db.execute('create table t (n)');
db.execute('insert into t values (0)'); db.commit()\"
        count 25 2; echo ended $?; ask 'select n from t'
        count 25 1 & one=$!; count 25 1 & other=$!
        wait $one; echo ended $?; wait $other; echo ended $?; ask 'select n from t'; ask 'pragma integrity_check'";

    let (said, complaint) = in_lab(&mut lab, script);

    assert_eq!(
        said, "ended 0\n(50,)\nended 0\nended 0\n(100,)\n('ok',)\n",
        "{complaint}"
    );
}
