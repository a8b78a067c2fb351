//! A table, JSON, and a chart.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Map, Value, json};
use tests::binary::checkout;

use crate::measure::Figure;
use crate::scenarios::{Clock, Scenario};

/// What was measured with what.
pub(crate) type Versions = [(&'static str, String)];

/// What the others are compared with.
const YARDSTICK: &str = "crun-run";
/// Where the README's table stands.
const MARKS: (&str, &str) = ("<!-- lab bench -->\n", "<!-- end of lab bench -->\n");
const CHART: &str = "resources/lab-bench.svg";
/// What the README's table was made from.
const FIGURES: &str = "tests/bench/lab/figures.json";
/// How far a figure may be from the committed one, as a share of it.
const TOLERANCE: f64 = 0.03;

/// One scenario as a line of text.
pub(crate) fn line(scenario: &Scenario, figure: &Figure) -> String {
    let times = match scenario.clock {
        Clock::Outside => format!(
            "first byte {:>7}  exit {:7.1}  all returned {:>7}",
            cell(figure.first_byte_ms),
            figure.virtual_ms,
            cell(figure.returned_ms)
        ),
        Clock::Inside => format!("inside {:7.1}", figure.virtual_ms),
    };
    format!(
        "{:22} {times:53}  ±{:4.1} %  {:7} exits   {}",
        scenario.name,
        figure.spread * 50.0,
        figure.exits,
        scenario.says
    )
}

/// Writes everything that is kept of a whole run.
pub(crate) fn write(made_of: &Versions, figures: &[(&Scenario, Figure)]) {
    let directory = checkout().join("target/bench");
    fs::create_dir_all(&directory).expect("target/bench can be made");
    let text = serde_json::to_string_pretty(&as_json(made_of, figures)).expect("figures are JSON");
    for path in [directory.join("lab.json"), checkout().join(FIGURES)] {
        fs::write(path, format!("{text}\n")).expect("the figures can be written");
    }
    fs::write(checkout().join(CHART), chart(figures)).expect("the chart can be written");

    let readme = checkout().join("README.md");
    let text = fs::read_to_string(&readme).expect("the README can be read");
    let (before, rest) = text.split_once(MARKS.0).expect("the README has a mark");
    let (_, after) = rest
        .split_once(MARKS.1)
        .expect("the README has an end mark");
    let table = table(made_of, figures);
    fs::write(
        readme,
        format!("{before}{}{table}{}{after}", MARKS.0, MARKS.1),
    )
    .expect("the README can be written");
}

/// The figures that are committed.
#[derive(Debug)]
pub(crate) struct Committed(pub(crate) Value);

impl Committed {
    pub(crate) fn read() -> Self {
        let text = fs::read(checkout().join(FIGURES)).expect("the committed figures can be read");
        Self(serde_json::from_slice(&text).expect("the committed figures are JSON"))
    }

    /// The first thing that is not what it was when they were made.
    pub(crate) fn difference(&self, versions: &Versions) -> Option<String> {
        versions.iter().find_map(|(name, version)| {
            let before = self.0["versions"][name].as_str().unwrap_or("nothing");
            (before != version).then(|| format!("{name} was {before}, is {version}"))
        })
    }

    /// Whether it was measured then.
    pub(crate) fn has(&self, scenario: &Scenario) -> bool {
        self.0["scenarios"][scenario.name].is_object()
    }

    pub(crate) fn figure(&self, name: &str) -> Figure {
        let committed = &self.0["scenarios"][name];
        Figure {
            virtual_ms: committed["virtual_ms"].as_f64().unwrap_or(f64::NAN),
            first_byte_ms: committed["first_byte_ms"].as_f64(),
            returned_ms: committed["returned_ms"].as_f64(),
            spread: committed["spread"].as_f64().unwrap_or(0.0),
            exits: committed["exits"].as_u64().unwrap_or(0),
        }
    }

    /// A sentence if the README's table has another row for it.
    pub(crate) fn is_told_otherwise(&self, scenario: &Scenario) -> Option<String> {
        let readme = fs::read_to_string(checkout().join("README.md"));
        let readme = readme.expect("the README can be read");
        let unit = self.figure(YARDSTICK).virtual_ms;
        let row = row(scenario, &self.figure(scenario.name), unit);
        let is_told = readme.lines().any(|line| line == row);
        (!is_told).then(|| format!("the README's table has not the committed row {row}"))
    }

    /// A sentence if a figure is not what it was. Programs of many threads vary more than the tolerance by themselves.
    pub(crate) fn moved(&self, scenario: &Scenario, figure: &Figure) -> Option<String> {
        let committed = self.figure(scenario.name);
        let before = committed.virtual_ms;
        let tolerance = TOLERANCE.max(committed.spread).max(figure.spread);
        let is_same = (figure.virtual_ms - before).abs() <= tolerance * before;
        (!is_same).then(|| {
            format!(
                "{} was {before:.1} virtual ms, is {:.1}",
                scenario.name, figure.virtual_ms
            )
        })
    }
}

pub(crate) fn as_json(made_of: &Versions, figures: &[(&Scenario, Figure)]) -> Value {
    let scenarios: Map<String, Value> = figures
        .iter()
        .map(|(scenario, figure)| {
            let value = json!({
                "virtual_ms": figure.virtual_ms,
                "first_byte_ms": figure.first_byte_ms,
                "returned_ms": figure.returned_ms,
                "spread": figure.spread,
                "exits": figure.exits,
                "says": scenario.says,
                "clock": clock(scenario),
            });
            (scenario.name.to_owned(), value)
        })
        .collect();
    let versions: Map<String, Value> = made_of
        .iter()
        .map(|(name, version)| ((*name).to_owned(), version.as_str().into()))
        .collect();
    json!({ "scenarios": scenarios, "versions": versions })
}

/// What starts the clock, and what stops it.
fn clock(scenario: &Scenario) -> &'static str {
    match scenario.clock {
        Clock::Outside => "spawn to return of wait",
        Clock::Inside => "the work alone, from inside",
    }
}

fn yardstick(figures: &[(&Scenario, Figure)]) -> f64 {
    exit(figures, YARDSTICK).unwrap_or(f64::NAN)
}

/// One number of a table, or nothing.
fn cell(virtual_ms: Option<f64>) -> String {
    virtual_ms.map_or_else(String::new, |virtual_ms| format!("{virtual_ms:.1}"))
}

pub(crate) fn row(scenario: &Scenario, figure: &Figure, unit: f64) -> String {
    let Scenario { says, clock, .. } = scenario;
    let Figure {
        virtual_ms, exits, ..
    } = figure;
    match clock {
        Clock::Outside => format!(
            "| {says} | {} | {virtual_ms:.1} | {} | {:.1} | {exits} |",
            cell(figure.first_byte_ms),
            cell(figure.returned_ms),
            virtual_ms / unit,
        ),
        Clock::Inside => format!("| {says} | {virtual_ms:.1} | {exits} |"),
    }
}

pub(crate) fn table(made_of: &Versions, figures: &[(&Scenario, Figure)]) -> String {
    let unit = yardstick(figures);
    let rows = |clock| {
        let rows = figures
            .iter()
            .filter(move |(scenario, _)| scenario.clock == clock);
        rows.map(|(scenario, figure)| row(scenario, figure, unit) + "\n")
            .collect::<String>()
    };
    let mut table = format!(
        "| virtual ms | first byte | exit | all returned | of crun | VM exits |\n|---|--:|--:|--:|--:|--:|\n{}",
        rows(Clock::Outside)
    );
    let inside = rows(Clock::Inside);
    if !inside.is_empty() {
        let _ = write!(
            table,
            "\n| work, timed from inside | virtual ms | VM exits |\n|---|--:|--:|\n{inside}"
        );
    }
    if let (Some(bare), Some(vmm)) = (exit(figures, "bare-cpu"), exit(figures, "vmm-cpu")) {
        let _ = writeln!(
            table,
            "\nIn a machine, the loop in registers is {:+.2} % away from what it takes bare.",
            (vmm / bare - 1.0) * 100.0
        );
    }
    let targets: String = TARGETS
        .iter()
        .filter_map(|target| target.row(figures))
        .collect();
    if !targets.is_empty() {
        let _ = write!(
            table,
            "\n| what is to be reached | target | is |\n|---|--:|--:|\n{targets}"
        );
    }
    let _ = writeln!(table, "\n{}", versions(made_of));
    table
}

fn figure_of<'a>(figures: &'a [(&Scenario, Figure)], name: &str) -> Option<&'a Figure> {
    let found = figures.iter().find(|(scenario, _)| scenario.name == name);
    found.map(|(_, figure)| figure)
}

