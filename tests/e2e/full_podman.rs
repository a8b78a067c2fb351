//! What fingers know: the same commands typed to podman and to vmm, with the same image, and what both said. Only in the full profile.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::Fixture;
use tests::image_maker::ImageMaker;

/// How long all commands may take, some twenty of which start a machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// Commands, typed one after the other. Their standard error is for people and differs; what it says is compared nowhere.
const COMMANDS: &[&str] = &[
    // Images.
    "engine images -q | wc -l",
    "engine tag $IMAGE localhost/other:1",
    "engine images --format '{{.Repository}}:{{.Tag}}' | sort",
    "engine rmi localhost/other:1 > /dev/null",
    "engine rmi nothing:1",
    "engine inspect --type image -f '{{.Os}}' $IMAGE",
    "engine save $IMAGE | tar -t | grep -c manifest.json",
    // Runs.
    "engine run --rm $IMAGE echo hello",
    "engine run --rm $IMAGE sh -c 'exit 7'",
    "engine run --rm $IMAGE nothing",
    "engine run --rm $IMAGE /etc",
    "engine run --rm nothing:1",
    "engine run --rm --nonsense $IMAGE",
    "engine run --rm -e A=1 -e B=2 $IMAGE sh -c 'echo $A$B'",
    "engine run --rm -w /tmp $IMAGE pwd",
    "engine run --rm -u 1000:50 $IMAGE sh -c 'id -u; id -g'",
    "engine run --rm --hostname box $IMAGE hostname",
    "engine run --rm --entrypoint echo $IMAGE entry",
    "echo text | engine run --rm -i $IMAGE cat",
    "echo text | engine run --rm $IMAGE cat",
    "engine run --rm --read-only $IMAGE touch /file",
    "engine run --rm --cap-drop ALL $IMAGE grep CapEff /proc/self/status",
    "engine run --rm --ulimit nofile=100:200 $IMAGE sh -c 'ulimit -n; ulimit -Hn'",
    "engine run --rm --tmpfs /t:size=1m $IMAGE sh -c 'df -k /t | tail -1' | awk '{ print $2 }'",
    "engine run --rm --group-add 777 $IMAGE id -G",
    "engine run --rm --sysctl net.ipv4.ip_forward=1 $IMAGE cat /proc/sys/net/ipv4/ip_forward",
    "engine run --rm $IMAGE cat /proc/1/comm",
    "engine run --rm $IMAGE sh -c 'kill -9 $$'",
    // A container that is made first.
    "engine create --name made $IMAGE sh -c 'echo x >> /kept; cat /kept'",
    "engine ps -a --format '{{.Names}} {{.Status}}'",
    "engine start -a made",
    "engine start made",
    "engine wait made",
    "engine logs made",
    "engine inspect -f '{{.Name}} {{.State.Status}} {{.State.ExitCode}}' made",
    "engine exec made true",
    "engine rm made",
    "engine rm -- made",
    // One in the background.
    "engine run -d --name web --label role=front $IMAGE sh -c \"$WEB\"",
    "until engine logs web | grep -q up; do sleep 0.1; done",
    "engine run -d --name web $IMAGE true",
    "engine ps -q | wc -l",
    "engine ps --format '{{.Names}} {{.State}}' | sed 's/Up .* ago/Up/'",
    "engine ps --filter label=role --format '{{.Names}}'",
    "engine ps -q --filter label=role=back",
    "engine ps -aq --filter status=exited",
    "engine ps -q --filter colour=red",
    "engine inspect -f '{{.State.Running}} {{.State.Paused}} {{.State.ExitCode}}' web",
    "engine inspect -f '{{index .Config.Labels \"role\"}}' web",
    "engine inspect -f '{{json .Config.Cmd}}' web",
    "engine inspect nothing",
    "engine exec web echo inside",
    "engine exec web sh -c 'exit 5'",
    "engine exec web nothing",
    "engine exec -e X=y web sh -c 'echo $X'",
    "engine exec -w /tmp web pwd",
    "engine exec -u 33 web id -u",
    "echo fed | engine exec -i web cat",
    "engine exec -d web touch /flag",
    "until engine exec web ls /flag 2> /dev/null; do sleep 0.1; done",
    "engine exec nothing true",
    "engine logs --tail 1 web",
    "engine logs -t web | sed 's/^20[^ ]* /TIME /'",
    "engine logs nothing",
    "engine exec web sh -c 'echo new > /tmp/new; rm -f /bin/vi'",
    "engine diff web | grep -v ' /etc\\| /run\\| /flag'",
    "engine cp web:/tmp/new - | tar -xO",
    "engine cp web:/tmp/new copied && cat copied",
    "echo sent > sent; engine cp sent web:/tmp && engine exec web cat /tmp/sent",
    "engine cp web:/nothing .",
    "engine export web | tar -t | grep -c '^tmp/new$'",
    "engine commit web localhost/changed:1",
    "engine run --rm localhost/changed:1 cat /tmp/new",
    "engine history localhost/changed:1 | wc -l",
    "engine pause web",
    "engine ps --format '{{.State}}'",
    "engine exec web true",
    "engine unpause web",
    "engine rename web shop",
    "engine inspect -f '{{.Name}}' shop",
    "engine kill -s USR1 shop",
    "until engine logs shop | grep -q usr1; do sleep 0.1; done",
    "engine rm shop",
    "engine stop shop",
    "engine inspect -f '{{.State.Status}} {{.State.ExitCode}}' shop",
    "engine kill shop",
    "engine start shop",
    "engine restart -t 1 shop",
    "engine exec shop cat /flag",
    "engine rm -f shop",
    "engine ps -aq | wc -l",
];

