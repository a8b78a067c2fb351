//! Times as image configurations write them: RFC 3339.

use crate::state::Timestamp;

/// Returns how long ago a time was, in seconds; nothing if it is no time.
pub(super) fn age_seconds(text: &str) -> Option<u64> {
    let seconds = seconds_since_1970(text)?;
    // Before 1970 is long ago, too.
    Some(Timestamp(u64::try_from(seconds).unwrap_or(0)).age_seconds())
}

/// Parses `2026-11-20T12:34:56.789+01:00`, RFC 3339 section 5.6; fractions of a second are dropped.
fn seconds_since_1970(text: &str) -> Option<i64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-')?;
    let zone_start = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at_checked(zone_start)?;
    let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
    let [hour, minute, second] = numbers(clock, ':')?;
    let offset_seconds = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign, offset) => {
            let [hours, minutes] = numbers(offset, ':')?;
            let seconds = hours * 3600 + minutes * 60;
            if sign == "-" { -seconds } else { seconds }
        }
    };
    let in_range = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    let midnight = days_since_1970(year, month, day) * 86_400;
    in_range.then_some(midnight + hour * 3600 + minute * 60 + second - offset_seconds)
}

/// Splits a text into exactly `COUNT` numbers of at most four digits.
fn numbers<const COUNT: usize>(text: &str, separator: char) -> Option<[i64; COUNT]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; COUNT];
    for number in &mut numbers {
        let part = parts.next()?;
        let is_number = (1..=4).contains(&part.len()) && part.bytes().all(|it| it.is_ascii_digit());
        *number = is_number.then(|| part.parse().ok()).flatten()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Counts days in the Gregorian calendar: years begin in March, so that the leap day is the last of one.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    /// From 1 March of the year 0 to 1 January 1970.
    const DAYS_TO_1970: i64 = 719_468;
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // March to January alternate between 31 and 30 days, five months to 153.
    let days_before_month = (153 * month + 2) / 5;
    year * 365 + leap_days + days_before_month + day - 1 - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_1970() {
        assert_eq!(seconds_since_1970("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(
            seconds_since_1970("2000-02-29T12:00:00Z"),
            Some(951_825_600)
        );
        assert_eq!(
            seconds_since_1970("2026-11-20T23:31:16.123456789Z"),
            Some(1_795_217_476)
        );
    }

    #[test]
    fn a_zone_is_taken_into_account() {
        assert_eq!(seconds_since_1970("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(seconds_since_1970("1969-12-31T19:00:00-05:00"), Some(0));
    }

    #[test]
    fn what_is_no_time_is_none() {
        assert_eq!(seconds_since_1970(""), None);
        assert_eq!(seconds_since_1970("yesterday"), None);
        assert_eq!(seconds_since_1970("2026-13-01T00:00:00Z"), None);
        assert_eq!(seconds_since_1970("2026-11-20T23:31:16"), None);
        assert_eq!(seconds_since_1970("99999999-01-01T00:00:00Z"), None);
        assert_eq!(seconds_since_1970("2026-11-20T23:31:16+é"), None);
    }

    #[test]
    fn a_time_of_long_ago_is_old() {
        assert!(age_seconds("1960-01-01T00:00:00Z").unwrap() > 1_700_000_000);
    }
}
