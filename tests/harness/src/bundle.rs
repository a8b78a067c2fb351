//! Bundles of the runtime-spec, for engines that take nothing else.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::host;

/// Unpacks an image's archive as a bundle, by umoci.
pub fn unpack(archive: &Path, bundle: &Path) {
    host::require_tool("skopeo", "skopeo");
    host::require_tool("umoci", "umoci");
    let layout = bundle.with_extension("layout");
    run(Command::new("skopeo")
        .args(["copy", "--quiet"])
        .arg(format!("oci-archive:{}", archive.display()))
        .arg(format!("oci:{}:image", layout.display())));
    let is_root = rustix::process::geteuid().is_root();
    run(Command::new("umoci")
        .arg("unpack")
        .args((!is_root).then_some("--rootless"))
        .arg("--image")
        .arg(format!("{}:image", layout.display()))
        .arg(bundle));
}

/// A bundle's configuration, without a terminal, and with this command unless it is empty.
pub fn configuration(bundle: &Path, command: &[&str]) -> Value {
    let text = fs::read(bundle.join("config.json")).expect("umoci writes a configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("which is JSON");
    config["process"]["terminal"] = false.into();
    if !command.is_empty() {
        config["process"]["args"] = command.into();
    }
    config
}

fn run(command: &mut Command) {
    let done = command.output().expect("the tool was there before");
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}
