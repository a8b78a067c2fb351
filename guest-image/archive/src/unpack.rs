//! Unpacks members below a directory.
//!
//! Each is made under a name of its own and put in its place by a rename, so nothing is there by halves, nothing that was there is
//! written through, and a symbolic link that came before is replaced and never followed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use thiserror::Error;

use crate::beneath::{Follow, open_beneath};
use crate::member::{BadName, Kind, Member, components, shown};

/// Permissions of a directory until all is in it.
const FILLING: Mode = Mode::RWXU;
/// Permissions of directories that no member describes.
const USUAL_MODE: u32 = 0o755;
/// The bits that lend a file's rights to whoever runs it.
const LENDING_BITS: u32 = 0o6000;
/// How much is written at once.
const WRITE_BYTES: usize = 128 << 10;
/// How many directories may wait for their times; beyond, the outermost ones are finished early.
const MAX_UNFINISHED: usize = 4096;

/// Whose the files become.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owners {
    /// Whoever unpacks. Files do not lend their rights.
    Unpacking,
    /// This user and group.
    These(u32, u32),
    /// Those that the members name.
    Kept,
}

/// What became of a member.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Made {
    /// It is there.
    Yes,
    /// It is a device, and those are not made.
    IsDevice,
}

/// Why a member cannot be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// Its name leads elsewhere.
    #[error(transparent)]
    Name(#[from] BadName),
    /// A file would replace a directory.
    #[error("cannot replace the directory `{0}` by something else")]
    ReplacesDirectory(String),
    /// A directory would replace a file.
    #[error("cannot replace `{0}` by a directory")]
    ReplacesFile(String),
    /// A symbolic link stands in the way.
    #[error("`{0}` is below a symbolic link, which is not followed")]
    BelowLink(String),
    /// The kernel refuses it.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its content could not be had.
    #[error("cannot read what is to be in `{path}`")]
    Content {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Unpacks members below a directory.
#[derive(Debug)]
pub struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    follow: Follow,
    owners: Owners,
    /// Directories that get their permissions and times once all is in them, the inner ones last.
    unfinished: Vec<Unfinished>,
    buffer: Vec<u8>,
    last_name: u64,
}

#[derive(Debug)]
struct Unfinished {
    path: Vec<u8>,
    mode: u32,
    mtime_s: i64,
}

/// The place of a member: its directory, and its name in that.
struct Place {
    directory: OwnedFd,
    name: Vec<u8>,
}

impl<'a> Unpacker<'a> {
    /// Unpacks below `root`. `follow` is about links that are there; none that this makes is followed.
    #[must_use]
    pub fn new(root: BorrowedFd<'a>, follow: Follow, owners: Owners) -> Self {
        Self {
            root,
            follow,
            owners,
            unfinished: Vec::new(),
            buffer: vec![0; WRITE_BYTES],
            last_name: 0,
        }
    }

    /// Unpacks a member. A directory that is there keeps its owner, permissions and times.
    ///
    /// # Errors
    ///
    /// If it cannot be made where it says, or its content not be read. What it would have replaced is as it was.
    pub fn member(&mut self, member: &Member, content: &mut dyn Read) -> Result<Made, UnpackError> {
        let parts = components(&member.path)?;
        let path = parts.join(&b'/');
        self.finish_outside(&path)?;
        if let Kind::CharacterDevice(..) | Kind::BlockDevice(..) = member.kind {
            return Ok(Made::IsDevice);
        }
        let Some((name, above)) = parts.split_last() else {
            return match member.kind {
                Kind::Directory => Ok(Made::Yes),
                _ => Err(UnpackError::ReplacesDirectory("/".to_owned())),
            };
        };
        let place = Place {
            directory: self.open_directory(&above.join(&b'/'), true)?,
            name: name.to_vec(),
        };
        match &member.kind {
            Kind::Directory => self.directory(member, &place, path)?,
            Kind::File => self.file(member, &place, &path, content)?,
            Kind::Symlink(target) => self.put(&place, &path, |directory, name| {
                rustix::fs::symlinkat(target.as_slice(), directory, name)?;
                self.own(directory, name, member)
            })?,
            Kind::HardLink(target) => {
                let first = self.existing(target)?;
                self.put(&place, &path, |directory, name| {
                    let link = AtFlags::empty();
                    rustix::fs::linkat(
                        &first.directory,
                        first.name.as_slice(),
                        directory,
                        name,
                        link,
                    )
                })?;
            }
            Kind::Fifo => self.put(&place, &path, |directory, name| {
                rustix::fs::mknodat(directory, name, FileType::Fifo, self.mode(member), 0)?;
                self.own(directory, name, member)?;
                rustix::fs::chmodat(directory, name, self.mode(member), AtFlags::empty())
            })?,
            Kind::CharacterDevice(..) | Kind::BlockDevice(..) => {}
        }
        Ok(Made::Yes)
    }

    /// Gives the directories their permissions and times.
    ///
    /// # Errors
    ///
    /// If one cannot be opened any more.
    pub fn finish(mut self) -> Result<(), UnpackError> {
        while let Some(directory) = self.unfinished.pop() {
            self.settle(&directory)?;
        }
        Ok(())
    }

    /// Finishes the directories that a path has left.
    fn finish_outside(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        let is_outside = |directory: &Unfinished| {
            !path
                .strip_prefix(directory.path.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        while let Some(directory) = self.unfinished.pop_if(|directory| is_outside(directory)) {
            self.settle(&directory)?;
        }
        if self.unfinished.len() > MAX_UNFINISHED {
            let directory = self.unfinished.remove(0);
            self.settle(&directory)?;
        }
        Ok(())
    }

    fn settle(&self, directory: &Unfinished) -> Result<(), UnpackError> {
        let write = |error: Errno| failed(&directory.path, error);
        let opened = self.open_directory(&directory.path, false)?;
        rustix::fs::fchmod(&opened, Mode::from_raw_mode(directory.mode)).map_err(write)?;
        rustix::fs::futimens(&opened, &times(directory.mtime_s)).map_err(write)
    }

    /// Opens a directory, and makes those that are missing.
    fn open_directory(&self, path: &[u8], makes: bool) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match open_beneath(self.root, path, flags, self.follow) {
            Err(Errno::NOENT) if makes => {}
            Err(Errno::LOOP) => return Err(UnpackError::BelowLink(shown(path))),
            result => return result.map_err(|error| failed(path, error)),
        }
        let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (
                path.get(..at).unwrap_or_default(),
                path.get(at + 1..).unwrap_or_default(),
            ),
            None => (&[][..], path),
        };
        let directory = self.open_directory(above, true)?;
        let made = Member {
            kind: Kind::Directory,
            mode: USUAL_MODE,
            ..Member::empty_file()
        };
        match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(USUAL_MODE)) {
            Err(Errno::EXIST) => {}
            result => result
                .and_then(|()| self.own(directory.as_fd(), name, &made))
                .map_err(|error| failed(path, error))?,
        }
        self.open_directory(path, false)
    }

    /// The place of a member that came before.
    fn existing(&self, path: &[u8]) -> Result<Place, UnpackError> {
        let parts = components(path)?;
        let (name, above) = parts
            .split_last()
            .ok_or_else(|| failed(path, Errno::ISDIR))?;
        Ok(Place {
            directory: self.open_directory(&above.join(&b'/'), false)?,
            name: name.to_vec(),
        })
    }

    fn directory(
        &mut self,
        member: &Member,
        place: &Place,
        path: Vec<u8>,
    ) -> Result<(), UnpackError> {
        let write = |error: Errno| failed(&path, error);
        let name = place.name.as_slice();
        match rustix::fs::mkdirat(&place.directory, name, FILLING) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let how = match self.follow {
                    Follow::Nothing => AtFlags::SYMLINK_NOFOLLOW,
                    Follow::WithinRoot => AtFlags::empty(),
                };
                let is_directory = rustix::fs::statat(&place.directory, name, how)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                return match is_directory {
                    true => Ok(()),
                    false => Err(UnpackError::ReplacesFile(shown(&path))),
                };
            }
            Err(error) => return Err(write(error)),
        }
        self.own(place.directory.as_fd(), name, member)
            .map_err(write)?;
        self.unfinished.push(Unfinished {
            mode: self.mode(member).as_raw_mode(),
            mtime_s: member.mtime_s,
            path,
        });
        Ok(())
    }

    fn file(
        &mut self,
        member: &Member,
        place: &Place,
        path: &[u8],
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        let write = |error: Errno| failed(path, error);
        let name = self.unused_name();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let owner = Mode::RUSR | Mode::WUSR;
        let file =
            rustix::fs::openat(&place.directory, name.as_slice(), flags, owner).map_err(write)?;
        let file = File::from(file);
        let made = self
            .fill(&file, path, member.size_bytes, content)
            .and_then(|()| {
                if let Some((uid, gid)) = self.owner(member) {
                    rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(write)?;
                }
                rustix::fs::fchmod(&file, self.mode(member)).map_err(write)?;
                rustix::fs::futimens(&file, &times(member.mtime_s)).map_err(write)?;
                rename(place, &name).map_err(|error| refused(path, error))
            });
        if made.is_err() {
            remove(place, &name);
        }
        made
    }

    /// Writes a file's content.
    fn fill(
        &mut self,
        mut file: &File,
        path: &[u8],
        size_bytes: u64,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        let cut = |source| UnpackError::Content {
            path: shown(path),
            source,
        };
        let mut left = size_bytes;
        while left > 0 {
            let wanted = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let space = self.buffer.get_mut(..wanted).unwrap_or_default();
            let count = match content.read(space) {
                Ok(0) => return Err(cut(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cut(error)),
            };
            let read = space.get(..count).unwrap_or_default();
            io::Write::write_all(&mut file, read).map_err(|source| UnpackError::Write {
                path: shown(path),
                source,
            })?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Makes something under a name of its own, and puts it in its place.
    fn put(
        &self,
        place: &Place,
        path: &[u8],
        make: impl FnOnce(BorrowedFd<'_>, &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), UnpackError> {
        let name = unused_name(self.last_name.wrapping_add(1));
        let made = make(place.directory.as_fd(), &name)
            .map_err(|error| failed(path, error))
            .and_then(|()| rename(place, &name).map_err(|error| refused(path, error)));
        // Two names of one file are left as they are by a rename.
        remove(place, &name);
        made
    }

    fn unused_name(&mut self) -> Vec<u8> {
        self.last_name = self.last_name.wrapping_add(1);
        unused_name(self.last_name)
    }

    fn owner(&self, member: &Member) -> Option<(Uid, Gid)> {
        let (uid, gid) = match self.owners {
            Owners::Unpacking => return None,
            Owners::These(uid, gid) => (uid, gid),
            Owners::Kept => (member.uid, member.gid),
        };
        Some((Uid::from_raw(uid), Gid::from_raw(gid)))
    }

    /// Gives something its owner that was just made.
    fn own(
        &self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        member: &Member,
    ) -> rustix::io::Result<()> {
        match self.owner(member) {
            None => Ok(()),
            Some((uid, gid)) => {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::chownat(directory, name, Some(uid), Some(gid), flags)
            }
        }
    }

    fn mode(&self, member: &Member) -> Mode {
        let lent = match (self.owners, &member.kind) {
            (Owners::Unpacking, _) => LENDING_BITS,
            _ => 0,
        };
        Mode::from_raw_mode(member.mode & 0o7777 & !lent)
    }
}

/// A name that nobody else uses here.
fn unused_name(number: u64) -> Vec<u8> {
    format!(".vmm-cp-{}-{number}", std::process::id()).into_bytes()
}

fn rename(place: &Place, name: &[u8]) -> rustix::io::Result<()> {
    let directory = &place.directory;
    rustix::fs::renameat(directory, name, directory, place.name.as_slice())
}

fn remove(place: &Place, name: &[u8]) {
    // It is where it belongs, as a rule.
    let _ = rustix::fs::unlinkat(&place.directory, name, AtFlags::empty());
}

fn times(mtime_s: i64) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime_s,
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn refused(path: &[u8], error: Errno) -> UnpackError {
    match error {
        Errno::ISDIR | Errno::NOTEMPTY => UnpackError::ReplacesDirectory(shown(path)),
        error => failed(path, error),
    }
}

fn failed(path: &[u8], error: Errno) -> UnpackError {
    UnpackError::Write {
        path: if path.is_empty() {
            "/".to_owned()
        } else {
            shown(path)
        },
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::Path;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    fn named(path: &str, kind: Kind) -> Member {
        Member {
            path: path.as_bytes().to_vec(),
            kind,
            mode: 0o644,
            mtime_s: 1_000_000_000,
            ..Member::empty_file()
        }
    }

    fn file(path: &str, content: &str) -> (Member, Vec<u8>) {
        let member = Member {
            size_bytes: content.len() as u64,
            ..named(path, Kind::File)
        };
        (member, content.as_bytes().to_vec())
    }

    fn other(path: &str, kind: Kind) -> (Member, Vec<u8>) {
        (named(path, kind), Vec::new())
    }

    fn link(path: &str, target: &str) -> (Member, Vec<u8>) {
        other(path, Kind::Symlink(target.as_bytes().to_vec()))
    }

    fn unpack(into: &Path, members: &[(Member, Vec<u8>)]) -> Result<Vec<Made>, UnpackError> {
        let root = File::open(into).unwrap();
        let mut unpacker = Unpacker::new(root.as_fd(), Follow::Nothing, Owners::Unpacking);
        let made = members
            .iter()
            .map(|(member, content)| unpacker.member(member, &mut content.as_slice()))
            .collect::<Result<_, _>>()?;
        unpacker.finish()?;
        Ok(made)
    }

    /// A directory to unpack into, beside something that nobody may touch.
    fn place() -> (TempDir, std::path::PathBuf, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (into, outside) = (
            directory.path().join("into"),
            directory.path().join("outside"),
        );
        fs::create_dir(&into).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "as it was").unwrap();
        (directory, into, outside)
    }

    #[test]
    fn a_tree_is_made_as_its_members_say() {
        let (_keep, into, _) = place();
        let mut read_only = other("d", Kind::Directory);
        read_only.0.mode = 0o500;

        let made = unpack(
            &into,
            &[
                read_only,
                file("d/f", "text"),
                link("d/l", "f"),
                other("d/h", Kind::HardLink(b"d/f".to_vec())),
                other("d/p", Kind::Fifo),
            ],
        );

        assert!(made.is_ok(), "{made:?}");
        assert_eq!(fs::read_to_string(into.join("d/l")).unwrap(), "text");
        assert_eq!(fs::metadata(into.join("d/h")).unwrap().nlink(), 2);
        assert_eq!(
            fs::metadata(into.join("d")).unwrap().permissions().mode() & 0o7777,
            0o500
        );
        assert_eq!(fs::metadata(into.join("d")).unwrap().mtime(), 1_000_000_000);
        assert_eq!(fs::read_dir(into.join("d")).unwrap().count(), 4);
    }

    #[test]
    fn a_link_that_the_stream_brought_is_not_followed() {
        let (_keep, into, outside) = place();
        let target = outside.to_str().unwrap();

        let through = unpack(&into, &[link("l", target), file("l/secret", "changed")]);
        let over = unpack(
            &into,
            &[link("s", &format!("{target}/secret")), file("s", "changed")],
        );

        assert!(
            matches!(through, Err(UnpackError::BelowLink(_))),
            "{through:?}"
        );
        assert!(over.is_ok(), "{over:?}");
        assert_eq!(
            fs::read_to_string(outside.join("secret")).unwrap(),
            "as it was"
        );
        assert_eq!(fs::read_to_string(into.join("s")).unwrap(), "changed");
        assert!(fs::symlink_metadata(into.join("s")).unwrap().is_file());
    }

    #[test]
    fn a_link_that_was_there_is_no_way_out_either() {
        let (_keep, into, outside) = place();
        symlink(&outside, into.join("there")).unwrap();

        let below = unpack(&into, &[file("there/secret", "changed")]);
        let directory = unpack(&into, &[other("there", Kind::Directory)]);

        assert!(matches!(below, Err(UnpackError::BelowLink(_))), "{below:?}");
        assert!(
            matches!(directory, Err(UnpackError::ReplacesFile(_))),
            "{directory:?}"
        );
    }

    #[test]
    fn a_hard_link_does_not_reach_what_is_outside() {
        let (_keep, into, outside) = place();
        let target = outside.join("secret").to_str().unwrap().as_bytes().to_vec();
        let hard = |target: Vec<u8>| other("h", Kind::HardLink(target));

        assert!(unpack(&into, &[hard(target)]).is_err());
        assert!(unpack(&into, &[hard(b"../outside/secret".to_vec())]).is_err());
        let linked = unpack(
            &into,
            &[
                link("l", outside.to_str().unwrap()),
                hard(b"l/secret".to_vec()),
            ],
        );
        assert!(linked.is_err());
        assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
    }

    #[test]
    fn devices_and_lent_rights_are_left_out() {
        let (_keep, into, _) = place();
        let mut lending = file("tool", "x");
        lending.0.mode = 0o6755;

        let made = unpack(
            &into,
            &[other("null", Kind::CharacterDevice(1, 3)), lending],
        )
        .unwrap();

        assert_eq!(made, [Made::IsDevice, Made::Yes]);
        assert!(!into.join("null").exists());
        assert_eq!(
            fs::metadata(into.join("tool"))
                .unwrap()
                .permissions()
                .mode()
                & 0o7777,
            0o755
        );
    }

    #[test]
    fn a_directory_is_no_file_and_the_other_way_round() {
        let (_keep, into, _) = place();
        fs::create_dir_all(into.join("d/full")).unwrap();
        fs::write(into.join("f"), "old").unwrap();

        let over_directory = unpack(&into, &[file("d", "x")]);
        let over_file = unpack(&into, &[other("f", Kind::Directory)]);

        assert!(
            matches!(over_directory, Err(UnpackError::ReplacesDirectory(_))),
            "{over_directory:?}"
        );
        assert!(
            matches!(over_file, Err(UnpackError::ReplacesFile(_))),
            "{over_file:?}"
        );
        assert_eq!(fs::read_dir(&into).unwrap().count(), 2);
    }

    #[test]
    fn what_is_cut_off_replaces_nothing() {
        let (_keep, into, _) = place();
        fs::write(into.join("f"), "old").unwrap();
        let (mut member, content) = file("f", "new");
        member.size_bytes = 10;

        let made = unpack(&into, &[(member, content)]);

        assert!(matches!(made, Err(UnpackError::Content { .. })), "{made:?}");
        assert_eq!(fs::read_to_string(into.join("f")).unwrap(), "old");
        assert_eq!(fs::read_dir(&into).unwrap().count(), 1);
    }

    fn any_member() -> impl Strategy<Value = (Member, Vec<u8>)> {
        let path = "(a|b|c|\\.\\.|/|\\./|outside|secret){1,6}";
        let target = prop_oneof![
            "(a|b|/|\\.\\./){1,4}",
            Just("../outside".to_owned()),
            Just("../outside/secret".to_owned())
        ];
        (path, target, 0..5).prop_map(|(path, target, kind)| match kind {
            0 => file(&path, "changed"),
            1 => other(&path, Kind::Directory),
            2 => link(&path, &target),
            3 => other(&path, Kind::HardLink(target.into_bytes())),
            _ => other(&path, Kind::Fifo),
        })
    }

    proptest! {
        #[test]
        fn no_stream_reaches_what_is_outside(members in prop::collection::vec(any_member(), 1..12)) {
            let (_keep, into, outside) = place();
            let root = File::open(&into).unwrap();
            let mut unpacker = Unpacker::new(root.as_fd(), Follow::Nothing, Owners::Unpacking);
            for (member, content) in &members {
                let _ = unpacker.member(member, &mut content.as_slice());
            }
            let _ = unpacker.finish();

            prop_assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "as it was");
            prop_assert_eq!(fs::metadata(outside.join("secret")).unwrap().nlink(), 1);
            prop_assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
            prop_assert_eq!(fs::read_dir(outside.parent().unwrap()).unwrap().count(), 2);
        }
    }
}
