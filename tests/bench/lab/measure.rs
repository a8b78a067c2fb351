//! Puts a lab together for each scenario, and measures.

use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, str};

use lab::{Lab, LabError, Times, Tree};
use serde_json::{Value, json};
use tests::image_maker::{ImageMaker, Layer};
use tests::{binary, real_images, snapshot, workload};

use crate::arguments::Peers;
use crate::scenarios::{CHORES, Clock, DATA, LINES, Part, Peer, SCRIPTS, Scenario};

/// How often a lab is begun with in which the emulator stands still.
const MAX_TRIES: usize = 3;

/// How often a scenario is measured, after a first time that only warms the page cache.
const REPEATS: usize = 3;
/// How long one scenario may take here.
const LIMIT: Duration = Duration::from_secs(300);
/// The same for those that take minutes.
const LONG_LIMIT: Duration = Duration::from_secs(3600);
/// The host's address in the networks that scenarios make.
const HOST: &str = "10.8.0.1";
/// What counts the exits of every guest: a histogram of the lab kernel's tracepoint.
const KVM_EXIT: &str = "/sys/kernel/tracing/events/kvm/kvm_exit";
/// What every VMM tells the kernel, as ours does (`command_line.rs` in `vmm/src/machine`).
const PARAMETERS: &str =
    "console=ttyS0 reboot=k panic=-1 tsc=reliable rcupdate.rcu_expedited=1 quiet";

/// What labs are made of.
#[derive(Debug)]
pub(crate) struct Stage {
    /// A lab with nothing in it.
    lab: Lab,
    peers: Peers,
    /// The images and bundles lie here until the last lab has read them.
    made: Scratch,
}

/// A directory that is removed in the end.
#[derive(Debug, Clone)]
struct Scratch(PathBuf);

impl Scratch {
    fn path(&self) -> &Path {
        &self.0
    }

    /// Makes one named after this process. What an interrupted one left behind while its tools still wrote is removed.
    fn make() -> Self {
        let all = binary::checkout().join("target/bench/made");
        for left in fs::read_dir(&all).into_iter().flatten().flatten() {
            let process = Path::new("/proc").join(left.file_name());
            if !process.exists() {
                Self(left.path()).remove();
            }
        }
        let made = all.join(std::process::id().to_string());
        fs::create_dir_all(&made).expect("a directory can be made");
        Self(made)
    }

