//! Follows the lab's one processor through a command: who runs, in user mode, in the kernel or in a guest, and how long.
//!
//! The lab kernel's trace events say when that changes. Their clock is the processor's time stamp counter, which in a lab that
//! counts instructions counts them. This runs inside; only sums come out.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

const TRACING: &str = "/sys/kernel/tracing";
/// The events that are heard when everything is followed.
const ALL_EVENTS: &[&str] = &[
    "sched/sched_switch",
    "raw_syscalls/sys_enter",
    "raw_syscalls/sys_exit",
    "kvm/kvm_entry",
    "kvm/kvm_exit",
    "kvm/kvm_fpu",
    "kvm/kvm_mmio",
];
/// Those that say when the milestones were, and cost little: a line when KVM_RUN begins and ends, and one for a device.
const FEW_EVENTS: &[&str] = &["kvm/kvm_fpu", "kvm/kvm_mmio"];
/// What is written into the trace before the spawn and after the wait.
const BEGIN: &str = "the clock starts";
const END: &str = "the clock stops";
/// The agent rings the doorbell: it is ready (`DOORBELL_ADDRESS` and `DOORBELL_READY` of `guest-image/protocol`).
const READY: &str = "mmio write len 4 gpa 0xd0000000 val 0x1";
/// Where x86-64 Linux begins, and where programs end. Linux Documentation/x86/x86_64/mm.rst.
const KERNEL_START: u64 = 0xffff_8000_0000_0000;
const USER_END: u64 = 0x0000_8000_0000_0000;
/// ioctl(2) with the request KVM_RUN, as `raw_syscalls` prints it: the number, and a part of the arguments.
const IOCTL: &str = "NR 16 (";
const KVM_RUN: &str = ", ae80,";

/// The parts that a cold start has, by the milestones between them.
pub(crate) const PHASES: [&str; 4] = [
    "before the first entry",
    "guest's kernel",
    "PID 1 to ready",
    "after that",
];

/// What goes wrong while a trace is made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TraceError {
    /// A file of the kernel's.
    #[error("{}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The command.
    #[error("{0}")]
    Command(String),
    /// The buffer was too small.
    #[error("{0} events were lost")]
    Lost(u64),
    /// A line that never came.
    #[error("the trace has no {0}")]
    Missing(&'static str),
}

/// Runs a command under the trace, and returns the sums as JSON.
pub(crate) fn traced(is_everything: bool, command: &[&str]) -> Result<String, TraceError> {
    let events = match is_everything {
        true => ALL_EVENTS,
        false => FEW_EVENTS,
    };
    write("buffer_size_kb", "65536")?;
    write("trace_clock", "x86-tsc")?;
    write("options/record-tgid", "1")?;
    for event in events {
        write(&format!("events/{event}/enable"), "1")?;
    }
    let (program, rest) = command
        .split_first()
        .ok_or(TraceError::Missing("command"))?;
    let failed = |source: io::Error| TraceError::Command(format!("{program}: {source}"));
    write("trace_marker", BEGIN)?;
    let mut child = Command::new(program)
        .args(rest)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let status = child.wait().map_err(failed)?;
    write("trace_marker", END)?;
    write("tracing_on", "0")?;
    if !status.success() {
        return Err(TraceError::Command(format!("{program}: {status}")));
    }
    let lost = lost(&read("per_cpu/cpu0/stats")?);
    if lost > 0 {
        return Err(TraceError::Lost(lost));
    }
    let sums = add_up(&read("trace")?, child.id())?;
    write("trace", "")?;
    write("tracing_on", "1")?;
    Ok(sums.to_string())
}

fn write(name: &str, text: &str) -> Result<(), TraceError> {
    let path = Path::new(TRACING).join(name);
    fs::write(&path, text).map_err(|source| TraceError::File { path, source })
}

fn read(name: &str) -> Result<String, TraceError> {
    let path = Path::new(TRACING).join(name);
    fs::read_to_string(&path).map_err(|source| TraceError::File { path, source })
}

/// The events that the buffer had no room for.
fn lost(stats: &str) -> u64 {
    stats
        .lines()
        .filter_map(|line| {
            let (name, count) = line.split_once(": ")?;
            let is_loss = ["overrun", "commit overrun", "dropped events"].contains(&name);
            is_loss.then(|| count.trim().parse::<u64>().ok())?
        })
        .sum()
}

/// What a thread is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    User,
    Kernel,
    KvmRun,
    Guest,
}

impl Doing {
    fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Kernel => "kernel",
            Self::KvmRun => "kvm-run",
            Self::Guest => "guest",
        }
    }
}

/// One line of the trace.
#[derive(Debug)]
struct Event<'a> {
    pid: u32,
    process: Option<u32>,
    at: u64,
    name: &'a str,
    says: &'a str,
}

