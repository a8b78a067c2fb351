//! Templates that are taken away while runs begin with them: each run ends as if it had been left alone, and the next ones find a
//! template again.

use std::fs;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use super::{Home, Ran, wait_until};

#[test]
fn a_template_that_is_removed_while_its_clone_starts_serves_that_clone() {
    let home = Home::prepared();
    let template = home.template();
    let mut running = home
        .run_invocation(
            &["-i"],
            &["sh", "-c", "read word; probe $word 16 | tail -1"],
        )
        .open_input()
        .start();
    // It is forked with the template's files open.
    wait_until("the clone", || home.fixture.processes().len() > 1);
    fs::remove_dir_all(&template).unwrap();
    running.write(b"allocate\n");

    let ran = Ran::of(running.finish());

    ran.is_clone().says("all 16 MiB touched\n");
    home.fixture.nothing_runs();
    assert_eq!(home.entries(""), ["making"]);
    home.is_well_again();
}

/// Takes a template away and puts it back, both far quicker than a run looks at its files, and removes all that others left.
fn stir(home: &Home, template: &Path) {
    let aside = home.directory().join("aside");
    // Refused once a run has removed what it found in halves, until another has left a new one.
    let _ = fs::rename(template, &aside);
    let _ = fs::rename(&aside, template);
    let others = home.entries("").into_iter();
    for other in others.map(|name| home.directory().join(name)) {
        if other != template {
            let _ = fs::remove_dir_all(&other).or_else(|_| fs::remove_file(&other));
        }
    }
}

#[test]
fn runs_that_start_while_templates_come_and_go_end_well() {
    let home = Home::prepared();
    let template = home.template();

    let all: Vec<Ran> = thread::scope(|scope| {
        let start = |_| scope.spawn(|| home.run(&[], &["echo", "hello"]));
        let runs: Vec<_> = (0..4).map(start).collect();
        while !runs.iter().all(ScopedJoinHandle::is_finished) {
            stir(&home, &template);
        }
        runs.into_iter()
            .map(|run| run.join().expect("a run ends"))
            .collect()
    });

    for ran in &all {
        ran.done.succeeded().stdout_is("hello\n");
        let is_told = |line: &String| line.contains("cannot be used: its memory");
        assert!(
            ran.complaints.len() <= 1 && ran.complaints.iter().all(is_told),
            "{:?}",
            ran.done
        );
    }
    home.fixture.nothing_runs();
    home.is_well_again();
}

/// Removes one file of a template: what is left of one whose removal was interrupted.
#[track_caller]
fn is_made_anew_without(file: &str) {
    let home = Home::prepared();
    fs::remove_file(home.template().join(file)).expect("a template has the file");

    let ran = home.run(&[], &["echo", "hello"]);

    ran.booted().done.succeeded().stdout_is("hello\n");
    home.fixture.nothing_runs();
    assert_eq!(home.leftovers(), [""; 0]);
    home.prepare(&[])
        .succeeded()
        .stdout_is("prepared already\n");
    home.run(&[], &["echo", "hello"]).is_clone().says("hello\n");
}

#[test]
fn a_template_that_has_lost_its_state_is_made_anew() {
    is_made_anew_without("state");
}

#[test]
fn a_template_that_has_lost_its_memory_is_made_anew() {
    is_made_anew_without("memory");
}
