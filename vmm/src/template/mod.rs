//! Templates: machines frozen after their boot, of which later runs are clones.
//!
//! A template belongs to a [`Recipe`]: guest image, this program, the machine's shape and what its kernel was told. There are two
//! levels. A *base* was frozen when its agent was ready, before an image was seen: it serves all images of a window class. An
//! *image*'s template was frozen a step later, with the image's container built and nothing running in it: it serves the runs of
//! that image whose containers are the same, whatever runs in them. Neither holds anything of a workload.
//!
//! ```text
//! templates/
//!   making              locked by whoever makes one; says which
//!   <64 digits>/        one template, by the digest of its recipe
//!     state             see format.rs
//!     memory            the RAM, sparse; locked (shared) by its clones
//!     disk              what the machine's own disk held, sparse, if it has one: the disks of clones begin as copies
//!     writes            see touched.rs
//!   .making-<digits>/   not yet a template; what a crash left is removed by the next who makes one
//! ```
//!
//! A template appears whole, by a rename after everything is on the disk. It is private to the account, as the store is: whoever
//! could write to it could do anything to this account's machines. What does not match is never used: whoever finds it removes it,
//! and boots.

mod format;
mod huge;
mod touched;

use std::cmp::Reverse;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kvm_ioctls::Kvm;
use protocol::Create;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use self::format::{FORMAT, FileIdentity, FileStamp, FormatError, MAX_STATE_BYTES, State};
use crate::dirs::{DirectoriesError, create_private};
use crate::guest::Manifest;
use crate::limits::ByteSize;
use crate::machine::{
    CommandLineError, FrozenMachine, InterfaceShape, MachineConfig, MachineNetwork, Root,
    SaveFiles, SavedMachine, Window, WrittenPages,
};
use crate::report::Help;
use crate::storage;
use crate::vm_process::{ChannelError, FirstReport, FreezeFiles, SpawnError, Start, VmProcess};

const STATE: &str = "state";
const MEMORY: &str = "memory";
const DISK: &str = "disk";
const WRITES: &str = "writes";
const MAKING: &str = "making";
const UNFINISHED: &str = ".making-";

/// How long a machine may take from its start until it is frozen, on the slowest host.
const MAKING_PATIENCE: Duration = Duration::from_secs(120);
/// How long the use of a template may stay unwritten: a run need not write for it.
const USE_GRAIN: Duration = Duration::from_secs(60);
/// How much of the disk templates may take, unless somebody says otherwise.
pub const DEFAULT_LIMIT: ByteSize = ByteSize::of_bytes(2 << 30);

/// Of what a template is made. Two machines with the same recipe are the same machine until their agents are ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    format: u32,
    program: FileStamp,
    kernel_digest: String,
    agent_digest: String,
    command_line: Vec<u8>,
    vcpus: u8,
    ram_mib: u64,
    window_mib: u64,
    /// The length of the machine's own disk, 0 for none.
    storage_bytes: u64,
    /// Whether it has a device for directories of the host, which nobody serves.
    has_shares: bool,
    /// The network interface, if it has one; it is connected to nothing.
    interface: Option<InterfaceShape>,
    /// How many further disks it has, on which is nothing.
    disks: usize,
    host_kernel: String,
    container: Option<ContainerRecipe>,
}

/// The container that is built in a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ContainerRecipe {
    /// For people.
    image_id: String,
    /// Of the request that builds it, and of the image's files.
    digest: String,
}

