//! What the host asks about a container that runs, and what it is told.

use serde::{Deserialize, Serialize};

use crate::message::cut;

/// What can be asked about a container, or changed, while it runs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// What the container uses: answered with [`Answer::Usage`].
    Usage {
        /// How long to look at the processors, by the guest's clock; at most [`MAX_SAMPLE_MS`].
        over_ms: u32,
    },
    /// Its processes: answered with [`Answer::Processes`], in as many parts as it takes.
    Processes,
    /// Changes limits: answered with [`Answer::Limited`].
    Limit {
        /// The `linux.resources` object of an OCI runtime-spec `config.json`, as JSON. What it does not name stays as it is.
        resources: Vec<u8>,
    },
    /// Makes the file systems of the machine's volumes as large as their disks are by now: answered with [`Answer::Grown`].
    Grow,
}

/// The longest time of [`Question::Usage`].
pub const MAX_SAMPLE_MS: u32 = 10_000;

/// The most volumes of a machine that are on disks.
pub const MAX_VOLUMES: usize = 16;

/// The most processes that are listed of a container.
pub const MAX_PROCESSES: usize = 1024;

/// The most bytes that are told of a process's name, or of its arguments.
pub const MAX_ARGUMENT_BYTES: usize = 1024;

/// What a [`Question`] comes to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the container uses.
    Usage(Usage),
    /// Its processes, or the next of them.
    Processes(ProcessList),
    /// Its limits are changed.
    Limited,
    /// The file systems are as large as their disks: the lengths of these, of which there are at most [`MAX_VOLUMES`].
    Grown(Vec<u64>),
    /// There is no answer, for this reason. Of limits that could not all be changed, some may be.
    Failed(String),
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// Processor time that it used while it was looked at, in microseconds of one processor.
    pub cpu_us: u64,
    /// How long it was looked at, in microseconds of the guest's clock.
    pub over_us: u64,
    /// Memory without the files that the guest's kernel would give up first; none where that is not counted.
    pub memory_bytes: Option<u64>,
    /// The most memory that it may use: its limit, or all of the guest's.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub tasks: u64,
    /// Bytes read from block devices.
    pub read_bytes: u64,
    /// Bytes written to them.
    pub written_bytes: u64,
    /// Bytes that came over the machine's network interface.
    pub received_bytes: u64,
    /// Bytes that went over it.
    pub sent_bytes: u64,
}

/// Processes of a container, or some of them.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessList {
    /// In the order of their ids.
    pub processes: Vec<ProcessInfo>,
    /// All memory of the guest, of which processes have their part.
    pub guest_memory_bytes: u64,
    /// Whether there are no more parts.
    pub is_last: bool,
    /// Whether there are more processes than [`MAX_PROCESSES`].
    pub is_cut: bool,
}

/// A process of a container. Ids are those of the container's PID namespace.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProcessInfo {
    /// Its id.
    pub pid: u32,
    /// Its parent's, 0 for one outside of the container.
    pub parent: u32,
    /// The user that it acts as, as the guest counts users.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// What it does, as `/proc/PID/stat` has it: `R`, `S`, `D`, `Z`, `T`, …
    pub state: u8,
    /// Whether it leads a session.
    pub leads_session: bool,
    /// Whether it is in the foreground of its terminal.
    pub is_foreground: bool,
    /// Whether it keeps memory from being moved.
    pub locks_memory: bool,
    /// Its terminal's device number, as `/proc/PID/stat` has it; 0 for none.
    pub terminal: u32,
    /// How nice it is, -20 to 19.
    pub nice: i32,
    /// Its priority, as `/proc/PID/stat` has it.
    pub priority: i32,
    /// Its threads.
    pub threads: u32,
    /// Processor time that it has used.
    pub cpu_ms: u64,
    /// How long ago it started.
    pub age_ms: u64,
    /// Its address space.
    pub virtual_bytes: u64,
    /// Its memory.
    pub resident_bytes: u64,
    /// Its name, of at most [`MAX_ARGUMENT_BYTES`].
    pub name: String,
    /// Its arguments with spaces between them, of at most [`MAX_ARGUMENT_BYTES`]. Empty for a zombie.
    pub arguments: String,
}

impl Answer {
    /// The most bytes that a failure has together with [`Answer::bounded`].
    const MAX_TEXT_BYTES: usize = 2048;

    /// Cuts texts to lengths that surely fit a report.
    #[must_use]
    pub fn bounded(self) -> Self {
        match self {
            Self::Failed(mut message) => {
                cut(&mut message, Self::MAX_TEXT_BYTES);
                Self::Failed(message)
            }
            other => other,
        }
    }
}

impl ProcessInfo {
    /// Cuts name and arguments to [`MAX_ARGUMENT_BYTES`].
    #[must_use]
    pub fn bounded(mut self) -> Self {
        cut(&mut self.name, MAX_ARGUMENT_BYTES);
        cut(&mut self.arguments, MAX_ARGUMENT_BYTES);
        self
    }
}
