//! The server, spoken to in raw bytes as the device does it: what a guest may say, and what it may not.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use devices::virtio::fs::channel::{Channel, Reply as Slot, Request, SLOT_BYTES, Slots};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;

use super::wire::opcode;
use super::*;
use crate::volumes::CacheMode;

const ROOT: u64 = 1;
const ROOM: u32 = 1 << 16;

/// A guest's end of a server that runs in a jail of its own.
struct Guest {
    channel: Channel,
    slots: Slots,
    unique: u64,
    /// Who asks.
    caller: (u32, u32),
    _process: ShareProcess,
}

/// A reply: the error, 0 for none, and what stands behind the header.
#[derive(Debug, PartialEq)]
struct Heard {
    error: i32,
    body: Vec<u8>,
}

impl Heard {
    fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.body[offset..offset + 8].try_into().unwrap())
    }

    fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.body[offset..offset + 4].try_into().unwrap())
    }
}

fn share(path: &Path, read_only: bool) -> Share {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Share {
        root: rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap(),
        read_only,
        cache: CacheMode::Auto,
        is_recursive: true,
    }
}

impl Guest {
    /// Mounts what is in these shares.
    fn of(shares: Vec<Share>) -> Self {
        let mut guest = Self::unmounted(shares);
        let init = [7_u32, 38, 1 << 20, u32::MAX]
            .map(u32::to_le_bytes)
            .concat();
        assert_eq!(guest.ask(opcode::INIT, 0, &init).error, 0);
        guest
    }

    fn unmounted(shares: Vec<Share>) -> Self {
        let (process, channel) = ShareProcess::spawn(shares).unwrap();
        Self {
            slots: channel.map().unwrap(),
            channel,
            unique: 1,
            caller: (0, 0),
            _process: process,
        }
    }

    fn header(&mut self, opcode: u32, node: u64, length: usize) -> Vec<u8> {
        self.unique += 2;
        let mut header = Vec::new();
        header.extend(u32::try_from(length + 40).unwrap().to_le_bytes());
        header.extend(opcode.to_le_bytes());
        header.extend(self.unique.to_le_bytes());
        header.extend(node.to_le_bytes());
        header.extend(self.caller.0.to_le_bytes());
        header.extend(self.caller.1.to_le_bytes());
        header.extend([0; 8]);
        header
    }

