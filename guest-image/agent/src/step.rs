//! A failure that names the step: what the launch of a container returns, and what the host gets to see.

use protocol::{FailureKind, StartFailure};

/// Gives an error the name of the step that it ended.
pub(crate) trait Step<T> {
    /// Turns an error into a failure of the step `what`, a clause like `mounting /proc`.
    fn step(self, what: impl FnOnce() -> String) -> Result<T, StartFailure>;
}

impl<T, E: std::fmt::Display> Step<T> for Result<T, E> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, StartFailure> {
        self.map_err(|error| failure(FailureKind::Failed, what(), error.to_string()))
    }
}

/// Makes a failure.
pub(crate) fn failure(
    kind: FailureKind,
    step: impl Into<String>,
    message: impl Into<String>,
) -> StartFailure {
    StartFailure {
        kind,
        step: step.into(),
        message: message.into(),
    }
}

/// Makes the failure for a config that asks for something that the agent does not do.
pub(crate) fn unsupported(field: impl Into<String>, message: impl Into<String>) -> StartFailure {
    failure(FailureKind::Unsupported, field, message)
}

/// Makes the failure for a config that makes no sense.
pub(crate) fn invalid(field: impl Into<String>, message: impl Into<String>) -> StartFailure {
    failure(FailureKind::Failed, field, message)
}
