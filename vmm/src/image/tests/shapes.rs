//! Every form in which an image arrives.

use serde_json::json;

use super::maker::{INDEX, Image, Tar, gzip, zstd};
use super::{Fixture, message, walk};
use crate::image::{Digest, ImageSource, ImportOptions, Silent};

fn hello() -> Tar {
    Tar::new().directory("etc").file("etc/hello", "hello")
}

fn hello_of(image: &crate::image::StoredImage) -> Vec<u8> {
    walk(image)[&b"/etc/hello"[..]].contents.clone()
}

#[test]
fn an_archive_with_a_plain_layer() {
    let fixture = Fixture::new();
    let image = fixture.import(Image::of(hello()).archive()).unwrap();
    assert_eq!(hello_of(&image), b"hello");
}

#[test]
fn an_archive_with_a_gzip_layer() {
    let fixture = Fixture::new();
    let image = fixture
        .import(Image::new().compressed(hello(), "+gzip", gzip).archive())
        .unwrap();
    assert_eq!(hello_of(&image), b"hello");
}

#[test]
fn an_archive_with_a_zstd_layer() {
    let fixture = Fixture::new();
    let image = fixture
        .import(Image::new().compressed(hello(), "+zstd", zstd).archive())
        .unwrap();
    assert_eq!(hello_of(&image), b"hello");
}

#[test]
fn a_layer_of_several_gzip_members_and_zstd_frames() {
    let fixture = Fixture::new();
    let halves = |compress: fn(&[u8]) -> Vec<u8>, bytes: &[u8]| {
        let (first, second) = bytes.split_at(700);
        [compress(first), compress(second)].concat()
    };
    let bytes = hello().finish();
    let diff_id = Digest::of(&bytes);
    let mut image = Image::new();
    image.layers.push((
        halves(gzip, &bytes),
        format!("{}+gzip", super::maker::LAYER),
        diff_id,
    ));
    assert_eq!(
        hello_of(&fixture.import(image.archive()).unwrap()),
        b"hello"
    );
    let other = Fixture::new();
    image.layers[0].0 = halves(zstd, &bytes);
    assert_eq!(hello_of(&other.import(image.archive()).unwrap()), b"hello");
}

#[test]
fn a_compressed_archive() {
    let fixture = Fixture::new();
    let path = fixture.file("image", &gzip(&Image::of(hello()).archive()));
    assert_eq!(hello_of(&fixture.import_path(&path).unwrap()), b"hello");
    let path = fixture.file("other", &zstd(&Image::of(hello()).archive()));
    assert_eq!(hello_of(&fixture.import_path(&path).unwrap()), b"hello");
}

#[test]
fn a_layout_directory() {
    let fixture = Fixture::new();
    let directory = fixture.directory.path().join("layout");
    Image::of(hello()).layout().write_to(&directory);
    assert_eq!(
        hello_of(&fixture.import_path(&directory).unwrap()),
        b"hello"
    );
}

#[test]
fn an_old_docker_archive_whose_layers_are_symbolic_links() {
    let fixture = Fixture::new();
    let image = Image::of(hello());
    let (layer, config) = (&image.layers[0].0, image.config_bytes());
    let id = Digest::of(&config);
    let manifest = json!([{
        "Config": format!("{}.json", id.hex()),
        "RepoTags": ["example.com/app:v1"],
        "Layers": ["abc/layer.tar"],
    }]);
    let archive = Tar::new()
        .file("0123.tar", layer)
        .directory("abc/")
        .symlink("abc/layer.tar", "../0123.tar")
        .file(format!("{}.json", id.hex()), config)
        .file("manifest.json", manifest.to_string())
        .finish();
    let stored = fixture.import(archive).unwrap();
    assert_eq!(stored.id, id);
    assert_eq!(hello_of(&stored), b"hello");
    assert_eq!(fixture.store.find("example.com/app:v1").unwrap().id, id);
}

#[test]
fn members_may_have_a_dot_before_their_names() {
    let fixture = Fixture::new();
    let layout = Image::of(hello()).layout();
    let archive = layout
        .files
        .iter()
        .rev()
        .fold(Tar::new(), |tar, (name, bytes)| {
            tar.file(format!("./{name}"), bytes)
        });
    assert_eq!(
        hello_of(&fixture.import(archive.finish()).unwrap()),
        b"hello"
    );
}

