//! `vmm events --filter`: which events are wanted. Several of one kind are alternatives, as with docker.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::events::Event;
use crate::report::Help;

/// What can be filtered by.
const KINDS: [&str; 6] = ["container", "event", "image", "label", "scope", "type"];

/// The filters that were typed, by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<&'static str, Vec<String>>);

/// What was typed is no filter.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum FilterError {
    /// No kind, or no value.
    #[error("'{0}' is no filter as in event=die")]
    Form(String),
    /// A kind that is not there.
    #[error("'{0}' is nothing to filter events by")]
    Kind(String),
}

impl Help for FilterError {
    fn help(&self) -> Option<String> {
        Some(format!("there are {}", KINDS.join(", ")))
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
            let known = KINDS.iter().find(|it| **it == kind.trim());
            let kind = known.ok_or_else(|| FilterError::Kind(kind.to_owned()))?;
            filters.0.entry(kind).or_default().push(value.to_owned());
        }
        Ok(filters)
    }

    /// Whether an event is wanted.
    pub(super) fn take(&self, event: &Event) -> bool {
        self.0
            .iter()
            .all(|(kind, values)| values.iter().any(|value| fits(kind, value, event)))
    }
}

fn fits(kind: &str, value: &str, event: &Event) -> bool {
    let attribute = |key: &str| event.attributes.get(key).map(String::as_str);
    match kind {
        "container" => {
            let name = attribute("name").unwrap_or_default();
            !value.is_empty() && (name.starts_with(value) || event.id.starts_with(value))
        }
        // `exec_start: sh -c date` is an `exec_start`.
        "event" => event.action.split(": ").next() == Some(value) || event.action == value,
        "image" => attribute("image").is_some_and(|image| is_called(image, value)),
        "label" => match value.split_once('=') {
            Some((key, value)) => event.labels.get(key).is_some_and(|it| it == value),
            None => event.labels.contains_key(value),
        },
        "scope" => value == "local",
        _ => value == "container",
    }
}

/// Whether that is an image's name, with its tag or without.
fn is_called(image: &str, name: &str) -> bool {
    let tag = image.strip_prefix(name);
    tag.is_some_and(|tag| tag.is_empty() || tag.starts_with([':', '@']) && !tag.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::Moment;

    fn event() -> Event {
        let map = |entries: &[(&str, &str)]| {
            let entries = entries.iter();
            entries
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        Event {
            time: Moment::of_seconds(1),
            action: "exec_start: sh -c date".to_owned(),
            id: "12ab".to_owned(),
            attributes: map(&[("name", "web"), ("image", "registry:5000/app:1")]),
            labels: map(&[("role", "front")]),
        }
    }

    fn takes(typed: &[&str]) -> bool {
        let typed: Vec<String> = typed.iter().map(|it| (*it).to_owned()).collect();
        Filters::parse(&typed).unwrap().take(&event())
    }

    #[test]
    fn an_event_is_found_by_all_that_it_is() {
        for typed in [
            "container=web",
            "container=12a",
            "event=exec_start",
            "event=exec_start: sh -c date",
            "image=registry:5000/app",
            "image=registry:5000/app:1",
            "label=role",
            "label=role=front",
            "scope=local",
            "type=container",
        ] {
            assert!(takes(&[typed]), "{typed}");
        }
    }

    #[test]
    fn an_event_is_not_taken_for_another() {
        for typed in [
            "container=eb",
            "container=",
            "event=exec",
            "image=registry",
            "image=app",
            "label=rol",
            "label=role=back",
            "scope=swarm",
            "type=image",
        ] {
            assert!(!takes(&[typed]), "{typed}");
        }
    }

    #[test]
    fn filters_of_one_kind_are_alternatives_and_kinds_add_up() {
        assert!(takes(&["event=die", "event=exec_start", "label=role"]));
        assert!(!takes(&["event=exec_start", "label=other"]));
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_there_is() {
        let refused = |typed: &str| Filters::parse(&[typed.to_owned()]).unwrap_err();
        assert_eq!(refused("die"), FilterError::Form("die".into()));
        assert_eq!(refused("colour=red"), FilterError::Kind("colour".into()));
        assert!(refused("colour=red").help().unwrap().contains("label"));
    }
}
