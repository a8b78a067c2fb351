//! `vmm doctor`: what this host can do, and what is missing.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal};
use std::path::Path;

use kvm_ioctls::Kvm;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetError,
    Scope,
};
use serde::Serialize;

use super::output::{print_json, print_line, spell_size};
use crate::cli::DoctorArgs;
use crate::dirs::{Directories, create_private};
use crate::guest::{GuestDirectory, GuestError, GuestImage};
use crate::machine::host::Quirks;
use crate::outcome::ExitCode;
use crate::report::{Help, Report, chain};

/// The only version of the KVM API there has been since Linux 2.6.22, `Documentation/virt/kvm/api.rst` section 4.1.
const KVM_API_VERSION: i32 = 12;
/// Below this much free space, imports are likely to fail.
const LOW_SPACE_BYTES: u64 = 1 << 30;

/// What one look at the host found.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// One sentence.
    found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
    /// The parts of what was found that a program may want.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Machines run, with less than they could have.
    Limited,
    /// Machines cannot run.
    Missing,
}

/// All of it, as a program reads it.
#[derive(Debug, Serialize)]
struct Diagnosis<'a> {
    version: &'static str,
    healthy: bool,
    checks: &'a [Check],
}

/// Looks at the host and says what was found; fails if machines cannot run.
pub(super) fn run(arguments: &DoctorArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let checks = [
        kvm(),
        quirks(directories),
        guest_image(directories),
        directory("store", directories.store()),
        directory("machines", directories.machines()),
        landlock(),
        seccomp(),
        memory(),
    ];
    let healthy = checks.iter().all(|it| it.verdict != Verdict::Missing);
    if arguments.json {
        print_json(&Diagnosis {
            version: env!("CARGO_PKG_VERSION"),
            healthy,
            checks: &checks,
        })?;
    } else {
        print(&checks)?;
    }
    if healthy {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Report::printed(ExitCode::APPLIANCE_FAILED))
    }
}

fn print(checks: &[Check]) -> Result<(), Report> {
    let in_colour =
        io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    for check in checks {
        let (word, colour) = match check.verdict {
            Verdict::Good => ("good", 32),
            Verdict::Limited => ("limited", 33),
            Verdict::Missing => ("missing", 31),
        };
        let word = format!("{word:<8}");
        let word = match in_colour {
            true => format!("\x1b[{colour}m{word}\x1b[0m"),
            false => word,
        };
        print_line(format!("{word} {:<12} {}", check.name, check.found))?;
        for detail in &check.details {
            print_line(format!("{:22}- {detail}", ""))?;
        }
        if let Some(help) = &check.help {
            print_line(format!("{:22}help: {help}", ""))?;
        }
    }
    Ok(())
}

impl Check {
    fn new(name: &'static str, verdict: Verdict, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            help: None,
            details: Vec::new(),
        }
    }

    fn with_help(self, help: impl Into<String>) -> Self {
        Self {
            help: Some(help.into()),
            ..self
        }
    }
}

/// Opens `/dev/kvm` and asks for the version of its API.
fn kvm() -> Check {
    const NAME: &str = "kvm";
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = opened {
        let found = format!("/dev/kvm cannot be opened: {error}");
        let help = match error.kind() {
            ErrorKind::NotFound => {
                "load the module kvm_intel or kvm_amd, or allow virtualisation in the firmware"
            }
            ErrorKind::PermissionDenied => {
                "add yourself to the group that owns it: sudo usermod -aG kvm $USER, then log in again"
            }
            _ => "see whether another hypervisor uses the CPU's virtualisation",
        };
        return Check::new(NAME, Verdict::Missing, found).with_help(help);
    }
    match Kvm::new().map(|kvm| kvm.get_api_version()) {
        Ok(KVM_API_VERSION) => {
            let found = format!("/dev/kvm has API version {KVM_API_VERSION}");
            Check::new(NAME, Verdict::Good, found)
        }
        Ok(version) => {
            let found = format!("/dev/kvm has API version {version}, not {KVM_API_VERSION}");
            Check::new(NAME, Verdict::Missing, found)
        }
        Err(error) => Check::new(NAME, Verdict::Missing, format!("/dev/kvm fails: {error}")),
    }
}

