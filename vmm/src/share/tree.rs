//! The tree that is served: one entry for each share, and below it what is there on the host.
//!
//! A node is a file or directory that the guest has looked up: an `O_PATH` descriptor of it, so that a name is resolved once, in a
//! directory that is open, and never followed. A node is opened, linked or given attributes through `/proc/self/fd`, which is the
//! working directory of each thread here: `N` there is the file behind descriptor N itself, whatever its name has become.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::sys;
use crate::volumes::CacheMode;

/// The node of the tree's own root, which has the shares (`FUSE_ROOT_ID`).
pub(super) const ROOT: u64 = 1;
/// The node of the first share.
const FIRST_SHARE: u64 = 2;
/// How long what was seen is taken to be so, where changes on the host are to be seen soon.
const SOON: Duration = Duration::from_secs(1);
/// The same where nobody changes anything.
const LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// Who owns a file of which the owner cannot be shown (`DEFAULT_OVERFLOWUID` in include/linux/highuid.h).
const NOBODY: u32 = 65534;
/// As much of a directory as is read at once: no more than is asked for, so that little is read twice, and room for an entry at least.
const DIRECTORY_BYTES: std::ops::RangeInclusive<usize> = 1 << 10..=32 << 10;
/// Which part of all descriptors a guest has for what it opens. The others are what it has in mind, and locks.
pub(super) const SHARE_OF_HANDLES: u64 = 4;
/// `PROC_SUPER_MAGIC` (include/uapi/linux/magic.h).
const PROC: u64 = 0x9fa0;
/// What of open(2)'s flags a guest decides. `O_APPEND` is none of them: it goes with each write, since mapped pages are written back
/// through any handle, to their own places.
const GUEST_FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::WRONLY)
    .union(OFlags::RDWR)
    .union(OFlags::TRUNC)
    .union(OFlags::EXCL)
    .union(OFlags::DSYNC)
    .union(OFlags::SYNC);
/// Bits of a mode that are permissions, set-id bits and the sticky bit.
const PERMISSIONS: u32 = 0o7777;

/// A file or directory that is shared, opened (`O_PATH`).
#[derive(Debug)]
pub struct Share {
    /// What is shared.
    pub root: OwnedFd,
    /// Whether nothing of it is changed.
    pub read_only: bool,
    /// How long the guest may keep in mind what it saw.
    pub cache: CacheMode,
    /// Whether other file systems that are mounted below it belong to it.
    pub is_recursive: bool,
}

/// Whose files are whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// A number means the same on both sides: the server is root.
    Same,
    /// The guest's root is the user of the server, and all others are nobody: as in a user namespace with one user.
    Root {
        /// The user of the server.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl Ownership {
    /// That of the calling process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let uid = rustix::process::geteuid();
        match uid.is_root() {
            true => Self::Same,
            false => Self::Root {
                uid: uid.as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
        }
    }

    fn show(self, uid: u32, gid: u32) -> (u32, u32) {
        match self {
            Self::Same => (uid, gid),
            Self::Root {
                uid: own_uid,
                gid: own_gid,
            } => (
                if uid == own_uid { 0 } else { NOBODY },
                if gid == own_gid { 0 } else { NOBODY },
            ),
        }
    }
}

/// What the guest is told of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    pub(super) inode: u64,
    pub(super) size_bytes: u64,
    pub(super) blocks: u64,
    /// Seconds and nanoseconds; before 1970 they count down from 2⁶⁴.
    pub(super) accessed: (u64, u32),
    pub(super) modified: (u64, u32),
    pub(super) changed: (u64, u32),
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: u32,
    pub(super) block_bytes: u32,
}

/// A node with its attributes, and for how long they are so.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) node: u64,
    pub(super) attributes: Attributes,
    pub(super) lasts: Duration,
}

/// Which file, among all that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    share: usize,
    device: u64,
    inode: u64,
}

/// A file or directory that the guest has looked up.
#[derive(Debug)]
pub(super) struct Node {
    /// `O_PATH`.
    pub(super) file: OwnedFd,
    pub(super) kind: FileType,
    share: usize,
    device: u64,
}

