//! Containers beside crun's: the same `config.json` in `crun run` and in `vmm run --config`, and the same questions asked
//! from inside.
//!
//! The tables (`process.rs`, `mounts.rs`, `linux.rs`) are data. A row is a configuration, as a patch on [`base`], with shell scripts to
//! run in it; what a script prints is one case. A configuration runs once in each engine, whatever is asked in it: it is one
//! test, and a case that differs is reported by its own name. What must differ stands in `differences.rs`, with the reason.
//!
//! - A case with an answer in its row is one of the specification's text alone, for Debian's crun does not know the field: crun is not
//!   asked.
//! - A configuration that names its program has one case, `ending`: what the program said, and its exit code. An engine that
//!   started nothing is [`REFUSED`]: crun ends with 1 or 255 then, and vmm with 125 to 127.

mod differences;
mod linux;
mod mounts;
mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tests::image_maker::{ImageMaker, Layer};
use tests::{Finished, Fixture, Invocation, workload};

use differences::DIFFERENCES;

/// A configuration and what is asked in it.
#[derive(Debug)]
struct Configuration {
    name: &'static str,
    streams: Streams,
    /// What is other than in [`base`], see [`patched`].
    patch: fn() -> Value,
    cases: &'static [Case],
}

/// A question and, if crun cannot be asked, the answer.
#[derive(Debug)]
struct Case {
    name: &'static str,
    script: &'static str,
    /// What the specification says.
    answer: Option<&'static str>,
}

/// What the program's standard streams are.
#[derive(Debug, Clone, Copy)]
enum Streams {
    /// Nothing to read, and output that is read.
    Usual,
    /// This to read.
    Input(&'static str),
    /// Output that nobody reads.
    ClosedOutput,
}

/// What must be different, and why.
#[derive(Debug)]
struct Difference {
    /// `configuration/case`.
    case: &'static str,
    crun: &'static str,
    vmm: &'static str,
    because: &'static str,
}

/// Declares configurations, and a test for each.
///
/// `"says" name: {patch}, ["case": "script", "case": "script" => "the specification's answer"]`; without cases the program is the
/// configuration's own, with `=> "answer"` it is the specification's. A patch may be preceded by the streams.
macro_rules! configurations {
    ($($(#[doc = $says:literal])+ $name:ident $(($streams:expr))?: $patch:tt $(=> $ending:literal)?
        $(, [$($case:literal: $script:literal $(=> $answer:literal)?),+ $(,)?])?;)+) => {
        /// All of this table.
        pub(super) const CONFIGURATIONS: &[super::Configuration] = &[$(
            super::Configuration {
                name: stringify!($name),
                streams: configurations!(@streams $($streams)?),
                patch: || serde_json::json!($patch),
                cases: configurations!(@cases ($($ending)?) $([$($case, $script, ($($answer)?)),+])?),
            },
        )+];

        $(
            $(#[doc = $says])+
            #[test]
            #[ignore = "needs crun and a complete KVM: the lab runs it"]
            fn $name() {
                super::compare(stringify!($name), CONFIGURATIONS);
            }
        )+
    };
    (@streams) => { super::Streams::Usual };
    (@streams $streams:expr) => { $streams };
    (@cases ($($ending:literal)?)) => { configurations!(@cases () [super::ENDING, "", ($($ending)?)]) };
    (@cases () [$($case:expr, $script:literal, ($($answer:literal)?)),+]) => {
        &[$(super::Case { name: $case, script: $script, answer: configurations!(@answer $($answer)?) }),+]
    };
    (@answer) => { None };
    (@answer $answer:literal) => { Some($answer) };
}
use configurations;

/// The case of a program that the configuration names.
const ENDING: &str = "ending";
/// The ending of what was not started.
const REFUSED: &str = "refused";

/// How many cases there are, so that none is lost unnoticed.
const CASES: usize = 403;

fn all() -> impl Iterator<Item = &'static Configuration> {
    [
        process::CONFIGURATIONS,
        mounts::CONFIGURATIONS,
        linux::CONFIGURATIONS,
    ]
    .into_iter()
    .flatten()
}

fn all_cases() -> Vec<String> {
    all()
        .flat_map(|row| {
            row.cases
                .iter()
                .map(|case| format!("{}/{}", row.name, case.name))
        })
        .collect()
}

#[test]
fn every_case_is_there_once() {
    let cases = all_cases();
    let names: BTreeSet<&String> = cases.iter().collect();

    assert_eq!((cases.len(), names.len()), (CASES, CASES));
}

#[test]
fn every_difference_is_one_of_a_case_and_has_a_reason() {
    let cases = all_cases();
    let is_sound = |difference: &&Difference| {
        let count = DIFFERENCES
            .iter()
            .filter(|other| other.case == difference.case)
            .count();
        count == 1
            && cases.iter().any(|case| case == difference.case)
            && difference.crun != difference.vmm
            && !difference.because.is_empty()
    };

    let unsound: Vec<&Difference> = DIFFERENCES
        .iter()
        .filter(|difference| !is_sound(difference))
        .collect();

    assert!(unsound.is_empty(), "{unsound:#?}");
}

/// What most containers have: docker's mounts, and all namespaces but the user's and the time's.
fn base(name: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 },
            "capabilities": {
                "bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES
            }
        },
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] }
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }],
            "cgroupsPath": format!("/{name}")
        }
    })
}

