//! What `vmm` costs beside plain containers, counted in instructions, in the lab.
//!
//! - Without an argument: every scenario, each alone in a freshly booted lab; a table, `target/bench/lab.json`, and a chart
//!   and a table for the README.
//! - `--short`: the same without the scenarios that take minutes.
//! - `--budgets`: only the scenarios that have a ceiling in `budgets.json`; fails where one is above it.
//! - `--check`: everything again, held against what is committed; fails where a figure moved though nothing else did, and
//!   where the README's table says another.
//! - `--profile`: where a cold start goes, written to `tests/bench/lab/profile.md`.
//! - `--only NAME`: that scenario, printed.
//! - `--firecracker PATH`, `--cloud-hypervisor PATH`, `--qemu`: with any of these, other VMMs that boot the same kernel.
//! - `time REPEAT CODE COMMAND…`: what runs inside the lab; a line of `lab::Times` each time.
//! - `repeat REPEAT CODE COMMAND…`: the same for a command that takes its own time, and prints it.
//! - `trace all|few COMMAND…`: what also runs inside; who ran how long, as JSON.

mod arguments;
mod callgrind;
mod measure;
mod profile;
mod report;
mod scenarios;
mod trace;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

use arguments::{Mode, Peers};
use measure::{Failure, Figure, Stage};
use scenarios::{Clock, SCENARIOS, Scenario};
use tests::binary::checkout;

/// The ceilings, in millions of instructions, by the scenarios' names.
const BUDGETS: &str = "tests/bench/lab/budgets.json";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [whose @ ("time" | "repeat"), repeat, code, ref command @ ..] = words[..] {
        let clock = match whose {
            "time" => Clock::Outside,
            _ => Clock::Inside,
        };
        return time(clock, repeat, code, command);
    }
    if let ["trace", which, ref command @ ..] = words[..] {
        return match trace::traced(which == "all", command) {
            Ok(sums) => {
                say(&sums);
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain_more(&format!("trace: {}", lab::chain(&error)));
                ExitCode::FAILURE
            }
        };
    }
    let (mode, peers) = match arguments::parse(arguments.into_iter()) {
        Ok(parsed) => parsed,
        Err(sentence) => {
            complain(&sentence);
            return ExitCode::from(2);
        }
    };
    let result = match mode {
        Mode::All => measured(&peers, |_| true),
        Mode::Short => measured(&peers, |scenario| !scenario.is_long),
        Mode::Budgets => budgets(),
        Mode::Check => check(&peers),
        Mode::Profile => profile(),
        Mode::Only(name) => only(&peers, &name),
    };
    result.unwrap_or_else(|failure| {
        complain(&lab::chain(&failure));
        if let Some(help) = failure.help() {
            complain_more(&format!("help: {help}"));
        }
        ExitCode::from(125)
    })
}

fn measured(peers: &Peers, is_wanted: impl Fn(&Scenario) -> bool) -> Result<ExitCode, Failure> {
    let stage = Stage::set(peers)?;
    let versions = stage.versions()?;
    let mut figures = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(scenario)) {
        if let Some(figure) = told(&stage, scenario)? {
            figures.push((scenario, figure));
        }
    }
    report::write(&versions, &figures);
    Ok(ExitCode::SUCCESS)
}

/// Measures everything again if all that was measured is still the same, byte for byte.
fn check(peers: &Peers) -> Result<ExitCode, Failure> {
    let stage = Stage::set(peers)?;
    let committed = report::Committed::read();
    let mut is_same = true;
    let mut compared = |difference: Option<String>| {
        if let Some(difference) = difference {
            is_same = false;
            complain(&difference);
        }
    };
    let known = || SCENARIOS.iter().filter(|scenario| committed.has(scenario));
    for scenario in known() {
        compared(committed.is_told_otherwise(scenario));
    }
    if let Some(difference) = committed.difference(&stage.versions()?) {
        say(&format!(
            "The committed figures are of another build ({difference}): not compared."
        ));
        return Ok(ExitCode::from(u8::from(!is_same)));
    }
    for scenario in known() {
        if let Some(figure) = told(&stage, scenario)? {
            compared(committed.moved(scenario, &figure));
        }
    }
    Ok(ExitCode::from(u8::from(!is_same)))
}

fn profile() -> Result<ExitCode, Failure> {
    let stage = Stage::set(&Peers::default())?;
    say(&profile::write(&stage)?);
    Ok(ExitCode::SUCCESS)
}

fn only(peers: &Peers, name: &str) -> Result<ExitCode, Failure> {
    let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name) else {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        complain(&format!(
            "no scenario {name}; there are {}",
            names.join(", ")
        ));
        return Ok(ExitCode::from(2));
    };
    told(&Stage::set(peers)?, scenario)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures what has a ceiling, and fails if one is above it.
fn budgets() -> Result<ExitCode, Failure> {
    let text = fs::read_to_string(checkout().join(BUDGETS)).expect("the budgets can be read");
    let ceilings: BTreeMap<String, f64> =
        serde_json::from_str(&text).expect("the budgets are numbers by names");
    let stage = Stage::set(&Peers::default())?;
    let mut is_kept = true;
    for (name, ceiling) in ceilings {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        let Some(scenario) = scenario else {
            return Err(Failure::UnknownBudget(name));
        };
        let figure = told(&stage, scenario)?;
        if figure.is_some_and(|figure| figure.virtual_ms > ceiling) {
            is_kept = false;
            complain(&format!(
                "{name} is above its ceiling of {ceiling} virtual ms"
            ));
        }
    }
    Ok(ExitCode::from(u8::from(!is_kept)))
}

/// Measures and says so; nothing if the other VMM was not named.
fn told(stage: &Stage, scenario: &Scenario) -> Result<Option<Figure>, Failure> {
    if let Some(option) = stage.lacks(scenario) {
        say(&format!(
            "{:22} not measured: {option} was not given",
            scenario.name
        ));
        return Ok(None);
    }
    let figure = stage.measure(scenario)?;
    say(&report::line(scenario, &figure));
    Ok(Some(figure))
}

fn say(line: &str) {
    write_out(format!("{line}\n").as_bytes());
}

fn write_out(bytes: &[u8]) {
    let written = io::stdout().write_all(bytes);
    written.expect("standard output takes the report");
}

fn complain(line: &str) {
    complain_more(&format!("lab bench: {line}"));
}

fn complain_more(line: &str) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr(), "{line}");
}

/// What `lab time` does, from inside this program, for commands that end with a certain code. Each time begins when nothing is
/// left of the one before.
fn time(clock: Clock, repeat: &str, code: &str, command: &[&str]) -> ExitCode {
    let repeat: u32 = repeat.parse().expect("a number of times");
    let code: i32 = code.parse().expect("an exit code");
    let (program, rest) = command.split_first().expect("a command to time");
    // Said in the end: who reads it would take of the next time.
    let mut all = Vec::new();
    for _ in 0..repeat {
        let mut command = Command::new(program);
        command.args(rest);
        let timed = match clock {
            Clock::Outside => lab::time(&mut command, &mut io::sink()),
            Clock::Inside => lab::time(&mut command, &mut all),
        };
        let (times, status) = match timed {
            Ok(timed) => timed,
            Err(error) => {
                complain_more(&format!("{program} cannot be run: {error}"));
                return ExitCode::FAILURE;
            }
        };
        if status.code() != Some(code) {
            complain_more(&format!("{program} ended with {status}"));
            return ExitCode::FAILURE;
        }
        if clock == Clock::Outside {
            all.extend(format!("{times}\n").into_bytes());
        }
    }
    write_out(&all);
    ExitCode::SUCCESS
}
