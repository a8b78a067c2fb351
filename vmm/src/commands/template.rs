//! `vmm template`: the frozen machines that runs are clones of.

use super::each;
use super::output::{Table, print_json, print_line, spell_duration, spell_size};
use crate::cli::{TemplateCommand, TemplateListArgs, TemplateRmArgs};
use crate::dirs::Directories;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::template::Templates;

/// Runs `vmm template …`.
pub(super) fn run(
    command: &TemplateCommand,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let templates = Templates::new(directories.cache(), None);
    match command {
        TemplateCommand::Ls(arguments) => list(**arguments, &templates),
        TemplateCommand::Rm(arguments) => remove(arguments, &templates),
    }
}

fn list(arguments: TemplateListArgs, templates: &Templates) -> Result<ExitCode, Report> {
    let found = templates.list()?;
    if arguments.list.is_json() {
        print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        "TEMPLATE", "IMAGE", "CPUS", "RAM", "WINDOW", "STORAGE", "DISK", "USED", "STATUS",
    ]);
    for template in found {
        table.row([
            template.id.short().to_owned(),
            template.image_id.as_deref().map_or("any", short).to_owned(),
            template.vcpus.to_string(),
            format!("{} MiB", template.ram_mib),
            format!("{} MiB", template.window_mib),
            match template.storage_bytes {
                0 => "none".to_owned(),
                bytes => spell_size(bytes),
            },
            spell_size(template.disk_bytes),
            format!("{} ago", spell_duration(template.unused_seconds)),
            if template.in_use { "in use" } else { "" }.to_owned(),
        ]);
    }
    if let Some(key) = templates.being_made() {
        let cell = |text: &str| text.to_owned();
        table.row([
            key.get(..12).unwrap_or(&key).to_owned(),
            cell(""),
            cell(""),
            cell(""),
            cell(""),
            cell(""),
            cell(""),
            cell(""),
            cell("being made"),
        ]);
    }
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

fn remove(arguments: &TemplateRmArgs, templates: &Templates) -> Result<ExitCode, Report> {
    each(&arguments.templates, |name| {
        print_line(templates.remove(name)?.to_string())
    })
}

/// The first digits of an image's id, as `vmm images` shows them.
fn short(image_id: &str) -> &str {
    let digits = image_id
        .rsplit_once(':')
        .map_or(image_id, |(_, digits)| digits);
    digits.get(..12).unwrap_or(digits)
}