#[test]
fn nested_indexes_give_the_platform_of_the_host() {
    let fixture = Fixture::new();
    let mut layout = super::maker::Layout::default();
    let mut foreign = Image {
        architecture: "arm64",
        ..Image::of(Tar::new().file("foreign", ""))
    }
    .add_to(&mut layout);
    foreign["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut own = Image::of(hello()).add_to(&mut layout);
    own["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = Image::of(Tar::new().file("attestation", "")).add_to(&mut layout);
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let nested = json!({"schemaVersion": 2, "manifests": [foreign, own, attestation]});
    let nested = layout.blob(INDEX, nested.to_string().into_bytes());
    layout.index(&[nested]);
    assert_eq!(
        hello_of(&fixture.import(layout.archive()).unwrap()),
        b"hello"
    );
}

#[test]
fn an_image_for_every_machine_goes_before_one_for_some() {
    let fixture = Fixture::new();
    let mut layout = super::maker::Layout::default();
    let mut newer = Image::of(Tar::new().file("newer", "")).add_to(&mut layout);
    newer["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
    let mut every = Image::of(hello()).add_to(&mut layout);
    every["platform"] = json!({"os": "linux", "architecture": "amd64"});
    layout.index(&[newer, every]);
    assert_eq!(
        hello_of(&fixture.import(layout.archive()).unwrap()),
        b"hello"
    );
}

#[test]
fn several_images_need_a_choice() {
    let fixture = Fixture::new();
    let mut layout = super::maker::Layout::default();
    let one = Image::of(Tar::new().file("one", ""))
        .named("one")
        .add_to(&mut layout);
    let two = Image::of(hello()).named("two:v2").add_to(&mut layout);
    layout.index(&[one, two]);
    let refusal = fixture.refusal(layout.archive());
    assert!(refusal.contains("one, two:v2"), "{refusal}");
    let options = ImportOptions {
        select: Some("two:v2".to_owned()),
        ..ImportOptions::default()
    };
    assert_eq!(
        hello_of(&fixture.import_with(layout.archive(), &options).unwrap()),
        b"hello"
    );
}

#[test]
fn a_given_name_stands_in_place_of_the_archives_own() {
    let fixture = Fixture::new();
    let options = ImportOptions {
        name: Some("mine:1".parse().unwrap()),
        ..ImportOptions::default()
    };
    let image = fixture
        .import_with(Image::of(hello()).named("app").archive(), &options)
        .unwrap();
    assert!(fixture.store.find("app").is_err());
    assert_eq!(
        fixture.store.find("docker.io/library/mine:1").unwrap().id,
        image.id
    );
    assert_eq!(fixture.store.find(&image.id.short()).unwrap().id, image.id);
    assert_eq!(
        fixture.store.find(&image.id.to_string()).unwrap().id,
        image.id
    );
}

#[test]
fn an_unknown_name_is_not_found() {
    let fixture = Fixture::new();
    let error = fixture.store.find("nothing").unwrap_err();
    assert_eq!(message(&error), "there is no image `nothing` in the store");
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    let fixture = Fixture::new();
    let image = fixture.import(Image::new().archive()).unwrap();
    let files = walk(&image);
    assert_eq!(files.len(), 1);
    assert_eq!(
        (files[&b"/"[..]].mode, files[&b"/"[..]].links),
        (0o040_755, 2)
    );
}

#[test]
fn a_stream_is_read_once_from_its_start() {
    let fixture = Fixture::new();
    let path = fixture.file("image.oci", &Image::of(hello()).archive());
    let input = Box::new(std::fs::File::open(path).unwrap());
    let source = ImageSource::Stream {
        name: "standard input".to_owned(),
        input,
    };
    let image = fixture
        .store
        .import(source, &ImportOptions::default(), &Silent)
        .unwrap();
    assert_eq!(hello_of(&image), b"hello");
}

#[test]
fn a_configuration_as_docker_writes_it_is_taken() {
    let fixture = Fixture::new();
    let mut layout = super::maker::Layout::default();
    let layer = hello().finish();
    let diff_id = Digest::of(&layer);
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05.678901234Z",
        "container": "0123", "docker_version": "20.10.23", "author": "",
        "config": {
            "Hostname": "", "Domainname": "", "User": "", "AttachStdin": false, "Tty": false,
            "Env": ["PATH=/usr/bin"], "Cmd": ["sh"], "Image": "sha256:00", "Volumes": null,
            "WorkingDir": "", "Entrypoint": null, "OnBuild": null, "Labels": null, "ExposedPorts": null,
            "ArgsEscaped": true, "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000},
        },
        "container_config": {"Env": null},
        "history": [
            {"created": "2024-01-02T03:04:05Z", "created_by": "/bin/sh -c #(nop) ADD file:0 in / "},
            {"created": "2024-01-02T03:04:05Z", "created_by": "CMD [\"sh\"]", "empty_layer": true},
        ],
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    let config = layout.blob(
        "application/vnd.docker.container.image.v1+json",
        config.to_string().into_bytes(),
    );
    let layer = layout.blob(
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        gzip(&layer),
    );
    let kind = "application/vnd.docker.distribution.manifest.v2+json";
    let manifest =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = layout.blob(kind, manifest.to_string().into_bytes());
    layout.index(&[manifest]);
    let image = fixture.import(layout.archive()).unwrap();
    assert_eq!(
        image.config.config().as_ref().unwrap().cmd().as_deref(),
        Some(&["sh".to_owned()][..])
    );
    let history = fixture.store.history(&image.id.to_string()).unwrap();
    assert_eq!(
        (history[0].layer_bytes, history[1].layer_bytes.is_some()),
        (None, true)
    );
    assert_eq!(
        fixture.store.images().unwrap()[0].created.as_deref(),
        Some("2024-01-02T03:04:05.678901234Z")
    );
}
