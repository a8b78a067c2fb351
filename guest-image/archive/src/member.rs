//! A member of an archive: a file, and what is said of it.

use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{FileType, Stat};
use thiserror::Error;

/// A member of an archive, without its content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// Its path, without a slash at the end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with the bits for set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of its last change, in seconds since 1970.
    pub mtime_s: i64,
    /// Length of its content; 0 for what has none.
    pub size_bytes: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a member is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, with what it says.
    Symlink(Vec<u8>),
    /// Another name of a member that came before.
    HardLink(Vec<u8>),
    /// A fifo.
    Fifo,
    /// A character device, by major and minor number.
    CharacterDevice(u32, u32),
    /// A block device, by major and minor number.
    BlockDevice(u32, u32),
}

impl Member {
    /// An empty file of root's, without a path.
    #[must_use]
    pub fn empty_file() -> Self {
        Self {
            path: Vec::new(),
            kind: Kind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            mtime_s: 0,
            size_bytes: 0,
            xattrs: Vec::new(),
        }
    }

    /// What stat(2) says of a file, but for its links; nothing of a socket, which no archive can hold.
    pub(crate) fn of(stat: &Stat, path: Vec<u8>) -> Option<Self> {
        let numbers = || {
            (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            )
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink(Vec::new()),
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharacterDevice(numbers().0, numbers().1),
            FileType::BlockDevice => Kind::BlockDevice(numbers().0, numbers().1),
            _ => return None,
        };
        let size_bytes = match kind {
            Kind::File => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        };
        Some(Self {
            path,
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime_s: stat.st_mtime,
            size_bytes,
            xattrs: Vec::new(),
        })
    }
}

/// A name that is no path below a directory.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum BadName {
    /// It goes up.
    #[error("the name `{0}` leads out of the destination")]
    LeadsOut(String),
    /// It is longer than Linux takes, or has a NUL byte.
    #[error("the name `{0}` is none that a file can have")]
    Unusable(String),
}

/// Takes a name of an archive apart: what is left of it below the destination, whatever slashes and `.` it has.
///
/// # Errors
///
/// If it has `..`, a NUL byte, or too many bytes.
pub fn components(name: &[u8]) -> Result<Vec<&[u8]>, BadName> {
    let shown = || shown(name);
    if name.len() > crate::MAX_PATH_BYTES || name.contains(&0) {
        return Err(BadName::Unusable(shown()));
    }
    let parts: Vec<&[u8]> = name
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    match parts.contains(&&b".."[..]) {
        true => Err(BadName::LeadsOut(shown())),
        false => Ok(parts),
    }
}

/// A path as messages show it: bounded.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = std::ffi::OsStr::from_bytes(path).display().to_string();
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Joins two paths, either of which may be empty.
pub(crate) fn join(above: &[u8], below: &[u8]) -> Vec<u8> {
    match (above.is_empty(), below.is_empty()) {
        (true, _) => below.to_vec(),
        (_, true) => above.to_vec(),
        _ => [above, b"/", below].concat(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn slashes_and_dots_say_nothing() {
        assert_eq!(components(b"//a/./b//c/.").unwrap(), [b"a", b"b", b"c"]);
        assert_eq!(components(b"./").unwrap(), [b""; 0]);
    }

    #[test]
    fn no_name_goes_up() {
        assert!(components(b"a/../../b").is_err());
        assert!(components(b"..").is_err());
        assert!(components(b"..a/b..").is_ok());
    }

    proptest! {
        #[test]
        fn what_is_left_of_any_name_stays_below(name in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(parts) = components(&name) {
                for part in parts {
                    prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                    prop_assert!(!part.contains(&b'/') && !part.contains(&0));
                }
            }
        }
    }
}
