//! What a workload may use: processor time and memory, parsed once and carried as types.
//!
//! Stands apart from the command line so that the plan and the machine can take these types
//! without knowing how they were typed.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::report::Help;

/// Nanoseconds of processor time in a second of a whole processor.
const NANO_CPUS_PER_CPU: u64 = 1_000_000_000;

/// A quota of processor time, in processors: 1.5 is three halves of a second each second.
///
/// At least [`CpuQuota::MIN`], at most [`CpuQuota::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuQuota {
    nano_cpus: u64,
}

impl CpuQuota {
    /// The smallest quota: a hundredth of a processor, as docker has it.
    pub const MIN: Self = Self {
        nano_cpus: NANO_CPUS_PER_CPU / 100,
    };
    /// The largest quota: as many processors as a machine can have.
    pub const MAX: Self = Self {
        nano_cpus: 32 * NANO_CPUS_PER_CPU,
    };
    /// Length of the period that [`CpuQuota::quota_us`] refers to, docker's and the kernel's default.
    pub const PERIOD_US: u64 = 100_000;

    /// Returns the quota in billionths of a processor.
    #[must_use]
    pub fn nano_cpus(self) -> u64 {
        self.nano_cpus
    }

    /// Returns the number of virtual processors that can use the quota up: the next whole number.
    #[must_use]
    pub fn vcpus(self) -> u8 {
        Self::vcpus_of(self.nano_cpus)
    }

    /// Returns the same for a quota that was written down, in billionths of a processor.
    #[must_use]
    pub fn vcpus_of(nano_cpus: u64) -> u8 {
        u8::try_from(nano_cpus.div_ceil(NANO_CPUS_PER_CPU)).unwrap_or(u8::MAX)
    }

    /// Tells whether the virtual processors alone enforce the quota.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.nano_cpus.is_multiple_of(NANO_CPUS_PER_CPU)
    }

    /// Returns the microseconds of processor time in each period of [`CpuQuota::PERIOD_US`].
    #[must_use]
    pub fn quota_us(self) -> u64 {
        self.nano_cpus / (NANO_CPUS_PER_CPU / Self::PERIOD_US)
    }
}

impl Default for CpuQuota {
    /// One processor.
    fn default() -> Self {
        Self {
            nano_cpus: NANO_CPUS_PER_CPU,
        }
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nano_cpus / NANO_CPUS_PER_CPU;
        let rest = self.nano_cpus % NANO_CPUS_PER_CPU;
        if rest == 0 {
            return write!(formatter, "{whole}");
        }
        let digits = format!("{rest:09}");
        write!(formatter, "{whole}.{}", digits.trim_end_matches('0'))
    }
}

impl FromStr for CpuQuota {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let nano_cpus = match parse_decimal(text, NANO_CPUS_PER_CPU) {
            Decimal::Value(nano_cpus) => nano_cpus,
            Decimal::TooLarge => return Err(LimitError::CpusTooMany(text.to_owned())),
            Decimal::TooPrecise => return Err(LimitError::CpusTooPrecise(text.to_owned())),
            Decimal::NotANumber => return Err(LimitError::NotCpus(text.to_owned())),
        };
        let quota = Self { nano_cpus };
        if quota < Self::MIN {
            return Err(LimitError::CpusTooFew(text.to_owned()));
        }
        if quota > Self::MAX {
            return Err(LimitError::CpusTooMany(text.to_owned()));
        }
        Ok(quota)
    }
}

/// The memory that a workload may use, in bytes.
///
/// The machine around it has more: the guest's kernel and the image's window are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemoryLimit {
    bytes: u64,
}

impl MemoryLimit {
    /// The smallest limit, 6 MiB, as docker has it.
    pub const MIN: Self = Self { bytes: 6 << 20 };
    /// The largest limit, 1 TiB: more than the guest's physical layout is made for.
    pub const MAX: Self = Self { bytes: 1 << 40 };

    /// Returns the limit in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

impl Default for MemoryLimit {
    /// 128 MiB.
    fn default() -> Self {
        Self { bytes: 128 << 20 }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, char); 3] = [(1 << 30, 'g'), (1 << 20, 'm'), (1 << 10, 'k')];
        for (factor, suffix) in UNITS {
            if self.bytes >= factor && self.bytes.is_multiple_of(factor) {
                return write!(formatter, "{}{suffix}", self.bytes / factor);
            }
        }
        write!(formatter, "{}b", self.bytes)
    }
}

impl FromStr for MemoryLimit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let bytes = match parse_size(text) {
            Decimal::Value(bytes) => bytes,
            Decimal::TooLarge => return Err(LimitError::MemoryTooLarge(text.to_owned())),
            Decimal::TooPrecise | Decimal::NotANumber => {
                return Err(LimitError::NotMemory(text.to_owned()));
            }
        };
        let limit = Self { bytes };
        if limit < Self::MIN {
            return Err(LimitError::MemoryTooSmall {
                text: text.to_owned(),
                bytes,
            });
        }
        if limit > Self::MAX {
            return Err(LimitError::MemoryTooLarge(text.to_owned()));
        }
        Ok(limit)
    }
}

