//! Everything about a container that can be decided before it exists.

use std::ffi::{CString, c_int};

use protocol::{Create, DeclaredStreams, FailureKind, RootSource, StartFailure, WindowSize};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use super::capabilities::Capabilities;
use super::cgroup;
use super::devices::DeviceNode;
use super::mounts::Mount;
use super::user::UserChoice;
use crate::spec::{self, Config};
use crate::step::{Step as _, failure, invalid, unsupported};

/// What will be done to make the container and its first process.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) container: ContainerPlan,
    pub(crate) process: ProcessPlan,
}

/// The container, whatever runs in it: all that can be made before anybody says what that is.
#[derive(Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub(crate) root: RootSource,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) namespaces: Namespaces,
    pub(crate) cgroup: cgroup::CgroupPlan,
}

/// What becomes of a container when its first process is known. It can be sent to who made the container.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ProcessPlan {
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) root_is_read_only: bool,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) streams: DeclaredStreams,
    pub(crate) user: UserChoice,
    pub(crate) umask: Option<u32>,
    pub(crate) arguments: Vec<CString>,
    pub(crate) environment: Vec<String>,
    pub(crate) working_directory: String,
    pub(crate) capabilities: Capabilities,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
}

/// A terminal that the process gets.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Terminal {
    pub(crate) size: Option<WindowSize>,
}

/// A resource limit: setrlimit(2).
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct ResourceLimit {
    /// Its place in [`RESOURCES`].
    resource: usize,
    soft: u64,
    hard: u64,
}

/// A kernel parameter of the container.
#[derive(Debug, PartialEq)]
pub(crate) struct Sysctl {
    /// Below `/proc/sys`.
    pub(crate) path: String,
    pub(crate) value: String,
}

/// The namespaces that are made for the container. It shares the others with the agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` of those that are made with the process.
    pub(crate) at_clone: c_int,
    /// The cgroup namespace is made by the process itself, once it is in its cgroup.
    pub(crate) cgroup: bool,
}

impl Namespaces {
    /// Whether all that the container started ends with its first process.
    pub(crate) fn has_pid(self) -> bool {
        self.at_clone & libc::CLONE_NEWPID != 0
    }
}

impl Plan {
    /// Decides how to make the container.
    ///
    /// # Errors
    ///
    /// If the config is malformed, makes no sense or asks for something that is not supported.
    pub(crate) fn new(create: Create) -> Result<Self, StartFailure> {
        let config = Config::parse(&create.config).step(|| "reading config.json".to_owned())?;
        if let Some(field) = config.unsupported_field() {
            return Err(unsupported(field, "this field is not supported"));
        }
        check_version(&config.oci_version)?;
        let Config {
            process,
            root,
            hostname,
            domainname,
            mounts,
            linux,
            ..
        } = config;
        let process = process.ok_or_else(|| invalid("process", "the config has no process"))?;
        let terminal = terminal(&process, create.streams)?;
        check_propagation(linux.rootfs_propagation.as_deref())?;
        let container = ContainerPlan {
            root: create.root,
            mounts: mounts.iter().map(Mount::new).collect::<Result<_, _>>()?,
            devices: linux
                .devices
                .iter()
                .map(DeviceNode::new)
                .collect::<Result<_, _>>()?,
            masked_paths: linux.masked_paths,
            readonly_paths: linux.readonly_paths,
            sysctls: linux
                .sysctl
                .into_iter()
                .map(sysctl)
                .collect::<Result<_, _>>()?,
            namespaces: namespaces(&linux.namespaces)?,
            cgroup: cgroup::CgroupPlan::new(
                create.process.container,
                linux.cgroups_path.as_deref(),
                linux.resources,
            )?,
        };
        let process = ProcessPlan {
            hostname: hostname.filter(|name| !name.is_empty()),
            domainname: domainname.filter(|name| !name.is_empty()),
            root_is_read_only: root.unwrap_or_default().readonly,
            terminal,
            streams: create.streams,
            user: match create.user {
                Some(text) => UserChoice::Text(text),
                None => UserChoice::Numbers {
                    uid: process.user.uid,
                    gid: process.user.gid,
                    additional_gids: process.user.additional_gids,
                },
            },
            umask: process.user.umask,
            arguments: arguments(process.args)?,
            environment: process.env,
            working_directory: working_directory(process.cwd)?,
            capabilities: Capabilities::new(&process.capabilities.unwrap_or_default())?,
            limits: process
                .rlimits
                .iter()
                .map(ResourceLimit::new)
                .collect::<Result<_, _>>()?,
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
        };
        Ok(Self { container, process })
    }
}

