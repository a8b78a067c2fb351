//! A tar writer that writes what it is told, sensible or not.
//!
//! Formats: POSIX.1-2001 `pax` (ustar header blocks and extended headers), GNU tar's long-name entries and its two ways
//! to write sparse files (old GNU format, and PAX format 1.0; GNU tar manual, "Storing Sparse Files").

/// Unit of a tar file.
const BLOCK_BYTES: usize = 512;

/// Longest name that fits a header block.
const NAME_BYTES: usize = 100;

/// Time of last change of every entry that says nothing else: 2026-01-02 03:04:05 UTC.
const DEFAULT_TIME: u64 = 1_767_323_045;

/// What an entry is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A regular file with its content.
    File(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A hard link with the path of an earlier entry.
    HardLink(Vec<u8>),
    /// A character device with its numbers.
    CharacterDevice(u32, u32),
    /// A block device with its numbers.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A sparse file in the old GNU format: `data` at the start, a hole up to `size_bytes`.
    GnuSparse {
        /// Apparent size.
        size_bytes: u64,
        /// Content at offset 0, a whole number of blocks.
        data: Vec<u8>,
    },
    /// The same in PAX format 1.0.
    PaxSparse {
        /// Apparent size.
        size_bytes: u64,
        /// Content at offset 0.
        data: Vec<u8>,
    },
    /// A regular file whose header promises another size than the content has.
    LyingFile {
        /// Size in the header.
        size_bytes: u64,
        /// Content that follows.
        data: Vec<u8>,
    },
}

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) user: u64,
    pub(super) group: u64,
    pub(super) time: u64,
    /// PAX records for this entry: key and value.
    pub(super) records: Vec<(String, Vec<u8>)>,
}

impl Entry {
    pub(super) fn new(path: &[u8], mode: u32, kind: Kind) -> Self {
        Self {
            path: path.to_vec(),
            kind,
            mode,
            user: 0,
            group: 0,
            time: DEFAULT_TIME,
            records: Vec::new(),
        }
    }
}

/// Writes a tar file into memory.
#[derive(Debug, Default)]
pub struct TarWriter {
    bytes: Vec<u8>,
}

impl TarWriter {
    /// Appends a regular file of mode 0644, as an image archive's own members are.
    pub fn plain_file(&mut self, path: &str, content: &[u8]) {
        self.entry(&Entry::new(
            path.as_bytes(),
            0o644,
            Kind::File(content.to_vec()),
        ));
    }

    /// Appends a symbolic link.
    pub fn plain_symlink(&mut self, path: &str, target: &str) {
        self.entry(&Entry::new(
            path.as_bytes(),
            0o777,
            Kind::Symlink(target.into()),
        ));
    }

    /// Appends the two empty blocks that end a tar file, and returns it.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }

    /// Appends an entry.
    pub(super) fn entry(&mut self, entry: &Entry) {
        match &entry.kind {
            Kind::File(data) => self.with_data(entry, b'0', data),
            Kind::Directory => self.without_data(entry, b'5', b"", (0, 0)),
            Kind::Symlink(target) => self.without_data(entry, b'2', target, (0, 0)),
            Kind::HardLink(target) => self.without_data(entry, b'1', target, (0, 0)),
            Kind::CharacterDevice(major, minor) => {
                self.without_data(entry, b'3', b"", (*major, *minor))
            }
            Kind::BlockDevice(major, minor) => {
                self.without_data(entry, b'4', b"", (*major, *minor))
            }
            Kind::Fifo => self.without_data(entry, b'6', b"", (0, 0)),
            Kind::GnuSparse { size_bytes, data } => self.gnu_sparse(entry, *size_bytes, data),
            Kind::PaxSparse { size_bytes, data } => self.pax_sparse(entry, *size_bytes, data),
            Kind::LyingFile { size_bytes, data } => {
                self.before(entry, b"");
                self.bytes
                    .extend(Header::of(entry, b'0', *size_bytes).block());
                self.padded(data);
            }
        }
    }

