//! `vmm ps --filter`: which machines are wanted.

use thiserror::Error;

use crate::report::Help;
use crate::state::{Condition, Machine};

/// What can be filtered by.
const KINDS: &str = "name, id, status, health, exited, label, ancestor, volume, before, since";
/// The words for how well a workload is; the last is that of one that nobody asks.
const HEALTHS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];
/// The words for how far a machine is; docker's others are of states that no machine here is in.
const STATES: [&str; 7] = [
    "created",
    "restarting",
    "running",
    "removing",
    "paused",
    "exited",
    "dead",
];

/// All filters that were typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filters {
    names: Vec<String>,
    ids: Vec<String>,
    states: Vec<String>,
    healths: Vec<String>,
    exit_codes: Vec<u8>,
    labels: Vec<(String, Option<String>)>,
    ancestors: Vec<String>,
    /// Names of volumes, sources, and places in containers.
    volumes: Vec<String>,
    /// References, resolved by whoever has the list.
    pub(super) before: Vec<String>,
    pub(super) since: Vec<String>,
}

/// What was typed is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum FilterError {
    /// No kind, or no value.
    #[error("'{0}' is no filter as in status=exited")]
    Form(String),
    /// A kind that is not there.
    #[error("'{0}' is nothing to filter machines by")]
    Kind(String),
    /// A state that no machine has.
    #[error("'{0}' is no status of a machine")]
    State(String),
    /// A word for no health.
    #[error("'{0}' is no health of a machine")]
    Health(String),
    /// A number that no process ends with.
    #[error("'{0}' is no exit code from 0 to 255")]
    ExitCode(String),
    /// A regular expression.
    #[error("'{0}' is no part of a machine's name")]
    Name(String),
}

impl Help for FilterError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Form(_) | Self::Kind(_) => format!("there are {KINDS}"),
            Self::State(_) => format!("there are {}", STATES.join(", ")),
            Self::Health(_) => format!("there are {}", HEALTHS.join(", ")),
            Self::ExitCode(_) => return None,
            Self::Name(_) => {
                "give a part of the name, with ^ before its beginning and $ after its end"
                    .to_owned()
            }
        };
        Some(help)
    }
}

impl Filters {
    /// Reads what was typed.
    ///
    /// # Errors
    ///
    /// If one of it is no filter.
    pub(super) fn parse(typed: &[String]) -> Result<Self, FilterError> {
        let mut filters = Self::default();
        for text in typed {
            let form = || FilterError::Form(text.clone());
            let (kind, value) = text.split_once('=').ok_or_else(form)?;
            let value = value.to_owned();
            match kind.trim() {
                "name" => filters.names.push(name(value)?),
                "id" => filters.ids.push(value),
                "status" if STATES.contains(&value.as_str()) => filters.states.push(value),
                "status" => return Err(FilterError::State(value)),
                "health" if HEALTHS.contains(&value.as_str()) => filters.healths.push(value),
                "health" => return Err(FilterError::Health(value)),
                "exited" => {
                    let code = value.parse().map_err(|_| FilterError::ExitCode(value))?;
                    filters.exit_codes.push(code);
                }
                "label" => filters.labels.push(match value.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (value, None),
                }),
                "ancestor" => filters.ancestors.push(value),
                "volume" => filters.volumes.push(value),
                "before" => filters.before.push(value),
                "since" => filters.since.push(value),
                _ => return Err(FilterError::Kind(kind.to_owned())),
            }
        }
        Ok(filters)
    }

    /// Whether machines that have ended are wanted without being asked for: docker's rule.
    pub(super) fn names_states(&self) -> bool {
        !self.states.is_empty()
    }

    /// Whether a machine is wanted.
    pub(super) fn take(&self, machine: &Machine, condition: &Condition) -> bool {
        let record = &machine.record;
        let exit_code = match condition {
            Condition::Exited(ended) => Some(ended.exit_code),
            _ => None,
        };
        any(&self.names, |name| is_part(name, record.name.as_str()))
            && any(&self.ids, |id| record.id.as_str().starts_with(id.as_str()))
            && any(&self.states, |state| condition.name() == state)
            && (self.healths.is_empty() || {
                let health = machine.health(condition);
                let name = health.map_or("none", |health| health.status.name());
                self.healths.iter().any(|wanted| wanted == name)
            })
            && any(&self.exit_codes, |code| exit_code == Some(*code))
            && any(&self.ancestors, |image| is_of(image, machine))
            && any(&self.volumes, |volume| mounts(volume, machine))
            && self.labels.iter().all(|(key, value)| {
                let label = record.settings.labels.get(key);
                label.is_some_and(|label| value.as_ref().is_none_or(|value| value == label))
            })
    }
}

/// Whether one of the filters takes it, or there is none.
fn any<T>(filters: &[T], is_taken: impl FnMut(&T) -> bool) -> bool {
    filters.is_empty() || filters.iter().any(is_taken)
}

