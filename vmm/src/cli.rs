//! What was typed: the commands, their arguments and their help texts.
//!
//! Nothing is decided here. Values that stand for themselves (limits, names) are parsed into their
//! types; what depends on the image, the host or a file is left to the command.

mod container;
mod later;
mod life;
mod machines;
mod network;
mod networks;
mod statistics;
mod storage;
mod volumes;

use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::attach::{DetachKeys, DetachKeysError};
use crate::limits::{ByteSize, CpuQuota, LimitError, MemoryLimit};
use crate::logs::LogConfigError;
use crate::machine::InterfaceShape;
use crate::moment::MomentError;
use crate::network::TypedNetwork;
use crate::outcome::ExitCode;
use crate::report::{Help, Report, chain};
use crate::state::MachineName;
use crate::storage::StorageSize;
use crate::workload::environment::Variable;

pub use self::container::ContainerArgs;
pub use self::later::Later;
pub(crate) use self::life::label_of;
pub use self::life::{
    EventsArgs, HealthArgs, InspectArgs, LifeArgs, LogsArgs, PsArgs, RenameArgs, StopArgs, Tail,
};
pub use self::machines::{
    AttachArgs, CommitArgs, CpArgs, DiffArgs, ExecArgs, ExportArgs, ForkArgs, MachinesArgs,
    SnapshotArgs, SnapshotCheckArgs, SnapshotCommand,
};
pub use self::network::{NetworkArgs, PortArgs};
pub use self::networks::{
    NetworkCommand, NetworkCreateArgs, NetworkInspectArgs, NetworkListArgs, NetworkOption,
    NetworkPruneArgs, NetworkRmArgs,
};
pub use self::statistics::{StatsArgs, TopArgs, UpdateArgs};
pub use self::storage::{CreateArgs, RestartArgs, StartArgs, StorageArgs};
pub use self::volumes::{
    VolumeArgs, VolumeCommand, VolumeCreateArgs, VolumeInspectArgs, VolumeListArgs,
    VolumePruneArgs, VolumeResizeArgs, VolumeRestoreArgs, VolumeRmArgs, VolumeSnapshotArgs,
};

/// Runs OCI images, each in a microVM of its own.
///
/// `vmm run --image app.oci` imports the image when it is new, boots a small virtual machine,
/// runs the image's command in it, passes its input and output through and ends with its exit code.
#[derive(Debug, Parser)]
#[command(
    name = "vmm",
    version,
    propagate_version = false,
    arg_required_else_help = false,
    after_help = GENERAL_EXAMPLES
)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const GENERAL_EXAMPLES: &str = "\
Examples:
  vmm run --image app.oci             Run the command of an image in a file
  vmm run --image app.oci -- sh -c ls Run another command in it
  vmm load -i app.oci --name app      Put the image into the store
  vmm run -it app sh                  Run a shell in an image of the store
  vmm ps                              List the machines that run
  vmm doctor                          Say what this host can do

Exit codes of `vmm run` and `vmm exec`: the command's own; 128+n if signal n ended it;
125 if `vmm run` failed; 126 if the command cannot be executed; 127 if it was not found.
Other commands end with 1 if they fail, and with 125 if they cannot be understood.";

/// Arguments that every command understands.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Keep images and machines below DIR (or VMM_ROOT) instead of the user's directories
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Say more on standard error, if typed before the command: -v what is done, -vv details (VMM_LOG takes a filter)
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new machine
    Run(Later<RunArgs>),
    /// Run another command in a machine that runs
    Exec(Later<ExecArgs>),
    /// Join standard input, output and error with the workload of a machine in the background
    Attach(Later<AttachArgs>),
    /// Create a machine that is started later, and print its id
    Create(Later<CreateArgs>),
    /// Start machines that were created, or have ended, with what they had written
    Start(Later<StartArgs>),
    /// Let machines end, and start them again
    Restart(Later<RestartArgs>),
    /// List machines
    Ps(Later<PsArgs>),
    /// Show what a machine in the background has written
    Logs(Later<LogsArgs>),
    /// Show what happens to machines
    Events(Later<EventsArgs>),
    /// Show what machines use of processors, memory and disks
    Stats(Later<StatsArgs>),
    /// List the processes of a machine
    Top(Later<TopArgs>),
    /// Change what machines may use
    Update(Later<UpdateArgs>),
    /// Show what is known of machines
    Inspect(Later<InspectArgs>),
    /// Copy files between a machine and here
    Cp(Later<CpArgs>),
    /// List what a machine has changed of its image's files
    Diff(Later<DiffArgs>),
    /// Write the files of a machine to an archive
    Export(Later<ExportArgs>),
    /// Make an image of a machine's image and what the machine has changed
    Commit(Later<CommitArgs>),
    /// Ask the workload of machines to end, and kill those that do not
    Stop(Later<StopArgs>),
    /// Send a signal to the workload of machines
    Kill(Later<KillArgs>),
    /// Wait until machines have ended, and print their exit codes
    Wait(Later<MachinesArgs>),
    /// Print where on the host the ports of a machine are reached
    Port(Later<PortArgs>),
    /// Give a machine another name
    Rename(Later<RenameArgs>),
    /// Remove machines that have ended
    Rm(Later<RmArgs>),
    /// Let machines stand still, without using the processor
    Pause(Later<MachinesArgs>),
    /// Let paused machines go on
    #[command(visible_alias = "unpause")]
    Resume(Later<MachinesArgs>),
    /// Write a running machine to a file, from which `vmm run --restore` resumes it
    Snapshot(Later<SnapshotArgs>),
    /// Duplicate a machine whose workload waits at its fork point, and print the copies' ids
    Fork(Later<ForkArgs>),
    /// Import images from an archive, a directory or standard input into the store
    Load(Later<LoadArgs>),
    /// Write images to an archive
    Save(Later<SaveArgs>),
    /// Give an image another name
    Tag(Later<TagArgs>),
    /// List the images of the store
    Images(Later<ImagesArgs>),
    /// Show the steps an image was built by
    History(Later<HistoryArgs>),
    /// Remove names, and images that have no other name
    Rmi(Later<RmiArgs>),
    /// Remove what no image name needs
    Prune(Later<PruneArgs>),
    /// Manage images
    #[command(subcommand, arg_required_else_help = false)]
    Image(ImageCommand),
    /// Manage volumes, file systems that outlive the machines that mount them
    #[command(subcommand, arg_required_else_help = false)]
    Volume(VolumeCommand),
    /// Manage networks of this host, on which machines reach each other by name
    #[command(subcommand, arg_required_else_help = false)]
    Network(NetworkCommand),
    /// Show what vmm uses of this host
    #[command(subcommand, arg_required_else_help = false)]
    System(SystemCommand),
    /// Freeze a machine after its boot, so that later runs of an image start as its clones
    ///
    /// The first run leaves such a template anyway; this makes it before.
    Prepare(Later<PrepareArgs>),
    /// Manage templates, the frozen machines that runs are clones of
    #[command(subcommand, arg_required_else_help = false)]
    Template(TemplateCommand),
    /// Manage guest images (the kernel and the agent of the machines)
    #[command(subcommand, arg_required_else_help = false)]
    Guest(GuestCommand),
    /// Say what this host can do, and what is missing
    Doctor(Later<DoctorArgs>),
    /// Compare what running an image costs with vmm, crun, runc, podman and docker on this host
    Bench(Later<BenchArgs>),
    /// Print a completion script for a shell
    Completion(Later<CompletionArgs>),
    /// Write the manual pages to a directory
    #[command(hide = true)]
    Man(Later<ManArgs>),
}

