//! Packs a tree of files.
//!
//! Directories are opened below the one that the caller named, and nothing that is a symbolic link is followed, so a tree that changes
//! meanwhile can leave out or repeat something and nothing worse.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::beneath::{Follow, MAX_PATH_BYTES, open_beneath};
use crate::member::{Kind, Member, join, shown};
use crate::writer::Writer;

/// Begin of the names by which a layer says that something is gone (OCI image specification, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Name by which a layer says that nothing of the layers below is in a directory ("Opaque Whiteout").
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What overlayfs marks a directory with that hides those below it (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque
/// directories").
const OVERLAY_OPAQUE: &CStr = c"trusted.overlay.opaque";
/// The attributes that are overlayfs's own.
const OVERLAY: &[u8] = b"trusted.overlay.";
/// Longest list of attributes, and longest value: `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of Linux.
const MAX_XATTR_BYTES: usize = 64 << 10;
/// How much of a file is read at once.
const READ_BYTES: usize = 128 << 10;

/// How the files are to be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flavour {
    /// As they are, without attributes: a copy for somebody else.
    Copy,
    /// As they are, with their attributes.
    Whole,
    /// As the upper directory of an overlay: what it marks becomes what the layer of an image says.
    Layer,
}

/// Why a tree cannot be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// Packs trees into an archive.
pub struct Packer<'a, W> {
    writer: &'a mut Writer<W>,
    flavour: Flavour,
    /// Which owner is meant by which.
    ids: &'a dyn Fn(u32, u32) -> (u32, u32),
    /// Whether a path is left out.
    skips: &'a dyn Fn(&[u8]) -> bool,
    /// Hears of what no archive can hold, and why.
    left_out: &'a mut dyn FnMut(&str),
    /// Files with several names, and the first of those.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W> std::fmt::Debug for Packer<'_, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer")
            .field("flavour", &self.flavour)
            .finish_non_exhaustive()
    }
}

/// A directory on the way through a tree.
struct Level {
    /// Its path below the tree's root.
    path: Vec<u8>,
    directory: OwnedFd,
    device: u64,
    /// What is left of it, the last first.
    names: Vec<Vec<u8>>,
}

impl<'a, W: Write> Packer<'a, W> {
    /// Packs into `writer`.
    pub fn new(
        writer: &'a mut Writer<W>,
        flavour: Flavour,
        ids: &'a dyn Fn(u32, u32) -> (u32, u32),
        skips: &'a dyn Fn(&[u8]) -> bool,
        left_out: &'a mut dyn FnMut(&str),
    ) -> Self {
        Self {
            writer,
            flavour,
            ids,
            skips,
            left_out,
            links: HashMap::new(),
        }
    }

