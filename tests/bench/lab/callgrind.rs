//! Reads what valgrind's callgrind counted. "Callgrind Format Specification", valgrind's manual.

use std::collections::BTreeMap;
use std::path::Path;

/// The instructions of each function itself, without those that it called, most first.
pub(crate) fn functions(text: &str) -> Vec<(String, u64)> {
    let mut objects = Names::default();
    let mut names = Names::default();
    let mut costs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let (mut object, mut function) = ("", "");
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((kind, name)) = line.split_once('=') {
            match kind {
                "ob" => object = objects.spelled(name),
                "fn" => function = names.spelled(name),
                "cob" => drop(objects.spelled(name)),
                "cfn" => drop(names.spelled(name)),
                // The next line is the cost of the functions called.
                "calls" => drop(lines.next()),
                _ => {}
            }
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            *costs.entry((object, function)).or_default() += cost.unwrap_or(0);
        }
    }
    let mut costs: Vec<(String, u64)> = costs
        .into_iter()
        .map(|((object, function), cost)| (readable(object, function), cost))
        .collect();
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    costs
}

/// Names that are spelled out the first time: `(7) main`, then `(7)`.
#[derive(Debug, Default)]
struct Names<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Names<'a> {
    fn spelled(&mut self, name: &'a str) -> &'a str {
        match name.split_once(' ') {
            Some((id, spelled)) => {
                self.0.insert(id, spelled);
                spelled
            }
            None => self.0.get(name).copied().unwrap_or(name),
        }
    }
}

/// A function without a name is called after the file that it lies in.
fn readable(object: &str, function: &str) -> String {
    let file = Path::new(object).file_name().unwrap_or_default();
    match function.strip_prefix("0x") {
        Some(address) => format!(
            "{} at 0x{}",
            file.display(),
            address.trim_start_matches('0')
        ),
        None => function.to_owned(),
    }
}
