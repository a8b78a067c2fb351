//! `make density`: how many clones fit, what each of them takes, and whether they all answer.
//!
//! Starts machines of 128 MiB, each a clone that runs `cat`, one after the other, and keeps them. Every machine answers once when it
//! starts, and all of them again at each mark. It prints a table and judges nothing. `--machines N` sets how many.
//!
//! - *start*: from the spawn of the command to the first answer, on average since the mark before.
//! - *PSS*: proportional set size of the machine's processes, client and monitor included, guest memory included.
//! - *private*: of the same, what nobody shares and is not guest memory; of a few machines.
//! - *available*: by how much less memory the host has available (`MemAvailable`), for each machine: with what the kernel spends.
//! - *slab*: by how much the kernel's own objects grew (`Slab`), for each machine; the kernel knows no finer share of KVM's.

#![expect(
    clippy::cast_precision_loss,
    reason = "means of sizes and times, printed with two decimals"
)]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tests::image_maker::ImageMaker;
use tests::{Fixture, binary};

const IMAGE: &str = "busybox:density";
/// After how many machines a row is printed.
const MARKS: [usize; 10] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
/// How many machines are looked at mapping by mapping, which takes the kernel long.
const LOOKED_AT_CLOSELY: usize = 5;
const KIB_PER_MIB: f64 = 1024.0;

fn main() -> io::Result<()> {
    let wanted = wanted();
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files)?;
    let fixture = Fixture::with_machines();
    let file = fixture.file(
        "busybox.oci",
        ImageMaker::busybox().name(IMAGE).layout().archive(),
    );
    fixture.load(&file).run().succeeded();
    prepare(&fixture)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "machines  start, ms  PSS, MiB  private, MiB  available, MiB  slab, MiB"
    )?;
    let before = Host::now();
    let mut machines = Vec::new();
    let mut starts = Vec::new();
    while machines.len() < wanted {
        let begin = Instant::now();
        let mut machine = Machine::start(&fixture)?;
        machine.answers("first")?;
        starts.push(begin.elapsed());
        machines.push(machine);
        if MARKS.contains(&machines.len()) || machines.len() == wanted {
            for machine in &mut machines {
                machine.answers("still there")?;
            }
            writeln!(out, "{}", row(&machines, &starts, before))?;
            starts.clear();
        }
    }
    machines.into_iter().try_for_each(Machine::end)
}

fn wanted() -> usize {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments
        .iter()
        .position(|argument| argument == "--machines");
    given
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(100)
}

fn row(machines: &[Machine], starts: &[Duration], before: Host) -> String {
    let count = machines.len() as f64;
    let start_ms = starts.iter().sum::<Duration>().as_secs_f64() * 1e3 / starts.len() as f64;
    let pss_kib: u64 = machines.iter().map(Machine::pss_kib).sum();
    let close = &machines[machines.len().saturating_sub(LOOKED_AT_CLOSELY)..];
    let private_kib: u64 = close.iter().map(Machine::private_kib).sum();
    let now = Host::now();
    format!(
        "{:>8}  {start_ms:>9.0}  {:>8.2}  {:>12.2}  {:>14.2}  {:>9.2}",
        machines.len(),
        pss_kib as f64 / KIB_PER_MIB / count,
        private_kib as f64 / KIB_PER_MIB / close.len() as f64,
        before.available_kib.saturating_sub(now.available_kib) as f64 / KIB_PER_MIB / count,
        now.slab_kib.saturating_sub(before.slab_kib) as f64 / KIB_PER_MIB / count,
    )
}

fn vmm(fixture: &Fixture, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary::vmm());
    command
        .env("VMM_ROOT", fixture.root())
        .env_remove("VMM_NO_TEMPLATE")
        .args(arguments);
    command
}

