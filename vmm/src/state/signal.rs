//! Signals by name and number, as `kill` takes them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Highest signal number of Linux on x86-64, `_NSIG` in the kernel's `arch/x86/include/uapi/asm/signal.h`.
const MAX_SIGNAL: u8 = 64;

/// The first and last real-time signals that a C library leaves to programs, `signal(7)`.
const RTMIN: u8 = 34;
const RTMAX: u8 = MAX_SIGNAL;

/// Names and numbers on x86-64, `signal(7)`.
const NAMES: [(&str, u8); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("IOT", 6),
    ("CLD", 17),
    ("POLL", 29),
];

/// A signal for a workload, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

impl Signal {
    /// SIGINT.
    pub const INT: Self = Self(2);
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGTERM.
    pub const TERM: Self = Self(15);

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(formatter, "SIG{name}"),
            None => write!(formatter, "signal {}", self.0),
        }
    }
}

impl TryFrom<u8> for Signal {
    type Error = SignalError;

    fn try_from(number: u8) -> Result<Self, SignalError> {
        if (1..=MAX_SIGNAL).contains(&number) {
            Ok(Self(number))
        } else {
            Err(SignalError(number.to_string()))
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl FromStr for Signal {
    type Err = SignalError;

    /// Takes `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3` and `RTMAX-1`.
    fn from_str(text: &str) -> Result<Self, SignalError> {
        if let Ok(number) = text.parse::<u8>() {
            return Self::try_from(number);
        }
        let upper = text.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let by_name = NAMES.iter().find(|(name, _)| *name == bare);
        by_name
            .map(|(_, number)| Self(*number))
            .or_else(|| real_time(bare))
            .ok_or_else(|| SignalError(text.to_owned()))
    }
}

/// Parses `RTMIN`, `RTMIN+n`, `RTMAX` and `RTMAX-n`.
fn real_time(name: &str) -> Option<Signal> {
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        match offset.strip_prefix('+') {
            Some(offset) => RTMIN.checked_add(offset.parse().ok()?)?,
            None => offset.is_empty().then_some(RTMIN)?,
        }
    } else {
        let offset = name.strip_prefix("RTMAX")?;
        match offset.strip_prefix('-') {
            Some(offset) => RTMAX.checked_sub(offset.parse().ok()?)?,
            None => offset.is_empty().then_some(RTMAX)?,
        }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(Signal(number))
}

/// The text is no signal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no signal: give a name like TERM or a number from 1 to 64")]
pub struct SignalError(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_by_name_and_by_number() {
        assert_eq!("TERM".parse(), Ok(Signal::TERM));
        assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
        assert_eq!("sigkill".parse(), Ok(Signal::KILL));
        assert_eq!("2".parse(), Ok(Signal::INT));
    }

    #[test]
    fn real_time_signals_are_counted_from_either_end() {
        assert_eq!("RTMIN".parse(), Signal::try_from(34));
        assert_eq!("SIGRTMIN+3".parse(), Signal::try_from(37));
        assert_eq!("rtmax-1".parse(), Signal::try_from(63));
        assert!("RTMIN+31".parse::<Signal>().is_err());
        assert!("RTMIN3".parse::<Signal>().is_err());
        assert!("RTMAX-99".parse::<Signal>().is_err());
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        assert!("0".parse::<Signal>().is_err());
        assert!("65".parse::<Signal>().is_err());
        assert!("NOPE".parse::<Signal>().is_err());
        assert!("".parse::<Signal>().is_err());
    }

    #[test]
    fn a_signal_prints_its_usual_name() {
        assert_eq!(Signal::KILL.to_string(), "SIGKILL");
        assert_eq!("ABRT".parse::<Signal>().unwrap().to_string(), "SIGABRT");
        assert_eq!("40".parse::<Signal>().unwrap().to_string(), "signal 40");
    }
}
