//! What `vmm` costs beside plain containers, counted in instructions, in the lab.
//!
//! - Without an argument: every scenario, each alone in a freshly booted lab; a table, `target/bench/lab.json`, and a chart
//!   and a table for the README.
//! - `--short`: the same without the scenarios that take minutes.
//! - `--budgets`: only the scenarios that have a ceiling in `budgets.json`; fails where one is above it.
//! - `--check`: everything again, held against what is committed; fails where a figure moved though nothing else did.
//! - `--profile`: where a cold start goes, written to `tests/bench/lab/profile.md`.
//! - `--only NAME`: that scenario, printed.
//! - `time REPEAT COMMAND…`: what runs inside the lab; one duration in nanoseconds a line.

mod measure;
mod report;
mod scenarios;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitCode};

use measure::{Failure, Figure, Stage};
use scenarios::{SCENARIOS, Scenario};
use tests::binary::checkout;

/// The ceilings, in millions of instructions, by the scenarios' names.
const BUDGETS: &str = "tests/bench/lab/budgets.json";

fn main() -> ExitCode {
    // Cargo adds `--bench`.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["time", repeat, ref command @ ..] => {
            return time(repeat.parse().unwrap_or(1), command);
        }
        [] => measured(|_| true),
        ["--short"] => measured(|scenario| !scenario.is_long),
        ["--budgets"] => budgets(),
        ["--check"] => check(),
        ["--profile"] => profile(),
        ["--only", name] => only(name),
        _ => {
            say(&format!("lab bench: unknown arguments {arguments:?}"));
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|failure| {
        say(&format!("lab bench: {failure}"));
        if let Failure::Lab(error) = failure
            && let Some(help) = error.help()
        {
            say(&format!("help: {help}"));
        }
        ExitCode::from(125)
    })
}

fn measured(is_wanted: impl Fn(&Scenario) -> bool) -> Result<ExitCode, Failure> {
    let stage = Stage::set()?;
    let mut figures = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| is_wanted(scenario)) {
        figures.push((scenario, told(&stage, scenario)?));
    }
    report::write(&stage, &figures);
    Ok(ExitCode::SUCCESS)
}

/// Measures everything again if all that was measured is still the same, byte for byte.
fn check() -> Result<ExitCode, Failure> {
    let stage = Stage::set()?;
    let committed = report::Committed::read();
    if let Some(difference) = committed.difference(&stage) {
        say(&format!(
            "The committed figures are of another build ({difference}): not compared."
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let mut is_same = true;
    for scenario in SCENARIOS.iter().filter(|scenario| committed.has(scenario)) {
        let figure = told(&stage, scenario)?;
        if let Some(moved) = committed.moved(scenario, &figure) {
            is_same = false;
            say(&moved);
        }
    }
    Ok(ExitCode::from(u8::from(!is_same)))
}

fn profile() -> Result<ExitCode, Failure> {
    let stage = Stage::set()?;
    say(&report::write_profile(&stage, &stage.profile()?));
    Ok(ExitCode::SUCCESS)
}

fn only(name: &str) -> Result<ExitCode, Failure> {
    let Some(scenario) = SCENARIOS.iter().find(|scenario| scenario.name == name) else {
        let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        say(&format!(
            "lab bench: no scenario {name}; there are {}",
            names.join(", ")
        ));
        return Ok(ExitCode::from(2));
    };
    told(&Stage::set()?, scenario)?;
    Ok(ExitCode::SUCCESS)
}

/// Measures what has a ceiling, and fails if one is above it.
fn budgets() -> Result<ExitCode, Failure> {
    let text = fs::read_to_string(checkout().join(BUDGETS)).expect("the budgets can be read");
    let ceilings: BTreeMap<String, f64> =
        serde_json::from_str(&text).expect("the budgets are numbers by names");
    let stage = Stage::set()?;
    let mut is_kept = true;
    for (name, ceiling) in ceilings {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        let Some(scenario) = scenario else {
            return Err(Failure::UnknownBudget(name));
        };
        if told(&stage, scenario)?.virtual_ms > ceiling {
            is_kept = false;
            say(&format!(
                "{name} is above its ceiling of {ceiling} virtual ms"
            ));
        }
    }
    Ok(ExitCode::from(u8::from(!is_kept)))
}

fn told(stage: &Stage, scenario: &Scenario) -> Result<Figure, Failure> {
    let figure = stage.measure(scenario)?;
    say(&report::line(scenario, &figure));
    Ok(figure)
}

fn say(line: &str) {
    writeln!(io::stdout(), "{line}").expect("standard output takes the report");
}

/// What `lab time` does, from inside this program.
fn time(repeat: u32, command: &[&str]) -> ExitCode {
    let (program, rest) = command.split_first().expect("a command to time");
    for _ in 0..repeat {
        let (taken, status) =
            lab::time(Command::new(program).args(rest)).expect("the command can be run");
        assert!(status.success(), "{program} failed: {status}");
        say(&taken.as_nanos().to_string());
    }
    ExitCode::SUCCESS
}
