//! Moments of the wall clock: as RFC 3339 writes them, and as a person types them.
//!
//! They stand apart from the records and the logs because both write them, and because what is typed is parsed before either is
//! opened.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::report::Help;

const NS_PER_SECOND: i64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// From 1 March of the year 0 to 1 January 1970.
const DAYS_TO_1970: i64 = 719_468;

/// A moment, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment {
    nanoseconds: i64,
}

impl Moment {
    /// Reads the clock.
    #[must_use]
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanoseconds = since_1970.map_or(0, |duration| duration.as_nanos());
        Self {
            nanoseconds: i64::try_from(nanoseconds).unwrap_or(i64::MAX),
        }
    }

    /// The moment of so many seconds since 1970.
    #[must_use]
    pub fn of_seconds(seconds: u64) -> Self {
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        Self {
            nanoseconds: seconds.saturating_mul(NS_PER_SECOND),
        }
    }

    /// Returns the nanoseconds since 1970.
    #[must_use]
    pub fn nanoseconds(self) -> i64 {
        self.nanoseconds
    }

    /// Returns the whole seconds since 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.nanoseconds.div_euclid(NS_PER_SECOND)
    }

    /// Returns how long after `other` this is, in nanoseconds; 0 if it is not.
    #[must_use]
    pub fn nanoseconds_after(self, other: Self) -> u64 {
        u64::try_from(self.nanoseconds.saturating_sub(other.nanoseconds)).unwrap_or(0)
    }

    /// Parses `2026-11-20T12:34:56.789+01:00`, RFC 3339 section 5.6.
    #[must_use]
    pub fn of_rfc3339(text: &str) -> Option<Self> {
        let (date, time) = text.split_once(['T', 't', ' '])?;
        let (clock, zone) = time.split_at_checked(time.find(['Z', 'z', '+', '-'])?)?;
        let offset_seconds = match zone.split_at_checked(1)? {
            ("Z" | "z", "") => 0,
            (sign, offset) => {
                let [hours, minutes] = numbers(offset, ':')?;
                let seconds = hours * 3600 + minutes * 60;
                if sign == "-" { -seconds } else { seconds }
            }
        };
        Self::of_parts(numbers(date, '-')?, clock, offset_seconds)
    }

    /// Puts a moment together from a date and a clock's `12:34:56.789`, so many seconds ahead of UTC.
    fn of_parts(date: [i64; 3], clock: &str, offset_seconds: i64) -> Option<Self> {
        let [year, month, day] = date;
        let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
        let [hour, minute, second] = numbers(clock, ':')?;
        let in_range = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..=60).contains(&second);
        if !in_range {
            return None;
        }
        let midnight = days_since_1970(year, month, day) * SECONDS_PER_DAY;
        let seconds = midnight + hour * 3600 + minute * 60 + second - offset_seconds;
        Some(Self {
            nanoseconds: seconds
                .checked_mul(NS_PER_SECOND)?
                .checked_add(nanoseconds_of_fraction(fraction)?)?,
        })
    }
}

/// RFC 3339 in UTC, with all nine digits of the nanoseconds, so that the texts sort as the moments do.
impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds();
        let nanoseconds = self.nanoseconds.rem_euclid(NS_PER_SECOND);
        let (year, month, day) = date_of_day(seconds.div_euclid(SECONDS_PER_DAY));
        let clock = seconds.rem_euclid(SECONDS_PER_DAY);
        write!(
            formatter,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanoseconds:09}Z",
            clock / 3600,
            clock / 60 % 60,
            clock % 60,
        )
    }
}

impl FromStr for Moment {
    type Err = MomentError;

    /// Takes what docker takes for `--since` and `--until`: RFC 3339 with a part or all of it, in UTC unless it names a zone;
    /// seconds since 1970 with a fraction; or how long ago it was, as in `1m30s`.
    fn from_str(text: &str) -> Result<Self, MomentError> {
        let refused = || MomentError(text.to_owned());
        if let Some(moment) = Self::of_rfc3339(text)
            .or_else(|| of_part_of_rfc3339(text))
            .or_else(|| of_unix_seconds(text))
        {
            return Ok(moment);
        }
        let ago = nanoseconds_of_duration(text).ok_or_else(refused)?;
        let now = Self::now();
        Ok(Self {
            nanoseconds: now.nanoseconds.checked_sub(ago).ok_or_else(refused)?,
        })
    }
}

