//! Writes archives.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::member::{Kind, Member};

/// Bytes of a tar block.
const BLOCK_BYTES: u64 = 512;
/// What a ustar header has room for of a name.
const NAME_BYTES: usize = 100;
/// The largest device number that eight octal digits hold.
const MAX_DEVICE: u32 = 0o777_7777;

/// Writes an archive, member by member.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
}

impl<W: Write> Writer<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes a member with as much content as it says; what is missing of that becomes zeros.
    ///
    /// # Errors
    ///
    /// If the content cannot be read or the archive not be written.
    pub fn member(&mut self, member: &Member, content: &mut dyn Read) -> io::Result<()> {
        self.header(member)?;
        let copied = io::copy(&mut content.take(member.size_bytes), &mut self.output)?;
        let end = member
            .size_bytes
            .checked_next_multiple_of(BLOCK_BYTES)
            .ok_or(io::ErrorKind::FileTooLarge)?;
        self.zeros(end.saturating_sub(copied))
    }

    /// Writes the end, and gives the output back.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.zeros(2 * BLOCK_BYTES)?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        io::copy(&mut io::repeat(0).take(count), &mut self.output).map(drop)
    }

    fn header(&mut self, member: &Member) -> io::Result<()> {
        let mut records = Vec::new();
        let mut header = Header::new_ustar();
        let mut path = member.path.clone();
        if member.kind == Kind::Directory {
            path.push(b'/');
        }
        if put(&mut header.as_old_mut().name, &path).is_err() {
            record(&mut records, b"path", &path);
        }
        let (entry_type, link, device) = match &member.kind {
            Kind::File => (EntryType::Regular, None, None),
            Kind::Directory => (EntryType::Directory, None, None),
            Kind::Symlink(target) => (EntryType::Symlink, Some(target), None),
            Kind::HardLink(target) => (EntryType::Link, Some(target), None),
            Kind::Fifo => (EntryType::Fifo, None, None),
            Kind::CharacterDevice(major, minor) => (EntryType::Char, None, Some((*major, *minor))),
            Kind::BlockDevice(major, minor) => (EntryType::Block, None, Some((*major, *minor))),
        };
        header.set_entry_type(entry_type);
        if let Some(link) = link
            && put(&mut header.as_old_mut().linkname, link).is_err()
        {
            record(&mut records, b"linkpath", link);
        }
        if let Some((major, minor)) = device {
            header.set_device_major(major.min(MAX_DEVICE))?;
            header.set_device_minor(minor.min(MAX_DEVICE))?;
        }
        header.set_mode(member.mode);
        header.set_uid(member.uid.into());
        header.set_gid(member.gid.into());
        header.set_size(member.size_bytes);
        header.set_mtime(u64::try_from(member.mtime_s).unwrap_or(0));
        if member.mtime_s < 0 {
            record(
                &mut records,
                b"mtime",
                member.mtime_s.to_string().as_bytes(),
            );
        }
        for (name, value) in &member.xattrs {
            record(
                &mut records,
                &[b"SCHILY.xattr.", name.as_slice()].concat(),
                value,
            );
        }
        self.records(&records)?;
        header.set_cksum();
        self.output.write_all(header.as_bytes())
    }

    /// Writes an extended header, if there is anything in it.
    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(records.len()).unwrap_or(u64::MAX);
        let mut header = Header::new_ustar();
        let _ = put(&mut header.as_old_mut().name, b"PaxHeaders/member");
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(length);
        header.set_cksum();
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(records)?;
        self.zeros(length.next_multiple_of(BLOCK_BYTES).saturating_sub(length))
    }
}

/// Puts a name in its field, or as much of it as goes in.
fn put(field: &mut [u8; NAME_BYTES], name: &[u8]) -> Result<(), ()> {
    for (byte, from) in field.iter_mut().zip(name) {
        *byte = *from;
    }
    match name.len() <= NAME_BYTES {
        true => Ok(()),
        false => Err(()),
    }
}

/// Adds a record, which begins with its own length in decimal digits.
fn record(records: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    let rest = name.len() + value.len() + b" =\n".len();
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(name);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::each_member;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        for length in 0..1200 {
            let mut records = Vec::new();
            record(&mut records, b"path", &vec![b'x'; length]);
            let said: usize = String::from_utf8_lossy(&records)
                .split(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap();
            assert_eq!(said, records.len());
        }
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        let name = || prop::collection::vec(1_u8.., 1..200);
        prop_oneof![
            Just(Kind::File),
            Just(Kind::Directory),
            Just(Kind::Fifo),
            name().prop_map(Kind::Symlink),
            name().prop_map(Kind::HardLink),
            (0..4096_u32, 0..0x10_0000_u32).prop_map(|(a, b)| Kind::CharacterDevice(a, b)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            path in prop::collection::vec(prop::sample::select(b"abc\xff\n= ".to_vec()), 1..300),
            kind in any_kind(),
            mode in 0..0o7777_u32,
            ids in any::<(u32, u32)>(),
            mtime_s in -9_000_000_000_i64..20_000_000_000,
            content in prop::collection::vec(any::<u8>(), 0..2000),
            xattr in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let size_bytes = if kind == Kind::File { content.len() as u64 } else { 0 };
            let member = Member {
                path, kind, mode, uid: ids.0, gid: ids.1, mtime_s, size_bytes,
                xattrs: vec![(b"user.test".to_vec(), xattr)],
            };
            let mut writer = Writer::new(Vec::new());
            writer.member(&member, &mut content.as_slice()).unwrap();
            let bytes = writer.finish().unwrap();

            let mut read = Vec::new();
            each_member(&mut bytes.as_slice(), |member, content| {
                let mut bytes = Vec::new();
                content.read_to_end(&mut bytes)?;
                read.push((member, bytes));
                Ok::<_, crate::ReadError>(())
            }).unwrap();
            let expected = if size_bytes == 0 { Vec::new() } else { content };
            prop_assert_eq!(read, vec![(member, expected)]);
        }
    }
}
