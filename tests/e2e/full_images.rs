//! Slow cases: large images, and images of many files. Only in the full profile.

use std::path::PathBuf;

use tests::image_maker::{Compression, ImageMaker, Kind, Layer};
use tests::process::LARGE_IMPORT_LIMIT;
use tests::snapshot::sha256;
use tests::{Fixture, cache};

/// Bytes that do not compress: a linear congruential generator's upper bytes.
fn noise(seed: u64, length_bytes: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        // Multiplier and increment: Knuth, MMIX.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(length_bytes)
    .collect()
}

/// The recipe's version: another one makes the cached archives anew.
const RECIPE: &[u8] = b"1";

fn three_hundred_megabytes() -> PathBuf {
    cache::file("large.oci", &[RECIPE], |output| {
        let layer = (0..6_u32).fold(Layer::new().directory("data"), |layer, number| {
            layer.file(format!("data/{number}"), noise(u64::from(number), 50 << 20))
        });
        let maker = ImageMaker::busybox().layer(layer).name("large:1");
        std::fs::write(output, maker.layout().archive()).expect("an archive can be written");
    })
}

fn twenty_thousand_files() -> PathBuf {
    cache::file("many.oci", &[RECIPE], |output| {
        let layer = (0..20_000_u32).fold(Layer::new().directory("many"), |layer, number| {
            let directory = number / 200;
            let layer = if number % 200 == 0 {
                layer.directory(format!("many/{directory:03}"))
            } else {
                layer
            };
            layer.file(
                format!("many/{directory:03}/{number:05}"),
                format!("file {number}\n"),
            )
        });
        let maker = ImageMaker::busybox()
            .layer(layer.compressed(Compression::Gzip))
            .name("many:1");
        std::fs::write(output, maker.layout().archive()).expect("an archive can be written");
    })
}

#[test]
fn an_image_of_three_hundred_megabytes_runs() {
    let fixture = Fixture::with_machines();
    let image = three_hundred_megabytes();
    let done = fixture
        .run(
            &image,
            &[],
            &["sh", "-c", "sha256sum < /data/5; ls /data | wc -l"],
        )
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    done.code_is(0)
        .stdout_is(&format!("{}  -\n6\n", sha256(&noise(5, 50 << 20))))
        .stderr_is("");
}

#[test]
fn an_image_of_twenty_thousand_files_runs() {
    let fixture = Fixture::with_machines();
    let image = twenty_thousand_files();
    let script = "cat /many/099/19999 /many/000/00000; ls /many | wc -l; ls /many/050 | wc -l";
    let done = fixture
        .run(&image, &[], &["sh", "-c", script])
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    done.code_is(0)
        .stdout_is("file 19999\nfile 0\n100\n200\n")
        .stderr_is("");
}

#[test]
fn imports_of_every_length_of_a_cut_archive_are_refused() {
    let fixture = Fixture::new();
    let layer = Layer::new().file("data", noise(1, 9000));
    let archive = ImageMaker::empty()
        .layer(layer)
        .layout()
        .archive_blobs_first();
    for cut in (512..archive.len() - 1536).step_by(512) {
        let file = fixture.file("cut.oci", &archive[..cut]);
        fixture.load(&file).run().failed(&["cut.oci"]);
    }
}

#[test]
fn an_image_above_every_window_class_runs_from_a_disk() {
    let fixture = Fixture::with_machines();
    let giant = Kind::PaxSparse {
        size_bytes: 10 << 30,
        data: b"start".repeat(1000),
    };
    let maker = ImageMaker::busybox().layer(
        Layer::new()
            .entry("giant", 0o644, giant)
            .file("after", "after\n"),
    );
    let image = fixture.file("giant.oci", maker.layout().archive());
    let script = "stat -c %s /giant; head -c 5 /giant; tail -c 3 /giant | od -An -tx1; cat /after";
    let done = fixture
        .run(&image, &[], &["sh", "-c", script])
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    done.code_is(0)
        .stdout_is("10737418240\nstart 00 00 00\nafter\n")
        .stderr_is("");
}
