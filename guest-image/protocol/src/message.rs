//! The messages, and the ids that they carry.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::files::Files;
use crate::network::{Names, Network};
use crate::question::{Answer, Question};

/// First field of every [`Hello`]: `"vmm\0"` as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"vmm\0");

/// Names a container within one machine. The host chooses it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ContainerId(pub u32);

/// Names a process within one container. The host chooses it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct ProcessId(pub u32);

/// A process of a container: what most messages are about.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Process {
    /// The container.
    pub container: ContainerId,
    /// The process within it.
    pub process: ProcessId,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} of container {}",
            self.process.0, self.container.0
        )
    }
}

/// The first frame of every connection, from the host.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Hello {
    /// Always [`MAGIC`].
    pub magic: u32,
    /// The host's [`crate::VERSION`].
    pub version: u16,
    /// What the connection is for.
    pub role: Role,
}

impl Hello {
    /// Makes the hello of this version.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self {
            magic: MAGIC,
            version: crate::VERSION,
            role,
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Role {
    /// Requests and reports. There is one at a time; its hang-up ends the machine.
    Control,
    /// The raw bytes of one standard stream.
    Stream {
        /// Whose stream.
        process: Process,
        /// Which stream.
        kind: StreamKind,
    },
}

/// A standard stream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum StreamKind {
    /// Host to process.
    Stdin,
    /// Process to host. With a terminal, everything that the terminal shows.
    Stdout,
    /// Process to host. Never with a terminal.
    Stderr,
}

/// What the host asks of the agent on the control connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Request {
    /// Makes a container with its first process ready to start.
    Create(Box<Create>),
    /// Makes another process of a container whose first process runs, ready to start.
    Exec(Box<Exec>),
    /// Makes a process of the agent's own ready to start that does something with the files of a container whose first process runs.
    Files(Box<Files>),
    /// Starts the process, once all its declared streams are connected.
    Start(Process),
    /// Sends a signal to the process. One that is not running (any more) is left alone.
    Signal {
        /// The receiver.
        process: Process,
        /// The signal's number on Linux, x86-64.
        signal: u8,
    },
    /// Asks the process to end, with [`Create::stop_signal`]. One that is not running (any more) is left alone.
    Stop(Process),
    /// Sets the window size of the process's terminal. Ignored without a terminal.
    Resize {
        /// The terminal's owner.
        process: Process,
        /// The new size.
        size: WindowSize,
    },
    /// Syncs and ends the machine, whatever still runs.
    PowerOff,
    /// Stops what runs in the containers and rings [`crate::DOORBELL_FREEZE`]. In the machine that goes on afterwards it lets them
    /// go on; in a copy of it, only after [`Request::Attach`].
    Freeze {
        /// Whether there are to be several copies: only where a process waits at a fork point.
        at_fork_point: bool,
    },
    /// Takes over a process of which another host was the client, in a copy of its machine. Lets the containers go on, and is
    /// answered like [`Request::Start`].
    Attach(Process),
    /// Asks about a container, or changes it. Answered with [`Report::Answer`].
    Ask {
        /// The question's, which the answer has, too.
        number: u32,
        /// Which container.
        container: ContainerId,
        /// What.
        question: Question,
    },
}

/// How many random bytes a clone gets.
pub const SEED_BYTES: usize = 64;

/// What makes a clone different from the others of its template: read by its agent before anything else.
#[derive(Clone, Deserialize, Eq, PartialEq, Serialize)]
pub struct Handover {
    /// Random bytes that no other machine gets. (Two halves, because serde's arrays end at 32.)
    pub seed: [[u8; SEED_BYTES / 2]; 2],
    /// The time of day, in nanoseconds since the epoch (`CLOCK_REALTIME`).
    pub realtime_ns: u64,
    /// Which copy this is, from 1; what a process reads at its fork point. 0 where there is one only.
    pub generation: u32,
    /// The disks that the template had without contents, and that have got some since.
    pub disks: Vec<DiskHandover>,
}

