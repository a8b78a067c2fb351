//! Hooks: runtime-spec `config.md`, "POSIX-platform Hooks", and `runtime.md`, "Lifecycle".
//!
//! All of them run in the machine, none on its host. Where the specification says "runtime namespace", that is the agent's: its
//! processes, its network, and all cgroups. Its files are the exception. The machine has no programs but those of the
//! container, so the path of every hook is one in the container's root, with what is mounted there by then, and what a hook
//! mounts is mounted there.
//!
//! | hooks | when | in | by |
//! |---|---|---|---|
//! | `prestart`, `createRuntime` | all is mounted and nothing entered | the agent's namespaces | a runner |
//! | `createContainer` | after them | the container's namespaces | the container's process |
//! | `startContainer` | before the program, as its user | the container | the container's process |
//! | `poststart` | the program runs, and nobody knows yet | the agent's namespaces | a runner |
//! | `poststop` | the container is gone but for its files, and nobody knows yet | the agent's namespaces | a runner |
//!
//! A runner is a process of the agent's own, so that the agent waits for no hook.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use protocol::{ContainerId, FailureKind, StartFailure};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};
use rustix::thread::LinkNameSpaceType;
use serde::Serialize;

use super::channel::{self, LaunchChannel};
use crate::spec;
use crate::step::{Step as _, failure, invalid};
use crate::sys::{self, Parent, Side};

/// How much of what a hook says is shown when it fails: its last words.
const SHOWN_BYTES: usize = 512;

/// As a shell's, for a hook that cannot be executed. Why is what it says.
const CANNOT_EXECUTE: u8 = 126;

/// The hooks of a container.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Hooks {
    /// `prestart`, then `createRuntime`.
    pub(super) create_runtime: Vec<Hook>,
    pub(super) create_container: Vec<Hook>,
    pub(super) start_container: Vec<Hook>,
    pub(crate) poststart: Vec<Hook>,
    pub(crate) poststop: Vec<Hook>,
    subject: Subject,
}

/// A program to run.
#[derive(Debug, PartialEq)]
pub(crate) struct Hook {
    /// Its list's name.
    kind: &'static str,
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    timeout: Option<Duration>,
}

/// What does not change of a container's state.
#[derive(Debug, Default, PartialEq)]
struct Subject {
    version: String,
    id: u32,
    annotations: std::collections::BTreeMap<String, String>,
}

/// The container's state, as hooks read it: `runtime.md`, "State".
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'hooks> {
    oci_version: &'hooks str,
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'static str,
    annotations: &'hooks std::collections::BTreeMap<String, String>,
}

impl Hooks {
    /// Reads `hooks`.
    ///
    /// # Errors
    ///
    /// If a path is not absolute, or a timeout is none.
    pub(crate) fn new(
        hooks: spec::Hooks,
        version: &str,
        container: ContainerId,
        annotations: std::collections::BTreeMap<String, String>,
    ) -> Result<Self, StartFailure> {
        let read = |kind, hooks: Vec<spec::Hook>| {
            hooks
                .into_iter()
                .map(|hook| Hook::new(kind, hook))
                .collect::<Result<Vec<_>, _>>()
        };
        let mut create_runtime = read("prestart", hooks.prestart)?;
        create_runtime.extend(read("createRuntime", hooks.create_runtime)?);
        Ok(Self {
            create_runtime,
            create_container: read("createContainer", hooks.create_container)?,
            start_container: read("startContainer", hooks.start_container)?,
            poststart: read("poststart", hooks.poststart)?,
            poststop: read("poststop", hooks.poststop)?,
            subject: Subject {
                version: version.to_owned(),
                id: container.0,
                annotations,
            },
        })
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        !self.needs_runner() && self.create_container.is_empty() && self.start_container.is_empty()
    }

    /// Whether some run before the root is entered.
    pub(super) fn come_before_entry(&self) -> bool {
        !self.create_runtime.is_empty() || !self.create_container.is_empty()
    }

