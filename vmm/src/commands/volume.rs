//! `vmm volume`: named volumes, in docker's words.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol::{Answer, Question};
use serde::Serialize;
use serde_json::{Value, json};

use super::format::Template;
use super::output::{print_json, print_line, print_text, printable_lines, spell_size};
use super::rmi::confirm;
use super::rows::{Listed, RowFormat};
use super::{each, mounts};
use crate::cli::{
    VolumeCommand, VolumeCreateArgs, VolumeInspectArgs, VolumeListArgs, VolumePruneArgs,
    VolumeResizeArgs, VolumeRestoreArgs, VolumeRmArgs, VolumeSnapshotArgs,
};
use crate::dirs::Directories;
use crate::machines::Machines;
use crate::moment::Moment;
use crate::outcome::ExitCode;
use crate::report::{Help, Report, chain};
use crate::state::{Action, Asked, ControlError, Machine, Registry};
use crate::storage::{self, StorageSize};
use crate::volumes::VolumeName;
use crate::volumes::store::{self, HeldVolume, Use, VolumeError, VolumeRecord, Volumes};

/// Runs `vmm volume …`.
pub(super) fn run(command: &VolumeCommand, directories: &Directories) -> Result<ExitCode, Report> {
    let volumes = Volumes::new(directories.volumes());
    match command {
        VolumeCommand::Create(arguments) => create(arguments, &volumes),
        VolumeCommand::Ls(arguments) => list(arguments, &volumes, directories),
        VolumeCommand::Inspect(arguments) => inspect(arguments, &volumes, directories),
        VolumeCommand::Rm(arguments) => remove(arguments, &volumes, directories),
        VolumeCommand::Prune(arguments) => prune(arguments, &volumes, directories),
        VolumeCommand::Snapshot(arguments) => snapshot(arguments, &volumes, directories),
        VolumeCommand::Restore(arguments) => restore(arguments, &volumes, directories),
        VolumeCommand::Resize(arguments) => resize(arguments, &volumes, directories),
    }
}

fn create(arguments: &VolumeCreateArgs, volumes: &Volumes) -> Result<ExitCode, Report> {
    let size = arguments.options.last().copied();
    let mut record = match &arguments.name {
        Some(name) => VolumeRecord::new(name.clone(), size),
        None => VolumeRecord::anonymous(size).map_err(VolumesError::Random)?,
    };
    record.labels.extend(arguments.label.iter().cloned());
    volumes.create(&record)?;
    print_line(record.name.as_str())?;
    Ok(ExitCode::SUCCESS)
}

/// Docker's columns.
const USUAL_TABLE: &str = "{{.Driver}}\t{{.Name}}";

/// What stands above a column, by the name of its field.
const HEADERS: [(&str, &str); 7] = [
    ("Driver", "DRIVER"),
    ("Name", "VOLUME NAME"),
    ("Scope", "SCOPE"),
    ("Mountpoint", "MOUNTPOINT"),
    ("Labels", "LABELS"),
    ("Links", "LINKS"),
    ("Size", "SIZE"),
];

/// A volume, and the machines that need it.
struct Row {
    volume: store::Listed,
    users: Vec<String>,
}

impl Listed for Row {
    fn fields(&self) -> Value {
        let labels = self.volume.record.as_ref().map(|record| {
            let pairs = record.labels.iter();
            pairs
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(",")
        });
        json!({
            "Driver": DRIVER,
            "Name": self.volume.name.as_str(),
            "Scope": DRIVER,
            "Mountpoint": self.volume.disk().display().to_string(),
            "Labels": labels.unwrap_or_default(),
            "Links": self.users.len().to_string(),
            "Size": spell_size(self.volume.used_bytes),
            "Status": match &self.volume.record {
                Ok(_) => "usable".to_owned(),
                Err(fault) => format!("damaged: {}", chain(fault)),
            },
        })
    }
}

/// The only driver, and where what it makes is known.
const DRIVER: &str = "local";

