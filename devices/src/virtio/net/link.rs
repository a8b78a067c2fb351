//! What an interface is connected to: a descriptor that carries frames.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::header::Allowed;
use crate::guest_io;
use crate::virtio::DeviceSlice;

/// A descriptor that carries one Ethernet frame a read or write, each with a header in front ([`HEADER_BYTES`]), and never blocks.
///
/// It belongs to one device, and is used on the event loop's thread. Whoever is at its other end is not trusted: what comes from
/// there is bounded and checked by the device.
///
/// [`HEADER_BYTES`]: super::HEADER_BYTES
pub trait Link: Debug + Send {
    /// What is waited for: readable when there is a frame, writable when there is room for one.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Says what the guest has agreed to; called when its driver starts.
    ///
    /// # Errors
    ///
    /// The kernel's.
    fn negotiated(&self, to_guest: Agreed) -> io::Result<()>;

    /// Sends a frame whole.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is no room for it now; [`is_gone`] tells of the others whether there is a link any more.
    fn send(&self, header: &[u8], frame: &[DeviceSlice<'_>]) -> io::Result<()>;

    /// Receives a frame: its header, then as much as fits into `buffers`, then what fits into `rest`. Returns the length of all
    /// that; 0 if the other end is gone.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if there is none now; [`is_gone`] tells of the others whether there is a link any more.
    fn receive(
        &self,
        header: &mut [u8],
        buffers: &[DeviceSlice<'_>],
        rest: &mut [u8],
    ) -> io::Result<usize>;
}

/// What a guest has agreed to take from a link.
#[derive(Clone, Copy, Debug)]
pub struct Agreed(pub(super) Allowed);

/// Whether an error says that nothing will ever come or go again.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let gone = [
        // The tap was removed (`tun_get` in drivers/net/tun.c).
        libc::EBADFD,
        libc::EBADF,
        libc::ENODEV,
        libc::EPIPE,
        libc::ECONNRESET,
        libc::ECONNREFUSED,
        libc::ENOTCONN,
    ];
    error
        .raw_os_error()
        .is_some_and(|number| gone.contains(&number))
}

/// A socket of type `SOCK_SEQPACKET` (unix(7)) with one frame in each message.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// Takes one end of a pair. The other end takes and gives what [`Offloads`](super::Offloads) of the interface say, whatever
    /// the guest agrees to.
    ///
    /// # Errors
    ///
    /// If it cannot be made not to block.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self(socket))
    }
}

impl Link for FrameSocket {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn negotiated(&self, _to_guest: Agreed) -> io::Result<()> {
        Ok(())
    }

    fn send(&self, header: &[u8], frame: &[DeviceSlice<'_>]) -> io::Result<()> {
        guest_io::send_message(&self.0, header, frame)
    }

    fn receive(
        &self,
        header: &mut [u8],
        buffers: &[DeviceSlice<'_>],
        rest: &mut [u8],
    ) -> io::Result<usize> {
        guest_io::read_message(&self.0, header, buffers, rest)
    }
}
