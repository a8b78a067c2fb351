//! Media types: what a descriptor says its blob is.

/// The media types that this program knows.
///
/// Sources: OCI image specification 1.1, "OCI Image Media Types"; Docker's "Image Manifest
/// Version 2, Schema 2".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// A list of manifests for several platforms.
    Index,
    /// One image's manifest.
    Manifest,
    /// An image's configuration.
    Config,
    /// A layer: a tar archive, plain or compressed; its own first bytes say how.
    Layer,
}

impl MediaType {
    /// Parses a media type; `None` for one that is not known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
            "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json" => Self::Config,
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Self::Layer,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oci_and_docker_names_mean_the_same() {
        assert_eq!(
            MediaType::parse("application/vnd.oci.image.manifest.v1+json"),
            Some(MediaType::Manifest)
        );
        assert_eq!(
            MediaType::parse("application/vnd.docker.distribution.manifest.v2+json"),
            Some(MediaType::Manifest)
        );
    }

    #[test]
    fn an_unknown_type_is_none() {
        assert_eq!(MediaType::parse("application/vnd.example.chart+json"), None);
    }
}
