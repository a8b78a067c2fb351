//! Archives of `docker save` without an OCI index: `manifest.json` names configurations and layers.

use serde::Deserialize;

use super::super::digest::Digest;
use super::super::reference;
use super::files::Files;
use super::{DOCUMENT_MAX_BYTES, OpenedImage, Selection, SourceError, opened};

/// Name of the list of images in such an archive.
const MANIFEST: &str = "manifest.json";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Opens the one image of an archive that `selection` means.
pub(super) fn open(files: Files, selection: &Selection<'_>) -> Result<OpenedImage, SourceError> {
    let bytes = files
        .read(MANIFEST, DOCUMENT_MAX_BYTES)?
        .ok_or(SourceError::Empty)?;
    let images: Vec<RawImage> =
        serde_json::from_slice(&bytes).map_err(|source| SourceError::Json {
            name: MANIFEST.to_owned(),
            source,
        })?;
    let image = choose(images, selection)?;
    let config = files
        .read(&image.config, DOCUMENT_MAX_BYTES)?
        .ok_or_else(|| SourceError::MissingFile(image.config.clone()))?;
    let id = Digest::of(&config);
    if let Some(expected) = named_digest(&image.config).filter(|expected| *expected != id) {
        return Err(SourceError::WrongDigest {
            expected,
            actual: id,
        });
    }
    let layers = image
        .layers
        .unwrap_or_default()
        .into_iter()
        .map(|layer| (layer, None))
        .collect();
    opened(
        files,
        id,
        config,
        layers,
        image.repo_tags.unwrap_or_default(),
        selection.platform,
    )
}

/// The digest that a file's name promises: `HEX.json` or `blobs/sha256/HEX`.
fn named_digest(name: &str) -> Option<Digest> {
    let last = name.rsplit('/').next()?;
    Digest::from_hex(last.strip_suffix(".json").unwrap_or(last))
}

fn choose(images: Vec<RawImage>, selection: &Selection<'_>) -> Result<RawImage, SourceError> {
    let tags = |image: &RawImage| image.repo_tags.clone().unwrap_or_default();
    let label = |image: &RawImage| {
        tags(image)
            .first()
            .cloned()
            .unwrap_or_else(|| image.config.clone())
    };
    let labels: Vec<String> = images.iter().map(label).collect();
    let mut fitting: Vec<RawImage> = match selection.name {
        Some(wanted) => images
            .into_iter()
            .filter(|image| reference::any_is(&tags(image), wanted))
            .collect(),
        None => images,
    };
    match (fitting.len(), selection.name) {
        (1, _) => fitting.pop().ok_or(SourceError::Empty),
        (0, Some(wanted)) => Err(SourceError::NotNamed {
            wanted: wanted.to_owned(),
            found: labels,
        }),
        (0, None) => Err(SourceError::Empty),
        _ => Err(SourceError::Ambiguous(labels)),
    }
}