impl ContainerRecipe {
    fn of(image_id: &str, container: &Create, window: &Window) -> Result<Self, TemplateError> {
        let files = window
            .parts
            .iter()
            .map(|part| {
                let metadata = part.file.metadata()?;
                Ok((part.offset_bytes, FileStamp::from(&metadata)))
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(TemplateError::Image)?;
        Ok(Self {
            image_id: image_id.to_owned(),
            digest: digest(&(container, files))?,
        })
    }
}

/// SHA-256 of what the value is in postcard, in hexadecimal digits.
fn digest(value: &impl Serialize) -> Result<String, TemplateError> {
    let bytes = postcard::to_stdvec(value).map_err(|_| TemplateError::Recipe)?;
    Ok(Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

impl Recipe {
    /// The recipe of a base for a machine; `None` for one that is not frozen: another kernel than the guest image's, a kernel that
    /// says more than it must, a root that is a disk.
    ///
    /// # Errors
    ///
    /// When this program or the machine's disk cannot be looked at, or the machine's command line is too long.
    pub fn of_base(
        machine: &MachineConfig,
        guest: &Manifest,
    ) -> Result<Option<Self>, TemplateError> {
        let Root::Window(window) = &machine.root else {
            return Ok(None);
        };
        if machine.verbose_kernel || machine.has_own_kernel {
            return Ok(None);
        }
        let storage = machine.storage.as_ref().map(File::metadata).transpose();
        let storage = storage.map_err(TemplateError::Disk)?;
        let program = fs::metadata("/proc/self/exe").map_err(TemplateError::Program)?;
        Ok(Some(Self {
            format: FORMAT,
            program: FileStamp::from(&program),
            kernel_digest: guest.kernel.digest.clone(),
            agent_digest: guest.agent.digest.clone(),
            command_line: machine.command_line()?,
            vcpus: machine.vcpus.get(),
            ram_mib: machine.ram.mib(),
            window_mib: window.class.bytes() >> 20,
            storage_bytes: storage.map_or(0, |metadata| metadata.len()),
            has_shares: machine.shares.is_some(),
            interface: machine.network.as_ref().map(MachineNetwork::shape),
            disks: machine.disks.len(),
            host_kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            container: None,
        }))
    }

    /// The recipe for the machine with a container of its image.
    ///
    /// # Errors
    ///
    /// When the image's files cannot be looked at.
    pub fn with_container(
        &self,
        image_id: &str,
        container: &Create,
        machine: &MachineConfig,
    ) -> Result<Self, TemplateError> {
        let container = match &machine.root {
            Root::Window(window) => Some(ContainerRecipe::of(image_id, container, window)?),
            Root::Disk { .. } => None,
        };
        Ok(Self {
            container,
            ..self.clone()
        })
    }

    #[cfg(test)]
    fn for_tests() -> Self {
        Self {
            format: FORMAT,
            program: FileStamp::from(&fs::metadata("/").unwrap()),
            kernel_digest: "sha256:1".to_owned(),
            agent_digest: "sha256:2".to_owned(),
            command_line: b"quiet".to_vec(),
            vcpus: 1,
            ram_mib: 128,
            window_mib: 64,
            storage_bytes: 0,
            has_shares: false,
            interface: None,
            disks: 0,
            host_kernel: "6.1".to_owned(),
            container: None,
        }
    }

    fn key(&self) -> Result<Key, TemplateError> {
        digest(self).map(Key)
    }
}

/// The name of a template: the digest of its recipe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Key(String);

impl Key {
    fn parse(text: &str) -> Option<Self> {
        let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| Self(text.to_owned()))
    }

    /// Its first digits, which people use.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The templates of an account.
#[derive(Debug)]
pub struct Templates {
    directory: PathBuf,
    limit: ByteSize,
}

/// One line of [`Templates::list`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TemplateSummary {
    /// Its name.
    pub id: Key,
    /// The image whose container it holds; none in a base, which serves all.
    pub image_id: Option<String>,
    /// vCPUs of its machines.
    pub vcpus: u8,
    /// RAM of its machines.
    pub ram_mib: u64,
    /// The size of the window for the image.
    pub window_mib: u64,
    /// The size of their own disks, 0 where they have none.
    pub storage_bytes: u64,
    /// What it takes on the disk.
    pub disk_bytes: u64,
    /// Seconds since it was used, a minute more or less.
    pub unused_seconds: u64,
    /// Whether a machine runs that is a clone of it.
    pub in_use: bool,
}

/// A template that is there.
#[derive(Debug)]
pub struct Template {
    /// The machine.
    pub frozen: FrozenMachine,
    /// What is on its own disk, if it has one.
    pub disk: Option<File>,
}

/// What became of the wish for a template.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// It is there now.
    New,
    /// It was there before.
    Already,
    /// Somebody else makes one at this moment.
    ElsewhereAtWork,
}

/// Whether to wait for somebody else who makes a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until they are done.
    Wait,
    /// Not at all.
    Leave,
}

/// A template that cannot be made, or used.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// This program cannot look at itself.
    #[error("cannot look at this program's own file")]
    Program(#[source] io::Error),
    /// The image's files cannot be looked at.
    #[error("cannot look at the image's files")]
    Image(#[source] io::Error),
    /// The machine's disk cannot be looked at or filled.
    #[error("cannot use the disk of the machine for a template")]
    Disk(#[source] io::Error),
    /// A recipe cannot be written down.
    #[error("cannot name a template")]
    Recipe,
    /// The machine cannot be described.
    #[error(transparent)]
    Machine(#[from] CommandLineError),
    /// The directory cannot be made.
    #[error(transparent)]
    Directory(#[from] DirectoriesError),
    /// A file cannot be used.
    #[error("cannot {what} {path}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A template is not what it should be.
    #[error("the template {path} cannot be used: {reason}", path = path.display())]
    Unusable {
        /// Its directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The machine to be frozen could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The machine to be frozen could not be heard.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The machine was not frozen.
    #[error("the machine for a template was not frozen: {0}")]
    NotFrozen(String),
    /// Nothing of this name.
    #[error("there is no template {0}")]
    Unknown(String),
    /// More than one that begins so.
    #[error("{0} is the beginning of more than one template's id")]
    Ambiguous(String),
    /// A machine runs that is a clone of it.
    #[error("the template {0} is in use")]
    InUse(String),
}

impl Help for TemplateError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Unknown(_) | Self::Ambiguous(_) => Some("vmm template ls lists them".to_owned()),
            Self::InUse(_) => Some("vmm ps lists the machines that run".to_owned()),
            _ => None,
        }
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TemplateError {
    let path = path.to_owned();
    move |source| TemplateError::File { what, path, source }
}

impl Templates {
    /// The templates in this directory, which need not be there.
    #[must_use]
    pub fn new(cache: &Path, limit: Option<ByteSize>) -> Self {
        Self {
            directory: cache.join("templates"),
            limit: limit.unwrap_or(DEFAULT_LIMIT),
        }
    }

    /// Opens the template of this recipe; `None` if there is none.
    ///
    /// # Errors
    ///
    /// When there is one that cannot be used. It is removed, so that the next run makes another.
    pub fn find(&self, recipe: &Recipe) -> Result<Option<Template>, TemplateError> {
        let path = self.directory.join(&recipe.key()?.0);
        match open(&path, recipe) {
            Ok(template) => {
                note_use(&path);
                Ok(Some(template))
            }
            Err(OpenError::Absent) => Ok(None),
            Err(OpenError::Unusable(reason)) => {
                let reason = match remove_whole(&path) {
                    Ok(()) => reason,
                    Err(error) => format!("{reason}; nor can it be removed: {error}"),
                };
                Err(TemplateError::Unusable { path, reason })
            }
        }
    }

    /// Notes what the first clone of this template touched, of that and of the `files` that are mapped into it, for the later ones.
    /// That this fails costs them time, and no more.
    pub fn note_touched(&self, recipe: &Recipe, clone: &VmProcess, files: &[&File]) {
        let noted = || -> Result<(), TemplateError> {
            let path = self.directory.join(recipe.key()?.0);
            let memory_path = path.join(MEMORY);
            let memory = File::open(&memory_path).map_err(failed("open", &memory_path))?;
            let files = [&[&memory], files].concat();
            let touched = touched::by_process(clone.pid(), &files)
                .map_err(failed("see what a clone touched", &memory_path))?;
            let bytes = postcard::to_stdvec(&touched.written).map_err(|_| TemplateError::Recipe)?;
            let mut file =
                tempfile::NamedTempFile::new_in(&path).map_err(failed("write in", &path))?;
            file.write_all(&bytes).map_err(failed("write in", &path))?;
            file.persist(path.join(WRITES))
                .map_err(|error| failed("write in", &path)(error.error))?;
            let huge = touched.only_read.iter();
            huge::put_together(huge.map(|page| (files[page.file], page.offset_bytes)))
                .map_err(failed("have huge pages of", &memory_path))
        };
        if let Err(error) = noted() {
            tracing::debug!(%error, "what a clone touches is not made use of");
        }
    }

    /// Removes the template of this recipe, with which a clone did not start.
    pub fn reject(&self, recipe: &Recipe) {
        if let Ok(key) = recipe.key() {
            self.discard(&self.directory.join(key.0));
        }
    }

    /// Boots a machine, freezes it when its agent is ready and has built the `container`, if there is to be one, and keeps it. Its own
    /// disk, if it has one, begins as `blank`.
    ///
    /// Call it before the calling process has made a thread.
    ///
    /// # Errors
    ///
    /// When the machine does not come so far, or the disk does not take it; nothing stays behind.
    pub fn make(
        &self,
        kvm: &Kvm,
        machine: &MachineConfig,
        recipe: &Recipe,
        container: Option<&Create>,
        blank: Option<&File>,
        patience: Patience,
    ) -> Result<Made, TemplateError> {
        create_private(&self.directory)?;
        let key = recipe.key()?;
        let Some(_lock) = self.lock_making(&key, patience)? else {
            return Ok(Made::ElsewhereAtWork);
        };
        let path = self.directory.join(&key.0);
        match open(&path, recipe) {
            Ok(_) => return Ok(Made::Already),
            // Where there is no state there may be the rest of what somebody began to remove, and nothing takes its place.
            Err(OpenError::Absent | OpenError::Unusable(_)) => {
                remove_whole(&path).map_err(failed("remove", &path))?;
            }
        }
        self.remove_leftovers();
        let unfinished = self.directory.join(format!("{UNFINISHED}{key}"));
        if let (Some(disk), Some(blank)) = (&machine.storage, blank) {
            storage::fill(disk, blank).map_err(TemplateError::Disk)?;
        }
        let made = make_in(&unfinished, kvm, machine, recipe, container).and_then(|()| {
            fs::rename(&unfinished, &path).map_err(failed("rename to", &path))?;
            sync_directory(&self.directory)
        });
        if made.is_err() {
            self.discard(&unfinished);
        }
        made?;
        self.evict(&key);
        Ok(Made::New)
    }

    /// All templates, the one that was used last first.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<TemplateSummary>, TemplateError> {
        let mut found = Vec::new();
        for (key, path) in self.entries()? {
            let Ok(state) = read_state(&path) else {
                continue;
            };
            found.push(TemplateSummary {
                id: key,
                image_id: state.recipe.container.map(|container| container.image_id),
                vcpus: state.recipe.vcpus,
                ram_mib: state.recipe.ram_mib,
                window_mib: state.recipe.window_mib,
                storage_bytes: state.recipe.storage_bytes,
                disk_bytes: disk_bytes(&path),
                unused_seconds: unused(&path).as_secs(),
                in_use: is_in_use(&path),
            });
        }
        found.sort_by_key(|template| template.unused_seconds);
        Ok(found)
    }

    /// Removes a template by its name or the beginning of it.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one, or it is in use.
    pub fn remove(&self, name: &str) -> Result<Key, TemplateError> {
        let mut fitting = self
            .entries()?
            .into_iter()
            .filter(|(key, _)| !name.is_empty() && key.0.starts_with(name));
        let Some((key, path)) = fitting.next() else {
            return Err(TemplateError::Unknown(name.to_owned()));
        };
        if fitting.next().is_some() {
            return Err(TemplateError::Ambiguous(name.to_owned()));
        }
        if is_in_use(&path) {
            return Err(TemplateError::InUse(key.short().to_owned()));
        }
        fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
        Ok(key)
    }

    /// Whether somebody makes a template at this moment, and which.
    #[must_use]
    pub fn being_made(&self) -> Option<String> {
        let file = File::open(self.directory.join(MAKING)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.take(80).read_to_string(&mut text).ok()?;
                Some(text.trim().to_owned())
            }
            Ok(()) | Err(TryLockError::Error(_)) => None,
        }
    }

    fn entries(&self) -> Result<Vec<(Key, PathBuf)>, TemplateError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &self.directory))?,
        };
        Ok(entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let key = Key::parse(entry.file_name().to_str()?)?;
                Some((key, entry.path()))
            })
            .collect())
    }

    /// One at a time: a template costs a boot, and nobody is in a hurry.
    fn lock_making(&self, key: &Key, patience: Patience) -> Result<Option<File>, TemplateError> {
        let path = self.directory.join(MAKING);
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        match (file.try_lock(), patience) {
            (Ok(()), _) => {}
            (Err(TryLockError::WouldBlock), Patience::Leave) => return Ok(None),
            (Err(TryLockError::WouldBlock), Patience::Wait) => {
                file.lock().map_err(failed("lock", &path))?;
            }
            (Err(TryLockError::Error(error)), _) => return Err(failed("lock", &path)(error)),
        }
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{key}"))
            .map_err(failed("write", &path))?;
        Ok(Some(file))
    }

    /// What whoever made one before has left by a crash: nobody else is at it, since the lock is held.
    fn remove_leftovers(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                self.discard(&entry.path());
            }
        }
    }

    fn discard(&self, path: &Path) {
        if let Err(error) = remove_whole(path) {
            tracing::warn!(%error, path = %path.display(), "a useless template stays");
        }
    }

    /// Removes what was used longest ago until the rest is within the limit, that which another version made and this one cannot read
    /// included; never one in use, and not the one just made.
    fn evict(&self, new: &Key) {
        let Ok(mut templates) = self.entries() else {
            return;
        };
        templates.sort_by_key(|(_, path)| Reverse(unused(path)));
        let mut sum: u64 = templates.iter().map(|(_, path)| disk_bytes(path)).sum();
        for (key, path) in &templates {
            if sum <= self.limit.bytes() {
                return;
            }
            if key != new && !is_in_use(path) {
                sum -= disk_bytes(path).min(sum);
                self.discard(path);
            }
        }
    }
}

