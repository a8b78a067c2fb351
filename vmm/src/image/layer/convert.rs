//! Converts one layer's tar stream.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::super::erofs::{
    BLOCK_BYTES, DeviceNumber, Extent, Metadata, Xattr, XattrName, chunk_bits_for,
};
use super::super::limits::{Budget, LimitError};
use super::super::tar::{Input, Kind, Member, Reader, SparseRun, TarError};
use super::data_file::DataFile;
use super::entry::{Entry, EntryKind, IndexWriter};
use super::frame::FrameWriter;
use super::path::{BadPath, LayerPath};
use super::{DATA, FRAME, INDEX};

/// Prefix of names that delete (OCI image specification, "Image Layer Filesystem Changeset").
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Name that hides everything below its directory.
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
/// Prefix of names that only AUFS gave a meaning.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Attributes that overlayfs would take for its own.
const OVERLAY_XATTR_PREFIX: &[u8] = b"trusted.overlay.";
/// Longest attribute value that EROFS can hold; Linux allows one byte more.
const XATTR_VALUE_MAX_BYTES: usize = 65_535;
/// Longest target of a symbolic link.
const SYMLINK_MAX_BYTES: usize = 4095;

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The tar stream is malformed.
    #[error(transparent)]
    Tar(TarError),
    /// A name is no path that an unpacking runtime could make.
    #[error("the path `{path}` {problem}")]
    Path {
        /// The name as the archive has it.
        path: String,
        /// What is wrong with it.
        problem: BadPath,
    },
    /// An entry cannot be represented, or must not be.
    #[error("the entry `{path}` {problem}")]
    Entry {
        /// Its path.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The layer is too large.
    #[error("the layer {0}")]
    Limit(LimitError),
    /// The result could not be written.
    #[error("cannot write the converted layer")]
    Write(#[source] io::Error),
}

impl From<LimitError> for LayerError {
    fn from(error: LimitError) -> Self {
        Self::Limit(error)
    }
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        // A limit that is watched where bytes are read arrives as the cause of a failed read.
        if let TarError::Read { source, .. } = &error
            && let Some(limit) = source
                .get_ref()
                .and_then(|cause| cause.downcast_ref::<LimitError>())
        {
            return Self::Limit(*limit);
        }
        Self::Tar(error)
    }
}

/// The outcome of a conversion.
pub(in crate::image) struct Converted<I> {
    /// The input, read to its end.
    pub(in crate::image) input: I,
    /// Length of the data file.
    pub(in crate::image) data_bytes: u64,
}

/// Reads a tar stream to its end and writes `data`, `index` and `frame` into `directory`.
pub(in crate::image) fn convert<I: Input>(
    input: I,
    directory: &Path,
    budget: &mut Budget,
) -> Result<Converted<I>, LayerError> {
    let create = |name| create_private(&directory.join(name)).map_err(LayerError::Write);
    let frame = FrameWriter::new(BufWriter::new(create(FRAME)?));
    let index = IndexWriter::new(BufWriter::new(create(INDEX)?)).map_err(LayerError::Write)?;
    let mut converter = Converter {
        reader: Reader::new(input, frame),
        data: DataFile::new(create(DATA)?),
        index,
        budget,
        buffer: vec![0; 128 * 1024],
    };
    while let Some(member) = converter.reader.next_member()? {
        converter.member(&member)?;
    }
    converter.reader.drain()?;
    let (input, frame) = converter.reader.into_parts();
    let into_error =
        |error: io::IntoInnerError<BufWriter<File>>| LayerError::Write(error.into_error());
    frame
        .finish()
        .map_err(LayerError::Write)?
        .into_inner()
        .map_err(into_error)?;
    converter
        .index
        .finish()
        .map_err(LayerError::Write)?
        .into_inner()
        .map_err(into_error)?;
    let data_bytes = converter.data.finish().map_err(LayerError::Write)?;
    Ok(Converted { input, data_bytes })
}

fn create_private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .read(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

struct Converter<'a, I: Input> {
    reader: Reader<I, FrameWriter<BufWriter<File>>>,
    data: DataFile,
    index: IndexWriter<BufWriter<File>>,
    budget: &'a mut Budget,
    buffer: Vec<u8>,
}

