//! Imports that race, are killed, or run out of disk.

use rustix::process::Signal;
use tests::Fixture;
use tests::image_maker::{Compression, ImageMaker, Layer};

use super::ids;

fn megabytes(count: u32) -> Vec<u8> {
    (0..count << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

fn sizeable() -> ImageMaker {
    ImageMaker::empty()
        .layer(
            Layer::new()
                .file("data", megabytes(16))
                .compressed(Compression::Gzip),
        )
        .layer(Layer::new().file("more", megabytes(4)))
        .name("sizeable:1")
}

#[test]
fn ten_imports_of_one_image_at_once_make_one_image() {
    let fixture = Fixture::new();
    let file = fixture.file("image", sizeable().layout().archive());
    let alone = Fixture::new();
    alone.load(&file).run().succeeded();

    let racing: Vec<_> = (0..10).map(|_| fixture.load(&file).start()).collect();
    for running in racing {
        running.finish().succeeded();
    }
    assert_eq!(ids(&fixture), ids(&alone));
    let (raced, quiet) = (lines_with_content(&fixture), lines_with_content(&alone));
    assert_eq!(
        raced, quiet,
        "a race leaves nothing that one import does not"
    );
}

#[test]
fn a_killed_import_leaves_nothing_that_counts_and_the_next_cleans_up() {
    let fixture = Fixture::new();
    let archive = sizeable().layout().archive();
    let file = fixture.file("image", &archive);
    let alone = Fixture::new();
    alone.load(&file).run().succeeded();

    for share in 1..=8 {
        // An import from a pipe that stands still somewhere in the middle can be killed exactly there.
        let mut running = fixture.vmm(["load"]).open_input().start();
        running.write(&archive[..archive.len() / 9 * share]);
        running.signal(Signal::KILL);
        assert_eq!(running.finish().signal(), Some(Signal::KILL.as_raw()));
        assert!(
            ids(&fixture).is_empty(),
            "nothing half-written is taken for whole"
        );
    }
    fixture.load(&file).run().succeeded();
    assert_eq!(ids(&fixture), ids(&alone));
    assert_eq!(lines_with_content(&fixture), lines_with_content(&alone));
}

#[test]
fn a_full_disk_is_told_and_leaves_the_store_as_it_was() {
    let fixture = Fixture::new();
    let small = fixture.file(
        "small",
        super::small("fits").name("small:1").layout().archive(),
    );
    let large = fixture.file("large", sizeable().layout().archive());
    let script = r#"
        mount -t tmpfs -o size=6m none "$VMM_ROOT"
        "$VMM_BINARY" load -i "$1" >/dev/null
        listing() { (cd "$VMM_ROOT/store" && find . -type f -exec sha256sum {} + | sort && find . | sort); }
        listing >"$3.before"
        code=0
        "$VMM_BINARY" load -i "$2" || code=$?
        listing >"$3.after"
        cmp "$3.before" "$3.after" >&2 || diff "$3.before" "$3.after" >&2 || code=1
        "$VMM_BINARY" load -i "$1" >/dev/null || code=2
        exit $code"#;
    let listing = fixture.path("listing");
    let done = fixture
        .in_private_mounts(script)
        .arg("sh")
        .arg(&small)
        .arg(&large)
        .arg(&listing)
        .run();
    done.failed(&["No space left"]);
}

#[test]
fn removing_and_importing_at_once_never_breaks_an_import() {
    let fixture = Fixture::new();
    let file = fixture.file("image", sizeable().layout().archive());
    fixture.load(&file).run().succeeded();
    for _ in 0..5 {
        let import = fixture.load(&file).start();
        let removal = fixture.vmm(["rmi", "sizeable:1"]).start();
        let prune = fixture.vmm(["prune", "--all", "--force"]).start();
        import.finish().succeeded();
        // The name may be gone or not yet there: only a crash would be wrong.
        removal.finish().stderr_lacks("panicked");
        prune.finish().succeeded();
    }
    fixture.load(&file).run().succeeded();
    let saved = fixture.vmm(["save", "sizeable:1"]).run();
    assert!(saved.succeeded().stdout.len() > 8 << 20);
}

/// The store's listing without directories, which may be made for a moment and stay.
fn lines_with_content(fixture: &Fixture) -> Vec<String> {
    fixture
        .store_listing()
        .lines()
        .filter(|line| !line.ends_with(' '))
        // Whether a file is remembered depends on how long it lay still before it was read.
        .filter(|line| !line.starts_with("sources/"))
        .map(str::to_owned)
        .collect()
}
