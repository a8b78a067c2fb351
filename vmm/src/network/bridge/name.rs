//! Names of networks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest name: with `.json` it is the name of a file.
const MAX_BYTES: usize = 128;
/// Names that mean something else, here or with docker.
const TAKEN: [&str; 7] = [
    "none",
    "user",
    "tap",
    "host",
    "bridge",
    "default",
    "container",
];

/// A network's name, as docker has them: letters, digits, `_`, `.` and `-`, the first a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

impl NetworkName {
    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for NetworkName {
    type Err = NetworkNameError;

    fn from_str(text: &str) -> Result<Self, NetworkNameError> {
        let begins_well = text.starts_with(|first: char| first.is_ascii_alphanumeric());
        let is_plain = text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if TAKEN.contains(&text) {
            Err(NetworkNameError::Predefined(text.to_owned()))
        } else if begins_well && is_plain && text.len() <= MAX_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(NetworkNameError::Malformed(text.to_owned()))
        }
    }
}

impl TryFrom<String> for NetworkName {
    type Error = NetworkNameError;

    fn try_from(text: String) -> Result<Self, NetworkNameError> {
        text.parse()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0
    }
}

/// The text is no name for a network.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NetworkNameError {
    /// It means something else.
    #[error("operation is not permitted on predefined {0} network")]
    Predefined(String),
    /// It is none.
    #[error(
        "'{0}' is no name for a network: it takes up to {MAX_BYTES} of letters, digits, '_', '.' and '-', the first a letter or a digit"
    )]
    Malformed(String),
}
