//! The conversation with one guest: each request is read, carried out on the [`Tree`] and answered.
//!
//! A request is copied before it is read, but for the data of a write, which goes from the shared memory to the file; what is read of
//! a file goes there straight, too.

use std::sync::Arc;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use vm_memory::VolatileSlice;

use super::locks::{Asked, Holder, Locks};
use super::sys;
use super::tree::{self, Caller, Changes, Moment, Node, Ownership, Tree};
use super::wire::{self, Cursor, Dirent, Header, Reply, feature, opcode, valid};
use crate::volumes::CacheMode;

/// What is asked for by reading ahead, at most: a mebibyte.
const MAX_READAHEAD_BYTES: u32 = wire::MAX_DATA_BYTES;
/// Pages of a request: a mebibyte that begins anywhere in a page. All of them and the headers fit in a slot.
const MAX_PAGES: u16 = 264;
/// How many requests that nobody waits for the guest sends at once, and from how many on it holds back: within the slots.
const MAX_BACKGROUND: u16 = 48;
const CONGESTION: u16 = 36;
/// The longest value of an extended attribute, and list of their names (include/uapi/linux/limits.h, `XATTR_SIZE_MAX`).
const MAX_XATTR_BYTES: u32 = 65536;
/// `FOPEN_…`.
const OPEN_DIRECT_IO: u32 = 1 << 0;
const OPEN_KEEP_CACHE: u32 = 1 << 1;
const OPEN_CACHE_DIR: u32 = 1 << 3;

/// What is served to one guest.
#[derive(Debug)]
pub(super) struct Session {
    tree: Tree,
    locks: Locks,
}

/// What each thread keeps for itself.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    request: Vec<u8>,
    reply: Reply,
    xattr: Vec<u8>,
    umask: u32,
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its reply is written: so many bytes.
    Written(u32),
    /// It waits for a lock.
    Waits(Waiting),
}

/// A request that waits for a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    unique: u64,
    holder: Holder,
    asked: Asked,
}

/// What a request leads to.
enum Outcome {
    /// The reply is put together.
    Replied,
    /// Behind the header stand so many bytes of data, in place.
    InPlace(usize),
    /// No reply is due.
    Silent,
    Waits(Holder, Asked),
}

/// A request with what it needs.
struct Call<'a> {
    header: Header,
    body: Cursor<'a>,
    /// The whole of it, as it lies in the shared memory.
    asked: VolatileSlice<'a>,
    /// Where the reply goes.
    room: VolatileSlice<'a>,
    reply: &'a mut Reply,
    xattr: &'a mut Vec<u8>,
    umask: &'a mut u32,
}

impl Session {
    pub(super) fn new(tree: Tree) -> Self {
        Self {
            tree,
            locks: Locks::default(),
        }
    }

    /// Answers the request at `asked` into `room`.
    pub(super) fn answer(
        &self,
        asked: VolatileSlice<'_>,
        room: VolatileSlice<'_>,
        scratch: &mut Scratch,
    ) -> Answer {
        let Scratch {
            request,
            reply,
            xattr,
            umask,
        } = scratch;
        let header_bytes = wire::IN_HEADER_BYTES + wire::WRITE_IN_BYTES;
        request.resize(asked.len().min(header_bytes), 0);
        asked.copy_to(request);
        reply.clear();
        let length = u32::try_from(asked.len()).unwrap_or(u32::MAX);
        let header = match Header::read(&mut Cursor::new(request), length) {
            Ok(header) => header,
            Err(error) => {
                let unique = wire::unique_of(request);
                return put(room, reply.finish(unique, Some(error), 0));
            }
        };
        if header.opcode != opcode::WRITE && asked.len() > request.len() {
            let copied = request.len();
            request.resize(asked.len(), 0);
            let (Ok(rest), Some(place)) = (asked.offset(copied), request.get_mut(copied..)) else {
                return put(room, reply.finish(header.unique, Some(Errno::INVAL), 0));
            };
            rest.copy_to(place);
        }
        let body = request.get(wire::IN_HEADER_BYTES..).unwrap_or_default();
        let mut call = Call {
            header,
            body: Cursor::new(body),
            asked,
            room,
            reply,
            xattr,
            umask,
        };
        let outcome = self.carry_out(&mut call);
        let unique = header.unique;
        match outcome {
            _ if header.is_silent() => Answer::Written(0),
            Ok(Outcome::Silent) => Answer::Written(0),
            Ok(Outcome::Replied) => {
                let bytes = call.reply.finish(unique, None, 0);
                match bytes.len() <= room.len() {
                    true => put(room, bytes),
                    false => put(room, call.reply.finish(unique, Some(Errno::RANGE), 0)),
                }
            }
            Ok(Outcome::InPlace(count)) => {
                let bytes = call.reply.finish(unique, None, count);
                let whole = bytes.len().saturating_add(count);
                put(room, bytes);
                Answer::Written(u32::try_from(whole).unwrap_or_default())
            }
            Ok(Outcome::Waits(holder, asked)) => Answer::Waits(Waiting {
                unique,
                holder,
                asked,
            }),
            Err(error) => put(room, call.reply.finish(unique, Some(error), 0)),
        }
    }

