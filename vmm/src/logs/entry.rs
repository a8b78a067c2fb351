//! One line of a log file: docker's `json-file`, as its package `jsonlog` has it.
//!
//! ```text
//! {"log":"hello\n","stream":"stdout","time":"2026-11-20T12:34:56.123456789Z"}
//! ```
//!
//! A line of the workload ends with `\n` in `log`; one that is longer than [`MAX_PIECE_BYTES`] is several entries, of which only the last
//! does, and so is one that the workload never finished. Bytes that are no UTF-8 are U+FFFD in `log`, as docker has it; beside it
//! `hex` then has the bytes as they were, so that nothing is lost. Where a disk took no more, an entry with an empty `log` has the
//! number of bytes that are missing in `lost`.

use std::borrow::Cow;
use std::io::Write as _;

use serde::Deserialize;

use crate::moment::Moment;

/// The longest piece of a line that one entry holds: docker's `defaultBufSize`.
pub(super) const MAX_PIECE_BYTES: usize = 16 << 10;

/// The longest line of a file: a piece of which each byte is escaped as `\u0000`, the same as `hex`, and the names.
pub(super) const MAX_ENTRY_BYTES: usize = MAX_PIECE_BYTES * 9 + 256;

/// Where a workload wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a line of a file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What the workload wrote, with its line's end.
    pub bytes: Vec<u8>,
    /// Where.
    pub stream: Stream,
    /// When it came.
    pub time: Moment,
    /// How many bytes are missing here.
    pub lost_bytes: u64,
}

/// A line as it is parsed.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    stream: Stream,
    #[serde(borrow)]
    time: Cow<'a, str>,
    #[serde(borrow, default)]
    hex: Option<Cow<'a, str>>,
    #[serde(default)]
    lost: u64,
}

impl Entry {
    /// Parses a line of a file; nothing if it is none, which any file may hold that somebody else wrote.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let line: Line<'_> = serde_json::from_slice(line).ok()?;
        let bytes = match line.hex {
            Some(hex) => bytes_of_hex(&hex)?,
            None => line.log.into_owned().into_bytes(),
        };
        Some(Self {
            bytes,
            stream: line.stream,
            time: Moment::of_rfc3339(&line.time)?,
            lost_bytes: line.lost,
        })
    }
}

/// Writes entries that came at the same time from the same stream: what they have in common is formatted once.
#[derive(Debug)]
pub(super) struct Encoder {
    /// From the end of `log` to the end of the line.
    rest: String,
}

impl Encoder {
    pub(super) fn new(stream: Stream, time: Moment) -> Self {
        let stream = match stream {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        };
        Self {
            rest: format!(",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n"),
        }
    }

    /// Appends the entry of a piece.
    pub(super) fn append(&self, piece: &[u8], output: &mut Vec<u8>) {
        output.extend_from_slice(b"{\"log\":\"");
        let (line, end) = match piece.strip_suffix(b"\n") {
            Some(line) => (line, "\\n"),
            None => (piece, ""),
        };
        // Most lines, at the price of one look at each byte.
        if is_plain(line) {
            output.extend_from_slice(line);
            output.extend_from_slice(end.as_bytes());
            output.push(b'"');
        } else if std::str::from_utf8(piece).is_ok() {
            append_escaped(piece, output);
            output.push(b'"');
        } else {
            append_escaped(String::from_utf8_lossy(piece).as_bytes(), output);
            output.extend_from_slice(b"\",\"hex\":\"");
            append_hex(piece, output);
            output.push(b'"');
        }
        output.extend_from_slice(self.rest.as_bytes());
    }

    /// Appends the entry that says how much is missing.
    pub(super) fn append_lost(&self, bytes: u64, output: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = write!(output, "{{\"log\":\"\",\"lost\":{bytes}{}", self.rest);
    }
}

/// Digits of a byte, and of a character that is escaped.
const HEX_DIGITS: [u8; 16] = *b"0123456789abcdef";