/// The capabilities of [`base`]: docker's, and those that scripts need to try something out.
const CAPABILITIES: [&str; 16] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
    "CAP_SYS_ADMIN",
    "CAP_SYSLOG",
];

/// Applies a patch: members of objects are patched one by one, `null` takes a member away, and a member whose name ends with a `+` is a
/// list to append.
fn patched(whole: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *whole = patch;
        return;
    };
    if !whole.is_object() {
        *whole = json!({});
    }
    for (name, value) in patch {
        if let Some(name) = name.strip_suffix('+') {
            let list = whole[name]
                .as_array_mut()
                .expect("what is appended to is a list");
            list.extend(value.as_array().expect("a list is appended").clone());
        } else if value.is_null() {
            whole
                .as_object_mut()
                .expect("it is an object")
                .remove(&name);
        } else {
            patched(&mut whole[&name], value);
        }
    }
}

/// What scripts call: one line on a mount, made of what does not depend on where it was made.
const PRELUDE: &str = r#"
# The options of a mount, the kinds of its propagation, the type of its file system.
mounted() {
    awk -v at="$1" '$5 == at {
        said = $6
        for (i = 7; $i != "-"; i++) { sub(/:.*/, "", $i); said = said " " $i }
        last = said " " $(i + 1)
    } END { print last == "" ? "nothing" : last }' /proc/self/mountinfo
}
# The options of a mount's file system, without those that a kernel of another configuration adds.
file_system() {
    awk -v at="$1" '$5 == at { last = $NF } END { print last }' /proc/self/mountinfo | sed 's/,inode64//'
}
# Whether a namespace is the one in which the machine began: include/linux/proc_ns.h and, for the network, what only the first one shows.
namespace() {
    case $1:$(readlink /proc/self/ns/$1) in
    ipc:*4026531839* | uts:*4026531838* | user:*4026531837* | pid:*4026531836* | cgroup:*4026531835* | time:*4026531834*) echo first ;;
    net:*) if test -e /proc/sys/net/core/rmem_max; then echo first; else echo other; fi ;;
    *) echo other ;;
    esac
}
status() { sed -n "s/^$1:[[:space:]]*//p" /proc/self/status; }
limit() { sed -n "s/^Max $1  *//p" /proc/self/limits | tr -s ' '; }
node() { stat -c '%F %t:%T %a %u:%g' "$@"; }
"#;

/// The script that asks for all cases of a configuration, each in a shell of its own.
fn questions(cases: &[Case]) -> String {
    cases.iter().fold(PRELUDE.to_owned(), |whole, case| {
        let Case { name, script, .. } = case;
        whole + &format!("echo \"@ {name}\"\n(\n{script}\n) 2>&1\nprintf '\\n= %s\\n' $?\n")
    })
}

/// The answers by the cases' names: what was printed and, if it was not 0, the exit code.
fn answers(said: &str) -> BTreeMap<String, String> {
    let answer = |part: &str| {
        let (name, rest) = part.split_once('\n')?;
        let (text, code) = rest.rsplit_once("\n= ")?;
        let code = Some(code.trim()).filter(|code| *code != "0");
        let code = code.map_or_else(String::new, |code| format!("\nexit code {code}"));
        Some((name.to_owned(), format!("{}{code}", text.trim_end())))
    };
    let said = format!("\n{said}");
    said.split("\n@ ").skip(1).filter_map(answer).collect()
}

/// A root for both engines, with things to find in it.
fn root() -> Layer {
    let probe = workload::program("probe");
    Layer::busybox()
        .executable("bin/probe", &probe)
        .executable("bin/elevated", &probe)
        .with_mode(0o4755)
        .file("bin/not-executable", "#!/bin/sh\n")
        .executable("bin/no-interpreter", "#!/no/such/shell\n")
        .executable("bin/no-program", "no program\n")
        .directory("data")
        .file("data/file", "content\n")
        .directory("data/directory")
        .with_mode(0o750)
        .file("data/directory/inner", "inner\n")
        .symlink("data/link", "directory")
        .symlink("data/up", "../led")
        .directory("led")
        .directory("data/private")
        .with_mode(0o700)
        // Whoever is is root in a user namespace alone cannot make them in what is another root's.
        .directory("dev")
        .directory("proc")
        .directory("sys")
}

/// An engine's answers; if it gave none, all that it said.
struct Ran {
    answers: BTreeMap<String, String>,
    finished: Finished,
}

