//! A tap of the host's: a network interface whose other end is a descriptor (Documentation/networking/tuntap.rst).
#![expect(
    unsafe_code,
    reason = "the kernel's requests to a tap have no safe wrapper; each block says why it is sound"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{
    IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, SIOCGIFMTU, TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4,
    TUN_F_TSO6, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, c_int, c_uint,
};
use thiserror::Error;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::HEADER_BYTES;
use super::link::{Agreed, Link};
use crate::guest_io;
use crate::virtio::DeviceSlice;

/// What makes taps.
const TUN: &str = "/dev/net/tun";

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The host's kernel has no taps.
    #[error("there is no {TUN} on this host")]
    NoTun,
    /// It may not be opened.
    #[error("{TUN} cannot be opened")]
    Open(#[source] io::Error),
    /// There is no interface of this name.
    #[error("there is no network interface {0:?} on this host")]
    NoInterface(String),
    /// The name is none of an interface.
    #[error("{0:?} is not the name of a network interface")]
    BadName(String),
    /// The interface is another kind.
    #[error("the network interface {0:?} is not a tap with one queue")]
    NotATap(String),
    /// The tap belongs to somebody else.
    #[error("no right to use the tap {0:?}")]
    NoRight(String),
    /// The tap has a user.
    #[error("the tap {0:?} is in use")]
    InUse(String),
    /// The kernel refuses it.
    #[error("the tap {name:?} cannot be used")]
    Refused {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A tap: one that is there and was made by somebody else, or one of ours. What it is on the host's side is not touched here.
#[derive(Debug)]
pub struct Tap {
    file: File,
    mtu: u16,
}

impl Tap {
    /// Opens the tap of this name in the network namespace of the caller.
    ///
    /// # Errors
    ///
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        let mut request = request_for(name).ok_or_else(|| TapError::BadName(name.to_owned()))?;
        // Before it is asked for: an interface that is not there would be made.
        let mtu = mtu(&mut request, name)?;
        let file = connect(&mut request, name)?;
        Ok(Self { file, mtu })
    }

    /// Makes a tap of this name, which goes when the last handle of it is closed. It is down, and has the usual length of packets
    /// until somebody changes that: `mtu` is what it is to be.
    ///
    /// # Errors
    ///
    /// [`TapError`]; [`TapError::InUse`] if there is an interface of this name.
    pub fn make(name: &str, mtu: u16) -> Result<Self, TapError> {
        let mut request = request_for(name).ok_or_else(|| TapError::BadName(name.to_owned()))?;
        match self::mtu(&mut request, name) {
            Err(TapError::NoInterface(_)) => {}
            Ok(_) => return Err(TapError::InUse(name.to_owned())),
            Err(error) => return Err(error),
        }
        let file = connect(&mut request, name)?;
        Ok(Self { file, mtu })
    }

    /// The longest packet of the interface.
    #[must_use]
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Makes another handle of the same tap.
    ///
    /// # Errors
    ///
    /// If the kernel gives no descriptor.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            mtu: self.mtu,
        })
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Opens the other end of the tap that a request names; one that is not there is made.
fn connect(request: &mut libc::ifreq, name: &str) -> Result<File, TapError> {
    let refused = |source| TapError::Refused {
        name: name.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoTun,
            _ => TapError::Open(error),
        })?;
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    // SAFETY: `TUNSETIFF` reads and writes an ifreq, which this is.
    if unsafe { ioctl_with_mut_ref(&file, TUNSETIFF, request) } < 0 {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(libc::EINVAL) => TapError::NotATap(name.to_owned()),
            Some(libc::EPERM) => TapError::NoRight(name.to_owned()),
            Some(libc::EBUSY) => TapError::InUse(name.to_owned()),
            _ => refused(error),
        });
    }
    let header_bytes = c_int::try_from(HEADER_BYTES).unwrap_or_default();
    // SAFETY: `TUNSETVNETHDRSZ` reads an int, which this is.
    if unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ, &header_bytes) } < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    Ok(file)
}

/// A request that names an interface.
fn request_for(name: &str) -> Option<libc::ifreq> {
    let is_name = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !is_name {
        return None;
    }
    // SAFETY: an ifreq is numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    Some(request)
}

/// How long packets of the interface are.
fn mtu(request: &mut libc::ifreq, name: &str) -> Result<u16, TapError> {
    let refused = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENODEV) => TapError::NoInterface(name.to_owned()),
        _ => TapError::Refused {
            name: name.to_owned(),
            source,
        },
    };
    let any_socket =
        std::os::unix::net::UnixDatagram::unbound().map_err(|error| TapError::Refused {
            name: name.to_owned(),
            source: error,
        })?;
    // SAFETY: `SIOCGIFMTU` reads and writes an ifreq, which this is.
    if unsafe { ioctl_with_mut_ref(&any_socket, SIOCGIFMTU, request) } < 0 {
        return Err(refused(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has filled in this member; any bytes are an int.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u16::try_from(mtu).unwrap_or(u16::MAX))
}

impl Link for Tap {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn negotiated(&self, Agreed(to_guest): Agreed) -> io::Result<()> {
        let bits: [(bool, c_uint); 4] = [
            (to_guest.checksum(), TUN_F_CSUM),
            (to_guest.tcp4(), TUN_F_TSO4),
            (to_guest.tcp6(), TUN_F_TSO6),
            (to_guest.congestion(), TUN_F_TSO_ECN),
        ];
        let offloads = bits
            .iter()
            .filter(|(is_agreed, _)| *is_agreed)
            .fold(0, |offloads, (_, bit)| offloads | bit);
        // SAFETY: `TUNSETOFFLOAD` takes a number.
        if unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD, offloads.into()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn send(&self, header: &[u8], frame: &[DeviceSlice<'_>]) -> io::Result<()> {
        guest_io::write_message(&self.file, header, frame)
    }

    fn receive(
        &self,
        header: &mut [u8],
        buffers: &[DeviceSlice<'_>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        guest_io::read_message(&self.file, header, buffers, rest)
    }
}
