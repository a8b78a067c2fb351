//! `--format`: the part of Go's templates that people type after docker's commands, evaluated honestly: what is not known is an
//! error that says what is.
//!
//! ```text
//! template = { text | "{{" [ "- " ] command { "|" command } [ " -" ] "}}" }
//! command  = operand | field operand | function { operand }
//! operand  = field | "text" | `text` | number
//! field    = "." [ name { "." name } ]
//! ```
//!
//! The specification is Go's package `text/template`.

use std::fmt::Write as _;

use serde_json::Value;
use thiserror::Error;

use crate::report::Help;

/// What a function takes and does, for the help.
const SUPPORTED: &str = "supported are fields as in {{.State.Status}}, and the functions json, index, join, len, lower, upper, as in {{json .State}}";

/// What a missing entry of a map is printed as, as Go does.
const NO_VALUE: &str = "<no value>";

/// A template, parsed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Pipeline(Vec<Step>),
}

/// One command of a pipeline.
#[derive(Debug, Clone, PartialEq)]
struct Step {
    function: Option<Function>,
    operands: Vec<Operand>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Json,
    Index,
    Join,
    Len,
    Lower,
    Upper,
}

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Field(Vec<String>),
    Literal(Value),
}

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum FormatError {
    /// `{{` without `}}`.
    #[error("the template ends inside of {{{{")]
    Unclosed,
    /// Something that Go knows and this does not.
    #[error("'{0}' is not supported in a template")]
    Unsupported(String),
    /// There is nothing of that name.
    #[error("there is no field '{name}' to print")]
    NoField {
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A function got what it cannot take.
    #[error("'{0}' cannot take that in a template")]
    Unfit(&'static str),
}

impl Help for FormatError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NoField { known, .. } if !known.is_empty() => {
                format!("there are {}", known.join(", "))
            }
            Self::Unclosed => "close it with }}".to_owned(),
            _ => SUPPORTED.to_owned(),
        })
    }
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    ///
    /// If something in it is not known.
    pub(super) fn parse(text: &str) -> Result<Self, FormatError> {
        let mut parts = Vec::new();
        let mut rest = text;
        let mut trims_next = false;
        while let Some((before, after)) = rest.split_once("{{") {
            let (action, next) = split_action(after).ok_or(FormatError::Unclosed)?;
            let (trims_before, action) = match action.strip_prefix("- ") {
                Some(action) => (true, action),
                None => (false, action),
            };
            let (trims_after, action) = match action.strip_suffix(" -") {
                Some(action) => (true, action),
                None => (false, action),
            };
            push_text(&mut parts, before, trims_next, trims_before);
            parts.push(Part::Pipeline(pipeline(action)?));
            trims_next = trims_after;
            rest = next;
        }
        push_text(&mut parts, rest, trims_next, false);
        Ok(Self { parts })
    }

    /// Fills the template in.
    ///
    /// # Errors
    ///
    /// If a field is not there, or a function does not fit it.
    pub(super) fn fill(&self, value: &Value) -> Result<String, FormatError> {
        let mut filled = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => filled.push_str(text),
                Part::Pipeline(steps) => {
                    let mut carried = None;
                    for step in steps {
                        carried = Some(step.evaluate(value, carried)?);
                    }
                    filled.push_str(&spell(&carried.unwrap_or_default()));
                }
            }
        }
        Ok(filled)
    }
}

/// Splits `…}}rest`, past braces in quotes.
fn split_action(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match (quote, character) {
            (Some('"'), '\\') => drop(characters.next()),
            (Some(open), close) if open == close => quote = None,
            (None, '"' | '`') => quote = Some(character),
            (None, '}') if text[at..].starts_with("}}") => {
                return Some((&text[..at], &text[at + 2..]));
            }
            _ => {}
        }
    }
    None
}

fn push_text(parts: &mut Vec<Part>, text: &str, trims_start: bool, trims_end: bool) {
    let text = if trims_start { text.trim_start() } else { text };
    let text = if trims_end { text.trim_end() } else { text };
    if !text.is_empty() {
        parts.push(Part::Text(text.to_owned()));
    }
}

fn pipeline(action: &str) -> Result<Vec<Step>, FormatError> {
    let mut steps = Vec::new();
    let mut words = Vec::new();
    for word in words_of(action)? {
        match word {
            "|" => steps.push(step(action, std::mem::take(&mut words))?),
            word => words.push(word),
        }
    }
    steps.push(step(action, words)?);
    Ok(steps)
}