    fn remove(&self) {
        // It may not be there.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.made.remove();
    }
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
    /// A tool of the host is missing.
    #[error("{tool} is missing")]
    NoTool {
        /// The tool.
        tool: &'static str,
    },
    /// A VMM that was named cannot be run.
    #[error("{} cannot be measured", path.display())]
    Peer {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A budget that nobody can keep.
    #[error("the budgets name {0}, which is no scenario")]
    UnknownBudget(String),
}

impl Failure {
    /// What to do about it.
    pub(crate) fn help(&self) -> Option<String> {
        match self {
            Self::Lab(error) => error.help(),
            Self::NoTool { tool } => Some(format!("apt-get install {tool}")),
            Self::Scenario { .. } | Self::Peer { .. } | Self::UnknownBudget(_) => None,
        }
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figure {
    /// The middle one of the repeats, in millions of instructions: to the exit, or what the command took by its own clock.
    pub(crate) virtual_ms: f64,
    /// The same to the first byte of its output, if it says anything.
    pub(crate) first_byte_ms: Option<f64>,
    /// The same until nothing was left of it; nothing where the command took the time itself.
    pub(crate) returned_ms: Option<f64>,
    /// The distance between the least and the largest, as a share of the middle one.
    pub(crate) spread: f64,
    /// Exits from guests in one more run.
    pub(crate) exits: u64,
}

impl Stage {
    /// Finds the lab's parts. Nothing is made before a scenario takes it.
    pub(crate) fn set(peers: &Peers) -> Result<Self, Failure> {
        let made = Scratch::make();
        let left = made.clone();
        lab::end_on_signals(move || left.remove()).expect("signals can be heard");
        let mut lab = Lab::new()?;
        lab.clock = lab::Clock::Instructions;
        lab.memory_mib = 4 << 10;
        lab.tree.program_called("sh")?;
        lab.put_this_program()?;
        for (name, text) in SCRIPTS {
            lab.tree.bytes(format!("/scripts/{name}"), *text, 0o755);
        }
        for path in [&peers.firecracker, &peers.cloud_hypervisor]
            .into_iter()
            .flatten()
        {
            version_of(path)?;
        }
        Ok(Self {
            lab,
            peers: peers.clone(),
            made,
        })
    }

    /// Whether the scenario needs another VMM that was not named.
    pub(crate) fn lacks(&self, scenario: &Scenario) -> Option<&'static str> {
        scenario.takes.iter().find_map(|part| match part {
            Part::Other(Peer::Firecracker) if self.peers.firecracker.is_none() => {
                Some("--firecracker PATH")
            }
            Part::Other(Peer::CloudHypervisor) if self.peers.cloud_hypervisor.is_none() => {
                Some("--cloud-hypervisor PATH")
            }
            Part::Other(Peer::Qemu) if !self.peers.qemu => Some("--qemu"),
            _ => None,
        })
    }

    /// What is measured and what measures, for the report.
    pub(crate) fn versions(&self) -> Result<Vec<(&'static str, String)>, Failure> {
        let mut versions = vec![
            ("vmm", digest(&binary::vmm())),
            ("guest image", guest_version()),
            ("crun", said("crun")?),
            ("runc", said("runc")?),
            ("hello's digest", digest(&self.hello())),
            ("python's digest", digest(&real_images::python_app())),
            ("QEMU", self.lab.parts.qemu_version.clone()),
            ("lab kernel", self.lab.parts.kernel_release.clone()),
            ("lab kernel's digest", digest(&self.lab.parts.kernel)),
        ];
        for path in [&self.peers.firecracker, &self.peers.cloud_hypervisor]
            .into_iter()
            .flatten()
        {
            let name = match self.peers.firecracker.as_ref() == Some(path) {
                true => "Firecracker",
                false => "Cloud Hypervisor",
            };
            versions.push((name, format!("{} {}", version_of(path)?, digest(path))));
        }
        Ok(versions)
    }

    /// A lab with what a scenario takes.
    pub(crate) fn lab(&self, parts: &[Part]) -> Result<Lab, Failure> {
        let mut lab = self.lab.clone();
        for part in parts {
            self.put(*part, &mut lab)?;
        }
        Ok(lab)
    }

    fn put(&self, part: Part, lab: &mut Lab) -> Result<(), Failure> {
        match part {
            Part::Vmm => lab.put_vmm(&binary::vmm(), Path::new("/usr/bin/vmm"))?,
            Part::Crun => put_engine("crun", lab)?,
            Part::Runc => put_engine("runc", lab)?,
            Part::HelloImage => lab.tree.copy(self.hello(), "/images/hello.oci")?,
            Part::HelloBundle => {
                let bundle = self.unpacked("hello", &self.hello())?;
                put_bundle(&bundle, "/bundles/hello", &[], lab)?;
                lab.tree.symlink("/bundles/sleep/rootfs", "../hello/rootfs");
                let config = configuration(&bundle, &["sleep", "1000000"]);
                lab.tree.bytes("/bundles/sleep/config.json", config, 0o644);
                lab.tree.symlink("/bundles/lines/rootfs", "../hello/rootfs");
                let config = configuration(&bundle, &["sh", "-c", LINES]);
                lab.tree.bytes("/bundles/lines/config.json", config, 0o644);
            }
            Part::PythonImage => lab
                .tree
                .copy(real_images::python_app(), "/images/python.oci")?,
            Part::PythonBundle => {
                let bundle = self.unpacked("python", &real_images::python_app())?;
                put_bundle(
                    &bundle,
                    "/bundles/python",
                    &["python3", "-c", "print(1)"],
                    lab,
                )?;
            }
            Part::ChoresImage => lab.tree.copy(self.chores(), "/images/chores.oci")?,
            Part::ChoresBundles => {
                let bundle = self.unpacked("chores", &self.chores())?;
                put_bundle(&bundle, "/bundles/chores", &[], lab)?;
                lab.tree.directory(DATA, 0o755);
                for kind in CHORES {
                    let inside = format!("/bundles/chores-{kind}");
                    lab.tree
                        .symlink(format!("{inside}/rootfs"), "../chores/rootfs");
                    let config = match kind.starts_with("net-") {
                        false => with_data(&configuration(&bundle, &["work", kind])),
                        true => networked(&configuration(&bundle, &["work", kind, HOST])),
                    };
                    lab.tree
                        .bytes(format!("{inside}/config.json"), config, 0o644);
                }
            }
            Part::Links => {
                let ip = lab.tree.program_called("ip")?;
                lab.tree.symlink("/usr/local/bin/ip", ip);
            }
            Part::EndingGuest => lab.tree.copy(self.ending_guest(), "/boot/guest")?,
            Part::Other(peer) => self.put_peer(peer, lab)?,
        }
        Ok(())
    }

    /// Another VMM, the kernel, an initramfs, and what they are told.
    fn put_peer(&self, peer: Peer, lab: &mut Lab) -> Result<(), Failure> {
        let kernel = binary::guest_directory().join("current/vmlinux");
        lab.tree.copy(kernel, "/boot/vmlinux")?;
        let mut tree = Tree::new();
        tree.bytes("/init", workload::program("end"), 0o755);
        let mut initramfs = Vec::new();
        let mut file = tree.initramfs()?;
        file.rewind()
            .and_then(|()| file.read_to_end(&mut initramfs))
            .expect("a file that was written can be read");
        lab.tree.bytes("/boot/initramfs", initramfs, 0o644);
        lab.tree.bytes("/boot/parameters", PARAMETERS, 0o644);
        match peer {
            Peer::Firecracker => {
                let path = self.peers.firecracker.as_deref().unwrap_or(Path::new(""));
                lab.tree.program(path, "/boot/firecracker")?;
                let configuration = json!({
                    "boot-source": {
                        "kernel_image_path": "/boot/vmlinux",
                        "initrd_path": "/boot/initramfs",
                        "boot_args": PARAMETERS,
                    },
                    "drives": [],
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
                });
                lab.tree
                    .bytes("/boot/firecracker.json", configuration.to_string(), 0o644);
            }
            Peer::CloudHypervisor => {
                let path = self
                    .peers
                    .cloud_hypervisor
                    .as_deref()
                    .unwrap_or(Path::new(""));
                lab.tree.program(path, "/boot/cloud-hypervisor")?;
            }
            Peer::Qemu => {
                let qemu = lab.tree.program_called("qemu-system-x86_64")?;
                lab.tree.symlink("/usr/local/bin/qemu-system-x86_64", qemu);
                // The machine's firmware, and what loads a kernel by its PVH entry.
                for file in ["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"] {
                    lab.tree.here(Path::new("/usr/share/qemu").join(file))?;
                }
            }
        }
        Ok(())
    }

    fn hello(&self) -> PathBuf {
        self.once("hello.oci", |path| {
            let image = ImageMaker::busybox().name("hello:1").layout().archive();
            fs::write(path, image).expect("an image can be written");
        })
    }

    fn chores(&self) -> PathBuf {
        self.once("chores.oci", |path| {
            fs::write(path, chores_image()).expect("an image can be written");
        })
    }

    /// A directory of guest images with one whose kernel is that of the guest image and whose init ends at once.
    fn ending_guest(&self) -> PathBuf {
        let current = binary::guest_directory().join("current");
        self.once("guest", |path| {
            run(Command::new(binary::vmm())
                .args(["guest", "pack", "--kernel-release", "6.1"])
                .arg("--kernel")
                .arg(current.join("vmlinux"))
                // Of the configuration only the digest is kept; the manifest has that of this kernel.
                .arg("--config")
                .arg(current.join("manifest.json"))
                .arg("--agent")
                .arg(workload::program_file("end"))
                .arg("--output")
                .arg(path));
        })
    }

    /// Unpacks an image as a bundle for crun and runc, by umoci.
    fn unpacked(&self, name: &str, archive: &Path) -> Result<PathBuf, Failure> {
        said("umoci")?;
        said("skopeo")?;
        Ok(self.once(name, |bundle| {
            let layout = bundle.with_extension("layout");
            run(Command::new("skopeo")
                .args(["copy", "--quiet"])
                .arg(format!("oci-archive:{}", archive.display()))
                .arg(format!("oci:{}:image", layout.display())));
            let is_root = rustix::process::geteuid().is_root();
            run(Command::new("umoci")
                .arg("unpack")
                .args((!is_root).then_some("--rootless"))
                .arg("--image")
                .arg(format!("{}:image", layout.display()))
                .arg(bundle));
        }))
    }

    /// A thing that is made when it is first wanted.
    fn once(&self, name: &str, make: impl FnOnce(&Path)) -> PathBuf {
        let path = self.made.path().join(name);
        if !path.exists() {
            make(&path);
        }
        path
    }

    /// Boots a lab, runs a script in it and returns what it prints.
    pub(crate) fn shell(
        &self,
        name: &'static str,
        parts: &[Part],
        limit: Duration,
        script: &str,
    ) -> Result<String, Failure> {
        self.script(name, self.lab(parts)?, limit, script)
    }

    /// The same in a lab that was put together already.
    pub(crate) fn script(
        &self,
        name: &'static str,
        mut lab: Lab,
        limit: Duration,
        script: &str,
    ) -> Result<String, Failure> {
        lab.limit = limit;
        let mut tries = 1..=MAX_TRIES;
        let (ended, said, complaint) = loop {
            let (mut said, mut complaint) = (Vec::new(), Vec::new());
            tries.next();
            match lab.run(&["sh", "-c", script], &mut said, &mut complaint) {
                // That says nothing of what is measured, which begins anew in a new lab.
                Err(LabError::StoodStill { .. }) if !tries.is_empty() => {
                    // Nobody is left to tell if standard error is gone.
                    let _ = writeln!(
                        io::stderr(),
                        "{name}: the emulator stood still, so this is measured once more"
                    );
                }
                ended => break (ended, said, complaint),
            }
        };
        let ended = ended.map_err(|error| match error {
            LabError::TimeLimit { limit, .. } => Failure::Scenario {
                name,
                said: format!("it was not done within {} s", limit.as_secs()),
            },
            error => error.into(),
        })?;
        let said = String::from_utf8_lossy(&said).into_owned();
        if ended.code != 0 {
            let complaint = String::from_utf8_lossy(&complaint);
            let said = last_line(&complaint).or_else(|| last_line(&said));
            let said = said.unwrap_or("it said nothing").to_owned();
            return Err(Failure::Scenario { name, said });
        }
        Ok(said)
    }

    /// Boots a lab and measures.
    pub(crate) fn measure(&self, scenario: &Scenario) -> Result<Figure, Failure> {
        let Scenario {
            before,
            command,
            code,
            ..
        } = scenario;
        let limit = match scenario.is_long {
            true => LONG_LIMIT,
            false => LIMIT,
        };
        let times = REPEATS + 1;
        let word = match scenario.clock {
            Clock::Outside => "time",
            Clock::Inside => "repeat",
        };
        let script = format!(
            "set -e\n{{ :; {before}\n}} >/dev/null\nlab {word} {times} {code} {command}\n\
             echo hist:keys=exit_reason >{KVM_EXIT}/trigger\n\
             {command} >/dev/null 2>&1 || test $? = {code}\n\
             cat {KVM_EXIT}/hist\n"
        );
        let text = self.shell(scenario.name, scenario.takes, limit, &script)?;
        let bad = |said: String| Failure::Scenario {
            name: scenario.name,
            said,
        };
        let figure = Figure::read(scenario.clock, &text)
            .ok_or_else(|| bad(format!("what it printed is no figure: {text:?}")))?;
        if figure.exits == 0 && scenario.is_of_a_peer() {
            return Err(bad("no guest ran".to_owned()));
        }
        Ok(match scenario.is_of_a_peer() {
            // What other VMMs say is their own log.
            true => Figure {
                first_byte_ms: None,
                ..figure
            },
            false => figure,
        })
    }
}

impl Figure {
    /// Reads what the scenario's script printed: a line for each time, the first of which does not count, and the histogram.
    pub(crate) fn read(clock: Clock, text: &str) -> Option<Self> {
        let times: Vec<Times> = text
            .lines()
            .map_while(|line| match clock {
                Clock::Outside => Times::parse(line),
                Clock::Inside => line.parse().ok().map(|inside| {
                    let inside = Duration::from_nanos(inside);
                    Times {
                        first_byte: None,
                        exit: inside,
                        returned: inside,
                    }
                }),
            })
            .skip(1)
            .collect();
        if times.len() != REPEATS {
            return None;
        }
        let exits = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Hits: ")?.parse().ok())?;
        let of = |which: fn(&Times) -> Option<Duration>| {
            let mut sorted: Vec<Duration> = times.iter().filter_map(which).collect();
            sorted.sort();
            sorted
        };
        let exit = of(|times| Some(times.exit));
        let (least, middle, largest) = (exit[0], exit[REPEATS / 2], exit[REPEATS - 1]);
        let middle_of = |sorted: &[Duration]| sorted.get(REPEATS / 2).copied().map(virtual_ms);
        Some(Self {
            virtual_ms: virtual_ms(middle),
            first_byte_ms: middle_of(&of(|times| times.first_byte)),
            returned_ms: match clock {
                Clock::Outside => middle_of(&of(|times| Some(times.returned))),
                Clock::Inside => None,
            },
            spread: (largest - least).as_secs_f64() / middle.as_secs_f64(),
            exits,
        })
    }
}

/// A million instructions, of a nanosecond each, are one.
fn virtual_ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// An engine for bundles, found as the shell finds it.
fn put_engine(name: &'static str, lab: &mut Lab) -> Result<(), Failure> {
    said(name)?;
    let found = lab.tree.program_called(name)?;
    lab.tree.symlink(format!("/usr/local/bin/{name}"), found);
    Ok(())
}

fn put_bundle(bundle: &Path, inside: &str, command: &[&str], lab: &mut Lab) -> Result<(), Failure> {
    lab.tree
        .copy(bundle.join("rootfs"), format!("{inside}/rootfs"))?;
    let config = configuration(bundle, command);
    lab.tree
        .bytes(format!("{inside}/config.json"), config, 0o644);
    Ok(())
}

fn last_line(text: &str) -> Option<&str> {
    text.lines().rfind(|line| !line.trim().is_empty())
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

/// The same with the lab's `/data` in it.
fn with_data(config: &str) -> String {
    let mut config: Value = serde_json::from_str(config).expect("a configuration is JSON");
    let mounts = config["mounts"].as_array_mut();
    mounts.expect("umoci writes mounts").push(json!({
        "destination": "/data",
        "type": "none",
        "source": DATA,
        "options": ["rbind", "rw"],
    }));
    config.to_string()
}

/// The same in the network namespace that `net-veth.sh` makes.
fn networked(config: &str) -> String {
    let mut config: Value = serde_json::from_str(config).expect("a configuration is JSON");
    let namespaces = config["linux"]["namespaces"].as_array_mut();
    let namespaces = namespaces.expect("umoci writes namespaces");
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({ "type": "network", "path": "/run/netns/container" }));
    config.to_string()
}

/// Busybox with the program `work` and the archives that it unpacks.
fn chores_image() -> Vec<u8> {
    let mut tree = Layer::new();
    for number in 0..2_000_u32 {
        let path = format!("tree/{}/{number}.c", number % 50);
        let letter = u8::try_from(u32::from(b'a') + number % 26).unwrap_or(b'z');
        tree = tree.file(path, vec![letter; 4096]);
    }
    let mut small = Layer::new();
    for number in 0..1_000_u32 {
        let path = format!("small/{}/{number}.txt", number % 50);
        small = small.file(path, vec![b's'; 1024]);
    }
    let layer = Layer::new()
        .executable("bin/work", workload::program("work"))
        .file("tree.tar", tree.tar())
        .file("small.tar", small.tar());
    let image = ImageMaker::busybox().layer(layer).name("chores:1");
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

/// The first line of what a tool says of its version.
fn said(tool: &'static str) -> Result<String, Failure> {
    version_of(Path::new(tool)).map_err(|_| Failure::NoTool { tool })
}

/// The first line of what a program says of its version.
fn version_of(program: &Path) -> Result<String, Failure> {
    let failed = |source| Failure::Peer {
        path: program.to_owned(),
        source,
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(failed)?;
    if !output.status.success() {
        return Err(failed(io::Error::other(format!(
            "--version: {}",
            output.status
        ))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
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
