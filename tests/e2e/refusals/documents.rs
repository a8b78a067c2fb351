//! Indexes, manifests and configurations that lie.

use serde_json::{Value, json};
use tests::image_maker::{
    CONFIG, INDEX, ImageMaker, Layer, Layout, MANIFEST, digest, index, with_platform,
};

use super::{good, refused};

#[test]
fn a_layer_with_another_digest_is_named() {
    let layout = good().layout();
    let key = layout.layer_key(0);
    refused(
        &layout
            .with_layer_content(0, |content| content[700] ^= 1)
            .archive(),
        &[&key[..12], "digest"],
    );
}

#[test]
fn a_layer_with_another_size_is_named() {
    let layout = good().layout();
    let key = layout.layer_key(0);
    let spoiled = layout.with_manifest(|manifest| manifest["layers"][0]["size"] = json!(12_345));
    refused(&spoiled.archive(), &[&key[..12], "12345"]);
}

#[test]
fn a_layer_with_another_diff_id_is_named() {
    let wrong = digest(b"something else");
    let spoiled = good()
        .layout()
        .with_configuration(|configuration| configuration["rootfs"]["diff_ids"][0] = json!(wrong));
    refused(&spoiled.archive(), &[&wrong["sha256:".len()..][..12]]);
}

#[test]
fn a_manifest_with_another_digest_is_named() {
    let mut layout = good().layout();
    let key = layout.manifest_key();
    layout.blobs.get_mut(&key).unwrap().push(b' ');
    refused(&layout.archive(), &[&key[..12]]);
}

#[test]
fn a_configuration_with_another_digest_is_named() {
    let mut layout = good().layout();
    let key = layout.image_id();
    let content = layout.blobs.get_mut(&key).unwrap();
    let last = content.len() - 1;
    content[last] = b' ';
    refused(&layout.archive(), &[&key[..12]]);
}

#[test]
fn more_diff_ids_than_layers_are_refused() {
    let spoiled = good().layout().with_configuration(|configuration| {
        configuration["rootfs"]["diff_ids"]
            .as_array_mut()
            .unwrap()
            .push(json!(digest(b"more")));
    });
    refused(&spoiled.archive(), &["spoiled.oci"]);
}

#[test]
fn a_missing_layer_is_named() {
    let layout = good().layout();
    let key = layout.layer_key(0);
    refused(&layout.without_layer_content(0).archive(), &[&key[..12]]);
}

#[test]
fn a_missing_configuration_is_named() {
    let mut layout = good().layout();
    let key = layout.image_id();
    layout.blobs.remove(&key);
    refused(&layout.archive(), &[&key[..12]]);
}

#[test]
fn a_missing_manifest_is_named() {
    let mut layout = good().layout();
    let key = layout.manifest_key();
    layout.blobs.remove(&key);
    refused(&layout.archive(), &[&key[..12]]);
}

#[test]
fn an_unknown_layer_media_type_is_named() {
    let layer = Layer::new()
        .file("x", "x")
        .declared_as("application/vnd.example.layer");
    refused(
        &ImageMaker::empty().layer(layer).layout().archive(),
        &["application/vnd.example.layer"],
    );
}

#[test]
fn an_encrypted_layer_is_named_by_its_media_type() {
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    let layer = Layer::new().file("x", "x").declared_as(media_type);
    refused(
        &ImageMaker::empty().layer(layer).layout().archive(),
        &[media_type],
    );
}

#[test]
fn an_unknown_manifest_media_type_is_named() {
    let spoiled = good()
        .layout()
        .with_index(|index| index["manifests"][0]["mediaType"] = json!("text/x-recipe"));
    refused(&spoiled.archive(), &["text/x-recipe"]);
}

#[test]
fn an_artifact_that_is_no_image_is_refused() {
    let spoiled = good().layout().with_manifest(|manifest| {
        manifest["config"]["mediaType"] = json!("application/vnd.example.chart");
    });
    refused(&spoiled.archive(), &["application/vnd.example.chart"]);
}

#[test]
fn an_unknown_digest_algorithm_is_named() {
    let spoiled = good()
        .layout()
        .with_manifest(|manifest| manifest["layers"][0]["digest"] = json!("md5:0123"));
    refused(&spoiled.archive(), &["md5:0123"]);
}

#[test]
fn a_digest_that_is_a_path_is_refused() {
    let path = "sha256:../../../../../../etc/passwd";
    let spoiled = good()
        .layout()
        .with_manifest(|manifest| manifest["layers"][0]["digest"] = json!(path));
    refused(&spoiled.archive(), &["../etc/passwd"]);
}

#[test]
fn a_foreign_architecture_is_named() {
    refused(
        &good().platform("linux", "arm64").layout().archive(),
        &["arm64"],
    );
}

#[test]
fn a_foreign_operating_system_is_named() {
    refused(
        &good().platform("windows", "amd64").layout().archive(),
        &["windows"],
    );
}

#[test]
fn an_index_of_foreign_platforms_only_names_them() {
    let layout = good().platform("linux", "s390x").layout();
    let placed = with_platform(&layout.index["manifests"][0], "linux", "s390x");
    refused(
        &layout
            .with_index(|document| *document = index(&[placed]))
            .archive(),
        &["s390x"],
    );
}

