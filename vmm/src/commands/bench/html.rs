//! The findings as one page with charts, which needs nothing from a network and runs no script.
//!
//! What comes from an image or from another program is text: every string that is not of this file is escaped.

use std::fmt::Write as _;

use super::findings::{Findings, LoopFigure, Starts};
use super::statistics::{Spread, Time};
use super::text::{facts, percentiles, spell_nanoseconds, spell_ratio, spell_time};
use crate::commands::output::{printable, spell_size};

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; }
svg { display: block; max-width: 100%; margin: .5rem 0 1.5rem; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.bar { fill: #4a7fb5; } .ours { fill: #c2632b; } .mark { stroke: currentColor; }";

/// Columns and rows of a chart, in pixels.
const LABEL_WIDTH: f64 = 110.0;
const BAR_WIDTH: f64 = 560.0;
const CHART_WIDTH: f64 = 960.0;
const ROW_HEIGHT: f64 = 24.0;
const BAR_HEIGHT: f64 = 16.0;

/// A bar of a chart.
#[derive(Debug, Clone)]
struct Bar {
    label: String,
    value: f64,
    /// Lines across the bar's row: further values of the same figure.
    marks: Vec<f64>,
    text: String,
}

/// Writes the page.
pub(super) fn page(findings: &Findings) -> String {
    let mut body = String::new();
    heading(&mut body, 1, "vmm bench");
    let rows = facts(findings);
    let rows: Vec<[String; 2]> = rows
        .into_iter()
        .map(|(name, it)| [name.into(), it])
        .collect();
    table(&mut body, ["", ""], &rows);
    start_section(&mut body, &findings.starts);
    idle_section(&mut body, findings);
    loop_section(&mut body, findings);
    heading(&mut body, 2, "Not measured");
    let gaps = findings.not_measured.iter();
    list(
        &mut body,
        gaps.map(|gap| format!("{}: {}", gap.what, gap.why)),
    );
    heading(&mut body, 2, "How it was measured");
    let methods = findings.methods.iter();
    list(
        &mut body,
        methods.map(|it| format!("{}: {}", it.figure, it.how)),
    );
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>vmm bench: {}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(&findings.image)
    )
}

fn start_section(body: &mut String, starts: &[Starts]) {
    if starts.is_empty() {
        return;
    }
    heading(body, 2, "Start");
    paragraph(
        body,
        "Bars are p50; the lines are p90 and p99 where there are enough starts.",
    );
    let mut levels: Vec<u32> = starts.iter().map(|row| row.concurrency).collect();
    levels.sort_unstable();
    levels.dedup();
    for level in levels {
        let rows = || starts.iter().filter(move |row| row.concurrency == level);
        heading(body, 3, &format!("First byte, {level} at once"));
        chart(
            body,
            rows().filter_map(|row| start_bar(row.engine, row.first_byte.as_ref()?)),
        );
        heading(body, 3, &format!("Exit, {level} at once"));
        chart(
            body,
            rows().filter_map(|row| start_bar(row.engine, &row.exit)),
        );
    }
    let rows: Vec<[String; 9]> = starts
        .iter()
        .map(|row| {
            let [first_50, first_90, first_99] = percentiles(row.first_byte.as_ref());
            let [exit_50, exit_90, exit_99] = percentiles(Some(&row.exit));
            [
                row.engine.to_owned(),
                row.concurrency.to_string(),
                row.runs.to_string(),
                first_50,
                first_90,
                first_99,
                exit_50,
                exit_90,
                exit_99,
            ]
        })
        .collect();
    let header = [
        "engine",
        "at once",
        "runs",
        "first byte p50",
        "p90",
        "p99",
        "exit p50",
        "p90",
        "p99",
    ];
    table(body, header, &rows);
}

fn start_bar(engine: &str, spread: &Spread) -> Option<Bar> {
    let p50 = spread.p50_ms?;
    let marks = [spread.p90_ms, spread.p99_ms];
    Some(Bar {
        label: engine.to_owned(),
        value: p50.milliseconds(),
        marks: marks
            .into_iter()
            .flatten()
            .map(Time::milliseconds)
            .collect(),
        text: spell_time(p50),
    })
}

fn idle_section(body: &mut String, findings: &Findings) {
    if findings.idle.is_empty() {
        return;
    }
    heading(body, 2, "Idle memory of an instance (PSS)");
    let bars = findings.idle.iter().map(|row| Bar {
        label: format!("{} ({})", row.engine, row.instances),
        value: in_mebibytes(row.pss_bytes_per_instance),
        marks: Vec::new(),
        text: spell_size(row.pss_bytes_per_instance),
    });
    chart(body, bars);
    paragraph(body, "In parentheses: how many instances idled together.");
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the length of a bar needs no more digits"
)]
fn in_mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