impl Node {
    /// Its name in `/proc/self/fd`.
    pub(super) fn name(&self) -> String {
        self.file.as_raw_fd().to_string()
    }
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    key: Key,
    lookups: u64,
}

#[derive(Debug, Default)]
struct Nodes {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
}

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: OwnedFd,
    pub(super) node: u64,
    pub(super) read_only: bool,
    pub(super) directory: Mutex<Directory>,
}

/// What was read of a directory and not handed on yet.
#[derive(Debug, Default)]
pub(super) struct Directory {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// An entry of a directory as getdents64(2) has it.
#[derive(Clone, Debug)]
pub(super) struct RawEntry {
    pub(super) inode: u64,
    pub(super) next_offset: u64,
    pub(super) kind: u32,
    pub(super) name: Vec<u8>,
    length: usize,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What is to be set: SETATTR.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size_bytes: Option<u64>,
    pub(super) accessed: Option<Moment>,
    pub(super) modified: Option<Moment>,
    /// Truncation takes the set-id bits away.
    pub(super) kills_set_id: bool,
}

/// A time that is set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Moment {
    Now,
    At(u64, u32),
}

/// All that is served.
#[derive(Debug)]
pub(super) struct Tree {
    shares: Vec<Share>,
    ownership: Ownership,
    nodes: Mutex<Nodes>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    /// The file systems that were seen, so that their inodes can be told apart.
    devices: Mutex<Vec<u64>>,
    next_node: AtomicU64,
    next_handle: AtomicU64,
    most_handles: usize,
}

