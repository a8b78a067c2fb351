//! What the guest will execute: an OCI runtime-spec `config.json`, made from an image's configuration and the user's choices.
//!
//! It stands apart from the command line, the store and the machine, because an orchestrator may hand in a `config.json` of
//! its own. The rules are docker's, where the specifications leave a choice; the fixed part is in [`profile`].

pub mod container;
pub mod environment;
pub mod exec;
mod given;
pub mod limits;
mod profile;
pub mod seccomp;
pub mod systemd;

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use oci_spec::image::{Config, ImageConfiguration};
use protocol::{Create, DeclaredStreams, Names, Process, RootSource, Volume, WindowSize};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};
use thiserror::Error;

use self::container::{ContainerChoices, ContainerError};
use self::environment::{HostEnvironment, Variable};
use self::seccomp::SeccompError;
use crate::network;
use crate::report::Help;
use crate::state::Signal;
use crate::volumes::Attachments;

/// The version of the runtime-spec that the `config.json` is written for.
const OCI_VERSION: &str = "1.2.0";

/// What the user chose for a workload. [`Choices::default`] takes everything from the image.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// The command's words; empty takes the image's.
    pub command: Vec<String>,
    /// The program in place of the image's entrypoint, and of its command; empty for none.
    pub entrypoint: Option<String>,
    /// Changes to the image's environment, in order: those of files first, then those typed.
    pub environment: Vec<Variable>,
    /// The directory to start in.
    pub working_directory: Option<String>,
    /// The user, docker's syntax.
    pub user: Option<String>,
    /// The host name inside.
    pub hostname: String,
    /// Whether nothing may write to the root.
    pub read_only: bool,
    /// Whether there is a fork point ([`protocol::FORK_POINT`]).
    pub fork_point: bool,
    /// The terminal that the process gets.
    pub terminal: Option<Terminal>,
    /// What the workload may use.
    pub limits: Limits,
    /// The container, and what its process may do.
    pub container: ContainerChoices,
}

/// A terminal for the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terminal {
    /// Its window's size at first, if it is known.
    pub size: Option<WindowSize>,
}

/// What the workload may use; what is `None` is as large as the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Processor time.
    pub cpu: Option<CpuTime>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// Processor time in each period.
#[derive(Clone, Copy, Debug)]
pub struct CpuTime {
    /// Microseconds of processor time, of all processors together.
    pub quota_us: u64,
    /// Microseconds of time.
    pub period_us: u64,
}

/// What the guest will execute.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    /// The runtime-spec configuration, without a seccomp profile: that is compiled here.
    config: Value,
    /// Docker's syntax; none takes the numbers of the configuration.
    user: Option<String>,
    groups: Vec<String>,
    init: bool,
    stop_signal: u8,
    seccomp: Option<protocol::Seccomp>,
    has_usual_container: bool,
    /// Only from a start to the end of its machine: another start opens others.
    #[serde(skip)]
    volumes: Vec<Volume>,
    /// The same.
    #[serde(skip)]
    network: Option<protocol::Network>,
    /// The same.
    #[serde(skip)]
    names: Names,
}

