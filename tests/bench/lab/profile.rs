//! Takes a cold start apart: by step, by process, by initcall of the guest's kernel, by function.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::Times;
use serde_json::Value;
use tests::binary::checkout;
use tests::workload;

use crate::callgrind;
use crate::measure::{Failure, Stage};
use crate::report::versions;
use crate::scenarios::Part;
use crate::trace::PHASES;

const DOCUMENT: &str = "tests/bench/lab/profile.md";
/// How long one lab of the profile may take here.
const LIMIT: Duration = Duration::from_secs(600);
/// The most that is listed of a kind.
const LISTED: usize = 20;
/// What issue and design ask for, in virtual ms.
const READY_TARGET: f64 = 12.0;
const OWN_TARGET: f64 = 10.0;

/// Runs hello once to warm up, once to see the steps, and once to see why the guest is left.
const STEPS: &str = "set -e
export VMM_NO_TEMPLATE=1
vmm load --quiet --input /images/hello.oci --name hello:1 >/dev/null
vmm run --rm hello:1 >/dev/null
vmm run --rm --timings=json hello:1 2>&1 >/dev/null
echo hist:keys=exit_reason >/sys/kernel/tracing/events/kvm/kvm_exit/trigger
vmm run --rm hello:1 >/dev/null
cat /sys/kernel/tracing/events/kvm/kvm_exit/hist
";
/// How long it takes when nobody listens, then what the lab's kernel tells of it. A second of rest each time: the kernel still
/// takes down a machine when its client has gone.
const TRACES: &str = "set -e
export VMM_NO_TEMPLATE=1
vmm load --quiet --input /images/hello.oci --name hello:1 >/dev/null
lab time 1 0 vmm run --rm hello:1 >/dev/null; sleep 1
lab time 1 0 vmm run --rm hello:1 >/dev/null; sleep 1
lab time 1 0 vmm run --rm hello:1; sleep 1
lab trace few vmm run --rm hello:1 >/dev/null; sleep 1
lab trace few vmm run --rm hello:1; sleep 1
lab trace all vmm run --rm hello:1
";
/// The kernel that says how long its initcalls take says it in its log, which a container reads.
const INITCALLS: &str = "set -e
export VMM_NO_TEMPLATE=1
vmm load --quiet --input /images/hello.oci --name hello:1 >/dev/null
vmm run --rm --kernel /boot/debug-vmlinux hello:1 dmesg
";
/// Each process writes down what was counted whenever it closes a file: the VM process is ended before it could do it at
/// its end.
const FUNCTIONS: &str = "set -e
export VMM_NO_TEMPLATE=1
vmm load --quiet --input /images/hello.oci --name hello:1 >/dev/null
vmm run --rm hello:1 >/dev/null
export LD_PRELOAD=/tmp/for_valgrind.so
valgrind --tool=callgrind --combine-dumps=yes --dump-before=close --callgrind-out-file=/tmp/counted.%p vmm run --rm hello:1 \
    >/dev/null 2>/tmp/said || { cat /tmp/said >&2; exit 1; }
unset LD_PRELOAD
for file in $(ls -tr /tmp/counted.*); do echo == a process; cat $file; done
";

/// Takes it apart, writes the document and returns it.
pub(crate) fn write(stage: &Stage) -> Result<String, Failure> {
    let mut text = String::from(
        "# Where a cold start goes\n\n\
         `vmm run` of hello, image in the store, one processor, 128 MiB, in the lab. A virtual millisecond is a million instructions\n\
         of everything together. Made by `make profile`; how, is said in `tests/bench/lab/profile.rs` and `trace.rs`.\n\n",
    );
    text.push_str(&processes(stage)?);
    text.push_str(&steps(stage)?);
    text.push_str(&initcalls(stage)?);
    text.push_str(&functions(stage)?);
    let _ = writeln!(text, "{}", versions(&stage.versions()?));
    fs::write(checkout().join(DOCUMENT), &text).expect("the profile can be written");
    Ok(text)
}

fn bad(what: &str) -> Failure {
    Failure::Scenario {
        name: "profile",
        said: what.to_owned(),
    }
}

