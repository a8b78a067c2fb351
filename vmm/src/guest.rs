//! Guest images: the kernel and the agent that machines boot.
//!
//! A guest directory holds one directory for each version, which never changes once it is there, and
//! two links: `current`, what new machines boot, and `previous`, what they booted before. An upgrade
//! flips a link, a rollback flips it back, and a machine keeps the version that it started with: it
//! holds the files open and a shared lock on the version's directory.
//!
//! ```text
//! guest/
//!   6.1.192-3f4e8a12bc34/
//!     manifest.json         names the others with their digests
//!     vmlinux               an uncompressed ELF kernel
//!     agent.erofs           the agent's root file system
//!     blank.ext4            an empty file system, as which the disk of a kept machine begins; sparse
//!   current -> 6.1.192-3f4e8a12bc34
//!   previous -> …
//! ```
//!
//! The files are verified by their digests before they are booted. Since that costs a reading of
//! 20 MB, a directory that was verified is remembered by the stat of its files. The empty file system
//! is looked at only when a disk is made (`blank.rs`).

mod blank;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::dirs::{Directories, create_private};
use crate::image::erofs::{BuildError, Builder};
use crate::machine::HUGE_PAGE_BYTES;
use crate::report::Help;

/// The link to the version that new machines boot.
const CURRENT: &str = "current";
/// The link to the version that was current before.
const PREVIOUS: &str = "previous";
/// The directory that a version is made in.
const MAKING: &str = ".making";
/// The file that describes a version.
const MANIFEST: &str = "manifest.json";
/// The kernel's file in versions that [`pack`] makes.
const KERNEL: &str = "vmlinux";
/// The agent's file in versions that [`pack`] makes.
const AGENT: &str = "agent.erofs";
/// The empty file system's file in versions that [`pack`] makes.
const BLANK: &str = "blank.ext4";
/// The manifest's format that this program reads and writes.
const FORMAT: u32 = 1;
/// A manifest is a few hundred bytes; more than this is something else.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;
/// A file that changed this recently may change again without its times showing it: the kernel stamps
/// with the time of its last tick, 10 ms at HZ=100.
const SETTLED: Duration = Duration::from_millis(100);

/// The verified kernel and agent of one version, held open.
///
/// While it lives, a shared lock is held on the version's directory.
#[derive(Debug)]
pub struct GuestImage {
    /// The kernel, an uncompressed ELF file.
    pub kernel: File,
    /// The agent's root file system, an EROFS image.
    pub agent: File,
    /// What the version says about itself.
    pub manifest: Manifest,
    /// The version's directory.
    pub directory: PathBuf,
    /// How many bytes were read to verify it; none when it was remembered.
    pub hashed_bytes: u64,
    _lock: File,
}

/// `manifest.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The version's name, which is its directory's.
    pub version: String,
    /// The kernel.
    pub kernel: KernelPart,
    /// The agent.
    pub agent: AgentPart,
    /// The empty file system; versions that were made before there was one have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<BlankPart>,
}

/// The kernel's entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelPart {
    /// File name in the version's directory.
    pub file: String,
    /// `sha256:` and 64 digits.
    pub digest: String,
    /// What `uname -r` prints.
    pub release: String,
    /// Digest of the configuration that it was built with.
    pub config_digest: String,
}

/// The agent's entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentPart {
    /// File name in the version's directory.
    pub file: String,
    /// `sha256:` and 64 digits.
    pub digest: String,
    /// The version of the protocol that it speaks.
    pub protocol: u16,
}

/// The empty file system's entry in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlankPart {
    /// File name in the version's directory.
    pub file: String,
    /// `sha256:` and 64 digits.
    pub digest: String,
}

/// A directory of guest images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestDirectory {
    path: PathBuf,
}

/// One line of [`GuestDirectory::list`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InstalledVersion {
    /// The version.
    pub version: String,
    /// Whether new machines boot it.
    pub current: bool,
    /// Whether `rollback` would go back to it.
    pub previous: bool,
    /// The kernel's release; nothing if the manifest cannot be read.
    pub kernel_release: Option<String>,
    /// The agent's protocol; nothing if the manifest cannot be read.
    pub protocol: Option<u16>,
}