impl Ran {
    fn new(row: &Configuration, finished: Finished, refusals: &[i32]) -> Self {
        let said = finished.stdout_text();
        let answers = if has_own_program(row) {
            let is_refused = finished.code().is_some_and(|code| refusals.contains(&code))
                && finished.stdout.is_empty()
                && !finished.stderr.is_empty();
            let ending = if is_refused {
                REFUSED.to_owned()
            } else {
                let code = finished.code().expect("an engine ends by itself");
                format!("{said}exit code {code}")
            };
            BTreeMap::from([(ENDING.to_owned(), ending)])
        } else {
            answers(&said)
        };
        Self { answers, finished }
    }

    fn answer(&self, case: &Case) -> Result<&str, String> {
        let answer = self.answers.get(case.name).map(String::as_str);
        answer.ok_or_else(|| format!("{}: no answer\n{:?}", case.name, self.finished))
    }
}

fn has_own_program(row: &Configuration) -> bool {
    row.cases.iter().any(|case| case.name == ENDING)
}

fn with_streams(invocation: Invocation, streams: Streams) -> Invocation {
    match streams {
        // A pipe, as vmm's: crun gives what it reads to the container's user, which /dev/null should not be.
        Streams::Usual => invocation.input(""),
        Streams::Input(text) => invocation.input(text),
        Streams::ClosedOutput => invocation.input("").output_to_closed_pipe(),
    }
}

/// What all configurations have in common. It takes long to make, so it is made once; what it leaves on disk goes with the lab.
struct Shared {
    /// The root's image is in its store.
    fixture: Fixture,
    /// An archive of the root's files.
    root: PathBuf,
}

/// The image's name.
const IMAGE: &str = "crun-table:1";

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let fixture = Fixture::with_machines();
    let root = root();
    let tar = fixture.file("root.tar", root.tar());
    let image = ImageMaker::empty().name(IMAGE).layer(root);
    let archive = fixture.file("image.oci", image.layout().archive());
    fixture.load(&archive).run().succeeded();
    Shared { fixture, root: tar }
});

/// Runs one configuration of a table in both engines, and compares all answers.
fn compare(name: &str, table: &[Configuration]) {
    let row = table
        .iter()
        .find(|row| row.name == name)
        .expect("a test is one of its table");
    let fixture = Fixture::with_machines();
    let mut config = base(name);
    patched(&mut config, (row.patch)());
    if !has_own_program(row) {
        config["process"]["args"] = json!(["/bin/sh", "-c", questions(row.cases)]);
    }
    let config = fixture.file("config.json", config.to_string());

    let by_crun = row
        .cases
        .iter()
        .any(|case| case.answer.is_none())
        .then(|| Ran::new(row, run_in_crun(&fixture, row), &[1, 255]));
    let options = ["-i", "--config", &config.to_string_lossy()];
    let in_vmm = SHARED.fixture.run_name(IMAGE, &options, &[]);
    let by_vmm = with_streams(in_vmm, row.streams).run();
    let by_vmm = Ran::new(row, by_vmm, &[125, 126, 127]);

    let wrong: Vec<String> = row
        .cases
        .iter()
        .filter_map(|case| judged(row, case, by_crun.as_ref(), &by_vmm).err())
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Runs a configuration as the bundle that the fixture's directory becomes.
fn run_in_crun(fixture: &Fixture, row: &Configuration) -> Finished {
    let root = fixture.path("rootfs");
    fs::create_dir(&root).expect("a directory can be made");
    let unpack = Invocation::new("tar").arg("-xpf").arg(&SHARED.root);
    unpack.arg("-C").arg(&root).run().succeeded();
    let state = fixture.path("crun");
    let crun = Invocation::new("crun").arg("--root").arg(state).arg("run");
    let crun = crun.arg("--bundle").arg(fixture.path("")).arg(row.name);
    with_streams(crun, row.streams).run()
}

/// Whether vmm's answer is crun's, or the specification's, or is known to be another one.
fn judged(row: &Configuration, case: &Case, crun: Option<&Ran>, vmm: &Ran) -> Result<(), String> {
    let name = format!("{}/{}", row.name, case.name);
    let vmm = vmm
        .answer(case)
        .map_err(|none| format!("vmm, {name}, {none}"))?;
    let (whose, expected) = match (case.answer, crun) {
        (Some(answer), _) => ("the specification", answer),
        (None, Some(crun)) => {
            let answer = crun.answer(case);
            (
                "crun",
                answer.map_err(|none| format!("crun, {name}, {none}"))?,
            )
        }
        (None, None) => unreachable!("crun is asked if there is no answer"),
    };
    let known = DIFFERENCES
        .iter()
        .find(|difference| difference.case == name);
    let (wanted_other, wanted) =
        known.map_or((expected, expected), |known| (known.crun, known.vmm));
    if (expected, vmm) == (wanted_other, wanted) {
        return Ok(());
    }
    let listed = known.map_or_else(String::new, |known| format!("listed: {known:#?}\n"));
    Err(format!("{name}\n{whose}: {expected}\nvmm: {vmm}\n{listed}"))
}
