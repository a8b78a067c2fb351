//! Changes of an image's configuration, as a Dockerfile's instructions say them (Dockerfile reference; OCI image specification,
//! "Image Configuration").

use std::str::FromStr;

use serde_json::{Map, Value, json};
use thiserror::Error;

/// The shell that a command in one text is given to.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// A change of an image's configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// The arguments of the entrypoint, or what runs without one.
    Cmd(Vec<String>),
    /// What runs.
    Entrypoint(Vec<String>),
    /// Variables, by name.
    Env(Vec<(String, String)>),
    /// Ports, as in `80/tcp`.
    Expose(Vec<String>),
    /// Labels, by name.
    Label(Vec<(String, String)>),
    /// The signal that asks the command to end.
    StopSignal(String),
    /// Who runs it.
    User(String),
    /// Directories for data.
    Volume(Vec<String>),
    /// The directory to start in; relative to the one before.
    WorkDir(String),
}

/// A text that is no change.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ParseChangeError {
    /// The instruction is not one of these.
    #[error(
        "`{0}` is not an instruction that changes an image: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR"
    )]
    Instruction(String),
    /// It says nothing.
    #[error("{0} needs a value")]
    Empty(String),
    /// The value is not one for this instruction.
    #[error("`{value}` is no value for {instruction}")]
    Value {
        /// The instruction.
        instruction: String,
        /// What was given.
        value: String,
    },
}

impl FromStr for Change {
    type Err = ParseChangeError;

    fn from_str(text: &str) -> Result<Self, ParseChangeError> {
        let text = text.trim();
        let (instruction, value) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (instruction, value) = (instruction.to_ascii_uppercase(), value.trim());
        let bad = || ParseChangeError::Value {
            instruction: instruction.clone(),
            value: value.to_owned(),
        };
        let one = || value.to_owned();
        let change = match instruction.as_str() {
            "CMD" => Self::Cmd(command(value)),
            "ENTRYPOINT" => Self::Entrypoint(command(value)),
            "ENV" => Self::Env(pairs(value).ok_or_else(bad)?),
            "LABEL" => Self::Label(pairs(value).ok_or_else(bad)?),
            "EXPOSE" => {
                let ports = value.split_whitespace().map(port);
                Self::Expose(ports.collect::<Option<_>>().ok_or_else(bad)?)
            }
            "STOPSIGNAL" => Self::StopSignal(one()),
            "USER" => Self::User(one()),
            "VOLUME" => Self::Volume(match list(value) {
                Some(paths) => paths,
                None => value.split_whitespace().map(str::to_owned).collect(),
            }),
            "WORKDIR" => Self::WorkDir(one()),
            _ => return Err(ParseChangeError::Instruction(instruction)),
        };
        match value.is_empty() {
            true => Err(ParseChangeError::Empty(instruction)),
            false => Ok(change),
        }
    }
}

impl Change {
    /// Makes the changes in the object `config` of an image's configuration.
    pub(super) fn apply_all(changes: &[Self], config: &mut Map<String, Value>) {
        for change in changes {
            change.apply(config);
        }
        // As in a Dockerfile: the arguments belong to the entrypoint that was there before.
        let sets_entrypoint = changes
            .iter()
            .any(|change| matches!(change, Self::Entrypoint(_)));
        let sets_command = changes.iter().any(|change| matches!(change, Self::Cmd(_)));
        if sets_entrypoint && !sets_command {
            config.remove("Cmd");
        }
    }

    fn apply(&self, config: &mut Map<String, Value>) {
        let mut set = |name: &str, value: Value| drop(config.insert(name.to_owned(), value));
        match self {
            Self::Cmd(command) => set("Cmd", json!(command)),
            Self::Entrypoint(command) => set("Entrypoint", json!(command)),
            Self::User(user) => set("User", json!(user)),
            Self::StopSignal(signal) => set("StopSignal", json!(signal)),
            Self::WorkDir(path) => {
                let before = config.get("WorkingDir").and_then(Value::as_str);
                let path = joined(before.unwrap_or("/"), path);
                config.insert("WorkingDir".to_owned(), json!(path));
            }
            Self::Env(variables) => {
                let mut entries = match config.remove("Env") {
                    Some(Value::Array(entries)) => entries,
                    _ => Vec::new(),
                };
                for (name, value) in variables {
                    let begin = format!("{name}=");
                    let entry = json!(format!("{begin}{value}"));
                    let is_same = |entry: &&mut Value| {
                        entry.as_str().is_some_and(|it| it.starts_with(&begin))
                    };
                    match entries.iter_mut().find(is_same) {
                        Some(there) => *there = entry,
                        None => entries.push(entry),
                    }
                }
                config.insert("Env".to_owned(), Value::Array(entries));
            }
            Self::Label(labels) => {
                let labels = labels.iter().cloned();
                let labels = labels.map(|(name, value)| (name, json!(value)));
                in_object(config, "Labels", |object| object.extend(labels));
            }
            Self::Expose(names) => add_names(config, "ExposedPorts", names),
            Self::Volume(names) => add_names(config, "Volumes", names),
        }
    }
}

