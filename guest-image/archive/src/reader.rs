//! Reads archives of this crate's own kind: what [`crate::Writer`] writes.

use std::io::{self, Read};

use tar::{Archive, EntryType};
use thiserror::Error;

use crate::member::{Kind, Member};

/// Longest extended header: a path, a link's target, and all attributes that a file can have.
const MAX_RECORDS_BYTES: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The stream broke off, or is none.
    #[error("the archive cannot be read")]
    Read(#[from] io::Error),
    /// An extended header is too long, or not what it should be.
    #[error("the archive has an extended header that is none")]
    BadRecords,
    /// Something that the host never sends.
    #[error("the archive has a member of an unknown kind")]
    UnknownKind,
}

/// Calls `each` for every member, with its content. What is not read of that is passed over.
///
/// # Errors
///
/// If the archive cannot be read, or `each` fails.
pub fn each_member<E: From<ReadError>>(
    input: &mut dyn Read,
    mut each: impl FnMut(Member, &mut dyn Read) -> Result<(), E>,
) -> Result<(), E> {
    let read = |error: io::Error| E::from(ReadError::Read(error));
    let mut archive = Archive::new(input);
    let mut records = Vec::new();
    for entry in archive.entries().map_err(read)?.raw(true) {
        let mut entry = entry.map_err(read)?;
        if entry.header().entry_type() == EntryType::XHeader {
            records.clear();
            let count = entry
                .by_ref()
                .take(MAX_RECORDS_BYTES + 1)
                .read_to_end(&mut records)
                .map_err(read)?;
            if u64::try_from(count).map_or(true, |count| count > MAX_RECORDS_BYTES) {
                return Err(ReadError::BadRecords.into());
            }
            continue;
        }
        let mut member = of_header(entry.header())?;
        apply(&mut member, &records)?;
        records.clear();
        while member.path.len() > 1 && member.path.last() == Some(&b'/') {
            member.path.pop();
        }
        each(member, &mut entry)?;
    }
    Ok(())
}

fn of_header(header: &tar::Header) -> Result<Member, ReadError> {
    let link = || {
        header
            .link_name_bytes()
            .map(|link| link.into_owned())
            .unwrap_or_default()
    };
    let device = || -> io::Result<(u32, u32)> {
        Ok((
            header.device_major()?.unwrap_or(0),
            header.device_minor()?.unwrap_or(0),
        ))
    };
    let kind = match header.entry_type() {
        EntryType::Regular => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link()),
        EntryType::Link => Kind::HardLink(link()),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        _ => return Err(ReadError::UnknownKind),
    };
    let id = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
    Ok(Member {
        path: header.path_bytes().into_owned(),
        kind,
        mode: header.mode()? & 0o7777,
        uid: id(header.uid()?),
        gid: id(header.gid()?),
        mtime_s: i64::try_from(header.mtime()?).unwrap_or(i64::MAX),
        size_bytes: header.size()?,
        xattrs: Vec::new(),
    })
}

/// Takes over what an extended header says.
fn apply(member: &mut Member, records: &[u8]) -> Result<(), ReadError> {
    let mut rest = records;
    while !rest.is_empty() {
        let (name, value, next) = split_record(rest).ok_or(ReadError::BadRecords)?;
        match (name, &mut member.kind) {
            (b"path", _) => member.path = value.to_vec(),
            (b"linkpath", Kind::Symlink(link) | Kind::HardLink(link)) => *link = value.to_vec(),
            (b"mtime", _) => {
                let text = std::str::from_utf8(value).map_err(|_| ReadError::BadRecords)?;
                member.mtime_s = text.parse().map_err(|_| ReadError::BadRecords)?;
            }
            _ => {
                if let Some(name) = name.strip_prefix(b"SCHILY.xattr.") {
                    member.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        rest = next;
    }
    Ok(())
}

/// Takes the first record off: name, value, what follows.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = records.iter().position(|byte| *byte == b' ')?;
    let (length, _) = records.split_at_checked(digits)?;
    let length: usize = std::str::from_utf8(length).ok()?.parse().ok()?;
    let (record, next) = records.split_at_checked(length)?;
    let record = record.get(digits + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (name, value) = record.split_at_checked(equals)?;
    Some((name, value.get(1..)?, next))
}