impl GuestDirectory {
    /// Finds the first candidate that has a `current` link.
    ///
    /// # Errors
    ///
    /// [`GuestError::NoneInstalled`] with the places that were looked at.
    pub fn find(directories: &Directories) -> Result<Self, GuestError> {
        let candidates = directories.guest_candidates();
        let found = candidates
            .iter()
            .find(|path| path.join(CURRENT).symlink_metadata().is_ok());
        match found {
            Some(path) => Ok(Self { path: path.clone() }),
            None => Err(GuestError::NoneInstalled(candidates.to_vec())),
        }
    }

    /// Names a directory without looking at it.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Returns where the directory lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens and verifies the current version; `cache` remembers that it was verified.
    ///
    /// # Errors
    ///
    /// Any [`GuestError`] that names a file of the version.
    pub fn open_current(&self, cache: &Path) -> Result<GuestImage, GuestError> {
        let version = self.read_link(CURRENT)?;
        let version = version.ok_or_else(|| GuestError::NoneInstalled(vec![self.path.clone()]))?;
        open_version(&self.path.join(version), cache)
    }

    /// Lists the versions that are installed, by name.
    ///
    /// # Errors
    ///
    /// [`GuestError::File`] if the directory or its links cannot be read.
    pub fn list(&self) -> Result<Vec<InstalledVersion>, GuestError> {
        let current = self.read_link(CURRENT)?;
        let previous = self.read_link(PREVIOUS)?;
        let mut versions = Vec::new();
        for name in self.version_names()? {
            let manifest = read_manifest(&self.path.join(&name)).ok();
            versions.push(InstalledVersion {
                current: current.as_deref() == Some(name.as_str()),
                previous: previous.as_deref() == Some(name.as_str()),
                kernel_release: manifest.as_ref().map(|it| it.kernel.release.clone()),
                protocol: manifest.as_ref().map(|it| it.agent.protocol),
                version: name,
            });
        }
        Ok(versions)
    }

    /// Lets new machines boot `version`, a name or the beginning of one, and returns its name.
    ///
    /// The version is verified first. Machines that run are not touched.
    ///
    /// # Errors
    ///
    /// [`GuestError::UnknownVersion`], [`GuestError::AmbiguousVersion`], or what is wrong with the version.
    pub fn use_version(&self, version: &str, cache: &Path) -> Result<String, GuestError> {
        let _lock = self.lock()?;
        let name = self.resolve(version)?;
        open_version(&self.path.join(&name), cache)?;
        self.flip(&name)?;
        Ok(name)
    }

    /// Goes back to the version that was current before, and returns its name.
    ///
    /// # Errors
    ///
    /// [`GuestError::NothingBefore`], or what is wrong with that version.
    pub fn rollback(&self, cache: &Path) -> Result<String, GuestError> {
        let _lock = self.lock()?;
        let previous = self.read_link(PREVIOUS)?;
        let current = self.read_link(CURRENT)?;
        let Some(name) = previous.filter(|previous| Some(previous) != current.as_ref()) else {
            return Err(GuestError::NothingBefore(self.path.clone()));
        };
        open_version(&self.path.join(&name), cache)?;
        self.flip(&name)?;
        Ok(name)
    }

    /// Points `previous` at what is current and then `current` at `name`; each step is one rename.
    fn flip(&self, name: &str) -> Result<(), GuestError> {
        match self.read_link(CURRENT)? {
            Some(current) if current == name => return Ok(()),
            Some(current) => self.link(PREVIOUS, &current)?,
            None => {}
        }
        self.link(CURRENT, name)
    }

    /// Replaces a link so that every reader sees the old one or the new one.
    fn link(&self, link: &str, target: &str) -> Result<(), GuestError> {
        let path = self.path.join(link);
        let temporary = self.path.join(format!(".{link}.{}", std::process::id()));
        let failed = |source| GuestError::file("replace", &path, source);
        // One process at a time gets here, under the directory's lock: what lies there is a leftover.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        symlink(target, &temporary).map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)?;
        let directory = File::open(&self.path).map_err(failed)?;
        directory.sync_all().map_err(failed)
    }

    /// Locks the directory against others who flip its links.
    fn lock(&self) -> Result<File, GuestError> {
        let failed = |source| GuestError::file("lock", &self.path, source);
        let directory = File::open(&self.path).map_err(failed)?;
        directory.lock().map_err(failed)?;
        Ok(directory)
    }

