//! `vmm stats`: what machines use, told by their guests.
//!
//! Nobody gathers figures while nobody asks. All machines are asked at once, and each guest looks at its own processors for the time
//! that the question names.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{Answer, Question, Usage};
use serde_json::{Value, json};

use super::output::{print_text, printable, spell_memory, spell_percent, spell_size};
use super::rows::{Listed, RowFormat};
use crate::cli::StatsArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::{Report, chain};
use crate::state::{Asked, Condition, Machine, MachineId, Registry};

/// How long guests look at their processors when somebody waits for the first figures.
const SHORT_SAMPLE: Duration = Duration::from_millis(40);
/// How long they look otherwise, and so how often there are new figures: docker's interval.
const SAMPLE: Duration = Duration::from_secs(1);
/// How long a guest may take beyond that, as with docker.
const PATIENCE: Duration = Duration::from_secs(2);

/// Codes of ECMA-48: to the first place of the terminal, clear it; clear to the line's end, to the end.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";
const HOME: &str = "\u{1b}[H";
const CLEAR_LINE: &str = "\u{1b}[K";
const CLEAR_REST: &str = "\u{1b}[J";

/// Docker's columns.
const USUAL_TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";

/// What stands above a column, by the name of its field.
const HEADERS: [(&str, &str); 9] = [
    ("Container", "CONTAINER"),
    ("ID", "CONTAINER ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// Shows what machines use, once or again and again.
pub(super) fn run(arguments: &StatsArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let format = RowFormat::parse(arguments.format.as_deref(), USUAL_TABLE, &HEADERS)?;
    let mut wanted = Wanted::new(arguments, &registry)?;
    let is_redrawn = !arguments.no_stream && io::stdout().is_terminal();
    if is_redrawn {
        print_text(CLEAR)?;
    }
    let mut sample = SHORT_SAMPLE;
    loop {
        let began = Instant::now();
        let machines = wanted.machines(&registry)?;
        let rows = rows(machines, sample, arguments.no_trunc);
        let text = format.fill(&rows)?;
        print_text(&if is_redrawn { redrawn(&text) } else { text })?;
        if arguments.no_stream || wanted.is_over() {
            return Ok(ExitCode::SUCCESS);
        }
        if sample == SAMPLE {
            // Where no guest looks at anything, nothing takes its time.
            thread::sleep(SAMPLE.saturating_sub(began.elapsed()));
        }
        sample = SAMPLE;
    }
}

/// A text in place of what is on the terminal.
fn redrawn(text: &str) -> String {
    let lines = text.lines().map(|line| format!("{line}{CLEAR_LINE}\n"));
    format!("{HOME}{}{CLEAR_REST}", lines.collect::<String>())
}

/// Which machines are shown.
struct Wanted<'a> {
    /// What was typed; all machines if nothing was.
    typed: &'a [String],
    /// Those that were typed, with what was typed.
    named: Vec<(String, MachineId)>,
    /// Those that do not run, but are shown.
    at_rest: BTreeSet<MachineId>,
    all: bool,
    /// Whether none of those that were typed runs.
    none_runs: bool,
}

impl<'a> Wanted<'a> {
    /// Finds what was typed.
    fn new(arguments: &'a StatsArgs, registry: &Registry) -> Result<Self, Report> {
        let mut named = Vec::new();
        let mut at_rest = BTreeSet::new();
        for reference in &arguments.machines {
            let machine = registry.find(reference)?;
            let id = machine.record.id.clone();
            if !runs(&machine) {
                at_rest.insert(id.clone());
            }
            named.push((reference.clone(), id));
        }
        Ok(Self {
            typed: &arguments.machines,
            named,
            at_rest,
            all: arguments.all,
            none_runs: false,
        })
    }

    /// Those that are shown now, with what they are called.
    fn machines(&mut self, registry: &Registry) -> Result<Vec<(String, Machine)>, Report> {
        let mut listed = registry.list()?;
        if self.typed.is_empty() {
            listed.retain(|machine| self.all || runs(machine));
            let called = |machine: Machine| (machine.record.id.to_string(), machine);
            return Ok(listed.into_iter().map(called).collect());
        }
        let mut machines = Vec::new();
        for (reference, id) in &self.named {
            let found = listed.iter().find(|machine| machine.record.id == *id);
            machines.extend(found.map(|machine| (reference.clone(), machine.clone())));
        }
        self.none_runs = !machines.iter().any(|(_, machine)| runs(machine));
        machines.retain(|(_, machine)| {
            self.all || runs(machine) || self.at_rest.contains(&machine.record.id)
        });
        Ok(machines)
    }

    /// Whether nothing more will be seen.
    fn is_over(&self) -> bool {
        self.none_runs
    }
}

fn runs(machine: &Machine) -> bool {
    matches!(
        machine.condition(),
        Condition::Running { .. } | Condition::Paused { .. }
    )
}

/// Asks all machines, and then waits for each.
fn rows(machines: Vec<(String, Machine)>, sample: Duration, is_whole: bool) -> Vec<Row> {
    let question = Question::Usage {
        over_ms: u32::try_from(sample.as_millis()).unwrap_or(protocol::MAX_SAMPLE_MS),
    };
    let asked: Vec<_> = machines
        .into_iter()
        .map(|(reference, machine)| {
            let running = matches!(machine.condition(), Condition::Running { .. });
            let asked = running.then(|| Asked::send(&machine.directory, &question));
            (reference, machine, asked)
        })
        .collect();
    let deadline = Instant::now() + sample + PATIENCE;
    let answered = asked.into_iter().map(|(reference, machine, asked)| {
        let answer = asked.map(|asked| asked.and_then(|asked| asked.answer(deadline)));
        let usage = match answer {
            Some(Ok(Answer::Usage(usage))) => Some(usage),
            Some(Err(error)) => {
                tracing::debug!("machine '{}': {}", machine.record.name, chain(&error));
                None
            }
            _ => None,
        };
        Row {
            reference,
            machine,
            usage,
            is_whole,
        }
    });
    answered.collect()
}

/// A machine and what it uses, if it says so.
struct Row {
    reference: String,
    machine: Machine,
    usage: Option<Usage>,
    is_whole: bool,
}

impl Listed for Row {
    fn fields(&self) -> Value {
        let id = &self.machine.record.id;
        let figures = self.usage.map_or_else(Figures::unknown, Figures::of);
        json!({
            "BlockIO": figures.block,
            "CPUPerc": figures.cpu,
            "Container": printable(&self.reference),
            "ID": if self.is_whole { id.as_str() } else { id.short() },
            "MemPerc": figures.memory_part,
            "MemUsage": figures.memory,
            "Name": self.machine.record.name.as_str(),
            "NetIO": figures.network,
            "PIDs": figures.tasks,
        })
    }
}

/// What is shown of a machine's use, as docker spells it.
#[derive(Debug, PartialEq)]
struct Figures {
    cpu: String,
    memory: String,
    memory_part: String,
    network: String,
    block: String,
    tasks: String,
}

impl Figures {
    fn of(usage: Usage) -> Self {
        let limit = usage.memory_limit_bytes;
        let (memory, memory_part) = match usage.memory_bytes {
            Some(bytes) => (spell_memory(bytes), spell_percent(bytes, limit)),
            None => ("--".to_owned(), "--".to_owned()),
        };
        let both = |one: u64, other: u64| format!("{} / {}", spell_size(one), spell_size(other));
        Self {
            cpu: spell_percent(usage.cpu_us, usage.over_us),
            memory: format!("{memory} / {}", spell_memory(limit)),
            memory_part,
            network: both(usage.received_bytes, usage.sent_bytes),
            block: both(usage.read_bytes, usage.written_bytes),
            tasks: usage.tasks.to_string(),
        }
    }

    fn unknown() -> Self {
        let unknown = || "--".to_owned();
        let both = || "-- / --".to_owned();
        Self {
            cpu: unknown(),
            memory: both(),
            memory_part: unknown(),
            network: both(),
            block: both(),
            tasks: unknown(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_spelled_as_docker_spells_them() {
        let figures = Figures::of(Usage {
            cpu_us: 750_000,
            over_us: 500_000,
            memory_bytes: Some(32 << 20),
            memory_limit_bytes: 128 << 20,
            tasks: 3,
            read_bytes: 4_200_000,
            written_bytes: 0,
            received_bytes: 1_500,
            sent_bytes: 2_000_000,
        });

        assert_eq!(figures.cpu, "150.00%");
        assert_eq!(figures.memory, "32MiB / 128MiB");
        assert_eq!(figures.memory_part, "25.00%");
        assert_eq!(figures.network, "1.50kB / 2.00MB");
        assert_eq!(figures.block, "4.20MB / 0B");
        assert_eq!(figures.tasks, "3");
    }

    #[test]
    fn nonsense_of_a_guest_is_shown_as_it_is() {
        let figures = Figures::of(Usage {
            cpu_us: u64::MAX,
            over_us: 0,
            memory_bytes: Some(u64::MAX),
            memory_limit_bytes: 0,
            tasks: u64::MAX,
            read_bytes: u64::MAX,
            written_bytes: u64::MAX,
            received_bytes: u64::MAX,
            sent_bytes: u64::MAX,
        });

        assert_eq!(figures.memory, "16EiB / 0B");
    }

    #[test]
    fn a_redrawn_text_leaves_nothing_of_the_one_before() {
        assert_eq!(redrawn("a\nb\n"), "\u{1b}[Ha\u{1b}[K\nb\u{1b}[K\n\u{1b}[J");
    }
}
