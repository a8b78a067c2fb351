//! `vmm fork`, and what a forked workload may rely on.

use std::collections::BTreeSet;

use super::Home;

#[test]
fn copies_go_on_from_the_fork_point_each_as_its_own_generation() {
    let home = Home::new();
    let script = "state=prepared; read generation < /dev/fork-point; [ $state = prepared ] && exit $((40 + generation))";
    home.start("parent", &["--fork-point"], &["sh", "-c", script]);
    // It says that it is there by nothing but waiting.
    let forked = loop {
        let forked = home.vmm(&["fork", "-n", "3", "parent"]).run();
        if forked.code() == Some(0) {
            break forked;
        }
        forked.failed(&["fork point"]);
    };
    let ids = forked.stdout_text();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(ids.len(), 3);
    home.fixture.nothing_runs();

    let listed = home.vmm(&["ps", "-a", "--json", "--no-trunc"]).run();
    let machines: Vec<serde_json::Value> =
        serde_json::from_slice(&listed.succeeded().stdout).unwrap();
    let code_of = |id: &str| {
        let machine = machines.iter().find(|machine| machine["id"] == id).unwrap();
        machine["exit_code"].as_u64().unwrap()
    };
    assert_eq!(
        ids.iter().map(|id| code_of(id)).collect::<Vec<_>>(),
        [41, 42, 43]
    );
    assert_eq!(home.state_of("parent"), "exited 40");
    let names: BTreeSet<&str> = machines
        .iter()
        .filter_map(|machine| machine["name"].as_str())
        .collect();
    assert_eq!(names.len(), 4, "each has a name of its own");
}

#[test]
fn a_workload_that_does_not_wait_at_a_fork_point_is_not_forked_and_goes_on() {
    let home = Home::new();
    let mut without = home.counting("without");
    let mut elsewhere = home
        .run(
            &["-i", "--fork-point", "--name", "elsewhere"],
            &["sh", "-c", "ls -l /dev/fork-point; read line; rm /dev/fork-point; ln -s /dev/null /dev/fork-point; echo linked; cat"],
        )
        .open_input()
        .start();
    elsewhere.wait_for_stdout("prw-rw-rw-");
    for name in ["without", "elsewhere"] {
        let refused = home.vmm(&["fork", name]).run();
        refused.failed(&["fork point"]).stdout_is("");
    }
    elsewhere.write(b"on\n");
    elsewhere.wait_for_stdout("linked\n");
    let refused = home.vmm(&["fork", "elsewhere"]).run();
    refused.failed(&["fork point"]);

    without.write(b"two\n");
    without.wait_for_stdout("2 two\n");
    without.close_input();
    without.finish().code_is(0);
    elsewhere.write(b"still there\n");
    elsewhere.wait_for_stdout("still there\n");
    elsewhere.close_input();
    elsewhere.finish().code_is(0);
    home.fixture.nothing_runs();
}