/// Splits an action at spaces and `|`, but not in quotes.
fn words_of(action: &str) -> Result<Vec<&str>, FormatError> {
    let unsupported = || FormatError::Unsupported(action.trim().to_owned());
    let mut words = Vec::new();
    let mut rest = action.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '|' => 1,
            '`' => rest[1..].find('`').ok_or_else(unsupported)? + 2,
            '"' => {
                let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let is_text = stream.next().is_some_and(|text| text.is_ok());
                is_text
                    .then(|| stream.byte_offset())
                    .ok_or_else(unsupported)?
            }
            _ => rest
                .find(|it: char| it.is_whitespace() || matches!(it, '|' | '"' | '`'))
                .unwrap_or(rest.len()),
        };
        let (word, next) = rest.split_at(end);
        words.push(word);
        rest = next.trim_start();
    }
    Ok(words)
}

fn step(action: &str, words: Vec<&str>) -> Result<Step, FormatError> {
    let unsupported = || FormatError::Unsupported(action.trim().to_owned());
    let function = match words.first().copied().ok_or_else(unsupported)? {
        "json" => Some(Function::Json),
        "index" => Some(Function::Index),
        "join" => Some(Function::Join),
        "len" => Some(Function::Len),
        "lower" => Some(Function::Lower),
        "upper" => Some(Function::Upper),
        _ => None,
    };
    let operands = words
        .into_iter()
        .skip(usize::from(function.is_some()))
        .map(|word| operand(word).ok_or_else(unsupported))
        .collect::<Result<Vec<_>, _>>()?;
    let is_known = match (function, operands.as_slice()) {
        (Some(_), _) | (None, [_]) => true,
        (None, [Operand::Field(path), Operand::Literal(_)]) => !path.is_empty(),
        (None, _) => false,
    };
    match is_known {
        true => Ok(Step { function, operands }),
        false => Err(unsupported()),
    }
}

fn operand(word: &str) -> Option<Operand> {
    if let Some(path) = word.strip_prefix('.') {
        if path.is_empty() {
            return Some(Operand::Field(Vec::new()));
        }
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|it| it.is_alphanumeric() || it == '_')
        };
        let names = path
            .split('.')
            .map(|name| is_name(name).then(|| name.to_owned()));
        return names.collect::<Option<_>>().map(Operand::Field);
    }
    if let Some(raw) = word.strip_prefix('`') {
        let text = raw.strip_suffix('`')?;
        return Some(Operand::Literal(Value::from(text)));
    }
    let literal: Value = serde_json::from_str(word).ok()?;
    (literal.is_string() || literal.is_i64()).then_some(Operand::Literal(literal))
}

