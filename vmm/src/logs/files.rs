//! The names of a machine's log files: the newest has none but its own, older ones a number.

use std::path::{Path, PathBuf};

/// The newest file.
const LOG: &str = "workload.log";

/// Where the newest file of the machine in `directory` is.
#[must_use]
pub fn path_of(directory: &Path) -> PathBuf {
    directory.join(LOG)
}

/// Where the file is that was the newest `age` rotations ago.
pub(super) fn path_of_age(directory: &Path, age: u32) -> PathBuf {
    match age {
        0 => path_of(directory),
        _ => directory.join(format!("{LOG}.{age}")),
    }
}