/// `             vmm-81      (     81) [000] d..2.  4242: sched_switch: prev_comm=vmm …`
fn event(line: &str) -> Option<Event<'_>> {
    let (task, rest) = line.split_once(" [000] ")?;
    let (task, process) = task.rsplit_once('(')?;
    let (_, pid) = task.trim_end().rsplit_once('-')?;
    let rest = rest.trim_start().split_once(' ')?.1.trim_start();
    let (at, rest) = rest.split_once(": ")?;
    let (name, says) = rest.split_once(": ").unwrap_or((rest, ""));
    Some(Event {
        pid: pid.parse().ok()?,
        process: process.trim_end_matches(')').trim().parse().ok(),
        at: at.trim().parse().ok()?,
        name,
        says,
    })
}

/// Where the guest was: `… rip 0xffffffff81000000 …`
fn instruction(says: &str) -> u64 {
    let rip = says.split_once("rip 0x").map(|(_, rest)| rest);
    let digits = rip.and_then(|rip| rip.split(' ').next());
    digits
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or(0)
}

fn add_up(text: &str, client: u32) -> Result<Value, TraceError> {
    let mut lines = text.lines().filter_map(event);
    let begin = lines
        .by_ref()
        .find(|event| event.says.contains(BEGIN))
        .ok_or(TraceError::Missing("beginning"))?;
    let mut doing: BTreeMap<u32, Doing> =
        BTreeMap::from([(begin.pid, Doing::User), (0, Doing::Kernel)]);
    let mut processes: BTreeMap<u32, u32> = BTreeMap::new();
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    // By thread, by what it does, by phase: instructions, and how many pieces they came in.
    let mut sums: BTreeMap<(u32, Doing, usize), (u64, u64)> = BTreeMap::new();
    let (mut last, mut running, mut phase) = (begin.at, begin.pid, 0);
    let mut milestones = Vec::new();
    let mut vcpu = None;
    let mut saw_kernel = false;
    for event in lines {
        let now = doing.get(&running).copied().unwrap_or(Doing::Kernel);
        let sum = sums.entry((running, now, phase)).or_default();
        sum.0 += event.at.saturating_sub(last);
        sum.1 += 1;
        last = event.at;
        if let Some(process) = event.process {
            processes.insert(event.pid, process);
        }
        let next = match event.name {
            "sched_switch" => {
                let word = |name| {
                    let rest = event.says.split_once(name)?.1;
                    Some(rest.split(' ').next().unwrap_or(rest))
                };
                running = word("next_pid=")
                    .and_then(|pid| pid.parse().ok())
                    .unwrap_or(0);
                if let Some(name) = word("next_comm=") {
                    names.insert(running, name.to_owned());
                }
                continue;
            }
            "sys_enter" if event.says.starts_with(IOCTL) && event.says.contains(KVM_RUN) => {
                Doing::KvmRun
            }
            "sys_enter" => Doing::Kernel,
            "sys_exit" => Doing::User,
            "kvm_entry" => Doing::Guest,
            "kvm_exit" => {
                let rip = instruction(event.says);
                saw_kernel |= rip >= KERNEL_START;
                // PID 1 is there: its first page is fetched. The kernel began at low addresses itself.
                if phase == 1 && saw_kernel && rip < USER_END {
                    phase = 2;
                }
                Doing::KvmRun
            }
            "kvm_fpu" if milestones.is_empty() && event.says == "load" => {
                vcpu = Some(event.pid);
                milestones.push(event.at);
                phase = 1;
                continue;
            }
            "kvm_mmio" if milestones.len() == 1 && event.says == READY => {
                milestones.push(event.at);
                phase = 3;
                continue;
            }
            _ if event.says.contains(END) => {
                milestones.push(event.at);
                break;
            }
            _ => continue,
        };
        doing.insert(event.pid, next);
    }
    let [entered, ready, end] = milestones[..] else {
        return Err(TraceError::Missing("entry into the guest, doorbell or end"));
    };
    let vm_process = vcpu.and_then(|vcpu| processes.get(&vcpu));
    let rows = sums.into_iter().map(|((pid, doing, phase), (instructions, pieces))| {
        let process = processes.get(&pid);
        let who = match names.get(&pid) {
            _ if pid == begin.pid => "caller".to_owned(),
            _ if pid == 0 => "idle".to_owned(),
            _ if Some(pid) == vcpu => "vCPU thread".to_owned(),
            _ if pid == client => "client".to_owned(),
            _ if process.is_some() && process == vm_process => "event loop".to_owned(),
            Some(name) if process == Some(&client) => format!("client's thread {name}"),
            Some(name) => name.clone(),
            None => "unknown".to_owned(),
        };
        json!({ "who": who, "doing": doing.name(), "phase": phase, "instructions": instructions, "pieces": pieces })
    });
    let rows: Vec<Value> = rows.collect();
    Ok(json!({
        "begin": begin.at,
        "entered": entered,
        "ready": ready,
        "end": end,
        "rows": rows,
    }))
}
