//! `vmm ps`: the machines that are there.

use serde::Serialize;

use super::output::{Table, print_json, print_line, shorten, spell_duration};
use crate::cli::PsArgs;
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Condition, Ended, Machine, Registry};

/// Characters of a command that the table shows, docker's number.
const COMMAND_LENGTH: usize = 20;

/// Lists machines.
pub(super) fn run(arguments: &PsArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    clean(&registry);
    let mut machines = registry.list()?;
    machines.retain(|machine| arguments.all || machine.alive && is_up(&machine.condition()));
    let id_of = |machine: &Machine| {
        let id = &machine.record.id;
        if arguments.no_trunc {
            id.as_str()
        } else {
            id.short()
        }
        .to_owned()
    };
    if arguments.list.is_json() {
        let rows: Vec<Row> = machines.iter().map(Row::of).collect();
        print_json(&rows)?;
    } else if arguments.quiet {
        for machine in &machines {
            print_line(id_of(machine))?;
        }
    } else {
        let mut table = Table::new([
            "MACHINE ID",
            "IMAGE",
            "COMMAND",
            "CREATED",
            "STATUS",
            "NAMES",
        ]);
        for machine in &machines {
            let command = machine.record.command.join(" ");
            let command = match arguments.no_trunc {
                true => command,
                false => shorten(&command, COMMAND_LENGTH),
            };
            let age = machine.record.created.age_seconds();
            table.row([
                id_of(machine),
                machine.record.image.reference.clone(),
                format!("\"{command}\""),
                format!("{} ago", spell_duration(age)),
                spell_condition(&machine.condition()),
                machine.record.name.to_string(),
            ]);
        }
        table.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes what killed monitors left behind. That it cannot be removed is no failure of the command.
pub(super) fn clean(registry: &Registry) {
    match registry.clean() {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed what killed machines left behind"),
        Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
    }
}

fn is_up(condition: &Condition) -> bool {
    matches!(
        condition,
        Condition::Created | Condition::Running { .. } | Condition::Paused { .. }
    )
}

/// Says how far a machine is in docker's words.
fn spell_condition(condition: &Condition) -> String {
    match condition {
        Condition::Created => "Created".to_owned(),
        Condition::Running { started } => format!("Up {}", spell_duration(started.age_seconds())),
        Condition::Paused { started } => {
            format!("Up {} (Paused)", spell_duration(started.age_seconds()))
        }
        Condition::Exited(ended) => format!(
            "Exited ({}) {} ago",
            ended.exit_code,
            spell_duration(ended.finished.age_seconds())
        ),
        Condition::Dead => "Dead".to_owned(),
    }
}

/// A machine as a program reads it.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    image_id: &'a str,
    command: &'a [String],
    /// Seconds since 1970.
    created: u64,
    /// `created`, `running`, `paused`, `exited` or `dead`.
    state: &'static str,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

impl<'a> Row<'a> {
    fn of(machine: &'a Machine) -> Self {
        let record = &machine.record;
        let condition = machine.condition();
        let status = spell_condition(&condition);
        let (state, started, ended) = match condition {
            Condition::Created => ("created", None, None),
            Condition::Running { started } => ("running", Some(started.0), None),
            Condition::Paused { started } => ("paused", Some(started.0), None),
            Condition::Exited(ended) => ("exited", None, Some(ended)),
            Condition::Dead => ("dead", None, None),
        };
        Self {
            id: record.id.as_str(),
            name: record.name.as_str(),
            image: &record.image.reference,
            image_id: &record.image.id,
            command: &record.command,
            created: record.created.0,
            state,
            status,
            started,
            ended,
        }
    }
}
