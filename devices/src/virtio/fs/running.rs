//! The device's exchange with the server and its queues while it runs: what the event loop and the vCPUs' threads have in common.
//!
//! Most requests are answered in the exit by which the guest notifies ([`InExit`]): the vCPU's thread hands them to the server, sleeps
//! until the reply is there, and goes on. The event loop does the same for those that the driver does not look for at once, and brings
//! the replies that took longer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::queue::{Awaited, Exchange, Which};
use crate::virtio::{ActiveQueue, DeviceInterrupt, DeviceMemory, InExit, wants_interrupt};

/// The index of the queue of requests.
const REQUESTS: u32 = 1;
/// After a wait in vain so many requests are not waited for: more of that kind may follow.
const PAUSE: u32 = 16;

/// What the event loop and the vCPUs' threads have in common.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// How long a vCPU stands for a reply.
    longest_wait: Duration,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) exchange: Exchange,
    pub(super) running: Option<Running>,
    /// How many requests are not waited for from here on.
    pause: u32,
}

/// What the device was handed to run.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) memory: DeviceMemory,
    pub(super) hiprio: ActiveQueue,
    pub(super) requests: ActiveQueue,
    pub(super) interrupt: DeviceInterrupt,
    /// Which queues stand until the server lets go of a slot.
    pub(super) stalled: [bool; 2],
}

impl Shared {
    pub(super) fn new(exchange: Exchange, longest_wait: Duration) -> Self {
        Self {
            longest_wait,
            state: Mutex::new(State {
                exchange,
                running: None,
                pause: 0,
            }),
        }
    }

    /// Nothing panics while it holds the lock; were it otherwise, the queues are still whole.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InExit for Shared {
    /// Whoever finds the lock held leaves it to the event loop: the vCPU stands for nobody but the server.
    fn notified(&self, queue: u32) -> bool {
        let Ok(mut state) = self.state.try_lock() else {
            return false;
        };
        if queue != REQUESTS || !state.is_looked_for() {
            return false;
        }
        if state.pause > 0 {
            state.pause -= 1;
            return false;
        }
        let awaited = state.ask();
        drop(state);
        if let Some(awaited) = awaited {
            awaited.wait(self.longest_wait);
            self.state().take_awaited(&awaited);
        }
        true
    }
}

impl State {
    /// Whether the driver looks for replies without an interrupt.
    fn is_looked_for(&mut self) -> bool {
        let running = self.running.as_mut();
        running.is_some_and(|running| {
            let queue = &mut running.requests.queue;
            wants_interrupt(queue, &running.memory).is_ok_and(|wants| !wants)
        })
    }

    /// Hands requests to the server whose replies are looked for.
    fn ask(&mut self) -> Option<Awaited> {
        let running = self.running.as_mut()?;
        let asked = self.exchange.take_awaited_requests(
            Which::Requests,
            &mut running.requests.queue,
            &running.memory,
        );
        let (turn, awaited) = asked.map_or_else(
            |error| (Err(error), None),
            |(turn, awaited)| (Ok(turn), awaited),
        );
        running.stalled[1] = turn.as_ref().is_ok_and(|turn| turn.stalled);
        running.requests.finish_turn(turn, &running.interrupt);
        awaited
    }

    /// Brings those that have come to the guest. The device may have been reset meanwhile.
    fn take_awaited(&mut self, awaited: &Awaited) {
        let Some(running) = &mut self.running else {
            return self.exchange.forget_awaited(awaited);
        };
        let requests = &mut running.requests;
        let taken = self
            .exchange
            .take_awaited(awaited, &mut requests.queue, &running.memory);
        let turn = taken.map(|(turn, has_come)| {
            self.pause = if has_come { 0 } else { PAUSE };
            turn
        });
        requests.finish_turn(turn, &running.interrupt);
        self.run_stalled_queues();
    }

    /// Hands requests of a queue to the server.
    pub(super) fn run_queue(&mut self, which: Which) {
        let Some(running) = &mut self.running else {
            return;
        };
        let [hiprio_stalled, requests_stalled] = &mut running.stalled;
        let (active, stalled) = match which {
            Which::Hiprio => (&mut running.hiprio, hiprio_stalled),
            Which::Requests => (&mut running.requests, requests_stalled),
        };
        let turn = self
            .exchange
            .take_requests(which, &mut active.queue, &running.memory);
        *stalled = turn.as_ref().is_ok_and(|turn| turn.stalled);
        active.finish_turn(turn, &running.interrupt);
    }

    /// Goes on with the queues for which there were no slots.
    pub(super) fn run_stalled_queues(&mut self) {
        let stalled = self.running.as_ref().map(|running| running.stalled);
        let [hiprio, requests] = stalled.unwrap_or_default();
        if hiprio {
            self.run_queue(Which::Hiprio);
        }
        if requests {
            self.run_queue(Which::Requests);
        }
    }

    /// Brings the replies that were sent to the guest.
    pub(super) fn take_replies(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let queues = [&mut running.hiprio.queue, &mut running.requests.queue];
        match self.exchange.take_replies(queues, &running.memory) {
            Ok([hiprio, requests]) => {
                running.hiprio.finish_turn(Ok(hiprio), &running.interrupt);
                running
                    .requests
                    .finish_turn(Ok(requests), &running.interrupt);
            }
            Err(error) => running.requests.finish_turn(Err(error), &running.interrupt),
        }
    }
}
