//! What the agent does itself with a container's files: `protocol::FilesTask`.
//!
//! A copy is made by a process that has joined the container, so that its paths lead where they lead inside. What the container
//! has changed is read by a process of the agent's, from the layers of the root, which nothing in the container can reach.

mod changes;
mod copy;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd};

use archive::{Flavour, Packer, PlaceError, ReadError, UnpackError, Writer};
use protocol::{FilesTask, StartFailure};
use rustix::io::Errno;
use thiserror::Error;

use super::channel::{AgentChannel, Layers};
use super::child::ChildStdio;
use super::join::Joint;
use super::plan::ContainerPlan;
use crate::step::{Step as _, failure};
use crate::sys;

/// How much of a stream is written at once.
const BUFFER_BYTES: usize = 128 << 10;
/// How many lines there may be about what was left out. The host reads them last.
const MAX_REMARKS: usize = 20;

/// Whether a task is done from inside of the container.
pub(super) fn joins(task: &FilesTask) -> bool {
    matches!(task, FilesTask::Read { .. } | FilesTask::Write { .. })
}

/// Does a task, and ends the process. Returns only the reason why it did not begin with it.
pub(super) fn attend(
    container: &ContainerPlan,
    task: &FilesTask,
    joint: &Joint,
    stdio: ChildStdio,
    agent: &AgentChannel,
) -> StartFailure {
    match begin(task, joint, stdio) {
        Ok(()) => {}
        Err(failure) => return failure,
    }
    // Closed already: that is how the agent knows that this has begun.
    let _ = agent;
    let mut remarks = Remarks::default();
    let done = perform(container, task, joint.layers(), &mut remarks);
    remarks.end();
    match done {
        Ok(()) => sys::exit_with(0),
        Err(error) => {
            say(&chain(&error));
            sys::exit_with(1)
        }
    }
}

/// Waits for the end of standard input, and ends the process. Returns only the reason why it did not begin with it.
pub(super) fn idle(stdio: ChildStdio, agent: &AgentChannel) -> StartFailure {
    let begun = connect(stdio).and_then(|()| {
        sys::close_all_but(3, &[]).step(|| "closing the agent's descriptors".to_owned())
    });
    // Closed already: that is how the agent knows that this has begun.
    let _ = agent;
    match begun {
        Ok(()) => {}
        Err(failure) => return failure,
    }
    let mut buffer = [0; 512];
    while !matches!(rustix::io::read(rustix::stdio::stdin(), &mut buffer), Ok(0)) {}
    sys::exit_with(0)
}

/// Takes over the streams, and lets go of everything else.
fn begin(task: &FilesTask, joint: &Joint, stdio: ChildStdio) -> Result<(), StartFailure> {
    connect(stdio)?;
    let kept: Vec<BorrowedFd<'_>> = match (joins(task), joint.layers()) {
        (true, _) => Vec::new(),
        (false, Some(Layers { upper, lower, root })) => {
            vec![upper.as_fd(), lower.as_fd(), root.as_fd()]
        }
        (false, None) => {
            let kind = protocol::FailureKind::Failed;
            return Err(failure(kind, "opening the layers", "there are none"));
        }
    };
    sys::close_all_but(3, &kept).step(|| "closing the agent's descriptors".to_owned())
}

fn connect(stdio: ChildStdio) -> Result<(), StartFailure> {
    let step = || "connecting the standard streams".to_owned();
    if let Some(stdin) = stdio.stdin {
        rustix::stdio::dup2_stdin(stdin).step(step)?;
    }
    if let Some(stdout) = stdio.stdout {
        rustix::stdio::dup2_stdout(stdout).step(step)?;
    }
    if let Some(stderr) = stdio.stderr {
        rustix::stdio::dup2_stderr(stderr).step(step)?;
    }
    Ok(())
}

fn perform(
    container: &ContainerPlan,
    task: &FilesTask,
    layers: Option<&Layers>,
    remarks: &mut Remarks,
) -> Result<(), FilesError> {
    let mappings = container.namespaces.mappings();
    let ids = |uid, gid| mappings.map_or((uid, gid), |mappings| mappings.inside(uid, gid));
    match (task, layers) {
        (FilesTask::Read { path, follow }, _) => copy::read(path, *follow, output()?, remarks),
        (
            FilesTask::Write {
                path,
                source,
                keeps_owners,
            },
            _,
        ) => copy::write(path, source, *keeps_owners, remarks),
        (FilesTask::Changes, Some(layers)) => {
            changes::list(layers, &container.mounts, &mut output()?)
        }
        (FilesTask::Layer { .. }, Some(layers)) => {
            let skips = |path: &[u8]| changes::is_mount_point(layers, &container.mounts, path);
            let mut writer = Writer::new(output()?);
            let mut left_out = |remark: &str| remarks.add(remark);
            Packer::new(&mut writer, Flavour::Layer, &ids, &skips, &mut left_out)
                .directory(&layers.upper, b"")?;
            Ok(writer.finish().map(drop)?)
        }
        (FilesTask::Root, Some(layers)) => {
            let mut writer = Writer::new(output()?);
            let mut left_out = |remark: &str| remarks.add(remark);
            Packer::new(&mut writer, Flavour::Whole, &ids, &|_| false, &mut left_out)
                .directory(&layers.root, b"")?;
            Ok(writer.finish().map(drop)?)
        }
        (FilesTask::Changes | FilesTask::Layer { .. } | FilesTask::Root, None) => Ok(()),
    }
}

/// Standard output, in large pieces.
fn output() -> io::Result<BufWriter<File>> {
    let stdout = rustix::io::dup(rustix::stdio::stdout())?;
    Ok(BufWriter::with_capacity(BUFFER_BYTES, File::from(stdout)))
}

/// What is said of files that were left out.
#[derive(Debug, Default)]
struct Remarks {
    said: usize,
    more: usize,
}

impl Remarks {
    fn add(&mut self, remark: &str) {
        if self.said < MAX_REMARKS {
            self.said += 1;
            say(&format!("{remark}, and was left out"));
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    fn end(&self) {
        if self.more > 0 {
            say(&format!("{} more files were left out", self.more));
        }
    }
}

/// Writes a line to standard error.
fn say(line: &str) {
    let line = line.replace(char::is_control, "\u{fffd}");
    // Who does not read it does not want to know.
    let _ = File::from(match rustix::io::dup(rustix::stdio::stderr()) {
        Ok(stderr) => stderr,
        Err(_) => return,
    })
    .write_all(format!("{line}\n").as_bytes());
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        sentence.push_str(": ");
        sentence.push_str(&cause.to_string());
        source = cause.source();
    }
    sentence
}

/// Why a task was not done.
#[derive(Debug, Error)]
enum FilesError {
    #[error("cannot find `{path}`")]
    Find {
        path: String,
        #[source]
        source: Errno,
    },
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
    #[error("`{0}` is neither a file nor a directory")]
    Irregular(String),
    #[error("`{0}` is not a name")]
    BadName(String),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Pack(#[from] archive::PackError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot read what has changed at `{path}`")]
    Changes {
        path: String,
        #[source]
        source: Errno,
    },
    #[error("cannot write")]
    Write(#[from] io::Error),
}
