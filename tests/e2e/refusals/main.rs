//! What bad images, bad flags and bad hosts get: exit code 125, one sentence that names the thing, and a store exactly
//! as it was.

mod archives;
mod documents;
mod flags;
mod layers;

use tests::Fixture;
use tests::image_maker::{ImageMaker, Layer};

/// A good image of one layer, to be spoiled.
fn good() -> ImageMaker {
    ImageMaker::empty()
        .layer(
            Layer::new()
                .directory("etc")
                .file("etc/motd", "welcome\n".repeat(4000)),
        )
        .config("Cmd", serde_json::json!(["/bin/true"]))
        .name("good:1")
}

/// A fixture whose store holds one image already.
fn with_something_in_the_store() -> Fixture {
    let fixture = Fixture::new();
    let other = ImageMaker::empty()
        .layer(Layer::new().file("other", "other"))
        .name("other:1");
    let file = fixture.file("other.oci", other.layout().archive());
    fixture.load(&file).run().succeeded();
    fixture
}

/// Asserts that an image in a file called `spoiled.oci` is refused in a sentence that has all of `names`.
#[track_caller]
fn refused(content: &[u8], names: &[&str]) {
    let fixture = with_something_in_the_store();
    let file = fixture.file("spoiled.oci", content);
    let before = fixture.store_listing();
    fixture.load(&file).run().failed(names);
    tests::snapshot::assert_unchanged(&before, &fixture.store_listing());
    fixture.run(&file, &[], &[]).run().refused(names);
    tests::snapshot::assert_unchanged(&before, &fixture.store_listing());
}
