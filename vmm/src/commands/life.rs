//! What `vmm run` is told about a machine's life: what is recorded of it, and the files that name it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::cli::{HealthArgs, LifeArgs, RunArgs, label_of};
use crate::image::ImageHealth;
use crate::logs::LogConfig;
use crate::policy::{HealthCheck, HealthError};
use crate::report::{Help, Report};
use crate::state::{MachineId, OtherLimits, Settings, Signal};
use crate::workload::Workload;

/// More labels than anybody reads, and they are read with every list.
const MAX_LABEL_BYTES: usize = 256 << 10;

/// Puts together what is recorded of a machine that is to run.
///
/// # Errors
///
/// If labels cannot be read, or what was typed about the log makes no sense.
pub(super) fn settings(
    arguments: &RunArgs,
    workload: &Workload,
    image: &ImageHealth,
) -> Result<Settings, Report> {
    let process = &workload.config()["process"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let environment = process["env"].as_array().into_iter().flatten();
    Ok(Settings {
        stop_signal: Signal::try_from(workload.stop_signal()).ok(),
        health: health(&arguments.life.health, image)?,
        hostname: text(&workload.config()["hostname"]),
        user: workload.user().to_owned(),
        working_directory: text(&process["cwd"]),
        environment: environment.map(text).collect(),
        terminal: workload.has_terminal(),
        read_only: workload.config()["root"]["readonly"] == true,
        memory_bytes: arguments.memory.bytes(),
        nano_cpus: arguments.cpus.nano_cpus(),
        limits: other_limits(&workload.config()["linux"]["resources"]),
        ..of_life(&arguments.life, arguments.has_log())?
    })
}

/// What was typed about the workload's health, and for the rest what the image says.
fn health(arguments: &HealthArgs, image: &ImageHealth) -> Result<Option<HealthCheck>, LifeError> {
    if arguments.no_healthcheck {
        return Ok(None);
    }
    let of_image = image.healthcheck.clone().unwrap_or_default();
    let shell = image.shell.as_deref().unwrap_or_default();
    Ok(arguments.config().or(of_image).decide(shell)?)
}

/// What `linux.resources` of the runtime-spec say beside memory and processor time, which are the machine's.
fn other_limits(resources: &serde_json::Value) -> OtherLimits {
    let (memory, cpu) = (&resources["memory"], &resources["cpu"]);
    OtherLimits {
        memory_reservation_bytes: memory["reservation"].as_u64().unwrap_or(0),
        memory_swap_bytes: memory["swap"].as_i64().unwrap_or(0),
        cpu_shares: cpu["shares"].as_u64().unwrap_or(0),
        cpuset_cpus: cpu["cpus"].as_str().unwrap_or_default().to_owned(),
        pids_limit: resources["pids"]["limit"].as_i64().unwrap_or(0),
        ..OtherLimits::default()
    }
}

/// What is recorded whatever the workload is.
///
/// # Errors
///
/// As [`settings`].
pub(super) fn of_life(life: &LifeArgs, has_log: bool) -> Result<Settings, Report> {
    let log = LogConfig::new(life.log_driver, &life.log_opt)?;
    Ok(Settings {
        labels: labels(life)?,
        restart: life.restart,
        log: has_log.then_some(log),
        stop_timeout_seconds: life.stop_timeout,
        ..Settings::default()
    })
}

/// Those of files first, so that what was typed stands above them.
fn labels(life: &LifeArgs) -> Result<BTreeMap<String, String>, LifeError> {
    let mut labels = BTreeMap::new();
    for path in &life.label_file {
        let text = fs::read_to_string(path).map_err(|source| LifeError::LabelFile {
            path: path.clone(),
            source,
        })?;
        let lines = text.lines().map(str::trim_start);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let label = label_of(line).ok_or_else(|| LifeError::LabelLine {
                path: path.clone(),
                line: line.to_owned(),
            })?;
            labels.extend([label]);
        }
    }
    labels.extend(life.label.iter().cloned());
    let size: usize = labels
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    match size > MAX_LABEL_BYTES {
        true => Err(LifeError::ManyLabels),
        false => Ok(labels),
    }
}

