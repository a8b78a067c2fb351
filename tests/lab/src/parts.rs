//! What a lab is made of: QEMU from the host, the kernel from a Debian package.
//!
//! The package is fetched once, without root, and kept unpacked in `${XDG_CACHE_HOME:-~/.cache}/vmm/lab/<sha256>`, by the digest
//! that the package manager verified. The link `kernel` beside it says which one is used.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::LabError;

/// Always depends on the newest kernel of its kind.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";
/// The oldest QEMU whose emulated processor has AVX.
const QEMU_NEEDED: &str = "7.2";
/// In the order in which they are loaded: KVM's, and what makes taps and pairs of interfaces.
const MODULES: [&str; 5] = [
    "kernel/virt/lib/irqbypass.ko",
    "kernel/arch/x86/kvm/kvm.ko",
    "kernel/arch/x86/kvm/kvm-amd.ko",
    "kernel/drivers/net/tun.ko",
    "kernel/drivers/net/veth.ko",
];
/// What makes bridges, and rules of nftables for them: also in the order in which they are loaded.
const NETWORK_MODULES: [&str; 18] = [
    "kernel/net/llc/llc.ko",
    "kernel/net/802/stp.ko",
    "kernel/net/bridge/bridge.ko",
    "kernel/lib/libcrc32c.ko",
    "kernel/net/netfilter/nfnetlink.ko",
    "kernel/net/netfilter/nf_tables.ko",
    "kernel/net/ipv4/netfilter/nf_defrag_ipv4.ko",
    "kernel/net/ipv6/netfilter/nf_defrag_ipv6.ko",
    "kernel/net/netfilter/nf_conntrack.ko",
    "kernel/net/netfilter/nft_ct.ko",
    "kernel/net/netfilter/nf_nat.ko",
    "kernel/net/netfilter/nft_chain_nat.ko",
    "kernel/net/netfilter/nft_nat.ko",
    "kernel/net/netfilter/nft_masq.ko",
    "kernel/net/netfilter/nft_fib.ko",
    "kernel/net/ipv4/netfilter/nft_fib_ipv4.ko",
    "kernel/net/ipv6/netfilter/nft_fib_ipv6.ko",
    "kernel/net/netfilter/nft_fib_inet.ko",
];

/// The parts of a lab.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The emulator.
    pub qemu: PathBuf,
    /// What it says it is: `7.2.22`.
    pub qemu_version: String,
    /// The lab's kernel, as bzImage.
    pub kernel: PathBuf,
    /// Its release: `6.1.0-56-cloud-amd64`.
    pub kernel_release: String,
    /// The modules that make its KVM and interfaces, in the order of loading.
    pub modules: Vec<PathBuf>,
    /// Those that make bridges and rules, likewise, for labs that want them; nobody has looked whether they are there.
    pub network_modules: Vec<PathBuf>,
}

impl Parts {
    /// Finds QEMU, and the kernel, which is fetched if it was not before.
    ///
    /// # Errors
    ///
    /// Whatever is missing, with the command that installs it.
    pub fn find() -> Result<Self, LabError> {
        let (qemu, qemu_version) = qemu()?;
        let cache = cache_directory()?;
        let link = cache.join("kernel");
        if !link.join("boot").is_dir() {
            fetch(&cache, &link)?;
        }
        let unpacked = link.canonicalize().map_err(host("open the lab's cache"))?;
        let kernel_release = release(&unpacked)?;
        let there = |path: PathBuf| match path.is_file() {
            true => Ok(path),
            false => Err(LabError::IncompletePackage {
                package: unpacked.clone(),
                missing: path.display().to_string(),
            }),
        };
        let modules = unpacked.join("lib/modules").join(&kernel_release);
        Ok(Self {
            qemu,
            qemu_version,
            kernel: there(unpacked.join(format!("boot/vmlinuz-{kernel_release}")))?,
            modules: MODULES
                .iter()
                .map(|module| there(modules.join(module)))
                .collect::<Result<_, _>>()?,
            network_modules: NETWORK_MODULES
                .iter()
                .map(|module| modules.join(module))
                .collect(),
            kernel_release,
        })
    }
}

