//! Templates that were damaged, and directories that do not take any: a machine boots then, and says why.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode};

use super::{Home, Ran, set_mode};

/// Where the parts of a state begin: magic, format, length, checksum, body.
const FORMAT_AT: usize = 8;
const LENGTH_AT: usize = 12;
const CHECKSUM_AT: usize = 16;
const BODY_AT: usize = 20;

/// Why a file here takes what is done to it.
const MINE: &str = "a fixture's files are this test's own";

/// A home with a template that was moved aside, so that a damaged one can take its place, and back.
struct Planted {
    home: Home,
    place: PathBuf,
    aside: PathBuf,
    state: Vec<u8>,
    // While it is locked, no run leaves a template behind.
    making: File,
}

impl Planted {
    fn new() -> Self {
        let home = Home::prepared();
        let place = home.template();
        let aside = home.directory().join("aside");
        let making = File::open(home.directory().join("making")).expect(MINE);
        making.lock().expect(MINE);
        let state = fs::read(place.join("state")).expect(MINE);
        fs::rename(&place, &aside).expect(MINE);
        Self {
            home,
            place,
            aside,
            state,
            making,
        }
    }

    /// Puts this state in the place of the template's, with a copy of its memory, and runs.
    #[track_caller]
    fn boots_with_state(&self, state: &[u8], reason: &str) {
        self.boots(reason, |place| {
            fs::write(place.join("state"), state).expect(MINE);
            fs::hard_link(self.aside.join("memory"), place.join("memory")).expect(MINE);
        });
    }

    /// Runs with what `plant` puts in the place of the template.
    #[track_caller]
    fn boots(&self, reason: &str, plant: impl FnOnce(&Path)) {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&self.place)
            .expect(MINE);
        plant(&self.place);
        let ran = self.home.run(&[], &["echo", "hello"]);
        ran.booted()
            .warns_once(reason)
            .done
            .succeeded()
            .stdout_is("hello\n");
        assert!(!self.place.exists(), "what is of no use is removed");
    }

    fn with_byte(&self, place: usize, change: impl FnOnce(u8) -> u8) -> Vec<u8> {
        let mut state = self.state.clone();
        state[place] = change(state[place]);
        state
    }

    /// Puts the template back, which then is one again unless its memory was touched.
    fn put_back(self) -> Home {
        fs::rename(&self.aside, &self.place).expect(MINE);
        self.home
    }
}

#[test]
fn a_state_with_another_byte_in_its_header_is_not_used() {
    let planted = Planted::new();
    let flipped = |byte: u8| byte ^ 1;
    planted.boots_with_state(&planted.with_byte(0, flipped), "it is not a template");
    planted.boots_with_state(
        &planted.with_byte(FORMAT_AT, |byte| byte + 1),
        "its format is",
    );
    planted.boots_with_state(&planted.with_byte(LENGTH_AT, flipped), "it is cut short");
    planted.boots_with_state(
        &planted.with_byte(CHECKSUM_AT, flipped),
        "its checksum is wrong",
    );
    // Its memory was linked elsewhere, which changes it in no way but its times: enough to make it another.
    planted.put_back().is_well_again();
}

#[test]
fn a_state_with_another_byte_in_its_body_is_not_used() {
    let planted = Planted::new();
    let flipped = |byte: u8| byte ^ 0x80;
    let last = planted.state.len() - 1;
    let reason = "its checksum is wrong";
    planted.boots_with_state(&planted.with_byte(BODY_AT, flipped), reason);
    planted.boots_with_state(&planted.with_byte(last, flipped), reason);
    planted.put_back().is_well_again();
}

#[test]
fn a_state_of_another_length_is_not_used() {
    let planted = Planted::new();
    let state = &planted.state;
    planted.boots_with_state(&[], "it is not a template");
    planted.boots_with_state(&state[..FORMAT_AT + 2], "it is cut short");
    planted.boots_with_state(&state[..state.len() - 1], "it is cut short");
    planted.boots_with_state(&[state, &b"\0"[..]].concat(), "it is cut short");
    planted.put_back().is_well_again();
}

