//! The engines that are compared: how each is found, prepared, started and cleared away.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit};

use super::interrupt::Interrupt;
use super::place::{Place, Task};
use super::processes::{ProcessId, descendants_of, parent_of};
use super::runs::Crew;
use super::{Stop, mounts};
use crate::cli::BenchEngine;
use crate::state::Registry;

/// The user that everything is run as.
const USER: [&str; 2] = ["--user", "0:0"];
/// The user and group of nobody, as the kernel counts them (`overflowuid`).
const NOBODY: &str = "65534:65534";
/// Labels containers in docker's daemon as one bench's.
const LABEL: &str = "org.vmm.bench";

/// Something that runs a program of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The program as a process of the host, see [`confined`]. What the loops are compared with.
    Native,
    /// This program, each run booting a machine.
    VmmCold,
    /// This program, each run starting as a clone of a template.
    VmmWarm,
    Crun,
    Runc,
    Podman,
    Docker,
}

impl Kind {
    /// Its name in tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::VmmCold => "vmm cold",
            Self::VmmWarm => "vmm warm",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Native => "unshare",
            // Whatever file this process was started from.
            Self::VmmCold | Self::VmmWarm => "/proc/self/exe",
            Self::Crun => "crun",
            Self::Runc => "runc",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

impl Kind {
    /// What is measured of an engine that was typed.
    pub(super) fn of(typed: BenchEngine) -> &'static [Self] {
        match typed {
            BenchEngine::Vmm => &[Self::VmmCold, Self::VmmWarm],
            BenchEngine::Crun => &[Self::Crun],
            BenchEngine::Runc => &[Self::Runc],
            BenchEngine::Podman => &[Self::Podman],
            BenchEngine::Docker => &[Self::Docker],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// An engine that is there and has the image. What it keeps is cleared away with it.
pub(super) struct Engine<'a> {
    pub(super) kind: Kind,
    pub(super) version: String,
    program: PathBuf,
    place: &'a Place,
    interrupt: Interrupt,
    machines: &'a Path,
    /// Numbers the containers.
    started: u32,
}

impl fmt::Debug for Engine<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Engine {} {}", self.kind, self.version)
    }
}

impl<'a> Engine<'a> {
    /// Finds an engine and gives it the image; says why not otherwise. `machines` is where `vmm` keeps records.
    pub(super) fn prepare(
        kind: Kind,
        place: &'a Place,
        machines: &'a Path,
        interrupt: Interrupt,
    ) -> Result<Self, Stop> {
        let needs_root = matches!(kind, Kind::Native | Kind::Crun | Kind::Runc);
        let program = find(kind.program())
            .ok_or_else(|| Stop::Because("is not installed: it is not on the PATH".to_owned()))?;
        if kind == Kind::Native && (find("setpriv").is_none() || find("chroot").is_none()) {
            return Err(Stop::Because(
                "setpriv or chroot is not installed".to_owned(),
            ));
        }
        if needs_root && !geteuid().is_root() {
            let reason = "needs root's rights to run the image from a directory";
            return Err(Stop::Because(reason.to_owned()));
        }
        let mut engine = Self {
            kind,
            version: String::new(),
            program,
            place,
            interrupt,
            machines,
            started: 0,
        };
        engine.version = engine.ask_version()?;
        engine.load()?;
        Ok(engine)
    }