    /// Asks for something, and checks that the reply is one to that.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Heard {
        let request = [self.header(opcode, node, body.len()), body.to_vec()].concat();
        let bytes = self.say(0, &request, ROOM).expect("a reply");
        let length = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(length, u32::try_from(bytes.len()).unwrap());
        assert_eq!(bytes[8..16], self.unique.to_le_bytes());
        Heard {
            error: i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            body: bytes[16..].to_vec(),
        }
    }

    /// Says some bytes; none where the server has nothing to say.
    fn say(&mut self, slot: u32, bytes: &[u8], room_bytes: u32) -> Option<Vec<u8>> {
        self.put(slot, bytes, room_bytes);
        let (request, replies) = (self.request(slot, bytes, room_bytes), self.await_replies());
        assert_eq!(replies.len(), 1);
        self.heard(&request, replies[0])
    }

    fn request(&self, slot: u32, bytes: &[u8], room_bytes: u32) -> Request {
        Request {
            slot,
            asked_bytes: u32::try_from(bytes.len()).unwrap(),
            room_bytes,
            is_awaited: false,
        }
    }

    fn put(&mut self, slot: u32, bytes: &[u8], room_bytes: u32) {
        let request = self.request(slot, bytes, room_bytes);
        self.slots.asked(&request).unwrap().copy_from(bytes);
        self.channel.send_requests(&[request]).unwrap();
    }

    fn heard(&self, request: &Request, reply: Slot) -> Option<Vec<u8>> {
        assert_eq!(reply.slot, request.slot);
        assert!(reply.written_bytes <= request.room_bytes);
        let mut bytes = vec![0; usize::try_from(reply.written_bytes).unwrap()];
        self.slots.room(request).unwrap().copy_to(&mut bytes[..]);
        (!bytes.is_empty()).then_some(bytes)
    }

    fn await_replies(&self) -> Vec<Slot> {
        let mut replies = Vec::new();
        let patience = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let socket = self.channel.as_fd();
        poll(
            &mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)],
            Some(&patience),
        )
        .unwrap();
        assert!(
            self.channel
                .take_replies(&mut replies)
                .expect("the server lives")
        );
        replies
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Heard {
        self.ask(opcode::LOOKUP, parent, &text(name))
    }

    /// The node at a path below the tree's root.
    fn node(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |parent, name| {
            let heard = self.lookup(parent, name);
            assert_eq!(heard.error, 0, "{path}");
            heard.u64_at(0)
        })
    }

    fn open(&mut self, node: u64, flags: i32) -> Heard {
        let flags = u32::try_from(flags).unwrap();
        self.ask(
            opcode::OPEN,
            node,
            &[flags, 0].map(u32::to_le_bytes).concat(),
        )
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Heard {
        self.ask(opcode::READ, node, &read_in(handle, offset, size))
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Heard {
        let size = u32::try_from(data.len()).unwrap();
        let body = [read_in(handle, offset, size), data.to_vec()].concat();
        self.ask(opcode::WRITE, node, &body)
    }

    /// Writes with flags of the write (`FUSE_WRITE_…`) and of open(2).
    fn write_with(&mut self, place: (u64, u64), data: &[u8], flags: (u32, i32)) -> Heard {
        let mut body = [place.1, 0].map(u64::to_le_bytes).concat();
        let open_flags = u32::try_from(flags.1).unwrap();
        let size = u32::try_from(data.len()).unwrap();
        let rest = [size, flags.0, 0, 0, open_flags, 0];
        body.extend(rest.map(u32::to_le_bytes).concat());
        body.extend(data);
        self.ask(opcode::WRITE, place.0, &body)
    }

    fn create(&mut self, parent: u64, name: &str) -> Heard {
        let flags = u32::try_from(libc::O_RDWR).unwrap();
        let head = [flags, 0o644, 0o022, 0].map(u32::to_le_bytes).concat();
        self.ask(opcode::CREATE, parent, &[head, text(name)].concat())
    }

    fn names(&mut self, node: u64) -> Vec<String> {
        let opened = self.ask(opcode::OPENDIR, node, &[0; 8]);
        assert_eq!(opened.error, 0);
        let handle = opened.u64_at(0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let heard = self.ask(opcode::READDIRPLUS, node, &read_in(handle, offset, 4096));
            assert_eq!(heard.error, 0);
            if heard.body.is_empty() {
                return names;
            }
            let mut place = 0;
            while place < heard.body.len() {
                offset = heard.u64_at(place + 128 + 8);
                let length = usize::try_from(heard.u32_at(place + 128 + 16)).unwrap();
                let name = &heard.body[place + 152..place + 152 + length];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                place += 128 + (24 + length).next_multiple_of(8);
            }
        }
    }

    fn lock(
        &mut self,
        opcode: u32,
        place: (u64, u64),
        owner: u64,
        kind: i32,
        flock: bool,
    ) -> Heard {
        let request = self.lock_request(opcode, place, owner, kind, flock);
        let bytes = self.say(0, &request, ROOM).unwrap();
        Heard {
            error: i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
            body: bytes[16..].to_vec(),
        }
    }

    fn lock_request(
        &mut self,
        opcode: u32,
        (node, handle): (u64, u64),
        owner: u64,
        kind: i32,
        flock: bool,
    ) -> Vec<u8> {
        let mut body = [handle, owner, 0, i64::MAX.unsigned_abs()]
            .map(u64::to_le_bytes)
            .concat();
        let kind = u32::try_from(kind).unwrap();
        body.extend(
            [kind, 0, u32::from(flock), 0]
                .map(u32::to_le_bytes)
                .concat(),
        );
        [self.header(opcode, node, body.len()), body].concat()
    }
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    let mut body = [handle, offset].map(u64::to_le_bytes).concat();
    body.extend(size.to_le_bytes());
    body.extend([0; 20]);
    body
}

/// A directory that is shared, beside a secret that is not.
fn house() -> TempDir {
    let house = TempDir::new().unwrap();
    fs::create_dir_all(house.path().join("shared/inner")).unwrap();
    fs::write(house.path().join("secret"), "secret").unwrap();
    fs::write(house.path().join("shared/file"), "what it says").unwrap();
    symlink("../secret", house.path().join("shared/way-out")).unwrap();
    house
}

fn guest_of(house: &TempDir) -> Guest {
    Guest::of(vec![share(&house.path().join("shared"), false)])
}

#[test]
fn a_file_is_read_and_written() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let handle = guest.open(node, libc::O_RDWR).u64_at(0);

    assert_eq!(guest.read(node, handle, 5, 100).body, b"it says");
    assert_eq!(guest.write(node, handle, 0, b"WHAT").u32_at(0), 4);
    let found = fs::read(house.path().join("shared/file")).unwrap();
    assert_eq!(found, b"WHAT it says");
}

#[test]
fn what_is_appended_goes_to_the_end_and_mapped_pages_to_their_places() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let place = (node, guest.open(node, flags).u64_at(0));

    let appended = guest.write_with(place, b" aloud", (0, flags));
    assert_eq!(appended.u32_at(0), 6);
    let written_back = guest.write_with(place, b"WHAT", (wire::WRITE_CACHE, flags));
    assert_eq!(written_back.u32_at(0), 4);
    let found = fs::read(house.path().join("shared/file")).unwrap();
    assert_eq!(found, b"WHAT it says aloud");
}

#[test]
fn whoever_writes_takes_the_set_id_bits_before_that() {
    let house = house();
    let file = house.path().join("shared/file");
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let place = (node, guest.open(node, libc::O_WRONLY).u64_at(0));
    let set_id = || fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || fs::metadata(&file).unwrap().mode() & 0o7777;

    set_id();
    // Nothing is written by this one.
    let mut body = read_in(place.1, u64::MAX, 4);
    body[20] = u8::try_from(wire::WRITE_KILL_SUIDGID).unwrap();
    body.extend(b"WHAT");
    assert_ne!(guest.ask(opcode::WRITE, node, &body).error, 0);
    assert_eq!(mode(), 0o755);

    set_id();
    let flags = u32::try_from(libc::O_WRONLY | libc::O_TRUNC).unwrap();
    let open = [flags, wire::OPEN_KILL_SUIDGID].map(u32::to_le_bytes);
    assert_eq!(guest.ask(opcode::OPEN, node, &open.concat()).error, 0);
    assert_eq!((mode(), fs::metadata(&file).unwrap().len()), (0o755, 0));
}

