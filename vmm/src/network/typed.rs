//! What is typed about a network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use devices::virtio::net::{MacAddress, MacAddressError};
use protocol::InterfaceAddress;
use thiserror::Error;

use super::bridge::NetworkName;
use crate::limits::ByteSize;

/// Which network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TypedNetwork {
    /// No interface but the guest's own loopback.
    None,
    /// A gateway of the machine's own, which takes no right.
    User {
        /// Whether the host's loopback is reached under the gateway's address.
        host_loopback: bool,
    },
    /// A tap of the host's, by the name of its interface.
    Tap(String),
    /// One that `vmm network create` has made, by its name or id.
    Named(NetworkName),
}

impl Default for TypedNetwork {
    fn default() -> Self {
        Self::User {
            host_loopback: false,
        }
    }
}

/// A network that there is not.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TypedNetworkError {
    /// No name of a tap.
    #[error("a tap has a name, as in tap=tap0")]
    NoTap,
    /// Something else.
    #[error(
        "there is no network '{0}': it is none, user, user:host-loopback, tap=NAME, or the name of one that `vmm network create` has made"
    )]
    Unknown(String),
}

impl FromStr for TypedNetwork {
    type Err = TypedNetworkError;

    fn from_str(text: &str) -> Result<Self, TypedNetworkError> {
        match text.split_once('=') {
            None if text == "none" => Ok(Self::None),
            None if text == "user" => Ok(Self::User {
                host_loopback: false,
            }),
            None if text == "user:host-loopback" => Ok(Self::User {
                host_loopback: true,
            }),
            Some(("tap", "")) => Err(TypedNetworkError::NoTap),
            None if text == "tap" => Err(TypedNetworkError::NoTap),
            Some(("tap", name)) => Ok(Self::Tap(name.to_owned())),
            _ => match text.parse() {
                Ok(name) => Ok(Self::Named(name)),
                Err(_) => Err(TypedNetworkError::Unknown(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for TypedNetwork {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => formatter.write_str("none"),
            Self::User {
                host_loopback: false,
            } => formatter.write_str("user"),
            Self::User {
                host_loopback: true,
            } => formatter.write_str("user:host-loopback"),
            Self::Tap(name) => write!(formatter, "tap={name}"),
            Self::Named(name) => name.fmt(formatter),
        }
    }
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypedMac(pub MacAddress);

impl FromStr for TypedMac {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        text.parse().map(Self)
    }
}

/// An address, with the length of its network's prefix where nobody else knows that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypedAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: Option<u8>,
}

/// A text that is no address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TypedAddressError {
    /// No address.
    #[error("'{0}' is no address, such as 192.168.5.2, with or without a prefix, such as /24")]
    Malformed(String),
    /// The prefix is longer than the address, or nothing.
    #[error("the prefix of {0} has 1 to {1} bits")]
    Prefix(IpAddr, u8),
    /// It is nobody's, or many's.
    #[error("{0} is no address that an interface can have")]
    NotOfOne(IpAddr),
    /// The other family.
    #[error("{0} is no {1} address")]
    Family(IpAddr, &'static str),
}

impl TypedAddress {
    /// The address of an interface, if the prefix was typed.
    #[must_use]
    pub fn interface(self) -> Option<InterfaceAddress> {
        let Self { address, prefix } = self;
        prefix.map(|prefix| InterfaceAddress { address, prefix })
    }

    /// Reads what `--ip` has.
    ///
    /// # Errors
    ///
    /// If it is no address of IPv4.
    pub fn of_ipv4(text: &str) -> Result<Self, TypedAddressError> {
        let typed: Self = text.parse()?;
        match typed.address {
            IpAddr::V4(_) => Ok(typed),
            address @ IpAddr::V6(_) => Err(TypedAddressError::Family(address, "IPv4")),
        }
    }

    /// Reads what `--ip6` has.
    ///
    /// # Errors
    ///
    /// If it is no address of IPv6.
    pub fn of_ipv6(text: &str) -> Result<Self, TypedAddressError> {
        let typed: Self = text.parse()?;
        match typed.address {
            IpAddr::V6(_) => Ok(typed),
            address @ IpAddr::V4(_) => Err(TypedAddressError::Family(address, "IPv6")),
        }
    }
}

impl FromStr for TypedAddress {
    type Err = TypedAddressError;

    fn from_str(text: &str) -> Result<Self, TypedAddressError> {
        let malformed = || TypedAddressError::Malformed(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let prefix: Option<u8> = prefix
            .map(|prefix| prefix.parse().map_err(|_| malformed()))
            .transpose()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if prefix.is_some_and(|prefix| !(1..=bits).contains(&prefix)) {
            return Err(TypedAddressError::Prefix(address, bits));
        }
        let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || is_broadcast
        {
            return Err(TypedAddressError::NotOfOne(address));
        }
        Ok(Self { address, prefix })
    }
}

/// How many bytes an interface may move in a second; none without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypedRates {
    /// To the guest.
    pub receive: Option<ByteSize>,
    /// From the guest.
    pub transmit: Option<ByteSize>,
}

/// A text that names no rate.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is no rate: it is SIZE for both directions, or in=SIZE, out=SIZE, with a comma between them; at least 1k"
)]
pub struct TypedRatesError(String);

impl TypedRates {
    /// A limit below that would keep the longest frame waiting for more than a minute.
    const MIN_BYTES: u64 = 1 << 10;
}

impl FromStr for TypedRates {
    type Err = TypedRatesError;

    fn from_str(text: &str) -> Result<Self, TypedRatesError> {
        let malformed = || TypedRatesError(text.to_owned());
        let size = |text: &str| {
            let size = text.parse::<ByteSize>().ok();
            size.filter(|size| size.bytes() >= Self::MIN_BYTES)
                .ok_or_else(malformed)
        };
        let mut rates = Self::default();
        for part in text.split(',') {
            let place = match part.split_once('=') {
                None if part == text => {
                    let both = Some(size(part)?);
                    return Ok(Self {
                        receive: both,
                        transmit: both,
                    });
                }
                Some(("in", rate)) => rates.receive.replace(size(rate)?),
                Some(("out", rate)) => rates.transmit.replace(size(rate)?),
                _ => return Err(malformed()),
            };
            if place.is_some() {
                return Err(malformed());
            }
        }
        Ok(rates)
    }
}