/// A disk of a clone's own, of which its kernel is about to learn how large it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DiskHandover {
    /// The guest's name of it, such as `/dev/vda`.
    pub device: String,
    /// How large it is, in whole sectors.
    pub size_bytes: u64,
    /// Whether nothing may be written to it. The kernel does not know: it has seen a disk that may be written to.
    pub read_only: bool,
}

impl fmt::Debug for Handover {
    /// The seed is nobody's to see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("realtime_ns", &self.realtime_ns)
            .finish_non_exhaustive()
    }
}

/// A container and its first process.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Create {
    /// The names that all later messages use.
    pub process: Process,
    /// The OCI runtime-spec `config.json`, as JSON. Its `root.path` means nothing in the guest: [`Create::root`] is the root.
    pub config: Vec<u8>,
    /// Where the root filesystem comes from.
    pub root: RootSource,
    /// What the machine mounts for the container's mounts to show parts of, each at its [`crate::volume_path`].
    pub volumes: Vec<Volume>,
    /// The image's or the caller's user, docker's syntax (`name`, `uid`, `name:group`, `uid:gid`, …), to be resolved in the
    /// container's `/etc/passwd` and `/etc/group`. `None` takes the numbers of `process.user` in the config.
    pub user: Option<String>,
    /// Groups that the user is in besides, each a name of the container's `/etc/group` or a number.
    pub groups: Vec<String>,
    /// Whether the program gets a parent that passes signals on to it and reaps what it leaves behind.
    pub init: bool,
    /// Whether there is no program: the first process waits for the end of its standard input, for others to be done with the
    /// container's files, and exits with 0.
    pub idles: bool,
    /// The signal that asks the program to end, by its number on Linux, x86-64.
    pub stop_signal: u8,
    /// The streams that the host connects. One that is not declared is `/dev/null`.
    pub streams: DeclaredStreams,
    /// What `linux.seccomp` of the config comes to. The config itself has none: the agent compiles nothing.
    pub seccomp: Option<Seccomp>,
    /// The machine's network, set up before the program starts; none where it has no interface.
    pub network: Option<Network>,
    /// What [`Volume::Names`] shows, if that is among the volumes.
    pub names: Names,
}

/// Another process of a container. It is in the container's namespaces, cgroup and root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Exec {
    /// The names that all later messages use. The process's id must not be that of any process that the container ever had.
    pub process: Process,
    /// The `process` object of an OCI runtime-spec `config.json`, as JSON.
    pub spec: Vec<u8>,
    /// The user, as [`Create::user`].
    pub user: Option<String>,
    /// Groups that the user is in besides, as [`Create::groups`].
    pub groups: Vec<String>,
    /// The streams that the host connects. One that is not declared is `/dev/null`.
    pub streams: DeclaredStreams,
    /// Whether the filter of system calls of the container's first process is this one's, too.
    pub is_filtered: bool,
}

/// A filter of system calls: seccomp(2).
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Seccomp {
    /// The program: `struct sock_filter` after `struct sock_filter`, eight bytes each, as x86-64 has them in memory.
    pub filter: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
}

/// The read-only lower filesystem, and what is written on top of it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootSource {
    /// What to mount: a device as the guest's kernel names it (`/dev/pmem1`, `/dev/vda`), or with
    /// [`Filesystem::Directory`] a directory.
    pub source: String,
    /// How to mount it.
    pub filesystem: Filesystem,
    /// Where writes go.
    pub upper: Upper,
}

/// The format of a root.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Filesystem {
    /// EROFS on a persistent-memory window, mounted with `dax=always`.
    ErofsDax,
    /// EROFS on a block device.
    Erofs,
    /// A directory that the agent already sees.
    Directory,
}

/// The writable layer of a root.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Upper {
    /// In the guest's memory, gone with the container.
    Tmpfs {
        /// The most that it may hold.
        size_bytes: u64,
    },
    /// On an ext4 file system, which is made as large as the disk that it is on. What an earlier container left there is there.
    Disk {
        /// The disk, as the guest's kernel names it (`/dev/vda`).
        source: String,
    },
}