/// Why a template's directory did not open.
enum OpenError {
    Absent,
    Unusable(String),
}

fn open(path: &Path, recipe: &Recipe) -> Result<Template, OpenError> {
    let state = match read_state(path) {
        Ok(state) => state,
        Err(FormatError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(OpenError::Absent);
        }
        Err(error) => return Err(OpenError::Unusable(crate::report::chain(&error))),
    };
    if state.recipe != *recipe {
        return Err(OpenError::Unusable("it is another machine's".to_owned()));
    }
    let memory = open_unchanged(&path.join(MEMORY), &state.memory)
        .map_err(|reason| OpenError::Unusable(format!("its memory {reason}")))?;
    // Held by the clone as long as it runs. Whoever looks whether it is held keeps it for that moment only.
    memory
        .lock_shared()
        .map_err(|error| OpenError::Unusable(format!("its memory cannot be locked: {error}")))?;
    let disk = state.disk.as_ref().map(|identity| {
        open_unchanged(&path.join(DISK), identity)
            .map_err(|reason| OpenError::Unusable(format!("its disk {reason}")))
    });
    let frozen = FrozenMachine {
        state: state.machine,
        memory,
        below: Vec::new(),
        written: read_writes(path),
        generation: 0,
        had_connections: false,
    };
    Ok(Template {
        frozen,
        disk: disk.transpose()?,
    })
}