    /// Tries again for a request that waits; none if it still does.
    pub(super) fn retry(
        &self,
        waiting: &Waiting,
        room: VolatileSlice<'_>,
        scratch: &mut Scratch,
    ) -> Option<u32> {
        let error = match self.locks.set(&self.tree, waiting.holder, waiting.asked) {
            Err(Errno::AGAIN) => return None,
            result => result.err(),
        };
        Some(self.end_wait(waiting, error, room, scratch))
    }

    /// Answers a request that waited.
    pub(super) fn end_wait(
        &self,
        waiting: &Waiting,
        error: Option<Errno>,
        room: VolatileSlice<'_>,
        scratch: &mut Scratch,
    ) -> u32 {
        scratch.reply.clear();
        match put(room, scratch.reply.finish(waiting.unique, error, 0)) {
            Answer::Written(count) => count,
            Answer::Waits(_) => 0,
        }
    }

    fn carry_out(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let node = call.header.node;
        match call.header.opcode {
            opcode::INIT => self.init(call),
            opcode::DESTROY => {
                self.locks.clear();
                self.tree.reset();
                Ok(Outcome::Replied)
            }
            opcode::LOOKUP => self.lookup(call),
            opcode::FORGET => {
                self.tree.forget(node, call.body.u64()?);
                Ok(Outcome::Silent)
            }
            opcode::BATCH_FORGET => self.forget_many(call),
            opcode::INTERRUPT => Ok(Outcome::Silent),
            opcode::GETATTR => self.get_attributes(call),
            opcode::SETATTR => self.set_attributes(call),
            opcode::READLINK => {
                call.reply.raw(self.tree.read_link(node)?.as_bytes());
                Ok(Outcome::Replied)
            }
            opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::LINK => self.make(call),
            opcode::UNLINK => self.unlink(call, AtFlags::empty()),
            opcode::RMDIR => self.unlink(call, AtFlags::REMOVEDIR),
            opcode::RENAME | opcode::RENAME2 => self.rename(call),
            opcode::OPEN => self.open(call),
            opcode::OPENDIR => self.open_directory(call),
            opcode::CREATE | opcode::TMPFILE => self.create(call),
            opcode::READ => self.read(call),
            opcode::WRITE => self.write(call),
            opcode::STATFS => self.statistics(call),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(call),
            opcode::FLUSH => self.flush(call),
            opcode::FSYNC | opcode::FSYNCDIR => self.sync(call),
            opcode::SYNCFS => self.sync_all(call),
            opcode::SETXATTR | opcode::REMOVEXATTR => self.change_xattr(call),
            opcode::GETXATTR | opcode::LISTXATTR => self.get_xattr(call),
            opcode::READDIR => self.read_directory(call, false),
            opcode::READDIRPLUS => self.read_directory(call, true),
            opcode::GETLK | opcode::SETLK | opcode::SETLKW => self.lock(call),
            opcode::FALLOCATE => self.allocate(call),
            opcode::LSEEK => self.seek(call),
            opcode::COPY_FILE_RANGE => self.copy_range(call),
            _ => Err(Errno::NOSYS),
        }
    }

