//! Files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file beside the one that it becomes when it is whole; removed if it never is.
#[derive(Debug)]
pub(super) struct PartialFile {
    path: PathBuf,
    /// What to write to.
    pub(super) file: File,
    is_whole: bool,
}

impl PartialFile {
    /// Begins a file that is to replace the one of this path.
    pub(super) fn create(whole: &Path) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(whole.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}", std::process::id()));
        let path = whole.with_file_name(name);
        Ok(Self {
            file: File::create_new(&path)?,
            path,
            is_whole: false,
        })
    }

    /// Puts the file in its place.
    pub(super) fn finish(mut self, whole: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, whole)?;
        self.is_whole = true;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.is_whole {
            let _ = fs::remove_file(&self.path);
        }
    }
}