/// Asks KVM what the guest's kernel cannot do here.
fn quirks(directories: &Directories) -> Check {
    const NAME: &str = "guest kernel";
    match Quirks::of_host(&directories.host_cache()) {
        Ok(quirks) => {
            let details: Vec<String> = quirks
                .iter()
                .map(|it| it.description().to_owned())
                .collect();
            let check = match details.len() {
                0 => Check::new(NAME, Verdict::Good, "runs as on hardware"),
                count => {
                    let found = format!(
                        "is emulated or restricted by this host in {count} ways; machines run, slowly"
                    );
                    Check::new(NAME, Verdict::Limited, found)
                }
            };
            Check { details, ..check }
        }
        Err(error) => Check::new(NAME, Verdict::Missing, chain(&error)),
    }
}

/// Finds the current guest image and verifies it.
fn guest_image(directories: &Directories) -> Check {
    const NAME: &str = "guest image";
    match open_guest_image(directories) {
        Ok(image) => {
            let found = format!(
                "{} in {}",
                image.manifest.version,
                image.directory.display()
            );
            Check::new(NAME, Verdict::Good, found)
        }
        Err(error) => {
            let check = Check::new(NAME, Verdict::Missing, chain(&error));
            Check {
                help: error.help(),
                ..check
            }
        }
    }
}

fn open_guest_image(directories: &Directories) -> Result<GuestImage, GuestError> {
    GuestDirectory::find(directories)?.open_current(directories.cache())
}

/// Creates a directory if it is not there, writes to it, and says how much space there is.
fn directory(name: &'static str, path: &Path) -> Check {
    if let Err(error) = create_private(path) {
        let help = error.help();
        return Check {
            help,
            ..Check::new(name, Verdict::Missing, chain(&error))
        };
    }
    if let Err(error) = tempfile::tempfile_in(path) {
        let found = format!("{} cannot be written to: {error}", path.display());
        return Check::new(name, Verdict::Missing, found)
            .with_help("name a directory that can be written to with --root DIR or VMM_ROOT");
    }
    let Ok(space) = rustix::fs::statvfs(path) else {
        return Check::new(name, Verdict::Good, path.display().to_string());
    };
    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
    let found = format!("{} has {} free", path.display(), spell_size(free_bytes));
    match free_bytes < LOW_SPACE_BYTES {
        true => Check::new(name, Verdict::Limited, found)
            .with_help("see `vmm system df` and `vmm prune`"),
        false => Check::new(name, Verdict::Good, found),
    }
}

/// Finds the highest version of Landlock that the kernel has.
fn landlock() -> Check {
    const NAME: &str = "landlock";
    const VERSIONS: [(ABI, u8); 6] = [
        (ABI::V6, 6),
        (ABI::V5, 5),
        (ABI::V4, 4),
        (ABI::V3, 3),
        (ABI::V2, 2),
        (ABI::V1, 1),
    ];
    match VERSIONS.iter().find(|(abi, _)| has_landlock(*abi)) {
        Some((_, version)) => {
            Check::new(NAME, Verdict::Good, format!("version {version} or later"))
        }
        None => Check::new(
            NAME,
            Verdict::Limited,
            "is not there; the seccomp filter stands alone",
        )
        .with_help("boot the host with landlock in its lsm= parameter"),
    }
}

/// Makes a ruleset, without entering it, that needs what a version brought.
fn has_landlock(abi: ABI) -> bool {
    let make = || -> Result<_, RulesetError> {
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(abi))?;
        if abi >= ABI::V4 {
            ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
        }
        if abi >= ABI::V6 {
            ruleset = ruleset.scope(Scope::from_all(abi))?;
        }
        ruleset.create()
    };
    make().is_ok()
}

/// Asks whether a filter may kill the process that it judges (`seccomp(2)`, SECCOMP_RET_KILL_PROCESS).
fn seccomp() -> Check {
    const NAME: &str = "seccomp";
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.split_whitespace().any(|it| it == "kill_process") {
        true => Check::new(NAME, Verdict::Good, "filters can be had"),
        false => Check::new(
            NAME,
            Verdict::Missing,
            "there are no filters, and machines are not run without",
        )
        .with_help("use a kernel with CONFIG_SECCOMP_FILTER"),
    }
}

/// Says how much memory is free, which is not known to be enough or too little.
fn memory() -> Check {
    const NAME: &str = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match available_kib {
        Some(kib) => {
            let size = spell_size(kib.saturating_mul(1024));
            let found = format!("{size} can be had, and {cpus} processors");
            Check::new(NAME, Verdict::Good, found)
        }
        None => Check::new(
            NAME,
            Verdict::Limited,
            "/proc/meminfo does not say how much",
        ),
    }
}
