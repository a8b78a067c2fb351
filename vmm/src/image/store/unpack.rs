//! Writes the files of an image to a directory, for programs that run an image from one.
//!
//! The layers are stacked once more, and the tree that comes out is written from its root down. Every directory on the way
//! to a file was made a moment ago by this code, in a directory of the caller's own, so no symbolic link of the image is
//! ever followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chmod, chownat,
    lsetxattr, makedev, mknodat, utimensat,
};
use rustix::io::Errno;

use super::super::erofs::{
    BLOCK_BYTES, Contents, DeviceNumber, FileData, Metadata, Node, NodeId, Tree,
};
use super::super::layer::{DATA, INDEX, read_index};
use super::super::merge::{MergeError, Merger};
use super::{FindError, Store, StoreError, StoredImage};

/// An image could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// Its record cannot be read.
    #[error(transparent)]
    Find(#[from] FindError),
    /// A layer's files cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer's index cannot be read.
    #[error("the index of a layer in the store cannot be read")]
    Index(#[from] io::Error),
    /// The layers do not stack.
    #[error("the layers in the store do not fit together")]
    Merge(#[from] MergeError),
    /// A file cannot be written.
    #[error("cannot write {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller did not want to go on.
    #[error("unpacking was interrupted")]
    Interrupted,
}

impl Store {
    /// Writes the files of `image` below `into`, an empty directory that nobody else writes to.
    ///
    /// Without root's rights, owners are left as they come and device nodes out. `goes_on` is asked before each file.
    ///
    /// # Errors
    /// If a file cannot be read or written, or `goes_on` said no.
    pub fn unpack(
        &self,
        image: &StoredImage,
        into: &Path,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<(), UnpackError> {
        let mut merger = Merger::new();
        let mut parts = Vec::new();
        for (layer, number) in self.image_record(image.id)?.layers.iter().zip(1..) {
            let directory = self.layer_directory(layer.diff_id);
            let open = |name| {
                let path = directory.join(name);
                File::open(&path).map_err(StoreError::at("open", &path))
            };
            parts.push(open(DATA)?);
            merger.begin_layer(number);
            read_index(BufReader::new(open(INDEX)?), |entry| {
                merger.apply(entry).map_err(UnpackError::from)
            })?;
        }
        let mut writer = Writer {
            tree: &merger.into_tree(),
            parts,
            is_root: rustix::process::geteuid().is_root(),
            written: HashMap::new(),
        };
        writer.write(into, goes_on)
    }
}

/// A tree on its way into a directory.
struct Writer<'a> {
    tree: &'a Tree,
    /// The data of the layers.
    parts: Vec<File>,
    is_root: bool,
    /// Where the inodes other than directories were written first.
    written: HashMap<NodeId, PathBuf>,
}

/// What is left to do.
enum Step {
    Write(NodeId, PathBuf),
    /// Everything below the directory is there, so that it may become read-only and old.
    Finish(NodeId, PathBuf),
}

impl Writer<'_> {
    fn write(&mut self, into: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), UnpackError> {
        let mut steps = self.enter(self.tree.root(), into.to_owned());
        while let Some(step) = steps.pop() {
            if !goes_on() {
                return Err(UnpackError::Interrupted);
            }
            match step {
                Step::Finish(id, path) => self
                    .describe(&self.tree.node(id).metadata, &path, true)
                    .map_err(|source| UnpackError::Write { path, source })?,
                Step::Write(id, path) if self.tree.directory(id).is_some() => {
                    fs::create_dir(&path).map_err(|source| UnpackError::Write {
                        path: path.clone(),
                        source,
                    })?;
                    steps.extend(self.enter(id, path));
                }
                Step::Write(id, path) => self
                    .write_leaf(id, &path)
                    .map_err(|source| UnpackError::Write { path, source })?,
            }
        }
        Ok(())
    }

    /// The steps for a directory that exists: its entries, then itself. The last is taken first.
    fn enter(&self, id: NodeId, path: PathBuf) -> Vec<Step> {
        let names = self.tree.directory(id).into_iter().flatten();
        let entries: Vec<Step> = names
            .map(|(name, child)| Step::Write(*child, path.join(OsStr::from_bytes(name))))
            .collect();
        let mut steps = vec![Step::Finish(id, path)];
        steps.extend(entries);
        steps
    }

    fn write_leaf(&mut self, id: NodeId, path: &Path) -> io::Result<()> {
        if let Some(first) = self.written.get(&id) {
            return fs::hard_link(first, path);
        }
        let Node { metadata, contents } = self.tree.node(id);
        match contents {
            Contents::File(data) => self.write_file(data, path)?,
            Contents::Symlink(target) => symlink(OsStr::from_bytes(target), path)?,
            Contents::Fifo => make_node(path, FileType::Fifo, 0)?,
            Contents::CharacterDevice(number) if self.is_root => {
                make_node(path, FileType::CharacterDevice, device(*number))?;
            }
            Contents::BlockDevice(number) if self.is_root => {
                make_node(path, FileType::BlockDevice, device(*number))?;
            }
            Contents::CharacterDevice(_) | Contents::BlockDevice(_) | Contents::Directory(_) => {
                return Ok(());
            }
        }
        let has_mode = !matches!(contents, Contents::Symlink(_));
        self.describe(metadata, path, has_mode)?;
        self.written.insert(id, path.to_owned());
        Ok(())
    }

    fn write_file(&self, data: &FileData, path: &Path) -> io::Result<()> {
        let mut file = File::create_new(path)?;
        let mut part = self
            .parts
            .get(usize::from(data.part))
            .ok_or(io::ErrorKind::InvalidData)?;
        for extent in &data.extents {
            let start = u64::from(extent.file_block) * BLOCK_BYTES;
            let length = u64::from(extent.blocks) * BLOCK_BYTES;
            let length = length.min(data.size_bytes.saturating_sub(start));
            file.seek(SeekFrom::Start(start))?;
            part.seek(SeekFrom::Start(u64::from(extent.part_block) * BLOCK_BYTES))?;
            if io::copy(&mut part.take(length), &mut file)? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        file.set_len(data.size_bytes)
    }

    /// Gives a file its owner, permissions, attributes and time, in the order in which none takes another away.
    fn describe(&self, metadata: &Metadata, path: &Path, has_mode: bool) -> io::Result<()> {
        if self.is_root {
            let (owner, group) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
            chownat(
                CWD,
                path,
                Some(owner),
                Some(group),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        if has_mode {
            chmod(path, Mode::from_raw_mode(u32::from(metadata.mode)))?;
        }
        for attribute in &metadata.xattrs {
            let name = attribute.name.spelled();
            match lsetxattr(path, name.as_slice(), &attribute.value, XattrFlags::empty()) {
                // The file system of the directory has none of this kind, or they need more rights.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let time = Timespec {
            tv_sec: metadata.mtime.seconds,
            tv_nsec: metadata.mtime.nanoseconds.into(),
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }
}

fn make_node(path: &Path, kind: FileType, device: u64) -> io::Result<()> {
    Ok(mknodat(CWD, path, kind, Mode::RUSR, device)?)
}

fn device(number: DeviceNumber) -> u64 {
    makedev(number.major(), number.minor())
}
