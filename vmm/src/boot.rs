//! Which boot of the host this is.

use std::fs;
use std::sync::OnceLock;

/// Names this boot of the host (`/proc/sys/kernel/random/boot_id`); empty where that is unknown.
#[must_use]
pub fn id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| {
        fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map(|id| id.trim().to_owned())
            .unwrap_or_default()
    })
}