/// Who runs how long, as the lab's kernel tells it.
fn processes(stage: &Stage) -> Result<String, Failure> {
    let parts = [Part::Vmm, Part::HelloImage];
    let said = stage.shell("profile", &parts, LIMIT, TRACES)?;
    let mut lines = said.lines();
    let alone = lines
        .next()
        .and_then(Times::parse)
        .map(|times| times.exit.as_secs_f64() * 1e9)
        .ok_or_else(|| bad("no duration"))?;
    let mut traced = || {
        let line = lines.next().unwrap_or_default();
        serde_json::from_str::<Value>(line).map_err(|_| bad("no trace"))
    };
    let few = Traced::read(&traced()?, alone);
    let all = Traced::read(&traced()?, alone);

    let mut text = String::new();
    let ready = few.between("entered", "ready") - few.cost_of_listening(|row| row.phase == 1);
    let guest = |phase| all.sum(|row| row.phase == phase && row.doing == "guest");
    let kvm = all.sum(|row| [1, 2].contains(&row.phase) && row.doing == "kvm-run");
    let in_guest = guest(1) + guest(2);
    let beside = ready - in_guest - kvm;
    let own = all.sum(Row::is_own);
    let own_of = |who: &str, doing: &str| {
        all.sum(|row| row.is_own() && row.is_of(who) && row.doing == doing)
    };
    let _ = write!(
        text,
        "| target | is | counted from | to |\n|---|--:|---|---|\n\
         | kernel entry to agent ready: {READY_TARGET:.0} | {ready:.1} | the first KVM_RUN | the agent's doorbell (128 MiB) |\n\
         | the VMM's own share: {OWN_TARGET:.0} | {own:.1} | the spawn | the return of wait; client and VM process in user mode and in \
         their system calls, without KVM_RUN |\n\n"
    );
    if ready > READY_TARGET {
        let exits = all.pieces(|row| [1, 2].contains(&row.phase) && row.doing == "guest");
        let _ = write!(
            text,
            "**Ready** is missed. The guest itself executes {in_guest:.1}: {:.1} its kernel before PID 1, {:.1} PID 1. KVM and the host's\n\
             kernel take {kvm:.1} for {exits} exits, most of them memory that the guest touches first, which the host's kernel then finds,\n\
             clears and maps. The VMM's devices and the rest take {beside:.1}. Were all exits free, it would be {in_guest:.1}; were the guest\n\
             free, {:.1}. So it takes fewer pages that are touched, or larger ones at a time, and a kernel that does less.\n\n",
            guest(1),
            guest(2),
            kvm + beside,
        );
    }
    if own > OWN_TARGET {
        let _ = write!(
            text,
            "**The VMM's share** is missed. User mode: client {:.1}, event loop {:.1}, vCPU thread {:.1}. The host's kernel for them: client\n\
             {:.1}, event loop {:.1}, vCPU thread {:.1}. What the host's kernel does is to copy and take apart a process, to map memory and\n\
             files, and to make KVM's objects; what the user mode does is the lists of functions below.\n\n",
            own_of("client", "user"),
            own_of("event loop", "user"),
            own_of("vCPU thread", "user"),
            own_of("client", "kernel"),
            own_of("event loop", "kernel"),
            own_of("vCPU thread", "kernel"),
        );
    }
    let _ = write!(
        text,
        "## By process\n\n\
         Spawn to return of wait: {:.1}. The events that say who runs cost {:.0} instructions each, {} of them, taken off evenly.\n\
         A page fault counts as what it interrupts.\n\n\
         | who | {} | together |\n|---|{}--:|\n",
        alone / 1e6,
        all.each,
        all.pieces(|_| true),
        PHASES.join(" | "),
        "--:|".repeat(PHASES.len()),
    );
    let mut names: Vec<(String, String)> = Vec::new();
    for row in &all.rows {
        let name = row.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |name: &(String, String), phase: Option<usize>| {
        all.sum(|row| row.name() == *name && phase.is_none_or(|phase| row.phase == phase))
    };
    names.sort_by(|one, other| of(other, None).total_cmp(&of(one, None)));
    for name in &names {
        let _ = write!(text, "| {}, {} |", name.0, name.1);
        for phase in 0..PHASES.len() {
            let _ = write!(text, " {} |", cell(of(name, Some(phase))));
        }
        let _ = writeln!(text, " {} |", cell(of(name, None)));
    }
    let _ = write!(text, "| **together** |");
    for phase in 0..PHASES.len() {
        let _ = write!(text, " {:.2} |", all.sum(|row| row.phase == phase));
    }
    let _ = writeln!(text, " {:.2} |\n", all.sum(|_| true));
    Ok(text)
}

/// Nothing where nothing is seen: what listening costs is known to some thousand instructions.
fn cell(virtual_ms: f64) -> String {
    match virtual_ms < 0.005 {
        true => String::new(),
        false => format!("{virtual_ms:.2}"),
    }
}

/// What `lab trace` printed.
#[derive(Debug)]
struct Traced {
    milestones: Value,
    rows: Vec<Row>,
    /// What hearing one event costs, in instructions.
    each: f64,
}

#[derive(Debug)]
struct Row {
    who: String,
    doing: String,
    phase: usize,
    instructions: f64,
    pieces: f64,
}

impl Row {
    fn is_of(&self, who: &str) -> bool {
        self.who.starts_with(who)
    }

    /// Whether it is the VMM's own work.
    fn is_own(&self) -> bool {
        let is_ours = ["client", "event loop", "vCPU thread"]
            .iter()
            .any(|who| self.is_of(who));
        is_ours && ["user", "kernel"].contains(&self.doing.as_str())
    }

    /// As the table has it: threads of the kernel are one.
    fn name(&self) -> (String, String) {
        let is_known = self.is_own()
            || self.is_of("vCPU thread")
            || ["caller", "idle"].contains(&self.who.as_str());
        let who = match is_known {
            true => self.who.as_str(),
            false => "kernel threads",
        };
        let doing = match (self.doing.as_str(), who) {
            ("user", _) => "user mode",
            ("kvm-run", _) => "KVM and the host's kernel in KVM_RUN",
            ("guest", _) => "the guest",
            (_, "idle") => "waiting",
            _ => "the host's kernel",
        };
        (who.to_owned(), doing.to_owned())
    }
}

impl Traced {
    fn read(value: &Value, alone: f64) -> Self {
        let rows = value["rows"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| Row {
                who: row["who"].as_str().unwrap_or_default().to_owned(),
                doing: row["doing"].as_str().unwrap_or_default().to_owned(),
                phase: row["phase"]
                    .as_u64()
                    .and_then(|phase| phase.try_into().ok())
                    .unwrap_or(0),
                instructions: row["instructions"].as_f64().unwrap_or(0.0),
                pieces: row["pieces"].as_f64().unwrap_or(0.0),
            });
        let mut traced = Self {
            milestones: value.clone(),
            rows: rows.collect(),
            each: 0.0,
        };
        let pieces: f64 = traced.rows.iter().map(|row| row.pieces).sum();
        traced.each = (traced.between("begin", "end") * 1e6 - alone) / pieces;
        traced
    }

    /// In virtual ms, with what hearing costs.
    fn between(&self, from: &str, to: &str) -> f64 {
        let at = |name: &str| self.milestones[name].as_f64().unwrap_or(f64::NAN);
        (at(to) - at(from)) / 1e6
    }

    fn cost_of_listening(&self, is_wanted: impl Fn(&Row) -> bool) -> f64 {
        let rows = self.rows.iter().filter(|row| is_wanted(row));
        rows.map(|row| row.pieces * self.each / 1e6).sum()
    }

    /// In virtual ms, without what hearing costs.
    fn sum(&self, is_wanted: impl Fn(&Row) -> bool) -> f64 {
        let rows = self.rows.iter().filter(|row| is_wanted(row));
        rows.map(|row| (row.instructions - row.pieces * self.each) / 1e6)
            .sum()
    }

    fn pieces(&self, is_wanted: impl Fn(&Row) -> bool) -> f64 {
        self.rows
            .iter()
            .filter(|row| is_wanted(row))
            .map(|row| row.pieces)
            .sum()
    }
}

/// What `--timings` says, and why the guest was left.
fn steps(stage: &Stage) -> Result<String, Failure> {
    let said = stage.shell("profile", &[Part::Vmm, Part::HelloImage], LIMIT, STEPS)?;
    let steps: Value = said
        .lines()
        .find_map(|line| serde_json::from_str(line).ok())
        .ok_or_else(|| bad("no timings"))?;
    let mut text = String::from(
        "## By step\n\nWhat `vmm run --timings` says.\n\n| step | virtual ms | what happens in it |\n|---|--:|---|\n",
    );
    for step in steps["steps"].as_array().into_iter().flatten() {
        let name = step["step"].as_str().unwrap_or_default();
        let what = match name {
            "host" => "open KVM, read what is known of the host, open the guest image",
            "image" => "find the image in the store",
            "plan" => "the configuration, the machine's shape, its record",
            "boot" => "fork, build the machine, boot the kernel, PID 1 mounts, listens and rings",
            "start" => {
                "connect, send the configuration, PID 1 builds the container and becomes the program"
            }
            "workload" => "the program, its last byte and its exit",
            _ => "write down how it was, let go",
        };
        let virtual_ms = step["microseconds"].as_f64().unwrap_or(f64::NAN) / 1e3;
        let _ = writeln!(text, "| {name} | {virtual_ms:.1} | {what} |");
    }
    text.push_str("\n| the guest was left for | times |\n|---|--:|\n");
    // { exit_reason:        114 } hitcount:        255
    let exits: Vec<(u32, u64)> = said
        .lines()
        .filter_map(|line| {
            let (reason, count) = line.strip_prefix("{ exit_reason:")?.split_once('}')?;
            let count = count.trim().strip_prefix("hitcount:")?;
            Some((reason.trim().parse().ok()?, count.trim().parse().ok()?))
        })
        .collect();
    let mut by_name: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in exits {
        *by_name.entry(exit_name(reason)).or_default() += count;
    }
    let mut by_name: Vec<_> = by_name.into_iter().collect();
    by_name.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (name, count) in by_name {
        let _ = writeln!(text, "| {name} | {count} |");
    }
    text.push('\n');
    Ok(text)
}

/// AMD APM volume 2, appendix C, "SVM Intercept Exit Codes".
fn exit_name(code: u32) -> String {
    match code {
        0x04 | 0x14 | 0x65 => "a control register".to_owned(),
        0x20..=0x3f => "a debug register".to_owned(),
        0x60 => "an interrupt of the host".to_owned(),
        0x64 => "a virtual interrupt's window".to_owned(),
        0x72 => "CPUID".to_owned(),
        0x78 => "HLT: nothing to do".to_owned(),
        0x7b => "port I/O".to_owned(),
        0x7c => "an MSR".to_owned(),
        0x400 => "a nested page fault: memory touched first, or a device".to_owned(),
        code => format!("{code:#x}"),
    }
}

/// How long each initcall of the guest's kernel takes, by the stamps of a kernel that says when they begin and end.
fn initcalls(stage: &Stage) -> Result<String, Failure> {
    let built = Command::new(checkout().join("guest-image/kernel/build.sh"))
        .arg("--debug")
        .stderr(Stdio::inherit())
        .output();
    let built =
        built.map_err(|error| bad(&format!("the debug kernel cannot be built: {error}")))?;
    if !built.status.success() {
        return Err(bad("the debug kernel cannot be built"));
    }
    let directory = String::from_utf8_lossy(&built.stdout).trim().to_owned();
    let mut lab = stage.lab(&[Part::Vmm, Part::HelloImage])?;
    lab.tree
        .copy(format!("{directory}/vmlinux"), "/boot/debug-vmlinux")?;
    let said = stage.script("profile", lab, LIMIT, INITCALLS)?;

    let mut begun: BTreeMap<&str, f64> = BTreeMap::new();
    let mut taken: Vec<(&str, f64)> = Vec::new();
    let mut milestones = BTreeMap::new();
    // Before there are initcalls: how long it is from one line of the log to the next.
    let mut before: Vec<(&str, f64)> = Vec::new();
    let mut previous: Option<(&str, f64)> = None;
    for line in said.lines() {
        // [    0.012345] calling  inet_init+0x0/0x271 @ 1
        let Some((stamp, says)) = line.trim_start_matches('[').split_once("] ") else {
            continue;
        };
        let Ok(stamp) = stamp.trim().parse::<f64>() else {
            continue;
        };
        let at = stamp * 1e3;
        if !milestones.contains_key("first initcall")
            && let Some((says, since)) = previous.replace((says, at))
        {
            before.push((says, at - since));
        }
        let name = |rest: &'static str| {
            let rest = says.strip_prefix(rest)?;
            rest.split('+').next()
        };
        if let Some(name) = name("calling  ") {
            milestones.entry("first initcall").or_insert(at);
            begun.insert(name, at);
        } else if let Some(name) = name("initcall ")
            && let Some(since) = begun.remove(name)
        {
            milestones.insert("last initcall", at);
            taken.push((name, at - since));
        } else if says.starts_with("Run /init") {
            milestones.insert("PID 1", at);
        }
    }
    // An initcall that does nothing: what saying it takes.
    let least = taken
        .iter()
        .map(|(_, taken)| *taken)
        .fold(f64::INFINITY, f64::min);
    for (_, taken) in &mut taken {
        *taken -= least;
    }
    taken.sort_by(|one, other| other.1.total_cmp(&one.1));
    let (Some(first), Some(last), Some(init)) = (
        milestones.get("first initcall"),
        milestones.get("last initcall"),
        milestones.get("PID 1"),
    ) else {
        return Err(bad("the debug kernel's log has no initcalls"));
    };
    let total: f64 = taken.iter().map(|(_, taken)| taken).sum();
    let count = taken.len();
    #[expect(clippy::cast_precision_loss, reason = "there are some hundreds")]
    let saying = (last - first) - total - least * count as f64;
    let mut text = format!(
        "## By initcall of the guest's kernel\n\n\
         By the stamps in the log of the same kernel with `guest-image/kernel/debug.config`; exits and what the host does for them are\n\
         in it. The first initcall begins at {first:.1} of the guest's clock, {count} of them take {total:.1} together (and saying so\n\
         {:.1}, taken off), and PID 1 is started {:.1} after the last one.\n\n\
         | initcall | virtual ms |\n|---|--:|\n",
        saying + least * f64::from(u32::try_from(count).unwrap_or(0)),
        init - last,
    );
    for (name, taken) in taken.iter().take(LISTED) {
        let _ = writeln!(text, "| `{name}` | {taken:.2} |");
    }
    before.sort_by(|one, other| other.1.total_cmp(&one.1));
    let rest: f64 = taken.iter().skip(LISTED).map(|(_, taken)| taken).sum();
    let _ = writeln!(text, "| the others | {rest:.2} |\n");
    text.push_str("Before the first one, from this line of the kernel's log to the next:\n\n| line | virtual ms |\n|---|--:|\n");
    for (says, taken) in before.iter().take(LISTED / 2) {
        let _ = writeln!(text, "| `{}` | {taken:.2} |", shortened(says));
    }
    text.push('\n');
    Ok(text)
}