    /// Reads a link of this directory: the name of a version, or nothing if there is no link.
    fn read_link(&self, link: &str) -> Result<Option<String>, GuestError> {
        let path = self.path.join(link);
        let target = match fs::read_link(&path) {
            Ok(target) => target,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(GuestError::file("read the link", &path, error)),
        };
        match target.to_str() {
            Some(name) if is_version_name(name) => Ok(Some(name.to_owned())),
            _ => Err(GuestError::BadLink { path, target }),
        }
    }

    /// Returns the names of the versions, sorted.
    fn version_names(&self) -> Result<Vec<String>, GuestError> {
        let failed = |source| GuestError::file("list", &self.path, source);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let is_directory = entry.file_type().map_err(failed)?.is_dir();
            match entry.file_name().to_str() {
                Some(name) if is_directory && is_version_name(name) => names.push(name.to_owned()),
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    /// Finds the one version that is called `text` or begins with it.
    fn resolve(&self, text: &str) -> Result<String, GuestError> {
        let names = self.version_names()?;
        if names.iter().any(|name| name == text) {
            return Ok(text.to_owned());
        }
        let mut matches = names.into_iter().filter(|name| name.starts_with(text));
        match (matches.next(), matches.next()) {
            (Some(name), None) => Ok(name),
            (Some(first), Some(second)) => Err(GuestError::AmbiguousVersion {
                text: text.to_owned(),
                first,
                second,
            }),
            (None, _) => Err(GuestError::UnknownVersion {
                text: text.to_owned(),
                path: self.path.clone(),
            }),
        }
    }
}

/// Opens a version's directory: takes a shared lock, reads the manifest, verifies the files.
///
/// # Errors
///
/// Any [`GuestError`] that names a file of the version.
pub fn open_version(directory: &Path, cache: &Path) -> Result<GuestImage, GuestError> {
    let failed = |source| GuestError::file("open", directory, source);
    let lock = File::open(directory).map_err(failed)?;
    match lock.try_lock_shared() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(GuestError::BeingRemoved(directory.into())),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let manifest = read_manifest(directory)?;
    if manifest.agent.protocol != protocol::VERSION {
        return Err(GuestError::OtherProtocol {
            version: manifest.version,
            protocol: manifest.agent.protocol,
        });
    }
    let mut kernel = Part::open(directory, &manifest.kernel.file, &manifest.kernel.digest)?;
    let mut agent = Part::open(directory, &manifest.agent.file, &manifest.agent.digest)?;
    let seen = Verified {
        kernel: kernel.verified(),
        agent: agent.verified(),
    };
    let record = cache.join(format!(
        "guest-{}-{:x}-{:x}.json",
        manifest.version, seen.kernel.dev, seen.kernel.ino
    ));
    let mut hashed_bytes = 0;
    if remembered(&record).as_ref() != Some(&seen) {
        hashed_bytes = kernel.verify()? + agent.verify()?;
        if kernel.is_settled() && agent.is_settled() {
            remember(&seen, cache, &record);
        }
    }
    Ok(GuestImage {
        kernel: kernel.file,
        agent: agent.file,
        manifest,
        directory: directory.to_owned(),
        hashed_bytes,
        _lock: lock,
    })
}

/// Reads and checks a version's manifest.
fn read_manifest(directory: &Path) -> Result<Manifest, GuestError> {
    let path = directory.join(MANIFEST);
    let failed = |source| GuestError::file("read", &path, source);
    let mut text = Vec::new();
    File::open(&path)
        .map_err(failed)?
        .take(MAX_MANIFEST_BYTES)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|source| GuestError::Manifest {
            path: path.clone(),
            source,
        })?;
    if manifest.format != FORMAT {
        return Err(GuestError::Format {
            path,
            format: manifest.format,
        });
    }
    if directory.file_name() != Some(OsStr::new(&manifest.version)) {
        return Err(GuestError::OtherVersion {
            path,
            version: manifest.version,
        });
    }
    Ok(manifest)
}

/// A file of a version, and what the manifest says about it.
struct Part {
    path: PathBuf,
    file: File,
    metadata: fs::Metadata,
    digest: String,
}

impl Part {
    fn open(directory: &Path, name: &str, digest: &str) -> Result<Self, GuestError> {
        let path = directory.join(name);
        if !is_version_name(name) {
            return Err(GuestError::BadFileName {
                path: directory.join(MANIFEST),
                name: name.to_owned(),
            });
        }
        let failed = |source| GuestError::file("open", &path, source);
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(io::Error::from(io::ErrorKind::InvalidInput)));
        }
        Ok(Self {
            path,
            file,
            metadata,
            digest: digest.to_owned(),
        })
    }

    /// Returns what is remembered when this file has been verified.
    fn verified(&self) -> VerifiedFile {
        VerifiedFile {
            digest: self.digest.clone(),
            dev: self.metadata.dev(),
            ino: self.metadata.ino(),
            size: self.metadata.size(),
            mtime: (self.metadata.mtime(), self.metadata.mtime_nsec()),
            ctime: (self.metadata.ctime(), self.metadata.ctime_nsec()),
        }
    }

    /// Reads the file and compares its digest; returns its size in bytes.
    fn verify(&mut self) -> Result<u64, GuestError> {
        let failed = |source| GuestError::file("read", &self.path, source);
        let mut hasher = Sha256::new();
        let mut chunk = vec![0; 256 << 10];
        let mut offset = 0;
        loop {
            let count = std::os::unix::fs::FileExt::read_at(&self.file, &mut chunk, offset)
                .map_err(failed)?;
            if count == 0 {
                break;
            }
            hasher.update(&chunk[..count]);
            offset += u64::try_from(count).unwrap_or(u64::MAX);
        }
        let found = digest_text(hasher);
        if found == self.digest {
            Ok(offset)
        } else {
            Err(GuestError::Digest {
                path: self.path.clone(),
                expected: self.digest.clone(),
                found,
            })
        }
    }

    /// Tells whether a later change of the file would show in its times.
    fn is_settled(&self) -> bool {
        let seconds = u64::try_from(self.metadata.ctime()).unwrap_or(u64::MAX);
        let nanoseconds = u64::try_from(self.metadata.ctime_nsec()).unwrap_or(0);
        let changed =
            Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanoseconds));
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .is_ok_and(|now| now.saturating_sub(changed) > SETTLED)
    }
}

