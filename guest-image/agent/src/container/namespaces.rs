//! The namespaces of a container: runtime-spec `config-linux.md`, "Namespaces", "User namespace mappings" and "Offset for Time
//! Namespace".
//!
//! Most are made with the container's process, or joined by it. A user namespace is another matter: what only the machine's root may
//! do comes before it, and all other namespaces after it, since they belong to it. So does a process that is to be in another PID
//! or time namespace have to be made by one that has gone ahead. In these cases there is a *maker*: a process that does the
//! first half, makes the container's process as its sibling, and ends.

use std::collections::BTreeMap;
use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::StartFailure;
use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

use super::id_mappings::IdMappings;
use super::write_file;
use crate::spec;
use crate::step::{Step as _, invalid, unsupported};
use crate::sys;

/// The namespaces that are made for the container, and those that it joins. It shares the others with the agent.
#[derive(Debug, PartialEq)]
pub(crate) struct NamespacesPlan {
    /// `CLONE_NEW*` of those that are made with the process.
    made: c_int,
    /// The cgroup namespace is made by the process itself, once it is in its cgroup.
    makes_cgroup: bool,
    /// All that are joined but for the user namespace.
    joined: Vec<Joined>,
    user: Option<UserNamespace>,
    /// The offsets of a time namespace that is made, one a line as `/proc/self/timens_offsets` takes them.
    time: Option<Vec<String>>,
}

#[derive(Debug, PartialEq)]
struct Joined {
    kind: String,
    path: String,
    flag: c_int,
}

#[derive(Debug, PartialEq)]
enum UserNamespace {
    Made(IdMappings),
    Joined(String),
}

/// Namespaces that the agent opened or made for a container before its process is.
#[derive(Debug, Default)]
pub(crate) struct OpenNamespaces {
    joined: Vec<(LinkNameSpaceType, OwnedFd, String)>,
    user: Option<OwnedFd>,
}

/// The types by their names in the specification, with `CLONE_NEW*`.
const TYPES: [(&str, c_int); 8] = [
    ("pid", libc::CLONE_NEWPID),
    ("network", libc::CLONE_NEWNET),
    ("mount", libc::CLONE_NEWNS),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("user", libc::CLONE_NEWUSER),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", CLONE_NEWTIME),
];

/// `include/uapi/linux/sched.h`; the library has it as another type.
const CLONE_NEWTIME: c_int = 0x80;

/// The clocks that a time namespace has its own of: time_namespaces(7).
const CLOCKS: [&str; 2] = ["monotonic", "boottime"];

impl NamespacesPlan {
    /// Reads `linux.namespaces`, and what belongs to them.
    ///
    /// # Errors
    ///
    /// If a type is unknown or there twice, or the container has no mount namespace of its own, or mappings and offsets do not fit.
    pub(crate) fn new(
        namespaces: &[spec::Namespace],
        linux: &spec::Linux,
    ) -> Result<Self, StartFailure> {
        let mut plan = Self {
            made: 0,
            makes_cgroup: false,
            joined: Vec::new(),
            user: None,
            time: None,
        };
        let mappings = IdMappings::new("linux", &linux.uid_mappings, &linux.gid_mappings)?;
        let mut seen = 0;
        for spec::Namespace { kind, path } in namespaces {
            let flag = TYPES.iter().find(|(name, _)| name == kind);
            let Some((_, flag)) = flag else {
                return Err(unsupported(
                    "linux.namespaces.type",
                    format!("type {kind:?} is unknown"),
                ));
            };
            if seen & flag != 0 {
                return Err(invalid(
                    "linux.namespaces",
                    format!("type {kind} is there twice"),
                ));
            }
            seen |= flag;
            match path.as_deref().filter(|path| !path.is_empty()) {
                Some(path) => plan.join(kind, *flag, path)?,
                None => plan.make(*flag, mappings.as_ref(), linux)?,
            }
        }
        if plan.made & libc::CLONE_NEWNS == 0 {
            return Err(unsupported(
                "linux.namespaces",
                "a container without a mount namespace of its own is not supported, because its root is mounted there",
            ));
        }
        if mappings.is_some() && plan.user.is_none() {
            return Err(invalid(
                "linux.uidMappings",
                "the container has no user namespace",
            ));
        }
        if !linux.time_offsets.is_empty() && plan.time.is_none() {
            return Err(invalid(
                "linux.timeOffsets",
                "the container has no time namespace of its own",
            ));
        }
        Ok(plan)
    }

    fn join(&mut self, kind: &str, flag: c_int, path: &str) -> Result<(), StartFailure> {
        if !path.starts_with('/') {
            return Err(invalid(
                "linux.namespaces.path",
                format!("{path:?} is not an absolute path"),
            ));
        }
        match flag {
            // Is reported with the missing mount namespace of its own.
            libc::CLONE_NEWNS => (),
            libc::CLONE_NEWUSER => self.user = Some(UserNamespace::Joined(path.to_owned())),
            _ => self.joined.push(Joined {
                kind: kind.to_owned(),
                path: path.to_owned(),
                flag,
            }),
        }
        Ok(())
    }