fn most_handles() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.map_or(usize::MAX, |count| {
        usize::try_from(count / SHARE_OF_HANDLES).unwrap_or(usize::MAX)
    })
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tree {
    pub(super) fn new(shares: Vec<Share>, ownership: Ownership) -> Result<Self, Errno> {
        let tree = Self {
            next_node: AtomicU64::new(FIRST_SHARE),
            next_handle: AtomicU64::new(1),
            most_handles: most_handles(),
            nodes: Mutex::default(),
            handles: Mutex::default(),
            devices: Mutex::default(),
            shares,
            ownership,
        };
        for (share, root) in tree.shares.iter().enumerate() {
            let file = rustix::io::fcntl_dupfd_cloexec(&root.root, 0)?;
            // Two shares of one directory are two trees.
            tree.add(share, file)?;
        }
        Ok(tree)
    }

    pub(super) fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// Forgets all that a guest knows: another one mounts it.
    pub(super) fn reset(&self) {
        locked(&self.handles).clear();
        let last = self.last_share();
        let mut nodes = locked(&self.nodes);
        nodes.by_id.retain(|id, _| *id <= last);
        nodes.by_key.retain(|_, id| *id <= last);
    }

    fn last_share(&self) -> u64 {
        let count = u64::try_from(self.shares.len()).unwrap_or_default();
        FIRST_SHARE.saturating_add(count).saturating_sub(1)
    }

    pub(super) fn node(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let nodes = locked(&self.nodes);
        let known = nodes.by_id.get(&id).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.node))
    }

    fn directory(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.node(id)?;
        match node.kind {
            FileType::Directory => Ok(node),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// A directory in which something may be changed.
    fn writable_directory(&self, id: u64) -> Result<Arc<Node>, Errno> {
        let node = self.directory(id)?;
        self.check_writable(&node)?;
        Ok(node)
    }

    pub(super) fn check_writable(&self, node: &Node) -> Result<(), Errno> {
        match self.share(node)?.read_only {
            true => Err(Errno::ROFS),
            false => Ok(()),
        }
    }

    fn share(&self, node: &Node) -> Result<&Share, Errno> {
        self.shares.get(node.share).ok_or(Errno::STALE)
    }

    /// How changes of the host are seen at this node.
    pub(super) fn cache(&self, node: &Node) -> CacheMode {
        self.share(node)
            .map(|share| share.cache)
            .unwrap_or_default()
    }

    fn lasts(&self, node: &Node) -> Duration {
        match self.cache(node) {
            CacheMode::None => Duration::ZERO,
            CacheMode::Auto => SOON,
            CacheMode::Always => LONG,
        }
    }

    pub(super) fn handle(&self, handle: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let handles = locked(&self.handles);
        let handle = handles.get(&handle).ok_or(Errno::BADF)?;
        match handle.node == node {
            true => Ok(Arc::clone(handle)),
            false => Err(Errno::BADF),
        }
    }

    /// Refuses to open one more than there may be, before anything is made for it.
    fn check_handles(&self) -> Result<(), Errno> {
        match locked(&self.handles).len() < self.most_handles {
            true => Ok(()),
            false => Err(Errno::NFILE),
        }
    }

    fn add_handle(&self, file: OwnedFd, node: u64, read_only: bool) -> u64 {
        let id = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            file,
            node,
            read_only,
            directory: Mutex::default(),
        };
        locked(&self.handles).insert(id, Arc::new(handle));
        id
    }

    pub(super) fn release(&self, handle: u64, node: u64) -> Result<(), Errno> {
        self.handle(handle, node)?;
        locked(&self.handles).remove(&handle);
        Ok(())
    }

    /// Makes a node of what was looked up, or finds the one that it has; counts the lookup.
    fn add(&self, share: usize, file: OwnedFd) -> Result<(Entry, Arc<Node>), Errno> {
        let stat = rustix::fs::fstat(&file)?;
        let key = Key {
            share,
            device: stat.st_dev,
            inode: stat.st_ino,
        };
        let mut nodes = locked(&self.nodes);
        let known = nodes.by_key.get(&key).copied();
        let (id, node) = match known.and_then(|id| Some((id, nodes.by_id.get_mut(&id)?))) {
            Some((id, known)) => {
                known.lookups = known.lookups.saturating_add(1);
                (id, Arc::clone(&known.node))
            }
            None => {
                let id = self.next_node.fetch_add(1, Ordering::Relaxed);
                let node = Arc::new(Node {
                    file,
                    kind: FileType::from_raw_mode(stat.st_mode),
                    share,
                    device: stat.st_dev,
                });
                let known = Known {
                    node: Arc::clone(&node),
                    key,
                    lookups: 1,
                };
                nodes.by_key.insert(key, id);
                nodes.by_id.insert(id, known);
                (id, node)
            }
        };
        drop(nodes);
        let entry = Entry {
            node: id,
            attributes: self.show(&stat),
            lasts: self.lasts(&node),
        };
        Ok((entry, node))
    }

    /// Takes back that a node was looked up so many times; one that is not known any more is let go of.
    pub(super) fn forget(&self, id: u64, count: u64) {
        if id <= self.last_share() {
            return;
        }
        let mut nodes = locked(&self.nodes);
        let Some(known) = nodes.by_id.get_mut(&id) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            let key = known.key;
            nodes.by_key.remove(&key);
            let forgotten = nodes.by_id.remove(&id);
            // Closing takes its time.
            drop(nodes);
            drop(forgotten);
        }
    }

    /// Finds an entry of a directory.
    pub(super) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        if parent == ROOT {
            return self.share_named(name);
        }
        let directory = self.directory(parent)?;
        self.look_into(&directory, name).map(|(entry, _)| entry)
    }

    /// For how long it is so that there is no such entry.
    pub(super) fn absence_lasts(&self, parent: u64) -> Duration {
        let lasts = self.node(parent).map(|node| self.lasts(&node));
        lasts.unwrap_or_default().min(SOON)
    }

    fn share_named(&self, name: &[u8]) -> Result<Entry, Errno> {
        let index = std::str::from_utf8(name).ok();
        let index: u64 = index
            .and_then(|name| name.parse().ok())
            .ok_or(Errno::NOENT)?;
        let id = FIRST_SHARE.checked_add(index).ok_or(Errno::NOENT)?;
        if id > self.last_share() {
            return Err(Errno::NOENT);
        }
        let node = self.node(id)?;
        Ok(Entry {
            node: id,
            attributes: self.attributes_of(&node)?,
            lasts: self.lasts(&node),
        })
    }

    fn look_into(&self, directory: &Node, name: &[u8]) -> Result<(Entry, Arc<Node>), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&directory.file, name, flags, Mode::empty())?;
        let is_recursive = self.share(directory)?.is_recursive;
        if !is_recursive && mount_of(&file)? != mount_of(&directory.file)? {
            return Err(Errno::ACCESS);
        }
        let (entry, node) = self.add(directory.share, file)?;
        if node.device == directory.device {
            return Ok((entry, node));
        }
        // Another file system is mounted there. That of the processes has a way to the server's own memory.
        let magic = rustix::fs::fstatfs(&node.file)
            .map(|statistics| u64::try_from(statistics.f_type).unwrap_or_default());
        if magic == Ok(PROC) || !is_recursive {
            self.forget(entry.node, 1);
            return Err(Errno::ACCESS);
        }
        Ok((entry, node))
    }

    pub(super) fn attributes(
        &self,
        id: u64,
        handle: Option<u64>,
    ) -> Result<(Attributes, Duration), Errno> {
        if id == ROOT {
            return Ok((self.root_attributes(), SOON));
        }
        let node = self.node(id)?;
        let attributes = match handle {
            // An O_PATH descriptor stays at a file that is deleted, too; the handle need only be one.
            Some(handle) => {
                self.handle(handle, id)?;
                self.attributes_of(&node)?
            }
            None => self.attributes_of(&node)?,
        };
        Ok((attributes, self.lasts(&node)))
    }

    fn attributes_of(&self, node: &Node) -> Result<Attributes, Errno> {
        Ok(self.show(&rustix::fs::fstat(&node.file)?))
    }

    /// The directory of the shares: it does not change.
    fn root_attributes(&self) -> Attributes {
        Attributes {
            inode: ROOT,
            size_bytes: 0,
            blocks: 0,
            accessed: (0, 0),
            modified: (0, 0),
            changed: (0, 0),
            mode: 0o040_555,
            links: 2,
            uid: 0,
            gid: 0,
            device: 0,
            block_bytes: 4096,
        }
    }

    fn show(&self, stat: &rustix::fs::Stat) -> Attributes {
        let (uid, gid) = self.ownership.show(stat.st_uid, stat.st_gid);
        let moment = |seconds: i64, nanoseconds: u64| {
            let nanoseconds = u32::try_from(nanoseconds).unwrap_or_default();
            (seconds.cast_unsigned(), nanoseconds)
        };
        Attributes {
            inode: stat.st_ino ^ self.device_bits(stat.st_dev),
            size_bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
            accessed: moment(stat.st_atime, stat.st_atime_nsec),
            modified: moment(stat.st_mtime, stat.st_mtime_nsec),
            changed: moment(stat.st_ctime, stat.st_ctime_nsec),
            mode: stat.st_mode,
            links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
            uid,
            gid,
            device: device_number(stat.st_rdev),
            block_bytes: u32::try_from(stat.st_blksize).unwrap_or(4096),
        }
    }

    /// The guest sees one file system: inodes of the host's second, third and so on get numbers far above those of the first.
    fn device_bits(&self, device: u64) -> u64 {
        const HIGH_BITS: u32 = 48;
        let mut devices = locked(&self.devices);
        let place = devices.iter().position(|known| *known == device);
        let place = place.unwrap_or_else(|| {
            devices.push(device);
            devices.len() - 1
        });
        u64::try_from(place).unwrap_or_default() << HIGH_BITS
    }

    /// Opens a regular file or a directory. Others are never opened here: what they are is the guest's kernel's business.
    pub(super) fn open(
        &self,
        id: u64,
        flags: u32,
        kills_set_id: bool,
    ) -> Result<(u64, Arc<Node>), Errno> {
        self.check_handles()?;
        let node = self.node(id)?;
        if kills_set_id && flags & OFlags::TRUNC.bits() != 0 {
            let (file, _) = self.open_node(&node, flags & !OFlags::TRUNC.bits())?;
            self.check_writable(&node)?;
            kill_set_id(&file)?;
        }
        let (file, read_only) = self.open_node(&node, flags)?;
        Ok((self.add_handle(file, id, read_only), node))
    }

    fn open_node(&self, node: &Node, flags: u32) -> Result<(OwnedFd, bool), Errno> {
        let asked = OFlags::from_bits_retain(flags) & GUEST_FLAGS;
        let changes = asked.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        let flags = match node.kind {
            FileType::RegularFile => asked - OFlags::EXCL,
            FileType::Directory if changes => return Err(Errno::ISDIR),
            FileType::Directory => OFlags::DIRECTORY,
            _ => return Err(Errno::NXIO),
        };
        if changes {
            self.check_writable(node)?;
        }
        let file = rustix::fs::open(
            node.name(),
            flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        Ok((file, !changes))
    }

    /// Opens a file anew, for locks: a description of its own, for writing where that is allowed.
    pub(super) fn open_for_locks(&self, id: u64) -> Result<OwnedFd, Errno> {
        let node = self.node(id)?;
        let writing = OFlags::RDWR.bits();
        let opened = match self.open_node(&node, writing) {
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM | Errno::ISDIR | Errno::TXTBSY) => {
                self.open_node(&node, OFlags::RDONLY.bits())
            }
            opened => opened,
        };
        opened.map(|(file, _)| file)
    }

    pub(super) fn open_directory(&self, id: u64) -> Result<(u64, Option<Arc<Node>>), Errno> {
        self.check_handles()?;
        if id == ROOT {
            // Never read from: the entries are known.
            let file = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            return Ok((self.add_handle(file, id, true), None));
        }
        let node = self.directory(id)?;
        let (file, _) = self.open_node(&node, 0)?;
        Ok((self.add_handle(file, id, true), Some(node)))
    }

    /// Makes a regular file, or opens the one that is there, and opens it.
    pub(super) fn create(
        &self,
        parent: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
        caller: &Caller,
    ) -> Result<(Entry, u64, Arc<Node>), Errno> {
        self.check_handles()?;
        let directory = self.writable_directory(parent)?;
        let asked = OFlags::from_bits_retain(flags) & GUEST_FLAGS;
        let made = self.make_file(&directory, name, asked, mode, caller);
        match made {
            Ok(file) => {
                let (entry, node) = self.add_open(directory.share, &file)?;
                Ok((entry, self.add_handle(file, entry.node, false), node))
            }
            Err(Errno::EXIST) if !asked.contains(OFlags::EXCL) => {
                let (entry, _) = self.look_into(&directory, name)?;
                let opened = self.open(entry.node, flags, false);
                let (handle, node) = opened.inspect_err(|_| self.forget(entry.node, 1))?;
                Ok((entry, handle, node))
            }
            Err(error) => Err(error),
        }
    }

    fn make_file(
        &self,
        directory: &Node,
        name: &[u8],
        asked: OFlags,
        mode: u32,
        caller: &Caller,
    ) -> Result<OwnedFd, Errno> {
        let flags = asked | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _acting = self.act_as(caller)?;
        rustix::fs::openat(&directory.file, name, flags, permissions(mode))
    }

    /// Makes a node of a file that is open: whatever its name leads to by now.
    fn add_open(&self, share: usize, file: &OwnedFd) -> Result<(Entry, Arc<Node>), Errno> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = rustix::fs::open(file.as_raw_fd().to_string(), flags, Mode::empty())?;
        self.add(share, path)
    }

    /// Lets this thread make files as the caller, so that nothing is given away afterwards under a name that may be another's by then.
    /// Where the directory gives its group or a default ACL, the host's kernel sees to that. The caller's other groups are not known
    /// here: what they allow the guest's kernel has checked.
    fn act_as(&self, caller: &Caller) -> Result<Option<sys::Acting>, Errno> {
        let is_root = caller.uid == 0 && caller.gid == 0;
        if is_root || self.ownership != Ownership::Same {
            return Ok(None);
        }
        sys::Acting::begin(caller.uid, caller.gid).map(Some)
    }

    /// Makes a file without a name: `O_TMPFILE`.
    pub(super) fn create_nameless(
        &self,
        parent: u64,
        flags: u32,
        mode: u32,
        caller: &Caller,
    ) -> Result<(Entry, u64, Arc<Node>), Errno> {
        self.check_handles()?;
        let directory = self.writable_directory(parent)?;
        let asked = OFlags::from_bits_retain(flags) & GUEST_FLAGS;
        if !asked.intersects(OFlags::WRONLY | OFlags::RDWR) {
            return Err(Errno::INVAL);
        }
        let flags = asked | OFlags::TMPFILE | OFlags::CLOEXEC;
        let acting = self.act_as(caller)?;
        let file = rustix::fs::open(directory.name(), flags, permissions(mode))?;
        drop(acting);
        let (entry, node) = self.add_open(directory.share, &file)?;
        Ok((entry, self.add_handle(file, entry.node, false), node))
    }

    pub(super) fn make_directory(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let directory = self.writable_directory(parent)?;
        let acting = self.act_as(caller)?;
        rustix::fs::mkdirat(&directory.file, name, permissions(mode))?;
        drop(acting);
        self.look_into(&directory, name).map(|(entry, _)| entry)
    }

    /// Makes a fifo, a socket or an empty file. Devices are not made.
    pub(super) fn make_node(
        &self,
        parent: u64,
        name: &[u8],
        mode: u32,
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let directory = self.writable_directory(parent)?;
        let kind = FileType::from_raw_mode(mode);
        match kind {
            FileType::RegularFile => {
                let file = self.make_file(&directory, name, OFlags::WRONLY, mode, caller)?;
                self.add_open(directory.share, &file)
                    .map(|(entry, _)| entry)
            }
            FileType::Fifo | FileType::Socket => {
                let acting = self.act_as(caller)?;
                rustix::fs::mknodat(&directory.file, name, kind, permissions(mode), 0)?;
                drop(acting);
                self.look_into(&directory, name).map(|(entry, _)| entry)
            }
            _ => Err(Errno::PERM),
        }
    }

    pub(super) fn make_symlink(
        &self,
        parent: u64,
        name: &[u8],
        target: &[u8],
        caller: &Caller,
    ) -> Result<Entry, Errno> {
        let directory = self.writable_directory(parent)?;
        let acting = self.act_as(caller)?;
        rustix::fs::symlinkat(target, &directory.file, name)?;
        drop(acting);
        self.look_into(&directory, name).map(|(entry, _)| entry)
    }

    pub(super) fn link(&self, id: u64, parent: u64, name: &[u8]) -> Result<Entry, Errno> {
        let node = self.node(id)?;
        let directory = self.writable_directory(parent)?;
        if node.share != directory.share {
            return Err(Errno::XDEV);
        }
        let follow = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, node.name(), &directory.file, name, follow)?;
        self.look_into(&directory, name).map(|(entry, _)| entry)
    }

    pub(super) fn unlink(&self, parent: u64, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
        let directory = self.writable_directory(parent)?;
        rustix::fs::unlinkat(&directory.file, name, flags)
    }

    pub(super) fn rename(
        &self,
        from: (u64, &[u8]),
        to: (u64, &[u8]),
        flags: u32,
    ) -> Result<(), Errno> {
        let known = rustix::fs::RenameFlags::NOREPLACE | rustix::fs::RenameFlags::EXCHANGE;
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags);
        if !known.contains(flags) {
            return Err(Errno::INVAL);
        }
        let old = self.writable_directory(from.0)?;
        let new = self.writable_directory(to.0)?;
        if old.share != new.share {
            return Err(Errno::XDEV);
        }
        rustix::fs::renameat_with(&old.file, from.1, &new.file, to.1, flags)
    }

    pub(super) fn read_link(&self, id: u64) -> Result<CString, Errno> {
        let node = self.node(id)?;
        rustix::fs::readlinkat(&node.file, c"", Vec::new())
    }

    pub(super) fn set_attributes(
        &self,
        id: u64,
        handle: Option<u64>,
        changes: &Changes,
    ) -> Result<(Attributes, Duration), Errno> {
        if id == ROOT {
            return Err(Errno::ROFS);
        }
        let node = self.node(id)?;
        self.check_writable(&node)?;
        if let Some(mode) = changes.mode {
            rustix::fs::chmod(node.name(), permissions(mode))?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            self.change_owner(&node, changes)?;
        }
        if let Some(size) = changes.size_bytes {
            self.truncate(id, &node, handle, size, changes.kills_set_id)?;
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            let times = rustix::fs::Timestamps {
                last_access: timespec(changes.accessed),
                last_modification: timespec(changes.modified),
            };
            rustix::fs::utimensat(CWD, node.name(), &times, AtFlags::empty())?;
        }
        Ok((self.attributes_of(&node)?, self.lasts(&node)))
    }

    fn change_owner(&self, node: &Node, changes: &Changes) -> Result<(), Errno> {
        let (uid, gid) = match self.ownership {
            Ownership::Same => (changes.uid, changes.gid),
            Ownership::Root { .. } => {
                // Root of the guest is whose it all is; others have no number here.
                let stays = |asked: Option<u32>, now: u32| asked.is_none_or(|asked| asked == now);
                let now = self.attributes_of(node)?;
                let is_so = stays(changes.uid, now.uid) && stays(changes.gid, now.gid);
                return if is_so { Ok(()) } else { Err(Errno::PERM) };
            }
        };
        rustix::fs::chownat(
            &node.file,
            c"",
            uid.map(rustix::fs::Uid::from_raw),
            gid.map(rustix::fs::Gid::from_raw),
            AtFlags::EMPTY_PATH,
        )
    }

    fn truncate(
        &self,
        id: u64,
        node: &Node,
        handle: Option<u64>,
        size_bytes: u64,
        kills_set_id: bool,
    ) -> Result<(), Errno> {
        let opened = match handle {
            Some(handle) => Some(self.handle(handle, id)?),
            None => None,
        };
        match opened {
            Some(handle) => {
                kill_set_id_if(kills_set_id, &handle.file)?;
                rustix::fs::ftruncate(&handle.file, size_bytes)
            }
            None => {
                let (file, _) = self.open_node(node, OFlags::WRONLY.bits())?;
                kill_set_id_if(kills_set_id, &file)?;
                rustix::fs::ftruncate(&file, size_bytes)
            }
        }
    }

    /// Calls `add` for the entries of a directory from `offset` on, until it has enough, about `bytes` of getdents64(2), and returns
    /// `false`. What fails behind the first one is the next call's.
    pub(super) fn read_directory(
        &self,
        id: u64,
        handle: u64,
        offset: u64,
        bytes: usize,
        mut add: impl FnMut(&RawEntry) -> bool,
    ) -> Result<(), Errno> {
        let handle = self.handle(handle, id)?;
        if id == ROOT {
            for (index, place) in (0..self.shares.len()).zip(1_u64..) {
                let entry = RawEntry {
                    inode: FIRST_SHARE,
                    next_offset: place,
                    kind: 0,
                    name: index.to_string().into_bytes(),
                    length: 0,
                };
                if place > offset && !add(&entry) {
                    break;
                }
            }
            return Ok(());
        }
        let mut directory = locked(&handle.directory);
        directory.seek(&handle.file, offset)?;
        let mut has_some = false;
        let result = loop {
            let entry = match directory.peek(&handle.file, bytes) {
                Ok(Some(entry)) => entry,
                Err(error) if !has_some => break Err(error),
                Ok(None) | Err(_) => break Ok(()),
            };
            if !matches!(entry.name.as_slice(), b"." | b"..") {
                if !add(&entry) {
                    break Ok(());
                }
                has_some = true;
            }
            directory.start = directory.start.saturating_add(entry.length);
        };
        // A guest has many directories open, and reads few at once.
        *directory = Directory::default();
        result
    }

    /// What a listing with attributes says of an entry; none if it cannot be looked up now.
    pub(super) fn listed(&self, id: u64, name: &[u8]) -> Option<Entry> {
        self.lookup(id, name).ok()
    }
}

