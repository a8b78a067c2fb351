//! Names, lists, and what is removed when.

use tests::Fixture;
use tests::snapshot::sha256;

use super::{archive, ids, listed, small};

#[test]
fn the_archives_own_name_is_listed() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    fixture
        .vmm(["images"])
        .run()
        .succeeded()
        .stdout_has("demo")
        .stderr_is("");
    assert_eq!(listed(&fixture).len(), 1);
    assert!(listed(&fixture)[0].to_string().contains("demo"));
}

#[test]
fn a_given_name_takes_the_place_of_the_archives_own() {
    let fixture = Fixture::new();
    fixture
        .load(&archive(&fixture, "demo:1"))
        .args(["--name", "mine:2"])
        .run()
        .succeeded();
    let text = serde_json::to_string(&listed(&fixture)).unwrap();
    assert!(text.contains("mine") && !text.contains("demo"), "{text}");
}

#[test]
fn an_empty_store_lists_nothing_and_fails_at_nothing() {
    let fixture = Fixture::new();
    assert!(listed(&fixture).is_empty());
    fixture
        .vmm(["images", "--quiet"])
        .run()
        .succeeded()
        .stdout_is("")
        .stderr_is("");
    fixture.vmm(["prune", "--force"]).run().succeeded();
    fixture.vmm(["system", "df"]).run().succeeded();
}

#[test]
fn a_tag_is_a_second_name_and_the_image_lives_until_the_last_is_gone() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    fixture.vmm(["tag", "demo:1", "copy:2"]).run().succeeded();
    fixture.vmm(["rmi", "demo:1"]).run().succeeded();
    fixture.vmm(["history", "demo:1"]).run().failed(&["demo:1"]);
    fixture.vmm(["history", "copy:2"]).run().succeeded();
    fixture.vmm(["rmi", "copy:2"]).run().succeeded();
    assert!(ids(&fixture).is_empty());
}

#[test]
fn a_name_without_a_tag_means_latest() {
    let fixture = Fixture::new();
    fixture
        .load(&archive(&fixture, "demo:latest"))
        .run()
        .succeeded();
    fixture.vmm(["tag", "demo", "other"]).run().succeeded();
    fixture.vmm(["history", "other:latest"]).run().succeeded();
}

#[test]
fn a_name_moves_to_the_image_that_gets_it_last() {
    let fixture = Fixture::new();
    let first = fixture.file("first", small("first").name("demo:1").layout().archive());
    let second = small("second").name("demo:1").layout();
    fixture.load(&first).run().succeeded();
    fixture
        .load(&fixture.file("second", second.archive()))
        .run()
        .succeeded();
    let saved = fixture.path("saved");
    fixture
        .vmm(["save", "demo:1", "-o"])
        .arg(&saved)
        .run()
        .succeeded();
    let other = Fixture::new();
    other.load(&saved).run().succeeded();
    assert_eq!(ids(&other), [format!("sha256:{}", second.image_id())]);
}

#[test]
fn an_image_is_found_by_a_unique_beginning_of_its_id() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    let id = ids(&fixture).remove(0);
    let short = &id["sha256:".len()..][..12];
    fixture.vmm(["tag", short, "by-id:1"]).run().succeeded();
    fixture.vmm(["tag", &id, "by-id:2"]).run().succeeded();
    fixture.vmm(["history", "by-id:1"]).run().succeeded();
}

#[test]
fn history_tells_what_made_each_layer() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    fixture
        .vmm(["history", "demo:1"])
        .run()
        .succeeded()
        .stdout_has("layer 1");
    let told = fixture.vmm(["history", "--json", "demo:1"]).run();
    let steps: Vec<serde_json::Value> = serde_json::from_slice(&told.succeeded().stdout).unwrap();
    assert_eq!(steps.len(), 1);
}

#[test]
fn a_saved_image_is_the_same_image_elsewhere() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    let saved = fixture.path("saved.oci");
    fixture
        .vmm(["save", "-o"])
        .arg(&saved)
        .arg("demo:1")
        .run()
        .succeeded()
        .stdout_is("");
    let piped = fixture.vmm(["save", "demo:1"]).run();
    assert_eq!(
        sha256(&piped.succeeded().stdout),
        sha256(&std::fs::read(&saved).unwrap())
    );

    let other = Fixture::new();
    other.load(&saved).run().succeeded();
    assert_eq!(ids(&other), ids(&fixture));
    assert!(listed(&other)[0].to_string().contains("demo"));
}

#[test]
fn prune_removes_what_has_no_name_and_keeps_what_has() {
    let fixture = Fixture::new();
    let named = archive(&fixture, "demo:1");
    let nameless = fixture.file("nameless", small("no name").layout().archive());
    fixture.load(&named).run().succeeded();
    let listing = fixture.store_listing();
    fixture.load(&nameless).run().succeeded();
    assert_eq!(ids(&fixture).len(), 2);
    fixture.vmm(["prune", "--force"]).run().succeeded();
    assert_eq!(ids(&fixture).len(), 1);
    fixture.load(&named).run().succeeded();
    let pruned = fixture.store_listing();
    assert!(
        pruned.len() <= listing.len() + 400,
        "before:\n{listing}\nafter:\n{pruned}"
    );
}

#[test]
fn removing_the_last_image_gives_its_space_back() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    let used = |fixture: &Fixture| tests::host::bytes_on_disk(&fixture.store());
    let before = used(&fixture);
    let random: Vec<u8> = (0..8_u32 << 20)
        .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect();
    let large = tests::image_maker::ImageMaker::empty()
        .layer(tests::image_maker::Layer::new().file("data", random))
        .name("large:1");
    fixture
        .load(&fixture.file("large", large.layout().archive()))
        .run()
        .succeeded();
    assert!(used(&fixture) > before + (8 << 20));
    fixture.vmm(["rmi", "large:1"]).run().succeeded();
    fixture.vmm(["prune", "--force"]).run().succeeded();
    assert!(
        used(&fixture) < before + (1 << 20),
        "{} bytes are left",
        used(&fixture)
    );
}

#[test]
fn an_unknown_name_is_named_by_every_command() {
    let fixture = Fixture::new();
    fixture
        .vmm(["history", "ghost:1"])
        .run()
        .failed(&["ghost:1"]);
    fixture.vmm(["rmi", "ghost:1"]).run().failed(&["ghost:1"]);
    fixture
        .vmm(["tag", "ghost:1", "x:1"])
        .run()
        .failed(&["ghost:1"]);
    fixture.vmm(["save", "ghost:1"]).run().failed(&["ghost:1"]);
    fixture
        .vmm(["run", "ghost:1"])
        .run()
        .refused(&["ghost:1"])
        .helped();
}

#[test]
fn a_name_that_cannot_be_one_is_refused() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    for name in ["UPPER", "a b", "", "x:", "../x", "x:y:z w"] {
        fixture.vmm(["tag", "demo:1", name]).run().failed(&[]);
    }
}

#[test]
fn system_df_counts_what_the_store_takes() {
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    fixture
        .vmm(["system", "df"])
        .run()
        .succeeded()
        .stderr_is("");
    let told = fixture.vmm(["system", "df", "--json"]).run();
    let _: serde_json::Value = serde_json::from_slice(&told.succeeded().stdout).unwrap();
}

#[test]
fn the_store_is_private_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let fixture = Fixture::new();
    fixture.load(&archive(&fixture, "demo:1")).run().succeeded();
    let mode = std::fs::metadata(fixture.store())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o077, 0, "mode {mode:o}");
}
