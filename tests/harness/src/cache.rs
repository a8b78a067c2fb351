//! Things that take long to make, kept outside the checkout by the digest of what they are made from.
//!
//! `${XDG_CACHE_HOME:-~/.cache}/vmm/test-images/<key>`. A thing is made under another name and moved into place when it is
//! whole; tests that want the same thing at once wait for one another on a lock.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::{env, process};

use crate::snapshot;

/// Returns the cached file called `name` made from `inputs`, making it with `make` when it is not there.
///
/// `make` gets the path that it must write.
pub fn file(name: &str, inputs: &[&[u8]], make: impl FnOnce(&Path)) -> PathBuf {
    let key = inputs
        .iter()
        .fold(Vec::from(name.as_bytes()), |mut key, input| {
            // A length before each part keeps ("ab", "c") and ("a", "bc") apart.
            key.extend_from_slice(&input.len().to_le_bytes());
            key.extend_from_slice(input);
            key
        });
    let directory = root().join(snapshot::sha256(&key));
    let path = directory.join(name);
    fs::create_dir_all(&directory).expect("the cache directory can be made");
    let lock = File::create(directory.join("lock")).expect("a lock file can be made");
    lock.lock().expect("a lock file can be locked");
    if !path.exists() {
        announce(&format!(
            "making {name}, which is kept in {}",
            directory.display()
        ));
        let unfinished = directory.join(format!("{name}.{}.unfinished", process::id()));
        make(&unfinished);
        fs::rename(&unfinished, &path).expect("a finished file can be moved into place");
    }
    path
}

/// The variable that names a directory of things by their names, for a machine that cannot make them itself.
pub const MADE_ELSEWHERE: &str = "VMM_TEST_THINGS";

/// Returns the thing called `name` if this machine was given one.
pub fn made_elsewhere(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(MADE_ELSEWHERE)?).join(name);
    path.is_file().then_some(path)
}

#[expect(clippy::print_stderr, reason = "a test that takes long says why")]
fn announce(sentence: &str) {
    eprintln!("{sentence}");
}

fn root() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cache")));
    base.expect("there is a home directory")
        .join("vmm/test-images")
}