    fn make(
        &mut self,
        flag: c_int,
        mappings: Option<&IdMappings>,
        linux: &spec::Linux,
    ) -> Result<(), StartFailure> {
        match flag {
            libc::CLONE_NEWUSER => {
                let mappings = mappings.ok_or_else(|| {
                    invalid(
                        "linux.uidMappings",
                        "a user namespace without mappings has no users",
                    )
                })?;
                self.user = Some(UserNamespace::Made(mappings.clone()));
            }
            libc::CLONE_NEWCGROUP => self.makes_cgroup = true,
            CLONE_NEWTIME => self.time = Some(offsets(&linux.time_offsets)?),
            flag => self.made |= flag,
        }
        Ok(())
    }

    /// `CLONE_NEW*` of those that are made with the process.
    pub(crate) fn at_clone(&self) -> c_int {
        self.made
    }

    /// Whether the process makes a cgroup namespace.
    pub(crate) fn makes_cgroup(&self) -> bool {
        self.makes_cgroup
    }

    /// Whether all that the container started ends with its first process.
    pub(crate) fn makes_pid(&self) -> bool {
        self.made & libc::CLONE_NEWPID != 0
    }

    /// Whether the container has a network that nobody else has.
    pub(crate) fn makes_network(&self) -> bool {
        self.made & libc::CLONE_NEWNET != 0
    }

    /// Whether the container's network is the machine's.
    pub(crate) fn shares_network(&self) -> bool {
        !self.has(libc::CLONE_NEWNET)
    }

    /// Whether the container's IPC objects are not the machine's.
    pub(crate) fn has_ipc(&self) -> bool {
        self.has(libc::CLONE_NEWIPC)
    }

    /// Whether the container's host name is not the machine's.
    pub(crate) fn has_uts(&self) -> bool {
        self.has(libc::CLONE_NEWUTS)
    }

    /// Whether the container's users are not the machine's.
    pub(crate) fn has_user(&self) -> bool {
        self.user.is_some()
    }

    /// Which of the machine's ids the container's are, where they are known.
    pub(crate) fn mappings(&self) -> Option<&IdMappings> {
        match &self.user {
            Some(UserNamespace::Made(mappings)) => Some(mappings),
            Some(UserNamespace::Joined(_)) | None => None,
        }
    }

    /// Whether a process has to go ahead of the container's.
    pub(crate) fn needs_maker(&self) -> bool {
        let joins_pid = |joined: &Joined| joined.flag == libc::CLONE_NEWPID;
        self.user.is_some() || self.time.is_some() || self.joined.iter().any(joins_pid)
    }

    fn has(&self, flag: c_int) -> bool {
        self.made & flag != 0 || self.joined.iter().any(|joined| joined.flag == flag)
    }

    /// `CLONE_NEW*` of all that the container does not share with the agent: what another process of it has to join.
    pub(crate) fn all(&self) -> c_int {
        let joined = self.joined.iter().map(|joined| joined.flag);
        let others = [
            (self.makes_cgroup, libc::CLONE_NEWCGROUP),
            (self.user.is_some(), libc::CLONE_NEWUSER),
            (self.time.is_some(), CLONE_NEWTIME),
        ];
        let others = others
            .into_iter()
            .filter_map(|(has, flag)| has.then_some(flag));
        joined.chain(others).fold(self.made, |all, flag| all | flag)
    }

    /// Opens what is joined, and makes what is made ahead.
    ///
    /// # Errors
    ///
    /// If a path does not exist, or the kernel refuses the mappings.
    pub(crate) fn open(&self) -> Result<OpenNamespaces, StartFailure> {
        let open = |kind: &str, path: &str| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .step(|| format!("opening the {kind} namespace {path}"))
        };
        let mut joined = Vec::with_capacity(self.joined.len());
        for Joined { kind, path, flag } in &self.joined {
            let Some(link) = link_type(*flag) else {
                continue;
            };
            let what = format!("{kind} namespace {path}");
            joined.push((link, open(kind, path)?, what));
        }
        let user = match &self.user {
            None => None,
            Some(UserNamespace::Made(mappings)) => Some(mappings.namespace()?),
            Some(UserNamespace::Joined(path)) => Some(open("user", path)?),
        };
        Ok(OpenNamespaces { joined, user })
    }

    /// Makes the time namespace for the processes that the caller will make.
    ///
    /// # Errors
    ///
    /// The kernel's, for example if a clock would be before 0.
    pub(crate) fn make_time(&self) -> Result<(), StartFailure> {
        let Some(offsets) = &self.time else {
            return Ok(());
        };
        sys::unshare_time().step(|| "making a time namespace".to_owned())?;
        for offset in offsets {
            write_file("/proc/self/timens_offsets", offset)
                .step(|| format!("setting the time offset {offset}"))?;
        }
        Ok(())
    }
}