    /// `struct fuse_init_in`, `struct fuse_init_out`.
    fn init(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (major, minor) = (call.body.u32()?, call.body.u32()?);
        let (readahead, offered) = (call.body.u32()?, call.body.u32()?);
        if major < wire::MAJOR || major == wire::MAJOR && minor < wire::LOWEST_MINOR {
            return Err(Errno::PROTO);
        }
        // A mount anew: what the last one knew is no more.
        self.locks.clear();
        self.tree.reset();
        let mut wanted = feature::ASYNC_READ
            | feature::POSIX_LOCKS
            | feature::FLOCK_LOCKS
            | feature::ATOMIC_O_TRUNC
            | feature::BIG_WRITES
            | feature::DONT_MASK
            | feature::AUTO_INVAL_DATA
            | feature::DO_READDIRPLUS
            | feature::READDIRPLUS_AUTO
            | feature::ASYNC_DIO
            | feature::PARALLEL_DIROPS
            | feature::MAX_PAGES
            | feature::CACHE_SYMLINKS
            | feature::HANDLE_KILLPRIV_V2;
        if self.tree.ownership() == Ownership::Same {
            // Their numbers mean nothing to a guest whose numbers are others.
            wanted |= feature::POSIX_ACL;
        }
        let reply = &mut call.reply;
        reply.u32(wire::MAJOR);
        reply.u32(wire::MINOR);
        reply.u32(readahead.min(MAX_READAHEAD_BYTES));
        reply.u32(offered & wanted);
        reply.u16(MAX_BACKGROUND);
        reply.u16(CONGESTION);
        reply.u32(wire::MAX_DATA_BYTES);
        const TIME_GRANULARITY_NS: u32 = 1;
        reply.u32(TIME_GRANULARITY_NS);
        reply.u16(MAX_PAGES);
        reply.u16(0);
        const REST_BYTES: usize = 32;
        reply.zeros(REST_BYTES);
        Ok(Outcome::Replied)
    }

    fn lookup(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        call.check_room(wire::ENTRY_OUT_BYTES)?;
        let name = call.body.name()?;
        match self.tree.lookup(call.header.node, name) {
            Ok(entry) => call.reply.entry_out(&entry),
            Err(Errno::NOENT) => {
                // The node 0 says that there is none, and for how long.
                let lasts = self.tree.absence_lasts(call.header.node);
                if lasts.is_zero() {
                    return Err(Errno::NOENT);
                }
                call.reply.u64(0);
                call.reply.u64(0);
                call.reply.u64(lasts.as_secs());
                call.reply.u64(0);
                call.reply.u32(lasts.subsec_nanos());
                let rest = wire::ENTRY_OUT_BYTES.saturating_sub(call.reply.body_bytes());
                call.reply.zeros(rest);
            }
            Err(error) => return Err(error),
        }
        Ok(Outcome::Replied)
    }

    fn forget_many(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let count = call.body.u32()?;
        call.body.u32()?;
        for _ in 0..count {
            let (node, lookups) = (call.body.u64()?, call.body.u64()?);
            self.tree.forget(node, lookups);
        }
        Ok(Outcome::Silent)
    }

    fn get_attributes(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let flags = call.body.u32()?;
        call.body.u32()?;
        let handle = call.body.u64()?;
        let handle = (flags & wire::GETATTR_HANDLE != 0).then_some(handle);
        let (attributes, lasts) = self.tree.attributes(call.header.node, handle)?;
        call.reply.attr_out(&attributes, lasts);
        Ok(Outcome::Replied)
    }

    /// `struct fuse_setattr_in`.
    fn set_attributes(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let body = &mut call.body;
        let asked = body.u32()?;
        body.u32()?;
        let handle = body.u64()?;
        let size_bytes = body.u64()?;
        let _owner = body.u64()?;
        let (accessed, modified, _changed) = (body.u64()?, body.u64()?, body.u64()?);
        let (accessed_ns, modified_ns, _changed_ns) = (body.u32()?, body.u32()?, body.u32()?);
        let mode = body.u32()?;
        body.u32()?;
        let (uid, gid) = (body.u32()?, body.u32()?);
        let is = |flag: u32| asked & flag != 0;
        let moment = |set: u32, now: u32, at: Moment| match (is(now), is(set)) {
            (true, _) => Some(Moment::Now),
            (false, true) => Some(at),
            (false, false) => None,
        };
        let changes = Changes {
            mode: is(valid::MODE).then_some(mode),
            uid: is(valid::UID).then_some(uid),
            gid: is(valid::GID).then_some(gid),
            size_bytes: is(valid::SIZE).then_some(size_bytes),
            accessed: moment(
                valid::ATIME,
                valid::ATIME_NOW,
                Moment::At(accessed, accessed_ns),
            ),
            modified: moment(
                valid::MTIME,
                valid::MTIME_NOW,
                Moment::At(modified, modified_ns),
            ),
            kills_set_id: is(valid::KILL_SUIDGID),
        };
        let handle = is(valid::HANDLE).then_some(handle);
        let (attributes, lasts) = self
            .tree
            .set_attributes(call.header.node, handle, &changes)?;
        call.reply.attr_out(&attributes, lasts);
        Ok(Outcome::Replied)
    }

