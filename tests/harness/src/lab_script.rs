//! Shell scripts in a lab, with the binary and an image.

use std::path::Path;
use std::time::Duration;

use lab::{Lab, LabError};

use crate::binary;

/// How long a lab may take: an emulator starts a database in it.
const LIMIT: Duration = Duration::from_secs(900);

/// A shell's line that waits until a command succeeds, and gives up after a minute.
pub const WAIT_FOR: &str = r#"
wait_for() {
    for turn in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    echo "never: $*"
    exit 99
}
"#;

/// A lab with the binary, and this as `/image.oci`.
#[must_use]
pub fn lab_with(image: &Path) -> Lab {
    let mut lab = Lab::new().unwrap_or_else(|error| panic!("no lab: {error}"));
    lab.limit = LIMIT;
    lab.memory_mib = 6 << 10;
    lab.cpus = 1;
    let mut put = || {
        lab.put_vmm(&binary::vmm(), Path::new("/usr/bin/vmm"))?;
        lab.tree.copy(image, "/image.oci")
    };
    put().unwrap_or_else(|error: LabError| panic!("no lab: {error}"));
    lab
}

/// Runs a script, and returns what it says on both streams.
pub fn in_lab(lab: &mut Lab, script: &str) -> (String, String) {
    let (mut said, mut complaint) = (Vec::new(), Vec::new());
    let ended = lab.run(&["sh", "-c", script], &mut said, &mut complaint);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complaint) = (text(&said), text(&complaint));
    ended.unwrap_or_else(|error| panic!("{error}\n{said}\n{complaint}"));
    (said, complaint)
}