/// A size in bytes typed in docker's units (`64m`, `1.5g`, `4096`), without a lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize {
    bytes: u64,
}

impl ByteSize {
    /// A size of so many bytes.
    #[must_use]
    pub const fn of_bytes(bytes: u64) -> Self {
        Self { bytes }
    }

    /// Returns the size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.bytes
    }
}

impl FromStr for ByteSize {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        match parse_size(text) {
            Decimal::Value(bytes) => Ok(Self { bytes }),
            Decimal::TooLarge => Err(LimitError::MemoryTooLarge(text.to_owned())),
            Decimal::TooPrecise | Decimal::NotANumber => {
                Err(LimitError::NotMemory(text.to_owned()))
            }
        }
    }
}

/// Why a limit was refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum LimitError {
    /// The text is not a number of processors.
    #[error("'{0}' is not a number of processors")]
    NotCpus(String),
    /// The quota is below [`CpuQuota::MIN`].
    #[error("{0} processors are too few: the smallest quota is {min}", min = CpuQuota::MIN)]
    CpusTooFew(String),
    /// The quota is above [`CpuQuota::MAX`].
    #[error("{0} processors are too many: the largest quota is {max}", max = CpuQuota::MAX)]
    CpusTooMany(String),
    /// The quota has more than nine decimals.
    #[error("{0} processors are too precise: at most nine decimals are kept")]
    CpusTooPrecise(String),
    /// The text is not a size.
    #[error("'{0}' is not a size in bytes")]
    NotMemory(String),
    /// The limit is below [`MemoryLimit::MIN`].
    #[error("{text} is too little memory ({bytes} bytes): the smallest limit is {min}", min = MemoryLimit::MIN)]
    MemoryTooSmall {
        /// What was typed.
        text: String,
        /// What it means.
        bytes: u64,
    },
    /// The limit is above [`MemoryLimit::MAX`].
    #[error("{0} is too much memory: the largest limit is {max}", max = MemoryLimit::MAX)]
    MemoryTooLarge(String),
}

impl Help for LimitError {
    fn help(&self) -> Option<String> {
        Some(match self {
            Self::NotCpus(_)
            | Self::CpusTooFew(_)
            | Self::CpusTooMany(_)
            | Self::CpusTooPrecise(_) => {
                "give a number from 0.01 to 32, as in --cpus 1.5".to_owned()
            }
            Self::NotMemory(_) | Self::MemoryTooSmall { .. } | Self::MemoryTooLarge(_) => {
                "give a number with a unit b, k, m or g, as in --memory 64m".to_owned()
            }
        })
    }
}

/// What a decimal number turned out to be.
enum Decimal {
    /// The number times the scale, exactly.
    Value(u64),
    /// It does not fit 64 bits.
    TooLarge,
    /// The scale does not hold all its decimals.
    TooPrecise,
    /// It is no plain decimal number.
    NotANumber,
}

/// Parses digits with at most one point and multiplies by `scale` without rounding.
fn parse_decimal(text: &str, scale: u64) -> Decimal {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits_only = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only(whole) || !digits_only(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Decimal::NotANumber;
    }
    let whole = if whole.is_empty() { "0" } else { whole };
    let Ok(whole) = whole.parse::<u64>() else {
        return Decimal::TooLarge;
    };
    let Some(mut value) = whole.checked_mul(scale) else {
        return Decimal::TooLarge;
    };
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let decimals = u32::try_from(fraction.len()).unwrap_or(u32::MAX);
        let (Ok(numerator), Some(denominator)) =
            (fraction.parse::<u128>(), 10u128.checked_pow(decimals))
        else {
            return Decimal::TooPrecise;
        };
        let Some(product) = numerator.checked_mul(u128::from(scale)) else {
            return Decimal::TooPrecise;
        };
        if product % denominator != 0 {
            return Decimal::TooPrecise;
        }
        let Some(sum) = u64::try_from(product / denominator)
            .ok()
            .and_then(|part| value.checked_add(part))
        else {
            return Decimal::TooLarge;
        };
        value = sum;
    }
    Decimal::Value(value)
}