fn loop_section(body: &mut String, findings: &Findings) {
    if findings.loops.is_empty() {
        return;
    }
    heading(body, 2, "Loops");
    let mut names: Vec<&str> = findings.loops.iter().map(|row| row.r#loop).collect();
    names.dedup();
    for name in names {
        heading(body, 3, &format!("{name}: time of an iteration"));
        let rows = findings.loops.iter().filter(|row| row.r#loop == name);
        let bars = rows.map(|row| Bar {
            label: row.engine.to_owned(),
            value: row.nanoseconds_per_iteration,
            marks: Vec::new(),
            text: loop_text(row),
        });
        chart(body, bars);
    }
}

fn loop_text(row: &LoopFigure) -> String {
    let time = spell_nanoseconds(row.nanoseconds_per_iteration);
    let ratio = match row.ratio_to_native {
        Some(ratio) => format!(", {} native", spell_ratio(Some(ratio))),
        None => String::new(),
    };
    format!("{time}{ratio}, runs: {}", row.runs)
}

/// Draws horizontal bars from zero, the longest value as long as there is room.
fn chart(body: &mut String, bars: impl Iterator<Item = Bar>) {
    let bars: Vec<Bar> = bars.collect();
    let values = bars
        .iter()
        .flat_map(|bar| bar.marks.iter().chain([&bar.value]));
    let longest = values.copied().fold(f64::MIN_POSITIVE, f64::max);
    let scale = BAR_WIDTH / longest;
    let mut rows = String::new();
    let mut top = 0.0;
    for bar in &bars {
        let class = if bar.label.starts_with("vmm") {
            "bar ours"
        } else {
            "bar"
        };
        let base = top + BAR_HEIGHT - 3.0;
        let length = bar.value * scale;
        let furthest = bar.marks.iter().copied().fold(bar.value, f64::max) * scale;

        let text_at = LABEL_WIDTH + furthest + 8.0;
        write_to(
            &mut rows,
            format_args!(
                "<text x=\"0\" y=\"{base:.1}\">{}</text><rect class=\"{class}\" x=\"{LABEL_WIDTH}\" y=\"{top:.1}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\"/>",
                escaped(&bar.label)
            ),
        );
        for mark in &bar.marks {
            let at = LABEL_WIDTH + mark * scale;
            let end = top + BAR_HEIGHT;
            write_to(
                &mut rows,
                format_args!(
                    "<line class=\"mark\" x1=\"{at:.1}\" y1=\"{top:.1}\" x2=\"{at:.1}\" y2=\"{end:.1}\"/>"
                ),
            );
        }
        write_to(
            &mut rows,
            format_args!(
                "<text x=\"{text_at:.1}\" y=\"{base:.1}\">{}</text>\n",
                escaped(&bar.text)
            ),
        );
        top += ROW_HEIGHT;
    }
    write_to(
        body,
        format_args!(
            "<svg role=\"img\" width=\"{CHART_WIDTH}\" height=\"{top}\" viewBox=\"0 0 {CHART_WIDTH} {top}\">\n{rows}</svg>\n"
        ),
    );
}

fn heading(body: &mut String, level: u8, text: &str) {
    write_to(
        body,
        format_args!("<h{level}>{}</h{level}>\n", escaped(text)),
    );
}

fn paragraph(body: &mut String, text: &str) {
    write_to(body, format_args!("<p>{}</p>\n", escaped(text)));
}

fn list(body: &mut String, items: impl Iterator<Item = String>) {
    body.push_str("<ul>\n");
    for item in items {
        write_to(body, format_args!("<li>{}</li>\n", escaped(&item)));
    }
    body.push_str("</ul>\n");
}

fn table<const COLUMNS: usize>(
    body: &mut String,
    header: [&str; COLUMNS],
    rows: &[[String; COLUMNS]],
) {
    body.push_str("<table>\n");
    if header.iter().any(|name| !name.is_empty()) {
        let cells: String = header
            .map(|name| format!("<th>{}</th>", escaped(name)))
            .concat();
        write_to(body, format_args!("<tr>{cells}</tr>\n"));
    }
    for row in rows {
        let cells = row
            .each_ref()
            .map(|cell| format!("<td>{}</td>", escaped(cell)));
        write_to(body, format_args!("<tr>{}</tr>\n", cells.concat()));
    }
    body.push_str("</table>\n");
}

fn write_to(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = text.write_fmt(arguments);
}

/// Makes text of what may hold markup, for elements and quoted attributes alike.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::findings::{Findings, Gap, METHODS};
    use super::super::host::Host;
    use super::*;

    fn findings() -> Findings {
        let times = || Spread::of((1..=100).map(Duration::from_millis));
        Findings {
            format: 1,
            began: 0,
            took_seconds: 1,
            image: "<script>alert(1)</script>".to_owned(),
            image_id: "sha256:0".to_owned(),
            command: vec!["echo".to_owned(), "\"a\" & 'b'\u{1b}".to_owned()],
            host: Host {
                cpu: "CPU".to_owned(),
                processors: 2,
                memory_bytes: 1,
                kernel: "6".to_owned(),
                kvm: "none".to_owned(),
            },
            engines: Vec::new(),
            starts: vec![Starts {
                engine: "crun",
                concurrency: 1,
                runs: 100,
                first_byte: Some(times()),
                exit: times(),
            }],
            idle: Vec::new(),
            loops: Vec::new(),
            not_measured: vec![Gap {
                what: "docker".to_owned(),
                why: "<b>no</b>".to_owned(),
            }],
            methods: METHODS.to_vec(),
        }
    }

    #[test]
    fn nothing_of_an_image_is_markup() {
        let page = page(&findings());

        assert!(!page.contains("<script"));
        assert!(!page.contains("<b>"));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(page.contains("&quot;a&quot; &amp; &#39;b&#39;\u{fffd}"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let page = page(&findings());

        assert!(!page.contains("http"));
        assert!(!page.contains("src="));
        assert!(!page.contains("url("));
    }

    #[test]
    fn the_longest_value_of_a_chart_fills_the_room() {
        let mut body = String::new();
        let bar = |value| Bar {
            label: "x".to_owned(),
            value,
            marks: Vec::new(),
            text: String::new(),
        };

        chart(&mut body, [bar(2.0), bar(1.0)].into_iter());

        assert!(body.contains("width=\"560.0\""));
        assert!(body.contains("width=\"280.0\""));
    }

    #[test]
    fn p90_and_p99_are_lines_across_the_bar() {
        let page = page(&findings());

        assert_eq!(page.matches("<line").count(), 4);
    }
}
