//! Snapshots that hold only what has changed since the one before.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::Home;

#[test]
fn increments_are_small_and_resume_with_what_they_stand_on() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&["--incremental"], "first", "early")
        .failed(&["no snapshot"]);
    assert!(!home.path("early").exists());
    home.snapshot(&[], "first", "whole").succeeded();
    first.write(b"two\n");
    first.wait_for_stdout("2 two\n");
    home.snapshot(&["--incremental"], "first", "second")
        .succeeded();
    for stood_on in ["whole", "second"] {
        home.snapshot(&["--incremental"], "first", stood_on)
            .failed(&["take the place"]);
    }
    first.write(b"three\n");
    first.wait_for_stdout("3 three\n");
    home.snapshot(&["--incremental", "--stop"], "first", "third")
        .succeeded();
    first.close_input();
    first.finish().code_is(137);

    let blocks = |name| fs::metadata(home.path(name)).unwrap().blocks();
    assert!(blocks("second") * 2 < blocks("whole"));
    assert!(blocks("third") * 2 < blocks("whole"));

    let aside = home.path("aside");
    fs::rename(home.path("second"), &aside).unwrap();
    home.check("third").failed(&["second"]);
    fs::copy(home.path("whole"), home.path("second")).unwrap();
    home.check("third")
        .failed(&["second", "is not the snapshot"]);
    fs::rename(&aside, home.path("second")).unwrap();
    home.check("third").succeeded();

    let done = home.restore(&["-i"], "third").input("four\n").run();
    done.code_is(0)
        .stdout_is("4 four\nend after 4\n")
        .stderr_is("");
}

#[test]
fn a_snapshot_that_could_not_begin_changes_nothing_for_the_next_increment() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&[], "first", "whole").succeeded();
    home.snapshot(&[], "first", "no-directory/file")
        .failed(&["no-directory"]);
    first.write(b"two\n");
    first.wait_for_stdout("2 two\n");
    home.snapshot(&["--incremental", "--stop"], "first", "second")
        .succeeded();
    first.close_input();
    first.finish().code_is(137);
    let done = home.restore(&["-i"], "second").input("three\n").run();
    done.code_is(0).stdout_is("3 three\nend after 3\n");
}