    fn make(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        call.check_room(wire::ENTRY_OUT_BYTES)?;
        let parent = call.header.node;
        let entry = match call.header.opcode {
            opcode::SYMLINK => {
                let name = call.body.name()?;
                let target = call.body.text()?;
                self.tree
                    .make_symlink(parent, name, target, &call.caller(0))?
            }
            opcode::MKNOD => {
                let (mode, _device) = (call.body.u32()?, call.body.u32()?);
                let umask = call.body.u32()?;
                call.body.u32()?;
                let name = call.body.name()?;
                self.tree
                    .make_node(parent, name, mode, &call.caller(umask))?
            }
            opcode::MKDIR => {
                let (mode, umask) = (call.body.u32()?, call.body.u32()?);
                let name = call.body.name()?;
                self.tree
                    .make_directory(parent, name, mode, &call.caller(umask))?
            }
            _ => {
                let node = call.body.u64()?;
                let name = call.body.name()?;
                self.tree.link(node, parent, name)?
            }
        };
        call.reply.entry_out(&entry);
        Ok(Outcome::Replied)
    }

    fn unlink(&self, call: &mut Call<'_>, flags: AtFlags) -> Result<Outcome, Errno> {
        let name = call.body.name()?;
        self.tree.unlink(call.header.node, name, flags)?;
        Ok(Outcome::Replied)
    }

    fn rename(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let to = call.body.u64()?;
        let flags = match call.header.opcode {
            opcode::RENAME2 => {
                let flags = call.body.u32()?;
                call.body.u32()?;
                flags
            }
            _ => 0,
        };
        let old = call.body.name()?;
        let new = call.body.name()?;
        self.tree
            .rename((call.header.node, old), (to, new), flags)?;
        Ok(Outcome::Replied)
    }

    fn open(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        call.check_room(wire::OPEN_OUT_BYTES)?;
        let (flags, more) = (call.body.u32()?, call.body.u32()?);
        let kills = more & wire::OPEN_KILL_SUIDGID != 0;
        let (handle, node) = self.tree.open(call.header.node, flags, kills)?;
        call.reply.open_out(handle, self.open_flags(&node));
        Ok(Outcome::Replied)
    }

    fn open_flags(&self, node: &Node) -> u32 {
        match self.tree.cache(node) {
            CacheMode::None => OPEN_DIRECT_IO,
            CacheMode::Auto => 0,
            CacheMode::Always => OPEN_KEEP_CACHE,
        }
    }

    fn open_directory(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        call.check_room(wire::OPEN_OUT_BYTES)?;
        let (handle, node) = self.tree.open_directory(call.header.node)?;
        let cache = node.map(|node: Arc<Node>| self.tree.cache(&node));
        let flags = match cache {
            Some(CacheMode::Always) => OPEN_CACHE_DIR | OPEN_KEEP_CACHE,
            _ => 0,
        };
        call.reply.open_out(handle, flags);
        Ok(Outcome::Replied)
    }

    /// `struct fuse_create_in`.
    fn create(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        call.check_room(wire::ENTRY_OUT_BYTES + wire::OPEN_OUT_BYTES)?;
        let (flags, mode) = (call.body.u32()?, call.body.u32()?);
        let (umask, _more) = (call.body.u32()?, call.body.u32()?);
        let parent = call.header.node;
        let caller = call.caller(umask);
        let (entry, handle, node) = match call.header.opcode {
            opcode::TMPFILE => self.tree.create_nameless(parent, flags, mode, &caller)?,
            _ => {
                let name = call.body.name()?;
                self.tree.create(parent, name, flags, mode, &caller)?
            }
        };
        call.reply.entry_out(&entry);
        call.reply.open_out(handle, self.open_flags(&node));
        Ok(Outcome::Replied)
    }