const RUN_EXAMPLES: &str = "\
Examples:
  vmm run --image app.oci
  vmm run --image app.oci -- python3 -c 'print(6 * 7)'
  docker save app | vmm run --image -
  vmm run --cpus 1.5 --memory 512m app
  vmm run -it --user nobody --workdir /tmp app sh
  tar -c . | vmm run -i app tar -t
  vmm run -d --name web app

The first word that is no option is the image's name, unless --image names a file; what follows
is the command, with its own options. A `--` before the command is dropped.";

/// The default of `--detach-keys`, as it is typed.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// Arguments of `vmm run`.
#[derive(Debug, Clone, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "vmm run [OPTIONS] --image <FILE|-> [--] [COMMAND [ARG]...]\n       vmm run [OPTIONS] <NAME> [COMMAND [ARG]...]\n       vmm run [OPTIONS] --restore <FILE>",
    after_help = RUN_EXAMPLES
)]
pub struct RunArgs {
    /// Run the image in FILE: an OCI archive or directory, a `docker save` archive, or - for standard input
    ///
    /// The kind is told by the content. The image is imported into the store; a file that was
    /// imported before is recognised without being read.
    #[arg(long, value_name = "FILE|-", help_heading = "Image")]
    pub image: Option<FileOrStdin>,
    /// With several images in FILE: the name of the one to run
    #[arg(
        long,
        value_name = "REFERENCE",
        requires = "image",
        help_heading = "Image"
    )]
    pub select: Option<String>,
    /// Go on with the machine that was written to FILE, which can be done once
    ///
    /// Image, command, limits and the workload's choices are those of the snapshot. So are published ports, unless --publish names
    /// others.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "image", "words", "cpus", "memory", "env", "env_file", "workdir", "user", "entrypoint",
            "hostname", "read_only", "fork_point", "kernel", "config", "cap_add", "cap_drop", "privileged",
            "security_opt", "ulimit", "sysctl", "device", "tmpfs", "shm_size", "pids_limit", "cpu_shares",
            "cpuset_cpus", "group_add", "userns", "uts", "ipc", "pid", "oom_score_adj", "init", "storage",
            "storage_opt", "volume", "mount", "disk", "volumes_from", "device_read_bps", "device_write_bps",
            "device_read_iops", "device_write_iops", "network", "network_alias", "mac_address", "ip", "ip6", "gateway", "dns",
            "dns_search", "dns_option", "add_host", "net_rate", "publish_all", "expose", "network_allow",
            "network_deny", "network_default"
        ],
        help_heading = "Image"
    )]
    pub restore: Option<PathBuf>,
    /// What an import may cost.
    #[command(flatten)]
    pub limits: ImportLimitArgs,

    /// Processor time that the machine may use, in processors, as in 1.5; 0.01 to 32
    ///
    /// The machine gets as many virtual processors as the next whole number.
    #[arg(long, value_name = "NUMBER", default_value_t, help_heading = "Limits")]
    pub cpus: CpuQuota,
    /// Memory that the workload may use, in units of b, k, m or g; at least 6m
    #[arg(
        short,
        long,
        value_name = "SIZE",
        default_value_t,
        help_heading = "Limits"
    )]
    pub memory: MemoryLimit,
    /// What of the machine is kept.
    #[command(flatten)]
    pub storage: StorageArgs,

    /// Set a variable, or pass this one on from here if there is no value
    #[arg(
        short,
        long,
        value_name = "NAME[=VALUE]",
        allow_hyphen_values = true,
        value_parser = parse_variable,
        help_heading = "Workload"
    )]
    pub env: Vec<Variable>,
    /// Set the variables that FILE lists, one NAME[=VALUE] a line; lines with # are comments
    #[arg(long, value_name = "FILE", help_heading = "Workload")]
    pub env_file: Vec<PathBuf>,
    /// Directory that the command starts in
    #[arg(
        short,
        long,
        value_name = "DIR",
        value_parser = parse_workdir,
        help_heading = "Workload"
    )]
    pub workdir: Option<String>,
    /// User, and group, that the command runs as: names of the image, or numbers
    #[arg(
        short,
        long,
        value_name = "USER[:GROUP]",
        value_parser = parse_user,
        help_heading = "Workload"
    )]
    pub user: Option<String>,
    /// Program to run in place of the image's entrypoint; empty for none
    #[arg(
        long,
        value_name = "PROGRAM",
        allow_hyphen_values = true,
        help_heading = "Workload"
    )]
    pub entrypoint: Option<String>,
    /// Host name inside the machine; the machine's short id if not given
    #[arg(
        short = 'h',
        long,
        value_name = "NAME",
        value_parser = parse_hostname,
        help_heading = "Workload"
    )]
    pub hostname: Option<String>,
    /// Let nothing write to the root file system
    #[arg(long, help_heading = "Workload")]
    pub read_only: bool,
    /// Give the command a fork point, /dev/fork-point: see `vmm fork`
    #[arg(long, help_heading = "Workload")]
    pub fork_point: bool,
    /// Keep standard input open and pass it to the command
    #[arg(short, long, help_heading = "Workload")]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, help_heading = "Workload")]
    pub tty: bool,
    /// The container.
    #[command(flatten)]
    pub container: ContainerArgs,
    /// What it sees beside its image.
    #[command(flatten)]
    pub volumes: VolumeArgs,
    /// What it is connected to.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// Name of the machine; one is made up if not given
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub name: Option<MachineName>,
    /// Let the machine run in the background and print its id
    #[arg(short, long, help_heading = "Machine")]
    pub detach: bool,
    /// With -i and -t, the keys that leave the machine running without its client
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, help_heading = "Machine")]
    pub detach_keys: DetachKeys,
    /// Remove the machine when it ends; what it writes is in its memory
    #[arg(long, help_heading = "Machine")]
    pub rm: bool,
    /// The machine's life.
    #[command(flatten)]
    pub life: LifeArgs,
    /// Boot FILE in place of the guest image's kernel
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    pub kernel: Option<PathBuf>,
    /// Where the machine may start.
    #[command(flatten)]
    pub templates: TemplateArgs,
    /// Say on standard error where the time went, step by step
    #[arg(
        long,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text",
        help_heading = "Machine"
    )]
    pub timings: Option<TimingsFormat>,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    pub help: Option<bool>,

    /// The image's name unless --image is given, then the command and its arguments
    #[arg(value_name = "NAME|COMMAND", trailing_var_arg = true)]
    pub words: Vec<String>,
}

