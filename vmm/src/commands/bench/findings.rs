//! What a bench found: the figures, what is missing and why, and what each figure means.

use serde::Serialize;

use super::host::Host;
use super::statistics::Spread;

/// All of it, as a program reads it.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    /// Version of this format.
    pub(super) format: u32,
    /// Seconds since 1970 when the bench began.
    pub(super) began: u64,
    pub(super) took_seconds: u64,
    pub(super) image: String,
    pub(super) image_id: String,
    /// The command whose start was measured, as the container runs it.
    pub(super) command: Vec<String>,
    pub(super) host: Host,
    pub(super) engines: Vec<Version>,
    pub(super) starts: Vec<Starts>,
    pub(super) idle: Vec<Idle>,
    pub(super) loops: Vec<LoopFigure>,
    pub(super) not_measured: Vec<Gap>,
    pub(super) methods: Vec<Method>,
}

/// An engine that was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Version {
    pub(super) engine: &'static str,
    pub(super) version: String,
}

/// Starts of one engine at one concurrency.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Starts {
    pub(super) engine: &'static str,
    /// How many were kept under way at once.
    pub(super) concurrency: u32,
    pub(super) runs: usize,
    /// Absent if not every run printed something.
    pub(super) first_byte: Option<Spread>,
    pub(super) exit: Spread,
}

/// Memory of instances that wait for input.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Idle {
    pub(super) engine: &'static str,
    pub(super) instances: u32,
    /// All processes of all instances.
    pub(super) pss_bytes: u64,
    pub(super) pss_bytes_per_instance: u64,
}

/// One loop in one engine.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LoopFigure {
    pub(super) engine: &'static str,
    pub(super) r#loop: &'static str,
    pub(super) iterations: u64,
    pub(super) runs: usize,
    /// An iteration of each run, the shortest first.
    pub(super) all_nanoseconds: Vec<f64>,
    /// The median of them.
    pub(super) nanoseconds_per_iteration: f64,
    /// Times the native loop's; absent if that could not be measured.
    pub(super) ratio_to_native: Option<f64>,
}

/// What could not be measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Gap {
    pub(super) what: String,
    pub(super) why: String,
}

/// What a figure means.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Method {
    pub(super) figure: &'static str,
    pub(super) how: &'static str,
}

/// What starts and what stops each clock, and what else a reader must know.
pub(super) const METHODS: [Method; 7] = [
    Method {
        figure: "start",
        how: "The clock starts before the engine's command is spawned. First byte: it stops when a byte of the workload \
              arrives on the command's standard output. Exit: it stops when the spawned process has ended. One start \
              before them is not counted. As soon as one start has ended the next begins, until all are done or the \
              engine's share of the time limit is over; towards the end fewer are under way.",
    },
    Method {
        figure: "percentiles",
        how: "Nearest rank: each is a start that was measured. p90 needs 10 of them, p99 needs 100.",
    },
    Method {
        figure: "idle memory",
        how: "Proportional set size (PSS) of all processes of the instances, taken one second after the last of them \
              printed a byte; they wait for input. Pages that instances share are divided among them. The memory that \
              the host's kernel itself spends on an instance is not in it, nor are daemons that all containers share.",
    },
    Method {
        figure: "loops",
        how: "The same script for the image's shell everywhere, timed on the host from its first line of output to its \
              last, so starting is not in it. Ratio: the median time of an iteration divided by that of the native \
              loop. cpu: shell arithmetic. memory: strings doubled up to 1 MiB. file: a small file in the container's \
              root opened, appended to, opened and read, never synced to a disk.",
    },
    Method {
        figure: "native",
        how: "The program run by chroot(8) from the unpacked image as a process of the host: nobody's rights, no network, no \
              limits.",
    },
    Method {
        figure: "vmm",
        how: "`vmm run` of the image in the store with its default limits, each run booting a machine (cold) or starting as a \
              clone of a template that was made before (warm).",
    },
    Method {
        figure: "crun, runc, podman, docker",
        how: "crun and runc run one unpacked directory, shared by their instances, with docker's default profile but \
              for seccomp. podman runs the image loaded into a storage of its own, docker into its daemon's, with their \
              defaults. All run as the container's root, with no network but loopback.",
    },
];
