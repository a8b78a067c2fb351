//! Platforms: what an image was built for.

use std::fmt;
use std::str::FromStr;

/// An operating system, an architecture and its variant, in the names of the OCI image
/// specification ("Image Index Property Descriptions", those of Go).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant of the architecture, if it matters.
    pub variant: Option<String>,
}

/// A string that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform (os/architecture, as in linux/amd64)")]
pub struct ParsePlatformError(String);

impl Platform {
    /// The platform of this host, and so of its guests.
    #[must_use]
    pub fn host() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        }
    }

    /// Whether an image for `other` runs on this platform.
    #[must_use]
    pub fn runs(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || other.variant.is_none() || self.variant == other.variant)
    }
}

impl FromStr for Platform {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, ParsePlatformError> {
        let mut parts = text.split('/');
        let bad = || ParsePlatformError(text.to_owned());
        let mut next = || {
            parts
                .next()
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
        };
        let (os, architecture, variant) =
            (next().ok_or_else(bad)?, next().ok_or_else(bad)?, next());
        if text.ends_with('/') || parts.next().is_some() {
            return Err(bad());
        }
        Ok(Self {
            os,
            architecture,
            variant,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(formatter, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_prints_as_it_was_parsed() {
        assert_eq!(
            "linux/arm64/v8".parse::<Platform>().unwrap().to_string(),
            "linux/arm64/v8"
        );
    }

    #[test]
    fn an_architecture_alone_is_no_platform() {
        assert!("amd64".parse::<Platform>().is_err());
        assert!("linux/".parse::<Platform>().is_err());
    }

    #[test]
    fn another_architecture_does_not_run() {
        assert!(!Platform::host().runs(&"linux/arm64".parse().unwrap()));
        assert!(Platform::host().runs(&"linux/amd64".parse().unwrap()));
    }
}