    fn with_data(&mut self, entry: &Entry, kind: u8, data: &[u8]) {
        self.before(entry, b"");
        self.bytes
            .extend(Header::of(entry, kind, length(data)).block());
        self.padded(data);
    }

    fn without_data(&mut self, entry: &Entry, kind: u8, target: &[u8], device: (u32, u32)) {
        self.before(entry, target);
        self.bytes.extend(
            Header {
                target,
                device,
                ..Header::of(entry, kind, 0)
            }
            .block(),
        );
    }

    /// Appends what has to stand before the entry's own header: PAX records, among them names too long for it.
    fn before(&mut self, entry: &Entry, target: &[u8]) {
        let mut records = entry.records.clone();
        for (key, value) in [("path", entry.path.as_slice()), ("linkpath", target)] {
            if value.len() > NAME_BYTES {
                records.push((key.into(), value.to_vec()));
            }
        }
        if !records.is_empty() {
            let body: Vec<u8> = records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            let extended = Entry::new(b"PaxHeaders/entry", 0o644, Kind::Directory);
            self.bytes
                .extend(Header::of(&extended, b'x', length(&body)).block());
            self.padded(&body);
        }
    }

    fn gnu_sparse(&mut self, entry: &Entry, size_bytes: u64, data: &[u8]) {
        self.before(entry, b"");
        let mut block = Header::of(entry, b'S', length(data)).unsealed();
        block[257..265].copy_from_slice(b"ustar  \0");
        // Two of the four places of the map: the data, and the empty piece that marks the end.
        put_octal(&mut block[386..398], 0);
        put_octal(&mut block[398..410], length(data));
        put_octal(&mut block[410..422], size_bytes);
        put_octal(&mut block[422..434], 0);
        put_octal(&mut block[483..495], size_bytes);
        self.bytes.extend(sealed(block));
        self.padded(data);
    }

    fn pax_sparse(&mut self, entry: &Entry, size_bytes: u64, data: &[u8]) {
        let mut map = format!("2\n0\n{}\n{size_bytes}\n0\n", data.len()).into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK_BYTES), 0);
        map.extend_from_slice(data);
        let mut marked = entry.clone();
        marked.path = b"GNUSparseFile.0/entry".to_vec();
        marked.records.extend([
            ("GNU.sparse.major".into(), b"1".to_vec()),
            ("GNU.sparse.minor".into(), b"0".to_vec()),
            ("GNU.sparse.name".into(), entry.path.clone()),
            (
                "GNU.sparse.realsize".into(),
                size_bytes.to_string().into_bytes(),
            ),
        ]);
        self.with_data(&marked, b'0', &map);
    }

    fn padded(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
    }
}

/// The fields of a header block that differ from entry to entry.
struct Header<'a> {
    path: &'a [u8],
    mode: u32,
    user: u64,
    group: u64,
    size_bytes: u64,
    time: u64,
    kind: u8,
    target: &'a [u8],
    device: (u32, u32),
}

impl<'a> Header<'a> {
    fn of(entry: &'a Entry, kind: u8, size_bytes: u64) -> Self {
        Self {
            path: &entry.path,
            mode: entry.mode,
            user: entry.user,
            group: entry.group,
            size_bytes,
            time: entry.time,
            kind,
            target: b"",
            device: (0, 0),
        }
    }

    fn block(&self) -> [u8; BLOCK_BYTES] {
        sealed(self.unsealed())
    }

    /// Fills in everything but the checksum.
    fn unsealed(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        put_name(&mut block[..NAME_BYTES], self.path);
        put_octal(&mut block[100..108], u64::from(self.mode));
        put_number(&mut block[108..116], self.user);
        put_number(&mut block[116..124], self.group);
        put_number(&mut block[124..136], self.size_bytes);
        put_number(&mut block[136..148], self.time);
        block[156] = self.kind;
        put_name(&mut block[157..257], self.target);
        block[257..265].copy_from_slice(b"ustar\x0000");
        put_octal(&mut block[329..337], u64::from(self.device.0));
        put_octal(&mut block[337..345], u64::from(self.device.1));
        block
    }
}

