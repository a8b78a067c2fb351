//! Waiting for a directory to change: inotify(7), so that a reader that follows sleeps until there is something to read.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::report::Help;

/// Some hundred events at once; those of the same kind are one anyway.
const EVENT_BYTES: usize = 16 << 10;

/// A directory cannot be watched.
#[derive(Debug, Error)]
#[error("cannot watch {} for changes", path.display())]
pub struct WatchError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Help for WatchError {
    fn help(&self) -> Option<String> {
        let is_limit = self.source.raw_os_error() == Some(Errno::MFILE.raw_os_error());
        is_limit.then(|| "raise fs.inotify.max_user_instances, or follow less at once".to_owned())
    }
}

/// Wakes up when something changes in a directory.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    path: PathBuf,
}

impl Watch {
    /// Begins to watch. What changes from here on is noticed.
    ///
    /// # Errors
    ///
    /// If the host gives no descriptor, or the directory is not there.
    pub fn new(path: &Path) -> Result<Self, WatchError> {
        let failed = |error: Errno| WatchError {
            path: path.to_owned(),
            source: error.into(),
        };
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        // What is written, renamed and made; and a lock that is let go of when its file is closed.
        let changes = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&inotify, path, changes).map_err(failed)?;
        Ok(Self {
            inotify,
            path: path.to_owned(),
        })
    }

    /// Waits until something has changed since the last time, at most for `limit` if there is one, and forgets about it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn wait(&self, limit: Option<Duration>) -> Result<(), WatchError> {
        self.wait_and_see(limit, "").map(drop)
    }

    /// Waits as [`Self::wait`] does, and says whether `name` was closed by somebody who may have written to it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn wait_and_see(&self, limit: Option<Duration>, name: &str) -> Result<bool, WatchError> {
        let failed = |error: Errno| WatchError {
            path: self.path.clone(),
            source: error.into(),
        };
        let timeout = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(
            &mut [PollFd::new(&self.inotify, PollFlags::IN)],
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
        let mut space = [MaybeUninit::uninit(); EVENT_BYTES];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let mut is_closed = false;
        loop {
            match events.next() {
                Ok(event) => {
                    let is_named = event
                        .file_name()
                        .is_some_and(|it| it.to_bytes() == name.as_bytes());
                    is_closed |=
                        is_named && event.events().contains(inotify::ReadFlags::CLOSE_WRITE);
                }
                Err(Errno::AGAIN) => return Ok(is_closed),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }
}
