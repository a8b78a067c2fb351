//! What an image's layers look like from inside.

use tests::image_maker::{Compression, ImageMaker, Kind, Layer};
use tests::{Fixture, real_images};

#[test]
fn layers_of_all_compressions_show_as_one_tree() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::empty()
        .layer(Layer::busybox().compressed(Compression::Gzip))
        .layer(
            Layer::new()
                .directory("data")
                .file("data/kept", "kept")
                .file("data/gone", "gone")
                .directory("data/emptied")
                .file("data/emptied/old", "old")
                .file("data/becomes-directory", "file")
                .compressed(Compression::Zstd),
        )
        .layer(
            Layer::new()
                .whiteout("data", "gone")
                .directory("data/emptied")
                .opaque("data/emptied")
                .file("data/emptied/new", "new")
                .directory("data/becomes-directory")
                .file("data/becomes-directory/inside", "inside")
                .hard_link("data/hard", "data/kept")
                .symlink("data/soft", "kept")
                .entry("data/pipe", 0o620, Kind::Fifo)
                .file("data/special", "")
                .with_mode(0o6751)
                .with_owner(1000, 50)
                .with_time(1_000_000_000),
        );
    let image = fixture.file("layers.oci", maker.layout().archive());
    let script = "
        cd /data; ls; ls emptied becomes-directory; cat hard soft; echo
        stat -c '%n %a %u:%g %h %Y' special; stat -c '%n %F %a' pipe; stat -c '%n %h' hard";
    let done = fixture
        .run(&image, &["--env", "PATH=/bin"], &["/bin/sh", "-c", script])
        .run();
    let expected = "becomes-directory\nemptied\nhard\nkept\npipe\nsoft\nspecial\n\
                    becomes-directory:\ninside\n\nemptied:\nnew\nkeptkept\n\
                    special 6751 1000:50 1 1000000000\npipe fifo 620\nhard 2\n";
    done.code_is(0).stdout_is(expected).stderr_is("");
}

#[test]
fn an_image_of_nine_layers_made_by_a_builder_runs() {
    let fixture = Fixture::with_machines();
    let image = real_images::layered();
    let script = "cd /; cat /data/one /data/three /deep/hard /deep/a/other; ls /data /deep /deep/a; stat -c '%a %u:%g' /data/three /data/one";
    let done = fixture.run(&image, &[], &["sh", "-c", script]).run();
    let expected = "one\nchanged\nagain\none\nnew\n\
                    /data:\nlink\none\nthree\n\n/deep:\na\nhard\n\n/deep/a:\nother\n4755 0:0\n644 1000:50\n";
    done.code_is(0).stdout_is(expected).stderr_is("");
}

#[test]
fn the_old_form_of_docker_save_runs() {
    let fixture = Fixture::with_machines();
    let image = fixture.file(
        "docker.tar",
        ImageMaker::busybox().name("demo:old").old_docker_archive(),
    );
    fixture
        .run(&image, &[], &[])
        .run()
        .code_is(0)
        .stdout_is("hello\n")
        .stderr_is("");
}

#[test]
fn contents_of_many_sizes_are_read_as_they_were_written() {
    let fixture = Fixture::with_machines();
    let sizes = [
        0, 1, 511, 512, 4095, 4096, 4097, 65_536, 2_097_151, 2_097_152, 2_097_153,
    ];
    let content = |size: usize| -> Vec<u8> {
        (0..size)
            .map(|index| (index % 253).to_le_bytes()[0])
            .collect()
    };
    let layer = sizes
        .iter()
        .fold(Layer::new().directory("sizes"), |layer, size| {
            layer.file(format!("sizes/{size}"), content(*size))
        });
    let image = fixture.file(
        "sizes.oci",
        ImageMaker::busybox().layer(layer).layout().archive(),
    );
    let done = fixture
        .run(&image, &[], &["sh", "-c", "cd /sizes && sha256sum *"])
        .run();
    let mut expected: Vec<String> = sizes
        .iter()
        .map(|size| format!("{}  {size}", tests::snapshot::sha256(&content(*size))))
        .collect();
    let text = done.code_is(0).stdout_text();
    let mut seen: Vec<String> = text.lines().map(str::to_owned).collect();
    expected.sort();
    seen.sort();
    assert_eq!(seen, expected);
}

#[test]
fn what_overlayfs_would_interpret_is_not_believed() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox()
        .layer(
            Layer::new()
                .directory("dir")
                .file("dir/kept", "kept")
                .file("dir/replaced", "lower"),
        )
        .layer(
            Layer::new()
                .directory("dir")
                .with_xattr("trusted.overlay.opaque", "y")
                .file("dir/other", "other")
                .with_xattr("trusted.overlay.redirect", "/etc/passwd")
                .with_xattr("user.overlay.opaque", "y"),
        );
    let image = fixture.file("smuggle.oci", maker.layout().archive());
    let done = fixture
        .run(
            &image,
            &[],
            &[
                "sh",
                "-c",
                "cat /dir/kept /dir/other; touch /dir/new; ls /dir",
            ],
        )
        .run();
    done.code_is(0)
        .stdout_is("keptotherkept\nnew\nother\nreplaced\n")
        .stderr_is("");
}

#[test]
fn a_path_through_an_absolute_symlink_lands_inside_the_image() {
    let fixture = Fixture::with_machines();
    let maker = ImageMaker::busybox()
        .layer(
            Layer::new()
                .directory("usr")
                .directory("usr/lib")
                .symlink("lib", "/usr/lib")
                .symlink("lib64", "usr/lib"),
        )
        .layer(
            Layer::new()
                .file("lib/one", "one\n")
                .file("lib64/two", "two\n"),
        );
    let image = fixture.file("usrmerge.oci", maker.layout().archive());
    let done = fixture
        .run(
            &image,
            &[],
            &[
                "sh",
                "-c",
                "cat /usr/lib/one /usr/lib/two; ls -d /lib; readlink /lib",
            ],
        )
        .run();
    done.code_is(0)
        .stdout_is("one\ntwo\n/lib\n/usr/lib\n")
        .stderr_is("");
}
