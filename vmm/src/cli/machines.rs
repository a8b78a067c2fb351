//! What is typed about machines that run: to let them stand, to write them down, to duplicate them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Arguments of `vmm pause`, `vmm resume` and `vmm wait`.
#[derive(Debug, Clone, Args)]
pub struct MachinesArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm snapshot`.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = false,
    after_help = "\
Examples:
  vmm snapshot web web.snapshot
  vmm snapshot --incremental web web.snapshot.1
  vmm snapshot --stop web web.snapshot && vmm run -d --restore web.snapshot
  vmm snapshot check web.snapshot"
)]
pub struct SnapshotArgs {
    /// What else can be done with a snapshot.
    #[command(subcommand)]
    pub command: Option<SnapshotCommand>,
    /// Write only what has changed since the last snapshot of the machine, which is needed to resume it
    #[arg(long)]
    pub incremental: bool,
    /// End the machine once it is written down, instead of letting it go on
    #[arg(long)]
    pub stop: bool,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE", required = true)]
    pub machine: Option<String>,
    /// The file that is to hold it; a snapshot of that name is replaced
    #[arg(value_name = "FILE", required = true)]
    pub file: Option<PathBuf>,
}

/// Commands of `vmm snapshot`.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Say whether a snapshot could be resumed here
    Check(SnapshotCheckArgs),
}

/// Arguments of `vmm snapshot check`.
#[derive(Debug, Clone, Args)]
pub struct SnapshotCheckArgs {
    /// The snapshot
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `vmm fork`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The workload says where it may be duplicated: it is started with --fork-point, and opens the fifo
/dev/fork-point for reading. It reads a line there when it is forked: 0 in the machine that was
forked, the copy's number in each copy.

Examples:
  vmm run -d --name worker --fork-point app sh -c 'prepare; read n < /dev/fork-point; serve $n'
  vmm fork worker
  vmm fork -n 10 worker")]
pub struct ForkArgs {
    /// How many copies
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub number: u32,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}
