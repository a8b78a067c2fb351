//! Everything about a container that can be decided before it exists.

use std::ffi::CString;
use std::rc::Rc;

use protocol::{
    Create, DeclaredStreams, Exec, Filesystem, Names, Network, RootSource, StartFailure, Upper,
    Volume, WindowSize,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::Staged;
use super::capabilities::Capabilities;
use super::cgroup;
use super::devices::DeviceNode;
use super::hooks::Hooks;
use super::mount_options::Propagation;
use super::mounts::{self, Mount};
use super::namespaces::NamespacesPlan;
use super::personality::Personality;
use super::rlimits::{self, ResourceLimit};
use super::scheduling::{Affinity, IoPriority, Scheduler};
use super::seccomp::Filter;
use super::sysctl::{self, Sysctl};
use super::user::UserChoice;
use super::{volumes, write_file};
use crate::network;
use crate::spec::{self, Config};
use crate::step::{Step as _, invalid, unsupported};

/// What will be done to make the container and its first process.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) container: Rc<ContainerPlan>,
    pub(crate) process: ProcessPlan,
    /// What asks the process to end.
    pub(crate) stop_signal: u8,
    /// The machine's network, if it has one.
    pub(crate) network: Option<Network>,
    /// What the files by which programs know names have in them.
    pub(crate) names: Names,
}

/// The container, whatever runs in it: all that can be made before anybody says what that is.
#[derive(Debug, PartialEq)]
pub(crate) struct ContainerPlan {
    pub(crate) root: RootSource,
    /// What the machine has mounted for the mounts.
    pub(crate) volumes: Vec<Volume>,
    pub(crate) root_propagation: Option<Propagation>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<DeviceNode>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) namespaces: NamespacesPlan,
    pub(crate) cgroup: cgroup::CgroupPlan,
    pub(crate) personality: Option<Personality>,
    pub(crate) hooks: Hooks,
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
    pub(crate) scheduler: Option<Scheduler>,
    pub(crate) io_priority: Option<IoPriority>,
    pub(crate) affinity: Affinity,
    pub(crate) seccomp: Option<Filter>,
    pub(crate) init: bool,
    pub(crate) idles: bool,
}

/// A terminal that the process gets.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Terminal {
    pub(crate) size: Option<WindowSize>,
}

impl ContainerPlan {
    /// Whether the process waits for the agent on its way: what is to happen then only the agent can do.
    pub(crate) fn waits_for_agent(&self) -> bool {
        self.namespaces.needs_maker() || self.hooks.needs_runner() || self.hooks.come_before_entry()
    }
}

impl ProcessPlan {
    /// Decides how to make another process of a container. It has the container's filter if it is to be filtered.
    ///
    /// # Errors
    ///
    /// If its `process` is malformed, makes no sense or asks for something that is not supported.
    pub(crate) fn joining(exec: Exec, filter: Option<&Filter>) -> Result<Self, StartFailure> {
        let process = spec::Process::parse(&exec.spec)?;
        if let Some(field) = process.unsupported_field() {
            return Err(unsupported(field, "this field is not supported"));
        }
        Ok(Self {
            seccomp: filter.filter(|_| exec.is_filtered).cloned(),
            ..Self::new(process, exec.streams, exec.user, exec.groups)?
        })
    }

    /// The plan of a process that is none of the container's: it has these streams, and does what the agent does.
    pub(crate) fn of_agent(streams: DeclaredStreams) -> Self {
        Self {
            hostname: None,
            domainname: None,
            root_is_read_only: false,
            terminal: None,
            streams,
            user: UserChoice::Numbers {
                uid: 0,
                gid: 0,
                additional_gids: Vec::new(),
            },
            umask: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            working_directory: "/".to_owned(),
            capabilities: Capabilities::default(),
            limits: Vec::new(),
            no_new_privileges: false,
            oom_score_adj: None,
            scheduler: None,
            io_priority: None,
            affinity: Affinity::default(),
            seccomp: None,
            init: false,
            idles: false,
        }
    }