/// The file that is to hold a machine's id. Removed again unless it gets one.
#[derive(Debug)]
struct IdFile {
    path: PathBuf,
    file: Option<File>,
}

impl IdFile {
    /// Makes the file, so that nobody else can.
    ///
    /// # Errors
    ///
    /// If it is there, or cannot be made.
    fn reserve(path: &Path) -> Result<Self, LifeError> {
        match OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self {
                path: path.to_owned(),
                file: Some(file),
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(LifeError::IdFileExists(path.to_owned()))
            }
            Err(source) => Err(LifeError::written(path, source)),
        }
    }

    /// Writes the id.
    ///
    /// # Errors
    ///
    /// As write(2) says.
    fn write(mut self, id: &MachineId) -> Result<(), LifeError> {
        if let Some(file) = &mut self.file {
            file.write_all(id.as_str().as_bytes())
                .map_err(|source| LifeError::written(&self.path, source))?;
        }
        self.file = None;
        Ok(())
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.file.is_some() {
            // That it stays is found by the next who wants it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The files that name a machine.
#[derive(Debug, Default)]
pub(super) struct IdFiles(Option<IdFile>);

impl IdFiles {
    /// Makes the file for the machine's id, and writes that of its monitor, which is this process. To be called before there is a
    /// machine, so that none is left where a file cannot be made.
    ///
    /// # Errors
    ///
    /// If the file for the id is there, or one cannot be written.
    pub(super) fn reserve(life: &LifeArgs) -> Result<Self, LifeError> {
        let id_file = life.cidfile.as_deref().map(IdFile::reserve).transpose()?;
        if let Some(path) = &life.pidfile {
            fs::write(path, std::process::id().to_string())
                .map_err(|source| LifeError::written(path, source))?;
        }
        Ok(Self(id_file))
    }

    /// Writes the machine's id.
    ///
    /// # Errors
    ///
    /// As write(2) says.
    pub(super) fn name(self, id: &MachineId) -> Result<(), LifeError> {
        self.0.map_or(Ok(()), |file| file.write(id))
    }
}

/// What was asked for about a machine's life cannot be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum LifeError {
    /// A file of labels cannot be read.
    #[error("cannot read the labels in {}", path.display())]
    LabelFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A line of one is no label.
    #[error("'{line}' in {} is no label as in KEY=VALUE", path.display())]
    LabelLine { path: PathBuf, line: String },
    /// The labels are too many.
    #[error("the labels are longer than {MAX_LABEL_BYTES} bytes together")]
    ManyLabels,
    /// The image's, or what was typed, is no health check.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// Another machine may have the file.
    #[error("the file {} for the machine's id exists", .0.display())]
    IdFileExists(PathBuf),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl LifeError {
    fn written(path: &Path, source: io::Error) -> Self {
        Self::Write {
            path: path.to_owned(),
            source,
        }
    }
}

impl Help for LifeError {
    fn help(&self) -> Option<String> {
        match self {
            Self::IdFileExists(path) => Some(format!(
                "see that the machine in it does not run, and remove {}",
                path.display()
            )),
            Self::Health(_) => {
                Some("name another with --health-cmd, or none with --no-healthcheck".to_owned())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_stands_above_a_file_of_labels() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("labels");
        fs::write(&path, "# comment\n\na=file\nb=file=2\nbare\n").unwrap();
        let life = LifeArgs {
            label: vec![("a".into(), "typed".into())],
            label_file: vec![path],
            ..LifeArgs::default()
        };

        let labels = labels(&life).unwrap();

        let told: Vec<_> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(told, ["a=typed", "b=file=2", "bare="]);
    }

    #[test]
    fn a_file_for_an_id_is_refused_if_it_exists_and_goes_if_it_gets_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("id");
        let reserved = IdFile::reserve(&path).unwrap();

        let twice = IdFile::reserve(&path).unwrap_err();

        assert!(matches!(twice, LifeError::IdFileExists(_)));
        drop(reserved);
        assert!(!path.exists());
        let id = MachineId::random().unwrap();
        IdFile::reserve(&path).unwrap().write(&id).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), id.to_string());
    }
}
