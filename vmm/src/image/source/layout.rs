//! OCI image layouts (OCI image specification 1.1, "Image Layout", "Image Index", "Image Manifest").

use std::collections::HashMap;

use serde::Deserialize;

use super::super::digest::Digest;
use super::super::media_type::MediaType;
use super::super::platform::Platform;
use super::files::Files;
use super::{DOCUMENT_MAX_BYTES, OpenedImage, Selection, SourceError, opened};

/// Indexes within indexes.
const DEPTH_MAX: usize = 8;
/// Manifests that all indexes together may name.
const MANIFESTS_MAX: usize = 1000;
/// Annotation with an image's name or tag ("Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's and docker's annotation with an image's full name.
const IMAGE_NAME: &str = "io.containerd.image.name";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<HashMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawIndex {
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Debug, Deserialize)]
struct RawManifest {
    config: RawDescriptor,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
}

/// A blob that a document names.
#[derive(Debug, Clone)]
struct Descriptor {
    digest: Digest,
    size: u64,
    media_type: Option<MediaType>,
    raw_media_type: String,
}

impl RawDescriptor {
    fn parse(&self, document: &str) -> Result<Descriptor, SourceError> {
        let digest = self.digest.parse().map_err(|source| SourceError::Digest {
            name: document.to_owned(),
            source,
        })?;
        Ok(Descriptor {
            digest,
            size: self.size,
            media_type: MediaType::parse(&self.media_type),
            raw_media_type: self.media_type.clone(),
        })
    }

    fn names(&self) -> Vec<String> {
        let annotation = |key| {
            self.annotations
                .as_ref()
                .and_then(|all| all.get(key))
                .cloned()
        };
        // The full name says more than the tag of it that docker writes beside it.
        annotation(IMAGE_NAME)
            .or_else(|| annotation(REF_NAME))
            .into_iter()
            .collect()
    }
}

impl RawPlatform {
    fn parse(&self) -> Option<Platform> {
        let known = |text: &str| (!text.is_empty() && text != "unknown").then(|| text.to_owned());
        Some(Platform {
            os: known(&self.os)?,
            architecture: known(&self.architecture)?,
            variant: self.variant.as_deref().and_then(known),
        })
    }
}

/// A manifest that an index names, with what is said of it.
struct Candidate {
    descriptor: Descriptor,
    names: Vec<String>,
    platform: Option<Platform>,
}

/// Opens the one image of a layout that `selection` means.
pub(super) fn open(files: Files, selection: &Selection<'_>) -> Result<OpenedImage, SourceError> {
    check_version(&files)?;
    let name = "index.json";
    let bytes = files
        .read(name, DOCUMENT_MAX_BYTES)?
        .ok_or(SourceError::NotALayout)?;
    let index: RawIndex = parse(&bytes, name)?;
    let mut search = Search {
        files: &files,
        candidates: Vec::new(),
        unknown: None,
        visited: 0,
    };
    search.index(&index, name, &[], 0)?;
    let (candidates, unknown) = (search.candidates, search.unknown);
    let chosen = choose(candidates, unknown, selection)?;
    let bytes = blob(&files, &chosen.descriptor)?;
    let name = format!("the manifest {}", chosen.descriptor.digest);
    let manifest: RawManifest = parse(&bytes, &name)?;
    let config = manifest.config.parse(&name)?;
    if config.media_type != Some(MediaType::Config) {
        return Err(unknown_media_type(
            &format!("the configuration {}", config.digest),
            &config,
        ));
    }
    let layers = manifest
        .layers
        .unwrap_or_default()
        .iter()
        .map(|layer| {
            let layer = layer.parse(&name)?;
            if layer.media_type != Some(MediaType::Layer) {
                return Err(unknown_media_type(
                    &format!("the layer {}", layer.digest),
                    &layer,
                ));
            }
            Ok((blob_path(layer.digest), Some((layer.digest, layer.size))))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let config_bytes = blob(&files, &config)?;
    opened(
        files,
        config.digest,
        config_bytes,
        layers,
        chosen.names,
        selection.platform,
    )
}

struct Search<'a> {
    files: &'a Files,
    candidates: Vec<Candidate>,
    /// A media type that was passed over.
    unknown: Option<Descriptor>,
    visited: usize,
}

impl Search<'_> {
    fn index(
        &mut self,
        index: &RawIndex,
        document: &str,
        names: &[String],
        depth: usize,
    ) -> Result<(), SourceError> {
        if depth > DEPTH_MAX {
            return Err(SourceError::TooDeep(DEPTH_MAX));
        }
        for raw in index.manifests.iter().flatten() {
            self.visited += 1;
            if self.visited > MANIFESTS_MAX {
                return Err(SourceError::TooManyManifests(MANIFESTS_MAX));
            }
            let descriptor = raw.parse(document)?;
            let own = raw.names();
            let names = if own.is_empty() { names.to_vec() } else { own };
            match descriptor.media_type {
                Some(MediaType::Index) => {
                    let name = format!("the index {}", descriptor.digest);
                    let nested: RawIndex = parse(&blob(self.files, &descriptor)?, &name)?;
                    self.index(&nested, &name, &names, depth + 1)?;
                }
                Some(MediaType::Manifest) => {
                    // A platform of `unknown` marks what is no image, an attestation for example.
                    let platform = match &raw.platform {
                        Some(platform) => match platform.parse() {
                            Some(platform) => Some(platform),
                            None => continue,
                        },
                        None => None,
                    };
                    self.candidates.push(Candidate {
                        descriptor,
                        names,
                        platform,
                    });
                }
                _ => self.unknown = Some(descriptor),
            }
        }
        Ok(())
    }
}