    /// Packs what is called `name` in `parent`, with all that is below it, under the path `shown_as`. With `follow`, a symbolic link of
    /// this name stands for what it leads to, by the caller's own root; below, links are links.
    ///
    /// # Errors
    ///
    /// If something cannot be read, or the archive not be written.
    pub fn pack(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        follow: bool,
        shown_as: &[u8],
    ) -> Result<(), PackError> {
        let read = |error: Errno| failed(shown_as, error);
        let how = if follow {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = rustix::fs::statat(parent, name, how).map_err(read)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let stand = if follow {
                Follow::WithinRoot
            } else {
                Follow::Nothing
            };
            return self.leaf(parent, name, &stat, stand, shown_as);
        }
        let stand = if follow {
            Follow::WithinRoot
        } else {
            Follow::Nothing
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let root = open_beneath(parent, name, flags, stand).map_err(read)?;
        self.directory(&root, shown_as)
    }

    /// Packs a directory with all that is below it.
    ///
    /// # Errors
    ///
    /// As [`Self::pack`].
    pub fn directory(&mut self, root: &OwnedFd, shown_as: &[u8]) -> Result<(), PackError> {
        let mut levels = vec![self.enter(root.as_fd(), Vec::new(), None, shown_as)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            let path = join(&level.path, &name);
            let archived = join(shown_as, &path);
            if (self.skips)(&path) {
                continue;
            }
            let stat = match rustix::fs::statat(
                &level.directory,
                name.as_slice(),
                AtFlags::SYMLINK_NOFOLLOW,
            ) {
                Ok(stat) => stat,
                // It has gone meanwhile.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(&archived, error)),
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let device = level.device;
                if path.len() > MAX_PATH_BYTES {
                    return Err(failed(&archived, Errno::NAMETOOLONG));
                }
                match self.enter(root.as_fd(), path, Some(device), shown_as) {
                    Err(PackError::Read { source, .. })
                        if source.kind() == io::ErrorKind::NotFound => {}
                    level => levels.push(level?),
                }
            } else {
                self.leaf(
                    level.directory.as_fd(),
                    &name,
                    &stat,
                    Follow::Nothing,
                    &archived,
                )?;
            }
        }
        Ok(())
    }

    /// Writes a directory's own member, and lists it.
    fn enter(
        &mut self,
        root: BorrowedFd<'_>,
        path: Vec<u8>,
        above: Option<u64>,
        shown_as: &[u8],
    ) -> Result<Level, PackError> {
        let archived = join(shown_as, &path);
        let read = |error: Errno| failed(&archived, error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let directory = open_beneath(root, &path, flags, Follow::Nothing).map_err(read)?;
        let stat = rustix::fs::fstat(&directory).map_err(read)?;
        let is_opaque = self.flavour == Flavour::Layer && has_opaque_mark(&directory);
        // The root of a layer or a file system is there before it.
        if !archived.is_empty()
            && let Some(mut member) = Member::of(&stat, archived.clone())
        {
            member.xattrs = self.xattrs(&directory).map_err(read)?;
            self.write(member, &mut io::empty())?;
        }
        if is_opaque {
            let mark = Member {
                path: join(&archived, OPAQUE),
                ..Member::empty_file()
            };
            self.write(mark, &mut io::empty())?;
        }
        let is_elsewhere = above.is_some_and(|above| above != stat.st_dev);
        let names = match is_elsewhere && shows_the_kernel(&directory) {
            true => Vec::new(),
            false => list(&directory).map_err(read)?,
        };
        Ok(Level {
            path,
            directory,
            device: stat.st_dev,
            names,
        })
    }

    fn leaf(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        follow: Follow,
        archived: &[u8],
    ) -> Result<(), PackError> {
        let read = |error: Errno| failed(archived, error);
        let Some(mut member) = Member::of(stat, archived.to_vec()) else {
            (self.left_out)(&format!("`{}` is a socket", shown(archived)));
            return Ok(());
        };
        if self.flavour == Flavour::Layer {
            if member.kind == Kind::CharacterDevice(0, 0) {
                let above = archived.len().saturating_sub(name.len());
                let above = archived.get(..above).unwrap_or_default();
                let mark = Member {
                    path: [above, WHITEOUT, name].concat(),
                    ..Member::empty_file()
                };
                return self.write(mark, &mut io::empty());
            }
            if name.starts_with(WHITEOUT) {
                let path = shown(archived);
                (self.left_out)(&format!(
                    "`{path}` has a name that means something in a layer"
                ));
                return Ok(());
            }
        }
        if stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&file) {
                member.kind = Kind::HardLink(first.clone());
                member.size_bytes = 0;
                return self.write(member, &mut io::empty());
            }
            self.links.insert(file, archived.to_vec());
        }
        match &mut member.kind {
            Kind::Symlink(target) => {
                *target = rustix::fs::readlinkat(directory, name, Vec::new())
                    .map_err(read)?
                    .into_bytes();
                self.write(member, &mut io::empty())
            }
            Kind::File => {
                // Not to wait for a writer, should it have become a fifo.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | last(follow);
                let file = match open_beneath(directory, name, flags, follow) {
                    Ok(file) => file,
                    // It has gone, or become something else, meanwhile.
                    Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
                    Err(error) => return Err(read(error)),
                };
                let now = rustix::fs::fstat(&file).map_err(read)?;
                let Some(found) = Member::of(&now, archived.to_vec()) else {
                    return Ok(());
                };
                if found.kind != Kind::File {
                    return Ok(());
                }
                member.size_bytes = found.size_bytes;
                member.xattrs = self.xattrs(&file).map_err(read)?;
                self.content(member, file)
            }
            _ => self.write(member, &mut io::empty()),
        }
    }