    /// `struct fuse_read_in`: handle, offset, size.
    fn read(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (handle, offset) = (call.body.u64()?, call.body.u64()?);
        let size = usize::try_from(call.body.u32()?).map_err(|_| Errno::INVAL)?;
        let handle = self.tree.handle(handle, call.header.node)?;
        let room = call
            .room
            .offset(wire::OUT_HEADER_BYTES)
            .map_err(|_| Errno::INVAL)?;
        let place = room.subslice(0, size).map_err(|_| Errno::INVAL)?;
        sys::read_at(&handle.file, &place, offset).map(Outcome::InPlace)
    }

    /// `struct fuse_write_in`: handle, offset, size, flags, owner of locks, flags of open(2). The data stands behind it.
    fn write(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (handle, offset) = (call.body.u64()?, call.body.u64()?);
        let size = usize::try_from(call.body.u32()?).map_err(|_| Errno::INVAL)?;
        let flags = call.body.u32()?;
        let _lock_owner = call.body.u64()?;
        let open_flags = call.body.u32()?;
        let handle = self.tree.handle(handle, call.header.node)?;
        if handle.read_only {
            return Err(Errno::BADF);
        }
        let data = call
            .asked
            .offset(wire::IN_HEADER_BYTES + wire::WRITE_IN_BYTES)
            .and_then(|data| data.subslice(0, size))
            .map_err(|_| Errno::INVAL)?;
        // What is executed is never half of it new and still set-id.
        tree::kill_set_id_if(flags & wire::WRITE_KILL_SUIDGID != 0, &handle.file)?;
        let appends = open_flags & OFlags::APPEND.bits() != 0 && flags & wire::WRITE_CACHE == 0;
        let written = match appends {
            true => sys::append(&handle.file, &data)?,
            false => sys::write_at(&handle.file, &data, offset)?,
        };
        call.reply
            .write_out(u32::try_from(written).unwrap_or_default());
        Ok(Outcome::Replied)
    }

    /// `struct fuse_kstatfs`.
    fn statistics(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let node = match call.header.node {
            tree::ROOT => return self.empty_statistics(call),
            node => self.tree.node(node)?,
        };
        let statistics = rustix::fs::fstatvfs(&node.file)?;
        for word in [
            statistics.f_blocks,
            statistics.f_bfree,
            statistics.f_bavail,
            statistics.f_files,
            statistics.f_ffree,
        ] {
            call.reply.u64(word);
        }
        for word in [
            statistics.f_bsize,
            statistics.f_namemax,
            statistics.f_frsize,
        ] {
            call.reply.u32(u32::try_from(word).unwrap_or(u32::MAX));
        }
        const REST_BYTES: usize = 28;
        call.reply.zeros(REST_BYTES);
        Ok(Outcome::Replied)
    }

    fn empty_statistics(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        const KSTATFS_BYTES: usize = 80;
        call.reply.zeros(KSTATFS_BYTES);
        Ok(Outcome::Replied)
    }

    /// `struct fuse_release_in`.
    fn release(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let handle = call.body.u64()?;
        let (_flags, more) = (call.body.u32()?, call.body.u32()?);
        let owner = call.body.u64()?;
        let node = call.header.node;
        if more & wire::RELEASE_FLOCK_UNLOCK != 0 {
            self.locks.release(Holder {
                node,
                owner,
                is_flock: true,
            });
        }
        self.tree.release(handle, node)?;
        Ok(Outcome::Replied)
    }

    /// `struct fuse_flush_in`: a process has closed one of its descriptors, and has no locks of fcntl(2) on the file any more.
    fn flush(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let handle = call.body.u64()?;
        call.body.u64()?;
        let owner = call.body.u64()?;
        let node = call.header.node;
        self.tree.handle(handle, node)?;
        self.locks.release(Holder {
            node,
            owner,
            is_flock: false,
        });
        Ok(Outcome::Replied)
    }

    fn sync(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (handle, flags) = (call.body.u64()?, call.body.u32()?);
        let handle = self.tree.handle(handle, call.header.node)?;
        match flags & wire::FSYNC_DATA != 0 {
            _ if handle.node == tree::ROOT => {}
            true => rustix::fs::fdatasync(&handle.file)?,
            false => rustix::fs::fsync(&handle.file)?,
        }
        Ok(Outcome::Replied)
    }

