//! What goes where: docker's rules for the two paths of `docker cp`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use thiserror::Error;

use crate::member::shown;

/// A path as it was typed, and what its end says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Typed {
    /// Its parts, from the root or from the working directory on, `.` left out; `..` goes up where there is something above.
    pub parts: Vec<Vec<u8>>,
    /// Whether it can only be a directory: it ends with a slash, `.` or `..`.
    pub wants_directory: bool,
    /// Whether what is in the directory is meant, and not the directory.
    pub wants_contents: bool,
}

impl Typed {
    /// Takes a path of a container apart. It begins at the root, whether it has a slash there or not, and there is nothing above.
    #[must_use]
    pub fn new(path: &[u8]) -> Self {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()),
                part => parts.push(part.to_vec()),
            }
        }
        let ends_with =
            |end: &[u8]| path.ends_with(end) || path == end.get(1..).unwrap_or_default();
        let wants_contents = ends_with(b"/.") || parts.is_empty();
        Self {
            wants_directory: path.ends_with(b"/") || wants_contents || ends_with(b"/.."),
            wants_contents,
            parts,
        }
    }

    /// What a copy is called; `None` for the root.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        self.parts.last().map(Vec::as_slice)
    }

    /// The path of the directory that it is in.
    #[must_use]
    pub fn parent(&self) -> Vec<u8> {
        let (_, parents) = self.parts.split_last().unwrap_or((&Vec::new(), &[]));
        parents.join(&b'/')
    }

    /// The path from the root on, without a slash at either end.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        self.parts.join(&b'/')
    }
}

/// What is copied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// Something that is no directory, of this name.
    File(Vec<u8>),
    /// A directory of this name.
    Directory(Vec<u8>),
    /// What is in a directory.
    Contents,
    /// The members of an archive.
    Archive,
}

/// What is where a copy is to go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Destination {
    /// Nothing.
    Nothing {
        /// Whether it was named as a directory.
        wants_directory: bool,
    },
    /// A directory.
    Directory,
    /// Something else.
    File {
        /// Whether it was named as a directory.
        wants_directory: bool,
    },
}

/// Where the first member of a copy goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Place {
    /// Into the directory that is there, under this name.
    Inside(Vec<u8>),
    /// It becomes the destination, which may not exist.
    AtDestination,
    /// The directory that is there gets what is in it.
    Merged,
}

/// A copy that cannot be made.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum PlaceError {
    /// A directory would have to become a file.
    #[error("cannot copy a directory to `{0}`, which is none")]
    DirectoryToFile(String),
    /// A directory is named that is not there.
    #[error("the directory `{0}` does not exist")]
    NoDirectory(String),
    /// It is not what its name says.
    #[error("`{0}` is not a directory")]
    NotADirectory(String),
}

impl Source {
    /// Decides where it goes. `path` is the destination's for messages.
    ///
    /// # Errors
    ///
    /// If it cannot go there.
    pub fn place(&self, destination: Destination, path: &[u8]) -> Result<Place, PlaceError> {
        let path = || shown(OsStr::from_bytes(path).as_bytes());
        let is_file = matches!(self, Self::File(_));
        match (self, destination) {
            (Self::File(name) | Self::Directory(name), Destination::Directory) => {
                Ok(Place::Inside(name.clone()))
            }
            (Self::Contents | Self::Archive, Destination::Directory) => Ok(Place::Merged),
            (Self::Archive, Destination::Nothing { .. }) => Err(PlaceError::NoDirectory(path())),
            (Self::Archive, Destination::File { .. })
            | (
                _,
                Destination::File {
                    wants_directory: true,
                },
            ) => Err(PlaceError::NotADirectory(path())),
            (_, Destination::File { .. }) if is_file => Ok(Place::AtDestination),
            (_, Destination::File { .. }) => Err(PlaceError::DirectoryToFile(path())),
            (
                _,
                Destination::Nothing {
                    wants_directory: true,
                },
            ) if is_file => Err(PlaceError::NoDirectory(path())),
            (_, Destination::Nothing { .. }) => Ok(Place::AtDestination),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn typed(path: &str) -> (String, bool, bool) {
        let typed = Typed::new(path.as_bytes());
        let path = String::from_utf8(typed.path()).unwrap();
        (path, typed.wants_directory, typed.wants_contents)
    }

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        assert_eq!(typed("/etc/passwd"), ("etc/passwd".into(), false, false));
        assert_eq!(typed("etc/"), ("etc".into(), true, false));
        assert_eq!(typed("/etc/."), ("etc".into(), true, true));
        assert_eq!(typed("/"), (String::new(), true, true));
        assert_eq!(typed("."), (String::new(), true, true));
        assert_eq!(typed("/a/b/.."), ("a".into(), true, false));
        assert_eq!(typed("a."), ("a.".into(), false, false));
    }

    #[test]
    fn there_is_nothing_above_the_root() {
        assert_eq!(typed("../../etc/../../x"), ("x".into(), false, false));
    }

    #[test]
    fn a_file_goes_into_a_directory_and_over_a_file() {
        let file = Source::File(b"name".to_vec());
        let nothing = |wants_directory| Destination::Nothing { wants_directory };

        let place = |destination| file.place(destination, b"d");

        assert_eq!(
            place(Destination::Directory),
            Ok(Place::Inside(b"name".to_vec()))
        );
        assert_eq!(place(nothing(false)), Ok(Place::AtDestination));
        assert_eq!(
            place(nothing(true)),
            Err(PlaceError::NoDirectory("d".into()))
        );
        assert_eq!(
            place(Destination::File {
                wants_directory: false
            }),
            Ok(Place::AtDestination)
        );
        assert_eq!(
            place(Destination::File {
                wants_directory: true
            }),
            Err(PlaceError::NotADirectory("d".into()))
        );
    }

    #[test]
    fn a_directory_goes_into_one_or_becomes_one() {
        let directory = Source::Directory(b"name".to_vec());

        let place = |destination| directory.place(destination, b"d");

        assert_eq!(
            place(Destination::Directory),
            Ok(Place::Inside(b"name".to_vec()))
        );
        assert_eq!(
            place(Destination::Nothing {
                wants_directory: true
            }),
            Ok(Place::AtDestination)
        );
        assert_eq!(
            place(Destination::File {
                wants_directory: false
            }),
            Err(PlaceError::DirectoryToFile("d".into()))
        );
        assert_eq!(
            Source::Contents.place(Destination::Directory, b"d"),
            Ok(Place::Merged)
        );
    }

    #[test]
    fn an_archive_needs_a_directory() {
        let place = |destination| Source::Archive.place(destination, b"d");

        assert_eq!(place(Destination::Directory), Ok(Place::Merged));
        assert!(
            place(Destination::Nothing {
                wants_directory: true
            })
            .is_err()
        );
        assert!(
            place(Destination::File {
                wants_directory: false
            })
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_path_has_parts_that_lead_elsewhere(path in "[a/.]{0,30}") {
            for part in Typed::new(path.as_bytes()).parts {
                prop_assert!(!part.is_empty() && part != b"." && part != b"..");
            }
        }
    }
}