#[test]
fn an_index_without_entries_is_refused() {
    refused(&Layout::empty().archive(), &["spoiled.oci"]);
}

#[test]
fn an_index_that_names_itself_is_refused() {
    // No document can hold its own digest: a cycle can only be claimed, and the claim is found false.
    let mut layout = good().layout();
    let itself = index(&[json!({ "mediaType": INDEX, "digest": digest(b"cycle"), "size": 300 })]);
    let content = serde_json::to_vec(&itself).unwrap();
    layout
        .blobs
        .insert(tests::snapshot::sha256(b"cycle"), content.clone());
    layout.index =
        index(&[json!({ "mediaType": INDEX, "digest": digest(b"cycle"), "size": content.len() })]);
    refused(
        &layout.archive(),
        &[&tests::snapshot::sha256(b"cycle")[..12]],
    );
}

#[test]
fn indexes_a_thousand_deep_are_refused() {
    let mut layout = good().layout();
    let bottom = layout.index["manifests"][0].clone();
    let top = (0..1000).fold(bottom, |inner, _| layout.add_json(INDEX, &index(&[inner])));
    layout.index = index(&[top]);
    refused(&layout.archive(), &["index"]);
}

#[test]
fn json_nested_a_hundred_thousand_deep_is_refused() {
    let mut layout = good().layout();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let descriptor = layout.add(MANIFEST, deep.as_bytes());
    layout.index = index(&[descriptor]);
    refused(&layout.archive(), &["spoiled.oci"]);
}

#[test]
fn a_manifest_of_ten_megabytes_is_refused() {
    let spoiled = good().layout().with_manifest(|manifest| {
        manifest["annotations"] = json!({ "padding": "x".repeat(10 << 20) });
    });
    let key = spoiled.manifest_key();
    refused(&spoiled.archive(), &[&key[..12]]);
}

#[test]
fn a_manifest_that_claims_to_be_enormous_is_refused() {
    let spoiled = good()
        .layout()
        .with_index(|index| index["manifests"][0]["size"] = json!(u64::MAX));
    refused(&spoiled.archive(), &["spoiled.oci"]);
}

#[test]
fn a_manifest_of_negative_size_is_refused() {
    let spoiled = good()
        .layout()
        .with_index(|index| index["manifests"][0]["size"] = json!(-1));
    refused(&spoiled.archive(), &["spoiled.oci"]);
}

#[test]
fn a_manifest_that_is_no_json_is_refused() {
    let mut layout = good().layout();
    let descriptor = layout.add(MANIFEST, b"{ \"schemaVersion\": 2, ");
    layout.index = index(std::slice::from_ref(&descriptor));
    let digest = descriptor["digest"].as_str().unwrap();
    refused(&layout.archive(), &[&digest["sha256:".len()..][..12]]);
}

#[test]
fn a_configuration_that_is_no_json_is_refused() {
    let mut layout = good().layout();
    let config = layout.add(CONFIG, b"no json");
    let spoiled = layout.with_manifest(|manifest| manifest["config"] = config);
    refused(&spoiled.archive(), &["spoiled.oci"]);
}

#[test]
fn a_layout_of_another_version_is_named() {
    let mut layout = good().layout();
    layout.marker = json!({ "imageLayoutVersion": "7.0.0" });
    refused(&layout.archive(), &["7.0.0"]);
}

#[test]
fn a_docker_manifest_with_a_layer_outside_the_archive_is_refused() {
    let mut archive = tests::image_maker::TarWriter::default();
    let configuration = serde_json::to_vec(&good().configuration()).unwrap();
    archive.plain_file("config.json", &configuration);
    let manifest = json!([{ "Config": "config.json", "RepoTags": Value::Null, "Layers": ["../../etc/passwd"] }]);
    archive.plain_file("manifest.json", manifest.to_string().as_bytes());
    refused(&archive.finish(), &["../../etc/passwd"]);
}

#[test]
fn a_docker_layer_that_links_out_of_the_archive_is_refused() {
    let mut archive = tests::image_maker::TarWriter::default();
    let configuration = serde_json::to_vec(&good().configuration()).unwrap();
    archive.plain_file("config.json", &configuration);
    archive.plain_symlink("a/layer.tar", "../../../../etc/passwd");
    let manifest =
        json!([{ "Config": "config.json", "RepoTags": Value::Null, "Layers": ["a/layer.tar"] }]);
    archive.plain_file("manifest.json", manifest.to_string().as_bytes());
    refused(&archive.finish(), &["a/layer.tar"]);
}

#[test]
fn two_images_in_one_archive_need_a_choice() {
    let mut layout = good().layout();
    let second = ImageMaker::empty()
        .layer(Layer::new().file("second", "x"))
        .add_to(&mut layout);
    let second = layout.add_json(MANIFEST, &second);
    let first = layout.index["manifests"][0].clone();
    layout.index = index(&[first, tests::image_maker::with_name(&second, "second:1")]);
    let fixture = super::with_something_in_the_store();
    let file = fixture.file("two.oci", layout.archive());
    fixture
        .run(&file, &[], &[])
        .run()
        .refused(&["two.oci"])
        .helped();
}