/// Which functions of the host's processes, as callgrind counts them.
fn functions(stage: &Stage) -> Result<String, Failure> {
    const VALGRIND: &str = "/usr/libexec/valgrind";
    let mut lab = stage.lab(&[Part::HelloImage])?;
    let vmm = checkout().join("target/profiling/vmm");
    lab.put_vmm(&vmm, "/usr/bin/vmm".as_ref())?;
    // Debian's /usr/bin/valgrind is a script around it.
    lab.tree
        .program("/usr/bin/valgrind.bin", "/usr/bin/valgrind")?;
    for file in [
        "callgrind-amd64-linux",
        "vgpreload_core-amd64-linux.so",
        "default.supp",
    ] {
        lab.tree.here(format!("{VALGRIND}/{file}"))?;
    }
    lab.tree.copy(
        workload::library_file("for_valgrind"),
        "/tmp/for_valgrind.so",
    )?;
    let said = stage.script("profile", lab, LIMIT, FUNCTIONS)?;
    let mut processes: Vec<&str> = said.split("== a process\n").skip(1).collect();
    processes.sort_by_key(|process| {
        let pid = process.lines().find_map(|line| line.strip_prefix("pid: "));
        pid.and_then(|pid| pid.parse::<u32>().ok())
    });
    let [client, vm] = processes[..] else {
        return Err(bad(
            "callgrind wrote down another number of processes than two",
        ));
    };
    let mut text = String::from(
        "## By function of the host's processes\n\n\
         In user mode, counted by callgrind; what a function calls is not in its figure, and neither are page\n\
         faults, which are in the tables above. The build has names and is otherwise the\n\
         released one. Under valgrind there are neither seccomp nor Landlock, whose rules are still made.\n\n",
    );
    for (who, process) in [("client", client), ("VM process", vm)] {
        let functions = callgrind::functions(process);
        let total: u64 = functions.iter().map(|(_, cost)| cost).sum();
        let _ = write!(text, "| {who} | instructions |\n|---|--:|\n");
        for (name, cost) in functions.iter().take(LISTED) {
            let _ = writeln!(text, "| `{}` | {cost} |", shortened(name));
        }
        let _ = writeln!(text, "| **all functions** | {total} |\n");
    }
    Ok(text)
}

/// Without the hash at the end of a Rust name, and not too long for a table.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 100;
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 => name,
        _ => name,
    };
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
