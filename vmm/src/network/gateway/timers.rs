//! Who wants to be woken when. An entry that is no longer wanted wakes in vain, once.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

/// What is due, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers(BinaryHeap<Reverse<(Instant, u64)>>);

impl Timers {
    pub(super) fn add(&mut self, at: Instant, token: u64) {
        self.0.push(Reverse((at, token)));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes one that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        match self.next() {
            Some(at) if at <= now => self.0.pop().map(|Reverse((_, token))| token),
            _ => None,
        }
    }
}