/// runtime-spec, "Specification version": 1.x is compatible with 1.0.
fn check_version(version: &str) -> Result<(), StartFailure> {
    if version.starts_with("1.") {
        return Ok(());
    }
    Err(unsupported(
        "ociVersion",
        format!("version {version} of the runtime-spec is not supported, 1.x is"),
    ))
}

/// All mounts of the machine are private, so private and slave ask for what is there.
fn check_propagation(propagation: Option<&str>) -> Result<(), StartFailure> {
    match propagation {
        None | Some("" | "private" | "rprivate" | "slave" | "rslave") => Ok(()),
        Some(other) => Err(unsupported(
            "linux.rootfsPropagation",
            format!("{other} is not supported"),
        )),
    }
}

fn terminal(
    process: &spec::Process,
    streams: DeclaredStreams,
) -> Result<Option<Terminal>, StartFailure> {
    if !process.terminal {
        return Ok(None);
    }
    if streams.stderr {
        return Err(invalid(
            "process.terminal",
            "a process with a terminal has no standard error of its own",
        ));
    }
    let size = process.console_size.map(|size| WindowSize {
        rows: size.height,
        columns: size.width,
    });
    Ok(Some(Terminal { size }))
}

fn namespaces(wanted: &[spec::Namespace]) -> Result<Namespaces, StartFailure> {
    let mut namespaces = Namespaces {
        at_clone: 0,
        cgroup: false,
    };
    for namespace in wanted {
        let kind = namespace.kind.as_str();
        if namespace.path.0 {
            return Err(unsupported(
                "linux.namespaces.path",
                format!("joining a {kind} namespace is not supported"),
            ));
        }
        match kind {
            "pid" => namespaces.at_clone |= libc::CLONE_NEWPID,
            "mount" => namespaces.at_clone |= libc::CLONE_NEWNS,
            "uts" => namespaces.at_clone |= libc::CLONE_NEWUTS,
            "ipc" => namespaces.at_clone |= libc::CLONE_NEWIPC,
            "network" => namespaces.at_clone |= libc::CLONE_NEWNET,
            "cgroup" => namespaces.cgroup = true,
            other => {
                return Err(unsupported(
                    "linux.namespaces",
                    format!("type {other} is not supported"),
                ));
            }
        }
    }
    if namespaces.at_clone & libc::CLONE_NEWNS == 0 {
        return Err(unsupported(
            "linux.namespaces",
            "a container without a mount namespace is not supported",
        ));
    }
    Ok(namespaces)
}

fn sysctl((name, value): (String, String)) -> Result<Sysctl, StartFailure> {
    // As sysctl(8): a name with a slash is already a path, with dots where the parts themselves have some.
    let path = if name.contains('/') {
        name.clone()
    } else {
        name.replace('.', "/")
    };
    if path.split('/').any(|part| part.is_empty() || part == "..") {
        return Err(invalid(
            "linux.sysctl",
            format!("{name} is not a kernel parameter's name"),
        ));
    }
    Ok(Sysctl { path, value })
}

fn arguments(arguments: Vec<String>) -> Result<Vec<CString>, StartFailure> {
    if arguments.is_empty() {
        return Err(invalid("process.args", "there is no program to run"));
    }
    let with_nul = |_| invalid("process.args", "an argument contains a NUL byte");
    arguments
        .into_iter()
        .map(|argument| CString::new(argument).map_err(with_nul))
        .collect()
}

fn working_directory(directory: String) -> Result<String, StartFailure> {
    if directory.starts_with('/') {
        return Ok(directory);
    }
    Err(invalid(
        "process.cwd",
        format!("{directory:?} is not an absolute path"),
    ))
}

/// The names of resource limits.
const RESOURCES: [(&str, Resource); 16] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
    ("RLIMIT_STACK", Resource::Stack),
];

impl ResourceLimit {
    fn new(limit: &spec::Rlimit) -> Result<Self, StartFailure> {
        let resource = RESOURCES
            .iter()
            .position(|(name, _)| *name == limit.kind)
            .ok_or_else(|| {
                failure(
                    FailureKind::Unsupported,
                    "process.rlimits",
                    format!("unknown type {}", limit.kind),
                )
            })?;
        Ok(Self {
            resource,
            soft: limit.soft,
            hard: limit.hard,
        })
    }

