//! Why there is no lab.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why there is no lab, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A tool of the host is missing.
    #[error("{tool} cannot be run: {source}")]
    NoTool {
        /// The tool.
        tool: &'static str,
        /// The Debian package that has it.
        package: &'static str,
        /// Why.
        source: io::Error,
    },
    /// QEMU is too old.
    #[error("QEMU has version {found}; {needed} or newer is needed")]
    OldQemu {
        /// What it says it is.
        found: String,
        /// The oldest that does.
        needed: &'static str,
    },
    /// The kernel package is not known to the package manager, or cannot be fetched.
    #[error("Debian's package {package} cannot be fetched: {reason}")]
    NoPackage {
        /// The package.
        package: String,
        /// What the package manager said.
        reason: String,
    },
    /// The kernel package lacks something.
    #[error("the kernel package in {package} has no {missing}")]
    IncompletePackage {
        /// Where it was unpacked.
        package: PathBuf,
        /// What it should have.
        missing: String,
    },
    /// Something that was to be put into the lab is not there.
    #[error("{path} cannot be put into the lab", path = .path.display())]
    File {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host refuses something that a lab takes.
    #[error("cannot {doing}")]
    Host {
        /// What was tried.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lab ended before the command did.
    #[error("the lab ended before its command; the last lines of its kernel:\n{kernel_log}")]
    Died {
        /// What its kernel said last.
        kernel_log: String,
    },
    /// QEMU executes no more instructions.
    #[error("the emulator stands still; the last lines of the lab's kernel:\n{kernel_log}")]
    StoodStill {
        /// What its kernel said last.
        kernel_log: String,
    },
    /// The lab took too long.
    #[error("the lab's command was not done within {} s; the last lines of its kernel:\n{kernel_log}", .limit.as_secs())]
    TimeLimit {
        /// How long it was given.
        limit: Duration,
        /// What its kernel said last.
        kernel_log: String,
    },
}

impl LabError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoTool { package, .. } => Some(format!("apt-get install {package}")),
            Self::OldQemu { .. } => Some("apt-get install qemu-system-x86".to_owned()),
            Self::NoPackage { .. } => Some("apt-get update, and try again".to_owned()),
            Self::IncompletePackage { package, .. } => {
                Some(format!("remove {} to fetch it again", package.display()))
            }
            Self::TimeLimit { .. } => Some("give it longer with --limit".to_owned()),
            Self::StoodStill { .. } => Some(
                "QEMU 7.2 does this now and then when it counts instructions; try again".to_owned(),
            ),
            Self::File { .. } | Self::Host { .. } | Self::Died { .. } => None,
        }
    }
}

/// The sentence of an error with those of its causes.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
