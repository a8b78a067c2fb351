//! Templates, from outside: machines that are clones of one that was frozen, and everything that can go wrong with it.
//!
//! The harness keeps templates out of all other tests. `--timings` has a step "clone" where a machine began as one, and "boot" where
//! it booted: by that a test knows.

mod attached;
mod clones;
mod contract;
mod faults;
mod forged;
mod housekeeping;
mod kept;
mod making;
mod memory;
mod removed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;
use tests::image_maker::{ImageMaker, Layer};
use tests::process::MACHINE_LIMIT;
use tests::terminal::OnTerminal;
use tests::{Finished, Fixture, Invocation};

/// The image that these tests run: busybox and the static program `probe`.
const IMAGE: &str = "probe:test";

/// A fixture in which runs use templates, and leave some.
struct Home {
    fixture: Fixture,
}

impl Home {
    /// Makes a home with [`IMAGE`] in its store, and no template.
    fn new() -> Self {
        let fixture = Fixture::with_machines();
        let probe = Layer::new().executable("bin/probe", tests::workload::program("probe"));
        let image = ImageMaker::busybox().layer(probe).name(IMAGE);
        let file = fixture.file("probe.oci", image.layout().archive());
        fixture.load(&file).run().succeeded();
        Self { fixture }
    }

    /// Makes a home with a template of [`IMAGE`] for machines of the usual shape, and no other.
    fn prepared() -> Self {
        let home = Self::new();
        home.prepare(&[]).succeeded().stdout_is("prepared\n");
        home
    }

    /// Lets a command use templates: the one place where the harness's own choice is taken back.
    fn with_templates(invocation: Invocation) -> Invocation {
        invocation
            .without_env("VMM_NO_TEMPLATE")
            .without_env("VMM_TEMPLATE_LIMIT")
            .limit(MACHINE_LIMIT)
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        Self::with_templates(self.fixture.vmm(arguments))
    }

    /// A shell script that may mount what it likes; see [`Fixture::in_private_mounts`].
    fn script(&self, script: &str) -> Invocation {
        Self::with_templates(self.fixture.in_private_mounts(script))
    }

    fn prepare(&self, options: &[&str]) -> Finished {
        self.prepare_invocation(options).run()
    }

    fn prepare_invocation(&self, options: &[&str]) -> Invocation {
        let is_of_kept = options.contains(&"--storage");
        let of_others = (!is_of_kept).then_some("--rm");
        self.vmm(&["prepare"])
            .args(of_others)
            .args(options)
            .arg(IMAGE)
    }

    fn run(&self, options: &[&str], command: &[&str]) -> Ran {
        Ran::of(self.run_invocation(options, command).run())
    }

    fn run_invocation(&self, options: &[&str], command: &[&str]) -> Invocation {
        self.vmm(&["run", "--rm", "--timings=json"])
            .args(options)
            .args([IMAGE, "--"])
            .args(command)
    }

    /// Runs on a terminal of its own, on which the timings appear, too.
    fn on_terminal(&self, options: &[&str], command: &[&str]) -> OnTerminal {
        let before = ["run", "--rm", "--timings=json"].iter().chain(options);
        let arguments = before.chain(&[IMAGE, "--"]).chain(command);
        self.fixture.on_terminal_with_templates(arguments)
    }

    fn directory(&self) -> PathBuf {
        self.fixture.root().join("cache/templates")
    }

    /// The directory of the only template.
    #[track_caller]
    fn template(&self) -> PathBuf {
        let ids = self.ids();
        assert_eq!(ids.len(), 1, "there is one template");
        self.directory().join(&ids[0])
    }

    fn list(&self) -> Vec<Value> {
        let listed = self.vmm(&["template", "ls", "--json"]).run();
        serde_json::from_slice(&listed.succeeded().stdout).expect("template ls prints a list")
    }

    fn ids(&self) -> Vec<String> {
        self.list()
            .iter()
            .map(|template| template["id"].as_str().expect("an id is text").to_owned())
            .collect()
    }

    /// Names in the directory of templates that begin so.
    fn entries(&self, beginning: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.directory()) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(beginning))
            .collect()
    }

    /// What is neither a template nor the lock.
    fn leftovers(&self) -> Vec<String> {
        let mut entries = self.entries("");
        entries.retain(|name| name.len() != 64 && name != "making");
        entries
    }

    /// Asserts that the next run after `vmm prepare` is a clone that has nothing to complain of.
    #[track_caller]
    fn is_well_again(&self) {
        self.prepare(&[]).succeeded();
        self.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
        self.fixture.nothing_runs();
        assert_eq!(self.leftovers(), [""; 0]);
    }
}

/// What a run with `--timings=json` said.
struct Ran {
    done: Finished,
    steps: Vec<String>,
    /// Standard error without the timings.
    complaints: Vec<String>,
}

impl Ran {
    #[track_caller]
    fn of(done: Finished) -> Self {
        let text = done.stderr_text();
        let (timings, complaints): (Vec<_>, Vec<_>) = text
            .lines()
            .map(str::to_owned)
            .partition(|line| line.starts_with("{\"steps\":"));
        let steps = timings
            .iter()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .flat_map(|timings| timings["steps"].as_array().cloned().unwrap_or_default())
            .filter_map(|step| Some(step["step"].as_str()?.to_owned()))
            .collect();
        Self {
            done,
            steps,
            complaints,
        }
    }

    fn began_with(&self, step: &str) -> bool {
        self.steps.iter().any(|name| name == step)
    }

    /// Asserts that the machine was a clone, and that nothing had to be said about it.
    #[track_caller]
    fn is_clone(&self) -> &Self {
        assert!(
            self.began_with("clone") && !self.began_with("boot"),
            "expected a clone: {:?}",
            self.done
        );
        self
    }

    /// Asserts that the machine booted.
    #[track_caller]
    fn booted(&self) -> &Self {
        assert!(
            self.began_with("boot") && !self.began_with("clone"),
            "expected a boot: {:?}",
            self.done
        );
        self
    }

    /// Asserts success, the whole standard output, and silence otherwise.
    #[track_caller]
    fn says(&self, expected: &str) -> &Self {
        self.done.succeeded().stdout_is(expected);
        assert_eq!(self.complaints, [""; 0], "{:?}", self.done);
        self
    }

    /// Asserts one line on standard error that says that the machine boots, and why.
    #[track_caller]
    fn warns_once(&self, reason: &str) -> &Self {
        self.complains_once("the machine boots, because", reason)
    }

    /// Asserts one line on standard error that says that the machine begins with another template, and why.
    #[track_caller]
    fn begins_with_another(&self, reason: &str) -> &Self {
        self.complains_once("the machine begins with another template, because", reason)
    }

    #[track_caller]
    fn complains_once(&self, complaint: &str, reason: &str) -> &Self {
        let is_told = |line: &String| line.contains(complaint) && line.contains(reason);
        assert!(
            self.complaints.len() == 1 && self.complaints.iter().all(is_told),
            "expected one line that says `{reason}`: {:?}",
            self.done
        );
        self
    }

    #[track_caller]
    fn stdout(&self) -> String {
        self.done.succeeded().stdout_text()
    }
}

/// Waits for what another process does to files.
#[track_caller]
fn wait_until(awaited: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + MACHINE_LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {awaited}");
        std::thread::yield_now();
    }
}

fn mode(path: &Path) -> u32 {
    let metadata = fs::symlink_metadata(path).expect("a file that is there has metadata");
    metadata.permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .expect("a file of ours takes a mode");
}
