//! How fast an interface may be.
//!
//! A frame waits until those before it are paid for, and is charged with its own time then: what is moved over a second is what the
//! limit says. An interface that rests saves up no more than [`BURST`]. Nothing is dropped: what waits stays where it is, with the
//! guest or with the link.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// How much time an interface that rests may save up.
const BURST: Duration = Duration::from_millis(50);

/// What may be moved in a second, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of frames; 0 is as good as 1.
    pub bytes_a_second: u64,
}

impl Rate {
    /// How long so many bytes take.
    fn time_of(self, bytes: usize) -> Duration {
        let bytes = u128::try_from(bytes).unwrap_or(u128::MAX);
        let nanoseconds =
            bytes.saturating_mul(1_000_000_000) / u128::from(self.bytes_a_second.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// Holds frames of one direction back.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: Rate,
    /// Until when everything is paid for.
    paid: Option<Instant>,
    timer: OwnedFd,
}

impl Pacer {
    pub(super) fn new(rate: Rate) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self {
            rate,
            paid: None,
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        })
    }

    /// Whether a frame may be moved now. If not, the timer goes off when one may.
    pub(super) fn allows(&mut self) -> bool {
        let left = self.left(Instant::now());
        if left.is_zero() {
            return true;
        }
        let timer = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left).unwrap_or_default(),
        };
        // A timer that cannot be set holds nobody back.
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer).is_err()
    }

    /// Charges for a frame.
    pub(super) fn charge(&mut self, bytes: usize) {
        self.charge_at(Instant::now(), bytes);
    }

    fn left(&self, now: Instant) -> Duration {
        self.paid
            .map(|paid| paid.saturating_duration_since(now))
            .unwrap_or_default()
    }

    fn charge_at(&mut self, now: Instant, bytes: usize) {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let paid = self.paid.unwrap_or(now).max(earliest);
        self.paid = paid.checked_add(self.rate.time_of(bytes));
    }

    /// Takes notice that the timer has gone off.
    pub(super) fn hear(&self) {
        let _drained = rustix::io::read(&self.timer, &mut [0; 8]);
    }
}

impl AsRawFd for Pacer {
    fn as_raw_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_bytes_takes_a_second() {
        let rate = Rate {
            bytes_a_second: 1 << 20,
        };
        let mut pacer = Pacer::new(rate).unwrap();
        let begin = Instant::now();

        for _ in 0..1024 {
            pacer.charge_at(begin, 1024);
        }

        assert_eq!(pacer.left(begin).as_secs_f64().round(), 1.0);
    }

    #[test]
    fn what_was_saved_up_is_bounded() {
        let rate = Rate {
            bytes_a_second: 1000,
        };
        let mut pacer = Pacer::new(rate).unwrap();
        let begin = Instant::now();
        pacer.charge_at(begin, 1);

        let later = begin + Duration::from_secs(3600);
        pacer.charge_at(later, 1000);

        assert_eq!(pacer.left(later), Duration::from_secs(1) - BURST);
    }

    #[test]
    fn a_rate_of_nothing_is_no_division_by_zero() {
        let rate = Rate { bytes_a_second: 0 };

        assert_eq!(rate.time_of(2), Duration::from_secs(2));
    }
}