/// Opens a file that nobody has touched since, or says what is wrong with it.
fn open_unchanged(path: &Path, identity: &FileIdentity) -> Result<File, String> {
    let unusable = |error: io::Error| format!("cannot be opened: {error}");
    let file = open_regular(path).map_err(unusable)?;
    let metadata = file.metadata().map_err(unusable)?;
    match FileIdentity::from(&metadata) == *identity {
        true => Ok(file),
        false => Err("was changed".to_owned()),
    }
}

/// Opens a file for reading, and nothing else that may have its name: a fifo would let the opener wait for ever.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is not a regular file"))
    }
}

fn read_state(path: &Path) -> Result<State, FormatError> {
    let file = open_regular(&path.join(STATE)).map_err(FormatError::Read)?;
    let mut bytes = Vec::new();
    file.take(MAX_STATE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(FormatError::Read)?;
    format::decode(&bytes)
}

/// None if no clone has left them, or if they make no sense.
fn read_writes(path: &Path) -> Vec<WrittenPages> {
    let mut bytes = Vec::new();
    open_regular(&path.join(WRITES))
        .and_then(|file| file.take(MAX_STATE_BYTES).read_to_end(&mut bytes))
        .ok()
        .and_then(|_| postcard::from_bytes(&bytes).ok())
        .unwrap_or_default()
}

/// Removes a template's directory, which need not be there.
fn remove_whole(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes down that a template was used. That this fails makes it a candidate for eviction too early, and no more.
fn note_use(path: &Path) {
    if unused(path) < USE_GRAIN {
        return;
    }
    let now = File::open(path).and_then(|directory| directory.set_modified(SystemTime::now()));
    if let Err(error) = now {
        tracing::debug!(%error, "the use of a template stays unwritten");
    }
}

fn unused(path: &Path) -> Duration {
    let used = fs::metadata(path).and_then(|metadata| metadata.modified());
    used.ok()
        .and_then(|used| used.elapsed().ok())
        .unwrap_or_default()
}

fn disk_bytes(path: &Path) -> u64 {
    const BLOCK_BYTES: u64 = 512;
    [STATE, MEMORY, DISK]
        .iter()
        .filter_map(|name| fs::metadata(path.join(name)).ok())
        .map(|metadata| metadata.blocks() * BLOCK_BYTES)
        .sum()
}

fn is_in_use(path: &Path) -> bool {
    open_regular(&path.join(MEMORY))
        .is_ok_and(|memory| matches!(memory.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Makes a template in a directory of its own.
fn make_in(
    path: &Path,
    kvm: &Kvm,
    config: &MachineConfig,
    recipe: &Recipe,
    container: Option<&Create>,
) -> Result<(), TemplateError> {
    DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))?;
    let memory_path = path.join(MEMORY);
    let memory = create(&memory_path)?;
    memory
        .set_len(config.ram.bytes())
        .map_err(failed("write", &memory_path))?;
    // What the VM process says of the machine comes in a file without a name.
    let mut said = tempfile::tempfile_in(path).map_err(failed("write in", path))?;
    let start = Start::Freeze(Box::new(FreezeFiles {
        save: SaveFiles {
            state: said.try_clone().map_err(failed("write in", path))?,
            memory: memory.try_clone().map_err(failed("write", &memory_path))?,
            memory_offset_bytes: 0,
            only_changes: false,
            tracks_changes: false,
            stays: false,
        },
        container: container.cloned(),
    }));
    let vm = VmProcess::spawn(kvm, config, &start)?;
    let report = vm.await_report(vm.as_fd(), MAKING_PATIENCE);
    vm.kill();
    let reason = match report? {
        FirstReport::Came | FirstReport::Interrupted => None,
        FirstReport::Failed(reason) | FirstReport::Want(reason) => Some(reason),
        FirstReport::HungUp => Some(format!("its process ended, with {}", vm.last_status())),
        FirstReport::None => Some("it took too long".to_owned()),
    };
    // It must not write any more to what is copied.
    vm.reap();
    if let Some(reason) = reason {
        return Err(TemplateError::NotFrozen(reason));
    }
    memory.sync_all().map_err(failed("sync", &memory_path))?;
    let identity = memory.metadata().map_err(failed("look at", &memory_path))?;
    let mut bytes = Vec::new();
    said.seek(SeekFrom::Start(0))
        .and_then(|_| said.read_to_end(&mut bytes))
        .map_err(failed("read in", path))?;
    let machine: SavedMachine = postcard::from_bytes(&bytes)
        .map_err(|error| TemplateError::NotFrozen(error.to_string()))?;
    let disk = config.storage.as_ref();
    let state = State {
        recipe: recipe.clone(),
        memory: FileIdentity::from(&identity),
        disk: disk.map(|disk| keep_disk(path, disk)).transpose()?,
        machine,
    };
    let bytes = format::encode(&state)
        .map_err(|error| TemplateError::NotFrozen(crate::report::chain(&error)))?;
    let state_path = path.join(STATE);
    let mut file = create(&state_path)?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &state_path))?;
    sync_directory(path)
}

/// Keeps what is on the disk of the machine that was frozen.
fn keep_disk(path: &Path, disk: &File) -> Result<FileIdentity, TemplateError> {
    let path = path.join(DISK);
    let kept = create(&path)?;
    let length_bytes = disk.metadata().map_err(TemplateError::Disk)?.len();
    kept.set_len(length_bytes)
        .and_then(|()| storage::fill(&kept, disk))
        .and_then(|()| kept.sync_all())
        .and_then(|()| kept.metadata())
        .map(|metadata| FileIdentity::from(&metadata))
        .map_err(failed("write", &path))
}

fn create(path: &Path) -> Result<File, TemplateError> {
    OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create", path))
}

fn sync_directory(path: &Path) -> Result<(), TemplateError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", path))
}