/// What the container in the background runs.
const WEB: &str =
    "trap 'echo usr1' USR1; trap 'exit 3' TERM; echo one; echo up; while :; do sleep 0.1; done";

/// A command of which vmm says something else, and why.
struct Difference {
    command: &'static str,
    podman: &'static str,
    vmm: &'static str,
    because: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        command: "engine ps -q --filter colour=red",
        podman: "125",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine inspect nothing",
        podman: "125 []",
        vmm: "1 []",
        because: DOCKERS,
    },
    Difference {
        command: "engine exec nothing true",
        podman: "125",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine logs nothing",
        podman: "125",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine cp web:/nothing .",
        podman: "125",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine kill shop",
        podman: "125",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine inspect --type image -f '{{.Os}}' $IMAGE",
        podman: "0 linux",
        vmm: "125",
        because: "vmm inspects machines only, and says that there is no --type",
    },
    Difference {
        command: "engine run --rm --ulimit nofile=100:200 $IMAGE sh -c 'ulimit -n; ulimit -Hn'",
        podman: "126",
        vmm: "0 100 200",
        because: "crun itself needs more descriptors where there are many controllers",
    },
    Difference {
        command: "engine inspect -f '{{.Name}} {{.State.Status}} {{.State.ExitCode}}' made",
        podman: "0 made exited 0",
        vmm: "0 /made exited 0",
        because: DOCKERS,
    },
    Difference {
        command: "engine exec made true",
        podman: "255",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine ps --format '{{.Names}} {{.State}}' | sed 's/Up .* ago/Up/'",
        podman: "0 web Up",
        vmm: "0 web running",
        because: DOCKERS,
    },
    Difference {
        command: "engine exec -d web touch /flag",
        podman: "0 ID",
        vmm: "0",
        because: DOCKERS,
    },
    Difference {
        command: "engine ps --format '{{.State}}'",
        podman: "0",
        vmm: "0 paused",
        because: DOCKERS,
    },
    Difference {
        command: "engine exec web true",
        podman: "255",
        vmm: "1",
        because: DOCKERS,
    },
    Difference {
        command: "engine inspect -f '{{.Name}}' shop",
        podman: "0 shop",
        vmm: "0 /shop",
        because: DOCKERS,
    },
    Difference {
        command: "engine rm shop",
        podman: "2",
        vmm: "1",
        because: DOCKERS,
    },
];

const DOCKERS: &str = "docker's, from which podman differs";

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    code: String,
    stdout: String,
}