/// Whether machines start as clones of templates.
#[derive(Debug, Clone, Default, Args)]
pub struct TemplateArgs {
    /// Boot, even where there is a template to start from, and leave none
    #[arg(
        long,
        env = "VMM_NO_TEMPLATE",
        hide_env_values = true,
        // The variable may say 1, as people write it.
        value_parser = FalseyValueParser::new(),
        help_heading = "Machine"
    )]
    pub no_template: bool,
    /// Remove templates that were not used for long when all take more than SIZE on the disk [default: 2g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "VMM_TEMPLATE_LIMIT",
        hide_env_values = true,
        help_heading = "Machine"
    )]
    pub template_limit: Option<ByteSize>,
}

/// Arguments of `vmm prepare`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm prepare app
  vmm prepare --cpus 2 --memory 512m app
  vmm prepare --base app

A template serves all runs of its image with the same --cpus and --memory, whatever they run; one made with --base serves every
image of about the same size, and takes longer to start.")]
pub struct PrepareArgs {
    /// Processor time of the machines to come, as with `vmm run`
    #[arg(long, value_name = "NUMBER", default_value_t)]
    pub cpus: CpuQuota,
    /// Memory of their workloads, as with `vmm run`
    #[arg(short, long, value_name = "SIZE", default_value_t)]
    pub memory: MemoryLimit,
    /// Prepare for machines of this --storage alone
    #[arg(long, value_name = "SIZE")]
    pub storage: Option<StorageSize>,
    /// Prepare for machines of --rm alone
    #[arg(long, conflicts_with = "storage")]
    pub rm: bool,
    /// Make a template for every image of about this size
    #[arg(long)]
    pub base: bool,
    /// With the device for directories of the host
    #[arg(long, hide = true)]
    pub shares: bool,
    /// What the machines to come are connected to: user, or none
    #[arg(long, value_name = "NETWORK", default_value_t, value_parser = network::parse_prepared)]
    pub network: TypedNetwork,
    /// With a network interface of this MTU, and what its link does
    #[arg(long, hide = true, value_name = "MTU[:OFFLOADS]")]
    pub interface: Option<InterfaceShape>,
    /// With so many volumes and disks of the host
    #[arg(long, hide = true, value_name = "NUMBER", default_value_t = 0)]
    pub disks: u8,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// Make both kinds, and give way to everything else and to whoever makes a template already
    #[arg(long, hide = true)]
    pub background: bool,
    /// Remove templates that were not used for long when all take more than SIZE on the disk [default: 2g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "VMM_TEMPLATE_LIMIT",
        hide_env_values = true
    )]
    pub template_limit: Option<ByteSize>,
    /// The image's name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// Commands of `vmm template`.
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List the templates
    #[command(visible_alias = "list")]
    Ls(Later<TemplateListArgs>),
    /// Remove templates that no machine uses
    Rm(Later<TemplateRmArgs>),
}

