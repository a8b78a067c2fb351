//! What the user chose about the container, in docker's words: each as a type that is parsed once, and what all of them make of a
//! configuration.
//!
//! Every one of them speaks of the guest. Devices are those of the guest's kernel, processors the machine's, namespaces are made in
//! the machine; what is the host's cannot be named, and who tries is told so.

use std::str::FromStr;

use serde_json::{Value, json};
use thiserror::Error;

use super::profile;
use super::seccomp::Profile;
use super::systemd::ForSystemd;

/// What the user chose. [`ContainerChoices::default`] is docker's default.
#[derive(Clone, Debug, Default)]
pub struct ContainerChoices {
    /// `--cap-add`.
    pub cap_add: Vec<CapabilityName>,
    /// `--cap-drop`.
    pub cap_drop: Vec<CapabilityName>,
    /// `--privileged`.
    pub privileged: bool,
    /// `--security-opt`, with files read.
    pub security: Vec<SecurityChoice>,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--group-add`.
    pub groups: Vec<String>,
    /// `--oom-score-adj`.
    pub oom_score_adj: Option<i32>,
    /// `--init`.
    pub init: bool,
    /// `--systemd`.
    pub systemd: ForSystemd,
    /// `--sysctl`.
    pub sysctls: Vec<Sysctl>,
    /// `--device`.
    pub devices: Vec<Device>,
    /// `--tmpfs`.
    pub tmpfs: Vec<Tmpfs>,
    /// `--shm-size`, in bytes.
    pub shm_bytes: Option<u64>,
    /// `--cpu-shares`.
    pub cpu_shares: Option<u64>,
    /// `--cpuset-cpus`.
    pub cpuset: Option<CpuSet>,
    /// `--userns private`.
    pub own_users: bool,
    /// `--ipc none`.
    pub without_shm: bool,
}

/// A choice that cannot be.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ContainerError {
    /// Not one of capabilities(7), nor `ALL`.
    #[error("'{0}' is no capability as in NET_ADMIN or CAP_NET_ADMIN, nor ALL")]
    Capability(String),
    /// `--ulimit` of another form.
    #[error("'{0}' is no limit as in nofile=1024 or nofile=1024:4096")]
    Ulimit(String),
    /// A soft limit above its hard limit.
    #[error("'{0}' has a soft limit above the hard limit")]
    UlimitOrder(String),
    /// `--sysctl` of another form.
    #[error("'{0}' is no kernel parameter as in net.ipv4.ip_forward=1")]
    Sysctl(String),
    /// `--device` of another form.
    #[error("'{0}' is no device as in /dev/fuse, /dev/fuse:/dev/other or /dev/fuse:/dev/fuse:rw")]
    Device(String),
    /// A device that the guest does not have.
    #[error("{0} is no device of the guest: the host's devices are out of its reach. The guest has {all}", all = profile::device_names())]
    NoSuchDevice(String),
    /// `--tmpfs` of another form.
    #[error("'{0}' is no tmpfs as in /run or /run:size=64m,exec")]
    Tmpfs(String),
    /// `--cpuset-cpus` of another form.
    #[error("'{0}' is no list of processors as in 0-2,4")]
    CpuSet(String),
    /// `--systemd` of another form.
    #[error("'{0}' is no mode for systemd: true, which looks at the command, always or false")]
    ForSystemd(String),
    /// A processor that the machine does not have.
    #[error(
        "processor {cpu} is none of the machine's: it has {vcpus}, from 0, and those of the host cannot be named"
    )]
    NoSuchCpu {
        /// The number that was typed.
        cpu: u32,
        /// How many the machine has.
        vcpus: u32,
    },
    /// `--security-opt` of another form.
    #[error(
        "'{0}' is no security option: there are no-new-privileges, seccomp=FILE, seccomp=unconfined and systempaths=unconfined"
    )]
    Security(String),
    /// Something that needs a security module.
    #[error(
        "'{0}' needs a security module of the kernel, and the guest has neither AppArmor nor SELinux: its boundary is the machine"
    )]
    SecurityModule(String),
    /// A namespace of the host, or another container's.
    #[error("a machine has only its own {kind} namespaces: {what} cannot be named")]
    Namespace {
        /// Which kind.
        kind: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// A mode that there is not.
    #[error("'{text}' is no mode of {kind} namespaces: {modes}")]
    NamespaceMode {
        /// Which kind.
        kind: &'static str,
        /// What was typed.
        text: String,
        /// What there is.
        modes: &'static str,
    },
}

/// The name of a capability, or of all.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CapabilityName {
    /// `ALL`.
    All,
    /// `CAP_…`.
    One(String),
}

impl FromStr for CapabilityName {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let name = text.to_ascii_uppercase();
        if name == "ALL" {
            return Ok(Self::All);
        }
        let name = match name.strip_prefix("CAP_") {
            Some(_) => name,
            None => format!("CAP_{name}"),
        };
        match profile::ALL_CAPABILITIES.contains(&name.as_str()) {
            true => Ok(Self::One(name)),
            false => Err(ContainerError::Capability(text.to_owned())),
        }
    }
}

/// A security option.
#[derive(Clone, Debug)]
pub enum SecurityChoice {
    /// `no-new-privileges`.
    NoNewPrivileges(bool),
    /// `seccomp=unconfined`.
    Unconfined,
    /// `seccomp=FILE`, read.
    Profile(Box<Profile>),
    /// `systempaths=unconfined`: nothing is masked or read-only.
    SystemPaths,
    /// What the guest has no module for, and which asks for nothing.
    Nothing,
}

/// A security option as it was typed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SecurityOption {
    /// `no-new-privileges`.
    NoNewPrivileges(bool),
    /// `seccomp=unconfined`.
    Unconfined,
    /// `seccomp=builtin`, the default.
    Builtin,
    /// `seccomp=FILE`.
    ProfileFile(std::path::PathBuf),
    /// `systempaths=unconfined`.
    SystemPaths,
    /// `apparmor=unconfined`, `label=disable`.
    Nothing,
}

impl SecurityOption {
    /// Reads what is in a file.
    ///
    /// # Errors
    ///
    /// If the profile's file cannot be read or is none.
    pub fn read(&self) -> Result<SecurityChoice, super::WorkloadError> {
        Ok(match self {
            Self::NoNewPrivileges(is_set) => SecurityChoice::NoNewPrivileges(*is_set),
            Self::Unconfined => SecurityChoice::Unconfined,
            Self::SystemPaths => SecurityChoice::SystemPaths,
            Self::Builtin | Self::Nothing => SecurityChoice::Nothing,
            Self::ProfileFile(path) => {
                SecurityChoice::Profile(Box::new(super::given::read_profile(path)?))
            }
        })
    }
}

impl FromStr for SecurityOption {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let (name, value) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .map_or((text, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", Some("false")) => Ok(Self::NoNewPrivileges(false)),
            ("seccomp", Some("unconfined")) => Ok(Self::Unconfined),
            ("seccomp", Some("builtin")) => Ok(Self::Builtin),
            ("seccomp", Some(file)) if !file.is_empty() => Ok(Self::ProfileFile(file.into())),
            ("systempaths", Some("unconfined")) => Ok(Self::SystemPaths),
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => Ok(Self::Nothing),
            ("apparmor" | "label", _) => Err(ContainerError::SecurityModule(text.to_owned())),
            _ => Err(ContainerError::Security(text.to_owned())),
        }
    }
}

/// A resource limit of the process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ulimit {
    kind: String,
    soft: u64,
    hard: u64,
}

/// The names that docker knows.
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl FromStr for Ulimit {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let wrong = || ContainerError::Ulimit(text.to_owned());
        let (name, values) = text.split_once('=').ok_or_else(wrong)?;
        if !ULIMITS.contains(&name) {
            return Err(wrong());
        }
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(u64::MAX),
            number => number.parse().map_err(|_| wrong()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let (soft, hard) = (value(soft)?, value(hard)?);
        if soft > hard {
            return Err(ContainerError::UlimitOrder(text.to_owned()));
        }
        Ok(Self {
            kind: format!("RLIMIT_{}", name.to_ascii_uppercase()),
            soft,
            hard,
        })
    }
}

/// A kernel parameter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sysctl {
    name: String,
    value: String,
}

impl FromStr for Sysctl {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        match text.split_once('=') {
            Some((name, value)) if !name.trim().is_empty() => Ok(Self {
                name: name.trim().to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(ContainerError::Sysctl(text.to_owned())),
        }
    }
}

/// A device of the guest for the container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    numbers: (u32, u32),
    path: String,
    access: String,
}

impl FromStr for Device {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let is_access = |text: &str| {
            !text.is_empty()
                && text.len() <= 3
                && text.chars().all(|right| matches!(right, 'r' | 'w' | 'm'))
        };
        let parts: Vec<&str> = text.split(':').collect();
        let (source, path, access) = match parts.as_slice() {
            [source] => (*source, *source, "rwm"),
            [source, access] if is_access(access) => (*source, *source, *access),
            [source, path] => (*source, *path, "rwm"),
            [source, path, access] if is_access(access) => (*source, *path, *access),
            _ => return Err(ContainerError::Device(text.to_owned())),
        };
        if !source.starts_with('/') || !path.starts_with('/') {
            return Err(ContainerError::Device(text.to_owned()));
        }
        let known = profile::DEVICES.iter().find(|(name, ..)| *name == source);
        let Some((_, major, minor)) = known else {
            return Err(ContainerError::NoSuchDevice(source.to_owned()));
        };
        Ok(Self {
            numbers: (*major, *minor),
            path: path.to_owned(),
            access: access.to_owned(),
        })
    }
}

impl Device {
    fn node(&self) -> Value {
        let (major, minor) = self.numbers;
        json!({ "type": "c", "path": self.path, "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0 })
    }

    fn rule(&self) -> Value {
        let (major, minor) = self.numbers;
        json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": self.access })
    }
}

/// A file system in memory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tmpfs {
    destination: String,
    options: Vec<String>,
}

impl FromStr for Tmpfs {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let (destination, options) = text.split_once(':').unwrap_or((text, ""));
        if !destination.starts_with('/') || destination.trim_matches('/').is_empty() {
            return Err(ContainerError::Tmpfs(text.to_owned()));
        }
        let given = options.split(',').filter(|option| !option.is_empty());
        // Docker's, which what is typed comes after.
        let options = ["nosuid", "nodev", "noexec"].into_iter().chain(given);
        Ok(Self {
            destination: destination.to_owned(),
            options: options.map(str::to_owned).collect(),
        })
    }
}

impl Tmpfs {
    /// Where it is mounted.
    #[must_use]
    pub fn destination(&self) -> &str {
        &self.destination
    }

    fn mount(&self) -> Value {
        json!({ "destination": self.destination, "type": "tmpfs", "source": "tmpfs", "options": self.options })
    }
}

/// Processors of the machine.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CpuSet {
    text: String,
    last: u32,
}

impl FromStr for CpuSet {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let wrong = || ContainerError::CpuSet(text.to_owned());
        let mut last = 0;
        for range in text.split(',') {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            let from: u32 = from.parse().map_err(|_| wrong())?;
            let to: u32 = to.parse().map_err(|_| wrong())?;
            if from > to {
                return Err(wrong());
            }
            last = last.max(to);
        }
        Ok(Self {
            text: text.to_owned(),
            last,
        })
    }
}

impl CpuSet {
    /// As it was typed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Says whether a machine of so many processors has all of them.
    ///
    /// # Errors
    ///
    /// If it has not.
    pub fn check(&self, vcpus: u32) -> Result<(), ContainerError> {
        match self.last < vcpus {
            true => Ok(()),
            false => Err(ContainerError::NoSuchCpu {
                cpu: self.last,
                vcpus,
            }),
        }
    }
}

/// What of a namespace was asked for: `private`, which is the default, or another mode.
///
/// # Errors
///
/// If it is the host's, another container's, or none.
fn namespace_mode<'text>(
    kind: &'static str,
    modes: &'static str,
    text: &'text str,
) -> Result<&'text str, ContainerError> {
    let what = match text {
        "host" => "the host's",
        text if text.starts_with("container:") => "another container's",
        text if modes.split(", ").any(|mode| mode == text) => return Ok(text),
        text => {
            return Err(ContainerError::NamespaceMode {
                kind,
                text: text.to_owned(),
                modes,
            });
        }
    };
    Err(ContainerError::Namespace { kind, what })
}

/// Parses `--uts` or `--pid`, which have one mode.
///
/// # Errors
///
/// If it is another.
pub fn only_private(kind: &'static str, text: &str) -> Result<(), ContainerError> {
    namespace_mode(kind, "private", text).map(drop)
}

/// Parses `--userns`; whether the container has users of its own.
///
/// # Errors
///
/// If it is neither `private` nor empty.
pub fn user_mode(text: &str) -> Result<bool, ContainerError> {
    namespace_mode("user", "private", text).map(|_| true)
}

/// Parses `--ipc`; whether there is no `/dev/shm`.
///
/// # Errors
///
/// If it is another mode than docker's that speak of this container.
pub fn ipc_mode(text: &str) -> Result<bool, ContainerError> {
    namespace_mode("IPC", "private, shareable, none", text).map(|mode| mode == "none")
}

impl ContainerChoices {
    /// The capabilities of the container's root, by docker's rules.
    #[must_use]
    pub fn capabilities(&self) -> Vec<&'static str> {
        let adds_all = self.privileged || self.cap_add.contains(&CapabilityName::All);
        let drops_all = self.cap_drop.contains(&CapabilityName::All);
        let named = |list: &[CapabilityName], name: &str| {
            list.iter()
                .any(|one| matches!(one, CapabilityName::One(one) if one == name))
        };
        profile::ALL_CAPABILITIES
            .iter()
            .filter(|name| {
                // What is added by its name counts more than what is dropped, as in docker.
                let is_kept = adds_all || (profile::is_default_capability(name) && !drops_all);
                named(&self.cap_add, name) || (is_kept && !named(&self.cap_drop, name))
            })
            .copied()
            .collect()
    }

    /// Whether the container is that of everybody who chose nothing, whatever its process may do.
    #[must_use]
    pub fn has_usual_container(&self) -> bool {
        !self.privileged
            && !self
                .security
                .iter()
                .any(|choice| matches!(choice, SecurityChoice::SystemPaths))
            && self.sysctls.is_empty()
            && self.devices.is_empty()
            && self.tmpfs.is_empty()
            && self.shm_bytes.is_none()
            && self.cpu_shares.is_none()
            && self.cpuset.is_none()
            && !self.own_users
            && !self.without_shm
    }

    /// The filter of system calls: the chosen one, or the default profile.
    ///
    /// # Errors
    ///
    /// If the chosen profile cannot be compiled.
    pub(super) fn seccomp(
        &self,
    ) -> Result<Option<protocol::Seccomp>, super::seccomp::SeccompError> {
        let chosen = self.security.iter().rev().find(|choice| {
            matches!(
                choice,
                SecurityChoice::Unconfined | SecurityChoice::Profile(_)
            )
        });
        let capabilities = self.capabilities();
        match chosen {
            Some(SecurityChoice::Profile(profile)) => profile.compile(&capabilities).map(Some),
            Some(_) => Ok(None),
            None if self.privileged => Ok(None),
            None => super::seccomp::default::compile(&capabilities).map(Some),
        }
    }

    /// Makes of a default configuration the chosen one, with the capabilities.
    pub(super) fn apply(&self, config: &mut Value) {
        let process = &mut config["process"];
        let capabilities = self.capabilities();
        process["capabilities"] = json!({
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
        });
        for choice in &self.security {
            if let SecurityChoice::NoNewPrivileges(is_set) = choice {
                process["noNewPrivileges"] = json!(is_set);
            }
        }
        if let Some(score) = self.oom_score_adj {
            process["oomScoreAdj"] = json!(score);
        }
        let limits = array(&mut process["rlimits"]);
        for Ulimit { kind, soft, hard } in &self.ulimits {
            limits.retain(|limit| limit["type"] != json!(kind));
            limits.push(json!({ "type": kind, "soft": soft, "hard": hard }));
        }
        self.apply_to_mounts(array(&mut config["mounts"]));
        self.apply_to_linux(&mut config["linux"]);
    }

    fn apply_to_mounts(&self, mounts: &mut Vec<Value>) {
        let is_at = |mount: &Value, path: &str| mount["destination"] == json!(path);
        if self.privileged {
            for mount in mounts.iter_mut() {
                if is_at(mount, "/sys") || is_at(mount, "/sys/fs/cgroup") {
                    array(&mut mount["options"]).retain(|option| option != "ro");
                }
            }
        }
        if let Some(bytes) = self.shm_bytes {
            for mount in mounts.iter_mut().filter(|mount| is_at(mount, "/dev/shm")) {
                let options = array(&mut mount["options"]);
                options
                    .retain(|option| !option.as_str().is_some_and(|one| one.starts_with("size=")));
                options.push(json!(format!("size={bytes}")));
            }
        }
        if self.without_shm {
            mounts.retain(|mount| !is_at(mount, "/dev/shm"));
        }
        mounts.retain(|mount| {
            !self
                .tmpfs
                .iter()
                .any(|tmpfs| is_at(mount, &tmpfs.destination))
        });
        mounts.extend(self.tmpfs.iter().map(Tmpfs::mount));
    }

    fn apply_to_linux(&self, linux: &mut Value) {
        for Sysctl { name, value } in &self.sysctls {
            linux["sysctl"][name] = json!(value);
        }
        let shows_paths = |choice: &SecurityChoice| matches!(choice, SecurityChoice::SystemPaths);
        if self.privileged || self.security.iter().any(shows_paths) {
            linux["maskedPaths"] = json!([]);
            linux["readonlyPaths"] = json!([]);
        }
        let all = profile::DEVICES.iter().filter(|_| self.privileged);
        let mut nodes: Vec<Value> = all
            .map(|(path, major, minor)| {
                json!({ "type": "c", "path": path, "major": major, "minor": minor, "fileMode": 0o666, "uid": 0, "gid": 0 })
            })
            .collect();
        nodes.extend(self.devices.iter().map(Device::node));
        if !nodes.is_empty() {
            array(&mut linux["devices"]).extend(nodes);
        }
        let rules = array(&mut linux["resources"]["devices"]);
        rules.extend(self.devices.iter().map(Device::rule));
        if self.privileged {
            *rules = vec![json!({ "allow": true, "access": "rwm" })];
        }
        if let Some(shares) = self.cpu_shares {
            linux["resources"]["cpu"]["shares"] = json!(shares);
        }
        if let Some(set) = &self.cpuset {
            linux["resources"]["cpu"]["cpus"] = json!(set.text);
        }
        if self.own_users {
            array(&mut linux["namespaces"]).push(json!({ "type": "user" }));
            let range = json!([{ "containerID": 0, "hostID": profile::FIRST_USER, "size": profile::USERS }]);
            linux["uidMappings"] = range.clone();
            linux["gidMappings"] = range;
        }
    }
}

/// The list that a value is, or becomes.
fn array(value: &mut Value) -> &mut Vec<Value> {
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it has just become one"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(add: &[&str], drop: &[&str]) -> Vec<&'static str> {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        ContainerChoices {
            cap_add: names(add),
            cap_drop: names(drop),
            ..ContainerChoices::default()
        }
        .capabilities()
    }

    #[test]
    fn capabilities_are_added_to_and_dropped_from_the_default() {
        let changed = capabilities(&["net_admin"], &["CAP_CHOWN"]);

        assert_eq!(changed.len(), 14);
        assert!(changed.contains(&"CAP_NET_ADMIN"));
        assert!(!changed.contains(&"CAP_CHOWN"));
    }

    #[test]
    fn all_may_be_dropped_but_one() {
        assert_eq!(capabilities(&["KILL"], &["ALL"]), ["CAP_KILL"]);
    }

    #[test]
    fn all_may_be_added_but_one() {
        let all_but_one = capabilities(&["ALL"], &["SYS_ADMIN"]);

        assert_eq!(all_but_one.len(), profile::ALL_CAPABILITIES.len() - 1);
        assert!(!all_but_one.contains(&"CAP_SYS_ADMIN"));
    }

    #[test]
    fn an_unknown_capability_is_refused() {
        assert!("FLY".parse::<CapabilityName>().is_err());
    }

    #[test]
    fn a_limit_has_one_value_or_two() {
        let limit: Ulimit = "nofile=1024:4096".parse().unwrap();

        assert_eq!(
            (limit.kind.as_str(), limit.soft, limit.hard),
            ("RLIMIT_NOFILE", 1024, 4096)
        );
        assert_eq!("core=-1".parse::<Ulimit>().unwrap().hard, u64::MAX);
        assert!("nofile=2:1".parse::<Ulimit>().is_err());
        assert!("files=1".parse::<Ulimit>().is_err());
        assert!("nofile".parse::<Ulimit>().is_err());
    }

    #[test]
    fn a_device_may_have_another_path_and_fewer_rights() {
        let device: Device = "/dev/fuse:/dev/other:r".parse().unwrap();

        assert_eq!(
            (device.path.as_str(), device.access.as_str()),
            ("/dev/other", "r")
        );
        assert_eq!("/dev/fuse:rw".parse::<Device>().unwrap().path, "/dev/fuse");
    }

    #[test]
    fn a_device_of_the_host_is_refused_with_that_reason() {
        let error = "/dev/sda".parse::<Device>().unwrap_err().to_string();

        assert!(error.contains("host's devices"), "{error}");
        assert!(error.contains("/dev/fuse"), "{error}");
    }

    #[test]
    fn namespaces_of_the_host_are_refused_with_that_reason() {
        for text in ["host", "container:x"] {
            assert!(matches!(
                only_private("PID", text),
                Err(ContainerError::Namespace { .. })
            ));
        }
        assert_eq!(ipc_mode("none"), Ok(true));
        assert_eq!(ipc_mode("shareable"), Ok(false));
        assert!(matches!(
            user_mode("keep-id"),
            Err(ContainerError::NamespaceMode { .. })
        ));
    }

    #[test]
    fn a_processor_of_the_host_is_refused_with_that_reason() {
        let set: CpuSet = "0-1,3".parse().unwrap();

        assert_eq!(set.check(4), Ok(()));
        assert_eq!(
            set.check(3),
            Err(ContainerError::NoSuchCpu { cpu: 3, vcpus: 3 })
        );
        assert!("3-1".parse::<CpuSet>().is_err());
    }

    #[test]
    fn security_options_are_dockers() {
        let option = |text: &str| text.parse::<SecurityOption>();

        assert_eq!(
            option("no-new-privileges"),
            Ok(SecurityOption::NoNewPrivileges(true))
        );
        assert_eq!(
            option("no-new-privileges:true"),
            Ok(SecurityOption::NoNewPrivileges(true))
        );
        assert_eq!(option("seccomp=unconfined"), Ok(SecurityOption::Unconfined));
        assert_eq!(
            option("seccomp=p.json"),
            Ok(SecurityOption::ProfileFile("p.json".into()))
        );
        assert!(matches!(
            option("apparmor=mine"),
            Err(ContainerError::SecurityModule(_))
        ));
        assert!(matches!(option("fly"), Err(ContainerError::Security(_))));
    }
}
