//! What tells that a file has not changed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// Identity, length and times of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
    /// Whether a later change must show: false while the clock still stands where it stood at
    /// the last change.
    #[serde(skip, default = "yes")]
    settled: bool,
}

fn yes() -> bool {
    true
}

/// Time after which a change gives another `ctime`: the kernel's coarse clock ticks at least
/// every 10 ms.
const TICK: Duration = Duration::from_millis(20);

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let changed = u64::try_from(metadata.ctime()).unwrap_or(0);
        let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(changed, nanoseconds);
        let settled = SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|age| age > TICK);
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.size(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
            settled,
        }
    }

    /// Whether the file is what it was.
    pub(super) fn is(&self, metadata: &Metadata) -> bool {
        let now = Self::of(metadata);
        Self {
            settled: true,
            ..now
        } == Self {
            settled: true,
            ..self.clone()
        }
    }

    /// Whether the stamp can be relied on later.
    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }
}
