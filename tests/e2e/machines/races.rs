//! Many at once, and ends at any moment. Minutes each, so only `lab::races_leave_nothing…` runs them.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tests::process::MACHINE_LIMIT;
use tests::{Finished, Fixture, Invocation};

const IMAGE: &str = "busybox:test";
/// The same turns every time, so that what goes wrong once can go wrong again.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Numbers without an order: xorshift.
struct Dice(u64);

impl Dice {
    fn of(player: u64) -> Self {
        Self(SEED.wrapping_mul(player.wrapping_mul(2).wrapping_add(1)))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// A place in which machines of [`IMAGE`] start as clones.
struct Home {
    fixture: Fixture,
}

impl Home {
    fn new() -> Self {
        let fixture = super::with_busybox();
        let home = Self { fixture };
        home.vmm(&["prepare", IMAGE]).run().succeeded();
        home
    }

    fn vmm(&self, arguments: &[&str]) -> Invocation {
        self.fixture
            .vmm(arguments)
            .without_env("VMM_NO_TEMPLATE")
            .limit(MACHINE_LIMIT)
    }

    /// Does something that others may make impossible meanwhile, but for which there is an answer.
    #[track_caller]
    fn ends_in_order(&self, arguments: &[&str]) -> Finished {
        let done = self.vmm(arguments).run();
        assert!(done.code().is_some(), "{done:?}");
        done.stderr_lacks("panicked");
        done
    }

    /// Removes all that `ps -a` knows of, after which nothing is left, and all still works.
    #[track_caller]
    fn is_clean_again(&self) {
        let known = self.vmm(&["ps", "-aq", "--no-trunc"]).run();
        let known = known.succeeded().stdout_text();
        for id in known.lines() {
            self.vmm(&["rm", "-f", id]).run().succeeded();
        }
        self.fixture.nothing_runs();
        self.vmm(&["ps", "-a"]).run().succeeded().stderr_is("");
        assert_eq!(self.fixture.machines_listing(), "");
        self.vmm(&["run", "--rm", IMAGE, "echo", "well"])
            .run()
            .succeeded()
            .stdout_is("well\n")
            .stderr_is("");
    }
}

#[test]
#[ignore = "takes minutes: run in the lab by `lab::races_leave_nothing_on_a_complete_kvm`"]
fn twenty_clients_of_one_machine_leave_nothing() {
    let home = Home::new();
    let until = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for client in 0..20 {
            let home = &home;
            scope.spawn(move || {
                let mut dice = Dice::of(client);
                while Instant::now() < until {
                    match dice.below(8) {
                        0 | 1 => {
                            let script = "n=0; while :; do n=$((n + 1)); echo $n; sleep 0.1; done";
                            home.ends_in_order(&[
                                "run", "-d", "--name", "web", IMAGE, "sh", "-c", script,
                            ]);
                        }
                        2 => drop(home.ends_in_order(&["exec", "web", "echo", "hello"])),
                        3 => drop(home.ends_in_order(&["stats", "--no-stream", "web"])),
                        4 => drop(home.ends_in_order(&["stop", "-t", "0", "web"])),
                        5 => drop(home.ends_in_order(&["rm", "-f", "web"])),
                        6 => drop(home.ends_in_order(&["start", "web"])),
                        // It ends when the machine does, or here.
                        _ => {
                            let follower = home.vmm(&["logs", "-f", "web"]).start();
                            home.ends_in_order(&["top", "web"]);
                            let _ = kill_process(follower.pid(), Signal::TERM);
                            follower.finish().stderr_lacks("panicked");
                        }
                    }
                }
            });
        }
    });

    home.is_clean_again();
}

#[test]
#[ignore = "takes minutes: run in the lab by `lab::races_leave_nothing_on_a_complete_kvm`"]
fn fifty_machines_start_and_go_at_once() {
    let home = Home::new();
    let names: Vec<String> = (0..50).map(|number| format!("m{number}")).collect();

    let starting = names.iter().map(|name| {
        home.vmm(&[
            "run", "-d", "--name", name, "--memory", "16m", IMAGE, "sleep", "1000",
        ])
        .limit(Duration::from_secs(600))
        .start()
    });
    let starting: Vec<_> = starting.collect();
    for start in starting {
        start.finish().succeeded().stderr_is("");
    }
    let running = home.vmm(&["ps", "-q"]).run();
    assert_eq!(running.succeeded().stdout_text().lines().count(), 50);
    let removing = names.iter().map(|name| {
        home.vmm(&["rm", "-f", name])
            .limit(Duration::from_secs(600))
            .start()
    });
    let removing: Vec<_> = removing.collect();
    for remove in removing {
        remove.finish().succeeded().stderr_is("");
    }

    home.fixture.nothing_runs();
    assert_eq!(home.fixture.machines_listing(), "");
    home.is_clean_again();
}

#[test]
#[ignore = "takes minutes: run in the lab by `lab::races_leave_nothing_on_a_complete_kvm`"]
fn two_hundred_kills_at_any_moment_leave_nothing() {
    let home = Home::new();
    let mut dice = Dice::of(100);
    for round in 0..200 {
        let kinds: [&[&str]; 3] = [&["run", "--rm"], &["run", "-d"], &["run", "-d", "--rm"]];
        let kind = kinds[usize::try_from(dice.below(3)).unwrap()];
        let command = [IMAGE, "sh", "-c", "echo x > /file; sync; sleep 1000"];
        let client = home.vmm(&[kind, &command].concat()).start();
        // Not a wait for something, but for any moment.
        std::thread::sleep(Duration::from_millis(dice.below(400)));
        // The client, its monitor, the VM process, or all of them.
        let mut processes: Vec<Pid> = home
            .fixture
            .processes()
            .into_iter()
            .map(|it| it.0)
            .collect();
        processes.sort_by_key(|pid| pid.as_raw_nonzero());
        let chosen = usize::try_from(dice.below(4)).unwrap();
        let chosen = match processes.get(chosen) {
            Some(one) => std::slice::from_ref(one),
            None => &processes,
        };
        for pid in chosen {
            // It may have ended.
            let _ = kill_process(*pid, Signal::KILL);
        }
        // A client of a machine that goes on waits for it.
        let _ = kill_process(client.pid(), Signal::KILL);
        let ended = client.finish();
        ended.stderr_lacks("panicked");
        let listed = home.vmm(&["ps", "-a", "--format", "{{.Status}}"]).run();
        let states = listed.succeeded().stderr_is("").stdout_text();
        let is_known = |state: &str| {
            ["Up ", "Created", "Dead", "Exited"]
                .iter()
                .any(|known| state.starts_with(known))
        };
        assert!(states.lines().all(is_known), "round {round}: {states}");
        let ids = home.vmm(&["ps", "-aq"]).run().stdout_text();
        for id in ids.lines() {
            // One that ends at this moment may be gone.
            home.ends_in_order(&["rm", "-f", id]);
        }
        home.fixture.nothing_runs();
    }

    home.is_clean_again();
}
