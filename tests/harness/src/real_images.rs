//! Images made by public tools from Debian packages: `tests/images/<recipe>.sh`, each called with the path to write.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{binary, cache, host};

/// Returns an OCI archive of Debian's python3.
pub fn python3() -> PathBuf {
    recipe(
        "python3",
        &[("mmdebstrap", "mmdebstrap"), ("buildah", "buildah")],
    )
}

/// Returns an OCI archive of a program in Debian's python: the base system, python, what the program depends on, the program.
pub fn python_app() -> PathBuf {
    recipe(
        "python-app",
        &[("mmdebstrap", "mmdebstrap"), ("buildah", "buildah")],
    )
}

/// Returns an OCI archive of eight layers with whiteouts among them, made by buildah on busybox.
pub fn layered() -> PathBuf {
    recipe("layered", &[("buildah", "buildah")])
}

/// Returns an OCI archive of a program of Debian's: `nginx`, `redis`, `postgresql`, `node`, `systemd` or `peers`.
pub fn debian_app(app: &str) -> PathBuf {
    make(
        app,
        "debian-app",
        &[app],
        &[("mmdebstrap", "mmdebstrap"), ("buildah", "buildah")],
    )
}

fn recipe(name: &str, tools: &[(&str, &str)]) -> PathBuf {
    make(name, name, &[], tools)
}

fn make(name: &str, recipe: &str, arguments: &[&str], tools: &[(&str, &str)]) -> PathBuf {
    if let Some(made) = cache::made_elsewhere(&format!("{name}.oci")) {
        return made;
    }
    let script = binary::checkout()
        .join("tests/images")
        .join(recipe)
        .with_extension("sh");
    let text = fs::read(&script)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", script.display()));
    cache::file(&format!("{name}.oci"), &[&text], |output| {
        for (tool, package) in tools {
            host::require_tool(tool, package);
        }
        let made = Command::new("sh")
            .arg(&script)
            .arg(output)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("sh can be run");
        let (said, complaint) = (
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr),
        );
        assert!(
            made.status.success(),
            "{} failed:\n{said}\n{complaint}",
            script.display()
        );
    })
}
