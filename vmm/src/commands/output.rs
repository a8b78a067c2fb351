//! What commands print on standard output: plain columns, JSON, lines.

use std::io::{self, Write};

use serde::Serialize;

use crate::report::Report;

/// Spaces between two columns, as docker prints them.
const GAP: usize = 3;

/// Rows below a header, in columns as wide as they need to be.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    rows: Columns,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// Starts a table with its header.
    pub(super) fn new(header: [&str; COLUMNS]) -> Self {
        Self {
            rows: Columns(vec![header.map(str::to_owned).to_vec()]),
        }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows
            .0
            .push(cells.map(|cell| printable(&cell)).to_vec());
    }

    /// Prints the table.
    pub(super) fn print(&self) -> Result<(), Report> {
        self.rows.print()
    }
}

/// Rows of any number of cells.
#[derive(Debug, Default)]
pub(super) struct Columns(Vec<Vec<String>>);

impl Columns {
    /// Adds a row.
    pub(super) fn row(&mut self, cells: &[String]) {
        self.0
            .push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// Prints the rows.
    pub(super) fn print(&self) -> Result<(), Report> {
        let mut output = io::stdout().lock();
        self.write(&mut output)
            .and_then(|()| output.flush())
            .map_err(Report::of_output)
    }

    fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let lines = self.lines();
        lines.iter().try_for_each(|line| writeln!(output, "{line}"))
    }

    /// The rows as lines, without their ends.
    pub(super) fn lines(&self) -> Vec<String> {
        let count = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width_of = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..count).map(width_of).collect();
        let line_of = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let padding = width - cell.chars().count() + GAP;
                line.extend(std::iter::repeat_n(' ', padding));
            }
            line.trim_end().to_owned()
        };
        self.0.iter().map(line_of).collect()
    }
}

/// Prints a value as JSON for a program.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    serde_json::to_writer_pretty(&mut output, value)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(output))
        .and_then(|()| output.flush())
        .map_err(Report::of_output)
}

/// Prints a text as it is.
pub(super) fn print_text(text: &str) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .map_err(Report::of_output)
}

/// Prints one line.
pub(super) fn print_line(line: impl AsRef<str>) -> Result<(), Report> {
    let mut output = io::stdout().lock();
    writeln!(output, "{}", line.as_ref())
        .and_then(|()| output.flush())
        .map_err(Report::of_output)
}

/// Replaces control characters: names and histories come from images, and a terminal obeys them.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|character| {
            if character.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                character
            }
        })
        .collect()
}

/// The same of several lines, which stay so.
pub(super) fn printable_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// Shortens a text to `length` characters, the last of them an ellipsis.
pub(super) fn shorten(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(length.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Spells a time span as docker does: `5 seconds`, `About a minute`, `3 hours`, `2 weeks`.
pub(super) fn spell_duration(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    const WEEK: u64 = 7 * DAY;
    const MONTH: u64 = 30 * DAY;
    const YEAR: u64 = 365 * DAY;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        MINUTE..120 => "About a minute".to_owned(),
        120..HOUR => format!("{} minutes", seconds / MINUTE),
        HOUR..7200 => "About an hour".to_owned(),
        7200..172_800 => format!("{} hours", seconds / HOUR),
        172_800..1_209_600 => format!("{} days", seconds / DAY),
        1_209_600..5_184_000 => format!("{} weeks", seconds / WEEK),
        5_184_000..63_072_000 => format!("{} months", seconds / MONTH),
        _ => format!("{} years", seconds / YEAR),
    }
}

/// Spells a size as docker does: decimal units, three digits that count.
pub(super) fn spell_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes}B");
    }
    let mut scale = 1000;
    let mut unit = 0;
    while bytes / scale >= 1000 && unit + 1 < UNITS.len() {
        scale *= 1000;
        unit += 1;
    }
    let whole = bytes / scale;
    let thousandths = (bytes % scale) / (scale / 1000);
    let suffix = UNITS[unit];
    match whole {
        0..10 => format!("{whole}.{:02}{suffix}", thousandths / 10),
        10..100 => format!("{whole}.{}{suffix}", thousandths / 100),
        _ => format!("{whole}{suffix}"),
    }
}