#[test]
fn a_new_file_has_its_mode_but_for_the_umask() {
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    let mkdir = [
        [0o777_u32, 0o027].map(u32::to_le_bytes).concat(),
        text("new"),
    ]
    .concat();

    assert_eq!(guest.ask(opcode::MKDIR, parent, &mkdir).error, 0);
    assert_eq!(guest.create(parent, "fresh").error, 0);
    let mode = fs::metadata(house.path().join("shared/new"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o777, 0o750);
}

/// Where an entry's reply has its owner.
const OWNER: usize = 40 + 68;

#[test]
fn what_root_serves_belongs_to_whoever_made_it() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    guest.caller = (1000, 50);
    let heard = guest.create(parent, "own");
    let mkdir = [
        [0o777_u32, 0o022].map(u32::to_le_bytes).concat(),
        text("directory"),
    ]
    .concat();
    guest.ask(opcode::MKDIR, parent, &mkdir);

    assert_eq!((heard.u32_at(OWNER), heard.u32_at(OWNER + 4)), (1000, 50));
    for name in ["own", "directory"] {
        let made = fs::metadata(house.path().join("shared").join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 50), "{name}");
    }
}

#[test]
fn what_root_serves_is_never_another_s_before_it_is_the_callers() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let house = house();
    let shared = house.path().join("shared");
    std::os::unix::fs::chown(shared.join("inner"), Some(0), Some(70)).unwrap();
    fs::set_permissions(shared.join("inner"), fs::Permissions::from_mode(0o2755)).unwrap();
    let mut guest = guest_of(&house);
    let parent = guest.node("0/inner");
    guest.caller = (1000, 50);
    let flags = u32::try_from(libc::O_RDWR | libc::O_EXCL).unwrap();
    let head = [flags, 0o4755, 0o022, 0].map(u32::to_le_bytes).concat();
    let made = guest.ask(opcode::CREATE, parent, &[head, text("tool")].concat());
    assert_eq!(made.error, 0);
    let link = [text("link"), text("target")].concat();
    assert_eq!(guest.ask(opcode::SYMLINK, parent, &link).error, 0);
    let fifo = [libc::S_IFIFO | 0o600, 0, 0, 0].map(u32::to_le_bytes);
    let fifo = [fifo.concat(), text("fifo")].concat();
    assert_eq!(guest.ask(opcode::MKNOD, parent, &fifo).error, 0);

    for name in ["tool", "link", "fifo"] {
        let made = fs::symlink_metadata(shared.join("inner").join(name)).unwrap();
        assert_eq!((made.uid(), made.gid()), (1000, 70), "{name}");
    }
    let mode = fs::metadata(shared.join("inner/tool")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o4755);
    // The next one asks as itself.
    guest.caller = (0, 0);
    assert_eq!(guest.create(parent, "roots").error, 0);
    let roots = fs::metadata(shared.join("inner/roots")).unwrap();
    assert_eq!(roots.uid(), 0);
}

#[test]
fn what_the_guest_cannot_be_told_of_is_not_done() {
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    let request = |guest: &mut Guest, opcode, body: Vec<u8>| {
        let request = [guest.header(opcode, parent, body.len()), body].concat();
        let reply = guest.say(0, &request, 64).unwrap();
        i32::from_le_bytes(reply[4..8].try_into().unwrap())
    };
    let mkdir = [[0o777_u32, 0].map(u32::to_le_bytes).concat(), text("new")].concat();
    assert_eq!(request(&mut guest, opcode::MKDIR, mkdir), -libc::ERANGE);
    assert!(!house.path().join("shared/new").exists());
    assert_eq!(
        request(&mut guest, opcode::LOOKUP, text("file")),
        -libc::ERANGE
    );

    // It was looked up once, as far as the guest knows.
    let node = guest.node("0/file");
    let forget = [
        guest.header(opcode::FORGET, node, 8),
        1_u64.to_le_bytes().to_vec(),
    ];
    assert_eq!(guest.say(0, &forget.concat(), 0), None);
    assert_eq!(
        guest.ask(opcode::GETATTR, node, &[0; 16]).error,
        -libc::ESTALE
    );
}

#[test]
fn no_more_is_open_than_there_may_be() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let descriptors = limit.map_or(jail::MOST_DESCRIPTORS, |limit| {
        limit.min(jail::MOST_DESCRIPTORS)
    });
    let most = descriptors / super::tree::SHARE_OF_HANDLES;
    let house = house();
    let mut guest = guest_of(&house);
    for _ in 0..most {
        assert_eq!(guest.ask(opcode::OPENDIR, ROOT, &[0; 8]).error, 0);
    }
    assert_eq!(
        guest.ask(opcode::OPENDIR, ROOT, &[0; 8]).error,
        -libc::ENFILE
    );
    let parent = guest.node("0");
    assert_eq!(guest.create(parent, "more").error, -libc::ENFILE);
    assert!(!house.path().join("shared/more").exists());
}

