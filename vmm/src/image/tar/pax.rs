//! The records of a PAX extended header.

use super::super::erofs::Timestamp;
use super::sparse::SparseRun;

/// Most runs a sparse map may have: 16 MiB of memory.
pub(super) const SPARSE_RUNS_MAX: usize = 1 << 20;

/// What a PAX header says of the member behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    /// `SCHILY.xattr.*`, the last of equal names.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

/// `GNU.sparse.*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// `GNU.sparse.realsize` (1.0) or `GNU.sparse.size` (0.x).
    pub(super) real_size: Option<u64>,
    /// The map of the forms 0.0 and 0.1.
    pub(super) runs: Option<Vec<SparseRun>>,
    /// The offset of a 0.0 run whose length has not come yet.
    pending: Option<u64>,
}

/// Extended attributes of one file; Linux lets their names take 64 KiB together.
const XATTRS_MAX: usize = 1024;

/// Parses the body of a PAX header; `None` if it is malformed.
pub(super) fn parse(mut body: &[u8]) -> Option<Records> {
    let mut records = Records::default();
    while !body.is_empty() {
        let space = body.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(decimal(&body[..space])?).ok()?;
        let record = body.get(space + 1..length)?;
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        apply(&mut records, &record[..equals], &record[equals + 1..])?;
        body = &body[length..];
    }
    Some(records)
}

fn apply(records: &mut Records, key: &[u8], value: &[u8]) -> Option<()> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        // Each is compared with those before it.
        if records.xattrs.len() >= XATTRS_MAX {
            return None;
        }
        records.xattrs.retain(|(known, _)| known != name);
        records.xattrs.push((name.to_vec(), value.to_vec()));
        return Some(());
    }
    let sparse = &mut records.sparse;
    match key {
        // An empty value takes back what was said before.
        b"path" => records.path = text(value)?,
        b"linkpath" => records.link = text(value)?,
        b"size" => records.size = optional(value, decimal)?,
        b"uid" => records.uid = optional(value, decimal)?,
        b"gid" => records.gid = optional(value, decimal)?,
        b"mtime" => records.mtime = optional(value, timestamp)?,
        b"GNU.sparse.major" => sparse.major = Some(decimal(value)?),
        b"GNU.sparse.minor" => sparse.minor = Some(decimal(value)?),
        b"GNU.sparse.name" => sparse.name = text(value)?,
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.real_size = Some(decimal(value)?),
        b"GNU.sparse.offset" => match sparse.pending.replace(decimal(value)?) {
            None => {}
            Some(_) => return None,
        },
        b"GNU.sparse.numbytes" => {
            let run = SparseRun {
                offset: sparse.pending.take()?,
                length: decimal(value)?,
            };
            sparse.runs.get_or_insert_default().push(run);
        }
        b"GNU.sparse.map" => sparse.runs = Some(map(value)?),
        _ => {}
    }
    (sparse.runs.as_ref().map_or(0, Vec::len) <= SPARSE_RUNS_MAX).then_some(())
}

/// The map of form 0.1: `offset,length,offset,length…`.
fn map(value: &[u8]) -> Option<Vec<SparseRun>> {
    if value.is_empty() {
        return Some(Vec::new());
    }
    let numbers: Vec<u64> = value
        .split(|byte| *byte == b',')
        .map(decimal)
        .collect::<Option<_>>()?;
    let (pairs, rest) = numbers.as_chunks::<2>();
    rest.is_empty().then(|| {
        pairs
            .iter()
            .map(|[offset, length]| SparseRun {
                offset: *offset,
                length: *length,
            })
            .collect()
    })
}

/// A path; empty means none, a NUL inside is malformed.
#[expect(
    clippy::option_option,
    reason = "the outer says malformed, the inner says taken back"
)]
fn text(value: &[u8]) -> Option<Option<Vec<u8>>> {
    if value.contains(&0) {
        return None;
    }
    Some((!value.is_empty()).then(|| value.to_vec()))
}

#[expect(
    clippy::option_option,
    reason = "the outer says malformed, the inner says taken back"
)]
fn optional<T>(value: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() {
        Some(None)
    } else {
        parse(value).map(Some)
    }
}

/// A decimal number below 2^63.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    i64::try_from(value).is_ok().then_some(value)
}

/// A time: `-?seconds(.fraction)?`, digits below a nanosecond dropped towards the past.
fn timestamp(value: &[u8]) -> Option<Timestamp> {
    let (negative, magnitude) = value
        .strip_prefix(b"-")
        .map_or((false, value), |rest| (true, rest));
    let point = magnitude
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(magnitude.len());
    let seconds = i64::try_from(decimal(&magnitude[..point])?).ok()?;
    let fraction = magnitude.get(point + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |index: usize| {
        fraction
            .get(index)
            .map_or(0, |digit| u32::from(digit - b'0'))
    };
    let nanoseconds = (0..9).fold(0, |value, index| value * 10 + digit(index));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, _) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_record_is_found() {
        let records = parse(b"12 path=abc\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"abc"[..]));
    }

    #[test]
    fn a_record_longer_than_the_header_is_malformed() {
        assert_eq!(parse(b"99 path=abc\n"), None);
    }

    #[test]
    fn a_record_without_newline_is_malformed() {
        assert_eq!(parse(b"11 path=abc"), None);
    }

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(
            timestamp(b"-1.25"),
            Some(Timestamp {
                seconds: -2,
                nanoseconds: 750_000_000
            })
        );
        assert_eq!(
            timestamp(b"12.5"),
            Some(Timestamp {
                seconds: 12,
                nanoseconds: 500_000_000
            })
        );
        assert_eq!(
            timestamp(b"7"),
            Some(Timestamp {
                seconds: 7,
                nanoseconds: 0
            })
        );
    }

    #[test]
    fn an_attribute_may_hold_any_bytes() {
        let records = parse(b"29 SCHILY.xattr.user.a=\x00=\n\xff!\n").unwrap();
        assert_eq!(
            records.xattrs,
            vec![(b"user.a".to_vec(), b"\x00=\n\xff!".to_vec())]
        );
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&body);
        }
    }
}