fn exit(figures: &[(&Scenario, Figure)], name: &str) -> Option<f64> {
    figure_of(figures, name).map(|figure| figure.virtual_ms)
}

/// What things are to cost at most. The ceilings in `budgets.json` are what they cost now.
struct Target {
    says: &'static str,
    at_most: f64,
    digits: usize,
    is: fn(&[(&Scenario, Figure)]) -> Option<f64>,
}

/// What a hundred machines cost, where one and eight cost this.
fn of_a_hundred(one: f64, eight: f64) -> Option<f64> {
    Some(one + (eight - one) / 7.0 * 99.0)
}

const TARGETS: &[Target] = &[
    Target {
        says: "docker's whole profile, more than none, virtual ms",
        at_most: 1.5,
        digits: 1,
        is: |figures| Some(exit(figures, "vmm-run-cold")? - exit(figures, "vmm-no-profile")?),
    },
    Target {
        says: "the agent's part of a cold start, virtual ms",
        at_most: 3.0,
        digits: 1,
        is: |figures| exit(figures, "vmm-agent"),
    },
    Target {
        says: "`vmm exec` of `true`, virtual ms",
        at_most: 6.0,
        digits: 1,
        is: |figures| exit(figures, "vmm-exec"),
    },
    Target {
        says: "`vmm ps` with a hundred machines, reckoned from one and eight, virtual ms",
        at_most: 20.0,
        digits: 1,
        is: |figures| of_a_hundred(exit(figures, "vmm-ps-one")?, exit(figures, "vmm-ps")?),
    },
    Target {
        says: "`vmm stats --no-stream` with a hundred machines, likewise",
        at_most: 100.0,
        digits: 1,
        is: |figures| of_a_hundred(exit(figures, "vmm-stats-one")?, exit(figures, "vmm-stats")?),
    },
    Target {
        says: "hello to its first byte, virtual ms",
        at_most: 8.0,
        digits: 1,
        is: |figures| figure_of(figures, "vmm-run-warm")?.first_byte_ms,
    },
    Target {
        says: "hello to its exit, virtual ms",
        at_most: 10.0,
        digits: 1,
        is: |figures| exit(figures, "vmm-run-warm"),
    },
    Target {
        says: "a hundred, one after the other, virtual ms",
        at_most: 1000.0,
        digits: 0,
        is: |figures| exit(figures, "vmm-hundred-warm"),
    },
    Target {
        says: "twenty at once, of twenty one after the other",
        at_most: 1.0,
        digits: 2,
        is: |figures| {
            let in_a_row = exit(figures, "vmm-hundred-warm")? / 100.0 * 20.0;
            Some(exit(figures, "vmm-twenty-at-once-warm")? / in_a_row)
        },
    },
    Target {
        says: "hello on two vCPUs, of hello on one",
        at_most: 1.1,
        digits: 2,
        is: |figures| Some(exit(figures, "vmm-run-warm-2-vcpus")? / exit(figures, "vmm-run-warm")?),
    },
];

