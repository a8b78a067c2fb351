//! Names of images, normalised as docker does.
//!
//! Grammar: the distribution project's reference format: `[domain/]path[:tag]`; without a domain
//! `docker.io`, and there without a namespace `library/`; without a tag `latest`.

use std::fmt;
use std::str::FromStr;

/// Docker's domain, which is left out where a name is shown.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Its namespace of official images.
const OFFICIAL: &str = "library/";
/// The tag that no tag means.
const DEFAULT_TAG: &str = "latest";

/// A normalised name: domain, path and tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: String,
}

/// A string that is no image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an image name (as in name, name:tag or registry/path/name:tag, in lower case)"
)]
pub struct ParseReferenceError(String);

impl Reference {
    /// The whole name, nothing left out.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!("{}/{}:{}", self.domain, self.path, self.tag)
    }

    /// The name without its tag, as lists show it.
    #[must_use]
    pub fn repository(&self) -> String {
        if self.domain == DEFAULT_DOMAIN {
            self.path
                .strip_prefix(OFFICIAL)
                .unwrap_or(&self.path)
                .to_owned()
        } else {
            format!("{}/{}", self.domain, self.path)
        }
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, ParseReferenceError> {
        parse(text).ok_or_else(|| ParseReferenceError(text.chars().take(300).collect()))
    }
}

/// Prints the name as a person would type it, with its tag.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.repository(), self.tag)
    }
}

impl serde::Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.canonical())
    }
}

impl<'de> serde::Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Whether any of these names, as a source has them, means `wanted`.
pub(super) fn any_is(names: &[String], wanted: &str) -> bool {
    let parsed = wanted.parse::<Reference>().ok();
    names
        .iter()
        .any(|name| name == wanted || (parsed.is_some() && name.parse().ok() == parsed))
}

fn parse(text: &str) -> Option<Reference> {
    if text.len() > 255 {
        return None;
    }
    let (domain, rest) = match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_DOMAIN, text),
    };
    let (path, tag) = rest.split_once(':').unwrap_or((rest, DEFAULT_TAG));
    let (domain, path) = match domain {
        "index.docker.io" | DEFAULT_DOMAIN if !path.contains('/') => {
            (DEFAULT_DOMAIN, format!("{OFFICIAL}{path}"))
        }
        "index.docker.io" => (DEFAULT_DOMAIN, path.to_owned()),
        domain => (domain, path.to_owned()),
    };
    let fits = is_domain(domain) && path.split('/').all(is_path_component) && is_tag(tag);
    // Sixty-four hexadecimal digits are an identifier, never a name.
    let is_id = super::digest::Digest::from_hex(text).is_some();
    (fits && !is_id).then(|| Reference {
        domain: domain.to_owned(),
        path,
        tag: tag.to_owned(),
    })
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = domain
        .split_once(':')
        .map_or((domain, None), |(host, port)| (host, Some(port)));
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label)
        && port
            .is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Lower-case letters and digits, apart by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let separators = bytes
        .chunk_by(|a, b| is_word(a) == is_word(b))
        .filter(|run| !run.iter().all(is_word));
    let good =
        |run: &[u8]| matches!(run, b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-');
    bytes.first().is_some_and(is_word)
        && bytes.last().is_some_and(is_word)
        && separators.into_iter().all(good)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> Option<String> {
        text.parse::<Reference>().ok().map(|name| name.canonical())
    }

    #[test]
    fn a_word_is_an_official_image_with_the_default_tag() {
        assert_eq!(
            canonical("busybox").unwrap(),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(
            canonical("docker.io/busybox:1").unwrap(),
            "docker.io/library/busybox:1"
        );
        assert_eq!(canonical("me/app").unwrap(), "docker.io/me/app:latest");
    }

    #[test]
    fn a_registry_is_known_by_its_dot_or_port() {
        assert_eq!(
            canonical("localhost:5000/a/b:v1").unwrap(),
            "localhost:5000/a/b:v1"
        );
        assert_eq!(canonical("localhost/a").unwrap(), "localhost/a:latest");
    }

    #[test]
    fn names_are_shown_without_what_goes_without_saying() {
        assert_eq!(
            "docker.io/library/busybox:1"
                .parse::<Reference>()
                .unwrap()
                .to_string(),
            "busybox:1"
        );
        assert_eq!(
            "quay.io/a/b".parse::<Reference>().unwrap().to_string(),
            "quay.io/a/b:latest"
        );
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        assert_eq!(canonical("Busybox"), None);
        assert_eq!(canonical(""), None);
        assert_eq!(canonical("a:"), None);
        assert_eq!(canonical("a//b"), None);
        assert_eq!(canonical("-a"), None);
        assert_eq!(canonical("a..b"), None);
        assert_eq!(canonical(&"a".repeat(64)), None);
    }

    proptest! {
        #[test]
        fn a_normalised_name_stays_as_it_is(text in "[a-z0-9./:_-]{1,40}") {
            if let Ok(name) = text.parse::<Reference>() {
                prop_assert_eq!(name.canonical().parse::<Reference>().unwrap(), name);
            }
        }
    }
}
