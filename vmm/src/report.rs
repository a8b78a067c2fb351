//! How a failure reaches the person: one sentence, and one line that says what to do.
//!
//! Errors are typed, one enum per operation. They become a [`Report`] only in the command layer,
//! and only `main` prints it.

use std::error::Error;
use std::fmt;
use std::io;

use crate::outcome::ExitCode;

/// An error that may know what the person can do about it.
pub trait Help: Error {
    /// Returns what to do, without the word `help:` and without a full stop.
    fn help(&self) -> Option<String> {
        None
    }
}

/// A failure of a command, ready to be printed.
#[derive(Debug)]
pub struct Report {
    error: Box<dyn Error + Send + Sync>,
    help: Option<String>,
    exit_code: Option<ExitCode>,
    ending: Ending,
}

/// What is left to do when a report arrives in `main`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Print the sentence and the help line.
    Print,
    /// Print the error's text, which has all of that.
    PrintAsIs,
    /// Everything has been said.
    Printed,
    /// Standard output has no reader.
    OutputClosed,
}

impl Report {
    /// Makes a report of an error that has no help line of its own.
    #[must_use]
    pub fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self {
            error: Box::new(error),
            help: None,
            exit_code: None,
            ending: Ending::Print,
        }
    }

    /// Makes the report of a failure to write to standard output.
    #[must_use]
    pub fn of_output(error: io::Error) -> Self {
        let ending = match error.kind() {
            io::ErrorKind::BrokenPipe => Ending::OutputClosed,
            _ => Ending::Print,
        };
        Self {
            ending,
            ..Self::new(OutputError(error))
        }
    }

    /// Makes a report that says nothing more and only carries an exit code.
    #[must_use]
    pub fn printed(exit_code: ExitCode) -> Self {
        Self {
            exit_code: Some(exit_code),
            ending: Ending::Printed,
            ..Self::new(AlreadyPrinted)
        }
    }

    /// Makes a report of one that another process of ours has put into words.
    #[must_use]
    pub fn of_text(text: String, exit_code: Option<u8>) -> Self {
        Self {
            exit_code: exit_code.map(ExitCode::of_process),
            ending: Ending::PrintAsIs,
            ..Self::new(Relayed(text))
        }
    }

    /// Adds or replaces the help line.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Replaces the exit code, which is 1 unless said otherwise.
    #[must_use]
    pub fn with_exit_code(mut self, exit_code: ExitCode) -> Self {
        self.exit_code = Some(exit_code);
        self
    }

    /// Takes an exit code if there is none yet.
    #[must_use]
    pub fn or_exit_code(mut self, exit_code: ExitCode) -> Self {
        self.exit_code.get_or_insert(exit_code);
        self
    }

    /// Returns the exit code that was said; none if that is the command's to choose.
    #[must_use]
    pub fn own_exit_code(&self) -> Option<ExitCode> {
        self.exit_code
    }

    /// Returns the code that the command ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        self.exit_code.unwrap_or(ExitCode::FAILURE)
    }

    /// Returns the sentence alone.
    #[must_use]
    pub fn sentence(&self) -> String {
        chain(self.error.as_ref())
    }

    /// Tells whether the reader of standard output went away: a plain program dies of SIGPIPE then, silently.
    #[must_use]
    pub fn is_output_closed(&self) -> bool {
        self.ending == Ending::OutputClosed
    }

    /// Tells whether everything has been said.
    #[must_use]
    pub fn is_printed(&self) -> bool {
        self.ending == Ending::Printed
    }
}

impl<E: Help + Send + Sync + 'static> From<E> for Report {
    fn from(error: E) -> Self {
        let help = error.help();
        Self {
            help,
            ..Self::new(error)
        }
    }
}

/// The error and each of its sources in one sentence, then the help line.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ending == Ending::PrintAsIs {
            return self.error.fmt(formatter);
        }
        // Names of a foreign image are quoted in errors; a terminal must not obey them.
        let sentence = chain(self.error.as_ref()).replace(char::is_control, "\u{fffd}");
        write!(formatter, "vmm: {sentence}")?;
        if let Some(help) = &self.help {
            write!(formatter, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

/// Joins an error and its sources by colons.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        sentence.push_str(": ");
        sentence.push_str(&cause.to_string());
        source = cause.source();
    }
    sentence
}

/// What another process of ours has to say.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Relayed(String);

/// Stands for what has been printed.
#[derive(Debug, thiserror::Error)]
#[error("it was printed")]
struct AlreadyPrinted;

/// Standard output took no more.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output")]
struct OutputError(#[source] io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open /etc/nothing")]
    struct Outer(#[source] io::Error);

    impl Help for Outer {
        fn help(&self) -> Option<String> {
            Some("create it".to_owned())
        }
    }

    #[test]
    fn a_report_prints_each_cause_once_and_then_the_help() {
        let cause = io::Error::new(io::ErrorKind::NotFound, "no such file");

        let report = Report::from(Outer(cause));

        assert_eq!(
            report.to_string(),
            "vmm: cannot open /etc/nothing: no such file\nhelp: create it"
        );
        assert_eq!(report.exit_code(), ExitCode::FAILURE);
    }

    #[test]
    fn an_escape_sequence_in_an_error_does_not_reach_the_terminal() {
        let cause = io::Error::other("layer path \x1b[2Jx");

        let report = Report::from(Outer(cause));

        assert!(!report.to_string().contains('\x1b'), "{report}");
    }

    #[test]
    fn a_closed_standard_output_is_told_from_other_failures() {
        let closed = Report::of_output(io::Error::from(io::ErrorKind::BrokenPipe));
        let full = Report::of_output(io::Error::from(io::ErrorKind::StorageFull));

        assert!(closed.is_output_closed());
        assert!(!full.is_output_closed());
    }
}