    /// Whether the agent runs some of them, for which it needs the container's root.
    pub(crate) fn needs_runner(&self) -> bool {
        [&self.create_runtime, &self.poststart, &self.poststop]
            .into_iter()
            .any(|hooks| !hooks.is_empty())
    }

    /// Runs the `createContainer` hooks, from the container's process.
    ///
    /// # Errors
    ///
    /// If one fails.
    pub(super) fn create_container(&self) -> Result<(), StartFailure> {
        self.run_here(&self.create_container, "creating")
    }

    /// Runs the `startContainer` hooks, from the container's process.
    ///
    /// # Errors
    ///
    /// If one fails.
    pub(super) fn start_container(&self) -> Result<(), StartFailure> {
        self.run_here(&self.start_container, "created")
    }

    fn run_here(&self, hooks: &[Hook], status: &'static str) -> Result<(), StartFailure> {
        if hooks.is_empty() {
            return Ok(());
        }
        let own = rustix::process::getpid().as_raw_nonzero().get();
        run_all(hooks, &self.state(status, Some(own))?)
    }

    fn state(&self, status: &'static str, pid: Option<i32>) -> Result<Vec<u8>, StartFailure> {
        serde_json::to_vec(&State {
            oci_version: &self.subject.version,
            id: self.subject.id.to_string(),
            status,
            pid,
            bundle: "/",
            annotations: &self.subject.annotations,
        })
        .step(|| "writing the state for hooks".to_owned())
    }
}

/// When a runner runs hooks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    /// `prestart` and `createRuntime`.
    Create,
    Poststart,
    Poststop,
}

/// A process of the agent's that runs hooks.
#[derive(Debug)]
pub(crate) struct Runner {
    pid: Pid,
    pub(crate) moment: Moment,
    pub(crate) channel: LaunchChannel,
}

impl Runner {
    /// Lets a process run the hooks of a moment; none if there are no such hooks. `pid` is the container's process.
    ///
    /// # Errors
    ///
    /// If there can be no process.
    pub(crate) fn start(
        hooks: &Hooks,
        moment: Moment,
        files: &Files,
        pid: Option<Pid>,
    ) -> Result<Option<Self>, StartFailure> {
        let (list, status) = match moment {
            Moment::Create => (&hooks.create_runtime, "creating"),
            Moment::Poststart => (&hooks.poststart, "running"),
            Moment::Poststop => (&hooks.poststop, "stopped"),
        };
        if list.is_empty() {
            return Ok(None);
        }
        let state = hooks.state(status, pid.map(|pid| pid.as_raw_nonzero().get()))?;
        let step = || "running hooks".to_owned();
        let (channel, agent) = channel::pair().step(step)?;
        match sys::clone(0, None, Parent::Caller).step(step)? {
            Side::Parent(pid) => Ok(Some(Self {
                pid,
                moment,
                channel,
            })),
            Side::Child => {
                drop(channel);
                sys::reset_signals();
                let entered = files
                    .enter()
                    .step(|| "entering the container's files".to_owned());
                let run = match moment {
                    Moment::Create => run_all,
                    Moment::Poststart | Moment::Poststop => run_each,
                };
                match entered.and_then(|()| run(list, &state)) {
                    Ok(()) => agent.done(),
                    Err(failure) => agent.failed(failure),
                }
                sys::exit_child()
            }
        }
    }

    /// Ends it, and the hook that it runs.
    pub(crate) fn kill(&self) {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }
}

/// Where a container's files are: its mount namespace and its root there. It holds them while the container's processes come and go.
#[derive(Debug)]
pub(crate) struct Files {
    mounts: OwnedFd,
    root: OwnedFd,
}

