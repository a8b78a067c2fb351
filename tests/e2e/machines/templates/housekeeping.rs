//! `vmm template ls` and `rm`, the limit on all of them, and who may read them.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::{Home, Ran, mode};

#[test]
fn templates_are_listed_and_removed_by_id_and_by_its_beginning() {
    let home = Home::prepared();
    home.prepare(&[])
        .succeeded()
        .stdout_is("prepared already\n");
    let template = home.list().remove(0);
    let id = template["id"].as_str().unwrap();
    assert_eq!(template["vcpus"], 1);
    assert_eq!(template["in_use"], false);
    assert!(
        template["disk_bytes"].as_u64() > Some(1 << 20),
        "{template}"
    );
    assert!(template["unused_seconds"].as_u64() < Some(60), "{template}");
    let table = home.vmm(&["template", "ls"]).run();
    table
        .succeeded()
        .stdout_has(&id[..12])
        .stdout_lacks("in use")
        .stdout_has("MiB");

    home.vmm(&["template", "rm", &id[..6]])
        .run()
        .succeeded()
        .stdout_is(&format!("{id}\n"));
    assert_eq!(home.ids(), [""; 0]);
    home.vmm(&["template", "rm", id])
        .run()
        .failed(&[id])
        .helped();

    home.prepare(&["-q"]).succeeded().stdout_is("");
    home.vmm(&["template", "rm", id]).run().succeeded();
    assert_eq!(home.ids(), [""; 0]);
    home.run(&["--no-template"], &["echo", "hello"])
        .booted()
        .says("hello\n");
}

#[test]
fn a_beginning_of_two_ids_removes_neither() {
    let home = Home::new();
    let names = ["1".repeat(64), format!("{}2", "1".repeat(63))];
    for name in &names {
        fs::create_dir_all(home.directory().join(name)).unwrap();
    }

    let refused = home.vmm(&["template", "rm", "111"]).run();

    refused.failed(&["111", "more than one"]).helped();
    home.vmm(&["template", "rm", ""]).run().failed(&[]).helped();
    home.vmm(&["template", "rm", "../.."])
        .run()
        .failed(&[])
        .helped();
    assert_eq!(home.entries("1").len(), 2);
    home.vmm(&["template", "rm", &names[0]]).run().succeeded();
    assert_eq!(home.entries("1"), [names[1].clone()]);
}

#[test]
fn a_template_in_use_is_neither_removed_nor_evicted() {
    let home = Home::prepared();
    let id = home.ids().remove(0);
    let started = home
        .run_invocation(&["-d", "--name", "sleeper"], &["sleep", "1000"])
        .run();
    started.succeeded();
    assert_eq!(
        home.list()[0]["in_use"],
        true,
        "a machine in the background is a clone, too"
    );
    home.vmm(&["template", "ls"])
        .run()
        .succeeded()
        .stdout_has("in use");

    let refused = home.vmm(&["template", "rm", &id]).run();
    refused.failed(&[&id[..12], "in use"]).helped();
    let evicting = home
        .prepare_invocation(&["--cpus", "2"])
        .env("VMM_TEMPLATE_LIMIT", "1m");
    evicting.run().succeeded().stdout_is("prepared\n");
    assert_eq!(home.ids().len(), 2, "one is in use, the other one is new");

    home.vmm(&["kill", "sleeper"]).run().succeeded();
    home.fixture.nothing_runs();
    home.vmm(&["template", "rm", &id]).run().succeeded();
    assert_eq!(home.ids().len(), 1);
}

#[test]
fn above_the_limit_the_one_that_was_unused_for_longest_goes() {
    const HOUR: Duration = Duration::from_secs(3600);
    let home = Home::prepared();
    let first = home.ids().remove(0);
    home.prepare(&["--cpus", "2"]).succeeded();
    let second = home.ids().into_iter().find(|id| *id != first).unwrap();
    let age = |id: &str, by: Duration| {
        let directory = File::open(home.directory().join(id)).unwrap();
        directory.set_modified(SystemTime::now() - by).unwrap();
    };
    age(&first, HOUR * 2);
    age(&second, HOUR);
    home.run(&[], &["true"]).is_clone();
    let unused: Vec<_> = home
        .list()
        .iter()
        .map(|template| template["unused_seconds"].as_u64())
        .collect();
    assert!(
        unused[0] < Some(3600) && unused[1] >= Some(3600),
        "the clone counts as a use: {unused:?}"
    );
    home.fixture.nothing_runs();

    let room: u64 = home
        .list()
        .iter()
        .filter_map(|template| template["disk_bytes"].as_u64())
        .sum();
    let limit = (room + room / 10).to_string();
    let third = home
        .prepare_invocation(&["--memory", "300m"])
        .env("VMM_TEMPLATE_LIMIT", limit);
    third.run().succeeded().stdout_is("prepared\n");

    let ids = home.ids();
    assert_eq!(ids.len(), 2);
    assert!(
        ids.contains(&first) && !ids.contains(&second),
        "the one with two processors went"
    );

    let fourth = home
        .prepare_invocation(&["--cpus", "2"])
        .env("VMM_TEMPLATE_LIMIT", "1");
    fourth.run().succeeded().stdout_is("prepared\n");
    assert_eq!(home.ids(), [second], "never the new one");
}

#[test]
fn above_the_limit_what_another_version_left_goes_too() {
    let home = Home::new();
    let theirs = home.directory().join("7".repeat(64));
    fs::create_dir_all(&theirs).unwrap();
    fs::write(theirs.join("state"), "of another version").unwrap();
    fs::write(theirs.join("memory"), vec![1; 1 << 20]).unwrap();

    let prepare = home.prepare_invocation(&[]);
    prepare.run().succeeded().stdout_is("prepared\n");
    assert!(theirs.exists(), "there is room for it");
    let evicting = home
        .prepare_invocation(&["--cpus", "2"])
        .env("VMM_TEMPLATE_LIMIT", "1");
    evicting.run().succeeded().stdout_is("prepared\n");

    assert!(!theirs.exists());
    assert_eq!(home.ids().len(), 1);
}

#[test]
fn templates_are_private_whatever_the_umask_is() {
    let home = Home::new();
    let script = format!(
        "umask 0; exec \"$VMM_BINARY\" prepare --rm {}",
        super::IMAGE
    );
    home.script(&script).run().succeeded();

    let template = home.template();
    assert_eq!(mode(&home.directory()), 0o700);
    assert_eq!(mode(&template), 0o700);
    assert_eq!(mode(&template.join("state")), 0o600);
    assert_eq!(mode(&template.join("memory")), 0o600);
    assert_eq!(mode(&home.directory().join("making")), 0o600);
    let ran = Ran::of(home.run_invocation(&[], &["echo", "hello"]).run());
    ran.is_clone().says("hello\n");
}