fn add_names(config: &mut Map<String, Value>, set: &str, names: &[String]) {
    let names = names.iter().map(|name| (name.clone(), json!({})));
    in_object(config, set, |object| object.extend(names));
}

/// Changes the object of a name, which is made if it is not there.
fn in_object(
    config: &mut Map<String, Value>,
    name: &str,
    change: impl FnOnce(&mut Map<String, Value>),
) {
    let mut object = match config.remove(name) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    change(&mut object);
    config.insert(name.to_owned(), Value::Object(object));
}

/// The exec form, a JSON list of texts.
fn list(value: &str) -> Option<Vec<String>> {
    value
        .starts_with('[')
        .then(|| serde_json::from_str(value).ok())
        .flatten()
}

/// A command in the exec form, or else in the shell form.
fn command(value: &str) -> Vec<String> {
    list(value).unwrap_or_else(|| {
        let shell = SHELL.iter().copied().map(str::to_owned);
        shell.chain([value.to_owned()]).collect()
    })
}

/// A port and its protocol, or a range of ports.
fn port(text: &str) -> Option<String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok();
    let is_range = number(first)? <= number(last)?;
    let is_protocol = matches!(protocol, "tcp" | "udp" | "sctp");
    (is_range && is_protocol).then(|| format!("{ports}/{protocol}"))
}

/// `NAME=VALUE` once or more, with quotes as in a shell; or, the old form, one name and all that follows it.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    let is_new_form = words.first().is_some_and(|word| word.contains('='));
    if !is_new_form {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let split = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(split).collect()
}

/// Splits at spaces that are neither quoted nor behind a backslash; nothing if a quote does not end.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match (character, quote) {
            ('\'', Some('\'')) | ('"', Some('"')) => quote = None,
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            ('\\', None | Some('"')) => word.get_or_insert_default().extend(rest.next()),
            (character, None) if character.is_whitespace() => words.extend(word.take()),
            (character, _) => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// A path from the root on: `path`, or what it is below `before`.
fn joined(before: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => path.to_owned(),
        false => format!("{}/{path}", before.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(config: Value, changes: &[&str]) -> Value {
        let changes: Vec<Change> = changes.iter().map(|text| text.parse().unwrap()).collect();
        let Value::Object(mut config) = config else {
            unreachable!()
        };
        Change::apply_all(&changes, &mut config);
        Value::Object(config)
    }

    #[test]
    fn commands_have_two_forms() {
        assert_eq!(
            changed(json!({}), &[r#"CMD ["a", "b c"]"#, "entrypoint a b"]),
            json!({ "Cmd": ["a", "b c"], "Entrypoint": ["/bin/sh", "-c", "a b"] })
        );
    }

    #[test]
    fn an_entrypoint_alone_takes_the_arguments_away() {
        assert_eq!(
            changed(json!({ "Cmd": ["x"] }), &[r#"ENTRYPOINT ["a"]"#]),
            json!({ "Entrypoint": ["a"] })
        );
    }

    #[test]
    fn variables_are_set_in_their_place_or_added() {
        assert_eq!(
            changed(
                json!({ "Env": ["A=1", "B=2"] }),
                &["ENV A=3 C='x y' D=\"q\\\"r\"", "ENV E all of it"]
            ),
            json!({ "Env": ["A=3", "B=2", "C=x y", "D=q\"r", "E=all of it"] })
        );
    }

    #[test]
    fn sets_grow() {
        assert_eq!(
            changed(
                json!({ "ExposedPorts": { "1/tcp": {} }, "Volumes": null }),
                &[
                    "EXPOSE 80 53/udp",
                    "VOLUME /a /b",
                    "VOLUME [\"/c d\"]",
                    "LABEL a=b"
                ]
            ),
            json!({
                "ExposedPorts": { "1/tcp": {}, "80/tcp": {}, "53/udp": {} },
                "Volumes": { "/a": {}, "/b": {}, "/c d": {} },
                "Labels": { "a": "b" },
            })
        );
    }

    #[test]
    fn a_relative_directory_is_below_the_one_before() {
        assert_eq!(
            changed(
                json!({ "WorkingDir": "/srv/" }),
                &["WORKDIR app", "WORKDIR sub"]
            ),
            json!({ "WorkingDir": "/srv/app/sub" })
        );
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let refused = |text: &str| text.parse::<Change>().unwrap_err();

        assert!(matches!(
            refused("RUN make"),
            ParseChangeError::Instruction(_)
        ));
        assert!(matches!(refused("USER "), ParseChangeError::Empty(_)));
        assert!(matches!(
            refused("EXPOSE http"),
            ParseChangeError::Value { .. }
        ));
        assert!(matches!(
            refused("ENV A='b"),
            ParseChangeError::Value { .. }
        ));
        assert!(matches!(
            refused("LABEL =b"),
            ParseChangeError::Value { .. }
        ));
    }

    proptest! {
        #[test]
        fn no_text_does_harm(text in "(ENV|LABEL|CMD|EXPOSE|VOLUME|x)? ?\\PC{0,40}") {
            if let Ok(change) = text.parse::<Change>() {
                Change::apply_all(&[change], &mut Map::new());
            }
        }
    }
}
