//! What can be wrong with volumes.

use std::io;

use thiserror::Error;

use super::record::FORMAT;
use crate::dirs::DirectoriesError;
use crate::report::Help;
use crate::volumes::VolumeName;

/// What is wrong with the files of a volume.
#[derive(Debug, Error)]
pub enum VolumeFault {
    /// There is no record.
    #[error("its volume.json is not there")]
    None,
    /// The record cannot be read.
    #[error("its volume.json cannot be read")]
    Read(#[source] io::Error),
    /// The record is none.
    #[error("its volume.json makes no sense")]
    NotARecord(#[source] serde_json::Error),
    /// The record is another version's.
    #[error("it has format {found}, and this vmm knows {FORMAT}")]
    Format {
        /// The one that it has.
        found: u32,
    },
    /// The record is another volume's.
    #[error("its volume.json is that of '{0}'")]
    OtherName(VolumeName),
    /// The disk cannot be opened.
    #[error("its disk cannot be opened")]
    Disk(#[source] io::Error),
    /// Something else has the disk's name.
    #[error("its disk is not a file")]
    NotAFile,
    /// The disk was cut off.
    #[error("its disk is {found_bytes} bytes long, not {expected_bytes}")]
    TooShort {
        /// How long it is.
        found_bytes: u64,
        /// How long it was made.
        expected_bytes: u64,
    },
}

/// Why something cannot be done with a volume.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// There is none of this name.
    #[error("no such volume: {0}")]
    None(String),
    /// There is one already.
    #[error("a volume '{0}' exists already")]
    Exists(VolumeName),
    /// Its files are not as they were.
    #[error("volume '{name}' cannot be used")]
    Damaged {
        /// Which.
        name: VolumeName,
        /// What is wrong.
        #[source]
        source: VolumeFault,
    },
    /// Somebody has it.
    #[error("volume '{name}' is in use{}", by(.users))]
    InUse {
        /// Which.
        name: VolumeName,
        /// The names of machines; empty if somebody else has it.
        users: Vec<String>,
    },
    /// It would lose something.
    #[error("volume '{name}' has {size}: a volume only grows")]
    Shrink {
        /// Which.
        name: VolumeName,
        /// How large it is.
        size: String,
    },
    /// It cannot be made.
    #[error("cannot make volume '{name}'")]
    Make {
        /// Which.
        name: VolumeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be locked.
    #[error("cannot lock volume '{name}'")]
    Lock {
        /// Which.
        name: VolumeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("cannot remove volume '{name}'")]
    Remove {
        /// Which.
        name: VolumeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its disk fails.
    #[error("cannot use the disk of volume '{name}'")]
    Disk {
        /// Which.
        name: VolumeName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The volumes cannot be listed.
    #[error("cannot list the volumes")]
    List(#[source] io::Error),
    /// The machines cannot be asked which volumes they need.
    #[error("cannot see which machines use a volume")]
    Users(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The directory of all cannot be made.
    #[error(transparent)]
    Directory(#[from] DirectoriesError),
}

/// Who has it, as the end of a sentence.
fn by(users: &[String]) -> String {
    match users {
        [] => String::new(),
        [user] => format!(" by machine '{user}'"),
        users => format!(" by the machines '{}'", users.join("', '")),
    }
}

impl Help for VolumeError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::None(_) => "see what there is with `vmm volume ls`".to_owned(),
            Self::Exists(name) => format!("name another, or remove it with `vmm volume rm {name}`"),
            Self::Damaged {
                source: VolumeFault::Format { .. },
                ..
            } => "use the vmm that made it, or a newer one".to_owned(),
            Self::Damaged { name, .. } => {
                format!("put its files back, or remove it with `vmm volume rm {name}`")
            }
            Self::InUse { users, .. } => match users.as_slice() {
                [] => "see which machine has it with `vmm ps`, and end that".to_owned(),
                [user, ..] => format!("end and remove the machine with `vmm rm -f {user}`"),
            },
            Self::Make { .. } | Self::Disk { .. } => {
                "the file system of the volumes' directory needs room, and must know files of that size"
                    .to_owned()
            }
            Self::Shrink { .. } => {
                "make a smaller one, and copy what is to stay in a machine that has both".to_owned()
            }
            Self::Directory(error) => return error.help(),
            Self::Lock { .. } | Self::Remove { .. } | Self::List(_) | Self::Users(_) => return None,
        };
        Some(help)
    }
}