    fn ask_version(&self) -> Result<String, Stop> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::VmmCold | Kind::VmmWarm => return Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Kind::Docker => command.args([
                "version",
                "--format",
                "{{.Client.Version}}, daemon {{.Server.Version}}",
            ]),
            _ => command.arg("--version"),
        };
        let text = Crew::run(self.interrupt, command)?.text();
        let first = text.lines().next().unwrap_or_default();
        Ok(match self.kind {
            Kind::Docker => first.to_owned(),
            // As in `crun version 1.8.1`.
            _ => first.rsplit(' ').next().unwrap_or_default().to_owned(),
        })
    }

    fn load(&self) -> Result<(), Stop> {
        let mut command = self.base();
        match self.kind {
            Kind::VmmWarm => command.args([
                "prepare",
                "--rm",
                "--network",
                "none",
                &self.place.image_id(),
            ]),
            Kind::Podman | Kind::Docker => {
                command.args(["load", "--input"]).arg(self.place.archive()?)
            }
            Kind::Native | Kind::VmmCold | Kind::Crun | Kind::Runc => return Ok(()),
        };
        Crew::run(self.interrupt, command).map(drop)
    }

    /// The program with the options that keep what it does within the bench's directory.
    fn base(&self) -> Command {
        let mut command = Command::new(&self.program);
        mounts::forget(&mut command);
        let directory = |name: &str| self.place.path(self.kind.program()).join(name);
        match self.kind {
            Kind::Native | Kind::Docker => {}
            Kind::VmmCold | Kind::VmmWarm => {
                command.args(&self.place.global);
                // What is measured does not depend on the caller's habits.
                command.env_remove("VMM_NO_TEMPLATE");
            }
            Kind::Crun | Kind::Runc => {
                command.arg("--root").arg(directory("state"));
            }
            Kind::Podman => {
                command.arg("--root").arg(directory("storage"));
                command.arg("--runroot").arg(directory("run"));
                command.arg("--tmpdir").arg(directory("tmp"));
                if has_no_systemd() {
                    command.args(["--cgroup-manager", "cgroupfs"]);
                }
            }
        }
        command
    }

    /// The command that starts a task once more.
    pub(super) fn command(&mut self, task: &Task) -> Command {
        self.started += 1;
        let name = self.container(self.started);
        let mut command = self.base();
        match self.kind {
            Kind::Native => confined(&mut command, &self.place.root(), task),
            Kind::Crun | Kind::Runc => {
                command
                    .args(["run", "--bundle"])
                    .arg(&task.bundle)
                    .arg(name);
            }
            Kind::VmmCold | Kind::VmmWarm => {
                command
                    .args(["run", "--rm", "--network", "none"])
                    .args(USER);
                if self.kind == Kind::VmmCold {
                    command.arg("--no-template");
                }
                add_program(&mut command, task, &self.place.image_id());
            }
            Kind::Podman | Kind::Docker => {
                command.args(["run", "--rm", "--pull", "never", "--network", "none"]);
                command.args(USER).args(["--name", &name]);
                if self.kind == Kind::Podman {
                    command.args(own_limits());
                    if has_no_systemd() {
                        command.arg("--cgroup-parent").arg(self.cgroup());
                    }
                } else {
                    command.args(["--label", &self.label()]);
                }
                add_program(&mut command, task, &self.place.image_name());
            }
        }
        command
    }

    fn container(&self, number: u32) -> String {
        format!("{}-{number}", self.place.token())
    }

    /// Above the cgroups of podman's containers, where podman would otherwise leave one of its own.
    fn cgroup(&self) -> String {
        format!("/{}", self.place.token())
    }

    fn label(&self) -> String {
        format!("{LABEL}={}", self.place.token())
    }

    /// The processes of the instances that run now. All descendants of the bench are of the engine under measurement.
    pub(super) fn processes(&self, instances: u32) -> Result<Vec<ProcessId>, Stop> {
        let mut found = descendants_of(std::process::id());
        if self.kind == Kind::Docker {
            let first = self.started.saturating_sub(instances) + 1;
            for number in first..=self.started {
                found.extend(self.processes_in_daemon(&self.container(number))?);
            }
            found.sort_unstable();
            found.dedup();
        }
        Ok(found)
    }

    /// What runs a container of docker's: its shim and all below.
    fn processes_in_daemon(&self, container: &str) -> Result<Vec<ProcessId>, Stop> {
        let mut command = self.base();
        command.args(["inspect", "--format", "{{.State.Pid}}", container]);
        let text = Crew::run(self.interrupt, command)?.text();
        let shim = text.parse().ok().and_then(parent_of).ok_or_else(|| {
            Stop::Because("its daemon's processes are not visible from here".to_owned())
        })?;
        let mut found = descendants_of(shim);
        found.push(shim);
        Ok(found)
    }

    /// Removes what an interrupted or failed run left. It must work after the bench was interrupted.
    fn sweep(&self) {
        match self.kind {
            Kind::Native => {}
            Kind::VmmCold | Kind::VmmWarm => {
                let cleaned = Registry::open(self.machines).and_then(|registry| registry.clean());
                if let Err(error) = cleaned {
                    tracing::warn!(%error, "records of killed machines stay");
                }
            }
            Kind::Crun | Kind::Runc => {
                for container in self.list(&["list", "--quiet"]) {
                    self.quietly(&["delete", "--force", &container]);
                }
            }
            Kind::Podman => {
                self.quietly(&["rm", "--all", "--force", "--time", "0"]);
                self.quietly(&["rmi", "--all", "--force"]);
                remove_cgroups(&self.cgroup());
            }
            Kind::Docker => {
                let filter = format!("label={}", self.label());
                for container in self.list(&["ps", "--all", "--quiet", "--filter", &filter]) {
                    self.quietly(&["rm", "--force", &container]);
                }
                self.quietly(&["rmi", &self.place.image_name()]);
            }
        }
    }

    fn list(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.base().args(arguments).output();
        let output = output.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&output);
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn quietly(&self, arguments: &[&str]) {
        if let Err(error) = self.base().args(arguments).output() {
            tracing::warn!(%error, "{} did not clear away what it keeps", self.kind);
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        // One that did not tell its version was never asked for anything else.
        if !self.version.is_empty() {
            self.sweep();
        }
    }
}

