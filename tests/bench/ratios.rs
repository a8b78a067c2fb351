//! `make bench`: what an import and a run cost, as ratios taken within one run of this program.
//!
//! It prints tables and judges nothing: a figure of a shared machine is no test. Each time is the least of a few
//! repeats. `--rounds N` sets how many.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use tests::host::bytes_read_so_far;
use tests::image_maker::{Compression, ImageMaker, Layer};
use tests::process::LARGE_IMPORT_LIMIT;
use tests::{Fixture, Invocation};

fn main() {
    let rounds = rounds();
    let mut report = String::from(
        "Times in milliseconds, the least of the rounds; ratios are of the same run.\n",
    );
    imports(&mut report, rounds);
    runs(&mut report, rounds);
    io::stdout()
        .write_all(report.as_bytes())
        .expect("standard output takes the report");
}

fn rounds() -> u32 {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|argument| argument == "--rounds");
    given
        .and_then(|at| arguments.get(at + 1)?.parse().ok())
        .unwrap_or(3)
}

/// Import of a layer of 100 MB against `tar -x` of the same file, for each compression.
fn imports(report: &mut String, rounds: u32) {
    let layer = hundred_megabytes();
    report.push_str(
        "\nimport of a layer of 100 MB          import   tar -x    ratio   peak memory\n",
    );
    for (name, compression, flag) in [
        ("uncompressed", Compression::None, "--no-auto-compress"),
        ("gzip", Compression::Gzip, "--gzip"),
        ("zstd", Compression::Zstd, "--zstd"),
    ] {
        let layer = layer.clone().compressed(compression);
        let scratch = Fixture::new();
        let tar = scratch.file("layer", layer.blob());
        let image = scratch.file(
            "image.oci",
            ImageMaker::empty()
                .layer(layer)
                .name("bench:1")
                .layout()
                .archive(),
        );
        let imported = least(rounds, || {
            let fixture = Fixture::new();
            fixture
                .load(&image)
                .limit(LARGE_IMPORT_LIMIT)
                .run()
                .succeeded()
                .took
        });
        let unpacked = least(rounds, || unpack(&tar, flag));
        let peak = peak_memory(&image);
        writeln!(
            report,
            "  {name:<32} {:>8} {:>8} {:>8.2}   {peak}",
            imported.as_millis(),
            unpacked.as_millis(),
            imported.as_secs_f64() / unpacked.as_secs_f64(),
        )
        .expect("a string takes everything");
    }
}

fn unpack(tar: &Path, flag: &str) -> Duration {
    let fixture = Fixture::new();
    let into = fixture.path("tree");
    fs::create_dir(&into).expect("a directory can be made");
    let flags: &[&str] = if flag == "--no-auto-compress" {
        &[]
    } else {
        &[flag]
    };
    let done = Invocation::new("tar")
        .args(flags)
        .arg("-xf")
        .arg(tar)
        .arg("-C")
        .arg(&into)
        .limit(LARGE_IMPORT_LIMIT)
        .run();
    done.succeeded().took
}

/// Peak resident memory of one import as GNU time (Debian package time) sees it.
fn peak_memory(image: &Path) -> String {
    let fixture = Fixture::new();
    let output = fixture.path("peak");
    let script = "command -v time >/dev/null || exit 9; exec time -f %M -o \"$1\" \"$VMM_BINARY\" load -i \"$2\"";
    let run = fixture
        .in_private_mounts(script)
        .arg("sh")
        .arg(&output)
        .arg(image);
    if run.limit(LARGE_IMPORT_LIMIT).run().code() != Some(0) {
        return "unknown: GNU time is not installed".into();
    }
    let measured = fs::read_to_string(output).expect("time wrote its figure");
    let kibibytes: u64 = measured.trim().parse().expect("time wrote a number");
    format!("{} MiB", kibibytes / 1024)
}

/// `vmm run` of hello: first run, second run, the bytes that each reads, and where the time goes.
fn runs(report: &mut String, rounds: u32) {
    let fixture = Fixture::with_machines();
    let ballast = Layer::new().file("ballast", vec![5; 64 << 20]);
    let image = fixture.file(
        "hello.oci",
        ImageMaker::busybox().layer(ballast).layout().archive(),
    );
    let size = fs::metadata(&image).expect("the image is there").len();
    writeln!(
        report,
        "\n`vmm run` of hello, an image of {} MB   time   bytes read",
        size / 1_000_000
    )
    .expect("a string takes everything");
    let mut timings = String::new();
    for number in 0..=rounds {
        let before = bytes_read_so_far();
        let done = fixture.run(&image, &["--timings"], &[]).run();
        let read = bytes_read_so_far() - before;
        timings = done.code_is(0).stderr_text();
        let name = if number == 0 {
            "first, with the import"
        } else {
            "again"
        };
        writeln!(
            report,
            "  {name:<36} {:>6} {read:>12}",
            done.took.as_millis()
        )
        .expect("a string takes everything");
    }
    write!(report, "\nthe last run, step by step\n{timings}").expect("a string takes everything");
}

fn least(rounds: u32, mut measure: impl FnMut() -> Duration) -> Duration {
    (0..rounds.max(1))
        .map(|_| measure())
        .min()
        .unwrap_or_default()
}

/// A layer like a distribution's: two thousand files of text-like bytes, small and large.
fn hundred_megabytes() -> Layer {
    let mut state = 1_u64;
    (0..2000_u32).fold(Layer::new().directory("data"), |layer, number| {
        let length = if number % 20 == 0 {
            640 << 10
        } else {
            20 << 10
        };
        let content: Vec<u8> = std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Five random bits a byte: compresses about as well as programs do.
            state.to_be_bytes()[0] & 0x1f | 0x40
        })
        .take(length)
        .collect();
        layer.file(format!("data/{number}"), content)
    })
}