fn choose(
    candidates: Vec<Candidate>,
    unknown: Option<Descriptor>,
    selection: &Selection<'_>,
) -> Result<Candidate, SourceError> {
    if candidates.is_empty() {
        return Err(match unknown {
            Some(descriptor) => {
                unknown_media_type(&format!("the manifest {}", descriptor.digest), &descriptor)
            }
            None => SourceError::Empty,
        });
    }
    let named = by_name(candidates, selection.name)?;
    let found = || {
        named
            .iter()
            .filter_map(|candidate| candidate.platform.as_ref())
            .map(ToString::to_string)
            .collect()
    };
    let no_platform = SourceError::NoPlatform {
        wanted: selection.platform.clone(),
        found: found(),
    };
    let mut fitting: Vec<Candidate> = named
        .into_iter()
        .filter(|candidate| {
            candidate
                .platform
                .as_ref()
                .is_none_or(|platform| selection.platform.runs(platform))
        })
        .collect();
    // What says that it fits is better than what says nothing.
    if fitting.iter().any(|candidate| candidate.platform.is_some()) {
        fitting.retain(|candidate| candidate.platform.is_some());
    }
    // An image for every machine before one for some.
    fitting.sort_by_key(|candidate| variant(candidate).is_some());
    let mut chosen = None::<Candidate>;
    let mut others = Vec::new();
    for candidate in fitting {
        match &mut chosen {
            None => chosen = Some(candidate),
            Some(first) if first.descriptor.digest == candidate.descriptor.digest => {
                first.names.extend(candidate.names);
            }
            // The same image for another variant.
            Some(first)
                if first.names == candidate.names && variant(first) != variant(&candidate) => {}
            Some(_) => others.push(label(&candidate)),
        }
    }
    let chosen = chosen.ok_or(no_platform)?;
    if others.is_empty() {
        return Ok(chosen);
    }
    others.insert(0, label(&chosen));
    Err(SourceError::Ambiguous(others))
}

fn by_name(
    candidates: Vec<Candidate>,
    wanted: Option<&str>,
) -> Result<Vec<Candidate>, SourceError> {
    let Some(wanted) = wanted else {
        return Ok(candidates);
    };
    let found = candidates.iter().map(label).collect();
    let named: Vec<Candidate> = candidates
        .into_iter()
        .filter(|candidate| super::super::reference::any_is(&candidate.names, wanted))
        .collect();
    if named.is_empty() {
        Err(SourceError::NotNamed {
            wanted: wanted.to_owned(),
            found,
        })
    } else {
        Ok(named)
    }
}

fn variant(candidate: &Candidate) -> Option<&str> {
    candidate.platform.as_ref()?.variant.as_deref()
}

fn label(candidate: &Candidate) -> String {
    candidate
        .names
        .first()
        .cloned()
        .unwrap_or_else(|| candidate.descriptor.digest.to_string())
}

fn unknown_media_type(name: &str, descriptor: &Descriptor) -> SourceError {
    SourceError::UnknownMediaType {
        name: name.to_owned(),
        media_type: descriptor.raw_media_type.clone(),
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads and verifies a document.
fn blob(files: &Files, descriptor: &Descriptor) -> Result<Vec<u8>, SourceError> {
    let digest = descriptor.digest;
    let bytes = files
        .read(&blob_path(digest), DOCUMENT_MAX_BYTES)?
        .ok_or(SourceError::MissingBlob(digest))?;
    if bytes.len() as u64 != descriptor.size {
        let actual = bytes.len() as u64;
        return Err(SourceError::WrongSize {
            digest,
            expected: descriptor.size,
            actual,
        });
    }
    let actual = Digest::of(&bytes);
    if actual == digest {
        Ok(bytes)
    } else {
        Err(SourceError::WrongDigest {
            expected: digest,
            actual,
        })
    }
}

/// Refuses a layout of a version to come. One that does not say its version is taken for the only one there is (OCI image
/// specification, "oci-layout file").
fn check_version(files: &Files) -> Result<(), SourceError> {
    #[derive(Deserialize)]
    struct Marker {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    const VERSION: &str = "1.0.0";
    let name = "oci-layout";
    let Some(bytes) = files.read(name, DOCUMENT_MAX_BYTES)? else {
        return Ok(());
    };
    match parse::<Marker>(&bytes, name)?.version {
        version if version == VERSION => Ok(()),
        version => Err(SourceError::LayoutVersion(
            version.chars().take(100).collect(),
        )),
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], name: &str) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|source| SourceError::Json {
        name: name.to_owned(),
        source,
    })
}