    /// Decides what a `process` says.
    fn new(
        process: spec::Process,
        streams: DeclaredStreams,
        user: Option<String>,
        groups: Vec<String>,
    ) -> Result<Self, StartFailure> {
        Ok(Self {
            hostname: None,
            domainname: None,
            root_is_read_only: false,
            terminal: terminal(&process, streams)?,
            streams,
            user: match user {
                Some(text) => UserChoice::Text { text, groups },
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
            capabilities: Capabilities::new(&process.capabilities.unwrap_or_default()),
            limits: rlimits::read(&process.rlimits)?,
            no_new_privileges: process.no_new_privileges,
            oom_score_adj: process.oom_score_adj,
            scheduler: process.scheduler.as_ref().map(Scheduler::new).transpose()?,
            io_priority: process
                .io_priority
                .as_ref()
                .map(IoPriority::new)
                .transpose()?,
            affinity: process
                .exec_cpu_affinity
                .as_ref()
                .map(Affinity::new)
                .transpose()?
                .unwrap_or_default(),
            seccomp: None,
            init: false,
            idles: false,
        })
    }

    /// Gives a process that is in a user namespace what only the machine's root may give.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn grant(&self, process: Pid) -> Result<(), StartFailure> {
        self.give_scheduling(Some(process))?;
        self.limits
            .iter()
            .try_for_each(|limit| limit.set(Some(process)))
    }

    /// Sets priorities and scores of a process, the calling one if none is named.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn give_scheduling(&self, process: Option<Pid>) -> Result<(), StartFailure> {
        if let Some(score) = self.oom_score_adj {
            let path = match process {
                None => "/proc/self/oom_score_adj".to_owned(),
                Some(pid) => format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero()),
            };
            write_file(&path, &score.to_string())
                .step(|| format!("setting the score for want of memory to {score}"))?;
        }
        if let Some(scheduler) = &self.scheduler {
            scheduler.apply(process)?;
        }
        if let Some(priority) = &self.io_priority {
            priority.apply(process)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Decides how to make the container.
    ///
    /// # Errors
    ///
    /// If the config is malformed, makes no sense or asks for something that is not supported.
    pub(crate) fn new(create: Create) -> Result<Self, StartFailure> {
        let config = Config::parse(&create.config)?;
        if let Some(field) = config.unsupported_field() {
            return Err(unsupported(field, "this field is not supported"));
        }
        if config.linux.seccomp.0 {
            return Err(unsupported(
                "linux.seccomp",
                "the host compiles the profile, and has not",
            ));
        }
        check_version(&config.oci_version)?;
        let Config {
            process,
            root,
            hostname,
            domainname,
            mounts,
            linux,
            hooks,
            annotations,
            ..
        } = config;
        let process = process.ok_or_else(|| invalid("process", "the config has no process"))?;
        let namespaces = NamespacesPlan::new(&linux.namespaces, &linux)?;
        for (field, name) in [("hostname", &hostname), ("domainname", &domainname)] {
            if name.as_ref().is_some_and(|name| !name.is_empty()) && !namespaces.has_uts() {
                return Err(invalid(
                    field,
                    "the container has no UTS namespace of its own",
                ));
            }
        }
        let is_disk = |volume: &Volume| matches!(volume, Volume::Disk { .. });
        let has_disk = create.root.filesystem == Filesystem::Erofs
            || matches!(create.root.upper, Upper::Disk { .. })
            || create.volumes.iter().any(is_disk);
        let container = ContainerPlan {
            root: create.root,
            volumes: create.volumes,
            root_propagation: mounts::root_propagation(linux.rootfs_propagation.as_deref())?,
            mounts: mounts
                .iter()
                .map(|mount| Mount::new(mount, &namespaces))
                .collect::<Result<_, _>>()?,
            devices: linux
                .devices
                .iter()
                .map(DeviceNode::new)
                .collect::<Result<_, _>>()?,
            masked_paths: linux.masked_paths,
            readonly_paths: linux.readonly_paths,
            sysctls: sysctl::read(linux.sysctl, &namespaces)?,
            namespaces,
            cgroup: cgroup::CgroupPlan::new(
                create.process.container,
                linux.cgroups_path.as_deref(),
                &linux.resources,
                has_disk,
            )?,
            personality: linux
                .personality
                .as_ref()
                .map(Personality::new)
                .transpose()?,
            hooks: Hooks::new(
                hooks,
                &config.oci_version,
                create.process.container,
                annotations,
            )?,
        };
        let process = ProcessPlan {
            hostname: hostname.filter(|name| !name.is_empty()),
            domainname: domainname.filter(|name| !name.is_empty()),
            root_is_read_only: root.unwrap_or_default().readonly,
            seccomp: create.seccomp.map(Filter::new).transpose()?,
            init: create.init,
            idles: create.idles,
            ..ProcessPlan::new(process, create.streams, create.user, create.groups)?
        };
        Ok(Self {
            container: Rc::new(container),
            process,
            stop_signal: create.stop_signal,
            network: create.network,
            names: create.names,
        })
    }
}

