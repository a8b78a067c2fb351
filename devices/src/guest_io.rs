//! System calls that move data between a descriptor and guest memory without a copy of ours.
//!
//! The one file of this crate with `unsafe` in it. Guest memory cannot be a `&[u8]`: the guest
//! changes it meanwhile. So the kernel is given addresses, and the safety argument is the same
//! everywhere: a `DeviceSlice` is a range of mapped guest memory for as long as it lives, and the
//! kernel's copy from or to it is an access that nobody assumes to be exclusive.
#![expect(
    unsafe_code,
    reason = "the kernel is handed addresses of guest memory, for which no safe wrapper exists"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::bitmap::Bitmap;
use vm_memory::volatile_memory::PtrGuardMut;

use crate::virtio::DeviceSlice;

/// The most ranges that one call takes (`UIO_MAXIOV` in Linux' `include/uapi/linux/uio.h`).
const MAX_RANGES: usize = 1024;

/// The addresses of guest memory ranges, for one call.
struct Ranges {
    vectors: Vec<libc::iovec>,
    /// Keep the ranges mapped while the addresses are in use.
    _guards: Vec<PtrGuardMut>,
}

impl Ranges {
    fn new(ranges: &[DeviceSlice<'_>]) -> Self {
        let guards: Vec<PtrGuardMut> = ranges
            .iter()
            .take(MAX_RANGES)
            .map(DeviceSlice::ptr_guard_mut)
            .collect();
        let vectors = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        Self {
            vectors,
            _guards: guards,
        }
    }

    fn count(&self) -> libc::c_int {
        // At most `MAX_RANGES`.
        libc::c_int::try_from(self.vectors.len()).unwrap_or(0)
    }
}

fn bytes_or_error(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Reads from `file` at `offset` into guest memory; returns how many bytes it was, 0 at the end.
///
/// # Errors
///
/// Returns the error of preadv(2).
pub(crate) fn read_at(
    file: impl AsFd,
    ranges: &[DeviceSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    read_with(file, ranges, offset, 0)
}

/// The same for what is in the host's page cache, without waiting for anything.
///
/// # Errors
///
/// Returns the error of preadv2(2): `WouldBlock` if the file has to be waited for.
pub(crate) fn read_cached_at(
    file: impl AsFd,
    ranges: &[DeviceSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    read_with(file, ranges, offset, libc::RWF_NOWAIT)
}

fn read_with(
    file: impl AsFd,
    ranges: &[DeviceSlice<'_>],
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let guarded = Ranges::new(ranges);
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the vectors are `count` valid iovecs; each names mapped, writable guest memory that
    // outlives the call (`Ranges` guards it). Guest memory holds any bytes.
    let result = unsafe {
        libc::preadv2(
            descriptor,
            guarded.vectors.as_ptr(),
            guarded.count(),
            offset,
            flags,
        )
    };
    let count = bytes_or_error(result)?;
    let mut left = count;
    for range in ranges {
        let length = left.min(range.len());
        range.bitmap().mark_dirty(0, length);
        left -= length;
    }
    Ok(count)
}

/// Writes guest memory to `file` at `offset`; returns how many bytes it was.
///
/// # Errors
///
/// Returns the error of pwritev(2).
pub(crate) fn write_at(
    file: impl AsFd,
    ranges: &[DeviceSlice<'_>],
    offset: u64,
) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let ranges = Ranges::new(ranges);
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the vectors are `count` valid iovecs; each names mapped guest memory that outlives
    // the call (`Ranges` guards it), and the kernel only reads it.
    let result =
        unsafe { libc::pwritev(descriptor, ranges.vectors.as_ptr(), ranges.count(), offset) };
    bytes_or_error(result)
}

/// Sends guest memory on a connected socket, without blocking and without `SIGPIPE`; returns how
/// many bytes it was.
///
/// # Errors
///
/// Returns the error of send(2).
pub(crate) fn send(socket: impl AsFd, range: &DeviceSlice<'_>) -> io::Result<usize> {
    let descriptor = socket.as_fd().as_raw_fd();
    let guard = range.ptr_guard();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the guard names `range.len()` bytes of mapped guest memory that outlives the call,
    // and the kernel only reads it.
    let result = unsafe { libc::send(descriptor, guard.as_ptr().cast(), range.len(), flags) };
    bytes_or_error(result)
}

/// Receives from a connected socket into guest memory, without blocking; returns how many bytes it
/// was, 0 at the end.
///
/// # Errors
///
/// Returns the error of recv(2).
pub(crate) fn receive(socket: impl AsFd, range: &DeviceSlice<'_>) -> io::Result<usize> {
    let descriptor = socket.as_fd().as_raw_fd();
    let guard = range.ptr_guard_mut();
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the guard names `range.len()` bytes of mapped, writable guest memory that outlives
    // the call. Guest memory holds any bytes.
    let result = unsafe { libc::recv(descriptor, guard.as_ptr().cast(), range.len(), flags) };
    let count = bytes_or_error(result)?;
    range.bitmap().mark_dirty(0, count);
    Ok(count)
}

/// The addresses of a message's parts, for one call: what is ours in front, guest memory, what is ours behind.
fn message(head: libc::iovec, ranges: &Ranges, tail: Option<libc::iovec>) -> Vec<libc::iovec> {
    let mut vectors = Vec::with_capacity(ranges.vectors.len() + 2);
    vectors.push(head);
    // The kernel takes no more, with the two of ours.
    vectors.extend(ranges.vectors.iter().take(MAX_RANGES - 2));
    vectors.extend(tail);
    vectors
}

/// An address that the kernel only reads from.
fn readable(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn writable(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

fn is_whole(count: usize, head: &[u8], ranges: &[DeviceSlice<'_>]) -> io::Result<()> {
    let length: usize = ranges.iter().map(DeviceSlice::len).sum();
    if count == head.len() + length {
        return Ok(());
    }
    Err(io::ErrorKind::WriteZero.into())
}

/// Writes `head` and guest memory as one message to a descriptor that takes each write whole.
///
/// # Errors
///
/// Returns the error of writev(2), or `WriteZero` if not all was taken.
pub(crate) fn write_message(
    file: impl AsFd,
    head: &[u8],
    ranges: &[DeviceSlice<'_>],
) -> io::Result<()> {
    let guarded = Ranges::new(ranges);
    let vectors = message(readable(head), &guarded, None);
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(0);
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the vectors are `count` valid iovecs: `head`, and mapped guest memory that outlives the call (`guarded`). The kernel
    // only reads them.
    let result = unsafe { libc::writev(descriptor, vectors.as_ptr(), count) };
    is_whole(bytes_or_error(result)?, head, ranges)
}

/// Sends `head` and guest memory as one message on a connected socket, without blocking and without `SIGPIPE`.
///
/// # Errors
///
/// Returns the error of sendmsg(2), or `WriteZero` if not all was taken.
pub(crate) fn send_message(
    socket: impl AsFd,
    head: &[u8],
    ranges: &[DeviceSlice<'_>],
) -> io::Result<()> {
    let guarded = Ranges::new(ranges);
    let mut vectors = message(readable(head), &guarded, None);
    // SAFETY: an msghdr is numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = vectors.len();
    let descriptor = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header names valid iovecs: `head`, and mapped guest memory that outlives the call (`guarded`). The kernel only
    // reads them.
    let result = unsafe { libc::sendmsg(descriptor, &raw const header, flags) };
    is_whole(bytes_or_error(result)?, head, ranges)
}

/// Reads one message: first into `head`, then into guest memory, then into `tail`. Returns how many bytes it was, 0 at the end.
///
/// # Errors
///
/// Returns the error of readv(2).
pub(crate) fn read_message(
    file: impl AsFd,
    head: &mut [u8],
    ranges: &[DeviceSlice<'_>],
    tail: &mut [u8],
) -> io::Result<usize> {
    let guarded = Ranges::new(ranges);
    let vectors = message(writable(head), &guarded, Some(writable(tail)));
    let count = libc::c_int::try_from(vectors.len()).unwrap_or(0);
    let descriptor = file.as_fd().as_raw_fd();
    // SAFETY: the vectors are `count` valid iovecs: `head` and `tail`, which are borrowed for the call, and mapped, writable guest
    // memory that outlives it (`guarded`). All of it holds any bytes.
    let result = unsafe { libc::readv(descriptor, vectors.as_ptr(), count) };
    let read = bytes_or_error(result)?;
    let mut left = read.saturating_sub(head.len());
    for range in ranges.iter().take(MAX_RANGES - 2) {
        let length = left.min(range.len());
        range.bitmap().mark_dirty(0, length);
        left -= length;
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

    use super::*;
    use crate::virtio::DeviceMemory;
    use crate::virtio::testing::ram;

    fn slice(memory: &DeviceMemory, address: u64, length: usize) -> DeviceSlice<'_> {
        memory
            .get_slices(GuestAddress(address), length, Permissions::ReadWrite)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_file_is_read_into_scattered_memory() {
        let memory = ram(0x4000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let ranges = [slice(&memory, 0x3000, 3), slice(&memory, 0x1000, 4)];
        assert_eq!(read_at(&file, &ranges, 2).unwrap(), 7);
        let mut bytes = [0; 4];
        memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        assert_eq!(&bytes, b"5678");
    }

    #[test]
    fn scattered_memory_is_written_to_a_file() {
        let memory = ram(0x4000);
        memory.write_slice(b"abc", GuestAddress(0x3000)).unwrap();
        memory.write_slice(b"def", GuestAddress(0x1000)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let ranges = [slice(&memory, 0x3000, 3), slice(&memory, 0x1000, 3)];
        assert_eq!(write_at(&file, &ranges, 1).unwrap(), 6);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\0abcdef");
    }

    #[test]
    fn a_socket_without_a_reader_is_an_error_and_no_signal() {
        let memory = ram(0x1000);
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = send(&ours, &slice(&memory, 0, 8)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_empty_socket_does_not_block() {
        let memory = ram(0x1000);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let error = receive(&ours, &slice(&memory, 0, 8)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
