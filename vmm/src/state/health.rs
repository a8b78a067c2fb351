//! What is written down about a workload's health, beside the record: it changes often, and is of no use once the host has gone down.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::policy::Health;

/// The file, in the machine's directory.
const HEALTH: &str = "health.json";
/// The next one while it is written.
const NEXT_HEALTH: &str = "health.json.next";
/// Five outputs of 4 KiB, each character of which JSON may spell in six.
const MAX_HEALTH_BYTES: u64 = 256 << 10;

/// Writes down how well a machine's workload is.
#[derive(Debug)]
pub struct HealthMark(PathBuf);

impl HealthMark {
    pub(super) fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Writes it down, so that every reader sees the old or the new. That it cannot be only misleads whoever looks.
    pub fn set(&self, health: &Health) {
        if let Err(error) = self.write(health) {
            tracing::debug!(%error, "a workload's health is not written down");
        }
    }

    fn write(&self, health: &Health) -> io::Result<()> {
        let next = self.0.join(NEXT_HEALTH);
        let text = serde_json::to_vec(health)?;
        File::create(&next)?.write_all(&text)?;
        fs::rename(next, self.0.join(HEALTH))
    }
}

/// Reads what is written down in a machine's directory; nothing if it cannot be read.
pub(super) fn read(directory: &Path) -> Option<Health> {
    let mut text = Vec::new();
    let file = File::open(directory.join(HEALTH)).ok()?;
    file.take(MAX_HEALTH_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::HealthStatus;

    #[test]
    fn what_was_written_down_is_read_and_damage_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let health = Health {
            status: HealthStatus::Unhealthy,
            failing_streak: 4,
            ..Health::default()
        };
        assert_eq!(read(directory.path()), None);

        HealthMark::new(directory.path()).set(&health);
        let written = read(directory.path());
        fs::write(directory.path().join(HEALTH), "{").unwrap();

        assert_eq!(written, Some(health));
        assert_eq!(read(directory.path()), None);
    }
}