/// A file system of the machine's that outlives it: mounted before the container is built, synced at the end of the machine.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Volume {
    /// What the host serves by virtio-fs under this tag.
    Share {
        /// The device's tag.
        tag: String,
    },
    /// An ext4 file system on a disk, which is made as large as that.
    Disk {
        /// The disk, as the guest's kernel names it (`/dev/vdb`).
        device: String,
        /// Whether it is mounted for reading, and left as it is.
        read_only: bool,
        /// A directory of it that the mounts show, made if it is not there: `lost+found` is none of a container's business.
        directory: Option<String>,
    },
    /// The files of [`Create::names`], in the machine's memory.
    Names,
}

/// Which standard streams the host connects.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DeclaredStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error. Must be `false` for a process with a terminal.
    pub stderr: bool,
}

/// The size of a terminal's window.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WindowSize {
    /// Characters from top to bottom.
    pub rows: u16,
    /// Characters from left to right.
    pub columns: u16,
}

/// What the agent tells the host on the control connection.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Report {
    /// The first report: the answer to the hello, also to one of another version.
    Welcome {
        /// The agent's [`crate::VERSION`].
        version: u16,
    },
    /// The process's program runs.
    Started {
        /// Which process.
        process: Process,
        /// How long the agent took from the request that creates it, by the guest's clock. 0 for one that is taken over.
        after_us: u32,
    },
    /// The process will never run.
    NotStarted {
        /// Which process.
        process: Process,
        /// Why.
        failure: StartFailure,
    },
    /// The process ended, all its output was written, and its stream connections are shut down. What others still hold open of an
    /// [`Exec`]'s streams is not waited for for long.
    Exited {
        /// Which process.
        process: Process,
        /// How.
        exit: Exit,
    },
    /// The answer to [`Request::Ask`], or a part of it.
    Answer {
        /// The question's number.
        number: u32,
        /// The answer. Its texts are bounded.
        answer: Answer,
    },
}

impl Report {
    /// Whether it says that a process's program runs.
    #[must_use]
    pub fn is_start_of(&self, whose: Process) -> bool {
        matches!(self, Self::Started { process, .. } if *process == whose)
    }
}

/// Why a process did not start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct StartFailure {
    /// What sort of failure: it decides the exit code and the help.
    pub kind: FailureKind,
    /// What was being done, for example `"mounting /proc"`.
    pub step: String,
    /// What went wrong, for example the system's error.
    pub message: String,
}

impl StartFailure {
    /// The most bytes that step or message have together with [`StartFailure::bounded`].
    const MAX_TEXT_BYTES: usize = 2048;

    /// Cuts step and message to lengths that surely fit a report.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        cut(&mut self.step, Self::MAX_TEXT_BYTES);
        cut(&mut self.message, Self::MAX_TEXT_BYTES);
        self
    }
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step, self.message)
    }
}

/// Cuts `text` to at most `max_bytes`, at a character's boundary.
pub(crate) fn cut(text: &mut String, max_bytes: usize) {
    if text.len() > max_bytes {
        let end = (0..=max_bytes)
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        text.truncate(end);
    }
}

/// The sort of a [`StartFailure`].
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum FailureKind {
    /// There is no such program in the container.
    NotFound,
    /// The program is there, and the kernel will not execute it: a directory, no right to it, no known format.
    NotExecutable,
    /// The user or group is not in the container's `/etc/passwd` or `/etc/group`.
    UnknownUser,
    /// The config asks for something that this agent does not do. The step is the JSON field's name.
    Unsupported,
    /// Anything else.
    Failed,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Exit {
    /// By itself or by a signal.
    pub status: ExitStatus,
    /// Whether the kernel killed something in the container because its memory limit was reached.
    pub oom_killed: bool,
}

/// By itself or by a signal.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u8),
    /// It was killed by this signal.
    Signal(u8),
}
