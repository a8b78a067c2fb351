//! The findings as tables for a terminal.

use std::fmt::Write as _;
use std::time::Duration;

use super::findings::{Findings, Idle, LoopFigure, Starts};
use super::statistics::{Spread, Time};
use crate::commands::output::{Table, print_line, printable, spell_duration, spell_size};
use crate::report::Report;

/// Columns of a paragraph.
const WIDTH: usize = 100;

/// Prints everything.
pub(super) fn print(findings: &Findings) -> Result<(), Report> {
    for (name, value) in facts(findings) {
        print_line(format!("{name:<10} {}", printable(&value)))?;
    }
    if !findings.starts.is_empty() {
        print_line("\nSTART")?;
        starts(&findings.starts).print()?;
    }
    if !findings.idle.is_empty() {
        print_line("\nIDLE MEMORY")?;
        idle(&findings.idle).print()?;
    }
    if !findings.loops.is_empty() {
        print_line("\nLOOPS")?;
        loops(&findings.loops).print()?;
    }
    if !findings.not_measured.is_empty() {
        print_line("\nNOT MEASURED")?;
        for gap in &findings.not_measured {
            print_line(format!(
                "- {}: {}",
                printable(&gap.what),
                printable(&gap.why)
            ))?;
        }
    }
    print_line("\nHOW IT WAS MEASURED")?;
    for method in &findings.methods {
        print_line(wrapped(&format!("- {}: {}", method.figure, method.how)))?;
    }
    Ok(())
}

/// What was measured on what, by name.
pub(super) fn facts(findings: &Findings) -> Vec<(&'static str, String)> {
    let host = &findings.host;
    let engines: Vec<String> = findings
        .engines
        .iter()
        .map(|it| format!("{} {}", it.engine, it.version))
        .collect();
    vec![
        (
            "image",
            format!("{} ({})", findings.image, findings.image_id),
        ),
        ("command", findings.command.join(" ")),
        (
            "host",
            format!(
                "{} processors ({}), {} of memory, Linux {}",
                host.processors,
                host.cpu,
                spell_size(host.memory_bytes),
                host.kernel
            ),
        ),
        ("kvm", host.kvm.clone()),
        ("engines", engines.join("; ")),
        ("took", spell_duration(findings.took_seconds)),
    ]
}

fn starts(rows: &[Starts]) -> Table<9> {
    let mut table = Table::new([
        "ENGINE",
        "AT ONCE",
        "RUNS",
        "FIRST BYTE p50",
        "p90",
        "p99",
        "EXIT p50",
        "p90",
        "p99",
    ]);
    for row in rows {
        let [first_50, first_90, first_99] = percentiles(row.first_byte.as_ref());
        let [exit_50, exit_90, exit_99] = percentiles(Some(&row.exit));
        table.row([
            row.engine.to_owned(),
            row.concurrency.to_string(),
            row.runs.to_string(),
            first_50,
            first_90,
            first_99,
            exit_50,
            exit_90,
            exit_99,
        ]);
    }
    table
}

/// The three percentiles in words; a dash for what is not claimed.
pub(super) fn percentiles(spread: Option<&Spread>) -> [String; 3] {
    let of = |which: fn(&Spread) -> Option<Time>| spread.and_then(which).map(spell_time);
    [
        of(|spread| spread.p50_ms),
        of(|spread| spread.p90_ms),
        of(|spread| spread.p99_ms),
    ]
    .map(|time| time.unwrap_or_else(|| "-".to_owned()))
}

fn idle(rows: &[Idle]) -> Table<4> {
    let mut table = Table::new(["ENGINE", "INSTANCES", "PSS EACH", "PSS TOGETHER"]);
    for row in rows {
        table.row([
            row.engine.to_owned(),
            row.instances.to_string(),
            spell_size(row.pss_bytes_per_instance),
            spell_size(row.pss_bytes),
        ]);
    }
    table
}

fn loops(rows: &[LoopFigure]) -> Table<6> {
    let mut table = Table::new([
        "LOOP",
        "ENGINE",
        "RUNS",
        "ITERATION",
        "LEAST TO MOST",
        "TO NATIVE",
    ]);
    for row in rows {
        table.row([
            row.r#loop.to_owned(),
            row.engine.to_owned(),
            row.runs.to_string(),
            spell_nanoseconds(row.nanoseconds_per_iteration),
            spell_range(&row.all_nanoseconds),
            spell_ratio(row.ratio_to_native),
        ]);
    }
    table
}

/// The first and the last of sorted times.
fn spell_range(sorted: &[f64]) -> String {
    match sorted {
        [least, .., most] => format!(
            "{} to {}",
            spell_nanoseconds(*least),
            spell_nanoseconds(*most)
        ),
        _ => "-".to_owned(),
    }
}

/// A ratio with two digits behind the point.
pub(super) fn spell_ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"))
}

pub(super) fn spell_nanoseconds(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.0} ns"),
        ..1e6 => format!("{:.2} us", nanoseconds / 1e3),
        _ => spell_time(Time(Duration::from_secs_f64(nanoseconds / 1e9))),
    }
}

/// A time with three digits that count.
pub(super) fn spell_time(time: Time) -> String {
    let milliseconds = time.milliseconds();
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        ..100.0 => format!("{milliseconds:.1} ms"),
        ..1e3 => format!("{milliseconds:.0} ms"),
        ..1e4 => format!("{:.2} s", milliseconds / 1e3),
        _ => format!("{:.1} s", milliseconds / 1e3),
    }
}

/// Breaks a paragraph into lines; all but the first are indented.
fn wrapped(paragraph: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in paragraph.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        // A string takes everything.
        let _ = write!(text, "{word}");
        column += length;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(microseconds: u64) -> Time {
        Time(Duration::from_micros(microseconds))
    }

    #[test]
    fn times_are_spelled_with_three_digits() {
        assert_eq!(spell_time(time(1_234)), "1.23 ms");
        assert_eq!(spell_time(time(12_340)), "12.3 ms");
        assert_eq!(spell_time(time(123_400)), "123 ms");
        assert_eq!(spell_time(time(5_980_000)), "5.98 s");
        assert_eq!(spell_nanoseconds(456.0), "456 ns");
        assert_eq!(spell_nanoseconds(45_600.0), "45.60 us");
    }

    #[test]
    fn what_is_not_claimed_is_a_dash() {
        let spread = Spread::of([Duration::from_millis(5)]);

        assert_eq!(percentiles(Some(&spread)), ["5.00 ms", "-", "-"]);
        assert_eq!(percentiles(None), ["-", "-", "-"]);
        assert_eq!(spell_ratio(None), "-");
    }

    #[test]
    fn a_long_paragraph_is_broken_between_words() {
        let text = wrapped(&"word ".repeat(30));

        assert!(text.lines().all(|line| line.len() <= WIDTH));
        assert_eq!(text.split_whitespace().count(), 30);
    }
}
