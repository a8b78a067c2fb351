//! Snapshots that are not whole, and places where there can be none.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use rustix::process::Signal;
use tests::process::MACHINE_LIMIT;

use super::Home;

/// Where the RAM begins, and the fields of the header: `vmm/src/snapshot/format.rs`.
const MEMORY_AT: u64 = 4096;
const FORMAT_AT: u64 = 8;
const BODY_OFFSET_AT: u64 = 16;

const MINE: &str = "the test may use its own file";

fn alter(file: &File, place: u64) {
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect(MINE);
    file.write_all_at(&[byte[0] ^ 1], place).expect(MINE);
}

/// A name for an altered snapshot, how it is altered, and what is to be said of it.
type Change<'a> = (&'a str, &'a dyn Fn(&File), &'a str);

#[test]
fn a_snapshot_that_was_altered_is_not_used() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.close_input();
    first.finish().code_is(137);

    let changes: [Change; 7] = [
        ("magic", &|file| alter(file, 0), "not a snapshot"),
        ("version", &|file| alter(file, FORMAT_AT), "format"),
        (
            "body",
            &|file| {
                let mut offset = [0; 8];
                file.read_exact_at(&mut offset, BODY_OFFSET_AT).unwrap();
                alter(file, u64::from_le_bytes(offset) + 100);
            },
            "checksum",
        ),
        (
            "memory",
            &|file| {
                let data = rustix::fs::seek(file, rustix::fs::SeekFrom::Data(MEMORY_AT)).unwrap();
                alter(file, data + 5000);
            },
            "memory was changed",
        ),
        (
            "end",
            &|file| file.set_len(file.metadata().unwrap().len() - 1).unwrap(),
            "cut short",
        ),
        (
            "half",
            &|file| file.set_len(file.metadata().unwrap().len() / 2).unwrap(),
            "cut short",
        ),
        ("all", &|file| file.set_len(0).unwrap(), "not a snapshot"),
    ];
    for (name, change, reason) in changes {
        fs::copy(home.path("file"), home.path(name)).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .open(home.path(name))
            .unwrap();
        change(&file);
        drop(file);
        home.check(name).failed(&[name, reason]);
        home.restore(&["-i"], name).run().refused(&[name, reason]);
    }
    fs::create_dir(home.path("directory")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        home.path("fifo"),
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    for name in ["directory", "fifo", "nothing"] {
        home.check(name).failed(&[name]);
        home.restore(&[], name).run().refused(&[name]);
    }
    home.fixture.nothing_runs();

    let done = home.restore(&["-i"], "file").input("two\n").run();
    done.code_is(0).stdout_is("2 two\nend after 2\n");
}

#[test]
fn a_place_that_cannot_hold_it_is_named_and_the_machine_goes_on() {
    let home = Home::new();
    let mut first = home.counting("first");
    fs::create_dir(home.path("directory")).unwrap();
    home.snapshot(&[], "first", "directory")
        .failed(&["directory", "not a file"]);
    home.snapshot(&[], "first", "nowhere/file")
        .failed(&["nowhere"]);
    // Stopping is for snapshots that were written.
    home.snapshot(&["--stop"], "first", "nowhere/file")
        .failed(&["nowhere"]);
    first.write(b"two\n");
    first.wait_for_stdout("2 two\n");
    fs::write(home.path("file"), "something that was there").unwrap();
    home.snapshot(&[], "first", "file").succeeded();
    assert_eq!(fs::read_dir(home.path("directory")).unwrap().count(), 0);
    first.close_input();
    first.finish().code_is(0).stdout_has("end after 2\n");
    home.check("file").succeeded();
}

#[test]
fn a_disk_that_is_full_is_said_and_leaves_nothing() {
    let home = Home::new();
    fs::create_dir(home.fixture.root().join("small")).unwrap();
    let script = "mount -t tmpfs -o size=4m tmpfs \"$VMM_ROOT/small\"; \
         \"$VMM_BINARY\" run -d --name first probe:test sleep 1000; \
         \"$VMM_BINARY\" snapshot first \"$VMM_ROOT/small/file\" && exit 1; \
         \"$VMM_BINARY\" snapshot --stop first \"$VMM_ROOT/small/file\" && exit 1; \
         find \"$VMM_ROOT/small\" -mindepth 1; \
         \"$VMM_BINARY\" ps; \"$VMM_BINARY\" kill first";
    let done = home
        .fixture
        .in_private_mounts(script)
        .limit(tests::process::MACHINE_LIMIT)
        .run();
    done.code_is(0)
        .stderr_has("No space left on device")
        .stdout_has("Up ")
        .stdout_lacks("small");
    home.fixture.nothing_runs();
}

#[test]
fn what_a_killed_monitor_was_writing_leaves_nothing() {
    let home = Home::new();
    home.start("first", &[], &["sleep", "1000"]);
    fs::create_dir(home.path("place")).unwrap();
    let file = home.path("place/file");
    let asking = home
        .vmm(&["snapshot", "first", file.to_str().unwrap()])
        .start();
    for (pid, _) in home.fixture.processes() {
        if pid != asking.pid() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    drop(asking.finish());
    // Perhaps it was done already: then it is whole.
    let left: Vec<_> = fs::read_dir(home.path("place"))
        .unwrap()
        .flatten()
        .collect();
    match left.as_slice() {
        [] => {}
        [one] if one.path() == file => drop(home.check("place/file").succeeded()),
        left => panic!("{left:?}"),
    }
}

#[test]
fn an_interrupted_restore_leaves_a_snapshot_that_is_whole_or_used() {
    let home = Home::new();
    let mut first = home.counting("first");
    home.snapshot(&["--stop"], "first", "file").succeeded();
    first.close_input();
    first.finish().code_is(137);

    let second = home.restore(&["--rm", "-i"], "file").open_input().start();
    let deadline = Instant::now() + MACHINE_LIMIT;
    // A second process is the machine's.
    while home.fixture.processes().len() < 2 {
        assert!(Instant::now() < deadline, "no machine is made");
    }
    second.signal(Signal::INT);
    second.finish().code_is(130);
    home.fixture.nothing_runs();
    // A process that is going has no name any more, and still its files.
    let file = fs::File::open(home.path("file")).unwrap();
    file.lock_shared().unwrap();
    drop(file);

    let check = home.check("file");
    let third = home.restore(&["-i"], "file").input("other\n").run();
    match check.code() {
        Some(0) => third.code_is(0).stdout_is("2 other\nend after 2\n"),
        // The workload had gone on before, and the interrupt was for it.
        _ => {
            check.failed(&["was resumed before"]);
            third.refused(&["was resumed before"])
        }
    };
}
