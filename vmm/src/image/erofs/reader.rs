//! A reader of EROFS images for the tests: everything in memory, every rule asserted.

use std::collections::BTreeMap;

/// What the reader found under one path.
#[derive(Debug, Clone)]
pub(in crate::image) struct Found {
    pub(in crate::image) nid: u64,
    pub(in crate::image) mode: u16,
    pub(in crate::image) uid: u32,
    pub(in crate::image) gid: u32,
    pub(in crate::image) links: u32,
    pub(in crate::image) mtime: (i64, u32),
    pub(in crate::image) device: u32,
    pub(in crate::image) first_block: u32,
    pub(in crate::image) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(in crate::image) contents: Vec<u8>,
}

/// An image of which files were mapped behind each other.
#[derive(Debug)]
pub(in crate::image) struct Reader<'a> {
    image: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(in crate::image) fn new(image: &'a [u8]) -> Self {
        let reader = Self { image };
        assert_eq!(reader.u32(1024), 0xE0F5_E1E2, "magic");
        assert_eq!(image[1024 + 12], 12, "block bits");
        reader
    }

    /// Every path with what is there.
    pub(in crate::image) fn walk(&self) -> BTreeMap<Vec<u8>, Found> {
        let root = u64::from(self.u16(1024 + 14));
        let mut found = BTreeMap::new();
        let mut open = vec![(b"/".to_vec(), root, root)];
        while let Some((path, nid, parent)) = open.pop() {
            let inode = self.inode(nid);
            if inode.mode & 0o170_000 == 0o040_000 {
                let entries = Self::entries(&inode.contents);
                let names: Vec<_> = entries.iter().map(|(name, ..)| name.clone()).collect();
                assert!(names.is_sorted(), "names of {path:?} are in order");
                for (name, child, kind) in entries {
                    if name == b"." {
                        assert_eq!(child, nid);
                    } else if name == b".." {
                        assert_eq!(child, parent);
                    } else {
                        let mut below = path.clone();
                        if below != b"/" {
                            below.push(b'/');
                        }
                        below.extend(&name);
                        let mode = self.inode(child).mode & 0o170_000;
                        let expected = match mode {
                            0o100_000 => 1,
                            0o040_000 => 2,
                            0o020_000 => 3,
                            0o060_000 => 4,
                            0o010_000 => 5,
                            _ => 7,
                        };
                        assert_eq!(kind, expected, "kind in the entry of {below:?}");
                        open.push((below, child, nid));
                    }
                }
            }
            found.insert(path, inode);
        }
        found
    }

    fn inode(&self, nid: u64) -> Found {
        let at = usize::try_from(nid * 32).unwrap();
        let format = self.u16(at);
        assert_eq!(format & 1, 1, "extended inode");
        let count = usize::from(self.u16(at + 2));
        let xattr_bytes = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let mode = self.u16(at + 4);
        let size = self.u64(at + 8);
        let union = self.u32(at + 16);
        let behind = at + 64 + xattr_bytes;
        let kind = mode & 0o170_000;
        let has_data = matches!(kind, 0o100_000 | 0o040_000 | 0o120_000);
        let contents = if has_data {
            self.data(format >> 1, size, union, behind)
        } else {
            Vec::new()
        };
        Found {
            nid,
            mode,
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            links: self.u32(at + 44),
            mtime: (self.u64(at + 32).cast_signed(), self.u32(at + 40)),
            device: if has_data { 0 } else { union },
            first_block: union,
            xattrs: self.xattrs(at + 64, xattr_bytes),
            contents,
        }
    }

    fn data(&self, layout: u16, size: u64, union: u32, behind: usize) -> Vec<u8> {
        let size = usize::try_from(size).unwrap();
        match layout {
            0 => self.blocks(union, size),
            2 => {
                let whole = size / 4096 * 4096;
                let tail = size - whole;
                assert!(
                    behind % 4096 + tail <= 4096,
                    "an inline tail stays in its block"
                );
                let mut data = self.blocks(union, whole);
                data.extend(&self.image[behind..behind + tail]);
                data
            }
            4 => {
                let chunk = 4096_usize << (union & 0x1f);
                let mut data = Vec::new();
                (0..size.div_ceil(chunk)).for_each(|index| {
                    let length = chunk.min(size - index * chunk);
                    match self.u32(behind + index * 4) {
                        u32::MAX => data.resize(data.len() + length, 0),
                        block => data.extend(self.blocks(block, length)),
                    }
                });
                data
            }
            other => panic!("layout {other}"),
        }
    }

    fn blocks(&self, block: u32, length: usize) -> Vec<u8> {
        if length == 0 {
            return Vec::new();
        }
        let start = block as usize * 4096;
        let end = start + length;
        let page_end = end.next_multiple_of(4096);
        self.image[start..end]
            .to_vec()
            .tap_check(&self.image[end..page_end])
    }

    fn entries(data: &[u8]) -> Vec<(Vec<u8>, u64, u8)> {
        let mut entries = Vec::new();
        for block in data.chunks(4096) {
            let count = usize::from(u16::from_le_bytes([block[8], block[9]])) / 12;
            for index in 0..count {
                let at = index * 12;
                let start = usize::from(u16::from_le_bytes([block[at + 8], block[at + 9]]));
                let end = if index + 1 < count {
                    usize::from(u16::from_le_bytes([block[at + 20], block[at + 21]]))
                } else {
                    block[start..]
                        .iter()
                        .position(|byte| *byte == 0)
                        .map_or(block.len(), |length| start + length)
                };
                let nid = u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
                entries.push((block[start..end].to_vec(), nid, block[at + 10]));
            }
        }
        entries
    }

    fn xattrs(&self, start: usize, length: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut at = start + 12;
        while at < start + length {
            let name_length = usize::from(self.image[at]);
            let prefix: &[u8] = match self.image[at + 1] {
                1 => b"user.",
                2 => b"system.posix_acl_access",
                3 => b"system.posix_acl_default",
                4 => b"trusted.",
                6 => b"security.",
                other => panic!("namespace {other}"),
            };
            let value_length = usize::from(self.u16(at + 2));
            let name = [prefix, &self.image[at + 4..at + 4 + name_length]].concat();
            let value = at + 4 + name_length;
            found.insert(name, self.image[value..value + value_length].to_vec());
            at += (4 + name_length + value_length).next_multiple_of(4);
        }
        found
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.image[at..at + 2].try_into().unwrap())
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.image[at..at + 4].try_into().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.image[at..at + 8].try_into().unwrap())
    }
}

trait TapCheck {
    fn tap_check(self, tail: &[u8]) -> Self;
}

impl TapCheck for Vec<u8> {
    /// Asserts that the rest of the last block is zero.
    fn tap_check(self, tail: &[u8]) -> Self {
        assert!(tail.iter().all(|byte| *byte == 0), "tails are zero");
        self
    }
}
