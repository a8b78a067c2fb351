//! Stacks layers into one tree, as an unpacking runtime would apply them one after the other.
//!
//! Paths are resolved inside the tree: symbolic links in the parents of a path are followed as
//! under `chroot`, so none leads outside. A whiteout hides what the layers below left, not what
//! its own layer brought (OCI image specification, "Image Layer Filesystem Changeset").

use std::collections::{HashSet, VecDeque};

use super::erofs::{Contents, Directory, FileData, Metadata, Node, NodeId, Tree};
use super::layer::{Entry, EntryKind, LayerPath};

/// Symbolic links that one path may lead through: as Linux.
const SYMLINKS_MAX: u32 = 40;
/// Directories that one path may lead through once its symbolic links are followed.
const DEPTH_MAX: usize = 4096;
/// Files and directories of an image, those included that its paths only imply: each costs some hundred bytes of memory.
const NODES_MAX: usize = 8_000_000;
/// Directories that all paths of an image together may lead through: some seconds of work.
const STEPS_MAX: u64 = 400_000_000;

/// An entry that cannot be applied to the layers below it.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A parent of the path is no directory.
    #[error("`{path}` lies below `{blocker}`, which is not a directory")]
    NotADirectory {
        /// The path.
        path: String,
        /// The name that is no directory.
        blocker: String,
    },
    /// The path leads through too many symbolic links.
    #[error("`{path}` leads through too many symbolic links or directories")]
    Loop {
        /// The path.
        path: String,
    },
    /// A symbolic link in the path leads above the root.
    #[error("`{path}` leads out of the image's root through a symbolic link")]
    Escapes {
        /// The path.
        path: String,
    },
    /// A hard link to nothing.
    #[error("`{path}` is a hard link to `{target}`, which does not exist")]
    LinkToNothing {
        /// The path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// A hard link to a directory.
    #[error("`{path}` is a hard link to `{target}`, which is a directory")]
    LinkToDirectory {
        /// The path.
        path: String,
        /// What it links to.
        target: String,
    },
    /// The root is made something else than a directory.
    #[error("the root of the image is not a directory")]
    Root,
    /// More inodes than can be numbered.
    #[error("the image has too many files")]
    TooMany,
}

/// A tree that grows layer by layer.
pub(super) struct Merger {
    tree: Tree,
    /// By inode: the layer that made or last changed it.
    changed_by: Vec<u16>,
    layer: u16,
    /// Directories of which this layer has hidden what lower layers left.
    hidden: HashSet<NodeId>,
    /// Directories passed on the way to all paths so far.
    steps: u64,
    /// Names that this layer linked to inodes of lower layers.
    linked: HashSet<(NodeId, Box<[u8]>)>,
}

/// What to do where a directory is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    GiveUp,
}

impl Merger {
    pub(super) fn new() -> Self {
        Self {
            tree: Tree::new(Metadata::of_root(0o755)),
            changed_by: vec![0],
            layer: 0,
            hidden: HashSet::new(),
            steps: 0,
            linked: HashSet::new(),
        }
    }

    /// The tree of all layers.
    pub(super) fn into_tree(self) -> Tree {
        self.tree
    }

    /// Goes on to the layer whose contents are in part `layer - 1` of the window; counts from 1.
    pub(super) fn begin_layer(&mut self, layer: u16) {
        self.layer = layer;
        self.linked.clear();
        self.hidden.clear();
    }

    /// Applies the next entry of the layer.
    pub(super) fn apply(&mut self, entry: Entry) -> Result<(), MergeError> {
        let Entry {
            path,
            metadata,
            kind,
        } = entry;
        match kind {
            EntryKind::Opaque => {
                if let Some(directory) = self.walk(&path, &path, Missing::GiveUp)? {
                    self.hide_below(directory);
                }
                Ok(())
            }
            EntryKind::Whiteout => self.whiteout(&path),
            kind => {
                let Some((parent, name)) = path.split() else {
                    return self.root(metadata, &kind);
                };
                let parent = self
                    .walk(&parent, &path, Missing::Make)?
                    .ok_or(MergeError::Root)?;
                match kind {
                    EntryKind::HardLink(target) => self.hard_link(&path, parent, name, &target),
                    kind => self.put(parent, name, metadata, kind),
                }
            }
        }
    }

    fn root(&mut self, metadata: Metadata, kind: &EntryKind) -> Result<(), MergeError> {
        if !matches!(kind, EntryKind::Directory) {
            return Err(MergeError::Root);
        }
        let root = self.tree.root();
        self.tree.node_mut(root).metadata = metadata;
        Ok(())
    }

    fn put(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: Metadata,
        kind: EntryKind,
    ) -> Result<(), MergeError> {
        let contents = match kind {
            EntryKind::Directory => {
                if let Some(existing) = self
                    .child(parent, name)
                    .filter(|id| self.tree.directory(*id).is_some())
                {
                    self.tree.node_mut(existing).metadata = metadata;
                    self.mark(existing);
                    return Ok(());
                }
                Contents::Directory(Directory::new())
            }
            EntryKind::File {
                size_bytes,
                chunk_bits,
                extents,
            } => Contents::File(FileData {
                size_bytes,
                part: self.layer.saturating_sub(1),
                chunk_bits,
                extents,
            }),
            EntryKind::Symlink(target) => Contents::Symlink(target),
            EntryKind::CharacterDevice(number) => Contents::CharacterDevice(number),
            EntryKind::BlockDevice(number) => Contents::BlockDevice(number),
            EntryKind::Fifo => Contents::Fifo,
            EntryKind::HardLink(_) | EntryKind::Whiteout | EntryKind::Opaque => return Ok(()),
        };
        let id = self.add(Node { metadata, contents })?;
        self.set(parent, name, id);
        Ok(())
    }