/// Why an image and choices do not make a workload.
#[derive(Debug, Error)]
pub enum WorkloadError {
    /// Neither the image nor the user names a program.
    #[error("the image has no command, and none was given")]
    NoCommand,
    /// A number does not fit the specification's types.
    #[error("the limit of {0} is too large")]
    LimitTooLarge(&'static str),
    /// The configuration cannot be written as JSON.
    #[error("the container's configuration cannot be written")]
    Json(#[source] serde_json::Error),
    /// A file of a configuration or of a profile cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no JSON, or JSON of another shape.
    #[error("{} is no {what}", path.display())]
    NotJson {
        /// Which.
        path: PathBuf,
        /// What it was to be.
        what: &'static str,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration has no process.
    #[error("{} names no program: it has no process.args", .0.display())]
    NoProcess(PathBuf),
    /// A seccomp profile cannot be compiled.
    #[error("the seccomp profile cannot be used")]
    Seccomp(#[from] SeccompError),
    /// The machine is too small for a choice.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

impl Help for WorkloadError {
    fn help(&self) -> Option<String> {
        match self {
            Self::NoCommand => {
                Some("name a command after the image, as in: vmm run IMAGE sh".to_owned())
            }
            _ => None,
        }
    }
}

impl Workload {
    /// Decides what an image's configuration and the user's choices come to. `host` is the environment that variables
    /// without a value are taken from.
    ///
    /// # Errors
    ///
    /// If there is no command, or a limit is too large for the specification.
    pub fn new(
        image: &ImageConfiguration,
        choices: &Choices,
        host: &dyn HostEnvironment,
    ) -> Result<Self, WorkloadError> {
        let none = Config::default();
        let image = image.config().as_ref().unwrap_or(&none);
        let arguments = arguments(image, choices)?;
        let environment = environment::compose(
            image.env().as_deref().unwrap_or_default(),
            &choices.environment,
            &choices.hostname,
            choices.terminal.is_some(),
            host,
        );
        let user = choices
            .user
            .as_ref()
            .or(image.user().as_ref())
            .cloned()
            .unwrap_or_default();
        let is_for_systemd = arguments
            .first()
            .is_some_and(|program| choices.container.systemd.is_for(program));
        let directory = working_directory(image, choices);
        let mut config = configuration(&arguments, &environment, &directory, choices)?;
        choices.container.apply(&mut config);
        if is_for_systemd {
            systemd::apply(&mut config);
        }
        Ok(Self {
            config,
            user: Some(user),
            groups: choices.container.groups.clone(),
            init: choices.container.init,
            stop_signal: stop_signal(image, is_for_systemd),
            seccomp: choices.container.seccomp()?,
            has_usual_container: choices.container.has_usual_container()
                && choices.limits.pids.is_none()
                && !is_for_systemd
                && !choices.fork_point,
            volumes: Vec::new(),
            network: None,
            names: Names::default(),
        })
    }

    /// The runtime-spec configuration, without a seccomp profile.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Whether the container is the one that is the same for all who chose nothing about it, but for the machine's size.
    #[must_use]
    pub fn has_usual_container(&self) -> bool {
        self.has_usual_container
    }

    /// Whether the process gets a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.config["process"]["terminal"] == Value::Bool(true)
    }

    /// What runs: entrypoint and command together.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let words = self.config["process"]["args"].as_array();
        words
            .into_iter()
            .flatten()
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    }

    /// What asks the process to end.
    #[must_use]
    pub fn stop_signal(&self) -> u8 {
        self.stop_signal
    }

    /// Takes another signal to ask the process to end by.
    pub fn set_stop_signal(&mut self, signal: Signal) {
        self.stop_signal = signal.number();
    }

    /// Gives it what was opened for it, mounted after all that its configuration mounts, and in place of what that has there.
    pub fn attach(&mut self, attachments: &Attachments) {
        if attachments.is_empty() {
            return;
        }
        self.has_usual_container = false;
        self.volumes.clone_from(&attachments.volumes);
        if let Some(rules) = self.config["linux"]["resources"]["devices"].as_array_mut() {
            rules.extend_from_slice(&attachments.device_rules);
        }
        let Some(mounts) = self.config["mounts"].as_array_mut() else {
            self.config["mounts"] = attachments.mounts.clone().into();
            return;
        };
        mounts.retain(|mount| {
            let is_there = |other: &Value| other["destination"] == mount["destination"];
            !attachments.mounts.iter().any(is_there)
        });
        mounts.extend_from_slice(&attachments.mounts);
        let kinds = self.config["linux"]["namespaces"].as_array();
        let has_own_users = kinds.is_some_and(|kinds| kinds.iter().any(|it| it["type"] == "user"));
        if has_own_users {
            self.map_ids_of_disks();
        }
    }

    /// Gives it the machine's network, and the files by which programs know names, where nothing else is mounted.
    pub fn connect(&mut self, network: Option<protocol::Network>, names: Option<Names>) {
        self.network = network;
        let Some(names) = names else { return };
        self.names = names;
        // Most machines with a network have these files, and most without one have not.
        self.has_usual_container &= self.network.is_some();
        let place = protocol::volume_path(self.volumes.len());
        self.volumes.push(Volume::Names);
        if self.config["mounts"].is_null() {
            self.config["mounts"] = json!([]);
        }
        let Some(mounts) = self.config["mounts"].as_array_mut() else {
            return;
        };
        for file in protocol::NAMES_FILES {
            let destination = format!("/etc/{file}");
            if mounts
                .iter()
                .any(|mount| mount["destination"] == destination.as_str())
            {
                continue;
            }
            mounts.push(json!({
                "destination": destination,
                "type": "bind",
                "source": format!("{place}/{file}"),
                "options": ["bind", "rprivate"],
            }));
        }
    }

    /// Shows the owners of files on disks as the container's users.
    fn map_ids_of_disks(&mut self) {
        let places: Vec<String> = (0..)
            .zip(&self.volumes)
            .filter(|(_, volume)| matches!(volume, Volume::Disk { .. }))
            .map(|(index, _)| protocol::volume_path(index))
            .collect();
        for mount in self.config["mounts"].as_array_mut().into_iter().flatten() {
            let source = mount["source"].as_str().unwrap_or_default();
            let is_on_disk = places.iter().any(|place| {
                let rest = source.strip_prefix(place.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            if let (true, Some(options)) = (is_on_disk, mount["options"].as_array_mut()) {
                options.push("idmap".into());
            }
        }
    }

    /// Changes limits in `linux.resources`; what is not named stays as it is.
    pub fn limit(&mut self, resources: &Value) {
        for (controller, limits) in resources.as_object().into_iter().flatten() {
            for (name, value) in limits.as_object().into_iter().flatten() {
                self.config["linux"]["resources"][controller][name] = value.clone();
            }
        }
    }

    /// The user, docker's syntax, to be resolved in the guest.
    #[must_use]
    pub fn user(&self) -> &str {
        self.user.as_deref().unwrap_or_default()
    }

    /// Makes the message by which a machine builds the workload's container before anybody says what runs in it: all that is
    /// particular to the process is left out. It is the same, byte for byte, for all workloads whose containers are.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be written as JSON.
    pub fn container(&self, process: Process, root: RootSource) -> Result<Create, WorkloadError> {
        Ok(Create {
            process,
            config: serde_json::to_vec(&OfContainer(&self.config)).map_err(WorkloadError::Json)?,
            root,
            volumes: self.volumes.clone(),
            user: None,
            groups: Vec::new(),
            init: false,
            idles: false,
            stop_signal: systemd::USUAL_STOP_SIGNAL,
            streams: DeclaredStreams::default(),
            seccomp: None,
            network: self.network.as_ref().and_then(network::staged),
            names: Names::default(),
        })
    }

    /// Makes the message that creates the workload as `process`.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be written as JSON.
    pub fn create(
        self,
        process: Process,
        root: RootSource,
        streams: DeclaredStreams,
    ) -> Result<Create, WorkloadError> {
        let config = serde_json::to_vec(&self.config).map_err(WorkloadError::Json)?;
        Ok(Create {
            process,
            config,
            root,
            volumes: self.volumes,
            user: self.user,
            groups: self.groups,
            init: self.init,
            idles: false,
            stop_signal: self.stop_signal,
            streams,
            seccomp: self.seccomp,
            network: self.network,
            names: self.names,
        })
    }
}

/// A configuration as far as it says how the container is built.
struct OfContainer<'a>(&'a Value);

impl Serialize for OfContainer<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The maps of a value are sorted, so equal containers are equal texts.
        serializer.collect_map(self.0.as_object().into_iter().flatten().filter_map(
            |(name, value)| {
                let value = match name.as_str() {
                    "hostname" => return None,
                    // What is to run needs a name, and whoever reads this starts nothing.
                    "process" => Cow::Owned(
                        json!({ "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } }),
                    ),
                    "root" => {
                        let mut root = value.clone();
                        root.as_object_mut()
                            .into_iter()
                            .for_each(|root| drop(root.remove("readonly")));
                        Cow::Owned(root)
                    }
                    _ => Cow::Borrowed(value),
                };
                Some((name, value))
            },
        ))
    }
}

/// The image's signal, or what the program expects. One of the image's that is none is not heeded.
fn stop_signal(image: &Config, is_for_systemd: bool) -> u8 {
    let of_image = image.stop_signal().as_ref();
    match of_image.and_then(|name| name.parse::<Signal>().ok()) {
        Some(signal) => signal.number(),
        None if is_for_systemd => systemd::STOP_SIGNAL,
        None => systemd::USUAL_STOP_SIGNAL,
    }
}

/// Joins entrypoint and command by docker's rules ("Understand how CMD and ENTRYPOINT interact"): an entrypoint that the
/// user gives takes the image's command away with the image's entrypoint.
fn arguments(image: &Config, choices: &Choices) -> Result<Vec<String>, WorkloadError> {
    let image_entrypoint = image.entrypoint().as_deref().unwrap_or_default();
    let image_command = image.cmd().as_deref().unwrap_or_default();
    let (entrypoint, default_command): (&[String], &[String]) = match &choices.entrypoint {
        None => (image_entrypoint, image_command),
        Some(entrypoint) if entrypoint.is_empty() => (&[], &[]),
        Some(entrypoint) => (std::slice::from_ref(entrypoint), &[]),
    };
    let command = if choices.command.is_empty() {
        default_command
    } else {
        &choices.command
    };
    let arguments = [entrypoint, command].concat();
    match arguments.first() {
        Some(program) if !program.is_empty() => Ok(arguments),
        _ => Err(WorkloadError::NoCommand),
    }
}

/// An image may have a relative directory; it is below the root, as in docker.
fn working_directory(image: &Config, choices: &Choices) -> String {
    let directory = choices
        .working_directory
        .as_ref()
        .or(image.working_dir().as_ref());
    match directory.map(String::as_str) {
        None | Some("") => "/".to_owned(),
        Some(absolute) if absolute.starts_with('/') => absolute.to_owned(),
        Some(relative) => format!("/{relative}"),
    }
}

fn configuration(
    arguments: &[String],
    environment: &[String],
    working_directory: &str,
    choices: &Choices,
) -> Result<Value, WorkloadError> {
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": choices.terminal.is_some(),
            "user": { "uid": 0, "gid": 0 },
            "args": arguments,
            "env": environment,
            "cwd": working_directory,
            "rlimits": profile::rlimits(),
            "noNewPrivileges": false,
        },
        "root": { "path": "rootfs", "readonly": choices.read_only },
        "hostname": choices.hostname,
        "mounts": profile::mounts(),
        "linux": {
            "namespaces": profile::NAMESPACES.map(|kind| json!({ "type": kind })),
            "resources": resources(choices.limits)?,
            "sysctl": Value::from_iter(profile::SYSCTLS),
            "maskedPaths": profile::MASKED_PATHS,
            "readonlyPaths": profile::READONLY_PATHS,
        },
    });
    if let Some(size) = choices.terminal.and_then(|terminal| terminal.size) {
        config["process"]["consoleSize"] = json!({ "height": size.rows, "width": size.columns });
    }
    if choices.fork_point {
        let path = protocol::FORK_POINT;
        config["linux"]["devices"] =
            json!([{ "path": path, "type": "p", "major": 0, "minor": 0, "fileMode": 0o666 }]);
    }
    Ok(config)
}

fn resources(limits: Limits) -> Result<Value, WorkloadError> {
    // No device but those that every container has, which the agent adds.
    let mut resources = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    if let Some(bytes) = limits.memory_bytes {
        let bytes = i64::try_from(bytes).map_err(|_| WorkloadError::LimitTooLarge("memory"))?;
        resources["memory"] = json!({ "limit": bytes });
    }
    if let Some(CpuTime {
        quota_us,
        period_us,
    }) = limits.cpu
    {
        let quota_us =
            i64::try_from(quota_us).map_err(|_| WorkloadError::LimitTooLarge("processor time"))?;
        resources["cpu"] = json!({ "quota": quota_us, "period": period_us });
    }
    if let Some(count) = limits.pids {
        resources["pids"] = json!({ "limit": count });
    }
    Ok(resources)
}

#[cfg(test)]
mod tests;
