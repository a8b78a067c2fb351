//! Flags of `vmm run` about what the workload sees beside its image, and `vmm volume`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Later;
use super::life::parse_label;
use crate::machine::ShareFailure;
use crate::storage::{StorageSize, StorageSizeError};
use crate::volumes::{Limited, MountError, RateError, TypedMount, TypedRate, VolumeName, in_order};

/// Directories of the host, volumes, file systems in memory.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Volumes")]
pub struct VolumeArgs {
    /// Mount a file or directory of the host, a volume, or a volume of the machine's own; options are ro, nocopy, U, cache=auto|none|always
    ///
    /// A source that begins with '/' or '.' is a path, which is made a directory if there is nothing; another one is a
    /// volume's name, which is made if there is none.
    #[arg(
        short,
        long,
        value_name = "[SOURCE:]PATH[:OPTIONS]",
        value_parser = parse_volume
    )]
    volume: Vec<TypedMount>,
    /// The same in fields: type=bind|volume|tmpfs, source, destination, readonly, and more
    #[arg(
        long,
        value_name = "FIELD=VALUE,...",
        value_parser = TypedMount::of_mount_flag
    )]
    mount: Vec<TypedMount>,
    /// Mount the file system on a disk image or block device of the host (ext4), or give it to the command as a device, if PATH is below /dev
    #[arg(long, value_name = "FILE:PATH[:ro]", value_parser = parse_disk)]
    disk: Vec<TypedMount>,
    /// Mount what another machine mounts, at the same places
    #[arg(long, value_name = "MACHINE[:ro]")]
    pub volumes_from: Vec<String>,
    /// Read no more than so many bytes a second from a volume or disk: its name, its file, or where it is mounted
    #[arg(long, value_name = "DISK:SIZE")]
    device_read_bps: Vec<TypedRate>,
    /// Write no more than so many bytes a second
    #[arg(long, value_name = "DISK:SIZE")]
    device_write_bps: Vec<TypedRate>,
    /// Read no more than so many times a second
    #[arg(long, value_name = "DISK:COUNT")]
    device_read_iops: Vec<TypedRate>,
    /// Write no more than so many times a second
    #[arg(long, value_name = "DISK:COUNT")]
    device_write_iops: Vec<TypedRate>,
    /// What becomes of the machine when the process that serves the host's directories fails
    #[arg(long, value_enum, value_name = "ACTION", default_value_t)]
    on_share_failure: OnShareFailure,
}

/// What becomes of a machine whose directories of the host are not served any more.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OnShareFailure {
    /// It ends
    #[default]
    End,
    /// It goes on, and what it does there fails with an I/O error
    Continue,
}

impl VolumeArgs {
    /// What becomes of the machine when what it sees of the host is not served any more.
    #[must_use]
    pub fn on_share_failure(&self) -> ShareFailure {
        match self.on_share_failure {
            OnShareFailure::End => ShareFailure::End,
            OnShareFailure::Continue => ShareFailure::Continue,
        }
    }

    /// All that was asked for, in the order in which it is mounted.
    ///
    /// # Errors
    ///
    /// If two are to be at one place.
    pub fn mounts(&self) -> Result<Vec<TypedMount>, MountError> {
        let typed = self.volume.iter().chain(&self.mount).chain(&self.disk);
        in_order(typed.cloned().collect())
    }
}

impl VolumeArgs {
    /// Notes with the mounts how fast their disks may be.
    ///
    /// # Errors
    ///
    /// If a limit is that of no disk of theirs.
    pub fn limit(&self, mounts: &mut [TypedMount]) -> Result<(), RateError> {
        let typed = [
            (&self.device_read_bps, Limited::ReadBytes),
            (&self.device_write_bps, Limited::WriteBytes),
            (&self.device_read_iops, Limited::ReadRequests),
            (&self.device_write_iops, Limited::WriteRequests),
        ];
        typed.into_iter().try_for_each(|(rates, limited)| {
            rates
                .iter()
                .try_for_each(|rate| rate.apply(limited, mounts))
        })
    }
}

/// The value of `--disk`, in which a relative path begins at the current directory.
fn parse_disk(text: &str) -> Result<TypedMount, MountError> {
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    TypedMount::of_disk_flag(text, &directory)
}

/// The value of `-v`, in which a relative path begins at the current directory.
fn parse_volume(text: &str) -> Result<TypedMount, MountError> {
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    TypedMount::of_volume_flag(text, &directory)
}

