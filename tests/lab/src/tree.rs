//! The files of a lab, and the initramfs made of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};

use crate::LabError;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// The files of a lab, by their paths inside.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Directory { mode: u32 },
    Bytes { bytes: Vec<u8>, mode: u32 },
    File { source: PathBuf, mode: u32 },
    Symlink { target: PathBuf },
}

impl Tree {
    /// A tree with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.add(path.as_ref(), Entry::Directory { mode });
    }

    /// Adds a file of these bytes.
    pub fn bytes(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) {
        let bytes = bytes.into();
        self.add(path.as_ref(), Entry::Bytes { bytes, mode });
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        let target = target.into();
        self.add(path.as_ref(), Entry::Symlink { target });
    }

    /// Adds what lies at `source`, a directory with everything in it, at `path`. Sockets, pipes and devices are left out.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn copy(
        &mut self,
        source: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), LabError> {
        let (source, path) = (source.as_ref(), path.as_ref());
        let failed = |error| LabError::File {
            path: source.to_owned(),
            source: error,
        };
        let metadata = fs::symlink_metadata(source).map_err(failed)?;
        let kind = metadata.file_type();
        let mode = metadata.permissions().mode() & 0o7777;
        if kind.is_symlink() {
            let target = fs::read_link(source).map_err(failed)?;
            self.symlink(path, target);
        } else if kind.is_dir() {
            self.directory(path, mode);
            for entry in fs::read_dir(source).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                self.copy(entry.path(), path.join(entry.file_name()))?;
            }
        } else if !(kind.is_socket() || kind.is_fifo() || metadata.rdev() != 0) {
            self.add(
                path,
                Entry::File {
                    source: source.to_owned(),
                    mode,
                },
            );
        }
        Ok(())
    }

    /// Adds a file at the path that it has here, following links.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn here(&mut self, path: impl AsRef<Path>) -> Result<(), LabError> {
        let path = path.as_ref();
        let source = path.canonicalize().map_err(|source| LabError::File {
            path: path.to_owned(),
            source,
        })?;
        self.copy(source, path)
    }

    /// Adds a program at `path`, and the libraries that it is linked with at theirs.
    ///
    /// # Errors
    ///
    /// If it is not there.
    pub fn program(
        &mut self,
        source: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> Result<(), LabError> {
        let source = source.as_ref();
        let failed = |error| LabError::File {
            path: source.to_owned(),
            source: error,
        };
        let real = source.canonicalize().map_err(failed)?;
        let linked = Command::new("ldd")
            .arg(&real)
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        self.copy(&real, path)?;
        for library in libraries(&String::from_utf8_lossy(&linked.stdout)) {
            self.here(library)?;
        }
        Ok(())
    }

    /// Adds a program that the shell would find, at the path where it was found.
    ///
    /// # Errors
    ///
    /// If there is none of that name.
    pub fn program_called(&mut self, name: &str) -> Result<PathBuf, LabError> {
        let search = std::env::var_os("PATH").unwrap_or_default();
        // Tools of file systems are on root's path only.
        let found = std::env::split_paths(&search)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .map(|directory| directory.join(name))
            .find(|path| path.is_file());
        let path = found.ok_or_else(|| LabError::File {
            path: name.into(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        self.program(&path, &path)?;
        Ok(path)
    }

    /// Adds everything of another tree below `path`.
    pub(crate) fn graft(&mut self, path: &str, other: &Self) {
        for (inside, entry) in &other.entries {
            self.add(&Path::new(path).join(inside), entry.clone());
        }
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let path = cleaned(path);
        let mut parent = path.as_path();
        while let Some(above) = parent
            .parent()
            .filter(|above| !above.as_os_str().is_empty())
        {
            self.entries
                .entry(above.to_owned())
                .or_insert(Entry::Directory { mode: 0o755 });
            parent = above;
        }
        if !path.as_os_str().is_empty() {
            self.entries.insert(path, entry);
        }
    }

    /// Writes the tree as an initramfs (`newc` cpio) to a file without a name.
    ///
    /// # Errors
    ///
    /// If one of its files cannot be read, or the host gives no room.
    pub fn initramfs(&self) -> Result<File, LabError> {
        let file = tempfile::tempfile().map_err(crate::parts::host("make a temporary file"))?;
        let mut out = BufWriter::new(file);
        // Parents come before what is in them: the map is in the order of paths.
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            entry
                .write(number, path, &mut out)
                .map_err(|source| LabError::File {
                    path: path.clone(),
                    source,
                })?;
        }
        cpio::newc::trailer(&mut out)
            .and_then(|out| out.flush().map(|()| out))
            .map_err(crate::parts::host("write a temporary file"))?;
        out.into_inner()
            .map_err(|error| crate::parts::host("write a temporary file")(error.into_error()))
    }
}

impl Entry {
    fn write(&self, number: u32, path: &Path, out: &mut impl Write) -> io::Result<()> {
        let name = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
        let header = |mode| {
            cpio::newc::Builder::new(name)
                .ino(number)
                .nlink(1)
                .mode(mode)
        };
        let whole = |header: cpio::newc::Builder, bytes: &[u8], out: &mut dyn Write| {
            let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
            let mut entry = header.write(out, length);
            entry.write_all(bytes)?;
            entry.finish().map(drop)
        };
        match self {
            Self::Directory { mode } => whole(header(DIRECTORY | mode), b"", out),
            Self::Bytes { bytes, mode } => whole(header(REGULAR | mode), bytes, out),
            Self::Symlink { target } => {
                let target = target.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
                whole(header(SYMLINK | 0o777), target.as_bytes(), out)
            }
            Self::File { source, mode } => {
                let file = File::open(source)?;
                let length = file.metadata()?.len();
                let length = u32::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?;
                let mut entry = header(REGULAR | mode).write(out, length);
                io::copy(&mut (&file).take(length.into()), &mut entry)?;
                entry.finish().map(drop)
            }
        }
    }
}

/// The path from the root, without `.` and `..`.
fn cleaned(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => drop(cleaned.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// The paths in what ldd(1) prints.
fn libraries(linked: &str) -> impl Iterator<Item = &str> {
    linked
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_names_by_path() {
        let linked = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";

        let found: Vec<_> = libraries(linked).collect();

        assert_eq!(
            found,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn a_path_is_cleaned_of_its_dots() {
        assert_eq!(cleaned(Path::new("/a/./b/../../../c")), Path::new("c"));
    }

    #[test]
    fn parents_are_there_before_their_files() {
        let mut tree = Tree::new();
        tree.bytes("/a/b/c", "x", 0o644);

        let paths: Vec<_> = tree.entries.keys().collect();

        assert_eq!(
            paths,
            [Path::new("a"), Path::new("a/b"), Path::new("a/b/c")]
        );
    }
}
