//! A copy of the installed guest image that a test may spoil.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Fixture, binary, image_maker};

/// A directory like `share/vmm/guest`, with one version in it.
#[derive(Debug)]
pub struct GuestImage {
    directory: PathBuf,
}

impl GuestImage {
    /// Copies the installed guest image into the fixture.
    pub fn copied(fixture: &Fixture) -> Self {
        let installed = binary::guest_directory().join("current");
        let installed = fs::canonicalize(installed).expect("the installed guest image is there");
        let version = installed.file_name().expect("a version has a name");
        let directory = fixture.path("guest");
        fs::create_dir_all(directory.join(version)).expect("a directory can be made");
        for file in fs::read_dir(&installed).expect("the installed guest image can be listed") {
            let file = file.expect("the installed guest image can be listed");
            let copy = directory.join(version).join(file.file_name());
            fs::copy(file.path(), copy).expect("the installed guest image can be copied");
        }
        symlink(version, directory.join("current")).expect("a link can be made");
        Self { directory }
    }

    /// Returns the directory for `VMM_GUEST_DIR`.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the name of the current version.
    pub fn current(&self) -> String {
        let link =
            fs::read_link(self.directory.join("current")).expect("there is a current version");
        let version = link.file_name().expect("a version has a name");
        version.to_string_lossy().into_owned()
    }

    /// Changes one bit in the middle of a file.
    pub fn change_a_byte(&self, file: &str) {
        let mut content = self.read(file);
        let middle = content.len() / 2;
        content[middle] ^= 1;
        self.write(file, &content);
    }

    /// Replaces a file's content without telling the manifest.
    pub fn write(&self, file: &str, content: &[u8]) {
        let path = self.path(file);
        // An installed file may be read-only; a new one in its place is not.
        fs::remove_file(&path).expect("a file of the copy can be removed");
        fs::write(path, content).expect("a file of the copy can be written");
    }

    /// Replaces the agent's image by zeros and makes the manifest agree: a guest image that is whole and useless.
    pub fn replace_agent_by_zeros(&self) {
        let zeros = vec![0; self.read("agent.erofs").len()];
        self.replace_agent(&zeros);
    }

    /// Adds a page that nobody reads to the agent's image: a guest image that is another, and does the same.
    pub fn lengthen_agent(&self) {
        let longer = [self.read("agent.erofs"), vec![0; 4096]].concat();
        self.replace_agent(&longer);
    }

    fn replace_agent(&self, content: &[u8]) {
        self.write("agent.erofs", content);
        let mut manifest: Value =
            serde_json::from_slice(&self.read("manifest.json")).expect("the manifest is JSON");
        manifest["agent"]["digest"] = image_maker::digest(content).into();
        self.write("manifest.json", manifest.to_string().as_bytes());
    }

    fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).expect("a file of the copy can be read")
    }

    fn path(&self, file: &str) -> PathBuf {
        self.directory.join("current").join(file)
    }
}