impl<I: Input> Converter<'_, I> {
    fn member(&mut self, member: &Member) -> Result<(), LayerError> {
        let path = entry_path(&member.path)?;
        if let Some((parent, name)) = path.split()
            && name.starts_with(WHITEOUT_PREFIX)
        {
            return self.whiteout(&path, &parent, name);
        }
        let metadata = metadata(member, &path)?;
        let kind = match member.kind {
            Kind::Regular => self.file(member, &path)?,
            Kind::Directory => EntryKind::Directory,
            Kind::Symlink => EntryKind::Symlink(symlink_target(member, &path)?),
            Kind::HardLink => EntryKind::HardLink(clean(&member.link)?),
            Kind::CharacterDevice => {
                let number = device(member, &path)?;
                if number.is_zero() {
                    return Err(refused(
                        &path,
                        "is the character device 0:0, which hides files under overlayfs",
                    ));
                }
                EntryKind::CharacterDevice(number)
            }
            Kind::BlockDevice => EntryKind::BlockDevice(device(member, &path)?),
            Kind::Fifo => EntryKind::Fifo,
            Kind::Other(flag) => {
                return Err(refused(
                    &path,
                    format!("is of an unknown kind (tar type {flag:#04x})"),
                ));
            }
        };
        self.add(
            &Entry {
                path,
                metadata,
                kind,
            },
            member.size,
        )
    }

    fn whiteout(
        &mut self,
        path: &LayerPath,
        parent: &LayerPath,
        name: &[u8],
    ) -> Result<(), LayerError> {
        let hidden = name.strip_prefix(WHITEOUT_PREFIX).unwrap_or_default();
        let (path, kind) = match hidden {
            _ if name == OPAQUE_NAME => (parent.clone(), EntryKind::Opaque),
            _ if name.starts_with(AUFS_PREFIX) => return Ok(()),
            b"" | b"." | b".." => return Err(refused(path, "is a whiteout of nothing")),
            hidden => (parent.join(hidden), EntryKind::Whiteout),
        };
        self.add(
            &Entry {
                path,
                metadata: Metadata::default(),
                kind,
            },
            0,
        )
    }

    fn add(&mut self, entry: &Entry, apparent_bytes: u64) -> Result<(), LayerError> {
        let bytes = self.index.add(entry).map_err(LayerError::Write)?;
        Ok(self.budget.entry(apparent_bytes, bytes)?)
    }

    fn file(&mut self, member: &Member, path: &LayerPath) -> Result<EntryKind, LayerError> {
        let size_bytes = member.size;
        let size_blocks = blocks(size_bytes, path)?;
        let (chunk_bits, extents) = match &member.sparse {
            None if size_bytes == 0 => (None, Box::default()),
            None => {
                let part_block = self.allocate(size_blocks, path)?;
                self.content(u64::from(part_block) * BLOCK_BYTES, size_bytes)?;
                (
                    None,
                    Box::from([Extent {
                        file_block: 0,
                        blocks: size_blocks,
                        part_block,
                    }]),
                )
            }
            Some(runs) => {
                let bits = chunk_bits_for(size_bytes);
                (Some(bits), self.sparse_file(runs, bits, path)?)
            }
        };
        Ok(EntryKind::File {
            size_bytes,
            chunk_bits,
            extents,
        })
    }

    /// Gives each chunk that holds data its blocks, neighbours together.
    fn sparse_file(
        &mut self,
        runs: &[SparseRun],
        bits: u8,
        path: &LayerPath,
    ) -> Result<Box<[Extent]>, LayerError> {
        let chunk_bytes = BLOCK_BYTES << bits;
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = runs;
        while let Some(first) = rest.first() {
            let start = first.offset / chunk_bytes * chunk_bytes;
            let mut end = start;
            // Runs whose chunks touch become one extent.
            let count = rest
                .iter()
                .take_while(|run| {
                    let joins = run.offset / chunk_bytes * chunk_bytes <= end;
                    if joins {
                        end = end.max((run.offset + run.length).next_multiple_of(chunk_bytes));
                    }
                    joins
                })
                .count();
            let blocks = blocks(end - start, path)?;
            let part_block = self.allocate(blocks, path)?;
            let file_block = blocks_of(start, path)?;
            extents.push(Extent {
                file_block,
                blocks,
                part_block,
            });
            for run in &rest[..count] {
                self.content(
                    u64::from(part_block) * BLOCK_BYTES + (run.offset - start),
                    run.length,
                )?;
            }
            rest = &rest[count..];
        }
        Ok(extents.into())
    }

    fn allocate(&mut self, blocks: u32, path: &LayerPath) -> Result<u32, LayerError> {
        self.data
            .allocate(blocks)
            .ok_or_else(|| refused(path, "does not fit: a layer's files may take 16 TiB"))
    }

    /// Copies the next `length` bytes of content to the data file.
    fn content(&mut self, offset: u64, length: u64) -> Result<(), LayerError> {
        self.reader
            .sink_mut()
            .content(offset, length)
            .map_err(LayerError::Write)?;
        let mut done = 0;
        while done < length {
            let step = usize::try_from(length - done)
                .unwrap_or(usize::MAX)
                .min(self.buffer.len());
            let count = self.reader.read_content(&mut self.buffer[..step])?;
            if count == 0 {
                return Err(TarError::Truncated {
                    offset: self.reader.position(),
                }
                .into());
            }
            self.data
                .write_at(&self.buffer[..count], offset + done)
                .map_err(LayerError::Write)?;
            done += count as u64;
        }
        Ok(())
    }
}