impl Said {
    fn read(directory: &Path, number: usize) -> Self {
        let text = |kind: &str| {
            let path = directory.join(format!("{number}.{kind}"));
            fs::read_to_string(path).expect("every command was run")
        };
        Self {
            code: text("code").trim().to_owned(),
            stdout: text("stdout")
                .split_whitespace()
                .map(normalised)
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    fn spelled(&self) -> String {
        format!("{} {}", self.code, self.stdout)
            .trim_end()
            .to_owned()
    }
}

/// A word, or what stands for one that is another every time.
fn normalised(word: &str) -> &str {
    let word = word.strip_prefix("sha256:").unwrap_or(word);
    let is_id = word.bytes().all(|byte| byte.is_ascii_hexdigit());
    match word.len() {
        64 if is_id => "ID",
        12 if is_id => "SHORT",
        _ => word,
    }
}

/// Types all commands to an engine, which is a shell's function.
fn typed(fixture: &Fixture, name: &str, engine: &str) -> Vec<Said> {
    let directory = fixture.path(name);
    fs::create_dir(&directory).expect("the fixture has room");
    let mut script = format!(
        "set +e; cd {}; export IMAGE=localhost/demo:latest WEB=\"{WEB}\"\n{engine}\n",
        directory.display()
    );
    for (number, command) in COMMANDS.iter().enumerate() {
        let line = format!(
            "{{ {command}; }} > {number}.stdout 2> {number}.stderr < /dev/null; echo $? > {number}.code\n"
        );
        script.push_str(&line);
    }
    fixture
        .in_private_mounts(&script)
        .without_env("VMM_NO_TEMPLATE")
        .limit(LIMIT)
        .run()
        .succeeded();
    let numbers = 0..COMMANDS.len();
    numbers
        .map(|number| Said::read(&directory, number))
        .collect()
}

#[test]
fn commands_say_what_they_say_with_podman() {
    let fixture = Fixture::with_machines();
    let image = ImageMaker::busybox().name("localhost/demo:latest");
    let archive = fixture.file("demo.oci", image.layout().archive());
    let archive = archive.display();
    let by_podman = typed(
        &fixture,
        "podman",
        &format!(
            r#"umount /sys/fs/cgroup/unified 2> /dev/null
            printf '[containers]\nnetns = "none"\ndefault_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]\n' > containers.conf
            printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "crun"\n' >> containers.conf
            export CONTAINERS_CONF=$PWD/containers.conf
            engine() {{ podman --root "$BASE/podman/root" --runroot "$BASE/podman/run" --tmpdir "$BASE/podman/tmp" --storage-driver vfs "$@"; }}
            BASE=$(dirname "$PWD")
            engine load -q -i {archive} > /dev/null"#
        ),
    );
    let by_vmm = typed(
        &fixture,
        "vmm",
        &format!(
            r#"engine() {{ "$VMM_BINARY" "$@"; }}
            engine load -q -i {archive} > /dev/null
            engine prepare -q $IMAGE; engine prepare -q --base $IMAGE; engine prepare -q --storage 10g $IMAGE"#
        ),
    );

    let mut unexpected = Vec::new();
    for ((command, podman), vmm) in COMMANDS.iter().zip(&by_podman).zip(&by_vmm) {
        let difference = DIFFERENCES.iter().find(|it| it.command == *command);
        let expected = difference.map_or_else(
            || (podman.spelled(), podman.spelled()),
            |it| (it.podman.to_owned(), it.vmm.to_owned()),
        );
        if expected != (podman.spelled(), vmm.spelled()) {
            unexpected.push(format!(
                "{command}\n  podman: {}\n  vmm:    {}",
                podman.spelled(),
                vmm.spelled()
            ));
        }
    }
    assert!(unexpected.is_empty(), "\n{}", unexpected.join("\n"));
}

#[test]
fn every_difference_is_one_of_a_command_and_has_a_reason() {
    for difference in DIFFERENCES {
        assert!(
            COMMANDS.contains(&difference.command),
            "{}",
            difference.command
        );
        assert!(!difference.because.is_empty() && difference.podman != difference.vmm);
    }
}
