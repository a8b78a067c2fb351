//! Directories and files of the host in a machine: the process that serves them, one for each machine that has any.
//!
//! ```text
//!   guest ── virtqueue ── VM process ── slots and a socket ── server ── files
//! ```
//!
//! The server is forked by the monitor like the VM process, knows the shares and nothing else, and enters its [jail] before the guest
//! can speak to it. The VM process moves requests and replies between the guest and memory that it shares with the server
//! ([`devices::virtio::fs`]), so the server sees no memory of the guest. It speaks FUSE ([wire]) and has one [tree] with one entry for
//! each share: one device and one session serve them all.
//!
//! FUSE and what it comes to on the host are written here, with no library beneath. `fuse-backend-rs` resolves `..` for the guest, makes
//! hard links for root only, has neither locks nor files without a name, and wants a second version of the libraries of the machine's
//! memory; `virtiofsd` answers to vhost-user, which maps the guest's memory, refuses locks, and wants two libraries of C.

mod jail;
mod locks;
mod session;
mod sys;
mod tree;
mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use devices::virtio::fs::channel::{Channel, Reply, Request, SLOTS, Slots};
use rustix::io::Errno;
use rustix::process::{Signal, kill_process, set_parent_process_death_signal, setsid};
use thiserror::Error;

use self::session::{Answer, Scratch, Session, Waiting};
use self::tree::Tree;
pub use self::tree::{Ownership, Share};
use crate::process;

/// Under what name the guest mounts the tree of all shares.
pub const TAG: &str = "shares";

/// How many requests of the socket are carried out at once. One more thread is for the letter box.
const WORKERS: usize = 4;
/// How many requests may wait for locks: the rest of the slots is for those that let go of them.
const MOST_WAITING: usize = SLOTS as usize / 2;
/// How soon a lock is seen that somebody outside of the machine has let go of.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// A request longer than this is answered at once, whatever else its message holds.
const LARGE_BYTES: u32 = 64 << 10;
/// What a service manager sends to all processes of a machine when it is to end: the monitor sees to that.
const FOR_THE_MONITOR: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// A server that could not be started.
#[derive(Debug, Error)]
pub enum ShareError {
    /// The host gives no memory or no socket.
    #[error("cannot make a way to the server of the shared directories")]
    Channel(#[source] io::Error),
    /// The host gives no process.
    #[error("cannot start the server of the shared directories")]
    Fork(#[source] io::Error),
}

impl crate::report::Help for ShareError {}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct ShareProcess {
    child: Option<process::Child>,
}

impl ShareProcess {
    /// Forks the server of these shares, and returns the device's end of the way to it. Call it before the calling process has made a
    /// thread.
    ///
    /// # Errors
    ///
    /// [`ShareError`].
    pub fn spawn(shares: Vec<Share>) -> Result<(Self, Channel), ShareError> {
        let (device, server) = Channel::pair().map_err(ShareError::Channel)?;
        let child = process::fork(|| match live(shares, server) {
            Ok(()) => 0,
            Err(error) => {
                tracing::error!(%error, "the server of shared directories ends");
                1
            }
        });
        let child = Some(child.map_err(ShareError::Fork)?);
        Ok((Self { child }, device))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        let child = self.child.as_ref()?;
        Some(child.pid().as_raw_nonzero().get().unsigned_abs())
    }
}

impl Drop for ShareProcess {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            // It is gone, or it goes now; what it wrote is the host's kernel's.
            let _gone = kill_process(child.pid(), Signal::KILL);
            if let Err(error) = child.wait() {
                tracing::debug!(%error, "the server of shared directories cannot be waited for");
            }
        }
    }
}

/// The life of the server. Returns when it cannot begin; it ends with the device.
fn live(mut shares: Vec<Share>, channel: Channel) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    setsid()?;
    process::block_only(&FOR_THE_MONITOR)?;
    let roots = shares.iter().map(|share| share.root.as_fd());
    let kept: Vec<_> = roots.chain(channel.descriptors()).collect();
    process::close_all_but(&kept)?;
    let slots = channel.map()?;
    let ownership = Ownership::of_this_process();
    process::standard_streams_to_null()?;
    let descriptors = jail::enter_process(&mut shares, ownership)?;
    let server = Arc::new(Server {
        session: Session::new(Tree::new(shares, ownership)?),
        channel,
        slots,
        descriptors,
        parked: Mutex::default(),
        wakes: Condvar::new(),
        waiting: AtomicUsize::new(0),
        jailed: Barrier::new(WORKERS + 2),
    });
    let workers = [Server::answer_requests as fn(&Server) -> io::Result<()>; WORKERS];
    for way in workers.into_iter().chain([Server::answer_letters as _]) {
        let server = Arc::clone(&server);
        std::thread::Builder::new()
            .name("share".to_owned())
            .spawn(move || server.work(way))?;
    }
    server.wait_for_locks()
}