/// Parses `2006-01-02`, `2006-01-02T15:04`, `2006-01-02T15:04:05` and the same with a zone after the date, as docker does.
fn of_part_of_rfc3339(text: &str) -> Option<Moment> {
    let (date, rest) = text.split_at_checked("2006-01-02".len())?;
    let date = numbers(date, '-')?;
    let (clock, offset_seconds) = match rest.strip_suffix('Z') {
        Some(clock) => (clock, 0),
        None => match rest
            .rfind(['+', '-'])
            .and_then(|at| rest.split_at_checked(at))
        {
            Some((clock, zone)) => {
                let [hours, minutes] = numbers(&zone[1..], ':')?;
                let seconds = hours * 3600 + minutes * 60;
                (
                    clock,
                    if zone.starts_with('-') {
                        -seconds
                    } else {
                        seconds
                    },
                )
            }
            None => (rest, 0),
        },
    };
    let clock = match clock.strip_prefix('T') {
        None if clock.is_empty() => "00:00:00".to_owned(),
        None => return None,
        Some(clock) => match clock.matches(':').count() {
            0 => format!("{clock}:00:00"),
            1 => format!("{clock}:00"),
            _ => clock.to_owned(),
        },
    };
    Moment::of_parts(date, &clock, offset_seconds)
}

/// Parses `1136073600` and `1136073600.000000001`.
fn of_unix_seconds(text: &str) -> Option<Moment> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if !is_digits(seconds) {
        return None;
    }
    let seconds: i64 = seconds.parse().ok()?;
    Some(Moment {
        nanoseconds: seconds
            .checked_mul(NS_PER_SECOND)?
            .checked_add(nanoseconds_of_fraction(fraction)?)?,
    })
}

/// Parses a duration as Go writes it: `1h2m3.5s`, `300ms`, `0`; with a sign it may point to the future.
pub(crate) fn nanoseconds_of_duration(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut sum: i64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number_end = rest.find(|it: char| !it.is_ascii_digit() && it != '.')?;
        let (number, after) = rest.split_at_checked(number_end)?;
        let unit_end = after
            .find(|it: char| it.is_ascii_digit() || it == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at_checked(unit_end)?;
        let unit_ns = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NS_PER_SECOND,
            "m" => 60 * NS_PER_SECOND,
            "h" => 3600 * NS_PER_SECOND,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let whole: i64 = match (whole, fraction) {
            ("", "") => return None,
            ("", _) => 0,
            _ => whole.parse().ok()?,
        };
        let fraction = nanoseconds_of_fraction(fraction)?;
        let part = i128::from(fraction) * i128::from(unit_ns) / i128::from(NS_PER_SECOND);
        sum = sum
            .checked_add(whole.checked_mul(unit_ns)?)?
            .checked_add(i64::try_from(part).ok()?)?;
        rest = next;
    }
    Some(if negative { -sum } else { sum })
}

/// Reads the digits after a point as nanoseconds; what is finer is dropped.
fn nanoseconds_of_fraction(digits: &str) -> Option<i64> {
    if !digits.is_empty() && !is_digits(digits) {
        return None;
    }
    let nine = digits.get(..9).unwrap_or(digits);
    format!("{nine:0<9}").parse().ok()
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Splits a text into exactly `COUNT` numbers of at most four digits.
fn numbers<const COUNT: usize>(text: &str, separator: char) -> Option<[i64; COUNT]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        let part = parts.next()?;
        *number = (part.len() <= 4 && is_digits(part))
            .then(|| part.parse().ok())
            .flatten()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Counts days in the Gregorian calendar: years begin in March, so that the leap day is the last of one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // March to January alternate between 31 and 30 days, five months to 153.
    let days_before_month = (153 * month + 2) / 5;
    year * 365 + leap_days + days_before_month + day - 1 - DAYS_TO_1970
}

