//! Who wants to be woken when. Each has one moment at most: who wants another one takes the first back.

use std::collections::BTreeSet;

use smoltcp::time::Instant;

/// What is due, the earliest first.
#[derive(Debug, Default)]
pub(super) struct Timers(BTreeSet<(Instant, u64)>);

impl Timers {
    pub(super) fn add(&mut self, at: Instant, token: u64) {
        self.0.insert((at, token));
    }

    /// Takes one back.
    pub(super) fn forget(&mut self, at: Option<Instant>, token: u64) {
        if let Some(at) = at {
            self.0.remove(&(at, token));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }

    /// Takes one that is due.
    pub(super) fn due(&mut self, now: Instant) -> Option<u64> {
        match self.next() {
            Some(at) if at <= now => self.0.pop_first().map(|(_, token)| token),
            _ => None,
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}
