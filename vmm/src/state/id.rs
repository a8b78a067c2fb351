//! Ids of machines: 32 random bytes, written as 64 hexadecimal digits, shown as the first 12.

use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bytes of an id.
const ID_BYTES: usize = 32;
/// Digits that are shown where the whole id would be in the way.
const SHORT_DIGITS: usize = 12;

/// A machine's id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(String);

impl MachineId {
    /// Makes an id that nobody has.
    ///
    /// # Errors
    ///
    /// If the kernel gives no random bytes.
    pub fn random() -> io::Result<Self> {
        use std::fmt::Write;

        let mut bytes = [0; ID_BYTES];
        fill_random(&mut bytes)?;
        let mut text = String::with_capacity(2 * ID_BYTES);
        for byte in bytes {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// Returns all 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first 12 digits, which is also the machine's host name unless one was given.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..SHORT_DIGITS).unwrap_or(&self.0)
    }
}

/// Fills a buffer with random bytes.
pub(super) fn fill_random(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        filled += getrandom(&mut buffer[filled..], GetRandomFlags::empty())?;
    }
    Ok(())
}

impl fmt::Display for MachineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for MachineId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.short())
    }
}

impl FromStr for MachineId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == 2 * ID_BYTES && text.bytes().all(is_digit) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for MachineId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.0
    }
}

/// The text is no id.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no machine id of 64 hexadecimal digits")]
pub struct IdError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_as_it_was_printed() {
        let id = MachineId::random().unwrap();

        assert_eq!(id.to_string().parse(), Ok(id.clone()));
        assert_eq!(id.short().len(), 12);
        assert!(id.as_str().starts_with(id.short()));
    }

    #[test]
    fn two_ids_differ() {
        assert_ne!(MachineId::random().unwrap(), MachineId::random().unwrap());
    }

    #[test]
    fn what_is_no_id_is_refused() {
        assert!("".parse::<MachineId>().is_err());
        assert!("ab".repeat(31).parse::<MachineId>().is_err());
        assert!("AB".repeat(32).parse::<MachineId>().is_err());
        assert!("..".repeat(32).parse::<MachineId>().is_err());
    }
}
