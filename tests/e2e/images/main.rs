//! The image store's commands, without a machine.

mod import;
mod names;
mod races;

use std::path::PathBuf;

use serde_json::Value;
use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

/// An image of one small file, quick to import, and with an id of its own for each content.
fn small(content: &str) -> ImageMaker {
    ImageMaker::empty()
        .layer(Layer::new().directory("etc").file("etc/content", content))
        .config("Cmd", serde_json::json!(["/bin/true"]))
}

/// Writes the archive of a small image with a name.
fn archive(fixture: &Fixture, name: &str) -> PathBuf {
    fixture.file(
        &format!("{}.oci", name.replace(':', "-")),
        small(name).name(name).layout().archive(),
    )
}

/// Returns what `vmm images` tells a program.
fn listed(fixture: &Fixture) -> Vec<Value> {
    let done = fixture.vmm(["images", "--json"]).run();
    serde_json::from_slice(&done.succeeded().stdout).expect("images --json prints a list")
}

/// Returns the ids that `vmm images` prints in full.
fn ids(fixture: &Fixture) -> Vec<String> {
    let done = fixture.vmm(["images", "--quiet", "--no-trunc"]).run();
    done.succeeded()
        .stdout_text()
        .lines()
        .map(str::to_owned)
        .collect()
}
