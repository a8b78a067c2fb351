//! Paths in a layer.

use serde::{Deserialize, Serialize};

use super::super::erofs::NAME_MAX_BYTES;

/// `PATH_MAX` without its NUL: no unpacking runtime can make longer ones.
const PATH_MAX_BYTES: usize = 4095;

/// A path below the root of a file system: no empty, `.` or `..` component, no longer than Linux
/// allows; empty for the root itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(in crate::image) struct LayerPath(Box<[u8]>);

/// Why a name in an archive is no path of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It leads above the root.
    #[error("leads out of the image's root")]
    Escapes,
    /// It begins at the root of whoever unpacks it.
    #[error("is absolute")]
    Absolute,
    /// It or a component is longer than Linux allows.
    #[error("is longer than Linux allows")]
    TooLong,
}

impl LayerPath {
    /// Cleans a name as unpacking runtimes do: leading slashes dropped, `.` and `..` resolved
    /// by the text alone; what would lead above the root is refused.
    pub(in crate::image) fn clean(name: &[u8]) -> Result<Self, BadPath> {
        let mut kept: Vec<&[u8]> = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => {
                    kept.pop().ok_or(BadPath::Escapes)?;
                }
                long if long.len() > NAME_MAX_BYTES => return Err(BadPath::TooLong),
                component => kept.push(component),
            }
        }
        let path = kept.join(&b'/');
        if path.len() > PATH_MAX_BYTES {
            Err(BadPath::TooLong)
        } else {
            Ok(Self(path.into()))
        }
    }

    /// The components, outermost first.
    pub(in crate::image) fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|component| !component.is_empty())
    }

    /// Parent and last component; `None` for the root.
    pub(in crate::image) fn split(&self) -> Option<(Self, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        let slash = self.0.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&[][..], &self.0[..]), |at| {
            (&self.0[..at], &self.0[at + 1..])
        });
        Some((Self(parent.into()), name))
    }

    /// The path of `name` in this directory.
    pub(in crate::image) fn join(&self, name: &[u8]) -> Self {
        if self.0.is_empty() {
            Self(name.into())
        } else {
            Self([&self.0, &b"/"[..], name].concat().into())
        }
    }

    /// The path for a message.
    pub(in crate::image) fn display(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn clean(name: &[u8]) -> Result<String, BadPath> {
        LayerPath::clean(name).map(|path| path.display())
    }

    #[test]
    fn absolute_and_dotted_names_are_the_same_path() {
        assert_eq!(clean(b"/usr//bin/./x/"), Ok("/usr/bin/x".to_owned()));
        assert_eq!(clean(b"./usr/lib/../bin/x"), Ok("/usr/bin/x".to_owned()));
    }

    #[test]
    fn the_root_has_many_names() {
        assert_eq!(clean(b"./"), Ok("/".to_owned()));
        assert_eq!(clean(b"a/.."), Ok("/".to_owned()));
    }

    #[test]
    fn a_name_that_leads_above_the_root_is_refused() {
        assert_eq!(clean(b"../etc/passwd"), Err(BadPath::Escapes));
        assert_eq!(clean(b"a/../../b"), Err(BadPath::Escapes));
        assert_eq!(clean(b"/.."), Err(BadPath::Escapes));
    }

    #[test]
    fn a_name_of_256_bytes_is_refused() {
        assert_eq!(clean(&[b'a'; 256]), Err(BadPath::TooLong));
        assert!(clean(&[b'a'; 255]).is_ok());
    }

    proptest! {
        #[test]
        fn a_cleaned_path_has_no_dots_left(name in proptest::collection::vec(prop_oneof![Just(b'.'), Just(b'/'), any::<u8>()], 0..60)) {
            if let Ok(path) = LayerPath::clean(&name) {
                prop_assert!(path.components().all(|c| !matches!(c, b"" | b"." | b"..")));
            }
        }
    }
}
