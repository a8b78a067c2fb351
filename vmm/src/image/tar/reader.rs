//! Walks an archive member by member.

use std::io::{self, Read};

use super::super::erofs::Timestamp;
use super::header::{BLOCK, BadNumber, Header, sparse_runs};
use super::pax::{self, Records, SPARSE_RUNS_MAX, decimal};
use super::sparse::{SparseRun, checked};

/// Longest body of a PAX header or a GNU long name that is read: what an unpacking runtime takes.
const SPECIAL_MAX_BYTES: u64 = 1 << 20;

/// Where an archive comes from.
pub(crate) trait Input: Read {
    /// Passes over `bytes` bytes; fails with `UnexpectedEof` where they do not exist.
    ///
    /// # Errors
    /// As reading would.
    fn skip(&mut self, bytes: u64) -> io::Result<()>
    where
        Self: Sized,
    {
        let passed = io::copy(&mut self.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Gets every byte of an archive that is not the content of a regular file, in order.
pub(crate) trait RawSink {
    /// Takes the next such bytes.
    ///
    /// # Errors
    /// If they cannot be kept.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl RawSink for () {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// What is wrong with an archive; offsets count bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The archive ends in the middle of something.
    #[error("the archive ends in the middle, at byte {offset}")]
    Truncated {
        /// Where it ended.
        offset: u64,
    },
    /// A block that should be a header is none.
    #[error("no tar header at byte {offset}")]
    BadHeader {
        /// Where the header was expected.
        offset: u64,
    },
    /// A field of a header is no number.
    #[error("the {field} of the header at byte {offset} is not a valid number")]
    BadNumber {
        /// The field.
        field: &'static str,
        /// Where the header is.
        offset: u64,
    },
    /// An extended header is malformed.
    #[error("the PAX header at byte {offset} is malformed")]
    BadPax {
        /// Where it is.
        offset: u64,
    },
    /// An extended header is too long.
    #[error(
        "the extended header at byte {offset} has {bytes} bytes; {SPECIAL_MAX_BYTES} are allowed"
    )]
    SpecialTooLong {
        /// Where it is.
        offset: u64,
        /// Its length.
        bytes: u64,
    },
    /// A sparse map contradicts itself or the file.
    #[error("the sparse map of `{path}` is malformed")]
    BadSparse {
        /// The file.
        path: String,
    },
    /// The bytes could not be read.
    #[error("cannot read the archive at byte {offset}")]
    Read {
        /// Where reading failed.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive has too many members to list.
    #[error("the archive has more than {most} members")]
    TooManyMembers {
        /// The limit.
        most: usize,
    },
    /// The bytes could not be kept.
    #[error("cannot store the archive's headers")]
    Keep(#[source] io::Error),
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
    Other(u8),
}

/// One member of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u64,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Length of the file.
    pub(crate) size: u64,
    /// Bytes that the archive stores of it.
    pub(crate) stored: u64,
    /// Where the stored bytes belong; `None` for a file without holes.
    pub(crate) sparse: Option<Vec<SparseRun>>,
}

/// Walks an archive; contents are read between two calls of [`Reader::next_member`].
pub(crate) struct Reader<I, S> {
    input: I,
    sink: S,
    position: u64,
    /// Content bytes of the current member that were not read yet, then its padding.
    content: u64,
    padding: u64,
    ended: bool,
}

impl<I: Input, S: RawSink> Reader<I, S> {
    pub(crate) fn new(input: I, sink: S) -> Self {
        Self {
            input,
            sink,
            position: 0,
            content: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Bytes of the archive that were passed so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Reads content of the current member; 0 at its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let wanted = buffer
            .len()
            .min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let mut filled = 0;
        while filled < wanted {
            match self.input.read(&mut buffer[filled..wanted]) {
                Ok(0) => {
                    return Err(TarError::Truncated {
                        offset: self.position,
                    });
                }
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                    self.content -= count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(filled)
    }

    /// Passes to the next member; `None` at the end of the archive.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member>, TarError> {
        let mut has_records = false;
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        loop {
            self.finish_member()?;
            let offset = self.position;
            let Some(block) = self.header_block()? else {
                return Ok(None);
            };
            let header = Header::parse(&block).ok_or(TarError::BadHeader { offset })?;
            let number = |BadNumber(field)| TarError::BadNumber { field, offset };
            match header.type_flag() {
                // One for each member: more would be work without an end.
                b'x' if has_records => return Err(TarError::BadPax { offset }),
                b'x' => {
                    has_records = true;
                    let body = self.special(&header, offset)?;
                    records = pax::parse(&body).ok_or(TarError::BadPax { offset })?;
                }
                // A global header, which unpacking runtimes pass over.
                b'g' => drop(self.special(&header, offset)?),
                b'L' => long_path = Some(until_nul(self.special(&header, offset)?)),
                b'K' => long_link = Some(until_nul(self.special(&header, offset)?)),
                flag => {
                    let path = records
                        .path
                        .take()
                        .or(long_path)
                        .unwrap_or_else(|| header.path());
                    let link = records
                        .link
                        .take()
                        .or(long_link)
                        .unwrap_or_else(|| header.link());
                    let kind = kind(flag, &path);
                    let stored = match records.size {
                        Some(size) => size,
                        None => header.size().map_err(number)?,
                    };
                    let stored = if is_header_only(kind) { 0 } else { stored };
                    let member = Member {
                        kind,
                        mode: header.mode().map_err(number)?,
                        uid: records
                            .uid
                            .map_or_else(|| header.uid(), Ok)
                            .map_err(number)?,
                        gid: records
                            .gid
                            .map_or_else(|| header.gid(), Ok)
                            .map_err(number)?,
                        mtime: records
                            .mtime
                            .map_or_else(|| header.mtime(), Ok)
                            .map_err(number)?,
                        device: header.device().map_err(number)?,
                        xattrs: std::mem::take(&mut records.xattrs),
                        size: stored,
                        stored,
                        sparse: None,
                        path,
                        link,
                    };
                    let padded = stored
                        .checked_next_multiple_of(BLOCK as u64)
                        .ok_or(number(BadNumber("size")))?;
                    self.content = stored;
                    self.padding = padded - stored;
                    let is_gnu_sparse = flag == b'S';
                    return self
                        .with_sparse_map(member, records, is_gnu_sparse.then_some(&header))
                        .map(Some);
                }
            }
        }
    }

    /// Reads what stands behind the end of the archive up to the end of the input.
    pub(crate) fn drain(&mut self) -> Result<(), TarError> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.input.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.keep(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    /// The sink, to tell it what is read by [`Reader::read_content`].
    pub(crate) fn sink_mut(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Gives back input and sink.
    pub(crate) fn into_parts(self) -> (I, S) {
        (self.input, self.sink)
    }

    /// Passes over what is left of the current member.
    fn finish_member(&mut self) -> Result<(), TarError> {
        let content = std::mem::take(&mut self.content);
        if content > 0 {
            self.input
                .skip(content)
                .map_err(|error| self.failed(error))?;
            self.position += content;
        }
        let padding = usize::try_from(std::mem::take(&mut self.padding))
            .unwrap_or(0)
            .min(BLOCK);
        // Some writers leave out what should follow the last contents; unpacking runtimes take it.
        let mut buffer = [0; BLOCK];
        let filled = self.fill_up_to(&mut buffer[..padding])?;
        self.ended |= filled < padding;
        self.keep(&buffer[..filled])
    }

    /// The next header; `None` behind two blocks of zeros or at a clean end of the input.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let start = self.position;
        if !self.fill_or_end(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block.iter().any(|byte| *byte != 0) {
            return Ok(Some(block));
        }
        self.ended = true;
        if self.fill_or_end(&mut block)? && block.iter().any(|byte| *byte != 0) {
            return Err(TarError::BadHeader {
                offset: start + BLOCK as u64,
            });
        }
        Ok(None)
    }

    /// The body of a header that describes the next one.
    fn special(&mut self, header: &Header<'_>, offset: u64) -> Result<Vec<u8>, TarError> {
        let bytes = header
            .size()
            .map_err(|BadNumber(field)| TarError::BadNumber { field, offset })?;
        if bytes > SPECIAL_MAX_BYTES {
            return Err(TarError::SpecialTooLong { offset, bytes });
        }
        let length = usize::try_from(bytes).unwrap_or(0);
        let mut body = vec![0; length.next_multiple_of(BLOCK)];
        self.fill(&mut body)?;
        body.truncate(length);
        Ok(body)
    }

    fn with_sparse_map(
        &mut self,
        mut member: Member,
        records: Records,
        gnu: Option<&Header<'_>>,
    ) -> Result<Member, TarError> {
        let bad = |path: &[u8]| TarError::BadSparse {
            path: String::from_utf8_lossy(path).into_owned(),
        };
        let sparse = records.sparse;
        let (runs, real_size) = if let Some(header) = gnu {
            self.gnu_map(header)
                .map_err(|error| error.unwrap_or_else(|| bad(&member.path)))?
        } else if member.kind != Kind::Regular {
            return Ok(member);
        } else if sparse.major == Some(1) && sparse.minor == Some(0) {
            if let Some(name) = sparse.name {
                member.path = name;
            }
            let real_size = sparse.real_size.ok_or_else(|| bad(&member.path))?;
            let runs = self
                .map_in_content()
                .map_err(|error| error.unwrap_or_else(|| bad(&member.path)))?;
            (runs, real_size)
        } else if let (Some(runs), Some(real_size)) = (sparse.runs, sparse.real_size) {
            if let Some(name) = sparse.name {
                member.path = name;
            }
            (runs, real_size)
        } else {
            return Ok(member);
        };
        member.stored = self.content;
        member.sparse =
            Some(checked(runs, real_size, self.content).ok_or_else(|| bad(&member.path))?);
        member.size = real_size;
        member.kind = Kind::Regular;
        Ok(member)
    }

    /// The map of an old GNU sparse member; `Err(None)` if it is malformed.
    fn gnu_map(&mut self, header: &Header<'_>) -> Result<(Vec<SparseRun>, u64), Option<TarError>> {
        let (mut runs, mut more, real_size) = header.gnu_sparse().map_err(|_| None)?;
        while more {
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            runs.extend(sparse_runs(&block[..504]).map_err(|_| None)?);
            more = block[504] != 0;
            if runs.len() > SPARSE_RUNS_MAX {
                return Err(None);
            }
        }
        Ok((runs, real_size))
    }

    /// The map of PAX form 1.0, decimal lines in the first blocks of the content.
    fn map_in_content(&mut self) -> Result<Vec<SparseRun>, Option<TarError>> {
        let mut lines = MapLines {
            block: [0; BLOCK],
            at: BLOCK,
        };
        let count = usize::try_from(lines.number(self)?)
            .ok()
            .filter(|count| *count <= SPARSE_RUNS_MAX)
            .ok_or(None)?;
        let mut runs = Vec::new();
        for _ in 0..count {
            let offset = lines.number(self)?;
            runs.push(SparseRun {
                offset,
                length: lines.number(self)?,
            });
        }
        Ok(runs)
    }

    /// Takes a block of the content for the sink instead of the reader.
    fn map_block(&mut self, block: &mut [u8; BLOCK]) -> Result<(), Option<TarError>> {
        let rest = self.content.checked_sub(BLOCK as u64).ok_or(None)?;
        self.fill(block)?;
        self.content = rest;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        if buffer.is_empty() {
            return Ok(());
        }
        self.input
            .read_exact(buffer)
            .map_err(|error| self.failed(error))?;
        self.keep(buffer)
    }

    /// Fills the buffer; `false` if the input ended before its first byte.
    fn fill_or_end(&mut self, buffer: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        match self.fill_up_to(buffer)? {
            0 => Ok(false),
            BLOCK => self.keep(buffer).map(|()| true),
            filled => Err(TarError::Truncated {
                offset: self.position + filled as u64,
            }),
        }
    }

    /// Fills the buffer as far as the input goes.
    fn fill_up_to(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(filled)
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        self.position += bytes.len() as u64;
        self.sink.raw(bytes).map_err(TarError::Keep)
    }

    fn failed(&self, source: io::Error) -> TarError {
        if source.kind() == io::ErrorKind::UnexpectedEof && source.get_ref().is_none() {
            TarError::Truncated {
                offset: self.position,
            }
        } else {
            TarError::Read {
                offset: self.position,
                source,
            }
        }
    }
}

/// The decimal lines of a sparse map, block by block.
struct MapLines {
    block: [u8; BLOCK],
    at: usize,
}

impl MapLines {
    fn number<I: Input, S: RawSink>(
        &mut self,
        reader: &mut Reader<I, S>,
    ) -> Result<u64, Option<TarError>> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                reader.map_block(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or(None);
            }
            if digits.len() > 20 {
                return Err(None);
            }
            digits.push(byte);
        }
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn kind(flag: u8, path: &[u8]) -> Kind {
    match flag {
        b'\0' if path.ends_with(b"/") => Kind::Directory,
        b'0' | b'\0' | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharacterDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    }
}

/// Kinds whose size says nothing about what follows them.
fn is_header_only(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::HardLink
            | Kind::Symlink
            | Kind::CharacterDevice
            | Kind::BlockDevice
            | Kind::Directory
            | Kind::Fifo
    )
}
