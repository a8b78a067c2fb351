//! The keys by which a client leaves a machine to itself: docker's `--detach-keys`.

use std::str::FromStr;

use thiserror::Error;

use crate::report::Help;

/// What a key with the control key held down sends: the low five bits of its code, ASCII.
const CONTROL_MASK: u8 = 0x1f;
/// How the control key is typed in a sequence.
const CONTROL: &str = "ctrl-";

/// A sequence of keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// `ctrl-p,ctrl-q`.
    fn default() -> Self {
        Self(vec![b'p' & CONTROL_MASK, b'q' & CONTROL_MASK])
    }
}

impl FromStr for DetachKeys {
    type Err = DetachKeysError;

    /// As with docker, an empty text is the default.
    fn from_str(text: &str) -> Result<Self, DetachKeysError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let code = |key: &str| code_of(key).ok_or_else(|| DetachKeysError(key.to_owned()));
        text.split(',')
            .map(code)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// What a key sends.
fn code_of(key: &str) -> Option<u8> {
    let (key, has_control) = match key.strip_prefix(CONTROL) {
        Some(key) => (key, true),
        None => (key, false),
    };
    match (key.as_bytes(), has_control) {
        ([code @ (b'a'..=b'z' | b'@' | b'['..=b'_')], true) => Some(code & CONTROL_MASK),
        ([code], false) if code.is_ascii() => Some(*code),
        _ => None,
    }
}

/// A key that there is not.
#[derive(Clone, Debug, Eq, PartialEq, Error)]
#[error("unknown character: '{0}'")]
pub struct DetachKeysError(String);

impl Help for DetachKeysError {
    fn help(&self) -> Option<String> {
        Some(
            "give single characters, or ctrl- with a letter from a to z or one of @[\\]^_, with commas between them, as in ctrl-p,ctrl-q"
                .to_owned(),
        )
    }
}

/// Finds the sequence in what is typed, however that is cut.
#[derive(Debug)]
pub struct KeyFilter {
    keys: Vec<u8>,
    /// What was typed last, and is the beginning of the sequence.
    held: Vec<u8>,
}

/// What becomes of keys that were typed.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Passed {
    /// To be passed on.
    pub bytes: Vec<u8>,
    /// Whether the sequence is complete. What was typed after it is for nobody.
    pub is_detached: bool,
}

impl KeyFilter {
    /// Begins with nothing typed.
    #[must_use]
    pub fn new(keys: &DetachKeys) -> Self {
        Self {
            keys: keys.0.clone(),
            held: Vec::new(),
        }
    }

    /// Takes what was typed. What may be the beginning of the sequence is held back until more is.
    pub fn pass(&mut self, typed: &[u8]) -> Passed {
        let mut passed = Passed::default();
        for key in typed {
            self.held.push(*key);
            while !self.keys.starts_with(&self.held) {
                passed.bytes.push(self.held.remove(0));
            }
            if self.held == self.keys {
                self.held.clear();
                passed.is_detached = true;
                break;
            }
        }
        passed
    }

    /// Gives what is held back, since nothing more is typed.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn codes(text: &str) -> Vec<u8> {
        text.parse::<DetachKeys>().unwrap().0
    }

    #[test]
    fn keys_are_dockers() {
        assert_eq!(codes("ctrl-p,ctrl-q"), [16, 17]);
        assert_eq!(codes("a,ctrl-@,Z"), [b'a', 0, b'Z']);
        assert_eq!(codes("ctrl-a,ctrl-z"), [1, 26]);
        assert_eq!(
            codes("ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_"),
            [27, 28, 29, 30, 31]
        );
        assert_eq!(codes(""), DetachKeys::default().0);
    }

    #[test]
    fn a_key_that_there_is_not_is_named() {
        let refused = |text: &str| text.parse::<DetachKeys>().unwrap_err().to_string();

        assert_eq!(refused("ctrl-p,ctrl-1"), "unknown character: 'ctrl-1'");
        assert_eq!(refused("ctrl-P"), "unknown character: 'ctrl-P'");
        assert_eq!(refused("a,,b"), "unknown character: ''");
        assert_eq!(refused("ab"), "unknown character: 'ab'");
        assert_eq!(refused("ä"), "unknown character: 'ä'");
    }

    #[test]
    fn a_beginning_that_goes_on_otherwise_is_passed_on_as_typed() {
        let mut filter = KeyFilter::new(&DetachKeys::default());

        let first = filter.pass(&[b'a', 16]);
        let second = filter.pass(b"b");
        let twice = filter.pass(&[16, 16]);
        let end = filter.pass(&[17, b'x']);

        assert_eq!(
            (first.bytes.as_slice(), first.is_detached),
            (&b"a"[..], false)
        );
        assert_eq!(second.bytes, [16, b'b']);
        assert_eq!(twice.bytes, [16]);
        assert_eq!((end.bytes.as_slice(), end.is_detached), (&b""[..], true));
    }

    #[test]
    fn a_beginning_that_is_the_end_of_the_input_is_passed_on() {
        let mut filter = KeyFilter::new(&DetachKeys::default());

        assert_eq!(filter.pass(&[16]), Passed::default());
        assert_eq!(filter.rest(), [16]);
    }

    /// Where the sequence is in the input, found in another way.
    fn position_of(keys: &[u8], typed: &[u8]) -> Option<usize> {
        typed.windows(keys.len()).position(|window| window == keys)
    }

    proptest! {
        #[test]
        fn what_is_passed_on_is_what_was_typed_without_the_sequence(
            keys in proptest::collection::vec(b'a'..=b'c', 1..5),
            pieces in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 0..6), 0..12),
        ) {
            let mut filter = KeyFilter::new(&DetachKeys(keys.clone()));
            let typed = pieces.concat();

            let mut passed = Vec::new();
            let mut is_detached = false;
            for piece in &pieces {
                let one = filter.pass(piece);
                passed.extend(one.bytes);
                is_detached = one.is_detached;
                if is_detached {
                    break;
                }
            }
            passed.extend(filter.rest());

            let position = position_of(&keys, &typed);
            prop_assert_eq!(is_detached, position.is_some());
            prop_assert_eq!(passed, &typed[..position.unwrap_or(typed.len())]);
        }

        #[test]
        fn no_more_than_a_part_of_the_sequence_is_held_back(typed in proptest::collection::vec(15_u8..19, 0..40)) {
            let mut filter = KeyFilter::new(&DetachKeys::default());
            filter.pass(&typed);
            prop_assert!(filter.rest().len() < 2);
        }
    }
}
