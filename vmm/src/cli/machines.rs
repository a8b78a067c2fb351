//! What is typed about machines that run: to let them stand, to write them down, to duplicate them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Subcommand};

use super::{DETACH_KEYS, ListArgs, parse_user, parse_variable, parse_workdir};
use crate::attach::DetachKeys;
use crate::image::Change;
use crate::network::TypedPublish;
use crate::workload::environment::Variable;

/// Arguments of `vmm pause`, `vmm resume` and `vmm wait`.
#[derive(Debug, Clone, Args)]
pub struct MachinesArgs {
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm exec`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What is not chosen is as for the machine's own command: environment, directory, user, limits and rights.

Examples:
  vmm exec web ls -l /srv
  vmm exec -it web sh
  tar -c . | vmm exec -i -w /srv web tar -x
  vmm exec -d -u app -e LEVEL=2 web refresh")]
pub struct ExecArgs {
    /// Do not wait for the command's end, only for its start
    #[arg(short, long)]
    pub detach: bool,
    /// With -i and -t, the keys that end this and leave the command running
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Set a variable, or pass this one on from here if there is no value
    #[arg(short, long, value_name = "NAME[=VALUE]", allow_hyphen_values = true, value_parser = parse_variable)]
    pub env: Vec<Variable>,
    /// Set the variables that FILE lists, one NAME[=VALUE] a line; lines with # are comments
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Keep standard input open and pass it to the command
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command every capability of the guest, and no filter
    #[arg(long)]
    pub privileged: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User, and group, that the command runs as: names of the image, or numbers
    #[arg(short, long, value_name = "USER[:GROUP]", value_parser = parse_user)]
    pub user: Option<String>,
    /// Directory that the command starts in
    #[arg(short, long, value_name = "DIR", value_parser = parse_workdir)]
    pub workdir: Option<String>,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<String>,
}

/// Arguments of `vmm cp`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "vmm cp [OPTIONS] <MACHINE>:<PATH> <LOCAL|->\n       vmm cp [OPTIONS] <LOCAL|-> <MACHINE>:<PATH>",
    after_help = "\
A directory is copied with all that is in it: into a directory that is there, or under the name of one that is
not. DIR/. is what is in DIR. With -, a tar archive goes to standard output or comes from standard input. What
is copied belongs to root in the machine, and to you here. Devices are left out.

Examples:
  vmm cp web:/etc/app.conf .
  vmm cp site/. web:/srv
  vmm cp web:/var/log - | tar -x
  tar -c . | vmm cp - web:/srv"
)]
pub struct CpArgs {
    /// Keep the owners that the files have
    #[arg(short, long)]
    pub archive: bool,
    /// Copy what a symbolic link leads to, if the source is one
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Do not say what was copied
    #[arg(short, long)]
    pub quiet: bool,
    /// What is copied
    #[arg(value_name = "FROM", allow_hyphen_values = true)]
    pub from: OsString,
    /// Where to
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    pub to: OsString,
}

/// Arguments of `vmm diff`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A is new, C is changed, D is deleted.

Examples:
  vmm diff web")]
pub struct DiffArgs {
    /// How to print the list.
    #[command(flatten)]
    pub list: ListArgs,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// Arguments of `vmm export`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What is mounted on the root file system is left out.

Examples:
  vmm export -o web.tar web
  vmm export web | tar -t")]
pub struct ExportArgs {
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}

/// Arguments of `vmm commit`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The new image is the machine's, with what the machine has changed as another layer. A CHANGE is an instruction
of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR.

Examples:
  vmm commit web web:tested
  vmm commit -m 'with tools' -c 'CMD [\"serve\"]' -c 'ENV LEVEL=2' web tools")]
pub struct CommitArgs {
    /// Who made it, as in \"Jo Doe <jo@example.org>\"
    #[arg(short, long, value_name = "AUTHOR")]
    pub author: Option<String>,
    /// Change the image's configuration
    #[arg(short, long, value_name = "CHANGE", value_parser = |text: &str| text.parse::<Change>())]
    pub change: Vec<Change>,
    /// A remark for the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Let nothing run in the machine meanwhile
    #[arg(short, long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub pause: bool,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
    /// What to call the image
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub name: Option<String>,
}

/// Arguments of `vmm attach`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A machine has an input if it was run or created with -i, and a terminal if with -t. It goes on when its
clients leave: with a terminal, type the keys of --detach-keys. It ends them with its own exit code.

Keys: single characters, or ctrl- with a letter from a to z or one of @[\\]^_, with commas between them.

Examples:
  vmm attach web
  vmm attach --no-stdin web
  vmm attach --detach-keys ctrl-a,d shell")]
pub struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the command, unless it has a terminal
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub sig_proxy: bool,
    /// With a terminal, the keys that end this and leave the machine running
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    pub detach_keys: DetachKeys,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
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
    /// Reach a port of the copies through one of the host's, in place of those of the machine; one that the host chooses for several copies
    #[arg(short, long, value_name = "PORTS")]
    pub publish: Vec<TypedPublish>,
    /// Name, id or beginning of an id
    #[arg(value_name = "MACHINE")]
    pub machine: String,
}
