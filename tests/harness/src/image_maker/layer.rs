//! A layer as a list of entries, in the order in which they stand in the tar.

use std::process::Command;

use crate::host;

use super::tar::{Entry, Kind, TarWriter};

/// How a layer's blob is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    #[default]
    None,
    /// Gzip, the usual one.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// One layer.
///
/// Each method that adds an entry takes its path as it will stand in the tar; the `with_…` methods change the entry
/// added last.
#[derive(Clone, Debug, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    compression: Compression,
    media_type: Option<String>,
}

impl Layer {
    /// A layer without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Debian's static busybox with a link for each of its applets, and the few files that programs look for.
    pub fn busybox() -> Self {
        let listed = Command::new("busybox")
            .arg("--list")
            .output()
            .expect("busybox can be run (package busybox-static)");
        let applets = String::from_utf8(listed.stdout).expect("applets have plain names");
        let layer = Self::new()
            .directory("bin")
            .file("bin/busybox", host::busybox())
            .with_mode(0o755)
            .directory("etc")
            .file(
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000:Alice:/home/alice:/bin/sh\n",
            )
            .file("etc/group", "root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n")
            .directory("home")
            .directory("home/alice")
            .with_owner(1000, 1000)
            .directory("root")
            .with_mode(0o700)
            .directory("tmp")
            .with_mode(0o1777);
        applets
            .lines()
            .filter(|applet| *applet != "busybox")
            .fold(layer, |layer, applet| {
                layer.symlink(format!("bin/{applet}"), "busybox")
            })
    }

    /// Adds an entry of any kind.
    #[must_use]
    pub fn entry(mut self, path: impl AsRef<[u8]>, mode: u32, kind: Kind) -> Self {
        self.entries.push(Entry::new(path.as_ref(), mode, kind));
        self
    }

    /// Adds a regular file of mode 0644.
    #[must_use]
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o644, Kind::File(content.as_ref().to_vec()))
    }

    /// Adds a regular file of mode 0755.
    #[must_use]
    pub fn executable(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.file(path, content).with_mode(0o755)
    }

    /// Adds a directory of mode 0755.
    #[must_use]
    pub fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o755, Kind::Directory)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o777, Kind::Symlink(target.as_ref().to_vec()))
    }

    /// Adds a hard link to an earlier path.
    #[must_use]
    pub fn hard_link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o644, Kind::HardLink(target.as_ref().to_vec()))
    }

    /// Adds a whiteout: the entry that removes `name` of `directory` (empty for the root) from lower layers.
    #[must_use]
    pub fn whiteout(self, directory: &str, name: &str) -> Self {
        self.file(inside(directory, &format!(".wh.{name}")), "")
    }

    /// Adds the mark that hides everything that lower layers have in `directory`.
    #[must_use]
    pub fn opaque(self, directory: &str) -> Self {
        self.file(inside(directory, ".wh..wh..opq"), "")
    }

    /// Sets the mode of the entry added last.
    #[must_use]
    pub fn with_mode(mut self, mode: u32) -> Self {
        self.last().mode = mode;
        self
    }

    /// Sets the owner of the entry added last.
    #[must_use]
    pub fn with_owner(mut self, user: u64, group: u64) -> Self {
        self.last().user = user;
        self.last().group = group;
        self
    }

    /// Sets the time of last change of the entry added last, in seconds since 1970.
    #[must_use]
    pub fn with_time(mut self, seconds: u64) -> Self {
        self.last().time = seconds;
        self
    }

    /// Adds an extended attribute to the entry added last.
    #[must_use]
    pub fn with_xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.last()
            .records
            .push((format!("SCHILY.xattr.{name}"), value.as_ref().to_vec()));
        self
    }

    /// Stores the blob compressed.
    #[must_use]
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Declares another media type than that of the compression.
    #[must_use]
    pub fn declared_as(mut self, media_type: &str) -> Self {
        self.media_type = Some(media_type.into());
        self
    }

    /// Returns the layer's tar stream, whose digest is the diff-id.
    pub fn tar(&self) -> Vec<u8> {
        let mut tar = TarWriter::default();
        for entry in &self.entries {
            tar.entry(entry);
        }
        tar.finish()
    }

    /// Returns the layer as its blob.
    pub fn blob(&self) -> Vec<u8> {
        super::compress(self.compression, &self.tar())
    }

    /// Returns the blob's media type.
    pub fn media_type(&self) -> &str {
        self.media_type
            .as_deref()
            .unwrap_or(match self.compression {
                Compression::None => "application/vnd.oci.image.layer.v1.tar",
                Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
                Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            })
    }

    fn last(&mut self) -> &mut Entry {
        self.entries.last_mut().expect("an entry was added before")
    }
}

fn inside(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        name.into()
    } else {
        format!("{directory}/{name}")
    }
}