/// Makes the template, and a first clone that finds out what clones write.
fn prepare(fixture: &Fixture) -> io::Result<()> {
    for arguments in [
        &["prepare", "--rm", "--quiet", "--memory", "128m", IMAGE][..],
        &["run", "--rm", "--memory", "128m", IMAGE, "true"],
    ] {
        let status = vmm(fixture, arguments).status()?;
        assert!(status.success(), "vmm {arguments:?}: {status}");
    }
    Ok(())
}

/// A machine that repeats what it is told.
struct Machine {
    client: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Machine {
    fn start(fixture: &Fixture) -> io::Result<Self> {
        let mut client = vmm(
            fixture,
            &["run", "--rm", "-i", "--memory", "128m", IMAGE, "cat"],
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
        let (input, output) = (client.stdin.take(), client.stdout.take());
        Ok(Self {
            client,
            input: input.expect("it is a pipe"),
            output: BufReader::new(output.expect("it is a pipe")),
        })
    }

    fn answers(&mut self, word: &str) -> io::Result<()> {
        writeln!(self.input, "{word}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        assert_eq!(line.trim_end(), word, "machine of {}", self.client.id());
        Ok(())
    }

    fn end(mut self) -> io::Result<()> {
        drop(self.input);
        let status = self.client.wait()?;
        assert!(status.success(), "{status}");
        Ok(())
    }

    /// The client, which is the monitor, and the VM process, its child.
    fn processes(&self) -> Vec<u32> {
        let client = self.client.id();
        let children = fs::read_to_string(format!("/proc/{client}/task/{client}/children"));
        let children = children.unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        std::iter::once(client).chain(children).collect()
    }

    fn pss_kib(&self) -> u64 {
        let of_process = |pid| sum_of(&format!("/proc/{pid}/smaps_rollup"), &["Pss:"]);
        self.processes().into_iter().map(of_process).sum()
    }

    fn private_kib(&self) -> u64 {
        self.processes().into_iter().map(private_kib).sum()
    }
}

/// The sum of the lines that begin so, in KiB.
fn sum_of(path: &str, names: &[&str]) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| value_of(line, names)).sum()
}

/// The value of a line like `Pss:  12 kB` with one of the names, or nothing.
fn value_of(line: &str, names: &[&str]) -> u64 {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some(name), Some(value)) if names.contains(&name) => value.parse().unwrap_or(0),
        _ => 0,
    }
}

/// What is private to a process, but for the guest's memory.
fn private_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let ram = text.lines().find_map(ram).unwrap_or_default();
    let mut is_counted = true;
    let mut sum_kib = 0;
    for line in text.lines() {
        if let Some(start) = start_of_mapping(line) {
            is_counted = !ram.contains(&start);
        } else if is_counted {
            sum_kib += value_of(line, &["Private_Clean:", "Private_Dirty:"]);
        }
    }
    sum_kib
}

/// The first line of a mapping begins with its addresses (proc(5), `/proc/pid/smaps`).
fn start_of_mapping(line: &str) -> Option<u64> {
    u64::from_str_radix(line.split_once('-')?.0, 16).ok()
}

/// The addresses of the guest's memory, told from a piece of it that is mapped of the template's file: a byte lies in the file where
/// it lies in the memory.
fn ram(line: &str) -> Option<std::ops::Range<u64>> {
    let start = start_of_mapping(line)?;
    let mut words = line.split_whitespace().skip(2);
    let offset = u64::from_str_radix(words.next()?, 16).ok()?;
    let path = words.nth(2).filter(|path| path.ends_with("/memory"))?;
    let length = fs::metadata(path).ok()?.len();
    Some(start - offset..start - offset + length)
}

/// What the host has.
#[derive(Clone, Copy)]
struct Host {
    available_kib: u64,
    slab_kib: u64,
}

impl Host {
    fn now() -> Self {
        Self {
            available_kib: sum_of("/proc/meminfo", &["MemAvailable:"]),
            slab_kib: sum_of("/proc/meminfo", &["Slab:"]),
        }
    }
}
