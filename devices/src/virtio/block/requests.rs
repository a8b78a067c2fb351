//! The requests of a block device that runs: those in the queue, and those that threads carry out.
//!
//! A request is taken from the queue on the event loop and carried out and answered there or on a thread. What is under way is
//! counted: no more than the queue has entries, and none when the device stops or is written down.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{self, REQUESTS_A_TURN};
use super::{Disk, DiskThreads};
use crate::virtio::{
    ActiveQueue, DeviceInterrupt, DeviceMemory, QueueError, Turn, finish_turn, next_chain,
    wants_interrupt,
};

/// Most requests that are under way: a driver has no more descriptors.
const MAX_UNDER_WAY: usize = 128;

/// The requests of a device.
#[derive(Debug)]
pub(super) struct Requests {
    disk: Disk,
    memory: Arc<DeviceMemory>,
    interrupt: DeviceInterrupt,
    /// Brings the event loop back to the queue.
    notifier: EventFd,
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Debug)]
struct State {
    queue: Queue,
    under_way: usize,
    /// There may be more in the queue than was taken.
    is_full: bool,
}

impl Requests {
    pub(super) fn new(
        disk: Disk,
        memory: DeviceMemory,
        active: ActiveQueue,
        interrupt: DeviceInterrupt,
    ) -> Self {
        let ActiveQueue { queue, notifier } = active;
        Self {
            disk,
            memory: Arc::new(memory),
            interrupt,
            notifier,
            state: Mutex::new(State {
                queue,
                under_way: 0,
                is_full: false,
            }),
            idle: Condvar::new(),
        }
    }

    /// Readable when there may be something in the queue.
    pub(super) fn notifier(&self) -> &EventFd {
        &self.notifier
    }

    /// Carries out what is in the queue, here.
    pub(super) fn carry_out(&self) {
        let turn = queue::process(&self.disk, &mut self.state().queue, &self.memory);
        finish_turn(turn, &self.notifier, &self.interrupt);
    }

    /// Takes what is in the queue: answers what can be answered at once, and has the rest carried out on threads.
    pub(super) fn hand_out(self: &Arc<Self>, threads: &DiskThreads) {
        let turn = self.take_all(threads);
        finish_turn(turn, &self.notifier, &self.interrupt);
    }

    /// Whether the driver looks for answers without an interrupt, and nobody else is at the queue.
    pub(super) fn is_looked_for(&self) -> bool {
        self.state.try_lock().is_ok_and(|mut state| {
            wants_interrupt(&mut state.queue, &self.memory).is_ok_and(|wants| !wants)
        })
    }

    fn take_all(self: &Arc<Self>, threads: &DiskThreads) -> Result<Turn, QueueError> {
        let mut state = self.state();
        let mut turn = Turn::default();
        let mut answered = 0;
        state.queue.disable_notification(&*self.memory)?;
        while !turn.unfinished {
            if state.under_way >= MAX_UNDER_WAY {
                state.is_full = true;
                break;
            }
            let Some(chain) = next_chain(&mut state.queue, Arc::clone(&self.memory))? else {
                break;
            };
            let head = chain.head_index();
            match queue::answer_at_once(&self.disk, chain.clone(), &self.memory) {
                Some(written) => {
                    state.queue.add_used(&*self.memory, head, written)?;
                    answered += 1;
                    turn.unfinished = answered == REQUESTS_A_TURN;
                }
                None => {
                    state.under_way += 1;
                    let requests = Arc::clone(self);
                    threads.submit(Box::new(move || requests.answer(chain)));
                }
            }
        }
        turn.interrupt = answered > 0 && wants_interrupt(&mut state.queue, &self.memory)?;
        Ok(turn)
    }

    /// Carries out one request and answers it.
    fn answer(&self, chain: DescriptorChain<Arc<DeviceMemory>>) {
        let head = chain.head_index();
        let written = queue::answer(&self.disk, chain, &self.memory).unwrap_or(0);
        let mut state = self.state();
        let used = state.queue.add_used(&*self.memory, head, written);
        let used = used
            .map_err(QueueError::from)
            .and_then(|()| wants_interrupt(&mut state.queue, &self.memory));
        match used {
            Ok(true) => self.interrupt.signal_used_buffer(),
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, "a queue of the guest is broken");
                self.interrupt.signal_needs_reset();
            }
        }
        state.under_way = state.under_way.saturating_sub(1);
        if std::mem::take(&mut state.is_full) {
            // The only failure is a counter at its limit: the notifier is readable already.
            let _already_notified = self.notifier.write(1);
        }
        if state.under_way == 0 {
            self.idle.notify_all();
        }
    }

    /// Waits until none is under way, without heed of the disk's rate, and does something with the queue then.
    pub(super) fn when_idle<T>(&self, look: impl FnOnce(&Queue) -> T) -> T {
        self.hurry(true);
        let mut state = self.state();
        while state.under_way > 0 {
            state = self
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let seen = look(&state.queue);
        drop(state);
        self.hurry(false);
        seen
    }

    fn hurry(&self, is_hurried: bool) {
        if let Some(throttle) = &self.disk.throttle {
            throttle.hurry(is_hurried);
        }
    }

    /// Nothing panics while it holds the lock; were it otherwise, the queue is still whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
