//! A home of its own for one test: private root, binary under test, and a broom.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use tempfile::TempDir;

use crate::process::{MACHINE_LIMIT, wait_readable};
use crate::terminal::OnTerminal;
use crate::{Invocation, binary, host, snapshot};

/// The variable that says where `vmm` keeps everything; it also marks the processes of one fixture.
const ROOT_VARIABLE: &str = "VMM_ROOT";

/// The variable that keeps templates out. Every run would leave a machine at work behind it; the tests of templates ask for them.
const NO_TEMPLATE_VARIABLE: &str = "VMM_NO_TEMPLATE";

/// How long processes of a killed machine may take to go away.
const GONE_LIMIT: Duration = Duration::from_secs(60);

/// A private place to run `vmm` in.
#[derive(Debug)]
pub struct Fixture {
    directory: TempDir,
    vmm: PathBuf,
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

impl Fixture {
    /// Makes a fixture for commands that start no machine.
    pub fn new() -> Self {
        let directory =
            TempDir::with_prefix("vmm-test-").expect("a temporary directory can be made");
        fs::create_dir(directory.path().join("root")).expect("a directory can be made");
        Self {
            directory,
            vmm: binary::vmm(),
        }
    }

    /// Makes a fixture for machines; fails when this host cannot start any.
    pub fn with_machines() -> Self {
        host::require_kvm();
        let _ = binary::guest_directory();
        Self::new()
    }

    /// Returns the path of a scratch file.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a scratch file and returns its path.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a scratch file can be written");
        path
    }

    /// Returns the root directory given to `vmm`.
    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Returns the image store's directory.
    pub fn store(&self) -> PathBuf {
        self.root().join("store")
    }

    /// Returns the directory of machine records.
    pub fn machines(&self) -> PathBuf {
        self.root().join("machines")
    }

    /// Prepares `vmm` with these arguments.
    pub fn vmm<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        self.at_home(Invocation::new(&self.vmm)).args(arguments)
    }

    /// Prepares `vmm run` of an image file: `options` before the image, `command` after `--` (none: the image's own).
    pub fn run(&self, image: &Path, options: &[&str], command: &[&str]) -> Invocation {
        let separator: &[&str] = if command.is_empty() { &[] } else { &["--"] };
        self.vmm(["run"])
            .args(removed_unless_detached(options))
            .args(options)
            .arg("--image")
            .arg(image)
            .args(separator)
            .args(command)
            .limit(MACHINE_LIMIT)
    }

    /// Prepares `vmm run` of an image of the store.
    pub fn run_name(&self, name: &str, options: &[&str], command: &[&str]) -> Invocation {
        let separator: &[&str] = if command.is_empty() { &[] } else { &["--"] };
        self.vmm(["run"])
            .args(removed_unless_detached(options))
            .args(options)
            .arg(name)
            .args(separator)
            .args(command)
            .limit(MACHINE_LIMIT)
    }

    /// Prepares the import of an image file under its own names.
    pub fn load(&self, image: &Path) -> Invocation {
        self.vmm(["load", "--input"]).arg(image)
    }

    /// Starts `vmm` on a terminal of its own.
    pub fn on_terminal<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> OnTerminal {
        self.start_on_terminal(arguments, "1")
    }

    /// Starts `vmm` on a terminal of its own, and lets it use templates.
    pub fn on_terminal_with_templates<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> OnTerminal {
        self.start_on_terminal(arguments, "0")
    }

    fn start_on_terminal<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        no_template: &str,
    ) -> OnTerminal {
        let arguments: Vec<_> = arguments
            .into_iter()
            .map(|argument| argument.as_ref().to_os_string())
            .collect();
        OnTerminal::start(
            &self.vmm,
            &arguments,
            &[
                (ROOT_VARIABLE, self.root().as_os_str()),
                (NO_TEMPLATE_VARIABLE, no_template.as_ref()),
            ],
            MACHINE_LIMIT,
        )
    }

    /// Prepares a shell script in a mount namespace of its own, where it may mount what it likes.
    ///
    /// The script sees the binary as `$VMM_BINARY` and the root directory as `$VMM_ROOT`.
    pub fn in_private_mounts(&self, script: &str) -> Invocation {
        self.in_namespaces(&["--mount", "--propagation", "private"], script)
    }

    /// The same, in a network namespace of its own, too: there is no interface but its loopback, which is down.
    pub fn in_private_network(&self, script: &str) -> Invocation {
        self.in_namespaces(&["--net", "--mount", "--propagation", "private"], script)
    }

    fn in_namespaces(&self, namespaces: &[&str], script: &str) -> Invocation {
        let mapped: &[&str] = if rustix::process::geteuid().is_root() {
            &[]
        } else {
            &["--map-root-user"]
        };
        self.at_home(Invocation::new("unshare"))
            .args(mapped)
            .args(namespaces)
            .args(["sh", "-euc", script])
            .env("VMM_BINARY", &self.vmm)
    }

    fn at_home(&self, invocation: Invocation) -> Invocation {
        invocation
            .env(ROOT_VARIABLE, self.root())
            .env(NO_TEMPLATE_VARIABLE, "1")
            .without_env("VMM_LOG")
            .without_env("RUST_BACKTRACE")
    }

    /// Returns a listing of the store: see [`snapshot::listing`].
    pub fn store_listing(&self) -> String {
        snapshot::listing(&self.store())
    }

    /// Returns a listing of the machine records.
    pub fn machines_listing(&self) -> String {
        let listing = snapshot::listing(&self.machines());
        let lines = listing.lines();
        let of_machines = lines.filter(|line| !line.starts_with(".events"));
        of_machines.map(|line| format!("{line}\n")).collect()
    }

    /// Returns the processes that still belong to this fixture, with their command lines.
    ///
    /// They are recognised by the environment that they were started with, which a forked process keeps.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let mut marker = format!("{ROOT_VARIABLE}=").into_bytes();
        marker.extend_from_slice(self.root().as_os_str().as_bytes());
        let entries = fs::read_dir("/proc").expect("/proc can be listed");
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|number: i32| {
                // A process may end at any point of this: then it is no longer there to be reported.
                let environment = fs::read(format!("/proc/{number}/environ")).ok()?;
                let ours = environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == marker);
                let command = fs::read(format!("/proc/{number}/cmdline")).ok()?;
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                ours.then_some((Pid::from_raw(number)?, command))
            })
            .collect()
    }

    /// Asserts that no process of this fixture is left, allowing a short while for dying ones.
    #[track_caller]
    pub fn nothing_runs(&self) {
        let deadline = Instant::now() + GONE_LIMIT;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            // One that makes templates has made another process meanwhile.
            for (pid, command) in left {
                // ESRCH: it is gone already.
                let gone = pidfd_open(pid, PidfdFlags::empty())
                    .map_or(true, |ended| wait_readable(&ended, deadline));
                assert!(gone, "process {pid:?} is left: {command}");
            }
        }
    }
}

/// What a run in the foreground leaves is for the tests that are about it.
fn removed_unless_detached(options: &[&str]) -> Option<&'static str> {
    let stays = |option: &&str| {
        option.starts_with("-d")
            || matches!(*option, "--detach" | "--rm" | "--storage" | "--restart")
    };
    (!options.iter().any(stays)).then_some("--rm")
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            // It may have ended meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}
