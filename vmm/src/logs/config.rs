//! Whether a machine's output is kept, and how much of it: docker's `--log-driver` and `--log-opt`.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::report::Help;

/// The largest size of a file unless the user says otherwise.
const DEFAULT_FILE_BYTES: u64 = 10_000_000;
/// How many files there are unless the user says otherwise.
const DEFAULT_FILES: u32 = 3;
/// More files than anybody reads: each rotation renames them all.
const MAX_FILES: u32 = 1000;

/// Where a workload's output goes that has no client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Into files that `vmm logs` reads.
    #[default]
    JsonFile,
    /// Nowhere.
    None,
}

impl LogDriver {
    /// Docker's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::None => "none",
        }
    }
}

impl FromStr for LogDriver {
    type Err = LogConfigError;

    fn from_str(text: &str) -> Result<Self, LogConfigError> {
        match text {
            "json-file" => Ok(Self::JsonFile),
            "none" => Ok(Self::None),
            _ => Err(LogConfigError::Driver(text.to_owned())),
        }
    }
}

/// What was decided about a machine's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// Where the output goes.
    pub driver: LogDriver,
    /// At which size a file is rotated; none lets it grow.
    pub max_file_bytes: Option<u64>,
    /// How many files there are at most, the one that is written to among them.
    pub max_files: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            driver: LogDriver::default(),
            max_file_bytes: Some(DEFAULT_FILE_BYTES),
            max_files: DEFAULT_FILES,
        }
    }
}

impl LogConfig {
    /// Decides by what was typed.
    ///
    /// # Errors
    ///
    /// If the driver has no options.
    pub fn new(driver: LogDriver, options: &[LogOption]) -> Result<Self, LogConfigError> {
        if driver == LogDriver::None && !options.is_empty() {
            return Err(LogConfigError::NoOptions);
        }
        let mut config = Self {
            driver,
            ..Self::default()
        };
        for option in options {
            match option {
                LogOption::MaxSize(size) => config.max_file_bytes = *size,
                LogOption::MaxFile(count) => config.max_files = *count,
            }
        }
        Ok(config)
    }

    /// Whether the output is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.driver == LogDriver::JsonFile
    }
}

/// One `--log-opt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogOption {
    /// `max-size`; none for `-1`, no limit.
    MaxSize(Option<u64>),
    /// `max-file`.
    MaxFile(u32),
}

impl FromStr for LogOption {
    type Err = LogConfigError;

    fn from_str(text: &str) -> Result<Self, LogConfigError> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(LogConfigError::NoValue(text.to_owned()));
        };
        match name {
            "max-size" => file_bytes(value)
                .map(Self::MaxSize)
                .ok_or_else(|| LogConfigError::Size(value.to_owned())),
            "max-file" => value
                .parse()
                .ok()
                .filter(|count| (1..=MAX_FILES).contains(count))
                .map(Self::MaxFile)
                .ok_or_else(|| LogConfigError::Count(value.to_owned())),
            _ => Err(LogConfigError::Option(name.to_owned())),
        }
    }
}

/// Reads a size as docker's log drivers do: units are powers of 1000, `-1` is no limit.
fn file_bytes(text: &str) -> Option<Option<u64>> {
    if text == "-1" {
        return Some(None);
    }
    let lower = text.to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, unit_bytes) = match bare.char_indices().next_back()? {
        (at, 'k') => (&bare[..at], 1000),
        (at, 'm') => (&bare[..at], 1000 * 1000),
        (at, 'g') => (&bare[..at], 1000 * 1000 * 1000),
        _ => (bare, 1),
    };
    let number: u64 = number.parse().ok()?;
    match number.checked_mul(unit_bytes)? {
        0 => None,
        bytes => Some(Some(bytes)),
    }
}

/// What was typed about a log makes no sense.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LogConfigError {
    /// No such driver.
    #[error("'{0}' is no log driver of vmm")]
    Driver(String),
    /// An option without a value.
    #[error("'{0}' is no log option as in max-size=10m")]
    NoValue(String),
    /// No such option.
    #[error("'{0}' is no option of the log driver json-file")]
    Option(String),
    /// Not a size.
    #[error("'{0}' is no size of a log file")]
    Size(String),
    /// Not a number of files.
    #[error("'{0}' is no number of log files from 1 to {MAX_FILES}")]
    Count(String),
    /// The driver takes none.
    #[error("the log driver none has no options")]
    NoOptions,
}

impl Help for LogConfigError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Driver(_) => "there are json-file, whose logs `vmm logs` shows, and none",
            Self::NoValue(_) | Self::Option(_) => "there are max-size=SIZE and max-file=NUMBER",
            Self::Size(_) => {
                "give a number with a unit k, m or g, as in max-size=10m, or -1 for no limit"
            }
            Self::Count(_) => "give how many files to keep, as in max-file=3",
            Self::NoOptions => "leave out --log-opt",
        };
        Some(help.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(text: &str) -> Result<LogOption, LogConfigError> {
        text.parse()
    }

    #[test]
    fn options_are_read_as_docker_reads_them() {
        assert_eq!(
            option("max-size=10m"),
            Ok(LogOption::MaxSize(Some(10_000_000)))
        );
        assert_eq!(option("max-size=2KB"), Ok(LogOption::MaxSize(Some(2000))));
        assert_eq!(option("max-size=77"), Ok(LogOption::MaxSize(Some(77))));
        assert_eq!(option("max-size=-1"), Ok(LogOption::MaxSize(None)));
        assert_eq!(option("max-file=5"), Ok(LogOption::MaxFile(5)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(
            option("max-size"),
            Err(LogConfigError::NoValue("max-size".into()))
        );
        assert_eq!(option("max-size=0"), Err(LogConfigError::Size("0".into())));
        assert_eq!(
            option("max-size=-5m"),
            Err(LogConfigError::Size("-5m".into()))
        );
        assert_eq!(
            option("max-size="),
            Err(LogConfigError::Size(String::new()))
        );
        assert_eq!(
            option("max-size=99999999999999g"),
            Err(LogConfigError::Size("99999999999999g".into()))
        );
        assert_eq!(option("max-file=0"), Err(LogConfigError::Count("0".into())));
        assert_eq!(
            option("compress=true"),
            Err(LogConfigError::Option("compress".into()))
        );
        assert!("syslog".parse::<LogDriver>().unwrap_err().help().is_some());
        let none = LogConfig::new(LogDriver::None, &[LogOption::MaxFile(2)]);
        assert_eq!(none, Err(LogConfigError::NoOptions));
    }

    #[test]
    fn a_log_is_bounded_unless_told_otherwise() {
        let config = LogConfig::new(LogDriver::JsonFile, &[LogOption::MaxFile(5)]).unwrap();

        assert_eq!(config.max_file_bytes, Some(10_000_000));
        assert_eq!(config.max_files, 5);
    }
}