fn qemu() -> Result<(PathBuf, String), LabError> {
    const QEMU: &str = "qemu-system-x86_64";
    let said = Command::new(QEMU)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::NoTool {
            tool: QEMU,
            package: "qemu-system-x86",
            source,
        })?;
    // QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = said
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or("unknown")
        .to_owned();
    let numbers = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0_u32));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    if numbers(&version) < numbers(QEMU_NEEDED) {
        return Err(LabError::OldQemu {
            found: version,
            needed: QEMU_NEEDED,
        });
    }
    Ok((QEMU.into(), version))
}

fn cache_directory() -> Result<PathBuf, LabError> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cache")))
        .ok_or_else(|| host("find a home directory")(io::ErrorKind::NotFound.into()))?;
    let directory = base.join("vmm/lab");
    fs::create_dir_all(&directory).map_err(host("make the lab's cache"))?;
    Ok(directory)
}

/// Fetches and unpacks the kernel's package. Whoever comes at the same time waits.
fn fetch(cache: &Path, link: &Path) -> Result<(), LabError> {
    let lock = File::create(cache.join("lock")).map_err(host("lock the lab's cache"))?;
    lock.lock().map_err(host("lock the lab's cache"))?;
    if link.join("boot").is_dir() {
        return Ok(());
    }
    let no_package = |package: &str, reason: &str| LabError::NoPackage {
        package: package.to_owned(),
        reason: reason.trim().to_owned(),
    };
    let about =
        said(Command::new("apt-cache").args(["show", "--no-all-versions", KERNEL_PACKAGE]))?;
    let package = field(&about, "Depends")
        .and_then(|depends| {
            let words = depends.split(|c: char| c.is_whitespace() || c == ',');
            words
                .into_iter()
                .find(|word| word.starts_with("linux-image-"))
        })
        .ok_or_else(|| no_package(KERNEL_PACKAGE, "it is not in the package lists"))?;
    let about = said(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    let digest = field(&about, "SHA256")
        .ok_or_else(|| no_package(package, "it is not in the package lists"))?;

    let directory = cache.join(digest);
    if !directory.is_dir() {
        let work = tempfile::Builder::new()
            .prefix("fetch.")
            .tempdir_in(cache)
            .map_err(host("make a directory in the lab's cache"))?;
        let fetched = Command::new("apt-get")
            .args(["download", "--quiet", "--quiet", package])
            .current_dir(&work)
            .output()
            .map_err(no_apt)?;
        let archive = fs::read_dir(&work)
            .map_err(host("read the lab's cache"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension() == Some(OsStr::new("deb")))
            .ok_or_else(|| no_package(package, &String::from_utf8_lossy(&fetched.stderr)))?;
        let unpacked = work.path().join("unpacked");
        let done = Command::new("dpkg-deb")
            .arg("--extract")
            .args([&archive, &unpacked])
            .output()
            .map_err(no_apt)?;
        if !done.status.success() {
            return Err(no_package(package, &String::from_utf8_lossy(&done.stderr)));
        }
        fs::rename(&unpacked, &directory).map_err(host("move a package into the lab's cache"))?;
    }
    let next = cache.join("kernel.next");
    let _ = fs::remove_file(&next);
    std::os::unix::fs::symlink(digest, &next)
        .and_then(|()| fs::rename(&next, link))
        .map_err(host("link the lab's kernel"))
}

fn said(command: &mut Command) -> Result<String, LabError> {
    let output = command.stdin(Stdio::null()).output().map_err(no_apt)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn no_apt(source: io::Error) -> LabError {
    LabError::NoTool {
        tool: "apt-get",
        package: "apt",
        source,
    }
}

/// A field of a Debian control paragraph.
fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| {
        line.strip_prefix(name)?
            .strip_prefix(':')
            .map(str::trim_start)
    })
}

fn release(unpacked: &Path) -> Result<String, LabError> {
    fs::read_dir(unpacked.join("boot"))
        .map_err(host("read the lab's cache"))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find_map(|name| name.strip_prefix("vmlinuz-").map(str::to_owned))
        .ok_or_else(|| LabError::IncompletePackage {
            package: unpacked.to_owned(),
            missing: "kernel".to_owned(),
        })
}

pub(crate) fn host(doing: &'static str) -> impl Fn(io::Error) -> LabError {
    move |source| LabError::Host { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let paragraph = "Package: a\nSHA256sum: no\nSHA256: 0abc\n";

        assert_eq!(field(paragraph, "SHA256"), Some("0abc"));
        assert_eq!(field(paragraph, "Depends"), None);
    }
}
