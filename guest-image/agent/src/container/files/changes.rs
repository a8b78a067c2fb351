//! What a container has changed, from the upper directory of its overlay (Documentation/filesystems/overlayfs.rst): a character device
//! 0/0 hides what is below, an opaque directory hides all that is in the one below.

use std::io::Write;
use std::os::fd::{AsFd as _, OwnedFd};

use archive::{Follow, open_beneath};
use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::FilesError;
use crate::container::channel::Layers;
use crate::container::mounts::Mount;

/// The mark of an opaque directory.
const OPAQUE: &str = "trusted.overlay.opaque";

/// The files by which programs know names, each of which is mounted.
const NAMES: [&str; 3] = ["etc/hostname", "etc/hosts", "etc/resolv.conf"];

/// What is in a directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Content {
    has_changes: bool,
    /// Something that is only there to be mounted on.
    has_mount_points: bool,
}

/// What an entry of a directory is.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Same,
    Changed,
    MountPoint,
}

/// Writes down what differs from the image.
pub(super) fn list(
    layers: &Layers,
    mounts: &[Mount],
    output: &mut impl Write,
) -> Result<(), FilesError> {
    let mut walk = Walk {
        layers,
        mounts,
        output,
    };
    walk.directory(&[], false)?;
    Ok(walk.output.flush()?)
}

/// Whether a path of the upper directory is only there because something is mounted on it.
pub(super) fn is_mount_point(layers: &Layers, mounts: &[Mount], path: &[u8]) -> bool {
    // Those of a network are there, whether the machine has it now or has run with it.
    let mut destinations = mounts
        .iter()
        .map(|mount| mount.destination.trim_matches('/'))
        .chain(NAMES);
    if !destinations.any(|destination| destination.as_bytes() == path) {
        return false;
    }
    let is_new = matches!(look(&layers.lower, path), Ok(None));
    is_new && is_empty(&layers.upper, path).unwrap_or(false)
}

struct Walk<'a, W> {
    layers: &'a Layers,
    mounts: &'a [Mount],
    output: &'a mut W,
}

impl<W: Write> Walk<'_, W> {
    /// Lists what is in a directory. `is_new` is one of which the image has nothing.
    fn directory(&mut self, path: &[u8], is_new: bool) -> Result<Content, FilesError> {
        let failed = |source| failed(path, source);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let upper = self.layers.upper.as_fd();
        let directory = open_beneath(upper, path, flags, Follow::Nothing).map_err(failed)?;
        let is_opaque = has_mark(&directory);
        let names = names(&directory).map_err(failed)?;
        let mut content = Content::default();
        for name in &names {
            let entry = self.entry(&directory, path, name, is_new || is_opaque)?;
            content.has_changes |= entry == Entry::Changed;
            content.has_mount_points |= entry == Entry::MountPoint;
        }
        if is_opaque && !is_new {
            content.has_changes |= self.hidden(path, &names)?;
        }
        Ok(content)
    }

    fn entry(
        &mut self,
        directory: &OwnedFd,
        above: &[u8],
        name: &[u8],
        above_is_new: bool,
    ) -> Result<Entry, FilesError> {
        let path = match above.is_empty() {
            true => name.to_vec(),
            false => [above, b"/", name].concat(),
        };
        let failed = |source| failed(&path, source);
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Entry::Same),
            result => result.map_err(failed)?,
        };
        let before = look(&self.layers.lower, &path).map_err(failed)?;
        let kind = |stat: &Stat| FileType::from_raw_mode(stat.st_mode);
        if kind(&stat) == FileType::CharacterDevice && stat.st_rdev == 0 {
            return match before {
                Some(_) => self.say(b'D', &path),
                None => Ok(Entry::Same),
            };
        }
        if before.is_none() && is_mount_point(self.layers, self.mounts, &path) {
            return Ok(Entry::MountPoint);
        }
        let was_directory = before
            .as_ref()
            .is_some_and(|before| kind(before) == FileType::Directory);
        if kind(&stat) != FileType::Directory {
            return self.say(if before.is_some() { b'C' } else { b'A' }, &path);
        }
        let content = self.directory(&path, above_is_new || !was_directory)?;
        match before {
            None => self.say(b'A', &path),
            Some(before) if content.has_changes || !is_same(&before, &stat, &content) => {
                self.say(b'C', &path)
            }
            Some(_) => Ok(Entry::Same),
        }
    }

    /// Lists what an opaque directory hides.
    fn hidden(&mut self, path: &[u8], there: &[Vec<u8>]) -> Result<bool, FilesError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let below = self.layers.lower.as_fd();
        let directory = match open_beneath(below, path, flags, Follow::Nothing) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            result => result.map_err(|source| failed(path, source))?,
        };
        let names = names(&directory).map_err(|source| failed(path, source))?;
        let mut has_changes = false;
        for name in names.iter().filter(|name| !there.contains(name)) {
            self.say(b'D', &[path, b"/", name].concat())?;
            has_changes = true;
        }
        Ok(has_changes)
    }

    fn say(&mut self, kind: u8, path: &[u8]) -> Result<Entry, FilesError> {
        self.output
            .write_all(&[&[kind, b'/'], path, &[0]].concat())?;
        Ok(Entry::Changed)
    }
}

/// What the image has at a path.
fn look(lower: &OwnedFd, path: &[u8]) -> rustix::io::Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    match open_beneath(lower.as_fd(), path, flags, Follow::Nothing) {
        Ok(found) => rustix::fs::fstat(found).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a directory has the attributes that it had. What was made in it to be mounted on has set its time.
fn is_same(before: &Stat, now: &Stat, content: &Content) -> bool {
    let attributes = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid);
    let is_time_same = content.has_mount_points || before.st_mtime == now.st_mtime;
    attributes(before) == attributes(now) && is_time_same
}

fn is_empty(upper: &OwnedFd, path: &[u8]) -> rustix::io::Result<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let found = open_beneath(upper.as_fd(), path, flags, Follow::Nothing)?;
    let stat = rustix::fs::fstat(&found)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat.st_size == 0),
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = open_beneath(upper.as_fd(), path, flags, Follow::Nothing)?;
            Ok(names(&directory)?.is_empty())
        }
        _ => Ok(false),
    }
}

fn names(directory: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

fn has_mark(directory: &OwnedFd) -> bool {
    let mut value = [0; 2];
    let length = rustix::fs::fgetxattr(directory, OPAQUE, value.as_mut_slice());
    length == Ok(1) && value.first() == Some(&b'y')
}

fn failed(path: &[u8], source: Errno) -> FilesError {
    FilesError::Changes {
        path: String::from_utf8_lossy(path).into_owned(),
        source,
    }
}