/// Fills in the checksum: the sum of all bytes, its own field counted as spaces.
fn sealed(mut block: [u8; BLOCK_BYTES]) -> [u8; BLOCK_BYTES] {
    block[148..156].fill(b' ');
    let sum = block.iter().map(|byte| u64::from(*byte)).sum();
    put_octal(&mut block[148..155], sum);
    block
}

fn put_name(field: &mut [u8], name: &[u8]) {
    let fitting = name.len().min(field.len());
    field[..fitting].copy_from_slice(&name[..fitting]);
}

/// Writes octal digits and a zero byte.
fn put_octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    assert!(
        digits.len() == width,
        "{value} does not fit {width} octal digits"
    );
    field[..width].copy_from_slice(digits.as_bytes());
}

/// Writes octal digits, or GNU's base-256 form where they do not fit.
fn put_number(field: &mut [u8], value: u64) {
    let width = field.len();
    if format!("{value:o}").len() < width {
        return put_octal(field, value);
    }
    field.fill(0);
    field[0] = 0x80;
    let number = value.to_be_bytes();
    let start = width.saturating_sub(number.len());
    let skipped = number.len().saturating_sub(width - 1);
    let start = start.max(1);
    field[start..].copy_from_slice(&number[skipped..]);
}

/// Makes one PAX record, whose first field is the length of the whole record, itself included.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let length = (1..=20)
        .map(|digits| (digits, rest + digits))
        .find(|(digits, length)| length.to_string().len() == *digits)
        .map_or(rest, |(_, length)| length);
    let mut bytes = format!("{length} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

fn length(data: &[u8]) -> u64 {
    u64::try_from(data.len()).expect("a length in memory fits 64 bits")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::super::Layer;
    use super::*;

    /// Lets GNU tar, a reader that is not ours, list a layer.
    fn listed(layer: &Layer) -> String {
        let mut tar = Command::new("tar")
            .args(["--list", "--verbose", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        tar.stdin.take().unwrap().write_all(&layer.tar()).unwrap();
        let output = tar.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn gnu_tar_reads_ordinary_entries() {
        let layer = Layer::new()
            .directory("etc")
            .file("etc/motd", "hi")
            .with_mode(0o4755)
            .with_owner(1000, 50)
            .symlink("etc/link", "motd")
            .hard_link("etc/hard", "etc/motd")
            .entry("null", 0o666, Kind::CharacterDevice(1, 3));
        let expected = "drwxr-xr-x 0/0               0 2026-01-02 03:04 etc\n\
                        -rwsr-xr-x 1000/50           2 2026-01-02 03:04 etc/motd\n\
                        lrwxrwxrwx 0/0               0 2026-01-02 03:04 etc/link -> motd\n\
                        hrw-r--r-- 0/0               0 2026-01-02 03:04 etc/hard link to etc/motd\n\
                        crw-rw-rw- 0/0             1,3 2026-01-02 03:04 null\n";
        assert_eq!(listed(&layer), expected);
    }

    #[test]
    fn gnu_tar_reads_long_names_and_large_owners() {
        let name = "d/".repeat(80) + "file";
        let layer = Layer::new().file(&name, "").with_owner(3_000_000, 0);
        let listing = listed(&layer);
        assert!(listing.contains(&name), "{listing}");
        assert!(listing.contains("3000000/0"), "{listing}");
    }

    #[test]
    fn gnu_tar_reads_both_forms_of_sparse_files() {
        let (size_bytes, data) = (10 << 20, vec![7; 1024]);
        let layer = Layer::new()
            .entry(
                "old",
                0o644,
                Kind::GnuSparse {
                    size_bytes,
                    data: data.clone(),
                },
            )
            .entry("new", 0o644, Kind::PaxSparse { size_bytes, data });
        let expected = "-rw-r--r-- 0/0        10485760 2026-01-02 03:04 old\n\
                        -rw-r--r-- 0/0        10485760 2026-01-02 03:04 new\n";
        assert_eq!(listed(&layer), expected);
    }
}
