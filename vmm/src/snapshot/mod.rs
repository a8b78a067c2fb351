//! Snapshots: running machines, written down with their workloads.
//!
//! A snapshot is one file. Its machine is frozen while its containers stand still, so that a copy can be made another machine
//! before its workload runs on. What a running program keeps of random numbers and secrets no kernel can refresh, so a snapshot is
//! resumed once; several copies need a fork point, where the workload says that it may be duplicated.
//!
//! A snapshot says of what its machine was made ([`Origin`]) and what ran in it ([`Subject`]), and is used only where all of that is
//! at hand again. Increments hold what was written to since the snapshot before and name it ([`Parent`]).

mod disk;
mod format;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use protocol::DeclaredStreams;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tempfile::TempPath;
use thiserror::Error;

use self::disk::DiskCopy;
pub use self::format::FormatError;
use self::format::Header;
use crate::guest::Manifest;
use crate::machine::{
    CommandLineError, FrozenMachine, MachineConfig, RamLayer, Root, SaveFiles, SavedMachine,
};
use crate::network::Network;
use crate::report::Help;
use crate::state::{ImageLabel, MachineId, Timestamp};
use crate::workload::exec::Basis;

/// How many increments may stand on one whole snapshot.
const MAX_PARENTS: usize = 64;
/// Characters of the random name of a snapshot.
const ID_BYTES: usize = 16;

/// A machine that was written down, and what is to be known of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its random name.
    pub id: String,
    /// The snapshot that this one is an increment of.
    pub parent: Option<Parent>,
    /// When it was made.
    pub created: Timestamp,
    /// Of what its machine was made.
    pub origin: Origin,
    /// What ran in it.
    pub subject: Subject,
    /// CRC-32 of the memory that is in the file.
    memory_checksum: u32,
    machine: SavedMachine,
    /// Its disk, if it had one.
    pub disk: Option<DiskCopy>,
    /// What it was created with, if it can be started again ([`Blueprint::of_copy`](crate::storage::Blueprint::of_copy)).
    pub blueprint: Option<String>,
}

#[cfg(test)]
impl Snapshot {
    /// A snapshot of a machine that never was.
    fn for_tests() -> Self {
        let id = "0".repeat(64);
        Self {
            id: "a name".to_owned(),
            parent: None,
            created: Timestamp(7),
            origin: Origin {
                kernel_digest: "sha256:1".to_owned(),
                agent_digest: "sha256:2".to_owned(),
                command_line: b"quiet".to_vec(),
                vcpus: 1,
                ram_mib: 128,
                window_mib: 64,
            },
            subject: Subject {
                machine: serde_json::from_value(id.into()).unwrap(),
                image: ImageLabel {
                    reference: "app:1".to_owned(),
                    id: "sha256:3".to_owned(),
                },
                command: vec!["sh".to_owned()],
                cpus: "1".to_owned(),
                memory: "64m".to_owned(),
                has_terminal: false,
                streams: DeclaredStreams::default().into(),
                network: Network::for_tests(),
                basis: Basis::for_tests(),
            },
            memory_checksum: 0,
            machine: SavedMachine::for_tests(),
            disk: None,
            blueprint: None,
        }
    }
}

/// The snapshot before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Its random name.
    pub id: String,
    /// Where it was.
    pub path: PathBuf,
}

/// Of what a machine was made: a copy of it needs the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    kernel_digest: String,
    agent_digest: String,
    command_line: Vec<u8>,
    vcpus: u8,
    ram_mib: u64,
    /// 0 where the root is a disk.
    window_mib: u64,
}

impl Origin {
    /// Of what this machine is made.
    ///
    /// # Errors
    ///
    /// When its command line is too long.
    pub fn of(machine: &MachineConfig, guest: &Manifest) -> Result<Self, CommandLineError> {
        Ok(Self {
            kernel_digest: guest.kernel.digest.clone(),
            agent_digest: guest.agent.digest.clone(),
            command_line: machine.command_line()?,
            vcpus: machine.vcpus.get(),
            ram_mib: machine.ram.mib(),
            window_mib: match &machine.root {
                Root::Window(window) => window.class.bytes() >> 20,
                Root::Disk { .. } => 0,
            },
        })
    }