    /// Limits the calling process.
    ///
    /// # Errors
    ///
    /// The kernel's, see setrlimit(2).
    pub(crate) fn set(self) -> Result<(), StartFailure> {
        let Some((name, resource)) = RESOURCES.get(self.resource) else {
            return Ok(());
        };
        // RLIM_INFINITY is the largest value on x86-64.
        let value = |limit: u64| (limit != u64::MAX).then_some(limit);
        let limit = Rlimit {
            current: value(self.soft),
            maximum: value(self.hard),
        };
        rustix::process::setrlimit(*resource, limit).step(|| format!("setting {name}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::{ContainerId, Filesystem, Process, ProcessId, Upper};
    use serde_json::{Value, json};

    use super::*;

    fn plan(config: &Value) -> Result<Plan, StartFailure> {
        Plan::new(Create {
            process: Process {
                container: ContainerId(1),
                process: ProcessId(0),
            },
            config: config.to_string().into_bytes(),
            root: RootSource {
                source: "/dev/pmem1".to_owned(),
                filesystem: Filesystem::ErofsDax,
                upper: Upper::Tmpfs {
                    size_bytes: 1 << 20,
                },
            },
            user: None,
            streams: DeclaredStreams::default(),
        })
    }

    /// A config with one field changed.
    fn with(pointer: &str, value: Value) -> Value {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": { "args": ["sh"], "cwd": "/" },
            "mounts": [{ "destination": "/proc", "type": "proc" }],
            "linux": { "namespaces": [{ "type": "mount" }] }
        });
        let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(Value::Object(parent)) = config.pointer_mut(parent) {
            parent.insert(name.to_owned(), value);
        }
        config
    }

    fn refusal(pointer: &str, value: Value) -> (FailureKind, String) {
        let failure = plan(&with(pointer, value)).unwrap_err();
        (failure.kind, failure.step)
    }

    #[test]
    fn a_small_config_is_a_plan() {
        assert!(plan(&with("/hostname", json!("box"))).is_ok());
    }

    #[test]
    fn another_major_version_is_refused() {
        let refused = refusal("/ociVersion", json!("2.0.0"));

        assert_eq!(refused, (FailureKind::Unsupported, "ociVersion".to_owned()));
    }

    #[test]
    fn shared_propagation_is_refused() {
        let refused = refusal("/linux/rootfsPropagation", json!("shared"));

        assert_eq!(
            refused,
            (
                FailureKind::Unsupported,
                "linux.rootfsPropagation".to_owned()
            )
        );
    }

    #[test]
    fn joining_a_namespace_is_refused() {
        let refused = refusal(
            "/linux/namespaces",
            json!([{ "type": "network", "path": "/proc/1/ns/net" }]),
        );

        assert_eq!(
            refused,
            (FailureKind::Unsupported, "linux.namespaces.path".to_owned())
        );
    }

    #[test]
    fn a_container_without_a_mount_namespace_is_refused() {
        let refused = refusal("/linux/namespaces", json!([]));

        assert_eq!(
            refused,
            (FailureKind::Unsupported, "linux.namespaces".to_owned())
        );
    }

    #[test]
    fn an_option_that_would_change_the_mount_silently_is_refused() {
        let mounts = json!([{ "destination": "/x", "type": "tmpfs", "options": ["tmpcopyup"] }]);

        assert_eq!(
            refusal("/mounts", mounts),
            (FailureKind::Unsupported, "mounts.options".to_owned())
        );
    }

    #[test]
    fn an_unknown_capability_is_refused() {
        let refused = refusal(
            "/process/capabilities",
            json!({ "effective": ["CAP_FLYING"] }),
        );

        assert_eq!(
            refused,
            (
                FailureKind::Unsupported,
                "process.capabilities.effective".to_owned()
            )
        );
    }

    #[test]
    fn a_kernel_parameter_cannot_lead_out_of_its_directory() {
        let refused = refusal("/linux/sysctl", json!({ "net/../../x": "1" }));

        assert_eq!(refused, (FailureKind::Failed, "linux.sysctl".to_owned()));
    }

    #[test]
    fn a_program_is_needed() {
        let refused = refusal("/process/args", json!([]));

        assert_eq!(refused, (FailureKind::Failed, "process.args".to_owned()));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z/]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(
                    "type|path|source|destination|options|limit",
                    inner,
                    0..4
                )
                .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    fn any_field() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "/process",
            "/process/args",
            "/process/env",
            "/process/cwd",
            "/process/user",
            "/process/rlimits",
            "/process/capabilities",
            "/mounts",
            "/linux/namespaces",
            "/linux/devices",
            "/linux/resources",
            "/linux/cgroupsPath",
            "/linux/sysctl",
        ])
    }

    proptest! {
        #[test]
        fn no_config_does_harm(field in any_field(), value in any_json()) {
            let _ = plan(&with(field, value));
        }
    }
}
