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

/// Returns the bytes of the static program made from `tests/workloads/<name>.rs`.
pub fn program(name: &str) -> Vec<u8> {
    fs::read(program_file(name)).expect("a cached program can be read")
}

/// Returns the file that holds the program.
pub fn program_file(name: &str) -> PathBuf {
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
    let flags = FLAGS.join(" ");
    cache::file(name, &[&text, &compiler, flags.as_bytes()], |output| {
        compile(&source, output)
    })
}

fn compile(source: &Path, output: &Path) {
    let made = Command::new("rustc")
        .args(FLAGS)
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