/// Commands of `vmm volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume, and print its name
    Create(Later<VolumeCreateArgs>),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(Later<VolumeListArgs>),
    /// Show all that is known of volumes
    Inspect(Later<VolumeInspectArgs>),
    /// Remove volumes that no machine uses, with all that is in them
    #[command(visible_alias = "remove")]
    Rm(Later<VolumeRmArgs>),
    /// Remove the volumes of machines that are gone
    Prune(Later<VolumePruneArgs>),
    /// Copy a volume, as it is now, to another volume or to a file
    Snapshot(Later<VolumeSnapshotArgs>),
    /// Put a copy in place of what a volume holds
    Restore(Later<VolumeRestoreArgs>),
    /// Make a volume larger
    Resize(Later<VolumeResizeArgs>),
}

/// Arguments of `vmm volume create`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm volume create data
  vmm volume create -o size=50g --label of=web data")]
pub struct VolumeCreateArgs {
    /// The driver: local is the only one
    #[arg(short, long, value_name = "DRIVER", default_value = "local", value_parser = ["local"])]
    pub driver: String,
    /// Write something on it
    #[arg(long, value_name = "KEY[=VALUE]", value_parser = parse_label)]
    pub label: Vec<(String, String)>,
    /// size=SIZE, how large it may become [default: 10g]
    #[arg(short, long = "opt", value_name = "OPTION", value_parser = parse_size_option)]
    pub options: Vec<StorageSize>,
    /// Its name; one is made up if not given
    #[arg(value_name = "NAME")]
    pub name: Option<VolumeName>,
}

/// Arguments of `vmm volume ls`.
#[derive(Debug, Clone, Args)]
pub struct VolumeListArgs {
    /// List only those: name=PART, label=KEY[=VALUE], dangling=true|false, driver=local
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// How to print it: table, json, a template as in '{{.Name}} {{.Size}}', or a table of one
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// The same as --format json, in one list
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Print only names
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `vmm volume inspect`.
#[derive(Debug, Clone, Args)]
pub struct VolumeInspectArgs {
    /// How to print it: json, or a template as in '{{.Mountpoint}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// Arguments of `vmm volume rm`.
#[derive(Debug, Clone, Args)]
pub struct VolumeRmArgs {
    /// Do not mind if there is no such volume
    #[arg(short, long)]
    pub force: bool,
    /// Names
    #[arg(value_name = "VOLUME", required = true)]
    pub volumes: Vec<String>,
}

/// Arguments of `vmm volume prune`.
#[derive(Debug, Clone, Args)]
pub struct VolumePruneArgs {
    /// Remove all volumes that no machine uses, those with names, too
    #[arg(short, long)]
    pub all: bool,
    /// Remove only those: label=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Arguments of `vmm volume snapshot`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
What is copied takes no room of its own where the file system can share it (XFS, btrfs). The volume must not be in use
by a machine that writes to it.

Examples:
  vmm volume snapshot data before-upgrade
  vmm volume snapshot data /srv/backup/data.img")]
pub struct VolumeSnapshotArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// The name of a new volume, or a path with a '/' of a new file
    #[arg(value_name = "NAME|FILE")]
    pub target: String,
}

/// Arguments of `vmm volume restore`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The volume must not be in use. It is made if there is none. All that it holds is replaced, or nothing.

Examples:
  vmm volume restore data before-upgrade
  vmm volume restore data /srv/backup/data.img")]
pub struct VolumeRestoreArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: VolumeName,
    /// The name of a volume, or a path with a '/' of a file
    #[arg(value_name = "NAME|FILE")]
    pub source: String,
}

/// Arguments of `vmm volume resize`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  vmm volume resize data 100g")]
pub struct VolumeResizeArgs {
    /// The volume
    #[arg(value_name = "VOLUME")]
    pub volume: String,
    /// How large it may become; no less than before
    #[arg(value_name = "SIZE")]
    pub size: StorageSize,
}

/// The value of docker's `--opt`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum OptionError {
    #[error("'{0}' is not known: the only option is size=SIZE")]
    Unknown(String),
    #[error(transparent)]
    Size(#[from] StorageSizeError),
}

fn parse_size_option(text: &str) -> Result<StorageSize, OptionError> {
    match text.strip_prefix("size=") {
        Some(size) => Ok(size.parse()?),
        None => Err(OptionError::Unknown(text.to_owned())),
    }
}
