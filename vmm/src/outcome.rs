//! How a run ended, and the only place that knows the numbers of exit codes.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the run of a workload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The workload exited by itself with this status.
    Exited(u8),
    /// A signal ended the workload.
    Signalled {
        /// The signal's number, 1 to 64.
        signal: u8,
        /// Whether the guest killed it for want of memory.
        out_of_memory: bool,
    },
    /// The workload never ran.
    NotStarted {
        /// Which of the three reasons that the exit code tells apart.
        reason: NotStarted,
        /// One sentence that names the path, user or field.
        message: String,
    },
    /// The guest ended before the workload's outcome was known.
    GuestDied {
        /// One sentence about how it was noticed.
        message: String,
        /// The last lines of the guest kernel's log, oldest first.
        last_log_lines: Vec<String>,
    },
    /// The host took the machine away, or failed it, before the workload's outcome was known.
    HostFailed {
        /// One sentence about how it was noticed.
        message: String,
        /// What the person can do about it.
        help: Option<String>,
    },
    /// The machine was ended from outside, without asking the workload (`vmm kill` twice, the host going down).
    Killed,
    /// The machine goes on without its client.
    Detached,
}

/// Why a workload never ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// There is no such command in the image.
    NotFound,
    /// The command is there but cannot be executed: no right to, a directory, a format that is not known.
    NotExecutable,
    /// Anything else: an unknown user, a part of the configuration that is not supported, a failed mount.
    Failed,
}

impl Outcome {
    /// Whether the workload ran, however it ended.
    #[must_use]
    pub fn workload_ran(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Signalled { .. })
    }

    /// Returns the code that `vmm` ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Exited(status) => ExitCode(*status),
            Self::Signalled { signal, .. } => ExitCode::of_signal(*signal),
            Self::NotStarted { reason, .. } => match reason {
                NotStarted::NotFound => ExitCode::NOT_FOUND,
                NotStarted::NotExecutable => ExitCode::NOT_EXECUTABLE,
                NotStarted::Failed => ExitCode::APPLIANCE_FAILED,
            },
            Self::GuestDied { .. } | Self::HostFailed { .. } => ExitCode::APPLIANCE_FAILED,
            Self::Killed => ExitCode::of_signal(SIGKILL),
            Self::Detached => ExitCode::SUCCESS,
        }
    }
}

/// SIGKILL on every Linux architecture, `signal(7)`.
const SIGKILL: u8 = 9;

/// The number that a process ends with.
///
/// | code | meaning |
/// |---|---|
/// | 0 to 255 | the workload's own |
/// | 128 + n | signal n ended the workload |
/// | 1 | a command but `run` failed |
/// | 125 | `run` failed, a workload was not started or its machine died, or the command line makes no sense |
/// | 126 | the command is in the image but cannot be executed |
/// | 127 | the command is not in the image |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(u8);

impl ExitCode {
    /// All went well.
    pub const SUCCESS: Self = Self(0);
    /// A command that runs no workload has failed, or a client has left one: docker's code for that.
    pub const FAILURE: Self = Self(1);
    /// The appliance failed: nothing is said about the workload.
    pub const APPLIANCE_FAILED: Self = Self(125);
    /// The command cannot be executed.
    pub const NOT_EXECUTABLE: Self = Self(126);
    /// The command was not found.
    pub const NOT_FOUND: Self = Self(127);

    /// Returns what a shell reports for a process that `signal` ended.
    #[must_use]
    pub fn of_signal(signal: u8) -> Self {
        Self(128u8.saturating_add(signal))
    }

    /// Passes on the code of another process of ours.
    #[must_use]
    pub fn of_process(code: u8) -> Self {
        Self(code)
    }

    /// Returns the number.
    #[must_use]
    pub fn number(self) -> u8 {
        self.0
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.0)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of_not_started(reason: NotStarted) -> u8 {
        let outcome = Outcome::NotStarted {
            reason,
            message: String::new(),
        };
        outcome.exit_code().number()
    }

    #[test]
    fn the_workloads_own_status_is_passed_on() {
        assert_eq!(Outcome::Exited(0).exit_code().number(), 0);
        assert_eq!(Outcome::Exited(42).exit_code().number(), 42);
        assert_eq!(Outcome::Exited(255).exit_code().number(), 255);
    }

    #[test]
    fn a_signal_adds_128() {
        let segfault = Outcome::Signalled {
            signal: 11,
            out_of_memory: false,
        };

        assert_eq!(segfault.exit_code().number(), 139);
        assert_eq!(Outcome::Killed.exit_code().number(), 137);
    }

    #[test]
    fn what_never_ran_is_told_apart() {
        assert_eq!(code_of_not_started(NotStarted::Failed), 125);
        assert_eq!(code_of_not_started(NotStarted::NotExecutable), 126);
        assert_eq!(code_of_not_started(NotStarted::NotFound), 127);
    }

    #[test]
    fn a_dead_guest_is_a_failure_of_the_appliance() {
        let died = Outcome::GuestDied {
            message: "the guest's kernel panicked".into(),
            last_log_lines: Vec::new(),
        };

        assert_eq!(died.exit_code().number(), 125);
    }
}