/// The path of an entry, which is relative (OCI image specification, "Image Layer Filesystem Changeset"); a hard link may name its
/// target from the root on.
fn entry_path(name: &[u8]) -> Result<LayerPath, LayerError> {
    match name {
        [b'/', ..] => Err(bad_path(name, BadPath::Absolute)),
        name => clean(name),
    }
}

fn clean(name: &[u8]) -> Result<LayerPath, LayerError> {
    LayerPath::clean(name).map_err(|problem| bad_path(name, problem))
}

fn bad_path(name: &[u8], problem: BadPath) -> LayerError {
    LayerError::Path {
        path: String::from_utf8_lossy(name).chars().take(300).collect(),
        problem,
    }
}

fn refused(path: &LayerPath, problem: impl Into<String>) -> LayerError {
    LayerError::Entry {
        path: path.display(),
        problem: problem.into(),
    }
}

fn blocks(bytes: u64, path: &LayerPath) -> Result<u32, LayerError> {
    blocks_of(
        bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES),
        path,
    )
}

fn blocks_of(bytes: u64, path: &LayerPath) -> Result<u32, LayerError> {
    u32::try_from(bytes / BLOCK_BYTES).map_err(|_| refused(path, "is longer than 16 TiB"))
}

fn symlink_target(member: &Member, path: &LayerPath) -> Result<Box<[u8]>, LayerError> {
    if member.link.is_empty() || member.link.len() > SYMLINK_MAX_BYTES {
        return Err(refused(
            path,
            "is a symbolic link with an empty or too long target",
        ));
    }
    Ok(member.link.as_slice().into())
}

fn device(member: &Member, path: &LayerPath) -> Result<DeviceNumber, LayerError> {
    let (major, minor) = member.device;
    DeviceNumber::new(major, minor).ok_or_else(|| {
        refused(
            path,
            format!("is the device {major}:{minor}, which Linux does not have"),
        )
    })
}

fn metadata(member: &Member, path: &LayerPath) -> Result<Metadata, LayerError> {
    let id = |value: u64, what: &str| {
        // The largest number means "no change" to chown(2).
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| {
                refused(
                    path,
                    format!("has the {what} {value}, which Linux does not have"),
                )
            })
    };
    let mode = u16::try_from(member.mode & 0o7777).unwrap_or(0);
    Ok(Metadata {
        // Linux gives every symbolic link all permissions.
        mode: if member.kind == Kind::Symlink {
            0o777
        } else {
            mode
        },
        uid: id(member.uid, "owner")?,
        gid: id(member.gid, "group")?,
        mtime: member.mtime,
        xattrs: xattrs(member, path)?,
    })
}

/// The attributes that the file system keeps; those of overlayfs are what the container must not
/// see, and those of unknown namespaces what Linux would refuse to store.
fn xattrs(member: &Member, path: &LayerPath) -> Result<Vec<Xattr>, LayerError> {
    let mut kept = Vec::new();
    for (name, value) in &member.xattrs {
        let shown = || String::from_utf8_lossy(name).into_owned();
        if value.len() > XATTR_VALUE_MAX_BYTES {
            return Err(refused(
                path,
                format!("has an extended attribute `{}` above 65535 bytes", shown()),
            ));
        }
        match XattrName::parse(name).filter(|_| !name.starts_with(OVERLAY_XATTR_PREFIX)) {
            Some(name) => kept.push(Xattr {
                name,
                value: value.as_slice().into(),
            }),
            None => tracing::debug!(
                path = path.display(),
                name = shown(),
                "extended attribute left out"
            ),
        }
    }
    let bytes: usize = kept.iter().map(|xattr| xattr.value.len() + 256).sum();
    if bytes > 200_000 {
        return Err(refused(
            path,
            "has more extended attributes than can be stored",
        ));
    }
    kept.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(kept)
}