#[test]
fn a_template_whose_memory_is_another_file_is_not_used() {
    let planted = Planted::new();
    let state = planted.state.clone();
    planted.boots("its memory", |place| {
        fs::write(place.join("state"), &state).unwrap()
    });
    planted.boots("its memory", |place| {
        fs::write(place.join("state"), &state).unwrap();
        fs::copy(planted.aside.join("memory"), place.join("memory")).unwrap();
    });
    planted.boots(
        "its memory cannot be opened: it is not a regular file",
        |place| {
            fs::write(place.join("state"), &state).unwrap();
            fs::create_dir(place.join("memory")).unwrap();
        },
    );
    let home = planted.put_back();
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}

#[test]
fn a_fifo_in_the_place_of_a_file_is_not_waited_for() {
    let planted = Planted::new();
    let state = planted.state.clone();
    let fifo = |path: PathBuf| {
        rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect(MINE);
    };
    planted.boots("it is not a regular file", |place| {
        fifo(place.join("state"));
    });
    planted.boots(
        "its memory cannot be opened: it is not a regular file",
        |place| {
            fs::write(place.join("state"), &state).unwrap();
            fifo(place.join("memory"));
        },
    );
    let home = planted.put_back();
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}

#[test]
fn a_template_of_another_machine_is_not_used() {
    let planted = Planted::new();
    planted.boots("it is another machine's", |place| {
        // Nobody else makes one meanwhile: only this test holds the lock.
        planted.making.unlock().unwrap();
        planted.home.prepare(&["--cpus", "2"]).succeeded();
        planted.making.lock().unwrap();
        let ids = planted.home.ids();
        assert_eq!(ids.len(), 1, "the one with two processors");
        let other = planted.home.directory().join(&ids[0]);
        fs::rename(other.join("state"), place.join("state")).unwrap();
        fs::rename(other.join("memory"), place.join("memory")).unwrap();
        fs::remove_dir(other).unwrap();
    });
    let home = planted.put_back();
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}

/// Damages a template's memory, and sees it through to the next clone.
#[track_caller]
fn altered_memory_is_not_used(alter: impl FnOnce(&File)) {
    let home = Home::prepared();
    let memory = home.template().join("memory");
    let file = File::options()
        .read(true)
        .write(true)
        .open(memory)
        .expect(MINE);
    alter(&file);
    let ran = home.run(&[], &["echo", "hello"]);
    ran.booted()
        .warns_once("its memory was changed")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.is_well_again();
}

#[test]
fn memory_cut_short_is_not_used() {
    altered_memory_is_not_used(|memory| memory.set_len(1 << 20).unwrap());
}

#[test]
fn memory_with_another_byte_is_not_used_even_if_its_time_was_put_back() {
    altered_memory_is_not_used(|memory| {
        let modified = memory
            .metadata()
            .and_then(|memory| memory.modified())
            .unwrap();
        // Where it holds data, as SEEK_DATA of lseek(2) says.
        let place = rustix::fs::seek(memory, rustix::fs::SeekFrom::Data(0)).unwrap();
        let mut byte = [0];
        memory.read_exact_at(&mut byte, place + 100).unwrap();
        memory.write_all_at(&[byte[0] ^ 1], place + 100).unwrap();
        memory.set_modified(modified).unwrap();
    });
}

#[test]
fn a_byte_in_a_hole_of_memory_is_noticed_too() {
    altered_memory_is_not_used(|mut memory| {
        let hole = rustix::fs::seek(memory, rustix::fs::SeekFrom::Hole(0)).unwrap();
        memory.seek(SeekFrom::Start(hole)).unwrap();
        memory.write_all(b"x").unwrap();
    });
}

/// Root may read and write everything. This is root without that right; anybody else has not got it in the first place.
const BOUND: &str =
    "exec setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all \"$VMM_BINARY\" ";