/// Whether bytes are printable ASCII that JSON takes as it is. Looks at all of them, which the processor does many at a time.
fn is_plain(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |is_plain, byte| {
        is_plain & (b' '..=b'~').contains(byte) & (*byte != b'"') & (*byte != b'\\')
    })
}

/// Escapes what JSON wants escaped, RFC 8259 section 7.
fn append_escaped(text: &[u8], output: &mut Vec<u8>) {
    let mut rest = text;
    let wants_escape = |byte: &u8| *byte < b' ' || *byte == b'"' || *byte == b'\\';
    while let Some(at) = rest.iter().position(wants_escape) {
        let (plain, escaped) = rest.split_at(at);
        output.extend_from_slice(plain);
        match escaped[0] {
            b'\n' => output.extend_from_slice(b"\\n"),
            b'\r' => output.extend_from_slice(b"\\r"),
            b'\t' => output.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => output.extend_from_slice(&[b'\\', byte]),
            byte => {
                output.extend_from_slice(b"\\u00");
                append_hex(&[byte], output);
            }
        }
        rest = &escaped[1..];
    }
    output.extend_from_slice(rest);
}

fn append_hex(bytes: &[u8], output: &mut Vec<u8>) {
    output.extend(
        bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 0xf].map(|digit| HEX_DIGITS[usize::from(digit)])),
    );
}

fn bytes_of_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|it| u8::try_from(it).ok())
    };
    let pairs = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> Moment {
        Moment::of_rfc3339("2026-11-20T12:34:56.123456789Z").unwrap()
    }

    fn encoded(piece: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        Encoder::new(Stream::Stdout, time()).append(piece, &mut output);
        output
    }

    #[test]
    fn an_entry_is_dockers() {
        let line = encoded(b"say \"hi\"\t\x1b[0m\n");

        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"log\":\"say \\\"hi\\\"\\t\\u001b[0m\\n\",\"stream\":\"stdout\",\"time\":\"2026-11-20T12:34:56.123456789Z\"}\n"
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_beside_what_docker_would_write() {
        let line = encoded(b"a\xffb");

        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["log"], "a\u{fffd}b");
        assert_eq!(Entry::parse(&line).unwrap().bytes, b"a\xffb");
    }

    #[test]
    fn an_entry_of_dockers_own_is_read() {
        let line = br#"{"log":"\u003cb\u003e\n","stream":"stderr","attrs":{"a":"b"},"time":"2026-11-20T12:34:56.1Z"}"#;

        let entry = Entry::parse(line).unwrap();

        assert_eq!(entry.bytes, b"<b>\n");
        assert_eq!(entry.stream, Stream::Stderr);
    }

    #[test]
    fn what_is_missing_is_counted() {
        let mut line = Vec::new();
        Encoder::new(Stream::Stderr, time()).append_lost(77, &mut line);

        let entry = Entry::parse(&line).unwrap();

        assert_eq!((entry.bytes.as_slice(), entry.lost_bytes), (&b""[..], 77));
    }

    proptest! {
        #[test]
        fn whatever_was_written_is_read_again(piece in proptest::collection::vec(any::<u8>(), 0..500)) {
            let line = encoded(&piece);
            prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            prop_assert!(line.len() <= MAX_ENTRY_BYTES);
            let entry = Entry::parse(&line).unwrap();
            prop_assert_eq!(entry.bytes, piece);
            prop_assert_eq!(entry.time, time());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::parse(&line);
        }

        #[test]
        fn no_damaged_line_makes_the_parser_panic(cut in 0usize..120, flipped in any::<u8>()) {
            let mut line = encoded(b"some \xff text\n");
            let at = cut.min(line.len() - 1);
            line[at] = flipped;
            let _ = Entry::parse(&line);
            let _ = Entry::parse(&line[..at]);
        }
    }
}