    /// The first part in which another one differs.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let parts = [
            (
                "the guest image's kernel",
                self.kernel_digest == other.kernel_digest,
            ),
            (
                "the guest image's agent",
                self.agent_digest == other.agent_digest,
            ),
            (
                "the kernel's command line",
                self.command_line == other.command_line,
            ),
            ("the number of vCPUs", self.vcpus == other.vcpus),
            ("the memory's size", self.ram_mib == other.ram_mib),
            ("the root's size", self.window_mib == other.window_mib),
        ];
        parts
            .iter()
            .find(|(_, is_same)| !is_same)
            .map(|(part, _)| *part)
    }
}

/// What runs in a machine, as far as a copy of it has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The machine that was written down.
    pub machine: MachineId,
    /// Its image.
    pub image: ImageLabel,
    /// Its command.
    pub command: Vec<String>,
    /// What `--cpus` said.
    pub cpus: String,
    /// What `--memory` said.
    pub memory: String,
    /// Whether the process has a terminal.
    pub has_terminal: bool,
    /// Which of its streams are connected.
    pub streams: Streams,
    /// Its network.
    pub network: Network,
    /// What other processes of it begin with.
    pub basis: Basis,
}

/// [`DeclaredStreams`], as they are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl From<DeclaredStreams> for Streams {
    fn from(streams: DeclaredStreams) -> Self {
        Self {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
        }
    }
}

/// Where a snapshot is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A file of this name appears when the snapshot is whole, in the place of a snapshot that was there.
    File(PathBuf),
    /// An empty file that somebody holds open, by its name in `/proc`.
    Open(PathBuf),
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Writer {
    target: Target,
    file: File,
    /// Removes the name that the file has until it is whole, where the file system knows no files without one.
    temporary: Option<TempPath>,
    state: File,
    disk: Option<DiskCopy>,
    blueprint: Option<String>,
}

impl Writer {
    /// Prepares to write a snapshot of a machine with as much RAM.
    ///
    /// # Errors
    ///
    /// When the file cannot be made, or something else has its name.
    pub fn new(target: Target, ram_bytes: u64) -> Result<Self, SnapshotError> {
        let (file, path) = match &target {
            Target::File(path) => {
                match fs::metadata(path) {
                    Ok(metadata) if !metadata.is_file() => {
                        return Err(SnapshotError::Taken(path.clone()));
                    }
                    _ => {}
                }
                (create_in(directory_of(path)), path)
            }
            Target::Open(path) => {
                let file = OpenOptions::new().read(true).write(true).open(path);
                (file.map(|file| (file, None)), path)
            }
        };
        let (file, temporary) = file.map_err(failed("create", path))?;
        // It has the workload's memory: nobody else's to see.
        file.set_permissions(Permissions::from_mode(0o600))
            .and_then(|()| file.set_len(Header::BYTES + ram_bytes))
            .map_err(failed("write", path))?;
        let state = tempfile::tempfile().map_err(failed("write beside", path))?;
        Ok(Self {
            target,
            file,
            temporary,
            state,
            disk: None,
            blueprint: None,
        })
    }

