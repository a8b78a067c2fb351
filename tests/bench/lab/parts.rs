//! Tests of the benchmark's parts that need no lab. The benchmark itself has a `main` instead of a harness.

#![expect(dead_code, reason = "main.rs uses it")]

mod arguments;
mod measure;
mod report;
mod scenarios;

mod figures {
    use crate::measure::Figure;
    use crate::scenarios::Clock;

    const HISTOGRAM: &str = "# event histogram\n\nTotals:\n    Hits: 3088\n    Entries: 9\n";

    #[test]
    fn the_middle_of_three_counts_and_the_first_time_does_not() {
        let times = "1000000 9000000 99000000\n3000000 4000000 7000000\n1000000 2000000 9000000\n2000000 3000000 8000000\n";

        let figure = Figure::read(Clock::Outside, &format!("{times}{HISTOGRAM}")).unwrap();

        let expected = Figure {
            virtual_ms: 3.0,
            first_byte_ms: Some(2.0),
            returned_ms: Some(8.0),
            spread: 2.0 / 3.0,
            exits: 3088,
        };
        assert_eq!(figure, expected);
    }

    #[test]
    fn who_says_nothing_has_no_first_byte() {
        let times = "- 1000000 2000000\n".repeat(4);

        let figure = Figure::read(Clock::Outside, &format!("{times}{HISTOGRAM}")).unwrap();

        assert_eq!(figure.first_byte_ms, None);
        assert_eq!(figure.returned_ms, Some(2.0));
    }

    #[test]
    fn a_command_that_takes_its_own_time_has_that_alone() {
        let times = "9000000\n".to_owned() + &"5000000\n".repeat(3);

        let figure = Figure::read(Clock::Inside, &format!("{times}{HISTOGRAM}")).unwrap();

        let expected = Figure {
            virtual_ms: 5.0,
            first_byte_ms: None,
            returned_ms: None,
            spread: 0.0,
            exits: 3088,
        };
        assert_eq!(figure, expected);
    }

    #[test]
    fn a_time_that_is_missing_makes_no_figure() {
        let times = "- 1000000 2000000\n".repeat(3);

        let figure = Figure::read(Clock::Outside, &format!("{times}{HISTOGRAM}"));

        assert_eq!(figure, None);
    }
}

mod reports {
    use crate::measure::Figure;
    use crate::report::{Committed, as_json, row, table};
    use crate::scenarios::{SCENARIOS, Scenario};

    fn scenario(name: &str) -> &'static Scenario {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found.expect("it is one of them")
    }

    fn figure(virtual_ms: f64) -> Figure {
        Figure {
            virtual_ms,
            first_byte_ms: None,
            returned_ms: None,
            spread: 0.001,
            exits: 7,
        }
    }

    fn committed(figures: &[(&Scenario, Figure)]) -> Committed {
        Committed(as_json(&[], figures))
    }

    #[test]
    fn a_row_has_three_times_and_the_share_of_the_yardstick() {
        let figure = Figure {
            first_byte_ms: Some(38.04),
            returned_ms: Some(47.06),
            ..figure(45.0)
        };

        let row = row(scenario("vmm-run-cold"), &figure, 20.0);

        assert!(row.ends_with(" | 38.0 | 45.0 | 47.1 | 2.2 | 7 |"), "{row}");
    }

    #[test]
    fn work_that_takes_its_own_time_has_one_figure() {
        let row = row(scenario("vmm-cpu"), &figure(45.0), 20.0);

        assert!(row.ends_with("in vmm | 45.0 | 7 |"), "{row}");
    }

    #[test]
    fn what_is_committed_comes_back_as_it_was() {
        let measured = Figure {
            first_byte_ms: Some(38.0),
            returned_ms: Some(47.0),
            ..figure(45.0)
        };

        let committed = committed(&[(scenario("vmm-run-cold"), measured.clone())]);

        assert_eq!(committed.figure("vmm-run-cold"), measured);
    }

    #[test]
    fn a_figure_that_moved_by_more_than_the_tolerance_is_told() {
        let cold = scenario("vmm-run-cold");
        let committed = committed(&[(cold, figure(100.0))]);

        assert_eq!(committed.moved(cold, &figure(102.9)), None);
        assert_eq!(
            committed.moved(cold, &figure(103.1)).as_deref(),
            Some("vmm-run-cold was 100.0 virtual ms, is 103.1")
        );
    }

    #[test]
    fn a_target_stands_beside_what_is_reached() {
        let (one, two) = (scenario("vmm-run-warm"), scenario("vmm-run-warm-2-vcpus"));

        let table = table(&[], &[(one, figure(20.0)), (two, figure(21.0))]);

        assert!(table.contains("| 10.0 | 20.0, missed |\n"), "{table}");
        assert!(table.contains("| 1.10 | 1.05 |\n"), "{table}");
        assert!(!table.contains("a hundred, one after the other"), "{table}");
    }
}

mod every_scenario {
    use std::collections::BTreeSet;

    use crate::scenarios::{Part, SCENARIOS, Scenario};

    /// Whether the first run of its image would leave work behind.
    fn is_undecided(scenario: &&Scenario) -> bool {
        let Scenario { before, .. } = scenario;
        let is_run = scenario.takes.contains(&Part::Vmm) && scenario.name != "vmm-load";
        is_run && !before.contains("VMM_NO_TEMPLATE=1") && !before.contains("vmm prepare ")
    }

    #[test]
    fn every_name_is_there_once() {
        let names: BTreeSet<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();

        assert_eq!(names.len(), SCENARIOS.len());
    }

    #[test]
    fn every_machine_boots_always_or_is_a_clone_always() {
        let undecided: Vec<&Scenario> = SCENARIOS.iter().filter(is_undecided).collect();

        assert!(undecided.is_empty(), "{undecided:?}");
    }

    #[test]
    fn every_clone_says_so_in_its_name() {
        let named = |scenario: &&Scenario| scenario.name.contains("-warm");
        // Others measure what is done with clones that run already.
        let cloned = |scenario: &&Scenario| {
            scenario.before.contains("vmm prepare ") && !scenario.before.contains("vmm run -d ")
        };
        let names = |which: fn(&&Scenario) -> bool| -> Vec<&str> {
            let wanted = SCENARIOS.iter().filter(which);
            wanted.map(|scenario| scenario.name).collect()
        };

        assert_eq!(names(named), names(cloned));
    }
}
