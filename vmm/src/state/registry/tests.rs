use super::*;
use crate::events::EventReader;

struct Fixture {
    _base: tempfile::TempDir,
    registry: Registry,
}

impl Fixture {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let registry = Registry::open(&base.path().join("machines")).unwrap();
        Self {
            _base: base,
            registry,
        }
    }

    fn create(&self, name: &str) -> Result<OwnedMachine, StateError> {
        self.create_with(Some(name), true)
    }

    fn create_kept(&self, name: &str) -> OwnedMachine {
        self.create_with(Some(name), false).unwrap()
    }

    fn change(&self, id: &MachineId, change: impl FnOnce(&mut Settings)) {
        let changed = self.registry.change(id, |_, settings| {
            change(settings);
            Ok::<_, StateError>(())
        });
        changed.unwrap();
    }

    fn create_with(&self, name: Option<&str>, ephemeral: bool) -> Result<OwnedMachine, StateError> {
        let new = NewMachine {
            id: MachineId::random().unwrap(),
            name: name.map(|name| name.parse().unwrap()),
            image: ImageLabel {
                reference: "app".into(),
                id: "sha256:0".into(),
            },
            command: vec!["sh".into()],
            ephemeral,
            settings: Settings::default(),
        };
        self.registry.create(new).map(|(machine, _control)| machine)
    }

    /// Lets a monitor go as `kill -9` does: its lock is free, nothing else was done.
    fn kill_monitor(mut machine: OwnedMachine) {
        machine.owner = 0;
    }

    fn names(&self) -> Vec<String> {
        let machines = self.registry.list().unwrap();
        machines
            .iter()
            .map(|machine| machine.record.name.to_string())
            .collect()
    }

    /// What there is beside the journal.
    fn entries(&self) -> Vec<String> {
        let mut entries = self.registry.entries().unwrap();
        entries.retain(|entry| entry != ".events");
        entries
    }

    /// What happened to all machines: an action, the name, and the exit code if there is one.
    fn events(&self) -> Vec<String> {
        let journal = self.registry.journal();
        let mut reader = EventReader::open(journal.directory().unwrap(), true).unwrap();
        let events = std::iter::from_fn(|| reader.next_event().unwrap());
        let spelled = events.map(|event| {
            let attribute = |key: &str| event.attributes.get(key).cloned().unwrap_or_default();
            let words = [&event.action, &attribute("name"), &attribute("exitCode")];
            words.map(String::as_str).join(" ").trim_end().to_owned()
        });
        spelled.collect()
    }
}

#[test]
fn what_happens_to_a_machine_is_noted_in_order() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    machine.set_running().unwrap();
    let notes = machine.notes();
    let id = machine.id().clone();

    fixture
        .registry
        .rename("job", &"work".parse().unwrap())
        .unwrap();
    notes.note("exec_die", &[("exitCode", "3".to_owned())]);
    machine.finish(&Outcome::Exited(7)).unwrap();
    drop(machine);
    fixture.registry.remove(&id).unwrap();

    let events = fixture.events();
    assert_eq!(
        events,
        [
            "create job",
            "start job",
            "rename work",
            "exec_die work 3",
            "die work 7",
            "destroy work"
        ]
    );
}

#[test]
fn a_machine_that_is_held_is_told_from_one_that_runs() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    let id = machine.id().clone();
    assert!(!fixture.registry.find("job").unwrap().is_held());
    machine.finish(&Outcome::Exited(7)).unwrap();
    drop(machine);

    let held = fixture.registry.hold(&id).unwrap();
    assert!(fixture.registry.find("job").unwrap().is_held());
    assert!(matches!(
        fixture.registry.take_over(&id).map(drop),
        Err(StateError::Alive(_))
    ));
    drop(held);
    assert!(!fixture.registry.find("job").unwrap().is_held());
    let _started = fixture.registry.take_over(&id).unwrap();
    assert!(!fixture.registry.find("job").unwrap().is_held());
}

#[test]
fn the_end_of_a_machine_whose_monitor_was_killed_is_noted_once() {
    let fixture = Fixture::new();
    let mut kept = fixture.create_kept("kept");
    kept.set_running().unwrap();
    let kept_id = kept.id().clone();
    Fixture::kill_monitor(kept);
    let mut passing = fixture.create("passing").unwrap();
    passing.set_running().unwrap();
    Fixture::kill_monitor(passing);

    fixture.registry.clean().unwrap();
    fixture.registry.remove(&kept_id).unwrap();

    let events = fixture.events();
    assert_eq!(
        events[4..],
        [
            "die passing 137",
            "destroy passing",
            "die kept 137",
            "destroy kept"
        ]
    );
}