#[test]
fn files_that_cannot_be_read_are_not_used() {
    let home = Home::prepared();
    let run = format!(
        "{BOUND} run --rm --timings=json {} -- echo hello",
        super::IMAGE
    );
    let template = home.template();
    let state = template.join("state");
    set_mode(&state, 0o000);

    let ran = Ran::of(home.script(&run).run());
    ran.booted()
        .warns_once("it cannot be read")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.prepare(&[]).succeeded();
    // Perhaps that run has left a base before: what the next one falls back on.
    home.prepare(&["--base"]).succeeded();

    set_mode(&template.join("memory"), 0o000);
    let ran = Ran::of(home.script(&run).run());
    ran.is_clone()
        .begins_with_another("its memory cannot be opened: Permission denied")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.is_well_again();
}

#[test]
fn a_directory_that_cannot_be_read_is_told_once_and_can_be_mended() {
    let home = Home::prepared();
    let template = home.template();
    let run = format!(
        "{BOUND} run --rm --timings=json {} -- echo hello",
        super::IMAGE
    );
    set_mode(&template, 0o000);

    let ran = Ran::of(home.script(&run).run());
    ran.booted()
        .warns_once("it cannot be read")
        .done
        .succeeded()
        .stdout_is("hello\n");
    let prepared = home
        .script(&format!("{BOUND} prepare {}", super::IMAGE))
        .run();
    prepared.failed(&[]);

    set_mode(&template, 0o700);
    home.is_well_again();
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let home = Home::new();
    fs::create_dir_all(home.directory().parent().unwrap()).unwrap();
    fs::write(home.directory(), "no directory").unwrap();

    home.prepare(&[]).failed(&["templates"]);
    let ran = home.run(&[], &["echo", "hello"]);
    ran.booted()
        .warns_once("templates")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.vmm(&["template", "ls"]).run().failed(&["templates"]);

    assert_eq!(
        fs::read_to_string(home.directory()).unwrap(),
        "no directory"
    );
    fs::remove_file(home.directory()).unwrap();
    home.is_well_again();
}

#[test]
fn a_directory_that_takes_nothing_gives_what_it_has() {
    let home = Home::prepared();
    let mount = "mount --bind -o ro \"$VMM_ROOT/cache/templates\" \"$VMM_ROOT/cache/templates\"; \
                 mount -o remount,bind,ro \"$VMM_ROOT/cache/templates\"; exec \"$VMM_BINARY\" ";
    let script = |rest: &str| home.script(&format!("{mount} {rest}")).run();
    let run = format!("run --rm --timings=json {} -- echo hello", super::IMAGE);

    Ran::of(script(&run)).is_clone().says("hello\n");
    script(&format!("prepare {}", super::IMAGE)).failed(&["templates"]);
    script(&format!("prepare --cpus 2 {}", super::IMAGE)).failed(&["templates"]);

    let state = home.template().join("state");
    let mut bytes = fs::read(&state).unwrap();
    bytes[BODY_AT] ^= 1;
    fs::write(&state, bytes).unwrap();
    let ran = Ran::of(script(&run));
    ran.booted()
        .warns_once("its checksum is wrong")
        .done
        .succeeded()
        .stdout_is("hello\n");
    home.is_well_again();
}

#[test]
fn a_disk_that_is_full_while_a_template_is_made_is_said_and_leaves_nothing() {
    let home = Home::new();
    fs::create_dir_all(home.directory()).unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4m,mode=700 tmpfs \"$VMM_ROOT/cache/templates\"; \
         \"$VMM_BINARY\" prepare {0} 2>&1 && exit 1; \
         find \"$VMM_ROOT/cache/templates\" -mindepth 1 ! -name making; \
         exec \"$VMM_BINARY\" run --rm --timings=json {0} -- echo hello",
        super::IMAGE
    );

    let ran = Ran::of(home.script(&script).run());

    ran.booted();
    let said = ran.stdout();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(
        lines.len(),
        2,
        "one complaint, nothing left, and the workload: {said}"
    );
    assert!(
        lines[0].starts_with("vmm: ") && lines[0].contains("No space left on device"),
        "{said}"
    );
    assert_eq!(lines[1], "hello");
    assert_eq!(ran.complaints, [""; 0], "{:?}", ran.done);
    home.is_well_again();
}
