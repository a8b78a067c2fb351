//! Locks of the guest's processes, held on the host: so they are seen by all of the machine, by other machines and by the host.
//!
//! Each owner that the guest's kernel names has a description of the file of its own (open(2)). Locks of fcntl(2) are the
//! description's (`F_OFD_SETLK`), those of flock(2) are so anyway; what one owner has is in the way of every other, wherever that is.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::sys::{self, LockCommand, RangeLock};
use super::tree::Tree;

/// `OFFSET_MAX` (include/linux/fs.h): the end of a lock that has none.
const NO_END: u64 = i64::MAX as u64;
/// Lock types as they are said: those of x86-64.
const READ: u32 = 0;
const WRITE: u32 = 1;
const UNLOCK: u32 = 2;

/// Who has a lock, on what, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holder {
    pub(super) node: u64,
    pub(super) owner: u64,
    pub(super) is_flock: bool,
}

/// A lock that is asked for: `struct fuse_lk_in`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) start: u64,
    /// The last byte.
    pub(super) end: u64,
    pub(super) kind: u32,
}

impl Asked {
    fn range(&self) -> Result<RangeLock, Errno> {
        let start = i64::try_from(self.start).map_err(|_| Errno::INVAL)?;
        let length = match self.end {
            end if end >= NO_END => 0,
            end => {
                let end = i64::try_from(end).map_err(|_| Errno::INVAL)?;
                let length = end.checked_sub(start).and_then(|last| last.checked_add(1));
                length.filter(|length| *length > 0).ok_or(Errno::INVAL)?
            }
        };
        let kind = match self.kind {
            READ => libc::F_RDLCK,
            WRITE => libc::F_WRLCK,
            UNLOCK => libc::F_UNLCK,
            _ => return Err(Errno::INVAL),
        };
        let kind = i16::try_from(kind).map_err(|_| Errno::INVAL)?;
        Ok(RangeLock {
            kind,
            start,
            length,
        })
    }

    fn is_all(&self) -> bool {
        self.start == 0 && self.end >= NO_END
    }

    fn is_unlock(&self) -> bool {
        self.kind == UNLOCK
    }
}

/// The descriptions through which locks are held.
#[derive(Debug, Default)]
pub(super) struct Locks {
    held: Mutex<HashMap<Holder, OwnedFd>>,
}

impl Locks {
    fn held(&self) -> MutexGuard<'_, HashMap<Holder, OwnedFd>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets a lock or takes one away, without waiting: `EAGAIN` if somebody is in the way.
    pub(super) fn set(&self, tree: &Tree, holder: Holder, asked: Asked) -> Result<(), Errno> {
        let range = asked.range()?;
        let mut held = self.held();
        let file = match held.remove(&holder) {
            Some(file) => file,
            None if asked.is_unlock() => return Ok(()),
            None => tree.open_for_locks(holder.node)?,
        };
        let result = match holder.is_flock {
            false => sys::lock_range(&file, LockCommand::Set, range).map(drop),
            true => rustix::fs::flock(&file, flock_operation(asked.kind)?),
        };
        let is_free = asked.is_unlock() && (holder.is_flock || asked.is_all());
        if !is_free {
            held.insert(holder, file);
        }
        match result {
            // POSIX lets it be either, and FUSE knows one.
            Err(Errno::ACCESS) => Err(Errno::AGAIN),
            result => result,
        }
    }

    /// Says what is in the way of a lock; an unlocked range if nothing is.
    pub(super) fn test(&self, tree: &Tree, holder: Holder, asked: Asked) -> Result<Asked, Errno> {
        let range = asked.range()?;
        let held = self.held();
        let found = match held.get(&holder) {
            Some(file) => sys::lock_range(file, LockCommand::Test, range)?,
            None => {
                let file = tree.open_for_locks(holder.node)?;
                sys::lock_range(&file, LockCommand::Test, range)?
            }
        };
        let start = u64::try_from(found.start).map_err(|_| Errno::IO)?;
        let length = u64::try_from(found.length).map_err(|_| Errno::IO)?;
        Ok(Asked {
            start,
            end: match length {
                0 => NO_END,
                length => start.saturating_add(length).saturating_sub(1),
            },
            kind: match i32::from(found.kind) {
                libc::F_RDLCK => READ,
                libc::F_WRLCK => WRITE,
                _ => UNLOCK,
            },
        })
    }

    /// Takes away all that an owner has on a file; whether that was anything.
    pub(super) fn release(&self, holder: Holder) -> bool {
        // Closing the description does it.
        self.held().remove(&holder).is_some()
    }

    /// Takes everything away.
    pub(super) fn clear(&self) {
        self.held().clear();
    }
}

fn flock_operation(kind: u32) -> Result<FlockOperation, Errno> {
    match kind {
        READ => Ok(FlockOperation::NonBlockingLockShared),
        WRITE => Ok(FlockOperation::NonBlockingLockExclusive),
        UNLOCK => Ok(FlockOperation::NonBlockingUnlock),
        _ => Err(Errno::INVAL),
    }
}
