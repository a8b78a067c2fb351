//! Named files of a source: members of an archive, or files of a directory.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::super::stamp::Stamp;
use super::super::tar::{Input, Kind, Reader, TarError};
use super::SourceError;

/// Members that an archive of an image may have.
const MEMBERS_MAX: usize = 100_000;
/// Symbolic links that lead to one member.
const LINKS_MAX: usize = 8;

/// The files of a source, by name.
#[derive(Debug)]
pub(super) enum Files {
    /// A tar archive and where its members are.
    Archive {
        file: File,
        members: HashMap<Vec<u8>, ArchiveMember>,
    },
    /// A directory, and what was opened of it.
    Directory {
        root: PathBuf,
        opened: RefCell<BTreeMap<String, Stamp>>,
    },
}

#[derive(Debug)]
pub(super) enum ArchiveMember {
    Contents { offset: u64, length: u64 },
    Link(Vec<u8>),
}

impl Files {
    /// Lists the members of an archive; reads its headers only.
    pub(super) fn archive(file: File) -> Result<Self, TarError> {
        let length = file
            .metadata()
            .map_err(|source| TarError::Read { offset: 0, source })?
            .len();
        let part = FilePart {
            file,
            offset: 0,
            end: length,
        };
        let mut reader = Reader::new(part, ());
        let mut members = HashMap::new();
        while let Some(member) = reader.next_member()? {
            let name = clean(&member.path);
            match member.kind {
                Kind::Regular if member.sparse.is_none() => {
                    let offset = reader.position();
                    members.insert(
                        name,
                        ArchiveMember::Contents {
                            offset,
                            length: member.stored,
                        },
                    );
                }
                Kind::Symlink => {
                    let parent = name
                        .iter()
                        .rposition(|byte| *byte == b'/')
                        .map_or(&[][..], |at| &name[..at]);
                    let target = clean(&[parent, b"/", &member.link].concat());
                    members.insert(name, ArchiveMember::Link(target));
                }
                Kind::HardLink => {
                    members.insert(name, ArchiveMember::Link(clean(&member.link)));
                }
                _ => {}
            }
            if members.len() > MEMBERS_MAX {
                return Err(TarError::TooManyMembers { most: MEMBERS_MAX });
            }
        }
        let (part, ()) = reader.into_parts();
        Ok(Self::Archive {
            file: part.file,
            members,
        })
    }

    /// Takes a directory as it is.
    pub(super) fn directory(root: PathBuf) -> Self {
        Self::Directory {
            root,
            opened: RefCell::default(),
        }
    }

    /// Opens a file; `None` if there is none of that name.
    pub(super) fn open(&self, name: &str) -> Result<Option<FilePart>, SourceError> {
        match self {
            Self::Archive { file, members } => {
                let mut key = clean(name.as_bytes());
                for _ in 0..LINKS_MAX {
                    match members.get(&key) {
                        None => return Ok(None),
                        Some(ArchiveMember::Link(target)) => key = target.clone(),
                        Some(ArchiveMember::Contents { offset, length }) => {
                            let file = file
                                .try_clone()
                                .map_err(|source| SourceError::read(name, source))?;
                            return Ok(Some(FilePart {
                                file,
                                offset: *offset,
                                end: offset + length,
                            }));
                        }
                    }
                }
                Ok(None)
            }
            Self::Directory { root, opened } => {
                let path = root.join(name);
                match std::fs::metadata(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(source) => return Err(SourceError::read(path.display(), source)),
                    Ok(metadata) if !metadata.is_file() => return Ok(None),
                    Ok(_) => {}
                }
                let open = || {
                    let file = File::open(&path)?;
                    let metadata = file.metadata()?;
                    opened
                        .borrow_mut()
                        .entry(name.to_owned())
                        .or_insert(Stamp::of(&metadata));
                    let end = metadata.len();
                    Ok(FilePart {
                        file,
                        offset: 0,
                        end,
                    })
                };
                open()
                    .map(Some)
                    .map_err(|source| SourceError::read(path.display(), source))
            }
        }
    }

    /// Reads a whole small file.
    pub(super) fn read(&self, name: &str, max_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let Some(part) = self.open(name)? else {
            return Ok(None);
        };
        let bytes = part.len();
        if bytes > max_bytes {
            return Err(SourceError::TooLong {
                name: name.to_owned(),
                bytes,
                max_bytes,
            });
        }
        let mut contents = Vec::new();
        part.take(max_bytes)
            .read_to_end(&mut contents)
            .map_err(|source| SourceError::read(name, source))?;
        Ok(Some(contents))
    }

    /// Whether a file of that name exists.
    pub(super) fn has(&self, name: &str) -> Result<bool, SourceError> {
        Ok(self.open(name)?.is_some())
    }
}

/// Cleans a member's name: no leading slash or dots; `..` never leads above the top.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                kept.pop();
            }
            component => kept.push(component),
        }
    }
    kept.join(&b'/')
}

/// A range of a file, read from its start; independent of the file's own position.
#[derive(Debug)]
pub(in crate::image) struct FilePart {
    file: File,
    offset: u64,
    end: u64,
}

impl FilePart {
    /// Bytes that are left.
    pub(in crate::image) fn len(&self) -> u64 {
        self.end.saturating_sub(self.offset)
    }

    /// The first bytes, without passing them.
    pub(in crate::image) fn peek<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let wanted = usize::try_from(self.len())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.file
            .read_exact_at(&mut buffer[..wanted], self.offset)?;
        Ok(&buffer[..wanted])
    }
}

impl Read for FilePart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.len())
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Input for FilePart {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.len() {
            self.offset = self.end;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += bytes;
        Ok(())
    }
}
