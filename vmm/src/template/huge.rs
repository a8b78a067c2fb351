//! Huge pages for what all clones read.
//!
//! A clone's guest reads its kernel and its programs page by page, and each is a fault of its own: the guest is left, the host looks the page up, KVM maps
//! it. Pages that lie together in the host's page cache as one huge page are one fault. The kernel puts them together when asked to
//! (`MADV_COLLAPSE`, Linux 6.1) where the file system can: tmpfs, and others of a kernel with `CONFIG_READ_ONLY_THP_FOR_FS`.
//! Elsewhere, and once the page cache has let go of them, clones take the faults.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use crate::machine::HUGE_PAGE_BYTES;

/// How often to ask while somebody else uses one of the pages for a moment.
const MAX_TRIES: usize = 3;

/// Puts the pages together that begin at each of these places of a file, as far as the host does it.
///
/// # Errors
/// The last thing that the host refused. Linux 6.1 refuses some that it has done.
pub(super) fn put_together<'a>(places: impl Iterator<Item = (&'a File, u64)>) -> io::Result<()> {
    let window = Window::reserve()?;
    let mut all = Ok(());
    for (file, offset_bytes) in places {
        window.show(file, offset_bytes)?;
        let mut tries = 1..=MAX_TRIES;
        let done = loop {
            tries.next();
            match window.collapse() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !tries.is_empty() => {}
                done => break done,
            }
        };
        all = done.and(all);
    }
    all
}

/// Address space for one huge page.
#[derive(Debug)]
struct Window {
    reserved: *mut libc::c_void,
    aligned: *mut libc::c_void,
}

impl Window {
    fn reserve() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: this takes address space that nobody has.
        let reserved = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * HUGE_PAGE_BYTES,
                libc::PROT_NONE,
                flags,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let lead = reserved.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        Ok(Self {
            reserved,
            aligned: reserved.wrapping_byte_add(lead),
        })
    }

    /// Shows a part of the file. Executable, because some file systems have huge pages for programs only; where it may not be, as
    /// data.
    fn show(&self, file: &File, offset_bytes: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset_bytes).map_err(io::Error::other)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        for protection in [libc::PROT_READ | libc::PROT_EXEC, libc::PROT_READ] {
            // SAFETY: the place is inside of what `reserve` took: it is a huge page's size behind the beginning at most. Nobody reads
            // it.
            let shown = unsafe {
                libc::mmap(
                    self.aligned,
                    HUGE_PAGE_BYTES,
                    protection,
                    flags,
                    file.as_raw_fd(),
                    offset,
                )
            };
            if shown != libc::MAP_FAILED {
                return Ok(());
            }
        }
        Err(io::Error::last_os_error())
    }

    fn collapse(&self) -> io::Result<()> {
        // SAFETY: the range is this window's own, and its bytes stay what they are.
        match unsafe { libc::madvise(self.aligned, HUGE_PAGE_BYTES, libc::MADV_COLLAPSE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: `reserve` took it, and nobody has a reference into it.
        unsafe { libc::munmap(self.reserved, 2 * HUGE_PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::FileExt;

    use super::*;

    const HUGE: u64 = HUGE_PAGE_BYTES as u64;

    /// How many bytes of the window the host maps by entries of a page directory.
    fn huge_bytes(window: &Window) -> u64 {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:x}-", window.aligned as usize);
        let lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        lines
            .filter_map(|line| line.strip_prefix("ShmemPmdMapped:"))
            .next()
            .map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10)
            .unwrap()
    }

    #[test]
    fn pages_that_were_put_together_are_mapped_at_once() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        for page in 0..3 * HUGE / 4096 {
            file.write_all_at(&[7; 4096], page * 4096).unwrap();
        }

        put_together([(&file, HUGE)].into_iter()).unwrap();

        let window = Window::reserve().unwrap();
        let mut mapped = [0, HUGE].map(|place| {
            window.show(&file, place).unwrap();
            // SAFETY: the file is as long as that.
            let byte = unsafe { ptr::read_volatile(window.aligned.cast::<u8>()) };
            assert_eq!(byte, 7);
            huge_bytes(&window)
        });
        mapped.sort_unstable();
        assert_eq!(mapped, [0, HUGE]);
    }

    #[test]
    fn a_host_that_does_not_do_it_says_so() {
        let short = tempfile::tempfile_in("/dev/shm").unwrap();
        short.write_all_at(&[7; 4096], 0).unwrap();
        assert!(put_together([(&short, HUGE)].into_iter()).is_err());
    }
}