impl Target {
    /// Its row, if what it takes was measured.
    fn row(&self, figures: &[(&Scenario, Figure)]) -> Option<String> {
        let (is, digits) = ((self.is)(figures)?, self.digits);
        let missed = match is > self.at_most {
            true => ", missed",
            false => "",
        };
        Some(format!(
            "| {} | {:.digits$} | {is:.digits$}{missed} |\n",
            self.says, self.at_most
        ))
    }
}

pub(crate) fn versions(made_of: &Versions) -> String {
    let versions: Vec<String> = made_of
        .iter()
        .map(|(name, version)| match version.starts_with(name) {
            true => version.clone(),
            false => format!("{name} {version}"),
        })
        .collect();
    versions.join(", ") + "."
}

/// Horizontal bars, one a scenario, without those that do something many times.
fn chart(figures: &[(&Scenario, Figure)]) -> String {
    const BAR_HEIGHT: u32 = 22;
    const LABEL_WIDTH: u32 = 150;
    const BARS_WIDTH: u32 = 420;
    let shown: Vec<_> = figures
        .iter()
        .filter(|(scenario, _)| scenario.name.ends_with("-boot") || scenario.name.contains("-run"))
        .collect();
    let largest = shown
        .iter()
        .map(|(_, figure)| figure.virtual_ms)
        .fold(1.0, f64::max);
    let height = BAR_HEIGHT * u32::try_from(shown.len()).unwrap_or(0) + 30;
    let width = LABEL_WIDTH + BARS_WIDTH + 80;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <text x=\"{LABEL_WIDTH}\" y=\"16\" fill=\"#666\">spawn to exit, in millions of instructions; run: hello, boot: the same kernel to an init that ends</text>\n"
    );
    for (row, (scenario, figure)) in (0..).zip(&shown) {
        let top = 26 + row * BAR_HEIGHT;
        let length = figure.virtual_ms / largest * f64::from(BARS_WIDTH);
        let colour = match scenario.name.starts_with("vmm") {
            true => "#2a6fb0",
            false => "#b0b0b0",
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" fill=\"#666\">{}</text>\
             <rect x=\"{LABEL_WIDTH}\" y=\"{top}\" width=\"{length:.1}\" height=\"{}\" fill=\"{colour}\"/>\
             <text x=\"{:.1}\" y=\"{}\" fill=\"#666\">{:.1}</text>",
            LABEL_WIDTH - 8,
            top + 14,
            scenario.name,
            BAR_HEIGHT - 6,
            f64::from(LABEL_WIDTH) + length + 6.0,
            top + 14,
            figure.virtual_ms
        );
    }
    svg.push_str("</svg>\n");
    svg
}
