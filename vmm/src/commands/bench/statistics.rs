//! Percentiles by nearest rank: each is a value that was measured, and none is said of too few.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// A time, written as milliseconds for a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time(pub(super) Duration);

impl Time {
    pub(super) fn milliseconds(self) -> f64 {
        self.0.as_secs_f64() * 1e3
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Nanoseconds are the clock's unit; more digits would be the division's.
        serializer.serialize_f64((self.milliseconds() * 1e6).round() / 1e6)
    }
}

/// How the times of one figure are spread.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Spread {
    /// The time that half of the samples did not exceed.
    pub(super) p50_ms: Option<Time>,
    /// The same for nine of ten; needs ten samples.
    pub(super) p90_ms: Option<Time>,
    /// The same for 99 of a hundred; needs a hundred samples.
    pub(super) p99_ms: Option<Time>,
    /// All of them, the least first.
    pub(super) all_ms: Vec<Time>,
}

impl Spread {
    pub(super) fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut all_ms: Vec<Time> = times.into_iter().map(Time).collect();
        all_ms.sort_unstable();
        Self {
            p50_ms: percentile(&all_ms, 50),
            p90_ms: percentile(&all_ms, 90),
            p99_ms: percentile(&all_ms, 99),
            all_ms,
        }
    }
}

/// The value at rank ⌈percent / 100 · n⌉, where there are enough samples for one to lie above it.
fn percentile(sorted: &[Time], percent: usize) -> Option<Time> {
    let needed = match percent {
        0..=50 => 1,
        _ => 100 / (100 - percent.min(99)),
    };
    if sorted.len() < needed {
        return None;
    }
    let rank = (percent * sorted.len()).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The middle one of a few times.
pub(super) fn median(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    fn spread_of(count: u64) -> Spread {
        Spread::of((1..=count).rev().map(milliseconds))
    }

    #[test]
    fn a_percentile_is_the_sample_of_the_nearest_rank() {
        let spread = spread_of(200);

        assert_eq!(spread.p50_ms, Some(Time(milliseconds(100))));
        assert_eq!(spread.p90_ms, Some(Time(milliseconds(180))));
        assert_eq!(spread.p99_ms, Some(Time(milliseconds(198))));
    }

    #[test]
    fn p99_is_not_said_of_99_samples() {
        assert_eq!(spread_of(99).p99_ms, None);
        assert_eq!(spread_of(100).p99_ms, Some(Time(milliseconds(99))));
    }

    #[test]
    fn p90_is_not_said_of_nine_samples() {
        assert_eq!(spread_of(9).p90_ms, None);
        assert_eq!(spread_of(10).p90_ms, Some(Time(milliseconds(9))));
    }

    #[test]
    fn nothing_is_said_of_no_samples() {
        assert_eq!(spread_of(0).p50_ms, None);
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_lower_of_the_middle_two() {
        let times = [4, 1, 3, 2].map(milliseconds);
        assert_eq!(median(&times), Some(milliseconds(2)));
    }

    #[test]
    fn a_time_is_written_in_milliseconds() {
        let json = serde_json::to_string(&Time(Duration::from_micros(1500))).unwrap();
        assert_eq!(json, "1.5");
    }
}
