//! `vmm images`, `vmm tag`, `vmm history`: what is in the store.

use serde::Serialize;
use serde_json::{Value, json};

use super::output::{
    Table, print_json, print_line, print_text, shorten, spell_duration, spell_size,
};
use super::rows::{Listed, RowFormat};
use super::time::age_seconds;
use crate::cli::{HistoryArgs, ImagesArgs, TagArgs};
use crate::dirs::Directories;
use crate::image::{Digest, HistoryEntry, ImageSummary, ParseReferenceError, Reference, Store};
use crate::outcome::ExitCode;
use crate::report::Report;

/// What a list shows for a name that is not there, as docker does.
const NONE: &str = "<none>";
/// Characters of a build step that the table shows, docker's number.
const STEP_LENGTH: usize = 45;

/// Lists images.
pub(super) fn list(arguments: &ImagesArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let mut images = Store::open(directories.store())?.images()?;
    if let Some(name) = &arguments.name {
        let wanted = NameFilter::new(name)?;
        for image in &mut images {
            image.names.retain(|name| wanted.fits(name));
        }
        images.retain(|image| !image.names.is_empty());
    }
    if arguments.json || arguments.format.as_deref() == Some("json") {
        let rows: Vec<ImageRow> = images.iter().map(ImageRow::of).collect();
        print_json(&rows)?;
    } else if arguments.quiet {
        for image in &images {
            print_line(spell_id(&image.id, arguments.no_trunc))?;
        }
    } else {
        let format = RowFormat::parse(arguments.format.as_deref(), USUAL_TABLE, &HEADERS)?;
        let rows: Vec<NameRow> = images
            .iter()
            .flat_map(|image| NameRow::of(image, arguments.no_trunc))
            .collect();
        print_text(&format.fill(&rows)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// docker's columns.
const USUAL_TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

/// What stands above a column, by the name of its field.
const HEADERS: [(&str, &str); 6] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
];

/// An image under one of its names.
struct NameRow<'a> {
    image: &'a ImageSummary,
    name: Option<&'a Reference>,
    is_whole: bool,
}

impl<'a> NameRow<'a> {
    /// One for each name, or for none.
    fn of(image: &'a ImageSummary, is_whole: bool) -> Vec<Self> {
        let row = |name| Self {
            image,
            name,
            is_whole,
        };
        match image.names.is_empty() {
            true => vec![row(None)],
            false => image.names.iter().map(|name| row(Some(name))).collect(),
        }
    }
}

impl Listed for NameRow<'_> {
    fn fields(&self) -> Value {
        let none = || NONE.to_owned();
        json!({
            "Repository": self.name.map_or_else(none, Reference::repository),
            "Tag": self.name.map_or_else(none, |name| name.tag().to_owned()),
            "ID": spell_id(&self.image.id, self.is_whole),
            "CreatedSince": spell_age(self.image.created.as_deref()),
            "CreatedAt": self.image.created.as_deref().unwrap_or_default(),
            "Size": spell_size(self.image.size_bytes),
        })
    }
}

/// Gives an image another name.
pub(super) fn tag(arguments: &TagArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let name: Reference = arguments.name.parse()?;
    Store::open(directories.store())?.tag(&arguments.image, &name)?;
    Ok(ExitCode::SUCCESS)
}

/// Shows how an image was made.
pub(super) fn history(
    arguments: &HistoryArgs,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let steps = Store::open(directories.store())?.history(&arguments.image)?;
    if arguments.list.is_json() {
        let rows: Vec<HistoryRow> = steps.iter().map(HistoryRow::of).collect();
        print_json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for step in steps {
        let made_by = step.created_by.unwrap_or_default();
        table.row([
            spell_age(step.created.as_deref()),
            match arguments.no_trunc {
                true => made_by,
                false => shorten(&made_by, STEP_LENGTH),
            },
            spell_size(step.layer_bytes.unwrap_or(0)),
            step.comment.unwrap_or_default(),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

/// Which names `vmm images NAME` shows: all tags unless one is given.
struct NameFilter {
    name: Reference,
    any_tag: bool,
}

impl NameFilter {
    fn new(text: &str) -> Result<Self, ParseReferenceError> {
        let last = text.rsplit('/').next().unwrap_or(text);
        Ok(Self {
            name: text.parse()?,
            any_tag: !last.contains(':'),
        })
    }

    fn fits(&self, name: &Reference) -> bool {
        match self.any_tag {
            true => self.name.repository() == name.repository(),
            false => self.name == *name,
        }
    }
}

fn spell_id(id: &Digest, whole: bool) -> String {
    match whole {
        true => id.to_string(),
        false => id.short(),
    }
}

/// Says how long ago a time was that an image's configuration names.
fn spell_age(created: Option<&str>) -> String {
    match created.and_then(age_seconds) {
        Some(seconds) => format!("{} ago", spell_duration(seconds)),
        None => "N/A".to_owned(),
    }
}

/// An image as a program reads it.
#[derive(Debug, Serialize)]
struct ImageRow {
    id: String,
    names: Vec<String>,
    /// As the configuration says it, RFC 3339.
    created: Option<String>,
    size_bytes: u64,
    layers: usize,
    in_use: bool,
}

impl ImageRow {
    fn of(image: &ImageSummary) -> Self {
        Self {
            id: image.id.to_string(),
            names: image.names.iter().map(ToString::to_string).collect(),
            created: image.created.clone(),
            size_bytes: image.size_bytes,
            layers: image.layers,
            in_use: image.in_use,
        }
    }
}

/// A step in the making of an image as a program reads it.
#[derive(Debug, Serialize)]
struct HistoryRow<'a> {
    created: Option<&'a str>,
    created_by: Option<&'a str>,
    comment: Option<&'a str>,
    /// Bytes on disk of the layer; null if the step made none.
    layer_bytes: Option<u64>,
}

impl<'a> HistoryRow<'a> {
    fn of(step: &'a HistoryEntry) -> Self {
        Self {
            created: step.created.as_deref(),
            created_by: step.created_by.as_deref(),
            comment: step.comment.as_deref(),
            layer_bytes: step.layer_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(filter: &str, name: &str) -> bool {
        NameFilter::new(filter)
            .unwrap()
            .fits(&name.parse().unwrap())
    }

    #[test]
    fn a_name_without_a_tag_shows_all_tags() {
        assert!(fits("app", "app:1"));
        assert!(fits("app", "app:latest"));
        assert!(!fits("app", "application:1"));
    }

    #[test]
    fn a_name_with_a_tag_shows_that_tag() {
        assert!(fits("app:1", "app:1"));
        assert!(!fits("app:1", "app:2"));
    }

    #[test]
    fn a_port_is_no_tag() {
        assert!(fits("localhost:5000/app", "localhost:5000/app:7"));
    }
}
