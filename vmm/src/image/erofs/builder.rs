//! Builds a whole EROFS image in memory, for small trees of the appliance's own.

use super::HUGE_PAGE_BYTES;
use super::format::{BLOCK_BYTES, NAME_MAX_BYTES};
use super::layout::{Layout, LayoutError};
use super::tree::{
    Contents, DeviceNumber, Directory, Extent, FileData, Metadata, Node, NodeId, Tree,
};
use super::writer::{WindowMap, WriteError, write_tree};

/// What keeps an image from being built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A path is not absolute, is the root itself, or has a component that no directory may hold.
    #[error("`{path}` is no path of a file below the root")]
    Path {
        /// The path as it was given.
        path: String,
    },
    /// A path leads through something that is no directory, or names what exists.
    #[error("`{path}` cannot be added: a file stands in its way")]
    Exists {
        /// The path as it was given.
        path: String,
    },
    /// More than EROFS can address.
    #[error("the image is larger than 16 TiB")]
    TooLarge,
    /// The tree cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The tree cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Collects files by path and makes one self-contained image of them.
///
/// Everything belongs to root and is of 1970. Missing parents are made with mode 0755. The same
/// calls give the same bytes.
#[derive(Debug)]
pub struct Builder {
    tree: Tree,
    files: Vec<(NodeId, Vec<u8>)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// Starts with an empty root directory of mode 0755.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tree: Tree::new(Metadata::of_root(0o755)),
            files: Vec::new(),
        }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// If the path is bad or taken.
    pub fn directory(&mut self, path: &str, mode: u16) -> Result<&mut Self, BuildError> {
        self.insert(path, mode, Contents::Directory(Directory::new()))?;
        Ok(self)
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// If the path is bad or taken.
    pub fn file(
        &mut self,
        path: &str,
        mode: u16,
        contents: Vec<u8>,
    ) -> Result<&mut Self, BuildError> {
        let size_bytes = contents.len() as u64;
        let data = FileData {
            size_bytes,
            part: 0,
            chunk_bits: None,
            extents: Box::default(),
        };
        let id = self.insert(path, mode, Contents::File(data))?;
        self.files.push((id, contents));
        Ok(self)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// If the path is bad or taken.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self, BuildError> {
        self.insert(path, 0o777, Contents::Symlink(target.as_bytes().into()))?;
        Ok(self)
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// If the path is bad or taken.
    pub fn character_device(
        &mut self,
        path: &str,
        mode: u16,
        number: DeviceNumber,
    ) -> Result<&mut Self, BuildError> {
        self.insert(path, mode, Contents::CharacterDevice(number))?;
        Ok(self)
    }

    /// Makes the image: metadata, then file contents; whole blocks.
    ///
    /// # Errors
    /// If the tree does not fit into the format.
    pub fn build(mut self) -> Result<Vec<u8>, BuildError> {
        let layout = Layout::new(&self.tree)?;
        let mut end = layout.metadata_bytes();
        let mut offsets = Vec::with_capacity(self.files.len());
        for (id, contents) in &self.files {
            let length = contents.len() as u64;
            let boundary = if length >= HUGE_PAGE_BYTES {
                HUGE_PAGE_BYTES
            } else {
                BLOCK_BYTES
            };
            let start = end.next_multiple_of(boundary);
            let block = |bytes: u64| {
                u32::try_from(bytes.div_ceil(BLOCK_BYTES)).map_err(|_| BuildError::TooLarge)
            };
            let extent = Extent {
                file_block: 0,
                blocks: block(length)?,
                part_block: block(start)?,
            };
            if let Contents::File(data) = &mut self.tree.node_mut(*id).contents
                && length > 0
            {
                data.extents = Box::new([extent]);
            }
            offsets.push(start);
            end = start + length;
        }
        let total = end.next_multiple_of(BLOCK_BYTES);
        let total_blocks = u32::try_from(total / BLOCK_BYTES).map_err(|_| BuildError::TooLarge)?;
        let mut image =
            Vec::with_capacity(usize::try_from(total).map_err(|_| BuildError::TooLarge)?);
        write_tree(
            &self.tree,
            &layout,
            &WindowMap {
                part_blocks: vec![0],
                total_blocks,
            },
            &mut image,
        )?;
        for ((_, contents), start) in self.files.iter().zip(offsets) {
            image.resize(usize::try_from(start).map_err(|_| BuildError::TooLarge)?, 0);
            image.extend_from_slice(contents);
        }
        image.resize(usize::try_from(total).map_err(|_| BuildError::TooLarge)?, 0);
        Ok(image)
    }

    fn insert(&mut self, path: &str, mode: u16, contents: Contents) -> Result<NodeId, BuildError> {
        let bad = || BuildError::Path {
            path: path.to_owned(),
        };
        let taken = || BuildError::Exists {
            path: path.to_owned(),
        };
        let relative = path.strip_prefix('/').ok_or_else(bad)?;
        let (parents, name) = relative
            .rsplit_once('/')
            .map_or(("", relative), |(parents, name)| (parents, name));
        let mut directory = self.tree.root();
        for component in parents.split('/').filter(|_| !parents.is_empty()) {
            check_name(component).ok_or_else(bad)?;
            let known = self
                .tree
                .directory(directory)
                .ok_or_else(taken)?
                .get(component.as_bytes())
                .copied();
            directory = match known {
                Some(id) => id,
                None => self
                    .attach(
                        directory,
                        component,
                        0o755,
                        Contents::Directory(Directory::new()),
                    )
                    .ok_or_else(taken)?,
            };
        }
        check_name(name).ok_or_else(bad)?;
        self.attach(directory, name, mode, contents)
            .ok_or_else(taken)
    }

    /// Adds an inode under a name; `None` if the name is taken or `directory` is none.
    fn attach(
        &mut self,
        directory: NodeId,
        name: &str,
        mode: u16,
        contents: Contents,
    ) -> Option<NodeId> {
        if self
            .tree
            .directory(directory)?
            .contains_key(name.as_bytes())
        {
            return None;
        }
        let id = self.tree.add(Node {
            metadata: Metadata::of_root(mode),
            contents,
        })?;
        self.tree
            .directory_mut(directory)?
            .insert(name.as_bytes().into(), id);
        Some(id)
    }
}

fn check_name(name: &str) -> Option<()> {
    let fits = !name.is_empty()
        && name.len() <= NAME_MAX_BYTES
        && !matches!(name, "." | "..")
        && !name.contains('\0');
    fits.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::erofs::reader::Reader;

    fn sample() -> Builder {
        let mut builder = Builder::new();
        builder.directory("/dev", 0o755).unwrap();
        builder.file("/init", 0o755, vec![7; 5000]).unwrap();
        builder.file("/big", 0o644, vec![9; 3 << 20]).unwrap();
        builder.symlink("/etc/link", "../init").unwrap();
        builder.file("/empty", 0o600, Vec::new()).unwrap();
        builder
    }

    #[test]
    fn the_same_calls_give_the_same_bytes() {
        assert_eq!(sample().build().unwrap(), sample().build().unwrap());
    }

    #[test]
    fn an_image_is_a_whole_number_of_blocks() {
        let image = sample().build().unwrap();
        assert_eq!(image.len() as u64 % BLOCK_BYTES, 0);
    }

    #[test]
    fn every_file_can_be_read_back() {
        let image = sample().build().unwrap();
        let files = Reader::new(&image).walk();
        assert_eq!(files[&b"/init"[..]].contents, vec![7; 5000]);
        assert_eq!(files[&b"/big"[..]].contents, vec![9; 3 << 20]);
        assert_eq!(files[&b"/empty"[..]].contents, b"");
        assert_eq!(files[&b"/etc/link"[..]].contents, b"../init");
        assert_eq!(files[&b"/etc"[..]].mode, 0o040_755);
        assert_eq!(files[&b"/"[..]].links, 4);
    }

    #[test]
    fn a_large_file_starts_on_a_huge_page() {
        let image = sample().build().unwrap();
        let files = Reader::new(&image).walk();
        assert_eq!(
            u64::from(files[&b"/big"[..]].first_block) * BLOCK_BYTES % HUGE_PAGE_BYTES,
            0
        );
    }

    #[test]
    fn a_name_that_is_taken_is_refused() {
        let mut builder = sample();
        assert!(matches!(
            builder.directory("/dev", 0o755),
            Err(BuildError::Exists { .. })
        ));
        assert!(matches!(
            builder.directory("/init/x", 0o755),
            Err(BuildError::Exists { .. })
        ));
    }

    #[test]
    fn a_path_with_dots_is_refused() {
        let mut builder = sample();
        assert!(matches!(
            builder.directory("/a/../b", 0o755),
            Err(BuildError::Path { .. })
        ));
    }

    #[test]
    fn a_directory_of_many_names_is_read_back_whole() {
        let mut builder = Builder::new();
        (0..3000).for_each(|i| {
            builder
                .file(&format!("/many/file-{i}"), 0o644, vec![1])
                .unwrap();
        });
        let image = builder.build().unwrap();
        assert_eq!(Reader::new(&image).walk().len(), 3002);
    }
}