#[test]
fn a_machine_is_listed_and_found_while_it_lives() {
    let fixture = Fixture::new();
    let mut machine = fixture.create("web").unwrap();
    machine.set_running().unwrap();

    let id = machine.id().as_str();
    let by_name = fixture.registry.find("web").unwrap();
    let by_id = fixture.registry.find(id).unwrap();
    let by_beginning = fixture.registry.find(&id[..8]).unwrap();

    assert_eq!(fixture.names(), ["web"]);
    assert_eq!(by_name.record, *machine.record());
    assert_eq!(by_id.record, by_name.record);
    assert_eq!(by_beginning.record, by_name.record);
    assert!(matches!(by_name.condition(), Condition::Running { .. }));
}

#[test]
fn an_ephemeral_machine_leaves_nothing() {
    let fixture = Fixture::new();
    let mut finished = fixture.create("one").unwrap();
    let dropped = fixture.create("two").unwrap();

    finished.finish(&Outcome::Exited(0)).unwrap();
    drop(finished);
    drop(dropped);

    assert!(fixture.entries().is_empty());
}

#[test]
fn a_machine_that_is_kept_says_how_it_ended() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");

    machine.finish(&Outcome::Exited(42)).unwrap();
    drop(machine);

    let found = fixture.registry.find("job").unwrap();
    assert!(!found.alive);
    assert!(matches!(found.condition(), Condition::Exited(ended) if ended.exit_code == 42));
}

#[test]
fn a_killed_monitor_leaves_a_dead_machine_if_it_is_kept() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    machine.set_running().unwrap();

    Fixture::kill_monitor(machine);

    let found = fixture.registry.find("job").unwrap();
    let killed = Condition::Dead {
        host_restarted: false,
    };
    assert_eq!(found.condition(), killed);
    assert_eq!(fixture.registry.clean().unwrap(), 0);
    fixture.registry.remove(&found.record.id).unwrap();
    assert!(fixture.entries().is_empty());
}

#[test]
fn a_machine_that_is_to_be_started_again_says_how_it_ended_and_how_often() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    for _ in 0..2 {
        machine.set_running().unwrap();
        machine.set_restarting(&Outcome::Exited(3)).unwrap();
    }

    let waiting = fixture.registry.find("job").unwrap();
    machine.note_stopped();
    machine.finish_restarting().unwrap();
    let stopped = fixture.registry.find("job").unwrap();

    assert!(matches!(waiting.condition(), Condition::Restarting(ended) if ended.exit_code == 3));
    assert_eq!(waiting.record.history.restarts, 2);
    assert!(!waiting.record.history.is_stopped);
    assert!(matches!(stopped.condition(), Condition::Exited(ended) if ended.exit_code == 3));
    assert!(stopped.record.history.is_stopped);
}

#[test]
fn a_start_by_a_person_begins_a_new_history() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    let id = machine.id().clone();
    machine.set_restarting(&Outcome::Exited(3)).unwrap();
    machine.note_stopped();
    machine.finish_restarting().unwrap();
    drop(machine);

    let (mut again, _control) = fixture.registry.take_over(&id).unwrap();
    again.set_running().unwrap();

    let found = fixture.registry.find("job").unwrap();
    assert_eq!(found.record.history, History::of_start());
}

#[test]
fn a_monitor_that_is_killed_while_it_waits_leaves_a_dead_machine() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    machine.set_restarting(&Outcome::Exited(3)).unwrap();

    Fixture::kill_monitor(machine);

    let found = fixture.registry.find("job").unwrap();
    let killed = Condition::Dead {
        host_restarted: false,
    };
    assert_eq!(found.condition(), killed);
    fixture.registry.remove(&found.record.id).unwrap();
    assert!(fixture.entries().is_empty());
}

#[test]
fn a_machine_that_another_boot_of_the_host_had_is_known_as_that() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    machine.record.history.boot = "another".to_owned();
    machine.set_running().unwrap();

    Fixture::kill_monitor(machine);

    let found = fixture.registry.find("job").unwrap();
    let restarted = Condition::Dead {
        host_restarted: true,
    };
    assert_eq!(found.condition(), restarted);
}

#[test]
fn what_a_killed_foreground_monitor_left_is_hidden_and_then_cleaned() {
    let fixture = Fixture::new();
    let machine = fixture.create("web").unwrap();
    let id = machine.id().clone();
    let alive = fixture.create("other").unwrap();

    Fixture::kill_monitor(machine);

    assert_eq!(fixture.names(), ["other"]);
    assert!(fixture.registry.find(id.as_str()).is_err());
    assert_eq!(fixture.registry.clean().unwrap(), 1);
    assert!(!fixture.registry.path.join(id.as_str()).exists());
    assert!(alive.directory().exists());
}