/// Runs a program from a directory as a process of the host that can do no more than a container's could: what an image
/// brings is as hostile here as elsewhere. Nobody's rights, none to be gained by a set-user-id file, and no network; the
/// host's programs in front of it see none of the image's variables but the locale, which decides how a shell counts.
fn confined(command: &mut Command, root: &Path, task: &Task) {
    let tool = |name: &str| find(name).unwrap_or_else(|| PathBuf::from(name));
    let variables = task.environment.iter();
    let locale = variables
        .filter_map(|variable| variable.split_once('='))
        .filter(|(name, value)| (*name == "LANG" || name.starts_with("LC_")) && is_plain(value));
    command.env_clear().envs(locale);
    command.args(["--net", "--ipc", "--pid", "--fork", "--kill-child"]);
    command.arg(tool("setpriv")).arg("--no-new-privs");
    command.arg(tool("chroot"));
    command.args(["--userspec", NOBODY, "--groups", ""]);
    command.arg(root).args(&task.arguments);
}

/// Whether a value names a locale and not a path.
fn is_plain(value: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte);
    value.bytes().all(is_known) && !value.contains("..")
}

/// What `vmm run`, `podman run` and `docker run` have in common.
fn add_program(command: &mut Command, task: &Task, image: &str) {
    if task.program.keeps_input {
        command.arg("--interactive");
    }
    if let Some(entrypoint) = task.program.entrypoint {
        command.args(["--entrypoint", entrypoint]);
    }
    command.arg(image).args(&task.program.words);
}

/// This process's limits, as podman takes them: its defaults may be above what this account may set. Podman lowers its own
/// limit of processes to the highest process id, and cannot give more.
fn own_limits() -> Vec<String> {
    let highest_id = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    let highest_id = highest_id.trim().parse().unwrap_or(u64::MAX);
    let spell = |name: &str, limit: Rlimit, cap: u64| {
        let spell = |value: Option<u64>| match value.map_or(cap, |value| value.min(cap)) {
            u64::MAX => "-1".to_owned(),
            value => value.to_string(),
        };
        let (soft, hard) = (spell(limit.current), spell(limit.maximum));
        format!("--ulimit={name}={soft}:{hard}")
    };
    vec![
        spell("nofile", getrlimit(Resource::Nofile), u64::MAX),
        spell("nproc", getrlimit(Resource::Nproc), highest_id),
    ]
}

/// Whether podman must make cgroups itself, sd_booted(3).
fn has_no_systemd() -> bool {
    !Path::new("/run/systemd/system").is_dir()
}

/// Removes an empty cgroup and all below it, in every hierarchy.
fn remove_cgroups(name: &str) {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten();
    let hierarchies = hierarchies.map(|entry| entry.path());
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        remove_cgroup(&hierarchy.join(name.trim_start_matches('/')));
    }
}

fn remove_cgroup(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    // It is not there in most hierarchies, and stays where a process is left.
    let _ = fs::remove_dir(directory);
}

/// Finds a program as a shell does.
fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program));
    }
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(OsStr::new(program)))
        .find(|candidate| {
            rustix::fs::access(candidate, rustix::fs::Access::EXEC_OK).is_ok()
                && candidate.is_file()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_is_passed_on_and_a_path_is_not() {
        assert!(is_plain("en_GB.UTF-8@euro"));
        assert!(!is_plain("../x"));
        assert!(!is_plain("/tmp/x"));
    }

    #[test]
    fn the_variables_of_an_image_do_not_reach_programs_of_the_host() {
        let variables = ["LD_PRELOAD=/evil.so", "PATH=/evil", "LANG=C.UTF-8"];
        let task = Task {
            program: super::super::programs::start(),
            arguments: vec!["/bin/sh".to_owned()],
            environment: variables.map(str::to_owned).to_vec(),
            bundle: PathBuf::new(),
        };
        let mut command = Command::new("unshare");

        confined(&mut command, Path::new("/unpacked"), &task);

        let passed: Vec<_> = command.get_envs().collect();
        let locale = (OsStr::new("LANG"), Some(OsStr::new("C.UTF-8")));
        assert_eq!(passed, [locale]);
    }
}