fn list(
    arguments: &VolumeListArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&arguments.filter)?;
    let machines = machines(directories)?;
    let rows = volumes.list()?.into_iter().map(|volume| Row {
        users: needing(&machines, &volume.name),
        volume,
    });
    let rows: Vec<Row> = rows.filter(|row| filters.take(row)).collect();
    if arguments.json {
        let inspected: Vec<_> = rows.iter().map(Inspected::of).collect();
        print_json(&inspected)?;
    } else if arguments.quiet {
        for row in &rows {
            print_line(row.volume.name.as_str())?;
        }
    } else {
        let format = RowFormat::parse(arguments.format.as_deref(), USUAL_TABLE, &HEADERS)?;
        print_text(&format.fill(&rows)?)?;
    }
    for row in &rows {
        if let Err(fault) = &row.volume.record {
            tracing::warn!("volume '{}' is damaged: {}", row.volume.name, chain(fault));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn machines(directories: &Directories) -> Result<Vec<Machine>, Report> {
    Ok(Registry::open(directories.machines())?.list()?)
}

fn needing(machines: &[Machine], name: &VolumeName) -> Vec<String> {
    mounts::users(machines, name, |machine| machine.alive || machine.is_kept())
}

/// Which volumes are wanted.
#[derive(Debug, Default)]
struct Filters {
    names: Vec<String>,
    labels: Vec<(String, Option<String>)>,
    dangling: Option<bool>,
    /// A driver was asked for that there is not.
    none: bool,
}

impl Filters {
    fn parse(typed: &[String]) -> Result<Self, VolumesError> {
        let mut filters = Self::default();
        for text in typed {
            let wrong = || VolumesError::Filter(text.clone());
            let (kind, value) = text.split_once('=').ok_or_else(wrong)?;
            match (kind, value) {
                ("name", name) => filters.names.push(name.to_owned()),
                ("label", label) => filters.labels.push(match label.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (label.to_owned(), None),
                }),
                ("dangling", "true" | "1") => filters.dangling = Some(true),
                ("dangling", "false" | "0") => filters.dangling = Some(false),
                ("driver", driver) => filters.none |= driver != DRIVER,
                _ => return Err(wrong()),
            }
        }
        Ok(filters)
    }

    fn take(&self, row: &Row) -> bool {
        let name = row.volume.name.as_str();
        let has_label = |(key, value): &(String, Option<String>)| {
            let record = row.volume.record.as_ref();
            let found = record.ok().and_then(|record| record.labels.get(key));
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        !self.none
            && (self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str())))
            && self.labels.iter().all(has_label)
            && self
                .dangling
                .is_none_or(|dangling| dangling == row.users.is_empty())
    }
}

/// A volume under docker's names.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    created_at: String,
    driver: &'static str,
    /// None where there are none, as with docker.
    labels: Option<BTreeMap<String, String>>,
    mountpoint: String,
    name: String,
    options: Option<BTreeMap<String, String>>,
    scope: &'static str,
    vmm: Own,
}

/// What docker has no name for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Own {
    size_bytes: u64,
    used_bytes: u64,
    /// Machines that need it, by their names.
    used_by: Vec<String>,
    /// What is wrong with it, if something is.
    damage: Option<String>,
}

impl Inspected {
    fn of(row: &Row) -> Self {
        let record = row.volume.record.as_ref();
        let filled = |map: &BTreeMap<String, String>| (!map.is_empty()).then(|| map.clone());
        let created = record.map_or(0, |record| record.created.0);
        Self {
            created_at: Moment::of_seconds(created).to_string(),
            driver: DRIVER,
            labels: record.ok().and_then(|record| filled(&record.labels)),
            mountpoint: row.volume.disk().display().to_string(),
            name: row.volume.name.to_string(),
            options: record.ok().and_then(|record| filled(&record.options)),
            scope: DRIVER,
            vmm: Own {
                size_bytes: record.map_or(0, |record| record.size_bytes),
                used_bytes: row.volume.used_bytes,
                used_by: row.users.clone(),
                damage: record.err().map(|fault| chain(fault)),
            },
        }
    }
}

fn inspect(
    arguments: &VolumeInspectArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let template = match arguments.format.as_deref() {
        None => None,
        Some("json") => Some(Template::parse("{{json .}}")?),
        Some(text) => Some(Template::parse(text)?),
    };
    let machines = machines(directories)?;
    let mut found = Vec::new();
    let result = each(&arguments.volumes, |typed| {
        let name = match volumes.find(typed) {
            // It is shown what is wrong.
            Err(VolumeError::Damaged { name, .. }) => name,
            found => found?.name,
        };
        let inspected = Inspected::of(&Row {
            users: needing(&machines, &name),
            volume: volumes.look(&name),
        });
        match &template {
            None => found.push(inspected),
            Some(template) => {
                let value = serde_json::to_value(&inspected).unwrap_or(Value::Null);
                print_line(printable_lines(&template.fill(&value)?))?;
            }
        }
        Ok(())
    });
    if template.is_none() {
        print_json(&found)?;
    }
    result
}