impl OpenNamespaces {
    /// The user namespace, for mounts that are to show its ids.
    pub(crate) fn user(&self) -> Option<BorrowedFd<'_>> {
        self.user.as_ref().map(AsFd::as_fd)
    }

    /// Takes the caller into all namespaces that are joined but for the user namespace. What it makes then is in the PID namespace, too.
    ///
    /// # Errors
    ///
    /// If one is of another type, see setns(2).
    pub(crate) fn join(&self) -> Result<(), StartFailure> {
        for (kind, namespace, what) in &self.joined {
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))
                .step(|| format!("joining the {what}"))?;
        }
        Ok(())
    }

    /// Makes the caller the root of the user namespace, if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's, for example if nobody is mapped to its root.
    pub(crate) fn join_user(&self) -> Result<(), StartFailure> {
        let Some(user) = self.user() else {
            return Ok(());
        };
        rustix::thread::move_into_link_name_space(user, Some(LinkNameSpaceType::User))
            .step(|| "joining the user namespace".to_owned())?;
        sys::become_root().step(|| "becoming the root of the user namespace".to_owned())
    }
}

fn link_type(flag: c_int) -> Option<LinkNameSpaceType> {
    match flag {
        libc::CLONE_NEWPID => Some(LinkNameSpaceType::ProcessID),
        libc::CLONE_NEWNET => Some(LinkNameSpaceType::Network),
        libc::CLONE_NEWIPC => Some(LinkNameSpaceType::InterProcessCommunication),
        libc::CLONE_NEWUTS => Some(LinkNameSpaceType::HostNameAndNISDomainName),
        libc::CLONE_NEWCGROUP => Some(LinkNameSpaceType::ControlGroup),
        CLONE_NEWTIME => Some(LinkNameSpaceType::Time),
        _ => None,
    }
}

fn offsets(offsets: &BTreeMap<String, spec::TimeOffset>) -> Result<Vec<String>, StartFailure> {
    offsets
        .iter()
        .map(|(clock, offset)| {
            if !CLOCKS.contains(&clock.as_str()) {
                return Err(invalid(
                    format!("linux.timeOffsets.{clock}"),
                    "time namespaces have no such clock",
                ));
            }
            Ok(format!("{clock} {} {}", offset.secs, offset.nanosecs))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(namespaces: &str, linux: &str) -> Result<NamespacesPlan, StartFailure> {
        let namespaces: Vec<spec::Namespace> = serde_json::from_str(namespaces).unwrap();
        NamespacesPlan::new(&namespaces, &serde_json::from_str(linux).unwrap())
    }

    fn refused(namespaces: &str, linux: &str) -> String {
        plan(namespaces, linux).unwrap_err().step
    }

    #[test]
    fn an_unknown_type_is_refused() {
        assert_eq!(
            refused(r#"[{"type":"net"}]"#, "{}"),
            "linux.namespaces.type"
        );
    }

    #[test]
    fn a_relative_path_is_refused() {
        assert_eq!(
            refused(r#"[{"type":"ipc","path":"ns/ipc"}]"#, "{}"),
            "linux.namespaces.path"
        );
    }

    #[test]
    fn another_mount_namespace_cannot_be_joined() {
        assert_eq!(
            refused(r#"[{"type":"mount","path":"/proc/1/ns/mnt"}]"#, "{}"),
            "linux.namespaces"
        );
    }

    #[test]
    fn a_user_namespace_needs_mappings() {
        assert_eq!(
            refused(r#"[{"type":"mount"},{"type":"user"}]"#, "{}"),
            "linux.uidMappings"
        );
    }

    #[test]
    fn mappings_need_a_user_namespace() {
        let range = r#"[{"containerID":0,"hostID":1,"size":1}]"#;
        let linux = format!(r#"{{"uidMappings":{range},"gidMappings":{range}}}"#);

        assert_eq!(
            refused(r#"[{"type":"mount"}]"#, &linux),
            "linux.uidMappings"
        );
    }

    #[test]
    fn offsets_need_a_time_namespace() {
        let linux = r#"{"timeOffsets":{"monotonic":{"secs":1}}}"#;

        assert_eq!(refused(r#"[{"type":"mount"}]"#, linux), "linux.timeOffsets");
    }

    #[test]
    fn a_clock_that_has_no_offset_is_refused() {
        let linux = r#"{"timeOffsets":{"realtime":{"secs":1}}}"#;

        assert_eq!(
            refused(r#"[{"type":"mount"},{"type":"time"}]"#, linux),
            "linux.timeOffsets.realtime"
        );
    }

    #[test]
    fn another_process_joins_all_that_the_container_has_of_its_own() {
        let namespaces = r#"[{"type":"mount"},{"type":"pid"},{"type":"cgroup"},{"type":"time"},{"type":"ipc","path":"/x"}]"#;

        let all = plan(namespaces, "{}").unwrap().all();

        let wanted = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC;
        assert_eq!(all, wanted | libc::CLONE_NEWCGROUP | CLONE_NEWTIME);
    }

    #[test]
    fn only_what_needs_it_has_a_maker() {
        let usual = r#"[{"type":"mount"},{"type":"pid"},{"type":"ipc","path":"/x"}]"#;
        let joined = r#"[{"type":"mount"},{"type":"pid","path":"/x"}]"#;

        assert!(!plan(usual, "{}").unwrap().needs_maker());
        assert!(plan(joined, "{}").unwrap().needs_maker());
    }
}