#[test]
fn what_a_user_serves_is_root_s_in_the_guest_and_stays_the_users() {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        return;
    }
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    guest.caller = (1000, 50);
    let heard = guest.create(parent, "own");
    assert_eq!((heard.u32_at(OWNER), heard.u32_at(OWNER + 4)), (0, 0));
    let made = fs::metadata(house.path().join("shared/own")).unwrap();
    assert_eq!(made.uid(), uid.as_raw());

    let mut chown = |owner: u32| {
        let mut body = vec![0; 88];
        body[0] = 2;
        body[76..80].copy_from_slice(&owner.to_le_bytes());
        guest.ask(opcode::SETATTR, heard.u64_at(0), &body).error
    };
    assert_eq!(chown(0), 0);
    assert_eq!(chown(1000), -libc::EPERM);
}

#[test]
fn shares_are_entries_of_one_tree_and_a_file_can_be_one() {
    let house = house();
    let file = house.path().join("shared/file");
    let shares = vec![
        share(&house.path().join("shared"), false),
        share(&file, true),
    ];
    let mut guest = Guest::of(shares);

    assert_eq!(guest.names(ROOT), ["0", "1"]);
    let node = guest.node("1");
    let handle = guest.open(node, libc::O_RDONLY).u64_at(0);
    assert_eq!(guest.read(node, handle, 0, 4).body, b"what");
    assert_eq!(guest.open(node, libc::O_RDWR).error, -libc::EROFS);
    assert_eq!(guest.lookup(ROOT, "2").error, -libc::ENOENT);
}

#[test]
fn a_directory_of_many_entries_is_listed_whole() {
    let house = house();
    for index in 0..3000 {
        fs::write(house.path().join(format!("shared/inner/{index}")), "").unwrap();
    }
    let mut guest = guest_of(&house);
    let node = guest.node("0/inner");
    let mut names = guest.names(node);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3000);
}

#[test]
fn a_deleted_file_that_is_open_is_still_there() {
    let house = house();
    let mut guest = guest_of(&house);
    let (parent, node) = (guest.node("0"), guest.node("0/file"));
    let handle = guest.open(node, libc::O_RDWR).u64_at(0);

    assert_eq!(guest.ask(opcode::UNLINK, parent, &text("file")).error, 0);
    assert!(!house.path().join("shared/file").exists());
    assert_eq!(guest.read(node, handle, 0, 4).body, b"what");
    assert_eq!(guest.ask(opcode::GETATTR, node, &[0; 16]).error, 0);
}

#[test]
fn a_file_without_a_name_gets_one_by_a_link() {
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    let flags = u32::try_from(libc::O_RDWR).unwrap();
    let head = [flags, 0o600, 0, 0].map(u32::to_le_bytes).concat();
    let made = guest.ask(opcode::TMPFILE, parent, &[head, text("ignored")].concat());
    let (node, handle) = (made.u64_at(0), made.u64_at(128));
    guest.write(node, handle, 0, b"here");

    let link = [node.to_le_bytes().to_vec(), text("named")].concat();
    assert_eq!(guest.ask(opcode::LINK, parent, &link).error, 0);
    assert_eq!(
        fs::read(house.path().join("shared/named")).unwrap(),
        b"here"
    );
}

#[test]
fn a_hard_link_is_the_same_node() {
    let house = house();
    let mut guest = guest_of(&house);
    let (parent, node) = (guest.node("0"), guest.node("0/file"));
    let link = [node.to_le_bytes().to_vec(), text("second")].concat();
    assert_eq!(guest.ask(opcode::LINK, parent, &link).u64_at(0), node);
    assert_eq!(
        fs::metadata(house.path().join("shared/second"))
            .unwrap()
            .nlink(),
        2
    );
}

#[test]
fn rename_knows_its_flags() {
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    let mut rename = |flags: u32| {
        let head = parent.to_le_bytes().to_vec();
        let flags = [flags, 0].map(u32::to_le_bytes).concat();
        let body = [head, flags, text("file"), text("inner")].concat();
        guest.ask(opcode::RENAME2, parent, &body).error
    };
    assert_eq!(rename(libc::RENAME_NOREPLACE), -libc::EEXIST);
    assert_eq!(rename(libc::RENAME_WHITEOUT), -libc::EINVAL);
    assert_eq!(rename(libc::RENAME_EXCHANGE), 0);
    assert!(house.path().join("shared/file").is_dir());
}

#[test]
fn extended_attributes_are_those_of_the_host() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let set = |name: &str| {
        let head = [5_u32, 0].map(u32::to_le_bytes).concat();
        [head, text(name), b"value".to_vec()].concat()
    };
    assert_eq!(
        guest.ask(opcode::SETXATTR, node, &set("user.note")).error,
        0
    );
    let get = [
        [100_u32, 0].map(u32::to_le_bytes).concat(),
        text("user.note"),
    ]
    .concat();
    assert_eq!(guest.ask(opcode::GETXATTR, node, &get).body, b"value");
    let refused = guest
        .ask(opcode::SETXATTR, node, &set("trusted.note"))
        .error;
    assert_eq!(refused, -libc::EOPNOTSUPP);
}