#[test]
fn a_monitor_that_is_killed_lets_go_of_its_machine() {
    use std::io::{Read, Write};

    let fixture = Fixture::new();
    let (mut ready, mut is_ready) = io::pipe().unwrap();
    let monitor = crate::process::fork(|| {
        let _machine = fixture.create("web").unwrap();
        is_ready.write_all(&[1]).unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
        0
    })
    .unwrap();
    ready.read_exact(&mut [0]).unwrap();
    let while_alive = fixture.names();

    rustix::process::kill_process(monitor.pid(), rustix::process::Signal::KILL).unwrap();
    monitor.wait().unwrap();

    assert_eq!(while_alive, ["web"]);
    assert!(fixture.names().is_empty());
    assert_eq!(fixture.registry.clean().unwrap(), 1);
    assert!(fixture.entries().is_empty());
}

#[test]
fn a_half_created_machine_is_cleaned() {
    let fixture = Fixture::new();
    let id = MachineId::random().unwrap();
    fs::create_dir(fixture.registry.path.join(format!("{CREATING}{id}"))).unwrap();
    fs::create_dir(fixture.registry.path.join(format!("{REMOVING}{id}"))).unwrap();
    fs::create_dir(fixture.registry.path.join(id.as_str())).unwrap();
    symlink("nowhere", fixture.registry.path.join("@web")).unwrap();

    fixture.registry.clean().unwrap();

    assert!(fixture.entries().is_empty());
}

#[test]
fn a_record_of_the_future_is_neither_listed_nor_removed() {
    let fixture = Fixture::new();
    let machine = fixture.create_kept("job");
    let record = machine.directory().join("record.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"format\":1", "\"format\":2")).unwrap();
    let directory = machine.directory().to_owned();
    drop(machine);

    assert!(fixture.names().is_empty());
    assert_eq!(fixture.registry.clean().unwrap(), 0);
    assert!(directory.exists());
}

#[test]
fn a_name_is_taken_while_its_machine_is_there() {
    let fixture = Fixture::new();
    let first = fixture.create("web").unwrap();

    let error = fixture.create("web").unwrap_err();

    assert!(matches!(&error, StateError::NameTaken { id, .. } if id == first.id()));
    assert!(error.help().unwrap().contains(first.id().short()));
    assert_eq!(fixture.names(), ["web"]);
    drop(first);
    assert!(fixture.create("web").is_ok());
}

#[test]
fn a_renamed_machine_keeps_its_name_whatever_its_monitor_writes_down() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("web");
    let registry = &fixture.registry;

    registry.rename("web", &"shop".parse().unwrap()).unwrap();
    machine.set_running().unwrap();
    machine.finish(&Outcome::Exited(0)).unwrap();
    drop(machine);

    assert_eq!(fixture.names(), ["shop"]);
    assert!(registry.find("web").is_err());
    registry
        .remove(&registry.find("shop").unwrap().record.id)
        .unwrap();
    assert!(fixture.entries().is_empty());
}

#[test]
fn a_name_that_is_taken_is_not_given_again() {
    let fixture = Fixture::new();
    let _first = fixture.create("web").unwrap();
    let _second = fixture.create("shop").unwrap();
    let rename = |to: &str| fixture.registry.rename("shop", &to.parse().unwrap());

    assert!(matches!(rename("web"), Err(StateError::NameTaken { .. })));
    assert!(matches!(rename("shop"), Err(StateError::SameName(_))));
    assert_eq!(fixture.names().len(), 2);
}

#[test]
fn a_workload_that_was_killed_for_want_of_memory_has_the_figure_on_record() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    machine.set_running().unwrap();
    let id = machine.id().clone();
    fixture.change(&id, |settings| settings.memory_bytes = 6 << 20);
    let killed = Outcome::Signalled {
        signal: 9,
        out_of_memory: true,
    };

    let ended = machine.finish(&killed).unwrap();

    assert!(ended.message.unwrap().contains("6291456 bytes"));
    assert!(ended.started.is_some());
}

#[test]
fn what_was_changed_meanwhile_stays_and_the_monitor_is_still_its_own() {
    let fixture = Fixture::new();
    let mut machine = fixture.create_kept("job");
    let id = machine.id().clone();
    fixture.change(&id, |settings| {
        settings.limits.pids_limit = 7;
        settings.monitor_pid = 0;
    });

    machine.set_running().unwrap();

    let settings = fixture.registry.find("job").unwrap().record.settings;
    assert_eq!(settings.limits.pids_limit, 7);
    assert_eq!(settings.monitor_pid, std::process::id());
    drop(machine);
    fixture.registry.remove(&id).unwrap();
    let gone = fixture.registry.change(&id, |_, _| Ok::<_, StateError>(()));
    assert!(matches!(gone, Err(StateError::Unknown(_))));
}