/// Parses docker's sizes: a number, then an optional unit of powers of 1024, then an optional `b` or `ib`.
fn parse_size(text: &str) -> Decimal {
    let unit_start = text
        .find(|character: char| !character.is_ascii_digit() && character != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let scale = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Decimal::NotANumber,
    };
    parse_decimal(number, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus(text: &str) -> CpuQuota {
        text.parse().unwrap()
    }

    fn memory(text: &str) -> MemoryLimit {
        text.parse().unwrap()
    }

    #[test]
    fn a_quota_of_one_and_a_half_needs_two_vcpus() {
        let quota = cpus("1.5");

        assert_eq!(quota.vcpus(), 2);
        assert_eq!(quota.quota_us(), 150_000);
        assert!(!quota.is_whole());
    }

    #[test]
    fn a_whole_quota_is_enforced_by_the_vcpus_alone() {
        let quota = cpus("3");

        assert_eq!(quota.vcpus(), 3);
        assert!(quota.is_whole());
    }

    #[test]
    fn a_quota_may_leave_out_the_digit_before_the_point() {
        assert_eq!(cpus(".5"), cpus("0.50"));
        assert_eq!(cpus("2."), cpus("2"));
    }

    #[test]
    fn a_quota_prints_as_it_would_be_typed() {
        assert_eq!(cpus("1.50").to_string(), "1.5");
        assert_eq!(cpus("32").to_string(), "32");
    }

    #[test]
    fn quotas_outside_the_range_are_refused() {
        assert_eq!(
            "0".parse::<CpuQuota>(),
            Err(LimitError::CpusTooFew("0".into()))
        );
        assert_eq!(
            "1000".parse::<CpuQuota>(),
            Err(LimitError::CpusTooMany("1000".into()))
        );
        assert_eq!(
            "32.000000001".parse::<CpuQuota>(),
            Err(LimitError::CpusTooMany("32.000000001".into()))
        );
        assert_eq!(
            "99999999999999999999999".parse::<CpuQuota>(),
            Err(LimitError::CpusTooMany("99999999999999999999999".into()))
        );
        assert_eq!(
            "1.0000000001".parse::<CpuQuota>(),
            Err(LimitError::CpusTooPrecise("1.0000000001".into()))
        );
    }

    #[test]
    fn what_is_no_plain_number_is_no_quota() {
        let refused = |text: &str| {
            assert_eq!(
                text.parse::<CpuQuota>(),
                Err(LimitError::NotCpus(text.into()))
            );
        };

        refused("");
        refused(".");
        refused("-1");
        refused("1e3");
        refused("NaN");
        refused("1.2.3");
        refused("two");
    }

    #[test]
    fn memory_units_are_powers_of_1024_in_either_case() {
        assert_eq!(memory("64m").bytes(), 64 << 20);
        assert_eq!(memory("64M").bytes(), 64 << 20);
        assert_eq!(memory("64MiB").bytes(), 64 << 20);
        assert_eq!(memory("64 mb").bytes(), 64 << 20);
        assert_eq!(memory("1.5g").bytes(), 1536 << 20);
        assert_eq!(memory("8388608").bytes(), 8 << 20);
        assert_eq!(memory("8192k").bytes(), 8 << 20);
    }

    #[test]
    fn memory_prints_in_the_largest_unit_that_fits() {
        assert_eq!(memory("2048m").to_string(), "2g");
        assert_eq!(memory("6291457").to_string(), "6291457b");
        assert_eq!(MemoryLimit::default().to_string(), "128m");
    }

    #[test]
    fn memory_outside_the_range_is_refused() {
        assert_eq!(
            "1".parse::<MemoryLimit>(),
            Err(LimitError::MemoryTooSmall {
                text: "1".into(),
                bytes: 1
            })
        );
        assert_eq!(
            "5m".parse::<MemoryLimit>(),
            Err(LimitError::MemoryTooSmall {
                text: "5m".into(),
                bytes: 5 << 20
            })
        );
        assert_eq!(
            "2t".parse::<MemoryLimit>(),
            Err(LimitError::MemoryTooLarge("2t".into()))
        );
        assert_eq!(
            "99999999999999999999g".parse::<MemoryLimit>(),
            Err(LimitError::MemoryTooLarge("99999999999999999999g".into()))
        );
    }

    #[test]
    fn what_is_no_size_is_no_memory() {
        let refused = |text: &str| {
            assert_eq!(
                text.parse::<MemoryLimit>(),
                Err(LimitError::NotMemory(text.into()))
            );
        };

        refused("");
        refused("m");
        refused("64x");
        refused("-64m");
        refused("64m64");
    }

    proptest::proptest! {
        #[test]
        fn every_quota_is_read_as_it_is_printed(nano_cpus in CpuQuota::MIN.nano_cpus()..=CpuQuota::MAX.nano_cpus()) {
            let quota = CpuQuota { nano_cpus };

            assert_eq!(cpus(&quota.to_string()), quota);
        }

        #[test]
        fn every_limit_is_read_as_it_is_printed(bytes in MemoryLimit::MIN.bytes()..=MemoryLimit::MAX.bytes()) {
            let limit = MemoryLimit { bytes };

            assert_eq!(memory(&limit.to_string()), limit);
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = text.parse::<CpuQuota>();
            let _ = text.parse::<MemoryLimit>();
        }
    }

    #[test]
    fn the_refusal_says_what_would_be_taken() {
        let error = "1".parse::<MemoryLimit>().unwrap_err();

        assert_eq!(
            error.to_string(),
            "1 is too little memory (1 bytes): the smallest limit is 6m"
        );
        assert_eq!(
            error.help().unwrap(),
            "give a number with a unit b, k, m or g, as in --memory 64m"
        );
    }
}