/// Arguments of `vmm template ls`.
#[derive(Debug, Clone, Copy, Args)]
pub struct TemplateListArgs {
    /// The format.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `vmm template rm`.
#[derive(Debug, Clone, Args)]
pub struct TemplateRmArgs {
    /// Ids or beginnings of ids
    #[arg(value_name = "TEMPLATE", required = true)]
    pub templates: Vec<String>,
}

/// Which image `vmm run` was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunImage<'a> {
    /// The one in a file or on standard input.
    File {
        /// Where to read it from.
        source: &'a FileOrStdin,
        /// Which of several images in it.
        select: Option<&'a str>,
    },
    /// The one of this name or id in the store.
    Name(&'a str),
}

impl RunArgs {
    /// Tells the image from the command: the first word is the image's name unless `--image` was given.
    ///
    /// An empty command means the image's own. A `--` between name and command is dropped.
    #[must_use]
    pub fn image_and_command(&self) -> (RunImage<'_>, &[String]) {
        image_and_command(self.image.as_ref(), self.select.as_deref(), &self.words)
    }

    /// Tells whether this process only joins a machine with a monitor of its own: one of which something stays, or that its client may
    /// leave. A run that is to say where the time went is its own monitor.
    #[must_use]
    pub fn joins(&self) -> bool {
        let can_be_left = self.interactive && self.tty;
        !self.detach && self.timings.is_none() && (!self.rm || can_be_left)
    }

    /// Tells whether what the workload writes is recorded.
    #[must_use]
    pub fn has_log(&self) -> bool {
        self.detach || self.joins()
    }
}

fn image_and_command<'a>(
    image: Option<&'a FileOrStdin>,
    select: Option<&'a str>,
    words: &'a [String],
) -> (RunImage<'a>, &'a [String]) {
    if let Some(source) = image {
        return (RunImage::File { source, select }, words);
    }
    let (name, command) = match words.split_first() {
        Some((name, command)) => (name.as_str(), command),
        // `parse` lets nobody get here.
        None => ("", [].as_slice()),
    };
    let command = match command.split_first() {
        Some((dashes, rest)) if dashes == "--" => rest,
        _ => command,
    };
    (RunImage::Name(name), command)
}

/// A place to read an archive from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileOrStdin {
    /// A file or directory.
    File(PathBuf),
    /// Standard input, typed as `-`.
    Stdin,
}

impl From<OsString> for FileOrStdin {
    fn from(text: OsString) -> Self {
        if text == "-" {
            Self::Stdin
        } else {
            Self::File(PathBuf::from(text))
        }
    }
}

/// How `--timings` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimingsFormat {
    /// A table.
    Text,
    /// One JSON object.
    Json,
}

/// How a list is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// Columns.
    #[default]
    Table,
    /// One JSON array.
    Json,
}

/// The choice of format that every list offers.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct ListArgs {
    /// How to print the list
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: ListFormat,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
}

impl ListArgs {
    /// Tells whether to print JSON.
    #[must_use]
    pub fn is_json(self) -> bool {
        self.json || self.format == ListFormat::Json
    }
}

/// Arguments of `vmm kill`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm kill web
  vmm kill -s TERM web
  vmm kill -s 10 3f4e8a")]