/// Docker takes a regular expression; of that, what names are looked for by.
fn name(text: String) -> Result<String, FilterError> {
    let start = text.strip_prefix('^').unwrap_or(&text);
    let bare = start.strip_suffix('$').unwrap_or(start);
    let is_plain = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '.' | '-' | '/');
    match bare.chars().all(is_plain) {
        true => Ok(text),
        false => Err(FilterError::Name(text)),
    }
}

/// Docker's names begin with a slash, which people type after a `^`.
fn is_part(filter: &str, name: &str) -> bool {
    let (at_start, rest) = match filter.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, filter),
    };
    let (at_end, rest) = match rest.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let part = rest.strip_prefix('/').unwrap_or(rest);
    match (at_start, at_end) {
        (true, true) => name == part,
        (true, false) => name.starts_with(part),
        (false, true) => name.ends_with(part),
        (false, false) => name.contains(part),
    }
}

/// Whether a machine is of an image: its name with or without a tag, or the beginning of its id.
fn is_of(image: &str, machine: &Machine) -> bool {
    /// The shortest id that is shown, so that a name is not taken for the beginning of one.
    const SHORT_ID: usize = 12;
    let label = &machine.record.image;
    let digits = label.id.strip_prefix("sha256:").unwrap_or(&label.id);
    let typed_digits = image.strip_prefix("sha256:").unwrap_or(image);
    let is_id = typed_digits.len() >= SHORT_ID && digits.starts_with(typed_digits);
    let without_tag = label.reference.strip_suffix(":latest");
    is_id || label.reference == image || without_tag == Some(image)
}

/// Whether a machine mounts something of that name, or at that place.
fn mounts(volume: &str, machine: &Machine) -> bool {
    let mut mounts = machine.record.settings.mounts.iter();
    mounts.any(|mount| {
        mount.destination == volume || mount.source_name().is_some_and(|name| name == volume)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::state::{History, ImageLabel, MachineId, Record, Settings, Status, Timestamp};

    fn machine() -> Machine {
        let labels = [("team", "blue"), ("bare", "")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        Machine {
            record: Record {
                format: 1,
                id: MachineId::random().unwrap(),
                name: "web-1".parse().unwrap(),
                image: ImageLabel {
                    reference: "app:latest".into(),
                    id: format!("sha256:{}", "ab".repeat(32)),
                },
                command: vec![],
                created: Timestamp(1),
                ephemeral: false,
                settings: Settings {
                    labels: labels.into(),
                    ..Settings::default()
                },
                history: History::default(),
                status: Status::Running {
                    started: Timestamp(1),
                },
            },
            alive: true,
            directory: "/nowhere".into(),
        }
    }

    fn takes(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|it| (*it).to_owned()).collect();
        let machine = machine();
        let condition = machine.condition();
        Filters::parse(&filters).unwrap().take(&machine, &condition)
    }

    fn refused(filter: &str) -> FilterError {
        Filters::parse(&[filter.to_owned()]).unwrap_err()
    }

    #[test]
    fn a_name_is_found_by_its_parts() {
        assert!(takes(&["name=eb"]));
        assert!(takes(&["name=^web"]));
        assert!(takes(&["name=^/web-1$"]));
        assert!(!takes(&["name=^web$"]));
        assert!(!takes(&["name=shop"]));
    }

    #[test]
    fn of_several_of_a_kind_one_is_enough_but_labels_match_all() {
        assert!(takes(&["status=exited", "status=running"]));
        assert!(takes(&["label=team=blue", "label=bare"]));
        assert!(!takes(&["label=team", "label=none"]));
        assert!(!takes(&["label=team=red"]));
        assert!(!takes(&["status=running", "name=shop"]));
        assert!(!takes(&["exited=0"]));
        assert!(takes(&["health=none", "health=healthy"]));
        assert!(!takes(&["health=healthy"]));
    }

    #[test]
    fn an_image_is_meant_by_name_or_id() {
        assert!(takes(&["ancestor=app"]));
        assert!(takes(&["ancestor=app:latest"]));
        assert!(takes(&["ancestor=abababababab"]));
        assert!(!takes(&["ancestor=ap"]));
        assert!(!takes(&["ancestor=ab"]));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_help() {
        assert_eq!(refused("status"), FilterError::Form("status".into()));
        assert_eq!(refused("colour=red"), FilterError::Kind("colour".into()));
        assert_eq!(refused("status=up"), FilterError::State("up".into()));
        assert_eq!(refused("health=ill"), FilterError::Health("ill".into()));
        assert_eq!(refused("exited=256"), FilterError::ExitCode("256".into()));
        assert_eq!(refused("name=a.*b"), FilterError::Name("a.*b".into()));
        assert!(refused("colour=red").help().unwrap().contains("ancestor"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = Filters::parse(&[text]);
        }
    }
}