    /// Writes a file. One of the kernel's own does not say how long it is.
    fn content(&mut self, mut member: Member, file: OwnedFd) -> Result<(), PackError> {
        /// As much as a file of the kernel's is read of.
        const MAX_BYTES: u64 = 4 << 20;
        let path = member.path.clone();
        let is_kernels = member.size_bytes == 0 && shows_the_kernel(&file);
        let file = File::from(file);
        if is_kernels {
            let mut bytes = Vec::new();
            file.take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(|source| PackError::Read {
                    path: shown(&path),
                    source,
                })?;
            member.size_bytes = u64::try_from(bytes.len()).unwrap_or(0);
            return self.write(member, &mut bytes.as_slice());
        }
        let mut source = Watched {
            input: io::BufReader::with_capacity(READ_BYTES, file),
            failure: None,
        };
        let written = self.write(member, &mut source);
        match source.failure {
            Some(source) => Err(PackError::Read {
                path: shown(&path),
                source,
            }),
            None => written,
        }
    }

    fn write(&mut self, mut member: Member, content: &mut dyn Read) -> Result<(), PackError> {
        (member.uid, member.gid) = (self.ids)(member.uid, member.gid);
        self.writer
            .member(&member, content)
            .map_err(PackError::Write)
    }

    fn xattrs(&self, file: &OwnedFd) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if self.flavour == Flavour::Copy {
            return Ok(Vec::new());
        }
        let mut list = vec![0; MAX_XATTR_BYTES];
        let length = match rustix::fs::flistxattr(file, list.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let names = list.get(..length).unwrap_or_default();
        let names = names.split(|byte| *byte == 0).filter(|name| {
            !name.is_empty() && !name.starts_with(OVERLAY) && !name.starts_with(b"system.")
        });
        let mut xattrs = Vec::new();
        for name in names {
            let mut value = vec![0; MAX_XATTR_BYTES];
            match rustix::fs::fgetxattr(file, name, value.as_mut_slice()) {
                Ok(length) => {
                    value.truncate(length);
                    xattrs.push((name.to_vec(), value));
                }
                Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(xattrs)
    }
}

/// A file whose errors are told from those of where it is written to.
struct Watched<R> {
    input: R,
    failure: Option<io::Error>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.input.read(buffer).map_err(|error| {
            let kind = error.kind();
            self.failure = Some(error);
            kind.into()
        })
    }
}

fn last(follow: Follow) -> OFlags {
    match follow {
        Follow::Nothing => OFlags::NOFOLLOW,
        Follow::WithinRoot => OFlags::empty(),
    }
}

fn failed(path: &[u8], error: Errno) -> PackError {
    PackError::Read {
        path: if path.is_empty() {
            "/".to_owned()
        } else {
            shown(path)
        },
        source: error.into(),
    }
}

/// The names in a directory, sorted, the last first.
fn list(directory: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable_by(|one, other| other.cmp(one));
    Ok(names)
}

/// Whether overlayfs hides what is below a directory.
fn has_opaque_mark(directory: &OwnedFd) -> bool {
    let mut value = [0; 2];
    let length = rustix::fs::fgetxattr(directory, OVERLAY_OPAQUE, value.as_mut_slice());
    length == Ok(1) && value.first() == Some(&b'y')
}

/// Whether it is of a file system that shows the kernel, and no files: `include/uapi/linux/magic.h`.
fn shows_the_kernel(file: &OwnedFd) -> bool {
    const PROC: u64 = 0x9fa0;
    const SYSFS: u64 = 0x6265_6572;
    const CGROUP2: u64 = 0x6367_7270;
    const CGROUP: u64 = 0x0027_e0eb;
    const DEVPTS: u64 = 0x1cd1;
    const MQUEUE: u64 = 0x1980_0202;
    rustix::fs::fstatfs(file).is_ok_and(|stat| {
        let magic = u64::try_from(stat.f_type).unwrap_or(0);
        [PROC, SYSFS, CGROUP2, CGROUP, DEVPTS, MQUEUE].contains(&magic)
    })
}