pub struct KillArgs {
    /// The signal, by name or number
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: crate::state::Signal,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm rm`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm rm web
  vmm rm -f web")]
pub struct RmArgs {
    /// Kill the machine if it runs
    #[arg(short, long)]
    pub force: bool,
    /// Remove the volumes that were made for it, too
    #[arg(short, long)]
    pub volumes: bool,
    /// Names, ids or beginnings of ids
    #[arg(value_name = "MACHINE", required = true)]
    pub machines: Vec<String>,
}

/// Arguments of `vmm load`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm load -i app.oci
  vmm load -i build/layout --name app:1.2
  docker save app | vmm load")]
pub struct LoadArgs {
    /// Read FILE, an archive or a directory, instead of standard input
    #[arg(short, long, value_name = "FILE|-")]
    pub input: Option<FileOrStdin>,
    /// Name for the image, in place of the archive's own
    #[arg(long, value_name = "NAME[:TAG]")]
    pub name: Option<String>,
    /// With several images in FILE: import only the one of this name
    #[arg(long, value_name = "REFERENCE")]
    pub select: Option<String>,
    /// Print only the image's id
    #[arg(short, long)]
    pub quiet: bool,
    /// What the import may cost.
    #[command(flatten)]
    pub limits: ImportLimitArgs,
}

/// What an import may cost, for the commands that import.
#[derive(Debug, Clone, Default, Args)]
pub struct ImportLimitArgs {
    /// Refuse an image with which the store would take more than SIZE on the disk
    #[arg(
        long,
        value_name = "SIZE",
        env = "VMM_STORE_LIMIT",
        hide_env_values = true,
        help_heading = "Import"
    )]
    pub store_limit: Option<ByteSize>,
    /// Refuse an image whose layers unpack to more than SIZE [default: 64g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "VMM_UNPACKED_LIMIT",
        hide_env_values = true,
        help_heading = "Import"
    )]
    pub unpacked_limit: Option<ByteSize>,
    /// Refuse an image whose files have more than SIZE together, holes included [default: 256g]
    #[arg(
        long,
        value_name = "SIZE",
        env = "VMM_FILES_LIMIT",
        hide_env_values = true,
        help_heading = "Import"
    )]
    pub files_limit: Option<ByteSize>,
}

/// Arguments of `vmm save`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm save -o app.oci app
  vmm save app | ssh host vmm load")]
pub struct SaveArgs {
    /// Write to FILE instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The image's name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// Arguments of `vmm tag`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm tag app app:1.2")]
pub struct TagArgs {
    /// The image's name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The new name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
}

/// Arguments of `vmm images` and `vmm image ls`.
#[derive(Debug, Clone, Args)]
pub struct ImagesArgs {
    /// Print only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print it: table, json, a template as in '{{.Repository}}:{{.Tag}} {{.ID}}', or a table of one
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// List only the images of this name
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
}

/// Arguments of `vmm history`.
#[derive(Debug, Clone, Args)]
pub struct HistoryArgs {
    /// Do not shorten what the steps did
    #[arg(long)]
    pub no_trunc: bool,
    /// The format.
    #[command(flatten)]
    pub list: ListArgs,
    /// The image's name or id
    #[arg(value_name = "IMAGE")]
    pub image: String,
}

/// Arguments of `vmm rmi` and `vmm image rm`.
#[derive(Debug, Clone, Args)]
pub struct RmiArgs {
    /// Remove all names of an image that is given by id
    #[arg(short, long)]
    pub force: bool,
    /// Names or ids
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
}

/// Arguments of `vmm prune` and `vmm image prune`.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Remove every image that no machine uses, not only those without a name
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Commands of `vmm image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// List the images of the store
    #[command(visible_alias = "list")]
    Ls(Later<ImagesArgs>),
    /// Import images
    Load(Later<LoadArgs>),
    /// Write images to an archive
    Save(Later<SaveArgs>),
    /// Give an image another name
    Tag(Later<TagArgs>),
    /// Show the steps an image was built by
    History(Later<HistoryArgs>),
    /// Remove names, and images that have no other name
    Rm(Later<RmiArgs>),
    /// Remove what no image name needs
    Prune(Later<PruneArgs>),
}

/// Commands of `vmm system`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show what the store takes on the disk
    Df(Later<DfArgs>),
    /// Start the machines again that a restart of the host has taken, as their restart policies say
    Restore(Later<SystemRestoreArgs>),
}

/// Arguments of `vmm system restore`.
#[derive(Debug, Clone, Copy, Args)]
#[command(after_help = "\
Machines of --restart always, on-failure and unless-stopped are started, each in the background; those
that a person had stopped only if always. Names are printed as machines run. What cannot be started
is named with the reason, and the exit code is 1 then; so is what has not started in two minutes, which
goes on all the same. Machines that run are left alone.

The unit files vmm-restore.service, for the system and for users, do this when a host starts.")]
pub struct SystemRestoreArgs {}

/// Arguments of `vmm system df`.
#[derive(Debug, Clone, Args)]
pub struct DfArgs {
    /// The format.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Commands of `vmm guest`.
#[derive(Debug, Subcommand)]
pub enum GuestCommand {
    /// List the guest images that are installed
    #[command(visible_alias = "ls")]
    List(Later<GuestListArgs>),
    /// Let new machines use this version; those that run keep theirs
    Use(Later<GuestUseArgs>),
    /// Go back to the version that was used before
    Rollback,
    /// Make a guest image from a kernel and an agent
    #[command(hide = true)]
    Pack(Later<GuestPackArgs>),
}

/// Arguments of `vmm guest list`.
#[derive(Debug, Clone, Args)]
pub struct GuestListArgs {
    /// The format.
    #[command(flatten)]
    pub list: ListArgs,
}

/// Arguments of `vmm guest use`.
#[derive(Debug, Clone, Args)]
pub struct GuestUseArgs {
    /// The version, as `vmm guest list` shows it, or the beginning of it
    #[arg(value_name = "VERSION")]
    pub version: String,
}

/// Arguments of `vmm guest pack`.
#[derive(Debug, Clone, Args)]
pub struct GuestPackArgs {
    /// The kernel, an uncompressed ELF file
    #[arg(long, value_name = "VMLINUX")]
    pub kernel: PathBuf,
    /// The kernel's release, as `uname -r` prints it
    #[arg(long, value_name = "RELEASE")]
    pub kernel_release: String,
    /// The configuration that the kernel was built with
    #[arg(long, value_name = "CONFIG")]
    pub config: PathBuf,
    /// The agent, a static executable
    #[arg(long, value_name = "BINARY")]
    pub agent: PathBuf,
    /// An empty ext4 file system, as which the disks of machines that are kept begin
    #[arg(long, value_name = "FILE")]
    pub blank: Option<PathBuf>,
    /// The directory that gets the version and the link `current`
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
}

/// Arguments of `vmm doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const BENCH_EXAMPLES: &str = "\
Examples:
  vmm bench --image app.oci
  vmm bench --html report.html app
  vmm bench --engines vmm,crun --concurrency 1 --runs 20 app
  vmm bench --json --time-limit 2m app -- /bin/app --version > report.json

The measured command prints one byte and exits: the image's shell if none is given. Every command is run as the
container's root, without a network. What could not be measured is said, with the reason.";

/// Arguments of `vmm bench`.
#[derive(Debug, Clone, Args)]
#[command(
    override_usage = "vmm bench [OPTIONS] --image <FILE|-> [-- COMMAND [ARG]...]\n       vmm bench [OPTIONS] <NAME> [-- COMMAND [ARG]...]",
    after_help = BENCH_EXAMPLES
)]
pub struct BenchArgs {
    /// Measure with the image in FILE: an OCI archive or directory, a `docker save` archive, or - for standard input
    #[arg(long, value_name = "FILE|-", help_heading = "Image")]
    pub image: Option<FileOrStdin>,
    /// With several images in FILE: the name of the one to take
    #[arg(
        long,
        value_name = "REFERENCE",
        requires = "image",
        help_heading = "Image"
    )]
    pub select: Option<String>,
    /// What an import may cost.
    #[command(flatten)]
    pub limits: ImportLimitArgs,
    /// Compare only these; otherwise every one that is found
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub engines: Vec<BenchEngine>,
    /// Measure only these; otherwise all
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub figures: Vec<BenchFigure>,
    /// Starts to measure for each engine and concurrency, 1 to 10000; p99 is only said of 100 and more
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// How many starts to keep under way at once, 1 to 1000 each
    #[arg(long, value_name = "NUMBER,...", value_delimiter = ',', default_value = "1,10,100", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub concurrency: Vec<u32>,
    /// Leave out what does not fit into this time, in units of s, m or h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time_limit)]
    pub time_limit: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Write a page with charts to FILE, too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// The image's name unless --image is given, then the command whose start is measured
    #[arg(value_name = "NAME|COMMAND", trailing_var_arg = true)]
    pub words: Vec<String>,
}