#[test]
fn a_change_that_is_refused_leaves_what_was_written_down() {
    let fixture = Fixture::new();
    let machine = fixture.create_kept("job");

    let refused = fixture.registry.change(machine.id(), |machine, settings| {
        assert!(machine.alive);
        settings.limits.pids_limit = 7;
        Err(StateError::Alive(machine.record.id.clone()))
    });

    assert!(matches!(refused, Err(StateError::Alive(_))));
    let settings = fixture.registry.find("job").unwrap().record.settings;
    assert_eq!(settings.limits.pids_limit, 0);
}

#[test]
fn a_record_of_an_earlier_version_is_read() {
    let fixture = Fixture::new();
    let machine = fixture.create_kept("job");
    let record = machine.directory().join("record.json");
    let mut value: serde_json::Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("settings");
    fs::write(&record, value.to_string()).unwrap();

    let found = fixture.registry.find("job").unwrap();

    assert_eq!(found.record.settings, Settings::default());
}

#[test]
fn the_name_of_a_leftover_is_free() {
    let fixture = Fixture::new();
    Fixture::kill_monitor(fixture.create("web").unwrap());

    let machine = fixture.create("web").unwrap();

    assert_eq!(
        fixture.registry.find("web").unwrap().record.id,
        *machine.id()
    );
}

#[test]
fn of_many_who_race_for_a_name_one_gets_it() {
    let fixture = Fixture::new();

    let results: Vec<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| fixture.create("web")))
            .collect();
        racers.into_iter().map(|it| it.join().unwrap()).collect()
    });

    let winners = results.iter().filter(|it| it.is_ok()).count();
    let losers = results
        .iter()
        .filter(|it| matches!(it, Err(StateError::NameTaken { .. })))
        .count();
    assert_eq!((winners, losers), (1, 15));
    assert_eq!(fixture.names(), ["web"]);
}

#[test]
fn racing_for_the_name_of_a_leftover_has_one_winner() {
    let fixture = Fixture::new();
    Fixture::kill_monitor(fixture.create("web").unwrap());

    let results: Vec<_> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|_| scope.spawn(|| fixture.create("web")))
            .collect();
        racers.into_iter().map(|it| it.join().unwrap()).collect()
    });

    let winners: Vec<_> = results.iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let holder = fixture.registry.find("web").unwrap();
    assert_eq!(holder.record.id, *winners[0].id());
}

#[test]
fn cleaning_never_takes_a_machine_that_is_being_created() {
    let fixture = Fixture::new();

    std::thread::scope(|scope| {
        let cleaning =
            scope.spawn(|| (0..100).try_for_each(|_| fixture.registry.clean().map(drop)));
        let creating = scope.spawn(|| {
            (0..100).try_for_each(|_| {
                let machine = fixture.create_with(None, true)?;
                fixture.registry.find(machine.id().as_str()).map(drop)
            })
        });
        cleaning.join().unwrap().unwrap();
        creating.join().unwrap().unwrap();
    });

    assert!(fixture.entries().is_empty());
}

#[test]
fn made_up_names_are_found_again() {
    let fixture = Fixture::new();
    let machine = fixture.create_with(None, true).unwrap();

    let name = machine.record().name.to_string();

    assert_eq!(
        fixture.registry.find(&name).unwrap().record.id,
        *machine.id()
    );
}

#[test]
fn a_machine_that_lives_is_not_removed() {
    let fixture = Fixture::new();
    let machine = fixture.create_kept("job");

    let error = fixture.registry.remove(machine.id()).unwrap_err();

    assert!(matches!(error, StateError::Alive(_)));
    assert!(machine.directory().exists());
}

#[test]
fn an_unknown_machine_is_named_with_help() {
    let fixture = Fixture::new();

    let error = fixture.registry.find("nobody").unwrap_err();

    assert_eq!(error.to_string(), "there is no machine 'nobody'");
    assert!(error.help().unwrap().contains("vmm ps -a"));
    assert!(fixture.registry.find("").is_err());
}

#[test]
fn the_beginning_of_an_id_must_be_unique() {
    let fixture = Fixture::new();
    let machines: Vec<_> = (0..17)
        .map(|_| fixture.create_with(None, true).unwrap())
        .collect();

    // Of 17 ids two begin with the same of 16 digits.
    let ambiguous = machines.iter().any(|machine| {
        let digit = &machine.id().as_str()[..1];
        matches!(fixture.registry.find(digit), Err(StateError::Ambiguous(_)))
    });

    assert!(ambiguous);
}