    /// What the machine is written to.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn files(&self, only_changes: bool, stays: bool) -> Result<SaveFiles, SnapshotError> {
        let clone = |file: &File| file.try_clone().map_err(failed("write", self.path()));
        Ok(SaveFiles {
            state: clone(&self.state)?,
            memory: clone(&self.file)?,
            memory_offset_bytes: Header::BYTES,
            only_changes,
            tracks_changes: matches!(self.target, Target::File(_)) && !stays,
            stays,
        })
    }

    /// Copies the machine's disk while the machine stands.
    ///
    /// # Errors
    ///
    /// When it cannot be copied.
    pub fn copy_disk(&mut self, disk: &File) -> Result<(), SnapshotError> {
        let copied = DiskCopy::append(disk, &self.file);
        self.disk = Some(copied.map_err(failed("copy the disk to", self.path()))?);
        Ok(())
    }

    /// Takes down what the machine was created with: a copy of it can be started again.
    pub fn set_blueprint(&mut self, blueprint: String) {
        self.blueprint = Some(blueprint);
    }

    /// Writes all that is to be known beside the machine, and gives the file its name.
    ///
    /// # Errors
    ///
    /// When the machine's state makes no sense, or the file cannot be written.
    pub fn finish(
        mut self,
        origin: Origin,
        subject: Subject,
        parent: Option<Parent>,
    ) -> Result<String, SnapshotError> {
        let mut bytes = Vec::new();
        self.state
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.state.read_to_end(&mut bytes))
            .map_err(failed("read beside", self.path()))?;
        let machine: SavedMachine =
            postcard::from_bytes(&bytes).map_err(|_| SnapshotError::State)?;
        let mut id = [0; ID_BYTES];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| failed("name", self.path())(error.into()))?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let snapshot = Snapshot {
            id: id.clone(),
            parent,
            created: Timestamp::now(),
            origin,
            subject,
            memory_checksum: checksum(&self.file, &machine).map_err(failed("read", self.path()))?,
            machine,
            disk: self.disk.take(),
            blueprint: self.blueprint.take(),
        };
        format::write(&self.file, &snapshot).map_err(|source| SnapshotError::Format {
            path: self.path().to_owned(),
            source,
        })?;
        if let Target::File(path) = &self.target {
            self.file.sync_all().map_err(failed("sync", path))?;
            publish(&self.file, self.temporary, path, &id).map_err(failed("name", path))?;
        }
        Ok(id)
    }

    fn path(&self) -> &Path {
        match &self.target {
            Target::File(path) | Target::Open(path) => path,
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Makes a file without a name, so that a crash leaves nothing; where that is not to be had (open(2), `O_TMPFILE`), one with a
/// name that tells what it is.
fn create_in(directory: &Path) -> io::Result<(File, Option<TempPath>)> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok((file.into(), None)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => create_named_in(directory),
        Err(error) => Err(error.into()),
    }
}

fn create_named_in(directory: &Path) -> io::Result<(File, Option<TempPath>)> {
    let (file, name) = tempfile::Builder::new()
        .prefix(".vmm-snapshot-")
        .tempfile_in(directory)?
        .into_parts();
    Ok((file, Some(name)))
}

/// Gives a file that is whole its name, in the place of a file that has it.
fn publish(file: &File, temporary: Option<TempPath>, path: &Path, id: &str) -> io::Result<()> {
    match temporary {
        Some(temporary) => temporary.persist(path).map_err(io::Error::from)?,
        None => publish_unnamed(file, path, id)?,
    }
    File::open(directory_of(path))?.sync_all()
}

fn publish_unnamed(file: &File, path: &Path, id: &str) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let link = |to: &Path| rustix::fs::linkat(CWD, &own, CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(path) {
        Err(Errno::EXIST) => {
            let mut beside = path.as_os_str().to_owned();
            beside.push(format!(".{id}"));
            let beside = PathBuf::from(beside);
            link(&beside)?;
            fs::rename(&beside, path)
        }
        other => Ok(other?),
    }
}

fn checksum(file: &File, machine: &SavedMachine) -> io::Result<u32> {
    const PIECE_BYTES: u64 = 1 << 20;
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = Vec::new();
    for (offset_bytes, length_bytes) in machine.memory_runs() {
        let mut done = 0;
        while done < length_bytes {
            let count = (length_bytes - done).min(PIECE_BYTES);
            piece.resize(usize::try_from(count).unwrap_or(usize::MAX), 0);
            file.read_exact_at(&mut piece, offset_bytes + done)?;
            hasher.update(&piece);
            done += count;
        }
    }
    Ok(hasher.finalize())
}

/// A snapshot that was opened.
#[derive(Debug)]
pub struct Opened {
    path: PathBuf,
    file: File,
    /// What it says.
    pub snapshot: Snapshot,
    /// The snapshots that it stands on, the oldest first.
    parents: Vec<(File, Snapshot)>,
}

impl Opened {
    /// Opens a snapshot to resume it; see [`Self::look_at`].
    ///
    /// # Errors
    ///
    /// The same, and when it cannot be written to: that it is resumed is noted there.
    pub fn open(path: &Path) -> Result<Self, SnapshotError> {
        Self::open_with(path, true)
    }

    /// Opens a snapshot and those that it stands on, and reads all of them once, so that none that was altered is used. While it is
    /// open nobody else resumes it.
    ///
    /// # Errors
    ///
    /// When one of them is not there or not whole, when it was resumed before, or somebody is about to.
    pub fn look_at(path: &Path) -> Result<Self, SnapshotError> {
        Self::open_with(path, false)
    }

    fn open_with(path: &Path, is_writable: bool) -> Result<Self, SnapshotError> {
        let file = OpenOptions::new()
            .read(true)
            .write(is_writable)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed("open", path))?;
        let locked = match is_writable {
            true => file.try_lock(),
            // Whoever only looks is in nobody's way who does the same.
            false => file.try_lock_shared(),
        };
        let is_ours = match locked {
            Ok(()) => true,
            Err(fs::TryLockError::WouldBlock) => false,
            Err(fs::TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        };
        let snapshot = read(&file, path)?;
        if format::is_resumed(&file).map_err(failed("read", path))? {
            return Err(SnapshotError::Resumed(path.to_owned()));
        }
        if !is_ours {
            return Err(SnapshotError::InUse(path.to_owned()));
        }
        let mut parents: Vec<(File, Snapshot)> = Vec::new();
        while let Some(parent) = parents
            .last()
            .map_or(&snapshot, |(_, snapshot)| snapshot)
            .parent
            .clone()
        {
            let wrong = || SnapshotError::Parent(parent.path.clone());
            if parents.len() >= MAX_PARENTS {
                return Err(wrong());
            }
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(&parent.path)
                .map_err(failed("open", &parent.path))?;
            let before = read(&file, &parent.path)?;
            if before.id != parent.id {
                return Err(wrong());
            }
            parents.push((file, before));
        }
        parents.reverse();
        Ok(Self {
            path: path.to_owned(),
            file,
            snapshot,
            parents,
        })
    }

    /// Takes one that this process wrote, which nobody else can have altered.
    ///
    /// # Errors
    ///
    /// When it is not whole.
    pub fn of_own(file: File) -> Result<Self, SnapshotError> {
        let path = PathBuf::from("of the fork");
        let snapshot = format::read(&file).map_err(|source| SnapshotError::Format {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            path,
            file,
            snapshot,
            parents: Vec::new(),
        })
    }

    /// Refuses a machine that is not made of the same.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Origin`] with the part that differs.
    pub fn fits(&self, origin: &Origin) -> Result<(), SnapshotError> {
        match self.snapshot.origin.difference(origin) {
            None => Ok(()),
            Some(part) => Err(SnapshotError::Origin {
                path: self.path.clone(),
                part,
            }),
        }
    }

    /// The file, where the machine is only looked at and its disk is not made.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn stand_in_for_disk(&self) -> Result<Option<File>, SnapshotError> {
        let clone = || self.file.try_clone().map_err(failed("read", &self.path));
        self.snapshot.disk.as_ref().map(|_| clone()).transpose()
    }

    /// Fills a new disk with what was on the machine's.
    ///
    /// # Errors
    ///
    /// When it cannot be copied.
    pub fn fill_disk(&self, disk: &File) -> io::Result<()> {
        let copy = self.snapshot.disk.as_ref();
        copy.map_or(Ok(()), |copy| copy.copy_to(disk, &self.file))
    }

    /// Takes out the machine, to go on as this generation of it.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn machine(self, generation: u32) -> Result<(FrozenMachine, Claim), SnapshotError> {
        let clone = self.file.try_clone();
        let claim = Claim {
            file: clone.map_err(failed("read", &self.path))?,
            path: self.path,
        };
        let frozen = FrozenMachine {
            state: self.snapshot.machine,
            memory: self.file,
            below: self
                .parents
                .into_iter()
                .map(|(file, snapshot)| RamLayer::new(file, snapshot.machine))
                .collect(),
            written: Vec::new(),
            generation,
            had_connections: true,
        };
        Ok((frozen, claim))
    }

    /// The machine as it was written down.
    #[must_use]
    pub fn saved(&self) -> &SavedMachine {
        &self.snapshot.machine
    }
}