impl Directory {
    fn seek(&mut self, file: &OwnedFd, offset: u64) -> Result<(), Errno> {
        rustix::fs::seek(file, rustix::fs::SeekFrom::Start(offset))?;
        (self.start, self.end) = (0, 0);
        Ok(())
    }

    /// The next entry, which stays the next; none at the end.
    fn peek(&mut self, file: &OwnedFd, bytes: usize) -> Result<Option<RawEntry>, Errno> {
        if self.start >= self.end {
            let bytes = bytes.clamp(*DIRECTORY_BYTES.start(), *DIRECTORY_BYTES.end());
            self.buffer.resize(bytes, 0);
            self.end = sys::read_entries(file, &mut self.buffer)?;
            self.start = 0;
            if self.end == 0 {
                return Ok(None);
            }
        }
        let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
        RawEntry::read(rest).map(Some).ok_or(Errno::IO)
    }
}

impl RawEntry {
    /// Reads a `struct linux_dirent64` (getdents(2)).
    fn read(bytes: &[u8]) -> Option<Self> {
        const NAME_OFFSET: usize = 19;
        let (inode, rest) = bytes.split_first_chunk::<8>()?;
        let (next_offset, rest) = rest.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let name = bytes.get(NAME_OFFSET..length)?;
        let end = name.iter().position(|byte| *byte == 0)?;
        Some(Self {
            inode: u64::from_ne_bytes(*inode),
            next_offset: u64::from_ne_bytes(*next_offset),
            kind: u32::from(*kind),
            name: name.get(..end)?.to_vec(),
            length,
        })
    }
}

