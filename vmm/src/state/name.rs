//! Names of machines: what a person calls them by.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name in bytes: what a file name can hold beside the `@` that marks it.
const MAX_BYTES: usize = 254;

/// A machine's name: a letter or digit, then at least one more letter, digit, `_`, `.` or `-` (docker's rule).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

impl MachineName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for MachineName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let first_is_valid = bytes
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        let rest_is_valid =
            bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if first_is_valid && rest_is_valid && (2..=MAX_BYTES).contains(&text.len()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for MachineName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<MachineName> for String {
    fn from(name: MachineName) -> Self {
        name.0
    }
}

/// The text is no name for a machine.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is no machine name: a letter or digit, then at least one more letter, digit, '_', '.' or '-'"
)]
pub struct NameError(String);
