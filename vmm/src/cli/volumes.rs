//! Flags of `vmm run` about what the workload sees beside its image.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::machine::ShareFailure;
use crate::volumes::{MountError, TypedMount, in_order};

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
        in_order(self.volume.iter().chain(&self.mount).cloned().collect())
    }
}

/// The value of `-v`, in which a relative path begins at the current directory.
fn parse_volume(text: &str) -> Result<TypedMount, MountError> {
    let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    TypedMount::of_volume_flag(text, &directory)
}