/// Which mount it was reached by: the same directory bound to another place is another. 0 before Linux 5.8.
fn mount_of(file: &OwnedFd) -> Result<u64, Errno> {
    let flags = rustix::fs::StatxFlags::MNT_ID;
    rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, flags).map(|found| found.stx_mnt_id)
}

fn permissions(mode: u32) -> Mode {
    Mode::from_bits_retain(mode & PERMISSIONS)
}

fn timespec(moment: Option<Moment>) -> rustix::fs::Timespec {
    let (tv_sec, tv_nsec) = match moment {
        None => (0, rustix::fs::UTIME_OMIT),
        Some(Moment::Now) => (0, rustix::fs::UTIME_NOW),
        Some(Moment::At(seconds, nanoseconds)) => (seconds.cast_signed(), nanoseconds.into()),
    };
    rustix::fs::Timespec { tv_sec, tv_nsec }
}

/// A device's number as the guest's kernel takes it (`new_encode_dev` in include/linux/kdev_t.h).
fn device_number(device: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

pub(super) fn kill_set_id_if(kills: bool, file: &OwnedFd) -> Result<(), Errno> {
    if kills { kill_set_id(file) } else { Ok(()) }
}

/// Takes the set-id bits of a file away, as writing to it by others than root does (inode(7)).
fn kill_set_id(file: &OwnedFd) -> Result<(), Errno> {
    const SET_UID: u32 = 0o4000;
    const SET_GID_EXECUTABLE: u32 = 0o2010;
    let mode = rustix::fs::fstat(file)?.st_mode;
    let mut kept = mode & !SET_UID;
    if mode & SET_GID_EXECUTABLE == SET_GID_EXECUTABLE {
        kept &= !0o2000;
    }
    if kept == mode {
        return Ok(());
    }
    rustix::fs::fchmod(file, permissions(kept))
}