impl Step {
    /// Evaluates the step; what the one before it came to is its last operand, as in Go.
    fn evaluate(&self, root: &Value, carried: Option<Value>) -> Result<Value, FormatError> {
        let mut values = self
            .operands
            .iter()
            .map(|operand| match operand {
                Operand::Literal(value) => Ok(value.clone()),
                Operand::Field(path) => field(root, path),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if self.function.is_none() && carried.is_some() {
            return Err(FormatError::Unfit("|"));
        }
        values.extend(carried);
        match (self.function, values.as_slice()) {
            (None, [value]) => Ok(value.clone()),
            (None, [value, key]) => {
                let found = key.as_str().and_then(|key| value.get(key));
                Ok(found.cloned().unwrap_or_else(|| Value::from("")))
            }
            (Some(Function::Json), [value]) => Ok(Value::from(value.to_string())),
            (Some(Function::Index), [value, keys @ ..]) => index(value, keys),
            (Some(Function::Join), [Value::Array(items), Value::String(separator)]) => {
                let items: Vec<String> = items.iter().map(spell).collect();
                Ok(Value::from(items.join(separator)))
            }
            (Some(Function::Len), [value]) => match value {
                Value::Array(items) => Ok(Value::from(items.len())),
                Value::Object(fields) => Ok(Value::from(fields.len())),
                Value::String(text) => Ok(Value::from(text.len())),
                _ => Err(FormatError::Unfit("len")),
            },
            (Some(Function::Lower), [Value::String(text)]) => Ok(Value::from(text.to_lowercase())),
            (Some(Function::Upper), [Value::String(text)]) => Ok(Value::from(text.to_uppercase())),
            (Some(Function::Join), _) => Err(FormatError::Unfit("join")),
            (Some(Function::Json), _) => Err(FormatError::Unfit("json")),
            (Some(Function::Index), _) => Err(FormatError::Unfit("index")),
            (Some(Function::Len), _) => Err(FormatError::Unfit("len")),
            (Some(Function::Lower), _) => Err(FormatError::Unfit("lower")),
            (Some(Function::Upper), _) => Err(FormatError::Unfit("upper")),
            (None, _) => Err(FormatError::Unfit("|")),
        }
    }
}

fn field(root: &Value, path: &[String]) -> Result<Value, FormatError> {
    let mut value = root;
    for name in path {
        value = value.get(name).ok_or_else(|| FormatError::NoField {
            name: name.clone(),
            known: value
                .as_object()
                .into_iter()
                .flat_map(|fields| fields.keys().cloned())
                .collect(),
        })?;
    }
    Ok(value.clone())
}

/// Follows keys of maps and numbers of lists. What a map does not have is no value, what a list does not have is an error, as in Go.
fn index(value: &Value, keys: &[Value]) -> Result<Value, FormatError> {
    let mut value = value.clone();
    for key in keys {
        value = match (&value, key) {
            (Value::Object(fields), Value::String(key)) => {
                fields.get(key).cloned().unwrap_or_default()
            }
            (Value::Array(items), Value::Number(number)) => number
                .as_u64()
                .and_then(|number| usize::try_from(number).ok())
                .and_then(|number| items.get(number))
                .cloned()
                .ok_or(FormatError::Unfit("index"))?,
            _ => return Err(FormatError::Unfit("index")),
        };
    }
    Ok(value)
}

/// A value as Go prints it.
fn spell(value: &Value) -> String {
    match value {
        Value::Null => NO_VALUE.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spell).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(fields) => {
            let mut text = "map[".to_owned();
            for (number, (key, value)) in fields.iter().enumerate() {
                let space = if number == 0 { "" } else { " " };
                // Writing to a string does not fail.
                let _ = write!(text, "{space}{key}:{}", spell(value));
            }
            text + "]"
        }
        Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn filled(template: &str) -> Result<String, FormatError> {
        let value = json!({
            "Id": "abc",
            "State": { "Status": "running", "Running": true, "ExitCode": 0 },
            "Args": ["-c", "true"],
            "Labels": { "team": "blue", "a.b": "dotted" },
            "Nothing": null,
        });
        Template::parse(template)?.fill(&value)
    }

    #[test]
    fn fields_and_text_are_put_together() {
        assert_eq!(filled("{{.State.Status}}").unwrap(), "running");
        assert_eq!(
            filled("{{ .Id }} is {{.State.Running}}").unwrap(),
            "abc is true"
        );
        assert_eq!(filled("plain").unwrap(), "plain");
        assert_eq!(filled("a  {{- .Id -}}  b").unwrap(), "aabcb");
    }

    #[test]
    fn values_are_printed_as_go_prints_them() {
        assert_eq!(filled("{{.Args}}").unwrap(), "[-c true]");
        assert_eq!(filled("{{.Labels}}").unwrap(), "map[a.b:dotted team:blue]");
        assert_eq!(filled("{{.Nothing}}").unwrap(), "<no value>");
    }

    #[test]
    fn functions_take_their_operands_in_both_ways() {
        assert_eq!(filled("{{json .Args}}").unwrap(), r#"["-c","true"]"#);
        assert_eq!(filled("{{.Args | json}}").unwrap(), r#"["-c","true"]"#);
        assert_eq!(filled(r#"{{index .Labels "a.b"}}"#).unwrap(), "dotted");
        assert_eq!(filled("{{index .Labels `none`}}").unwrap(), "<no value>");
        assert_eq!(filled("{{index .Args 1}}").unwrap(), "true");
        assert_eq!(filled(r#"{{join .Args ", "}}"#).unwrap(), "-c, true");
        assert_eq!(filled("{{len .Args}} {{upper .Id}}").unwrap(), "2 ABC");
        assert_eq!(
            filled(r#"{{.Labels "team"}}{{.Labels "none"}}"#).unwrap(),
            "blue"
        );
        assert_eq!(filled(r#"{{index .Labels "}}"}}"#).unwrap(), "<no value>");
    }

    #[test]
    fn what_is_not_there_is_an_error_that_says_what_is() {
        let error = filled("{{.State.Statis}}").unwrap_err();

        assert_eq!(error.to_string(), "there is no field 'Statis' to print");
        assert_eq!(error.help().unwrap(), "there are ExitCode, Running, Status");
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let error = filled("{{range .Args}}{{.}}{{end}}").unwrap_err();

        assert_eq!(
            error.to_string(),
            "'range .Args' is not supported in a template"
        );
        assert!(error.help().unwrap().contains("{{json .State}}"));
        assert_eq!(filled("{{.Id").unwrap_err(), FormatError::Unclosed);
        assert!(filled("{{}}").is_err());
        assert!(filled("{{if .Id}}x{{end}}").is_err());
        assert!(filled("{{.Id.}}").is_err());
        assert!(filled("{{json}}").is_err());
        assert!(filled("{{index .Args 7}}").is_err());
        assert!(filled("{{.Id | .Args}}").is_err());
        assert!(filled("{{\"open}}").is_err());
    }

    proptest! {
        #[test]
        fn no_template_makes_the_parser_panic(template in ".{0,60}") {
            let _ = filled(&template);
        }

        #[test]
        fn no_text_in_braces_makes_the_parser_panic(action in "[-.|\"`\\\\ {}a-zA-Z0-9é]{0,40}") {
            let _ = filled(&format!("{{{{{action}}}}}"));
        }
    }
}
