//! Flags and commands about what stays of a machine that has ended.

use clap::Args;

use super::life::parse_seconds;
use super::{DETACH_KEYS, RunArgs};
use crate::attach::DetachKeys;
use crate::state::Signal;
use crate::storage::{StorageSize, StorageSizeError};

/// How much of what the workload writes is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct StorageArgs {
    /// How much the command may write to the root file system of a machine that is kept [default: 10g]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    storage: Option<StorageSize>,
    /// size=SIZE, docker's way to say --storage SIZE
    #[arg(
        long,
        value_name = "OPTION",
        value_parser = parse_option,
        conflicts_with = "storage",
        help_heading = "Limits"
    )]
    storage_opt: Option<StorageSize>,
}

impl StorageArgs {
    /// What was typed, if anything.
    #[must_use]
    pub fn size(&self) -> Option<StorageSize> {
        self.storage.or(self.storage_opt)
    }
}

/// The value of docker's `--storage-opt`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum OptionError {
    #[error("'{0}' is not known: the only option is size=SIZE")]
    Unknown(String),
    #[error(transparent)]
    Size(#[from] StorageSizeError),
}

fn parse_option(text: &str) -> Result<StorageSize, OptionError> {
    match text.strip_prefix("size=") {
        Some(size) => Ok(size.parse()?),
        None => Err(OptionError::Unknown(text.to_owned())),
    }
}

const CREATE_EXAMPLES: &str = "\
Examples:
  vmm create --name web app
  vmm start web";

/// Arguments of `vmm create`: those of `vmm run`.
#[derive(Debug, Clone, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "vmm create [OPTIONS] --image <FILE|-> [--] [COMMAND [ARG]...]\n       vmm create [OPTIONS] <NAME> [COMMAND [ARG]...]",
    after_help = CREATE_EXAMPLES
)]
pub struct CreateArgs {
    /// What is to run, and how.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `vmm start`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm start web
  vmm start -a job
  vmm start -ai shell")]
pub struct StartArgs {
    /// Wait for the end, with the machine's output here, and end with its exit code
    #[arg(short, long)]
    pub attach: bool,
    /// Pass standard input on, to a machine that was created with -i
    #[arg(short, long)]
    pub interactive: bool,
    /// With -i and a terminal, the keys that leave the machine running without its client
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm restart`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm restart web
  vmm restart -t 2 web worker")]
pub struct RestartArgs {
    /// The signal that asks the workload to end, by name or number [default: what it was run with]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<Signal>,
    /// Kill the machine after so many seconds; -1 waits for ever [default: what it was run with, or 10]
    #[arg(
        short,
        long,
        visible_alias = "time",
        value_name = "SECONDS",
        allow_negative_numbers = true,
        value_parser = parse_seconds
    )]
    pub timeout: Option<i64>,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}