/// What is remembered about a version that was verified.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    kernel: VerifiedFile,
    agent: VerifiedFile,
}

/// A file that was verified, as `stat` showed it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VerifiedFile {
    digest: String,
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// Reads a record; what cannot be read was not verified.
fn remembered<T: DeserializeOwned>(record: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(record).ok()?).ok()
}

/// Writes a record. If that fails, the next run verifies again.
fn remember(seen: &impl Serialize, cache: &Path, record: &Path) {
    let written = create_private(cache)
        .map_err(io::Error::other)
        .and_then(|()| tempfile::NamedTempFile::new_in(cache))
        .and_then(|mut file| {
            serde_json::to_writer(&mut file, seen)?;
            file.persist(record)?;
            Ok(())
        });
    if let Err(error) = written {
        tracing::debug!(record = %record.display(), %error, "cannot remember the verified guest image");
    }
}

/// What a guest image is made of.
#[derive(Clone, Debug)]
pub struct Ingredients<'a> {
    /// The kernel, an uncompressed ELF file for x86-64.
    pub kernel: &'a Path,
    /// What `uname -r` prints under that kernel.
    pub kernel_release: &'a str,
    /// The configuration that the kernel was built with.
    pub config: &'a Path,
    /// The agent, a static executable for x86-64.
    pub agent: &'a Path,
    /// An empty file system for the disks of machines that are kept.
    pub blank: Option<&'a Path>,
}

/// Makes a version out of a kernel and an agent, lets new machines boot it, and returns its name.
///
/// The name comes from the digests: the same ingredients make the same version.
///
/// # Errors
///
/// Any [`GuestError`] that names an ingredient or a file of the output. Nothing half-made is ever
/// called by a version's name.
pub fn pack(ingredients: &Ingredients<'_>, output: &Path) -> Result<String, GuestError> {
    let kernel = read_ingredient(ingredients.kernel)?;
    let agent = read_ingredient(ingredients.agent)?;
    let config = read_ingredient(ingredients.config)?;
    let blank = ingredients.blank.map(read_ingredient).transpose()?;
    check_executable(ingredients.kernel, &kernel)?;
    check_executable(ingredients.agent, &agent)?;
    if !is_version_name(ingredients.kernel_release) {
        return Err(GuestError::BadRelease(
            ingredients.kernel_release.to_owned(),
        ));
    }
    let agent = agent_file_system(agent)?;
    let parts = Parts {
        kernel: &kernel,
        kernel_release: ingredients.kernel_release,
        config_digest: digest_of(&config),
        agent: &agent,
        blank: blank.as_deref(),
    };
    install(&parts, output)
}