#[test]
fn devices_are_not_made_and_fifos_are() {
    let house = house();
    let mut guest = guest_of(&house);
    let parent = guest.node("0");
    let mut make = |mode: u32, name: &str| {
        let head = [mode | 0o600, 0x103, 0, 0].map(u32::to_le_bytes).concat();
        guest
            .ask(opcode::MKNOD, parent, &[head, text(name)].concat())
            .error
    };
    assert_eq!(make(libc::S_IFCHR, "null"), -libc::EPERM);
    assert_eq!(make(libc::S_IFBLK, "disk"), -libc::EPERM);
    assert_eq!(make(libc::S_IFIFO, "fifo"), 0);
}

#[test]
fn no_name_leads_out_of_the_share() {
    let house = house();
    let mut guest = guest_of(&house);
    let (parent, inner) = (guest.node("0"), guest.node("0/inner"));
    for name in [
        "..",
        ".",
        "",
        "../secret",
        "inner/../../secret",
        "/etc",
        "/",
    ] {
        for node in [parent, inner] {
            assert_ne!(guest.lookup(node, name).error, 0, "{name}");
            assert_ne!(guest.create(node, name).error, 0, "{name}");
            assert_ne!(guest.ask(opcode::UNLINK, node, &text(name)).error, 0);
            assert_ne!(guest.ask(opcode::RMDIR, node, &text(name)).error, 0);
        }
    }
    assert_eq!(fs::read(house.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_symbolic_link_is_read_and_never_followed() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/way-out");
    assert_eq!(guest.ask(opcode::READLINK, node, &[]).body, b"../secret");
    assert_eq!(guest.open(node, libc::O_RDONLY).error, -libc::ENXIO);
    assert_ne!(guest.lookup(node, "x").error, 0);
    let parent = guest.node("0");
    assert_ne!(guest.create(parent, "way-out").error, 0);
    let truncate = [8_u32, 0].map(u32::to_le_bytes).concat();
    let body = [truncate, vec![0; 80]].concat();
    assert_ne!(guest.ask(opcode::SETATTR, node, &body).error, 0);
    assert_eq!(fs::read(house.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn a_directory_that_is_moved_out_on_the_host_has_no_way_up() {
    let house = house();
    let mut guest = guest_of(&house);
    let inner = guest.node("0/inner");
    fs::rename(
        house.path().join("shared/inner"),
        house.path().join("moved"),
    )
    .unwrap();
    assert_ne!(guest.lookup(inner, "..").error, 0);
    assert_ne!(guest.lookup(inner, "../secret").error, 0);
}

#[test]
fn nodes_and_handles_that_nobody_gave_are_refused() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let handle = guest.open(node, libc::O_RDONLY).u64_at(0);
    assert_eq!(
        guest.ask(opcode::GETATTR, 999, &[0; 16]).error,
        -libc::ESTALE
    );
    assert_eq!(guest.open(u64::MAX, 0).error, -libc::ESTALE);
    assert_eq!(guest.read(node, handle + 1, 0, 10).error, -libc::EBADF);
    let other = guest.node("0");
    assert_eq!(guest.read(other, handle, 0, 10).error, -libc::EBADF);
    assert_eq!(guest.write(node, handle, 0, b"x").error, -libc::EBADF);
}

#[test]
fn a_node_that_was_forgotten_is_gone_and_forgetting_too_much_does_no_harm() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let forget = |guest: &mut Guest, node: u64| {
        let body = u64::MAX.to_le_bytes();
        let request = [guest.header(opcode::FORGET, node, 8), body.to_vec()].concat();
        guest.say(0, &request, 0)
    };
    assert_eq!(forget(&mut guest, node), None);
    assert_eq!(forget(&mut guest, node), None);
    assert_eq!(forget(&mut guest, ROOT), None);
    assert_eq!(
        guest.ask(opcode::GETATTR, node, &[0; 16]).error,
        -libc::ESTALE
    );
    let share = guest.node("0");
    assert_eq!(forget(&mut guest, share), None);
    assert_eq!(guest.lookup(share, "file").error, 0);
}

#[test]
fn a_read_of_four_gibibytes_is_refused() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let handle = guest.open(node, libc::O_RDONLY).u64_at(0);
    assert_eq!(guest.read(node, handle, 0, u32::MAX).error, -libc::EINVAL);
    assert_eq!(guest.read(node, handle, u64::MAX, 10).error, -libc::EINVAL);
}

#[test]
fn a_request_of_a_wrong_length_is_refused() {
    let house = house();
    let mut guest = guest_of(&house);
    let mut request = [guest.header(opcode::LOOKUP, ROOT, 2), text("0")].concat();
    request[0] += 1;
    let reply = guest.say(0, &request, ROOM).unwrap();
    assert_eq!(reply[4..8], (-libc::EINVAL).to_le_bytes());
    assert_eq!(guest.say(0, &[1, 2, 3], ROOM).unwrap().len(), 16);
    assert_eq!(guest.say(0, &[], 8), None);
    assert_eq!(guest.lookup(ROOT, "0").error, 0);
}

#[test]
fn a_share_that_is_only_read_stays_as_it_is() {
    let house = house();
    let mut guest = Guest::of(vec![share(&house.path().join("shared"), true)]);
    let (parent, node) = (guest.node("0"), guest.node("0/file"));
    assert_eq!(guest.open(node, libc::O_WRONLY).error, -libc::EROFS);
    assert_eq!(guest.open(node, libc::O_TRUNC).error, -libc::EROFS);
    assert_eq!(guest.create(parent, "new").error, -libc::EROFS);
    assert_eq!(
        guest.ask(opcode::UNLINK, parent, &text("file")).error,
        -libc::EROFS
    );
    let chmod = [[1_u32, 0].map(u32::to_le_bytes).concat(), vec![0; 80]].concat();
    assert_eq!(guest.ask(opcode::SETATTR, node, &chmod).error, -libc::EROFS);
    assert_eq!(
        fs::read(house.path().join("shared/file")).unwrap(),
        b"what it says"
    );
}

#[test]
fn locks_of_two_machines_are_in_each_others_way() {
    let house = house();
    let (mut one, mut other) = (guest_of(&house), guest_of(&house));
    for is_flock in [false, true] {
        let first = one.node("0/file");
        let first = (first, one.open(first, libc::O_RDWR).u64_at(0));
        let second = other.node("0/file");
        let second = (second, other.open(second, libc::O_RDWR).u64_at(0));
        let set = |guest: &mut Guest, place, owner, kind| {
            guest
                .lock(opcode::SETLK, place, owner, kind, is_flock)
                .error
        };
        assert_eq!(set(&mut one, first, 1, libc::F_WRLCK), 0);
        assert_eq!(set(&mut one, first, 2, libc::F_RDLCK), -libc::EAGAIN);
        assert_eq!(set(&mut other, second, 1, libc::F_RDLCK), -libc::EAGAIN);
        assert_eq!(set(&mut one, first, 1, libc::F_UNLCK), 0);
        assert_eq!(set(&mut other, second, 1, libc::F_WRLCK), 0);
        assert_eq!(set(&mut other, second, 1, libc::F_UNLCK), 0);
    }
}

#[test]
fn a_process_that_closes_a_file_has_no_locks_on_it_any_more() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let place = (node, guest.open(node, libc::O_RDWR).u64_at(0));
    assert_eq!(
        guest
            .lock(opcode::SETLK, place, 1, libc::F_WRLCK, false)
            .error,
        0
    );
    let flush = [place.1, 0, 1].map(u64::to_le_bytes).concat();
    assert_eq!(guest.ask(opcode::FLUSH, node, &flush).error, 0);
    assert_eq!(
        guest
            .lock(opcode::SETLK, place, 2, libc::F_WRLCK, false)
            .error,
        0
    );
}

#[test]
fn who_waits_for_a_lock_gets_it_when_it_is_free() {
    let house = house();
    let mut guest = guest_of(&house);
    let node = guest.node("0/file");
    let place = (node, guest.open(node, libc::O_RDWR).u64_at(0));
    guest.lock(opcode::SETLK, place, 1, libc::F_WRLCK, false);
    let waits = guest.lock_request(opcode::SETLKW, place, 2, libc::F_WRLCK, false);
    guest.put(7, &waits, ROOM);
    // Others are answered meanwhile.
    assert_eq!(guest.lookup(ROOT, "0").error, 0);

    let unlock = guest.lock_request(opcode::SETLK, place, 1, libc::F_UNLCK, false);
    guest.put(0, &unlock, ROOM);
    let mut answered = Vec::new();
    while answered.len() < 2 {
        answered.extend(guest.await_replies());
    }
    let granted = answered.iter().find(|reply| reply.slot == 7).unwrap();
    let request = guest.request(7, &waits, ROOM);
    assert_eq!(guest.heard(&request, *granted).unwrap()[4..8], [0; 4]);
}

#[test]
fn the_server_ends_with_the_device() {
    let house = house();
    let guest = guest_of(&house);
    let Guest {
        channel, _process, ..
    } = guest;
    drop(channel);
    let child = _process.child.as_ref().unwrap();
    assert_eq!(child.await_end().unwrap().to_string(), "exit status 0");
}

#[test]
fn a_device_that_speaks_of_slots_that_are_none_ends_the_conversation() {
    let house = house();
    let guest = guest_of(&house);
    let request = Request {
        slot: 1000,
        asked_bytes: SLOT_BYTES,
        room_bytes: u32::MAX,
        is_awaited: false,
    };
    guest.channel.send_requests(&[request]).unwrap();
    let child = guest._process.child.as_ref().unwrap();
    assert_eq!(child.await_end().unwrap().to_string(), "exit status 0");
}

#[test]
fn the_server_has_given_up_what_it_does_not_need() {
    let house = house();
    let mut guest = guest_of(&house);
    guest.node("0/file");
    let process = format!("/proc/{}", guest._process.pid().unwrap());
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    let says = |line: &str| status.lines().any(|found| found == line);
    assert!(says("NoNewPrivs:\t1"), "{status}");
    assert!(says("Seccomp:\t2"), "{status}");
    let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().count();
    assert!(descriptors < 16, "{descriptors} descriptors");
    if !rustix::process::geteuid().is_root() {
        assert!(says("CapEff:\t0000000000000000"), "{status}");
        return;
    }
    // CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SETFCAP (include/uapi/linux/capability.h).
    let kept = 0b1101_1111 | 1 << 31;
    assert!(says(&format!("CapPrm:\t{kept:016x}")), "{status}");
    assert_eq!(fs::read_dir(format!("{process}/root")).unwrap().count(), 0);
}

/// One thing that is done to a directory.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Write(u8, u16, Vec<u8>),
    Truncate(u8, u16),
    Mkdir(u8),
    Unlink(u8),
    Rmdir(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Chmod(u8, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0_u8..5;
    let bytes = prop::collection::vec(any::<u8>(), 0..64);
    prop_oneof![
        name.clone().prop_map(Step::Create),
        (name.clone(), 0_u16..500, bytes).prop_map(|(name, at, data)| Step::Write(name, at, data)),
        (name.clone(), 0_u16..500).prop_map(|(name, size)| Step::Truncate(name, size)),
        name.clone().prop_map(Step::Mkdir),
        name.clone().prop_map(Step::Unlink),
        name.clone().prop_map(Step::Rmdir),
        (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename(from, to)),
        (name.clone(), name.clone()).prop_map(|(from, to)| Step::Link(from, to)),
        (name, 0_u32..0o1000).prop_map(|(name, mode)| Step::Chmod(name, mode | 0o600)),
    ]
}

impl Step {
    /// Does it on the host; whether that worked.
    fn here(&self, directory: &Path) -> bool {
        let at = |name: &u8| directory.join(name.to_string());
        match self {
            Self::Create(name) => {
                let mut options = fs::OpenOptions::new();
                options.write(true).create_new(true).open(at(name)).is_ok()
            }
            Self::Write(name, offset, data) => {
                use std::os::unix::fs::FileExt;
                let file = fs::OpenOptions::new().write(true).open(at(name));
                file.is_ok_and(|file| file.write_all_at(data, (*offset).into()).is_ok())
            }
            Self::Truncate(name, size) => {
                let file = fs::OpenOptions::new().write(true).open(at(name));
                file.is_ok_and(|file| file.set_len((*size).into()).is_ok())
            }
            Self::Mkdir(name) => fs::create_dir(at(name)).is_ok(),
            Self::Unlink(name) => fs::remove_file(at(name)).is_ok(),
            Self::Rmdir(name) => fs::remove_dir(at(name)).is_ok(),
            Self::Rename(from, to) => fs::rename(at(from), at(to)).is_ok(),
            Self::Link(from, to) => fs::hard_link(at(from), at(to)).is_ok(),
            Self::Chmod(name, mode) => {
                fs::set_permissions(at(name), fs::Permissions::from_mode(*mode)).is_ok()
            }
        }
    }

    /// Does it in the share; whether that worked.
    fn there(&self, guest: &mut Guest, parent: u64) -> bool {
        let found = |guest: &mut Guest, name: &u8| {
            let heard = guest.lookup(parent, &name.to_string());
            (heard.error == 0)
                .then(|| heard.u64_at(0))
                .filter(|node| *node != 0)
        };
        let error = match self {
            Self::Create(name) => {
                let flags = u32::try_from(libc::O_WRONLY | libc::O_EXCL).unwrap();
                let head = [flags, 0o666, 0o022, 0].map(u32::to_le_bytes).concat();
                let body = [head, text(&name.to_string())].concat();
                guest.ask(opcode::CREATE, parent, &body).error
            }
            Self::Write(name, offset, data) => {
                let Some(node) = found(guest, name) else {
                    return false;
                };
                let opened = guest.open(node, libc::O_WRONLY);
                if opened.error != 0 {
                    return false;
                }
                let handle = opened.u64_at(0);
                guest.write(node, handle, (*offset).into(), data).error
            }
            Self::Truncate(name, size) => match found(guest, name) {
                Some(node) => {
                    let mut body = [8_u32, 0].map(u32::to_le_bytes).concat();
                    body.extend([0, u64::from(*size)].map(u64::to_le_bytes).concat());
                    body.extend([0; 64]);
                    guest.ask(opcode::SETATTR, node, &body).error
                }
                None => -1,
            },
            Self::Mkdir(name) => {
                let head = [0o777_u32, 0o022].map(u32::to_le_bytes).concat();
                let body = [head, text(&name.to_string())].concat();
                guest.ask(opcode::MKDIR, parent, &body).error
            }
            Self::Unlink(name) => {
                guest
                    .ask(opcode::UNLINK, parent, &text(&name.to_string()))
                    .error
            }
            Self::Rmdir(name) => {
                guest
                    .ask(opcode::RMDIR, parent, &text(&name.to_string()))
                    .error
            }
            Self::Rename(from, to) => {
                let names = [text(&from.to_string()), text(&to.to_string())].concat();
                let body = [parent.to_le_bytes().to_vec(), names].concat();
                guest.ask(opcode::RENAME, parent, &body).error
            }
            Self::Link(from, to) => match found(guest, from) {
                Some(node) => {
                    let body = [node.to_le_bytes().to_vec(), text(&to.to_string())].concat();
                    guest.ask(opcode::LINK, parent, &body).error
                }
                None => -1,
            },
            Self::Chmod(name, mode) => match found(guest, name) {
                Some(node) => {
                    let mut body = vec![0; 88];
                    body[0] = 1;
                    body[68..72].copy_from_slice(&mode.to_le_bytes());
                    guest.ask(opcode::SETATTR, node, &body).error
                }
                None => -1,
            },
        };
        error == 0
    }
}

/// What a directory holds: names, kinds and permissions, links, contents.
fn contents(directory: &Path) -> Vec<(String, u32, u64, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            let bytes = fs::read(entry.path()).unwrap_or_default();
            (name, metadata.mode(), metadata.nlink(), bytes)
        })
        .collect();
    found.sort();
    found
}

