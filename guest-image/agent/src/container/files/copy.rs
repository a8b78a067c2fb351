//! Copies from and to a container, by a process whose root is the container's.

use std::io::{BufReader, Write};
use std::os::fd::{AsFd as _, OwnedFd};

use archive::{
    Destination, Flavour, Follow, Kind, Made, Owners, Packer, Place, Source, Typed, Unpacker,
    Writer, components, each_member, open_beneath,
};
use protocol::CopySource;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{BUFFER_BYTES, FilesError, Remarks};

/// As many links as Linux follows on one path: `MAXSYMLINKS`.
const MAX_LINKS: u32 = 40;

/// Packs what is at a path.
pub(super) fn read(
    path: &str,
    follow: bool,
    output: impl Write,
    remarks: &mut Remarks,
) -> Result<(), FilesError> {
    let typed = Typed::new(path.as_bytes());
    let find = |source| FilesError::Find {
        path: path.to_owned(),
        source,
    };
    let root = root().map_err(find)?;
    let parent = directory(&root, &typed.parent()).map_err(find)?;
    let name = typed.name().unwrap_or(b".");
    let follow = follow || typed.wants_directory;
    let how = match follow {
        true => AtFlags::empty(),
        false => AtFlags::SYMLINK_NOFOLLOW,
    };
    let stat = rustix::fs::statat(&parent, name, how).map_err(find)?;
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if typed.wants_directory && !is_directory {
        return Err(FilesError::NotADirectory(path.to_owned()));
    }
    let shown_as = match typed.wants_contents {
        true => b".",
        false => name,
    };
    let mut writer = Writer::new(output);
    let mut left_out = |remark: &str| remarks.add(remark);
    Packer::new(
        &mut writer,
        Flavour::Copy,
        &|uid, gid| (uid, gid),
        &|_| false,
        &mut left_out,
    )
    .pack(parent.as_fd(), name, follow, shown_as)?;
    Ok(writer.finish().map(drop)?)
}

/// Unpacks standard input.
pub(super) fn write(
    path: &str,
    source: &CopySource,
    keeps_owners: bool,
    remarks: &mut Remarks,
) -> Result<(), FilesError> {
    let find = |source| FilesError::Find {
        path: path.to_owned(),
        source,
    };
    let source = match source {
        CopySource::File(name) => Source::File(one_name(name)?),
        CopySource::Directory(name) => Source::Directory(one_name(name)?),
        CopySource::Contents => Source::Contents,
        CopySource::Archive => Source::Archive,
    };
    let root = root().map_err(find)?;
    let (typed, destination) = resolve(&root, Typed::new(path.as_bytes()))
        .map_err(find)?
        .ok_or_else(|| FilesError::Irregular(path.to_owned()))?;
    let (above, name) = match source.place(destination, path.as_bytes())? {
        Place::Merged => (typed.path(), Vec::new()),
        Place::Inside(name) => (typed.path(), name),
        Place::AtDestination => (typed.parent(), typed.name().unwrap_or_default().to_vec()),
    };
    let above = directory(&root, &above).map_err(find)?;
    let owners = match keeps_owners {
        true => Owners::Kept,
        false => Owners::These(0, 0),
    };
    let mut unpacker = Unpacker::new(above.as_fd(), Follow::WithinRoot, owners);
    let mut input = BufReader::with_capacity(BUFFER_BYTES, std::io::stdin().lock());
    let placed = |path: &[u8]| -> Result<Vec<u8>, archive::UnpackError> {
        let below = components(path)?.join(&b'/');
        Ok(match (name.is_empty(), below.is_empty()) {
            (true, _) => below,
            (false, true) => name.clone(),
            (false, false) => [name.as_slice(), b"/", &below].concat(),
        })
    };
    each_member(&mut input, |mut member, content| {
        let shown = std::mem::take(&mut member.path);
        member.path = placed(&shown)?;
        if let Kind::HardLink(first) = &mut member.kind {
            *first = placed(first)?;
        }
        if unpacker.member(&member, content)? == Made::IsDevice {
            let shown = String::from_utf8_lossy(&shown);
            remarks.add(&format!("`{shown}` is a device"));
        }
        Ok::<_, FilesError>(())
    })?;
    Ok(unpacker.finish()?)
}

/// Follows links at the end of a path, also to what is not there, as docker does. Says what is there; none for what nothing can be
/// copied to.
fn resolve(root: &OwnedFd, typed: Typed) -> rustix::io::Result<Option<(Typed, Destination)>> {
    let mut typed = typed;
    let wants_directory = typed.wants_directory;
    for _ in 0..MAX_LINKS {
        let Some(name) = typed.name() else {
            return Ok(Some((typed, Destination::Directory)));
        };
        let parent = directory(root, &typed.parent())?;
        let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {
                return Ok(Some((typed, Destination::Nothing { wants_directory })));
            }
            result => result?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(Some((typed, Destination::Directory))),
            FileType::RegularFile => {
                return Ok(Some((typed, Destination::File { wants_directory })));
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&parent, name, Vec::new())?.into_bytes();
                typed = match target.starts_with(b"/") {
                    true => Typed::new(&target),
                    false => Typed::new(&[typed.parent(), target].join(&b'/')),
                };
            }
            _ => return Ok(None),
        }
    }
    Err(Errno::LOOP)
}

fn one_name(name: &str) -> Result<Vec<u8>, FilesError> {
    match components(name.as_bytes()).as_deref() {
        Ok([one]) if *one == name.as_bytes() => Ok(one.to_vec()),
        _ => Err(FilesError::BadName(name.to_owned())),
    }
}

/// The container's root.
fn root() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open("/", flags(), Mode::empty())
}

fn directory(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    open_beneath(root.as_fd(), path, flags(), Follow::WithinRoot)
}

fn flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}
