//! Whole images against an unpacking runtime: every path, every attribute.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use super::maker::{Header, Image, Tar, gzip};
use super::{Fixture, walk};
use crate::image::{Digest, StoredImage};

/// What both sides say of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fact {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    mtime: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    size: u64,
    contents: Digest,
    /// The first path of the same inode.
    inode: Vec<u8>,
}

fn facts_of_image(image: &StoredImage) -> BTreeMap<Vec<u8>, Fact> {
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let files = walk(image);
    files
        .into_iter()
        .map(|(path, found)| {
            let is_directory = found.mode & 0o170_000 == 0o040_000;
            let contents = if is_directory {
                Vec::new()
            } else {
                found.contents
            };
            let (major, minor) = (
                found.device >> 8 & 0xfff,
                found.device & 0xff | found.device >> 12 & 0xf_ff00,
            );
            let fact = Fact {
                mode: u32::from(found.mode),
                owner: (found.uid, found.gid),
                links: u64::from(found.links),
                device: if found.device == 0 {
                    0
                } else {
                    rustix::fs::makedev(major, minor)
                },
                mtime: (found.mtime.0, i64::from(found.mtime.1)),
                xattrs: found.xattrs,
                size: contents.len() as u64,
                contents: Digest::of(&contents),
                inode: first
                    .entry(found.nid)
                    .or_insert_with(|| path.clone())
                    .clone(),
            };
            (path, fact)
        })
        .collect()
}

