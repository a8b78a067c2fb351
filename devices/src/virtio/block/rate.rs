//! How fast a disk may be.
//!
//! A request waits until those before it are paid for, and is charged with its own time then: what is moved over a second is what
//! the limit says, whatever the length of a request. A disk that rests saves up no more than [`BURST`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much time a disk that rests may save up.
const BURST: Duration = Duration::from_millis(100);

/// What a disk may do in a second; none of it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Bytes that are moved.
    pub bytes: Option<u64>,
    /// Requests.
    pub requests: Option<u64>,
}

/// What a disk may do in a second, in either direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// When it is read.
    pub read: Rate,
    /// When it is written.
    pub write: Rate,
}

impl RateLimits {
    /// Whether there is a limit.
    #[must_use]
    pub fn is_any(&self) -> bool {
        *self != Self::default()
    }
}

impl Rate {
    /// How long a request of so many bytes takes at this rate.
    fn time_of(self, bytes: u64) -> Duration {
        let of = |count: u64, a_second: Option<u64>| match a_second.filter(|rate| *rate > 0) {
            None => Duration::ZERO,
            Some(rate) => {
                let nanoseconds = u128::from(count) * 1_000_000_000 / u128::from(rate);
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        };
        of(bytes, self.bytes).max(of(1, self.requests))
    }
}

/// Which way data moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// Holds requests back.
#[derive(Debug)]
pub(super) struct Throttle {
    limits: RateLimits,
    clocks: Mutex<Clocks>,
    changed: Condvar,
}

/// Until when everything is paid for.
#[derive(Debug)]
struct Clocks {
    read: Option<Instant>,
    write: Option<Instant>,
    /// Somebody waits for the requests that are under way.
    is_hurried: bool,
}

impl Throttle {
    pub(super) fn new(limits: RateLimits) -> Self {
        Self {
            limits,
            clocks: Mutex::new(Clocks {
                read: None,
                write: None,
                is_hurried: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Waits until a request of so many bytes may be carried out.
    pub(super) fn pass(&self, direction: Direction, bytes: u64) {
        let rate = match direction {
            Direction::Read => self.limits.read,
            Direction::Write => self.limits.write,
        };
        let time = rate.time_of(bytes);
        if time.is_zero() {
            return;
        }
        let mut clocks = self.clocks();
        loop {
            let now = Instant::now();
            let paid = clocks.of(direction).unwrap_or(now);
            let left = paid.saturating_duration_since(now);
            if left.is_zero() || clocks.is_hurried {
                let earliest = now.checked_sub(BURST).unwrap_or(now);
                *clocks.of(direction) = paid.max(earliest).checked_add(time);
                return;
            }
            (clocks, _) = self
                .changed
                .wait_timeout(clocks, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets those that wait go on, or lets requests wait again.
    pub(super) fn hurry(&self, is_hurried: bool) {
        self.clocks().is_hurried = is_hurried;
        self.changed.notify_all();
    }

    fn clocks(&self) -> MutexGuard<'_, Clocks> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clocks {
    fn of(&mut self, direction: Direction) -> &mut Option<Instant> {
        match direction {
            Direction::Read => &mut self.read,
            Direction::Write => &mut self.write,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_as_long_as_the_slower_of_its_limits_says() {
        let rate = Rate {
            bytes: Some(1 << 20),
            requests: Some(100),
        };

        assert_eq!(rate.time_of(1 << 19), Duration::from_millis(500));
        assert_eq!(rate.time_of(512), Duration::from_millis(10));
        assert_eq!(Rate::default().time_of(u64::MAX), Duration::ZERO);
    }

    #[test]
    fn what_is_not_paid_for_holds_the_next_request_back() {
        let limits = RateLimits {
            read: Rate {
                bytes: Some(1 << 20),
                requests: None,
            },
            ..RateLimits::default()
        };
        let throttle = Throttle::new(limits);
        let begin = Instant::now();

        throttle.pass(Direction::Read, 1 << 18);
        throttle.pass(Direction::Write, 1 << 30);
        throttle.pass(Direction::Read, 512);

        assert!(begin.elapsed() >= Duration::from_millis(250));
    }

    #[test]
    fn somebody_in_a_hurry_does_not_wait() {
        let limits = RateLimits {
            write: Rate {
                bytes: None,
                requests: Some(1),
            },
            ..RateLimits::default()
        };
        let throttle = Throttle::new(limits);
        throttle.hurry(true);
        let begin = Instant::now();

        for _ in 0..1000 {
            throttle.pass(Direction::Write, 512);
        }

        assert!(begin.elapsed() < Duration::from_secs(900));
    }
}