    fn sync_all(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        if call.header.node != tree::ROOT {
            let file = self.tree.open_for_locks(call.header.node)?;
            rustix::fs::syncfs(&file)?;
        }
        Ok(Outcome::Replied)
    }

    /// `struct fuse_setxattr_in` in its short form, or a name alone.
    fn change_xattr(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let node = self.tree.node(call.header.node)?;
        self.tree.check_writable(&node)?;
        if call.header.opcode == opcode::REMOVEXATTR {
            let name = call.body.text()?;
            check_xattr(name)?;
            rustix::fs::removexattr(node.name(), name)?;
            return Ok(Outcome::Replied);
        }
        let (size, flags) = (call.body.u32()?, call.body.u32()?);
        let name = call.body.text()?;
        check_xattr(name)?;
        let value = call
            .body
            .bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        let flags = rustix::fs::XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::setxattr(node.name(), name, value, flags)?;
        Ok(Outcome::Replied)
    }

    /// `struct fuse_getxattr_in`: how much room there is, or 0 to ask for the length.
    fn get_xattr(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let size = call.body.u32()?.min(MAX_XATTR_BYTES);
        call.body.u32()?;
        let node = self.tree.node(call.header.node)?;
        let room = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        call.xattr.resize(room, 0);
        let buffer = call.xattr.as_mut_slice();
        let length = match call.header.opcode {
            opcode::LISTXATTR => rustix::fs::listxattr(node.name(), buffer)?,
            _ => {
                let name = call.body.text()?;
                rustix::fs::getxattr(node.name(), name, buffer)?
            }
        };
        match size {
            0 => call
                .reply
                .write_out(u32::try_from(length).unwrap_or(u32::MAX)),
            _ => call.reply.raw(call.xattr.get(..length).unwrap_or_default()),
        }
        Ok(Outcome::Replied)
    }

    /// `struct fuse_read_in`, of a directory.
    fn read_directory(&self, call: &mut Call<'_>, with_attributes: bool) -> Result<Outcome, Errno> {
        let node = call.header.node;
        let (handle, offset) = (call.body.u64()?, call.body.u64()?);
        let size = usize::try_from(call.body.u32()?).map_err(|_| Errno::INVAL)?;
        let room = call.room.len().saturating_sub(wire::OUT_HEADER_BYTES);
        let room = room.min(size);
        /// An entry with attributes is about so many times as long here as in getdents64(2).
        const LONGER: usize = 4;
        let bytes = if with_attributes { room / LONGER } else { room };
        let reply = &mut call.reply;
        self.tree
            .read_directory(node, handle, offset, bytes, |raw| {
                let dirent = Dirent {
                    inode: raw.inode,
                    next_offset: raw.next_offset,
                    kind: raw.kind,
                    name: &raw.name,
                };
                let extra = if with_attributes {
                    wire::ENTRY_OUT_BYTES
                } else {
                    0
                };
                let needed = dirent.wire_bytes().saturating_add(extra);
                if reply.body_bytes().saturating_add(needed) > room {
                    return false;
                }
                if with_attributes {
                    match self.tree.listed(node, &raw.name) {
                        Some(entry) => {
                            reply.entry_out(&entry);
                            reply.dirent(&Dirent {
                                inode: entry.attributes.inode,
                                ..dirent
                            });
                            return true;
                        }
                        // The guest looks it up itself if it wants to know more.
                        None => reply.zeros(wire::ENTRY_OUT_BYTES),
                    }
                }
                reply.dirent(&dirent);
                true
            })?;
        Ok(Outcome::Replied)
    }

    /// `struct fuse_lk_in`.
    fn lock(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let body = &mut call.body;
        let (handle, owner) = (body.u64()?, body.u64()?);
        let (start, end) = (body.u64()?, body.u64()?);
        let (kind, _pid) = (body.u32()?, body.u32()?);
        let flags = body.u32()?;
        let node = call.header.node;
        self.tree.handle(handle, node)?;
        let holder = Holder {
            node,
            owner,
            is_flock: flags & wire::LK_FLOCK != 0,
        };
        let asked = Asked { start, end, kind };
        if call.header.opcode == opcode::GETLK {
            let found = self.locks.test(&self.tree, holder, asked)?;
            call.reply.u64(found.start);
            call.reply.u64(found.end);
            call.reply.u32(found.kind);
            const NOBODY_KNOWN: u32 = 0;
            call.reply.u32(NOBODY_KNOWN);
            return Ok(Outcome::Replied);
        }
        match self.locks.set(&self.tree, holder, asked) {
            Ok(()) => Ok(Outcome::Replied),
            Err(Errno::AGAIN) if call.header.opcode == opcode::SETLKW => {
                Ok(Outcome::Waits(holder, asked))
            }
            Err(error) => Err(error),
        }
    }

