//! How the threads of a machine tell its event loop that something happened.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use devices::doorbell::Ring;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Something that happened in the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The guest rang the doorbell.
    Ring(Ring),
    /// The guest pulsed the reset line.
    Reset,
    /// A vCPU cannot go on.
    GuestFault(String),
    /// The network interface is connected to nothing any more.
    LinkLost,
}

/// As many as vCPUs can have in flight; a guest that rings faster than the loop reads loses rings.
const PENDING_RINGS: usize = 64;

/// The sending side; clones send to the same loop.
#[derive(Debug, Clone)]
pub(super) struct Notifier {
    rings: SyncSender<Notice>,
    /// The first notice after which the machine cannot go on; never lost.
    end: Arc<OnceLock<Notice>>,
    wake: Arc<EventFd>,
}

impl Notifier {
    /// Never blocks.
    pub(super) fn notify(&self, notice: Notice) {
        let is_kept = match notice {
            Notice::Ring(_) | Notice::LinkLost => self.rings.try_send(notice).is_ok(),
            Notice::Reset | Notice::GuestFault(_) => self.end.set(notice).is_ok(),
        };
        if is_kept {
            self.wake();
        }
    }

    /// Lets the loop look around.
    pub(super) fn wake(&self) {
        // A counter that is full is a loop that will wake.
        let _ = self.wake.write(1);
    }
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Notices {
    rings: Receiver<Notice>,
    end: Arc<OnceLock<Notice>>,
    wake: Arc<EventFd>,
}

impl Notices {
    /// Makes both sides.
    pub(super) fn new() -> std::io::Result<(Notifier, Self)> {
        let (sender, rings) = sync_channel(PENDING_RINGS);
        let end = Arc::new(OnceLock::new());
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let notifier = Notifier {
            rings: sender,
            end: Arc::clone(&end),
            wake: Arc::clone(&wake),
        };
        Ok((notifier, Self { rings, end, wake }))
    }

    /// What wakes the loop.
    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.wake))
    }

    /// The next notice, if there is one: rings in their order, then the end.
    pub(super) fn next(&self) -> Option<Notice> {
        self.rings
            .try_recv()
            .ok()
            .or_else(|| self.end.get().cloned())
    }
}

/// Stands on the event loop so that a notice ends its wait.
#[derive(Debug)]
pub(super) struct Waker(Arc<EventFd>);

impl MutEventSubscriber for Waker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        let _ = self.0.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&*self.0, EventSet::IN)) {
            tracing::error!(%error, "the event loop does not take the machine's notices");
        }
    }
}
