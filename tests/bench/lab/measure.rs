//! Sets up a lab with everything that a scenario may need, and measures.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, str};

use lab::{Lab, LabError};
use serde_json::Value;
use tests::image_maker::{ImageMaker, Layer};
use tests::{binary, host, real_images, snapshot, workload};

use crate::scenarios::{Clock, SCRIPTS, Scenario, WORK};

/// How often a scenario is measured, after a first time that only warms the page cache.
const REPEATS: usize = 3;
/// How long one scenario may take here.
const LIMIT: Duration = Duration::from_secs(900);
/// What counts the exits of every guest: a histogram of the lab kernel's tracepoint.
const KVM_EXIT: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";

/// A lab with everything in it.
#[derive(Debug)]
pub(crate) struct Stage {
    lab: Lab,
    /// What was put in, for the report.
    pub(crate) versions: Vec<(&'static str, String)>,
    /// The bundles' files lie here until the last lab has read them.
    bundles: Scratch,
}

/// A directory that is removed in the end.
#[derive(Debug, Clone)]
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }

    fn remove(&self) {
        // It may not be there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.bundles.remove();
    }
}

/// Runs hello once to warm up, once to see the steps, and once to see why the guest is left.
const PROFILE: &str = "set -e
vmm load --quiet --input /images/hello.oci --name hello:1 >/dev/null
vmm run hello:1 >/dev/null
vmm run --timings=json hello:1 2>&1 >/dev/null
echo hist:keys=exit_reason >/sys/kernel/tracing/events/kvm/kvm_exit/trigger
vmm run hello:1 >/dev/null
cat /sys/kernel/tracing/events/kvm/kvm_exit/hist
";

/// Where a cold start goes.
#[derive(Debug)]
pub(crate) struct Profile {
    /// The steps of `--timings`, in millions of instructions.
    pub(crate) steps: Vec<(String, f64)>,
    /// How often the guest was left for each of SVM's exit codes.
    pub(crate) exits: Vec<(u32, u64)>,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// There is no lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A scenario did not end well.
    #[error("{name} did not end well: {said}")]
    Scenario {
        /// Which.
        name: &'static str,
        /// What it printed.
        said: String,
    },
    /// A budget that nobody can keep.
    #[error("the budgets name {0}, which is no scenario")]
    UnknownBudget(String),
}

/// What was measured.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// The middle one of the repeats, in millions of instructions.
    pub(crate) virtual_ms: f64,
    /// The distance between the least and the largest, as a share of the middle one.
    pub(crate) spread: f64,
    /// Exits from guests in one more run.
    pub(crate) exits: u64,
}

impl Stage {
    /// Makes the images and bundles, and puts everything together.
    pub(crate) fn set() -> Result<Self, Failure> {
        for (tool, package) in [
            ("crun", "crun"),
            ("runc", "runc"),
            ("umoci", "umoci"),
            ("skopeo", "skopeo"),
        ] {
            host::require_tool(tool, package);
        }
        // Always the same: what an interrupted program leaves there while its tools still write is the next one's to remove.
        let bundles = Scratch(binary::checkout().join("target/bench/bundles"));
        bundles.remove();
        fs::create_dir_all(bundles.path()).expect("a directory can be made");
        let left = bundles.clone();
        lab::end_on_signals(move || left.remove()).expect("signals can be heard");
        let hello = bundles.path().join("hello.oci");
        let image = ImageMaker::busybox().name("hello:1").layout().archive();
        fs::write(&hello, image).expect("an image can be written");
        let python = real_images::python3();
        let work = bundles.path().join("work.oci");
        fs::write(&work, work_image()).expect("an image can be written");
        unpack(&hello, bundles.path(), "hello", &[]);
        unpack(
            &python,
            bundles.path(),
            "python",
            &["python3", "-c", "print(1)"],
        );
        unpack(&work, bundles.path(), "work", &[]);

        let mut lab = Lab::new()?;
        lab.clock = lab::Clock::Instructions;
        lab.memory_mib = 4 << 10;
        lab.limit = LIMIT;
        let put = |lab: &mut Lab| -> Result<(), LabError> {
            lab.put_vmm(&binary::vmm(), Path::new("/usr/bin/vmm"))?;
            lab.put_this_program()?;
            for name in ["crun", "runc"] {
                let found = lab.tree.program_called(name)?;
                lab.tree.symlink(format!("/usr/local/bin/{name}"), found);
            }
            lab.tree.program_called("sh")?;
            lab.tree.copy(&hello, "/images/hello.oci")?;
            lab.tree.copy(&python, "/images/python3.oci")?;
            lab.tree.copy(&work, "/images/work.oci")?;
            for name in ["hello", "python", "work"] {
                let bundle = bundles.path().join(name);
                lab.tree
                    .copy(bundle.join("rootfs"), format!("/bundles/{name}/rootfs"))?;
                lab.tree.copy(
                    bundle.join("config.json"),
                    format!("/bundles/{name}/config.json"),
                )?;
            }
            for kind in WORK {
                let bundle = format!("/bundles/work-{kind}");
                lab.tree
                    .symlink(format!("{bundle}/rootfs"), "../work/rootfs");
                let config = configuration(&bundles.path().join("work"), &["work", kind]);
                lab.tree
                    .bytes(format!("{bundle}/config.json"), config, 0o644);
            }
            for (name, text) in SCRIPTS {
                lab.tree.bytes(format!("/scripts/{name}"), *text, 0o755);
            }
            Ok(())
        };
        put(&mut lab)?;
        let versions = vec![
            ("vmm", digest(&binary::vmm())),
            ("guest image", guest_version()),
            ("crun", said("crun")),
            ("runc", said("runc")),
            ("QEMU", lab.parts.qemu_version.clone()),
            ("lab kernel", lab.parts.kernel_release.clone()),
            ("lab kernel's digest", digest(&lab.parts.kernel)),
        ];
        Ok(Self {
            lab,
            versions,
            bundles,
        })
    }

