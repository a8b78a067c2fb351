//! Makes a seekable, uncompressed archive of what was given.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::compression::{Compression, Counted, decoder};
use super::super::limits::Limits;
use super::super::progress::{Progress, Step};
use super::super::tar::{BLOCK, Header};
use super::SourceError;
use super::files::Files;

/// Takes a file as it is if it is a plain archive; unpacks it to a spool if it is compressed.
pub(super) fn from_file(
    file: File,
    limits: &Limits,
    progress: &dyn Progress,
    spool: impl FnOnce() -> io::Result<File>,
) -> Result<Files, SourceError> {
    let mut start = [0; BLOCK];
    let filled = read_up_to(
        &mut |buffer, at| file.read_at(buffer, at as u64),
        &mut start,
    )
    .map_err(|source| SourceError::read("it", source))?;
    match recognise(&start[..filled])? {
        Compression::None => Files::archive(file).map_err(SourceError::Archive),
        compression => copy(file, compression, "it", limits, progress, spool),
    }
}

/// Copies a stream to a spool, unpacked.
pub(super) fn from_stream(
    mut input: Box<dyn Read + Send>,
    name: &str,
    limits: &Limits,
    progress: &dyn Progress,
    spool: impl FnOnce() -> io::Result<File>,
) -> Result<Files, SourceError> {
    let mut start = [0; BLOCK];
    let filled = read_up_to(&mut |buffer, _| input.read(buffer), &mut start)
        .map_err(|source| SourceError::read(name, source))?;
    let compression = recognise(&start[..filled])?;
    let whole = io::Cursor::new(start[..filled].to_vec()).chain(input);
    copy(whole, compression, name, limits, progress, spool)
}

fn read_up_to(
    read: &mut dyn FnMut(&mut [u8], usize) -> io::Result<usize>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read(&mut buffer[filled..], filled) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Says how an archive is compressed, or why these bytes cannot begin one.
fn recognise(start: &[u8]) -> Result<Compression, SourceError> {
    let compression = Compression::of(start);
    if compression != Compression::None {
        return Ok(compression);
    }
    let known: [(&[u8], &str); 4] = [
        (b"\xfd7zXZ\0", "it is compressed with xz"),
        (b"BZh", "it is compressed with bzip2"),
        (b"PK\x03\x04", "it is a zip archive"),
        (b"hsqs", "it is a squashfs image"),
    ];
    if let Some((_, reason)) = known.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(SourceError::NotAnArchive(reason));
    }
    match start.first_chunk::<BLOCK>() {
        Some(block) if Header::parse(block).is_some() => Ok(Compression::None),
        Some(_) => Err(SourceError::NotAnArchive(
            "it does not begin with a tar header",
        )),
        None if start.is_empty() => Err(SourceError::NotAnArchive("it is empty")),
        None => Err(SourceError::NotAnArchive("it is shorter than a tar header")),
    }
}

fn copy(
    input: impl Read,
    compression: Compression,
    name: &str,
    limits: &Limits,
    progress: &dyn Progress,
    spool: impl FnOnce() -> io::Result<File>,
) -> Result<Files, SourceError> {
    let compressed = AtomicU64::new(0);
    let counted = Counted {
        inner: input,
        count: &compressed,
    };
    let buffered = BufReader::with_capacity(1 << 17, counted);
    let mut input = decoder(compression, Box::new(buffered))
        .map_err(|source| SourceError::read(name, source))?;
    let mut file = spool().map_err(SourceError::Spool)?;
    progress.begin(&Step::Spool, None);
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0_u64;
    loop {
        let count = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(SourceError::read(name, source)),
        };
        total += count as u64;
        if total > limits.spool_bytes {
            return Err(SourceError::SpoolLimit(limits.spool_bytes));
        }
        limits
            .ratio(total, compressed.load(Ordering::Relaxed))
            .map_err(SourceError::SpoolRatio)?;
        file.write_all(&buffer[..count])
            .map_err(SourceError::Spool)?;
        progress.advance(count as u64);
    }
    Files::archive(file).map_err(SourceError::Archive)
}
