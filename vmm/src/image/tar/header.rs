//! One 512-byte header block.

use super::super::erofs::Timestamp;
use super::sparse::SparseRun;

/// Bytes of a tar block.
pub(in crate::image) const BLOCK: usize = 512;

/// A header block whose checksum holds.
pub(in crate::image) struct Header<'a> {
    block: &'a [u8; BLOCK],
}

/// A field that is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadNumber(pub(super) &'static str);

/// How the 12 bytes behind the classic header are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
}

impl<'a> Header<'a> {
    /// Takes a block for a header; `None` if its checksum is wrong.
    pub(in crate::image) fn parse(block: &'a [u8; BLOCK]) -> Option<Self> {
        let stored = number(&block[148..156])?;
        let unsigned: i64 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    i64::from(*byte)
                }
            })
            .sum();
        // Some old writers summed signed bytes.
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|(i, byte)| {
                if (148..156).contains(&i) {
                    32
                } else {
                    i64::from(byte.cast_signed())
                }
            })
            .sum();
        (stored == unsigned || stored == signed).then_some(Self { block })
    }

    fn format(&self) -> Format {
        match &self.block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar") => Format::Ustar,
            _ => Format::V7,
        }
    }

    /// The name, prefix included.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = if self.format() == Format::Ustar {
            text(&self.block[345..500])
        } else {
            b""
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.block[157..257]).to_vec()
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    pub(super) fn mode(&self) -> Result<u64, BadNumber> {
        self.unsigned(100..108, "mode")
    }

    pub(super) fn uid(&self) -> Result<u64, BadNumber> {
        self.unsigned(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u64, BadNumber> {
        self.unsigned(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, BadNumber> {
        self.unsigned(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, BadNumber> {
        let seconds = number(&self.block[136..148]).ok_or(BadNumber("mtime"))?;
        Ok(Timestamp {
            seconds,
            nanoseconds: 0,
        })
    }

    /// Major and minor device number; zero where the format has none.
    pub(super) fn device(&self) -> Result<(u64, u64), BadNumber> {
        if self.format() == Format::V7 {
            return Ok((0, 0));
        }
        Ok((
            self.unsigned(329..337, "devmajor")?,
            self.unsigned(337..345, "devminor")?,
        ))
    }

    /// The sparse map of an old GNU header: runs, whether more blocks of runs follow, full size.
    pub(super) fn gnu_sparse(&self) -> Result<(Vec<SparseRun>, bool, u64), BadNumber> {
        let runs = sparse_runs(&self.block[386..482])?;
        Ok((
            runs,
            self.block[482] != 0,
            self.unsigned(483..495, "real size")?,
        ))
    }

    fn unsigned(
        &self,
        range: std::ops::Range<usize>,
        field: &'static str,
    ) -> Result<u64, BadNumber> {
        number(&self.block[range])
            .and_then(|value| u64::try_from(value).ok())
            .ok_or(BadNumber(field))
    }
}

/// Reads the runs of an old GNU map: pairs of 12-byte numbers, up to an empty one.
pub(super) fn sparse_runs(bytes: &[u8]) -> Result<Vec<SparseRun>, BadNumber> {
    let bad = BadNumber("sparse map");
    bytes
        .as_chunks::<24>()
        .0
        .iter()
        .take_while(|pair| pair[0] != 0)
        .map(|pair| {
            let offset = number(&pair[..12])
                .and_then(|n| u64::try_from(n).ok())
                .ok_or(bad)?;
            let length = number(&pair[12..])
                .and_then(|n| u64::try_from(n).ok())
                .ok_or(bad)?;
            Ok(SparseRun { offset, length })
        })
        .collect()
}

/// The bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..end]
}

/// A number: octal digits among spaces and NULs, or base-256 when the top bit is set.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        let digits = field.trim_ascii_start();
        let end = digits
            .iter()
            .position(|byte| matches!(byte, 0 | b' '))
            .unwrap_or(digits.len());
        return digits[..end].iter().try_fold(0_i64, |value, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
            value.checked_mul(8)?.checked_add(i64::from(digit))
        });
    }
    // Two's complement, most significant byte first; the mark itself is no digit.
    let start = if first & 0x40 == 0 {
        i64::from(first & 0x3f)
    } else {
        i64::from(first | 0x80) - 256
    };
    rest.iter().try_fold(start, |value, byte| {
        value.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_numbers_may_have_spaces_and_nuls_around() {
        assert_eq!(number(b"  755 \0"), Some(0o755));
        assert_eq!(number(b"\0\0\0\0"), Some(0));
        assert_eq!(number(b"0000644\0"), Some(0o644));
    }

    #[test]
    fn a_digit_nine_is_no_octal_number() {
        assert_eq!(number(b"0000689\0"), None);
    }

    #[test]
    fn base_256_numbers_hold_what_octal_cannot() {
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0, 0, 0, 0x03, 0, 0, 0, 0]),
            Some(3 << 32)
        );
    }

    #[test]
    fn base_256_numbers_can_be_negative() {
        assert_eq!(number(&[0xff; 12]), Some(-1));
    }

    #[test]
    fn a_base_256_number_above_63_bits_is_refused() {
        assert_eq!(
            number(&[
                0x80, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff
            ]),
            None
        );
    }
}
