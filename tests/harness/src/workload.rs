//! Static programs that run inside the guest and assert there what only the guest can see.
//!
//! Their sources lie in `tests/workloads`; each is one file without dependencies, compiled by `rustc` when first needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{binary, cache};

/// Flags for a static executable that runs at a fixed address, with the target that every machine of ours has.
const FLAGS: [&str; 8] = [
    "--edition=2024",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Cdebug-assertions=on",
    "-Dwarnings",
];

/// Flags for a library that is preloaded.
const LIBRARY_FLAGS: [&str; 6] = [
    "--edition=2024",
    "--crate-type=cdylib",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Cstrip=symbols",
    "-Dwarnings",
];

/// Returns the bytes of the static program made from `tests/workloads/<name>.rs`.
pub fn program(name: &str) -> Vec<u8> {
    fs::read(program_file(name)).expect("a cached program can be read")
}

/// Returns the file that holds the program.
pub fn program_file(name: &str) -> PathBuf {
    compiled(name, &FLAGS)
}

/// Returns the file that holds the library made from `tests/workloads/<name>.rs`, for programs of this machine.
pub fn library_file(name: &str) -> PathBuf {
    compiled(name, &LIBRARY_FLAGS)
}

fn compiled(name: &str, flags: &[&str]) -> PathBuf {
    if let Some(made) = cache::made_elsewhere(name) {
        return made;
    }
    let source = binary::checkout()
        .join("tests/workloads")
        .join(name)
        .with_extension("rs");
    let text = fs::read(&source)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", source.display()));
    let compiler = Command::new("rustc")
        .arg("--version")
        .output()
        .expect("rustc can be run")
        .stdout;
    let words = flags.join(" ");
    cache::file(name, &[&text, &compiler, words.as_bytes()], |output| {
        compile(&source, flags, output)
    })
}

fn compile(source: &Path, flags: &[&str], output: &Path) {
    let made = Command::new("rustc")
        .args(flags)
        .arg("-o")
        .arg(output)
        .arg(source)
        .output()
        .expect("rustc can be run");
    let complaint = String::from_utf8_lossy(&made.stderr);
    assert!(
        made.status.success(),
        "cannot compile {}:\n{complaint}",
        source.display()
    );
}
