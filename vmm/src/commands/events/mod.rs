//! `vmm events`: what happens to machines, as it happens.

mod filter;

use std::io::{self, BufWriter, Stdout, Write};
use std::time::Duration;

use serde_json::{Value, json};

use self::filter::Filters;
use super::format::Template;
use super::machines;
use super::output::{printable, printable_lines};
use crate::cli::EventsArgs;
use crate::dirs::Directories;
use crate::events::Event;
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::Report;

/// Shows what happened and what happens, until it is interrupted or `--until` has come.
pub(in crate::commands) fn run(
    arguments: &EventsArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let format = Format::parse(arguments)?;
    let filters = Filters::parse(&arguments.filter)?;
    let tells_past = arguments.since.is_some() || arguments.until.is_some();
    let mut events = machines(directories)?.events(tells_past)?;
    let mut output = BufWriter::new(io::stdout());
    loop {
        // What was written before that is read once more after it.
        let is_over = arguments.until.is_some_and(|until| until <= Moment::now());
        while let Some(event) = events.next_event()? {
            if is_asked_for(arguments, &event) && filters.take(&event) {
                show(&mut output, &format, &event)?;
            }
        }
        output.flush().map_err(Report::of_output)?;
        if is_over {
            return Ok(ExitCode::SUCCESS);
        }
        let left = arguments
            .until
            .map(|until| Duration::from_nanos(until.nanoseconds_after(Moment::now())));
        events.wait(left)?;
    }
}

fn is_asked_for(arguments: &EventsArgs, event: &Event) -> bool {
    arguments.since.is_none_or(|since| since <= event.time)
        && arguments.until.is_none_or(|until| event.time <= until)
}

fn show(output: &mut BufWriter<Stdout>, format: &Format, event: &Event) -> Result<(), Report> {
    let line = format.fill(event)?;
    writeln!(output, "{line}").map_err(Report::of_output)
}

/// How an event is printed.
enum Format {
    Text,
    Json,
    Template(Template),
}

impl Format {
    fn parse(arguments: &EventsArgs) -> Result<Self, Report> {
        Ok(match arguments.format.as_deref() {
            _ if arguments.json => Self::Json,
            None => Self::Text,
            Some("json") => Self::Json,
            Some(template) => Self::Template(Template::parse(template)?),
        })
    }

    fn fill(&self, event: &Event) -> Result<String, Report> {
        Ok(match self {
            Self::Text => text_of(event),
            Self::Json => json_of(event).to_string(),
            // Labels and reasons may hold what a terminal would obey.
            Self::Template(template) => printable_lines(&template.fill(&fields_of(event))?),
        })
    }
}

/// docker's line, with the time in UTC.
fn text_of(event: &Event) -> String {
    let Event {
        time, action, id, ..
    } = event;
    let attributes = event.all_attributes();
    let attributes: Vec<String> = attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    printable(&format!(
        "{time} container {action} {id} ({})",
        attributes.join(", ")
    ))
}

/// The Engine API's `EventMessage`.
fn json_of(event: &Event) -> Value {
    let Event {
        time, action, id, ..
    } = event;
    json!({
        "status": action,
        "id": id,
        "from": event.attributes.get("image"),
        "Type": "container",
        "Action": action,
        "Actor": { "ID": id, "Attributes": event.all_attributes() },
        "scope": "local",
        "time": time.seconds(),
        "timeNano": time.nanoseconds(),
    })
}

/// The same by the names that templates have for it.
fn fields_of(event: &Event) -> Value {
    let mut fields = json_of(event);
    let names = [
        ("status", "Status"),
        ("id", "ID"),
        ("from", "From"),
        ("scope", "Scope"),
        ("time", "Time"),
        ("timeNano", "TimeNano"),
    ];
    if let Some(fields) = fields.as_object_mut() {
        for (key, name) in names {
            if let Some(value) = fields.remove(key) {
                fields.insert(name.to_owned(), value);
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        let event = Event {
            time: Moment::of_seconds(1),
            action: "create".to_owned(),
            id: "12ab".to_owned(),
            attributes: BTreeMap::new(),
            labels: BTreeMap::from([("role".to_owned(), "\u{1b}[2J".to_owned())]),
        };
        let template = Template::parse("{{.Actor.Attributes.role}}").unwrap();

        for format in [Format::Text, Format::Json, Format::Template(template)] {
            let line = format.fill(&event).unwrap();
            assert!(!line.contains('\u{1b}'), "{line:?}");
        }
    }
}
