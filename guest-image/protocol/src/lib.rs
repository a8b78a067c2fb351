//! What the host and the guest's agent say to each other.
//!
//! The agent listens on vsock port [`AGENT_PORT`] and rings the doorbell with [`DOORBELL_READY`]. The host dials, and it
//! dials again for every standard stream of every process. Each connection opens with a [`Hello`] frame from the host that
//! says the version and what the connection is for. On a stream connection raw bytes follow the hello, in one direction; on
//! the control connection frames follow: [`Request`]s from the host, [`Report`]s from the agent. Each [`Request`] and
//! [`Report`] that concerns a process names its container and its process.
//!
//! ```text
//! host                                                    agent
//!  |                        doorbell: DOORBELL_READY <------|   the port is listening
//!  |--- connection 1: Hello{Control} ---------------------->|
//!  |<-- Welcome{version} -----------------------------------|
//!  |--- connection 2: Hello{Stream stdin},  bytes… -------->|   only for the streams that Create declares
//!  |--- connection 3: Hello{Stream stdout} ---------------->|
//!  |--- connection 4: Hello{Stream stderr} ---------------->|
//!  |--- Create{container, process, config, …} ------------->|   checked: what is not supported is refused here
//!  |--- Start{container, process} ------------------------->|   waits for the declared streams
//!  |<-- Started | NotStarted{kind, step, message} ----------|
//!  |--- Signal, Stop, Resize ------------------------------>|
//!  |--- Freeze -------------------------------------------->|   containers stop
//!  |                       doorbell: DOORBELL_FREEZE <------|   containers go on
//!  |<== stdout and stderr bytes, then a shut-down of each ==|
//!  |--- Exec{container, process, spec, …}, Start ---------->|   another process in the container, with streams of its own
//!  |<-- Started | NotStarted, then Exited ------------------|
//!  |--- Files{container, process, task}, Start ------------>|   a tree of files on streams like those of a process
//!  |<-- Started | NotStarted, then Exited ------------------|
//!  |--- Ask{number, container, question} ------------------>|   at any time while the container runs
//!  |<-- Answer{number, answer} -----------------------------|   one, or a list in parts
//!  |<-- Exited{status, oom_killed} -------------------------|   after the last byte and the shut-downs
//!  |--- PowerOff, or a hang-up of connection 1 ------------>|
//!  |                        doorbell: DOORBELL_END <--------|   synced
//! ```
//!
//! The host need not wait for an answer before it sends the next frame: hello, create and start may travel together.
//! When a container's first process ends, so does everything in it; the other processes are reported as far as they can be
//! before it is.
//! A half-close of the stdin connection is the end of the process's input. A close of a stdout or stderr connection by the
//! host closes the pipe that the process writes to.
//!
//! # Encoding
//!
//! A frame is its length in bytes, a little-endian `u32` that does not count itself, then that many bytes of
//! [postcard](https://postcard.jamesmunns.com/wire-format) encoding. Both sides bound the length ([`MAX_REQUEST_BYTES`],
//! [`MAX_REPORT_BYTES`], [`MAX_HELLO_BYTES`]) before they wait for the body, and both treat the other side as hostile.
//! The first fields of [`Hello`] and [`Report::Welcome`] keep their place in every version, so that two sides of different
//! versions can say so.

#![forbid(unsafe_code)]

mod files;
mod frame;
mod message;
mod network;
mod question;

pub use files::{CopySource, Files, FilesTask};
pub use frame::{
    FrameBuffer, FrameError, MAX_HELLO_BYTES, MAX_REPORT_BYTES, MAX_REQUEST_BYTES, encode,
};
pub use message::{
    ContainerId, Create, DeclaredStreams, DiskHandover, Exec, Exit, ExitStatus, FailureKind,
    Filesystem, Handover, Hello, MAGIC, Process, ProcessId, Report, Request, Role, RootSource,
    SEED_BYTES, Seccomp, StartFailure, StreamKind, Upper, Volume, WindowSize,
};
pub use network::{
    HOSTNAME_FILE, HOSTS_FILE, INTERFACE, InterfaceAddress, NAMES_FILES, Names, Neighbour, Network,
    RESOLV_CONF_FILE,
};
pub use question::{
    Answer, MAX_ARGUMENT_BYTES, MAX_PROCESSES, MAX_SAMPLE_MS, MAX_VOLUMES, ProcessInfo,
    ProcessList, Question, Usage,
};

/// Version of the conversation. The two sides talk only if it is the same.
pub const VERSION: u16 = 9;

/// The vsock port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;

/// Where the agent mounts what [`Create::volumes`] lists, in the machine's own tree.
pub const VOLUMES: &str = "/run/volumes";

/// Where the agent mounts the volume with this index. The source of a bind mount in a container's configuration begins with it.
#[must_use]
pub fn volume_path(index: usize) -> String {
    format!("{VOLUMES}/{index}")
}

/// Guest-physical address of the doorbell, one 4 KiB MMIO page. The agent writes a code, a little-endian `u32`, at offset 0.
pub const DOORBELL_ADDRESS: u64 = 0xD000_0000;

/// Doorbell code: the agent listens on [`AGENT_PORT`].
pub const DOORBELL_READY: u32 = 1;

/// Doorbell code: the agent listens on [`AGENT_PORT`] and nothing is under way, so the machine may be frozen inside this write.
/// What the agent does next it does in every clone: it looks into the mailbox.
pub const DOORBELL_FREEZE: u32 = 3;

/// Doorbell code: the agent of a clone has done all that its [`Handover`] asks. Without this ring no workload is sent.
pub const DOORBELL_HANDED_OVER: u32 = 4;

/// Doorbell code: the agent was asked for [`DOORBELL_FREEZE`], and the containers do not come to a stop.
pub const DOORBELL_CANNOT_FREEZE: u32 = 5;

/// Doorbell code: the agent was asked for [`DOORBELL_FREEZE`] at a fork point, and no process waits at one.
pub const DOORBELL_NO_FORK_POINT: u32 = 6;

/// The fork point of a container that has one: a fifo. A process that opens it for reading says that it may be duplicated there:
/// it reads the [`Handover::generation`] of its machine as a decimal number and a line's end, 0 in the machine that was forked.
pub const FORK_POINT: &str = "/dev/fork-point";

/// Guest-physical address of the mailbox: memory of [`MAILBOX_BYTES`] that is no part of the guest's RAM, zero in a machine that
/// only boots. In one that is to be frozen it begins with one frame, a [`Create`]: its container is built before
/// [`DOORBELL_FREEZE`], for whichever process is created in an equal one first. In a clone it begins with a [`Handover`], to be
/// read after that ring. The agent erases it after reading.
pub const MAILBOX_ADDRESS: u64 = 0xD002_0000;

/// Size of the mailbox.
pub const MAILBOX_BYTES: usize = 64 << 10;

/// Doorbell code: the agent is done, everything is synced, the machine may end.
pub const DOORBELL_END: u32 = 2;