/// The right to resume a snapshot: as long as it is there, nobody else has it.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    file: File,
}

impl Claim {
    /// Writes down that it is resumed, before its workload goes on.
    ///
    /// # Errors
    ///
    /// When that cannot be written.
    pub fn mark_resumed(&self) -> Result<(), SnapshotError> {
        format::mark_resumed(&self.file).map_err(failed("write", &self.path))
    }
}

/// Reads a snapshot and looks at every byte of it.
fn read(file: &File, path: &Path) -> Result<Snapshot, SnapshotError> {
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(SnapshotError::Format {
            path: path.to_owned(),
            source: FormatError::NoSnapshot,
        });
    }
    let snapshot = format::read(file).map_err(|source| SnapshotError::Format {
        path: path.to_owned(),
        source,
    })?;
    let altered = |source| SnapshotError::Format {
        path: path.to_owned(),
        source,
    };
    let disk = snapshot.disk.as_ref();
    match checksum(file, &snapshot.machine) {
        Ok(sum) if sum == snapshot.memory_checksum => {}
        _ => return Err(altered(FormatError::Memory)),
    }
    match disk.map_or(Ok(true), |disk| disk.is_whole(file)) {
        Ok(true) => Ok(snapshot),
        _ => Err(altered(FormatError::Disk)),
    }
}

