//! `vmm ps`: the machines that are there.

mod filter;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use self::filter::Filters;
use super::output::{print_json, print_line, print_text, printable, shorten, spell_duration};
use super::rows::{Listed, RowFormat};
use crate::cli::PsArgs;
use crate::dirs::Directories;
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::policy::HealthStatus;
use crate::report::Report;
use crate::state::{Condition, Ended, Machine, Registry};
use crate::volumes::TypedMount;

/// Characters of a command that the table shows, docker's number.
const COMMAND_LENGTH: usize = 20;
/// How much of the name of a mount is shown, as with docker.
const MOUNT_LENGTH: usize = 15;

/// Lists machines.
pub(in crate::commands) fn run(
    arguments: &PsArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let registry = Registry::open(directories.machines())?;
    let rows: Vec<Row> = wanted(arguments, &registry)?
        .into_iter()
        .map(|machine| Row::new(machine, arguments.no_trunc))
        .collect();
    match (arguments.json, arguments.quiet) {
        (true, _) => {
            let rows: Vec<JsonRow<'_>> = rows.iter().map(JsonRow::of).collect();
            print_json(&rows)?;
        }
        (false, true) => rows.iter().try_for_each(|row| print_line(row.id()))?,
        (false, false) => {
            let format = RowFormat::parse(arguments.format.as_deref(), USUAL_TABLE, &HEADERS)?;
            print_text(&format.fill(&rows)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The machines that were asked for, the newest first.
fn wanted(arguments: &PsArgs, registry: &Registry) -> Result<Vec<Machine>, Report> {
    let filters = Filters::parse(&arguments.filter)?;
    let last = match (arguments.latest, arguments.last) {
        (true, _) => Some(1),
        (false, last) => last
            .and_then(|last| usize::try_from(last).ok())
            .filter(|last| *last > 0),
    };
    let lists_all =
        arguments.all || arguments.latest || arguments.last.is_some() || filters.names_states();
    let mut machines = registry.clean_and_list()?;
    for reference in &filters.before {
        let id = registry.find(reference)?.record.id;
        let at = machines.iter().position(|it| it.record.id == id);
        machines.drain(..at.map_or(0, |at| at + 1));
    }
    for reference in &filters.since {
        let id = registry.find(reference)?.record.id;
        let at = machines.iter().position(|it| it.record.id == id);
        machines.truncate(at.unwrap_or(machines.len()));
    }
    machines.retain(|machine| {
        let condition = machine.condition();
        (lists_all || machine.alive && is_up(&condition)) && filters.take(machine, &condition)
    });
    machines.truncate(last.unwrap_or(machines.len()));
    Ok(machines)
}

/// The columns that docker shows.
const USUAL_TABLE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";

/// What stands above a column, by the name of its field.
const HEADERS: [(&str, &str); 13] = [
    ("ID", "MACHINE ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Names", "NAMES"),
    ("Labels", "LABELS"),
    ("Ports", "PORTS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
];

/// A machine as it is listed.
struct Row {
    machine: Machine,
    condition: Condition,
    /// None if nobody asks.
    health: Option<HealthStatus>,
    is_whole: bool,
}

impl Row {
    fn new(machine: Machine, is_whole: bool) -> Self {
        let condition = machine.condition();
        Self {
            health: machine.health(&condition).map(|health| health.status),
            condition,
            machine,
            is_whole,
        }
    }

    fn id(&self) -> &str {
        let id = &self.machine.record.id;
        if self.is_whole {
            id.as_str()
        } else {
            id.short()
        }
    }
}

impl Row {
    /// Where its ports are reached, while it runs.
    fn ports(&self) -> String {
        let published = match is_up(&self.condition) {
            true => self.machine.record.settings.network.published(),
            false => None,
        };
        let ports = published.unwrap_or_default().iter();
        let places = ports.flat_map(|port| {
            let addresses = port.addresses().into_iter();
            addresses.map(move |address| format!("{address}->{port}"))
        });
        places.collect::<Vec<_>>().join(", ")
    }
}

impl Listed for Row {
    fn fields(&self) -> Value {
        let record = &self.machine.record;
        let command = record.command.join(" ");
        let command = match self.is_whole {
            true => command,
            false => shorten(&command, COMMAND_LENGTH),
        };
        let labels = record.settings.labels.iter();
        let labels: Vec<String> = labels
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let age = spell_duration(record.created.age_seconds());
        let mounts = &record.settings.mounts;
        let volumes = mounts.iter().filter(|mount| mount.volume().is_some());
        let sources = mounts.iter().filter_map(TypedMount::source_name);
        let sources: Vec<String> = sources
            .map(|name| match self.is_whole {
                true => name,
                false => shorten(&name, MOUNT_LENGTH),
            })
            .collect();
        json!({
            "Command": printable(&format!("\"{command}\"")),
            "CreatedAt": Moment::of_seconds(record.created.0).to_string(),
            "ID": self.id(),
            "Image": printable(&record.image.reference),
            "Labels": printable(&labels.join(",")),
            "LocalVolumes": volumes.count().to_string(),
            "Mounts": printable(&sources.join(",")),
            "Names": record.name.as_str(),
            "Networks": self.machine.record.settings.network.mode(),
            "Ports": self.ports(),
            "RunningFor": format!("{age} ago"),
            "State": self.condition.name(),
            "Status": spell_condition(&self.condition, self.health),
        })
    }

    /// The fields, and each label under `Label`, which docker has a function for.
    fn fields_and_more(&self) -> Value {
        let mut fields = self.fields();
        let labels = self.machine.record.settings.labels.iter();
        fields["Label"] = labels
            .map(|(key, value)| (key.clone(), Value::from(printable(value))))
            .collect::<serde_json::Map<String, Value>>()
            .into();
        fields
    }
}

/// Removes what killed monitors left behind. That it cannot be removed is no failure of the command.
pub(in crate::commands) fn clean(registry: &Registry) {
    match registry.clean() {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "removed what killed machines left behind"),
        Err(error) => tracing::warn!("{}", crate::report::chain(&error)),
    }
}

fn is_up(condition: &Condition) -> bool {
    matches!(
        condition,
        Condition::Created
            | Condition::Restarting(_)
            | Condition::Running { .. }
            | Condition::Paused { .. }
    )
}

/// Says how far a machine is in docker's words.
fn spell_condition(condition: &Condition, health: Option<HealthStatus>) -> String {
    match condition {
        Condition::Created => "Created".to_owned(),
        Condition::Running { started } => {
            let age = spell_duration(started.age_seconds());
            match health {
                None => format!("Up {age}"),
                Some(HealthStatus::Starting) => format!("Up {age} (health: starting)"),
                Some(health) => format!("Up {age} ({})", health.name()),
            }
        }
        Condition::Paused { started } => {
            format!("Up {} (Paused)", spell_duration(started.age_seconds()))
        }
        Condition::Exited(ended) => format!(
            "Exited ({}) {} ago",
            ended.exit_code,
            spell_duration(ended.finished.age_seconds())
        ),
        Condition::Restarting(ended) => format!(
            "Restarting ({}) {} ago",
            ended.exit_code,
            spell_duration(ended.finished.age_seconds())
        ),
        Condition::Dead {
            host_restarted: true,
        } => "Dead (host restarted)".to_owned(),
        Condition::Dead { .. } => "Dead".to_owned(),
    }
}

/// A machine as a program reads it.
#[derive(Debug, Serialize)]
struct JsonRow<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    image_id: &'a str,
    command: &'a [String],
    labels: &'a BTreeMap<String, String>,
    /// Seconds since 1970.
    created: u64,
    /// `created`, `restarting`, `running`, `paused`, `exited` or `dead`.
    state: &'static str,
    status: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<HealthStatus>,
    #[serde(rename = "started", skip_serializing_if = "Option::is_none")]
    running_since: Option<u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

impl<'a> JsonRow<'a> {
    fn of(row: &'a Row) -> Self {
        let record = &row.machine.record;
        let (started, ended) = match &row.condition {
            Condition::Running { started } | Condition::Paused { started } => {
                (Some(started.0), None)
            }
            Condition::Restarting(ended) | Condition::Exited(ended) => (None, Some(ended.clone())),
            Condition::Created | Condition::Dead { .. } => (None, None),
        };
        Self {
            id: record.id.as_str(),
            name: record.name.as_str(),
            image: &record.image.reference,
            image_id: &record.image.id,
            command: &record.command,
            labels: &record.settings.labels,
            created: record.created.0,
            state: row.condition.name(),
            status: spell_condition(&row.condition, row.health),
            health: row.health,
            running_since: started,
            ended,
        }
    }
}