impl Plan {
    /// Builds its container ahead, with the network that it finds there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it, or the container cannot be built ahead.
    pub(crate) fn stage(self) -> Result<Staged, StartFailure> {
        if let Some(network) = &self.network {
            network::set_up(network)?;
        }
        Staged::new(self.container, self.network)
    }

    /// Gives the machine what its container finds there: the network, or what of it was not there when the container was built ahead,
    /// and the names.
    ///
    /// # Errors
    ///
    /// If the kernel refuses it.
    pub(crate) fn prepare_machine(&self, staged: Option<&Staged>) -> Result<(), StartFailure> {
        match (&self.network, staged.and_then(Staged::network)) {
            (Some(network), Some(staged)) if network::lacks_address_alone(network, staged) => {
                network::give_address(network)?;
            }
            (Some(network), _) => network::set_up(network)?,
            (None, _) => {}
        }
        volumes::write_names(&self.container.volumes, &self.names)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protocol::{ContainerId, FailureKind, Process, ProcessId};
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
            volumes: Vec::new(),
            user: None,
            streams: DeclaredStreams::default(),
            groups: Vec::new(),
            init: false,
            idles: false,
            stop_signal: 15,
            seccomp: None,
            network: None,
            names: Names::default(),
        })
    }

    /// A config with one field changed.
    fn with(pointer: &str, value: Value) -> Value {
        let mut config = json!({
            "ociVersion": "1.2.0",
            "process": { "args": ["sh"], "cwd": "/" },
            "mounts": [{ "destination": "/proc", "type": "proc" }],
            "linux": { "namespaces": [{ "type": "mount" }, { "type": "uts" }] }
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
    fn an_unknown_propagation_is_refused() {
        let refused = refusal("/linux/rootfsPropagation", json!("sideways"));

        assert_eq!(
            refused,
            (
                FailureKind::Unsupported,
                "linux.rootfsPropagation".to_owned()
            )
        );
    }

    #[test]
    fn a_namespace_that_is_there_twice_is_refused() {
        let refused = refusal(
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "mount" }]),
        );

        assert_eq!(
            refused,
            (FailureKind::Failed, "linux.namespaces".to_owned())
        );
    }

    #[test]
    fn a_host_name_needs_a_namespace_of_its_own() {
        let mut config = with("/hostname", json!("box"));
        config["linux"]["namespaces"] = json!([{ "type": "mount" }]);

        assert_eq!(plan(&config).unwrap_err().step, "hostname");
    }

    #[test]
    fn a_resource_limit_that_is_there_twice_is_refused() {
        let limit = json!({ "type": "RLIMIT_CORE", "soft": 0, "hard": 0 });

        assert_eq!(
            refusal("/process/rlimits", json!([limit, limit])).1,
            "process.rlimits"
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
    fn an_option_that_does_not_go_with_the_mount_is_refused() {
        let mounts = json!([{ "destination": "/x", "type": "proc", "options": ["tmpcopyup"] }]);

        assert_eq!(
            refusal("/mounts", mounts),
            (FailureKind::Unsupported, "mounts.options".to_owned())
        );
    }

    #[test]
    fn an_unknown_capability_is_left_out() {
        let config = with(
            "/process/capabilities",
            json!({ "effective": ["CAP_FLYING"] }),
        );

        assert!(plan(&config).is_ok());
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
