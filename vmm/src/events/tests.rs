use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;

use tempfile::TempDir;

use super::{Event, EventReader, Journal};
use crate::moment::Moment;

fn event(action: &str) -> Event {
    Event {
        time: Moment::of_seconds(1),
        action: action.to_owned(),
        id: "12ab".to_owned(),
        attributes: BTreeMap::from([("name".to_owned(), "web".to_owned())]),
        labels: BTreeMap::from([("role".to_owned(), "front\nend".to_owned())]),
    }
}

fn journal() -> (TempDir, Journal) {
    let machines = tempfile::tempdir().unwrap();
    let journal = Journal::of(machines.path());
    (machines, journal)
}

fn reader(journal: &Journal, from_beginning: bool) -> EventReader {
    EventReader::open(journal.directory().unwrap(), from_beginning).unwrap()
}

fn actions(reader: &mut EventReader) -> Vec<String> {
    let events = std::iter::from_fn(|| reader.next_event().unwrap());
    events.map(|event| event.action).collect()
}

#[test]
fn an_event_is_read_as_it_was_appended() {
    let (_machines, journal) = journal();

    journal.append(&event("create"));

    let mut reader = reader(&journal, true);
    assert_eq!(reader.next_event().unwrap(), Some(event("create")));
    assert_eq!(reader.next_event().unwrap(), None);
}

#[test]
fn whoever_opens_at_the_end_reads_only_what_comes() {
    let (_machines, journal) = journal();
    let mut first = reader(&journal, false);
    journal.append(&event("create"));
    let mut second = reader(&journal, false);
    journal.append(&event("start"));

    assert_eq!(actions(&mut first), ["create", "start"]);
    assert_eq!(actions(&mut second), ["start"]);
}

#[test]
fn a_full_journal_is_put_aside_and_a_reader_misses_nothing() {
    let (_machines, journal) = journal();
    let mut follower = reader(&journal, false);
    let mut followed = Vec::new();
    let long = "x".repeat(10_000);
    for number in 0..1000 {
        journal.append(&event(&format!("{number} {long}")));
        if number % 50 == 0 {
            followed.extend(actions(&mut follower));
        }
    }
    followed.extend(actions(&mut follower));

    let number = |action: &String| action.split(' ').next().unwrap().parse::<u32>().unwrap();
    let followed: Vec<u32> = followed.iter().map(number).collect();
    assert_eq!(followed, (0..1000).collect::<Vec<_>>());
    let mut kept: Vec<u32> = actions(&mut reader(&journal, true))
        .iter()
        .map(number)
        .collect();
    assert!(kept.len() >= 400, "{} are kept", kept.len());
    assert_eq!(kept.pop(), Some(999));
    let files = fs::read_dir(journal.directory().unwrap()).unwrap();
    let sizes: Vec<u64> = files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .collect();
    assert_eq!(sizes.len(), 2);
    assert!(sizes.iter().sum::<u64>() < 9 << 20, "{sizes:?}");
}

#[test]
fn writers_at_once_lose_nothing_and_do_not_mix() {
    let (_machines, journal) = journal();
    let long = "x".repeat(3000);

    std::thread::scope(|scope| {
        for writer in 0..8 {
            let (journal, long) = (&journal, &long);
            scope.spawn(move || {
                for number in 0..200 {
                    journal.append(&event(&format!("{writer} {number} {long}")));
                }
            });
        }
    });

    let mut read = actions(&mut reader(&journal, true));
    read.sort();
    read.dedup();
    // They fill a file once, and what was before the first is gone only after two.
    assert_eq!(read.len(), 1600);
    assert!(read.iter().all(|action| action.ends_with(&long)));
}

#[test]
fn a_damaged_line_is_left_out_alone() {
    let (_machines, journal) = journal();
    journal.append(&event("create"));
    let path = journal.directory().unwrap().join("journal");
    let append = |bytes: &[u8]| {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(bytes).unwrap();
    };
    append(br#"{"time":1,"action":"sta"#);
    journal.append(&event("die"));
    append(&vec![b'x'; 1 << 20]);
    journal.append(&event("destroy"));

    let read = actions(&mut reader(&journal, true));

    assert_eq!(read, ["create", "die", "destroy"]);
}

#[test]
fn labels_that_are_too_long_are_left_out() {
    let (_machines, journal) = journal();
    let mut long = event("create");
    long.labels.insert("text".to_owned(), "x".repeat(200 << 10));

    journal.append(&long);

    let read = reader(&journal, true).next_event().unwrap().unwrap();
    assert!(read.labels.is_empty());
    assert_eq!(read.attributes, long.attributes);
}