impl Files {
    /// Opens those of a process that has mounted its root, and has it for its current directory.
    ///
    /// # Errors
    ///
    /// If the process is gone.
    pub(crate) fn of(process: Pid) -> Result<Self, StartFailure> {
        let step = || "opening the container's files for hooks".to_owned();
        let process = format!("/proc/{}", process.as_raw_nonzero());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self {
            mounts: rustix::fs::open(format!("{process}/ns/mnt"), flags, Mode::empty())
                .step(step)?,
            root: open(&format!("{process}/cwd")).step(step)?,
        })
    }

    /// Makes them the caller's.
    fn enter(&self) -> rustix::io::Result<()> {
        let mounts = self.mounts.as_fd();
        rustix::thread::move_into_link_name_space(mounts, Some(LinkNameSpaceType::Mount))?;
        rustix::process::fchdir(&self.root)?;
        rustix::process::chroot(".")
    }
}

/// Opens a directory for nothing but to go there.
fn open(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

fn run_all(hooks: &[Hook], state: &[u8]) -> Result<(), StartFailure> {
    hooks.iter().try_for_each(|hook| hook.run(state))
}

/// Runs all of them, those after one that failed, too: `runtime.md`, "Lifecycle". The first failure is what is said.
fn run_each(hooks: &[Hook], state: &[u8]) -> Result<(), StartFailure> {
    let mut result = Ok(());
    for hook in hooks {
        let this = hook.run(state);
        result = result.and(this);
    }
    result
}

/// How a hook ended.
enum End {
    By(WaitStatus),
    TimedOut(Duration),
}

impl Hook {
    fn new(kind: &'static str, hook: spec::Hook) -> Result<Self, StartFailure> {
        let field = |name: &str| format!("hooks.{kind}.{name}");
        let spec::Hook {
            path,
            args,
            env,
            timeout,
        } = hook;
        if !path.starts_with('/') {
            let message = format!("{path:?} is not an absolute path");
            return Err(invalid(field("path"), message));
        }
        let timeout = match timeout {
            None => None,
            Some(seconds) => match u64::try_from(seconds) {
                Ok(seconds) if seconds > 0 => Some(Duration::from_secs(seconds)),
                _ => {
                    let message = format!("{seconds} is not above 0");
                    return Err(invalid(field("timeout"), message));
                }
            },
        };
        let strings = |name: &str, strings: Vec<String>| {
            strings
                .into_iter()
                .map(CString::new)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| invalid(field(name), "there is a NUL byte in it"))
        };
        // Without arguments the program still has its name.
        let args = if args.is_empty() {
            vec![path.clone()]
        } else {
            args
        };
        Ok(Self {
            kind,
            path: strings("path", vec![path])?.pop().unwrap_or_default(),
            arguments: strings("args", args)?,
            environment: strings("env", env)?,
            timeout,
        })
    }

    /// Runs it to its end.
    fn run(&self, state: &[u8]) -> Result<(), StartFailure> {
        let step = || {
            format!(
                "running the {} hook {}",
                self.kind,
                self.path.to_string_lossy()
            )
        };
        let mut said = Vec::new();
        let end = self.run_to_end(state, &mut said).step(step)?;
        let how = match end {
            End::By(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(0), _) => return Ok(()),
                (Some(code), _) => format!("it exited with {code}"),
                (None, Some(signal)) => format!("signal {signal} ended it"),
                (None, None) => "it ended".to_owned(),
            },
            End::TimedOut(timeout) => format!("it took longer than {} s", timeout.as_secs()),
        };
        let said = String::from_utf8_lossy(&said);
        let message = match said.trim() {
            "" => how,
            said => format!("{how}: {said}"),
        };
        Err(failure(FailureKind::Failed, step(), message))
    }

    fn run_to_end(&self, state: &[u8], said: &mut Vec<u8>) -> rustix::io::Result<End> {
        let stdin = rustix::fs::memfd_create(c"state", MemfdFlags::CLOEXEC)?;
        rustix::io::write(&stdin, state)?;
        rustix::fs::seek(&stdin, SeekFrom::Start(0))?;
        let (output, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let side = sys::clone(0, None, Parent::Caller)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
        let pid = match side {
            Side::Parent(pid) => pid,
            Side::Child => {
                let error = self.become_hook(&stdin, &write);
                let _ = rustix::io::write(&write, error.to_string().as_bytes());
                sys::exit_with(CANNOT_EXECUTE)
            }
        };
        drop(write);
        self.attend(pid, output, said)
    }

    /// Executes it in place of the caller. Returns only the reason why it did not.
    fn become_hook(&self, stdin: &OwnedFd, output: &OwnedFd) -> std::io::Error {
        let prepare = || {
            // Whoever runs it is killed with it, and it with them.
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            rustix::process::setsid()?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            rustix::stdio::dup2_stdin(stdin)?;
            rustix::stdio::dup2_stdout(output)?;
            rustix::stdio::dup2_stderr(output)
        };
        match prepare() {
            Ok(()) => sys::execve(&self.path, &self.arguments, &self.environment),
            Err(error) => error.into(),
        }
    }

    /// Keeps its last words, and waits for its end, not longer than its time.
    fn attend(&self, pid: Pid, output: OwnedFd, said: &mut Vec<u8>) -> rustix::io::Result<End> {
        let end = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let deadline = self
            .timeout
            .map(|timeout| (timeout, Instant::now() + timeout));
        let mut output = Some(output);
        loop {
            let left = deadline.map(|(timeout, moment)| {
                (timeout, moment.saturating_duration_since(Instant::now()))
            });
            if let Some((timeout, Duration::ZERO)) = left {
                // With all that it started.
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                wait(pid)?;
                return Ok(End::TimedOut(timeout));
            }
            let mut fds = vec![PollFd::new(&end, PollFlags::IN)];
            fds.extend(
                output
                    .as_ref()
                    .map(|output| PollFd::new(output, PollFlags::IN)),
            );
            let left = left.and_then(|(_, left)| Timespec::try_from(left).ok());
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(Errno::INTR) => (),
                Err(error) => return Err(error),
            }
            let has_news = |index: usize| {
                fds.get(index)
                    .is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty())
            };
            let (has_ended, has_said) = (has_news(0), has_news(1));
            drop(fds);
            if has_said && !hear(output.as_ref(), said)? {
                output = None;
            } else if has_ended && !has_said {
                return Ok(End::By(wait(pid)?));
            }
        }
    }
}

