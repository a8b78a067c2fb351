//! Files of a container, as tar streams: what is asked for.
//!
//! A task is done by a process of the agent's own, which has the standard streams of one: the tree comes on its standard output or goes
//! to its standard input. It exits with 0 if all went well. Otherwise its standard error has one line that says why; before that there
//! may be lines about what was left out.

use serde::{Deserialize, Serialize};

use crate::message::{DeclaredStreams, Process};

/// A task about a container's files.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Files {
    /// The names that all later messages use, as [`crate::Exec::process`].
    pub process: Process,
    /// What is to be done.
    pub task: FilesTask,
}

/// What is to be done with a container's files. Paths begin at the container's root, and lead nowhere else.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesTask {
    /// Packs what is at a path: a file, a link, or a directory with all that is below it, also what is mounted there. The first
    /// member is called like the path's last part, `.` if the path ends with that or is the root, and the names of all others begin
    /// with that.
    Read {
        /// The path.
        path: String,
        /// Whether a symbolic link at its end stands for what it leads to.
        follow: bool,
    },
    /// Unpacks a tree.
    Write {
        /// Where to.
        path: String,
        /// What is copied.
        source: CopySource,
        /// Whether the files keep the owners that the archive names, instead of becoming root's.
        keeps_owners: bool,
    },
    /// Lists what differs from the image: for each path `A` (it is new), `C` (it is another) or `D` (it is gone), the path from the
    /// root on, and a NUL byte; in no particular order.
    Changes,
    /// Packs what differs from the image, as the layer of an image (OCI image specification, "Image Layer Filesystem Changeset").
    Layer {
        /// Whether nothing of the container runs meanwhile.
        pauses: bool,
    },
    /// Packs the root, without what is mounted on it.
    Root,
}

/// What is copied to a container.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopySource {
    /// A file of this name; the archive's only member is called `.`.
    File(String),
    /// A directory of this name, which the archive calls `.`.
    Directory(String),
    /// What is in the directory that the archive calls `.`.
    Contents,
    /// All members of the archive.
    Archive,
}

impl FilesTask {
    /// The streams that it has.
    #[must_use]
    pub fn streams(&self) -> DeclaredStreams {
        let takes = matches!(self, Self::Write { .. });
        DeclaredStreams {
            stdin: takes,
            stdout: !takes,
            stderr: true,
        }
    }
}
