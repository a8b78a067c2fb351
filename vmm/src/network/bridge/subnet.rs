//! Ranges of addresses, and which of them a network takes when none was typed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Addresses with a common beginning, in CIDR notation (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    first: IpAddr,
    prefix: u8,
}

/// A text that is no subnet.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SubnetError {
    /// No address with a prefix.
    #[error("invalid CIDR address: {0}")]
    Malformed(String),
    /// An address in it, not its first.
    #[error("invalid subnet {0}: it should be {1}")]
    NotFirst(String, Subnet),
}

impl Subnet {
    /// The subnet of this length that an address is in; none if there can be none.
    #[must_use]
    pub fn around(address: IpAddr, prefix: u8) -> Option<Self> {
        let (value, width) = value(address);
        let rest = u32::from(width.checked_sub(prefix)?);
        let first = value
            .checked_shr(rest)
            .and_then(|kept| kept.checked_shl(rest));
        Some(Self {
            first: of_value(first.unwrap_or(0), address.is_ipv4()),
            prefix,
        })
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The length of the common beginning, in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether it is one of IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.is_ipv4() && Self::around(address, self.prefix) == Some(*self)
    }

    /// Whether an address is in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }

    /// Whether all of another is in it.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.first)
    }

    /// The last address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let (first, width) = value(self.first);
        let rest = u32::from(width.saturating_sub(self.prefix));
        let rest = 1_u128.checked_shl(rest).unwrap_or(0).wrapping_sub(1);
        of_value(first | rest, self.is_ipv4())
    }

    /// Whether an interface may have an address of it: neither the subnet's own, nor the one that is all of its interfaces.
    #[must_use]
    pub fn may_have(&self, address: IpAddr) -> bool {
        let is_point_to_point = self.is_ipv4() && self.prefix >= 31;
        let is_outer = address == self.first || (self.is_ipv4() && address == self.last());
        self.contains(address) && (is_point_to_point || !is_outer)
    }

    /// Its addresses, one after the other. There may be more than anybody can look at.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_ipv4 = self.is_ipv4();
        let (first, last) = (value(self.first).0, value(self.last()).0);
        (first..=last).map(move |value| of_value(value, is_ipv4))
    }
}

/// An address as a number, and how many bits that has.
fn value(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u32::from(address).into(), 32),
        IpAddr::V6(address) => (address.into(), 128),
    }
}

fn of_value(value: u128, is_ipv4: bool) -> IpAddr {
    match is_ipv4 {
        true => Ipv4Addr::from(u32::try_from(value).unwrap_or(u32::MAX)).into(),
        false => Ipv6Addr::from(value).into(),
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let malformed = || SubnetError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let is_number = prefix.bytes().all(|byte| byte.is_ascii_digit());
        let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
        let subnet = Self::around(address, prefix).filter(|_| is_number && prefix > 0);
        let subnet = subnet.ok_or_else(malformed)?;
        match subnet.first == address {
            true => Ok(subnet),
            false => Err(SubnetError::NotFirst(text.to_owned(), subnet)),
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

/// The subnets of IPv4 that networks take by themselves, in their order: docker's default pools.
pub(super) fn usual() -> impl Iterator<Item = Subnet> {
    let large = (17..32).map(|second| (Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..=240)
        .step_by(16)
        .map(|third| (Ipv4Addr::new(192, 168, third, 0), 20));
    large
        .chain(small)
        .filter_map(|(first, prefix)| Subnet::around(first.into(), prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_no_subnet_is_named() {
        for text in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/0",
            "10.0.0/8",
            "10.0.0.0/+8",
            "x/8",
            "fd00::/129",
        ] {
            let error = text.parse::<Subnet>().unwrap_err();
            assert_eq!(error, SubnetError::Malformed(text.to_owned()));
        }
        let error = "10.0.0.5/8".parse::<Subnet>().unwrap_err().to_string();
        assert_eq!(error, "invalid subnet 10.0.0.5/8: it should be 10.0.0.0/8");
    }

    #[test]
    fn its_own_address_and_that_of_all_are_nobodys() {
        let small = subnet("10.0.0.0/30");
        let taken: Vec<_> = small.addresses().filter(|it| small.may_have(*it)).collect();
        assert_eq!(
            taken,
            [
                "10.0.0.1".parse::<IpAddr>().unwrap(),
                "10.0.0.2".parse().unwrap()
            ]
        );
        let two = subnet("10.0.0.0/31");
        assert!(two.addresses().all(|it| two.may_have(it)));
        assert!(!subnet("fd00::/64").may_have("fd00::".parse().unwrap()));
        assert!(subnet("fd00::/64").may_have("fd00::ffff:ffff:ffff:ffff".parse().unwrap()));
    }

    #[test]
    fn no_two_of_the_usual_ones_overlap() {
        let all: Vec<Subnet> = usual().collect();
        assert_eq!((all.len(), all[0]), (31, subnet("172.17.0.0/16")));
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| !one.overlaps(other)));
        }
    }

    proptest! {
        #[test]
        fn a_subnet_is_written_as_it_is_read(address: u32, prefix in 1_u8..=32) {
            let one = Subnet::around(Ipv4Addr::from(address).into(), prefix).unwrap();
            prop_assert_eq!(one.to_string().parse::<Subnet>().unwrap(), one);
            prop_assert!(one.contains(one.first()) && one.contains(one.last()));
        }

        #[test]
        fn two_overlap_if_one_is_in_the_other(a: u32, b: u32, long in 1_u8..=32, short in 1_u8..=32) {
            let one = Subnet::around(Ipv4Addr::from(a).into(), long).unwrap();
            let other = Subnet::around(Ipv4Addr::from(b).into(), short).unwrap();
            prop_assert_eq!(one.overlaps(&other), one.includes(&other) || other.includes(&one));
            prop_assert_eq!(one.overlaps(&other), other.overlaps(&one));
        }

        #[test]
        fn no_text_is_read_with_a_panic(text in ".{0,40}") {
            let _ = text.parse::<Subnet>();
        }
    }
}