/// What the threads of the server have in common.
#[derive(Debug)]
struct Server {
    session: Session,
    channel: Channel,
    slots: Slots,
    descriptors: OwnedFd,
    /// Requests that wait for locks.
    parked: Mutex<Vec<(Request, Waiting)>>,
    wakes: Condvar,
    /// How many those are.
    waiting: AtomicUsize,
    /// Where its threads wait for each other.
    jailed: Barrier,
}

impl Server {
    /// Answers requests that come by one way until the device is gone.
    fn work(&self, answer: impl Fn(&Self) -> io::Result<()>) {
        let ended = self.enter_jail().and_then(|()| answer(self));
        // All threads: what one of them cannot do, none should go on with.
        process::exit_now(i32::from(ended.is_err()));
    }

    /// Nothing is answered before all threads are in.
    fn enter_jail(&self) -> io::Result<()> {
        jail::enter_thread(&self.descriptors)?;
        self.jailed.wait();
        Ok(())
    }

    fn answer_requests(&self) -> io::Result<()> {
        let mut scratch = Scratch::default();
        let mut requests = Vec::new();
        let mut replies = Vec::new();
        loop {
            if self.channel.await_requests(&mut requests).is_err() {
                return Ok(());
            }
            for request in &requests {
                let reply = self.answer(request, &mut scratch);
                replies.extend(reply.and_then(|reply| self.give(request, reply)));
                let is_large = request.asked_bytes.max(request.room_bytes) > LARGE_BYTES;
                if is_large && !self.send(&mut replies) {
                    return Ok(());
                }
            }
            if !self.send(&mut replies) {
                return Ok(());
            }
            self.wake_waiting();
        }
    }

    /// The room for the next is there before the last reply: who has that asks again at once.
    fn answer_letters(&self) -> io::Result<()> {
        let mut scratch = Scratch::default();
        let mut requests = Vec::new();
        let mut replies = Vec::new();
        loop {
            if self.slots.await_letter(&mut requests).is_err() {
                return Ok(());
            }
            let Some((last, before)) = requests.split_last() else {
                return Ok(());
            };
            for request in before {
                let reply = self.answer(request, &mut scratch);
                replies.extend(reply.and_then(|reply| self.give(request, reply)));
            }
            let reply = self.answer(last, &mut scratch);
            self.slots.empty_box();
            replies.extend(reply.and_then(|reply| self.give(last, reply)));
            if !self.send(&mut replies) {
                return Ok(());
            }
            self.wake_waiting();
        }
    }

    /// Who waits for a lock tries again.
    fn wake_waiting(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.wakes.notify_one();
        }
    }

    /// Gives a reply to who awaits it; returns it if nobody does.
    fn give(&self, request: &Request, reply: Reply) -> Option<Reply> {
        let is_given = request.is_awaited && self.slots.give_reply(reply);
        (!is_given).then_some(reply)
    }

    /// Whether the device is still there.
    fn send(&self, replies: &mut Vec<Reply>) -> bool {
        let sent = replies.is_empty() || self.channel.send_replies(replies).is_ok();
        replies.clear();
        sent
    }

    fn answer(&self, request: &Request, scratch: &mut Scratch) -> Option<Reply> {
        let (asked, room) = (self.slots.asked(request)?, self.slots.room(request)?);
        let written_bytes = match self.session.answer(asked, room, scratch) {
            Answer::Written(count) => count,
            Answer::Waits(waiting) => {
                let mut parked = self.parked();
                if parked.len() < MOST_WAITING {
                    parked.push((*request, waiting));
                    self.waiting.store(parked.len(), Ordering::Relaxed);
                    self.wakes.notify_one();
                    return None;
                }
                drop(parked);
                let room = self.slots.room(request)?;
                let full = Some(Errno::NOLCK);
                self.session.end_wait(&waiting, full, room, scratch)
            }
        };
        Some(Reply {
            slot: request.slot,
            written_bytes,
        })
    }

    fn parked(&self) -> MutexGuard<'_, Vec<(Request, Waiting)>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tries again for those that wait, whenever a request was answered and every now and then.
    fn wait_for_locks(&self) -> io::Result<()> {
        self.enter_jail()?;
        let mut scratch = Scratch::default();
        let mut parked = self.parked();
        loop {
            parked = match parked.is_empty() {
                true => self.wakes.wait(parked),
                false => {
                    let waited = self.wakes.wait_timeout(parked, LOCK_INTERVAL);
                    waited
                        .map(|(parked, _)| parked)
                        .map_err(|error| PoisonError::new(error.into_inner().0))
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
            let mut replies = Vec::new();
            parked.retain(|(request, waiting)| {
                let Some(room) = self.slots.room(request) else {
                    return false;
                };
                let written = self.session.retry(waiting, room, &mut scratch);
                let reply = written.map(|written_bytes| Reply {
                    slot: request.slot,
                    written_bytes,
                });
                replies.extend(reply.and_then(|reply| self.give(request, reply)));
                written.is_none()
            });
            self.waiting.store(parked.len(), Ordering::Relaxed);
            if !self.send(&mut replies) {
                return Ok(());
            }
        }
    }
}