/// The contents of a version.
struct Parts<'a> {
    kernel: &'a [u8],
    kernel_release: &'a str,
    config_digest: String,
    agent: &'a [u8],
    blank: Option<&'a [u8]>,
}

/// Writes a version into a guest directory and makes it current.
fn install(parts: &Parts<'_>, output: &Path) -> Result<String, GuestError> {
    let mut manifest = Manifest {
        format: FORMAT,
        version: String::new(),
        kernel: KernelPart {
            file: KERNEL.to_owned(),
            digest: digest_of(parts.kernel),
            release: parts.kernel_release.to_owned(),
            config_digest: parts.config_digest.clone(),
        },
        agent: AgentPart {
            file: AGENT.to_owned(),
            digest: digest_of(parts.agent),
            protocol: protocol::VERSION,
        },
        blank: parts.blank.map(|bytes| BlankPart {
            file: BLANK.to_owned(),
            digest: digest_of(bytes),
        }),
    };
    let identity = serde_json::to_vec(&manifest).map_err(GuestError::Serialize)?;
    let digest = digest_of(&identity);
    let short = digest.get(7..19).unwrap_or_default();
    manifest.version = format!("{}-{short}", parts.kernel_release);
    let mut text = serde_json::to_vec_pretty(&manifest).map_err(GuestError::Serialize)?;
    text.push(b'\n');

    let failed = |source| GuestError::file("write to", output, source);
    fs::create_dir_all(output).map_err(failed)?;
    let guest = GuestDirectory::at(output);
    let _lock = guest.lock()?;
    let directory = output.join(&manifest.version);
    if !directory.exists() {
        let making = output.join(MAKING);
        // One process at a time gets here, under the directory's lock: what lies there is a leftover.
        match fs::remove_dir_all(&making) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::create_dir(&making).map_err(failed)?;
        write_part(&making.join(KERNEL), parts.kernel)?;
        write_part(&making.join(AGENT), parts.agent)?;
        if let Some(bytes) = parts.blank {
            blank::write(&making.join(BLANK), bytes)?;
        }
        write_part(&making.join(MANIFEST), &text)?;
        let made = File::open(&making).map_err(failed)?;
        // Whoever may read the guest directory may boot from it.
        made.set_permissions(fs::Permissions::from_mode(0o755))
            .map_err(failed)?;
        made.sync_all().map_err(failed)?;
        fs::rename(&making, &directory).map_err(failed)?;
    }
    guest.flip(&manifest.version)?;
    Ok(manifest.version)
}

/// Builds the agent's root file system: the agent as `/init` and the directories that it mounts on. It is as long as huge pages are, so
/// that the host may map it with them.
fn agent_file_system(agent: Vec<u8>) -> Result<Vec<u8>, GuestError> {
    let mut builder = Builder::new();
    builder.file("/init", 0o755, agent)?;
    for mount_point in ["/dev", "/proc", "/sys", "/run", "/mnt"] {
        builder.directory(mount_point, 0o755)?;
    }
    let mut image = builder.build()?;
    image.resize(image.len().next_multiple_of(HUGE_PAGE_BYTES), 0);
    Ok(image)
}

/// Reads a whole ingredient.
fn read_ingredient(path: &Path) -> Result<Vec<u8>, GuestError> {
    fs::read(path).map_err(|source| GuestError::file("read", path, source))
}

/// Checks that a file begins as a 64-bit little-endian ELF file for x86-64 (System V ABI, chapter 4).
fn check_executable(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    /// Magic, ELFCLASS64, ELFDATA2LSB.
    const IDENT: &[u8] = b"\x7fELF\x02\x01";
    /// `e_machine` EM_X86_64, 62, at offset 18.
    const MACHINE: &[u8] = &[62, 0];
    if bytes.starts_with(IDENT) && bytes.get(18..20) == Some(MACHINE) {
        Ok(())
    } else {
        Err(GuestError::NotElf(path.to_owned()))
    }
}

/// Writes a file of a version and waits until it is on the disk.
fn write_part(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    let failed = |source| GuestError::file("write", path, source);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Tells whether a name stays in its directory and is none of the links or temporary names.
fn is_version_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name != CURRENT
        && name != PREVIOUS
        && name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'~')
        })
}

