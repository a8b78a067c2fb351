//! The empty file system of a guest image, as which the disks of kept machines begin.
//!
//! Most of it reads as zeros, and is no part of the file. It is verified when the first disk is made of it, and remembered like the
//! other files of its version.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{GuestError, GuestImage, Part, remember, remembered};

/// What is written or left out at once: a page.
const GRAIN_BYTES: usize = 4096;

impl GuestImage {
    /// Opens and verifies the empty file system; `None` if this version has none. `cache` remembers that it was verified.
    ///
    /// # Errors
    ///
    /// Any [`GuestError`] that names the file.
    pub fn open_blank(&self, cache: &Path) -> Result<Option<File>, GuestError> {
        let Some(blank) = &self.manifest.blank else {
            return Ok(None);
        };
        let mut part = Part::open(&self.directory, &blank.file, &blank.digest)?;
        let seen = part.verified();
        let name = format!(
            "blank-{}-{:x}-{:x}.json",
            self.manifest.version, seen.dev, seen.ino
        );
        let record = cache.join(name);
        if remembered(&record).as_ref() != Some(&seen) {
            part.verify()?;
            if part.is_settled() {
                remember(&seen, cache, &record);
            }
        }
        Ok(Some(part.file))
    }
}

/// Writes the file without its zeros, and waits until it is on the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), GuestError> {
    write_sparsely(path, bytes).map_err(|source| GuestError::file("write", path, source))
}

fn write_sparsely(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)?;
    let mut offset_bytes = 0;
    for grain in bytes.chunks(GRAIN_BYTES) {
        if grain.iter().any(|byte| *byte != 0) {
            file.write_all_at(grain, offset_bytes)?;
        }
        offset_bytes += u64::try_from(grain.len()).unwrap_or(u64::MAX);
    }
    file.set_len(offset_bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_are_no_part_of_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blank");
        let mut bytes = vec![0; 8 << 20];
        bytes[3 << 20] = 7;

        write(&path, &bytes).unwrap();

        assert!(fs::read(&path).unwrap() == bytes);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
    }
}