fn facts_of_directory(root: &Path) -> BTreeMap<Vec<u8>, Fact> {
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            paths.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    let root_bytes = root.as_os_str().as_bytes().len();
    let mut named: BTreeMap<Vec<u8>, _> = BTreeMap::new();
    for path in paths {
        let below = path.as_os_str().as_bytes()[root_bytes..].to_vec();
        named.insert(
            if below.is_empty() {
                b"/".to_vec()
            } else {
                below
            },
            path,
        );
    }
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    named
        .into_iter()
        .map(|(name, path)| {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let kind = metadata.file_type();
            let contents = if kind.is_file() {
                fs::read(&path).unwrap()
            } else if kind.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else {
                Vec::new()
            };
            let is_device = kind.is_char_device() || kind.is_block_device();
            let fact = Fact {
                mode: metadata.mode(),
                owner: (metadata.uid(), metadata.gid()),
                links: metadata.nlink(),
                device: if is_device { metadata.rdev() } else { 0 },
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                xattrs: xattrs(&path),
                size: contents.len() as u64,
                contents: Digest::of(&contents),
                inode: first
                    .entry(metadata.ino())
                    .or_insert_with(|| name.clone())
                    .clone(),
            };
            (name, fact)
        })
        .collect()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Names the first paths of which the two sides say different things.
fn assert_same(ours: &BTreeMap<Vec<u8>, Fact>, theirs: &BTreeMap<Vec<u8>, Fact>) {
    let paths: std::collections::BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
    let different: Vec<String> = paths
        .into_iter()
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .map(|path| {
            let name = String::from_utf8_lossy(path);
            format!(
                "{name}\n  ours   {:?}\n  theirs {:?}",
                ours.get(path),
                theirs.get(path)
            )
        })
        .collect();
    let shown = different
        .iter()
        .take(10)
        .cloned()
        .collect::<Vec<_>>()
        .join("\n");
    assert!(
        different.is_empty(),
        "{} paths differ:\n{shown}",
        different.len()
    );
}

fn umoci(arguments: &[&str]) {
    let output = Command::new("umoci")
        .args(arguments)
        .output()
        .expect("umoci starts");
    assert!(
        output.status.success(),
        "umoci {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Imports the image `app` of a layout and compares it with what umoci unpacks; returns the
/// number of paths.
fn compare(fixture: &Fixture, layout: &Path) -> usize {
    let image = fixture.import_path(layout).unwrap();
    let bundle = fixture.directory.path().join("bundle");
    umoci(&[
        "unpack",
        "--image",
        &format!("{}:app", layout.display()),
        bundle.to_str().unwrap(),
    ]);
    let ours = facts_of_image(&image);
    let mut theirs = facts_of_directory(&bundle.join("rootfs"));
    // A directory that no layer describes is of 1970 here, and of just now there.
    let undescribed = ours.iter().filter(|(_, fact)| fact.mtime == (0, 0));
    undescribed.for_each(|(path, _)| {
        if let Some(fact) = theirs.get_mut(path) {
            fact.mtime = (0, 0);
        }
    });
    assert_same(&ours, &theirs);
    ours.len()
}

/// Six layers with one of everything.
fn everything() -> Image {
    let at = |path: &str, mode: u32, uid: u64| Header {
        mode,
        uid,
        gid: uid * 2,
        mtime: 1_000_000 + uid,
        ..Header::new(b'5', path)
    };
    let capability =
        b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let base = Tar::new()
        .member(&at("./", 0o755, 0), b"")
        .member(&at("etc/", 0o755, 0), b"")
        .member(&at("tmp/", 0o1777, 0), b"")
        .member(&at("home/", 0o2775, 7), b"")
        .member(&at("usr/", 0o755, 0), b"")
        .member(&at("usr/lib/", 0o755, 0), b"")
        .member(&at("old/", 0o700, 3), b"")
        .member(&at("old/sub/", 0o700, 3), b"")
        .file("old/sub/a", "a")
        .file("old/b", "b")
        .symlink("lib", "usr/lib")
        .file("usr/lib/exact", vec![1; 4096])
        .file(
            "usr/lib/large",
            (0..3_000_000_u32)
                .map(|i| i.to_le_bytes()[0])
                .collect::<Vec<_>>(),
        )
        .member(
            &Header {
                mode: 0o4755,
                size: 3,
                ..Header::new(b'0', "usr/setuid")
            },
            b"bin",
        )
        .hard_link("usr/link", "usr/setuid")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("mtime", b"1234567.123456789"),
        ])
        .file("usr/capable", "x")
        .pax(&[("SCHILY.xattr.user.on-directory", b"yes")])
        .member(&at("marked/", 0o755, 0), b"")
        .device("null", b'3', 1, 3)
        .device("disk", b'4', 259, 1000)
        .member(&Header::new(b'6', "fifo"), b"")
        .file(b"etc/\xff\xfe", "not UTF-8");
    let names = (0..300).fold(Tar::new().member(&at("many/", 0o755, 0), b""), |tar, i| {
        tar.file(format!("many/name-{i:0>60}"), i.to_string())
    });
    Image::new()
        .layer(base)
        .compressed(names, "+gzip", gzip)
        .layer(
            Tar::new()
                .file(".wh.old", "")
                .file("lib/through-link", "1")
                .hard_link("tmp/again", "usr/capable"),
        )
        .layer(
            Tar::new()
                .file("many", "now a file")
                .member(&at("fifo/", 0o711, 9), b"")
                .file("fifo/inner", "2"),
        )
        .layer(
            Tar::new()
                .member(&at("usr/lib/", 0o750, 5), b"")
                .file("usr/lib/.wh.exact", "")
                .file("many", "replaced")
                .member(&at("marked/", 0o701, 1), b"")
                .file("marked/.wh..wh..opq", "")
                .file("marked/new", ""),
        )
        .layer(
            Tar::new()
                .file("null", "a file now")
                .symlink("etc/loop", "loop")
                .file(".wh.disk", ""),
        )
        .named("app")
}

#[test]
#[ignore = "needs root and umoci"]
fn an_image_with_one_of_everything_is_what_umoci_unpacks() {
    let fixture = Fixture::new();
    let layout = fixture.directory.path().join("layout");
    everything().layout().write_to(&layout);
    assert!(compare(&fixture, &layout) > 20);
}

#[test]
#[ignore = "needs root and umoci"]
fn an_image_of_this_hosts_files_is_what_umoci_unpacks() {
    let fixture = Fixture::new();
    let layout = fixture.directory.path().join("layout");
    let layout_name = layout.to_str().unwrap();
    let app = format!("{layout_name}:app");
    umoci(&["init", "--layout", layout_name]);
    umoci(&["new", "--image", &app]);
    umoci(&["insert", "--image", &app, "/etc", "/etc"]);
    umoci(&[
        "insert",
        "--image",
        &app,
        "/usr/share/perl5",
        "/usr/share/perl5",
    ]);
    umoci(&[
        "insert",
        "--image",
        &app,
        "/usr/share/bash-completion",
        "/usr/share/bash-completion",
    ]);
    umoci(&["insert", "--image", &app, "--whiteout", "/etc/alternatives"]);
    umoci(&[
        "insert",
        "--image",
        &app,
        "--opaque",
        "/etc/apt",
        "/usr/share/perl5",
    ]);
    umoci(&["insert", "--image", &app, "/bin/true", "/etc/passwd"]);
    assert!(compare(&fixture, &layout) > 500);
}

#[test]
#[ignore = "needs skopeo"]
fn a_saved_image_is_read_by_others_in_both_its_forms() {
    let fixture = Fixture::new();
    let id = fixture.import(everything().archive()).unwrap().id;
    let mut saved = Vec::new();
    fixture.store.save("app", &mut saved).unwrap();
    let archive = fixture.file("saved.tar", &saved);
    let copied = |transport: &str| {
        let target = fixture.directory.path().join(transport);
        let output = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("{transport}:{}", archive.display()))
            .arg(format!("oci:{}:app", target.display()))
            .output()
            .expect("skopeo starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Fixture::new().import_path(&target).unwrap()
    };
    let (oci, docker) = (copied("oci-archive"), copied("docker-archive"));
    assert_eq!(oci.id, id);
    assert_eq!(facts_of_image(&oci), facts_of_image(&docker));
}