/// The year, month and day of a day since 1970: the inverse of [`days_since_1970`].
fn date_of_day(day: i64) -> (i64, i64, i64) {
    /// Days of 400 years, after which the calendar repeats.
    const DAYS_OF_ERA: i64 = 146_097;
    let day = day + DAYS_TO_1970;
    let (era, day_of_era) = (day.div_euclid(DAYS_OF_ERA), day.rem_euclid(DAYS_OF_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524
        - day_of_era / (DAYS_OF_ERA - 1))
        / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    match month {
        10 | 11 => (year + 1, month - 9, day_of_month),
        _ => (year, month + 3, day_of_month),
    }
}

/// The text is no moment.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{0}' is no time")]
pub struct MomentError(String);

impl Help for MomentError {
    fn help(&self) -> Option<String> {
        Some(
            "give a time like 2026-11-20T12:34:56Z, a day like 2026-11-20, seconds since 1970, or how long ago, as in 1m30s"
                .to_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> Option<i64> {
        Moment::of_rfc3339(text).map(Moment::seconds)
    }

    fn typed(text: &str) -> String {
        text.parse::<Moment>().unwrap().to_string()
    }

    #[test]
    fn times_are_counted_from_1970() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(seconds("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(
            seconds("2026-11-20T23:31:16.123456789Z"),
            Some(1_795_217_476)
        );
    }

    #[test]
    fn a_zone_is_taken_into_account() {
        assert_eq!(seconds("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(seconds("1969-12-31T19:00:00-05:00"), Some(0));
    }

    #[test]
    fn what_is_no_time_is_none() {
        assert_eq!(seconds(""), None);
        assert_eq!(seconds("yesterday"), None);
        assert_eq!(seconds("2026-13-01T00:00:00Z"), None);
        assert_eq!(seconds("2026-11-20T23:31:16"), None);
        assert_eq!(seconds("99999999-01-01T00:00:00Z"), None);
        assert_eq!(seconds("2026-11-20T23:31:16+é"), None);
    }

    #[test]
    fn what_docker_takes_as_a_time_is_taken() {
        assert_eq!(typed("2026-11-20"), "2026-11-20T00:00:00.000000000Z");
        assert_eq!(typed("2026-11-20T15"), "2026-11-20T15:00:00.000000000Z");
        assert_eq!(typed("2026-11-20T15:04"), "2026-11-20T15:04:00.000000000Z");
        assert_eq!(
            typed("2026-11-20T15:04:05.5"),
            "2026-11-20T15:04:05.500000000Z"
        );
        assert_eq!(
            typed("2026-11-20T15:04:05.5+01:00"),
            "2026-11-20T14:04:05.500000000Z"
        );
        assert_eq!(typed("1136073600"), "2006-01-01T00:00:00.000000000Z");
        assert_eq!(
            typed("1136073600.000000001"),
            "2006-01-01T00:00:00.000000001Z"
        );
    }

    #[test]
    fn a_duration_is_so_long_ago() {
        let before = Moment::now();

        let moment: Moment = "1h1m30.5s".parse().unwrap();

        let ago_ns = before.nanoseconds_after(moment);
        assert!(ago_ns <= 3_690_500_000_000, "{ago_ns}");
        assert!(ago_ns >= 3_680_000_000_000, "{ago_ns}");
        assert_eq!(nanoseconds_of_duration("1.5h"), Some(5_400_000_000_000));
        assert_eq!(nanoseconds_of_duration("-300ms"), Some(-300_000_000));
    }

    #[test]
    fn what_is_no_moment_is_refused_with_help() {
        let refused = |text: &str| text.parse::<Moment>().unwrap_err();

        assert_eq!(refused("yesterday").to_string(), "'yesterday' is no time");
        assert!(refused("tomorrow").help().is_some());
        refused("");
        refused("10x");
        refused("1m30");
        refused(".s");
        refused("-");
        refused("99999999999999999999");
        refused("2026-11-20T15:04:05:06");
        refused("2026-11-20é");
    }

    proptest! {
        #[test]
        fn every_moment_is_read_as_it_is_written(nanoseconds in 0i64..) {
            let moment = Moment { nanoseconds };
            prop_assert_eq!(Moment::of_rfc3339(&moment.to_string()), Some(moment));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,40}") {
            let _ = text.parse::<Moment>();
        }

        #[test]
        fn no_text_like_a_time_makes_the_parser_panic(text in "[0-9T:.+Zhmsµu-]{0,40}") {
            let _ = text.parse::<Moment>();
        }
    }
}