/// Returns the digest of bytes as manifests spell it.
fn digest_of(bytes: &[u8]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(bytes);
    digest_text(hasher)
}

/// Spells a finished digest.
fn digest_text(hasher: Sha256) -> String {
    use std::fmt::Write;

    let mut text = String::from("sha256:");
    for byte in hasher.finalize() {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What can be wrong with guest images.
#[derive(Debug, Error)]
pub enum GuestError {
    /// No place has a guest image.
    #[error("there is no guest image in {places}", places = list_paths(.0))]
    NoneInstalled(Vec<PathBuf>),
    /// A file could not be read, written, locked…
    #[error("cannot {action} {path}", path = path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link leads somewhere else.
    #[error("the link {path} leads to {target}, which is no version beside it", path = path.display(), target = target.display())]
    BadLink {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The manifest is not what it should be.
    #[error("the guest image's manifest {path} cannot be understood", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// The manifest has a format of the future.
    #[error("the guest image's manifest {path} has format {format}; this vmm knows {FORMAT}", path = path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The manifest belongs to another directory.
    #[error("the guest image's manifest {path} is that of version {version}", path = path.display())]
    OtherVersion {
        /// The manifest.
        path: PathBuf,
        /// The version that it names.
        version: String,
    },
    /// The manifest names a file outside of its directory.
    #[error("the guest image's manifest {path} names the file '{name}', which is no plain name", path = path.display())]
    BadFileName {
        /// The manifest.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The agent speaks another protocol.
    #[error("the agent of guest image {version} speaks protocol {protocol}; this vmm speaks {ours}", ours = protocol::VERSION)]
    OtherProtocol {
        /// The version.
        version: String,
        /// Its protocol.
        protocol: u16,
    },
    /// A file is not the one that the manifest describes.
    #[error("the guest image's file {path} is damaged: its digest is {found}, not {expected}", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// What the manifest says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Somebody holds the version's directory for themselves.
    #[error("the guest image {path} is being removed", path = .0.display())]
    BeingRemoved(PathBuf),
    /// No version has this name.
    #[error("no guest image in {path} is called '{text}'", path = path.display())]
    UnknownVersion {
        /// What was typed.
        text: String,
        /// The guest directory.
        path: PathBuf,
    },
    /// Several versions begin like this.
    #[error("'{text}' begins the name of several guest images, {first} and {second} among them")]
    AmbiguousVersion {
        /// What was typed.
        text: String,
        /// One of them.
        first: String,
        /// Another.
        second: String,
    },
    /// There was no other version before.
    #[error("no other guest image was used before in {path}", path = .0.display())]
    NothingBefore(PathBuf),
    /// An ingredient is no executable for the guest.
    #[error("{path} is no uncompressed ELF file for x86-64", path = .0.display())]
    NotElf(PathBuf),
    /// The kernel's release cannot be part of a directory's name.
    #[error("'{0}' is no kernel release")]
    BadRelease(String),
    /// The agent's file system could not be built.
    #[error("the agent's file system cannot be built")]
    AgentFileSystem(#[from] BuildError),
    /// The manifest could not be written as JSON.
    #[error("the manifest cannot be written")]
    Serialize(#[source] serde_json::Error),
}

impl GuestError {
    fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

impl Help for GuestError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::NoneInstalled(_) => {
                "build one with `make guest-image`, or name its directory in VMM_GUEST_DIR"
            }
            Self::Manifest { .. }
            | Self::Format { .. }
            | Self::OtherVersion { .. }
            | Self::BadFileName { .. }
            | Self::OtherProtocol { .. }
            | Self::Digest { .. }
            | Self::BeingRemoved(_)
            | Self::BadLink { .. } => {
                "choose another version with `vmm guest use VERSION`, or build it again with `make guest-image`"
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "ask as a user who may, or keep guest images of your own in VMM_GUEST_DIR"
            }
            Self::UnknownVersion { .. } | Self::AmbiguousVersion { .. } => {
                "see the versions with `vmm guest list`"
            }
            Self::NotElf(_) => "the kernel is the file `vmlinux` of its build directory",
            Self::File { .. }
            | Self::NothingBefore(_)
            | Self::BadRelease(_)
            | Self::AgentFileSystem(_)
            | Self::Serialize(_) => return None,
        };
        Some(help.to_owned())
    }
}

/// Lists paths for a sentence.
fn list_paths(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    if paths.is_empty() {
        "any place".to_owned()
    } else {
        paths.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest directory with a cache beside it.
    struct Fixture {
        _base: tempfile::TempDir,
        guest: GuestDirectory,
        cache: PathBuf,
    }

    impl Fixture {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            Self {
                guest: GuestDirectory::at(base.path().join("guest")),
                cache: base.path().join("cache"),
                _base: base,
            }
        }

        fn install(&self, kernel: &[u8]) -> String {
            let parts = Parts {
                kernel,
                kernel_release: "6.1.0",
                config_digest: digest_of(b"CONFIG_X=y"),
                agent: b"agent",
                blank: None,
            };
            install(&parts, self.guest.path()).unwrap()
        }

        fn current(&self) -> String {
            self.guest.read_link(CURRENT).unwrap().unwrap()
        }

        fn open(&self) -> Result<GuestImage, GuestError> {
            self.guest.open_current(&self.cache)
        }
    }

    #[test]
    fn what_was_installed_is_opened_and_holds_what_it_should() {
        let fixture = Fixture::new();
        let version = fixture.install(b"kernel");

        let mut image = fixture.open().unwrap();

        let mut kernel = String::new();
        image.kernel.read_to_string(&mut kernel).unwrap();
        assert_eq!(kernel, "kernel");
        assert_eq!(image.manifest.version, version);
        assert_eq!(image.hashed_bytes, 11);
    }

    #[test]
    fn a_second_opening_hashes_nothing() {
        let fixture = Fixture::new();
        fixture.install(b"kernel");
        std::thread::sleep(SETTLED * 2);
        fixture.open().unwrap();

        let again = fixture.open().unwrap();

        assert_eq!(again.hashed_bytes, 0);
    }

    #[test]
    fn a_changed_byte_is_found_even_after_a_verified_opening() {
        let fixture = Fixture::new();
        let version = fixture.install(b"kernel");
        std::thread::sleep(SETTLED * 2);
        fixture.open().unwrap();
        let kernel = fixture.guest.path().join(version).join(KERNEL);
        fs::write(&kernel, b"kernal").unwrap();

        let error = fixture.open().unwrap_err();

        assert!(matches!(&error, GuestError::Digest { path, .. } if *path == kernel));
        assert!(error.help().unwrap().contains("vmm guest use"));
    }

    #[test]
    fn the_same_ingredients_make_the_same_version() {
        let one = Fixture::new();
        let other = Fixture::new();

        assert_eq!(one.install(b"kernel"), other.install(b"kernel"));
        assert_eq!(one.install(b"kernel"), one.current());
        assert_ne!(one.install(b"another"), other.current());
    }

    #[test]
    fn an_upgrade_is_rolled_back_and_forth() {
        let fixture = Fixture::new();
        let old = fixture.install(b"old");
        let new = fixture.install(b"new");
        assert_eq!(fixture.current(), new);

        assert_eq!(fixture.guest.rollback(&fixture.cache).unwrap(), old);
        assert_eq!(fixture.current(), old);
        assert_eq!(fixture.guest.rollback(&fixture.cache).unwrap(), new);
        assert_eq!(fixture.current(), new);
    }

    #[test]
    fn without_an_older_version_there_is_nothing_to_go_back_to() {
        let fixture = Fixture::new();
        fixture.install(b"only");

        let error = fixture.guest.rollback(&fixture.cache).unwrap_err();

        assert!(matches!(error, GuestError::NothingBefore(_)));
    }

    #[test]
    fn a_version_is_chosen_by_the_beginning_of_its_name() {
        let fixture = Fixture::new();
        let old = fixture.install(b"old");
        fixture.install(b"new");

        let beginning = &old[..old.len() - 3];
        let chosen = fixture.guest.use_version(beginning, &fixture.cache);

        assert_eq!(chosen.unwrap(), old);
        assert_eq!(fixture.current(), old);
        let ambiguous = fixture
            .guest
            .use_version("6.1", &fixture.cache)
            .unwrap_err();
        assert!(matches!(ambiguous, GuestError::AmbiguousVersion { .. }));
        let unknown = fixture.guest.use_version("7", &fixture.cache).unwrap_err();
        assert!(matches!(unknown, GuestError::UnknownVersion { .. }));
    }

    #[test]
    fn a_damaged_version_is_not_taken_into_use() {
        let fixture = Fixture::new();
        let old = fixture.install(b"old");
        let new = fixture.install(b"new");
        fs::write(fixture.guest.path().join(&old).join(AGENT), b"other").unwrap();

        let error = fixture.guest.use_version(&old, &fixture.cache).unwrap_err();

        assert!(matches!(error, GuestError::Digest { .. }));
        assert_eq!(fixture.current(), new);
    }

    #[test]
    fn a_running_machine_keeps_its_version_through_an_upgrade() {
        let fixture = Fixture::new();
        fixture.install(b"old");
        let mut running = fixture.open().unwrap();

        fixture.install(b"new");

        let directory = File::open(&running.directory).unwrap();
        assert!(matches!(
            directory.try_lock(),
            Err(TryLockError::WouldBlock)
        ));
        let mut kernel = String::new();
        running.kernel.read_to_string(&mut kernel).unwrap();
        assert_eq!(kernel, "old");
        drop(running);
        assert!(directory.try_lock().is_ok());
    }

    #[test]
    fn readers_always_find_a_current_version_while_it_is_flipped() {
        let fixture = Fixture::new();
        fixture.install(b"old");
        fixture.install(b"new");

        std::thread::scope(|scope| {
            let flipping = scope.spawn(|| {
                (0..200).try_for_each(|_| fixture.guest.rollback(&fixture.cache).map(drop))
            });
            let reading = scope.spawn(|| (0..200).try_for_each(|_| fixture.open().map(drop)));
            flipping.join().unwrap().unwrap();
            reading.join().unwrap().unwrap();
        });
    }

    #[test]
    fn leftovers_of_a_killed_packer_do_no_harm() {
        let fixture = Fixture::new();
        fs::create_dir_all(fixture.guest.path().join(MAKING)).unwrap();
        fs::write(fixture.guest.path().join(MAKING).join(KERNEL), b"half").unwrap();

        let version = fixture.install(b"kernel");

        let listed = fixture.guest.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].version, version);
        assert!(listed[0].current);
    }

    #[test]
    fn a_manifest_cannot_name_files_outside_its_directory() {
        let fixture = Fixture::new();
        let version = fixture.install(b"kernel");
        let path = fixture.guest.path().join(version).join(MANIFEST);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"vmlinux\"", "\"../vmlinux\"")).unwrap();

        let error = fixture.open().unwrap_err();

        assert!(matches!(error, GuestError::BadFileName { .. }));
    }

    #[test]
    fn a_current_link_that_leads_elsewhere_is_refused() {
        let fixture = Fixture::new();
        fixture.install(b"kernel");
        let link = fixture.guest.path().join(CURRENT);
        fs::remove_file(&link).unwrap();
        symlink("../elsewhere", &link).unwrap();

        let error = fixture.open().unwrap_err();

        assert!(matches!(error, GuestError::BadLink { .. }));
    }

    #[test]
    fn without_any_guest_image_the_places_are_named() {
        let error = GuestError::NoneInstalled(vec!["/a".into(), "/b".into()]);

        assert_eq!(error.to_string(), "there is no guest image in /a, /b");
        assert!(error.help().unwrap().contains("make guest-image"));
    }

    #[test]
    fn only_an_elf_file_for_x86_64_is_packed() {
        let base = tempfile::tempdir().unwrap();
        let script = base.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let ingredients = Ingredients {
            kernel: &script,
            kernel_release: "6.1.0",
            config: &script,
            agent: &script,
            blank: None,
        };

        let error = pack(&ingredients, &base.path().join("guest")).unwrap_err();

        assert!(matches!(error, GuestError::NotElf(path) if path == script));
    }

    #[test]
    fn a_packed_guest_image_can_be_opened() {
        let fixture = Fixture::new();
        let program = fixture.cache.with_file_name("program");
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(18, 0);
        elf.extend([62, 0]);
        elf.resize(5000, 0);
        fs::write(&program, elf).unwrap();
        let ingredients = Ingredients {
            kernel: &program,
            kernel_release: "6.1.0",
            config: &program,
            agent: &program,
            blank: Some(&program),
        };

        let version = pack(&ingredients, fixture.guest.path()).unwrap();

        let image = fixture.open().unwrap();
        assert_eq!(image.manifest.version, version);
        assert_eq!(image.agent.metadata().unwrap().len(), 2 << 20);
    }
}
