//! Who makes templates and when, two at once, and what is left of one that was killed at it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::process::Signal;

use super::{Home, wait_until};

#[test]
fn a_first_run_leaves_a_template_from_which_the_second_starts() {
    let home = Home::new();
    home.run(&[], &["echo", "hello"]).booted().says("hello\n");
    home.fixture.nothing_runs();
    assert_eq!(home.ids().len(), 2, "one of the image, one for all");
    assert_eq!(home.leftovers(), [""; 0]);

    home.prepare(&[])
        .succeeded()
        .stdout_is("prepared already\n");
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
    home.fixture.nothing_runs();
    assert_eq!(home.ids().len(), 2);
}

#[test]
fn a_run_that_was_asked_for_no_template_leaves_none() {
    let home = Home::new();
    home.run(&["--no-template"], &["true"]).booted().says("");
    home.fixture.nothing_runs();
    assert!(!home.directory().exists());
}

#[test]
fn a_run_does_not_wait_for_whoever_makes_a_template() {
    let home = Home::new();
    fs::create_dir_all(home.directory()).unwrap();
    let making = File::create(home.directory().join("making")).unwrap();
    making.lock().unwrap();

    home.run(&[], &["echo", "hello"]).booted().says("hello\n");

    home.fixture.nothing_runs();
    assert_eq!(
        home.ids(),
        [""; 0],
        "who finds somebody at work leaves it to them"
    );
    drop(making);
    home.is_well_again();
}

#[test]
fn two_who_prepare_at_once_make_one_template() {
    let home = Home::new();
    let (one, two) = (
        home.prepare_invocation(&[]).start(),
        home.prepare_invocation(&[]).start(),
    );
    let mut said = [one.finish(), two.finish()].map(|done| done.succeeded().stdout_text());
    said.sort_unstable();
    assert_eq!(
        said,
        ["prepared\n", "prepared already\n"].map(str::to_owned)
    );
    assert_eq!(home.ids().len(), 1);
    home.is_well_again();
}

/// The directory of the template that is being made.
fn unfinished(home: &Home) -> Option<PathBuf> {
    let name = home.entries(".making-").pop()?;
    Some(home.directory().join(name))
}

/// Whether the machine that is to be frozen has a process: the one before it, which looks at KVM, is gone when there is a directory.
fn boots(home: &Home) -> bool {
    unfinished(home).is_some() && home.fixture.processes().len() > 1
}

/// Starts making a template and ends whoever makes it at a certain moment.
#[track_caller]
fn killed_when(signal: Signal, moment: &str, is_reached: impl Fn(&Home) -> bool) {
    let home = Home::new();
    let running = home.prepare_invocation(&[]).start();
    wait_until(moment, || is_reached(&home));
    running.signal(signal);
    let killed = running.finish();

    assert_eq!(killed.signal(), Some(signal.as_raw()), "{killed:?}");
    home.fixture.nothing_runs();
    assert_eq!(home.ids(), [""; 0], "what is not finished is no template");
    home.prepare(&[]).succeeded().stdout_is("prepared\n");
    home.is_well_again();
}

#[test]
fn killed_before_its_machine_starts_prepare_leaves_nothing_in_the_way() {
    killed_when(Signal::KILL, "the directory", |home| {
        unfinished(home).is_some()
    });
}

#[test]
fn killed_while_its_machine_boots_prepare_leaves_no_machine() {
    killed_when(Signal::KILL, "the machine", boots);
}

#[test]
fn killed_while_memory_is_written_prepare_leaves_nothing_in_the_way() {
    killed_when(Signal::KILL, "data in memory", |home| {
        let memory = unfinished(home).map(|directory| directory.join("memory"));
        memory.is_some_and(|memory| fs::metadata(memory).is_ok_and(|memory| memory.blocks() > 0))
    });
}

#[test]
fn interrupted_prepare_leaves_no_machine() {
    killed_when(Signal::INT, "the machine", boots);
}

#[test]
fn a_machine_that_is_killed_while_it_is_frozen_is_an_error_and_leaves_nothing() {
    let home = Home::new();
    let running = home.prepare_invocation(&[]).start();
    wait_until("the machine", || boots(&home));
    let machines = home.fixture.processes();
    let machine = machines
        .iter()
        .map(|(pid, _)| *pid)
        .find(|pid| *pid != running.pid())
        .unwrap();
    rustix::process::kill_process(machine, Signal::KILL).unwrap();

    running.finish().failed(&["frozen"]);

    home.fixture.nothing_runs();
    assert_eq!(home.leftovers(), [""; 0]);
    home.is_well_again();
}

#[test]
fn an_image_that_is_not_there_has_no_template() {
    let home = Home::new();
    home.vmm(&["prepare", "nothing:here"])
        .run()
        .failed(&["nothing:here"]);
    assert_eq!(home.entries(""), [""; 0]);
}
