//! Machines with a disk of their own begin as clones, too, and their disks as copies of the template's.

use super::{Home, IMAGE};

/// Says what it finds at its start, and leaves more.
const SCRIPT: &str = "cat /n 2>/dev/null; echo $(hostname) >> /n; \
     [ $(df -m / | awk 'NR == 2 { print $2 }') -gt 9000 ] && echo large; echo up; exec sleep 1000";

fn start(home: &Home, name: &str) {
    let options = ["run", "-d", "--name", name, "--hostname", name];
    home.vmm(&[&options[..], &[IMAGE, "sh", "-c", SCRIPT]].concat())
        .run()
        .succeeded()
        .stderr_is("");
    home.vmm(&["logs", "-f", name])
        .start()
        .wait_for_stdout("up\n");
}

fn log(home: &Home, name: &str) -> String {
    let log = home.vmm(&["logs", name]).run();
    log.succeeded().stdout_text().to_owned()
}

fn clones_of_a_template_keep_their_own(home: &Home) {
    start(home, "one");
    start(home, "two");

    let in_use = home.list();
    assert_eq!(in_use[0]["in_use"], true, "{in_use:?}");
    assert_eq!(in_use[0]["storage_bytes"], 10_u64 << 30);
    assert_eq!(log(home, "one"), "large\nup\n");
    assert_eq!(log(home, "two"), "large\nup\n");
    home.vmm(&["restart", "-t", "0", "one"]).run().succeeded();
    home.vmm(&["logs", "-f", "one"])
        .start()
        .wait_for_stdout("one\nlarge\nup\n");
    home.vmm(&["rm", "-f", "one", "two"]).run().succeeded();
    home.fixture.nothing_runs();
}

#[test]
fn machines_in_the_background_are_clones_and_keep_what_they_write() {
    let home = Home::new();
    home.prepare(&["--storage", "10g"])
        .succeeded()
        .stdout_is("prepared\n");

    clones_of_a_template_keep_their_own(&home);

    // Others have no disk, and so another template.
    home.run(&[], &["echo", "hello"]).booted();
}

#[test]
fn the_first_in_the_background_leaves_templates_for_the_next() {
    let home = Home::new();
    home.vmm(&["run", "-d", "--name", "first", IMAGE, "true"])
        .run()
        .succeeded();
    home.vmm(&["wait", "first"]).run().succeeded();
    home.fixture.nothing_runs();

    let made = home.list();
    let bases = made
        .iter()
        .filter(|template| template["image_id"].is_null());
    assert_eq!((made.len(), bases.count()), (2, 1), "{made:?}");
    assert!(made.iter().all(|it| it["storage_bytes"] == 10_u64 << 30));
    // With other limits it is the base that serves.
    let options = ["run", "-d", "--name", "limited", "--pids-limit", "50"];
    let command = [IMAGE, "sh", "-c", SCRIPT];
    home.vmm(&[&options[..], &command].concat())
        .run()
        .succeeded();
    home.vmm(&["logs", "-f", "limited"])
        .start()
        .wait_for_stdout("large\nup\n");
    let in_use = home.list();
    let used = in_use.iter().find(|template| template["in_use"] == true);
    assert!(used.unwrap()["image_id"].is_null(), "{in_use:?}");
}