/// Spells a size of memory as docker does: binary units, four digits that count, no zeros at the end.
pub(super) fn spell_memory(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = UNITS
        .len()
        .min(1 + usize::try_from(bytes.max(1).ilog2() / 10).unwrap_or(0))
        - 1;
    let scale = 1_u128 << (10 * unit);
    let decimals = match u128::from(bytes) / scale {
        0..10 => 3,
        10..100 => 2,
        100..1000 => 1,
        _ => 0,
    };
    let factor = 10_u128.pow(decimals);
    let rounded = (u128::from(bytes) * factor + scale / 2) / scale;
    let (whole, rest) = (rounded / factor, rounded % factor);
    let width = usize::try_from(decimals).unwrap_or(0);
    let number = match decimals {
        0 => whole.to_string(),
        _ => format!("{whole}.{rest:0width$}"),
    };
    let number = match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.'),
        false => &number,
    };
    format!("{number}{}", UNITS.get(unit).unwrap_or(&"B"))
}

/// Spells a part of a whole as docker does, in hundredths of a percent; none of nothing.
pub(super) fn spell_percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", "SIZE"]);
        table.row(["a-long-name".into(), "1B".into()]);

        let mut printed = Vec::new();
        table.rows.write(&mut printed).unwrap();

        assert_eq!(
            String::from_utf8(printed).unwrap(),
            "NAME          SIZE\na-long-name   1B\n"
        );
    }

    #[test]
    fn a_cell_cannot_command_the_terminal() {
        let mut table = Table::new(["NAME"]);
        table.row(["\u{1b}[31mred\n".into()]);

        let mut printed = Vec::new();
        table.rows.write(&mut printed).unwrap();

        assert_eq!(
            String::from_utf8(printed).unwrap(),
            "NAME\n\u{fffd}[31mred\u{fffd}\n"
        );
    }

    #[test]
    fn long_texts_end_with_an_ellipsis() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abcde…");
    }

    #[test]
    fn spans_of_time_are_spelled_as_docker_does() {
        assert_eq!(spell_duration(0), "Less than a second");
        assert_eq!(spell_duration(59), "59 seconds");
        assert_eq!(spell_duration(90), "About a minute");
        assert_eq!(spell_duration(7199), "About an hour");
        assert_eq!(spell_duration(3 * 86_400), "3 days");
    }

    #[test]
    fn sizes_are_spelled_with_three_digits() {
        assert_eq!(spell_size(999), "999B");
        assert_eq!(spell_size(1234), "1.23kB");
        assert_eq!(spell_size(12_345_678), "12.3MB");
        assert_eq!(spell_size(123_456_789_000), "123GB");
    }

    #[test]
    fn memory_is_spelled_in_binary_units_with_four_digits() {
        assert_eq!(spell_memory(0), "0B");
        assert_eq!(spell_memory(1023), "1023B");
        assert_eq!(spell_memory(1536), "1.5KiB");
        assert_eq!(spell_memory(128 << 20), "128MiB");
        assert_eq!(spell_memory(1_388_000), "1.324MiB");
        assert_eq!(spell_memory((10 << 20) - 1), "10MiB");
        assert_eq!(spell_memory(u64::MAX), "16EiB");
    }

    #[test]
    fn parts_are_spelled_as_percent() {
        assert_eq!(spell_percent(1, 3), "33.33%");
        assert_eq!(spell_percent(250, 100), "250.00%");
        assert_eq!(spell_percent(5, 100_000), "0.00%");
        assert_eq!(spell_percent(0, 0), "0.00%");
    }
}