    /// Boots a lab and takes a cold start apart.
    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        let text = self.shell("profile", PROFILE)?;
        let bad = || Failure::Scenario {
            name: "profile",
            said: text.clone(),
        };
        let steps: Value = text
            .lines()
            .find_map(|line| serde_json::from_str(line).ok())
            .ok_or_else(bad)?;
        let steps = steps["steps"].as_array().ok_or_else(bad)?;
        let steps = steps.iter().filter_map(|step| {
            let name = step["step"].as_str()?.to_owned();
            Some((name, step["microseconds"].as_f64()? / 1e3))
        });
        // { exit_reason:        114 } hitcount:        255
        let exits = text.lines().filter_map(|line| {
            let (reason, count) = line.strip_prefix("{ exit_reason:")?.split_once('}')?;
            let count = count.trim().strip_prefix("hitcount:")?;
            Some((reason.trim().parse().ok()?, count.trim().parse().ok()?))
        });
        Ok(Profile {
            steps: steps.collect(),
            exits: exits.collect(),
        })
    }

    /// Boots a lab, runs a script in it and returns what it prints.
    fn shell(&self, name: &'static str, script: &str) -> Result<String, Failure> {
        let (mut said, mut complaint) = (Vec::new(), Vec::new());
        let ended = self
            .lab
            .run(&["sh", "-c", script], &mut said, &mut complaint)?;
        let said = String::from_utf8_lossy(&said).into_owned();
        if ended.code != 0 {
            let complaint = String::from_utf8_lossy(&complaint);
            return Err(Failure::Scenario {
                name,
                said: format!("{said}{complaint}"),
            });
        }
        Ok(said)
    }

    /// Boots a lab and measures.
    pub(crate) fn measure(&self, scenario: &Scenario) -> Result<Figure, Failure> {
        let Scenario {
            before, command, ..
        } = scenario;
        let times = REPEATS + 1;
        let measured = match scenario.clock {
            Clock::Outside => format!("lab time {times} {command}"),
            Clock::Inside => format!("for i in $(seq {times}); do {command}; done"),
        };
        let script = format!(
            "set -e\n{{ :; {before}\n}} >/dev/null\n{measured}\n\
             echo hist:keys=exit_reason >{KVM_EXIT}/trigger\n\
             {command} >/dev/null\n\
             cat {KVM_EXIT}/hist\n"
        );
        let text = self.shell(scenario.name, &script)?;
        let mut nanoseconds: Vec<f64> = text
            .lines()
            .map_while(|line| line.parse().ok())
            .skip(1)
            .collect();
        nanoseconds.sort_by(f64::total_cmp);
        let exits = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Hits: ")?.parse().ok());
        let (Some(exits), REPEATS) = (exits, nanoseconds.len()) else {
            return Err(Failure::Scenario {
                name: scenario.name,
                said: text,
            });
        };
        let middle = nanoseconds[REPEATS / 2];
        Ok(Figure {
            virtual_ms: middle / 1e6,
            spread: (nanoseconds[REPEATS - 1] - nanoseconds[0]) / middle,
            exits,
        })
    }
}

/// Unpacks an image as a bundle for crun and runc, by umoci.
fn unpack(archive: &Path, directory: &Path, name: &str, command: &[&str]) {
    let layout = directory.join(format!("{name}.layout"));
    run(Command::new("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci-archive:{}", archive.display()))
        .arg(format!("oci:{}:image", layout.display())));
    let bundle = directory.join(name);
    let is_root = rustix::process::geteuid().is_root();
    run(Command::new("umoci")
        .arg("unpack")
        .args((!is_root).then_some("--rootless"))
        .arg("--image")
        .arg(format!("{}:image", layout.display()))
        .arg(&bundle));
    fs::write(bundle.join("config.json"), configuration(&bundle, command))
        .expect("a configuration can be written");
}

/// A bundle's configuration with this command, without a terminal.
fn configuration(bundle: &Path, command: &[&str]) -> String {
    let text = fs::read(bundle.join("config.json")).expect("umoci writes a configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("which is JSON");
    config["process"]["terminal"] = false.into();
    if !command.is_empty() {
        config["process"]["args"] = command.into();
    }
    config.to_string()
}

/// Busybox with the program `work` and the archive that it unpacks.
fn work_image() -> Vec<u8> {
    let mut tree = Layer::new();
    for number in 0..2_000_u32 {
        let path = format!("tree/{}/{number}.c", number % 50);
        let letter = u8::try_from(u32::from(b'a') + number % 26).unwrap_or(b'z');
        tree = tree.file(path, vec![letter; 4096]);
    }
    let layer = Layer::new()
        .executable("bin/work", workload::program("work"))
        .file("tree.tar", tree.tar());
    let image = ImageMaker::busybox().layer(layer).name("work:1");
    image.layout().archive()
}

fn run(command: &mut Command) {
    let done = command.output().expect("the tool was there before");
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// The first line of what a program says of its version.
fn said(program: &str) -> String {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .expect("the program was there before");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().to_owned()
}

/// The first digits of a file's SHA-256.
fn digest(path: &Path) -> String {
    let bytes = fs::read(path).expect("a file that was there before can be read");
    snapshot::sha256(&bytes).split_at(12).0.to_owned()
}

fn guest_version() -> String {
    let current = fs::read_link(binary::guest_directory().join("current"));
    current
        .expect("a guest image is current")
        .display()
        .to_string()
}