/// A snapshot that cannot be written or used.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// A step failed.
    #[error("cannot {step} the snapshot {}", path.display())]
    Io {
        /// Which.
        step: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something else has the name.
    #[error("{} is there already and is not a file", .0.display())]
    Taken(PathBuf),
    /// It is not whole, or something else.
    #[error("{} cannot be used", path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The machine was not written down as it should be.
    #[error("the machine's state makes no sense")]
    State,
    /// Another part.
    #[error("the snapshot {} does not fit here: {part} differs", path.display())]
    Origin {
        /// Which.
        path: PathBuf,
        /// What.
        part: &'static str,
    },
    /// A second time.
    #[error("the snapshot {} was resumed before", .0.display())]
    Resumed(PathBuf),
    /// Somebody resumes it now.
    #[error("the snapshot {} is in use", .0.display())]
    InUse(PathBuf),
    /// Its machine goes on.
    #[error("the machine {0}, of which this is a snapshot, still runs")]
    StillRuns(String),
    /// Another snapshot has its place.
    #[error("{} is not the snapshot that the increment stands on", .0.display())]
    Parent(PathBuf),
}

impl Help for SnapshotError {
    fn help(&self) -> Option<String> {
        match self {
            Self::Resumed(_) => Some(
                "a running program's secrets must not be used twice; fork it at a fork point for several copies"
                    .to_owned(),
            ),
            Self::StillRuns(name) => Some(format!(
                "end it first with `vmm kill {name}`, or see `vmm fork` for several copies"
            )),
            Self::Origin { .. } => Some(
                "resume it with the guest image and on the kind of host that it was made with"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

fn failed(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { step, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_under_its_name_alone_whatever_the_file_system_can_do() {
        for create in [create_in, create_named_in] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("file");
            for content in ["first", "second"] {
                let (file, temporary) = create(directory.path()).unwrap();
                file.write_all_at(content.as_bytes(), 0).unwrap();
                publish(&file, temporary, &path, content).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), content);
            }
            drop(create(directory.path()).unwrap());
            let names: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
            assert_eq!(names.len(), 1, "{names:?}");
        }
    }

    #[test]
    fn the_part_that_differs_is_named() {
        let origin = Snapshot::for_tests().origin;
        assert_eq!(origin.difference(&origin.clone()), None);
        let other = |change: fn(&mut Origin)| {
            let mut other = origin.clone();
            change(&mut other);
            origin.difference(&other)
        };
        assert_eq!(
            [
                other(|origin| origin.kernel_digest.push('0')),
                other(|origin| origin.agent_digest.push('0')),
                other(|origin| origin.command_line.push(b'0')),
                other(|origin| origin.vcpus += 1),
                other(|origin| origin.ram_mib *= 2),
                other(|origin| origin.window_mib = 0),
            ],
            [
                Some("the guest image's kernel"),
                Some("the guest image's agent"),
                Some("the kernel's command line"),
                Some("the number of vCPUs"),
                Some("the memory's size"),
                Some("the root's size"),
            ]
        );
    }
}
