//! How fast the disks of a machine may be, in docker's words.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{TypedMount, TypedSource};
use crate::limits::ByteSize;
use crate::machine::{Rate, RateLimits};
use crate::report::Help;

/// What a disk may do in a second; none where there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLimits {
    /// Bytes that are read.
    pub read_bytes: Option<u64>,
    /// Bytes that are written.
    pub write_bytes: Option<u64>,
    /// Requests that read.
    pub read_requests: Option<u64>,
    /// Requests that write.
    pub write_requests: Option<u64>,
}

impl From<DiskLimits> for RateLimits {
    fn from(limits: DiskLimits) -> Self {
        Self {
            read: Rate {
                bytes: limits.read_bytes,
                requests: limits.read_requests,
            },
            write: Rate {
                bytes: limits.write_bytes,
                requests: limits.write_requests,
            },
        }
    }
}

/// What a limit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// `--device-read-bps`.
    ReadBytes,
    /// `--device-write-bps`.
    WriteBytes,
    /// `--device-read-iops`.
    ReadRequests,
    /// `--device-write-iops`.
    WriteRequests,
}

/// A limit of one disk, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedRate {
    /// What the disk is called: the name of a volume, the path of a disk, or where it is mounted.
    disk: String,
    /// How much in a second.
    limit: u64,
}

/// A limit that cannot be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RateError {
    /// It has another form.
    #[error("'{0}' is no limit as in data:10m")]
    Form(String),
    /// It is not above 0.
    #[error("'{0}' lets nothing through")]
    Nothing(String),
    /// The machine has no such disk.
    #[error("the machine has no volume or disk '{0}'")]
    NoSuchDisk(String),
}

impl Help for RateError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoSuchDisk(_) => Some(
                "name a volume, the path of a disk, or where one of them is mounted".to_owned(),
            ),
            Self::Form(_) | Self::Nothing(_) => None,
        }
    }
}

impl FromStr for TypedRate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError::Form(text.to_owned());
        let (disk, limit) = text.rsplit_once(':').ok_or_else(wrong)?;
        let limit: ByteSize = limit.parse().map_err(|_| wrong())?;
        if disk.is_empty() {
            return Err(wrong());
        }
        match limit.bytes() {
            0 => Err(RateError::Nothing(text.to_owned())),
            limit => Ok(Self {
                disk: disk.to_owned(),
                limit,
            }),
        }
    }
}

impl TypedRate {
    /// Notes the limit with every mount of its disk.
    ///
    /// # Errors
    ///
    /// [`RateError::NoSuchDisk`].
    pub fn apply(&self, limited: Limited, mounts: &mut [TypedMount]) -> Result<(), RateError> {
        let mut is_known = false;
        for mount in mounts {
            let is_meant = mount.destination == self.disk;
            let limits = match &mut mount.source {
                TypedSource::Volume(volume)
                    if is_meant
                        || volume
                            .name
                            .as_ref()
                            .is_some_and(|name| name.as_str() == self.disk) =>
                {
                    &mut volume.limits
                }
                TypedSource::Disk(disk)
                    if is_meant || disk.source.as_os_str() == self.disk.as_str() =>
                {
                    &mut disk.limits
                }
                _ => continue,
            };
            is_known = true;
            *match limited {
                Limited::ReadBytes => &mut limits.read_bytes,
                Limited::WriteBytes => &mut limits.write_bytes,
                Limited::ReadRequests => &mut limits.read_requests,
                Limited::WriteRequests => &mut limits.write_requests,
            } = Some(self.limit);
        }
        match is_known {
            true => Ok(()),
            false => Err(RateError::NoSuchDisk(self.disk.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rate(text: &str) -> Result<TypedRate, RateError> {
        text.parse()
    }

    #[test]
    fn a_limit_is_that_of_the_disk_that_it_names() {
        let here = Path::new("/");
        let mut mounts = [
            TypedMount::of_volume_flag("data:/data", here).unwrap(),
            TypedMount::of_disk_flag("/srv/image:/disk", here).unwrap(),
        ];

        rate("data:10m")
            .unwrap()
            .apply(Limited::ReadBytes, &mut mounts)
            .unwrap();
        rate("/srv/image:50")
            .unwrap()
            .apply(Limited::WriteRequests, &mut mounts)
            .unwrap();
        let unknown = rate("other:1")
            .unwrap()
            .apply(Limited::ReadBytes, &mut mounts);

        let (TypedSource::Volume(volume), TypedSource::Disk(disk)) =
            (&mounts[0].source, &mounts[1].source)
        else {
            panic!("{mounts:?}");
        };
        assert_eq!(volume.limits.read_bytes, Some(10 << 20));
        assert_eq!(disk.limits.write_requests, Some(50));
        assert_eq!(unknown, Err(RateError::NoSuchDisk("other".to_owned())));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        assert_eq!(rate("data"), Err(RateError::Form("data".to_owned())));
        assert_eq!(rate(":1m"), Err(RateError::Form(":1m".to_owned())));
        assert_eq!(
            rate("data:fast"),
            Err(RateError::Form("data:fast".to_owned()))
        );
        assert_eq!(rate("data:0"), Err(RateError::Nothing("data:0".to_owned())));
    }
}
