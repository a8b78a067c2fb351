//! The store as its users see it: archives in, trees out.

mod hostile;
mod layers;
mod maker;
mod oracle;
mod random;
mod shapes;
mod shared;
mod tarballs;
mod unpack;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::erofs::reader::{Found, Reader};
use super::{Digest, ImageSource, ImportError, ImportOptions, Silent, Store, StoredImage};

/// A store of its own for one test.
struct Fixture {
    directory: TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    /// Writes a file beside the store.
    fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn import(&self, archive: Vec<u8>) -> Result<StoredImage, ImportError> {
        self.import_with(archive, &ImportOptions::default())
    }

    fn import_with(
        &self,
        archive: Vec<u8>,
        options: &ImportOptions,
    ) -> Result<StoredImage, ImportError> {
        let source = ImageSource::Stream {
            name: "test.oci".to_owned(),
            input: Box::new(Cursor::new(archive)),
        };
        self.store.import(source, options, &Silent)
    }

    fn import_path(&self, path: &Path) -> Result<StoredImage, ImportError> {
        self.store.import(
            ImageSource::Path(path.to_owned()),
            &ImportOptions::default(),
            &Silent,
        )
    }

    /// Imports an archive that must be refused; checks that the store is as it was and returns
    /// the whole message.
    fn refusal(&self, archive: Vec<u8>) -> String {
        self.refusal_with(archive, &ImportOptions::default())
    }

    fn refusal_with(&self, archive: Vec<u8>, options: &ImportOptions) -> String {
        let before = self.listing();
        let error = self
            .import_with(archive, options)
            .map(|image| image.id)
            .unwrap_err();
        assert_eq!(
            self.listing(),
            before,
            "a refused image leaves nothing in the store"
        );
        message(&error)
    }

    /// Every file of the store with its digest, but for locks.
    fn listing(&self) -> BTreeMap<PathBuf, Digest> {
        let mut found = BTreeMap::new();
        let mut open = vec![self.store.root().to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.insert(path.clone(), Digest::of(b""));
                    open.push(path);
                } else if !path.ends_with("lock") {
                    found.insert(path.clone(), Digest::of(&fs::read(&path).unwrap()));
                }
            }
        }
        found
    }
}

/// An error with all its causes, as `main` prints it.
fn message(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Everything in an image, by path.
fn walk(image: &StoredImage) -> BTreeMap<Vec<u8>, Found> {
    let mut window = vec![0; usize::try_from(image.root.size_bytes).unwrap()];
    for part in &image.root.parts {
        let start = usize::try_from(part.window_offset_bytes).unwrap();
        let length = usize::try_from(part.length_bytes).unwrap();
        part.file
            .read_exact_at(&mut window[start..start + length], 0)
            .unwrap();
    }
    Reader::new(&window).walk()
}

/// The paths of an image, but for the root, as text.
fn paths(image: &StoredImage) -> Vec<String> {
    walk(image)
        .keys()
        .skip(1)
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}
