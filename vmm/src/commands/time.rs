//! Times as image configurations write them: RFC 3339.

use crate::moment::Moment;
use crate::state::Timestamp;

/// Returns how long ago a time was, in seconds; nothing if it is no time.
pub(super) fn age_seconds(text: &str) -> Option<u64> {
    let seconds = Moment::of_rfc3339(text)?.seconds();
    // Before 1970 is long ago, too.
    Some(Timestamp(u64::try_from(seconds).unwrap_or(0)).age_seconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_long_ago_is_old() {
        assert!(age_seconds("1960-01-01T00:00:00Z").unwrap() > 1_700_000_000);
    }
}