/// What guests ask, with nodes and handles that they may have been given by then or not: an opcode, a node, a body.
fn tape() -> Vec<(u32, u64, Vec<u8>)> {
    let share = ROOT + 1;
    let nodes = share..share + 4;
    let new = [libc::O_RDWR.unsigned_abs(), 0o644, 0, 0].map(u32::to_le_bytes);
    let to_inner = (share + 1).to_le_bytes();
    let moved = [&to_inner[..], &text("file"), &text("moved")].concat();
    let linked = [&to_inner[..], &text("linked")].concat();
    let here = ["inner", "file", "way-out", "new", "moved"];
    let mut tape: Vec<_> = here
        .iter()
        .flat_map(|name| {
            [opcode::LOOKUP, opcode::UNLINK, opcode::RMDIR].map(|op| (op, share, text(name)))
        })
        .collect();
    tape.push((opcode::CREATE, share, [new.concat(), text("new")].concat()));
    tape.push((opcode::RENAME, share, moved));
    tape.push((opcode::DESTROY, 0, Vec::new()));
    for node in nodes {
        tape.push((opcode::LINK, node, linked.clone()));
        tape.push((opcode::FORGET, node, 1_u64.to_le_bytes().to_vec()));
        tape.push((opcode::OPEN, node, vec![2, 0, 0, 0, 0, 0, 0, 0]));
        tape.push((opcode::OPENDIR, node, vec![0; 8]));
        tape.push((opcode::READLINK, node, Vec::new()));
        for handle in 1..4 {
            let write = [read_in(handle, 0, 4), b"here".to_vec()].concat();
            tape.push((opcode::READ, node, read_in(handle, 0, 100)));
            tape.push((opcode::WRITE, node, write));
            tape.push((opcode::READDIRPLUS, node, read_in(handle, 0, 4096)));
            tape.push((opcode::RELEASE, node, read_in(handle, 0, 0)));
        }
    }
    tape
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn requests_in_any_order_and_again_and_again_stay_in_the_share(
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..200),
    ) {
        let house = house();
        let mut guest = guest_of(&house);
        let tape = tape();
        for place in &order {
            let (opcode, node, body) = place.get(&tape);
            let request = [guest.header(*opcode, *node, body.len()), body.clone()].concat();
            guest.say(0, &request, ROOM);
        }
        prop_assert_eq!(guest.lookup(ROOT, "0").error, 0);
        let mut beside: Vec<_> = contents(house.path()).into_iter().map(|found| (found.0, found.3)).collect();
        beside.sort();
        prop_assert_eq!(beside, [("secret".to_owned(), b"secret".to_vec()), ("shared".to_owned(), Vec::new())]);
    }

    #[test]
    fn a_share_behaves_like_a_directory(steps in prop::collection::vec(step(), 1..40)) {
        let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let mut guest = Guest::of(vec![share(there.path(), false)]);
        let parent = guest.node("0");
        for step in &steps {
            let worked = step.here(here.path());
            prop_assert_eq!(step.there(&mut guest, parent), worked, "{:?}", step);
        }
        prop_assert_eq!(contents(here.path()), contents(there.path()));
    }

    #[test]
    fn whatever_bytes_come_are_answered(
        opcode in 0_u32..60,
        node in 0_u64..6,
        body in prop::collection::vec(any::<u8>(), 0..200),
        room in prop_oneof![Just(0_u32), Just(16), 0_u32..5000, Just(SLOT_BYTES / 2)],
        keeps_length in any::<bool>(),
    ) {
        let house = house();
        let mut guest = guest_of(&house);
        guest.node("0/inner");
        guest.node("0/file");
        let mut request = [guest.header(opcode, node, body.len()), body].concat();
        if !keeps_length {
            request[1] ^= 0x55;
        }
        let reply = guest.say(3, &request, room);
        prop_assert!(reply.is_none_or(|reply| reply.len() >= 16));
        prop_assert_eq!(guest.lookup(ROOT, "0").error, 0);
        prop_assert_eq!(fs::read(house.path().join("secret")).unwrap(), b"secret");
    }
}