/// Reads what a hook says; `false` once it has closed its output.
fn hear(output: Option<&OwnedFd>, said: &mut Vec<u8>) -> rustix::io::Result<bool> {
    let Some(output) = output else {
        return Ok(false);
    };
    let mut bytes = [0; SHOWN_BYTES];
    let count = match rustix::io::read(output, &mut bytes) {
        Err(Errno::INTR) => return Ok(true),
        result => result?,
    };
    said.extend(bytes.get(..count).unwrap_or_default());
    let before = said.len().saturating_sub(SHOWN_BYTES);
    said.drain(..before);
    Ok(count > 0)
}

fn wait(pid: Pid) -> rustix::io::Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Err(Errno::INTR) | Ok(None) => (),
            Ok(Some((_, status))) => return Ok(status),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(hook: &str) -> String {
        let hook: spec::Hook = serde_json::from_str(hook).unwrap();
        Hook::new("poststop", hook).unwrap_err().step
    }

    #[test]
    fn a_relative_path_is_refused_by_name() {
        assert_eq!(refused(r#"{"path":"bin/true"}"#), "hooks.poststop.path");
    }

    #[test]
    fn a_timeout_of_nothing_is_refused_by_name() {
        assert_eq!(
            refused(r#"{"path":"/bin/true","timeout":0}"#),
            "hooks.poststop.timeout"
        );
    }
}
