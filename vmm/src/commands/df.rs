//! `vmm system df`: what is taken on the disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;

use super::mounts;
use super::output::{Table, print_json, spell_size};
use crate::cli::DfArgs;
use crate::dirs::Directories;
use crate::image::Store;
use crate::outcome::ExitCode;
use crate::report::Report;
use crate::state::{Machine, Registry};
use crate::volumes::store::{Listed, Volumes};

/// Unit of `st_blocks`, `stat(2)`.
const BLOCK_BYTES: u64 = 512;

/// Shows what images, machines and volumes take.
pub(super) fn run(arguments: &DfArgs, directories: &Directories) -> Result<ExitCode, Report> {
    let usage = Store::open(directories.store())?.usage()?;
    let machines = Registry::open(directories.machines())?.list()?;
    let volumes = volumes(&machines, directories)?;
    let disk_usage = DiskUsage {
        images: Share {
            total: usage.images,
            active: usage.images_in_use,
            size_bytes: usage.total_bytes,
            reclaimable_bytes: usage.reclaimable_bytes,
        },
        layers: usage.layers,
        machines: Share {
            total: machines.len(),
            active: machines.iter().filter(|machine| machine.alive).count(),
            size_bytes: machines.iter().map(|it| bytes_below(&it.directory)).sum(),
            reclaimable_bytes: machines
                .iter()
                .filter(|machine| !machine.alive)
                .map(|machine| bytes_below(&machine.directory))
                .sum(),
        },
        volumes,
    };
    if arguments.list.is_json() {
        print_json(&disk_usage)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    table.row(disk_usage.images.row("Images"));
    table.row(disk_usage.machines.row("Machines"));
    table.row(disk_usage.volumes.row("Local Volumes"));
    table.print()?;
    Ok(ExitCode::SUCCESS)
}

/// What is taken on the disk, as a program reads it.
#[derive(Debug, Serialize)]
struct DiskUsage {
    images: Share,
    layers: usize,
    machines: Share,
    volumes: Share,
}

/// What one kind of thing takes.
#[derive(Debug, Serialize)]
struct Share {
    total: usize,
    /// In use.
    active: usize,
    size_bytes: u64,
    reclaimable_bytes: u64,
}

impl Share {
    fn row(&self, name: &str) -> [String; 5] {
        [
            name.to_owned(),
            self.total.to_string(),
            self.active.to_string(),
            spell_size(self.size_bytes),
            spell_size(self.reclaimable_bytes),
        ]
    }
}

/// What volumes take; those that no machine needs can be had back.
fn volumes(machines: &[Machine], directories: &Directories) -> Result<Share, Report> {
    let listed = Volumes::new(directories.volumes()).list()?;
    let needs = |machine: &Machine| machine.alive || machine.is_kept();
    let (active, free): (Vec<_>, Vec<_>) = listed
        .iter()
        .partition(|volume| !mounts::users(machines, &volume.name, needs).is_empty());
    let taken = |volumes: &[&Listed]| volumes.iter().map(|it| it.used_bytes).sum::<u64>();
    Ok(Share {
        total: listed.len(),
        active: active.len(),
        size_bytes: taken(&active).saturating_add(taken(&free)),
        reclaimable_bytes: taken(&free),
    })
}

/// Adds up what the files of a machine's directory take; what goes away meanwhile counts nothing.
fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .map(|metadata| metadata.blocks() * BLOCK_BYTES)
        .sum()
}