    /// `struct fuse_fallocate_in`.
    fn allocate(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (handle, offset) = (call.body.u64()?, call.body.u64()?);
        let (length, mode) = (call.body.u64()?, call.body.u32()?);
        let handle = self.tree.handle(handle, call.header.node)?;
        if handle.read_only {
            return Err(Errno::BADF);
        }
        let mode = rustix::fs::FallocateFlags::from_bits_retain(mode);
        rustix::fs::fallocate(&handle.file, mode, offset, length)?;
        Ok(Outcome::Replied)
    }

    /// `struct fuse_lseek_in`: where data or a hole begins.
    fn seek(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let (handle, offset) = (call.body.u64()?, call.body.u64()?);
        let whence = i32::try_from(call.body.u32()?).map_err(|_| Errno::INVAL)?;
        let handle = self.tree.handle(handle, call.header.node)?;
        let from = match whence {
            libc::SEEK_DATA => rustix::fs::SeekFrom::Data(offset),
            libc::SEEK_HOLE => rustix::fs::SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        // Reads and writes name their places: nobody goes by the position of the description.
        call.reply.u64(rustix::fs::seek(&handle.file, from)?);
        Ok(Outcome::Replied)
    }

    /// `struct fuse_copy_file_range_in`.
    fn copy_range(&self, call: &mut Call<'_>) -> Result<Outcome, Errno> {
        let body = &mut call.body;
        let (from, mut from_offset) = (body.u64()?, body.u64()?);
        let (to_node, to, mut to_offset) = (body.u64()?, body.u64()?, body.u64()?);
        let length = body.u64()?.min(u64::from(wire::MAX_DATA_BYTES) << 6);
        let from = self.tree.handle(from, call.header.node)?;
        let to = self.tree.handle(to, to_node)?;
        if to.read_only {
            return Err(Errno::BADF);
        }
        let copied = rustix::fs::copy_file_range(
            &from.file,
            Some(&mut from_offset),
            &to.file,
            Some(&mut to_offset),
            usize::try_from(length).map_err(|_| Errno::INVAL)?,
        )?;
        call.reply
            .write_out(u32::try_from(copied).unwrap_or(u32::MAX));
        Ok(Outcome::Replied)
    }
}

impl Call<'_> {
    /// Refuses what the guest could not be told of: it would never let go of what it does not know.
    fn check_room(&self, body_bytes: usize) -> Result<(), Errno> {
        let needed = wire::OUT_HEADER_BYTES.saturating_add(body_bytes);
        match self.room.len() >= needed {
            true => Ok(()),
            false => Err(Errno::RANGE),
        }
    }

    /// Who asks. The thread takes over the umask, which counts where a directory has no default ACL.
    fn caller(&mut self, umask: u32) -> Caller {
        const BITS: u32 = 0o777;
        let umask = umask & BITS;
        if umask != *self.umask {
            rustix::process::umask(rustix::fs::Mode::from_bits_retain(umask));
            *self.umask = umask;
        }
        Caller {
            uid: self.header.uid,
            gid: self.header.gid,
        }
    }
}

/// What may be set: what users set, capabilities of programs, and ACLs.
fn check_xattr(name: &[u8]) -> Result<(), Errno> {
    const EXACT: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    match name.starts_with(b"user.") || EXACT.contains(&name) {
        true => Ok(()),
        false => Err(Errno::OPNOTSUPP),
    }
}

/// Copies a reply to its place; nothing if it does not fit, which nobody who asks so waits for.
fn put(room: VolatileSlice<'_>, reply: &[u8]) -> Answer {
    if reply.len() > room.len() {
        return Answer::Written(0);
    }
    room.copy_from(reply);
    Answer::Written(u32::try_from(reply.len()).unwrap_or_default())
}
