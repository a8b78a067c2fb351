//! The workload's environment: the image's, changed by files and by what was typed. The rules are docker's.

use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

use crate::report::Help;

/// Where a program is looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kind of terminal that a process with one is told of, unless the image or the user says otherwise.
const DEFAULT_TERM: &str = "xterm";

/// The largest file of variables: Linux passes on less by default.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A change to an environment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Variable {
    /// Sets it.
    Set {
        /// The part before the first `=`.
        name: String,
        /// The rest.
        value: String,
    },
    /// Sets it to the value that it has on the host; removes it if it has none there.
    Inherit {
        /// The variable.
        name: String,
    },
}

/// The environment of the host.
pub trait HostEnvironment {
    /// The value of a variable, if there is one and it is text.
    fn value(&self, name: &str) -> Option<String>;
}

/// The environment that this process has.
#[derive(Clone, Copy, Debug)]
pub struct OwnEnvironment;

impl HostEnvironment for OwnEnvironment {
    fn value(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

/// Why a file of variables cannot be used.
#[derive(Debug, Error)]
pub enum EnvironmentFileError {
    /// It cannot be read.
    #[error("{path}: the file of variables cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("{path}: the file of variables is larger than {MAX_FILE_BYTES} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is not text.
    #[error("{path}: line {line} is not UTF-8")]
    NotText {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A line has no name before the `=`.
    #[error("{path}: line {line} has no variable's name")]
    NoName {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A name holds white space or a zero byte.
    #[error("{path}: line {line} has a name that no variable can have")]
    BadName {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

impl Help for EnvironmentFileError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoName { .. } | Self::BadName { .. } => {
                Some("write one NAME=VALUE or NAME a line; quotes are part of the value".to_owned())
            }
            Self::Read { .. } | Self::TooLarge { .. } | Self::NotText { .. } => None,
        }
    }
}

/// Reads a file of variables: one `NAME=VALUE` or `NAME` a line, empty lines and those that begin with `#` are skipped.
///
/// A value is taken as it stands, quotes and white space included. A `NAME` alone takes the host's value, and is skipped if
/// there is none.
///
/// # Errors
///
/// If the file cannot be read or a line is no variable.
pub fn read_file(
    path: &Path,
    host: &dyn HostEnvironment,
) -> Result<Vec<Variable>, EnvironmentFileError> {
    use std::io::Read as _;
    let read_error = |source| EnvironmentFileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if u64::try_from(bytes.len()).map_or(true, |length| length > MAX_FILE_BYTES) {
        return Err(EnvironmentFileError::TooLarge {
            path: path.to_owned(),
        });
    }
    parse_file(&bytes, path, host)
}

fn parse_file(
    bytes: &[u8],
    path: &Path,
    host: &dyn HostEnvironment,
) -> Result<Vec<Variable>, EnvironmentFileError> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut variables = Vec::new();
    for (index, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
        let (path, line) = (|| path.to_owned(), index + 1);
        let text = str::from_utf8(text)
            .map_err(|_| EnvironmentFileError::NotText { path: path(), line })?;
        let text = text.strip_suffix('\r').unwrap_or(text).trim_start();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (name, value) = text
            .split_once('=')
            .map_or((text.trim_end(), None), |(name, value)| (name, Some(value)));
        if name.is_empty() {
            return Err(EnvironmentFileError::NoName { path: path(), line });
        }
        if name.contains(char::is_whitespace) || text.contains('\0') {
            return Err(EnvironmentFileError::BadName { path: path(), line });
        }
        if let Some(value) = value.map(str::to_owned).or_else(|| host.value(name)) {
            variables.push(Variable::Set {
                name: name.to_owned(),
                value,
            });
        }
    }
    Ok(variables)
}

/// Puts the environment together: what every container has, changed by the image, changed by the user.
pub(super) fn compose(
    image: &[String],
    changes: &[Variable],
    hostname: &str,
    has_terminal: bool,
    host: &dyn HostEnvironment,
) -> Vec<String> {
    let mut environment = vec![
        format!("PATH={DEFAULT_PATH}"),
        format!("HOSTNAME={hostname}"),
    ];
    if has_terminal {
        environment.push(format!("TERM={DEFAULT_TERM}"));
    }
    for entry in image {
        // An entry without a value sets nothing that a program could see.
        if let Some((name, value)) = entry.split_once('=') {
            set(&mut environment, name, value);
        }
    }
    for change in changes {
        match change {
            Variable::Set { name, value } => set(&mut environment, name, value),
            Variable::Inherit { name } => {
                self::change(&mut environment, name, host.value(name).as_deref());
            }
        }
    }
    environment
}

/// Sets a variable, or removes it if there is no value.
pub(super) fn change(environment: &mut Vec<String>, name: &str, value: Option<&str>) {
    match value {
        Some(value) => set(environment, name, value),
        None => environment.retain(|entry| name_of(entry) != name),
    }
}

/// Names the kind of terminal, unless it is named already.
pub(super) fn add_terminal(environment: &mut Vec<String>) {
    if !environment.iter().any(|entry| name_of(entry) == "TERM") {
        environment.push(format!("TERM={DEFAULT_TERM}"));
    }
}

fn set(environment: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    match environment.iter_mut().find(|entry| name_of(entry) == name) {
        Some(existing) => *existing = entry,
        None => environment.push(entry),
    }
}

fn name_of(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Host;

    impl HostEnvironment for Host {
        fn value(&self, name: &str) -> Option<String> {
            (name == "LANG").then(|| "C.UTF-8".to_owned())
        }
    }

    fn parse(text: &str) -> Result<Vec<Variable>, EnvironmentFileError> {
        parse_file(text.as_bytes(), Path::new("file.env"), &Host)
    }

    fn variable(name: &str, value: &str) -> Variable {
        Variable::Set {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn comments_and_empty_lines_are_skipped() {
        assert_eq!(
            parse("# no\n\n  # no\nA=1\n").unwrap(),
            [variable("A", "1")]
        );
    }

    #[test]
    fn a_value_is_taken_as_it_stands() {
        assert_eq!(
            parse("A=\"x\" # y =z \n").unwrap(),
            [variable("A", "\"x\" # y =z ")]
        );
    }

    #[test]
    fn white_space_before_a_name_is_skipped() {
        assert_eq!(parse("  A=1").unwrap(), [variable("A", "1")]);
    }

    #[test]
    fn a_name_alone_takes_the_hosts_value() {
        assert_eq!(parse("LANG").unwrap(), [variable("LANG", "C.UTF-8")]);
    }

    #[test]
    fn a_name_alone_that_the_host_does_not_have_is_skipped() {
        assert_eq!(parse("NO_SUCH").unwrap(), []);
    }

    #[test]
    fn an_empty_value_is_a_value() {
        assert_eq!(parse("A=").unwrap(), [variable("A", "")]);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_name() {
        assert_eq!(parse("\u{FEFF}A=1").unwrap(), [variable("A", "1")]);
    }

    #[test]
    fn windows_line_ends_are_no_part_of_the_value() {
        assert_eq!(
            parse("A=1\r\nB=2").unwrap(),
            [variable("A", "1"), variable("B", "2")]
        );
    }

    #[test]
    fn a_line_without_a_name_is_refused_by_number() {
        assert!(matches!(
            parse("A=1\n=2"),
            Err(EnvironmentFileError::NoName { line: 2, .. })
        ));
    }

    #[test]
    fn a_name_with_a_space_is_refused_by_number() {
        assert!(matches!(
            parse("A B=1"),
            Err(EnvironmentFileError::BadName { line: 1, .. })
        ));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_by_number() {
        let parsed = parse_file(b"A=1\nB=\xFF\n", Path::new("file.env"), &Host);

        assert!(matches!(
            parsed,
            Err(EnvironmentFileError::NotText { line: 2, .. })
        ));
    }

    #[test]
    fn what_is_typed_replaces_what_the_image_has_in_its_place() {
        let image = ["PATH=/image".to_owned(), "A=1".to_owned(), "B=2".to_owned()];

        let environment = compose(&image, &[variable("A", "3")], "box", false, &Host);

        assert_eq!(environment, ["PATH=/image", "HOSTNAME=box", "A=3", "B=2"]);
    }

    #[test]
    fn an_inherited_variable_takes_the_hosts_value_or_goes() {
        let image = ["LANG=x".to_owned(), "GONE=y".to_owned()];
        let inherit = |name: &str| Variable::Inherit {
            name: name.to_owned(),
        };

        let environment = compose(
            &image,
            &[inherit("LANG"), inherit("GONE")],
            "box",
            false,
            &Host,
        );

        assert_eq!(
            environment,
            [
                &format!("PATH={DEFAULT_PATH}"),
                "HOSTNAME=box",
                "LANG=C.UTF-8"
            ]
        );
    }

    #[test]
    fn a_terminal_brings_its_kind() {
        let environment = compose(&[], &[], "box", true, &Host);

        assert_eq!(environment.last().map(String::as_str), Some("TERM=xterm"));
    }
}
