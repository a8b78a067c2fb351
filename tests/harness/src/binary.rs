//! Finds the binary under test and the guest image that belongs to it.

use std::env;
use std::path::{Path, PathBuf};

/// Returns the binary under test: `$VMM`, else `target/release/vmm`, else `target/debug/vmm`.
///
/// The release binary comes first because that is the one a user runs. A path in `VMM` that does not exist is an
/// error and not a reason to look elsewhere.
pub fn vmm() -> PathBuf {
    if let Some(path) = env::var_os("VMM") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "VMM={} is not a file", path.display());
        return path;
    }
    let target = target_directory();
    let candidates = [target.join("release/vmm"), target.join("debug/vmm")];
    candidates
        .iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| {
            panic!(
                "no binary to test: none of {candidates:?} exists (`make` builds it, or set VMM)"
            )
        })
        .clone()
}

/// Returns the directory of installed guest images: `$VMM_GUEST_DIR`, else the one beside the binary.
pub fn guest_directory() -> PathBuf {
    let directory = env::var_os("VMM_GUEST_DIR")
        .map_or_else(|| beside(&vmm(), "../share/vmm/guest"), PathBuf::from);
    assert!(
        directory.join("current").exists(),
        "no guest image in {} (`make` builds and installs it, or set VMM_GUEST_DIR)",
        directory.display()
    );
    directory
}

/// Returns the root of the checkout.
pub fn checkout() -> PathBuf {
    beside(Path::new(env!("CARGO_MANIFEST_DIR")), "")
}

fn target_directory() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| checkout().join("target"), PathBuf::from)
}

fn beside(path: &Path, relative: &str) -> PathBuf {
    path.parent()
        .expect("the path of a file has a parent")
        .join(relative)
}