fn remove(
    arguments: &VolumeRmArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    each(&arguments.volumes, |typed| {
        let name: Option<VolumeName> = typed.parse().ok();
        let removed = match name {
            Some(name) => {
                mounts::remove_free(volumes, &name, || mounts::needing(&name, directories))
            }
            None => Err(VolumeError::None(typed.to_owned())),
        };
        match removed {
            Err(VolumeError::None(_)) if arguments.force => {}
            removed => drop(removed?),
        }
        print_line(typed)
    })
}

fn prune(
    arguments: &VolumePruneArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&arguments.filter)?;
    let question = match arguments.all {
        true => "all volumes that no machine uses",
        false => "the volumes of machines that are gone",
    };
    if !arguments.force {
        confirm(question)?;
    }
    let machines = machines(directories)?;
    let mut removed = Vec::new();
    let mut freed_bytes: u64 = 0;
    for volume in volumes.list()? {
        let row = Row {
            users: needing(&machines, &volume.name),
            volume,
        };
        let is_meant = arguments.all || row.volume.is_anonymous();
        if !is_meant || !row.users.is_empty() || !filters.take(&row) {
            continue;
        }
        let name = &row.volume.name;
        match volumes.remove(name, || mounts::needing(name, directories)) {
            Ok(bytes) => {
                freed_bytes = freed_bytes.saturating_add(bytes);
                removed.push(name.to_string());
            }
            // It has become needed, or is gone.
            Err(VolumeError::InUse { .. } | VolumeError::None(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !removed.is_empty() {
        print_line("Deleted Volumes:")?;
        removed.iter().try_for_each(print_line)?;
        print_line("")?;
    }
    let freed = spell_size(freed_bytes);
    print_line(format!("Total reclaimed space: {freed}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Locks a volume; who has it is said.
fn hold(
    name: &VolumeName,
    wanted: Use,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<HeldVolume, Report> {
    let deadline = Instant::now() + mounts::RELEASE_PATIENCE;
    loop {
        match volumes.hold(name, wanted) {
            Err(VolumeError::InUse { name, .. }) => {
                let users = mounts::users(&machines(directories)?, &name, Machine::runs);
                if !users.is_empty() || Instant::now() >= deadline {
                    return Err(VolumeError::InUse { name, users }.into());
                }
                sleep(mounts::PAUSE);
            }
            held => return Ok(held?),
        }
    }
}

/// Where a copy is, or is to be.
enum Place {
    Volume(VolumeName),
    File(PathBuf),
}

impl Place {
    fn of(typed: &str) -> Result<Self, Report> {
        match typed.contains('/') {
            true => Ok(Self::File(PathBuf::from(typed))),
            false => Ok(Self::Volume(typed.parse().map_err(Report::new)?)),
        }
    }
}

fn snapshot(
    arguments: &VolumeSnapshotArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let target = Place::of(&arguments.target)?;
    let name = volumes.find(&arguments.volume)?.name;
    let held = hold(&name, Use::Read, volumes, directories)?;
    match target {
        Place::Volume(copy) => {
            let mut record = VolumeRecord::new(copy, None);
            record.labels.clone_from(&held.record.labels);
            record.options.clone_from(&held.record.options);
            record.size_bytes = held.record.size_bytes;
            volumes.create_copy(&record, &held.disk)?;
        }
        Place::File(path) => {
            copy_to_file(&held.disk, &path).map_err(|source| VolumesError::Copy {
                path: path.clone(),
                source,
            })?
        }
    }
    print_line(&arguments.target)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a new file, whole or not at all.
fn copy_to_file(disk: &File, path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    let next = tempfile::Builder::new()
        .prefix(".vmm-volume-")
        .tempfile_in(directory)?;
    storage::copy_whole(disk, next.as_file())?;
    next.as_file().sync_all()?;
    next.persist_noclobber(path)?;
    File::open(directory)?.sync_all()
}

fn restore(
    arguments: &VolumeRestoreArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let (from, size_bytes, _source) = match Place::of(&arguments.source)? {
        Place::Volume(source) => {
            let held = hold(&source, Use::Read, volumes, directories)?;
            (held.disk, held.record.size_bytes, Some(held.lock))
        }
        Place::File(path) => {
            let failed = |source| VolumesError::Open {
                path: path.clone(),
                source,
            };
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&path)
                .map_err(failed)?;
            if !store::holds_file_system(&file).map_err(failed)? {
                return Err(VolumesError::NotAFileSystem(path).into());
            }
            let length_bytes = file.metadata().map_err(failed)?.len();
            (file, length_bytes, None)
        }
    };
    let mut record = VolumeRecord::new(arguments.volume.clone(), None);
    record.size_bytes = size_bytes.max(StorageSize::MIN.bytes());
    volumes.create(&record)?;
    let mut held = hold(&arguments.volume, Use::Write, volumes, directories)?;
    held.replace(&from)?;
    print_line(arguments.volume.as_str())?;
    Ok(ExitCode::SUCCESS)
}

fn resize(
    arguments: &VolumeResizeArgs,
    volumes: &Volumes,
    directories: &Directories,
) -> Result<ExitCode, Report> {
    let name = volumes.find(&arguments.volume)?.name;
    match volumes.hold(&name, Use::Write) {
        Ok(mut held) => held.resize(arguments.size)?,
        Err(VolumeError::InUse { .. }) => {
            volumes.grow_in_use(&name, arguments.size)?;
            for machine in machines(directories)? {
                let mut mounts = machine.record.settings.mounts.iter();
                if machine.runs() && mounts.any(|mount| mount.volume() == Some(&name)) {
                    tell(machine, arguments.size, directories)?;
                }
            }
        }
        Err(error) => return Err(error.into()),
    }
    print_line(&arguments.volume)?;
    Ok(ExitCode::SUCCESS)
}

/// How long a guest may take to see that a disk has grown, and to make its file system as large.
const GROW_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait before asking it again.
const PAUSE: Duration = Duration::from_millis(50);

/// Has a machine that runs make the file system of a volume as large as its disk.
fn tell(machine: Machine, size: StorageSize, directories: &Directories) -> Result<(), Report> {
    Machines::new(Registry::open(directories.machines())?).act(&machine, Action::Grow)?;
    let deadline = Instant::now() + GROW_PATIENCE;
    loop {
        let asked = Asked::send(&machine.directory, &Question::Grow)?;
        match asked.answer(deadline)? {
            Answer::Grown(lengths) if lengths.contains(&size.bytes()) => return Ok(()),
            // Its kernel has not heard of it yet.
            Answer::Grown(_) if Instant::now() < deadline => sleep(PAUSE),
            Answer::Grown(_) => {
                return Err(VolumesError::NotGrown(machine.record.name.to_string()).into());
            }
            _ => return Err(ControlError::Unexpected(machine.directory).into()),
        }
    }
}

/// What was asked for about volumes cannot be done.
#[derive(Debug, thiserror::Error)]
enum VolumesError {
    /// No filter.
    #[error("'{0}' is no filter of volumes")]
    Filter(String),
    /// The host gives no random numbers.
    #[error("cannot make a name for the volume")]
    Random(#[source] io::Error),
    /// A guest does not see it.
    #[error("the volume is larger, but machine '{0}' does not see it")]
    NotGrown(String),
    /// A copy cannot be written.
    #[error("cannot write the copy {}", path.display())]
    Copy {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A copy cannot be read.
    #[error("cannot read the copy {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{} holds no file system that a volume can have", .0.display())]
    NotAFileSystem(PathBuf),
}

impl Help for VolumesError {
    fn help(&self) -> Option<String> {
        let help = match self {
            Self::Filter(_) => "there are name, label, dangling and driver",
            Self::Copy { source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                "name a file that is not there yet"
            }
            Self::NotGrown(_) => "it does once the machine is started again",
            Self::NotAFileSystem(_) => {
                "restore what `vmm volume snapshot` wrote, or another image of ext4"
            }
            _ => return None,
        };
        Some(help.to_owned())
    }
}
