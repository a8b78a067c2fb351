//! `--format` of commands that list something: a table, a table of a template, a template or an object a line.

use serde_json::Value;

use super::format::{FormatError, Template};
use super::output::Columns;

/// Something that is listed.
pub(super) trait Listed {
    /// What docker calls its parts, all of them texts.
    fn fields(&self) -> Value;

    /// The fields, and what templates may name besides.
    fn fields_and_more(&self) -> Value {
        self.fields()
    }
}

/// How a list is printed.
#[derive(Debug)]
pub(super) enum RowFormat {
    JsonLines,
    Lines(Template),
    Table {
        header: Vec<String>,
        cells: Vec<Template>,
    },
}

impl RowFormat {
    /// Reads what was typed. `usual` are the columns of a table of which nothing is said, `headers` what stands above a column, by the
    /// name of its field.
    ///
    /// # Errors
    ///
    /// If it is no template.
    pub(super) fn parse(
        typed: Option<&str>,
        usual: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, FormatError> {
        // What a shell passes on as two characters, docker's commands take for one.
        let text = typed.unwrap_or("table").replace("\\t", "\t");
        let text = text.replace("\\n", "\n");
        match text.as_str() {
            "json" => Ok(Self::JsonLines),
            "table" => Self::table(usual, headers),
            text => match text.strip_prefix("table ") {
                Some(columns) => Self::table(columns, headers),
                None => Template::parse(text).map(Self::Lines),
            },
        }
    }

    fn table(columns: &str, headers: &[(&str, &str)]) -> Result<Self, FormatError> {
        let header: serde_json::Map<String, Value> = headers
            .iter()
            .map(|(field, title)| ((*field).to_owned(), Value::from(*title)))
            .collect();
        let header = Value::from(header);
        let cells = columns
            .split('\t')
            .map(Template::parse)
            .collect::<Result<Vec<_>, _>>()?;
        // A column of something else, such as a label, has no title.
        let titles = cells
            .iter()
            .map(|cell| cell.fill(&header).unwrap_or_default());
        Ok(Self::Table {
            header: titles.collect(),
            cells,
        })
    }

    /// Fills a list in: lines, each with its end.
    ///
    /// # Errors
    ///
    /// If a field is not there.
    pub(super) fn fill(&self, rows: &[impl Listed]) -> Result<String, FormatError> {
        let mut text = String::new();
        let mut add = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        match self {
            Self::JsonLines => rows.iter().for_each(|row| add(&row.fields().to_string())),
            Self::Lines(template) => {
                for row in rows {
                    add(&template.fill(&row.fields_and_more())?);
                }
            }
            Self::Table { header, cells } => {
                let mut columns = Columns::default();
                columns.row(header);
                for row in rows {
                    let fields = row.fields_and_more();
                    let cells = cells.iter().map(|cell| cell.fill(&fields));
                    columns.row(&cells.collect::<Result<Vec<_>, _>>()?);
                }
                columns.lines().iter().for_each(|line| add(line));
            }
        }
        Ok(text)
    }
}