    fn hard_link(
        &mut self,
        path: &LayerPath,
        parent: NodeId,
        name: &[u8],
        target: &LayerPath,
    ) -> Result<(), MergeError> {
        let nothing = || MergeError::LinkToNothing {
            path: path.display(),
            target: target.display(),
        };
        let directory = || MergeError::LinkToDirectory {
            path: path.display(),
            target: target.display(),
        };
        let (target_parent, target_name) = target.split().ok_or_else(directory)?;
        let holder = self
            .walk(&target_parent, target, Missing::GiveUp)?
            .ok_or_else(nothing)?;
        let inode = self.child(holder, target_name).ok_or_else(nothing)?;
        if self.tree.directory(inode).is_some() {
            return Err(directory());
        }
        self.set(parent, name, inode);
        self.linked.insert((parent, name.into()));
        Ok(())
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), MergeError> {
        let Some((parent, name)) = path.split() else {
            return Err(MergeError::Root);
        };
        if let Some(parent) = self.walk(&parent, path, Missing::GiveUp)?
            && let Some(child) = self.child(parent, name)
        {
            if !self.is_of_this_layer(parent, name, child) {
                if let Some(names) = self.tree.directory_mut(parent) {
                    names.remove(name);
                }
            } else if self.tree.directory(child).is_some() {
                self.hide_below(child);
            }
        }
        Ok(())
    }

    /// Removes what lower layers left below a directory.
    fn hide_below(&mut self, directory: NodeId) {
        let mut open = vec![directory];
        while let Some(directory) = open.pop() {
            if !self.hidden.insert(directory) {
                continue;
            }
            let names = self
                .tree
                .directory_mut(directory)
                .map(std::mem::take)
                .unwrap_or_default();
            let kept: Directory = names
                .into_iter()
                .filter(|(name, child)| self.is_of_this_layer(directory, name, *child))
                .collect();
            open.extend(
                kept.values()
                    .copied()
                    .filter(|child| self.tree.directory(*child).is_some()),
            );
            if let Some(names) = self.tree.directory_mut(directory) {
                *names = kept;
            }
        }
    }

    /// Finds the directory at `path`, following symbolic links inside the tree.
    ///
    /// `None` if it does not exist and is not to be made. `whole` is named in errors.
    fn walk(
        &mut self,
        path: &LayerPath,
        whole: &LayerPath,
        missing: Missing,
    ) -> Result<Option<NodeId>, MergeError> {
        let mut stack = vec![self.tree.root()];
        let mut pending: VecDeque<Box<[u8]>> = path.components().map(Into::into).collect();
        let mut symlinks = 0;
        while let Some(component) = pending.pop_front() {
            let here = stack.last().copied().unwrap_or(self.tree.root());
            match &*component {
                b"" | b"." => continue,
                b".." => {
                    // Only a symbolic link's target has such a component.
                    if stack.len() == 1 {
                        return Err(MergeError::Escapes {
                            path: whole.display(),
                        });
                    }
                    stack.pop();
                    continue;
                }
                _ => {}
            }
            let too_far = || MergeError::Loop {
                path: whole.display(),
            };
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return Err(too_far());
            }
            let Some(child) = self.child(here, &component) else {
                if missing == Missing::GiveUp {
                    return Ok(None);
                }
                let made = self.make_directory(here, &component, whole)?;
                stack.push(made);
                if stack.len() > DEPTH_MAX {
                    return Err(too_far());
                }
                continue;
            };
            match &self.tree.node(child).contents {
                Contents::Directory(_) => stack.push(child),
                Contents::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > SYMLINKS_MAX || pending.len() > DEPTH_MAX {
                        return Err(too_far());
                    }
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    for component in target.split(|byte| *byte == b'/').rev() {
                        pending.push_front(component.into());
                    }
                }
                _ if missing == Missing::GiveUp => return Ok(None),
                _ => {
                    return Err(MergeError::NotADirectory {
                        path: whole.display(),
                        blocker: String::from_utf8_lossy(&component).into_owned(),
                    });
                }
            }
            if stack.len() > DEPTH_MAX {
                return Err(too_far());
            }
        }
        if missing == Missing::Make {
            for directory in &stack {
                self.mark(*directory);
            }
        }
        Ok(stack.last().copied())
    }

    /// Makes a directory that the layer implies without naming it.
    fn make_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        whole: &LayerPath,
    ) -> Result<NodeId, MergeError> {
        // A symbolic link may spell a name that no directory can hold.
        if name.len() > super::erofs::NAME_MAX_BYTES {
            return Err(MergeError::Loop {
                path: whole.display(),
            });
        }
        let contents = Contents::Directory(Directory::new());
        let id = self.add(Node {
            metadata: Metadata::of_root(0o755),
            contents,
        })?;
        self.set(parent, name, id);
        Ok(id)
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.tree.directory(directory)?.get(name).copied()
    }

    fn set(&mut self, directory: NodeId, name: &[u8], child: NodeId) {
        if let Some(names) = self.tree.directory_mut(directory) {
            names.insert(name.into(), child);
        }
    }

    fn add(&mut self, node: Node) -> Result<NodeId, MergeError> {
        if self.changed_by.len() >= NODES_MAX {
            return Err(MergeError::TooMany);
        }
        let id = self.tree.add(node).ok_or(MergeError::TooMany)?;
        self.changed_by.push(self.layer);
        Ok(id)
    }

    fn mark(&mut self, id: NodeId) {
        self.changed_by[id.index()] = self.layer;
    }

    fn is_of_this_layer(&self, directory: NodeId, name: &[u8], child: NodeId) -> bool {
        self.changed_by[child.index()] == self.layer
            || self.linked.contains(&(directory, name.into()))
    }
}