impl BenchArgs {
    /// Tells the image from the command, as [`RunArgs::image_and_command`].
    #[must_use]
    pub fn image_and_command(&self) -> (RunImage<'_>, &[String]) {
        image_and_command(self.image.as_ref(), self.select.as_deref(), &self.words)
    }
}

/// What `vmm bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchFigure {
    /// The time to the first byte of output and to the exit.
    Start,
    /// The memory of instances that wait.
    Idle,
    /// Loops bound by processor, memory and files.
    Loops,
}

/// What `vmm bench` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchEngine {
    /// This program.
    Vmm,
    /// The container runtime in C.
    Crun,
    /// The container runtime in Go.
    Runc,
    /// The engine without a daemon.
    Podman,
    /// The engine with one.
    Docker,
}

/// Arguments of `vmm completion`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm completion bash > ~/.local/share/bash-completion/completions/vmm")]
pub struct CompletionArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `vmm man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// The directory, which must exist
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Parses the command line.
///
/// # Errors
///
/// A report with exit code 125 for what cannot be understood. Help and version, when asked for,
/// have been printed then, and the report says nothing more.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Report> {
    understand(arguments).map_err(|report| report.or_exit_code(ExitCode::APPLIANCE_FAILED))
}

fn understand(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Report> {
    let cli = Cli::try_parse_from(arguments).map_err(|error| report_of(&error))?;
    let (verb, has_image) = match &cli.command {
        Command::Run(arguments) => (
            "run",
            arguments.image.is_some() || arguments.restore.is_some() || !arguments.words.is_empty(),
        ),
        Command::Create(arguments) => (
            "create",
            arguments.run.image.is_some() || !arguments.run.words.is_empty(),
        ),
        Command::Bench(arguments) => (
            "bench",
            arguments.image.is_some() || !arguments.words.is_empty(),
        ),
        _ => return Ok(cli),
    };
    if has_image {
        return Ok(cli);
    }
    let error = UsageError("no image was named".to_owned());
    Err(Report::new(error).with_help(format!(
        "give a name that `vmm images` lists, or a file: vmm {verb} --image app.oci"
    )))
}

/// Says in our way what the parser found.
fn report_of(error: &clap::Error) -> Report {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return match error.print() {
                Ok(()) => Report::printed(ExitCode::SUCCESS),
                Err(error) => Report::of_output(error),
            };
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            return missing_command(error);
        }
        _ => {}
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let first = paragraphs.next().unwrap_or_default();
    let sentence = words_of(first.strip_prefix("error: ").unwrap_or(first));
    let tip = paragraphs
        .find_map(|paragraph| paragraph.trim_start().strip_prefix("tip: "))
        .and_then(|tips| tips.lines().next());
    let (sentence, help) = match (error.get(ContextKind::InvalidArg), error.source()) {
        (Some(ContextValue::String(argument)), Some(source)) => {
            (format!("{argument}: {}", chain(source)), help_of(source))
        }
        _ => (sentence, tip.map(words_of)),
    };
    let help = help.unwrap_or_else(|| "add --help to see what the command takes".to_owned());
    Report::new(UsageError(sentence)).with_help(help)
}

/// What to do about a value that was refused, if its type knows.
fn help_of(source: &(dyn Error + 'static)) -> Option<String> {
    let of_limit = source.downcast_ref::<LimitError>().and_then(Help::help);
    let of_moment = || source.downcast_ref::<MomentError>().and_then(Help::help);
    let of_log = || source.downcast_ref::<LogConfigError>().and_then(Help::help);
    let of_keys = || {
        source
            .downcast_ref::<DetachKeysError>()
            .and_then(Help::help)
    };
    of_limit.or_else(of_moment).or_else(of_log).or_else(of_keys)
}

/// Says which commands there are.
fn missing_command(error: &clap::Error) -> Report {
    let mut sentence = "no command was given".to_owned();
    if let Some(ContextValue::Strings(known)) = error.get(ContextKind::ValidSubcommand)
        && let Some(shown) = shown_commands(&Cli::command(), known)
    {
        sentence.push_str(": there are ");
        sentence.push_str(&shown.join(", "));
    }
    Report::new(UsageError(sentence)).with_help("add --help to see what they do")
}

/// Of the commands that the parser knows at some place, aliases among them, finds those that help lists there.
fn shown_commands(command: &clap::Command, known: &[String]) -> Option<Vec<String>> {
    let shown: Vec<String> = command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .map(|subcommand| subcommand.get_name().to_owned())
        .collect();
    if !shown.is_empty() && shown.iter().all(|name| known.contains(name)) {
        return Some(shown);
    }
    command
        .get_subcommands()
        .find_map(|subcommand| shown_commands(subcommand, known))
}

/// Joins the words of a text that was broken into lines.
fn words_of(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The command line cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);

/// Parses `NAME=VALUE` or `NAME`.
fn parse_variable(text: &str) -> Result<Variable, ArgumentError> {
    parse_environment_line(text).ok_or_else(|| ArgumentError::VariableName(text.to_owned()))
}

/// Parses `NAME=VALUE` or `NAME`; nothing if the name is empty or holds a zero byte.
pub(crate) fn parse_environment_line(text: &str) -> Option<Variable> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    if name.is_empty() || text.contains('\0') {
        return None;
    }
    let name = name.to_owned();
    Some(match value {
        Some(value) => Variable::Set {
            name,
            value: value.to_owned(),
        },
        None => Variable::Inherit { name },
    })
}

/// Takes a number of seconds, minutes or hours, above zero.
fn parse_time_limit(text: &str) -> Result<Duration, ArgumentError> {
    let refused = || ArgumentError::TimeLimit(text.to_owned());
    let (number, unit_seconds) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => return Err(refused()),
    };
    match number.parse::<u32>() {
        Ok(0) | Err(_) => Err(refused()),
        Ok(number) => Ok(Duration::from_secs(u64::from(number) * unit_seconds)),
    }
}

/// Takes an absolute path, as docker does.
fn parse_workdir(text: &str) -> Result<String, ArgumentError> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err(ArgumentError::RelativeWorkdir(text.to_owned()))
    }
}

/// Takes anything that could be resolved in the image.
fn parse_user(text: &str) -> Result<String, ArgumentError> {
    let user = text.split(':').next().unwrap_or_default();
    if user.is_empty() || text.matches(':').count() > 1 {
        Err(ArgumentError::User(text.to_owned()))
    } else {
        Ok(text.to_owned())
    }
}

/// Longest host name in bytes that Linux keeps, `__NEW_UTS_LEN` in the kernel's `include/uapi/linux/utsname.h`.
const MAX_HOSTNAME_BYTES: usize = 64;

/// Takes what Linux and RFC 1123 both take for a host name.
fn parse_hostname(text: &str) -> Result<String, ArgumentError> {
    let label_is_valid = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    if text.len() <= MAX_HOSTNAME_BYTES && text.split('.').all(label_is_valid) {
        Ok(text.to_owned())
    } else {
        Err(ArgumentError::Hostname(text.to_owned()))
    }
}

/// Why the value of an option was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// `--env` without a name.
    #[error("'{0}' names no variable")]
    VariableName(String),
    /// `--workdir` with a relative path.
    #[error("'{0}' is no absolute path")]
    RelativeWorkdir(String),
    /// `--user` with an empty user or too many parts.
    #[error("'{0}' is no user or user:group")]
    User(String),
    /// `--time-limit` that is no time.
    #[error("'{0}' is no time as in 90s, 10m or 1h")]
    TimeLimit(String),
    /// `--hostname` that no host can have.
    #[error("'{0}' is no host name of at most 64 letters, digits, dots and hyphens")]
    Hostname(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_arguments(line: &[&str]) -> Later<RunArgs> {
        let words = ["vmm", "run"].iter().chain(line).map(OsString::from);
        match parse(words).unwrap().command {
            Command::Run(arguments) => arguments,
            other => panic!("parsed as {other:?}"),
        }
    }

    fn refusal(line: &[&str]) -> String {
        let words = ["vmm"].iter().chain(line).map(OsString::from);
        let report = parse(words).unwrap_err();
        assert_eq!(report.exit_code(), ExitCode::APPLIANCE_FAILED);
        report.to_string()
    }

    fn file(path: &str) -> FileOrStdin {
        FileOrStdin::File(path.into())
    }

    #[test]
    fn the_parser_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_after_a_file_may_follow_dashes_or_not() {
        let with = run_arguments(&["--image", "a.oci", "--", "ls", "-l"]);
        let without = run_arguments(&["--image", "a.oci", "ls", "-l"]);

        let source = file("a.oci");
        let image = RunImage::File {
            source: &source,
            select: None,
        };
        let command = ["ls".to_owned(), "-l".to_owned()];
        assert_eq!(with.image_and_command(), (image.clone(), &command[..]));
        assert_eq!(without.image_and_command(), (image, &command[..]));
    }

    #[test]
    fn the_first_word_is_the_images_name_without_a_file() {
        let plain = run_arguments(&["app", "sh", "-c", "exit 3"]);
        let dashes = run_arguments(&["app", "--", "--rm"]);
        let bare = run_arguments(&["app"]);

        let command = ["sh", "-c", "exit 3"].map(str::to_owned);
        assert_eq!(
            plain.image_and_command(),
            (RunImage::Name("app"), &command[..])
        );
        let command = ["--rm".to_owned()];
        assert_eq!(
            dashes.image_and_command(),
            (RunImage::Name("app"), &command[..])
        );
        assert_eq!(bare.image_and_command(), (RunImage::Name("app"), &[][..]));
    }

    #[test]
    fn options_after_the_images_name_belong_to_the_command() {
        let arguments = run_arguments(&["-i", "app", "cat", "-t", "--help"]);

        assert!(arguments.interactive);
        assert!(!arguments.tty);
        assert_eq!(arguments.words, ["app", "cat", "-t", "--help"]);
    }

    #[test]
    fn a_dash_is_standard_input() {
        let arguments = run_arguments(&["--image", "-"]);

        assert_eq!(arguments.image, Some(FileOrStdin::Stdin));
    }

    #[test]
    fn limits_have_the_documented_defaults() {
        let arguments = run_arguments(&["app"]);

        assert_eq!(arguments.cpus.to_string(), "1");
        assert_eq!(arguments.memory.to_string(), "128m");
    }

    #[test]
    fn h_is_the_host_name_as_with_docker() {
        let arguments = run_arguments(&["-h", "web-1.example", "app"]);

        assert_eq!(arguments.hostname.as_deref(), Some("web-1.example"));
    }

    #[test]
    fn a_variable_without_a_value_is_inherited() {
        let arguments = run_arguments(&["-e", "A=b=c", "-e", "PATH", "-e", "E=", "app"]);

        let set = |name: &str, value: &str| Variable::Set {
            name: name.into(),
            value: value.into(),
        };
        let inherit = Variable::Inherit {
            name: "PATH".into(),
        };
        assert_eq!(arguments.env, [set("A", "b=c"), inherit, set("E", "")]);
    }

    #[test]
    fn what_stays_or_may_be_left_has_a_monitor_of_its_own() {
        assert!(run_arguments(&["app"]).joins());
        assert!(run_arguments(&["-it", "--rm", "app"]).joins());
        assert!(!run_arguments(&["-i", "--rm", "app"]).joins());
        assert!(!run_arguments(&["-dit", "app"]).joins());
        assert!(!run_arguments(&["-it", "--timings", "app"]).joins());
    }

    #[test]
    fn signals_are_passed_on_unless_that_is_said() {
        let passes = |line: &[&str]| {
            let words = ["vmm", "attach"].iter().chain(line).map(OsString::from);
            match parse(words).unwrap().command {
                Command::Attach(arguments) => arguments.sig_proxy,
                other => panic!("parsed as {other:?}"),
            }
        };

        assert!(passes(&["web"]));
        assert!(passes(&["--sig-proxy", "web"]));
        assert!(passes(&["--sig-proxy=true", "web"]));
        assert!(!passes(&["--sig-proxy=false", "web"]));
    }

    #[test]
    fn keys_that_there_are_not_get_one_sentence_and_help() {
        let refused = refusal(&["attach", "--detach-keys", "ctrl-p,ctrl-1", "web"]);

        assert!(
            refused.starts_with("vmm: --detach-keys <KEYS>: unknown character: 'ctrl-1'\nhelp: give single characters"),
            "{refused}"
        );
        assert!(refusal(&["run", "--detach-keys", "ab", "app"]).contains("'ab'"));
        assert!(refusal(&["exec", "--detach-keys", "ab", "web", "sh"]).contains("'ab'"));
        assert!(refusal(&["start", "--detach-keys", "ab", "web"]).contains("'ab'"));
    }

    #[test]
    fn limits_out_of_range_get_one_sentence_and_help() {
        assert_eq!(
            refusal(&["run", "--memory", "1", "app"]),
            "vmm: --memory <SIZE>: 1 is too little memory (1 bytes): the smallest limit is 6m\n\
             help: give a number with a unit b, k, m or g, as in --memory 64m"
        );
        assert_eq!(
            refusal(&["run", "--cpus", "0", "app"]),
            "vmm: --cpus <NUMBER>: 0 processors are too few: the smallest quota is 0.01\n\
             help: give a number from 0.01 to 32, as in --cpus 1.5"
        );
    }

    #[test]
    fn usage_errors_are_one_sentence_with_help() {
        assert_eq!(
            refusal(&["kill"]),
            "vmm: the following required arguments were not provided: <MACHINE>...\n\
             help: add --help to see what the command takes"
        );
        assert!(
            refusal(&["guest"])
                .starts_with("vmm: no command was given: there are list, use, rollback\nhelp: ")
        );
        assert!(refusal(&["run"]).starts_with("vmm: no image was named\nhelp: "));
        assert!(refusal(&["bench"]).contains("vmm bench --image app.oci"));
        assert!(refusal(&["bench", "--runs", "0", "app"]).contains("--runs"));
        assert!(refusal(&["bench", "--engines", "x", "app"]).contains("crun"));
        assert!(refusal(&["bench", "--time-limit", "0s", "app"]).contains("'0s' is no time"));
        assert!(refusal(&["run", "--imag", "x"]).contains("'--image'"));
        assert!(refusal(&["run", "--workdir", "tmp", "app"]).contains("'tmp' is no absolute path"));
        assert!(refusal(&["run", "--hostname", "-", "app"]).contains("'-' is no host name"));
        assert!(refusal(&["run", "--name", "x", "app"]).contains("'x' is no machine name"));
        assert!(refusal(&["run", "--env", "=x", "app"]).contains("'=x' names no variable"));
        assert!(refusal(&["kill", "-s", "NOPE", "web"]).contains("'NOPE' is no signal"));
        assert!(refusal(&["logs", "--since", "x", "web"]).contains("help: give a time like"));
        assert!(
            refusal(&["run", "--log-driver", "x", "app"]).contains("help: there are json-file")
        );
    }
}
